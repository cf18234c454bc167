// SPDX-License-Identifier: Apache-2.0
//
// Metrics: counters, gauges and histograms that any thread changes without a lock, and a registry
// that writes all of them in the text format of Prometheus
// (https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4).
//
//   nibble::serve::Registry registry;
//   NIBBLE_TRY(answers, registry.counter("answers_total", "Answers that were given."));
//   answers->add();
//   const std::string text = registry.text();  // for GET /metrics, as kMetricsContentType
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

inline constexpr const char* kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

// Counts up from zero.
class Counter {
 public:
  void add(std::uint64_t n = 1) noexcept { count_.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> count_{0};
};

// A number that goes up and down. Until it is set for the first time it is not in the text: of a
// sensor that a machine does not have there is nothing to say.
class Gauge {
 public:
  void set(double value) noexcept {
    bits_.store(__builtin_bit_cast(std::uint64_t, value), std::memory_order_relaxed);
  }
  double value() const noexcept {  // 0 until it is set
    const std::uint64_t bits = bits_.load(std::memory_order_relaxed);
    return bits == kUnset ? 0 : __builtin_bit_cast(double, bits);
  }
  bool is_set() const noexcept { return bits_.load(std::memory_order_relaxed) != kUnset; }

 private:
  static constexpr std::uint64_t kUnset = 0x7FFC'0000'756E'7365;  // a NaN that nothing computes
  std::atomic<std::uint64_t> bits_{kUnset};
};

// Counts values by buckets, of which each ends at a bound and includes it; the last has no bound.
// Not for NaN, which is left out.
class Histogram {
 public:
  static constexpr std::size_t kMaxBounds = 32;

  explicit Histogram(std::span<const double> bounds) noexcept;  // ascending, at most kMaxBounds

  void observe(double value) noexcept;

  std::size_t n_bounds() const noexcept { return n_bounds_; }
  double bound(std::size_t i) const noexcept { return bounds_[i]; }
  // Of the bucket alone; that of i = n_bounds() has no bound.
  std::uint64_t count(std::size_t i) const noexcept {
    return counts_[i].load(std::memory_order_relaxed);
  }
  std::uint64_t count() const noexcept;  // of all
  double sum() const noexcept {
    return __builtin_bit_cast(double, sum_bits_.load(std::memory_order_relaxed));
  }

 private:
  std::size_t n_bounds_ = 0;
  double bounds_[kMaxBounds] = {};
  std::atomic<std::uint64_t> counts_[kMaxBounds + 1] = {};
  std::atomic<std::uint64_t> sum_bits_{0};
};

// A metric's labels: names and any texts.
struct Label {
  std::string name, value;
};
using Labels = std::vector<Label>;

// The metrics of a program. What it gives lives, where it is, as long as it does. All functions may
// be called from any thread; they take a lock, but changing a metric does not.
class Registry {
 public:
  Registry() noexcept;
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;
  ~Registry();

  // The metric of this name and these labels, which is made if there is none yet. Metrics of one
  // name that differ by labels have the same kind and the help of the first; the text lists them
  // together. `help` is a sentence for people.
  // Errors: invalid_argument (a name that is not [a-zA-Z_:][a-zA-Z0-9_:]*, a label's not
  // [a-zA-Z_][a-zA-Z0-9_]* or twice or "le", which histograms use; the name of another kind; bounds
  // that do not ascend, are not finite, or are none or more than Histogram::kMaxBounds; other
  // bounds or another unit than before), out_of_memory.
  //
  // The text has a counter's count times `unit`: 1e-6 of a counter of microjoules gives joules.
  Result<Counter*> counter(std::string_view name, std::string_view help, const Labels& labels = {},
                           double unit = 1);
  Result<Gauge*> gauge(std::string_view name, std::string_view help, const Labels& labels = {});
  Result<Histogram*> histogram(std::string_view name, std::string_view help,
                               std::span<const double> bounds, const Labels& labels = {});

  // All metrics, in the order in which their names came. While others change them, each number is
  // one that the metric had; a histogram's count is the sum of its buckets. Errors: out_of_memory.
  Result<std::string> text() const;

 private:
  struct Family;
  enum class Kind : unsigned char { counter, gauge, histogram };
  struct Metric;
  Result<Metric*> find_or_make(Kind kind, std::string_view name, std::string_view help,
                               const Labels& labels, std::span<const double> bounds, double unit);

  mutable std::atomic<std::uint32_t> mutex_{0};
  std::vector<Owned<Family>> families_;
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/metrics-inl.hpp"
#endif
