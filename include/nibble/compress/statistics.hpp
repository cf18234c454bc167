// SPDX-License-Identifier: Apache-2.0
//
// Statistics of the inputs of a model's products, gathered row by row in memory that does not grow
// with the rows: what quantization, pruning and factorization want to know of what a matrix is
// multiplied by.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/activation_range.hpp"
#include "nibble/compress/histogram.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/second_moments.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/simd/dispatch.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct InputStatisticsOptions {
  bool second_moments = false;      // Σ x xᵀ: k (k + 1) / 2 doubles
  bool channel_histograms = false;  // one for each channel: k times kChannelBins counts
};

// Of the rows x (k) that one product, or several with the same input, were given. Memory is
// allocated when it is made.
class InputStatistics {
 public:
  static constexpr Index kChannelBins = 512;

  explicit InputStatistics(Index k, const InputStatisticsOptions& options = {})
      : k_(k), channels_(static_cast<std::size_t>(k)) {
    const auto n = static_cast<std::size_t>(k);
    if (options.second_moments) moments_.resize(n * (n + 1) / 2);
    if (options.channel_histograms) channel_histograms_.assign(n, Histogram(kChannelBins));
  }

  // Adds rows (m, k), contiguous each. `executor` computes second moments in parallel. Sums are
  // doubles, except those of a few rows in second moments: kernels::AddSecondMoments says how much
  // they err.
  void add(MatrixView<const float> rows, Executor* executor = nullptr) noexcept {
    NIBBLE_ASSERT(rows.extent(1) == k_ && (k_ < 2 || rows.stride(1) == 1));
    const Index m = rows.extent(0);
    for (Index r = 0; r < m; ++r) {
      const float* const x = rows.data() + r * rows.stride(0);
      histogram_.add({x, static_cast<std::size_t>(k_)});
      add_channels(x);
    }
    n_rows_ += static_cast<std::uint64_t>(m);
    if (!moments_.empty()) add_moments(rows, executor);
  }

  // Adds what another has seen. Error: invalid_argument (other sizes or options).
  Result<void> merge(const InputStatistics& other) {
    if (other.k_ != k_ || other.moments_.size() != moments_.size() ||
        other.channel_histograms_.size() != channel_histograms_.size()) {
      return Error{Errc::invalid_argument, "statistics of " + to_text(other.k_) +
                                               " columns cannot be added to those of " +
                                               to_text(k_) + ", or other things were counted"};
    }
    for (std::size_t j = 0; j < channels_.size(); ++j) {
      Channel& a = channels_[j];
      const Channel& b = other.channels_[j];
      a.sum += b.sum;
      a.sum_squares += b.sum_squares;
      a.sum_sizes += b.sum_sizes;
      a.smallest = smaller(a.smallest, b.smallest);
      a.largest = larger(a.largest, b.largest);
    }
    for (std::size_t i = 0; i < moments_.size(); ++i) moments_[i].value += other.moments_[i].value;
    histogram_.merge(other.histogram_);
    for (std::size_t j = 0; j < channel_histograms_.size(); ++j) {
      channel_histograms_[j].merge(other.channel_histograms_[j]);
    }
    n_rows_ += other.n_rows_;
    return ok();
  }

  Index k() const noexcept { return k_; }
  std::uint64_t n_rows() const noexcept { return n_rows_; }
  // Of channel j (a column of the weights) over all rows. Of no rows: sums are 0, the smallest
  // number is infinite and the largest −infinite.
  double sum(Index j) const noexcept { return at(j).sum; }
  double sum_squares(Index j) const noexcept { return at(j).sum_squares; }
  double sum_sizes(Index j) const noexcept { return at(j).sum_sizes; }  // Σ |x|
  float smallest(Index j) const noexcept { return at(j).smallest; }
  float largest(Index j) const noexcept { return at(j).largest; }
  // Of all channels together.
  float smallest() const noexcept {
    float x = kInfinity;
    for (const Channel& c : channels_) x = smaller(x, c.smallest);
    return x;
  }
  float largest() const noexcept {
    float x = -kInfinity;
    for (const Channel& c : channels_) x = larger(x, c.largest);
    return x;
  }
  const Histogram& histogram() const noexcept { return histogram_; }
  bool has_channel_histograms() const noexcept { return !channel_histograms_.empty(); }
  const Histogram& histogram(Index j) const noexcept {
    return channel_histograms_[static_cast<std::size_t>(j)];
  }

  bool has_second_moments() const noexcept { return !moments_.empty(); }
  // Σ xᵢ xⱼ.
  double second_moment(Index i, Index j) const noexcept {
    return moments_[i <= j ? place(i, j) : place(j, i)].value;
  }
  // The whole matrix (k, k), row by row; of k² doubles.
  void copy_second_moments(std::span<double> out) const noexcept {
    NIBBLE_ASSERT(has_second_moments() && out.size() == channels_.size() * channels_.size());
    for (Index i = 0; i < k_; ++i) {
      for (Index j = i; j < k_; ++j) {
        out[static_cast<std::size_t>(i * k_ + j)] = out[static_cast<std::size_t>(j * k_ + i)] =
            moments_[place(i, j)].value;
      }
    }
  }

  // The range of 8-bit codes for the numbers of all channels, or of one. For one, methods other
  // than min_max need channel histograms. Errors: as nibble::compress::activation_range().
  Result<ActivationRange> range(const RangeOptions& options = {}) const {
    return activation_range({histogram_, smallest(), largest()}, options);
  }
  Result<ActivationRange> range(Index j, const RangeOptions& options = {}) const {
    if (has_channel_histograms()) {
      return activation_range({histogram(j), smallest(j), largest(j)}, options);
    }
    if (options.method != RangeMethod::min_max) {
      return Error{Errc::invalid_argument, std::string("range: ") + to_string(options.method) +
                                               " for each channel needs channel histograms"};
    }
    return catch_out_of_memory([&] {
      Histogram both(Histogram::kMinBins);
      const float numbers[] = {smallest(j), largest(j)};
      both.add(numbers);
      return activation_range({both, numbers[0], numbers[1]}, options);
    });
  }

  // Bytes of memory beside the object itself.
  std::size_t bytes() const noexcept {
    std::size_t n = channels_.capacity() * sizeof(Channel) +
                    moments_.capacity() * sizeof(moments_[0]) + histogram_.bytes() +
                    channel_histograms_.capacity() * sizeof(Histogram);
    for (const Histogram& h : channel_histograms_) n += h.bytes();
    return n;
  }

 private:
  struct Channel {
    double sum = 0, sum_squares = 0, sum_sizes = 0;
    float smallest = kInfinity, largest = -kInfinity;
  };

  const Channel& at(Index j) const noexcept { return channels_[static_cast<std::size_t>(j)]; }
  // Row i has k − i moments, from the diagonal on.
  std::size_t place(Index i, Index j) const noexcept {
    return static_cast<std::size_t>(i * k_ - i * (i - 1) / 2 + (j - i));
  }

  void add_channels(const float* x) noexcept {
    for (Index j = 0; j < k_; ++j) {
      Channel& c = channels_[static_cast<std::size_t>(j)];
      const auto v = static_cast<double>(x[j]);
      c.sum += v;
      c.sum_squares += v * v;
      c.sum_sizes += v < 0 ? -v : v;
      c.smallest = smaller(c.smallest, x[j]);
      c.largest = larger(c.largest, x[j]);
    }
    for (std::size_t j = 0; j < channel_histograms_.size(); ++j) {
      channel_histograms_[j].add({x + j, 1});
    }
  }

  void add_moments(MatrixView<const float> rows, Executor* executor) noexcept {
    constexpr Index kColumns = kernels::AddSecondMoments::kColumns;
    const auto run = simd::kernel<kernels::AddSecondMoments>();
    const auto task = [&](Index t, Index) {
      run(rows.data(), rows.stride(0), rows.extent(0), k_, t * kColumns,
          (std::min)(k_, (t + 1) * kColumns), values(moments_));
    };
    const Index n_tasks = (k_ + kColumns - 1) / kColumns;
    if (executor != nullptr) {
      executor->parallel_for(n_tasks, task);
    } else {
      for (Index t = 0; t < n_tasks; ++t) task(t, 0);
    }
  }

  Index k_;
  std::uint64_t n_rows_ = 0;
  std::vector<Channel> channels_;              // (k)
  std::vector<Scalar<double>> moments_;        // the upper triangle, row by row; or none
  Histogram histogram_;                        // of the numbers of all channels
  std::vector<Histogram> channel_histograms_;  // (k), or none
};

// Statistics of a model's products, by the names of the matrices. Matrices with the same input
// (queries, keys and values) share them.
class Statistics {
 public:
  struct Entry {
    std::string name;       // of the tensor: "blk.0.attn_q.weight"
    std::size_t input = 0;  // which of inputs()
  };

  // Sorted by name.
  std::span<const Entry> entries() const noexcept { return entries_; }
  std::span<const InputStatistics> inputs() const noexcept { return inputs_; }
  // Of the input of the products with the matrix of this name; null if none was observed.
  const InputStatistics* find(std::string_view name) const noexcept {
    const std::size_t i = place(name);
    return i < entries_.size() && entries_[i].name == name ? &inputs_[entries_[i].input] : nullptr;
  }

  // Adds an input of products with matrices of these names. Errors: invalid_argument (no names, or
  // one that is there already); nothing changes then.
  Result<void> add(InputStatistics input, std::span<const std::string> names) {
    if (names.empty()) return Error{Errc::invalid_argument, "statistics without a name"};
    for (const std::string& name : names) {
      if (find(name) == nullptr) continue;
      return Error{Errc::invalid_argument,
                   "there are statistics for " + io::quoted(name) + " already"};
    }
    return catch_out_of_memory([&]() -> Result<void> {
      entries_.reserve(entries_.size() + names.size());
      inputs_.push_back(std::move(input));
      for (const std::string& name : names) {
        entries_.insert(entries_.begin() + static_cast<std::ptrdiff_t>(place(name)),
                        Entry{name, inputs_.size() - 1});
      }
      return ok();
    });
  }

  // Adds what was observed with the same model on another text. Error: invalid_argument (other
  // names or sizes: statistics of another model); nothing changes then.
  Result<void> merge(const Statistics& other) {
    if (entries_.size() != other.entries_.size() || inputs_.size() != other.inputs_.size()) {
      return Error{Errc::invalid_argument, "statistics of " + to_text(other.entries_.size()) +
                                               " matrices cannot be added to those of " +
                                               to_text(entries_.size()) +
                                               ": they are of another model"};
    }
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const Entry &a = entries_[i], &b = other.entries_[i];
      if (a.name != b.name || a.input != b.input ||
          inputs_[a.input].k() != other.inputs_[b.input].k()) {
        return Error{Errc::invalid_argument,
                     "statistics of " + io::quoted(b.name) + " cannot be added to those of " +
                         io::quoted(a.name) + ": they are of another model"};
      }
    }
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const InputStatistics &a = inputs_[i], &b = other.inputs_[i];
      if (a.has_second_moments() != b.has_second_moments() ||
          a.has_channel_histograms() != b.has_channel_histograms()) {
        return Error{Errc::invalid_argument, "the statistics count different things"};
      }
    }
    for (std::size_t i = 0; i < inputs_.size(); ++i)
      NIBBLE_CHECK(inputs_[i].merge(other.inputs_[i]));
    return ok();
  }

  // Whether these are statistics of the model in `file`: each has a matrix of its name with rows as
  // long, and each matrix of a layer has statistics. Errors: invalid_argument, not_found.
  Result<void> check_model(const io::Gguf& file) const;

  std::size_t bytes() const noexcept {
    std::size_t n = inputs_.capacity() * sizeof(InputStatistics);
    for (const InputStatistics& input : inputs_) n += input.bytes();
    return n;
  }

 private:
  std::size_t place(std::string_view name) const noexcept {
    const auto at = std::lower_bound(
        entries_.begin(), entries_.end(), name,
        [](const Entry& e, std::string_view n) { return std::string_view(e.name) < n; });
    return static_cast<std::size_t>(at - entries_.begin());
  }

  std::vector<Entry> entries_;
  std::vector<InputStatistics> inputs_;
};

namespace detail {

// "<name>.weight" for a matrix and for its factors of low rank.
inline std::string name_of_product(std::string_view tensor) {
  for (const std::string_view factor : {kFactorA, kFactorB}) {
    const std::string end = std::string(".").append(factor);
    if (!tensor.ends_with(end)) continue;
    return name_beside(tensor.substr(0, tensor.size() - end.size()), "weight");
  }
  return std::string(tensor);
}

// The tensor whose columns are those of the input of a product: the matrix, or its second factor if
// it has nothing else. Null if there is neither.
inline const io::GgufTensor* tensor_of_product(const io::Gguf& file, std::string_view name) {
  const io::GgufTensor* const tensor = file.find_tensor(name);
  if (tensor != nullptr || !name.ends_with(".weight")) return tensor;
  return file.find_tensor(name_beside(name, kFactorB));
}

// Whether `file` has a matrix of this name, or factors of it, with `n_columns` columns in all its
// matrices together.
inline Result<void> check_matrix(const io::Gguf& file, const std::string& name,
                                 std::uint64_t n_columns) {
  const io::GgufTensor* const tensor = tensor_of_product(file, name);
  if (tensor == nullptr) {
    return Error{Errc::invalid_argument, file.name() + ": there are statistics for " +
                                             io::quoted(name) +
                                             ", but no such tensor: they are of another model"};
  }
  const std::uint64_t n_matrices = tensor->dims[2] * tensor->dims[3];
  if (tensor->n_dims >= 2 && n_columns == tensor->dims[0] * n_matrices) return ok();
  return Error{Errc::invalid_argument, file.name() + ": tensor " + io::quoted(tensor->name) +
                                           " has " + to_text(tensor->dims[0] * n_matrices) +
                                           " columns, its statistics " + to_text(n_columns) +
                                           ": they are of another model"};
}

// Whether each matrix in a layer of `file` is known.
template <class Knows>
Result<void> check_layers(const io::Gguf& file, const Knows& knows) {
  for (const io::GgufTensor& tensor : file.tensors()) {
    const bool is_matrix = tensor.n_dims >= 2 && tensor.dims[1] > 1;
    if (!is_matrix || layer_of(tensor.name) < 0 || !tensor.name.ends_with(".weight") ||
        knows(name_of_product(tensor.name))) {
      continue;
    }
    return Error{Errc::not_found, file.name() + ": there are no statistics for " +
                                      io::quoted(tensor.name) +
                                      ": its input was not observed, or they are of another "
                                      "model"};
  }
  return ok();
}

}  // namespace detail

inline Result<void> Statistics::check_model(const io::Gguf& file) const {
  for (const Entry& entry : entries_) {
    NIBBLE_CHECK(detail::check_matrix(file, entry.name,
                                      static_cast<std::uint64_t>(inputs_[entry.input].k())));
  }
  return detail::check_layers(file, [&](std::string_view name) { return find(name) != nullptr; });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
