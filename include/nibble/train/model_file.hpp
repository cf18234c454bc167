// SPDX-License-Identifier: Apache-2.0
//
// Trained weights from model files and to them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/channel_tensors.hpp"
#include "nibble/quant/channel.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/quant/static_scale.hpp"
#include "nibble/train/trained_weights.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// Fills the values of all tensors but factors from those of the file, of any type that can be read.
// Errors: not_found (a tensor that the file lacks), malformed (another shape), unsupported, io; the
// values are then of no use.
inline Result<void> read_values(const io::Gguf& file, TrainedWeights& weights) {
  return catch_out_of_memory([&]() -> Result<void> {
    for (const TrainedTensor& t : weights.tensors()) {
      if (t.is_factor) continue;
      const io::GgufTensor* const tensor = file.find_tensor(t.name);
      if (tensor == nullptr) {
        return Error{Errc::not_found, file.name() + ": there is no tensor " + io::quoted(t.name)};
      }
      const std::string where = compress::place_in_messages(file, t.name);
      const auto n = static_cast<std::uint64_t>((std::max)(t.n, Index{1}));
      if (tensor->dims[0] != static_cast<std::uint64_t>(t.k) || tensor->dims[1] != n ||
          tensor->dims[2] != 1 || tensor->dims[3] != 1) {
        return Error{Errc::malformed, where + ": not of shape " + graph::shape_text(t.n, t.k)};
      }
      auto rows = compress::FloatRows::of(file, *tensor);
      if (!rows) return std::move(rows).error().in(where);
      std::vector<std::byte> stored(rows->row_bytes());
      for (std::size_t i = 0; i < rows->n(); ++i) {
        Result<void> read = rows->read(i, stored, t.values.subspan(i * rows->k(), rows->k()));
        if (!read) return std::move(read).error().in(where);
      }
    }
    return ok();
  });
}

// All weights that the file has, as f32 values with gradients. Errors: those of
// TrainedWeights::create() and read_values().
inline Result<TrainedWeights> weights_of(const TrainingGraph& graph, const io::Gguf& file) {
  const auto choose = [&](const std::string& name,
                          const graph::WeightNeed&) -> Result<WeightChoice> {
    WeightChoice choice;
    const io::GgufTensor* const tensor = file.find_tensor(name);
    if (tensor == nullptr) {
      choice.kind = WeightChoice::Kind::absent;
    } else {
      choice.n_rows = static_cast<Index>(tensor->dims[1]);
    }
    return choice;
  };
  NIBBLE_TRY(weights, TrainedWeights::create(graph, choose));
  NIBBLE_CHECK(read_values(file, weights));
  return weights;
}

// A model file of the trained weights, with the metadata of `like`. Matrices that have a deployed
// format are stored in it, as the same codes that training ran; other matrices as `format` (f32,
// f16 or bf16), vectors as f32. I8Channel is stored as docs/static-int8.md says, with the ranges of
// inputs that training used last. Factors are left out: adapter files have them.
class ModelFile {
 public:
  // Errors: limit (a value beyond f16), unsupported (a format that files do not have), malformed,
  // invalid_argument (weights that are somebody else's: they would be missing).
  static Result<ModelFile> create(const io::Gguf& like, const TrainedWeights& weights,
                                  quant::Format format = quant::Format::f32) {
    return catch_out_of_memory([&]() -> Result<ModelFile> {
      if (weights.has_base()) {
        return Error{Errc::invalid_argument,
                     "a model file of weights that stand beside others: write the adapter "
                     "(adapter_file.hpp), or merge it (merge_adapter.hpp)"};
      }
      ModelFile made;
      made.writer_.copy_metadata(like);
      quant::Format main = format;
      for (const TrainedTensor& t : weights.tensors()) {
        if (t.is_factor) continue;
        if (t.deployed != nullptr) main = t.deployed->format;
        const quant::Format own = t.n == 0                ? quant::Format::f32
                                  : t.deployed != nullptr ? t.deployed->format
                                                          : format;
        Result<void> added =
            own == quant::Format::i8_channel ? made.add_channels(t) : made.add(t, own);
        if (!added) return std::move(added).error().in("weights " + io::quoted(t.name));
      }
      std::uint32_t file_type = nibble::detail::kUnstatedFileType;
      if (main != quant::Format::i8_channel) {
        NIBBLE_TRY(stated, quant::gguf_file_type(main));
        file_type = stated;
      }
      made.writer_.set("general.file_type", file_type);
      return made;
    });
  }

  // To change keys before it is written.
  io::GgufWriter& writer() noexcept { return writer_; }
  Result<void> write(const std::string& path) const { return writer_.write(path); }
  Result<std::vector<std::byte>> to_bytes() const { return writer_.to_bytes(); }

 private:
  Result<void> add(const TrainedTensor& t, quant::Format format) {
    NIBBLE_TRY(type, quant::ggml_type_of(format));
    NIBBLE_TRY(row_bytes, quant::row_bytes(format, static_cast<std::size_t>(t.k)));
    const auto n = static_cast<std::size_t>((std::max)(t.n, Index{1})),
               k = static_cast<std::size_t>(t.k);
    std::vector<std::byte>& bytes = data_.emplace_back(n * row_bytes);
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_CHECK(t.round_row(format, static_cast<Index>(i),
                               std::span(bytes).subspan(i * row_bytes, row_bytes)));
    }
    std::vector<std::uint64_t> dims{k};
    if (t.n > 0) dims.push_back(n);
    writer_.add_tensor(t.name, type, dims, bytes);
    return ok();
  }

  // A matrix in I8Channel: codes, their scales and the range of the input, each a tensor.
  Result<void> add_channels(const TrainedTensor& t) {
    const auto n = static_cast<std::size_t>(t.n), k = static_cast<std::size_t>(t.k);
    NIBBLE_TRY(row_bytes, quant::row_bytes(quant::Format::i8_channel, k));
    std::vector<std::byte> row(row_bytes);
    std::vector<std::byte>& codes = data_.emplace_back(n * k);
    std::vector<std::byte>& scales = data_.emplace_back(n * sizeof(float));
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_CHECK(t.round_row(quant::Format::i8_channel, static_cast<Index>(i), row));
      std::memcpy(scales.data() + i * sizeof(float), row.data(), sizeof(float));
      std::memcpy(codes.data() + i * k, row.data() + sizeof(quant::I8Channel::Header), k);
    }
    const std::uint64_t dims[] = {k, n};
    writer_.add_tensor(t.name, io::GgmlType::i8, dims, codes);
    nibble::detail::add_channel_tensors(writer_, t.name, n, std::span<const std::byte>(scales),
                                        inputs_.emplace_back(t.input));
    return ok();
  }

  io::GgufWriter writer_;
  // What the writer reads; elements stay where they are.
  std::deque<std::vector<std::byte>> data_;
  std::deque<quant::StaticScale> inputs_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
