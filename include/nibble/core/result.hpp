// SPDX-License-Identifier: Apache-2.0
//
// Errors are values. A function that can fail on user data returns Result<T> (or Result<void> when
// there is nothing to return); the Error says what is wrong and where. Nothing here aborts or
// prints, unless checks are on (NIBBLE_DEBUG) and a Result is used as what it is not.
#pragma once

#include <new>
#include <string>
#include <utility>

#include "nibble/core/config.hpp"
#include "nibble/core/text.hpp"

#if NIBBLE_HAS_EXCEPTIONS
#include <stdexcept>
#endif

namespace nibble { inline namespace NIBBLE_ABI {

enum class Errc : unsigned char {
  invalid_argument,  // a parameter outside its documented range
  io,                // the operating system refused: open, map, read, write
  malformed,         // a file or text that breaks its own format
  unsupported,       // well-formed, but not something this build can run
  not_found,         // a tensor, metadata key or name that is required is missing
  out_of_memory,     // an allocation failed
  limit,             // larger than a limit that this library or the caller set
  cancelled,         // the caller asked to stop
};

constexpr const char* to_string(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument: return "invalid argument";
    case Errc::io: return "input/output error";
    case Errc::malformed: return "malformed data";
    case Errc::unsupported: return "unsupported";
    case Errc::not_found: return "not found";
    case Errc::out_of_memory: return "out of memory";
    case Errc::limit: return "limit exceeded";
    case Errc::cancelled: return "cancelled";
  }
  return "unknown error";
}

struct Error {
  Errc code = Errc::invalid_argument;
  std::string message;  // what and where, e.g. "model.gguf: tensor 'blk.0.attn_q.weight': ..."

  // The same error, one level further out: `where` is put in front of the message.
  Error in(const std::string& where) && { return Error{code, where + ": " + message}; }
};

#if NIBBLE_HAS_EXCEPTIONS
class Exception : public std::runtime_error {
 public:
  explicit Exception(const Error& e)
      : std::runtime_error(std::string(to_string(e.code)) + ": " + e.message), code_(e.code) {}
  Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};
#endif

// Either a T or an Error. T may be move-only.
template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : value_(std::move(value)), has_value_(true) {}       // NOLINT
  Result(Error error) : error_(std::move(error)), has_value_(false) {}  // NOLINT
  Result(Result&& other) noexcept { take(other); }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  Result& operator=(Result&& other) noexcept {
    if (this != &other) {
      destroy();
      take(other);
    }
    return *this;
  }
  ~Result() { destroy(); }

  bool has_value() const noexcept { return has_value_; }
  explicit operator bool() const noexcept { return has_value_; }

  // Unchecked access: has_value() must be true.
  T& operator*() & noexcept {
    assert_value();
    return value_;
  }
  const T& operator*() const& noexcept {
    assert_value();
    return value_;
  }
  // By value: `auto&& model = *load(path);` keeps the model.
  T operator*() && noexcept {
    assert_value();
    return std::move(value_);
  }
  T* operator->() noexcept {
    assert_value();
    return &value_;
  }
  const T* operator->() const noexcept {
    assert_value();
    return &value_;
  }

  // Unchecked: has_value() must be false.
  const Error& error() const& noexcept {
    NIBBLE_ASSERT(!has_value_);
    return error_;
  }
  Error error() && noexcept {
    NIBBLE_ASSERT(!has_value_);
    return std::move(error_);
  }

#if NIBBLE_HAS_EXCEPTIONS
  // The throwing alternative: returns the value, or throws an Exception that carries the error.
  T& value() & {
    throw_if_error();
    return value_;
  }
  const T& value() const& {
    throw_if_error();
    return value_;
  }
  T value() && {
    throw_if_error();
    return std::move(value_);
  }

 private:
  void throw_if_error() const {
    if (!has_value_) throw Exception(error_);
  }
#endif

 private:
  void assert_value() const noexcept {
#if NIBBLE_DEBUG
    if (!has_value_) {
      detail::check_failed("a Result without a value is used as one; its error",
                           error_.message.c_str());
    }
#endif
  }
  // Placement new instead of std::construct_at: <memory> takes longer to parse than all
  // declarations of nibble/nibble.hpp.
  void take(Result& other) noexcept {
    has_value_ = other.has_value_;
    if (has_value_) {
      ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
    } else {
      ::new (static_cast<void*>(&error_)) Error(std::move(other.error_));
    }
  }
  void destroy() noexcept {
    if (has_value_) {
      value_.~T();
    } else {
      error_.~Error();
    }
  }

  union {
    T value_;
    Error error_;
  };
  bool has_value_;
};

// The result of an operation that returns nothing: `return ok();`
struct Unit {};
template <>
class [[nodiscard]] Result<void> : public Result<Unit> {
 public:
  using Result<Unit>::Result;
};
inline Result<void> ok() { return Unit{}; }

// Calls f(), which returns a Result. A container that finds no memory throws; here that becomes the
// error out_of_memory: what reads, loads, generates and writes does not throw. (The message is
// short enough to need no memory.) Without exceptions the standard library ends the program
// instead; buffers whose size depends on a model are errors there too (core/arena.hpp).
template <class Function>
auto catch_out_of_memory(Function&& f) -> decltype(f()) {
#if NIBBLE_HAS_EXCEPTIONS
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return Error{Errc::out_of_memory, "out of memory"};
  }
#else
  return f();
#endif
}

}}  // namespace nibble::NIBBLE_ABI

// NIBBLE_TRY(name, expression): declares `name` with the value of a Result, or returns the Result's
// error from the enclosing function.
#define NIBBLE_TRY(name, ...)                                          \
  auto nibble_try_##name = (__VA_ARGS__);                              \
  if (!nibble_try_##name) return std::move(nibble_try_##name).error(); \
  auto name = *std::move(nibble_try_##name)
#define NIBBLE_TRY_CAT_(a, b) a##b
#define NIBBLE_TRY_CAT(a, b) NIBBLE_TRY_CAT_(a, b)
// NIBBLE_CHECK(expression): the same for a Result<void>.
#define NIBBLE_CHECK(...)                                                \
  do {                                                                   \
    auto NIBBLE_TRY_CAT(nibble_check_, __LINE__) = (__VA_ARGS__);        \
    if (!NIBBLE_TRY_CAT(nibble_check_, __LINE__))                        \
      return std::move(NIBBLE_TRY_CAT(nibble_check_, __LINE__)).error(); \
  } while (false)
