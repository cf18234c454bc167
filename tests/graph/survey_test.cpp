// SPDX-License-Identifier: Apache-2.0
//
// What an expression reports that it needs, and weights compared with it.
#include "nibble/graph/survey.hpp"

#include <array>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/graph/expr.hpp"

namespace survey_test {

using namespace nibble;
using namespace nibble::graph;

namespace {

enum class S : unsigned char { table, norm, out, bias, head };
constexpr std::size_t kSlots = 5;
constexpr Dim<64> kDim;
constexpr Index kWords = 10, kLayers = 2;

auto expression() {
  return embedding<S::table>(kDim, kWords) >>
         repeat(Dim<>{kLayers},
                residual(rms_norm<S::norm>(1e-5f) >> linear<S::out, optional_slot(S::bias)>(kDim)));
}

// A table with all weights that expression() needs, but for the optional bias.
struct Table {
  alignas(kAlignment) std::array<float, 1> data{};  // nobody reads weights here
  std::vector<Weight> weights = std::vector<Weight>(kSlots * (kLayers + 1));

  Weight& at(S slot, Index layer) {
    return weights[static_cast<std::size_t>(layer + 1) * kSlots + static_cast<std::size_t>(slot)];
  }
  Weight of(Index n, Index k) const {
    return {n > 0 ? &kFormatOps<quant::F32> : nullptr, n, k,
            reinterpret_cast<const std::byte*>(data.data())};
  }
  Table() {
    at(S::table, -1) = of(kWords, kDim);
    for (Index layer = 0; layer < kLayers; ++layer) {
      at(S::norm, layer) = of(0, kDim);
      at(S::out, layer) = of(kDim, kDim);
    }
  }
  Result<void> check() const { return check_weights(expression(), WeightTable(weights, kSlots)); }
};

void check_error(const Result<void>& status, Errc code, const std::string& part) {
  REQUIRE(!status);
  CHECK(status.error().code == code);
  CAPTURE(status.error().message);
  CHECK(status.error().message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("weights are compared with what an expression needs") {
  Table table;
  CHECK(table.check());
  table.at(S::bias, 1) = table.of(0, kDim);
  CHECK(table.check());
  table.at(S::bias, 1).k = kDim - 1;
  check_error(table.check(), Errc::invalid_argument, "layer 1': shape (63), expected (64)");
  table.at(S::bias, 1) = {};

  table.at(S::out, 0).n = kDim + 1;
  check_error(table.check(), Errc::invalid_argument, "layer 0': shape (65, 64), expected (64, 64)");
  table.at(S::out, 0) = table.of(kDim, kDim);
  table.at(S::out, 0).n_experts = 3;
  check_error(table.check(), Errc::invalid_argument, "shape (3, 64, 64)");
  table.at(S::out, 0) = {};
  check_error(table.check(), Errc::not_found, "layer 0' are missing");
  table.at(S::out, 0) = table.of(kDim, kDim);
  table.at(S::table, -1).n = kWords - 1;
  check_error(table.check(), Errc::invalid_argument, "shape (9, 64), expected (10, 64)");
}

TEST_CASE(
    "vectors have no factors, and every matrix a shape and an input that its format can have") {
  Table table;
  const auto fails = [&](Errc code, const std::string& part) {
    check_error(table.check(), code, part);
  };
  // Factors stand for a product's weights, not for a vector.
  Factors factors{table.of(kDim, 8), table.of(8, kDim)};
  table.at(S::norm, 0).data = nullptr;
  table.at(S::norm, 0).factors = &factors;
  fails(Errc::invalid_argument, "slot 1 of layer 0': a vector cannot have factors");
  table.at(S::norm, 0) = table.of(0, kDim);
  table.at(S::norm, 0).factors = &factors;
  fails(Errc::invalid_argument, "a vector cannot have factors");
  table.at(S::norm, 0) = table.of(0, kDim);

  Weight& w = table.at(S::out, 1);
  for (const FormatOps* const ops : AllFormats::kOps) {
    CAPTURE(std::string(to_string(ops->format)));
    w.ops = ops;
    // Super-blocks are of 256 weights.
    const bool is_whole = !quant::has_rows(ops->format) || ops->row_bytes(64).has_value();
    CHECK(table.check().has_value() == is_whole);
  }
  w.ops = &kFormatOps<quant::I8Channel>;
  w.input = {0.5f, 3, true};
  CHECK(table.check());
  for (const quant::StaticScale& bad :
       {quant::StaticScale{0.5f, 3, false}, quant::StaticScale{0.5f, 256, true},
        quant::StaticScale{0.0f, 3, true}, quant::StaticScale{-1.0f, 0, false},
        quant::StaticScale{std::numeric_limits<float>::quiet_NaN(), 0, false}}) {
    CAPTURE(bad.zero_point);
    w.input = bad;
    fails(Errc::invalid_argument, "slot 2 of layer 1': an input scale of");
  }
  w.input = {};
  factors = {table.of(kDim, 8), table.of(8, kDim)};
  factors.a.ops = w.ops;
  w.factors = &factors;
  CHECK(table.check());
  factors.a.input = {0.0f, 3, true};
  fails(Errc::invalid_argument, "factors that are not whole matrices");
}

TEST_CASE("sums of products of 8-bit weights fit 32 bits") {
  constexpr Index kLong = quant::Packed<quant::I8Channel>::kMaxAffineK + 32;
  Table table;
  const auto check = [&](Index k, const quant::StaticScale& input) {
    std::vector<Weight> weights(2);
    weights[0] = table.of(1, k);
    weights[1] = table.of(3, k);
    weights[1].ops = &kFormatOps<quant::I8Channel>;
    weights[1].input = input;
    enum class Two : unsigned char { rows, out };
    return check_weights(embedding<Two::rows>(Dim<>{k}) >> linear<Two::out>(Dim<>{3}),
                         WeightTable(weights, 2));
  };
  CHECK(check(kLong, {}));
  CHECK(check(kLong, {0.5f, 0, false}));
  CHECK(check(kLong - 32, {0.5f, 3, true}));
  check_error(check(kLong, {0.5f, 3, true}), Errc::limit, "rows of 65568 8-bit weights");
  check_error(check(2 * kLong, {}), Errc::limit, "rows of 131136 8-bit weights");
}

TEST_CASE("what a sink throws reaches the caller, and nothing more is reported") {
  struct Full final : SurveySink {
    void weight(const WeightNeed&) override {
      if (++n_calls == 2) throw std::runtime_error("no memory");
    }
    int n_calls = 0;
  };
  Full full;
  CHECK_THROWS_AS(survey(expression(), full), std::runtime_error);
  CHECK(full.n_calls == 2);
}

TEST_CASE("weights that must be there, that may be missing, that are tied; layers that have them") {
  struct List final : SurveySink {
    void weight(const WeightNeed& need) override { needs.push_back(need); }
    std::vector<WeightNeed> needs;
  };
  const std::array<bool, 3> some = {true, false, true};
  const auto part =
      residual(rms_norm<S::norm>(1e-5f) >> linear<S::out, optional_slot(S::bias)>(kDim));
  List list;
  survey(embedding<S::table>(kDim) >>
             repeat(Dim<>{2}, when(PerLayer<bool>(some.data(), 3), part)) >>
             repeat(Dim<>{1}, part) >> linear<tied_slot(S::head, S::table)>(Dim<>{kWords}),
         list);
  struct Row {
    S slot;
    Index layer, n;
    bool is_required;
    std::size_t tied_to;
  };
  const std::vector<Row> expected = {
      {S::table, -1, 0, true, kNoSlot},
      {S::norm, 0, 0, true, kNoSlot},
      {S::out, 0, kDim, true, kNoSlot},
      {S::bias, 0, 0, false, kNoSlot},
      {S::norm, 2, 0, true, kNoSlot},
      {S::out, 2, kDim, true, kNoSlot},
      {S::bias, 2, 0, false, kNoSlot},
      {S::head, -1, kWords, false, static_cast<std::size_t>(S::table)}};
  REQUIRE(list.needs.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(list.needs[i].slot == static_cast<std::size_t>(expected[i].slot));
    CHECK(list.needs[i].layer == expected[i].layer);
    CHECK(list.needs[i].n == expected[i].n);
    CHECK(list.needs[i].k == kDim);
    CHECK(list.needs[i].is_required == expected[i].is_required);
    CHECK(list.needs[i].tied_to == expected[i].tied_to);
    CHECK(list.needs[i].is_table == (i == 0));
  }
}

}  // namespace survey_test
