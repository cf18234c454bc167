// SPDX-License-Identifier: Apache-2.0
//
// Text and measurement of Tuning. Included by tuning.hpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nibble/core/arena.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/core/text.hpp"
#include "nibble/model/tuning.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"

namespace nibble { inline namespace NIBBLE_ABI {
namespace detail {

NIBBLE_HIDDEN inline constexpr const char* kFetchNames[] = {"none", "once", "l1", "l2"};

inline std::string fetch_text(Fetch into, Index distance) {
  std::string text = kFetchNames[static_cast<std::size_t>(into)];
  if (into != Fetch::none) text += '@' + to_text(distance);
  return text;
}

// One `name=value` of a text.
class TuningField {
 public:
  explicit TuningField(std::string_view field) : field_(field) {
    const std::size_t at = field.find('=');
    name_ = field.substr(0, at);
    if (at != std::string_view::npos) value_ = field.substr(at + 1);
  }

  Result<void> read_into(Tuning& tuning) const {
    if (name_ == "weights") return stream(tuning.weights, tuning.weights_distance);
    if (name_ == "cache") return stream(tuning.cache, tuning.cache_distance);
    if (name_ == "many_rows") return fetch(value_, tuning.many_rows);
    if (name_ == "tasks_per_worker") return number(value_, tuning.tasks_per_worker);
    if (name_ == "rows_per_task") return number(value_, tuning.rows_per_task);
    return error(": the names are weights, cache, many_rows, tasks_per_worker and rows_per_task");
  }

 private:
  Error error(const std::string& why) const {
    return Error{Errc::invalid_argument,
                 "tuning '" + std::string(field_.substr(0, 64)) + "'" + why};
  }
  Result<void> fetch(std::string_view text, Fetch& out) const {
    for (std::size_t i = 0; i < std::size(kFetchNames); ++i) {
      if (text != kFetchNames[i]) continue;
      out = static_cast<Fetch>(i);
      return ok();
    }
    return error(": data is fetched into none, once, l1 or l2");
  }
  Result<void> stream(Fetch& into, Index& distance) const {
    const std::size_t at = value_.find('@');
    NIBBLE_CHECK(fetch(value_.substr(0, at), into));
    if (at == std::string_view::npos) return ok();
    return number(value_.substr(at + 1), distance);
  }
  Result<void> number(std::string_view text, Index& out) const {
    Index n = 0;
    bool is_number = !text.empty() && text.size() <= 8;
    for (const char c : text) {
      is_number = is_number && c >= '0' && c <= '9';
      if (is_number) n = 10 * n + (c - '0');
    }
    if (!is_number) return error(": not a number");
    out = n;
    return ok();
  }

  std::string_view field_, name_, value_;
};

// Reads weights as generation does, and takes the time.
class WeightReader {
 public:
  WeightReader(std::span<const graph::Weight> weights, Executor& executor)
      : weights_(weights), executor_(executor) {
    for (const graph::Weight& w : weights) {
      if (!is_read(w)) continue;
      total_ += w.bytes() / w.n_experts;  // read() reads the first
      max_n_ = (std::max)(max_n_, w.n);
      max_k_ = (std::max)(max_k_, w.k);
    }
  }

  Index total() const noexcept { return total_; }

  // Memory for the rows of the largest product; false if there is none.
  bool allocate() {
    const std::size_t of_input = ops::ZeroRow::bytes_needed(max_k_);
    auto memory =
        AlignedBuffer::allocate(of_input + static_cast<std::size_t>(max_n_) * sizeof(float));
    if (!memory) return false;
    memory_ = *std::move(memory);
    input_ = ops::ZeroRow::over(memory_.bytes(), max_k_);
    out_ = reinterpret_cast<float*>(memory_.data() + of_input);
    return true;
  }

  // Nanoseconds per MiB of the next weights, at least `bytes` of them. After the last come the
  // first.
  double time(Index bytes, const Tuning& tuning) noexcept {
    Index done = 0;
    const std::int64_t start = monotonic_nanoseconds();
    while (done < bytes) done += read(bytes - done, tuning);
    const auto nanoseconds = static_cast<double>(monotonic_nanoseconds() - start);
    return nanoseconds * (1 << 20) / static_cast<double>(done);
  }

 private:
  static bool is_read(const graph::Weight& w) noexcept { return w.has_base() && !w.is_vector(); }

  // Multiplies with the next panels of one matrix, about `bytes` of them.
  Index read(Index bytes, const Tuning& tuning) noexcept {
    while (!is_read(weights_[at_]) || panel_ >= quant::n_panels(weights_[at_].n)) {
      at_ = (at_ + 1) % weights_.size();
      panel_ = 0;
    }
    const graph::Weight& w = weights_[at_];
    // On average: panels of sparse matrices differ.
    const Index panel_bytes = w.bytes() / w.n_experts / quant::n_panels(w.n);
    const Index n_panels =
        (std::min)(quant::n_panels(w.n) - panel_, std::max<Index>(1, bytes / panel_bytes));
    ops::Product product{w.ops->matmul(), {}};
    product.args.input = input_;
    product.args.m = 1;
    product.args.weights = w.data;
    product.args.n = w.n;
    product.args.k = w.k;
    product.args.first_panel = panel_;
    product.args.end_panel = panel_ + n_panels;
    product.args.out = out_;
    product.args.out_stride = max_n_;
    product.args.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();
    ops::run(executor_, {&product, 1}, tuning);
    panel_ += n_panels;
    return n_panels * panel_bytes;
  }

  std::span<const graph::Weight> weights_;
  Executor& executor_;
  Index total_ = 0;
  Index max_n_ = 0;
  Index max_k_ = 0;
  AlignedBuffer memory_;
  kernels::MatmulInput input_;
  float* out_ = nullptr;
  std::size_t at_ = 0;
  Index panel_ = 0;
};

}  // namespace detail

NIBBLE_INLINE std::string to_string(const Tuning& t) {
  return "weights=" + detail::fetch_text(t.weights, t.weights_distance) +
         " cache=" + detail::fetch_text(t.cache, t.cache_distance) +
         " many_rows=" + detail::kFetchNames[static_cast<std::size_t>(t.many_rows)] +
         " tasks_per_worker=" + to_text(t.tasks_per_worker) +
         " rows_per_task=" + to_text(t.rows_per_task);
}

NIBBLE_INLINE Result<void> check_tuning(const Tuning& t) {
  const struct {
    const char* name;
    Index value, least, most;
  } fields[] = {{"weights' distance", t.weights_distance, 0, 1 << 20},
                {"cache's distance", t.cache_distance, 0, 1 << 20},
                {"tasks_per_worker", t.tasks_per_worker, 1, 64},
                {"rows_per_task", t.rows_per_task, 1, 4096}};
  for (const auto& field : fields) {
    if (field.value >= field.least && field.value <= field.most) continue;
    return Error{Errc::invalid_argument, std::string("tuning: ") + field.name + " is " +
                                             to_text(field.value) + "; it must be from " +
                                             to_text(field.least) + " to " + to_text(field.most)};
  }
  return ok();
}

NIBBLE_INLINE Result<Tuning> parse_tuning(std::string_view text) {
  Tuning tuning = {};
  while (!text.empty()) {
    const std::size_t end = (std::min)(text.find(' '), text.size());
    if (end > 0) NIBBLE_CHECK(detail::TuningField(text.substr(0, end)).read_into(tuning));
    text.remove_prefix((std::min)(end + 1, text.size()));
  }
  NIBBLE_CHECK(check_tuning(tuning));
  return tuning;
}

NIBBLE_INLINE Tuning measure_tuning(std::span<const graph::Weight> weights, Executor& executor,
                                    const Tuning& from) {
  constexpr Index kLeast = Index{4} << 20;
  constexpr Index kMost = Index{48} << 20;
  constexpr Index kDistances[] = {5 * 1024, 10 * 1024, 20 * 1024};

  detail::WeightReader reader(weights, executor);
  if (reader.total() < kLeast || !reader.allocate()) return from;

  struct Candidate {
    Tuning tuning = {};
    double times[3] = {};
    double median() const {
      const auto [a, b, c] = times;
      const double low = a < b ? a : b, high = a < b ? b : a;
      return c < low ? low : c < high ? c : high;
    }
  };
  Candidate candidates[8];
  int n = 0;
  candidates[n++].tuning = from;
  for (const Fetch into : {Fetch::none, Fetch::l1, Fetch::once}) {
    for (const Index distance : kDistances) {
      Tuning tuning = from;
      tuning.weights = tuning.cache = into;
      if (into != Fetch::none) tuning.weights_distance = distance;
      if (into == Fetch::none && distance != kDistances[0]) continue;
      candidates[n++].tuning = tuning;
    }
  }

  const Index all = (std::min)(reader.total(), kMost);
  reader.time(all, from);  // reads pages of a file into memory
  // Each measurement goes on where the one before it ended, so that none finds its weights in a
  // cache unless generation does as well.
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < n; ++i) {
      candidates[i].times[round] = reader.time(all / (3 * n), candidates[i].tuning);
    }
  }
  const Candidate* best = &candidates[0];
  double best_time = 0.97 * best->median();
  for (int i = 1; i < n; ++i) {
    const double time = candidates[i].median();
    if (time >= best_time) continue;
    best = &candidates[i];
    best_time = time;
  }
  return best->tuning;
}

}}  // namespace nibble::NIBBLE_ABI
