// SPDX-License-Identifier: Apache-2.0
//
// Configurations of decoders: what refers to them, and what files state.
#include "nibble/model/decoder_config.hpp"

#include <concepts>
#include <type_traits>
#include <utility>

#include "doctest/doctest.h"
#include "nibble/model/bert.hpp"
#include "nibble/model/gemma2.hpp"
#include "nibble/model/gemma3.hpp"
#include "nibble/model/gemma_embedding.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/phi3.hpp"
#include "nibble/model/smollm3.hpp"

namespace decoder_config_test {

using namespace nibble;

namespace {

// An expression refers to the vectors of its configuration: none is made of one that goes.
template <class A>
concept TakesTemporary = requires(typename A::Config&& c) {
  A::expression(static_cast<typename A::Config&&>(c));
};
static_assert(!TakesTemporary<Llama> && !TakesTemporary<SmolLm3> && !TakesTemporary<Gemma2> &&
              !TakesTemporary<Gemma3> && !TakesTemporary<Phi3> && !TakesTemporary<GemmaEmbedding> &&
              !TakesTemporary<Bert>);
template <class C>
concept HasTemporaryParts = requires(C&& c) {
  static_cast<C&&>(c).rope_angles();
}
|| requires(C&& c) { static_cast<C&&>(c).heads(); }
|| requires(C&& c) { static_cast<C&&>(c).layer_heads(); }
|| requires(C&& c) { static_cast<C&&>(c).ffn_width(); }
|| requires(C&& c) { static_cast<C&&>(c).q_width(); }
|| requires(C&& c) { static_cast<C&&>(c).kv_width(); };
static_assert(!HasTemporaryParts<DecoderConfig> && !HasTemporaryParts<const DecoderConfig>);
static_assert(HasTemporaryParts<DecoderConfig&>);

// Dimensions that are constants may be made on the spot.
struct ConstantDims {
  int dim = 1;
};
static_assert(!DimsByReference<ConstantDims> && DimsByReference<SmolLm3::Config>);

}  // namespace

TEST_CASE("layers with a window keep the rotation of a context that is not stretched") {
  DecoderConfig c;
  c.rope_theta = 1e6f;
  c.rope_scale = 8;
  c.rope_magnitude = 1.25f;
  c.windows = {{512}, {0}};
  set_window_rotation(c, 1e4f);
  const graph::RopeAngles angles = c.rope_angles();
  CHECK(angles.theta.at(0) == 1e4f);
  CHECK(angles.position_scale.at(0) == 1);
  CHECK(angles.magnitude.at(0) == 1);
  CHECK(angles.theta.at(1) == 1e6f);
  CHECK(angles.position_scale.at(1) == 8);
  CHECK(angles.magnitude.at(1) == 1.25f);
}

}  // namespace decoder_config_test
