// SPDX-License-Identifier: Apache-2.0
//
// Training runs: they learn, they stop and continue bit for bit, they allocate nothing once they
// run, they end with an error where numbers break; and what they keep in memory.
#include "nibble/train/run.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/train/initialize.hpp"

namespace run_test {
namespace {

using namespace nibble;
using namespace nibble::train;

DecoderConfig small_config() {
  DecoderConfig c;
  c.vocab_size = 24;
  c.dim = 32;
  c.n_layers = 3;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 8;
  c.ffn_dim = 48;
  c.n_ctx = 16;
  c.norm_eps = 1e-5f;
  c.rope_dim = 8;
  return c;
}

// Counting: each token is its predecessor plus 1, of sequences that begin anywhere.
MemorySource counting(Index n = 40) {
  std::vector<Example> examples;
  for (Index i = 0; i < n; ++i) {
    Example e;
    for (Index j = 0; j < 3 + i % 9; ++j) {
      e.tokens.push_back(static_cast<std::int32_t>((5 * i + j) % 24));
    }
    examples.push_back(std::move(e));
  }
  return MemorySource(std::move(examples));
}

RunOptions small_options(std::uint64_t n_steps = 40) {
  RunOptions o;
  o.schedule.peak = 1e-2;
  o.schedule.n_steps = n_steps;
  o.schedule.warm_up = 4;
  o.batches.context = 12;
  o.batches.max_rows = 60;
  o.batches.seed = 3;
  return o;
}

struct Student {
  Owned<TrainingGraph> graph = make_training_graph<Llama>(small_config());
  TrainedWeights weights;

  explicit Student(TrainedWeights::Choose choose) : weights(made(choose)) {
    initialize(weights, 3, 7);
  }
  Student() : Student(all_trained) {}

  std::vector<float> values() const {
    std::vector<float> all;
    for (const TrainedTensor& t : weights.tensors()) {
      all.insert(all.end(), t.values.begin(), t.values.end());
    }
    return all;
  }

 private:
  static Result<WeightChoice> all_trained(const std::string&, const graph::WeightNeed& need) {
    WeightChoice choice;
    if (!need.is_required) choice.kind = WeightChoice::Kind::absent;
    return choice;
  }
  TrainedWeights made(TrainedWeights::Choose choose) {
    auto created = TrainedWeights::create(*graph, choose);
    REQUIRE(created);
    return *std::move(created);
  }
};

Run start(Student& student, const Source& source, const RunOptions& options, Executor& executor,
          Teacher* teacher = nullptr) {
  auto run = Run::create(*student.graph, student.weights, source, options, executor, teacher);
  REQUIRE(run);
  return *std::move(run);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("a model learns to count") {
  Student student;
  const MemorySource source = counting();
  InlineExecutor executor;
  Run run = start(student, source, small_options(120), executor);
  double first = 0, last = 0;
  for (int i = 0; i < 120; ++i) {
    const auto step = run.step();
    REQUIRE(step);
    if (i == 0) first = step->loss;
    last = step->loss;
  }
  CHECK(first > 2.5);  // log(24) = 3.2: it knows nothing
  CHECK(last < 0.2);
}

TEST_CASE("a run that stopped continues bit for bit, with any number of threads") {
  const std::string path =
      (std::filesystem::temp_directory_path() / "nibble_run_test.checkpoint").string();
  const MemorySource source = counting();
  InlineExecutor executor;
  auto pool = ThreadPool::create({.n_threads = 2});
  REQUIRE(pool);
  for (const Moments moments : {Moments::f32, Moments::bits8}) {
    RunOptions options = small_options();
    options.optimizer.moments = moments;
    Student whole, parts;
    Run run = start(whole, source, options, executor);
    for (int i = 0; i < 14; ++i) REQUIRE(run.step());
    {
      Run before = start(parts, source, options, **pool);
      for (int i = 0; i < 9; ++i) REQUIRE(before.step());
      REQUIRE(before.save(path));
      REQUIRE(before.step());  // is forgotten
    }
    Student again;
    Run after = start(again, source, options, executor);
    REQUIRE(after.load(path));
    CHECK(after.n_steps() == 9);
    for (int i = 0; i < 5; ++i) REQUIRE(after.step());
    CHECK(same_bits(again.values(), whole.values()));
    // Another run is refused, and nothing has changed.
    const std::vector<float> values = again.values();
    const auto is_refused = [&](const RunOptions& o, Teacher* teacher) {
      Run other = start(again, source, o, executor, teacher);
      const auto loaded = other.load(path);
      REQUIRE(!loaded);
      CHECK(loaded.error().code == Errc::invalid_argument);
      CHECK(same_bits(again.values(), values));
    };
    RunOptions faster = options;
    faster.schedule.peak = 2e-2;
    is_refused(faster, nullptr);
    auto teacher =
        ModelTeacher::create(*whole.graph, whole.weights, options.batches, executor, "whole");
    REQUIRE(teacher);
    is_refused(options, &*teacher);
  }
  std::filesystem::remove(path);
}

// Matrices in formats of 8 bits.
Result<WeightChoice> in_int8(const std::string&, const graph::WeightNeed& need) {
  WeightChoice choice;
  if (!need.is_required) choice.kind = WeightChoice::Kind::absent;
  if (need.n > 0 && need.k % 32 == 0) choice.deployed = &graph::kFormatOps<quant::Q8_0>;
  if (need.n == 48) choice.deployed = &graph::kFormatOps<quant::I8Channel>;
  return choice;
}

// Matrices with a scale for each row, whose inputs can have known ranges.
Result<WeightChoice> in_channels(const std::string&, const graph::WeightNeed& need) {
  WeightChoice choice;
  if (!need.is_required) choice.kind = WeightChoice::Kind::absent;
  if (need.n > 0) choice.deployed = &graph::kFormatOps<quant::I8Channel>;
  return choice;
}

// A student in training for static INT8.
struct StaticStudent {
  Student student{in_channels};
  Owned<InputRanges> ranges;
  Run run;

  StaticStudent(const Source& source, const InputRangeOptions& options, Executor& executor)
      : ranges(tracked(options, executor)), run(started(source, executor)) {}

  std::vector<quant::StaticScale> inputs() const {
    std::vector<quant::StaticScale> all;
    for (const TrainedTensor& t : student.weights.tensors()) all.push_back(t.input);
    return all;
  }

 private:
  Owned<InputRanges> tracked(const InputRangeOptions& options, Executor& executor) {
    auto made = InputRanges::create(student.weights, options, executor);
    REQUIRE(made);
    return *std::move(made);
  }
  Run started(const Source& source, Executor& executor) {
    auto made = Run::create(*student.graph, student.weights, source, small_options(), executor,
                            nullptr, nullptr, ranges.get());
    REQUIRE(made);
    return *std::move(made);
  }
};

TEST_CASE("ranges of inputs continue bit for bit too, before they are used and after") {
  const std::string path =
      (std::filesystem::temp_directory_path() / "nibble_ranges_test.checkpoint").string();
  const MemorySource source = counting();
  InlineExecutor executor;
  auto pool = ThreadPool::create({.n_threads = 2});
  REQUIRE(pool);
  for (const bool is_unsigned : {false, true}) {
    const InputRangeOptions options{.is_unsigned = is_unsigned, .decay = 0.9, .n_first = 6};
    for (const int n_before : {4, 9}) {
      CAPTURE(is_unsigned);
      CAPTURE(n_before);
      StaticStudent whole(source, options, executor), parts(source, options, **pool);
      for (int i = 0; i < 14; ++i) REQUIRE(whole.run.step());
      for (int i = 0; i < n_before; ++i) REQUIRE(parts.run.step());
      const auto then = parts.inputs();
      CHECK(std::any_of(then.begin(), then.end(), quant::is_usable) == (n_before >= 6));
      REQUIRE(parts.run.save(path));
      REQUIRE(parts.run.step());  // is forgotten
      StaticStudent again(source, options, executor);
      REQUIRE(again.run.load(path));
      CHECK(again.inputs() == then);
      for (int i = n_before; i < 14; ++i) REQUIRE(again.run.step());
      CHECK(same_bits(again.student.values(), whole.student.values()));
      CHECK(again.inputs() == whole.inputs());
      CHECK(whole.inputs() != then);
    }
    InputRangeOptions slower = options;
    slower.decay = 0.99;
    StaticStudent other(source, slower, executor);
    const auto loaded = other.run.load(path);
    REQUIRE(!loaded);
    CHECK(loaded.error().code == Errc::invalid_argument);
    CHECK(loaded.error().message.find("input ranges") != std::string::npos);
  }
  std::filesystem::remove(path);
}

TEST_CASE("a model learns to count in static INT8") {
  const MemorySource source = counting();
  InlineExecutor executor;
  StaticStudent static_int8(source, {.is_unsigned = true, .n_first = 5}, executor);
  double loss = 0;
  for (int i = 0; i < 40; ++i) {
    const auto step = static_int8.run.step();
    REQUIRE(step);
    loss = step->loss;
  }
  CHECK(loss < 1);
}

TEST_CASE("a step allocates nothing, nor does one that is trained for a format") {
  for (const bool is_deployed : {false, true}) {
    CAPTURE(is_deployed);
    Student student = is_deployed ? Student(in_int8) : Student();
    const MemorySource source = counting();
    InlineExecutor executor;
    Owned<InputRanges> ranges;
    if (is_deployed) {
      auto made = InputRanges::create(student.weights, {.n_first = 2}, executor);
      REQUIRE(made);
      ranges = *std::move(made);
    }
    auto made = Run::create(*student.graph, student.weights, source, small_options(), executor,
                            nullptr, nullptr, ranges.get());
    REQUIRE(made);
    Run run = *std::move(made);
    for (int i = 0; i < 3; ++i) REQUIRE(run.step());
    const long long before = allocation_count();
    bool all_right = true;
    for (int i = 0; i < 8; ++i) all_right = run.step().has_value() && all_right;
    CHECK(allocation_count() == before);
    CHECK(all_right);
  }
}

TEST_CASE("a loss that is not a number ends a step; the weights stay") {
  Student student;
  const MemorySource source = counting();
  InlineExecutor executor;
  Run run = start(student, source, small_options(), executor);
  REQUIRE(run.step());
  float& broken = student.weights.tensors()[3].values[5];
  broken = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values = student.values();
  const auto step = run.step();
  REQUIRE(!step);
  CHECK(step.error().code == Errc::malformed);
  CHECK(step.error().message.find("not a number") != std::string::npos);
  CHECK(same_bits(student.values(), values));
  CHECK(run.n_steps() == 1);
}

TEST_CASE("a student of itself has nothing to learn") {
  Student student, same;
  const MemorySource source = counting();
  InlineExecutor executor;
  RunOptions options = small_options();
  options.distillation = {.alpha = 0, .temperature = 2};
  options.optimizer.weight_decay = 0;
  auto teacher = ModelTeacher::create(*same.graph, same.weights, options.batches, executor, "same");
  REQUIRE(teacher);
  Run run = start(student, source, options, executor, &*teacher);
  const auto step = run.step();
  REQUIRE(step);
  CHECK(std::abs(step->loss) < 1e-6);
  CHECK(step->gradient_norm < 1e-5);
  // The teacher's own gradients are not touched.
  for (const TrainedTensor& t : same.weights.tensors()) {
    for (const float g : t.gradient) REQUIRE(g == 0);
  }
}

TEST_CASE("features: a layer is drawn to a teacher's, in direction or in its relations") {
  using Kind = FeatureLossOptions::Kind;
  for (const Kind kind : {Kind::cosine, Kind::relation}) {
    CAPTURE(static_cast<int>(kind));
    Student student;
    DecoderConfig wide = small_config();
    wide.dim = 40;  // another width: directions need a projection
    const auto graph = make_training_graph<Llama>(wide);
    auto weights = TrainedWeights::create(
        *graph, [](const std::string&, const graph::WeightNeed& need) -> Result<WeightChoice> {
          WeightChoice choice;
          if (!need.is_required) choice.kind = WeightChoice::Kind::absent;
          return choice;
        });
    REQUIRE(weights);
    initialize(*weights, 3, 99, 0.2);
    const MemorySource source = counting();
    InlineExecutor executor;
    RunOptions options = small_options(60);
    options.distillation = {.alpha = 0, .temperature = 1};
    auto teacher = ModelTeacher::create(*graph, *weights, options.batches, executor, "wide");
    REQUIRE(teacher);
    FeatureLossOptions feature_options;
    feature_options.kind = kind;
    feature_options.pairs = {{0, 0}, {2, 1}};
    feature_options.n_heads = 4;
    auto features =
        FeatureLoss::create(feature_options, 32, 40, options.batches.max_rows, executor);
    REQUIRE(features);
    teacher->show_to((*features)->of_teacher());
    auto run = Run::create(*student.graph, student.weights, source, options, executor, &*teacher,
                           features->get());
    REQUIRE(run);
    // The loss of a step is mostly that of features: predictions are compared with those of a
    // teacher that knows nothing.
    const auto step = [&] {
      const auto done = run->step();
      REQUIRE(done);
      return done->loss;
    };
    const double first = step();
    CHECK(first > 0.1 / 60);
    for (int i = 0; i < 58; ++i) step();
    CHECK(step() < 0.6 * first);
  }
}

TEST_CASE("features: their gradients are those of differences") {
  Student student;
  Student other;
  initialize(other.weights, 3, 5, 0.4);
  initialize(student.weights, 3, 6, 0.4);
  InlineExecutor executor;
  const TrainerOptions options{.max_rows = 60, .n_positions = 12, .taps = true};
  auto teaching = Trainer::create(*other.graph, other.weights, options, executor);
  auto trainer = Trainer::create(*student.graph, student.weights, options, executor);
  REQUIRE(teaching);
  REQUIRE(trainer);
  auto made = FeatureLoss::create(
      {.kind = FeatureLossOptions::Kind::relation, .tap = "k", .pairs = {{1, 1}}}, 16, 16, 60,
      executor);
  REQUIRE(made);
  FeatureLoss& features = **made;
  teaching->set_row_observer(features.of_teacher());
  trainer->set_observer(features.of_student());
  Batch batch;
  const MemorySource source = counting();
  auto batches = Batches::create(source, {.context = 12, .max_rows = 60, .vocabulary = 24});
  REQUIRE(batches);
  REQUIRE(batches->next(batch));
  std::vector<float> logits(static_cast<std::size_t>(batch.n_counted * 24));
  const auto nothing = [](MatrixView<float> rows) {  // no loss on predictions
    for (Index i = 0; i < rows.extent(0); ++i) {
      for (Index j = 0; j < rows.extent(1); ++j) rows(i, j) = 0;
    }
  };
  const auto loss_at = [&] {
    student.weights.clear_gradients(executor);
    features.begin(batch);
    REQUIRE(teaching->logits(batch, MatrixView<float>(logits.data(), batch.n_counted, 24)));
    REQUIRE(trainer->accumulate(batch, nothing));
    const auto loss = features.end();
    REQUIRE(loss);
    return *loss;
  };
  const TrainedTensor* const w = student.weights.find("blk.0.ffn_down.weight");
  REQUIRE(w != nullptr);
  loss_at();
  std::size_t at = 0;
  for (std::size_t i = 0; i < w->gradient.size(); ++i) {
    if (std::abs(w->gradient[i]) > std::abs(w->gradient[at])) at = i;
  }
  const auto expected = static_cast<double>(w->gradient[at]);
  const float before = w->values[at];
  const float h = 1e-2f;
  w->values[at] = before + h;
  const double up = loss_at();
  w->values[at] = before - h;
  const double down = loss_at();
  CHECK((up - down) / (2 * static_cast<double>(h)) == doctest::Approx(expected).epsilon(0.01));
}

TEST_CASE("features that are not there are an error, not a loss of zero") {
  Student student, same;
  const MemorySource source = counting();
  InlineExecutor executor;
  const RunOptions options = small_options();
  auto teacher = ModelTeacher::create(*same.graph, same.weights, options.batches, executor, "same");
  REQUIRE(teacher);
  const auto why = [&](FeatureLossOptions wanted, Index student_width, Index teacher_width) {
    auto features =
        FeatureLoss::create(std::move(wanted), student_width, teacher_width, 60, executor);
    if (!features) return features.error().message;
    teacher->show_to((*features)->of_teacher());
    auto run = Run::create(*student.graph, student.weights, source, options, executor, &*teacher,
                           features->get());
    REQUIRE(run);
    const std::vector<float> values = student.values();
    const auto step = run->step();
    CHECK(same_bits(student.values(), values) == !step.has_value());
    return step ? std::string() : step.error().message;
  };
  using Kind = FeatureLossOptions::Kind;
  CHECK(why({.pairs = {{1, 1}}}, 32, 32) == "");
  CHECK(why({.tap = "nowhere", .pairs = {{1, 1}}}, 32, 32).find("'nowhere'") != std::string::npos);
  CHECK(why({.pairs = {{1, 7}}}, 32, 32).find("teacher shows no rows") != std::string::npos);
  CHECK(why({.pairs = {{7, 1}}}, 32, 32).find("student shows no rows") != std::string::npos);
  CHECK(why({.pairs = {{1, 1}}}, 32, 24).find("another width") != std::string::npos);
  CHECK(why({.pairs = {}}, 32, 32).find("no pairs") != std::string::npos);
  CHECK(why({.kind = Kind::relation, .pairs = {{1, 1}}, .n_heads = 5}, 32, 32)
            .find("do not divide") != std::string::npos);
}

// Trains only the output norm.
Result<WeightChoice> mostly_frozen(const std::string& name, const graph::WeightNeed& need) {
  WeightChoice choice;
  choice.kind = !need.is_required              ? WeightChoice::Kind::absent
                : name == "output_norm.weight" ? WeightChoice::Kind::trained
                                               : WeightChoice::Kind::frozen;
  return choice;
}

TEST_CASE("what is frozen stays, and nothing is kept for it") {
  Student student(mostly_frozen);
  const std::vector<float> before = student.values();
  CHECK(student.weights.n_trained() == 32);
  const MemorySource source = counting();
  InlineExecutor executor;
  Run run = start(student, source, small_options(), executor);
  for (int i = 0; i < 3; ++i) REQUIRE(run.step());
  std::size_t changed = 0;
  const std::vector<float> after = student.values();
  for (std::size_t i = 0; i < after.size(); ++i) changed += after[i] != before[i];
  CHECK(changed == 32);
  // Results of a layer are kept for each layer: less of them, less memory.
  const TrainerOptions options{.max_rows = 2000, .n_positions = 16};
  const auto bytes = [&](const TrainedWeights& w, bool checkpoints) {
    TrainerOptions o = options;
    o.checkpoints = checkpoints;
    return Trainer::plan_for(*student.graph, w, o, 1).bytes;
  };
  Student all;
  CHECK(bytes(student.weights, false) < bytes(all.weights, false));
  CHECK(bytes(all.weights, true) < bytes(all.weights, false));
}

// The memory of a step is a constant, where the dimensions are.
struct FixedDims {
  Dim<24> vocab_size;
  Dim<32> dim;
  Dim<3> n_layers;
  Dim<4> n_heads;
  Dim<2> n_kv_heads;
  Dim<8> head_dim;
  Dim<48> ffn_dim;
  static constexpr Index window = 0;
  static constexpr float norm_eps = 1e-5f;
  static constexpr Index rope_dim = 8;
  static constexpr float rope_theta = 10000, rope_scale = 1;
};
constexpr graph::TrainingPlan fixed_plan(bool checkpoints) {
  graph::TrainingLimits limits;
  limits.limits.max_rows = limits.limits.max_outputs = 60;
  limits.limits.n_positions = 12;
  limits.limits.max_segments = 60;
  limits.checkpoints = checkpoints;
  return graph::make_training_plan(llama(FixedDims{}), limits);
}
static_assert(fixed_plan(false).is_valid() && fixed_plan(false).bytes < (3 << 19));
static_assert(fixed_plan(true).bytes < fixed_plan(false).bytes);

TEST_CASE("batches and options that do not fit are errors") {
  Student student;
  InlineExecutor executor;
  auto trainer = Trainer::create(*student.graph, student.weights,
                                 {.max_rows = 8, .max_sequences = 2, .n_positions = 6}, executor);
  REQUIRE(trainer);
  Batch batch;
  batch.offsets = {0, 7};
  batch.tokens.assign(7, 1);
  batch.targets.assign(7, 2);
  batch.weights.assign(7, 1.0f);
  batch.n_counted = 7;
  const auto refused_with = [&](const char* what) {
    const auto loss = trainer->cross_entropy(batch);
    REQUIRE(!loss);
    CHECK(loss.error().code == Errc::invalid_argument);
    CHECK(loss.error().message.find(what) != std::string::npos);
  };
  refused_with("7 positions");
  batch.offsets = {0, 3, 5, 7};
  refused_with("3 sequences");
  batch.offsets = {0, 4, 4};
  refused_with("do not belong together");
  batch.offsets = {0, 7, 7};
  refused_with("7 positions");
  batch.offsets = {0, 4, 7};
  batch.weights.assign(7, 0.0f);
  refused_with("no row counts");
  batch.weights.assign(7, 1.0f);
  CHECK(trainer->cross_entropy(batch).has_value());
  batch.n_counted = 6;
  refused_with("7 rows count");
  batch.n_counted = 7;
  for (const std::int32_t bad : {-1, 24}) {
    batch.tokens[3] = bad;
    refused_with("row 3");
    batch.tokens[3] = 1;
    batch.targets[5] = bad;
    refused_with("row 5");
    batch.targets[5] = 2;
  }
  batch.targets.pop_back();
  refused_with("do not belong together");
  batch.targets.push_back(2);
  std::vector<float> few(6 * 24);
  CHECK(!trainer->logits(batch, MatrixView<float>(few.data(), 6, 24)));
  CHECK(!trainer->distill(batch, MatrixView<const float>(few.data(), 6, 24), {}));
  CHECK(!Trainer::create(*student.graph, student.weights, {.max_rows = 0}, executor));
  const auto nothing = [](const std::string&, const graph::WeightNeed&) -> Result<WeightChoice> {
    WeightChoice choice;
    choice.kind = WeightChoice::Kind::absent;
    return choice;
  };
  const auto refused = TrainedWeights::create(*student.graph, nothing);
  REQUIRE(!refused);
  CHECK(refused.error().message.find("token_embd.weight") != std::string::npos);
}

}  // namespace

}  // namespace run_test
