// SPDX-License-Identifier: Apache-2.0
//
// A transformer as an expression: nodes joined by `>>`, each turning the rows (tokens) it is given
// into the rows it gives on. Nodes hold dimensions, which may be compile-time (Dim<64>) or run-time
// (Dim<>) numbers, and name their weights by a slot; they hold no data. What an expression means is
// defined node by node in apply.hpp; fuse.hpp rewrites it; plan.hpp lays out its memory; run.hpp
// computes it.
//
//   residual(rms_norm<Slot::attn_norm>(eps) >> linear<Slot::attn_q>(dim) >> ...)
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "nibble/core/view.hpp"
#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

struct Node {};  // every node derives from it

template <class T>
concept Expr = std::derived_from<T, Node>;

// A place where a node may name no weights: linear<Slot::q, kNone> has no bias.
struct None {
  friend constexpr bool operator==(None, None) = default;
};
inline constexpr None kNone{};
template <auto kSlot>
inline constexpr bool kIsNone =
    std::is_same_v<decltype(kSlot), const None> || std::is_same_v<decltype(kSlot), None>;

// ---- Composition -------------------------------------------------------------------------------

// One node after the other.
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
constexpr auto operator>>(const A& a, const B& b) {
  return make_seq(std::tuple_cat(as_tuple(a), as_tuple(b)));
}

// Several expressions on the same rows; gives a tuple of results.
template <Expr... Branches>
struct Fork : Node {
  std::tuple<Branches...> branches;
  constexpr explicit Fork(std::tuple<Branches...> b) : branches(b) {}
};
template <Expr... Branches>
constexpr auto fork(const Branches&... branches) {
  return Fork<Branches...>(std::tuple<Branches...>(branches...));
}

// x += body(x): the rows given stay in place, and are given on.
template <Expr Body>
struct Residual : Node {
  Body body;
  constexpr explicit Residual(Body b) : body(b) {}
};
template <Expr Body>
constexpr auto residual(const Body& body) {
  return Residual<Body>(body);
}

// `body` n times, each time with the next layer's weights. The body works in place (residuals) and
// holds no Repeat of its own.
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

// The rows `tokens` name of a matrix (vocabulary, width): the start of a model.
template <auto kSlot, Index W>
struct Embedding : Node {
  [[no_unique_address]] Dim<W> width;
};
template <auto kSlot, Index W>
constexpr auto embedding(Dim<W> width) {
  return Embedding<kSlot, W>{{}, width};
}

// The rows of a matrix (positions, width) for the positions of the tokens.
template <auto kSlot, Index W>
struct PositionEmbedding : Node {
  [[no_unique_address]] Dim<W> width;
};
template <auto kSlot, Index W>
constexpr auto position_embedding(Dim<W> width) {
  return PositionEmbedding<kSlot, W>{{}, width};
}

template <auto kWeight>
struct RmsNorm : Node {
  float eps;
};
template <auto kWeight>
constexpr auto rms_norm(float eps) {
  return RmsNorm<kWeight>{{}, eps};
}

// Activation and Dropout are what fuse() put into it.
template <auto kWeight, auto kBias, class Activation = kernels::Identity, bool kDropout = false>
struct LayerNorm : Node {
  float eps;
  float dropout = 0;
};
template <auto kWeight, auto kBias>
constexpr auto layer_norm(float eps) {
  return LayerNorm<kWeight, kBias>{{}, eps};
}

// x · weightsᵀ (+ bias); weights (width, k). Activation is what fuse() put into it.
template <auto kWeights, auto kBias, Index W, class Activation = kernels::Identity>
struct Linear : Node {
  [[no_unique_address]] Dim<W> width;
};
template <auto kWeights, auto kBias = kNone, Index W>
constexpr auto linear(Dim<W> width) {
  return Linear<kWeights, kBias, W>{{}, width};
}

template <class Activation>
struct Activate : Node {};
constexpr auto silu() { return Activate<kernels::Silu>{}; }
constexpr auto gelu_erf() { return Activate<kernels::GeluErf>{}; }
constexpr auto gelu_tanh() { return Activate<kernels::GeluTanh>{}; }

// Inverted dropout where a run is a training run; otherwise the identity.
struct Dropout : Node {
  float probability;
};
constexpr auto dropout(float probability) { return Dropout{{}, probability}; }

// The product or the sum of a pair of results, element by element, into the first.
struct Multiply : Node {};
constexpr auto multiply() { return Multiply{}; }
struct Sum : Node {};
constexpr auto sum() { return Sum{}; }

// Columns of one result as several, without a copy.
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

template <Index H, Index G, Index D>
struct Heads {
  [[no_unique_address]] Dim<H> n_heads;
  [[no_unique_address]] Dim<G> n_kv_heads;
  [[no_unique_address]] Dim<D> head_dim;
  float scale;   // of the scores
  Index window;  // positions that a query sees, its own included; 0: all before it

  constexpr Heads(Dim<H> heads, Dim<G> kv_heads, Dim<D> head_size, float score_scale,
                  Index sliding_window = 0)
      : n_heads(heads),
        n_kv_heads(kv_heads),
        head_dim(head_size),
        scale(score_scale),
        window(sliding_window) {}

  constexpr auto width() const { return n_heads * head_dim; }
};

// Rotates q and k of a (q, k, v) in place, each token by its position.
template <class Style, class HeadsType>
struct Rope : Node {
  HeadsType heads;
};
template <class Style, class HeadsType>
constexpr auto rope(const HeadsType& heads) {
  return Rope<Style, HeadsType>{{}, heads};
}

// Stores k and v of a (q, k, v) in the cache; gives q on.
template <class HeadsType>
struct CacheKv : Node {
  HeadsType heads;
};
template <class HeadsType>
constexpr auto cache_kv(const HeadsType& heads) {
  return CacheKv<HeadsType>{{}, heads};
}

// Attention in three steps: scores of q with all cached positions (masked ones −∞), their softmax,
// and the mean of the values so weighted. fuse() makes one step of them, Attend, which never holds
// the scores.
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

// Only the rows whose outputs are wanted: the last ones of the tokens given.
struct LastRows : Node {};
constexpr auto last_rows() { return LastRows{}; }

// A name for what passes here, for an observer of the run. Gone after fuse().
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

// Scores, Softmax and AttendValues as one.
template <class HeadsType>
struct Attend : Node {
  HeadsType heads;
};

// Products of the same rows as one parallel step, at most kMaxGroup.
inline constexpr std::size_t kMaxGroup = 4;
template <Expr... Linears>
struct LinearGroup : Node {
  std::tuple<Linears...> linears;
  constexpr explicit LinearGroup(std::tuple<Linears...> l) : linears(l) {}
};

// Activation(x · gateᵀ) * (x · upᵀ) as one product.
template <auto kGate, auto kUp, Index W, class Activation>
struct GatedLinear : Node {
  [[no_unique_address]] Dim<W> width;
};

// A norm whose result goes to products only: straight to their 8-bit form where they want that.
template <Expr Norm, Expr Products>
struct NormInto : Node {
  Norm norm;
  Products products;
  constexpr NormInto(Norm n, Products p) : norm(n), products(p) {}
};

// A residual whose body ends in a product: it adds to the rows itself. The prefix makes rows of its
// own: a product cannot read the rows that it adds to.
template <Expr Prefix, Expr LinearType>
struct ResidualInto : Node {
  Prefix prefix;
  LinearType linear;
  constexpr ResidualInto(Prefix p, LinearType l) : prefix(p), linear(l) {}
};

}}}  // namespace nibble::NIBBLE_ABI::graph
