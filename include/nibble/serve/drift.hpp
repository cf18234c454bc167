// SPDX-License-Identifier: Apache-2.0
//
// Drift: whether what a model is asked, and how sure it is of its answers, is still distributed as
// it was when the model was chosen. Recording takes no lock and no memory, from any thread.
//
// The measure is the population stability index of two distributions p (reference) and q (now) over
// the same buckets,
//
//   PSI = sum of (q_i - p_i) ln(q_i / p_i),
//
// which is the symmetric divergence of H. Jeffreys ("An invariant form for the prior probability in
// estimation problems", Proc. R. Soc. A 186, 1946): KL(q, p) + KL(p, q). The name, and the rule of
// thumb that 0.1 deserves a look and 0.25 is a change, are from credit scoring (N. Siddiqi, "Credit
// Risk Scorecards", 2006). Both depend on the numbers of samples: without any drift, PSI is about
// (1/n + 1/m) times chi-squared with B - 1 degrees of freedom, for B buckets and n and m samples
// (B. Yurdakul, "Statistical Properties of Population Stability Index", 2018). So what counts as
// drift here is PSI beyond the rule of thumb and beyond that distribution's quantile. (The tokens
// of one prompt are not independent: of them the quantile alone would say too much.)
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/serve/metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// Counts of samples by buckets.
using BucketCounts = std::vector<std::uint64_t>;

// PSI of two tables of counts of the same length. Half a sample more is counted in each bucket of
// both, so that an empty one gives no infinity. 0 if one has no samples.
double stability_index(std::span<const std::uint64_t> reference,
                       std::span<const std::uint64_t> now) noexcept;
// What PSI is not above without drift, but for 1 in 1 000 cases.
double stability_bound(std::size_t n_buckets, std::uint64_t n_reference,
                       std::uint64_t n_now) noexcept;

// A distribution that is recorded, window after window, and compared with a reference.
class DriftWindow {
 public:
  static constexpr std::size_t kMaxBuckets = 64;

  explicit DriftWindow(std::size_t n_buckets) noexcept;  // from 2 to kMaxBuckets

  void record(std::size_t bucket) noexcept {
    counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  }
  std::size_t n_buckets() const noexcept { return n_buckets_; }
  std::uint64_t n() const noexcept;  // samples in the window
  // What was recorded since the last call, of which each sample is in one window and no other.
  BucketCounts take();

 private:
  std::size_t n_buckets_;
  std::atomic<std::uint64_t> counts_[kMaxBuckets] = {};
};

// What is compared with, and the same as a text of two lines, for a file.
struct DriftReference {
  BucketCounts tokens, confidence;  // of DriftMonitor's buckets

  std::string text() const;
  // Errors: malformed (not such a text, other numbers of buckets, no samples, counts whose sum is
  // above 2^63).
  static Result<DriftReference> parse(std::string_view text);
};

struct DriftOptions {
  std::uint64_t window_tokens = 20'000, window_answers = 500;  // samples that a comparison needs
  double threshold = 0.25;                                     // of PSI, see above
  std::string prefix = "nibble_";                              // of the metrics
  Labels labels = {};
};

// Drift of what is asked (the tokens of prompts, in 64 buckets by a hash of their ids) and of
// confidence (the geometric mean of the probabilities of an answer's tokens, in 10 equal buckets of
// 0 to 1).
class DriftMonitor {
 public:
  static constexpr std::size_t kTokenBuckets = 64, kConfidenceBuckets = 10;

  // Without a reference, the first full windows become it. Metrics in the registry, which must
  // outlive this: input_drift_psi and confidence_drift_psi of the last full windows, and
  // input_drift_windows_total and confidence_drift_windows_total by result (same, drifted). Errors:
  // those of Registry, invalid_argument (a reference of other numbers of buckets).
  static Result<Owned<DriftMonitor>> create(Registry& registry, const DriftOptions& options = {},
                                            std::optional<DriftReference> reference = {});

  void record_prompt(std::span<const std::int32_t> tokens) noexcept;
  void record_answer(double mean_logprob) noexcept;

  // Compares those windows that are full, and begins new ones. By one thread at a time, now and
  // then. Errors: out_of_memory.
  Result<void> evaluate();
  // Whether the last full window of either has drifted.
  bool has_drifted() const noexcept { return tokens_.has_drifted || confidence_.has_drifted; }
  // The reference, as far as there is one: of the thread that evaluates.
  DriftReference reference() const { return {tokens_.reference, confidence_.reference}; }

 private:
  struct Part {
    explicit Part(std::size_t n_buckets) noexcept : window(n_buckets) {}
    Result<void> create(Registry& registry, const DriftOptions& options, const std::string& name);
    void compare(double threshold);

    DriftWindow window;
    std::uint64_t n_needed = 0;
    BucketCounts reference;  // empty: none yet
    std::atomic<bool> has_drifted{false};
    Gauge* index = nullptr;
    Counter *same = nullptr, *drifted = nullptr;
  };
  explicit DriftMonitor(double threshold) noexcept : threshold_(threshold) {}

  double threshold_;
  Part tokens_{kTokenBuckets}, confidence_{kConfidenceBuckets};
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/drift-inl.hpp"
#endif
