// SPDX-License-Identifier: Apache-2.0
#include "nibble/model/weight_store.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "why.hpp"

using namespace nibble;
using quant::Format;

namespace {

using Store = WeightStore;

constexpr Index kN = 40, kK = 64;  // not a whole number of panels

// Two vectors, one of them stored in 16 bits, and a matrix to which the output is tied.
struct Sources {
  std::vector<f16> scales = std::vector<f16>(kK);
  std::vector<float> bias = std::vector<float>(kK);
  std::vector<float> matrix = std::vector<float>(kN * kK);

  Sources() {
    float next = 0.5f;
    for (f16& x : scales) x = to_f16(next += 0.25f);
    for (float& x : bias) x = next -= 1.0f;
    for (float& x : matrix) x = next += 0.125f;
  }
  Store store() const {
    Store store(1, graph::AllFormats{});
    const auto bytes = [](const auto& values) { return std::as_bytes(std::span(values)); };
    REQUIRE(store.add(Slot::attn_norm, 0, Format::f16, 0, kK, bytes(scales)));
    REQUIRE(store.add(Slot::attn_norm_bias, 0, Format::f32, 0, kK, bytes(bias)));
    REQUIRE(store.add(Slot::token_embd, -1, Format::f32, kN, kK, bytes(matrix)));
    store.tie(Slot::output, Slot::token_embd);
    return store;
  }
};

std::vector<std::byte> bytes_of(const Store& store, Slot slot, Index layer) {
  const graph::Weight& w = store.table().at(slot, layer);
  REQUIRE(w);
  REQUIRE((w.is_vector() || w.ops->format == Format::f32));
  return {w.data, w.data + w.bytes()};
}

bool same(const Store& a, const Store& b) {
  const auto equal = [&](Slot slot, Index layer) {
    return bytes_of(a, slot, layer) == bytes_of(b, slot, layer);
  };
  return equal(Slot::attn_norm, 0) && equal(Slot::attn_norm_bias, 0) &&
         equal(Slot::token_embd, -1) && equal(Slot::output, -1);
}

}  // namespace

TEST_CASE("packing that was cancelled can be done again, from wherever it stopped") {
  const Sources sources;
  InlineExecutor executor;
  Store expected = sources.store();
  REQUIRE(expected.pack(executor));
  float first = 0;
  std::memcpy(&first, expected.table().at(Slot::attn_norm, 0).data, sizeof(first));
  CHECK(first == to_f32(sources.scales[0]));

  for (int n_entries = 1; n_entries <= 3; ++n_entries) {
    CAPTURE(n_entries);
    Store store = sources.store();
    int calls = 0;
    const auto stop = [&](std::size_t, std::size_t) { return ++calls < n_entries; };
    const Progress progress = stop;
    const auto cancelled = store.pack(executor, &progress);
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code == Errc::cancelled);
    CHECK(calls == n_entries);
    // Still the source, in f16.
    CHECK(store.table().at(Slot::attn_norm, 0).data ==
          std::as_bytes(std::span(sources.scales)).data());
    CHECK_FALSE(store.table().at(Slot::output, -1));

    const auto again = store.pack(executor);
    REQUIRE_MESSAGE(again, test::why(again));
    CHECK(same(store, expected));
  }
}

TEST_CASE("a store that is packed stays as it is") {
  const Sources sources;
  InlineExecutor executor;
  Store expected = sources.store();
  REQUIRE(expected.pack(executor));
  Store store = sources.store();
  REQUIRE(store.pack(executor));
  const std::byte* const data = store.table().at(Slot::token_embd, -1).data;

  const auto code = [](const Result<void>& status) {
    return status ? std::optional<Errc>() : std::optional<Errc>(status.error().code);
  };
  CHECK(code(store.pack(executor)) == Errc::invalid_argument);
  CHECK(code(store.add(Slot::ffn_norm, 0, Format::f32, 0, kK,
                       std::as_bytes(std::span(sources.bias)))) == Errc::invalid_argument);
  CHECK(store.table().at(Slot::token_embd, -1).data == data);
  CHECK_FALSE(store.table().at(Slot::ffn_norm, 0));
  CHECK(same(store, expected));
}

TEST_CASE("sizes that do not agree, or have no product, are errors") {
  const Sources sources;
  WeightStore store(1, graph::AllFormats{});
  const auto bytes = std::as_bytes(std::span(sources.bias));
  const auto add = [&](Index n, Index k, Index n_experts) {
    const Result<void> added = store.add(Slot::attn_q, 0, Format::f32, n, k, bytes, n_experts);
    return added ? std::optional<Errc>() : std::optional<Errc>(added.error().code);
  };
  const auto n_floats = static_cast<Index>(sources.bias.size());
  CHECK(add(1, n_floats + 1, 1) == Errc::invalid_argument);
  CHECK(add(-1, n_floats, 1) == Errc::invalid_argument);
  CHECK(add(1, n_floats, 0) == Errc::invalid_argument);
  CHECK(add(0, n_floats, 2) == Errc::invalid_argument);
  // 2^62 rows of 4 experts: the number of rows wraps to 0.
  CHECK(add(Index{1} << 62, n_floats, 4) == Errc::invalid_argument);
  // Packed matrices of which the sizes would overflow.
  const auto add_packed = [&](Index n, Index k) {
    const Result<void> added = store.copy_packed(Slot::attn_q, 0, Format::f32, n, k, bytes);
    return added ? std::optional<Errc>() : std::optional<Errc>(added.error().code);
  };
  for (const Index n : {Index{1} << 58, Index{1} << 62}) {
    CHECK(add_packed(n, 4) == Errc::invalid_argument);
    CHECK(add_packed(n, Index{1} << 59) == Errc::invalid_argument);
  }
  CHECK(add_packed(1, Index{1} << 59) == Errc::invalid_argument);
  CHECK_FALSE(store.table().at(Slot::attn_q, 0));
  CHECK(add(1, n_floats, 1) == std::nullopt);
}

TEST_CASE("sides of factors: all ways to add weights, and both must come and go together") {
  constexpr Index kRank = 3;
  const std::vector<float> zeros(kN * kK);
  const auto rows = [&](Index n, Index k) {
    return std::as_bytes(std::span(zeros).first(static_cast<std::size_t>(n * k)));
  };
  const std::vector<float> scales(kN, 0.5f);
  const std::vector<std::byte> codes(kN * kRank, std::byte{7});
  const WeightPlace base(Slot::ffn_up, 0), a(Slot::ffn_up, 0, FactorSide::a),
      b(Slot::ffn_up, 0, FactorSide::b);
  InlineExecutor executor;
  const auto refused = [](const Result<void>& status, const std::string& part) {
    REQUIRE(!status);
    CHECK(status.error().code == Errc::invalid_argument);
    CHECK_MESSAGE(status.error().message.find(part) != std::string::npos, status.error().message);
  };
  for (const bool has_base : {false, true}) {
    for (const bool base_first : {false, true}) {
      CAPTURE(has_base);
      CAPTURE(base_first);
      Store store(1, graph::AllFormats{});
      if (has_base && base_first) REQUIRE(store.add(base, Format::f32, kN, kK, rows(kN, kK)));
      refused(store.add(a, Format::f32, 0, kK, rows(1, kK)), "a factor that is a vector");
      CHECK(store.check_factors());
      REQUIRE(store.add_channels(a, kN, kRank, codes, scales));
      refused(store.add_channels(a, kN, kRank, codes, scales), "added twice");
      refused(store.pack(executor), "one of them is missing");
      REQUIRE(store.add(b, Format::f16, kRank, kK, rows(kRank, kK / 2)));
      if (has_base && !base_first) REQUIRE(store.add(base, Format::f32, kN, kK, rows(kN, kK)));
      if (has_base) refused(store.add(base, Format::f32, kN, kK, rows(kN, kK)), "added twice");
      const auto packed = store.pack(executor);
      REQUIRE_MESSAGE(packed, test::why(packed));
      const graph::Weight& w = store.table().at(Slot::ffn_up, 0);
      CHECK(w.has_base() == has_base);
      CHECK(graph::shape_text(w.n, w.k) == "(40, 64)");
      REQUIRE(w.factors != nullptr);
      CHECK(graph::shape_text(w.factors->a.n, w.factors->a.k) == "(40, 3)");
      CHECK(graph::shape_text(w.factors->b.n, w.factors->b.k) == "(3, 64)");
      std::vector<float> row(kRank);
      w.factors->a.ops->row(w.factors->a.data, kN, kRank, kN - 1, row.data());
      CHECK(row == std::vector<float>(kRank, 3.5f));
      refused(store.add(b, Format::f16, kRank, kK, rows(kRank, kK / 2)), "packed already");
    }
  }

  // Of two ranks; of another shape than the weights beside them; beside experts.
  for (const int mistake : {0, 1, 2}) {
    CAPTURE(mistake);
    const Index rank = mistake == 0 ? kRank + 1 : kRank, n_experts = mistake == 2 ? 2 : 1;
    const Index n = mistake == 0 ? kN : kN / 2, n_of_a = mistake == 2 ? n : kN;
    Store store(1, graph::AllFormats{});
    REQUIRE(store.add(a, Format::f32, n_of_a, kRank, rows(n_of_a, kRank)));
    REQUIRE(store.add(b, Format::f32, rank, kK, rows(rank, kK)));
    REQUIRE(store.add(base, Format::f32, n, kK, rows(n * n_experts, kK), n_experts));
    refused(store.pack(executor), "their shapes do not go together");
    CHECK(!store.check_factors());
  }
}

TEST_CASE("rows in memory may lie anywhere and in another order") {
  const Sources sources;
  InlineExecutor executor;
  const auto rows = std::as_bytes(std::span(sources.matrix));
  WeightStore expected(1, graph::AllFormats{});
  REQUIRE(expected.add(Slot::attn_q, 0, Format::f32, kN, kK, rows));
  REQUIRE(expected.pack(executor));

  std::vector<std::byte> shifted(rows.size() + 1);
  std::copy(rows.begin(), rows.end(), shifted.begin() + 1);
  WeightStore unaligned(1, graph::AllFormats{});
  REQUIRE(unaligned.add(Slot::attn_q, 0, Format::f32, kN, kK, std::span(shifted).subspan(1)));
  CHECK(unaligned.largest_piece({}) > 0);
  REQUIRE(unaligned.pack(executor));
  CHECK(bytes_of(unaligned, Slot::attn_q, 0) == bytes_of(expected, Slot::attn_q, 0));

  // Row 2 j + i is stored as row i * kN / 2 + j.
  const std::size_t row_bytes = kK * sizeof(float);
  std::vector<std::byte> halves(rows.size());
  for (std::size_t row = 0; row < kN; ++row) {
    const auto from = rows.subspan(row * row_bytes, row_bytes);
    std::copy(
        from.begin(), from.end(),
        halves.begin() + static_cast<std::ptrdiff_t>((row % 2 * kN / 2 + row / 2) * row_bytes));
  }
  WeightStore reordered(1, graph::AllFormats{});
  REQUIRE(reordered.add(Slot::attn_q, 0, Format::f32, kN, kK, halves, 1, {2, kN / 2, row_bytes}));
  REQUIRE(reordered.pack(executor));
  CHECK(bytes_of(reordered, Slot::attn_q, 0) == bytes_of(expected, Slot::attn_q, 0));
}

TEST_CASE("weights that a conversion cannot hold are errors that say where") {
  const quant::ReadOnlyType& mxfp4 = *quant::read_only_type(io::GgmlType::mxfp4);
  const quant::ReadOnlyType& iq4_nl = *quant::read_only_type(io::GgmlType::iq4_nl);
  struct Case {
    const quant::ReadOnlyType& type;
    std::size_t block, at;  // bytes of a block; which one is changed
    std::byte value;
    Errc code;
    const char* part;
  };
  // An exponent that f16 lacks, and the upper byte of a NaN. Row 18 is in the second panel.
  const Case cases[] = {
      {mxfp4, 17, 0, std::byte{0xF0}, Errc::limit, "is too large for q5_0"},
      {iq4_nl, 18, 1, std::byte{0x7E}, Errc::malformed, "is not a finite number"}};
  for (const Case& c : cases) {
    constexpr Index kRows = 20, kK = 64;
    constexpr auto kBlocks = static_cast<std::size_t>(kRows * kK / 32);
    std::vector<std::byte> rows(kBlocks * c.block, std::byte{0x30});
    for (std::size_t i = 0; i < rows.size(); i += c.block) {
      rows[i] = std::byte{0x70};  // an exponent that f16 holds, or the lower half of an f16
    }
    rows[(18 * 2 + 1) * c.block + c.at] = c.value;
    Store store(1, graph::CommonFormats{});
    REQUIRE(store.add(Slot::token_embd, -1, c.type, kRows, kK, rows));
    InlineExecutor executor;
    const auto packed = store.pack(executor);
    REQUIRE_FALSE(packed);
    CAPTURE(packed.error().message);
    CHECK(packed.error().code == c.code);
    CHECK(packed.error().message.find("of row 18 of a matrix in ") != std::string::npos);
    CHECK(packed.error().message.find(c.part) != std::string::npos);
  }
}

TEST_CASE("of several errors that of the first rows is reported, whatever packs them") {
  constexpr Index kMany = 6000;  // three pieces
  std::vector<std::byte> codes(kMany * kK, std::byte{1});
  for (const std::size_t row : {5000u, 2500u, 31u, 10u}) codes[row * kK + 3] = std::byte{0x80};
  const std::vector<float> scales(kMany, 0.5f);
  Store store(1, graph::AllFormats{});
  REQUIRE(store.add_channels(WeightPlace(Slot::ffn_up, 0), kMany, kK, codes, scales));
  InlineExecutor forwards;
  nibble_test::BackwardExecutor backwards;
  for (Executor* const executor :
       {static_cast<Executor*>(&forwards), static_cast<Executor*>(&backwards)}) {
    const auto packed = store.pack(*executor);
    REQUIRE(!packed);
    CHECK(packed.error().code == Errc::malformed);
    CHECK(packed.error().message.find("row 10 ") != std::string::npos);
  }
  CHECK(backwards.n_tasks_run == 3);
}

TEST_CASE("matrices in types without kernels are converted, rows in a file's order or another") {
  struct Case {
    io::GgmlType type;
    Format format;
    Index k;
  };
  const Case cases[] = {{io::GgmlType::iq4_nl, Format::q5_0, 96},
                        {io::GgmlType::iq4_xs, Format::q5_k, 512},
                        {io::GgmlType::tq2_0, Format::q4_0, 256},
                        {io::GgmlType::mxfp4, Format::q5_0, 64}};
  for (const Case& c : cases) {
    CAPTURE(io::type_traits(c.type).name);
    const auto row_bytes =
        static_cast<std::size_t>(*io::row_bytes(c.type, static_cast<std::uint64_t>(c.k)));
    std::mt19937 random(5);
    std::vector<std::byte> rows(row_bytes * kN + 1);
    for (std::byte& byte : rows) byte = static_cast<std::byte>(0x30 + random() % 16);
    const auto source = std::span(rows).subspan(1);  // of an unaligned file
    if (c.type == io::GgmlType::mxfp4) {             // scales that f16 holds
      for (std::size_t i = 0; i < source.size(); i += 17) source[i] = std::byte{0x78};
    }
    const quant::ReadOnlyType& type = *quant::read_only_type(c.type);
    Store store(1, graph::CommonFormats{});
    REQUIRE(store.add(Slot::token_embd, -1, type, kN, c.k, source));
    REQUIRE(store.conversions().size() == 1);
    CHECK(to_string(store.conversions()[0]) == std::string("1 matrix in ") +
                                                   io::type_traits(c.type).name +
                                                   " is computed with as " + to_string(c.format));
    CHECK(store.largest_piece({}) > row_bytes);
    InlineExecutor executor;
    REQUIRE(store.pack(executor));
    const graph::Weight& w = store.table().at(Slot::token_embd, -1);
    REQUIRE(w.ops->format == c.format);
    const auto k = static_cast<std::size_t>(c.k);
    std::vector<float> row(k), expected(k), exact(k);
    std::vector<std::byte> converted(*quant::row_bytes(c.format, k));
    double error = 0, size = 0;
    for (Index r = 0; r < kN; ++r) {
      const std::byte* const from = source.data() + static_cast<std::size_t>(r) * row_bytes;
      quant::read_row_as(type, c.format, from, exact, converted.data());
      REQUIRE(quant::row_to_f32(c.format, converted, expected));
      w.ops->row(w.data, kN, c.k, r, row.data());
      REQUIRE(row == expected);
      for (std::size_t i = 0; i < k; ++i) {
        error += (double{row[i]} - exact[i]) * (double{row[i]} - exact[i]);
        size += double{exact[i]} * exact[i];
      }
    }
    CHECK(error <= (type.scale != nullptr ? 0 : 0.01) * size);

    // A program that has kernels for the type computes with its codes.
    if (!type.exact) continue;
    Store all(1, graph::AllFormats{});
    REQUIRE(all.add(Slot::token_embd, -1, type, kN, c.k, source));
    CHECK(all.conversions().empty());
    REQUIRE(all.pack(executor));
    const graph::Weight& kept = all.table().at(Slot::token_embd, -1);
    CHECK(kept.ops->format == *type.exact);
    for (Index r = 0; r < kN; ++r) {
      quant::read_row(type, source.data() + static_cast<std::size_t>(r) * row_bytes, exact);
      kept.ops->row(kept.data, kN, c.k, r, row.data());
      CHECK(row == exact);
    }
  }
  // Bytes that are too few.
  Store store(1, graph::CommonFormats{});
  const std::vector<std::byte> few(64);
  const auto added =
      store.add(Slot::token_embd, -1, *quant::read_only_type(io::GgmlType::iq4_nl), kN, kK, few);
  REQUIRE(!added);
  CHECK(added.error().message == "64 bytes are not (40, 64) weights of IQ4_NL");
}

TEST_CASE("TQ1_0 becomes the same weights in TQ2_0, Q2_K stays, where programs have these") {
  for (const auto& [from, to] :
       {std::pair{io::GgmlType::tq1_0, Format::tq2_0}, {io::GgmlType::q2_k, Format::q2_k}}) {
    const std::size_t row_bytes = io::type_traits(from).type_size;
    std::vector<std::byte> rows(row_bytes * kN);
    std::mt19937 random(6);
    for (std::byte& byte : rows) byte = static_cast<std::byte>(random() % 0x7000 >> 8);
    const quant::ReadOnlyType& type = *quant::read_only_type(from);
    Store store(1, graph::AllFormats{});
    REQUIRE(store.add(Slot::token_embd, -1, type, kN, 256, rows));
    CHECK(store.conversions().size() == (from == io::GgmlType::q2_k ? 0 : 1));
    InlineExecutor executor;
    REQUIRE(store.pack(executor));
    const graph::Weight& w = store.table().at(Slot::token_embd, -1);
    CHECK(w.ops->format == to);
    std::vector<float> row(256), exact(256);
    for (Index r = 0; r < kN; ++r) {
      quant::read_row(type, rows.data() + static_cast<std::size_t>(r) * row_bytes, exact);
      w.ops->row(w.data, kN, 256, r, row.data());
      CHECK(row == exact);
    }
  }
}

TEST_CASE(
    "experts: in one source or apart, of a type with kernels or only read, and their vectors") {
  constexpr Index kExperts = 3;
  const std::size_t n_blocks = kExperts * kN * kK / 32;
  std::mt19937 random(5);
  std::vector<std::byte> mxfp4(n_blocks * 17), q8_0(n_blocks * 34);
  for (std::byte& b : mxfp4) b = static_cast<std::byte>(random() & 255);
  for (std::size_t i = 0; i < n_blocks; ++i) mxfp4[17 * i] = std::byte{125};  // scales
  for (std::byte& b : q8_0) b = static_cast<std::byte>(random() & 63);
  const quant::ReadOnlyType& type = *quant::read_only_type(io::GgmlType::mxfp4);
  const auto check = [&](const auto& from, std::span<const std::byte> rows) {
    const std::size_t size = rows.size() / kExperts;
    std::vector<std::span<const std::byte>> apart;
    Store store(kExperts, graph::AllFormats{});
    for (std::size_t e = 0; e < kExperts; ++e) {
      apart.push_back(rows.subspan(e * size, size));
      REQUIRE(store.add(Slot::ffn_up, static_cast<Index>(e), from, kN, kK, apart[e]));
    }
    REQUIRE(store.add(Slot::ffn_up_exps, 0, from, kN, kK, rows, kExperts));
    REQUIRE(store.add_experts({Slot::ffn_gate_exps, 0}, from, kN, kK, apart));
    InlineExecutor executor;
    REQUIRE(store.pack(executor));
    for (const Slot slot : {Slot::ffn_up_exps, Slot::ffn_gate_exps}) {
      const graph::Weight& w = store.table().at(slot, 0);
      REQUIRE(w.n_experts == kExperts);
      for (Index e = 0; e < kExperts; ++e) {
        const graph::Weight one = w.expert(e), alone = store.table().at(Slot::ffn_up, e);
        REQUIRE(one.bytes() == alone.bytes());
        CHECK(std::memcmp(one.data, alone.data, static_cast<std::size_t>(one.bytes())) == 0);
      }
    }
    // One that is too short, none at all.
    Store other(1, graph::AllFormats{});
    CHECK(other.add_experts({Slot::ffn_gate_exps, 0}, from, kN, kK, {}).error().code ==
          Errc::invalid_argument);
    apart[1] = apart[1].first(size - 1);
    CHECK(other.add_experts({Slot::ffn_gate_exps, 0}, from, kN, kK, apart).error().code ==
          Errc::invalid_argument);
  };
  check(type, mxfp4);
  check(Format::q8_0, q8_0);

  std::vector<float> bias(kExperts * 5);
  for (float& x : bias) x = static_cast<float>(random() % 100);
  Store store(1, graph::AllFormats{});
  const auto bytes = std::as_bytes(std::span(bias));
  REQUIRE(store.add(Slot::ffn_up_exps_bias, 0, Format::f32, 0, 5, bytes, kExperts));
  CHECK(
      store.add(Slot::ffn_gate_exps_bias, 0, Format::f32, 0, 5, bytes, kExperts + 1).error().code ==
      Errc::invalid_argument);
  InlineExecutor executor;
  REQUIRE(store.pack(executor));
  const graph::Weight& w = store.table().at(Slot::ffn_up_exps_bias, 0);
  for (Index e = 0; e < kExperts; ++e) {
    CHECK(std::memcmp(w.expert(e).vector(), &bias[static_cast<std::size_t>(5 * e)],
                      5 * sizeof(float)) == 0);
  }
}
