// SPDX-License-Identifier: Apache-2.0
//
// Owned: sole owner of an object. Like std::unique_ptr, but the object's type must be complete only
// where an Owned is made from a pointer, and it needs no <memory>, which takes longer to parse than
// all declarations of nibble/nibble.hpp.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

template <class T>
class Owned {
 public:
  Owned() noexcept = default;
  Owned(std::nullptr_t) noexcept {}  // NOLINT: as std::unique_ptr
  // Takes ownership of an object made by `new`, of type T or of a class derived from it, or of
  // nothing (null).
  template <class U>
  requires std::is_convertible_v<U*, T*>
  explicit Owned(U* object) noexcept
      : object_(object), destroy_([](T* o) noexcept { delete static_cast<U*>(o); }) {}
  Owned(Owned&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)), destroy_(other.destroy_) {}
  Owned& operator=(Owned&& other) noexcept {
    Owned taken(std::move(other));  // destroys, at the end of this function, what this object owned
    std::swap(object_, taken.object_);
    std::swap(destroy_, taken.destroy_);
    return *this;
  }
  ~Owned() {
    if (object_ != nullptr) destroy_(object_);
  }

  T* get() const noexcept { return object_; }
  T* operator->() const noexcept { return object_; }
  std::add_lvalue_reference_t<T> operator*() const noexcept { return *object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }
  friend bool operator==(const Owned& a, std::nullptr_t) noexcept { return a.object_ == nullptr; }

 private:
  T* object_ = nullptr;
  void (*destroy_)(T*) noexcept = nullptr;
};

}}  // namespace nibble::NIBBLE_ABI
