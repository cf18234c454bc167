// SPDX-License-Identifier: Apache-2.0
//
// Tensors that hubs store with other numbers, or in another order, than GGUF files have: what is in
// their place is made when it is needed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

namespace detail {

using Bytes = std::vector<std::byte>;

// The same element type in GGUF. Error: unsupported.
inline Result<io::GgmlType> same_type(io::SafetensorType type) {
  switch (type) {
    case io::SafetensorType::f32: return io::GgmlType::f32;
    case io::SafetensorType::f16: return io::GgmlType::f16;
    case io::SafetensorType::bf16: return io::GgmlType::bf16;
    default: break;
  }
  return Error{Errc::unsupported, "element type " + std::string(io::type_traits(type).name) +
                                      ", where F32, F16 or BF16 is known"};
}

// A tensor of `shape` and `type` that `make(bytes of t)` gives: Result<Bytes>. The files of
// `weights` must stay open.
template <class Make>
HubTensor made_of(const HubTensor& t, const WeightFiles& weights, std::string name,
                  std::vector<std::uint64_t> shape, io::GgmlType type, Make make) {
  HubTensor made;
  made.name = std::move(name);
  made.shape = std::move(shape);
  made.file = t.file;
  made.made_type = type;
  const io::MappedFile* const file = &weights.files[t.file];
  made.source = [file, data = t.data, make,
                 bytes = Bytes()]() mutable -> Result<std::span<const std::byte>> {
    Bytes stored(data.size());
    NIBBLE_CHECK(file->read(data, stored.data()));
    NIBBLE_TRY(changed, make(std::move(stored)));
    bytes = std::move(changed);
    return std::span<const std::byte>(bytes);
  };
  return made;
}

inline Error malformed_shape(const std::string& what) {
  return {Errc::malformed, "its shape is not that of " + what};
}
inline std::uint64_t n_elements(const HubTensor& t) noexcept {
  std::uint64_t n = 1;  // no overflow: the file has all of them
  for (const std::uint64_t dim : t.shape) n *= dim;
  return n;
}

// ---- Recurrent layers --------------------------------------------------------------------------

// In each `stride` bytes, from `begin` on: (n_keys, per_key) units become (per_key, n_keys).
inline void regroup(Bytes& bytes, std::size_t begin, std::size_t stride, std::size_t n_keys,
                    std::size_t per_key) {
  const std::size_t size = stride - begin, unit = size / (n_keys * per_key);
  Bytes old(size);
  for (std::size_t at = begin; at < bytes.size(); at += stride) {
    std::memcpy(old.data(), bytes.data() + at, size);
    for (std::size_t i = 0; i < n_keys * per_key; ++i) {
      const std::size_t key = i / per_key, of_key = i % per_key;
      std::memcpy(bytes.data() + at + (of_key * n_keys + key) * unit, old.data() + i * unit, unit);
    }
  }
}

// As f32: the numbers themselves, or minus their exponentials.
inline Result<Bytes> to_floats(const Bytes& stored, io::GgmlType type, std::size_t n,
                               bool is_decay) {
  NIBBLE_TRY(format, quant::format_of(type));
  std::vector<Scalar<float>> numbers(n);
  NIBBLE_CHECK(quant::row_to_f32(format, stored, {values(numbers), n}));
  for (auto& [x] : numbers) {
    if (is_decay) x = -static_cast<float>(libm::exp(static_cast<double>(x)));
  }
  Bytes bytes(n * sizeof(float));
  std::memcpy(bytes.data(), numbers.data(), bytes.size());
  return bytes;
}

// A vector of a recurrent layer, one number for each head: (n), or (n, 1).
inline Result<HubTensor> head_numbers(const HubTensor& t, const WeightFiles& weights,
                                      std::uint64_t n_heads, bool is_decay, bool is_column) {
  if (n_elements(t) != n_heads) return malformed_shape(to_text(n_heads) + " heads");
  NIBBLE_TRY(type, same_type(t.type));
  std::vector<std::uint64_t> shape = {n_heads};
  if (is_column) shape.push_back(1);
  return made_of(t, weights, t.name, shape, io::GgmlType::f32,
                 [type, n = io::narrow<std::size_t>(n_heads), is_decay](const Bytes& stored) {
                   return to_floats(stored, type, n, is_decay);
                 });
}

// Heads of values that share a key: hubs have them beside each other, files as far apart as there
// are keys. `begin` rows (columns: none) of others stand before those of heads, `of_head` for each.
inline Result<HubTensor> regrouped(const HubTensor& t, const WeightFiles& weights,
                                   const DeltaShape& s, std::uint64_t begin, std::uint64_t of_head,
                                   bool are_columns) {
  NIBBLE_TRY(type, same_type(t.type));
  const std::uint64_t n = t.shape.empty() ? 0 : are_columns ? t.shape.back() : t.shape[0];
  if (n != begin + std::uint64_t{s.n_values} * of_head) {
    return malformed_shape(to_text(s.n_values) + " heads of values");
  }
  const std::size_t all = t.data.size();
  const std::size_t stride = are_columns ? all / io::narrow<std::size_t>(t.shape[0]) : all;
  const std::size_t first = stride / io::narrow<std::size_t>(n) * io::narrow<std::size_t>(begin);
  return made_of(t, weights, t.name, t.shape, type,
                 [first, stride, s](Bytes bytes) -> Result<Bytes> {
                   regroup(bytes, first, stride, s.n_keys, s.n_values / s.n_keys);
                   return bytes;
                 });
}

// Calls change(tensor, part) -> Result<void> for each tensor "<...><module><part>".
template <class F>
Result<void> for_each_part(WeightFiles& weights, std::string_view module, const F& change) {
  for (HubTensor& tensor : weights.tensors) {
    const std::size_t at = tensor.name.find(module);
    if (at == tensor.name.npos) continue;
    const std::string part = tensor.name.substr(at + module.size());
    Result<void> changed = change(tensor, part);
    if (!changed) {
      return std::move(changed).error().in(weights.names[tensor.file] + ": tensor " +
                                           io::quoted(tensor.name));
    }
  }
  return ok();
}

}  // namespace detail

// Qwen 3.5: decays, and the order of heads of values.
inline Result<void> prepare_qwen35(const Shape& shape, WeightFiles& weights) {
  const DeltaShape& s = shape.delta;
  const std::uint64_t keys = std::uint64_t{2} * s.n_keys * s.key_dim;
  struct Part {
    std::string_view name;
    std::uint64_t begin, of_head;
    bool are_columns = false;
  };
  const Part parts[] = {{"in_proj_qkv.weight", keys, s.value_dim},
                        {"in_proj_z.weight", 0, s.value_dim},
                        {"in_proj_a.weight", 0, 1},
                        {"in_proj_b.weight", 0, 1},
                        {"conv1d.weight", keys, s.value_dim},
                        {"dt_bias", 0, 1},
                        {"out_proj.weight", 0, s.value_dim, true}};
  return detail::for_each_part(
      weights, "linear_attn.", [&](HubTensor& tensor, std::string_view name) -> Result<void> {
        if (name == "A_log") {
          NIBBLE_TRY(decays, detail::head_numbers(tensor, weights, s.n_values, true, false));
          // The order changes in what is made of them.
          decays.source = [make = std::move(decays.source), s,
                           bytes =
                               detail::Bytes()]() mutable -> Result<std::span<const std::byte>> {
            NIBBLE_TRY(made, make());
            bytes.assign(made.begin(), made.end());
            detail::regroup(bytes, 0, bytes.size(), s.n_keys, s.n_values / s.n_keys);
            return std::span<const std::byte>(bytes);
          };
          tensor = std::move(decays);
          return ok();
        }
        for (const Part& part : parts) {
          if (name != part.name || s.n_values == s.n_keys) continue;
          NIBBLE_TRY(made, detail::regrouped(tensor, weights, s, part.begin, part.of_head,
                                             part.are_columns));
          tensor = std::move(made);
        }
        return ok();
      });
}

// Granite hybrid: decays, and the factors of what passes a layer.
inline Result<void> prepare_granite_hybrid(const Shape& shape, WeightFiles& weights) {
  return detail::for_each_part(
      weights, "mamba.", [&](HubTensor& tensor, std::string_view name) -> Result<void> {
        if (name != "A_log" && name != "D") return ok();
        NIBBLE_TRY(made, detail::head_numbers(tensor, weights, shape.delta.n_values,
                                              name == "A_log", true));
        tensor = std::move(made);
        return ok();
      });
}

// ---- gpt-oss -----------------------------------------------------------------------------------

namespace detail {

// The rows of the gates of experts (even ones), of what they multiply (odd ones), or all.
enum class ExpertRows : std::uint8_t { even, odd, all };
constexpr std::uint64_t rows_of(ExpertRows which, std::uint64_t n) noexcept {
  return which == ExpertRows::all ? n : n / 2;
}
constexpr std::uint64_t row_of(ExpertRows which, std::uint64_t i) noexcept {
  return which == ExpertRows::all ? i : 2 * i + (which == ExpertRows::odd ? 1 : 0);
}

// Blocks of 32 weights of 4 bits, (n_experts, n, k / 32, 16) bytes of two neighbours, and their
// scales (n_experts, n, k / 32): MXFP4 as ggml has it, a scale and then bytes of weights i, i + 16.
inline Result<HubTensor> mxfp4_of(const HubTensor& blocks, const HubTensor& scales,
                                  const WeightFiles& weights, std::string name, ExpertRows which) {
  const auto& d = blocks.shape;
  const bool is_sound = blocks.type == io::SafetensorType::u8 &&
                        scales.type == io::SafetensorType::u8 && d.size() == 4 && d[3] == 16 &&
                        (which == ExpertRows::all || d[1] % 2 == 0) &&
                        scales.shape == std::vector<std::uint64_t>{d[0], d[1], d[2]};
  if (!is_sound) return malformed_shape("blocks of 32 weights with a scale each");
  const auto n_experts = io::narrow<std::size_t>(d[0]), n = io::narrow<std::size_t>(d[1]);
  const auto n_blocks = io::narrow<std::size_t>(d[2]);
  const auto n_rows = io::narrow<std::size_t>(rows_of(which, d[1]));
  const io::MappedFile* const file = &weights.files[scales.file];
  const auto make = [=, of_scales = scales.data](const Bytes& codes) -> Result<Bytes> {
    Bytes of_blocks(of_scales.size());
    NIBBLE_CHECK(file->read(of_scales, of_blocks.data()));
    Bytes bytes(n_experts * n_rows * n_blocks * 17);
    std::byte* to = bytes.data();
    for (std::size_t i = 0; i < n_experts * n_rows; ++i) {
      const std::size_t row = i / n_rows * n + io::narrow<std::size_t>(row_of(which, i % n_rows));
      for (std::size_t block = row * n_blocks; block < (row + 1) * n_blocks; ++block) {
        const std::byte* const from = codes.data() + block * 16;
        const auto code = [&](std::size_t j) {
          return std::to_integer<unsigned>(from[j / 2]) >> (j % 2 * 4) & 15u;
        };
        *to++ = of_blocks[block];
        for (std::size_t j = 0; j < 16; ++j) {
          *to++ = static_cast<std::byte>(code(j) | code(j + 16) << 4);
        }
      }
    }
    return bytes;
  };
  return made_of(blocks, weights, std::move(name), {d[0], n_rows, 32 * d[2]}, io::GgmlType::mxfp4,
                 make);
}

// Matrices (n_experts, k, n), transposed; or biases (n_experts, n).
inline Result<HubTensor> transposed_of(const HubTensor& t, const WeightFiles& weights,
                                       std::string name, ExpertRows which) {
  NIBBLE_TRY(type, same_type(t.type));
  const bool is_bias = t.shape.size() == 2;
  if ((!is_bias && t.shape.size() != 3) || (which != ExpertRows::all && t.shape.back() % 2 != 0)) {
    return malformed_shape("matrices of experts");
  }
  const std::uint64_t n_all = t.shape.back(), k_all = is_bias ? 1 : t.shape[1];
  const std::size_t n_experts = io::narrow<std::size_t>(t.shape[0]);
  const std::size_t n = io::narrow<std::size_t>(n_all), k = io::narrow<std::size_t>(k_all);
  const std::size_t n_rows = io::narrow<std::size_t>(rows_of(which, n_all));
  const std::size_t element = t.data.size() / (n_experts * n * k);
  std::vector<std::uint64_t> shape = {t.shape[0], n_rows};
  if (!is_bias) shape.push_back(k_all);
  return made_of(t, weights, std::move(name), std::move(shape), type,
                 [=](const Bytes& stored) -> Result<Bytes> {
                   Bytes bytes(n_experts * n_rows * k * element);
                   std::byte* to = bytes.data();
                   for (std::size_t i = 0; i < n_experts * n_rows; ++i) {
                     const auto row = io::narrow<std::size_t>(row_of(which, i % n_rows));
                     for (std::size_t j = 0; j < k; ++j, to += element) {
                       const std::size_t at = (i / n_rows * k + j) * n + row;
                       std::memcpy(to, stored.data() + at * element, element);
                     }
                   }
                   return bytes;
                 });
}

}  // namespace detail

// gpt-oss: experts, in MXFP4 or as they were trained. Their gates and what these multiply have
// rows in turn.
inline Result<void> prepare_gpt_oss(const Shape&, WeightFiles& weights) {
  using detail::ExpertRows;
  constexpr std::string_view kModule = "mlp.experts.";
  std::vector<HubTensor> all;
  const auto add_part = [&](const HubTensor& tensor) -> Result<void> {
    const std::size_t at = tensor.name.find(kModule);
    const std::string before = tensor.name.substr(0, at + kModule.size());
    const std::string_view part = std::string_view(tensor.name).substr(before.size());
    if (part.ends_with("_scales")) return ok();
    const bool is_both = part.starts_with("gate_up_proj"), is_blocks = part.ends_with("_blocks");
    if (!is_both && !part.starts_with("down_proj")) {
      all.push_back(tensor);
      return ok();
    }
    const HubTensor* scales = nullptr;
    const std::string of_scales = before + (is_both ? "gate_up_proj_scales" : "down_proj_scales");
    for (const HubTensor& other : weights.tensors) {
      if (is_blocks && other.name == of_scales) scales = &other;
    }
    if (is_blocks && scales == nullptr) {
      return Error{Errc::not_found, io::quoted(of_scales) + " is missing"};
    }
    const auto add = [&](const char* name, ExpertRows which) -> Result<void> {
      const bool is_bias = part.ends_with("_bias");
      if (is_bias != (tensor.shape.size() == 2)) return detail::malformed_shape("experts");
      const std::string whole = before + name + (is_bias ? ".bias" : ".weight");
      NIBBLE_TRY(made, is_blocks ? detail::mxfp4_of(tensor, *scales, weights, whole, which)
                                 : detail::transposed_of(tensor, weights, whole, which));
      all.push_back(std::move(made));
      return ok();
    };
    if (!is_both) return add("down_proj", ExpertRows::all);
    NIBBLE_CHECK(add("gate_proj", ExpertRows::even));
    return add("up_proj", ExpertRows::odd);
  };
  for (const HubTensor& tensor : weights.tensors) {
    if (tensor.name.find(kModule) == tensor.name.npos) {
      all.push_back(tensor);
      continue;
    }
    Result<void> added = add_part(tensor);
    if (!added) {
      return std::move(added).error().in(weights.names[tensor.file] + ": tensor " +
                                         io::quoted(tensor.name));
    }
  }
  weights.tensors = std::move(all);
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::hub
