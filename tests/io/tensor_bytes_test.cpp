// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/tensor_bytes.hpp"

#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "nibble/io/mapped_file.hpp"
#include "why.hpp"

namespace tensor_bytes_test {

using namespace nibble;
using io::SwappedAxes;
using io::TensorBytes;

namespace {

// Byte by byte, from the definition.
std::vector<std::byte> in_order(std::span<const std::byte> stored, const SwappedAxes& s) {
  std::vector<std::byte> out(stored.size());
  for (std::size_t at = 0; at < out.size(); ++at) {
    const std::size_t byte = at % s.unit, unit = at / s.unit;
    const std::size_t i = unit % s.a, j = unit / s.a % s.b, outer = unit / s.a / s.b;
    out[at] = stored[((outer * s.a + i) * s.b + j) * s.unit + byte];
  }
  return out;
}

}  // namespace

TEST_CASE("any part of a tensor is read in its order, from memory and from a file") {
  const test::TemporaryFolder folder;
  std::mt19937 random(5);
  const auto up_to = [&](std::size_t n) { return random() % (n + 1); };
  // Outer count and axes: small and large units, an axis of one, axes longer than a strip.
  const struct {
    std::size_t outer;
    SwappedAxes swapped;
  } shapes[] = {{1, {}},        {3, {2, 8, 4}},    {1, {7, 5, 2}},
                {2, {1, 9, 4}}, {4, {3, 2, 100}},  {1, {4, 3, 65}},
                {2, {2, 3, 1}}, {1, {3, 2500, 4}}, {1, {2500, 3, 2}}};
  for (const auto& [outer, swapped] : shapes) {
    CAPTURE(swapped.a);
    CAPTURE(swapped.b);
    CAPTURE(swapped.unit);
    std::vector<std::byte> stored(outer * swapped.a * swapped.b * swapped.unit);
    for (std::byte& b : stored) b = static_cast<std::byte>(random());
    const auto expected = in_order(stored, swapped);
    const auto file = io::MappedFile::open(folder.write("stored", stored));
    REQUIRE_MESSAGE(file, test::why(file));
    const TensorBytes tensors[] = {TensorBytes(stored, swapped),
                                   TensorBytes(file->bytes(), swapped, &*file)};
    for (const TensorBytes& tensor : tensors) {
      CHECK(tensor.size() == stored.size());
      for (int i = 0; i < 40; ++i) {
        std::size_t begin = i == 0 ? 0 : up_to(stored.size());
        std::size_t n = i == 0 ? stored.size() : up_to(stored.size() - begin);
        if (i % 2 == 0) {  // whole units
          begin -= begin % swapped.unit;
          n -= n % swapped.unit;
        }
        std::vector<std::byte> part(n);
        const auto read = tensor.read(begin, part);
        REQUIRE_MESSAGE(read, test::why(read));
        const auto* const from = expected.data() + begin;
        const bool is_same = std::equal(part.begin(), part.end(), from);
        CHECK(is_same);
      }
    }
  }
}

}  // namespace tensor_bytes_test
