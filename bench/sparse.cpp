// SPDX-License-Identifier: Apache-2.0
//
// bench_sparse: products with sparse weights (quant/sparse.hpp) beside dense ones in Q4_0, for each
// SIMD target. How much faster they are at each part of zeros, how much faster the bytes allow if
// memory is all that counts, and from which part of zeros on they are faster: the break-even.
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/case.hpp"
#include "bench/options.hpp"
#include "examples/common.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/quant/sparse.hpp"

namespace bench { namespace {

using nibble::quant::Packed;
using nibble::quant::Q4_0;
using nibble::quant::Q4_0Bitmask;
using nibble::quant::Q4_0Blocks16x4;
using nibble::quant::Q4_0TwoOfFour;
using Block = Q4_0::Block;

struct Options : RunOptions {
  Index n = 4096, k = 4096;
  std::vector<Index> rows = {1, 64};
  std::vector<int> zeros = {0, 10, 20, 30, 35, 40, 50, 60, 70, 80, 90};
  int passes = 5;
};

// Which weights are zero: single ones, blocks of 16 rows by 4, or two of each four.
enum class Pattern : std::uint8_t { single, blocks, two_of_four };

// Q4_0 weights (n, k), a part of them zero.
std::vector<Block> random_weights(Index n, Index k, double zeros, Pattern pattern) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<Block> blocks(static_cast<std::size_t>(n * k / 32));
  std::vector<bool> of_panel(static_cast<std::size_t>(k / 4));
  for (Index row = 0; row < n; ++row) {
    if (row % 16 == 0) {
      for (std::size_t g = 0; g < of_panel.size(); ++g) of_panel[g] = uniform(random) < zeros;
    }
    for (Index i = 0; i < k; ++i) {
      Block& block = blocks[static_cast<std::size_t>((row * k + i) / 32)];
      block.scale = nibble::quant::round_to<nibble::f16>(0.01f);
      bool is_zero = of_panel[static_cast<std::size_t>(i / 4)];
      if (pattern == Pattern::single) is_zero = uniform(random) < zeros;
      if (pattern == Pattern::two_of_four) is_zero = (i + row + i / 4) % 4 < 2;
      const unsigned other = static_cast<unsigned>(random() % 15);
      const unsigned code = is_zero ? 8 : other + (other >= 8 ? 1 : 0);
      std::uint8_t& both = block.codes[static_cast<std::size_t>(i % 16)];
      both = static_cast<std::uint8_t>(i % 32 < 16 ? (both & 0xF0u) | code
                                                   : (both & 0x0Fu) | code << 4);
    }
  }
  return blocks;
}

template <class F>
std::size_t packed_bytes(const std::vector<Block>& blocks, Index n, Index k) {
  if constexpr (nibble::quant::SparseFormat<F>) {
    return static_cast<std::size_t>(Packed<F>::packed_bytes(blocks.data(), n, k));
  } else {
    return static_cast<std::size_t>(Packed<F>::bytes(n, k));
  }
}

// Copies of a packed matrix, more than the caches hold, and what multiplies them in turn.
template <class F>
class Product {
 public:
  Product(const std::vector<Block>& blocks, Index n, Index k, Index m, bool cold, Pages pages)
      : n_(n),
        k_(k),
        bytes_(nibble::align_up(packed_bytes<F>(blocks, n, k))),
        n_copies_(cold ? Machine::cold_bytes() / bytes_ + 2 : 1),
        memory_(n_copies_ * bytes_, pages),
        x_(m, k, pages),
        out_(m, n, pages),
        codes_(nibble::ops::QuantizedRows<32>::bytes_needed(m, k), pages) {
    if constexpr (nibble::quant::SparseFormat<F>) {
      Packed<F>::pack(blocks.data(), n, k, memory_.data());
    } else {
      for (Index p = 0; p < nibble::quant::n_panels(n); ++p) {
        Packed<F>::pack_panel(blocks.data() + p * 16 * (k / 32), (std::min)(Index{16}, n - p * 16),
                              k, memory_.data() + p * Packed<F>::panel_bytes(k));
      }
    }
    for (std::size_t i = 1; i < n_copies_; ++i) {
      std::memcpy(memory_.data() + i * bytes_, memory_.data(), bytes_);
    }
    const auto rows = nibble::ops::QuantizedRows<32>::over(codes_.bytes(), m, k);
    nibble::InlineExecutor alone;
    nibble::ops::quantize_rows(alone, x_.in(), rows);
    input_ = nibble::ops::matmul_input(rows);
  }

  // Seconds of one product: the mean of a pass over the copies.
  double pass(nibble::Executor& executor, Clock clock, const nibble::Tuning& tuning) {
    const double begin = seconds_now(clock);
    for (std::size_t i = 0; i < n_copies_; ++i) {
      const nibble::quant::PackedMatrix<F> matrix{memory_.data() + i * bytes_, n_, k_};
      nibble::ops::matmul<F>(executor, input_, matrix, out_.view, {}, tuning);
    }
    return (seconds_now(clock) - begin) / static_cast<double>(n_copies_);
  }

 private:
  Index n_, k_;
  std::size_t bytes_, n_copies_;
  Memory memory_;
  Floats x_, out_;
  Memory codes_;
  nibble::kernels::MatmulInput input_;
};

struct Point {
  double zeros;
  double dense_seconds, seconds;
  double bytes;  // of dense weights, relative to the sparse ones
  double speed() const { return dense_seconds / seconds; }
};

template <class F>
Point measure(const Options& o, double zeros, Pattern pattern, Index m, Index n_threads) {
  const std::vector<Block> blocks = random_weights(o.n, o.k, zeros, pattern);
  const bool cold = m <= 8;
  Product<Q4_0> dense(blocks, o.n, o.k, m, cold, pages_of(o));
  Product<F> sparse(blocks, o.n, o.k, m, cold, pages_of(o));
  const Clock clock = n_threads == 1 ? clock_of(o) : Clock::wall;
  const nibble::Tuning tuning = o.tuning.value_or(nibble::Tuning());
  Point best{zeros, 1e9, 1e9,
             static_cast<double>(packed_bytes<Q4_0>(blocks, o.n, o.k)) /
                 static_cast<double>(packed_bytes<F>(blocks, o.n, o.k))};
  for (int pass = 0; pass < o.passes; ++pass) {  // in turn: the machine may change
    best.dense_seconds = (std::min)(best.dense_seconds, dense.pass(pool(n_threads), clock, tuning));
    best.seconds = (std::min)(best.seconds, sparse.pass(pool(n_threads), clock, tuning));
  }
  return best;
}

void print(const char* format, const Point& p) {
  std::printf("%-13s %4.0f %%  %9.1f us  %9.1f us  %6.3f  %6.3f  %5.0f %%\n", format, 100 * p.zeros,
              1e6 * p.dense_seconds, 1e6 * p.seconds, p.speed(), p.bytes,
              100 * p.speed() / p.bytes);
  std::fflush(stdout);
}

// The part of zeros from which on the format is faster, between the points by straight lines.
std::string break_even(const std::vector<Point>& points) {
  for (std::size_t i = points.size(); i-- > 0;) {
    if (points[i].speed() >= 1) continue;
    if (i + 1 == points.size()) return "none: it is not faster at any";
    const Point &a = points[i], &b = points[i + 1];
    const double part = (1 - a.speed()) / (b.speed() - a.speed());
    char text[32];
    std::snprintf(text, sizeof(text), "%.0f %% zeros",
                  100 * (a.zeros + part * (b.zeros - a.zeros)));
    return text;
  }
  return "any zeros: it is faster at all";
}

template <class F>
void run_format(const Options& o, const char* name, Pattern pattern, Index m, Index n_threads) {
  std::vector<Point> points;
  for (const int percent : o.zeros) {
    if (pattern == Pattern::two_of_four && percent != 50) continue;
    points.push_back(measure<F>(o, percent / 100.0, pattern, m, n_threads));
    print(name, points.back());
  }
  if (points.size() > 1) std::printf("%-13s break-even: %s\n", name, break_even(points).c_str());
}

int bench_sparse(int argc, char** argv) {
  CLI::App app("Sparse weights against dense ones in Q4_0.", "bench_sparse");
  Options o;
  add_run_options(app, o);
  app.add_option("-n", o.n, "outputs of the matrix")->check(CLI::Range(1, 1 << 20));
  app.add_option("-k", o.k, "inputs, a multiple of 32")->check(CLI::Range(32, 1 << 20));
  app.add_option("-m", o.rows, "rows of activations (1: decode; 64: prefill)")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--zeros", o.zeros, "per cent, rising")->delimiter(',')->check(CLI::Range(0, 100));
  app.add_option("--passes", o.passes, "of which the fastest counts")->check(CLI::Range(1, 1000));
  app.footer(
      "Columns: zeros; the time of the dense product and of the sparse one; how much faster that\n"
      "is; how much faster its bytes allow, if memory is all that counts; and the part of that\n"
      "which is reached. Up to 8 rows, weights come from memory that no cache holds.");
  return example::run(app, argc, argv, [&]() -> nibble::Result<int> {
    const auto usage = [&](const std::string& message) {
      std::fprintf(stderr, "bench_sparse: %s (see --help)\n", message.c_str());
      return example::kUsage;
    };
    if (o.k % 32 != 0) return usage("-k is no multiple of 32");
    if (!std::is_sorted(o.zeros.begin(), o.zeros.end())) return usage("--zeros do not rise");
    const auto targets = targets_of(o.isa, nibble::simd::available_targets());
    if (!targets) return usage(targets.error().message);
    std::printf("%s, n = %lld, k = %lld\n", cpu_name().c_str(), static_cast<long long>(o.n),
                static_cast<long long>(o.k));
    for (const Target target : *targets) {
      if (!nibble::simd::force_target(target)) return usage("no such target");
      for (const Index n_threads : threads_of(o.threads)) {
        for (const Index m : o.rows) {
          std::printf("\n%s, %d thread%s, %d row%s of activations\n",
                      nibble::simd::to_string(target), static_cast<int>(n_threads),
                      n_threads == 1 ? "" : "s", static_cast<int>(m), m == 1 ? "" : "s");
          std::printf("%-13s %6s  %12s  %12s  %6s  %6s  %7s\n", "format", "zeros", "dense",
                      "sparse", "times", "bytes", "reached");
          run_format<Q4_0Blocks16x4>(o, "q4_0_16x4", Pattern::blocks, m, n_threads);
          run_format<Q4_0TwoOfFour>(o, "q4_0_2of4", Pattern::two_of_four, m, n_threads);
          run_format<Q4_0Bitmask>(o, "q4_0_bitmask", Pattern::single, m, n_threads);
        }
      }
    }
    return example::kOk;
  });
}

}}  // namespace bench

int main(int argc, char** argv) { return bench::bench_sparse(argc, argv); }
