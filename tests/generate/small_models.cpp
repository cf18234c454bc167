// SPDX-License-Identifier: Apache-2.0
#include "generate/small_models.hpp"

#include <utility>

#include "doctest/doctest.h"
#include "generate/surveyed_model.hpp"
#include "model/outside_architecture.hpp"
#include "nibble/model/gemma3.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"
#include "why.hpp"

namespace test {

nibble::Model model_of(const ModelShape& shape, std::uint32_t seed) {
  const RandomModel source(shape, seed);
  const nibble::ModelConfig config = source.config();
  auto model = nibble::Model::from_parts(shape.architecture == Architecture::gpt2
                                             ? nibble::make_graph<nibble::Gpt2>(config)
                                             : nibble::make_graph<nibble::Llama>(config),
                                         source.store());
  REQUIRE_MESSAGE(model, why(model));
  return *std::move(model);
}

nibble::Model small_model(nibble::Index n_layers, nibble::Index dim, nibble::Index n_ctx) {
  ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = dim;
  shape.n_layers = n_layers;
  shape.n_heads = 4;
  shape.n_kv_heads = 2;
  shape.head_dim = shape.rope_dim = dim / 4;
  shape.ffn_dim = 64;
  shape.n_ctx = n_ctx;
  shape.formats = {Format::q8_0, Format::f32};
  if (dim % 32 != 0) shape.formats = {Format::f32};
  return model_of(shape);
}

nibble::Model llama_model(nibble::Index window, std::uint32_t seed) {
  ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = 64;
  shape.n_layers = 3;
  shape.head_dim = shape.rope_dim = 16;
  shape.ffn_dim = 96;
  shape.n_ctx = 4096;
  shape.window = window;
  return model_of(shape, seed);
}

nibble::Model gemma_model(nibble::Index window, nibble::Index n_layers) {
  auto c = small_config<nibble::DecoderConfig>("gemma3", n_layers);
  c.is_half_split = true;
  c.has_head_norms = true;
  c.embedding_scale = 8;
  for (nibble::Index i = 0; i < n_layers; ++i) c.windows.push_back({i % 6 == 5 ? 0 : window});
  nibble::set_window_rotation(c, 10000);
  return surveyed_model<nibble::Gemma3>(c);
}

nibble::Model conv_model() {
  auto c = small_config<outside::ConvConfig>("convnet", 4);
  for (nibble::Index i = 0; i < 4; ++i) {
    c.has_attention.push_back({i % 2 == 1});
    c.has_conv.push_back({i % 2 == 0});
  }
  return surveyed_model<outside::ConvNet>(c);
}

}  // namespace test
