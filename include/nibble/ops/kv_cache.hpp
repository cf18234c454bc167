// SPDX-License-Identifier: Apache-2.0
//
// The key-value cache of a session: for each layer the keys and values of every position so far, as
// f32, f16, bf16 or 8-bit integers, in memory that the caller owns. Positions are the caller's: to
// clear or to go back, write the next token at an earlier position.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

template <class T>
inline constexpr KvType kKvType = KvType::f32;
template <>
inline constexpr KvType kKvType<f16> = KvType::f16;
template <>
inline constexpr KvType kKvType<bf16> = KvType::bf16;
template <>
inline constexpr KvType kKvType<std::int8_t> = KvType::int8;

// Calls f(T{}) with the type that `type` names.
template <class F>
constexpr decltype(auto) visit_kv_type(KvType type, F&& f) {
  switch (type) {
    case KvType::f16: return f(f16{});
    case KvType::bf16: return f(bf16{});
    case KvType::int8: return f(std::int8_t{});
    case KvType::f32: break;
  }
  return f(float{});
}

// Sizes of a cache; the bytes can be a constant of the program.
struct KvCacheLayout {
  KvType type = KvType::f16;
  Index n_layers = 0;
  Index n_kv_heads = 0;
  Index head_dim = 0;
  Index capacity = 0;  // positions

  // Positions that there is memory for: whole tiles.
  constexpr Index padded_capacity() const noexcept {
    return kernels::round_up(capacity, kernels::kAttentionTile);
  }
  // Elements of one kv head of one layer.
  constexpr Index head_elements() const noexcept {
    return visit_kv_type(type, [&]<class T>(T) {
      return padded_capacity() / kernels::kAttentionTile * kernels::tile_size<T>(head_dim);
    });
  }
  constexpr std::size_t bytes_per_layer() const noexcept {
    return align_up(static_cast<std::size_t>(n_kv_heads * head_elements()) * element_size());
  }
  // All layers. Requires is_valid().
  constexpr std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(n_layers) * bytes_per_layer();
  }
  constexpr std::size_t element_size() const noexcept {
    return visit_kv_type(type, []<class T>(T) { return sizeof(T); });
  }

  // Every count is at least one and bytes() is at most kMaxBytes.
  constexpr bool is_valid() const noexcept {
    if (n_layers < 1 || n_kv_heads < 1 || head_dim < 1 || capacity < 1) return false;
    // Keys and values, at most 40 bytes a dimension (8-bit integers with a head_dim of 1) and a
    // capacity rounded up to at most 64 times itself: less than 4096 times the product.
    Index room = std::numeric_limits<Index>::max() / 4096;
    for (const Index n : {n_layers, n_kv_heads, head_dim, capacity}) {
      if (n > room) return false;
      room /= n;
    }
    const auto layer_bytes = n_kv_heads * head_elements() * static_cast<Index>(element_size());
    return layer_bytes <= kMaxBytes / n_layers - static_cast<Index>(kAlignment);
  }
};

// Keys and values of one layer.
template <class T>
struct KvLayer {
  T* data = nullptr;  // (n_kv_heads) times the tiles of kernels/attention.hpp
  Index n_kv_heads = 0;
  Index head_dim = 0;
  Index capacity = 0;       // positions that may be written
  Index head_elements = 0;  // of one kv head

  T* of(Index kv_head) const noexcept {
    NIBBLE_ASSERT(kv_head >= 0 && kv_head < n_kv_heads);
    return data + kv_head * head_elements;
  }
  operator KvLayer<const T>() const noexcept requires(!std::is_const_v<T>) {  // NOLINT: a view
    return {data, n_kv_heads, head_dim, capacity, head_elements};
  }
};

// Writes keys and values of tokens at positions first_position, first_position + 1, ... of a layer.
// k, v: (n_tokens, n_kv_heads * head_dim), rows may be strided, elements of a row are consecutive.
// Positions must be below the capacity. Values outside the range of a floating-point T become
// infinities; for 8-bit integers all must be finite.
template <class T>
void store_keys_values(Executor& executor, KvLayer<T> layer, Index first_position,
                       MatrixView<const float> k, MatrixView<const float> v) noexcept {
  const Index n_tokens = k.extent(0);
  NIBBLE_ASSERT(v.extent(0) == n_tokens);
  NIBBLE_ASSERT(k.extent(1) == layer.n_kv_heads * layer.head_dim && v.extent(1) == k.extent(1));
  NIBBLE_ASSERT(k.stride(1) == 1 && v.stride(1) == 1);
  NIBBLE_ASSERT(first_position >= 0 && first_position + n_tokens <= layer.capacity);
  using Kernel = kernels::StoreKeysValues<T>;
  auto* const store = simd::kernel<Kernel>();
  const auto task = [&](Index kv_head, Index) {
    const Index column = kv_head * layer.head_dim;
    typename Kernel::Args args;
    args.key = k.data() + column;
    args.value = v.data() + column;
    args.key_stride = k.stride(0);
    args.value_stride = v.stride(0);
    args.n_tokens = n_tokens;
    args.first_position = first_position;
    args.head_dim = layer.head_dim;
    args.cache = layer.of(kv_head);
    store(args);
  };
  if (n_tokens < 16) {  // waking the others would take longer
    for (Index h = 0; h < layer.n_kv_heads; ++h) task(h, 0);
  } else {
    executor.parallel_for(layer.n_kv_heads, task);
  }
}

// A view of a cache in the caller's memory.
class KvCache {
 public:
  KvCache() noexcept = default;

  // `memory` must be aligned to kAlignment and hold layout.bytes(); it need not be initialized.
  static Result<KvCache> create(std::span<std::byte> memory, const KvCacheLayout& layout) {
    if (!layout.is_valid()) {
      return Error{Errc::invalid_argument,
                   "kv cache: " + std::to_string(layout.n_layers) + " layers, " +
                       std::to_string(layout.n_kv_heads) + " kv heads, head size " +
                       std::to_string(layout.head_dim) + ", " + std::to_string(layout.capacity) +
                       " positions: each must be at least 1 and their product in range"};
    }
    if (memory.size() < layout.bytes() ||
        reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment != 0) {
      return Error{Errc::invalid_argument, "kv cache: needs " + std::to_string(layout.bytes()) +
                                               " bytes aligned to " + std::to_string(kAlignment) +
                                               ", got " + std::to_string(memory.size())};
    }
    KvCache cache;
    cache.memory_ = memory.data();
    cache.layout_ = layout;
    return cache;
  }

  const KvCacheLayout& layout() const noexcept { return layout_; }

  // T must be the cache's element type.
  template <class T>
  KvLayer<T> layer(Index index) const noexcept {
    NIBBLE_ASSERT(kKvType<T> == layout_.type);
    NIBBLE_ASSERT(index >= 0 && index < layout_.n_layers);
    std::byte* const base = memory_ + static_cast<std::size_t>(index) * layout_.bytes_per_layer();
    return {reinterpret_cast<T*>(base), layout_.n_kv_heads, layout_.head_dim, layout_.capacity,
            layout_.head_elements()};
  }

  // store_keys_values() for whatever the element type is.
  NIBBLE_LAZY void append(Executor& executor, Index layer_index, Index first_position,
                          MatrixView<const float> k, MatrixView<const float> v) const noexcept {
    visit_kv_type(layout_.type, [&]<class T>(T) {
      store_keys_values(executor, layer<T>(layer_index), first_position, k, v);
    });
  }

 private:
  std::byte* memory_ = nullptr;
  KvCacheLayout layout_;
};

}}}  // namespace nibble::NIBBLE_ABI::ops
