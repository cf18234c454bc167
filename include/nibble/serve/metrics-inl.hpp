// SPDX-License-Identifier: Apache-2.0
//
// The functions of metrics. Included by metrics.hpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/io/number_text.hpp"
#include "nibble/serve/metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// ---- Histograms --------------------------------------------------------------------------------

NIBBLE_INLINE Histogram::Histogram(std::span<const double> bounds) noexcept {
  NIBBLE_ASSERT(bounds.size() <= kMaxBounds);
  for (const double bound : bounds) bounds_[n_bounds_++] = bound;
}

NIBBLE_INLINE void Histogram::observe(double value) noexcept {
  if (is_nan(value)) return;
  std::size_t i = 0;
  while (i < n_bounds_ && value > bounds_[i]) ++i;
  counts_[i].fetch_add(1, std::memory_order_relaxed);
  std::uint64_t before = sum_bits_.load(std::memory_order_relaxed), after;
  do {
    after = __builtin_bit_cast(std::uint64_t, __builtin_bit_cast(double, before) + value);
  } while (!sum_bits_.compare_exchange_weak(before, after, std::memory_order_relaxed));
}

NIBBLE_INLINE std::uint64_t Histogram::count() const noexcept {
  std::uint64_t n = 0;
  for (std::size_t i = 0; i <= n_bounds_; ++i) n += count(i);
  return n;
}

// ---- The registry ------------------------------------------------------------------------------

namespace detail {

inline bool is_metric_name(std::string_view name, bool may_have_colons) noexcept {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  for (const char c : name) {
    const bool is_word =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    if (!is_word && !(c == ':' && may_have_colons)) return false;
  }
  return true;
}

// As the format has texts: in labels `"` is escaped too. Bytes that are no UTF-8 become '?'.
inline void append_escaped(std::string& out, std::string_view text, bool is_label) {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const char c = text[0];
    if (c == '\\' || (c == '"' && is_label)) {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out.append("\\n");
    } else if (length == 0) {
      out.push_back('?');
    } else {
      out.append(text.data(), length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
}

inline std::string metric_number(double x) {
  if (is_nan(x)) return "NaN";
  if (!is_finite(x)) return x < 0 ? "-Inf" : "+Inf";
  return io::number_text(x);
}

}  // namespace detail

struct Registry::Metric {
  Metric(std::string l, std::span<const double> bounds) noexcept
      : labels(std::move(l)), histogram(bounds) {}

  std::string labels;  // as in the text, without braces
  Counter counter;     // of these three, that of the kind
  Gauge gauge;
  Histogram histogram;
};

struct Registry::Family {
  Kind kind = Kind::counter;
  double unit = 1;
  std::string name, help;
  std::vector<Owned<Metric>> metrics;

  void append_line(std::string& out, const char* suffix, const std::string& labels,
                   const std::string& bound, const std::string& value) const {
    out.append(name).append(suffix);
    if (!labels.empty() || !bound.empty()) {
      out.append("{").append(labels);
      if (!bound.empty()) {
        out.append(labels.empty() ? "le=\"" : ",le=\"").append(bound).append("\"");
      }
      out.append("}");
    }
    out.append(" ").append(value).append("\n");
  }

  void append_to(std::string& out) const {
    out.append("# HELP ").append(name).append(" ");
    detail::append_escaped(out, help, false);
    out.append("\n# TYPE ").append(name).append(" ");
    out.append(kind == Kind::counter ? "counter\n"
               : kind == Kind::gauge ? "gauge\n"
                                     : "histogram\n");
    for (const Owned<Metric>& metric : metrics) {
      const Metric& m = *metric;
      if (kind == Kind::counter) {
        const std::uint64_t n = m.counter.count();
        append_line(out, "", m.labels, "",
                    unit == 1 ? to_text(n) : detail::metric_number(static_cast<double>(n) * unit));
      } else if (kind == Kind::gauge) {
        if (m.gauge.is_set()) {
          append_line(out, "", m.labels, "", detail::metric_number(m.gauge.value()));
        }
      } else {
        std::uint64_t n = 0;
        const Histogram& h = m.histogram;
        for (std::size_t i = 0; i <= h.n_bounds(); ++i) {
          n += h.count(i);
          append_line(
              out, "_bucket", m.labels,
              detail::metric_number(i < h.n_bounds() ? h.bound(i) : static_cast<double>(kInfinity)),
              to_text(n));
        }
        append_line(out, "_sum", m.labels, "", detail::metric_number(h.sum()));
        append_line(out, "_count", m.labels, "", to_text(n));
      }
    }
  }
};

NIBBLE_INLINE Registry::Registry() noexcept = default;
NIBBLE_INLINE Registry::~Registry() = default;

NIBBLE_INLINE Result<Registry::Metric*> Registry::find_or_make(Kind kind, std::string_view name,
                                                               std::string_view help,
                                                               const Labels& labels,
                                                               std::span<const double> bounds,
                                                               double unit) {
  return catch_out_of_memory([&]() -> Result<Metric*> {
    const auto bad = [&](const std::string& what) {
      return Error{Errc::invalid_argument, "metric '" + printable(name) + "': " + what};
    };
    if (!detail::is_metric_name(name, true)) return bad("this is no name of a metric");
    std::string text;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      const Label& label = labels[i];
      if (!detail::is_metric_name(label.name, false) || label.name == "le") {
        return bad("'" + printable(label.name) + "' is no name of a label");
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (labels[j].name == label.name) return bad("label '" + label.name + "' is there twice");
      }
      if (i > 0) text.push_back(',');
      text.append(label.name).append("=\"");
      detail::append_escaped(text, label.value, true);
      text.push_back('"');
    }
    if (kind == Kind::histogram) {
      if (bounds.empty() || bounds.size() > Histogram::kMaxBounds) {
        return bad("a histogram has from 1 to " + to_text(Histogram::kMaxBounds) + " bounds");
      }
      for (std::size_t i = 0; i < bounds.size(); ++i) {
        if (!is_finite(bounds[i]) || (i > 0 && !(bounds[i - 1] < bounds[i]))) {
          return bad("the bounds of a histogram are finite and ascend");
        }
      }
    }
    if (!is_finite(unit) || !(unit > 0)) return bad("its unit is not above 0");

    const WordLock lock(mutex_);
    Family* family = nullptr;
    for (const Owned<Family>& other : families_) {
      if (other->name == name) family = other.get();
    }
    if (family == nullptr) {
      Owned<Family> made(new (std::nothrow) Family);
      if (!made) return Error{Errc::out_of_memory, "a metric"};
      made->kind = kind;
      made->unit = unit;
      made->name = name;
      made->help = help;
      family = made.get();
      families_.push_back(std::move(made));
    }
    if (family->kind != kind) return bad("there is one of another kind with this name");
    if (family->unit != unit) return bad("there is one of another unit with this name");
    for (const Owned<Metric>& metric : family->metrics) {
      const Histogram& h = metric->histogram;
      bool is_same = h.n_bounds() == bounds.size();
      for (std::size_t i = 0; is_same && i < bounds.size(); ++i) is_same = h.bound(i) == bounds[i];
      if (!is_same) return bad("there is one of other bounds with this name");
      if (metric->labels == text) return metric.get();
    }
    Owned<Metric> made(new (std::nothrow) Metric(std::move(text), bounds));
    if (!made) return Error{Errc::out_of_memory, "a metric"};
    Metric* const metric = made.get();
    family->metrics.push_back(std::move(made));
    return metric;
  });
}

NIBBLE_INLINE Result<Counter*> Registry::counter(std::string_view name, std::string_view help,
                                                 const Labels& labels, double unit) {
  NIBBLE_TRY(metric, find_or_make(Kind::counter, name, help, labels, {}, unit));
  return &metric->counter;
}

NIBBLE_INLINE Result<Gauge*> Registry::gauge(std::string_view name, std::string_view help,
                                             const Labels& labels) {
  NIBBLE_TRY(metric, find_or_make(Kind::gauge, name, help, labels, {}, 1));
  return &metric->gauge;
}

NIBBLE_INLINE Result<Histogram*> Registry::histogram(std::string_view name, std::string_view help,
                                                     std::span<const double> bounds,
                                                     const Labels& labels) {
  NIBBLE_TRY(metric, find_or_make(Kind::histogram, name, help, labels, bounds, 1));
  return &metric->histogram;
}

NIBBLE_INLINE Result<std::string> Registry::text() const {
  return catch_out_of_memory([&]() -> Result<std::string> {
    std::string out;
    const WordLock lock(mutex_);
    for (const Owned<Family>& family : families_) {
      family->append_to(out);
    }
    return out;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
