// SPDX-License-Identifier: Apache-2.0
//
// For tests of serve/: the shipped model in three formats, and what each answers alone.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "generate/scheduling.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/load.hpp"
#include "nibble/serve/model_pool.hpp"

namespace test {

// Files of the shipped model in memory, made once.
struct HomeFiles {
  std::vector<std::byte> f16, int8, int4;
};
inline const HomeFiles& home_files() {
  static const HomeFiles files = [] {
    const auto file = must(nibble::io::Gguf::open(home_model_path()));
    const auto as = [&](nibble::quant::Format format) {
      return must(nibble::quantize_model(file, {.format = format}));
    };
    return HomeFiles{as(nibble::quant::Format::f16), as(nibble::quant::Format::q8_0),
                     as(nibble::quant::Format::q4_0)};
  }();
  return files;
}

// (The tuning is given: measuring it takes longer than loading so small a model.)
inline nibble::Result<nibble::Model> load_bytes(const std::vector<std::byte>& bytes) {
  NIBBLE_TRY(file, nibble::io::Gguf::parse(bytes, "home"));
  return nibble::Model::from_gguf(file, {.tuning = nibble::Tuning{}});
}

inline nibble::SchedulerOptions pool_scheduler() {
  return {.n_ctx = 128, .max_batch = 8, .max_step_tokens = 64};
}

inline nibble::serve::Variant home_variant(std::string name, const std::vector<std::byte>& bytes) {
  return {.name = std::move(name),
          .load = [&bytes] { return load_bytes(bytes); },
          .scheduler = pool_scheduler()};
}

inline nibble::serve::ModelPool make_pool(const nibble::serve::ModelPoolOptions& options = {}) {
  return must(nibble::serve::ModelPool::create(options));
}

// Makes it the one that serves.
inline void serve_now(nibble::serve::ModelPool& pool, nibble::serve::Variant variant) {
  const auto done = must(pool.switch_to(std::move(variant))).wait();
  REQUIRE_MESSAGE(done, why(done));
}

inline Answer read_all(nibble::Completion& completion) {
  Answer answer;
  while (const auto token = completion.wait()) answer.add(*token);
  return answer;
}

}  // namespace test
