// SPDX-License-Identifier: Apache-2.0
//
// The single steps of a compression as commands: each reads a model and writes one, or a file with
// statistics that the others read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <regex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../format_rules.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/imatrix.hpp"
#include "nibble/compress/observe.hpp"
#include "nibble/compress/prune.hpp"
#include "nibble/compress/prune_vocabulary.hpp"
#include "nibble/compress/quantize.hpp"
#include "nibble/compress/unit_scores.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/nibble.hpp"
#include "observing.hpp"
#include "report.hpp"
#include "texts.hpp"

namespace example {

// A command with what all of them have: the command line, threads, one place for errors.
class Step {
 public:
  Step(const char* name, const char* description) : app_(description, name) {
    add_threads(app_, n_threads_);
    app_.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.");
  }
  CLI::App& app() { return app_; }

  // Runs work(executor), a Result<void>, after the command line was read.
  template <class Work>
  int run(int argc, char** argv, Work work) {
    return example::run(app_, argc, argv, [&]() -> nibble::Result<void> {
      catch_signals();
      NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = n_threads_}));
      return work(static_cast<nibble::Executor&>(*pool));
    });
  }

 private:
  CLI::App app_;
  nibble::Index n_threads_ = 0;
};

inline nibble::Result<void> write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  NIBBLE_TRY(out, nibble::io::OutputFile::create(path));
  NIBBLE_CHECK(out.write(bytes));
  NIBBLE_CHECK(out.commit());
  std::printf("%s: %s bytes\n", nibble::printable(path).c_str(), grouped(bytes.size()).c_str());
  return nibble::ok();
}

inline std::string text_option_help() {
  return "a text of the kind that the model is for; FILE.tsv: prompts and answers";
}

// ---- observe -----------------------------------------------------------------------------------

inline int observe_step(int argc, char** argv) {
  Step step("compress observe",
            "Runs a model on a text and writes an importance matrix: the mean squares of the "
            "inputs of its matrices, as llama.cpp's llama-imatrix does.");
  std::string model_path, out, text;
  nibble::Index context = 512, max_chunks = 0;
  step.app().add_option("MODEL", model_path, "a GGUF file or a folder as hubs have it")->required();
  step.app()
      .add_option("IMATRIX", out, "the file to write; FILE.dat: in llama.cpp's older format")
      ->check(is_not_empty)
      ->required();
  step.app().add_option("--text", text, text_option_help())->check(is_not_empty)->required();
  step.app()
      .add_option("--ctx", context, "tokens of a chunk")
      ->check(CLI::Range(nibble::Index{4}, nibble::Index{1} << 20))
      ->capture_default_str();
  step.app()
      .add_option("--chunks", max_chunks, "the most chunks; 0: all")
      ->check(CLI::Range(nibble::Index{0}, nibble::Index{1} << 20))
      ->capture_default_str();
  return step.run(argc, argv, [&](nibble::Executor& executor) -> nibble::Result<void> {
    NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(model_path, {.executor = &executor}));
    NIBBLE_TRY(tokens, read_tokens(model, text));
    NIBBLE_TRY(
        statistics,
        observe_tokens(model, tokens, {.context = context, .max_chunks = max_chunks}, executor));
    const nibble::Index length = std::min(context, nibble::Index{model.config().n_ctx});
    auto n_chunks = std::max(nibble::Index{1}, static_cast<nibble::Index>(tokens.size()) / length);
    if (max_chunks > 0) n_chunks = std::min(n_chunks, max_chunks);
    NIBBLE_TRY(imatrix,
               nibble::compress::imatrix_of(statistics, text, static_cast<std::uint32_t>(n_chunks),
                                            static_cast<std::uint32_t>(length)));
    NIBBLE_CHECK(out.ends_with(".dat") ? nibble::compress::write_imatrix_dat(imatrix, out)
                                       : nibble::compress::write_imatrix(imatrix, out));
    std::printf("%s: %zu matrices, observed in %lld chunks of %lld tokens\n",
                nibble::printable(out).c_str(), imatrix.entries.size(),
                static_cast<long long>(n_chunks), static_cast<long long>(length));
    return nibble::ok();
  });
}

// ---- prune -------------------------------------------------------------------------------------

struct PruneOptions {
  std::string in, out, imatrix, keep_words;
  double neurons = 0, groups = 0;  // parts that go
  bool is_global = false;
  nibble::Index multiple = 32;
  std::vector<nibble::Index> layers;  // that go
};

// The scores of a kind of units: by activations if they were observed, otherwise by weights.
inline nibble::Result<nibble::compress::UnitScores> unit_scores(
    const nibble::io::Gguf& file, const nibble::compress::DecoderShape& shape,
    nibble::compress::PruneUnit unit, const nibble::compress::Imatrix* imatrix) {
  if (imatrix == nullptr) return nibble::compress::norm_scores(file, shape, unit);
  std::vector<std::vector<double>> squares;
  std::vector<nibble::compress::ChannelValues> values;
  squares.reserve(imatrix->entries.size());
  for (const auto& entry : imatrix->entries) {
    auto& of_entry = squares.emplace_back();
    for (const float x : entry.importance()) of_entry.push_back(static_cast<double>(x));
    values.push_back({entry.name, of_entry});
  }
  return nibble::compress::channel_scores(shape, unit, values);
}

inline nibble::Result<void> prune(const PruneOptions& o) {
  namespace compress = nibble::compress;
  NIBBLE_TRY(file, nibble::open_model(o.in));
  NIBBLE_TRY(shape, compress::decoder_shape(file));
  std::optional<compress::Imatrix> imatrix;
  if (!o.imatrix.empty()) {
    NIBBLE_TRY(read, compress::read_imatrix(o.imatrix));
    NIBBLE_CHECK(compress::check_imatrix(read, file));
    imatrix = std::move(read);
  }
  compress::PruneKeep keep;
  const auto choose = [&](double part, compress::PruneUnit unit, nibble::Index multiple,
                          std::vector<std::vector<nibble::Index>>& kept) -> nibble::Result<void> {
    if (part <= 0) return nibble::ok();
    NIBBLE_TRY(scores, unit_scores(file, shape, unit, imatrix ? &*imatrix : nullptr));
    NIBBLE_TRY(best,
               compress::keep_best(
                   scores, {.kept = 1 - part, .is_global = o.is_global, .multiple = multiple}));
    kept = std::move(best);
    return nibble::ok();
  };
  NIBBLE_CHECK(choose(o.neurons, compress::PruneUnit::neuron, o.multiple, keep.neurons));
  NIBBLE_CHECK(choose(o.groups, compress::PruneUnit::kv_group, 1, keep.kv_groups));
  for (const nibble::Index layer : o.layers) {
    if (layer >= 0 && layer < shape.n_layers) continue;
    return nibble::Error{nibble::Errc::invalid_argument, "--layers " + std::to_string(layer) +
                                                             ": the model has layers 0 to " +
                                                             std::to_string(shape.n_layers - 1)};
  }
  if (!o.layers.empty()) {
    if (static_cast<nibble::Index>(std::set(o.layers.begin(), o.layers.end()).size()) ==
        shape.n_layers) {
      return nibble::Error{nibble::Errc::invalid_argument, "--layers: none would stay"};
    }
    for (nibble::Index layer = 0; layer < shape.n_layers; ++layer) {
      if (std::find(o.layers.begin(), o.layers.end(), layer) == o.layers.end()) {
        keep.layers.push_back(layer);
      }
    }
  }
  if (!o.keep_words.empty()) {
    NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(file));
    NIBBLE_TRY(text, read_text(o.keep_words));
    NIBBLE_TRY(used, tokenizer.encode(text, {}));
    NIBBLE_TRY(tokens, compress::close_tokens(file, used));
    std::printf("%zu of %zu tokens stay\n", tokens.size(),
                static_cast<std::size_t>(tokenizer.vocabulary().size()));
    keep.tokens = std::move(tokens);
  }
  NIBBLE_TRY(bytes, compress::prune_model(file, keep));
  const auto print_counts = [](const char* what, const auto& kept, const auto& before) {
    if (kept.empty()) return;
    std::printf("%s that stay, by layer:", what);
    for (std::size_t l = 0; l < kept.size(); ++l) {
      std::printf(" %zu/%lld", kept[l].size(), static_cast<long long>(before[l]));
    }
    std::printf("\n");
  };
  print_counts("neurons", keep.neurons, shape.ffn);
  print_counts("groups of heads", keep.kv_groups, shape.n_kv_heads);
  return write_bytes(o.out, bytes);
}

inline int prune_step(int argc, char** argv) {
  Step step("compress prune",
            "Leaves out the feed-forward neurons, the groups of attention heads, the layers and "
            "the tokens that matter least. What stays is an ordinary, smaller model.");
  PruneOptions o;
  step.app().add_option("MODEL", o.in, "a GGUF file or a folder as hubs have it")->required();
  step.app().add_option("OUT.gguf", o.out, "the file to write")->check(is_not_empty)->required();
  auto* const what = step.app().add_option_group("what goes");
  what->add_option("--neurons", o.neurons, "part of the neurons that goes, e.g. 0.3")
      ->check(is_number)
      ->check(CLI::Range(0.0, 0.99));
  what->add_option("--groups", o.groups, "part of the groups of heads that goes")
      ->check(is_number)
      ->check(CLI::Range(0.0, 0.99));
  what->add_option("--layers", o.layers, "numbers of the layers that go, from 0")->delimiter(',');
  what->add_option("--vocabulary", o.keep_words, "a text: tokens that it does not need go")
      ->check(is_not_empty);
  what->require_option(1, 4);
  step.app()
      .add_option("--imatrix", o.imatrix,
                  "judges by the activations that compress observe saw; without it by the weights")
      ->check(is_not_empty);
  step.app().add_flag("--global", o.is_global,
                      "compares all layers: each keeps another number (for nibble alone)");
  step.app()
      .add_option("--multiple", o.multiple,
                  "numbers of neurons are multiples of it: the block length of later formats")
      ->check(CLI::Range(nibble::Index{1}, nibble::Index{4096}))
      ->capture_default_str();
  return step.run(argc, argv, [&](nibble::Executor&) { return prune(o); });
}

// ---- factor ------------------------------------------------------------------------------------

inline int factor_step(int argc, char** argv) {
  Step step("compress factor",
            "Replaces matrices by factors of low rank, or corrects the error of a format with "
            "them. The result is for nibble alone.");
  std::string in, out, text, pattern = "ffn_(gate|up|down)", format = "f16", base;
  double ratio = 0.5;
  nibble::Index rank = 0, context = 512;
  step.app().add_option("MODEL", in, "a GGUF file or a folder as hubs have it")->required();
  step.app().add_option("OUT.gguf", out, "the file to write")->check(is_not_empty)->required();
  step.app()
      .add_option("--matrices", pattern, "a regular expression: the names of the matrices")
      ->capture_default_str();
  step.app()
      .add_option("--ratio", ratio, "weights of the factors, as a part of the matrix'")
      ->check(is_number)
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  step.app()
      .add_option("--rank", rank, "instead: the rank")
      ->check(CLI::Range(nibble::Index{0}, nibble::Index{1} << 20));
  step.app()
      .add_option("--format", format, format_names() + ": of the factors")
      ->capture_default_str();
  step.app().add_option("--base", base,
                        "a format: the matrix stays, in it, and the factors correct its error");
  step.app()
      .add_option("--text", text,
                  text_option_help() + ": what counts is then the error of outputs on it")
      ->check(is_not_empty);
  step.app()
      .add_option("--ctx", context, "tokens of a chunk of the text")
      ->check(CLI::Range(nibble::Index{4}, nibble::Index{1} << 20))
      ->capture_default_str();
  std::optional<std::regex> names;
  nibble::compress::FactorChoice choice;
  step.app().callback([&] {
    try {
      names.emplace(pattern);
    } catch (const std::regex_error& error) {
      throw CLI::ValidationError("'" + pattern + "': " + error.what());
    }
    choice.factors = parse_format(format);
    if (!base.empty()) choice.base = parse_format(base);
    choice.rank.rank = rank;
    if (rank == 0) choice.rank.ratio = ratio;
    choice.rank.multiple = nibble::quant::row_bytes(choice.factors, 1) ? 1 : 32;
    if (!nibble::quant::row_bytes(choice.factors, 32)) choice.rank.multiple = 256;
  });
  return step.run(argc, argv, [&](nibble::Executor& executor) -> nibble::Result<void> {
    NIBBLE_TRY(file, nibble::open_model(in));
    nibble::compress::Statistics statistics;
    if (!text.empty()) {
      NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                            file, {.executor = &executor}));
      NIBBLE_TRY(tokens, read_tokens(model, text));
      NIBBLE_TRY(seen, observe_tokens(model, tokens, {.context = context, .with_moments = true},
                                      executor));
      statistics = std::move(seen);
    }
    std::vector<double> moments;
    std::vector<nibble::compress::FactorReport> reports;
    StatusLine status(true, StatusLine::kInLogs);
    const auto choose =
        [&](std::string_view name) -> std::optional<nibble::compress::FactorChoice> {
      const auto* const tensor = file.find_tensor(name);
      if (interrupted || tensor == nullptr || tensor->n_dims != 2 ||
          !std::regex_search(name.begin(), name.end(), *names)) {
        return std::nullopt;
      }
      status.show("factoring " + nibble::printable(std::string(name)));
      nibble::compress::FactorChoice of_matrix = choice;
      if (const auto* const input = statistics.find(name)) {
        moments.resize(static_cast<std::size_t>(input->k() * input->k()));
        input->copy_second_moments(moments);
        of_matrix.moments = moments;
      }
      return of_matrix;
    };
    NIBBLE_TRY(bytes, nibble::compress::factor_model(file, choose, executor, &reports));
    if (interrupted) return nibble::Error{nibble::Errc::cancelled, "factoring"};
    if (reports.empty()) {
      return nibble::Error{nibble::Errc::invalid_argument,
                           "--matrices " + nibble::printable(pattern) + ": no matrix of " +
                               file.name() + " has such a name"};
    }
    std::printf("%-32s %6s %14s %14s %14s\n", "matrix", "rank", "relative error", "bytes before",
                "bytes");
    for (const auto& r : reports) {
      std::printf("%-32s %6lld %14.4f %14s %14s\n", nibble::printable(r.tensor).c_str(),
                  static_cast<long long>(r.rank), r.relative_error, grouped(r.bytes_from).c_str(),
                  grouped(r.bytes_to).c_str());
    }
    return write_bytes(out, bytes);
  });
}

// ---- report ------------------------------------------------------------------------------------

inline int report_step(int argc, char** argv) {
  Step step("compress report",
            "Compares models with a first one: bytes, perplexity, divergence, speed, answers.");
  std::vector<std::string> paths, sample_paths;
  TextOptions text;
  step.app().add_option("MODEL", paths, "the reference, then any number of others")->required();
  step.app().add_option("--text", text.path, text_option_help())->check(is_not_empty)->required();
  step.app()
      .add_option("--ctx", text.context, "tokens of a chunk of the text")
      ->check(CLI::Range(nibble::Index{8}, nibble::Index{1} << 20))
      ->capture_default_str();
  step.app()
      .add_option("--tokens", text.n_report, "the most tokens")
      ->check(CLI::Range(nibble::Index{8}, nibble::Index{1} << 30))
      ->capture_default_str();
  step.app()
      .add_option("--exact", sample_paths,
                  "FILE.tsv of prompts and answers: how many answers are right")
      ->allow_extra_args(false);
  return step.run(argc, argv, [&](nibble::Executor& executor) -> nibble::Result<void> {
    NIBBLE_TRY(samples, read_sample_files(sample_paths));
    std::vector<ReportRow> rows;
    std::optional<nibble::compress::ReferencePredictions> reference;
    for (const std::string& path : paths) {
      NIBBLE_TRY(file, nibble::open_model(path));
      NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                            file, {.executor = &executor}));
      if (!reference) {
        NIBBLE_TRY(texts, read_texts(model, text));
        NIBBLE_TRY(session, nibble::Session::create(
                                model, comparing_session(texts.report.longest(), executor)));
        NIBBLE_TRY(recorded, nibble::compress::ReferencePredictions::record(session, texts.report));
        reference = std::move(recorded);
      }
      NIBBLE_TRY(row, report_row(path.substr(path.find_last_of('/') + 1), file, model, *reference,
                                 samples, executor));
      rows.push_back(std::move(row));
    }
    print_report(rows, samples);
    return nibble::ok();
  });
}

}  // namespace example
