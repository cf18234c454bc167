// SPDX-License-Identifier: Apache-2.0
//
// Files whose weights have factors of low rank, or whose layers share tensors: GGUF in, GGUF out.
// Both are for nibble alone: other programs refuse such files, since they lack tensors or have
// unknown ones.
//
// The factors of `<name>.weight` (n, k) are tensors `<name>.factor_a.weight` (n, r) and
// `<name>.factor_b.weight` (r, k), each of any type. If `<name>.weight` is there too, the product
// of the factors is added to it. Tensors that another one stands for are not stored: metadata
// `nibble.shared_tensors` has a string "<missing name>=<stored name>" for each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/low_rank.hpp"
#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// What becomes of a matrix.
struct FactorChoice {
  RankOptions rank;
  quant::Format factors = quant::Format::f16;  // format of A and B
  // Format of the matrix beside them, whose error they correct; none: they replace it.
  std::optional<quant::Format> base;
  std::span<const double> moments = {};  // Σxxᵀ of its input (k, k); empty: plain SVD
};
struct FactorReport {
  std::string tensor;
  Index rank = 0;
  double relative_error = 0;  // LowRank::relative_error
  std::uint64_t bytes_from = 0, bytes_to = 0;
};

namespace detail {

inline Result<NewTensor> rounded(std::span<const float> weights, Index n, Index k,
                                 quant::Format format) {
  NIBBLE_TRY(type, quant::ggml_type_of(format));
  NIBBLE_TRY(row, quant::row_bytes(format, static_cast<std::size_t>(k)));
  NewTensor out{type, {static_cast<std::uint64_t>(k), static_cast<std::uint64_t>(n)}, {}};
  out.bytes.resize(static_cast<std::size_t>(n) * row);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    NIBBLE_CHECK(quant::row_from_f32(
        format, weights.subspan(i * static_cast<std::size_t>(k), static_cast<std::size_t>(k)),
        std::span(out.bytes).subspan(i * row, row)));
  }
  return out;
}

// Adds a tensor to `made`, which keeps it until the file is written.
inline const NewTensor& add_new(io::GgufWriter& writer, const std::string& name, NewTensor tensor,
                                std::deque<NewTensor>& made) {
  const NewTensor& kept = made.emplace_back(std::move(tensor));
  writer.add_tensor(name, kept.type, kept.dims, std::span<const std::byte>(kept.bytes));
  return kept;
}

inline Result<FactorReport> add_factors(const io::Gguf& file, const io::GgufTensor& tensor,
                                        const FactorChoice& choice, Executor& executor,
                                        io::GgufWriter& writer, std::deque<NewTensor>& made) {
  if (tensor.n_dims != 2 || !tensor.name.ends_with(".weight")) {
    return Error{Errc::unsupported,
                 place_in_messages(file, tensor.name) + ": factors are for matrices"};
  }
  NIBBLE_TRY(w, tensor_floats(file, tensor));
  const auto n = static_cast<Index>(tensor.dims[1]), k = static_cast<Index>(tensor.dims[0]);
  FactorReport report;
  report.tensor = std::string(tensor.name);
  report.bytes_from = tensor.data.size();
  const auto add = [&](const std::string& name, std::span<const float> weights, Index rows,
                       Index columns, quant::Format format) -> Result<const NewTensor*> {
    auto made_now = rounded(weights, rows, columns, format);
    if (!made_now) return std::move(made_now).error().in(place_in_messages(file, name));
    report.bytes_to += made_now->bytes.size();
    return &add_new(writer, name, *std::move(made_now), made);
  };
  std::vector<Scalar<float>> stored;
  if (choice.base) {
    NIBBLE_TRY(base, add(report.tensor, w, n, k, *choice.base));
    stored.resize(w.size());
    NIBBLE_CHECK(quant::row_to_f32(base->type, base->bytes, {values(stored), stored.size()}));
  }
  auto found = choice.base ? low_rank_correction(w, {values(stored), stored.size()}, n, k,
                                                 choice.moments, choice.rank, executor)
                           : low_rank(w, n, k, choice.moments, choice.rank, executor);
  if (!found) return std::move(found).error().in(place_in_messages(file, tensor.name));
  const Index rank = found->rank;
  NIBBLE_CHECK(add(name_beside(report.tensor, kFactorA), {values(found->a), found->a.size()}, n,
                   rank, choice.factors));
  NIBBLE_CHECK(add(name_beside(report.tensor, kFactorB), {values(found->b), found->b.size()}, rank,
                   k, choice.factors));
  report.rank = rank;
  report.relative_error = found->relative_error;
  return report;
}

}  // namespace detail

// The model with factors for those matrices for which `choose` gives a choice, in memory; the
// largest matrix costs some copies in double. A's format must have blocks that divide the rank
// (RankOptions::multiple). Errors: those of low_rank() and of the formats; unsupported (a choice
// for what is no matrix).
inline Result<std::vector<std::byte>> factor_model(
    const io::Gguf& file, FunctionRef<std::optional<FactorChoice>(std::string_view name)> choose,
    Executor& executor, std::vector<FactorReport>* reports = nullptr) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    io::GgufWriter writer;
    writer.copy_metadata(file);
    std::deque<NewTensor> made;
    for (const io::GgufTensor& tensor : file.tensors()) {
      const std::optional<FactorChoice> choice = choose(tensor.name);
      if (!choice) {
        writer.add_tensor(tensor);
        continue;
      }
      NIBBLE_TRY(report, detail::add_factors(file, tensor, *choice, executor, writer, made));
      if (reports != nullptr) reports->push_back(std::move(report));
    }
    return writer.to_bytes();
  });
}

// A tensor that is no longer stored, and the one that is used in its place.
struct SharedPair {
  std::string tensor;
  std::string with;
};

namespace detail {

// Whether a tensor means nothing without the matrix `name`: a factor, the scales of 8-bit codes, or
// the range of their input.
inline bool belongs_to(std::string_view tensor, std::string_view name) noexcept {
  constexpr std::string_view kEnd = "weight";
  if (!name.ends_with(".weight")) return false;
  name.remove_suffix(kEnd.size());
  if (!tensor.starts_with(name)) return false;
  tensor.remove_prefix(name.size());
  for (std::string_view factor : {kFactorA, kFactorB}) {
    if (tensor == factor) return true;
    factor.remove_suffix(kEnd.size());  // codes of a factor have scales too
    if (tensor.starts_with(factor)) tensor.remove_prefix(factor.size());
  }
  return tensor == "scales" || tensor == "input_scale" || tensor == "input_zero";
}

// The pairs "<tensor>=<with>" of a file. What stands for a tensor of `pairs` stands for that one's
// `with` from now on.
inline Result<std::vector<std::string>> shared_before(const io::Gguf& file,
                                                      std::span<const SharedPair> pairs) {
  std::vector<std::string> texts;
  if (file.find(kSharedTensorsKey) == nullptr) return texts;
  NIBBLE_TRY(old, file.get_strings(kSharedTensorsKey));
  for (const std::string_view text : old) {
    std::string& now = texts.emplace_back(text);
    const std::size_t middle = now.find('=');
    if (middle == now.npos) continue;  // a file that does not load
    for (const SharedPair& pair : pairs) {
      if (pair.tensor != std::string_view(now).substr(middle + 1)) continue;
      now.replace(middle + 1, now.npos, pair.with);
      break;
    }
  }
  return texts;
}

}  // namespace detail

// The model without the first tensors of `pairs` and what belongs to them (factors, scales of 8-bit
// codes); they become the second ones, as does what was shared with them before. Errors: not_found
// (a tensor that does not exist), invalid_argument (shapes that differ; a tensor that is shared
// twice, or with one that is itself not stored).
inline Result<std::vector<std::byte>> share_tensors(const io::Gguf& file,
                                                    std::span<const SharedPair> pairs) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    const auto is_left_out = [&](std::string_view name) {
      return std::count_if(pairs.begin(), pairs.end(),
                           [&](const SharedPair& p) { return p.tensor == name; });
    };
    io::GgufWriter writer;
    writer.copy_metadata(file);
    NIBBLE_TRY(texts, detail::shared_before(file, pairs));
    for (const SharedPair& pair : pairs) {
      NIBBLE_TRY(tensor, file.tensor(pair.tensor));
      NIBBLE_TRY(with, file.tensor(pair.with));
      if (tensor.dims != with.dims || is_left_out(pair.tensor) != 1 || is_left_out(pair.with) > 0) {
        return Error{Errc::invalid_argument,
                     place_in_messages(file, pair.tensor) + ": cannot be " + io::quoted(pair.with) +
                         ": another shape, shared twice, or that one is not stored itself"};
      }
      texts.push_back(pair.tensor + "=" + pair.with);
    }
    writer.set_array(kSharedTensorsKey, texts);
    for (const io::GgufTensor& tensor : file.tensors()) {
      const bool goes_too = std::any_of(pairs.begin(), pairs.end(), [&](const SharedPair& pair) {
        return detail::belongs_to(tensor.name, pair.tensor);
      });
      if (!goes_too && is_left_out(tensor.name) == 0) writer.add_tensor(tensor);
    }
    return writer.to_bytes();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
