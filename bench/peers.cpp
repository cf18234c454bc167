// SPDX-License-Identifier: Apache-2.0
#include "bench/peers.hpp"

#include <iterator>

namespace bench {
namespace {

struct Peer {
  const char* name;
  PeerCase* make;
};

// CMake defines BENCH_HAS_... when it adds the file of a peer.
constexpr Peer kPeers[] = {
#if defined(BENCH_HAS_OPENBLAS)
    {"openblas", openblas_case},
#endif
#if defined(BENCH_HAS_ONEDNN)
    {"onednn", onednn_case},
#endif
#if defined(BENCH_HAS_GGML)
    {"ggml", ggml_case},
#endif
    {nullptr, nullptr}};

// A key that related rows share: everything except the number of rows of activations and whether
// the data is cold.
std::string group_of(const Case& c) {
  const std::size_t weights = c.shape.find("_n");
  return c.kernel + "/" + c.format + (weights == std::string::npos ? "" : c.shape.substr(weights));
}

}  // namespace

std::vector<std::string> peer_names() {
  std::vector<std::string> names;
  for (const Peer& peer : kPeers) {
    if (peer.name != nullptr) names.emplace_back(peer.name);
  }
  return names;
}

std::optional<Sizes> sizes_of(const Case& c) {
  long long m = 0, n = 0, k = 0;
  if (std::sscanf(c.shape.c_str(), "m%lld_n%lld_k%lld", &m, &n, &k) == 3) {
    return Sizes{static_cast<Index>(m), static_cast<Index>(n), static_cast<Index>(k)};
  }
  if (std::sscanf(c.shape.c_str(), "m%lld_k%lld", &m, &k) == 2) {
    return Sizes{static_cast<Index>(m), 0, static_cast<Index>(k)};
  }
  return std::nullopt;
}

void add_peers(const CaseOptions& options, std::vector<Case>& cases) {
  std::vector<Case> all;
  for (auto begin = cases.begin(); begin != cases.end();) {
    const auto end = std::find_if(begin, cases.end(), [group = group_of(*begin)](const Case& c) {
      return group_of(c) != group;
    });
    std::vector<Case> theirs;
    for (const Peer& peer : kPeers) {
      if (peer.name == nullptr) continue;
      for (auto it = begin; it != end; ++it) {
        if (std::optional<Case> made = peer.make(options, *it)) {
          made->peer = peer.name;
          theirs.push_back(*std::move(made));
        }
      }
    }
    std::move(begin, end, std::back_inserter(all));
    std::move(theirs.begin(), theirs.end(), std::back_inserter(all));
    begin = end;
  }
  cases = std::move(all);
}

}  // namespace bench
