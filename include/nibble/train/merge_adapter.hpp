// SPDX-License-Identifier: Apache-2.0
//
// Model files with adapters merged into their weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/train/adapter_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// The model in `base` with W + Σ strength · (alpha / r) · B · A instead of W, where W is what the
// file's weights are when they are read: an adapter that was trained beside quantized weights
// belongs to these, not to those that they were made from. Sums are in double and rounded once.
class MergedModel {
 public:
  // `format`: of the matrices that change; none: the type that each has (it is quantized anew,
  // which is another rounding than the adapter was trained with; f16 keeps more). Other tensors are
  // copied. `base` must stay open until it is written; the adapters are not needed. Errors:
  // not_found (a matrix that the file does not have: also an output that is tied to the embedding,
  // which a file cannot have for itself), invalid_argument (an adapter that is null; a strength
  // that is not finite; factors that do not have their shapes), malformed (another shape, a value
  // that a format cannot hold), unsupported (a type that is only read; learned
  // rows), io.
  static Result<MergedModel> create(const io::Gguf& base, std::span<const AppliedAdapter> adapters,
                                    std::optional<quant::Format> format, Executor& executor) {
    return catch_out_of_memory([&]() -> Result<MergedModel> {
      for (const AppliedAdapter& applied : adapters) {
        if (applied.adapter == nullptr || !is_finite(static_cast<double>(applied.strength))) {
          return Error{Errc::invalid_argument, "adapter: there is none, or no strength"};
        }
        if (!applied.adapter->is_low_rank()) {
          return Error{Errc::unsupported,
                       "adapter: learned rows cannot be merged into the weights of a model"};
        }
        for (const AdapterMatrix& m : applied.adapter->matrices) {
          if (base.find_tensor(m.name) == nullptr) {
            return Error{Errc::not_found, base.name() + ": there is no tensor " +
                                              io::quoted(m.name) + " to merge to"};
          }
          NIBBLE_CHECK(detail::check_adapted(base, m));
        }
      }
      MergedModel made;
      made.writer_.copy_metadata(base);
      for (const io::GgufTensor& tensor : base.tensors()) {
        Parts parts;
        for (const AppliedAdapter& applied : adapters) {
          const AdapterMatrix* const m = applied.adapter->find(tensor.name);
          if (m != nullptr) parts.push_back({m, applied.strength});
        }
        if (parts.empty()) {
          made.writer_.add_tensor(base, tensor);
          continue;
        }
        Result<void> merged = made.merge(base, tensor, parts, format, executor);
        if (!merged) {
          return std::move(merged).error().in(compress::place_in_messages(base, tensor.name));
        }
      }
      return made;
    });
  }

  // To change keys before it is written.
  io::GgufWriter& writer() noexcept { return writer_; }
  Result<void> write(const std::string& path) const { return writer_.write(path); }
  Result<std::vector<std::byte>> to_bytes() const { return writer_.to_bytes(); }

 private:
  struct Part {
    const AdapterMatrix* matrix;
    float strength;
  };
  using Parts = std::vector<Part>;

  static void add_row(const Part& part, std::size_t row, std::span<double> out) noexcept {
    const AdapterMatrix& m = *part.matrix;
    const double scale = static_cast<double>(part.strength) * static_cast<double>(m.alpha) /
                         static_cast<double>(m.rank);
    const auto rank = static_cast<std::size_t>(m.rank);
    for (std::size_t r = 0; r < rank; ++r) {
      const double factor = scale * static_cast<double>(m.b[row * rank + r].value);
      for (std::size_t j = 0; j < out.size(); ++j) {
        out[j] += factor * static_cast<double>(m.a[r * out.size() + j].value);
      }
    }
  }

  Result<void> merge(const io::Gguf& base, const io::GgufTensor& tensor, const Parts& parts,
                     std::optional<quant::Format> wanted, Executor& executor) {
    NIBBLE_TRY(rows, compress::FloatRows::of(base, tensor));
    quant::Format format = quant::Format::f32;
    if (wanted) {
      format = *wanted;
    } else {
      NIBBLE_TRY(own, quant::format_of(tensor.type));
      format = own;
    }
    NIBBLE_TRY(type, quant::ggml_type_of(format));
    const std::size_t n = rows.n(), k = rows.k();
    NIBBLE_TRY(row_bytes, quant::row_bytes(format, k));
    std::vector<std::byte>& bytes = data_.emplace_back(n * row_bytes);
    struct Worker {
      std::vector<std::byte> stored;
      std::vector<Scalar<float>> row;
      std::vector<Scalar<double>> sum;
      std::optional<Error> error;
    };
    std::vector<Worker> workers(static_cast<std::size_t>(executor.n_workers()));
    for (Worker& w : workers) {
      w.stored.resize(rows.row_bytes());
      w.row.resize(k);
      w.sum.resize(k);
    }
    executor.parallel_for(static_cast<Index>(n), [&](Index task, Index worker) {
      Worker& w = workers[static_cast<std::size_t>(worker)];
      if (w.error) return;
      const auto i = static_cast<std::size_t>(task);
      const std::span<float> row(values(w.row), k);
      Result<void> done = rows.read(i, w.stored, row);
      if (done) {
        for (std::size_t j = 0; j < k; ++j) w.sum[j].value = static_cast<double>(row[j]);
        for (const Part& part : parts) add_row(part, i, {values(w.sum), k});
        for (std::size_t j = 0; j < k; ++j) row[j] = static_cast<float>(w.sum[j].value);
        done = quant::row_from_f32(format, row, std::span(bytes).subspan(i * row_bytes, row_bytes));
      }
      if (!done) w.error = std::move(done).error();
    });
    for (Worker& w : workers) {
      if (w.error) return *std::move(w.error);
    }
    const std::uint64_t dims[] = {k, n};
    writer_.add_tensor(tensor.name, type, dims, bytes);
    return ok();
  }

  io::GgufWriter writer_;
  std::deque<std::vector<std::byte>> data_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
