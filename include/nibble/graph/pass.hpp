// SPDX-License-Identifier: Apache-2.0
//
// A walk over an expression. apply(node, pass, input), defined for each node beside its type, says
// what a node means by the calls that it makes to the pass; the pass decides what the walk does.
// There are three passes: a Survey (survey.hpp) lists the weights, caches and tables that the
// expression needs; a Planner (plan.hpp) records how long each result lives; a Runner (run.hpp)
// computes. All of them take the same walk, so what is loaded and planned cannot differ from what
// runs. (Training has a planner and a runner of its own, whose walk goes on to the loss and back:
// differentiate.hpp.)
//
// A pass offers
//   resolve(x)               the value of a Dim or a PerLayer in this layer
//   make(width, rows)        a new matrix of f32 rows
//   scratch(bytes)           untyped memory for the next step
//   step(f, used...)         f(runner) reads and writes the values `used`; a value lives until the
//                            last step that names it
//   weight<kSlot>(n, k, n_experts = 1)   declares the weights of a slot; n = 0: a vector of k
//   weight_rows<kSlot>(n, k, rows_of)    the same for a table whose rows are looked up
//   cache(n_kv_heads, head_dim)          declares what this layer stores per position
//   reads_cache(n_kv_heads, head_dim, window)   declares that this layer reads it; a row reads so
//                            many positions up to its own, 0: all
//   shares_cache(layer, n_kv_heads, head_dim)   declares that this layer reads what an earlier one
//                            stores
//   state(n_floats, n_chunk_floats = 0)   declares recurrent state per sequence in this layer, and
//                            such that changes once in a chunk of positions (StateAt); returns
//                            where
//   angles<kFactors>(angles) declares a table of rotations
//   both_ways()              declares that rows see later positions of their segment
//   max_positions(n)         declares that there are embeddings for n positions (0: any number)
//   repeat(n, x, body)       body, n times, with the weights of layer 0, 1, …, each of which
//                            changes the rows x
//   when(condition, body)    body, if the condition holds in this layer
//   layer()                  −1: outside of the layers
//   beside(), set_beside(value)   the inputs of layers besides their rows (across_layers.hpp)
//   in_every_range(body)     body, also in a run of some layers that leaves out what is before them
//   factors(width)           memory for products whose weights have factors: their inner rows, and
//                            rows of `width`; one for all products, which run one after the other
//   place()                  a number for each place that asks for one; each layer counts alike
//   observe<name>(value)     shows a value to the observer
//   fail(message)            the expression is wrong: the plan is not valid
//   count(rows), limits()    the largest possible number of rows; all such limits
#pragma once

#include <cstddef>

#include "nibble/graph/expr.hpp"
#include "nibble/graph/step.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// How many rows a value has: one for each row of a step, one for each output that the step wants,
// or one for each of its segments.
enum class Rows : unsigned char { all, outputs, segments };

// A matrix of f32 rows, or some columns of one: (rows, width) at `column` of rows `stride` long.
template <Index W = kDynamic>
struct Value {
  int id = -1;
  Rows rows = Rows::all;
  Index column = 0;
  Index stride = 0;
  [[no_unique_address]] Dim<W> width;
  bool is_shared = false;  // others still need these rows: nobody may write to them
};

struct Scratch {
  int id = -1;
};

// Which rows of a table are looked up: those of tokens, those of positions, one for all.
enum class RowsOf : unsigned char { tokens, positions, nothing };

// Where the recurrent state of a node is within that of a sequence, in floats. The second part is
// large; it changes in steps only that compute the last position of a chunk of kStateChunk. (Others
// write to it, but only where what is there has no meaning before that step.)
struct StateAt {
  Index offset = 0;
  Index n = 0;
  Index chunk_offset = 0;
  Index n_chunk = 0;
};

// The input of a model's first node: the rows of the step.
struct Start {};

// A plan must be large enough for these limits.
struct Limits {
  Index max_rows = 1;      // of one step
  Index max_outputs = 1;   // rows after OutputRows
  Index n_positions = 1;   // of one sequence
  Index max_workers = 1;   // of the executor
  Index max_segments = 1;  // of one step
  // Which representations of their input the weights of products need (FormatOps::input).
  bool float_inputs = true;
  bool code_inputs = true;
  // Whether products of prompts read their input rounded to bf16 where it is codes in blocks: with
  // tiles (ops::has_tiles).
  bool rounded_inputs = false;
  // The largest rank of factors that weights have; 0: none have any, and they cost nothing.
  Index max_rank = 0;

  constexpr Index count(Rows rows) const noexcept {
    return rows == Rows::all ? max_rows : rows == Rows::outputs ? max_outputs : max_segments;
  }
  constexpr Index largest_count() const noexcept {
    const Index some = max_outputs > max_segments ? max_outputs : max_segments;
    return max_rows > some ? max_rows : some;
  }
};

namespace detail {

// What passes that know the layer have in common: they resolve values that differ by layer.
class LayerPass {
 public:
  template <Index W>
  auto resolve(Dim<W> d) const noexcept {
    if constexpr (W == kPerLayer) {
      return Dim<>{d.values.at(layer_)};
    } else {
      return d;
    }
  }
  template <class T>
  T resolve(const PerLayer<T>& x) const noexcept {
    return x.at(layer_);
  }
  Index layer() const noexcept { return layer_; }
  const Value<>& beside() const noexcept { return beside_; }
  void set_beside(const Value<>& value) noexcept { beside_ = value; }

 protected:
  Index layer_ = -1;  // −1: outside of the layers
  Value<> beside_;
};

// Always false: for the static_assert of a mistake in an expression. The compiler shows the types.
template <class...>
inline constexpr bool kNever = false;

template <Index A, Index B>
inline constexpr bool kMayBeEqual = A < 0 || B < 0 || A == B;

}  // namespace detail

// x += y, or += a product of `width` columns made of y: what is known when an expression is
// compiled, and what is known when it is planned.
template <Index W, Index Added, class Pass, Index V>
constexpr void check_residual(Pass& pass, const Value<W>& x, const Value<V>& y,
                              Index width) noexcept {
  static_assert(detail::kMayBeEqual<W, Added>,
                "nibble: residual(): the body gives rows of another width than it is given");
  if (width != x.width) pass.fail("residual(): the body gives rows of another width");
  if (y.rows != x.rows) pass.fail("residual(): output_rows() within the body");
  if (y.id == x.id) pass.fail("residual(): the body gives the rows that it is given");
}

}}}  // namespace nibble::NIBBLE_ABI::graph
