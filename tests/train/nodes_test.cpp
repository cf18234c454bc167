// SPDX-License-Identifier: Apache-2.0
//
// Gradients of what no architecture here has: dropout, attention with slopes (ALiBi) or sinks, and a
// node of a program's own, which brings its rule.
#include "nibble/graph/training_run.hpp"

#include <array>
#include <string>

#include "doctest/doctest.h"
#include "train/training_model.hpp"

namespace nodes_test {

namespace app {

using namespace nibble;

// x², element by element.
struct Square : graph::Node {};

template <class Pass, Index W>
constexpr auto apply(const Square&, Pass& pass, const graph::Value<W>& x) noexcept {
  const auto y = pass.make(x.width, x.rows);
  pass.step(
      [=](auto& run) { ops::multiply(run.executor(), run.view(x), run.view(x), run.view(y)); }, x,
      y);
  return y;
}
template <class Pass, Index W, class Rest>
constexpr graph::Gradient differentiate(const Square& node, Pass& pass, const graph::Value<W>& x,
                                        const Rest& rest) noexcept {
  const graph::Gradient dy = rest(apply(node, pass, x));
  const graph::Gradient dx = pass.make(dy.width, dy.rows);
  pass.step(
      [=](auto& run) {
        ops::multiply(run.executor(), run.view(x), run.view(dy), run.view(dx));
        ops::scale(run.executor(), run.view(dx), 2, run.view(dx));
      },
      x, dy, dx);
  return dx;
}

}  // namespace app

namespace {

using namespace test;

enum class S : unsigned char { table, first, q, k, v, sinks, last };
constexpr std::size_t kSlots = 7;
constexpr Dim<> kWidth{16};

TEST_CASE(
    "dropout: the way back drops what the way forward dropped, also where it is computed again") {
  const auto e = embedding<S::table>(kWidth, 19) >>
                 repeat(Dim<>{2}, residual(linear<S::first>(kWidth) >> silu() >> dropout(0.3f))) >>
                 dropout(0.2f) >> linear<S::last>(kWidth);
  TrainingModel<decltype(e)> model(e, kSlots, 2);
  check_gradients(model, GradientBatch({4, 6, 1}, 19));
  TrainingLimits limits;
  limits.checkpoints = true;
  check_gradients(model, GradientBatch({4, 6, 1}, 19), limits);
}

template <class H>
void check_attention(const H& heads) {
  const auto attention = fork(linear<S::q>(heads.width()), linear<S::k>(heads.kv_width()),
                              linear<S::v>(heads.kv_width())) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >> linear<S::first>(kWidth);
  const auto e = embedding<S::table>(kWidth, 19) >> repeat(Dim<>{2}, residual(attention)) >>
                 linear<S::last>(kWidth);
  TrainingModel<decltype(e)> model(e, kSlots, 2);
  check_gradients(model, GradientBatch({4, 6, 1}, 19));
}

TEST_CASE("attention with slopes, and with sinks, which learn") {
  const std::array<float, 2> slopes = {0.5f, 0.1f};
  const Heads heads(Dim<>{2}, Dim<>{1}, Dim<>{8}, 0.4f);
  check_attention(heads.with(Alibi{slopes.data()}));
  check_attention(heads.with(Sinks<S::sinks>{}));
}

TEST_CASE("a node of a program's own") {
  const auto e = embedding<S::table>(kWidth, 19) >> linear<S::first>(kWidth) >> app::Square{} >>
                 linear<S::last>(kWidth);
  TrainingModel<decltype(e)> model(e, kSlots, 0);
  check_gradients(model, GradientBatch({4, 6, 1}, 19));
}

}  // namespace

}  // namespace nodes_test
