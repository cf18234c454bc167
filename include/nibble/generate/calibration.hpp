// SPDX-License-Identifier: Apache-2.0
//
// Confidences that mean what they say: of the answers with confidence 0.9, nine in ten are right.
// What a model gives is seldom so; a line through the log-odds, fitted to answers of which it is
// known whether they were right, corrects it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// An answer of which it is known whether it was right.
struct JudgedConfidence {
  double confidence = 0;
  bool is_right = false;
};

// Log-odds of the corrected confidence = slope * log-odds of the given one + offset. With offset 0,
// 1 / slope is a temperature. The default changes nothing.
struct Calibration {
  double slope = 1, offset = 0;

  double operator()(double confidence) const noexcept {
    if (slope == 1 && offset == 0) return confidence;
    return 1 / (1 + libm::exp(-(slope * log_odds(confidence) + offset)));
  }
  // Confidences are cut to [1e-6, 1 - 1e-6]: sums of float logarithms say no more.
  static double log_odds(double confidence) noexcept {
    constexpr double kLeast = 1e-6;
    const double p = (std::min)((std::max)(confidence, kLeast), 1 - kLeast);
    return libm::log(p / (1 - p));
  }
};

// The line that fits best (Platt 1999, "Probabilistic outputs for support vector machines", with
// its smoothed targets, so that few or only right answers give no infinite slope; Newton's method
// with backtracking as in Lin, Lin and Weng 2007). Its slope is at least 0: where higher
// confidences are right less often, the offset alone is fitted. Errors: invalid_argument (nothing
// to fit to; a confidence outside [0, 1]).
inline Result<Calibration> fit_calibration(std::span<const JudgedConfidence> judged) {
  std::size_t n_right = 0;
  for (const JudgedConfidence& one : judged) {
    if (!(one.confidence >= 0 && one.confidence <= 1)) {
      return Error{Errc::invalid_argument, "calibration: a confidence is not in [0, 1]"};
    }
    n_right += one.is_right;
  }
  if (judged.empty()) return Error{Errc::invalid_argument, "calibration: there are no answers"};
  const auto right = static_cast<double>(n_right), all = static_cast<double>(judged.size());
  const double target_right = (right + 1) / (right + 2), target_wrong = 1 / (all - right + 2);

  // -sum of t log p + (1 - t) log (1 - p), in a form that does not overflow.
  const auto loss = [&](const Calibration& line) {
    double sum = 0;
    for (const JudgedConfidence& one : judged) {
      const double x = line.slope * Calibration::log_odds(one.confidence) + line.offset;
      const double t = one.is_right ? target_right : target_wrong;
      const double size = x < 0 ? -x : x;
      sum += libm::log(1 + libm::exp(-size)) + (x < 0 ? -t * x : (1 - t) * x);
    }
    return sum;
  };
  const auto fit = [&](Calibration line, bool has_slope) {
    for (int step = 0; step < 100; ++step) {
      double g_slope = 0, g_offset = 0, h_slope = 1e-9, h_both = 0, h_offset = 1e-9;
      for (const JudgedConfidence& one : judged) {
        const double x = Calibration::log_odds(one.confidence);
        const double p = 1 / (1 + libm::exp(-(line.slope * x + line.offset)));
        const double d = p - (one.is_right ? target_right : target_wrong), w = p * (1 - p);
        g_slope += d * x;
        g_offset += d;
        h_slope += w * x * x;
        h_both += w * x;
        h_offset += w;
      }
      Calibration by{0, -g_offset / h_offset};
      if (has_slope) {
        const double determinant = h_slope * h_offset - h_both * h_both;
        by.slope = -(h_offset * g_slope - h_both * g_offset) / determinant;
        by.offset = -(h_slope * g_offset - h_both * g_slope) / determinant;
      }
      const double before = loss(line);
      double part = 1;
      Calibration next = line;
      for (; part > 1e-10; part /= 2) {
        next = {line.slope + part * by.slope, line.offset + part * by.offset};
        if (loss(next) < before) break;
      }
      if (part <= 1e-10 || before - loss(next) < 1e-12 * (1 + before)) break;
      line = next;
    }
    return line;
  };
  const Calibration line = fit({1, 0}, true);
  return line.slope >= 0 ? line : fit({0, 0}, false);
}

// How far confidences are from what they say.
struct Reliability {
  struct Bin {
    std::size_t n = 0;
    double confidence = 0, accuracy = 0;  // means
  };
  std::vector<Bin> bins;  // of equal width, from 0 to 1
  // The mean distance of confidence and accuracy: "expected calibration error" (Naeini et al.
  // 2015).
  double error = 0;
};

// Errors: invalid_argument (no bins, more than a million; a confidence outside [0, 1]).
inline Result<Reliability> reliability(std::span<const JudgedConfidence> judged,
                                       std::size_t n_bins = 10) {
  if (n_bins < 1 || n_bins > 1'000'000) {
    return Error{Errc::invalid_argument, "reliability: the number of bins must be in [1, 10^6]"};
  }
  return catch_out_of_memory([&]() -> Result<Reliability> {
    Reliability result;
    result.bins.resize(n_bins);
    for (const JudgedConfidence& one : judged) {
      if (!(one.confidence >= 0 && one.confidence <= 1)) {
        return Error{Errc::invalid_argument, "reliability: a confidence is not in [0, 1]"};
      }
      const auto i = static_cast<std::size_t>(one.confidence * static_cast<double>(n_bins));
      Reliability::Bin& bin = result.bins[(std::min)(i, n_bins - 1)];
      ++bin.n;
      bin.confidence += one.confidence;
      bin.accuracy += one.is_right ? 1 : 0;
    }
    for (Reliability::Bin& bin : result.bins) {
      if (bin.n == 0) continue;
      const double distance = bin.confidence - bin.accuracy;
      result.error += (distance < 0 ? -distance : distance) / static_cast<double>(judged.size());
      bin.confidence /= static_cast<double>(bin.n);
      bin.accuracy /= static_cast<double>(bin.n);
    }
    return result;
  });
}

}}  // namespace nibble::NIBBLE_ABI
