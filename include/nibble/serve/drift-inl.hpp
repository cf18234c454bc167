// SPDX-License-Identifier: Apache-2.0
//
// The functions of drift. Included by drift.hpp.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/libm.hpp"
#include "nibble/serve/drift.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

inline double sum_of(std::span<const std::uint64_t> counts) noexcept {
  double sum = 0;
  for (const std::uint64_t n : counts) sum += static_cast<double>(n);
  return sum;
}

}  // namespace detail

NIBBLE_INLINE double stability_index(std::span<const std::uint64_t> reference,
                                     std::span<const std::uint64_t> now) noexcept {
  NIBBLE_ASSERT(reference.size() == now.size());
  const double n_reference = detail::sum_of(reference), n_now = detail::sum_of(now);
  if (!(n_reference > 0) || !(n_now > 0)) return 0;
  const double more = static_cast<double>(reference.size()) / 2;
  double sum = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double p = (static_cast<double>(reference[i]) + 0.5) / (n_reference + more);
    const double q = (static_cast<double>(now[i]) + 0.5) / (n_now + more);
    sum += (q - p) * libm::log(q / p);
  }
  return sum;
}

// The quantile of chi-squared by E. B. Wilson and M. M. Hilferty, "The Distribution of Chi-Square",
// 1931: within 1 % for 0.999 from one degree of freedom on.
NIBBLE_INLINE double stability_bound(std::size_t n_buckets, std::uint64_t n_reference,
                                     std::uint64_t n_now) noexcept {
  if (n_buckets < 2 || n_reference == 0 || n_now == 0) return static_cast<double>(kInfinity);
  constexpr double kQuantile = 3.090232306167813;  // of a normal distribution, 0.999
  const double k = static_cast<double>(n_buckets - 1), v = 2 / (9 * k);
  const double root = 1 - v + kQuantile * libm::sqrt(v);
  return k * root * root * root *
         (1 / static_cast<double>(n_reference) + 1 / static_cast<double>(n_now));
}

NIBBLE_INLINE DriftWindow::DriftWindow(std::size_t n_buckets) noexcept : n_buckets_(n_buckets) {
  NIBBLE_ASSERT(n_buckets >= 2 && n_buckets <= kMaxBuckets);
}

NIBBLE_INLINE std::uint64_t DriftWindow::n() const noexcept {
  std::uint64_t n = 0;
  for (std::size_t i = 0; i < n_buckets_; ++i) n += counts_[i].load(std::memory_order_relaxed);
  return n;
}

NIBBLE_INLINE BucketCounts DriftWindow::take() {
  BucketCounts taken(n_buckets_);
  for (std::size_t i = 0; i < n_buckets_; ++i) {
    taken[i] = counts_[i].exchange(0, std::memory_order_relaxed);
  }
  return taken;
}

// ---- The reference -----------------------------------------------------------------------------

NIBBLE_INLINE std::string DriftReference::text() const {
  std::string out;
  const auto append = [&](const char* name, const BucketCounts& counts) {
    out += name;
    for (const std::uint64_t n : counts) out.append(" ").append(to_text(n));
    out += '\n';
  };
  append("tokens", tokens);
  append("confidence", confidence);
  return out;
}

NIBBLE_INLINE Result<DriftReference> DriftReference::parse(std::string_view text) {
  return catch_out_of_memory([&]() -> Result<DriftReference> {
    constexpr std::uint64_t kMost = std::uint64_t{1} << 63;
    const auto bad = [](const char* name, const std::string& what) {
      return Error{Errc::malformed, std::string("reference of drift, ") + name + ": " + what};
    };
    const auto read = [&](const char* name, BucketCounts& counts,
                          std::size_t n_buckets) -> Result<void> {
      const std::size_t end = text.find('\n');
      if (end == text.npos) return bad(name, "the line is missing");
      std::string_view line = text.substr(0, end);
      text.remove_prefix(end + 1);
      if (!line.starts_with(name)) return bad(name, "the line begins otherwise");
      line.remove_prefix(std::string_view(name).size());
      std::uint64_t sum = 0;
      while (!line.empty()) {
        if (line[0] != ' ' || counts.size() == n_buckets) break;
        line.remove_prefix(1);
        std::uint64_t n = 0;
        std::size_t n_digits = 0;
        while (n_digits < line.size() && line[n_digits] >= '0' && line[n_digits] <= '9') {
          const auto digit = static_cast<std::uint64_t>(line[n_digits++] - '0');
          if (n > (kMost - digit) / 10) return bad(name, "a count is too large");
          n = n * 10 + digit;
        }
        if (n_digits == 0) break;
        line.remove_prefix(n_digits);
        if (n > kMost - sum) return bad(name, "the counts are too large");
        sum += n;
        counts.push_back(n);
      }
      if (!line.empty() || counts.size() != n_buckets) {
        return bad(name, "not " + to_text(n_buckets) + " counts, with a space before each");
      }
      if (sum == 0) return bad(name, "there are no samples");
      return ok();
    };
    DriftReference reference;
    NIBBLE_CHECK(read("tokens", reference.tokens, DriftMonitor::kTokenBuckets));
    NIBBLE_CHECK(read("confidence", reference.confidence, DriftMonitor::kConfidenceBuckets));
    if (!text.empty()) return bad("confidence", "there is more behind the line");
    return reference;
  });
}

// ---- The monitor -------------------------------------------------------------------------------

NIBBLE_INLINE Result<Owned<DriftMonitor>> DriftMonitor::create(
    Registry& registry, const DriftOptions& options, std::optional<DriftReference> reference) {
  return catch_out_of_memory([&]() -> Result<Owned<DriftMonitor>> {
    Owned<DriftMonitor> made(new (std::nothrow) DriftMonitor(options.threshold));
    if (!made) return Error{Errc::out_of_memory, "a monitor of drift"};
    made->tokens_.n_needed = options.window_tokens;
    made->confidence_.n_needed = options.window_answers;
    NIBBLE_CHECK(made->tokens_.create(registry, options, "input"));
    NIBBLE_CHECK(made->confidence_.create(registry, options, "confidence"));
    if (!reference) return made;
    if (reference->tokens.size() != kTokenBuckets ||
        reference->confidence.size() != kConfidenceBuckets) {
      return Error{Errc::invalid_argument, "drift: the reference has other numbers of buckets"};
    }
    made->tokens_.reference = std::move(reference->tokens);
    made->confidence_.reference = std::move(reference->confidence);
    return made;
  });
}

NIBBLE_INLINE Result<void> DriftMonitor::Part::create(Registry& registry,
                                                      const DriftOptions& options,
                                                      const std::string& name) {
  NIBBLE_TRY(gauge,
             registry.gauge(options.prefix + name + "_drift_psi",
                            "Population stability index of the last window.", options.labels));
  index = gauge;
  const auto windows = [&](const char* result) {
    Labels labels = options.labels;
    labels.push_back({"result", result});
    return registry.counter(options.prefix + name + "_drift_windows_total",
                            "Windows that were compared with the reference.", labels);
  };
  NIBBLE_TRY(of_same, windows("same"));
  NIBBLE_TRY(of_drifted, windows("drifted"));
  same = of_same;
  drifted = of_drifted;
  return ok();
}

NIBBLE_INLINE void DriftMonitor::record_prompt(std::span<const std::int32_t> tokens) noexcept {
  for (const std::int32_t id : tokens) {
    const std::uint32_t hash = static_cast<std::uint32_t>(id) * 2654435769u;  // 2^32 / golden ratio
    tokens_.window.record(hash >> 26);  // kTokenBuckets are 2^6
  }
}

NIBBLE_INLINE void DriftMonitor::record_answer(double mean_logprob) noexcept {
  const double confidence = libm::exp(mean_logprob);
  if (!(confidence >= 0)) return;
  const double scaled = confidence * static_cast<double>(kConfidenceBuckets);
  confidence_.window.record(scaled < static_cast<double>(kConfidenceBuckets)
                                ? static_cast<std::size_t>(scaled)
                                : kConfidenceBuckets - 1);
}

NIBBLE_INLINE void DriftMonitor::Part::compare(double threshold) {
  if (window.n() < (n_needed > 0 ? n_needed : 1)) return;
  BucketCounts now = window.take();
  if (reference.empty()) {
    reference = std::move(now);
    return;
  }
  const double psi = stability_index(reference, now);
  const double bound =
      stability_bound(now.size(), static_cast<std::uint64_t>(detail::sum_of(reference)),
                      static_cast<std::uint64_t>(detail::sum_of(now)));
  const bool is_far = psi > threshold && psi > bound;
  index->set(psi);
  (is_far ? drifted : same)->add();
  has_drifted.store(is_far);
}

NIBBLE_INLINE Result<void> DriftMonitor::evaluate() {
  return catch_out_of_memory([&]() -> Result<void> {
    tokens_.compare(threshold_);
    confidence_.compare(threshold_);
    return ok();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
