// SPDX-License-Identifier: Apache-2.0
//
// The search: shapes that fit a budget, their times, and training of the most promising ones, of
// which after each turn the better half goes on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../home_model.hpp"
#include "../train/accuracy.hpp"
#include "../train/home_source.hpp"
#include "../train/model.hpp"
#include "nibble/train/run.hpp"
#include "shapes.hpp"
#include "times.hpp"

namespace example {

struct SearchOptions {
  ShapeGrid grid;
  nibble::quant::Format format = nibble::quant::Format::q8_0;
  std::uint64_t bytes = 1000000;
  double token_ms = 0, command_ms = 0;  // 0: no limit
  std::size_t n_trained = 8, n_kept = 2, n_budgets = 2, n_test = 500;
  std::uint64_t n_steps = 400, seed = 1;
  nibble::Index n_sequences = 32;
  double rate = 3e-3;
  bool is_quiet = false;
};

// A shape that fits a budget: the whole one is 1, others are parts of it.
struct Contender {
  Shape shape;
  double budget = 1;
  std::uint64_t bytes = 0, parameters = 0;
  double products_ms = 0;  // of a token
  ModelTimes times;
  std::uint64_t n_steps = 0;    // trained
  double loss = 0;              // mean of its last steps
  std::optional<double> right;  // percent of held-out commands
};

inline std::string shape_text(const Shape& s) {
  char text[96];
  std::snprintf(text, sizeof(text), "%u layers x %3u, %2u/%u heads, ffn %4u", s.n_layers, s.dim,
                s.n_heads, s.n_kv_heads, s.ffn);
  return text;
}

class Search {
 public:
  // The file and the executor must live as long. Errors: not_found (no table of embeddings),
  // unsupported (a format that is not trained for).
  static nibble::Result<Search> create(const nibble::io::Gguf& like, const SearchOptions& options,
                                       nibble::Executor& executor) {
    Search made(like, options, executor);
    NIBBLE_TRY(embeddings, like.tensor("token_embd.weight"));
    made.vocabulary_ = embeddings.dims[1];
    made.is_tied_ = like.find_tensor("output.weight") == nullptr;
    made.ops_ = nibble::graph::find(nibble::graph::AllFormats::kOps, options.format);
    if (made.ops_ == nullptr) {
      return nibble::Error{nibble::Errc::unsupported, "this program does not train for the format"};
    }
    NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
    made.tokenizer_ = std::make_unique<nibble::text::Tokenizer>(std::move(tokenizer));
    return made;
  }

  // Finds the contenders of each budget and measures them. Errors: not_found (nothing fits),
  // cancelled.
  nibble::Result<void> find();
  // Trains them by halving. Errors: those of training; cancelled. What is known then is in
  // contenders().
  nibble::Result<void> train();
  // Those of the whole budget first, each with what is known of it.
  const std::vector<Contender>& contenders() const { return contenders_; }
  std::uint64_t n_shapes() const { return n_shapes_; }
  std::uint64_t n_fitting() const { return n_fitting_; }
  std::size_t n_products() const { return n_products_; }

 private:
  struct Trained {
    TrainedModel model;
    std::unique_ptr<HomeSource> source;
    std::optional<nibble::train::Run> run;
  };

  Search(const nibble::io::Gguf& like, const SearchOptions& options, nibble::Executor& executor)
      : like_(&like), options_(options), executor_(&executor) {}

  nibble::Result<TrainedModel> model(const Shape& shape) const {
    TrainedModel::Options o{.shape = shape, .seed = options_.seed};
    if (ops_->pack_panel != nullptr && options_.format != nibble::quant::Format::f32) {
      o.deployed = options_.format;
    }
    return TrainedModel::create(*like_, o, true);
  }
  bool fits(const ModelTimes& t, double budget) const {
    return (options_.token_ms <= 0 || t.token <= budget * options_.token_ms) &&
           (options_.command_ms <= 0 || t.command <= budget * options_.command_ms);
  }
  // Whether a model whose products take so long can fit.
  bool may_fit(double products_ms, double budget) const {
    return fits({products_ms, 8 * products_ms}, budget);
  }
  nibble::Result<void> choose(const std::vector<Contender>& fitting, double budget);
  nibble::Result<Trained> start(const Shape& shape);
  nibble::Result<void> advance(Trained& trained, Contender& contender, std::uint64_t end);
  nibble::Result<void> train_budget(std::vector<Contender*> all);
  static nibble::Error stopped() { return {nibble::Errc::cancelled, "interrupted"}; }

  const nibble::io::Gguf* like_;
  SearchOptions options_;
  nibble::Executor* executor_;
  const nibble::graph::FormatOps* ops_ = nullptr;
  std::unique_ptr<nibble::text::Tokenizer> tokenizer_;
  std::uint64_t vocabulary_ = 0, n_shapes_ = 0, n_fitting_ = 0;
  std::size_t n_products_ = 0;
  bool is_tied_ = true;
  std::vector<Contender> contenders_;
};

inline nibble::Result<void> Search::find() {
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  std::vector<Contender> all;
  std::optional<nibble::Error> error;
  for_shapes(options_.grid, [&](const Shape& shape) {
    ++n_shapes_;
    if (interrupted || error) return;
    Contender one;
    one.shape = shape;
    one.parameters = parameters_of(shape, vocabulary_, is_tied_);
    auto bytes = bytes_of(shape, vocabulary_, is_tied_, options_.format);
    if (!bytes) {
      error = std::move(bytes).error();
      return;
    }
    one.bytes = *bytes;
    if (one.bytes <= options_.bytes) all.push_back(one);
  });
  if (interrupted) return stopped();
  if (error) return *std::move(error);
  ProductTimes products(*ops_, options_.bytes, *executor_);
  std::vector<Contender> fitting;
  for (Contender& one : all) {
    if (interrupted) return stopped();
    status.show("search: measuring products of " + shape_text(one.shape));
    NIBBLE_TRY(ms, products.milliseconds(one.shape, vocabulary_, is_tied_));
    one.products_ms = ms;
    if (may_fit(ms, 1)) fitting.push_back(one);
  }
  n_products_ = products.n_measured();
  n_fitting_ = fitting.size();
  // More parameters are the better guess.
  std::stable_sort(fitting.begin(), fitting.end(), [](const Contender& a, const Contender& b) {
    return a.parameters > b.parameters;
  });
  double budget = 1;
  for (std::size_t i = 0; i < options_.n_budgets; ++i, budget /= 2) {
    status.show({});
    NIBBLE_CHECK(choose(fitting, budget));
  }
  if (contenders_.empty()) {
    return nibble::Error{nibble::Errc::not_found,
                         "no shape fits the budget; the grid has " + std::to_string(n_shapes_)};
  }
  return nibble::ok();
}

// Those with the most parameters whose model is fast enough, measured; of the same depth and width
// two at most, so that training compares what differs.
inline nibble::Result<void> Search::choose(const std::vector<Contender>& fitting, double budget) {
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  std::vector<Contender> chosen;
  for (const Contender& one : fitting) {
    if (chosen.size() >= options_.n_trained) break;
    if (interrupted) return stopped();
    if (static_cast<double>(one.bytes) > budget * static_cast<double>(options_.bytes) ||
        !may_fit(one.products_ms, budget)) {
      continue;
    }
    const auto n_alike = std::count_if(chosen.begin(), chosen.end(), [&](const Contender& c) {
      return c.shape.n_layers == one.shape.n_layers && c.shape.dim == one.shape.dim;
    });
    const bool is_known = std::any_of(contenders_.begin(), contenders_.end(),
                                      [&](const Contender& c) { return c.shape == one.shape; });
    if (n_alike >= 2 || is_known) continue;
    status.show("search: measuring a model of " + shape_text(one.shape));
    NIBBLE_TRY(random, model(one.shape));
    NIBBLE_TRY(file, random.as_file(options_.format == nibble::quant::Format::f16
                                        ? options_.format
                                        : nibble::quant::Format::f32));
    NIBBLE_TRY(loaded, load_to_ask(file, *executor_));
    NIBBLE_TRY(times, times_of(loaded));
    if (!fits(times, budget)) continue;
    chosen.push_back(one);
    chosen.back().times = times;
    chosen.back().budget = budget;
  }
  contenders_.insert(contenders_.end(), chosen.begin(), chosen.end());
  return nibble::ok();
}

inline nibble::Result<Search::Trained> Search::start(const Shape& shape) {
  NIBBLE_TRY(made, model(shape));
  Trained trained{std::move(made), nullptr, std::nullopt};
  nibble::train::RunOptions o;
  o.schedule.peak = options_.rate;
  o.schedule.floor = options_.rate / 100;
  o.schedule.n_steps = options_.n_steps;
  o.schedule.warm_up = options_.n_steps / 20;
  o.optimizer.seed = options_.seed;
  o.batches = command_batches(trained.model.graph().config().n_ctx, options_.n_sequences,
                              options_.seed);
  trained.source = std::make_unique<HomeSource>(
      *tokenizer_, options_.seed,
      static_cast<nibble::Index>(options_.n_steps) * options_.n_sequences);
  NIBBLE_TRY(run, nibble::train::Run::create(trained.model.graph(), trained.model.weights(),
                                             *trained.source, o, *executor_));
  trained.run.emplace(std::move(run));
  return trained;
}

// All see the same commands in the same order, so that their losses compare.
inline nibble::Result<void> Search::advance(Trained& trained, Contender& contender,
                                            std::uint64_t end) {
  const std::uint64_t first = trained.run->n_steps();
  const std::uint64_t n_last = std::min<std::uint64_t>(end - first, 25);
  double sum = 0;
  while (trained.run->n_steps() < end) {
    if (interrupted) return stopped();
    NIBBLE_TRY(step, trained.run->step());
    if (trained.run->n_steps() + n_last > end) sum += step.loss;
  }
  if (n_last == 0) return nibble::ok();
  contender.n_steps = end;
  contender.loss = sum / static_cast<double>(n_last);
  return nibble::ok();
}

inline nibble::Result<void> Search::train_budget(std::vector<Contender*> all) {
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  std::vector<Trained> trained;
  for (Contender* one : all) {
    NIBBLE_TRY(started, start(one->shape));
    trained.push_back(std::move(started));
  }
  std::vector<std::size_t> order(all.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (const Turn& turn : halving_turns(all.size(), options_.n_kept, options_.n_steps)) {
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return all[a]->loss < all[b]->loss; });
    order.resize(turn.n_models);
    for (const std::size_t i : order) {
      status.show("search: budget " + std::to_string(all[i]->budget).substr(0, 5) + ", to step " +
                  std::to_string(turn.end_step) + ": " + shape_text(all[i]->shape));
      NIBBLE_CHECK(advance(trained[i], *all[i], turn.end_step));
    }
  }
  NIBBLE_TRY(splits, TestSplits::read());
  for (const std::size_t i : order) {
    status.show("search: asking " + shape_text(all[i]->shape));
    NIBBLE_TRY(percent,
               percent_right(trained[i].model, splits.held_out, options_.n_test, *executor_));
    all[i]->right = percent;
  }
  return nibble::ok();
}

inline nibble::Result<void> Search::train() {
  double budget = 1;
  for (std::size_t i = 0; i < options_.n_budgets; ++i, budget /= 2) {
    std::vector<Contender*> all;
    for (Contender& one : contenders_) {
      if (one.budget == budget) all.push_back(&one);
    }
    if (!all.empty()) NIBBLE_CHECK(train_budget(std::move(all)));
  }
  return nibble::ok();
}

}  // namespace example
