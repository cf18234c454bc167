// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/observe.hpp"

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "model/reference_of.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/imatrix.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace observe_test {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;
using test::Architecture;

namespace {

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

// Aligned memory with these bytes.
AlignedBuffer buffer_of(std::span<const std::byte> bytes) {
  AlignedBuffer memory = must(AlignedBuffer::allocate(bytes.size()));
  std::memcpy(memory.data(), bytes.data(), bytes.size());
  return memory;
}

Model model_of(std::span<const std::byte> bytes) {
  return must(Model::from_gguf(must(io::Gguf::parse(buffer_of(bytes), "model"))));
}

std::vector<std::int32_t> without_bos(const Model& model, std::string_view text) {
  return must(model.tokenizer()->encode(text, {.add_bos = false}));
}

constexpr const char* kText =
    "could you please dim the office light to 10 percent\nlight.set(room=office, level=10)\n"
    "wake me up at six thirty am tomorrow\nalarm.set(day=tomorrow, time=06:30)\n"
    "it is too cold, heat the nursery to twenty one degrees please\n";

struct Seen {
  std::size_t n_products = 0, n_weights = 0;
  std::map<std::string, std::vector<float>> inputs;  // by tensor
};

graph::ProductObserver recorder(const Model& model, Seen& seen) {
  return
      [&seen, model](std::span<const std::size_t> slots, Index layer, MatrixView<const float> x) {
        ++seen.n_products;
        for (const std::size_t slot : slots) {
          ++seen.n_weights;
          auto& rows = seen.inputs[model.architecture().tensor_name(slot, layer)];
          for (Index i = 0; i < x.extent(0); ++i) {
            for (Index j = 0; j < x.extent(1); ++j) rows.push_back(x(i, j));
          }
        }
      };
}

// All logits of `tokens`.
std::vector<float> logits_of(const Model& model, std::span<const std::int32_t> tokens,
                             SessionOptions options) {
  options.n_ctx = 32;
  options.max_step_tokens = 16;
  options.max_outputs = 8;
  Session session = must(Session::create(model, options));
  std::vector<float> all;
  for (std::size_t at = 0; at < tokens.size(); at += 8) {
    const std::size_t n = std::min<std::size_t>(8, tokens.size() - at);
    const auto rows = must(session.append(tokens.subspan(at, n), static_cast<Index>(n)));
    for (Index i = 0; i < rows.extent(0); ++i) {
      for (Index j = 0; j < rows.extent(1); ++j) all.push_back(rows(i, j));
    }
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("product observer: results are the same bits, whatever form inputs have") {
  test::ModelShape shape;
  for (const Architecture architecture : {Architecture::llama, Architecture::gpt2}) {
    for (const std::vector<Format>& formats :
         {std::vector{Format::f32}, std::vector{Format::q8_0}, std::vector{Format::q4_0},
          std::vector{Format::f16, Format::q8_0, Format::q4_0, Format::f32, Format::q4_0}}) {
      shape.architecture = architecture;
      shape.dim = 64;
      shape.head_dim = 16;
      shape.n_kv_heads = architecture == Architecture::llama ? 2 : 4;
      shape.ffn_dim = 96;
      shape.formats = formats;
      test::RandomModel random(shape, 3);
      const Model model = model_of(random.gguf());
      const auto tokens = random.tokens(19);
      Seen seen;
      SessionOptions options;
      const std::vector<float> plain = logits_of(model, tokens, options);
      options.product_observer = recorder(model, seen);
      CHECK(same_bits(logits_of(model, tokens, options), plain));
      const bool is_llama = architecture == Architecture::llama;
      // In each of three steps: qkv, output of attention, gate and up, down, in two layers; logits.
      CHECK(seen.n_products == 3 * (2 * 4 + 1));
      CHECK(seen.n_weights == 3 * (2 * (is_llama ? 7u : 4u) + 1));
      CHECK(seen.inputs.at("blk.1.ffn_down.weight").size() == 19 * 96);
    }
  }
}

TEST_CASE("product observer: it shows what the products of an independent model are given") {
  test::ModelShape shape;
  for (int variant = 0; variant < 4; ++variant) {
    CAPTURE(variant);
    shape.architecture = variant == 3 ? Architecture::gpt2 : Architecture::llama;
    shape.n_kv_heads = variant == 3 ? 4 : 2;
    shape.tied = variant == 1;
    shape.qkv_bias = shape.gate_bias = shape.up_bias = variant == 2;
    test::RandomModel random(shape, static_cast<std::uint32_t>(variant));
    const Model model = model_of(random.gguf());
    const auto tokens = random.tokens(21);

    std::map<std::string, std::vector<double>> expected;
    test::Reference reference = test::reference_of(random);
    reference.on_product = [&](const std::string& name, const test::Reference::Row& x) {
      expected[name].insert(expected[name].end(), x.begin(), x.end());
    };
    reference.logits({tokens.begin(), tokens.end()});

    Seen seen;
    SessionOptions options{.kv_type = ops::KvType::f32};
    options.product_observer = recorder(model, seen);
    logits_of(model, tokens, options);
    if (shape.tied) {  // the slot's own name
      seen.inputs["token_embd.weight"] = seen.inputs["output.weight"];
      seen.inputs.erase("output.weight");
    }
    REQUIRE(seen.inputs.size() == expected.size());
    for (const auto& [name, rows] : expected) {
      CAPTURE(name);
      REQUIRE(seen.inputs.count(name) == 1);
      const std::vector<float>& x = seen.inputs[name];
      REQUIRE(x.size() == rows.size());
      double miss = 0, norm = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double d = static_cast<double>(x[i]) - rows[i];
        miss += d * d;
        norm += rows[i] * rows[i];
      }
      CHECK(std::sqrt(miss / norm) < 2e-6);
    }

    // And so do the statistics, of chunks of 8 in steps of 3 tokens: the rest of 5 is dropped.
    const auto statistics = must(observe(model, std::span(tokens).first(8),
                                         {.context = 8,
                                          .max_step_tokens = 3,
                                          .more =
                                              [](std::string_view) {
                                                return InputStatisticsOptions{true, false};
                                              },
                                          .kv_type = ops::KvType::f32}));
    CHECK(statistics.entries().size() == expected.size());
    expected.clear();
    reference.logits({tokens.begin(), tokens.begin() + 8});
    for (const auto& [name, rows] : expected) {
      CAPTURE(name);
      const InputStatistics* const s = statistics.find(name);
      REQUIRE(s != nullptr);
      CHECK(s->n_rows() == 8);
      const auto k = static_cast<std::size_t>(s->k());
      REQUIRE(rows.size() == 8 * k);
      for (std::size_t j = 0; j < k; ++j) {
        double sum = 0, cross = 0, cross_size = 0;
        for (std::size_t i = 0; i < 8; ++i) {
          sum += rows[i * k + j] * rows[i * k + j];
          cross += rows[i * k + j] * rows[i * k];
          cross_size += std::fabs(rows[i * k + j] * rows[i * k]);
        }
        CHECK(s->sum_squares(static_cast<Index>(j)) == doctest::Approx(sum).epsilon(2e-4));
        CHECK(std::fabs(s->second_moment(0, static_cast<Index>(j)) - cross) <=
              1e-5 + 2e-4 * cross_size);
      }
    }
  }
}

namespace {

struct Gpt2AsWritten : Gpt2 {
  static constexpr bool kIsFused = false;
};

}  // namespace

TEST_CASE("observer: sees all taps of an architecture that keeps them") {
  test::ModelShape shape;
  shape.architecture = Architecture::gpt2;
  shape.n_kv_heads = 4;
  test::RandomModel random(shape, 4);
  const std::vector<std::byte> bytes = random.gguf();
  const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
  const Model written =
      must(Model::from_gguf<graph::FormatList<quant::F32>, ArchitectureList<Gpt2AsWritten>>(file));
  const auto tokens = random.tokens(7);
  std::map<std::pair<std::string, Index>, Index> rows_of;  // by name and layer
  std::vector<float> normed;
  SessionOptions options;
  options.observer = [&](std::string_view name, Index layer, MatrixView<const float> x) {
    rows_of[{std::string(name), layer}] += x.extent(0);
    if (name != "ln1" || layer != 1) return;
    for (Index i = 0; i < x.extent(0); ++i) {
      for (Index j = 0; j < x.extent(1); ++j) normed.push_back(x(i, j));
    }
  };
  Seen seen;
  options.product_observer = recorder(written, seen);
  const std::vector<float> logits = logits_of(written, tokens, options);
  CHECK(rows_of.size() == 5 + 2 * 15);
  for (const auto& [name, n] : rows_of) {
    CAPTURE(name.first);
    CHECK(n == 7);
  }
  CHECK(rows_of.count({"lm_head", -1}) == 1);
  CHECK(rows_of.count({"mlpResid", 1}) == 1);
  CHECK(same_bits(seen.inputs["blk.1.attn_qkv.weight"], normed));  // a tap before a product
  const std::vector<float> fused = logits_of(model_of(bytes), tokens, {});
  REQUIRE(fused.size() == logits.size());
  for (std::size_t i = 0; i < fused.size(); ++i) {
    CHECK(logits[i] == doctest::Approx(fused[i]).epsilon(1e-3));
  }
}

TEST_CASE("observe: as llama.cpp's llama-imatrix, within a thousandth") {
  const auto path = test::data_path("models/stories260K/stories260K.gguf");
  const auto text_path = test::data_path("text/tinystories_eval.txt");
  if (!path || !text_path) return;
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  const std::string folder = std::string(project) + "/tests/compress/data/";
  const Imatrix theirs = must(read_imatrix(folder + "stories260K.imatrix.gguf"));
  const Model model = must(load(*path));
  const auto tokens = must(model.tokenizer()->encode(test::read_text(*text_path), {}));
  const auto& settings = model.tokenizer()->vocabulary().settings();
  const Statistics statistics = must(observe(model, tokens,
                                             {.context = static_cast<Index>(theirs.chunk_size),
                                              .max_chunks = static_cast<Index>(theirs.n_chunks),
                                              .bos = settings.add_bos ? settings.bos : -1,
                                              .kv_type = ops::KvType::f32}));
  const Imatrix ours = must(imatrix_of(statistics, "text", theirs.n_chunks, theirs.chunk_size));
  CHECK(test::why(statistics.check_model(must(io::Gguf::open(*path)))) == "");
  REQUIRE(ours.entries.size() == theirs.entries.size());
  double worst = 0;
  for (std::size_t i = 0; i < ours.entries.size(); ++i) {
    const ImatrixEntry &a = ours.entries[i], &b = theirs.entries[i];
    CHECK(a.name == b.name);
    CHECK(a.counts[0].value == b.counts[0].value);
    REQUIRE(a.sum_squares.size() == b.sum_squares.size());
    for (std::size_t j = 0; j < a.sum_squares.size(); ++j) {
      worst = std::fmax(worst, std::fabs(static_cast<double>(a.mean_square(j)) /
                                             static_cast<double>(b.mean_square(j)) -
                                         1));
    }
  }
  MESSAGE("largest relative difference: ", worst);
  CHECK(worst < 1e-3);
}

TEST_CASE("observe: names are those of the file, inputs are shared, the output sees all rows") {
  test::ModelShape shape;
  for (const bool tied : {false, true}) {
    shape.tied = tied;
    test::RandomModel random(shape, 5);
    const std::vector<std::byte> bytes = random.gguf();
    const Model model = model_of(bytes);
    const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
    const auto tokens = random.tokens(40);
    const std::string output = tied ? "token_embd.weight" : "output.weight";
    const Statistics all = must(observe(model, tokens, {.context = 16, .max_step_tokens = 5}));
    CHECK(test::why(all.check_model(file)) == "");
    CHECK(all.entries().size() == 2 * 7 + 1);
    CHECK(all.inputs().size() == 2 * 4 + 1);
    REQUIRE(all.find(output) != nullptr);
    for (const Statistics::Entry& entry : all.entries()) {
      CAPTURE(entry.name);
      CHECK(all.inputs()[entry.input].n_rows() == 32);  // two chunks
    }
    const Statistics layers =
        must(observe(model, tokens, {.context = 16, .max_step_tokens = 5, .output = false}));
    CHECK(layers.entries().size() == 2 * 7);
    CHECK(test::why(layers.check_model(file)) == "");
    const InputStatistics &a = *all.find("blk.1.attn_k.weight"),
                          &b = *layers.find("blk.1.attn_k.weight");
    for (Index j = 0; j < a.k(); ++j) CHECK(a.sum_squares(j) == b.sum_squares(j));

    const Statistics first = must(observe(model, tokens, {.context = 16, .max_chunks = 1}));
    CHECK(first.find(output)->n_rows() == 16);
    const Statistics few = must(observe(model, std::span(tokens).first(9), {.context = 16}));
    CHECK(few.find(output)->n_rows() == 9);
    // Statistics of two texts are those of both.
    Statistics merged = must(observe(model, std::span(tokens).first(16), {.context = 16}));
    REQUIRE(merged.merge(must(observe(model, std::span(tokens).subspan(16, 16), {.context = 16}))));
    CHECK(merged.find(output)->n_rows() == 32);
    for (Index j = 0; j < a.k(); ++j) {
      CHECK(merged.find("blk.1.attn_k.weight")->sum_squares(j) ==
            doctest::Approx(a.sum_squares(j)).epsilon(1e-6));
    }
  }
}

TEST_CASE("observe: more for chosen inputs, with workers") {
  test::RandomModel random({}, 6);
  const Model model = model_of(random.gguf());
  const auto tokens = random.tokens(32);
  auto pool = must(ThreadPool::create({.n_threads = 2}));
  ObserveOptions options{.context = 16};
  options.more = [](std::string_view name) {
    return InputStatisticsOptions{.second_moments = name == "blk.0.attn_v.weight",
                                  .channel_histograms = name == "blk.1.ffn_down.weight"};
  };
  options.executor = pool.get();
  const Statistics s = must(observe(model, tokens, options));
  std::size_t n_moments = 0, n_histograms = 0;
  for (const InputStatistics& input : s.inputs()) {
    n_moments += input.has_second_moments() ? 1 : 0;
    n_histograms += input.has_channel_histograms() ? 1 : 0;
  }
  CHECK(n_moments == 1);
  CHECK(n_histograms == 1);
  const InputStatistics& q = *s.find("blk.0.attn_q.weight");
  REQUIRE(q.has_second_moments());
  for (Index j = 0; j < q.k(); ++j) {
    CHECK(q.second_moment(j, j) == doctest::Approx(q.sum_squares(j)).epsilon(1e-6));
  }
  const auto range = s.find("blk.1.ffn_down.weight")->range(3, {RangeMethod::kl, true});
  CHECK_MESSAGE(range, test::why(range));
}

TEST_CASE("observe: a text of any length, in memory that does not grow") {
  const Model& model = test::home_model();
  const auto tokens = without_bos(model, kText);
  Observation observation = must(Observation::create(model, {.context = 64}));
  REQUIRE(observation.add(tokens));
  while (observation.n_chunks() < 2) REQUIRE(observation.add(tokens));
  const long long n_allocations = allocation_count(), n_bytes = allocated_bytes();
  const std::size_t bytes = observation.bytes();
  for (int i = 0; i < 8; ++i) REQUIRE(observation.add(tokens));
  CHECK(allocation_count() == n_allocations);
  CHECK(allocated_bytes() == n_bytes);
  CHECK(observation.bytes() == bytes);
  CHECK(bytes < std::size_t{64} << 20);
  const Statistics s = must(std::move(observation).finish());
  CHECK(s.entries().size() > 7);

  std::string text;
  while (text.size() < 2000) text += kText;
  std::size_t n_calls = 0, last = 0;
  const Progress progress = [&](std::size_t done, std::size_t total) {
    CHECK(total == text.size());
    CHECK(done > last);
    last = done;
    return ++n_calls < 1000;
  };
  // Pieces end with lines, so tokens are those of the whole text.
  ObserveOptions options{.context = 32, .output = false, .text_piece = 400};
  const auto& settings = model.tokenizer()->vocabulary().settings();
  const Statistics in_pieces = must(observe_text(model, text, options, &progress));
  CHECK(n_calls >= 5);
  CHECK(last == text.size());
  options.bos = settings.add_bos ? settings.bos : -1;
  const auto all = must(model.tokenizer()->encode(text, {.add_eos = false}));
  const Statistics whole = must(observe(model, all, options));
  const std::string name = in_pieces.entries()[0].name;
  CHECK(in_pieces.find(name)->n_rows() == whole.find(name)->n_rows());
  CHECK(in_pieces.find(name)->sum_squares(1) ==
        doctest::Approx(whole.find(name)->sum_squares(1)).epsilon(0.01));
}

TEST_CASE("observe: bad input") {
  test::RandomModel random({}, 8);
  const std::vector<std::byte> bytes = random.gguf();
  const Model model = model_of(bytes);
  const auto tokens = random.tokens(20);
  const auto about = [](const auto& r, Errc code, const char* what) {
    CAPTURE(test::why(r));
    REQUIRE(!r);
    CHECK(r.error().code == code);
    CHECK(test::why(r).find(what) != std::string::npos);
  };
  about(observe(model, {}), Errc::invalid_argument, "no tokens");
  about(observe(model, tokens, {.context = 0}), Errc::invalid_argument, "context of 0");
  about(observe(model, tokens, {.context = 8, .max_chunks = -1}), Errc::invalid_argument,
        "-1 chunks");
  CHECK(!observe(model, tokens, {.context = 8, .max_step_tokens = 0}));
  CHECK(!observe(model, tokens, {.context = 8, .bos = 1000000}));
  std::vector<std::int32_t> wrong = tokens;
  wrong[10] = 37;
  about(observe(model, wrong, {.context = 8}), Errc::invalid_argument, "is 37, not in [0, 37)");
  const Progress stop = [](std::size_t, std::size_t) { return false; };
  about(observe(model, tokens, {.context = 8}, &stop), Errc::cancelled, "observe");
  about(observe_text(model, "text"), Errc::not_found, "tokenizer");
  about(observe_text(test::home_model(), ""), Errc::invalid_argument, "empty");

  // A weight that is not a number makes inputs that are none.
  std::vector<std::byte> broken = bytes;
  const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
  const std::span<const std::byte> data = must(file.tensor("blk.0.attn_v.weight")).data;
  const auto at = std::search(broken.begin(), broken.end(), data.begin(), data.end());
  REQUIRE(at != broken.end());
  const float nan = std::nanf("");
  std::memcpy(&*at, &nan, sizeof(nan));
  about(observe(model_of(broken), tokens, {.context = 8}), Errc::malformed,
        "the input of 'blk.0.attn_output.weight' has numbers that are not finite");
}

TEST_CASE("observe: an error is final, and nothing that is not finite is counted") {
  test::RandomModel random({}, 8);
  const std::vector<std::byte> bytes = random.gguf();
  const Model model = model_of(bytes);
  const auto tokens = random.tokens(24);
  const std::span<const std::int32_t> all(tokens);

  // The second step of the second chunk fails: its first step has been counted.
  std::vector<std::int32_t> wrong = tokens;
  wrong[13] = 37;
  Observation observation = must(Observation::create(model, {.context = 8, .max_step_tokens = 4}));
  const Result<void> failed = observation.add(wrong);
  REQUIRE(!failed);
  CHECK(observation.n_chunks() == 1);
  const Result<void> again = observation.add(all.first(16));
  CHECK(test::why(again) == test::why(failed));
  CHECK(observation.n_chunks() == 1);
  CHECK(test::why(std::move(observation).finish()) == test::why(failed));

  // Numbers that are not finite come with the second chunk: a weight of one token's embedding.
  std::vector<std::byte> broken = bytes;
  const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
  const std::span<const std::byte> data = must(file.tensor("token_embd.weight")).data;
  const auto at = std::search(broken.begin(), broken.end(), data.begin(), data.end());
  REQUIRE(at != broken.end());
  const float infinite = INFINITY;
  const std::int32_t bad_token = 5;
  std::memcpy(&*(at + bad_token * std::ptrdiff_t(data.size() / 37)), &infinite, sizeof(infinite));
  std::vector<std::int32_t> good(24, 3);
  Observation other =
      must(Observation::create(model_of(broken), {.context = 8, .max_step_tokens = 4}));
  REQUIRE(other.add(std::span(good).first(8)));
  good[9] = bad_token;
  const Result<void> not_finite = other.add(std::span(good).subspan(8));
  REQUIRE(!not_finite);
  CHECK(not_finite.error().code == Errc::malformed);
  CHECK(test::why(other.add(std::span(good).first(8))) == test::why(not_finite));
  CHECK(test::why(std::move(other).finish()) == test::why(not_finite));

  // What the callback itself does: rows that are not finite leave no trace.
  compress::detail::Gathering gathering(model);
  const auto k = static_cast<std::size_t>(model.config().dim);
  std::vector<float> rows(2 * k, 1.0f);
  const std::size_t slots[] = {static_cast<std::size_t>(Slot::attn_q)};
  const MatrixView<const float> view(rows.data(), 2, static_cast<Index>(k));
  gathering.add(slots, 0, view);
  REQUIRE(gathering.validate());
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    gathering.has_error = false;
    rows[k + 1] = bad;
    gathering.add(slots, 0, view);
    CHECK(test::why(gathering.validate()).find("'blk.0.attn_q.weight'") != std::string::npos);
    CHECK(gathering.inputs.at(0).n_rows() == 2);
    CHECK(gathering.inputs.at(0).histogram().n_not_finite() == 0);
  }
}

TEST_CASE("observe: matrices of factors have statistics by their product's name") {
  test::ModelShape shape;
  shape.dim = 64;
  shape.head_dim = 16;
  shape.ffn_dim = 96;
  test::RandomModel random(shape, 10);
  const std::vector<std::byte> bytes = random.gguf();
  const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
  const auto tokens = random.tokens(32);
  InlineExecutor alone;
  for (const bool has_base : {false, true}) {
    CAPTURE(has_base);
    const auto choose = [&](std::string_view name) -> std::optional<FactorChoice> {
      if (name != "output.weight" && name.find("ffn_") == name.npos) return {};
      if (name.find("norm") != name.npos) return {};
      FactorChoice choice;
      choice.rank.rank = 32;
      if (has_base) choice.base = Format::q4_0;
      return choice;
    };
    const auto factored_bytes = must(factor_model(file, choose, alone));
    const io::Gguf factored = must(io::Gguf::parse(buffer_of(factored_bytes), "factored"));
    const Statistics s = must(observe(model_of(factored_bytes), tokens, {.context = 16}));
    CHECK(s.entries().size() == 2 * 7 + 1);
    CHECK(s.find("output.weight") != nullptr);
    CHECK(s.find("blk.1.ffn_down.weight")->k() == 96);
    CHECK(test::why(s.check_model(factored)) == "");
    Imatrix m = must(imatrix_of(s, "text", 2, 16));
    CHECK(test::why(check_imatrix(m, factored)) == "");
    // Neither is one of them missing, nor has another length.
    const std::string gone = "blk.1.ffn_down.weight";
    std::erase_if(m.entries, [&](const ImatrixEntry& e) { return e.name == gone; });
    CHECK(!check_imatrix(m, factored));
    m = must(imatrix_of(s, "text", 2, 16));
    for (ImatrixEntry& e : m.entries) {
      if (e.name == gone) e.sum_squares.pop_back();
    }
    CHECK(test::why(check_imatrix(m, factored)).find("its statistics 95") != std::string::npos);
  }
}

TEST_CASE("observe: layers that share a tensor are refused") {
  test::RandomModel random({}, 11);
  const std::vector<std::byte> bytes = random.gguf();
  const io::Gguf file = must(io::Gguf::parse(buffer_of(bytes), "model"));
  const SharedPair pairs[] = {{"blk.1.ffn_up.weight", "blk.0.ffn_up.weight"}};
  const Model shared = model_of(must(share_tensors(file, pairs)));
  const auto refused = Observation::create(shared, {.context = 16});
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::unsupported);
  CHECK(test::why(refused).find("'blk.0.ffn_up.weight' and 'blk.1.ffn_up.weight' share one") !=
        std::string::npos);
}

TEST_CASE("observers: the engine keeps the callables") {
  test::RandomModel random({}, 9);
  const Model model = model_of(random.gguf());
  std::size_t n = 0;
  Session session = [&] {
    SessionOptions options{.n_ctx = 16};
    const std::string held(100, 'x');  // owned by the callable
    options.product_observer = [held, &n](std::span<const std::size_t>, Index,
                                          MatrixView<const float>) { n += held.size(); };
    return must(Session::create(model, options));
  }();
  const auto tokens = random.tokens(3);
  Session moved = std::move(session);
  REQUIRE(moved.append(tokens));
  CHECK(n == 100 * (2 * 4 + 1));
}

}  // namespace observe_test
