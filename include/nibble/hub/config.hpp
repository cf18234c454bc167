// SPDX-License-Identifier: Apache-2.0
//
// Looks up values in a folder's config.json. The same thing has several names there: a lookup takes
// all of them, and the first that is present counts.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

using Names = std::initializer_list<std::string_view>;

// Integers of a model are below this; they are kept as u32 in GGUF.
inline constexpr double kMaxInteger = 4294967295.0;

class Config {
 public:
  // Errors: those of Folder::json; malformed (no object).
  static Result<Config> open(const Folder& folder) {
    Config config;
    config.name_ = folder.name_of(kConfigFile);
    NIBBLE_TRY(root, folder.json(kConfigFile));
    if (root.kind() != io::JsonValue::Kind::object) {
      return Error{Errc::malformed, config.name_ + ": not a JSON object"};
    }
    config.root_ = std::move(root);
    return config;
  }

  const std::string& name() const noexcept { return name_; }
  const io::JsonValue& root() const noexcept { return root_; }

  // The value of a key that has one; null is none. Models of text and images have those of the
  // text below text_config.
  const io::JsonValue* find(std::string_view key) const noexcept {
    const io::JsonValue* const text = root_.find("text_config");
    for (const io::JsonValue* const at : {text, &root_}) {
      const io::JsonValue* const value = at == nullptr ? nullptr : at->find(key);
      if (value != nullptr && !value->is_null()) return value;
    }
    return nullptr;
  }
  const io::JsonValue* find(Names keys) const noexcept {
    for (const std::string_view key : keys) {
      if (const io::JsonValue* const value = find(key)) return value;
    }
    return nullptr;
  }
  bool has(Names keys) const noexcept { return find(keys) != nullptr; }

  // Errors name file and key: not_found (without a fallback), malformed (not such a value).
  Result<std::uint32_t> integer(Names keys, std::optional<std::uint32_t> fallback = {}) const {
    const io::JsonValue* const value = find(keys);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr) return missing(keys);
    const double number = value->number();
    if (value->kind() != io::JsonValue::Kind::number || !(number >= 0) || number > kMaxInteger ||
        static_cast<double>(static_cast<std::uint32_t>(number)) != number) {
      return wrong(keys, "is not an integer of 32 bits");
    }
    return static_cast<std::uint32_t>(number);
  }
  Result<double> number(Names keys, std::optional<double> fallback = {}) const {
    const io::JsonValue* const value = find(keys);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr) return missing(keys);
    if (value->kind() != io::JsonValue::Kind::number || !fits_f32(value->number())) {
      return wrong(keys, "is not a number that fits in 32 bits");
    }
    return value->number();
  }
  Result<bool> boolean(std::string_view key, bool fallback) const {
    const io::JsonValue* const value = find(key);
    if (value == nullptr) return fallback;
    if (value->kind() != io::JsonValue::Kind::boolean) return wrong({key}, "is not true or false");
    return value->boolean();
  }
  Result<std::string_view> string(Names keys, std::string_view fallback) const {
    const io::JsonValue* const value = find(keys);
    if (value == nullptr) return fallback;
    if (value->kind() != io::JsonValue::Kind::string) return wrong(keys, "is not a string");
    return std::string_view(value->string());
  }

  // The same for a number in an object that a key has; null: none.
  Result<double> number_in(const io::JsonValue* object, std::string_view key,
                           std::optional<double> fallback = {}) const {
    const io::JsonValue* const value = object == nullptr ? nullptr : object->find(key);
    if ((value == nullptr || value->is_null()) && fallback) return *fallback;
    if (value == nullptr || value->is_null()) return missing({key});
    if (value->kind() != io::JsonValue::Kind::number || !fits_f32(value->number())) {
      return Error{Errc::malformed,
                   name_ + ": key " + io::quoted(key) + " is not a number that fits in 32 bits"};
    }
    return value->number();
  }

  static bool fits_f32(double number) noexcept {
    return number <= static_cast<double>(kFloatMax) && number >= -static_cast<double>(kFloatMax);
  }

  Error wrong(Names keys, const std::string& what) const {
    return Error{Errc::malformed, name_ + ": key " + io::quoted(present(keys)) + " " + what};
  }
  // What the configuration asks for is not what is computed here.
  Error unsupported(std::string_view key, const std::string& what) const {
    return Error{Errc::unsupported, name_ + ": key " + io::quoted(key) + ": " + what};
  }

 private:
  Config() = default;

  std::string_view present(Names keys) const noexcept {
    for (const std::string_view key : keys) {
      if (find(key) != nullptr) return key;
    }
    return *keys.begin();
  }
  Error missing(Names keys) const {
    return Error{Errc::not_found, name_ + ": key " + io::quoted(*keys.begin()) + " is missing"};
  }

  std::string name_;
  io::JsonValue root_;
};

}}}  // namespace nibble::NIBBLE_ABI::hub
