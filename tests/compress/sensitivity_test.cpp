// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/sensitivity.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "nibble/compress/format_plan.hpp"
#include "nibble/compress/predictions.hpp"
#include "nibble/compress/product_time.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace sensitivity_test {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;

namespace {

constexpr const char* kText =
    "could you please dim the office light to 10 percent\nlight.set(room=office, level=10)\n"
    "wake me up at six thirty am tomorrow\nalarm.set(day=tomorrow, time=06:30)\n"
    "it is too cold, heat the nursery to twenty one degrees please\n"
    "could you add milk and eggs to my list\nlist.add(milk, eggs)\nplay some jazz in the kitchen\n";

constexpr Index kContext = 16;

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

io::Gguf home_file() { return must(io::Gguf::open(test::home_model_path())); }

Session session_of(const Model& model) {
  return must(Session::create(model, {.n_ctx = 32,
                                      .max_step_tokens = 16,
                                      .max_outputs = 16,
                                      .kv_type = ops::KvType::f32,
                                      .exchangeable_weights = true}));
}

std::vector<std::int32_t> text_ids(const Model& model) {
  return must(model.tokenizer()->encode(kText, {}));
}

ReferencePredictions reference_of(Session& session) {
  return must(ReferencePredictions::record(
      session, must(TrialText::chunks(text_ids(session.model()), kContext, 1))));
}

struct Log final : TrialLog {
  std::map<std::string, double> known;
  std::size_t n_found = 0, n_added = 0, last = 0;
  bool find(std::string_view tensor, Format format, double& divergence) override {
    const auto it = known.find(std::string(tensor) + quant::to_string(format));
    if (it == known.end()) return false;
    divergence = it->second;
    ++n_found;
    return true;
  }
  bool add(std::string_view tensor, const FormatTrial& trial, std::size_t n_done,
           std::size_t n_trials) override {
    known[std::string(tensor) + quant::to_string(trial.format)] = trial.divergence;
    ++n_added;
    CHECK(n_done == ++last);
    CHECK(n_done <= n_trials);
    return true;
  }
};

}  // namespace

TEST_CASE("Kept predictions give the divergence that two models side by side have") {
  const Model& model = test::home_model();
  const io::Gguf file = home_file();
  Session session = session_of(model);
  const ReferencePredictions reference = reference_of(session);
  const auto same = must(reference.compare(session));
  CHECK(same.mean < 1e-7);  // log-probabilities are kept as f32
  CHECK(same.same_best == 1);
  CHECK(same.perplexity_a == doctest::Approx(same.perplexity_b));

  const auto bytes = must(quantize_model(file, {.format = Format::q4_0}));
  const Model other = must(Model::from_gguf(must(io::Gguf::parse(bytes, "converted"))));
  Session a = session_of(model), b = session_of(other);
  const auto exact = must(divergence(a, b, text_ids(model), kContext, 1));
  const auto kept = must(reference.compare(b));
  CHECK(kept.n_positions == exact.n_positions);
  CHECK(kept.mean > 0.001);
  CHECK(kept.mean <= exact.mean * 1.0001);  // the rest as one token: a lower bound
  CHECK(kept.mean >= exact.mean * 0.97);
  CHECK(kept.same_best == exact.same_best);
  CHECK(kept.perplexity_a == doctest::Approx(exact.perplexity_a).epsilon(1e-4));
  CHECK(kept.perplexity_b == doctest::Approx(exact.perplexity_b).epsilon(1e-4));
}

TEST_CASE("A model with some weights in another format is that model in a file") {
  const Model& model = test::home_model();
  const io::Gguf file = home_file();
  InlineExecutor executor;
  Session session = session_of(model);
  const auto ids = text_ids(model);
  const std::span<const std::int32_t> first(ids.data(), 12);

  // The embedding, which is the output too, in Q8_0, and a matrix of a layer in Q4_0.
  TrialWeights trial(model);
  for (const ModelMatrix& matrix : must(matrices_of(model, file))) {
    const std::string_view name = matrix.tensor->name;
    const Format format = name == "token_embd.weight"       ? Format::q8_0
                          : name == "blk.1.ffn_down.weight" ? Format::q4_0
                                                            : Format::f16;
    if (format == Format::f16) continue;
    const auto rows = must(quantize_tensor(file, name, {.format = format}));
    const auto set = trial.set(matrix.slot, matrix.layer,
                               *graph::find(graph::AllFormats::kOps, format), rows, executor);
    REQUIRE_MESSAGE(set, test::why(set));
  }
  const auto bytes = must(quantize_model(
      file, {.format = Format::f16, .choose = [](std::string_view name) -> std::optional<Format> {
               if (name == "token_embd.weight") return Format::q8_0;
               if (name == "blk.1.ffn_down.weight") return Format::q4_0;
               return Format::f16;
             }}));
  const Model other = must(Model::from_gguf(must(io::Gguf::parse(bytes, "converted"))));
  Session of_other = session_of(other);
  const auto expected = must(of_other.append(first));
  const auto before = must(session.append(first));
  std::vector<float> own(before.data(), before.data() + before.extent(1));

  REQUIRE(session.engine().exchange_weights(trial.table()));
  REQUIRE(session.rewind(0));
  const auto got = must(session.append(first));
  bool differs = false;
  for (Index i = 0; i < got.extent(1); ++i) {
    REQUIRE(got(0, i) == expected(0, i));
    differs = differs || got(0, i) != own[static_cast<std::size_t>(i)];
  }
  CHECK(differs);

  trial.reset();
  REQUIRE(session.rewind(0));
  const auto again = must(session.append(first));
  for (Index i = 0; i < again.extent(1); ++i) {
    REQUIRE(again(0, i) == own[static_cast<std::size_t>(i)]);
  }
}

TEST_CASE("Weights of another shape, and engines that were not asked, exchange nothing") {
  const Model& model = test::home_model();
  Session plain = must(Session::create(model, {.n_ctx = 32}));
  TrialWeights trial(model);
  CHECK(plain.engine().exchange_weights(trial.table()).error().code == Errc::invalid_argument);
  Session session = session_of(model);
  const std::vector<graph::Weight> none(trial.table().size());
  const auto refused =
      session.engine().exchange_weights(graph::WeightTable(none, trial.table().n_slots()));
  REQUIRE(!refused);
  CHECK(refused.error().message.find("none") != std::string::npos);
  const std::vector<graph::Weight> few(trial.table().n_slots());
  CHECK(!session.engine().exchange_weights(graph::WeightTable(few, few.size())));
  InlineExecutor executor;
  CHECK(trial.set(10000, 0, *graph::AllFormats::kOps[0], {}, executor).error().code ==
        Errc::invalid_argument);
}

TEST_CASE("Weights that a run cannot read are refused when they are exchanged") {
  const Model& model = test::home_model();
  Session session = session_of(model);
  const graph::WeightTable own = model.weights();
  std::vector<graph::Weight> all;
  for (Index layer = -1; layer < own.n_layers(); ++layer) {
    for (std::size_t slot = 0; slot < own.n_slots(); ++slot) all.push_back(own.at(slot, layer));
  }
  const graph::WeightTable table(all, own.n_slots());
  REQUIRE(session.engine().exchange_weights(table));
  graph::Weight& w = all[2 * own.n_slots() + static_cast<std::size_t>(Slot::ffn_down)];
  const auto check_refused = [&](const char* part) {
    const auto refused = session.engine().exchange_weights(table);
    REQUIRE(!refused);
    CAPTURE(refused.error().message);
    CHECK(refused.error().code == Errc::invalid_argument);
    CHECK(refused.error().message.find(part) != std::string::npos);
    CHECK(refused.error().message.find("engine: ") == 0);
  };
  const graph::Weight right = w;
  w.data += 32;
  check_refused("weights 'blk.1.ffn_down.weight' are not aligned to 64 bytes");
  w = right;
  w.ops = nullptr;
  check_refused("a matrix without a format");
  w = right;

  // Working memory is for factors of the model's ranks: here none.
  using Packed = quant::Packed<quant::F32>;
  const auto n_a = static_cast<std::size_t>(Packed::bytes(w.n, 1));
  const auto n_b = static_cast<std::size_t>(Packed::bytes(1, w.k));
  AlignedBuffer a = must(AlignedBuffer::allocate(n_a)), b = must(AlignedBuffer::allocate(n_b));
  const graph::Factors factors{graph::weight_of(quant::PackedMatrix<quant::F32>{a.data(), w.n, 1}),
                               graph::weight_of(quant::PackedMatrix<quant::F32>{b.data(), 1, w.k})};
  w.factors = &factors;
  check_refused("factors of rank 1");
  w = right;
  CHECK(session.engine().exchange_weights(table));
}

TEST_CASE("Factors of the rotation stay those of the model") {
  const io::Gguf file = home_file();
  io::GgufWriter writer;
  writer.copy_metadata(file);
  for (const io::GgufTensor& tensor : file.tensors()) writer.add_tensor(tensor);
  const Index n_pairs = test::home_model().config().rope_dim / 2;
  const std::vector<float> twos(static_cast<std::size_t>(n_pairs), 2.0f);
  const std::uint64_t dims[] = {twos.size()};
  writer.add_tensor("rope_freqs.weight", io::GgmlType::f32, dims,
                    std::as_bytes(std::span<const float>(twos)));
  const auto bytes = must(writer.to_bytes());
  const Model model = must(Model::from_gguf(must(io::Gguf::parse(bytes, "changed"))));
  Session session = session_of(model);
  const graph::WeightTable own = model.weights();
  std::vector<graph::Weight> all;
  for (Index layer = -1; layer < own.n_layers(); ++layer) {
    for (std::size_t slot = 0; slot < own.n_slots(); ++slot) all.push_back(own.at(slot, layer));
  }
  const graph::WeightTable table(all, own.n_slots());
  CHECK(session.engine().exchange_weights(table));
  graph::Weight& w = all[static_cast<std::size_t>(Slot::rope_freqs)];
  REQUIRE(w);
  AlignedBuffer other = must(AlignedBuffer::allocate(static_cast<std::size_t>(w.bytes())));
  auto* const factors = reinterpret_cast<float*>(other.data());
  std::copy(twos.begin(), twos.end(), factors);
  w.data = other.data();
  CHECK(session.engine().exchange_weights(table));  // equal ones
  factors[0] = 3;
  const auto refused = session.engine().exchange_weights(table);
  REQUIRE(!refused);
  CHECK(refused.error().message.find("factors of the rotation") != std::string::npos);
}

TEST_CASE("A session is not compared with itself") {
  Session session = session_of(test::home_model());
  const auto ids = text_ids(test::home_model());
  const auto same = divergence(session, session, ids, kContext, 1);
  REQUIRE(!same);
  CHECK(same.error().code == Errc::invalid_argument);
  CHECK(same.error().message.find("itself") != std::string::npos);
}

TEST_CASE("An outline takes the memory that its tied output needs") {
  const io::Gguf file = home_file();
  const auto bytes = must(quantize_model(
      file, {.format = Format::q8_0, .choose = [](std::string_view name) -> std::optional<Format> {
               if (name == "token_embd.weight") return Format::f16;  // the output too
               return Format::q8_0;
             }}));
  const auto mixed = must(io::Gguf::parse(bytes, "mixed"));
  const Model model = must(Model::from_gguf(mixed));
  const Model outline = must(Model::from_gguf(mixed, {.outline_only = true}));
  const SessionOptions options{.n_ctx = 32};
  CHECK(must(Session::bytes_needed(outline, options)) ==
        must(Session::create(model, options)).bytes());
}

TEST_CASE("Coarser formats cost more, each matrix by itself; what is known is not measured again") {
  const Model& model = test::home_model();
  const io::Gguf file = home_file();
  Session session = session_of(model);
  const ReferencePredictions reference = reference_of(session);
  const std::array formats = {Format::q4_0, Format::q8_0, Format::f16};
  Log log;
  const auto to_try = [&](std::string_view) { return std::span<const Format>(formats); };
  const auto all =
      must(measure_sensitivity(file, session, reference, to_try, graph::AllFormats::kOps, {}, log));
  REQUIRE(all.size() == 22);  // 3 layers of 7, and the embedding
  CHECK(log.n_added == 66);
  double sum = 0;
  for (const TensorTrials& tensor : all) {
    CAPTURE(tensor.tensor);
    REQUIRE(tensor.trials.size() == 3);
    CHECK(tensor.trials[0].bytes == tensor.n * tensor.k / 32 * 18);
    CHECK(tensor.trials[0].divergence > tensor.trials[1].divergence);
    CHECK(tensor.trials[2].divergence == 0);  // it is in f16
    sum += tensor.trials[0].divergence;
  }
  // Small changes add up: all of them together are about the sum of each.
  const auto bytes = must(quantize_model(file, {.format = Format::q4_0}));
  const Model other = must(Model::from_gguf(must(io::Gguf::parse(bytes, "converted"))));
  Session of_other = session_of(other);
  const double together = must(reference.compare(of_other)).mean;
  CHECK(sum > 0.4 * together);
  CHECK(sum < 2.5 * together);

  log.last = 0;
  const auto again =
      must(measure_sensitivity(file, session, reference, to_try, graph::AllFormats::kOps, {}, log));
  CHECK(log.n_found == 44);
  CHECK(again[3].trials[0].divergence == all[3].trials[0].divergence);
}

TEST_CASE("Each matrix is tried in the formats for it; in f16 where none fits its rows") {
  const io::Gguf file = home_file();
  Session session = session_of(test::home_model());
  const ReferencePredictions reference = reference_of(session);
  const Format some[] = {Format::q8_0, Format::i8_channel};  // files have no rows of the second
  const auto to_try = [&](std::string_view name) {
    return name == "blk.0.attn_q.weight" ? std::span<const Format>(some)
                                         : std::span<const Format>();
  };
  Log log;
  const auto all = must(
      measure_sensitivity(file, session, reference, to_try, graph::CommonFormats::kOps, {}, log));
  for (const TensorTrials& tensor : all) {
    CAPTURE(tensor.tensor);
    REQUIRE(tensor.trials.size() == 1);
    CHECK(tensor.trials[0].format ==
          (tensor.tensor == "blk.0.attn_q.weight" ? Format::q8_0 : Format::f16));
  }
}

TEST_CASE("Formats of few bits are loaded by programs that ask for them, and named to others") {
  const auto bytes = must(quantize_model(home_file(), {.format = Format::q3_h}));
  const auto file = must(io::Gguf::parse(bytes, "few bits"));
  const auto common = Model::from_gguf(file);
  REQUIRE(!common);
  CHECK(common.error().code == Errc::unsupported);
  CHECK(common.error().message.find("q3_h") != std::string::npos);
  CHECK(common.error().message.find("load<graph::AllFormats>") != std::string::npos);
  CHECK(Model::from_gguf<graph::AllFormats>(file).has_value());
}

TEST_CASE("Sequences that cannot be scored are refused") {
  TrialText text;
  const std::int32_t ids[] = {1, 5, 9};
  CHECK(text.add(ids, 0).error().code == Errc::invalid_argument);
  CHECK(text.add(ids, 3).error().code == Errc::invalid_argument);
  REQUIRE(text.add(ids, 2).has_value());
  CHECK(text.n_scored() == 1);
  CHECK(TrialText::chunks(ids, 4, 1).error().code == Errc::invalid_argument);
  CHECK(TrialText::chunks(ids, 3, 1).error().code == Errc::invalid_argument);

  Session session = session_of(test::home_model());
  CHECK(ReferencePredictions::record(session, {}).error().code == Errc::invalid_argument);
  const std::int32_t unknown[] = {1, 5, 100000};
  TrialText other;
  REQUIRE(other.add(unknown, 1).has_value());
  CHECK(ReferencePredictions::record(session, other).error().message.find("100000") !=
        std::string::npos);
}

TEST_CASE("Answers alone are scored, whatever sequences stand beside them") {
  Session session = session_of(test::home_model());
  const auto ids = text_ids(test::home_model());
  const auto part = std::span<const std::int32_t>(ids).subspan(0, 12);
  TrialText one, two;
  REQUIRE(one.add(part, 9).has_value());
  REQUIRE(two.add(std::span<const std::int32_t>(ids).subspan(3, 8), 2).has_value());
  REQUIRE(two.add(part, 9).has_value());
  const auto alone = must(ReferencePredictions::record(session, one));
  const auto both = must(ReferencePredictions::record(session, two));
  CHECK(alone.n_positions() == 3);
  CHECK(both.n_positions() == 9);
  // The perplexity of the three tokens, one by one.
  double sum = 0;
  for (std::size_t i = 9; i < 12; ++i) {
    REQUIRE(session.rewind(0));
    const auto logits = must(session.append(part.first(i)));
    double total = 0;
    for (Index j = 0; j < logits.extent(1); ++j) total += std::exp(double{logits(0, j)});
    sum -= double{logits(0, Index{part[i]})} - std::log(total);
  }
  CHECK(must(alone.compare(session)).perplexity_a ==
        doctest::Approx(std::exp(sum / 3)).epsilon(1e-4));
}

TEST_CASE("A plan of formats serves a conversion, and the smallest that loses little is found") {
  const std::vector<TensorTrials> trials = {
      {"a", 10, 32, {{Format::q4_0, 180, 0.04}, {Format::q8_0, 340, 0.001}}},
      {"b", 20, 32, {{Format::q4_0, 360, 0.01}, {Format::q8_0, 680, 0.0}}}};
  const auto planner = must(FormatPlanner::create(trials, FormatPlanner::bytes, 1e9));
  CHECK(planner.cheapest_cost() == 540);
  CHECK(planner.dearest_cost() == 1020);
  const auto plan = must(planner.best(700));
  CHECK(plan("a") == Format::q8_0);  // gains more than b
  CHECK(plan("b") == Format::q4_0);
  CHECK(!plan("c"));
  CHECK(plan.bytes() == 700);
  CHECK(plan.divergence == doctest::Approx(0.011));
  const FormatPlan uniform = planner.uniform(Format::q8_0);
  CHECK(uniform.bytes() == 1020);
  CHECK(uniform.cost == 1020);
  CHECK(uniform.divergence == doctest::Approx(0.001));
  CHECK(planner.uniform(Format::f16).divergence == doctest::Approx(0.001));  // not tried
  CHECK(planner.best(539).error().code == Errc::limit);
  CHECK(must(planner.cheapest(0.05)).bytes() == 540);
  CHECK(must(planner.cheapest(0.02)).bytes() == 700);
  CHECK(planner.cheapest(0.0001).error().code == Errc::not_found);
  CHECK(planner.cheapest(NAN).error().code == Errc::not_found);
}

TEST_CASE("Products are timed in every format") {
  InlineExecutor executor;
  for (const graph::FormatOps* const ops : graph::CommonFormats::kOps) {
    CAPTURE(quant::to_string(ops->format));
    const double small = must(product_microseconds(*ops, 33, 256, 1 << 10, executor));
    const double large = must(product_microseconds(*ops, 1056, 256, 1 << 10, executor));
    CHECK(small > 0);
    CHECK(large > 2 * small);  // 32 times the work; medians
  }
  CHECK(!product_microseconds(*graph::find(graph::CommonFormats::kOps, Format::q4_k), 16, 32, 1,
                              executor));
}

}  // namespace sensitivity_test
