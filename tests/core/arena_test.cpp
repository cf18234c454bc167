// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/arena.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "doctest/doctest.h"

namespace arena_test {

using nibble::AlignedBuffer;
using nibble::Arena;
using nibble::kAlignment;

// Sanitizers abort on absurd sizes unless told that an allocation may return null.
extern "C" const char* __asan_default_options();
extern "C" const char* __tsan_default_options();
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kAlignment == 0; }

}  // namespace

TEST_CASE("align_up") {
  static_assert(nibble::align_up(0) == 0 && nibble::align_up(1) == 64);
  static_assert(nibble::align_up(64) == 64 && nibble::align_up(65) == 128);
  CHECK(nibble::align_up(17, 16) == 32);
}

TEST_CASE("a buffer is aligned, zeroed and movable") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{63}, std::size_t{64},
                                  std::size_t{1000}, std::size_t{1} << 20}) {
    auto result = AlignedBuffer::allocate(bytes);
    REQUIRE(result);
    AlignedBuffer buffer = *std::move(result);
    CHECK(is_aligned(buffer.data()));
    CHECK(buffer.size() == bytes);
    CHECK(buffer.bytes().size() == bytes);
    bool is_zero = true;
    for (const std::byte b : buffer.bytes()) is_zero = is_zero && b == std::byte{0};
    CHECK(is_zero);
    buffer.data()[bytes - 1] = std::byte{1};

    std::byte* const data = buffer.data();
    AlignedBuffer other = std::move(buffer);
    CHECK(other.data() == data);
    CHECK(buffer.data() == nullptr);  // NOLINT: what a moved-from buffer is
    CHECK(buffer.size() == 0);
    AlignedBuffer third;
    third = std::move(other);
    CHECK(third.data() == data);
    CHECK(third.size() == bytes);
  }
  static_assert(!std::is_copy_constructible_v<AlignedBuffer>);
}

TEST_CASE("a buffer of nothing is empty, one of an absurd size is an error") {
  auto none = AlignedBuffer::allocate(0);
  REQUIRE(none);
  CHECK(none->data() == nullptr);
  constexpr std::size_t kMax = std::numeric_limits<std::size_t>::max();
  for (const std::size_t bytes : {kMax, kMax - 63, kMax / 2, kMax / 2 - 64,
                                  sizeof(void*) == 8 ? kMax / 4 : kMax / 2}) {
    const auto result = AlignedBuffer::allocate(bytes);
    REQUIRE(!result);
    CHECK(result.error().code == nibble::Errc::out_of_memory);
    CHECK(result.error().message.find(std::to_string(bytes)) != std::string::npos);
  }
}

TEST_CASE("an arena hands out aligned pieces in order, without overlap, until it is full") {
  auto buffer = AlignedBuffer::allocate(256);
  REQUIRE(buffer);
  Arena arena(buffer->bytes());
  CHECK(arena.size() == 256);
  auto* const a = arena.take<char>(1);
  auto* const b = arena.take<double>(9);  // 72 bytes: two units of 64
  auto* const c = arena.take<float>(16);  // exactly the rest
  REQUIRE(a != nullptr);
  REQUIRE(b != nullptr);
  REQUIRE(c != nullptr);
  CHECK(is_aligned(a));
  CHECK(is_aligned(b));
  CHECK(is_aligned(c));
  CHECK(reinterpret_cast<std::byte*>(b) == buffer->data() + 64);
  CHECK(reinterpret_cast<std::byte*>(c) == buffer->data() + 192);
  CHECK(arena.used() == 256);
  CHECK(arena.take<char>(1) == nullptr);
  CHECK(arena.used() == 256);  // a failed request takes nothing
  arena.reset();
  CHECK(arena.used() == 0);
  CHECK(arena.take<char>(256) == reinterpret_cast<char*>(buffer->data()));
}

TEST_CASE("an arena refuses counts whose bytes do not fit a size_t") {
  auto buffer = AlignedBuffer::allocate(128);
  REQUIRE(buffer);
  Arena arena(buffer->bytes());
  REQUIRE(arena.take<char>(1) != nullptr);
  constexpr std::size_t kMax = std::numeric_limits<std::size_t>::max();
  for (const std::size_t count : {kMax, kMax / 8 + 1, kMax / 8 + 2, kMax / 2, std::size_t{9}}) {
    CHECK(arena.take<double>(count) == nullptr);
  }
  CHECK(arena.used() == 64);
  CHECK(arena.take<double>(8) != nullptr);
}

TEST_CASE("the last piece may end inside a unit") {
  alignas(64) std::byte memory[100];
  Arena arena{std::span<std::byte>(memory)};
  CHECK(arena.take<char>(64) != nullptr);
  CHECK(arena.take<char>(37) == nullptr);
  CHECK(arena.take<char>(36) != nullptr);
  CHECK(arena.used() == 100);
  CHECK(arena.take<char>(1) == nullptr);
}

TEST_CASE("an arena over memory that is not aligned leaves out the first bytes") {
  alignas(64) std::byte memory[192];
  Arena arena(std::span<std::byte>(memory).subspan(3));
  CHECK(arena.size() == 128);
  CHECK(is_aligned(arena.take<float>(1)));
  Arena too_small(std::span<std::byte>(memory).subspan(3, 20));
  CHECK(too_small.size() == 0);
  CHECK(too_small.take<char>(1) == nullptr);
  Arena none;
  CHECK(none.take<char>(1) == nullptr);
}

}  // namespace arena_test
