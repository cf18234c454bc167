// SPDX-License-Identifier: Apache-2.0
//
// The architectures that are known as hub folders: each is a row of a table (its names there and in
// GGUF, how its tensors are named) and a function that sets its keys (family_keys.hpp). The changes
// of tensors are those of llama.cpp's converter, too.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/family_keys.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/hub/made_tensors.hpp"
#include "nibble/hub/names.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

using KeysFunction = void(Keys&);
using PrepareFunction = Result<void>(const Shape&, WeightFiles&);
using Words = std::span<const std::string_view>;

struct Family {
  std::string_view architecture;  // general.architecture
  Words classes;                  // what config.json calls the model
  std::span<const Rename> names;
  Words activations;  // the values of hidden_act that are computed
  KeysFunction* keys;
  bool rotates_pairs = false;      // rope turns adjacent dimensions: rows of q and k change places
  bool adds_one_to_norms = false;  // hubs store the norms' weights minus 1
  PrepareFunction* prepare = nullptr;  // changes tensors before they get their names
};

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kSilu[] = {"silu", "swish"};
NIBBLE_HIDDEN inline constexpr std::string_view kRelu[] = {"relu"};
NIBBLE_HIDDEN inline constexpr std::string_view kGelu[] = {"gelu"};
NIBBLE_HIDDEN inline constexpr std::string_view kGeluTanh[] = {"gelu_pytorch_tanh", "gelu_new"};
NIBBLE_HIDDEN inline constexpr std::string_view kAnyGelu[] = {"gelu", "gelu_new", "gelu_fast",
                                                              "gelu_pytorch_tanh"};
NIBBLE_HIDDEN inline constexpr std::string_view kSwiglu[] = {"swiglu", "silu"};

NIBBLE_HIDDEN inline constexpr std::string_view kLlamaClasses[] = {
    "LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "LlamaModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kMistral3Classes[] = {
    "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kSmolLm3Classes[] = {"SmolLM3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen2Classes[] = {"Qwen2ForCausalLM",
                                                                   "Qwen2Model"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen3Classes[] = {"Qwen3ForCausalLM",
                                                                   "Qwen3Model"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen2MoeClasses[] = {"Qwen2MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen3MoeClasses[] = {"Qwen3MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kMixtralClasses[] = {"MixtralForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemma2Classes[] = {"Gemma2ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemma3Classes[] = {
    "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemma4Classes[] = {
    "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemmaEmbeddingClasses[] = {"Gemma3TextModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kPhi3Classes[] = {"Phi3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kOlmo2Classes[] = {"Olmo2ForCausalLM",
                                                                   "Olmo3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteClasses[] = {"GraniteForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteMoeClasses[] = {
    "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGpt2Classes[] = {"GPT2LMHeadModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptNeoxClasses[] = {"GPTNeoXForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kLfm2Classes[] = {"Lfm2ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kLfm2MoeClasses[] = {"Lfm2MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen35Classes[] = {
    "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen35MoeClasses[] = {
    "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteHybridClasses[] = {
    "GraniteMoeHybridForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptOssClasses[] = {"GptOssForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kOptClasses[] = {"OPTForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kBloomClasses[] = {"BloomForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptNeoClasses[] = {"GPTNeoForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kPhi2Classes[] = {"PhiForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kBertClasses[] = {"BertModel", "BertForMaskedLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kNomicBertClasses[] = {"NomicBertModel"};

}  // namespace detail

NIBBLE_HIDDEN inline constexpr Family kFamilies[] = {
    {"llama", detail::kLlamaClasses, kLlamaNames, detail::kSilu, detail::llama_keys, true},
    {"mistral3", detail::kMistral3Classes, kLlamaNames, detail::kSilu, detail::mistral3_keys, true},
    {"smollm3", detail::kSmolLm3Classes, kLlamaNames, detail::kSilu, detail::smollm3_keys, true},
    {"granite", detail::kGraniteClasses, kLlamaNames, detail::kSilu, detail::granite_keys, true},
    {"granitemoe", detail::kGraniteMoeClasses, kLlamaNames, detail::kSilu, detail::granitemoe_keys,
     true},
    {"qwen2", detail::kQwen2Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"qwen3", detail::kQwen3Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"qwen2moe", detail::kQwen2MoeClasses, kLlamaNames, detail::kSilu, detail::qwen2moe_keys},
    {"qwen3moe", detail::kQwen3MoeClasses, kLlamaNames, detail::kSilu, detail::qwen_moe_keys},
    {"llama", detail::kMixtralClasses, kLlamaNames, detail::kSilu, detail::mixtral_keys, true},
    {"phi3", detail::kPhi3Classes, kLlamaNames, detail::kSilu, detail::phi3_keys},
    {"olmo2", detail::kOlmo2Classes, kGemmaNames, detail::kSilu, detail::olmo2_keys},
    {"gemma2", detail::kGemma2Classes, kGemmaNames, detail::kGeluTanh, detail::gemma2_keys, false,
     true},
    {"gemma3", detail::kGemma3Classes, kGemmaNames, detail::kGeluTanh, detail::gemma3_keys, false,
     true},
    {"gemma4", detail::kGemma4Classes, kGemmaNames, detail::kGeluTanh, detail::gemma4_keys},
    {"gemma-embedding", detail::kGemmaEmbeddingClasses, kGemmaNames, detail::kGeluTanh,
     detail::gemma3_keys, false, true},
    {"lfm2", detail::kLfm2Classes, kLfm2Names, detail::kSilu, detail::lfm2_keys},
    {"lfm2moe", detail::kLfm2MoeClasses, kLfm2Names, detail::kSilu, detail::lfm2moe_keys},
    {"qwen35", detail::kQwen35Classes, kQwen35Names, detail::kSilu, detail::qwen35_keys, false,
     true, prepare_qwen35},
    {"qwen35moe", detail::kQwen35MoeClasses, kQwen35Names, detail::kSilu, detail::qwen35moe_keys,
     false, true, prepare_qwen35},
    {"granitehybrid", detail::kGraniteHybridClasses, kGraniteHybridNames, detail::kSilu,
     detail::granite_hybrid_keys, true, false, prepare_granite_hybrid},
    {"gpt-oss", detail::kGptOssClasses, kGptOssNames, detail::kSilu, detail::gpt_oss_keys, false,
     false, prepare_gpt_oss},
    {"gpt2", detail::kGpt2Classes, kGpt2Names, detail::kGeluTanh, detail::gpt2_keys},
    {"gptneox", detail::kGptNeoxClasses, kGptNeoxNames, detail::kAnyGelu, detail::gptneox_keys},
    {"opt", detail::kOptClasses, kOptNames, detail::kRelu, detail::opt_keys},
    {"bloom", detail::kBloomClasses, kBloomNames, detail::kGeluTanh, detail::bloom_keys},
    {"gptneo", detail::kGptNeoClasses, kGptNeoNames, detail::kGeluTanh, detail::gptneo_keys},
    {"phi2", detail::kPhi2Classes, kPhi2Names, detail::kGeluTanh, detail::phi2_keys},
    {"bert", detail::kBertClasses, kBertNames, detail::kGelu, detail::bert_keys},
    {"nomic-bert", detail::kNomicBertClasses, kNomicBertNames, detail::kSwiglu,
     detail::nomic_bert_keys},
};

// The family of a configuration. Errors: not_found (architectures is missing), unsupported (not in
// the table; an activation that is not computed; weights that were quantized).
inline Result<Family> family_of(Config& config) {
  const io::JsonValue* const list = config.root().find("architectures");
  if (list == nullptr || list->elements().empty() || list->elements()[0].string().empty()) {
    return Error{Errc::not_found, config.name() + ": key 'architectures' names no architecture"};
  }
  const std::string_view wanted = list->elements()[0].string();
  const Family* found = nullptr;
  std::string known;
  for (const Family& family : kFamilies) {
    for (const std::string_view name : family.classes) {
      if (name == wanted) found = &family;
    }
    known += (known.empty() ? "" : ", ") + std::string(family.classes[0]);
  }
  if (found == nullptr) {
    return Error{Errc::unsupported, config.name() + ": architecture " + io::quoted(wanted) +
                                        " is not supported as a folder; known are " + known};
  }
  const std::string_view activation = config.string(
      {"hidden_activation", "hidden_act", "activation_function"}, found->activations[0]);
  if (std::find(found->activations.begin(), found->activations.end(), activation) ==
      found->activations.end()) {
    config.refuse(Errc::unsupported, "hidden_act",
                  io::quoted(activation) + " is not computed for the architecture " +
                      std::string(found->architecture));
  }
  NIBBLE_CHECK(config.status());
  return Family(*found);
}

}}}  // namespace nibble::NIBBLE_ABI::hub
