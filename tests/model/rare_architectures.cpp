// SPDX-License-Identifier: Apache-2.0
#include "model/rare_architectures.hpp"

#include "nibble/model/all_architectures.hpp"

nibble::Result<nibble::Model> test::load_rare(const nibble::io::Gguf& file,
                                              const nibble::LoadOptions& options) {
  using namespace nibble;
  using Rare = ArchitectureList<Olmo2, GptNeox, Opt, Bloom, GptNeo, Phi2, Qwen2Moe,
                                GraniteMoeShared, GraniteMoe, GraniteHybrid, Lfm2Moe, BitNet>;
  return Model::from_gguf<graph::FormatList<quant::F32>, Rare>(file, options);
}
