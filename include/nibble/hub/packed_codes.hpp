// SPDX-License-Identifier: Apache-2.0
//
// Folders whose weights were quantized to 4 bits by GPTQ or AWQ: instead of "x.weight" there are
// "x.qweight", "x.qzeros" and "x.scales" (and "x.g_idx"). They become a block format that has the
// same weights, scale * (code - zero), exactly: Q4_0 where all zeros are 8; Q4_1 where F16 has
// scale * zero; else Q5_0, whose codes have room for code - zero.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/float16.hpp"
#include "nibble/core/result.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/name_index.hpp"
#include "nibble/quant/block.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

struct PackedCodes {
  bool is_awq = false;
  std::uint32_t group = 128;  // inputs that share a scale; 0: all
  bool zeros_are_less_one = false;

  // What a configuration says of its weights. Errors: unsupported (another method or another number
  // of bits).
  static Result<PackedCodes> of(const Config& config) {
    const io::JsonValue& says = *config.find("quantization_config");
    const auto refuse = [&](const std::string& what) {
      return Error{Errc::unsupported, config.name() + ": key 'quantization_config': " + what};
    };
    const auto text = [&](std::string_view key) {
      const io::JsonValue* const value = says.find(key);
      return value == nullptr ? std::string() : std::string(value->string());
    };
    const auto number = [&](std::string_view key, double fallback) {
      const io::JsonValue* const value = says.find(key);
      return value == nullptr || value->is_null() ? fallback : value->number();
    };
    const std::string method = text("quant_method");
    if (method != "gptq" && method != "awq") {
      return refuse("weights quantized by " + io::quoted(method) +
                    "; known are gptq and awq; take the original");
    }
    PackedCodes codes;
    codes.is_awq = method == "awq";
    if (const double bits = number("bits", 4); bits != 4) {
      return refuse("weights of " + to_text(bits) + " bits, not 4");
    }
    const double group = number("group_size", 128);
    if (group == -1) {
      codes.group = 0;
    } else if (group >= 32 && group <= 65536 && static_cast<std::uint32_t>(group) == group &&
               static_cast<std::uint32_t>(group) % 32 == 0) {
      codes.group = static_cast<std::uint32_t>(group);
    } else {
      return refuse("groups of " + to_text(group) + " weights, which are no whole blocks of 32");
    }
    if (const std::string version = text("version");
        codes.is_awq && !version.empty() && version != "gemm" && version != "GEMM") {
      return refuse("the layout " + io::quoted(version) + " of AWQ; known is gemm");
    }
    codes.zeros_are_less_one = !codes.is_awq && text("checkpoint_format") != "gptq_v2";
    return codes;
  }

  // Puts one tensor "x.weight" in the place of each "x.qweight" and what belongs to it. Errors name
  // file and tensor: not_found, malformed (shapes that do not go together), unsupported (an order
  // of inputs, a scale that F16 does not have, a zero of which programs disagree).
  Result<void> join(WeightFiles& weights) const {
    io::NameIndex index;
    for (const HubTensor& tensor : weights.tensors) index.add(tensor.name);
    NIBBLE_CHECK(index.sort("tensor"));
    std::vector<HubTensor> joined;
    constexpr std::string_view kCodes = ".qweight";
    for (const HubTensor& tensor : weights.tensors) {
      if (is_part(tensor.name, index)) continue;
      if (!tensor.name.ends_with(kCodes)) {
        joined.push_back(tensor);
        continue;
      }
      const std::string base = tensor.name.substr(0, tensor.name.size() - kCodes.size());
      const auto part = [&](const char* name) {
        const std::size_t i = index.find(base + name);
        return i == io::NameIndex::kNone ? nullptr : &weights.tensors[i];
      };
      auto made = make(tensor, part(".qzeros"), part(".scales"), part(".g_idx"));
      if (!made) {
        return std::move(made).error().in(weights.names[tensor.file] + ": tensor " +
                                          io::quoted(tensor.name));
      }
      made->name = base + ".weight";
      joined.push_back(*std::move(made));
    }
    weights.tensors = std::move(joined);
    return ok();
  }

 private:
  static bool is_part(std::string_view name, const io::NameIndex& index) {
    for (const std::string_view end : {".qzeros", ".scales", ".g_idx"}) {
      if (!name.ends_with(end)) continue;
      const std::string codes = std::string(name.substr(0, name.size() - end.size())) + ".qweight";
      return index.find(codes) != io::NameIndex::kNone;
    }
    return false;
  }

  // One matrix.
  struct Matrix {
    std::size_t n = 0, k = 0, group = 0;
    bool is_awq = false;
    std::uint32_t added = 0;  // to zeros
    std::span<const std::byte> codes, zero_codes;
    std::vector<f16> scales;  // (k / group, n)

    static std::uint32_t packed(std::span<const std::byte> words, std::size_t i) noexcept {
      return io::load_le<std::uint32_t>(words.data() + i * sizeof(std::uint32_t));
    }
    // Of eight neighbours in a word, AWQ has first the even ones.
    static std::uint32_t of_eight(std::uint32_t eight, std::size_t i, bool is_mixed) noexcept {
      const std::size_t place = is_mixed ? i / 2 + i % 2 * 4 : i;
      return eight >> (4 * place) & 15u;
    }
    int code(std::size_t row, std::size_t column) const noexcept {
      const std::uint32_t found =
          is_awq ? of_eight(packed(codes, column * (n / 8) + row / 8), row % 8, true)
                 : of_eight(packed(codes, column / 8 * n + row), column % 8, false);
      return static_cast<int>(found);
    }
    std::uint32_t stored_zero(std::size_t row, std::size_t g) const noexcept {
      return of_eight(packed(zero_codes, g * (n / 8) + row / 8), row % 8, is_awq);
    }
    int zero(std::size_t row, std::size_t g) const noexcept {
      return static_cast<int>(stored_zero(row, g) + added);
    }
    f16 scale(std::size_t row, std::size_t g) const noexcept { return scales[g * n + row]; }

    // Blocks of 32 weights, row by row.
    template <class Format>
    void write(std::vector<std::byte>& out) const {
      using Block = typename Format::Block;
      constexpr bool kFive = Format::kBits == 5;
      constexpr bool kHasMinimum = Format::kZeroPoint == quant::ZeroPoint::minimum;
      out.resize(n * (k / 32) * sizeof(Block));
      std::byte* to = out.data();
      for (std::size_t row = 0; row < n; ++row) {
        for (std::size_t block = 0; block < k / 32; ++block, to += sizeof(Block)) {
          const std::size_t g = block * 32 / group;
          std::array<std::uint32_t, 32> codes_of_block;
          for (std::size_t i = 0; i < 32; ++i) {
            const int c = code(row, block * 32 + i);
            codes_of_block[i] = static_cast<std::uint32_t>(kFive ? c - zero(row, g) + 16 : c);
          }
          write_block<kFive, kHasMinimum>(codes_of_block, scale(row, g), minimum(row, g), to);
        }
      }
    }
    f16 minimum(std::size_t row, std::size_t g) const noexcept {
      return to_f16(exact_minimum(row, g));
    }
    // A product of 11 and 5 bits: exact.
    float exact_minimum(std::size_t row, std::size_t g) const noexcept {
      return -to_f32(scale(row, g)) * static_cast<float>(zero(row, g));
    }

    // As ggml has them: the scale, the minimum, the fifth bits, then bytes of two codes, i and
    // i+16.
    template <bool kFive, bool kHasMinimum>
    static void write_block(const std::array<std::uint32_t, 32>& block, f16 scale, f16 minimum,
                            std::byte* to) noexcept {
      std::memcpy(to, &scale.bits, sizeof scale.bits);
      to += sizeof scale.bits;
      if constexpr (kHasMinimum) {
        std::memcpy(to, &minimum.bits, sizeof minimum.bits);
        to += sizeof minimum.bits;
      }
      if constexpr (kFive) {
        std::uint32_t fifth = 0;
        for (std::size_t i = 0; i < 32; ++i) fifth |= (block[i] >> 4) << i;
        std::memcpy(to, &fifth, sizeof fifth);
        to += sizeof fifth;
      }
      for (std::size_t i = 0; i < 16; ++i) {
        to[i] = static_cast<std::byte>((block[i] & 15u) | (block[i + 16] & 15u) << 4);
      }
    }
  };

  Result<HubTensor> make(const HubTensor& codes, const HubTensor* zeros, const HubTensor* scales,
                         const HubTensor* order) const {
    if (zeros == nullptr || scales == nullptr) {
      return Error{Errc::not_found, "its qzeros or scales are missing"};
    }
    const auto is_matrix = [](const HubTensor& t, io::SafetensorType type) {
      return t.type == type && t.shape.size() == 2;
    };
    if (!is_matrix(codes, io::SafetensorType::i32) || !is_matrix(*zeros, io::SafetensorType::i32) ||
        scales->shape.size() != 2) {
      return Error{Errc::malformed, "its parts are no matrices of codes, zeros and scales"};
    }
    Matrix matrix;
    matrix.is_awq = is_awq;
    matrix.added = zeros_are_less_one ? 1 : 0;
    matrix.n = io::narrow<std::size_t>(scales->shape[1]);
    matrix.k = io::narrow<std::size_t>(codes.shape[0]) * (is_awq ? 1 : 8);
    matrix.group = group == 0 ? matrix.k : group;
    const std::uint64_t n = matrix.n, k = matrix.k;
    const std::uint64_t n_groups = matrix.group == 0 ? 0 : k / matrix.group;
    if (n == 0 || k == 0 || n % 8 != 0 || k % 32 != 0 || k % matrix.group != 0 ||
        codes.shape[1] != (is_awq ? n / 8 : n) || scales->shape[0] != n_groups ||
        zeros->shape != std::vector<std::uint64_t>{n_groups, n / 8}) {
      return Error{Errc::malformed, "its shape, those of its zeros and scales and groups of " +
                                        to_text(matrix.group) + " inputs do not go together"};
    }
    matrix.codes = codes.data;
    matrix.zero_codes = zeros->data;
    NIBBLE_CHECK(read_scales(*scales, matrix.scales));
    if (order != nullptr) NIBBLE_CHECK(check_order(*order, matrix));
    HubTensor made;
    made.shape = {n, k};
    made.is_by_outputs = true;
    made.file = codes.file;
    NIBBLE_TRY(type, type_for(matrix));
    made.made_type = type;
    made.source = [matrix = std::move(matrix), type, bytes = std::vector<std::byte>()]() mutable {
      if (type == io::GgmlType::q4_0) {
        matrix.write<quant::Q4_0>(bytes);
      } else if (type == io::GgmlType::q4_1) {
        matrix.write<quant::Q4_1>(bytes);
      } else {
        matrix.write<quant::Q5_0>(bytes);
      }
      return Result<std::span<const std::byte>>(bytes);
    };
    return made;
  }

  static Result<void> read_scales(const HubTensor& tensor, std::vector<f16>& scales) {
    const std::size_t n = io::narrow<std::size_t>(tensor.shape[0] * tensor.shape[1]);
    scales.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      float value = 0;
      switch (tensor.type) {
        case io::SafetensorType::f16:
          scales[i] = {io::load_le<std::uint16_t>(tensor.data.data() + i * 2)};
          continue;
        case io::SafetensorType::bf16:
          value = to_f32(bf16{io::load_le<std::uint16_t>(tensor.data.data() + i * 2)});
          break;
        case io::SafetensorType::f32:
          value = io::load_le<float>(tensor.data.data() + i * sizeof(float));
          break;
        default: return Error{Errc::unsupported, "scales that are no floats"};
      }
      scales[i] = to_f16(value);
      if (to_f32(scales[i]) == value) continue;
      return Error{Errc::unsupported,
                   "the scale " + to_text(static_cast<double>(value)) +
                       " has no exact value in F16, which the block formats have"};
    }
    return ok();
  }

  // g_idx: the group of each input. Blocks are of neighbours, so the groups must be in order.
  static Result<void> check_order(const HubTensor& order, const Matrix& matrix) {
    if (order.type != io::SafetensorType::i32 ||
        order.shape != std::vector<std::uint64_t>{matrix.k}) {
      return Error{Errc::malformed, "its g_idx is no list of " + to_text(matrix.k) + " integers"};
    }
    for (std::size_t i = 0; i < matrix.k; ++i) {
      if (Matrix::packed(order.data, i) == i / matrix.group) continue;
      return Error{
          Errc::unsupported,
          "its inputs are in another order (g_idx; saved with desc_act), so that weights of "
          "one scale are not neighbours: no block format has that; take a model that was "
          "quantized with desc_act false, or the original"};
    }
    return ok();
  }

  static Result<io::GgmlType> type_for(const Matrix& matrix) {
    bool are_eight = true, has_minimum = true;
    for (std::size_t g = 0; g < matrix.k / matrix.group; ++g) {
      for (std::size_t row = 0; row < matrix.n; ++row) {
        if (matrix.added != 0 && matrix.stored_zero(row, g) == 15) {
          return Error{
              Errc::unsupported,
              "a zero that is stored as 15: programs do not agree whether that is 16 or 0; "
              "take a model of the format gptq_v2, or the original"};
        }
        are_eight = are_eight && matrix.zero(row, g) == 8;
        has_minimum = has_minimum && to_f32(matrix.minimum(row, g)) == matrix.exact_minimum(row, g);
      }
    }
    return are_eight ? io::GgmlType::q4_0 : has_minimum ? io::GgmlType::q4_1 : io::GgmlType::q5_0;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::hub
