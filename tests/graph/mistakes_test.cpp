// SPDX-License-Identifier: Apache-2.0
//
// Mistakes in an expression that depend on numbers of run time: each is an error of its plan that
// says what is wrong. compile_fail/mistakes.cpp has what a compiler sees.
#include <array>
#include <string>
#include <string_view>

#include "doctest/doctest.h"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/run.hpp"

namespace mistakes_test {
namespace {

using namespace nibble;
using namespace nibble::graph;

enum class S : unsigned char { table, w, v, norm };
constexpr Dim<> k64{64};
constexpr Limits kLimits{.max_rows = 4, .max_outputs = 4, .n_positions = 8, .max_segments = 2};

auto start() { return embedding<S::table>(k64); }
auto product(Index width = 64) { return linear<S::w>(Dim<>{width}); }

// An attention of these heads, without its last product.
template <class H>
auto attention(const H& heads) {
  return fork(product(heads.width()), product(heads.kv_width()), product(heads.kv_width())) >>
         cache_kv(heads) >> scores(heads) >> softmax(heads) >> attend_values(heads);
}
auto heads_of(Index n_heads, Index n_kv_heads, Index head_dim, Index window = 0, Index ahead = 0) {
  return Heads{Dim<>{n_heads}, Dim<>{n_kv_heads}, Dim<>{head_dim}, 1.0f, window, ahead};
}
template <class Body>
auto layers(const Body& body, Index n = 2) {
  return repeat(Dim<>{n}, residual(body));
}

// The error of a plan, the same for the expression as written and as fused.
template <class E>
std::string plan_error(const E& expression, const Limits& limits = kLimits) {
  const Plan plain = make_plan(expression, limits);
  const Plan fused = make_plan(fuse(expression), limits);
  const auto text = [](const Plan& plan) { return plan.is_valid() ? "" : plan.error; };
  CHECK(std::string(text(plain)) == text(fused));
  return text(plain);
}
template <class E>
void check_fails(const E& expression, std::string_view part, const Limits& limits = kLimits) {
  const std::string error = plan_error(expression, limits);
  CAPTURE(error);
  CAPTURE(part);
  CHECK(error.find(part) != std::string::npos);
}
template <class E>
void check_works(const E& expression) {
  CHECK(plan_error(expression) == "");
}

// In-place nodes of a program: one says so, the other does not.
struct Declared : Node {};
struct Undeclared : Node {};
// A node that gives some of the columns that it is given.
struct Part : Node {};

template <class Pass, Index W>
constexpr auto apply(const Declared&, Pass& pass, const Value<W>& x) noexcept {
  pass.step([=](auto& run) { ops::scale(run.executor(), run.view(x), 2, run.view(x)); }, x);
  return x;
}
template <class Pass, Index W>
constexpr auto apply(const Undeclared&, Pass& pass, const Value<W>& x) noexcept {
  return apply(Declared{}, pass, x);
}
template <class Pass, Index W>
constexpr auto apply(const Part&, Pass&, const Value<W>& x) noexcept {
  Value<> part = {x.id, x.rows, x.column, x.stride, Dim<>{32}, x.is_shared};
  return part;
}

}  // namespace

}  // namespace mistakes_test

template <>
inline constexpr bool nibble::graph::kIsInPlace<mistakes_test::Declared> = true;

namespace mistakes_test {

TEST_CASE("widths") {
  check_works(start() >> layers(product() >> silu() >> product()));
  for (const Index width : {32, 65}) {
    check_fails(start() >> layers(product(width)), "residual(): the body gives rows of another");
    check_fails(start() >> layers(silu() >> product(width)), "residual(): the body gives rows of");
    check_fails(embedding<S::table>(Dim<64>()) >> residual(silu() >> product(width)),
                "residual(): the body gives rows of another");
    check_fails(start() >> fork(product(), silu() >> product(width) >> silu()) >> sum(),
                "widths differ");
  }
  check_works(start() >> split(Dim<>{32}, Dim<32>()) >> multiply());
  check_fails(start() >> split(Dim<>{32}, Dim<>{16}) >> multiply(), "split(): the widths do not");
  check_fails(start() >> split(Dim<>{64}, Dim<>{16}) >> multiply(), "split(): the widths do not");
  const auto gate = linear<S::v>(Dim<>{32}) >> silu();
  check_works(start() >> fork(gate, product(32)) >> multiply());
  check_fails(start() >> fork(gate, product(16)) >> multiply(), "widths differ");
  check_fails(start() >> product(0), "a width is 0");
  check_fails(start() >> product(-1), "a width is 0");
  check_fails(start() >> product(Index{1} << 60), "too large");
}

TEST_CASE("rows that others still need are not written to") {
  const auto tail = product() >> silu();
  check_fails(start() >> residual(Undeclared{} >> product()), "kIsInPlace does not say so");
  check_fails(start() >> residual(Undeclared{}), "the body gives the rows that it is given");
  check_fails(start() >> layers(Part{} >> product()) >> product(), "");
  check_fails(start() >> residual(tap<"x">()), "");
  // sum() and multiply() write to the first of the pair.
  check_fails(start() >> residual(fork(tap<"x">(), product()) >> sum() >> product()),
              "the first of its pair, which others still need");
  check_works(start() >> residual(fork(product(), tap<"x">()) >> sum() >> product()));
  check_fails(start() >> residual(split(Dim<>{32}, Dim<>{32}) >> multiply() >> tail),
              "the first of its pair, which others still need");
  check_fails(start() >> fork(product(), product()) >> fork(sum(), multiply()) >> sum(),
              "the first of its pair, which others still need");
  const auto heads = heads_of(2, 1, 16);
  check_fails(start() >> layers(split(Dim<>{32}, Dim<>{16}, Dim<>{16}) >>
                                rope<kernels::HalfSplit>(heads, RopeAngles{Index{16}}) >>
                                cache_kv(heads) >> linear<S::v>(k64)),
              "rope() or head_norm() would write to rows that others still need");
  check_fails(start() >> layers(split(Dim<>{32}, Dim<>{16}, Dim<>{16}) >>
                                head_norm<S::norm, S::norm>(heads, 1e-5f) >> cache_kv(heads) >>
                                linear<S::v>(k64)),
              "rope() or head_norm() would write to rows that others still need");
  check_works(start() >> Declared{} >> residual(product() >> Declared{}) >> Declared{});
}

TEST_CASE("layers") {
  check_works(start() >> layers(product() >> silu(), 0));
  check_fails(start() >> layers(product() >> silu(), -1), "fewer than 0 layers");
  // A value for each layer, and no fewer.
  const std::array<Index, 2> widths = {32, 96};
  const std::array<bool, 2> conditions = {false, true};
  const auto body = linear<S::w>(Dim<kPerLayer>(widths.data(), 2)) >> silu() >> product();
  check_works(start() >> layers(body, 2));
  check_works(start() >> layers(body, 1));
  check_fails(start() >> layers(body, 3), "fewer values than there are layers");
  check_fails(start() >> residual(body), "outside of the layers");
  const auto some = when(PerLayer<bool>(conditions.data(), 2), residual(product() >> silu()));
  check_works(start() >> repeat(Dim<>{2}, some));
  check_fails(start() >> repeat(Dim<>{3}, some), "fewer values than there are layers");
  check_fails(start() >> some, "outside of the layers");
  // A second list of layers goes on where the first one ended.
  check_works(start() >> repeat(Dim<>{1}, some) >> repeat(Dim<>{1}, some));
  check_fails(start() >> repeat(Dim<>{1}, some) >> repeat(Dim<>{2}, some),
              "fewer values than there are layers");
  // What a layer leaves out need not make sense there.
  const std::array<Index, 2> sizes = {0, 16};
  const Heads in_second{Dim<>{2}, Dim<>{2}, Dim<kPerLayer>(sizes.data(), 2), 1.0f};
  const std::array<Index, 2> wide = {Index{1} << 62, 32};
  const auto q = linear<S::w>(Dim<kPerLayer>(wide.data(), 2));
  check_works(start() >> repeat(Dim<>{2}, when(PerLayer<bool>(conditions.data(), 2),
                                               residual(fork(q, q, q) >> cache_kv(in_second) >>
                                                        scores(in_second) >> softmax(in_second) >>
                                                        attend_values(in_second) >> product()))));
}

TEST_CASE("heads and their cache") {
  const auto model = [](const auto& heads) {
    return start() >> layers(attention(heads) >> linear<S::v>(k64));
  };
  check_works(model(heads_of(4, 2, 16)));
  check_works(model(heads_of(3, 3, 5, 7, 7)));
  for (const auto& bad : {heads_of(3, 2, 16), heads_of(2, 4, 16), heads_of(4, 0, 16),
                          heads_of(0, 2, 16), heads_of(4, 2, 0), heads_of(4, -2, 16)}) {
    check_fails(start() >> layers(fork(product(64), product(32), product(32)) >> cache_kv(bad) >>
                                  linear<S::v>(k64)),
                "n_heads is not a multiple of n_kv_heads");
  }
  check_fails(model(heads_of(4, 2, 16, -1)), "a window of fewer than 0");
  check_fails(model(heads_of(4, 2, 16, 0, -1)), "a window of fewer than 0");
  check_fails(model(heads_of(4, 2, 16).with(Alibi{nullptr})), "alibi without slopes");

  const auto heads = heads_of(4, 2, 16), other = heads_of(2, 1, 32);
  const auto qkv = fork(product(64), product(32), product(32));
  const auto end = softmax(heads) >> attend_values(heads) >> linear<S::v>(k64);
  check_works(start() >> layers(qkv >> cache_kv(heads) >> scores(heads) >> end));
  check_fails(start() >> layers(fork(product(63), product(32), product(32)) >> cache_kv(heads) >>
                                scores(heads) >> end),
              "the width of q");
  check_fails(start() >> layers(fork(product(64), product(32), product(31)) >> cache_kv(heads) >>
                                scores(heads) >> end),
              "the width of k or v");
  check_fails(start() >> layers(qkv >> cache_kv(heads) >> product(63) >> scores(heads) >> end),
              "the width of q");
  // What attention reads must have been stored, by heads of the same shape, in the same layer.
  check_fails(start() >> layers(product() >> scores(heads) >> end), "without a cache_kv()");
  check_fails(start() >> layers(qkv >> cache_kv(heads) >> scores(other) >> softmax(other) >>
                                attend_values(other) >> linear<S::v>(k64)),
              "without a cache_kv() of the same heads");
  check_fails(start() >> layers(qkv >> cache_kv(heads) >> linear<S::v>(k64)) >>
                  layers(product() >> scores(heads) >> end),
              "without a cache_kv()");
  check_fails(start() >> residual(qkv >> cache_kv(heads) >> scores(heads) >> end),
              "outside of repeat()");
  check_fails(start() >> layers(fork(attention(heads), attention(heads)) >> sum()),
              "two cache_kv() in one layer");
  // One of two kinds of attention is not two.
  const std::array<bool, 2> first = {true, false}, second = {false, true};
  const auto kind = [&](const auto& h, const std::array<bool, 2>& where) {
    return when(PerLayer<bool>(where.data(), 2), residual(attention(h) >> linear<S::v>(k64)));
  };
  check_works(start() >> repeat(Dim<>{2}, kind(heads, first) >> kind(other, second)));
  check_fails(start() >> repeat(Dim<>{2}, kind(heads, first) >> kind(other, first)),
              "two cache_kv() in one layer");
  // Three nodes of the same heads.
  CHECK_FALSE(
      make_plan(start() >> layers(qkv >> cache_kv(heads) >> scores(heads) >> softmax(other) >>
                                  attend_values(heads) >> linear<S::v>(k64)),
                kLimits)
          .is_valid());  // fused, it is one node of the first heads
  check_fails(
      start() >> layers(qkv >> cache_kv(heads) >> attend_values(heads) >> linear<S::v>(k64)),
      "scores() of the same heads");
}

TEST_CASE("rotations") {
  const auto heads = heads_of(4, 2, 16);
  const auto model = [&](const RopeAngles& angles) {
    return start() >>
           layers(fork(product(64), product(32), product(32)) >>
                  rope<kernels::HalfSplit>(heads, angles) >> cache_kv(heads) >> linear<S::v>(k64));
  };
  for (const Index dim : {0, 2, 16}) check_works(model({dim}));
  for (const Index dim : {-2, 1, 15, 17, 18})
    check_fails(model({dim}), "an even number of at most");
  check_fails(model({Index{16}, 0.0f}), "theta");
  check_fails(model({Index{16}, 10000.0f, 0.0f}), "position_scale");
  check_works(model({Index{0}, 0.0f}));
  const std::array<Index, 2> dims = {16, 15};
  check_fails(model({PerLayer<Index>(dims.data(), 2)}), "an even number of at most");
}

TEST_CASE("output_rows") {
  const auto heads = heads_of(4, 2, 16);
  check_works(start() >> residual(product() >> silu()) >> output_rows() >> residual(product()));
  check_fails(start() >> residual(silu() >> output_rows() >> silu()), "output_rows() within");
  check_fails(start() >> residual(silu() >> output_rows() >> product()), "output_rows() within");
  check_fails(start() >> fork(output_rows(), product() >> silu()) >> sum(), "one of the two only");
  check_fails(start() >> output_rows() >> layers(attention(heads) >> linear<S::v>(k64)),
              "after output_rows()");
}

TEST_CASE("probabilities and limits") {
  for (const float p : {-0.1f, 1.0f, 2.0f}) {
    check_fails(start() >> dropout(p), "a probability");
    check_fails(start() >> layer_norm<S::norm, kNone>(1e-5f) >> dropout(p), "a probability");
  }
  check_works(start() >> dropout(0));
  for (const auto member : {&Limits::max_rows, &Limits::max_outputs, &Limits::n_positions,
                            &Limits::max_workers, &Limits::max_segments}) {
    Limits limits = kLimits;
    limits.*member = 0;
    check_fails(start(), "a limit is less than 1", limits);
  }
}

}  // namespace mistakes_test
