// SPDX-License-Identifier: Apache-2.0
//
// Executor: where parallel work runs. nibble's own implementation is ThreadPool; a host program
// that has its own threads implements this interface instead.
#pragma once

#include <type_traits>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// For parameters: a reference to a callable, valid while the callable lives. Holds two pointers,
// allocates nothing. A lambda that is written as an argument lives until the call returns; a
// variable of this type would refer to one that is gone (Clang warns of it). To keep a callable:
// Callback.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
           std::is_invocable_r_v<R, F&, Args...>) FunctionRef(F&& f NIBBLE_LIFETIMEBOUND)
  noexcept {  // NOLINT: meant to be implicit
    using Callable = std::remove_reference_t<F>;
    if constexpr (std::is_function_v<Callable>) {
      object_ = reinterpret_cast<void*>(&f);
      call_ = [](void* object, Args... args) -> R {
        return reinterpret_cast<Callable*>(object)(args...);
      };
    } else {
      object_ = const_cast<void*>(static_cast<const void*>(&f));
      call_ = [](void* object, Args... args) -> R {
        return (*static_cast<Callable*>(object))(args...);
      };
    }
  }
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>) FunctionRef& operator=(F&&) =
      delete;  // most callables that are assigned are temporaries

  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class Executor {
 public:
  // A unit of work: `task` in [0, n_tasks), run on worker `worker` in [0, n_workers()). A worker
  // runs one task at a time, so `worker` may index scratch memory.
  using Task = FunctionRef<void(Index task, Index worker)>;

  virtual ~Executor() = default;

  // The largest number of workers that run tasks at once, including the caller. At least 1,
  // constant.
  virtual Index n_workers() const noexcept = 0;

  // Runs tasks 0 … n_tasks − 1, each once, in any order. Returns when all are done; what they wrote
  // is then visible to the caller. Only one thread calls it at a time; it must not allocate.
  virtual void parallel_for(Index n_tasks, Task task) noexcept = 0;
};

// Runs everything on the calling thread.
class InlineExecutor final : public Executor {
 public:
  Index n_workers() const noexcept override { return 1; }
  void parallel_for(Index n_tasks, Task task) noexcept override {
    for (Index i = 0; i < n_tasks; ++i) task(i, 0);
  }
};

}}  // namespace nibble::NIBBLE_ABI
