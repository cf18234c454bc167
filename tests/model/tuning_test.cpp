// SPDX-License-Identifier: Apache-2.0
#include "nibble/model/tuning.hpp"

#include <array>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "nibble/compress/product_time.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/ops/matmul.hpp"
#include "why.hpp"

namespace tuning_test {

using namespace nibble;

namespace {

// Everything different from the defaults, and odd.
Tuning unusual() {
  Tuning t;
  t.weights = Fetch::once;
  t.weights_distance = 100;
  t.cache = Fetch::l2;
  t.cache_distance = 64;
  t.many_rows = Fetch::none;
  t.tasks_per_worker = 5;
  t.rows_per_task = 7;
  return t;
}

// Matrices of zeros, (n, 2048) in Q8_0.
struct Zeros {
  explicit Zeros(Index n)
      : memory(*AlignedBuffer::allocate(
            static_cast<std::size_t>(2 * quant::Packed<quant::Q8_0>::bytes(n, 2048)))) {
    const graph::Weight matrix{&graph::kFormatOps<quant::Q8_0>, n, 2048, memory.data(), 1};
    weights[1] = weights[4] = matrix;
    weights[4].data += matrix.bytes();
  }
  AlignedBuffer memory;
  std::array<graph::Weight, 5> weights;  // most slots are empty
};

// A matrix of 4.5 MiB without its zeros, two of each four weights.
template <class F>
AlignedBuffer sparse_matrix(Index n, Index k) {
  std::vector<quant::Q4_0::Block> blocks(static_cast<std::size_t>(n * k / 32));
  for (quant::Q4_0::Block& block : blocks) {
    block.scale = to_f16(0.5f);
    for (std::size_t i = 0; i < 16; ++i) block.codes[i] = i % 4 < 2 ? 0x5B : 0x88;
  }
  using P = quant::Packed<F>;
  auto memory =
      *AlignedBuffer::allocate(static_cast<std::size_t>(P::packed_bytes(blocks.data(), n, k)));
  REQUIRE(P::can_hold(blocks.data(), n, k));
  P::pack(blocks.data(), n, k, memory.data());
  return memory;
}

template <class F>
void check_sparse_is_measured() {
  constexpr Index kN = 3300, kK = 3200;  // the last panel is not whole
  CAPTURE(std::string(to_string(quant::kFormatOf<F>)));
  const AlignedBuffer memory = sparse_matrix<F>(kN, kK);
  WeightStore store(1, graph::AllFormats{});
  REQUIRE(store.copy_packed(Slot::ffn_up, 0, quant::kFormatOf<F>, kN, kK, memory.bytes()));
  InlineExecutor alone;
  REQUIRE(store.pack(alone));
  REQUIRE(store.bytes() >= std::size_t{4} << 20);
  CHECK(check_tuning(measure_tuning(store.table().layers(), alone)));
}

}  // namespace

TEST_CASE("a tuning survives its text") {
  for (const Tuning& t : {Tuning(), unusual()}) {
    const auto read = parse_tuning(to_string(t));
    REQUIRE(read.has_value());
    CHECK(to_string(*read) == to_string(t));
    CHECK((t.weights == Fetch::none || *read == t));
  }
  CHECK(to_string(unusual()) ==
        "weights=once@100 cache=l2@64 many_rows=none tasks_per_worker=5 rows_per_task=7");
  const auto part = parse_tuning("  rows_per_task=8   cache=none ");
  REQUIRE(part.has_value());
  Tuning expected;
  expected.rows_per_task = 8;
  expected.cache = Fetch::none;
  CHECK(*part == expected);
  CHECK(*parse_tuning("") == Tuning());
}

TEST_CASE("texts that are no tuning are refused") {
  for (const char* text :
       {"weights", "weights=", "weights=L1", "weights=l1@", "weights=l1@x", "weights=l1@-1",
        "weights=l1@1048577", "many_rows=l1@1", "tasks_per_worker=0", "tasks_per_worker=65",
        "rows_per_task=0", "rows_per_task=4097", "rows_per_task=99999999999999999999", "depth=1",
        "=", "weights=l1,cache=l1"}) {
    CAPTURE(text);
    const auto read = parse_tuning(text);
    REQUIRE(!read.has_value());
    CHECK(read.error().code == Errc::invalid_argument);
    CHECK(read.error().message.find("tuning") != std::string::npos);
  }
  CHECK(parse_tuning("depth=1").error().message ==
        "tuning 'depth=1': the names are weights, cache, many_rows, tasks_per_worker and "
        "rows_per_task");
}

TEST_CASE("small weights are not measured, large ones are") {
  InlineExecutor alone;
  CHECK(measure_tuning({}, alone, unusual()) == unusual());
  CHECK(measure_tuning(Zeros(64).weights, alone, unusual()) == unusual());
  const Tuning t = measure_tuning(Zeros(1536).weights, alone, unusual());
  Tuning rest = t;
  rest.weights = unusual().weights;
  rest.weights_distance = unusual().weights_distance;
  rest.cache = unusual().cache;
  CHECK(rest == unusual());  // only how streams are fetched is measured
  CHECK(check_tuning(t).has_value());
}

TEST_CASE("weights whose packed size depends on them are measured too") {
  check_sparse_is_measured<quant::Q4_0Bitmask>();
  check_sparse_is_measured<quant::Q4_0Blocks16x4>();
  check_sparse_is_measured<quant::Q4_0TwoOfFour>();
}

TEST_CASE("products of every format can be timed") {
  InlineExecutor alone;
  for (const graph::FormatOps* const ops : graph::AllFormats::kOps) {
    CAPTURE(std::string(to_string(ops->format)));
    const auto time = compress::product_microseconds(*ops, 33, 256, 1 << 10, alone);
    if (ops->data_bytes == nullptr) {
      REQUIRE_MESSAGE(time, test::why(time));
      CHECK(*time > 0);
    } else {
      CHECK(time.error().code == Errc::unsupported);
    }
  }
  for (const auto& [n, k] : {std::pair(0, 256), std::pair(-1, 256), std::pair(33, 0)}) {
    CHECK(compress::product_microseconds(graph::kFormatOps<quant::F32>, n, k, 1 << 10, alone)
              .error()
              .code == Errc::invalid_argument);
  }
}

TEST_CASE("no tuning changes a result") {
  std::vector<std::vector<float>> results;
  for (const Tuning& tuning : {Tuning(), unusual(), *parse_tuning("weights=none many_rows=once"),
                               *parse_tuning("weights=l2@0 cache=none rows_per_task=3")}) {
    auto model = load(test::home_model_path(), {.tuning = tuning});
    REQUIRE(model.has_value());
    CHECK(model->tuning() == tuning);
    auto pool = ThreadPool::create({.n_threads = 2});
    REQUIRE(pool.has_value());
    auto session = Session::create(*model, {.executor = pool->get()});
    REQUIRE(session.has_value());
    std::vector<std::int32_t> ids(50, 5);
    auto& logits = results.emplace_back();
    for (const std::size_t n : {50, 1, 1, 2, 1}) {
      const auto rows = session->append(std::span(ids).first(n));
      REQUIRE(rows.has_value());
      logits.insert(logits.end(), rows->data(), rows->data() + rows->extent(1));
    }
    CHECK(logits == results[0]);
  }
}

TEST_CASE("a tuning out of range is refused by load()") {
  Tuning bad;
  bad.tasks_per_worker = 0;
  const auto model = load(test::home_model_path(), {.tuning = bad});
  REQUIRE(!model.has_value());
  CHECK(model.error().code == Errc::invalid_argument);
  CHECK(model.error().message.ends_with("tuning: tasks_per_worker is 0; it must be from 1 to 64"));
}

}  // namespace tuning_test
