// SPDX-License-Identifier: Apache-2.0
//
// A teacher's predictions for the rows of examples, stored once and learned from many times: the k
// most probable tokens of each row and what probability is left for all others. In a file 4 bytes a
// token (6 from a vocabulary of 65537 on) and 4 a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/ops/unit_rows.hpp"
#include "nibble/train/data.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// One row of a teacher: probabilities at the temperature of the file.
struct TopRow {
  std::span<const std::uint32_t> ids;  // (k): ascending
  std::span<const f16> logprobs;       // (k): ln p(ids[i]), not above 0
  float rest = 0;                      // of all other tokens together
};

class TopLogits {
 public:
  // Of no examples yet. Errors: invalid_argument (k is not in [1, vocabulary], a temperature that
  // is not positive and finite).
  static Result<TopLogits> create(Index k, Index vocabulary, double temperature = 1) {
    if (k < 1 || k > vocabulary) {
      return wrong("k is " + to_text(k) + ", with a vocabulary of " + to_text(vocabulary));
    }
    if (vocabulary > Index{1} << 31) return wrong("a vocabulary of more than 2^31 tokens");
    if (!(temperature > 0) || !is_finite(temperature))
      return wrong("the temperature is not positive");
    return TopLogits(k, vocabulary, temperature);
  }

  Index k() const noexcept { return k_; }
  Index vocabulary() const noexcept { return vocabulary_; }
  double temperature() const noexcept { return temperature_; }
  Index n_examples() const noexcept { return static_cast<Index>(offsets_.size()) - 1; }
  Index n_rows(Index example) const noexcept { return first_row(example + 1) - first_row(example); }
  // Row `row` of an example: Batch::examples says which example a sequence is.
  TopRow row(Index example, Index row) const noexcept {
    NIBBLE_ASSERT(example < n_examples() && row < n_rows(example));
    const auto r = static_cast<std::size_t>(first_row(example) + row);
    const auto k = static_cast<std::size_t>(k_);
    return {{values(ids_) + r * k, k}, {logprobs_.data() + r * k, k}, rest_[r].value};
  }

  // Adds an example with these rows of logits (m, vocabulary). Errors, which add nothing:
  // invalid_argument (another width, a logit that is NaN or +infinity, or none that is finite),
  // out_of_memory.
  Result<void> add(MatrixView<const float> logits) {
    if (logits.extent(1) != vocabulary_) {
      return wrong("logits of " + to_text(logits.extent(1)) + " tokens instead of " +
                   to_text(vocabulary_));
    }
    const std::size_t n_before = rest_.size();
    Result<void> added = catch_out_of_memory([&]() -> Result<void> {
      std::vector<Scalar<std::uint32_t>> order(static_cast<std::size_t>(vocabulary_));
      for (Index r = 0; r < logits.extent(0); ++r) {
        if (add_row(ops::row_of(logits, r), order)) continue;
        return wrong("row " + to_text(r) +
                     " has a logit that is NaN or +infinity, or none that is "
                     "finite");
      }
      offsets_.push_back({rest_.size()});
      return ok();
    });
    if (!added) {  // nothing remains of it
      rest_.resize(n_before);
      ids_.resize(n_before * static_cast<std::size_t>(k_));
      logprobs_.resize(n_before * static_cast<std::size_t>(k_));
    }
    return added;
  }

  // Errors: those of io::GgufWriter::write.
  Result<void> save(const std::string& path) const {
    return with_writer([&](io::GgufWriter& writer) { return writer.write(path); });
  }
  // The bytes of the file, to be sent, with the keys that `add_keys` sets beside its own. Errors:
  // those of io::GgufWriter::to_bytes.
  Result<std::vector<std::byte>> to_bytes(FunctionRef<void(io::GgufWriter&)> add_keys) const {
    return with_writer([&](io::GgufWriter& writer) {
      add_keys(writer);
      return writer.to_bytes();
    });
  }

  // Errors, which name the file: those of Gguf::open, not_found (a key or tensor), invalid_argument
  // (another kind of file, a temperature that is not positive and finite), malformed (shapes, ids,
  // probabilities that cannot be).
  static Result<TopLogits> load(const std::string& path) {
    NIBBLE_TRY(file, io::Gguf::open(path));
    return of(file);
  }
  // The same for a file that is open. Copies all.
  static Result<TopLogits> of(const io::Gguf& file) {
    return catch_out_of_memory([&]() -> Result<TopLogits> {
      auto made = read(file);
      if (!made) return std::move(made).error().in(file.name());
      return made;
    });
  }

 private:
  TopLogits(Index k, Index vocabulary, double temperature)
      : k_(k), vocabulary_(vocabulary), temperature_(temperature), offsets_(1) {}

  static Error wrong(std::string message) {
    return {Errc::invalid_argument, "top logits: " + std::move(message)};
  }
  static Error malformed(std::string message) {
    return {Errc::malformed, "top logits: " + std::move(message)};
  }
  // use(writer of the file): what it returns.
  template <class Use>
  auto with_writer(Use&& use) const -> decltype(use(std::declval<io::GgufWriter&>())) {
    return catch_out_of_memory([&] {
      io::GgufWriter writer;
      writer.set("general.type", "top_logits");
      writer.set("top_logits.vocabulary", static_cast<std::uint64_t>(vocabulary_));
      writer.set("top_logits.temperature", temperature_);
      writer.set_array("top_logits.offsets", std::span(values(offsets_), offsets_.size()));
      const std::uint64_t dims[] = {static_cast<std::uint64_t>(k_), rest_.size()};
      std::vector<Scalar<std::uint16_t>> narrow_ids;
      if (has_narrow_ids()) {
        for (const auto& [id] : ids_) narrow_ids.push_back({static_cast<std::uint16_t>(id)});
        writer.add_tensor("ids", io::GgmlType::i16, dims, std::as_bytes(std::span(narrow_ids)));
      } else {
        writer.add_tensor("ids", io::GgmlType::i32, dims, std::as_bytes(std::span(ids_)));
      }
      writer.add_tensor("logprobs", io::GgmlType::f16, dims, std::as_bytes(std::span(logprobs_)));
      writer.add_tensor("rest", io::GgmlType::f32, std::span(dims).subspan(1),
                        std::as_bytes(std::span(rest_)));
      return use(writer);
    });
  }
  bool has_narrow_ids() const noexcept { return vocabulary_ <= 65536; }
  Index first_row(Index example) const noexcept {
    return static_cast<Index>(offsets_[static_cast<std::size_t>(example)].value);
  }

  // False: a row that add() refuses. `order` (vocabulary) is scratch.
  bool add_row(const float* logits, std::span<Scalar<std::uint32_t>> order) {
    double most = -static_cast<double>(kInfinity);
    for (Index i = 0; i < vocabulary_; ++i) {
      const auto x = static_cast<double>(logits[i]);
      if (is_nan(x) || (!is_finite(x) && x > 0)) return false;
      most = larger(most, x);
      order[static_cast<std::size_t>(i)].value = static_cast<std::uint32_t>(i);
    }
    if (!is_finite(most)) return false;
    using Id = Scalar<std::uint32_t>;
    const auto top = order.begin() + k_;
    std::partial_sort(order.begin(), top, order.end(), [&](Id a, Id b) {
      const float x = logits[a.value], y = logits[b.value];
      return x != y ? x > y : a.value < b.value;
    });
    std::sort(order.begin(), top, [](Id a, Id b) { return a.value < b.value; });
    const auto mass = [&](auto begin, auto end) {
      double sum = 0;
      for (auto it = begin; it != end; ++it) {
        sum += std::exp((static_cast<double>(logits[it->value]) - most) / temperature_);
      }
      return sum;
    };
    const double of_others = mass(top, order.end()), all = mass(order.begin(), top) + of_others;
    const double log_all = std::log(all);
    for (auto it = order.begin(); it != top; ++it) {
      const double logit = static_cast<double>(logits[it->value]);
      const double logprob = (logit - most) / temperature_ - log_all;
      ids_.push_back(*it);
      logprobs_.push_back(to_f16(static_cast<float>(larger(logprob, -65504.0))));
    }
    rest_.push_back({static_cast<float>(of_others / all)});
    return true;
  }

  static Result<TopLogits> read(const io::Gguf& file) {
    NIBBLE_TRY(type, file.get_string_or("general.type", ""));
    if (type != "top_logits") return wrong("not a file of them");
    NIBBLE_TRY(vocabulary, file.get<Index>("top_logits.vocabulary"));
    NIBBLE_TRY(temperature, file.get<double>("top_logits.temperature"));
    NIBBLE_TRY(offsets, file.get_array<Scalar<std::uint64_t>>("top_logits.offsets"));
    NIBBLE_TRY(ids, file.tensor("ids"));
    NIBBLE_TRY(logprobs, file.tensor("logprobs"));
    NIBBLE_TRY(rest, file.tensor("rest"));
    if (vocabulary < 1 || ids.dims[0] < 1 || ids.dims[0] > static_cast<std::uint64_t>(vocabulary)) {
      return malformed("rows of " + to_text(ids.dims[0]) + " of " + to_text(vocabulary) +
                       " tokens");
    }
    NIBBLE_TRY(made, create(static_cast<Index>(ids.dims[0]), vocabulary, temperature));
    const std::uint64_t n_rows = ids.dims[1];
    const io::GgmlType id_type = made.has_narrow_ids() ? io::GgmlType::i16 : io::GgmlType::i32;
    const bool is_whole = ids.type == id_type && logprobs.type == io::GgmlType::f16 &&
                          rest.type == io::GgmlType::f32 &&
                          ids.n_elements() == ids.dims[0] * n_rows && logprobs.dims == ids.dims &&
                          rest.n_elements() == n_rows;
    if (!is_whole) return malformed("tensors of kinds or shapes that do not fit");
    using Offset = Scalar<std::uint64_t>;
    if (offsets.empty() || offsets.front().value != 0 || offsets.back().value != n_rows ||
        !std::is_sorted(offsets.begin(), offsets.end(),
                        [](Offset a, Offset b) { return a.value < b.value; })) {
      return malformed("examples that are not all rows in order");
    }
    made.offsets_ = std::move(offsets);
    made.copy(ids.data, logprobs.data, rest.data);
    NIBBLE_CHECK(made.validate());
    return made;
  }

  void copy(std::span<const std::byte> ids, std::span<const std::byte> logprobs,
            std::span<const std::byte> rest) {
    logprobs_.resize(logprobs.size() / sizeof(f16));
    rest_.resize(rest.size() / sizeof(float));
    ids_.resize(logprobs_.size());
    if (ids_.empty()) return;
    std::memcpy(logprobs_.data(), logprobs.data(), logprobs.size());
    std::memcpy(rest_.data(), rest.data(), rest.size());
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      ids_[i].value = has_narrow_ids() ? io::load_le<std::uint16_t>(ids.data() + 2 * i)
                                       : io::load_le<std::uint32_t>(ids.data() + 4 * i);
    }
  }

  Result<void> validate() const {
    const auto k = static_cast<std::size_t>(k_);
    for (std::size_t r = 0; r < rest_.size(); ++r) {
      double sum = static_cast<double>(rest_[r].value);
      bool is_right = sum >= 0 && sum <= 1;
      for (std::size_t i = r * k; i < (r + 1) * k; ++i) {
        const auto logprob = static_cast<double>(to_f32(logprobs_[i]));
        is_right = is_right && ids_[i].value < static_cast<std::uint64_t>(vocabulary_) &&
                   (i == r * k || ids_[i - 1].value < ids_[i].value) && logprob <= 0 &&
                   is_finite(logprob);
        sum += std::exp(logprob);
      }
      // f16 has 11 bits, so x = −ln p is off by 2⁻¹¹ x at most, and so is the sum of k
      // probabilities if x is ln k: by 0.011 where k is 2³¹.
      if (!is_right || !(std::fabs(sum - 1) < 0.02)) {
        return malformed("row " + to_text(r) + " has ids or probabilities that cannot be");
      }
    }
    return ok();
  }

  Index k_, vocabulary_;
  double temperature_;
  std::vector<Scalar<std::uint64_t>> offsets_;  // (n_examples + 1): the first row of each
  std::vector<Scalar<std::uint32_t>> ids_;      // (rows, k)
  std::vector<f16> logprobs_;                   // (rows, k)
  std::vector<Scalar<float>> rest_;             // (rows)
};

// The loss of a student's row of logits (vocabulary) against a stored row, at temperature T:
//   KL(p ‖ q) over k + 1 outcomes: the k tokens, and "another one"
// where q is the student's softmax of logits / T and p the teacher's, normalized again after
// rounding. That is the teacher's KL without what is between the other tokens, of which it says
// nothing. Adds `scale` times the gradient to `gradient`; with q_r the student's probability of
// another token and p_r the teacher's:
//   ∂/∂zⱼ = (qⱼ − pⱼ) / T for the k tokens, qⱼ · (1 − p_r / q_r) / T for others
// A loss that keeps its size for any T is T² of this: pass scale = T² · weight.
inline double top_logits_loss(const TopRow& row, double temperature, const float* logits,
                              Index vocabulary, double scale, float* gradient) noexcept {
  double most = static_cast<double>(logits[0]);
  for (Index j = 1; j < vocabulary; ++j) most = larger(most, static_cast<double>(logits[j]));
  const auto weight_of = [&](Index j) {
    return std::exp((static_cast<double>(logits[j]) - most) / temperature);
  };
  // of_token(j, i) for each stored token j = ids[i], of_other(j) for the others.
  const auto visit = [&](auto of_token, auto of_other) {
    std::size_t i = 0;
    for (Index j = 0; j < vocabulary; ++j) {
      if (i < row.ids.size() && row.ids[i] == static_cast<std::uint32_t>(j)) {
        of_token(j, i++);
      } else {
        of_other(j);
      }
    }
  };
  double of_tokens = 0, of_others = 0, p_all = static_cast<double>(row.rest);
  visit(
      [&](Index j, std::size_t i) {
        of_tokens += weight_of(j);
        p_all += std::exp(static_cast<double>(to_f32(row.logprobs[i])));
      },
      [&](Index j) { of_others += weight_of(j); });
  const double all = of_tokens + of_others, log_all = std::log(all), log_p_all = std::log(p_all);
  constexpr double kLeast = 1e-300;  // an infinite loss would help nobody
  const double q_rest = larger(of_others / all, kLeast);
  const double p_rest = static_cast<double>(row.rest) / p_all;
  double loss = p_rest > 0 ? p_rest * std::log(p_rest / q_rest) : 0;
  const double factor = scale / temperature;
  const auto add = [&](Index j, double change) {
    gradient[j] = static_cast<float>(static_cast<double>(gradient[j]) + change);
  };
  visit(
      [&](Index j, std::size_t i) {
        const double logprob = static_cast<double>(to_f32(row.logprobs[i])) - log_p_all;
        const double log_q = (static_cast<double>(logits[j]) - most) / temperature - log_all;
        const double p = std::exp(logprob);
        loss += p * (logprob - log_q);
        add(j, factor * (std::exp(log_q) - p));
      },
      [&](Index j) { add(j, factor * (1 - p_rest / q_rest) * weight_of(j) / all); });
  return loss;
}

// The losses of a batch of which `teacher` has stored the examples: all rows of each, or those that
// count, in order. `logits` and `gradient` (rows, vocabulary) have all rows of the batch or those
// that count. Returns Σ weight · loss over the rows that count, and adds scale · weight times the
// gradients of their losses. `losses` (n_rows) receives weight · loss of each row, 0 of one that
// does not count. The same bits for any number of threads. Error: invalid_argument, if stored rows
// or logits are not those of the batch; nothing has then changed.
inline Result<double> top_logits_loss(Executor& executor, const TopLogits& teacher,
                                      const Batch& batch, MatrixView<const float> logits,
                                      double scale, MatrixView<float> gradient,
                                      std::span<double> losses) {
  NIBBLE_ASSERT(gradient.shape() == logits.shape());
  NIBBLE_ASSERT(static_cast<Index>(losses.size()) >= batch.n_rows());
  const auto n_counted = [&](Index begin, Index end) {
    const float* const weights = batch.weights.data();
    return Index{std::count_if(weights + begin, weights + end, [](float w) { return w > 0; })};
  };
  const bool has_all = logits.extent(0) == batch.n_rows();
  if ((!has_all && logits.extent(0) != batch.n_counted) ||
      logits.extent(1) != teacher.vocabulary()) {
    return Error{Errc::invalid_argument, "top logits: the logits are not those of the batch"};
  }
  for (std::size_t s = 0; s < batch.examples.size(); ++s) {
    const Index begin = batch.offsets[s], end = batch.offsets[s + 1], example = batch.examples[s];
    const Index stored = example < teacher.n_examples() ? teacher.n_rows(example) : -1;
    if (stored == end - begin || stored == n_counted(begin, end)) continue;
    return Error{Errc::invalid_argument,
                 "top logits: the rows of example " + to_text(example) + " are not stored"};
  }
  Index counted = 0;  // before the sequence
  double loss = 0;
  for (std::size_t s = 0; s < batch.examples.size(); ++s) {
    const Index begin = batch.offsets[s], end = batch.offsets[s + 1], example = batch.examples[s];
    const bool stores_all = teacher.n_rows(example) == end - begin;
    executor.parallel_for(end - begin, [&](Index i, Index) {
      const Index row = begin + i, before = n_counted(begin, row);
      const auto weight = static_cast<double>(batch.weights[static_cast<std::size_t>(row)]);
      double& out = losses[static_cast<std::size_t>(row)];
      out = 0;
      if (!(weight > 0)) return;
      const Index at = has_all ? row : counted + before;
      out =
          weight * top_logits_loss(teacher.row(example, stores_all ? i : before),
                                   teacher.temperature(), ops::row_of(logits, at),
                                   teacher.vocabulary(), scale * weight, ops::row_of(gradient, at));
    });
    counted += n_counted(begin, end);
    for (Index row = begin; row < end; ++row) loss += losses[static_cast<std::size_t>(row)];
  }
  return loss;
}

}}}  // namespace nibble::NIBBLE_ABI::train
