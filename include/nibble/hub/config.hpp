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

// A lookup that fails remembers its error and returns zero, or what is documented; status() returns
// the first error. So what reads a configuration is a list of what there is in it.
class Config {
 public:
  // Errors: those of Folder::json; malformed (no object).
  static Result<Config> open(const Folder& folder) {
    NIBBLE_TRY(root, folder.json(kConfigFile));
    if (root.kind() != io::JsonValue::Kind::object) {
      return Error{Errc::malformed, folder.name_of(kConfigFile) + ": not a JSON object"};
    }
    return Config(folder.name_of(kConfigFile), std::move(root));
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
  bool has(std::string_view key) const noexcept { return find(key) != nullptr; }

  // An integer of 32 bits, or a number that an f32 can hold. Errors: not_found (without a
  // fallback), malformed (not such a value).
  std::uint32_t integer(Names keys, std::optional<std::uint32_t> fallback = {}) {
    const double value = checked(keys, find(keys), fallback);
    constexpr double kMax = 4294967295.0;
    if (value >= 0 && value <= kMax && static_cast<std::uint32_t>(value) == value) {
      return static_cast<std::uint32_t>(value);
    }
    refuse(Errc::malformed, shown(keys), "is not an integer of 32 bits");
    return 0;
  }
  double number(Names keys, std::optional<double> fallback = {}) {
    return checked(keys, find(keys), fallback);
  }
  // The same for a number in an object that a key has; null: none.
  double number_in(const io::JsonValue* object, std::string_view key,
                   std::optional<double> fallback = {}) {
    const io::JsonValue* const value = object == nullptr ? nullptr : object->find(key);
    return checked({key}, value == nullptr || value->is_null() ? nullptr : value, fallback);
  }
  bool boolean(std::string_view key, bool fallback) {
    const io::JsonValue* const value = find(key);
    if (value == nullptr) return fallback;
    if (value->kind() != io::JsonValue::Kind::boolean) {
      refuse(Errc::malformed, key, "is not true or false");
    }
    return value->boolean();
  }
  std::string_view string(Names keys, std::string_view fallback) const noexcept {
    const io::JsonValue* const value = find(keys);
    return value == nullptr ? fallback : std::string_view(value->string());
  }
  // Refuses a flag that asks for what is not computed.
  void must_be(std::string_view key, bool wanted, bool fallback) {
    const bool value = boolean(key, fallback);
    if (value != wanted) {
      refuse(Errc::unsupported, key, value ? "is true: not supported" : "is false: not supported");
    }
  }

  // Remembers an error about a key.
  void refuse(Errc code, std::string_view key, const std::string& what) {
    if (!error_) error_ = Error{code, name_ + ": key " + io::quoted(key) + " " + what};
  }
  Result<void> status() const {
    if (error_) return *error_;
    return ok();
  }

  static bool fits_f32(double number) noexcept {
    return number <= static_cast<double>(kFloatMax) && number >= -static_cast<double>(kFloatMax);
  }

 private:
  Config(std::string name, io::JsonValue root) : name_(std::move(name)), root_(std::move(root)) {}

  // The key that is present, or the first.
  std::string_view shown(Names keys) const noexcept {
    for (const std::string_view key : keys) {
      if (has(key)) return key;
    }
    return *keys.begin();
  }
  template <class T>
  double checked(Names keys, const io::JsonValue* value, std::optional<T> fallback) {
    if (value == nullptr) {
      if (!fallback) refuse(Errc::not_found, *keys.begin(), "is missing");
      return fallback ? static_cast<double>(*fallback) : 0;
    }
    if (value->kind() != io::JsonValue::Kind::number || !fits_f32(value->number())) {
      refuse(Errc::malformed, shown(keys), "is not a number that fits in 32 bits");
      return 0;
    }
    return value->number();
  }

  std::string name_;
  io::JsonValue root_;
  std::optional<Error> error_;
};

}}}  // namespace nibble::NIBBLE_ABI::hub
