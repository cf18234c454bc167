// SPDX-License-Identifier: Apache-2.0
//
// Training for static INT8: the ranges are averages of what each step saw, forward passes use them,
// a file gets codes, scales and ranges as they were trained, and inputs beyond a range get no
// gradient.
#include "nibble/train/input_ranges.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/quant/packed.hpp"
#include "train/deployed_model.hpp"
#include "train/training_model.hpp"

namespace input_ranges_test {
namespace {

using test::bundled;
using test::Trained;
using test::trained_from;
using namespace nibble;
using namespace nibble::train;
using quant::Format;
using quant::StaticScale;

Owned<InputRanges> ranges_of(Trained& model, const InputRangeOptions& options, Executor& executor) {
  auto made = InputRanges::create(model.weights, options, executor);
  REQUIRE(made);
  return *std::move(made);
}

StaticScale input_of(const Trained& model, const std::string& name) {
  const TrainedTensor* const tensor = model.weights.find(name);
  REQUIRE(tensor != nullptr);
  return tensor->input;
}

// The smallest and the largest number that products with each matrix read in one step, and zero.
using Extremes = std::map<std::string, std::pair<double, double>>;

Extremes extremes_of(Trained& model, const TrainerOptions& options, const train::Batch& batch,
                     Executor& executor) {
  Extremes seen;
  auto trainer = Trainer::create(*model.graph, model.weights, options, executor);
  REQUIRE(trainer);
  const graph::ProductObserver observer = [&](std::span<const std::size_t> slots, Index layer,
                                              MatrixView<const float> rows) {
    for (const std::size_t slot : slots) {
      std::string name = model.graph->tensor_name(slot, layer);
      if (name == "output.weight") name = "token_embd.weight";  // they are tied
      auto& [low, high] = seen[name];
      for (Index i = 0; i < rows.extent(0); ++i) {
        for (Index j = 0; j < rows.extent(1); ++j) {
          low = (std::min)(low, static_cast<double>(rows(i, j)));
          high = (std::max)(high, static_cast<double>(rows(i, j)));
        }
      }
    }
  };
  trainer->set_product_observer(&observer);
  model.weights.clear_gradients(executor);
  REQUIRE(trainer->cross_entropy(batch));
  return seen;
}

TEST_CASE("ranges are averages of what each step saw, of the first steps their mean") {
  const io::Gguf file = bundled();
  InlineExecutor alone;
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool);
  const train::Batch batches[] = {test::batch_of(512), [] {
                                    train::Batch b = test::batch_of(512);
                                    for (std::int32_t& t : b.tokens) t = (t + 77) % 512;
                                    return b;
                                  }()};
  for (const bool is_unsigned : {false, true}) {
    for (const bool checkpoints : {false, true}) {
      CAPTURE(is_unsigned);
      CAPTURE(checkpoints);
      Trained model = trained_from(file, Format::i8_channel);
      Executor& executor = checkpoints ? static_cast<Executor&>(**pool) : alone;
      const TrainerOptions options{.max_rows = 40, .checkpoints = checkpoints};
      const InputRangeOptions range_options{
          .is_unsigned = is_unsigned, .decay = 0.75, .n_first = 9};
      const auto ranges = ranges_of(model, range_options, executor);
      auto trainer = Trainer::create(*model.graph, model.weights, options, executor);
      REQUIRE(trainer);
      trainer->set_product_observer(ranges->observer());
      Extremes averages;
      for (int step = 0; step < 9; ++step) {
        CHECK(!input_of(model, "blk.0.attn_q.weight"));  // the first steps only observe
        const train::Batch& batch = batches[step % 2];
        ranges->begin();
        REQUIRE(trainer->cross_entropy(batch));
        const double share = (std::max)(0.25, 1.0 / (step + 1));
        for (const auto& [name, seen] : extremes_of(model, options, batch, alone)) {
          auto& [low, high] = averages[name];
          low += share * (seen.first - low);
          high += share * (seen.second - high);
        }
        REQUIRE(ranges->update());
      }
      CHECK(averages.size() == 22);
      for (const auto& [name, average] : averages) {
        CAPTURE(name);
        const StaticScale input = input_of(model, name);
        REQUIRE(quant::is_usable(input));
        CHECK(input.is_unsigned == is_unsigned);
        const double low = average.first, high = average.second;
        const double scale = is_unsigned ? (high - low) / 255 : (std::max)(-low, high) / 127;
        CHECK(static_cast<double>(input.scale) == doctest::Approx(scale).epsilon(1e-6));
        if (is_unsigned) CHECK(std::abs(input.zero_point + low / scale) <= 0.501);
      }
    }
  }
}

// A file has what training ran: codes, scales and ranges, bit for bit, and gives its logits.
TEST_CASE("a file for static INT8 has the codes and the ranges that training ran") {
  const io::Gguf file = bundled();
  InlineExecutor executor;
  const train::Batch batch = test::batch_of(512);
  for (const bool is_unsigned : {false, true}) {
    CAPTURE(is_unsigned);
    Trained model = trained_from(file, Format::i8_channel);
    const auto ranges = ranges_of(model, {.is_unsigned = is_unsigned, .n_first = 2}, executor);
    take_steps(model, 4, batch, executor, ranges.get());
    const io::Gguf made = test::exported(file, model);
    auto loaded = Model::from_gguf<graph::AllFormats>(made);
    REQUIRE(loaded);
    CHECK(loaded->conversions().empty());
    int n = 0;
    for (std::size_t at = 0; at < loaded->weights().size(); ++at) {
      const std::size_t slot = at % loaded->weights().n_slots();
      const auto layer = static_cast<Index>(at / loaded->weights().n_slots()) - 1;
      const graph::Weight& trained = model.weights.table().at(slot, layer);
      const graph::Weight& other = loaded->weights().at(slot, layer);
      if (trained.is_vector()) continue;
      CAPTURE(model.graph->tensor_name(slot, layer));
      REQUIRE(other.ops == trained.ops);
      CHECK(other.input == trained.input);
      CHECK(trained.input.is_unsigned == is_unsigned);
      REQUIRE(quant::is_usable(trained.input));
      REQUIRE(other.bytes() == trained.bytes());
      const auto size = static_cast<std::size_t>(trained.bytes());
      CHECK(std::memcmp(other.data, trained.data, size) == 0);
      ++n;
    }
    CHECK(n == 23);  // the embeddings twice, as a table and as the output
    const auto in_training = test::logits_in_training(model, batch, executor);
    const double distance = test::relative_distance(in_training, test::logits_of_file(made, batch));
    // As in qat_test.cpp; a code more or less is a step of a whole range here, not of one row's
    // (0.012 was seen with AVX-512).
    CHECK(distance < 0.02);
  }
}

TEST_CASE("codes without ranges are a file whose inputs have scales of their own") {
  const io::Gguf file = bundled();
  InlineExecutor executor;
  Trained model = trained_from(file, Format::i8_channel);
  take_steps(model, 1, test::batch_of(512), executor);
  const io::Gguf made = test::exported(file, model);
  CHECK(made.find_tensor("blk.0.attn_q.scales") != nullptr);
  CHECK(made.find_tensor("blk.0.attn_q.input_scale") == nullptr);
  const auto in_training = test::logits_in_training(model, test::batch_of(512), executor);
  const auto of_file = test::logits_of_file(made, test::batch_of(512));
  CHECK(test::relative_distance(in_training, of_file) < 0.008);
}

TEST_CASE("a step that was broken off is forgotten; inputs that are not finite change nothing") {
  const io::Gguf file = bundled();
  InlineExecutor executor;
  Trained model = trained_from(file, Format::i8_channel),
          other = trained_from(file, Format::i8_channel);
  const auto ranges = ranges_of(model, {.n_first = 1}, executor);
  const auto same = ranges_of(other, {.n_first = 1}, executor);
  const std::size_t slot = [&] {
    for (std::size_t i = 0; i < model.graph->n_slots(); ++i) {
      if (model.graph->tensor_name(i, 1) == "blk.1.ffn_up.weight") return i;
    }
    return std::size_t{0};
  }();
  float numbers[] = {1, -3, 0.5f, 2};
  const auto show = [&](InputRanges& to) {
    (*to.observer())(std::span(&slot, 1), 1, MatrixView<const float>(numbers, 2, 2));
  };
  show(*ranges);
  show(*same);
  REQUIRE(ranges->update());
  REQUIRE(same->update());
  CHECK(input_of(model, "blk.1.ffn_up.weight") == StaticScale{3.0f / 127});
  CHECK(!input_of(model, "blk.1.ffn_gate.weight"));  // not seen
  numbers[0] = 100;
  show(*ranges);
  ranges->begin();
  numbers[0] = 1;
  show(*ranges);
  show(*same);
  REQUIRE(ranges->update());
  REQUIRE(same->update());
  CHECK(input_of(model, "blk.1.ffn_up.weight") == input_of(other, "blk.1.ffn_up.weight"));
  numbers[3] = std::numeric_limits<float>::infinity();
  show(*ranges);
  const auto updated = ranges->update();
  REQUIRE(!updated);
  CHECK(updated.error().code == Errc::invalid_argument);
  CHECK(updated.error().message.find("blk.1.ffn_up.weight") != std::string::npos);
  CHECK(input_of(model, "blk.1.ffn_up.weight") == StaticScale{3.0f / 127});
}

TEST_CASE("what cannot be tracked is refused") {
  const io::Gguf file = bundled();
  InlineExecutor executor;
  Trained blocks = trained_from(file, Format::q8_0), rows = trained_from(file, Format::i8_channel);
  const auto code = [&](Trained& model, const InputRangeOptions& options) {
    const auto made = InputRanges::create(model.weights, options, executor);
    REQUIRE(!made);
    return made.error().code;
  };
  CHECK(code(blocks, {}) == Errc::invalid_argument);
  CHECK(code(rows, {.decay = 1}) == Errc::invalid_argument);
  CHECK(code(rows, {.decay = std::numeric_limits<double>::quiet_NaN()}) == Errc::invalid_argument);
  CHECK(code(rows, {.n_first = 0}) == Errc::invalid_argument);
}

enum class S : unsigned char { table, last };

// A matrix of f32 rows in I8Channel.
AlignedBuffer packed_channels(graph::Weight& w) {
  const graph::FormatOps& ops = graph::kFormatOps<quant::I8Channel>;
  auto buffer = AlignedBuffer::allocate(static_cast<std::size_t>(ops.packed_bytes(w.n, w.k)));
  REQUIRE(buffer);
  const auto row_bytes = *ops.row_bytes(static_cast<std::size_t>(w.k));
  std::vector<std::byte> rows(row_bytes * static_cast<std::size_t>(w.n));
  for (Index i = 0; i < w.n; ++i) {
    const auto* const x = reinterpret_cast<const float*>(w.data) + i * w.k;
    REQUIRE(quant::row_from_f32<quant::I8Channel>(
        {x, static_cast<std::size_t>(w.k)},
        std::span(rows).subspan(static_cast<std::size_t>(i) * row_bytes, row_bytes)));
  }
  w.ops = &ops;
  w.data = buffer->data();
  graph::pack_panels(w, rows, static_cast<Index>(row_bytes), 0, buffer->data());
  return *std::move(buffer);
}

TEST_CASE("inputs beyond their range get no gradient, others the one they have without a range") {
  constexpr Index kTokens = 11, kWidth = 32;
  const auto e =
      graph::embedding<S::table>(Dim<>{kWidth}, kTokens) >> graph::linear<S::last>(Dim<>{20});
  test::TrainingModel<std::remove_const_t<decltype(e)>> model(e, 2, 0);
  graph::Weight& matrix = model.at(1, -1);
  const AlignedBuffer packed = packed_channels(matrix);
  const test::GradientBatch batch({4, 6, 1}, kTokens);
  graph::TrainingLimits limits;
  limits.packed_weights = true;
  InlineExecutor executor;
  const auto gradient = [&](const StaticScale& input) {
    matrix.input = input;
    model.clear();
    test::RandomLoss loss;
    model.run(batch, limits, executor, [&](MatrixView<float> rows) { loss(rows); });
    return model.weights[0].gradient;
  };
  const std::vector<float> straight = gradient({});
  const float* const x = model.values(model.weights[0]);
  for (const StaticScale& input : {StaticScale{0.4f / 127}, StaticScale{1.0f / 255, 80, true}}) {
    CAPTURE(input.is_unsigned);
    const std::vector<float> clipped = gradient(input);
    int n_clipped = 0, n_inside = 0;
    for (std::size_t i = 0; i < straight.size(); ++i) {
      const bool is_clipped = quant::stored_code_of(input, x[i]) !=
                              std::lround(x[i] / input.scale) + input.stored_zero();
      CHECK(clipped[i] == (is_clipped ? 0.0f : straight[i]));
      if (straight[i] != 0) ++(is_clipped ? n_clipped : n_inside);
    }
    CHECK(n_clipped > 20);
    CHECK(n_inside > 20);
  }
}

}  // namespace

}  // namespace input_ranges_test
