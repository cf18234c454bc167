// SPDX-License-Identifier: Apache-2.0
//
// Peers: other libraries with some of the same kernels, used if CMake finds them installed. Their
// rows are nibble's with the name of the peer instead of a SIMD target: the same shapes and data,
// in the same run, against the same limits. Each peer has its own file, peer_<name>.cpp.
#pragma once

#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/case.hpp"

namespace bench {

// The peer's version of one of nibble's cases; nothing if it has no such kernel. It uses as many
// threads as the executor has workers.
using PeerCase = std::optional<Case>(const CaseOptions& options, const Case& of);
PeerCase openblas_case, onednn_case, ggml_case;

// The peers compiled into this build.
std::vector<std::string> peer_names();
// Adds their cases after nibble's cases of the same kernel, format and weights.
void add_peers(const CaseOptions& options, std::vector<Case>& cases);

// The sizes in a case's shape: (m, k) times (n, k), or a matrix (m, k) and n = 0.
struct Sizes {
  Index m = 0, n = 0, k = 0;
};
std::optional<Sizes> sizes_of(const Case& c);

// Copies of the bytes of one matrix, used in turn.
class Copies {
 public:
  Copies(std::size_t bytes, Index n, Pages pages)
      : bytes_(bytes), n_(n), memory_(bytes * static_cast<std::size_t>(n), pages) {}

  std::byte* first() const { return memory_.data(); }
  // Fills the other copies with the contents of the first.
  void repeat() {
    for (Index i = 1; i < n_; ++i) std::memcpy(copy(i), first(), bytes_);
  }
  std::byte* next() {
    std::byte* const at = copy(next_);
    next_ = (next_ + 1) % n_;
    return at;
  }

 private:
  std::byte* copy(Index i) const { return first() + static_cast<std::size_t>(i) * bytes_; }

  std::size_t bytes_;
  Index n_, next_ = 0;
  Memory memory_;
};

// A weight matrix (n, k) of floats: 16 random rows, repeated.
inline std::vector<float> weight_floats(Index n, Index k) {
  std::vector<float> floats(static_cast<std::size_t>(n * k));
  const Index chunk = std::min<Index>(16, n) * k;
  Noise().fill(floats.data(), chunk);
  for (Index at = chunk; at < n * k; ++at) {
    floats[static_cast<std::size_t>(at)] = floats[static_cast<std::size_t>(at - chunk)];
  }
  return floats;
}

// How many copies of its weights a case uses in turn.
inline Index copies_for(const CaseOptions& options, const Case& c, double bytes) {
  return c.data == "cold" ? options.copies(bytes) : 1;
}

}  // namespace bench
