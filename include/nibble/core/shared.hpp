// SPDX-License-Identifier: Apache-2.0
//
// Shared: an object with several owners, destroyed with the last of them. As std::shared_ptr,
// without its compile time and without weak owners; copies may be made and destroyed on any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <new>
#include <utility>

#include "nibble/core/owned.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

template <class T>
class Shared {
 public:
  Shared() noexcept = default;
  // The first owner. Null if `object` is, or if there is no memory for the count; the object is
  // then destroyed.
  explicit Shared(Owned<T> object) noexcept {
    if (object) block_ = new (std::nothrow) Block{{1}, std::move(object)};
  }
  Shared(const Shared& other) noexcept : block_(other.block_) {
    if (block_ != nullptr) block_->n_owners.fetch_add(1, std::memory_order_relaxed);
  }
  Shared(Shared&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  Shared& operator=(Shared other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Shared() {
    if (block_ != nullptr && block_->n_owners.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      delete block_;
    }
  }

  T* get() const noexcept { return block_ == nullptr ? nullptr : block_->object.get(); }
  T* operator->() const noexcept { return get(); }
  T& operator*() const noexcept { return *get(); }
  explicit operator bool() const noexcept { return block_ != nullptr; }

  // Bytes that counting the owners takes, besides the object.
  static constexpr std::size_t count_bytes() noexcept { return sizeof(Block); }

 private:
  struct Block {
    std::atomic<int> n_owners;
    Owned<T> object;
  };
  Block* block_ = nullptr;
};

}}  // namespace nibble::NIBBLE_ABI
