// SPDX-License-Identifier: Apache-2.0
//
// A case: one kernel on one format and shape, independent of target and number of threads. The
// functions below make lists of cases, one for each family of kernels.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "bench/machine.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/kernels/tuning.hpp"

namespace bench {

// One run of a kernel, on its own data.
using Body = std::function<void(nibble::Executor&)>;

struct Case {
  std::string kernel;  // "matmul"
  std::string format;  // of weights or cache: "q4_0"; "f32" where there is no choice
  std::string shape;   // "m8_n4096_k4096"
  std::string data;    // "cold": from memory that no cache holds; "warm": used again and again
  std::string peer;    // whose code it runs (peers.hpp); empty: nibble's, which has SIMD targets
  bool quick = false;  // part of the short list
  bool needs_tiles = false;  // only for targets that have them
  Work work;
  std::function<Body()> prepare;  // allocates and fills the data
};

// Options for the data of cases: its pages, and how large it must be not to fit in a cache.
struct CaseOptions {
  Pages pages = Pages::small;
  std::size_t l3 = 32 << 20;
  nibble::Tuning tuning = {};

  // How many copies of `bytes` bytes, used in turn, are too large for the caches.
  Index copies(double bytes) const {
    return static_cast<Index>(std::ceil(static_cast<double>(Machine::cold_bytes()) / bytes)) + 1;
  }
  // 512, or fewer if that many rows would take more than three quarters of the last-level cache.
  Index rows_in_l3(double row_bytes) const {
    Index rows = 512;
    while (rows > 32 && static_cast<double>(rows) * row_bytes > 0.75 * static_cast<double>(l3)) {
      rows /= 2;
    }
    return rows;
  }
};

void add_matmul(const CaseOptions& options, std::vector<Case>& cases);
void add_norms(const CaseOptions& options, std::vector<Case>& cases);
void add_activations(const CaseOptions& options, std::vector<Case>& cases);
void add_attention(const CaseOptions& options, std::vector<Case>& cases);
void add_fork_join(std::vector<Case>& cases);

// CPU time that the whole process uses while it idles for `seconds`, right after all workers of a
// pool had a task.
double idle_cpu_seconds(Index n_threads, double seconds);

// Pseudo-random numbers in [-1, 1), the same in every run.
class Noise {
 public:
  float operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 32)) * 0x1p-31f;
  }
  void fill(float* out, Index n) {
    for (Index i = 0; i < n; ++i) out[i] = (*this)();
  }

 private:
  std::uint64_t state_ = 88172645463325252u;
};

// An (m, k) matrix of floats that owns its memory.
struct Floats {
  Floats(Index m, Index k, Pages pages)
      : memory(static_cast<std::size_t>(m * k) * sizeof(float), pages),
        view(memory.as<float>(), m, k) {
    Noise().fill(memory.as<float>(), m * k);
  }
  nibble::MatrixView<const float> in() const { return view; }

  Memory memory;
  nibble::MatrixView<float> view;
};

}  // namespace bench
