// SPDX-License-Identifier: Apache-2.0
//
// The compression of one model to a budget: observe, try, decide, round, keep what helps, write,
// report. The algorithms are in nibble/compress; here is their order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../format_rules.hpp"
#include "../gnuplot.hpp"
#include "nibble/compress/format_plan.hpp"
#include "nibble/compress/observe.hpp"
#include "nibble/compress/product_time.hpp"
#include "nibble/compress/quantize.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/nibble.hpp"
#include "report.hpp"
#include "texts.hpp"
#include "trial_log.hpp"

namespace example {

struct JobOptions {
  std::string in, out;
  TextOptions text;
  // One of these.
  std::uint64_t budget_bytes = 0;  // of the file
  double budget_us = 0;            // of a token that is generated
  double budget_bits = 0;          // of a weight of a matrix
  double most_divergence = 0;      // the smallest that loses no more
  std::vector<nibble::quant::Format> formats;
  std::uint64_t memory = std::uint64_t{1} << 30;  // for second moments
  FormatRules rules;
  std::vector<std::string> sample_paths;
  std::string plot;
};

class Job {
 public:
  Job(const JobOptions& options, nibble::Executor& executor)
      : options_(options), executor_(executor) {}

  nibble::Result<void> run() {
    NIBBLE_CHECK(open());
    NIBBLE_CHECK(observe());
    NIBBLE_CHECK(try_formats());
    NIBBLE_CHECK(choose());
    NIBBLE_CHECK(write());
    return report();
  }

 private:
  using Format = nibble::quant::Format;
  using Bytes = std::vector<std::byte>;

  // A way to round, and what came of it.
  struct Method {
    std::string name;
    bool uses_importance = false, uses_columns = false;
  };
  struct Point {
    std::string label;
    double bytes = 0, divergence = 0;
  };

  nibble::Result<void> open() {
    NIBBLE_TRY(file, nibble::open_model(options_.in));
    file_ = std::move(file);
    NIBBLE_CHECK(options_.rules.check(*file_));
    NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                          *file_, {.executor = &executor_}));
    model_ = std::move(model);
    NIBBLE_TRY(texts, read_texts(*model_, options_.text));
    texts_ = std::move(texts);
    NIBBLE_TRY(samples, read_sample_files(options_.sample_paths));
    samples_ = std::move(samples);
    NIBBLE_TRY(session, nibble::Session::create(*model_, trial_session(texts_.context, executor_)));
    session_ = std::move(session);
    NIBBLE_TRY(reference, nibble::compress::ReferencePredictions::record(*session_, texts_.trial));
    reference_ = std::move(reference);
    std::printf("observed on %zu tokens, tried on %lld, reported on %lld\n",
                texts_.calibration.size(), static_cast<long long>(texts_.trial.n_scored()),
                static_cast<long long>(texts_.report.n_scored()));
    return nibble::ok();
  }

  // Second moments take memory; without them columns are not rounded one after the other.
  bool has_room_for_moments() const {
    std::uint64_t bytes = 0;
    for (const auto& tensor : file_->tensors()) {
      if (tensor.n_dims >= 2) bytes += tensor.dims[0] * tensor.dims[0] * 4;
    }
    return bytes <= options_.memory;
  }

  nibble::Result<void> observe() {
    const bool wants_moments = has_room_for_moments();
    StatusLine status(true, StatusLine::kInLogs);
    const nibble::Progress progress = [&](std::size_t done, std::size_t total) {
      status.show("observing, chunk " + std::to_string(done) + " of " + std::to_string(total));
      return !interrupted;
    };
    nibble::compress::ObserveOptions options;
    options.context = texts_.context;
    options.bos = texts_.bos;
    options.executor = &executor_;
    if (wants_moments) {
      options.more = [](std::string_view) {
        return nibble::compress::InputStatisticsOptions{.second_moments = true};
      };
    }
    NIBBLE_TRY(statistics,
               nibble::compress::observe(*model_, texts_.calibration, options, &progress));
    statistics_ = std::move(statistics);
    for (const auto& input : statistics_.inputs()) {
      std::vector<float>& importance = importance_.emplace_back();
      for (nibble::Index j = 0; j < input.k(); ++j) {
        importance.push_back(
            static_cast<float>(input.sum_squares(j) / static_cast<double>(input.n_rows())));
      }
    }
    has_moments_ = wants_moments;
    return nibble::ok();
  }

  // Of the matrix of this name; null if it was not observed (a table of embeddings).
  const nibble::compress::Statistics::Entry* entry(std::string_view name) const {
    for (const auto& e : statistics_.entries()) {
      if (e.name == name) return &e;
    }
    return nullptr;
  }

  nibble::ConvertOptions rounding(const Method& method) {
    nibble::compress::WeightedConvertOptions options;
    options.convert.executor = &executor_;
    if (method.uses_importance) {
      options.importance = [this](std::string_view name) -> std::span<const float> {
        const auto* const e = entry(name);
        return e == nullptr ? std::span<const float>() : std::span(importance_[e->input]);
      };
    }
    if (method.uses_columns) {
      options.second_moments = [this](std::string_view name) -> std::span<const double> {
        const auto* const e = entry(name);
        if (e == nullptr) return {};
        const auto& input = statistics_.inputs()[e->input];
        if (moments_of_ != e->input || moments_.empty()) {
          moments_.resize(static_cast<std::size_t>(input.k() * input.k()));
          input.copy_second_moments(moments_);
          moments_of_ = e->input;
        }
        return moments_;
      };
    }
    return method.uses_importance || method.uses_columns ? nibble::compress::weighted(options)
                                                         : options.convert;
  }

  nibble::Result<void> try_formats() {
    TrialFile log(options_.out + ".trials",
                  file_->name() + " " + std::to_string(file_->tensors().size()) + " " +
                      nibble::printable(options_.text.path) + " " + std::to_string(texts_.context) +
                      " " + std::to_string(texts_.trial.n_scored()));
    if (log.n_known() > 0) {
      std::printf("%zu trials of before are in %s.trials\n", log.n_known(),
                  nibble::printable(options_.out).c_str());
    }
    NIBBLE_TRY(trials, nibble::compress::measure_sensitivity(
                           *file_, *session_, *reference_, options_.formats,
                           nibble::graph::AllFormats::kOps, rounding({"", true, false}), log));
    trials_ = std::move(trials);
    for (auto& tensor : trials_) {  // a rule leaves one format
      const auto ruled = options_.rules(tensor.tensor);
      if (!ruled) continue;
      std::erase_if(tensor.trials, [&](const auto& trial) { return trial.format != *ruled; });
      if (tensor.trials.empty()) {
        return nibble::Error{nibble::Errc::invalid_argument,
                             "--tensor: the rows of " + nibble::io::quoted(tensor.tensor) +
                                 " cannot be in " + to_string(*ruled) +
                                 ", or it is not among --formats"};
      }
    }
    return nibble::ok();
  }

  // ---- The budget ----

  // What is in the file beside the matrices.
  std::uint64_t other_bytes() const {
    std::uint64_t vectors = 0;
    for (const auto& tensor : file_->tensors()) {
      if (tensor.n_dims < 2) vectors += tensor.n_elements() * sizeof(float);
    }
    return metadata_bytes_ + vectors + 32 * file_->tensors().size();
  }

  nibble::Result<double> time_of(const nibble::compress::TensorTrials& tensor, Format format) {
    const auto key = std::tuple{tensor.n, tensor.k, format};
    if (const auto it = times_.find(key); it != times_.end()) return it->second;
    const auto* const ops = nibble::graph::find(nibble::graph::AllFormats::kOps, format);
    NIBBLE_TRY(time,
               nibble::compress::product_microseconds(
                   *ops, static_cast<nibble::Index>(tensor.n), static_cast<nibble::Index>(tensor.k),
                   model_->weight_bytes(), executor_, model_->tuning()));
    times_[key] = time;
    return time;
  }

  // Times all products, and what a token takes beside them.
  nibble::Result<void> time_products() {
    NIBBLE_TRY(matrices, nibble::compress::matrices_of(*model_, *file_));
    double products = 0;
    for (std::size_t i = 0; i < trials_.size(); ++i) {
      if (!matrices[i].is_product) continue;
      products_.push_back(trials_[i].tensor);
      for (const auto& trial : trials_[i].trials) NIBBLE_CHECK(time_of(trials_[i], trial.format));
      const auto own = nibble::quant::format_of(matrices[i].tensor->type);
      if (!own) continue;
      NIBBLE_TRY(time, time_of(trials_[i], *own));
      products += time;
    }
    NIBBLE_TRY(speed, measure_speed(*session_));
    other_us_ = std::max(0.0, 1e6 / speed.generation - products);
    std::printf("a token takes %.1f us now, %.1f of them in products\n", 1e6 / speed.generation,
                products);
    return nibble::ok();
  }

  double cost_of(const nibble::compress::TensorTrials& tensor,
                 const nibble::compress::FormatTrial& trial) const {
    if (options_.budget_us <= 0) return static_cast<double>(trial.bytes);
    if (std::find(products_.begin(), products_.end(), tensor.tensor) == products_.end()) return 0;
    return times_.at(std::tuple{tensor.n, tensor.k, trial.format});
  }

  nibble::Result<void> choose() {
    if (options_.budget_us > 0) NIBBLE_CHECK(time_products());
    const auto cost = [this](const auto& tensor, const auto& trial) {
      return cost_of(tensor, trial);
    };
    auto planner = nibble::compress::FormatPlanner::create(trials_, cost, 1e18);
    if (!planner) return std::move(planner).error();
    planner_ = *std::move(planner);
    std::uint64_t n_weights = 0;
    for (const auto& tensor : trials_) n_weights += tensor.n * tensor.k;
    if (options_.most_divergence > 0) {
      NIBBLE_TRY(plan, planner_->cheapest(options_.most_divergence));
      plan_ = std::move(plan);
      return nibble::ok();
    }
    if (options_.budget_us > 0) {
      budget_ = options_.budget_us - other_us_;
    } else if (options_.budget_bits > 0) {
      budget_ = options_.budget_bits / 8 * static_cast<double>(n_weights);
    } else {
      budget_ = static_cast<double>(options_.budget_bytes) - static_cast<double>(other_bytes());
    }
    return plan_for(budget_);
  }

  nibble::Result<void> plan_for(double budget) {
    auto plan = planner_->best(budget);
    if (!plan) {
      const double least = planner_->cheapest_cost();
      char text[160];
      if (options_.budget_us > 0) {
        std::snprintf(text, sizeof(text), "the least is %.1f us a token", least + other_us_);
      } else if (options_.budget_bits > 0) {
        std::snprintf(text, sizeof(text), "the least is %.3f bits of a weight",
                      least / budget_ * options_.budget_bits);
      } else {
        std::snprintf(text, sizeof(text), "the least is a file of %.0f bytes",
                      least + static_cast<double>(other_bytes()));
      }
      return nibble::Error{nibble::Errc::limit,
                           std::string("the budget is too small for the formats that may be "
                                       "used: ") +
                               text + "; prune or factor first, or choose other --formats"};
    }
    plan_ = *std::move(plan);
    return nibble::ok();
  }

  // ---- Rounding ----

  nibble::Result<Bytes> convert(const nibble::compress::FormatPlan& plan, const Method& method) {
    StatusLine status(true, StatusLine::kInLogs);
    nibble::ConvertOptions options = rounding(method);
    options.format = Format::f16;
    options.choose = [&](std::string_view name) -> std::optional<Format> {
      if (const auto format = plan(name)) return format;
      const auto* const tensor = file_->find_tensor(name);
      const auto own = nibble::quant::format_of(tensor->type);
      return own ? *own : Format::f16;
    };
    options.file_type = 2;  // mostly Q4_0: what a file has mixed, no number says
    std::size_t n = 0;
    return nibble::quantize_model(*file_, options, [&](const nibble::ConvertedTensor& tensor) {
      status.show(method.name + ": " + std::to_string(++n) + " of " +
                  std::to_string(file_->tensors().size()) + ", " + nibble::printable(tensor.name));
      return !interrupted;
    });
  }

  nibble::Result<double> divergence_of(const Bytes& bytes) {
    NIBBLE_TRY(file, nibble::io::Gguf::parse(bytes, "converted"));
    NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                          file, {.executor = &executor_, .tuning = model_->tuning()}));
    NIBBLE_TRY(session, nibble::Session::create(model, trial_session(texts_.context, executor_)));
    NIBBLE_TRY(divergence, reference_->compare(session));
    return divergence.mean;
  }

  // The same format for all, if it keeps to the budget: the plan must not be worse.
  nibble::Result<void> try_uniform() {
    for (const Format format : options_.formats) {
      nibble::compress::FormatPlan uniform;
      for (const auto& tensor : trials_) {
        const auto* best = &tensor.trials.front();
        for (const auto& trial : tensor.trials) {
          if (trial.format == format) best = &trial;
        }
        uniform.entries.push_back({tensor.tensor, *best});
        uniform.cost += cost_of(tensor, *best);
        uniform.divergence += best->divergence;
      }
      if (budget_ > 0 && uniform.cost > budget_) continue;
      if (uniform.cost < 0.9 * plan_.cost) continue;  // others of this size are better
      NIBBLE_TRY(bytes, convert(uniform, {"all in " + std::string(to_string(format)), true}));
      NIBBLE_TRY(divergence, divergence_of(bytes));
      points_.push_back({std::string("all in ") + to_string(format),
                         static_cast<double>(bytes.size()), divergence});
      if (divergence >= divergence_) continue;
      divergence_ = divergence;
      bytes_ = std::move(bytes);
      plan_ = std::move(uniform);
      std::printf("all in %s is better than the mix\n", to_string(format));
    }
    return nibble::ok();
  }

  nibble::Result<void> write() {
    NIBBLE_TRY(first, convert(plan_, {"plain rounding"}));
    // What is beside the matrices was estimated; the file says what it is.
    while (options_.budget_bytes > 0 && first.size() > options_.budget_bytes) {
      metadata_bytes_ += first.size() - options_.budget_bytes;
      budget_ = static_cast<double>(options_.budget_bytes) - static_cast<double>(other_bytes());
      NIBBLE_CHECK(plan_for(budget_));
      NIBBLE_TRY(again, convert(plan_, {"plain rounding"}));
      first = std::move(again);
    }
    NIBBLE_TRY(plain, divergence_of(first));
    bytes_ = std::move(first);
    divergence_ = plain;
    plain_ = bytes_;
    points_.push_back({"plain rounding", static_cast<double>(bytes_.size()), plain});
    std::vector<Method> methods = {{"weighted scales", true, false}};
    if (has_moments_) methods.push_back({"columns in turn", true, true});
    for (const Method& method : methods) {
      NIBBLE_TRY(bytes, convert(plan_, method));
      NIBBLE_TRY(divergence, divergence_of(bytes));
      points_.push_back({method.name, static_cast<double>(bytes.size()), divergence});
      const bool helps = divergence < divergence_;
      std::printf("%-16s KL %.3g: %s\n", method.name.c_str(), divergence,
                  helps ? "kept" : "does not help, left out");
      if (!helps) continue;
      divergence_ = divergence;
      bytes_ = std::move(bytes);
      kept_ = method.name;
    }
    NIBBLE_CHECK(try_uniform());
    NIBBLE_TRY(out, nibble::io::OutputFile::create(options_.out));
    NIBBLE_CHECK(out.write(bytes_));
    return out.commit();
  }

  // ---- The report ----

  nibble::Result<void> report() {
    NIBBLE_TRY(session, nibble::Session::create(*model_, trial_session(texts_.context, executor_)));
    NIBBLE_TRY(reference, nibble::compress::ReferencePredictions::record(session, texts_.report));
    std::vector<ReportRow> rows;
    NIBBLE_TRY(original, report_row("original", *file_, *model_, reference, samples_, executor_));
    rows.push_back(std::move(original));
    const auto add = [&](const std::string& step, const Bytes& bytes) -> nibble::Result<void> {
      NIBBLE_TRY(file, nibble::io::Gguf::parse(bytes, step));
      NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                            file, {.executor = &executor_}));
      NIBBLE_TRY(row, report_row(step, file, model, reference, samples_, executor_));
      rows.push_back(std::move(row));
      return nibble::ok();
    };
    NIBBLE_CHECK(add("formats, plain rounding", plain_));
    if (!kept_.empty()) NIBBLE_CHECK(add("formats, " + kept_, bytes_));
    print_report(rows, samples_);
    print_formats();
    std::printf("%s: %s bytes\n", nibble::printable(options_.out).c_str(),
                grouped(bytes_.size()).c_str());
    if (!options_.plot.empty() && !draw()) {
      std::fprintf(stderr, "compress: no picture: gnuplot is missing or failed\n");
    }
    return nibble::ok();
  }

  void print_formats() const {
    std::map<std::string, std::pair<std::size_t, std::uint64_t>> formats;
    for (const auto& entry : plan_.entries) {
      auto& [n, bytes] = formats[to_string(entry.trial.format)];
      ++n;
      bytes += entry.trial.bytes;
    }
    for (const auto& [format, sums] : formats) {
      std::printf("%zu matrices in %s, %s bytes\n", sums.first, format.c_str(),
                  grouped(sums.second).c_str());
    }
  }

  // Bytes against divergence: the best plans of all budgets, as predicted, and what was measured.
  bool draw() {
    Gnuplot plot(options_.plot);
    if (!plot.is_open()) return false;
    plot.print(
        "set logscale y\nset xlabel 'bytes'\nset ylabel 'KL to the original, nats'\n"
        "plot '-' with lines title 'best mixes, predicted', "
        "'-' with points pt 7 ps 0.5 title 'uniform, predicted', "
        "'-' using 1:2:3 with labels point pt 5 offset 0,1 title 'measured'\n");
    const double low = planner_->cheapest_cost(), high = planner_->dearest_cost();
    for (int i = 0; i <= 60; ++i) {
      const auto plan = planner_->best(low + (high - low) * i / 60);
      if (plan && plan->divergence > 0) {
        plot.print("%.0f %g\n", static_cast<double>(plan->bytes() + other_bytes()),
                   plan->divergence);
      }
    }
    plot.print("e\n");
    for (std::size_t f = 0; f < options_.formats.size(); ++f) {
      double bytes = static_cast<double>(other_bytes()), divergence = 0;
      for (const auto& tensor : trials_) {
        const auto& trial = tensor.trials[std::min(f, tensor.trials.size() - 1)];
        bytes += static_cast<double>(trial.bytes);
        divergence += trial.divergence;
      }
      if (divergence > 0) plot.print("%.0f %g\n", bytes, divergence);
    }
    plot.print("e\n");
    for (const Point& point : points_) {
      plot.print("%.0f %g \"%s\"\n", point.bytes, std::max(point.divergence, 1e-9),
                 plot_title(point.label).c_str());
    }
    plot.print("e\n");
    return plot.finish();
  }

  const JobOptions& options_;
  nibble::Executor& executor_;
  std::optional<nibble::io::Gguf> file_;
  std::optional<nibble::Model> model_;
  std::optional<nibble::Session> session_;
  std::optional<nibble::compress::ReferencePredictions> reference_;
  Texts texts_;
  std::vector<SampleFile> samples_;
  nibble::compress::Statistics statistics_;
  std::vector<std::vector<float>> importance_;  // of each input of statistics_
  std::vector<double> moments_;                 // of the input moments_of_
  std::size_t moments_of_ = 0;
  bool has_moments_ = false;
  std::vector<nibble::compress::TensorTrials> trials_;
  std::optional<nibble::compress::FormatPlanner> planner_;
  nibble::compress::FormatPlan plan_;
  double budget_ = 0;  // of the matrices, in the planner's unit; 0: none
  std::map<std::tuple<std::uint64_t, std::uint64_t, Format>, double> times_;
  std::vector<std::string> products_;
  double other_us_ = 0;
  std::uint64_t metadata_bytes_ = 0;
  Bytes bytes_, plain_;
  double divergence_ = 0;
  std::string kept_;
  std::vector<Point> points_;
};

}  // namespace example
