// SPDX-License-Identifier: Apache-2.0
//
// For tests of prefixes in files: engines and caches into which a file is restored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/generate/prefix_cache.hpp"

namespace test {

// A file of this test, which is removed.
struct TemporaryFile {
  std::string path =
      (std::filesystem::temp_directory_path() /
       ("nibble-prefix-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + ".gguf"))
          .string();
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  // Replaces the file: the one before may be mapped.
  void write(std::span<const std::byte> bytes) const {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
    REQUIRE(out.good());
  }
};

inline nibble::EngineOptions options_of(nibble::ops::KvType kv_type = nibble::ops::KvType::f16,
                                        nibble::Index margin = 64) {
  return {.n_ctx = 400,
          .max_sequences = 4,
          .cache_positions = 64 * nibble::ops::kPagePositions,
          .window_margin = margin,
          .max_step_tokens = 400,
          .kv_type = kv_type};
}

// Two prompts that part after 100 tokens, and one of other weights.
inline std::vector<std::pair<Ids, std::uint64_t>> prompts() {
  Ids a = some_ids(250, 1), b(a.begin(), a.begin() + 100);
  for (const std::int32_t id : some_ids(90, 2)) b.push_back(id);
  b[100] = (a[100] + 1) % 50;
  return {{a, 0}, {b, 0}, {some_ids(70, 3), 12345}};
}

inline void fill(nibble::Engine& engine, nibble::PrefixCache& cache) {
  for (const auto& [ids, weights] : prompts()) {
    nibble::Sequence sequence = must(cache.match(ids, weights));
    append(engine, sequence, rest_of(ids, sequence.position()));
    CHECK(must(cache.insert(sequence, weights)) == static_cast<nibble::Index>(ids.size()));
  }
}

// An engine and a cache into which a file is restored.
struct Place {
  explicit Place(const nibble::Model& model, const nibble::EngineOptions& options = options_of(),
                 std::size_t max_bytes = 0)
      : engine(must(nibble::Engine::create(model, options))),
        cache(must(nibble::PrefixCache::create(engine, {.max_bytes = max_bytes}))) {}

  // The error, which has changed nothing.
  nibble::Error refused(const std::string& path) {
    const auto restored = cache.restore(path);
    REQUIRE(!restored);
    CHECK(cache.n_pages() == 0);
    CHECK(cache.bytes() == 0);
    CHECK(engine.n_free_pages() == engine.n_pages());
    return restored.error();
  }

  nibble::Engine engine;
  nibble::PrefixCache cache;
};

inline void check_restored(Place& place) {
  for (const auto& [ids, weights] : prompts()) {
    Ids longer = ids;
    longer.push_back(7);
    CHECK(place.cache.n_cached(longer, weights) == static_cast<nibble::Index>(ids.size()));
    nibble::Sequence sequence = must(place.cache.match(longer, weights));
    CHECK(append(place.engine, sequence, std::span(longer).last(1)) ==
          logits_of(place.engine, longer));
  }
}

}  // namespace test
