// SPDX-License-Identifier: Apache-2.0
//
// Callback: a callable that is kept, for example in options. Owns it, so it may be made from a
// temporary; FunctionRef, for parameters, only refers to one. As std::function, without its compile
// time; copies share the callable.
#pragma once

#include <new>
#include <type_traits>
#include <utility>

#include "nibble/core/shared.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

template <class Signature>
class Callback;
template <class R, class... Args>
class Callback<R(Args...)> {
 public:
  Callback() noexcept = default;  // empty: must not be called
  template <class F, class Callable = std::decay_t<F>>
  requires(!std::is_same_v<Callable, Callback> && std::is_invocable_r_v<R, Callable&, Args...>)
      Callback(F&& f)  // NOLINT: meant to be implicit
      : object_(Owned<Base>(new Holder<Callable>(std::forward<F>(f)))),
        call_([](Base& object, Args... args) -> R {
          return static_cast<Holder<Callable>&>(object).callable(std::forward<Args>(args)...);
        }) {
#if NIBBLE_HAS_EXCEPTIONS
    if (!object_) throw std::bad_alloc();
#endif
    if constexpr (std::is_pointer_v<Callable>) {  // as std::function: a null pointer makes it empty
      if (object_ && static_cast<Holder<Callable>&>(*object_).callable == nullptr) object_ = {};
    }
  }

  explicit operator bool() const noexcept { return static_cast<bool>(object_); }
  R operator()(Args... args) const {
    NIBBLE_ASSERT(object_);
    return call_(*object_, std::forward<Args>(args)...);
  }

 private:
  struct Base {};
  template <class F>
  struct Holder : Base {
    explicit Holder(F&& f) : callable(std::move(f)) {}
    explicit Holder(const F& f) : callable(f) {}
    F callable;
  };

  Shared<Base> object_;
  R (*call_)(Base&, Args...) = nullptr;
};

}}  // namespace nibble::NIBBLE_ABI
