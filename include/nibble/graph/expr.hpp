// SPDX-License-Identifier: Apache-2.0
//
// A transformer as an expression: nodes joined by `>>`. Each node turns the rows (tokens) that it
// is given into the rows that it passes on. Nodes hold dimensions, which are compile-time (Dim<64>)
// or run-time (Dim<>) numbers, and name their weights by a slot; they hold no data. apply.hpp
// defines what an expression means, node by node; fuse.hpp rewrites it; plan.hpp lays out its
// memory; run.hpp computes it.
//
//   residual(rms_norm<Slot::attn_norm>(eps) >> linear<Slot::attn_q>(dim) >> ...)
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "nibble/core/per_layer.hpp"
#include "nibble/core/view.hpp"
#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/rope.hpp"
#include "nibble/ops/rope_table.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

struct Node {};  // base class of every node

template <class T>
concept Expr = std::derived_from<T, Node>;

// ---- Slots -------------------------------------------------------------------------------------
// A node names its weights by an enumerator of the program, or by one of the types below.

// No weights: linear<Slot::q, kNone> has no bias.
struct Nothing {
  friend constexpr bool operator==(Nothing, Nothing) = default;
};
inline constexpr Nothing kNone{};

// Weights that may be missing in a model.
template <class Slot>
struct OptionalSlot {
  Slot slot;
  friend constexpr bool operator==(OptionalSlot, OptionalSlot) = default;
};
template <class Slot>
constexpr auto optional_slot(Slot slot) {
  return OptionalSlot<Slot>{slot};
}

// Weights that are replaced by those of another slot if a model lacks them: an output layer tied to
// the embedding.
template <class Slot>
struct TiedSlot {
  Slot slot;
  Slot other;
  friend constexpr bool operator==(TiedSlot, TiedSlot) = default;
};
template <class Slot>
constexpr auto tied_slot(Slot slot, Slot other) {
  return TiedSlot<Slot>{slot, other};
}

// Factors of a rotation (longrope): those in `slot` for contexts of up to RopeAngles::n_original
// positions, those in `beyond` for longer ones. A model has both or none.
template <class Slot>
struct ContextSlots {
  Slot slot;
  Slot beyond;
  friend constexpr bool operator==(ContextSlots, ContextSlots) = default;
};
template <class Slot>
constexpr auto context_slots(Slot slot, Slot beyond) {
  return ContextSlots<Slot>{slot, beyond};
}

template <auto kSlot>
inline constexpr bool kIsNone = std::is_same_v<std::remove_const_t<decltype(kSlot)>, Nothing>;
// Whether a model may run without these weights.
template <auto kSlot>
constexpr bool may_be_missing() {
  if constexpr (requires { kSlot.other; }) {
    return false;
  } else {
    return kIsNone<kSlot> || requires { kSlot.slot; };
  }
}

// The enumerator of a slot.
template <class Slot>
constexpr auto enumerator_of(Slot slot) {
  if constexpr (requires { slot.slot; }) {
    return slot.slot;
  } else {
    return slot;
  }
}

// ---- Composition -------------------------------------------------------------------------------

// Nodes, one after the other.
template <Expr... Nodes>
struct Seq : Node {
  std::tuple<Nodes...> nodes;
  constexpr explicit Seq(std::tuple<Nodes...> n) : nodes(n) {}
};

template <class T>
constexpr auto as_tuple(const T& node) {
  return std::tuple<T>(node);
}
template <class... Nodes>
constexpr auto as_tuple(const Seq<Nodes...>& seq) {
  return seq.nodes;
}
template <class... Nodes>
constexpr auto make_seq(std::tuple<Nodes...> nodes) {
  return Seq<Nodes...>(nodes);
}

template <Expr A, Expr B>
NIBBLE_COLD constexpr auto operator>>(const A& a, const B& b) {
  return make_seq(std::tuple_cat(as_tuple(a), as_tuple(b)));
}

// Several expressions on the same rows. The result is a tuple of their results.
template <Expr... Branches>
struct Fork : Node {
  std::tuple<Branches...> branches;
  constexpr explicit Fork(std::tuple<Branches...> b) : branches(b) {}
};
template <Expr... Branches>
NIBBLE_COLD constexpr auto fork(const Branches&... branches) {
  return Fork<Branches...>(std::tuple<Branches...>(branches...));
}

// x += body(x): changes the given rows in place and passes them on.
template <Expr Body>
struct Residual : Node {
  Body body;
  constexpr explicit Residual(Body b) : body(b) {}
};
template <Expr Body>
constexpr auto residual(const Body& body) {
  return Residual<Body>(body);
}

// x = body(x): changes the given rows in place and passes them on. Post-norm layers end with it.
template <Expr Body>
struct InPlace : Node {
  Body body;
  constexpr explicit InPlace(Body b) : body(b) {}
};
template <Expr Body>
constexpr auto in_place(const Body& body) {
  return InPlace<Body>(body);
}

// `body` in the layers where `condition` holds, nothing in the others. The body works in place.
template <Expr Body>
struct When : Node {
  Body body;
  PerLayer<bool> condition;
  constexpr When(Body b, PerLayer<bool> c) : body(b), condition(c) {}
};
template <Expr Body>
constexpr auto when(PerLayer<bool> condition, const Body& body) {
  return When<Body>(body, condition);
}

// `body` n times, each time with the next layer's weights: a second Repeat goes on where the first
// one ended. The body works in place (residuals) and does not contain another Repeat.
template <Expr Body, Index N>
struct Repeat : Node {
  Body body;
  [[no_unique_address]] Dim<N> n;
  constexpr Repeat(Body b, Dim<N> times) : body(b), n(times) {}
};
template <Index N, Expr Body>
constexpr auto repeat(Dim<N> n, const Body& body) {
  return Repeat<Body, N>(body, n);
}

// ---- Leaves ------------------------------------------------------------------------------------

// Rows of a matrix (n_rows, width), one for each token of the input: the start of a model. The rows
// of tokens are multiplied by `scale`, rows that the input gives as numbers by `given_scale`.
template <auto kSlot, Index W>
struct Embedding : Node {
  [[no_unique_address]] Dim<W> width;
  Index n_rows = 0;  // 0: not checked
  float scale = 1;
  float given_scale = 1;
};
template <auto kSlot, Index W>
constexpr auto embedding(Dim<W> width, Index n_rows = 0, float scale = 1, float given_scale = 1) {
  static_assert(!may_be_missing<kSlot>(),
                "nibble: embedding() needs weights: no kNone, no "
                "optional_slot()");
  return Embedding<kSlot, W>{{}, width, n_rows, scale, given_scale};
}

// The rows of a matrix (n_rows, width) for the positions of the input.
template <auto kSlot, Index W>
struct PositionEmbedding : Node {
  [[no_unique_address]] Dim<W> width;
  Index n_rows = 0;  // 0: not checked
};
template <auto kSlot, Index W>
constexpr auto position_embedding(Dim<W> width, Index n_rows = 0) {
  static_assert(!may_be_missing<kSlot>(),
                "nibble: position_embedding() needs weights: no kNone, no "
                "optional_slot()");
  return PositionEmbedding<kSlot, W>{{}, width, n_rows};
}

template <auto kWeight>
struct RmsNorm : Node {
  float eps;
};
template <auto kWeight>
constexpr auto rms_norm(float eps) {
  return RmsNorm<kWeight>{{}, eps};
}

// fuse() sets Activation and kDropout.
template <auto kWeight, auto kBias, class Activation = kernels::Identity, bool kDropout = false>
struct LayerNorm : Node {
  float eps;
  float dropout = 0;
};
template <auto kWeight, auto kBias>
constexpr auto layer_norm(float eps) {
  return LayerNorm<kWeight, kBias>{{}, eps};
}

// x · weightsᵀ (+ bias); weights (width, k). fuse() sets Activation.
template <auto kWeights, auto kBias, Index W, class Activation = kernels::Identity>
struct Linear : Node {
  [[no_unique_address]] Dim<W> width;
};
template <auto kWeights, auto kBias = kNone, Index W>
constexpr auto linear(Dim<W> width) {
  static_assert(!may_be_missing<kWeights>(),
                "nibble: linear() needs weights: no kNone, no "
                "optional_slot(); only its bias may be missing");
  return Linear<kWeights, kBias, W>{{}, width};
}

template <class Activation>
struct Activate : Node {};
constexpr auto relu() { return Activate<kernels::Relu>{}; }
constexpr auto silu() { return Activate<kernels::Silu>{}; }
constexpr auto gelu_erf() { return Activate<kernels::GeluErf>{}; }
constexpr auto gelu_tanh() { return Activate<kernels::GeluTanh>{}; }

// x * factor, in place.
struct Scale : Node {
  PerLayer<float> factor;
};
constexpr auto scale(PerLayer<float> factor) { return Scale{{}, factor}; }

// x + row 0 of a matrix (any, width), in place: the type of all tokens, in models that have types.
template <auto kSlot>
struct AddRow : Node {};
template <auto kSlot>
constexpr auto add_row() {
  return AddRow<kSlot>{};
}

// cap * tanh(x / cap), in place; 0: no cap.
struct CapRows : Node {
  float cap;
};
constexpr auto cap_rows(float cap) { return CapRows{{}, cap}; }

// x * x, in place.
struct Square : Node {};
constexpr auto square() { return Square{}; }

// Inverted dropout in a training run; otherwise the identity.
struct Dropout : Node {
  float probability;
};
constexpr auto dropout(float probability) { return Dropout{{}, probability}; }

// The product or the sum of a pair of results, element by element, written to the first one.
struct Multiply : Node {};
constexpr auto multiply() { return Multiply{}; }
// Activation(first) * second of a pair, written to the first one.
template <class Activation>
struct Gate : Node {};
constexpr auto silu_gate() { return Gate<kernels::Silu>{}; }
struct Sum : Node {};
constexpr auto sum() { return Sum{}; }

// Splits the columns of one result into several results, without a copy.
template <Index... Ws>
struct Split : Node {
  std::tuple<Dim<Ws>...> widths;
  constexpr explicit Split(Dim<Ws>... w) : widths(w...) {}
};
template <Index... Ws>
constexpr auto split(Dim<Ws>... widths) {
  return Split<Ws...>(widths...);
}

// ---- Attention ---------------------------------------------------------------------------------

// A hook changes scores before their softmax. A program's own hook is a type with a function
// score_options() beside it that returns kernels::ScoreOptions; apply_attention.hpp has those of
// the types below.
struct NoHook {};
struct SoftCap {  // cap * tanh(score / cap)
  float cap;
};
struct Alibi {  // score - slope * distance; slopes (n_heads), which must stay alive
  const float* slopes;
};
template <auto kSlot>  // the weights of a slot (n_heads): an extra score of each query
struct Sinks {};

template <Index H, Index G, Index D, class HookType = NoHook>
struct Heads {
  static_assert(D < 0 || D > 0, "nibble: Heads: head_dim is 0");
  static_assert(H < 0 || G < 0 || (H > 0 && G > 0 && H % (G > 0 ? G : 1) == 0),
                "nibble: Heads: n_heads (H) is not a multiple of n_kv_heads (G)");
  // The widths below, as template arguments.
  static constexpr Index kWidth = H >= 0 && D >= 0 ? H * D : kDynamic;
  static constexpr Index kKvWidth = G >= 0 && D >= 0 ? G * D : kDynamic;

  using Hook = HookType;
  [[no_unique_address]] Dim<H> n_heads;
  [[no_unique_address]] Dim<G> n_kv_heads;
  [[no_unique_address]] Dim<D> head_dim;
  PerLayer<float> scale;   // factor of the scores
  PerLayer<Index> window;  // how many positions a query sees, up to its own; 0: all
  // How many more it sees after its own position, up to the end of its segment; 0: causal
  // attention.
  PerLayer<Index> ahead;
  [[no_unique_address]] Hook hook;

  constexpr Heads(Dim<H> heads, Dim<G> kv_heads, Dim<D> head_size, PerLayer<float> score_scale,
                  PerLayer<Index> sliding_window = Index{0}, PerLayer<Index> seen_ahead = Index{0},
                  Hook h = {})
      : n_heads(heads),
        n_kv_heads(kv_heads),
        head_dim(head_size),
        scale(score_scale),
        window(sliding_window),
        ahead(seen_ahead),
        hook(h) {}

  // The width of the queries, and of keys or values. They do not exist where heads differ by layer:
  // give products their widths as values per layer then.
  constexpr auto width() const { return n_heads * head_dim; }
  constexpr auto kv_width() const { return n_kv_heads * head_dim; }

  template <class NewHook>
  constexpr auto with(NewHook h) const {
    return Heads<H, G, D, NewHook>(n_heads, n_kv_heads, head_dim, scale, window, ahead, h);
  }
  // Attention in both directions; a window applies on both sides.
  constexpr auto both_ways(PerLayer<Index> window_ahead) const {
    return Heads(n_heads, n_kv_heads, head_dim, scale, window, window_ahead, hook);
  }
};

// How positions become angles; see ops/rope_table.hpp.
struct RopeAngles {
  PerLayer<Index> dim = Index{0};  // dimensions of a head that are rotated; 0: none
  PerLayer<float> theta = 10000.0f;
  PerLayer<float> position_scale = 1.0f;  // positions are divided by it
  PerLayer<float> magnitude = 1.0f;       // what is rotated is multiplied by it
  ops::Yarn yarn = {};
  Index n_original = 0;  // of context_slots()
};

// kernels::AdjacentPairs or kernels::HalfSplit, chosen when the expression is made.
struct EitherStyle {
  bool is_half_split = false;
};

// Rotates q and k of a (q, k, v) in place, or a q alone, each token by its position. kFactors: a vector (dim / 2)
// by which frequencies are divided, or context_slots() of two.
template <class Style, auto kFactors, class HeadsType>
struct Rope : Node {
  HeadsType heads;
  RopeAngles angles;
  [[no_unique_address]] Style style;
};
template <class Style, auto kFactors = kNone, class HeadsType>
constexpr auto rope(const HeadsType& heads, const RopeAngles& angles, Style style = {}) {
  return Rope<Style, kFactors, HeadsType>{{}, heads, angles, style};
}

// Scores grow with the position of the query (Llama 4, Ministral): q of a (q, k, v) is multiplied
// by 1 + scale * log(1 + floor(position / step)), in place.
struct Temperature {
  float scale = 0;  // 0: none
  Index step = 1;
};
struct TemperQueries : Node {
  Temperature temperature;
};
constexpr auto temper_queries(Temperature temperature) { return TemperQueries{{}, temperature}; }

// RMSNorm of each head of q and of k of a (q, k, v), or of a q alone, in place; weights (head_dim).
template <auto kQ, auto kK, class HeadsType>
struct HeadNorm : Node {
  HeadsType heads;
  float eps;
};
template <auto kQ, auto kK, class HeadsType>
constexpr auto head_norm(const HeadsType& heads, float eps) {
  return HeadNorm<kQ, kK, HeadsType>{{}, heads, eps};
}

// Stores k and v of a (q, k, v) in the cache and passes q on.
template <class HeadsType>
struct CacheKv : Node {
  HeadsType heads;
};
template <class HeadsType>
constexpr auto cache_kv(const HeadsType& heads) {
  return CacheKv<HeadsType>{{}, heads};
}

// Attention in three steps: scores of q with all cached positions (masked ones are −∞), their
// softmax, and the mean of the values with these weights. fuse() turns them into one step, Attend,
// which never stores the scores.
template <class HeadsType>
struct Scores : Node {
  HeadsType heads;
};
template <class HeadsType>
constexpr auto scores(const HeadsType& heads) {
  return Scores<HeadsType>{{}, heads};
}
template <class HeadsType>
struct Softmax : Node {
  HeadsType heads;
};
template <class HeadsType>
constexpr auto softmax(const HeadsType& heads) {
  return Softmax<HeadsType>{{}, heads};
}
template <class HeadsType>
struct AttendValues : Node {
  HeadsType heads;
};
template <class HeadsType>
constexpr auto attend_values(const HeadsType& heads) {
  return AttendValues<HeadsType>{{}, heads};
}

// ---- Rows and names ----------------------------------------------------------------------------

// Keeps only the rows whose outputs are wanted.
struct OutputRows : Node {};
constexpr auto output_rows() { return OutputRows{}; }

// One row for each segment of the step: the mean of its rows, its first one, its last one. A
// sequence is then computed at once.
enum class Pooling : unsigned char { mean, first, last };
struct Pool : Node {
  Pooling pooling;
};
constexpr auto pool(Pooling pooling) { return Pool{{}, pooling}; }

// Gives the rows at this point a name, for an observer of the run. fuse() removes it.
template <std::size_t N>
struct Label {
  char text[N];
  constexpr Label(const char (&t)[N]) { std::copy_n(t, N, text); }  // NOLINT: from a literal
  constexpr std::string_view view() const { return {text, N - 1}; }
};
template <Label... kNames>
struct Tap : Node {};
template <Label... kNames>
constexpr auto tap() {
  return Tap<kNames...>{};
}

// ---- What fuse() makes -------------------------------------------------------------------------

// Scores, Softmax and AttendValues as one node.
template <class HeadsType>
struct Attend : Node {
  HeadsType heads;
};

// Products of the same rows, at most kMaxGroup, as one parallel step.
inline constexpr std::size_t kMaxGroup = 4;
template <Expr... Linears>
struct LinearGroup : Node {
  std::tuple<Linears...> linears;
  constexpr explicit LinearGroup(std::tuple<Linears...> l) : linears(l) {}
};

// Activation(x · gateᵀ + bias) * (x · upᵀ + bias) as one product; as two if it has biases.
template <auto kGate, auto kGateBias, auto kUp, auto kUpBias, Index W, class Activation>
struct GatedLinear : Node {
  [[no_unique_address]] Dim<W> width;
  [[no_unique_address]] Dim<W> up_width;  // must be the same
};

// A norm whose result is used by products only. It writes their 8-bit input directly, if they need
// that.
template <Expr Norm, Expr Products>
struct NormInto : Node {
  Norm norm;
  Products products;
  constexpr NormInto(Norm n, Products p) : norm(n), products(p) {}
};

// A residual whose body ends in a product, which itself adds to the rows. The prefix makes new
// rows, because a product cannot read the rows that it adds to.
template <Expr Prefix, Expr LinearType>
struct ResidualInto : Node {
  Prefix prefix;
  LinearType linear;
  constexpr ResidualInto(Prefix p, LinearType l) : prefix(p), linear(l) {}
};

// ---- What is checked when an expression is made ------------------------------------------------

// Nodes that pass on the rows that they are given, instead of making new ones. A program's own node
// that does so says so: template <> inline constexpr bool nibble::graph::kIsInPlace<Mine> = true;
template <class T>
inline constexpr bool kIsInPlace = std::is_same_v<T, Dropout> || std::is_same_v<T, Scale> ||
                                   std::is_same_v<T, CapRows> || std::is_same_v<T, Square> ||
                                   std::is_same_v<T, TemperQueries>;
template <class Style, auto kFactors, class HeadsType>
inline constexpr bool kIsInPlace<Rope<Style, kFactors, HeadsType>> = true;
template <auto kSlot>
inline constexpr bool kIsInPlace<AddRow<kSlot>> = true;
template <auto kQ, auto kK, class HeadsType>
inline constexpr bool kIsInPlace<HeadNorm<kQ, kK, HeadsType>> = true;
template <class HeadsType>
inline constexpr bool kIsInPlace<Softmax<HeadsType>> = true;
template <Label... kNames>
inline constexpr bool kIsInPlace<Tap<kNames...>> = true;
template <class Body>
inline constexpr bool kIsInPlace<Residual<Body>> = true;
template <class Body>
inline constexpr bool kIsInPlace<InPlace<Body>> = true;
template <class Body>
inline constexpr bool kIsInPlace<When<Body>> = true;
template <class Prefix, class LinearType>
inline constexpr bool kIsInPlace<ResidualInto<Prefix, LinearType>> = true;
template <class Body, Index N>
inline constexpr bool kIsInPlace<Repeat<Body, N>> = true;
template <class... Nodes>
inline constexpr bool kIsInPlace<Seq<Nodes...>> = (kIsInPlace<Nodes> && ...);

// Whether a node changes the rows that it is given. Its neighbours in a fork, or the sum of a
// residual, still need these rows.
template <class T>
inline constexpr bool kChangesInput = kIsInPlace<T>;
template <Label... kNames>
inline constexpr bool kChangesInput<Tap<kNames...>> = false;
namespace detail {
// Looks at the nodes up to the first one that makes new rows.
template <class First, class... Rest>
constexpr bool sequence_changes_input() {
  if constexpr (kChangesInput<First>) {
    return true;
  } else if constexpr (kIsInPlace<First> && sizeof...(Rest) > 0) {
    return sequence_changes_input<Rest...>();
  } else {
    return false;
  }
}
}  // namespace detail
template <class... Nodes>
inline constexpr bool kChangesInput<Seq<Nodes...>> = detail::sequence_changes_input<Nodes...>();

template <class T>
inline constexpr bool kHasRepeat = false;
template <class Body, Index N>
inline constexpr bool kHasRepeat<Repeat<Body, N>> = true;
template <class... Nodes>
inline constexpr bool kHasRepeat<Seq<Nodes...>> = (kHasRepeat<Nodes> || ...);
template <class... Branches>
inline constexpr bool kHasRepeat<Fork<Branches...>> = (kHasRepeat<Branches> || ...);
template <class Body>
inline constexpr bool kHasRepeat<Residual<Body>> = kHasRepeat<Body>;
template <class Body>
inline constexpr bool kHasRepeat<When<Body>> = kHasRepeat<Body>;
template <class Body>
inline constexpr bool kHasRepeat<InPlace<Body>> = kHasRepeat<Body>;
template <class Prefix, class LinearType>
inline constexpr bool kHasRepeat<ResidualInto<Prefix, LinearType>> = kHasRepeat<Prefix>;

}}}  // namespace nibble::NIBBLE_ABI::graph
