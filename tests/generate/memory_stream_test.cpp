// SPDX-License-Identifier: Apache-2.0
//
// A stream with memory rows: what it computes is what a loop over an engine computes, in constant
// memory, however long it becomes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/generate/memory_stream.hpp"
#include "nibble/model/slot.hpp"

namespace memory_stream_test {

using namespace nibble;
using namespace test;

namespace {

using Floats = std::vector<float>;

Floats copy(MatrixView<const float> m) {
  Floats out;
  for (Index i = 0; i < m.extent(0); ++i) {
    for (Index j = 0; j < m.extent(1); ++j) out.push_back(m(i, j));
  }
  return out;
}

// The rows of segments as the header says, with an engine of its own for each segment.
class Reference {
 public:
  Reference(const Model& model, Index n_ctx, const MemoryOptions& options)
      : model_(model), n_ctx_(n_ctx), options_(options), dim_(model.config().dim) {
    if (options.learned.data() != nullptr) {
      rows_ = learned_ = memory_stream_test::copy(options.learned);
    }
    if (options.n_kept_last < 0) {
      const Index room = n_ctx - options.n_kept_first - options.n_rows;
      options_.n_kept_last = learned_.empty() ? room / 2 : 0;
    }
  }

  // The logits after the last token.
  Floats run(const Ids& tokens) {
    const Index n_written = learned_.empty() ? 0 : options_.n_rows;
    const auto n_first = static_cast<std::size_t>(options_.n_kept_first);
    for (std::size_t at = 0, begin = 0;; ++n_segments) {
      Floats inside;  // inputs of the last product
      Engine engine = must(
          Engine::create(model_, {.n_ctx = n_ctx_,
                                  .max_step_tokens = 16,
                                  .max_outputs = 8,
                                  .product_observer = [&](std::span<const std::size_t>, Index layer,
                                                          MatrixView<const float> x) {
                                    if (layer < 0) inside = memory_stream_test::copy(x);
                                  }}));
      Sequence sequence = must(engine.new_sequence());
      if (n_segments > 0) put(engine, sequence, std::span(tokens).first(n_first));
      put_rows(engine, sequence, 0);
      put(engine, sequence, std::span(tokens).subspan(begin, at - begin));
      const auto n = std::min(static_cast<std::size_t>(n_ctx_ - n_written - sequence.position()),
                              tokens.size() - at);
      const Floats logits = put(engine, sequence, std::span(tokens).subspan(at, n));
      at += n;
      if (at == tokens.size()) return logits;
      if (!learned_.empty()) {
        put_rows(engine, sequence, options_.n_rows);
        rows_ = inside;
      } else {
        const auto all = std::span(tokens).subspan(begin, at - begin);
        const auto kept = static_cast<std::size_t>(options_.n_kept_last);
        const std::size_t skipped = n_segments == 0 ? n_first : 0;
        pool(all.subspan(skipped, all.size() - skipped - kept));
      }
      begin = at - static_cast<std::size_t>(options_.n_kept_last);
    }
  }
  Index n_segments = 0;

 private:
  Floats put(Engine& engine, Sequence& sequence, std::span<const std::int32_t> tokens) const {
    return tokens.empty() ? Floats() : append(engine, sequence, tokens);
  }
  void put_rows(Engine& engine, Sequence& sequence, Index n_outputs) const {
    if (rows_.empty()) return;
    const auto n = static_cast<Index>(rows_.size()) / dim_;
    const SequenceInput input{.sequence = &sequence,
                              .rows = MatrixView<const float>(rows_.data(), n, dim_),
                              .n_outputs = n_outputs};
    must(engine.run({&input, 1}));
  }
  static double length_of(const Floats& row) {
    double sum = 0;
    for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
    return std::sqrt(sum);
  }
  void pool(std::span<const std::int32_t> tokens) {
    const graph::Weight& table = model_.weights().at(Slot::token_embd, -1);
    const auto n = static_cast<Index>(tokens.size());
    const Index n_new =
        std::min(n, options_.n_new_rows > 0 ? options_.n_new_rows : options_.n_rows);
    for (Index i = 0; i < n_new; ++i) {
      Floats mean(static_cast<std::size_t>(dim_)), row(mean.size());
      Index count = 0;
      double lengths = 0;
      for (Index t = 0; t < n; ++t) {
        if (t < i * n / n_new || t >= (i + 1) * n / n_new) continue;
        table.ops->row(table.data, table.n, table.k, tokens[static_cast<std::size_t>(t)],
                       row.data());
        for (std::size_t j = 0; j < row.size(); ++j) mean[j] += row[j];
        lengths += length_of(row);
        ++count;
      }
      const double scale = lengths / static_cast<double>(count) / length_of(mean);
      for (float& x : mean) x *= static_cast<float>(scale);
      rows_.insert(rows_.end(), mean.begin(), mean.end());
    }
    const auto most = static_cast<std::size_t>(options_.n_rows * dim_);
    if (rows_.size() > most) {
      rows_.erase(rows_.begin(), rows_.end() - static_cast<std::ptrdiff_t>(most));
    }
  }

  const Model& model_;
  Index n_ctx_;
  MemoryOptions options_;
  Index dim_;
  Floats rows_, learned_;
};

Floats some_rows(Index n, Index dim) {
  Floats rows;
  for (const std::int32_t id : some_ids(static_cast<std::size_t>(n * dim), 77)) {
    rows.push_back(static_cast<float>(id - 25) / 25);
  }
  return rows;
}

}  // namespace

TEST_CASE("memory stream: what a loop over an engine computes, in pieces of any size") {
  const Ids ids = some_ids(400, 5);
  const Floats learned = some_rows(3, 64);
  const MatrixView<const float> learned_rows(learned.data(), 3, 64);
  const MemoryOptions all[] = {
      {.n_rows = 8},
      {.n_rows = 8, .n_kept_first = 0, .n_kept_last = 11, .n_new_rows = 3},
      {.n_rows = 1, .n_kept_first = 20, .n_kept_last = 1},
      {.n_rows = 5, .n_kept_last = 0},
      {.n_rows = 3, .learned = learned_rows},
      {.n_rows = 3, .n_kept_first = 0, .n_kept_last = 5, .learned = learned_rows}};
  for (const Model& model : {llama_model(), gemma_model(20)}) {
    for (const MemoryOptions& options : all) {
      CAPTURE(options.n_rows);
      CAPTURE(options.n_kept_first);
      Reference reference(model, 50, options);
      const Floats expected = reference.run(ids);
      CHECK(reference.n_segments > 5);
      MemoryStream stream =
          must(MemoryStream::create(model, {.n_ctx = 50, .max_step_tokens = 16}, options));
      for (const std::size_t piece : {400u, 2u, 37u}) {
        CAPTURE(piece);
        Floats logits;
        for (std::size_t at = 0; at < ids.size(); at += piece) {
          const auto n = std::min(piece, ids.size() - at);
          logits = memory_stream_test::copy(must(stream.append(std::span(ids).subspan(at, n))));
        }
        CHECK(logits == expected);
        CHECK(stream.n_tokens() == 400);
        CHECK(stream.n_segments() == static_cast<std::uint64_t>(reference.n_segments));
        stream.reset();
      }
    }
  }
}

TEST_CASE("memory stream: 20 contexts long, in constant memory and bounded time") {
  const Floats learned = some_rows(4, 64);
  for (const bool is_learned : {false, true}) {
    MemoryOptions options{.n_rows = 4, .n_new_rows = 2};
    if (is_learned) options.learned = MatrixView<const float>(learned.data(), 4, 64);
    MemoryStream stream = must(MemoryStream::create(llama_model(), {.n_ctx = 64}, options));
    std::size_t bytes = 0;
    const Ids ids = some_ids(64 * 22, 3);
    const auto before = allocated_bytes();
    auto after_two = before;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i == 128) after_two = allocated_bytes(), bytes = stream.bytes();
      CHECK(stream.n_left() >= 0);
      const auto logits = must(stream.append(std::span(ids).subspan(i, 1)));
      for (Index j = 0; j < logits.extent(1); ++j) REQUIRE(std::isfinite(logits(0, j)));
    }
    CHECK(stream.n_segments() >= 20);
    CHECK(allocated_bytes() == after_two);  // two segments have made all that there will be
    CHECK(stream.bytes() == bytes);
    CHECK(stream.memory().extent(0) == 4);
  }
}

TEST_CASE(
    "memory stream: learned rows are those of the first segment, then what it makes of them") {
  const Floats learned = some_rows(2, 64);
  MemoryStream stream = must(MemoryStream::create(
      llama_model(), {.n_ctx = 40},
      {.n_rows = 2, .learned = MatrixView<const float>(learned.data(), 2, 64)}));
  CHECK(memory_stream_test::copy(stream.memory()) == learned);
  REQUIRE(stream.append(some_ids(36, 1)));
  CHECK(stream.n_left() == 0);
  CHECK(memory_stream_test::copy(stream.memory()) == learned);
  REQUIRE(stream.append(some_ids(1, 2)));
  const Floats first = memory_stream_test::copy(stream.memory());
  CHECK(first != learned);
  stream.reset();
  CHECK(memory_stream_test::copy(stream.memory()) == learned);
  REQUIRE(stream.append(some_ids(36, 4)));  // another segment, other memory
  REQUIRE(stream.append(some_ids(1, 2)));
  CHECK(memory_stream_test::copy(stream.memory()) != first);
}

TEST_CASE("memory stream: what it refuses") {
  const Model model = llama_model();
  const Floats rows(3 * 64);
  const auto refused = [&](const MemoryOptions& options, EngineOptions engine = {.n_ctx = 40}) {
    return code(MemoryStream::create(model, engine, options)) == Errc::invalid_argument;
  };
  CHECK(refused({.n_rows = 0}));
  CHECK(refused({.n_rows = -1}));
  CHECK(refused({.n_kept_first = -1}));
  CHECK(refused({.n_kept_last = -2}));
  CHECK(refused({.n_rows = 4, .n_new_rows = 5}));
  CHECK(refused({.n_rows = 4, .n_new_rows = -1}));
  CHECK(refused({.n_rows = Index{1} << 62}));
  CHECK(refused({.n_rows = 36}));
  CHECK(!refused({.n_rows = 35}));
  CHECK(refused({.n_rows = 2, .learned = MatrixView<const float>(rows.data(), 3, 64)}));
  CHECK(refused({.n_rows = 3, .learned = MatrixView<const float>(rows.data(), 3, 63)}));
  CHECK(refused(
      {.n_rows = 3, .learned = MatrixView<const float>(rows.data(), 3, 64)},
      {.n_ctx = 40,
       .product_observer = [](std::span<const std::size_t>, Index, MatrixView<const float>) {}}));
  MemoryStream stream = must(MemoryStream::create(model, {.n_ctx = 40}, {}));
  CHECK(code(stream.append({})) == Errc::invalid_argument);
  const Ids bad{1, 50};
  CHECK(code(stream.append(bad)) == Errc::invalid_argument);
  CHECK(stream.n_tokens() == 0);
  REQUIRE(stream.append(some_ids(3, 1)));
}

}  // namespace memory_stream_test
