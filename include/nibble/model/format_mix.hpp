// SPDX-License-Identifier: Apache-2.0
//
// The mixes of formats that the field's presets stand for: most matrices in one format, those that
// matter more in a better one. They are llama.cpp's, for models without experts.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct FormatMix {
  std::string_view name;
  quant::Format most;
  std::uint32_t file_type;  // general.file_type
  // Of the values' matrices and the last of feed-forward layers: in some layers, or the first ones;
  // or in all, and so is attention's output.
  quant::Format better;
  enum class Where : std::uint8_t { nowhere, some_layers, first_layers, all_layers } where;
  // In all layers: of the first two layers' values, and the first sixteenth of the last matrices.
  quant::Format best = better;
  // In all layers: of values that four or more heads share; `most`: as others.
  quant::Format shared_values = most;
};

NIBBLE_HIDDEN inline constexpr std::array kFormatMixes = {
    FormatMix{"q4_0", quant::Format::q4_0, 2, quant::Format::q4_0, FormatMix::Where::nowhere},
    FormatMix{"q4_1", quant::Format::q4_1, 3, quant::Format::q4_1, FormatMix::Where::nowhere},
    FormatMix{"q5_0", quant::Format::q5_0, 8, quant::Format::q5_0, FormatMix::Where::nowhere},
    FormatMix{"q5_1", quant::Format::q5_1, 9, quant::Format::q5_1, FormatMix::Where::nowhere},
    FormatMix{"q8_0", quant::Format::q8_0, 7, quant::Format::q8_0, FormatMix::Where::nowhere},
    FormatMix{"q4_k_s", quant::Format::q4_k, 14, quant::Format::q5_k,
              FormatMix::Where::first_layers},
    FormatMix{"q4_k_m", quant::Format::q4_k, 15, quant::Format::q6_k,
              FormatMix::Where::some_layers},
    FormatMix{"q5_k_s", quant::Format::q5_k, 16, quant::Format::q5_k, FormatMix::Where::nowhere},
    FormatMix{"q5_k_m", quant::Format::q5_k, 17, quant::Format::q6_k,
              FormatMix::Where::some_layers},
    FormatMix{"q6_k", quant::Format::q6_k, 18, quant::Format::q6_k, FormatMix::Where::nowhere},
    FormatMix{"q3_k_s", quant::Format::q3_k, 11, quant::Format::q3_k, FormatMix::Where::nowhere},
    FormatMix{"q3_k_m", quant::Format::q3_k, 12, quant::Format::q4_k, FormatMix::Where::all_layers,
              quant::Format::q5_k},
    FormatMix{"q3_k_l", quant::Format::q3_k, 13, quant::Format::q5_k, FormatMix::Where::all_layers},
    FormatMix{"q2_k", quant::Format::q2_k, 10, quant::Format::q3_k, FormatMix::Where::all_layers,
              quant::Format::q3_k, quant::Format::q4_k}};

// In any letter case. Error: invalid_argument.
inline Result<FormatMix> format_mix_from_name(std::string_view name) {
  std::string known;
  for (const FormatMix& mix : kFormatMixes) {
    if (equals_ignoring_case(name, mix.name)) return mix;
    known += (known.empty() ? "" : ", ") + std::string(mix.name);
  }
  return Error{Errc::invalid_argument, "no such mix of formats; known are " + known};
}

// Says the format of each matrix of a model in a mix. (Rows that are no whole blocks of it: see
// model/convert.hpp.)
class MixedFormats {
 public:
  // The file must outlive this.
  MixedFormats(const io::Gguf& file, const FormatMix& mix) : file_(&file), mix_(mix) {
    is_tied_ = file.find_tensor("output.weight") == nullptr;
    for (const io::GgufTensor& tensor : file.tensors()) {
      n_values_ += is_values(tensor.name) ? 1 : 0;
      n_layers_ = (std::max)(n_layers_, layer_of(tensor.name) + 1);
    }
    const auto architecture = file.get_string_or("general.architecture", "");
    const std::string key =
        std::string(architecture ? *architecture : "") + ".attention.head_count";
    const auto n_heads = file.get_u64_or(key, 0), n_kv_heads = file.get_u64_or(key + "_kv", 0);
    shares_values_ = n_heads && n_kv_heads && *n_kv_heads > 0 && *n_heads / *n_kv_heads >= 4;
  }

  quant::Format operator()(std::string_view name) const {
    if (stays(name)) return own_format(name);
    if (name == "output.weight" || (is_tied_ && name == "token_embd.weight")) {
      return mix_.most == quant::Format::q8_0 ? quant::Format::q8_0 : quant::Format::q6_k;
    }
    const bool values = is_values(name);
    const bool down = name.find("ffn_down") != name.npos;
    const Index n = values ? n_values_ : n_layers_;
    const Index layer = layer_of(name);
    if (layer < 0) return mix_.most;
    if (mix_.where == FormatMix::Where::all_layers) {
      if (values && shares_values_ && mix_.shared_values != mix_.most) return mix_.shared_values;
      if (values ? layer < 2 : down && layer < n / 16) return mix_.best;
      const bool output = name.find("attn_output.weight") != name.npos;
      return values || down || output ? mix_.better : mix_.most;
    }
    if (!values && !down) return mix_.most;
    bool is_better = false;
    if (mix_.where == FormatMix::Where::some_layers) {
      is_better = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
    } else if (mix_.where == FormatMix::Where::first_layers) {
      is_better = values ? layer < 4 : layer < n / 8;
    }
    return is_better ? mix_.better : mix_.most;
  }

 private:
  // One matrix for queries, keys and values counts as one of values. So does llama.cpp since it
  // sorts tensors into categories (llama-quant.cpp, category_is_attn_v); before, Q4_K_M and Q5_K_M
  // gave such matrices Q5_K and Q6_K in all layers.
  static bool is_values(std::string_view name) noexcept {
    return name.find("attn_v.weight") != name.npos || name.find("attn_qkv.weight") != name.npos;
  }
  // Matrices that are too small or too sensitive.
  static bool stays(std::string_view name) noexcept {
    for (const std::string_view part :
         {"_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight",
          "ssm_conv1d", "shortconv.conv.weight"}) {
      if (name.find(part) != name.npos) return true;
    }
    return !name.ends_with("weight");
  }
  quant::Format own_format(std::string_view name) const {
    const io::GgufTensor* const tensor = file_->find_tensor(name);
    if (tensor == nullptr) return quant::Format::f32;
    const auto format = quant::format_of(tensor->type);
    return format ? *format : quant::Format::f16;
  }

  const io::Gguf* file_;
  FormatMix mix_;
  bool is_tied_ = false;
  bool shares_values_ = false;  // four or more heads share a key and a value
  Index n_values_ = 0;
  Index n_layers_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
