// SPDX-License-Identifier: Apache-2.0
//
// compare: two files of one model side by side: size, speed, the error of each tensor, and with a
// text how far the predictions are apart.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "common.hpp"
#include "gnuplot.hpp"
#include "measure.hpp"
#include "nibble/generate/divergence.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/nibble.hpp"
#include "nibble/quant/error_stats.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

using nibble::Index;
using nibble::Result;
using nibble::io::Gguf;
using nibble::io::GgufTensor;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  std::string paths[2], text, plot;
  Index context = 512, n_chunks = 8, n_threads = 0;
  bool all_tensors = false, measure_speed = true;
};

// ---- Tensors ----

struct TensorError {
  std::string name;
  const char* types[2] = {};
  nibble::quant::ErrorStats stats;

  double relative() const {  // RMS of the difference, relative to that of the weights
    if (stats.sum_squared_error == 0) return 0;
    return std::sqrt(stats.sum_squared_error / stats.sum_squared_signal);  // infinite: A is all 0
  }
};

// The difference of two tensors of equal shape, in parts that the executor shares out.
Result<nibble::quant::ErrorStats> error_of(const Gguf& file_a, const GgufTensor& a,
                                           const Gguf& file_b, const GgufTensor& b,
                                           nibble::Executor& executor) {
  NIBBLE_TRY(format_a, nibble::quant::format_of(a.type));
  NIBBLE_TRY(format_b, nibble::quant::format_of(b.type));
  const auto k = static_cast<std::size_t>(a.dims[0]);
  const auto n_rows = static_cast<Index>(a.n_elements() / a.dims[0]);
  const Index rows_of_part = (std::max)(Index{1}, Index{1 << 18} / static_cast<Index>(k));
  const Index n_parts = (n_rows + rows_of_part - 1) / rows_of_part;
  struct Part {
    nibble::quant::ErrorStats stats;
    std::optional<nibble::Error> error;
  };
  std::vector<Part> parts(static_cast<std::size_t>(n_parts));
  // All rows of a part at once: those of a transposed tensor lie between each other in the file.
  const auto read = [&](nibble::quant::Format format, const nibble::io::TensorBytes& bytes,
                        Index row, Index end, std::vector<std::byte>& stored,
                        std::vector<float>& weights) -> Result<void> {
    NIBBLE_TRY(row_bytes, nibble::quant::row_bytes(format, k));
    const auto n = static_cast<std::size_t>(end - row);
    stored.resize(n * row_bytes);
    weights.resize(n * k);
    NIBBLE_CHECK(bytes.read(static_cast<std::size_t>(row) * row_bytes, stored));
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_CHECK(nibble::quant::row_to_f32(format,
                                             std::span(stored).subspan(i * row_bytes, row_bytes),
                                             std::span(weights).subspan(i * k, k)));
    }
    return nibble::ok();
  };
  const auto bytes_a = file_a.bytes_of(a), bytes_b = file_b.bytes_of(b);
  executor.parallel_for(n_parts, [&](Index i, Index) {
    Part& part = parts[static_cast<std::size_t>(i)];
    std::vector<std::byte> stored;
    std::vector<float> x, y;
    const Index end = (std::min)(n_rows, (i + 1) * rows_of_part);
    auto done = read(format_a, bytes_a, i * rows_of_part, end, stored, x);
    if (done) done = read(format_b, bytes_b, i * rows_of_part, end, stored, y);
    if (!done) {
      part.error = done.error();
      return;
    }
    part.stats.add(x, y);
  });
  nibble::quant::ErrorStats all;
  for (const Part& part : parts) {
    if (part.error) return *part.error;
    all.merge(part.stats);
  }
  return all;
}

// The errors of all tensors that both have. `notes`: what could not be compared, and why.
Result<std::vector<TensorError>> tensor_errors(const Gguf& a, const Gguf& b,
                                               nibble::Executor& executor,
                                               std::vector<std::string>& notes) {
  std::vector<TensorError> errors;
  example::StatusLine status(true, example::StatusLine::kInLogs);
  std::size_t n_done = 0, n_only = 0;
  for (const GgufTensor& tensor : a.tensors()) {
    if (example::interrupted) return nibble::Error{nibble::Errc::cancelled, "comparing"};
    status.show("tensor " + std::to_string(++n_done) + " of " + std::to_string(a.tensors().size()));
    const GgufTensor* const other = b.find_tensor(tensor.name);
    const std::string name = nibble::printable(tensor.name);
    if (other == nullptr) {
      ++n_only;
    } else if (other->dims != tensor.dims) {
      notes.push_back("tensor " + name + " has two shapes");
    } else if (auto error = error_of(a, tensor, b, *other, executor)) {
      errors.push_back(
          {name, {type_traits(tensor.type).name, type_traits(other->type).name}, *error});
    } else {
      notes.push_back("tensor " + name + ": " + error.error().message);
    }
  }
  n_only += b.tensors().size() - (a.tensors().size() - n_only);
  if (n_only > 0) notes.push_back(std::to_string(n_only) + " tensors are in one of both alone");
  return errors;
}

void print_tensors(std::vector<TensorError> errors, bool all) {
  std::size_t n_equal = 0;
  for (const TensorError& error : errors) n_equal += error.stats.sum_squared_error == 0 ? 1 : 0;
  std::stable_sort(errors.begin(), errors.end(),
                   [](const auto& x, const auto& y) { return x.relative() > y.relative(); });
  const std::size_t n_shown = all ? errors.size() : (std::min)(errors.size(), std::size_t{10});
  std::printf("\n%-40s %-8s %-8s %12s %12s %9s\n", "tensor", "A", "B", "relative RMS", "max error",
              "SNR dB");
  for (std::size_t i = 0; i < n_shown; ++i) {
    const TensorError& error = errors[i];
    if (error.stats.sum_squared_error == 0) break;
    std::printf("%-40s %-8s %-8s %12.3g %12.3g %9.2f\n", error.name.c_str(), error.types[0],
                error.types[1], error.relative(), error.stats.max_abs, error.stats.snr_db());
  }
  std::printf("%zu tensors compared, %zu of them equal\n", errors.size(), n_equal);
}

// Draws the errors by layer and kind with gnuplot; false if there is none.
bool draw(const std::vector<TensorError>& errors, const std::string& path) {
  std::map<std::string, std::vector<std::pair<int, double>>> kinds;
  for (const TensorError& error : errors) {
    int layer = -1, length = 0;
    const bool is_layer = std::sscanf(error.name.c_str(), "blk.%d.%n", &layer, &length) == 1;
    if (error.relative() <= 0 || !std::isfinite(error.relative())) continue;
    kinds[is_layer ? error.name.substr(static_cast<std::size_t>(length)) : error.name].push_back(
        {layer, error.relative()});
  }
  if (kinds.empty()) return false;
  example::Gnuplot plot(path);
  plot.print(
      "set logscale y\nset xlabel 'layer (-1: outside of the layers)'\n"
      "set ylabel 'error of the weights, relative RMS'\nplot ");
  const char* separator = "";
  for (const auto& [kind, points] : kinds) {
    plot.print("%s'-' with linespoints title '%s'", separator, example::plot_title(kind).c_str());
    separator = ", ";
  }
  plot.print("\n");
  for (const auto& [kind, points] : kinds) {
    for (const auto& [layer, error] : points) plot.print("%d %g\n", layer, error);
    plot.print("e\n");
  }
  return plot.finish();
}

// ---- Models ----

struct Side {
  std::uint64_t bytes = 0;  // of weights in the file
  std::string types;
  std::size_t memory = 0;  // of weights when it is loaded
  double load = 0;         // seconds
  example::Speed speed;
};

Side describe(const Gguf& file) {
  Side side;
  std::map<std::string, std::uint64_t> bytes;
  for (const GgufTensor& tensor : file.tensors()) {
    side.bytes += tensor.data.size();
    bytes[type_traits(tensor.type).name] += tensor.data.size();
  }
  std::vector<std::pair<std::uint64_t, std::string>> order;
  for (const auto& [name, n] : bytes) order.push_back({n, name});
  std::sort(order.rbegin(), order.rend());
  for (const auto& [n, name] : order) side.types += (side.types.empty() ? "" : " ") + name;
  return side;
}

void print_sides(const Side (&sides)[2], bool has_models, bool has_speed) {
  const auto row = [&](const char* name, const auto& text_of) {
    std::printf("%-24s %20s %20s\n", name, text_of(sides[0]).c_str(), text_of(sides[1]).c_str());
  };
  const auto number = [](const char* format, double value) {
    char text[32];
    std::snprintf(text, sizeof(text), format, value);
    return std::string(text);
  };
  std::printf("%-24s %20s %20s\n", "", "A", "B");
  row("bytes of weights", [](const Side& s) { return example::grouped(s.bytes); });
  row("types, largest first", [](const Side& s) { return s.types.substr(0, 20); });
  if (!has_models) return;
  row("memory for weights", [](const Side& s) { return example::mebibytes(s.memory); });
  row("seconds to load", [&](const Side& s) { return number("%.2f", s.load); });
  if (!has_speed) return;
  row("prompt, tokens/s", [&](const Side& s) { return number("%.1f", s.speed.prompt); });
  row("generation, tokens/s", [&](const Side& s) { return number("%.1f", s.speed.generation); });
}

Result<void> compare_predictions(const Options& options, nibble::Session& a, nibble::Session& b) {
  const nibble::text::Tokenizer* const tokenizer = a.model().tokenizer();
  if (tokenizer == nullptr) return *a.model().tokenizer_error();
  NIBBLE_TRY(text, example::read_text(options.text));
  NIBBLE_TRY(tokens, tokenizer->encode(text, {.add_eos = false}));
  const auto most = static_cast<std::size_t>(options.n_chunks * options.context);
  if (most > 0 && tokens.size() > most) tokens.resize(most);
  const auto& settings = tokenizer->vocabulary().settings();
  nibble::Divergence result;
  {
    example::StatusLine status(true, example::StatusLine::kInLogs);
    const auto show = [&](std::size_t done, std::size_t total) {
      status.show("chunk " + std::to_string(done) + " of " + std::to_string(total));
      return !example::interrupted;
    };
    const nibble::Progress progress = show;
    NIBBLE_TRY(compared, nibble::divergence(a, b, tokens, options.context,
                                            settings.add_bos ? settings.bos : -1, &progress));
    result = compared;
  }
  std::printf("%-24s %20.4f %20.4f\n", "perplexity", result.perplexity_a, result.perplexity_b);
  std::printf("\nKL(A || B), nats: mean %.3g, median %.3g, 99 %% below %.3g, most %.3g\n",
              result.mean, result.median, result.p99, result.max);
  std::printf("same most likely token: %.2f %% of %lld positions\n", 100 * result.same_best,
              static_cast<long long>(result.n_positions));
  return nibble::ok();
}

Result<void> run(const Options& options) {
  example::catch_signals();
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = options.n_threads}));
  NIBBLE_TRY(file_a, nibble::open_model(options.paths[0]));
  NIBBLE_TRY(file_b, nibble::open_model(options.paths[1]));
  const Gguf* const files[] = {&file_a, &file_b};
  Side sides[2] = {describe(file_a), describe(file_b)};
  std::vector<nibble::Session> sessions;
  if (options.measure_speed || !options.text.empty()) {
    for (int i = 0; i < 2; ++i) {
      const auto start = Clock::now();
      NIBBLE_TRY(model, nibble::Model::from_gguf<nibble::graph::AllFormats>(
                            *files[i], {.executor = pool.get()}));
      sides[i].load = seconds_since(start);
      sides[i].memory = model.weight_bytes();
      const Index n_ctx = (std::max)(options.context, Index{128});
      NIBBLE_TRY(session, nibble::Session::create(model, {.n_ctx = n_ctx,
                                                          .max_step_tokens = 64,
                                                          .max_outputs = 64,
                                                          .executor = pool.get()}));
      if (options.measure_speed) {
        NIBBLE_TRY(speed, example::measure_speed(session));
        sides[i].speed = speed;
      }
      sessions.push_back(std::move(session));
    }
  }
  print_sides(sides, !sessions.empty(), options.measure_speed);
  if (!options.text.empty()) {
    NIBBLE_CHECK(compare_predictions(options, sessions[0], sessions[1]));
  }
  std::vector<std::string> notes;
  NIBBLE_TRY(errors, tensor_errors(file_a, file_b, *pool, notes));
  print_tensors(errors, options.all_tensors);
  for (const std::string& note : notes) std::printf("%s\n", note.c_str());
  if (!options.plot.empty() && !draw(errors, options.plot)) {
    std::fprintf(stderr, "compare: no picture: gnuplot is missing, or no error is above zero\n");
  }
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Compares two files of one model: size, speed, tensors, and predictions of a text.",
               "compare");
  Options options;
  bool no_speed = false;
  app.add_option("A", options.paths[0], "the reference: a GGUF file or a folder")->required();
  app.add_option("B", options.paths[1], "the other")->required();
  app.add_option("--text", options.text,
                 "a file with text; - is stdin: Kullback-Leibler divergence of the predictions, "
                 "equal most likely tokens, perplexities")
      ->check(example::is_not_empty);
  app.add_option("--ctx", options.context, "tokens of a chunk of the text")
      ->check(CLI::Range(Index{4}, Index{1} << 20))
      ->capture_default_str();
  app.add_option("--chunks", options.n_chunks, "the most chunks to compare; 0: all")
      ->check(CLI::Range(Index{0}, Index{1} << 20))
      ->capture_default_str();
  app.add_flag("--tensors", options.all_tensors, "all tensors that differ, not only the ten worst");
  app.add_option("--plot", options.plot, "a picture of the errors by layer, FILE.svg (by gnuplot)")
      ->check(example::is_not_empty);
  app.add_flag("--no-speed", no_speed, "do not time them");
  example::add_threads(app, options.n_threads);
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.");
  app.callback([&] { options.measure_speed = !no_speed; });
  return example::run(app, argc, argv, [&] { return run(options); });
}
