// SPDX-License-Identifier: Apache-2.0
//
// The key-value cache: keys and values of every layer and position, as f32, f16, bf16 or codes
// of 8 or 4 bits, in memory that the caller owns. It consists of pages of 64 positions. The caller
// decides which page belongs to which sequence (segment.hpp), and also manages positions: to clear
// the cache or to go back, write the next token at an earlier position.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/kv_type.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

template <class T>
inline constexpr KvType kKvType = KvType::f32;
template <>
inline constexpr KvType kKvType<f16> = KvType::f16;
template <>
inline constexpr KvType kKvType<bf16> = KvType::bf16;
template <>
inline constexpr KvType kKvType<std::int8_t> = KvType::int8;
template <>
inline constexpr KvType kKvType<kernels::CodePair> = KvType::int4;

// Calls f(T{}), where T is the element type that `type` names, which is compiled.
template <class F>
constexpr decltype(auto) visit_kv_type(KvType type, F&& f) {
  using enum KvType;
  if constexpr (is_compiled(f32)) {
    if (type == f32) return f(float{});
  }
  if constexpr (is_compiled(bf16)) {
    if (type == bf16) return f(nibble::bf16{});
  }
  if constexpr (is_compiled(int8)) {
    if (type == int8) return f(std::int8_t{});
  }
  if constexpr (is_compiled(int4)) {
    if (type == int4) return f(kernels::CodePair{});
  }
  return f(nibble::f16{});
}

static_assert(kPagePositions == kernels::kAttentionTile);

// What one layer stores per position.
struct KvShape {
  Index n_kv_heads = 0;  // 0: the layer keeps nothing
  Index head_dim = 0;
};

// Sizes of a cache; the number of bytes can be a compile-time constant. Within a layer, each kv
// head has its tiles (kernels/attention.hpp) in page order, contiguously. A sequence whose pages
// are consecutive therefore reads memory sequentially.
struct KvCacheLayout {
  KvType type = KvType::f16;
  Index n_layers = 0;
  Index n_kv_heads = 0;
  Index head_dim = 0;
  Index capacity = 0;                    // positions of all sequences, rounded up to whole pages
  std::span<const KvShape> shapes = {};  // (n_layers), if layers differ: replaces the two above

  constexpr KvShape shape(Index layer) const noexcept {
    return shapes.empty() ? KvShape{n_kv_heads, head_dim} : shapes[static_cast<std::size_t>(layer)];
  }
  constexpr Index n_pages() const noexcept { return pages_for(capacity); }
  // Bytes of a tile, what a page has of one kv head of a layer like `s`.
  constexpr std::size_t tile_bytes(const KvShape& s) const noexcept {
    return visit_kv_type(type, [&]<class T>(T) {
      return static_cast<std::size_t>(kernels::tile_size<T>(s.head_dim)) * sizeof(T);
    });
  }
  // Elements of one kv head of a layer like `s`.
  constexpr Index head_elements(const KvShape& s) const noexcept {
    return visit_kv_type(type,
                         [&]<class T>(T) { return n_pages() * kernels::tile_size<T>(s.head_dim); });
  }
  constexpr std::size_t bytes_of(const KvShape& s) const noexcept {
    if (s.n_kv_heads == 0) return 0;
    return align_up(static_cast<std::size_t>(s.n_kv_heads * head_elements(s)) * element_size());
  }
  // Byte offset of a layer. Requires is_valid(), as bytes() does.
  constexpr std::size_t offset(Index layer) const noexcept {
    if (shapes.empty()) return static_cast<std::size_t>(layer) * bytes_of(shape(0));
    std::size_t bytes = 0;
    for (Index i = 0; i < layer; ++i) bytes += bytes_of(shape(i));
    return bytes;
  }
  // Bytes of all layers.
  constexpr std::size_t bytes() const noexcept { return offset(n_layers); }
  constexpr std::size_t element_size() const noexcept {
    return visit_kv_type(type, []<class T>(T) { return sizeof(T); });
  }

  // Every count is at least one (n_kv_heads of a layer: at least 0) and bytes() is at most
  // kMaxBytes.
  constexpr bool is_valid() const noexcept {
    if (n_layers < 1 || capacity < 1) return false;
    if (!shapes.empty() && static_cast<Index>(shapes.size()) != n_layers) return false;
    if (shapes.empty()) return n_kv_heads > 0 && fits(shape(0), n_layers, kMaxBytes);
    Index left = kMaxBytes;
    for (const KvShape& s : shapes) {
      if (s.n_kv_heads == 0) continue;
      if (!fits(s, 1, left)) return false;
      left -= static_cast<Index>(bytes_of(s));
    }
    return true;
  }

 private:
  // Whether n layers like this one have at most max_bytes bytes.
  constexpr bool fits(const KvShape& s, Index n, Index max_bytes) const noexcept {
    if (s.n_kv_heads < 1 || s.head_dim < 1) return false;
    // Keys and values take at most 40 bytes per dimension (8-bit integers with a head_dim of 1),
    // and the capacity is rounded up to at most 64 times itself: less than 4096 times the product.
    Index room = (std::numeric_limits<Index>::max)() / 4096;
    for (const Index count : {n, s.n_kv_heads, s.head_dim, capacity}) {
      if (count > room) return false;
      room /= count;
    }
    const auto layer_bytes = s.n_kv_heads * head_elements(s) * static_cast<Index>(element_size());
    return layer_bytes <= max_bytes / n - static_cast<Index>(kAlignment);
  }
};

// Keys and values of one layer.
template <class T>
struct KvLayer {
  T* data = nullptr;  // (n_kv_heads) times the tiles of kernels/attention.hpp
  Index n_kv_heads = 0;
  Index head_dim = 0;
  Index n_pages = 0;
  Index head_elements = 0;  // of one kv head

  T* of(Index kv_head) const noexcept {
    NIBBLE_ASSERT(kv_head >= 0 && kv_head < n_kv_heads);
    return data + kv_head * head_elements;
  }
  operator KvLayer<const T>() const noexcept requires(!std::is_const_v<T>) {  // NOLINT: a view
    return {data, n_kv_heads, head_dim, n_pages, head_elements};
  }
};

namespace detail {

// Whether a segment's positions are in pages that both the segment and the cache have.
inline bool has_pages(const Segment& segment, [[maybe_unused]] Index n_pages) noexcept {
  const Index n = segment.pages.empty() ? n_pages : static_cast<Index>(segment.pages.size());
  return segment.first_position >= 0 && segment.n_rows >= 0 &&
         segment.end_position() <= n * kPagePositions;
}

// Whether one of n numbers is finite, but not when rounded to f16.
inline bool exceeds_f16(const float* x, Index n) noexcept {
  // Bits of 65520, halfway between the largest f16 and the next power of two, and of infinity.
  // Bits, because -ffast-math makes no difference to them.
  constexpr std::uint32_t kLeast = 0x477FF000u, kEnd = 0x7F800000u;
  int found = 0;
  for (Index i = 0; i < n; ++i) {
    const std::uint32_t size = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7FFFFFFFu;
    found |= static_cast<int>(size - kLeast < kEnd - kLeast);
  }
  return found != 0;
}

}  // namespace detail

// Writes keys and values of the rows of all segments to their positions in a layer. k, v: (rows,
// n_kv_heads * head_dim); rows may be strided, elements of a row are consecutive. Values outside
// the range of a floating-point T become infinities; for codes all values must be finite. If T is
// f16, or codes with f16 scales, and a finite value is beyond the range of f16, *is_exceeded is
// set. (Text that depends on such a key may be wrong without any other sign: a score of -infinity
// hides its position.) No two segments may write to the same page.
template <class T>
void store_keys_values(Executor& executor, KvLayer<T> layer, std::span<const Segment> segments,
                       MatrixView<const float> k, MatrixView<const float> v,
                       std::atomic<bool>* is_exceeded = nullptr) noexcept {
  NIBBLE_ASSERT(v.extent(0) == k.extent(0));
  NIBBLE_ASSERT(k.extent(1) == layer.n_kv_heads * layer.head_dim && v.extent(1) == k.extent(1));
  NIBBLE_ASSERT(k.stride(1) == 1 && v.stride(1) == 1);
  using Kernel = kernels::StoreKeysValues<T>;
  auto* const store = simd::kernel<Kernel>();
  const auto task = [&](Index kv_head, Index) {
    const Index column = kv_head * layer.head_dim;
    typename Kernel::Args args;
    args.key_stride = k.stride(0);
    args.value_stride = v.stride(0);
    args.head_dim = layer.head_dim;
    args.cache = layer.of(kv_head);
    if constexpr (kKvType<T> == KvType::f16 || kKvType<T> == KvType::int4) {
      for (Index row = 0; is_exceeded != nullptr && row < k.extent(0); ++row) {
        if (detail::exceeds_f16(k.data() + row * k.stride(0) + column, layer.head_dim) ||
            detail::exceeds_f16(v.data() + row * v.stride(0) + column, layer.head_dim)) {
          is_exceeded->store(true, std::memory_order_relaxed);
        }
      }
    }
    for (const Segment& segment : segments) {
      NIBBLE_ASSERT(detail::has_pages(segment, layer.n_pages));
      args.key = k.data() + segment.first_row * k.stride(0) + column;
      args.value = v.data() + segment.first_row * v.stride(0) + column;
      args.n_tokens = segment.n_rows;
      args.first_position = segment.first_position;
      args.pages = segment.pages.empty() ? nullptr : segment.pages.data();
      store(args);
    }
  };
  if (k.extent(0) < 16) {  // waking the other threads would take longer
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
  // layout.shapes must stay alive.
  static Result<KvCache> create(std::span<std::byte> memory, const KvCacheLayout& layout) {
    if (!layout.is_valid()) {
      return Error{Errc::invalid_argument,
                   "kv cache: " + to_text(layout.n_layers) + " layers, " +
                       to_text(layout.n_kv_heads) + " kv heads, head size " +
                       to_text(layout.head_dim) + ", " + to_text(layout.capacity) +
                       " positions: each must be at least 1 and their product in range"};
    }
    if (memory.size() < layout.bytes() ||
        reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment != 0) {
      return Error{Errc::invalid_argument, "kv cache: needs " + to_text(layout.bytes()) +
                                               " bytes aligned to " + to_text(kAlignment) +
                                               ", got " + to_text(memory.size())};
    }
    KvCache cache;
    cache.memory_ = memory.data();
    cache.layout_ = layout;
    return cache;
  }

  const KvCacheLayout& layout() const noexcept { return layout_; }
  // What append() sets where store_keys_values() does; it must stay alive.
  void report_exceeded(std::atomic<bool>* is_exceeded) noexcept { is_exceeded_ = is_exceeded; }

  // T must be the cache's element type.
  template <class T>
  KvLayer<T> layer(Index index) const noexcept {
    NIBBLE_ASSERT(kKvType<T> == layout_.type);
    NIBBLE_ASSERT(index >= 0 && index < layout_.n_layers);
    const KvShape shape = layout_.shape(index);
    return {reinterpret_cast<T*>(memory_ + layout_.offset(index)), shape.n_kv_heads, shape.head_dim,
            layout_.n_pages(), layout_.head_elements(shape)};
  }

  // store_keys_values() for any element type of the cache.
  NIBBLE_LAZY void append(Executor& executor, Index layer_index, std::span<const Segment> segments,
                          MatrixView<const float> k, MatrixView<const float> v) const noexcept {
    visit_kv_type(layout_.type, [&]<class T>(T) {
      store_keys_values(executor, layer<T>(layer_index), segments, k, v, is_exceeded_);
    });
  }
  // The same for a single sequence whose pages are consecutive.
  NIBBLE_LAZY void append(Executor& executor, Index layer_index, Index first_position,
                          MatrixView<const float> k, MatrixView<const float> v) const noexcept {
    const Segment all = single_segment(k.extent(0), first_position);
    append(executor, layer_index, std::span<const Segment>(&all, 1), k, v);
  }

  // The tiles of all pages in one kv head of one layer: page p has the p-th.
  struct Lane {
    std::byte* tiles = nullptr;
    std::size_t tile_bytes = 0;

    std::byte* tile(PageId page) const noexcept {
      return tiles + static_cast<std::size_t>(page) * tile_bytes;
    }
  };
  // Calls f(Lane) for all kv heads of all layers, in order.
  template <class F>
  void for_each_lane(F&& f) const noexcept {
    for (Index l = 0; l < layout_.n_layers; ++l) {
      const KvShape shape = layout_.shape(l);
      const std::size_t bytes = layout_.tile_bytes(shape);
      std::byte* tiles = memory_ + layout_.offset(l);
      for (Index h = 0; h < shape.n_kv_heads; ++h) {
        f(Lane{tiles, bytes});
        tiles += bytes * static_cast<std::size_t>(layout_.n_pages());
      }
    }
  }

  // Bytes of a page: its tiles in all layers and kv heads.
  std::size_t page_bytes() const noexcept {
    std::size_t bytes = 0;
    for_each_lane([&](const Lane& lane) { bytes += lane.tile_bytes; });
    return bytes;
  }
  // Copies the keys and values of a page to another page, in every layer.
  void copy_page(PageId from, PageId to) const noexcept {
    for_each_lane(
        [&](const Lane& lane) { std::memcpy(lane.tile(to), lane.tile(from), lane.tile_bytes); });
  }

 private:
  std::byte* memory_ = nullptr;
  KvCacheLayout layout_;
  std::atomic<bool>* is_exceeded_ = nullptr;
};

}}}  // namespace nibble::NIBBLE_ABI::ops
