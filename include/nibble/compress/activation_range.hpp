// SPDX-License-Identifier: Apache-2.0
//
// The range of 8-bit codes for numbers whose distribution is known from calibration: how much of
// the tail to clip, so that the rest gets finer steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/compress/histogram.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

enum class RangeMethod : unsigned char {
  min_max,     // all that was seen
  percentile,  // all but the share 1 − percentile/100 of the numbers, the largest
  kl,          // the least Kullback-Leibler divergence of the distribution from its coarser self
  mse,         // the least mean squared error
};

constexpr const char* to_string(RangeMethod method) noexcept {
  switch (method) {
    case RangeMethod::min_max: return "min/max";
    case RangeMethod::percentile: return "percentile";
    case RangeMethod::kl: return "KL";
    case RangeMethod::mse: return "MSE";
  }
  return "?";
}

struct RangeOptions {
  RangeMethod method = RangeMethod::min_max;
  bool is_unsigned = false;  // codes 0 … 255 with a zero point; otherwise −127 … 127 around zero
  double percentile = 99.999;  // more than 0, at most 100
};

// A range as kernels take it, and how well it fits.
struct ActivationRange {
  quant::StaticScale scale;
  double clipped = 0;  // share of the numbers beyond the range by more than half a step
  double error = 0;    // mean squared error of the codes, as far as the histogram knows the numbers

  // The numbers of the smallest and of the largest code.
  constexpr float low() const noexcept { return value_of(scale.stored_low()); }
  constexpr float high() const noexcept { return value_of(scale.stored_high()); }

 private:
  constexpr float value_of(std::int32_t stored) const noexcept {
    return quant::value_of(scale, static_cast<std::int8_t>(stored));
  }
};

// The numbers that a range is chosen for: how they are distributed, and the smallest and the
// largest.
struct ObservedNumbers {
  const Histogram& histogram;
  float smallest = 0.0f;
  float largest = 0.0f;
};

namespace detail {

inline constexpr auto kMinScale = static_cast<double>(quant::kMinStaticScale);

// Symmetric codes that reach `size`, or unsigned ones from `low` to `high`, both widened to zero.
inline ActivationRange symmetric_range(double size) noexcept {
  ActivationRange r;
  r.scale.scale = static_cast<float>(larger(size / 127, kMinScale));
  return r;
}
inline ActivationRange unsigned_range(double low, double high) noexcept {
  low = smaller(low, 0.0);
  high = larger(high, 0.0);
  ActivationRange r;
  r.scale.is_unsigned = true;
  const double step = larger((high - low) / 255, kMinScale);
  r.scale.scale = static_cast<float>(step);
  r.scale.zero_point = static_cast<std::int32_t>(std::lround(smaller(-low / step, 255.0)));
  return r;
}

// Calls f(number, count) for each bin that holds numbers, with the middle of the bin, or the
// largest number if that is nearer to zero, and for zero.
template <class F>
void for_each_bin(const ObservedNumbers& x, const F& f) {
  if (x.histogram.n_zeros() > 0) f(0.0, static_cast<double>(x.histogram.n_zeros()));
  const double width = x.histogram.bin_width();
  const auto above = x.histogram.above_zero(), below = x.histogram.below_zero();
  for (std::size_t i = 0; i < above.size(); ++i) {
    const double middle = (static_cast<double>(i) + 0.5) * width;
    if (above[i] > 0) {
      f(smaller(middle, static_cast<double>(x.largest)), static_cast<double>(above[i]));
    }
    if (below[i] > 0) {
      f(larger(-middle, static_cast<double>(x.smallest)), static_cast<double>(below[i]));
    }
  }
}

// Sets clipped and error.
inline void judge(const ObservedNumbers& x, ActivationRange& r) {
  const double scale = static_cast<double>(r.scale.scale), inverse = 1 / scale;
  const auto low = static_cast<double>(r.scale.stored_low() - r.scale.stored_zero());
  const auto high = static_cast<double>(r.scale.stored_high() - r.scale.stored_zero());
  double n = 0, n_clipped = 0, sum = 0;
  for_each_bin(x, [&](double v, double count) {
    const double steps = v * inverse;
    n += count;
    if (steps < low - 0.5 || steps > high + 0.5) n_clipped += count;
    const double code = std::floor(smaller(larger(steps, low), high) + 0.5);
    const double miss = v - code * scale;
    sum += count * miss * miss;
  });
  r.clipped = n > 0 ? n_clipped / n : 0;
  r.error = n > 0 ? sum / n : 0;
}

// The least bound such that the numbers of `counts` beyond it are at most `n_beyond`; the upper
// edge of a bin.
inline double bound_of(std::span<const std::uint64_t> counts, double width, double n_beyond) {
  double n = 0;
  for (std::size_t i = counts.size(); i-- > 0;) {
    n += static_cast<double>(counts[i]);
    if (n > n_beyond) return static_cast<double>(i + 1) * width;
  }
  return 0;
}

// Both sides of zero together, by size; zeros are in the first bin.
inline std::vector<Scalar<double>> sizes_of(const Histogram& h) {
  const auto above = h.above_zero(), below = h.below_zero();
  std::vector<Scalar<double>> sizes(above.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    sizes[i].value = static_cast<double>(above[i]) + static_cast<double>(below[i]);
  }
  sizes[0].value += static_cast<double>(h.n_zeros());
  return sizes;
}

// The number of bins t for which the distribution of the sizes below t, with all larger ones in the
// last of these bins, diverges least (Kullback-Leibler) from itself in n_levels levels: the count
// of a level is spread evenly over those of its bins that hold numbers (Migacz, 8-bit inference
// with TensorRT, 2017). A t whose last bin is empty but for larger sizes diverges infinitely. Sums
// over bins are kept, so that a candidate costs n_levels steps.
inline std::size_t least_divergent_bins(const std::vector<Scalar<double>>& sizes,
                                        std::size_t n_levels) {
  const std::size_t n_bins = sizes.size();
  // Of the bins before each: counts, how many are not empty, Σ p ln p.
  std::vector<Scalar<double>> count(n_bins + 1), filled(n_bins + 1), entropy(n_bins + 1);
  const auto x_log_x = [](double x) { return x > 0 ? x * std::log(x) : 0.0; };
  for (std::size_t i = 0; i < n_bins; ++i) {
    count[i + 1].value = count[i].value + sizes[i].value;
    filled[i + 1].value = filled[i].value + (sizes[i].value > 0 ? 1 : 0);
    entropy[i + 1].value = entropy[i].value + x_log_x(sizes[i].value);
  }
  const double total = count[n_bins].value;
  std::size_t best = n_bins;
  double least = 0;
  bool is_first = true;
  for (std::size_t t = n_levels; t <= n_bins; ++t) {
    if (sizes[t - 1].value == 0) continue;
    const double tail = total - count[t].value, inside = count[t].value;
    const double last = sizes[t - 1].value + tail;
    // Σ p ln(p / total) − Σ p ln(q / inside), where p and q are counts.
    double divergence = entropy[t - 1].value + x_log_x(last) - total * std::log(total / inside);
    for (std::size_t level = 0; level < n_levels; ++level) {
      const std::size_t begin = level * t / n_levels, end = (level + 1) * t / n_levels;
      const double in_level = count[end].value - count[begin].value;
      if (in_level == 0) continue;
      const double p = in_level + (level + 1 == n_levels ? tail : 0);
      divergence -= p * std::log(in_level / (filled[end].value - filled[begin].value));
    }
    if (is_first || divergence < least) {
      least = divergence;
      best = t;
      is_first = false;
    }
  }
  return best;
}

inline ActivationRange percentile_range(const ObservedNumbers& x, const RangeOptions& options) {
  const Histogram& h = x.histogram;
  const double width = h.bin_width();
  const double n_beyond =
      static_cast<double>(h.n_values()) * (1 - options.percentile / 100) * (1 + 1e-12);
  const double low = static_cast<double>(x.smallest), high = static_cast<double>(x.largest);
  if (options.is_unsigned) {  // half of it at each end
    return unsigned_range(larger(low, -bound_of(h.below_zero(), width, n_beyond / 2)),
                          smaller(high, bound_of(h.above_zero(), width, n_beyond / 2)));
  }
  const auto sizes = sizes_of(h);
  double n = 0;
  std::size_t i = sizes.size();
  while (i > 1 && n + sizes[i - 1].value <= n_beyond) n += sizes[--i].value;
  return symmetric_range(smaller(larger(-low, high), static_cast<double>(i) * width));
}

inline ActivationRange kl_range(const ObservedNumbers& x, const RangeOptions& options) {
  const double low = static_cast<double>(x.smallest), high = static_cast<double>(x.largest);
  // Codes for the sizes: half of them, unless all numbers are on one side of zero.
  const bool is_one_sided = options.is_unsigned && (low >= 0 || high <= 0);
  const std::size_t t = least_divergent_bins(sizes_of(x.histogram), is_one_sided ? 256 : 128);
  const double bound = static_cast<double>(t) * x.histogram.bin_width();
  if (options.is_unsigned) return unsigned_range(larger(low, -bound), smaller(high, bound));
  return symmetric_range(smaller(larger(-low, high), bound));
}

// Tries shares of the whole range, then finer ones around the best.
inline ActivationRange mse_range(const ObservedNumbers& x, const RangeOptions& options) {
  const double low = smaller(static_cast<double>(x.smallest), 0.0);
  const double high = larger(static_cast<double>(x.largest), 0.0);
  ActivationRange best;
  double best_low = 1, best_high = 1;
  bool is_first = true;
  const auto attempt = [&](double share_low, double share_high) {
    if (!(share_low > 0 && share_low <= 1 && share_high > 0 && share_high <= 1)) return;
    ActivationRange r = options.is_unsigned ? unsigned_range(share_low * low, share_high * high)
                                            : symmetric_range(share_high * larger(-low, high));
    judge(x, r);
    if (!is_first && !(r.error < best.error)) return;
    is_first = false;
    best = r;
    best_low = share_low;
    best_high = share_high;
  };
  constexpr int kSteps = 32;
  const bool tries_both = options.is_unsigned && low < 0 && high > 0;
  for (int i = kSteps; i >= 1; --i) {
    const double share = static_cast<double>(i) / kSteps;
    if (!tries_both) attempt(share, share);
    for (int j = kSteps; tries_both && j >= 1; --j) {
      attempt(static_cast<double>(j) / kSteps, share);
    }
  }
  for (double step = 0.5 / kSteps; step > 1e-4; step /= 2) {
    const double from_low = best_low, from_high = best_high;
    for (int i = -1; i <= 1; ++i) {
      for (int j = -1; j <= 1; ++j) {
        if (tries_both || i == j) attempt(from_low + i * step, from_high + j * step);
      }
    }
  }
  return best;
}

}  // namespace detail

// The codes that hold the numbers from `low` to `high`, and zero. Numbers that are all zero get the
// scale quant::kMinStaticScale. Errors: invalid_argument (bounds that are not finite), limit
// (beyond 2^106).
inline Result<quant::StaticScale> scale_between(double low, double high, bool is_unsigned) {
  if (!is_finite(low) || !is_finite(high)) {
    return Error{Errc::invalid_argument, "range: a bound is not finite"};
  }
  const double size = larger(-low, high);
  if (size / 127 > static_cast<double>(quant::kMaxStaticScale)) {
    return Error{Errc::limit, "range: numbers up to " + to_text(size) + " have no 8-bit scale"};
  }
  return is_unsigned ? detail::unsigned_range(low, high).scale
                     : detail::symmetric_range(size).scale;
}

// The range of 8-bit codes for `numbers`, which must have been seen: a histogram of them and the
// smallest and the largest. Numbers that are all zero get the scale quant::kMinStaticScale,
// which represents them. Errors: invalid_argument (no numbers; some that are not finite; a
// percentile out of range; a smallest and largest that are not those of the histogram), limit
// (numbers beyond 2^106).
inline Result<ActivationRange> activation_range(const ObservedNumbers& numbers,
                                                const RangeOptions& options = {}) {
  const Histogram& h = numbers.histogram;
  const double low = static_cast<double>(numbers.smallest);
  const double high = static_cast<double>(numbers.largest);
  if (h.n_not_finite() > 0) {
    return Error{Errc::invalid_argument,
                 "range: " + to_text(h.n_not_finite()) + " of the numbers observed are not finite"};
  }
  if (h.n_values() == 0) {
    return Error{Errc::invalid_argument, "range: no numbers were observed"};
  }
  if (!(options.percentile > 0 && options.percentile <= 100)) {
    return Error{Errc::invalid_argument,
                 "range: a percentile of " + to_text(options.percentile) + " is not in (0, 100]"};
  }
  const double size = larger(-low, high), range = h.bin_width() * static_cast<double>(h.n_bins());
  const bool has_range = h.n_values() > h.n_zeros();
  if (!is_finite(low) || !is_finite(high) || low > high ||
      (has_range ? size <= 0 || size >= range : size > 0)) {
    return Error{Errc::invalid_argument,
                 "range: the smallest and the largest number are not those of the histogram"};
  }
  NIBBLE_TRY(whole, scale_between(low, high, options.is_unsigned));
  return catch_out_of_memory([&]() -> Result<ActivationRange> {
    ActivationRange r;
    r.scale = whole;
    if (has_range) {
      switch (options.method) {
        case RangeMethod::min_max: break;
        case RangeMethod::percentile: r = detail::percentile_range(numbers, options); break;
        case RangeMethod::kl: r = detail::kl_range(numbers, options); break;
        case RangeMethod::mse: r = detail::mse_range(numbers, options); break;
      }
    }
    detail::judge(numbers, r);
    return r;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
