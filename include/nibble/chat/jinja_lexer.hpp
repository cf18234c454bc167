// SPDX-License-Identifier: Apache-2.0
//
// Cuts the source of a template into tokens. White space around tags is handled here, with the
// settings that chat templates are written for: trim_blocks (a line break right after a tag {% %}
// or a comment is dropped) and lstrip_blocks (so is what indents one at the beginning of a line).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/characters.hpp"
#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

struct Token {
  enum class Kind : unsigned char {
    data,             // text between tags
    print_begin,      // {{
    print_end,        // }}
    statement_begin,  // {%
    statement_end,    // %}
    name,
    string,  // without its quotes, with its escapes
    integer,
    number,
    symbol,  // an operator, a bracket, a separator
    end,     // of the source
  };
  Kind kind = Kind::end;
  std::uint32_t line = 1;
  std::string_view text;  // in the source
};

// Line breaks as \n; without one at the end.
inline std::string normalized_source(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (source.substr(i + 1, 1) == "\n") ++i;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class JinjaLexer {
 public:
  // `source` must be normalized and outlive the tokens.
  explicit JinjaLexer(std::string_view source) noexcept : source_(source) {}

  // Errors: malformed (a tag, comment or string without end; a character that no token begins
  // with), with the line.
  Result<std::vector<Token>> tokens() {
    while (at_ < source_.size()) {
      const std::size_t tag = find_tag();
      const std::string_view before = source_.substr(at_, tag - at_);
      if (tag == source_.size()) {
        add_data(before);
        break;
      }
      const char kind = source_[tag + 1];
      const char sign = sign_at(tag + 2);
      add_data(stripped_before_tag(before, kind, sign));
      move_to(tag + 2 + (sign != '\0'));
      if (kind == '#') {
        NIBBLE_CHECK(comment());
      } else if (kind == '%' && is_raw_tag(at_, "raw")) {
        NIBBLE_CHECK(raw());
      } else {
        NIBBLE_CHECK(inside(kind == '%'));
      }
    }
    add(Token::Kind::end, {});
    return std::move(tokens_);
  }

 private:
  // Where the next {{, {% or {# begins; the end of the source if there is none.
  std::size_t find_tag() const noexcept {
    for (std::size_t i = at_; i + 1 < source_.size(); ++i) {
      const char next = source_[i + 1];
      if (source_[i] == '{' && (next == '{' || next == '%' || next == '#')) return i;
    }
    return source_.size();
  }

  // The sign of a tag that begins or ends there; NUL if it has none.
  char sign_at(std::size_t at) const noexcept {
    const char c = at < source_.size() ? source_[at] : '\0';
    return c == '-' || c == '+' ? c : '\0';
  }

  std::string_view stripped_before_tag(std::string_view text, char kind, char sign) const noexcept {
    if (sign == '-') return without_trailing_space(text);
    if (sign == '+' || kind == '{') return text;
    const std::size_t line = text.rfind('\n') + 1;
    if (line == 0 && !at_line_start_) return text;
    return without_leading_space(text.substr(line)).empty() ? text.substr(0, line) : text;
  }

  void add(Token::Kind kind, std::string_view text) { tokens_.push_back({kind, line_, text}); }
  void add_data(std::string_view text) {
    if (!text.empty()) add(Token::Kind::data, text);
  }

  void move_to(std::size_t at) noexcept {
    for (; at_ < at; ++at_) line_ += source_[at_] == '\n';
  }
  void skip_space() noexcept {
    move_to(source_.size() - without_leading_space(source_.substr(at_)).size());
  }

  // Passes over the two characters that end a tag, and over the white space that goes with them.
  void close(std::size_t end, char sign, bool trims_line_break) noexcept {
    move_to(end + 2);
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && trims_line_break && source_.substr(at_, 1) == "\n") {
      move_to(at_ + 1);
    }
    at_line_start_ = source_[at_ - 1] == '\n';
  }

  Error error(const std::string& what, std::uint32_t line) const {
    return Error{Errc::malformed, "line " + to_text(line) + ": " + what};
  }

  Result<void> comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == source_.npos) return error("a comment without end", line_);
    // The sign of "{#-#}" is that of its beginning.
    close(end, end == at_ ? '\0' : sign_at(end - 1), true);
    return ok();
  }

  // Whether what follows is the rest of {% name %}; `end`: where its %} is.
  bool is_raw_tag(std::size_t at, std::string_view name,
                  std::size_t* end = nullptr) const noexcept {
    std::string_view rest = without_leading_space(source_.substr(at));
    if (!rest.starts_with(name)) return false;
    rest = without_leading_space(rest.substr(name.size()));
    if (rest.starts_with('-') || rest.starts_with('+')) rest.remove_prefix(1);
    if (end != nullptr) *end = source_.size() - rest.size();
    return rest.starts_with("%}");
  }

  // {% raw %} ... {% endraw %}
  Result<void> raw() {
    const std::uint32_t line = line_;
    std::size_t end = 0;
    is_raw_tag(at_, "raw", &end);
    close(end, sign_at(end - 1), false);
    for (std::size_t tag = at_; (tag = source_.find("{%", tag)) != source_.npos; tag += 2) {
      const char sign = sign_at(tag + 2);
      if (!is_raw_tag(tag + 2 + (sign != '\0'), "endraw", &end)) continue;
      add_data(stripped_before_tag(source_.substr(at_, tag - at_), '%', sign));
      close(end, sign_at(end - 1), true);
      return ok();
    }
    return error("{% raw %} without {% endraw %}", line);
  }

  // The tokens of {{ ... }} or {% ... %}.
  Result<void> inside(bool is_statement) {
    using Kind = Token::Kind;
    const std::uint32_t line = line_;
    const char brace = is_statement ? '%' : '}';
    add(is_statement ? Kind::statement_begin : Kind::print_begin, {});
    std::string open;  // the brackets that are open; inside them }} ends dicts, not the tag
    for (;;) {
      skip_space();
      const std::string_view rest = source_.substr(at_);
      if (rest.empty()) return error("a tag without end", line);
      if (open.empty()) {
        char sign = sign_at(at_);
        if (sign == '+' && !is_statement) sign = '\0';
        const std::size_t end = at_ + (sign != '\0');
        if (end + 1 < source_.size() && source_[end] == brace && source_[end + 1] == '}') {
          add(is_statement ? Kind::statement_end : Kind::print_end, {});
          close(end, sign, is_statement);
          return ok();
        }
      }
      NIBBLE_CHECK(token(rest, open));
    }
  }

  Result<void> token(std::string_view rest, std::string& open) {
    using Kind = Token::Kind;
    const char c = rest[0];
    if (c == '\'' || c == '"') {
      std::size_t end = 1;
      while (end < rest.size() && rest[end] != c) end += rest[end] == '\\' ? 2U : 1U;
      if (end >= rest.size()) return error("a string without end", line_);
      add(Kind::string, rest.substr(1, end - 1));
      move_to(at_ + end + 1);
    } else if (is_digit(c)) {
      const auto [kind, size] = number(rest);
      add(kind, rest.substr(0, size));
      at_ += size;
    } else if (is_word(c)) {
      std::size_t size = 1;
      while (size < rest.size() && is_word(rest[size])) ++size;
      add(Kind::name, rest.substr(0, size));
      at_ += size;
    } else {
      NIBBLE_CHECK(symbol(rest, open));
    }
    return ok();
  }

  static std::size_t digits(std::string_view text) noexcept {
    std::size_t n = 0;
    while (n < text.size() && (is_digit(text[n]) || (text[n] == '_' && n > 0))) ++n;
    return n;
  }

  static std::pair<Token::Kind, std::size_t> number(std::string_view rest) noexcept {
    const std::size_t whole = digits(rest);
    std::size_t size = whole;
    if (rest.substr(size, 1) == ".") {
      const std::size_t decimals = digits(rest.substr(size + 1));
      if (decimals != 0) size += 1 + decimals;
    }
    if (const std::string_view e = rest.substr(size, 1); e == "e" || e == "E") {
      const std::string_view sign = rest.substr(size + 1, 1);
      const std::size_t skipped = 1 + (sign == "+" || sign == "-");
      const std::size_t exponent =
          rest.size() > size + skipped ? digits(rest.substr(size + skipped)) : 0;
      if (exponent != 0) size += skipped + exponent;
    }
    return {size == whole ? Token::Kind::integer : Token::Kind::number, size};
  }

  Result<void> symbol(std::string_view rest, std::string& open) {
    std::size_t size = 0;
    for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="}) {
      if (rest.starts_with(two)) size = 2;
    }
    if (size == 0 && std::string_view("+-/*%~[](){}<>=.:|,;").find(rest[0]) != rest.npos) size = 1;
    if (size == 0)
      return error(
          "unexpected " + std::string("'") + printable(rest.substr(0, first_size(rest))) + "'",
          line_);
    const std::string_view text = rest.substr(0, size);
    if (text == "(" || text == "[" || text == "{") {
      open += text == "(" ? ')' : text == "[" ? ']' : '}';
    } else if (text == ")" || text == "]" || text == "}") {
      if (open.empty() || open.back() != text[0])
        return error("unexpected '" + std::string(text) + "'", line_);
      open.pop_back();
    }
    add(Token::Kind::symbol, text);
    at_ += size;
    return ok();
  }

  std::string_view source_;
  std::size_t at_ = 0;
  std::uint32_t line_ = 1;
  bool at_line_start_ = true;  // what was last read ends with a line break
  std::vector<Token> tokens_;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
