// SPDX-License-Identifier: Apache-2.0
//
// JSON Schemas by chance, each with values that it accepts and values that it does not, and a
// validator for the keywords that they use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "nibble/io/json_value.hpp"

namespace test {

struct MadeSchema {
  std::string schema;
  std::vector<std::string> valid, invalid;  // JSON with a space behind ',' and ':'
};

class SchemaMaker {
 public:
  explicit SchemaMaker(unsigned seed) : random_(seed) {}

  MadeSchema make() {
    MadeSchema made = any(0);
    if (defs_.empty()) return made;
    // The definitions go into the schema itself, which is an object.
    made.schema.insert(1, "\"$defs\": {" + defs_ + "}, ");
    return made;
  }

 private:
  struct Text {
    const char* keyword;
    std::vector<std::string> valid, invalid;
  };

  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  bool chance() { return below(2) == 0; }
  template <class T>
  const T& one_of(const std::vector<T>& list) {
    return list[static_cast<std::size_t>(below(static_cast<int>(list.size())))];
  }

  MadeSchema any(int depth) {
    switch (below(depth < 3 ? 15 : 9)) {
      case 0: return {R"({"type": "boolean"})", {"true", "false"}, {"0", "\"true\"", "null"}};
      case 1: return {R"({"type": "null"})", {"null"}, {"0", "false", "\"\""}};
      case 2: return integer();
      case 3: return number();
      case 4: return string();
      case 5: return text();
      case 6: return values();
      case 7:
        return {R"({"type": ["integer", "null"]})", {"null", "-17", "0"}, {"1.5", "\"1\"", "[]"}};
      case 8:
        return {R"({"allOf": [{"type": "integer", "minimum": -3}, {"maximum": 12}]})",
                {"-3", "0", "12", "7"},
                {"-4", "13", "100", "0.5"}};
      case 9: return array(depth);
      case 10: return tuple(depth);
      case 11: return choice(depth);
      case 12: return reference(depth);
      default: return object(depth);
    }
  }

  MadeSchema integer() {
    const int low = below(2000) - 1000, high = low + below(chance() ? 12 : 5000);
    MadeSchema made;
    const bool has_low = below(4) != 0, has_high = below(4) != 0, excluded = below(3) == 0;
    made.schema = "{\"type\": \"integer\"";
    const char* const min = excluded ? "exclusiveMinimum" : "minimum";
    const char* const max = excluded ? "exclusiveMaximum" : "maximum";
    const int by = excluded ? 1 : 0;
    if (has_low) made.schema += ", \"" + std::string(min) + "\": " + std::to_string(low - by);
    if (has_high) made.schema += ", \"" + std::string(max) + "\": " + std::to_string(high + by);
    made.schema += "}";
    for (const int x : {low, high, (low + high) / 2}) made.valid.push_back(std::to_string(x));
    if (!has_low) made.valid.push_back("-123456");
    if (!has_high) made.valid.push_back("98765432");
    if (has_low) made.invalid.push_back(std::to_string(low - 1));
    if (has_high) made.invalid.push_back(std::to_string(high + 1));
    made.invalid.insert(made.invalid.end(), {"1.25", "true", "\"3\"", "01"});
    return made;
  }

  MadeSchema number() {
    const int low = below(40) - 20, high = low + 1 + below(30);
    const std::string l = std::to_string(low), h = std::to_string(high);
    const std::string middle = low < 0 && high > 0 ? "0.125" : low >= 0 ? l + ".5" : h + ".5";
    if (chance())
      return {R"({"type": "number"})", {"0.5", "-3e-2", l}, {".5", "1.", "\"1\"", "+1"}};
    MadeSchema made{"{\"type\": \"number\", \"minimum\": " + l + ", \"maximum\": " + h + "}",
                    {l, h, l + ".0"},
                    {std::to_string(low - 1), std::to_string(high + 1), "null", "1e9"}};
    if (low >= 0 || high > 0) made.valid.push_back(middle);
    made.invalid.push_back(high >= 0 ? h + ".01" : "0.5");
    return made;
  }

  MadeSchema string() {
    const int min = below(4), max = min + below(90);
    const auto of = [](int n) {
      return "\"" + std::string(static_cast<std::size_t>(n), 'x') + "\"";
    };
    MadeSchema made{"{\"type\": \"string\", \"minLength\": " + std::to_string(min) +
                        ", \"maxLength\": " + std::to_string(max) + "}",
                    {of(min), of(max), of((min + max) / 2)},
                    {of(max + 1), "1", "[]"}};
    if (min > 0) made.invalid.push_back(of(min - 1));
    if (max > 1 && min < 3) made.valid.push_back("\"\\n\xE6\x9D\xB1\"");
    if (chance()) return made;
    return {R"({"type": "string"})",
            {"\"\"", "\"a \xC3\xA9 \\\" \\\\ \\u00e9 \\ud83d\\ude00\""},
            {"\"", "\"\\x\"", "\"\t\"", "\"\\ud83d\"", "null"}};
  }

  MadeSchema text() {
    static const std::vector<Text> kTexts = {
        {R"("pattern": "^[a-z]+$")", {"\"abc\""}, {"\"aBc\"", "\"\""}},
        {R"("pattern": "b+")", {"\"b\"", "\"xbbx\""}, {"\"acd\""}},
        {R"("pattern": "^(\\d{3}-)?\\d{4}$")", {"\"1234\"", "\"555-1234\""}, {"\"55-1234\""}},
        {R"("pattern": "^[^\"a]?x$|^yes$")", {"\"\\\\x\"", "\"yes\""}, {"\"ax\"", "\"\\\"x\""}},
        {R"("pattern": "^\\w+@\\w+\\.(com|org)$")", {"\"a_b@c.org\""}, {"\"a@b\"", "\"@b.com\""}},
        {R"("format": "date")", {"\"2024-12-31\""}, {"\"2024-13-01\"", "\"2023-02-30\""}},
        {R"("format": "time")", {"\"23:59:59Z\"", "\"00:00:00.5+01:30\""}, {"\"24:00:00Z\""}},
        {R"("format": "date-time")", {"\"2024-01-02T03:04:05Z\""}, {"\"2024-01-02 03:04:05Z\""}},
        {R"("format": "uuid")", {"\"123e4567-e89b-12d3-a456-426614174000\""}, {"\"123e4567\""}},
        {R"("format": "ipv4")", {"\"192.168.0.255\""}, {"\"256.1.1.1\"", "\"1.1.1\""}},
        {R"("format": "email")", {"\"a.b@example.com\""}, {"\"a@\"", "\"example.com\""}},
        {R"("format": "uri")", {"\"https://example.com/a%20b?q=1#x\""}, {"\"no uri\""}},
        {R"("format": "duration")", {"\"P1DT2H\"", "\"PT5M\""}, {"\"P\"", "\"1D\""}},
    };
    const Text& t = one_of(kTexts);
    return {"{\"type\": \"string\", " + std::string(t.keyword) + "}", t.valid, t.invalid};
  }

  MadeSchema values() {
    static const std::vector<std::string> kValues = {
        "\"on\"", "\"off\"", "\"offline\"", "1",      "12",
        "-1.5",   "null",    "true",        "[1, 2]", "{\"a\": \"b\"}"};
    MadeSchema made;
    if (below(4) == 0) {
      const std::string value = one_of(kValues);
      made = {"{\"const\": " + value + "}", {value}, {}};
    } else {
      const int first = below(5), n = 2 + below(5);
      made.schema = "{\"enum\": [";
      for (int i = first; i < first + n; ++i) {
        made.valid.push_back(kValues[static_cast<std::size_t>(i)]);
        made.schema += (i > first ? ", " : "") + made.valid.back();
      }
      made.schema += "]}";
    }
    for (const std::string& value : kValues) {
      if (std::find(made.valid.begin(), made.valid.end(), value) == made.valid.end()) {
        made.invalid.push_back(value);
      }
    }
    return made;
  }

  static std::string list(const std::vector<std::string>& items) {
    std::string out = "[";
    for (std::size_t i = 0; i < items.size(); ++i) out += (i > 0 ? ", " : "") + items[i];
    return out + "]";
  }

  MadeSchema array(int depth) {
    const MadeSchema item = any(depth + 1);
    const int min = below(3), max = min + 1 + below(4);
    MadeSchema made{"{\"type\": \"array\", \"items\": " + item.schema + ", \"minItems\": " +
                        std::to_string(min) + ", \"maxItems\": " + std::to_string(max) + "}",
                    {},
                    {"null", "{}"}};
    const auto of = [&](int n) {
      std::vector<std::string> items;
      for (int i = 0; i < n; ++i) items.push_back(one_of(item.valid));
      return items;
    };
    for (const int n : {min, max, min + 1}) made.valid.push_back(list(of(n)));
    made.invalid.push_back(list(of(max + 1)));
    if (min > 0) made.invalid.push_back(list(of(min - 1)));
    auto wrong = of(min + 1);
    wrong.back() = one_of(item.invalid);
    made.invalid.push_back(list(wrong));
    return made;
  }

  MadeSchema tuple(int depth) {
    const MadeSchema a = any(depth + 1), b = any(depth + 1);
    const bool is_closed = chance();
    MadeSchema made{"{\"type\": \"array\", \"prefixItems\": [" + a.schema + ", " + b.schema +
                        "], \"items\": " + (is_closed ? "false" : "{\"type\": \"null\"}") +
                        ", \"minItems\": 1}",
                    {list({one_of(a.valid)}), list({one_of(a.valid), one_of(b.valid)})},
                    {"[]", list({one_of(a.invalid)}), list({one_of(a.valid), one_of(b.invalid)}),
                     list({one_of(a.valid), one_of(b.valid), "0"})}};
    const std::string longer = list({one_of(a.valid), one_of(b.valid), "null", "null"});
    (is_closed ? made.invalid : made.valid).push_back(longer);
    return made;
  }

  MadeSchema choice(int depth) {
    if (chance()) {  // told apart by a constant
      const MadeSchema a = any(depth + 1), b = any(depth + 1);
      const auto branch = [](const char* kind, const MadeSchema& value) {
        return R"({"type": "object", "properties": {"kind": {"const": ")" + std::string(kind) +
               R"("}, "value": )" + value.schema + R"(}, "required": ["kind", "value"]})";
      };
      const auto of = [](const char* kind, const std::string& value) {
        return R"({"kind": ")" + std::string(kind) + R"(", "value": )" + value + "}";
      };
      return {"{\"oneOf\": [" + branch("a", a) + ", " + branch("b", b) + "]}",
              {of("a", one_of(a.valid)), of("b", one_of(b.valid))},
              {of("c", one_of(a.valid)), of("a", one_of(a.invalid)), of("b", one_of(b.invalid)),
               R"({"kind": "a"})"}};
    }
    return {R"({"anyOf": [{"type": "integer", "minimum": 10}, {"enum": ["low", "lower"]}]})",
            {"10", "12345", "\"low\"", "\"lower\""},
            {"9", "\"lowe\"", "\"lows\"", "null"}};
  }

  MadeSchema reference(int depth) {
    // A list that ends with null: recursive.
    const std::string name = "d" + std::to_string(n_defs_++);
    const MadeSchema value = any(depth + 1);
    const std::string node = R"({"type": "object", "properties": {"value": )" + value.schema +
                             R"(, "next": {"$ref": "#/$defs/)" + name +
                             R"("}}, "required": ["value"], "additionalProperties": false})";
    defs_ += (defs_.empty() ? "" : ", ") + std::string("\"") + name + "\": " + node;
    const auto end = [&] { return "{\"value\": " + one_of(value.valid) + "}"; };
    const auto before = [&](const std::string& next) {
      return "{\"value\": " + one_of(value.valid) + ", \"next\": " + next + "}";
    };
    return {R"({"$ref": "#/$defs/)" + name + "\"}",
            {end(), before(end()), before(before(end()))},
            {"{}", before("null"), before(before("{\"value\": " + one_of(value.invalid) + "}")),
             before(before(end()).substr(1))}};
  }

  MadeSchema object(int depth) {
    static const std::vector<std::string> kNames = {"a", "ab", "name", "na\xC3\xAFve", "q\\\"q"};
    const int n = 1 + below(5);
    std::vector<MadeSchema> members;
    std::vector<bool> required;
    MadeSchema made;
    made.schema = "{\"type\": \"object\", \"properties\": {";
    std::string names;
    for (int i = 0; i < n; ++i) {
      members.push_back(any(depth + 1));
      required.push_back(chance());
      const std::string& name = kNames[static_cast<std::size_t>(i)];
      made.schema += (i > 0 ? ", \"" : "\"") + name + "\": " + members.back().schema;
      if (required.back()) names += (names.empty() ? "\"" : ", \"") + name + "\"";
    }
    const bool is_open = chance();
    made.schema += "}, \"required\": [" + names + "], \"additionalProperties\": " +
                   (is_open ? R"({"type": "boolean"})" : "false") + "}";
    // skip: a required member to leave out; wrong: one with a wrong value.
    const auto of = [&](bool with_optional, int skip, int wrong, const std::string& last) {
      std::string out = "{";
      for (int i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (i == skip || (!required[at] && !with_optional && i != wrong)) continue;
        out += (out.size() > 1 ? ", \"" : "\"") + kNames[at] +
               "\": " + one_of(i == wrong ? members[at].invalid : members[at].valid);
      }
      if (!last.empty()) out += (out.size() > 1 ? ", " : "") + last;
      return out + "}";
    };
    made.valid = {of(true, -1, -1, ""), of(false, -1, -1, "")};
    made.invalid = {of(true, -1, below(n), ""), of(true, -1, -1, "\"zzz\": 1")};
    (is_open ? made.valid : made.invalid).push_back(of(chance(), -1, -1, "\"zzz\": true"));
    for (int i = 0; i < n; ++i)
      if (required[static_cast<std::size_t>(i)]) made.invalid.push_back(of(true, i, -1, ""));
    return made;
  }

  std::mt19937 random_;
  std::string defs_;
  int n_defs_ = 0;
};

// Whether a schema of SchemaMaker accepts a value. (Formats only have their types checked.)
inline bool accepts(const nibble::io::JsonValue& root, const nibble::io::JsonValue& schema,
                    const nibble::io::JsonValue& value) {
  using nibble::io::JsonValue;
  using Kind = JsonValue::Kind;
  const auto equal = [](const JsonValue& a, const JsonValue& b, const auto& self) -> bool {
    if (a.kind() != b.kind() || a.boolean() != b.boolean() || a.number() != b.number() ||
        a.string() != b.string() || a.elements().size() != b.elements().size()) {
      return false;
    }
    for (std::size_t i = 0; i < a.elements().size(); ++i) {
      if (i < a.keys().size() && a.keys()[i] != b.keys()[i]) return false;
      if (!self(a.elements()[i], b.elements()[i], self)) return false;
    }
    return true;
  };
  if (schema.kind() == Kind::boolean) return schema.boolean();
  const auto number = [&](const char* key) { return schema.find(key)->number(); };
  const auto is_type = [&](const std::string& type) {
    const Kind k = value.kind();
    if (type == "integer") return k == Kind::number && std::floor(value.number()) == value.number();
    return (type == "null" && k == Kind::null) || (type == "boolean" && k == Kind::boolean) ||
           (type == "number" && k == Kind::number) || (type == "string" && k == Kind::string) ||
           (type == "array" && k == Kind::array) || (type == "object" && k == Kind::object);
  };
  if (const JsonValue* type = schema.find("type")) {
    bool any = type->kind() == Kind::string && is_type(type->string());
    for (const JsonValue& t : type->elements()) any = any || is_type(t.string());
    if (!any) return false;
  }
  if (const JsonValue* list = schema.find("enum")) {
    bool any = false;
    for (const JsonValue& v : list->elements()) any = any || equal(v, value, equal);
    if (!any) return false;
  }
  if (const JsonValue* c = schema.find("const"); c != nullptr && !equal(*c, value, equal)) {
    return false;
  }
  if (const JsonValue* ref = schema.find("$ref")) {
    const std::string name = ref->string().substr(std::string("#/$defs/").size());
    if (!accepts(root, *root.find("$defs")->find(name), value)) return false;
  }
  for (const char* key : {"allOf", "anyOf", "oneOf"}) {
    const JsonValue* list = schema.find(key);
    if (list == nullptr) continue;
    std::size_t n = 0;
    for (const JsonValue& s : list->elements()) n += accepts(root, s, value);
    if (key[0] == 'a' && key[1] == 'l' ? n < list->elements().size()
        : key[0] == 'a'                ? n == 0
                                       : n != 1) {
      return false;
    }
  }
  if (value.kind() == Kind::number) {
    const double x = value.number();
    if (schema.find("minimum") && x < number("minimum")) return false;
    if (schema.find("maximum") && x > number("maximum")) return false;
    if (schema.find("exclusiveMinimum") && x <= number("exclusiveMinimum")) return false;
    if (schema.find("exclusiveMaximum") && x >= number("exclusiveMaximum")) return false;
  }
  if (value.kind() == Kind::string) {
    double n = 0;
    for (const char c : value.string()) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (schema.find("minLength") && n < number("minLength")) return false;
    if (schema.find("maxLength") && n > number("maxLength")) return false;
    const JsonValue* pattern = schema.find("pattern");
    // (std::regex works on bytes: only ASCII is checked.)
    if (pattern && n == static_cast<double>(value.string().size()) &&
        !std::regex_search(value.string(), std::regex(pattern->string()))) {
      return false;
    }
  }
  if (value.kind() == Kind::array) {
    const auto n = static_cast<double>(value.elements().size());
    if (schema.find("minItems") && n < number("minItems")) return false;
    if (schema.find("maxItems") && n > number("maxItems")) return false;
    const JsonValue* prefix = schema.find("prefixItems");
    const JsonValue* items = schema.find("items");
    for (std::size_t i = 0; i < value.elements().size(); ++i) {
      const JsonValue* s = prefix && i < prefix->elements().size() ? &prefix->elements()[i] : items;
      if (s != nullptr && !accepts(root, *s, value.elements()[i])) return false;
    }
  }
  if (value.kind() == Kind::object) {
    const JsonValue* properties = schema.find("properties");
    const JsonValue* others = schema.find("additionalProperties");
    for (std::size_t i = 0; i < value.keys().size(); ++i) {
      const JsonValue* s = properties ? properties->find(value.keys()[i]) : nullptr;
      if (s == nullptr) s = others;
      if (s != nullptr && !accepts(root, *s, value.elements()[i])) return false;
    }
    if (const JsonValue* required = schema.find("required")) {
      for (const JsonValue& name : required->elements())
        if (value.find(name.string()) == nullptr) return false;
    }
  }
  return true;
}

}  // namespace test
