// SPDX-License-Identifier: Apache-2.0
//
// The kinds of PEFT's adapters that are learned rows, not factors. Prompt tuning: prompt_embeddings
// (n, width), before the tokens. LLaMA-Adapter (ADAPTION_PROMPT): of each of the last layers
// base_model.model.model.layers.N.self_attn.adaption_prompt (1, n, width), which attention reads,
// and .adaption_gate (1). Included by peft.hpp, whose read_peft() reads all kinds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train { namespace detail {

// All numbers of a tensor. Error: unsupported (an element type that is no float of 16 or 32 bits).
inline Result<std::vector<Scalar<float>>> read_floats(const io::Safetensor& tensor) {
  quant::Format format = quant::Format::f32;
  switch (tensor.type) {
    case io::SafetensorType::f32: break;
    case io::SafetensorType::f16: format = quant::Format::f16; break;
    case io::SafetensorType::bf16: format = quant::Format::bf16; break;
    default:
      return Error{Errc::unsupported, "element type " + std::string(type_traits(tensor.type).name) +
                                          "; adapters are read as F32, F16 or BF16"};
  }
  NIBBLE_TRY(row_bytes, quant::row_bytes(format, 1));
  std::vector<Scalar<float>> x(tensor.data.size() / row_bytes);
  NIBBLE_CHECK(quant::row_to_f32(format, tensor.data, {values(x), x.size()}));
  return x;
}

// Rows (n, width), or (1, n, width), as wide as those of the model, all finite. Errors: those of
// read_floats(), malformed.
inline Result<std::vector<Scalar<float>>> read_rows(const io::Safetensors& file,
                                                    const io::Safetensor& tensor,
                                                    std::uint64_t width) {
  const auto& shape = tensor.shape;
  const std::string what = file.name() + ": tensor " + io::quoted(tensor.name);
  const bool is_rows =
      (shape.size() == 2 || (shape.size() == 3 && shape[0] == 1)) && shape.back() == width;
  if (!is_rows || tensor.data.empty()) {
    return Error{Errc::malformed, what + ": no learned rows of " + to_text(width) +
                                      " numbers, as wide as the model's"};
  }
  auto rows = read_floats(tensor);
  if (!rows) return std::move(rows).error().in(what);
  for (const auto& [x] : *rows) {
    if (is_finite(static_cast<double>(x))) continue;
    return Error{Errc::malformed, what + ": a value that is not finite"};
  }
  return rows;
}

inline Result<void> read_prefix(const io::Safetensors& file, std::uint64_t width,
                                Adapter& adapter) {
  if (file.tensors().size() != 1) {
    return Error{Errc::unsupported,
                 file.name() + ": " + to_text(file.tensors().size()) +
                     " tensors; an adapter of prompt tuning has prompt_embeddings alone"};
  }
  NIBBLE_TRY(tensor, file.tensor("prompt_embeddings"));
  NIBBLE_TRY(rows, read_rows(file, tensor, width));
  adapter.prefix = std::move(rows);
  return ok();
}

inline Result<void> read_prompts(const io::Safetensors& file, std::uint64_t width,
                                 std::uint64_t n_layers, Adapter& adapter) {
  constexpr std::string_view kStem = "base_model.model.model.layers.";
  constexpr std::string_view kPrompt = ".self_attn.adaption_prompt",
                             kGate = ".self_attn.adaption_gate";
  std::size_t n_found = 0;
  for (std::uint64_t layer = 0; layer < n_layers; ++layer) {
    const std::string stem = std::string(kStem) + to_text(layer);
    const io::Safetensor* const rows_of = file.find_tensor(stem + std::string(kPrompt));
    if (rows_of == nullptr) continue;
    AdapterPrompt prompt;
    prompt.layer = static_cast<Index>(layer);
    NIBBLE_TRY(rows, read_rows(file, *rows_of, width));
    prompt.rows = std::move(rows);
    NIBBLE_TRY(gate_tensor, file.tensor(stem + std::string(kGate)));
    NIBBLE_TRY(gate, read_floats(gate_tensor));
    if (gate.size() != 1 || !is_finite(static_cast<double>(gate[0].value))) {
      return Error{Errc::malformed,
                   file.name() + ": the gate of layer " + to_text(layer) + " is no finite number"};
    }
    prompt.gate = gate[0].value;
    adapter.prompts.push_back(std::move(prompt));
    n_found += 2;
  }
  if (n_found > 0 && n_found == file.tensors().size()) return ok();
  return Error{Errc::malformed, file.name() + ": " + to_text(file.tensors().size()) +
                                    " tensors, of which " + to_text(n_found) +
                                    " are prompts and gates of layers of the model"};
}

// An adapter of another kind than factors. `kind`: peft_type. Errors: malformed, unsupported,
// not_found.
inline Result<Adapter> read_learned_rows(std::string_view kind, const io::Safetensors& file,
                                         const io::Gguf& base) {
  NIBBLE_TRY(architecture, base.get_string("general.architecture"));
  const std::string prefix(architecture);
  NIBBLE_TRY(width, base.get_u64(prefix + ".embedding_length"));
  NIBBLE_TRY(n_layers, base.get_u64(prefix + ".block_count"));
  Adapter adapter;
  adapter.architecture = architecture;
  if (kind == "PROMPT_TUNING") {
    NIBBLE_CHECK(read_prefix(file, width, adapter));
    return adapter;
  }
  if (architecture != "llama") {
    return Error{Errc::unsupported, file.name() +
                                        ": prompts in layers (ADAPTION_PROMPT) are read "
                                        "for models of architecture llama"};
  }
  constexpr std::uint64_t kMostLayers = 1 << 16;  // a number of a file must not decide how long
  NIBBLE_CHECK(read_prompts(file, width, (std::min)(n_layers, kMostLayers), adapter));
  return adapter;
}

}}}}  // namespace nibble::NIBBLE_ABI::train::detail
