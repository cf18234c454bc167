// SPDX-License-Identifier: Apache-2.0
//
// Which experts compute a row of a mixture-of-experts layer, and how much each of them counts.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// What the weights of experts are made of: the softmax of the router's logits, their softmax among
// the chosen experts only, or the sigmoid of each.
enum class RouterScores : unsigned char { softmax, softmax_of_chosen, sigmoid };

struct Routing {
  Index n_experts = 1;
  Index n_used = 1;  // by each row
  RouterScores scores = RouterScores::softmax;
  bool is_normalized = false;  // the weights of a row are divided by their sum
  float scale = 1;             // and then multiplied by this
  // Experts in groups, of which a row uses experts of some: those whose best two have the largest
  // sum of scores.
  Index n_groups = 1;
  Index n_used_groups = 1;
};

inline constexpr Index kMaxExperts = 1 << 12;
inline constexpr Index kMaxExpertGroups = 64;

// What is wrong with a routing; null: nothing.
constexpr const char* routing_error(const Routing& r) noexcept {
  if (r.n_experts < 1 || r.n_experts > kMaxExperts) {
    return "experts: their number is not from 1 to 4096";
  }
  if (r.n_used < 1 || r.n_used > r.n_experts) {
    return "experts: a row uses fewer than 1 or more than there are";
  }
  if (r.n_groups < 1 || r.n_groups > kMaxExpertGroups || r.n_experts % r.n_groups != 0 ||
      r.n_used_groups < 1 || r.n_used_groups > r.n_groups ||
      r.n_used > r.n_used_groups * (r.n_experts / r.n_groups)) {
    return "experts: groups that do not go with their number";
  }
  return nullptr;
}

namespace detail {

// Whether a score can be ranked, and so can sums of four such.
constexpr bool is_score(float x) noexcept {
  return is_finite(static_cast<double>(x)) && x > -1e37f && x < 1e37f;
}

// The largest of n values that follow `last` in the order of values, largest first, and of equal
// ones by their index; `last` −1: of all. allowed(i) says which count. −1: there is none.
template <class Value, class Allowed>
Index next_largest(Index n, Index last, const Value& value, const Allowed& allowed) noexcept {
  Index best = -1;
  for (Index i = 0; i < n; ++i) {
    if (!allowed(i)) continue;
    const float x = value(i);
    if (last >= 0 && !(x < value(last) || (x == value(last) && i > last))) continue;
    if (best < 0 || x > value(best)) best = i;
  }
  return best;
}

// From the largest one of `n` groups on: which of them are used, a bit for each.
template <class Value>
std::uint64_t used_groups(const Routing& r, const Value& value) noexcept {
  if (r.n_used_groups == r.n_groups) return ~std::uint64_t{0};
  const Index size = r.n_experts / r.n_groups;
  float sums[kMaxExpertGroups];
  for (Index g = 0; g < r.n_groups; ++g) {
    const auto of_group = [&](Index i) { return value(g * size + i); };
    const auto all = [](Index) { return true; };
    const Index first = next_largest(size, -1, of_group, all);
    const Index second = next_largest(size, first, of_group, all);
    sums[g] = of_group(first) + (second < 0 ? 0.0f : of_group(second));
  }
  std::uint64_t used = 0;
  Index last = -1;
  for (Index i = 0; i < r.n_used_groups; ++i) {
    last = next_largest(
        r.n_groups, last, [&](Index g) { return sums[g]; }, [](Index) { return true; });
    used |= std::uint64_t{1} << last;
  }
  return used;
}

// values = their softmax, with sums in double.
inline void softmax_of(std::span<float> values) noexcept {
  float most = values[0];
  for (const float v : values) most = v > most ? v : most;
  double sum = 0;
  for (const float v : values) sum += libm::exp(static_cast<double>(v) - static_cast<double>(most));
  for (float& v : values) {
    v = static_cast<float>(libm::exp(static_cast<double>(v) - static_cast<double>(most)) / sum);
  }
}

}  // namespace detail

// Chooses the experts of a row (n_used, ascending, each once) and their weights (n_used). scores:
// the router's logits (n_experts), which are overwritten. bias: (n_experts), added to the scores
// for the choice alone; null: none. given: (n_used), the experts as numbers instead of a choice;
// null: none. A logit or bias that is not finite, or a given expert that does not exist or comes
// twice, makes all weights of the row NaN.
inline void route_row(const Routing& r, std::span<float> scores, const float* bias,
                      const float* given, std::span<std::int32_t> experts,
                      std::span<float> weights) noexcept {
  const auto n_used = static_cast<std::size_t>(r.n_used);
  bool is_sound = true;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    is_sound =
        is_sound && detail::is_score(scores[i]) && (bias == nullptr || detail::is_score(bias[i]));
  }
  for (std::size_t i = 0; given != nullptr && i < n_used; ++i) {
    is_sound = is_sound && given[i] >= 0 && given[i] < static_cast<float>(r.n_experts);
    for (std::size_t j = 0; is_sound && j < i; ++j) {
      is_sound = static_cast<std::int32_t>(given[i]) != static_cast<std::int32_t>(given[j]);
    }
  }
  if (!is_sound) {
    for (std::size_t i = 0; i < n_used; ++i) {
      experts[i] = static_cast<std::int32_t>(i);
      weights[i] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  // A normalized softmax is that among the chosen experts: the others are not needed, unless the
  // choice is by something else than the order of logits.
  const bool is_ordered = bias == nullptr && r.n_used_groups == r.n_groups;
  const bool among_chosen = r.scores == RouterScores::softmax_of_chosen ||
                            (r.scores == RouterScores::softmax && r.is_normalized && is_ordered);
  if (r.scores == RouterScores::sigmoid) {
    for (float& s : scores) s = static_cast<float>(1 / (1 + libm::exp(-static_cast<double>(s))));
  } else if (!among_chosen) {
    detail::softmax_of(scores);
  }
  const auto value = [&](Index i) {
    const float s = scores[static_cast<std::size_t>(i)];
    return bias == nullptr ? s : s + bias[i];
  };
  if (given != nullptr) {
    for (std::size_t i = 0; i < n_used; ++i) experts[i] = static_cast<std::int32_t>(given[i]);
  } else {
    const std::uint64_t groups = detail::used_groups(r, value);
    const Index size = r.n_experts / r.n_groups;
    Index last = -1;
    for (std::size_t i = 0; i < n_used; ++i) {
      last = detail::next_largest(r.n_experts, last, value,
                                  [&](Index e) { return (groups >> (e / size) & 1) != 0; });
      experts[i] = static_cast<std::int32_t>(last);
    }
  }
  for (std::size_t i = 1; i < n_used; ++i) {
    const std::int32_t expert = experts[i];
    std::size_t at = i;
    for (; at > 0 && experts[at - 1] > expert; --at) experts[at] = experts[at - 1];
    experts[at] = expert;
  }
  for (std::size_t i = 0; i < n_used; ++i) {
    weights[i] = scores[static_cast<std::size_t>(experts[i])];
  }
  if (among_chosen) {
    detail::softmax_of(weights.first(n_used));
  } else if (r.is_normalized) {
    double sum = 0;
    for (const float w : weights.first(n_used)) sum += static_cast<double>(w);
    for (float& w : weights.first(n_used)) w = static_cast<float>(static_cast<double>(w) / sum);
  }
  for (float& w : weights.first(n_used)) w *= r.scale;
}

}}}  // namespace nibble::NIBBLE_ABI::ops
