// SPDX-License-Identifier: Apache-2.0
//
// What requests get that are answered together (nibble::Scheduler): tokens per second of all and of
// each, the time to the first token of a prompt that comes while others generate, memory.
#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/machine.hpp"
#include "bench/memory.hpp"
#include "bench/print.hpp"
#include "examples/gnuplot.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/text/tokenizer.hpp"

namespace bench {

struct ServeOptions {
  Index n_sequences = 1;
  Index n_generate = 128;  // tokens of each
  int repetitions = 3;
  Clock clock = Clock::wall;
  nibble::ops::KvType kv_type = nibble::ops::KvType::f16;
  nibble::Executor* executor = nullptr;
};

inline constexpr Index kShortPrompt = 16;  // tokens

struct Served {
  Index n_sequences = 1, n_threads = 1;
  double step_seconds = 0;   // of a step that gives a token to each sequence
  double first_seconds = 0;  // see Serving::first_seconds()
  double peak_bytes = 0;     // of the process; 0: unknown

  double tokens_per_second() const { return static_cast<double>(n_sequences) / step_seconds; }
};

class Serving {
 public:
  // ids: any tokens, at least kShortPrompt.
  static nibble::Result<Served> measure(const nibble::Model& model, const ServeOptions& o,
                                        std::span<const std::int32_t> ids) {
    const bool has_peak = reset_peak();
    const Index n_load = o.n_generate + 4 * Index{o.repetitions} + 8;
    NIBBLE_TRY(scheduler, nibble::Scheduler::create(
                              model, {.n_ctx = kShortPrompt + n_load,
                                      .max_batch = o.n_sequences,
                                      .max_step_tokens = std::max<Index>(64, o.n_sequences),
                                      .kv_type = o.kv_type,
                                      .executor = o.executor}));
    Serving serving(scheduler, o, ids);
    Served served;
    served.n_sequences = o.n_sequences;
    served.n_threads = o.executor->n_workers();
    NIBBLE_TRY(step, serving.step_seconds());
    NIBBLE_TRY(first, serving.first_seconds(n_load));
    served.step_seconds = step;
    served.first_seconds = first;
    served.peak_bytes = has_peak ? status_bytes("VmHWM") : 0;
    return served;
  }

 private:
  Serving(nibble::Scheduler& scheduler, const ServeOptions& options,
          std::span<const std::int32_t> ids)
      : scheduler_(scheduler), options_(options), ids_(ids) {
    const nibble::text::Tokenizer* const tokenizer = scheduler.model().tokenizer();
    if (tokenizer == nullptr) return;
    for (std::int32_t id = 0; id < scheduler.model().config().vocab_size; ++id) {  // none may end
      if (!tokenizer->vocabulary().ends_generation(id)) continue;
      never_.push_back({id, -std::numeric_limits<float>::infinity()});
    }
  }

  nibble::Result<nibble::Completion> submit(Index n_prompt, Index n_tokens) {
    nibble::GenerateRequest request;
    const auto prompt = ids_.first(static_cast<std::size_t>(n_prompt));
    request.tokens.assign(prompt.begin(), prompt.end());
    request.options.max_tokens = n_tokens;
    request.options.sampling.logit_bias = never_;
    return scheduler_.submit(std::move(request));
  }

  // n requests that generate, each with one token; they live as long as the result.
  nibble::Result<std::vector<nibble::Completion>> begin(Index n, Index n_tokens) {
    std::vector<nibble::Completion> all;
    for (Index i = 0; i < n; ++i) {
      NIBBLE_TRY(completion, submit(1, n_tokens));
      all.push_back(std::move(completion));
    }
    scheduler_.step();
    return all;
  }

  nibble::Result<double> step_seconds() {
    std::vector<double> times;
    for (int r = 0; r <= options_.repetitions; ++r) {
      NIBBLE_TRY(all, begin(options_.n_sequences, options_.n_generate + 1));
      const double begun = seconds_now(options_.clock);
      while (scheduler_.step()) {
      }
      const double seconds = seconds_now(options_.clock) - begun;
      for (const nibble::Completion& completion : all) NIBBLE_CHECK(completion.status());
      if (r > 0) times.push_back(seconds / static_cast<double>(options_.n_generate));
    }
    return median(std::move(times));
  }

  // From the worst moment at which a prompt of kShortPrompt tokens can come, the beginning of a
  // step, to its first token, while all other sequences generate.
  nibble::Result<double> first_seconds(Index n_load) {
    NIBBLE_TRY(load, begin(options_.n_sequences - 1, n_load));
    std::vector<double> times;
    for (int r = 0; r <= options_.repetitions; ++r) {
      const double begun = seconds_now(options_.clock);
      scheduler_.step();
      NIBBLE_TRY(completion, submit(kShortPrompt, 1));
      while (!completion.poll()) scheduler_.step();
      if (r > 0) times.push_back(seconds_now(options_.clock) - begun);
      NIBBLE_CHECK(completion.status());
    }
    return median(std::move(times));
  }

  nibble::Scheduler& scheduler_;
  const ServeOptions& options_;
  std::span<const std::int32_t> ids_;
  std::vector<nibble::LogitBias> never_;
};

inline void print_served(const std::vector<Served>& all) {
  if (all.empty()) return;
  std::printf("%-8s %3s %10s %8s %10s %9s %9s %9s\n", "served", "thr", "tokens/s", "of one", "each",
              "first ms", "in steps", "peak MiB");
  for (const Served& s : all) {
    double of_one = std::nan("");  // with as many threads
    for (const Served& other : all) {
      if (other.n_sequences != 1 || other.n_threads != s.n_threads) continue;
      of_one = s.tokens_per_second() / other.tokens_per_second();
    }
    std::printf("%-8d %3d %10.2f %7.2fx %10.2f %9.2f %9.2f %9.1f\n",
                static_cast<int>(s.n_sequences), static_cast<int>(s.n_threads),
                s.tokens_per_second(), of_one, 1 / s.step_seconds, 1e3 * s.first_seconds,
                s.first_seconds / s.step_seconds, s.peak_bytes / 0x1p20);
  }
}

// An array.
inline std::string json_of(const std::vector<Served>& all) {
  std::string out = "[";
  const char* separator = "\n";
  for (const Served& s : all) {
    print(out,
          "%s    {\"sequences\": %d, \"threads\": %d, \"tokens_per_second\": %.4f, "
          "\"step_seconds\": %.6f, \"first_token_seconds\": %.6f, \"peak_bytes\": %.0f}",
          separator, static_cast<int>(s.n_sequences), static_cast<int>(s.n_threads),
          s.tokens_per_second(), s.step_seconds, s.first_seconds, s.peak_bytes);
    separator = ",\n";
  }
  return out + (all.empty() ? "]" : "\n  ]");
}

// Tokens per second, of all and of each, and the time to the first token, by the number of
// sequences. False without gnuplot.
inline bool draw(const std::string& path, const std::vector<Served>& all,
                 const std::vector<Index>& threads) {
  example::Gnuplot plot(path);
  if (!plot.is_open()) return false;
  plot.print("set multiplot layout 1,3\nset key top left inside\nset logscale x 2\n");
  plot.print("set xlabel 'sequences'\nset yrange [0:*]\n");
  const auto panel = [&](const char* label, auto value) {
    plot.print("set ylabel '%s'\n", label);
    const char* separator = "plot ";
    for (const Index n : threads) {
      plot.print("%s'-' with linespoints title '%d threads'", separator, static_cast<int>(n));
      separator = ", ";
    }
    plot.print("\n");
    for (const Index n : threads) {
      for (const Served& s : all) {
        if (s.n_threads == n) plot.print("%d %g\n", static_cast<int>(s.n_sequences), value(s));
      }
      plot.print("e\n");
    }
  };
  panel("tokens/s, all together", [](const Served& s) { return s.tokens_per_second(); });
  panel("tokens/s, each", [](const Served& s) { return 1 / s.step_seconds; });
  panel("time to the first token, ms", [](const Served& s) { return 1e3 * s.first_seconds; });
  plot.print("unset multiplot\n");
  return plot.finish();
}

}  // namespace bench
