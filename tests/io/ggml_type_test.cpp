// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/ggml_type.hpp"

#include <array>
#include <cstdint>
#include <string>

#include "doctest/doctest.h"
#include "file_builder.hpp"

namespace ggml_type_test {

using nibble::Errc;
using namespace nibble::io;

TEST_CASE("block geometry follows from what a block holds") {
  // Written out from the layouts: bytes of scales, minima and quants.
  struct {
    GgmlType type;
    std::uint32_t id, elements, bytes;
  } const rows[] = {
      {GgmlType::f32, 0, 1, 4},
      {GgmlType::f16, 1, 1, 2},
      {GgmlType::q4_0, 2, 32, 2 + 16},
      {GgmlType::q4_1, 3, 32, 2 + 2 + 16},
      {GgmlType::q5_0, 6, 32, 2 + 4 + 16},
      {GgmlType::q5_1, 7, 32, 2 + 2 + 4 + 16},
      {GgmlType::q8_0, 8, 32, 2 + 32},
      {GgmlType::q8_1, 9, 32, 2 + 2 + 32},
      {GgmlType::q2_k, 10, 256, 16 + 64 + 2 + 2},
      {GgmlType::q3_k, 11, 256, 32 + 64 + 12 + 2},
      {GgmlType::q4_k, 12, 256, 2 + 2 + 12 + 128},
      {GgmlType::q5_k, 13, 256, 2 + 2 + 12 + 32 + 128},
      {GgmlType::q6_k, 14, 256, 128 + 64 + 16 + 2},
      {GgmlType::q8_k, 15, 256, 4 + 256 + 32},
      {GgmlType::iq2_xxs, 16, 256, 2 + 64},
      {GgmlType::iq2_xs, 17, 256, 2 + 64 + 8},
      {GgmlType::iq3_xxs, 18, 256, 2 + 96},
      {GgmlType::iq1_s, 19, 256, 2 + 32 + 16},
      {GgmlType::iq4_nl, 20, 32, 2 + 16},
      {GgmlType::iq3_s, 21, 256, 2 + 64 + 8 + 32 + 4},
      {GgmlType::iq2_s, 22, 256, 2 + 64 + 8 + 8},
      {GgmlType::iq4_xs, 23, 256, 2 + 2 + 4 + 128},
      {GgmlType::i8, 24, 1, 1},
      {GgmlType::i16, 25, 1, 2},
      {GgmlType::i32, 26, 1, 4},
      {GgmlType::i64, 27, 1, 8},
      {GgmlType::f64, 28, 1, 8},
      {GgmlType::iq1_m, 29, 256, 32 + 16 + 8},
      {GgmlType::bf16, 30, 1, 2},
      {GgmlType::tq1_0, 34, 256, 48 + 4 + 2},
      {GgmlType::tq2_0, 35, 256, 64 + 2},
      {GgmlType::mxfp4, 39, 32, 1 + 16},
      {GgmlType::nvfp4, 40, 64, 4 + 32},
      {GgmlType::q1_0, 41, 128, 2 + 16},
      {GgmlType::q2_0, 42, 64, 2 + 16},
  };
  std::uint32_t known = 0;
  for (std::uint32_t id = 0; id < 1000; ++id) known += is_known(static_cast<GgmlType>(id));
  CHECK(known == std::size(rows));
  for (const auto& row : rows) {
    const auto traits = type_traits(row.type);
    CAPTURE(traits.name);
    CHECK(static_cast<std::uint32_t>(row.type) == row.id);
    CHECK(traits.block_size == row.elements);
    CHECK(traits.type_size == row.bytes);
  }
  static_assert(type_traits(GgmlType::q4_0).type_size == 18);
}

TEST_CASE("sizes are checked for blocks, zeros and overflow") {
  CHECK(*row_bytes(GgmlType::q4_0, 64) == 36);
  CHECK(*row_bytes(GgmlType::f32, 3) == 12);
  CHECK(row_bytes(GgmlType::q4_0, 33).error().code == Errc::malformed);
  CHECK(row_bytes(GgmlType::f32, 0).error().code == Errc::malformed);
  CHECK(row_bytes(GgmlType::f32, UINT64_MAX / 4).has_value());
  CHECK(row_bytes(GgmlType::f32, UINT64_MAX / 4 + 1).error().code == Errc::limit);

  using Dims = std::array<std::uint64_t, 2>;
  CHECK(*tensor_bytes(GgmlType::q8_0, Dims{64, 3}) == 204);
  CHECK(*tensor_bytes(GgmlType::f32, std::array<std::uint64_t, 0>{}) == 4);
  CHECK(tensor_bytes(GgmlType::f32, Dims{4, 0}).error().code == Errc::malformed);
  CHECK(tensor_bytes(GgmlType::f32, Dims{1ull << 32, 1ull << 30}).error().code == Errc::limit);

  const auto unknown = row_bytes(static_cast<GgmlType>(31), 32);
  CHECK(unknown.error().code == Errc::unsupported);
  CHECK(unknown.error().message ==
        "Q4_0_4_4 (tensor type 31) was withdrawn from GGUF; convert the model's original again");
  CHECK(row_bytes(static_cast<GgmlType>(99), 32).error().message == "tensor type 99 is unknown");
  const auto ours = row_bytes(static_cast<GgmlType>(kFirstNibbleType + 99), 32);
  CHECK(ours.error().code == Errc::unsupported);
  CHECK(test::contains(ours.error().message, "another version of nibble"));
}

TEST_CASE("packed types are sized by panels of 16 rows and whole groups") {
  using Dims = std::array<std::uint64_t, 2>;
  CHECK(*tensor_bytes(GgmlType::packed_q4_0, Dims{64, 16}) == 576);
  CHECK(*tensor_bytes(GgmlType::packed_q4_0, Dims{65, 17}) == 4 * 576);
  CHECK(*tensor_bytes(GgmlType::packed_f16, Dims{3, 1}) == 128);
  CHECK(tensor_bytes(GgmlType::packed_q8_0, Dims{0, 16}).error().code == Errc::malformed);
  CHECK(tensor_bytes(GgmlType::packed_q8_0, Dims{64, 0}).error().code == Errc::malformed);
  const std::array<std::uint64_t, 4> experts = {64, 17, 3, 1};
  CHECK(*tensor_bytes(GgmlType::packed_q4_0, experts) == 3 * 2 * 576);
  CHECK(tensor_bytes(GgmlType::packed_q4_0, std::array<std::uint64_t, 4>{64, 17, 3, 2})
            .error()
            .code == Errc::malformed);
  CHECK(tensor_bytes(GgmlType::packed_q4_0, std::array<std::uint64_t, 3>{64, 17, 1ull << 62})
            .error()
            .code == Errc::limit);
  CHECK(tensor_bytes(GgmlType::packed_f32, Dims{1ull << 40, 1ull << 40}).error().code ==
        Errc::limit);
  CHECK(tensor_bytes(GgmlType::packed_f32, Dims{UINT64_MAX, UINT64_MAX}).error().code ==
        Errc::limit);
  CHECK(row_bytes(GgmlType::packed_q4_0, 64).error().code == Errc::unsupported);
}

TEST_CASE("types that state their size: the number of their elements is checked too") {
  using Dims = std::array<std::uint64_t, 3>;
  const auto sparse = GgmlType::packed_q4_0_2of4;
  CHECK(*tensor_bytes(sparse, Dims{64, 3, 5}) == 320);
  CHECK(tensor_bytes(sparse, Dims{64, 0, 5}).error().code == Errc::malformed);
  CHECK(tensor_bytes(sparse, Dims{64, 3, 1ull << 60}).error().code == Errc::limit);
  // 2^65 elements in 64 bytes.
  CHECK(tensor_bytes(sparse, Dims{1ull << 32, 1ull << 33, 1}).error().code == Errc::limit);
}

}  // namespace ggml_type_test
