// SPDX-License-Identifier: Apache-2.0
//
// The compression of one model to a budget: observe, try, decide, round, keep what helps, write,
// report. The algorithms are in nibble/compress; here is their order.
#pragma once

#include <algorithm>
#include <cstdint>
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
#include "budget.hpp"
#include "nibble/compress/format_plan.hpp"
#include "nibble/compress/quantize.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/nibble.hpp"
#include "observing.hpp"
#include "report.hpp"
#include "texts.hpp"
#include "trial_log.hpp"

namespace example {

struct JobOptions {
  std::string in, out;
  TextOptions text;
  BudgetOptions budget;
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
    NIBBLE_CHECK(try_other_roundings());
    NIBBLE_CHECK(try_uniform());
    NIBBLE_CHECK(out_->write(best_.bytes));
    NIBBLE_CHECK(out_->commit());
    return report();
  }

 private:
  using Format = nibble::quant::Format;
  using Bytes = std::vector<std::byte>;
  using FormatPlan = nibble::compress::FormatPlan;

  enum class Rounding { plain, weighted, by_columns };
  static const char* name_of(Rounding rounding) {
    switch (rounding) {
      case Rounding::plain: return "plain rounding";
      case Rounding::weighted: return "weighted scales";
      case Rounding::by_columns: return "columns in turn";
    }
    return "";
  }
  // A model that was made, and what it loses on the trial text.
  struct Made {
    std::string name;
    FormatPlan plan;
    Rounding rounding = Rounding::plain;
    Bytes bytes;
    double divergence = 0;
  };
  struct Point {
    std::string label;
    double bytes = 0, divergence = 0;
  };

  nibble::Result<void> open() {
    NIBBLE_TRY(out, nibble::io::OutputFile::create(options_.out));  // an error now, not at the end
    out_.emplace(std::move(out));
    NIBBLE_TRY(file, nibble::open_model(options_.in));
    file_ = std::move(file);
    NIBBLE_CHECK(options_.rules.check(*file_));
    NIBBLE_TRY(budget, Budget::create(options_.budget, *file_));
    budget_ = std::move(budget);
    NIBBLE_CHECK(budget_->check([this](std::string_view name) { return formats_of(name); }));
    NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                          *file_, {.executor = &executor_}));
    model_ = std::move(model);
    NIBBLE_TRY(texts, read_texts(*model_, options_.text));
    texts_ = std::move(texts);
    NIBBLE_TRY(samples, read_sample_files(options_.sample_paths));
    samples_ = std::move(samples);
    nibble::SessionOptions options = comparing_session(texts_.context, executor_);
    options.exchangeable_weights = true;
    NIBBLE_TRY(session, nibble::Session::create(*model_, options));
    session_ = std::move(session);
    const nibble::Progress progress = until_interrupted;
    NIBBLE_TRY(reference,
               nibble::compress::ReferencePredictions::record(*session_, texts_.trial, &progress));
    reference_ = std::move(reference);
    std::printf("observed on %zu tokens, tried on %lld, reported on %lld\n",
                texts_.calibration.size(), static_cast<long long>(texts_.trial.n_scored()),
                static_cast<long long>(texts_.report.n_scored()));
    return nibble::ok();
  }

  // A rule leaves one format.
  std::vector<Format> formats_of(std::string_view name) const {
    if (const auto ruled = options_.rules(name)) return {*ruled};
    return options_.formats;
  }

  // An upper bound: queries, keys and values share their input, and so do gate and up.
  std::uint64_t most_bytes_of_moments() const {
    std::uint64_t bytes = 0;
    for (const auto& tensor : file_->tensors()) {
      if (tensor.n_dims == 2) bytes += tensor.dims[0] * tensor.dims[0] * sizeof(double) / 2;
    }
    return bytes;
  }

  nibble::Result<void> observe() {
    const std::uint64_t most = most_bytes_of_moments();
    has_moments_ = most <= options_.memory;
    if (!has_moments_) {
      std::printf("columns are not rounded in turn: second moments could take %s (see --memory)\n",
                  mebibytes(most).c_str());
    }
    NIBBLE_TRY(statistics, observe_tokens(*model_, texts_.calibration,
                                          {.context = texts_.context, .with_moments = has_moments_},
                                          executor_));
    statistics_ = std::move(statistics);
    return nibble::ok();
  }

  nibble::ConvertOptions convert_options(Rounding rounding) const {
    nibble::compress::WeightedConvertOptions options;
    options.convert.executor = &executor_;
    if (rounding == Rounding::plain) return options.convert;
    options.statistics = &statistics_;
    options.by_columns = rounding == Rounding::by_columns;
    return nibble::compress::weighted(options);
  }

  // Trials go on where an earlier run with the same model, text and settings was stopped.
  nibble::Result<void> try_formats() {
    NIBBLE_TRY(log, TrialFile::open(options_.out + ".trials",
                                    trial_setup(*file_, texts_.calibration, texts_.trial)));
    if (log.n_known() > 0) {
      std::printf("%zu trials of before are in %s.trials\n", log.n_known(),
                  nibble::printable(options_.out).c_str());
    }
    std::vector<Format> formats;
    const auto to_try = [&](std::string_view name) {
      formats = formats_of(name);
      return std::span<const Format>(formats);
    };
    NIBBLE_TRY(trials, nibble::compress::measure_sensitivity(
                           *file_, *session_, *reference_, to_try, nibble::graph::AllFormats::kOps,
                           convert_options(Rounding::weighted), log));
    trials_ = std::move(trials);
    return nibble::ok();
  }

  // The mix of formats, rounded plainly, within the budget.
  nibble::Result<void> choose() {
    NIBBLE_CHECK(budget_->time_products(*session_, trials_, executor_));
    const auto cost = [this](const auto& tensor, const auto& trial) {
      return budget_->cost_of(tensor, trial);
    };
    constexpr double kAnyCost = 1e18;
    NIBBLE_TRY(planner, nibble::compress::FormatPlanner::create(trials_, cost, kAnyCost));
    planner_ = std::move(planner);
    for (;;) {
      NIBBLE_TRY(plan, budget_->plan(*planner_, trials_));
      NIBBLE_TRY(made, make("the mix, ", std::move(plan), Rounding::plain));
      best_ = std::move(made);
      if (budget_->keeps(best_.bytes.size(), best_.divergence)) break;
      budget_->tighten(best_.bytes.size(), best_.divergence);
    }
    plain_ = best_;
    return nibble::ok();
  }

  // A way to round stays where it lowers the divergence.
  nibble::Result<void> try_other_roundings() {
    for (const Rounding rounding : {Rounding::weighted, Rounding::by_columns}) {
      if (rounding == Rounding::by_columns && !has_moments_) continue;
      NIBBLE_TRY(made, make("the mix, ", plain_.plan, rounding));
      keep_if_better(std::move(made));
    }
    return nibble::ok();
  }

  // The same format for all, if it costs about as much: a mix must not be worse.
  nibble::Result<void> try_uniform() {
    for (const Format format : options_.formats) {
      FormatPlan uniform = planner_->uniform(format);
      if (uniform.cost > budget_->most_cost() || uniform.cost < 0.9 * plain_.plan.cost) continue;
      NIBBLE_TRY(made, make(std::string("all in ") + to_string(format) + ", ", std::move(uniform),
                            best_.rounding));
      if (budget_->keeps(made.bytes.size(), made.divergence)) keep_if_better(std::move(made));
    }
    return nibble::ok();
  }

  void keep_if_better(Made made) {
    const bool is_better = made.divergence < best_.divergence;
    std::printf("%-30s KL %.3g: %s\n", made.name.c_str(), made.divergence,
                is_better ? "kept" : "does not help, left out");
    if (is_better) best_ = std::move(made);
  }

  nibble::Result<Made> make(const std::string& what, FormatPlan plan, Rounding rounding) {
    Made made;
    made.name = what + name_of(rounding);
    made.plan = std::move(plan);
    made.rounding = rounding;
    NIBBLE_TRY(bytes, convert(made));
    made.bytes = std::move(bytes);
    NIBBLE_TRY(file, nibble::io::Gguf::parse(made.bytes, "converted"));
    NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                          file, {.executor = &executor_, .tuning = model_->tuning()}));
    NIBBLE_TRY(session,
               nibble::Session::create(model, comparing_session(texts_.context, executor_)));
    const nibble::Progress progress = until_interrupted;
    NIBBLE_TRY(divergence, reference_->compare(session, &progress));
    made.divergence = divergence.mean;
    points_.push_back({made.name, static_cast<double>(made.bytes.size()), made.divergence});
    return made;
  }

  nibble::Result<Bytes> convert(const Made& made) {
    StatusLine status(true, StatusLine::kInLogs);
    nibble::ConvertOptions options = convert_options(made.rounding);
    std::map<Format, std::uint64_t> bytes;
    for (const auto& entry : made.plan.entries) bytes[entry.trial.format] += entry.trial.bytes;
    options.format =  // what the file says of itself: what most of it is in
        std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) {
          return a.second < b.second;
        })->first;
    options.choose = [&](std::string_view name) -> std::optional<Format> {
      if (const auto format = made.plan(name)) return format;
      const auto own = nibble::quant::format_of(file_->find_tensor(name)->type);
      return own ? *own : Format::f16;
    };
    std::size_t n = 0;
    return nibble::quantize_model(*file_, options, [&](const nibble::ConvertedTensor& tensor) {
      status.show(made.name + ": " + std::to_string(++n) + " of " +
                  std::to_string(file_->tensors().size()) + ", " + nibble::printable(tensor.name));
      return !interrupted;
    });
  }

  // ---- The report ----

  nibble::Result<void> report() {
    NIBBLE_TRY(session,
               nibble::Session::create(*model_, comparing_session(texts_.context, executor_)));
    NIBBLE_TRY(reference, nibble::compress::ReferencePredictions::record(session, texts_.report));
    std::vector<ReportRow> rows;
    NIBBLE_TRY(original, report_row("original", *file_, *model_, reference, samples_, executor_));
    rows.push_back(std::move(original));
    for (const Made* const made : {&plain_, &best_}) {
      if (made == &best_ && best_.name == plain_.name) continue;
      NIBBLE_TRY(file, nibble::io::Gguf::parse(made->bytes, made->name));
      NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                            file, {.executor = &executor_}));
      NIBBLE_TRY(row, report_row(made->name, file, model, reference, samples_, executor_));
      rows.push_back(std::move(row));
    }
    print_report(rows, samples_);
    print_formats();
    std::printf("%s: %s bytes\n", nibble::printable(options_.out).c_str(),
                grouped(best_.bytes.size()).c_str());
    if (!options_.plot.empty() && !draw()) {
      std::fprintf(stderr, "compress: no picture: gnuplot is missing or failed\n");
    }
    return nibble::ok();
  }

  void print_formats() const {
    std::map<std::string, std::pair<std::size_t, std::uint64_t>> formats;
    for (const auto& entry : best_.plan.entries) {
      auto& [n, bytes] = formats[to_string(entry.trial.format)];
      ++n;
      bytes += entry.trial.bytes;
    }
    for (const auto& [format, sums] : formats) {
      std::printf("%zu matrices in %s, %s bytes\n", sums.first, format.c_str(),
                  grouped(sums.second).c_str());
    }
  }

  // Bytes against divergence: the best plans of all budgets and the uniform ones, as predicted, and
  // what was made and measured.
  bool draw() {
    Gnuplot plot(options_.plot);
    if (!plot.is_open()) return false;
    plot.print(
        "set logscale y\nset xlabel 'bytes'\nset ylabel 'KL to the original, nats'\n"
        "plot '-' with lines title 'best mixes, predicted', "
        "'-' with points pt 7 ps 0.5 title 'uniform, predicted', "
        "'-' using 1:2:3 with labels point pt 5 offset 0,1 title 'measured'\n");
    const auto print_plan = [&](const FormatPlan& plan) {
      if (!(plan.divergence > 0)) return;  // the axis has no zero
      plot.print("%.0f %g\n", static_cast<double>(plan.bytes() + budget_->other_bytes()),
                 plan.divergence);
    };
    const double low = planner_->cheapest_cost(), high = planner_->dearest_cost();
    for (int i = 0; i <= 60; ++i) {
      if (const auto plan = planner_->best(low + (high - low) * i / 60)) print_plan(*plan);
    }
    plot.print("e\n");
    for (const Format format : options_.formats) print_plan(planner_->uniform(format));
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
  std::optional<nibble::io::OutputFile> out_;
  std::optional<nibble::io::Gguf> file_;
  std::optional<Budget> budget_;
  std::optional<nibble::Model> model_;
  std::optional<nibble::Session> session_;
  std::optional<nibble::compress::ReferencePredictions> reference_;
  Texts texts_;
  std::vector<SampleFile> samples_;
  nibble::compress::Statistics statistics_;
  bool has_moments_ = false;
  std::vector<nibble::compress::TensorTrials> trials_;
  std::optional<nibble::compress::FormatPlanner> planner_;
  Made plain_, best_;
  std::vector<Point> points_;
};

}  // namespace example
