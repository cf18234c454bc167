// SPDX-License-Identifier: Apache-2.0
//
// Architectures compared with PyTorch transformers (goldens.hpp).
#include "model/goldens.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/largest_allocation.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/rerank.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace goldens_test {

using namespace nibble;
using namespace test::goldens;

TEST_CASE("architectures compute what PyTorch transformers does") {
  const std::size_t n = for_each_golden(false, [](auto& name, auto& golden, auto& model) {
    for (const Index batch : {30, 7, 1}) {
      const double error = largest_error(model, golden, batch);
      CHECK(error < 5e-6);
      if (batch == 30) MESSAGE(name, ": off by ", error);
    }
  });
  CHECK(n == 41);
}

namespace {

// Chooses all pages, and notes of which layers.
struct NotedLayers final : ops::PagePolicy {
  mutable std::vector<Index> seen;
  Index choose(Index layer, const ops::Segment&,
               std::span<std::int32_t> pages) const noexcept override {
    seen.push_back(layer);
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
    return static_cast<Index>(pages.size());
  }
};

}  // namespace

TEST_CASE("a policy is asked about each layer, also where layers share a cache") {
  for_each_golden(true, [](auto&, auto& golden, auto& model) {
    auto engine = Engine::create(model);
    REQUIRE_MESSAGE(engine, test::why(engine));
    auto sequence = engine->new_sequence();
    REQUIRE_MESSAGE(sequence, test::why(sequence));
    NotedLayers policy;
    engine->set_policy(&policy);
    const SequenceInput input{
        .sequence = &*sequence, .tokens = std::span(golden.tokens).first(3), .n_outputs = 0};
    const auto rows = engine->run({&input, 1});
    REQUIRE_MESSAGE(rows, test::why(rows));
    std::vector<Index> all;
    for (Index layer = 0; layer < model.config().n_layers; ++layer) all.push_back(layer);
    CHECK(policy.seen == all);
  });
}

TEST_CASE("embeddings are those of PyTorch transformers, alone or with other texts") {
  const std::size_t n = for_each_golden(true, [](auto& name, auto& golden, auto& model) {
    auto embedder = Embedder::create(model, {.max_texts = 3});
    REQUIRE_MESSAGE(embedder, test::why(embedder));
    const auto row = embedder->embed(golden.tokens);
    REQUIRE_MESSAGE(row, test::why(row));
    const double error = distance(*row, golden.expected);
    CHECK(error < 2e-6);
    MESSAGE(name, ": off by ", error);
    const std::vector<float> alone(row->data(), row->data() + row->extent(0));

    // Seven texts: two or three fit in a step.
    const std::span<const std::int32_t> all(golden.tokens);
    std::vector<Embedder::Tokens> texts;
    for (const std::size_t length : {3u, 30u, 8u, 1u, 11u, 30u, 2u}) {
      texts.push_back(all.first(length));
    }
    std::vector<float> out(texts.size() * alone.size());
    const MatrixView<float> rows(out.data(), 7, embedder->width());
    const auto done = embedder->embed(texts, rows);
    REQUIRE_MESSAGE(done, test::why(done));
    CHECK(std::memcmp(&rows(1, 0), alone.data(), alone.size() * sizeof(float)) == 0);
    CHECK(std::memcmp(&rows(5, 0), alone.data(), alone.size() * sizeof(float)) == 0);
    const auto third = embedder->embed(texts[2]);
    REQUIRE(third);
    CHECK(distance(*third, {&rows(2, 0), alone.size()}) == 0);

    const auto needed = Embedder::bytes_needed(model, {.max_texts = 3});
    REQUIRE_MESSAGE(needed, test::why(needed));
    CHECK(*needed == embedder->bytes());

    // A longer text than the model was trained for, no text, and a generator's session.
    std::vector<std::int32_t> long_text(static_cast<std::size_t>(embedder->n_ctx()) + 1, 3);
    CHECK(embedder->embed(long_text).error().code == Errc::limit);
    CHECK(embedder->embed(all.first(0)).error().code == Errc::invalid_argument);
    CHECK(Session::create(model).error().code == Errc::unsupported);
    CHECK(Session::bytes_needed(model).error().code == Errc::unsupported);

    // Of a file that is broken.
    Golden broken = golden;
    for (auto& tensor : broken.tensors) {
      if (tensor.name.find("ffn_down.weight") == tensor.name.npos) continue;
      tensor.values[0] = std::numeric_limits<float>::quiet_NaN();
    }
    for (const bool normalize : {false, true}) {
      auto of_broken = Embedder::create(load_golden(broken), {.normalize = normalize});
      REQUIRE_MESSAGE(of_broken, test::why(of_broken));
      CHECK(of_broken->embed(golden.tokens).error().code == Errc::malformed);
    }
  });
  CHECK(n == 5);
}

namespace {

std::vector<float> copy_of(VectorView<const float> row) {
  return {row.data(), row.data() + row.extent(0)};
}

// Of the pieces of 30 tokens of at most 8, as embedder.hpp says.
std::vector<double> mean_of_pieces(Embedder& embedder, const std::vector<std::int32_t>& tokens,
                                   const std::vector<std::size_t>& ends) {
  std::vector<double> sum(static_cast<std::size_t>(embedder.width()));
  std::size_t begin = 0;
  for (const std::size_t end : ends) {
    const auto row = embedder.embed(std::span(tokens).subspan(begin, end - begin));
    REQUIRE_MESSAGE(row, test::why(row));
    for (std::size_t j = 0; j < sum.size(); ++j) {
      sum[j] += static_cast<double>(end - begin) * double{(*row)(static_cast<Index>(j))};
    }
    begin = end;
  }
  for (double& x : sum) x /= static_cast<double>(tokens.size());
  return sum;
}

// The golden with a tokenizer whose begin and end tokens are 2 and 3.
Golden with_tokenizer(Golden golden) {
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"};
  for (char c = 'a'; pieces.size() < 24; ++c) pieces.push_back("\xE2\x96\x81" + std::string(1, c));
  golden.metadata.set("tokenizer.ggml.model", std::string_view("bert"));
  golden.metadata.set_array("tokenizer.ggml.tokens", pieces);
  golden.metadata.set_array("tokenizer.ggml.token_type",
                            std::vector<std::int32_t>{3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1,
                                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  golden.metadata.set("tokenizer.ggml.unknown_token_id", std::uint32_t{1});
  golden.metadata.set("tokenizer.ggml.cls_token_id", std::uint32_t{2});
  golden.metadata.set("tokenizer.ggml.bos_token_id", std::uint32_t{2});
  golden.metadata.set("tokenizer.ggml.seperator_token_id", std::uint32_t{3});
  golden.metadata.set("tokenizer.ggml.eos_token_id", std::uint32_t{3});
  return golden;
}

}  // namespace

TEST_CASE("a text longer than the context is the weighted mean of its pieces") {
  for_each_golden(true, [](auto& name, auto& golden, auto& model) {
    CAPTURE(name);
    const EmbedderOptions plain{.n_ctx = 8, .max_texts = 3, .normalize = false};
    EmbedderOptions splitting = plain;
    splitting.splits_long_texts = true;
    auto pieces = Embedder::create(model, plain), whole = Embedder::create(model, splitting);
    REQUIRE_MESSAGE(pieces, test::why(pieces));
    REQUIRE_MESSAGE(whole, test::why(whole));
    const auto& tokens = golden.tokens;  // 30
    CHECK(pieces->embed(tokens).error().code == Errc::limit);
    const auto expected = mean_of_pieces(*pieces, tokens, {7, 15, 22, 30});
    const auto row = whole->embed(tokens);
    REQUIRE_MESSAGE(row, test::why(row));
    const std::vector<float> alone = copy_of(*row);
    for (std::size_t j = 0; j < alone.size(); ++j) {
      CHECK(std::fabs(double{alone[j]} - expected[j]) < 1e-6);
    }
    // Among others, in steps that its pieces do not end with: bit for bit the same.
    const std::span<const std::int32_t> all(tokens);
    const Embedder::Tokens texts[] = {all.first(3), all, all.first(8), all, all.first(1)};
    std::vector<float> out(5 * alone.size());
    for (const Index max_step_tokens : {Index{8}, Index{19}}) {
      splitting.max_step_tokens = max_step_tokens;
      auto together = Embedder::create(model, splitting);
      REQUIRE_MESSAGE(together, test::why(together));
      const auto needed = Embedder::bytes_needed(model, splitting);
      REQUIRE(needed);
      CHECK(*needed == together->bytes());
      REQUIRE(together->embed(texts, MatrixView<float>(out.data(), 5, together->width())));
      for (const std::size_t i : {1u, 3u}) {
        CHECK(std::memcmp(&out[i * alone.size()], alone.data(), alone.size() * sizeof(float)) == 0);
      }
      const auto short_one = pieces->embed(texts[2]);
      REQUIRE(short_one);
      CHECK(std::memcmp(&out[2 * alone.size()], short_one->data(), alone.size() * sizeof(float)) ==
            0);
    }
    splitting.normalize = true;
    auto normalized = Embedder::create(model, splitting);
    REQUIRE(normalized);
    const auto unit = normalized->embed(tokens);
    REQUIRE(unit);
    double length = 0, product = 0, of_expected = 0;
    for (std::size_t j = 0; j < alone.size(); ++j) {
      const double x = double{(*unit)(static_cast<Index>(j))};
      length += x * x;
      product += x * expected[j];
      of_expected += expected[j] * expected[j];
    }
    CHECK(std::fabs(length - 1) < 1e-5);
    CHECK(std::fabs(product / std::sqrt(of_expected) - 1) < 1e-5);
  });
}

TEST_CASE("each piece of a long text has its begin and its end token") {
  std::size_t n = 0;
  for_each_golden(true, [&](auto& name, auto& golden, auto&) {
    if (name.find("bert") == std::string::npos) return;
    ++n;
    const Model model = load_golden(with_tokenizer(golden));
    REQUIRE(model.tokenizer() != nullptr);
    REQUIRE(model.tokenizer()->vocabulary().settings().bos == 2);
    REQUIRE(model.tokenizer()->vocabulary().settings().eos == 3);
    auto embedder =
        Embedder::create(model, {.n_ctx = 8, .normalize = false, .splits_long_texts = true});
    REQUIRE_MESSAGE(embedder, test::why(embedder));
    const auto row = embedder->embed(std::string_view("a b c d e f g h i"));
    REQUIRE_MESSAGE(row, test::why(row));
    const std::vector<float> whole = copy_of(*row);
    const auto a = embedder->embed(std::vector<std::int32_t>{2, 4, 5, 6, 7, 3});
    REQUIRE(a);
    const std::vector<float> first = copy_of(*a);
    const auto b = embedder->embed(std::vector<std::int32_t>{2, 8, 9, 10, 11, 12, 3});
    REQUIRE(b);
    for (std::size_t j = 0; j < whole.size(); ++j) {
      const double mean = (6 * double{first[j]} + 7 * double{(*b)(static_cast<Index>(j))}) / 13;
      CHECK(std::fabs(double{whole[j]} - mean) < 1e-6);
    }
    // No room for anything else.
    auto tiny = Embedder::create(model, {.n_ctx = 2, .splits_long_texts = true});
    REQUIRE(tiny);
    CHECK(tiny->embed(std::string_view("a b")).error().code == Errc::limit);
  });
  CHECK(n > 0);
}

TEST_CASE("documents are ranked by the cosine of embeddings") {
  for_each_golden(true, [](auto&, auto& golden, auto& model) {
    for (const bool normalize : {false, true}) {
      auto embedder =
          Embedder::create(model, {.n_ctx = 16, .normalize = normalize, .splits_long_texts = true});
      REQUIRE_MESSAGE(embedder, test::why(embedder));
      const std::span<const std::int32_t> all(golden.tokens);
      const Embedder::Tokens documents[] = {all.subspan(4, 9), all.first(7), all,
                                            all.subspan(20, 3)};
      const Embedder::Tokens query = all.first(7);
      const auto ranked = rerank(*embedder, query, documents);
      REQUIRE_MESSAGE(ranked, test::why(ranked));
      REQUIRE(ranked->size() == 4);
      CHECK((*ranked)[0].index == 1);
      CHECK(std::fabs((*ranked)[0].score - 1) < 1e-6);
      const std::vector<float> of_query = copy_of(*embedder->embed(query));
      for (std::size_t i = 0; i < 4; ++i) {
        if (i > 0) CHECK((*ranked)[i].score <= (*ranked)[i - 1].score);
        const std::vector<float> row = copy_of(*embedder->embed(documents[(*ranked)[i].index]));
        double product = 0, a = 0, b = 0;
        for (std::size_t j = 0; j < row.size(); ++j) {
          product += double{row[j]} * double{of_query[j]};
          a += double{row[j]} * double{row[j]};
          b += double{of_query[j]} * double{of_query[j]};
        }
        CHECK(std::fabs((*ranked)[i].score - product / std::sqrt(a * b)) < 1e-6);
      }
      const Embedder::Tokens empty[] = {all.first(0)};
      CHECK(rerank(*embedder, query, empty).error().code == Errc::invalid_argument);
    }
  });
}

TEST_CASE("factors of rotations for short and for long contexts may be one vector") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (name != "phi3-long.gguf") return;
    for (const auto& [one, other] :
         {std::pair("rope_factors_long.weight", "rope_factors_short.weight"),
          std::pair("rope_factors_short.weight", "rope_factors_long.weight")}) {
      CAPTURE(std::string(one));
      Golden shared = golden;
      std::erase_if(shared.tensors, [&](const auto& tensor) { return tensor.name == one; });
      const auto missing = load_bytes(shared.write());
      REQUIRE(!missing);
      CHECK(missing.error().code == Errc::not_found);
      CHECK(missing.error().message.find(one) != std::string::npos);

      shared.metadata.set_array("nibble.shared_tensors",
                                std::vector<std::string>{std::string(one) + "=" + other});
      const Model model = load_golden(shared);
      CHECK(model.weights().at(Slot::rope_factors_long, -1).data ==
            model.weights().at(Slot::rope_factors_short, -1).data);
      ++n;
    }
  });
  CHECK(n == 2);
}

TEST_CASE("a decoder gives no embeddings") {
  for_each_golden(false, [](auto&, auto&, auto& model) {
    CHECK(Embedder::create(model).error().code == Errc::unsupported);
    CHECK(Embedder::bytes_needed(model).error().code == Errc::unsupported);
  });
}

namespace {

// Loads a file and, if that works, runs a few tokens: an error or a result, but no crash, no large
// allocation. Returns whether there was a result.
bool survives(std::span<const std::byte> bytes, std::span<const std::int32_t> tokens) {
  test::largest_allocation = 0;
  const auto run = [&]() -> Result<void> {
    NIBBLE_TRY(model, load_bytes(bytes));
    if (model.architecture().plan({}).rows == graph::Rows::segments) {
      NIBBLE_TRY(embedder, Embedder::create(model, {.n_ctx = 12, .max_texts = 1}));
      NIBBLE_CHECK(embedder.embed(tokens));
    } else {
      NIBBLE_TRY(session, Session::create(model, {.n_ctx = 12}));
      NIBBLE_CHECK(session.append(tokens));
    }
    return ok();
  };
  const Result<void> status = run();
  CHECK(test::largest_allocation < std::size_t{4} << 20);
  if (status) return true;
  CHECK_FALSE(status.error().message.empty());
  CHECK(status.error().code != Errc::out_of_memory);
  return false;
}

}  // namespace

TEST_CASE("absurd numbers in the metadata of each architecture, tensors that are missing") {
  std::size_t n_errors = 0, n_results = 0;
  for_each_file([&](const std::string&, const Golden& golden) {
    const auto some = std::span(golden.tokens).first(5);
    const auto with = [&](const std::string& key, auto value) {
      CAPTURE(key);
      Golden changed = golden;
      changed.metadata.set(key, value);
      ++(survives(changed.write(), some) ? n_results : n_errors);
    };
    std::vector<std::string> keys = golden.keys;
    const auto architecture = keys[0];
    REQUIRE(architecture == "general.architecture");
    const std::string prefix = keys[1].substr(0, keys[1].find('.'));
    for (const char* const key : {"attention.scale",
                                  "attention.sliding_window",
                                  "attention.sliding_window_pattern",
                                  "attention.causal",
                                  "attention.temperature_scale",
                                  "rope.freq_base_swa",
                                  "rope.scaling.factor",
                                  "rope.scaling.attn_factor",
                                  "rope.scaling.original_context_length",
                                  "rope.scaling.yarn_beta_fast",
                                  "rope.scaling.yarn_log_multiplier",
                                  "rope.scaling.finetuned",
                                  "embedding_scale",
                                  "residual_scale",
                                  "logit_scale",
                                  "attn_logit_softcapping",
                                  "final_logit_softcapping",
                                  "pooling_type",
                                  "use_parallel_residual",
                                  "expert_group_count",
                                  "expert_group_used_count",
                                  "expert_weights_norm",
                                  "expert_weights_scale",
                                  "expert_gating_func"}) {
      keys.push_back(prefix + "." + key);
    }
    for (std::size_t i = 1; i < keys.size(); ++i) {
      for (const std::uint32_t v : {0u, 1u, 7u, 0xffffffffu}) with(keys[i], v);
      for (const float v : {0.0f, -1.0f, 1e-42f, 1e38f, INFINITY, NAN}) with(keys[i], v);
      with(keys[i], false);
      with(keys[i], std::string_view("yarn"));
    }
    Golden changed = golden;
    changed.metadata.set(prefix + ".rope.scaling.type", std::string_view("yarn"));
    for (const float v : {1.0f, 1e-42f, 1e38f}) {
      for (const char* const key : {"rope.freq_base", "rope.scaling.factor",
                                    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}) {
        Golden yarn = changed;
        yarn.metadata.set(prefix + "." + key, v);
        ++(survives(yarn.write(), some) ? n_results : n_errors);
      }
    }
    for (std::size_t i = 0; i < golden.tensors.size(); ++i) {
      changed = golden;
      changed.tensors.erase(changed.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      ++(survives(changed.write(), some) ? n_results : n_errors);
    }
  });
  CHECK(n_errors > 3000);
  CHECK(n_results > 1000);
}

}  // namespace goldens_test
