// SPDX-License-Identifier: Apache-2.0
//
// All architectures that nibble knows: load<graph::AllFormats, AllArchitectures>(path). Those that
// load() leaves out unless it is told so cost a program code and are rare.
#pragma once

#include "nibble/model/bitnet.hpp"
#include "nibble/model/bloom.hpp"
#include "nibble/model/gptneo.hpp"
#include "nibble/model/gptneox.hpp"
#include "nibble/model/granite_hybrid.hpp"
#include "nibble/model/granitemoe.hpp"
#include "nibble/model/lfm2moe.hpp"
#include "nibble/model/load.hpp"
#include "nibble/model/olmo2.hpp"
#include "nibble/model/opt.hpp"
#include "nibble/model/phi2.hpp"
#include "nibble/model/qwen2moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct AllArchitectures
    : ArchitectureList<EmbeddingOf<Llama>, Mixtral, Llama, EmbeddingOf<Qwen2>, Qwen2,
                       EmbeddingOf<Qwen3>, Qwen3, Qwen3Moe, Mistral3, SmolLm3, Granite, Gemma2,
                       Gemma3, Gemma4, GemmaEmbedding, Phi3, Gpt2, Bert, NomicBert,
                       GptOss, Lfm2, Qwen35, Qwen35Moe, Olmo2, GptNeox, Opt, Bloom, GptNeo, Phi2,
                       Qwen2Moe, GraniteMoeShared, GraniteMoe, GraniteHybrid, Lfm2Moe, BitNet> {};

}}  // namespace nibble::NIBBLE_ABI
