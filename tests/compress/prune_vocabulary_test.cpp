// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/prune_vocabulary.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "compress/pruning.hpp"
#include "doctest/doctest.h"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/byte_characters.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace prune_vocabulary_test {

using namespace nibble;
using namespace nibble::compress;
using test::bundled;
using test::parse;
using test::pruned;

TEST_CASE("a vocabulary without unused tokens cuts text as before, and predicts the same") {
  auto file = io::Gguf::open(bundled());
  REQUIRE_MESSAGE(file, test::why(file));
  auto tokenizer = text::Tokenizer::from_gguf(*file);
  REQUIRE_MESSAGE(tokenizer, test::why(tokenizer));
  const std::string texts[] = {"turn the lights off in the kitchen", "set a timer for ten minutes",
                               "dim the bedroom lamp to thirty percent please"};
  std::vector<std::int32_t> used;
  for (const std::string& one : texts) {
    const auto ids = tokenizer->encode(one);
    REQUIRE_MESSAGE(ids, test::why(ids));
    used.insert(used.end(), ids->begin(), ids->end());
  }
  const auto tokens = close_tokens(*file, used);
  REQUIRE_MESSAGE(tokens, test::why(tokens));
  CHECK(tokens->size() < 420);  // of 512, 256 of which are bytes
  PruneKeep keep;
  keep.tokens = *tokens;
  const auto bytes = pruned(*file, keep);
  const io::Gguf small = parse(bytes);
  CHECK(small.find_tensor("token_embd.weight")->dims[1] == tokens->size());
  CHECK(*small.get_u64("llama.vocab_size") == tokens->size());
  auto model = Model::from_gguf(*file), small_model = Model::from_gguf(small);
  REQUIRE_MESSAGE(small_model, test::why(small_model));
  REQUIRE_MESSAGE(small_model->tokenizer() != nullptr, "no tokenizer");
  auto session = Session::create(*model, {.n_ctx = 64, .kv_type = ops::KvType::f32});
  auto small_session = Session::create(*small_model, {.n_ctx = 64, .kv_type = ops::KvType::f32});
  for (const std::string& one : texts) {
    const auto ids = tokenizer->encode(one);
    const auto small_ids = small_model->tokenizer()->encode(one);
    REQUIRE_MESSAGE(small_ids, test::why(small_ids));
    REQUIRE(small_ids->size() == ids->size());
    for (std::size_t i = 0; i < ids->size(); ++i) {
      CHECK((*tokens)[static_cast<std::size_t>((*small_ids)[i])] == (*ids)[i]);
    }
    REQUIRE(session->rewind(0));
    REQUIRE(small_session->rewind(0));
    const auto logits = session->append(*ids);
    const auto small_logits = small_session->append(*small_ids);
    REQUIRE_MESSAGE(small_logits, test::why(small_logits));
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      CHECK((*small_logits)(0, static_cast<Index>(i)) == (*logits)(0, (*tokens)[i]));
    }
  }
  // Without what it is built from, or without a token that has a role.
  keep.tokens.erase(keep.tokens.begin());
  CHECK(!prune_model(*file, keep));
  CHECK(!close_tokens(*file, std::vector<std::int32_t>{512}));
}

namespace {

// A byte-level BPE vocabulary with these merges, which stays in `bytes`.
io::Gguf merge_vocabulary(const std::vector<std::string>& made,
                          const std::vector<std::string>& merges, std::vector<std::byte>& bytes) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    text::append_byte_characters(tokens.emplace_back(), {&c, 1});
  }
  tokens.insert(tokens.end(), made.begin(), made.end());
  io::GgufWriter writer;
  writer.set("general.architecture", std::string_view("llama"));
  writer.set("tokenizer.ggml.model", std::string_view("gpt2"));
  writer.set("tokenizer.ggml.pre", std::string_view("gpt-2"));
  writer.set_array("tokenizer.ggml.tokens", tokens);
  writer.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>(tokens.size(), 1));
  writer.set_array("tokenizer.ggml.merges", merges);
  auto written = writer.to_bytes();
  REQUIRE_MESSAGE(written, test::why(written));
  bytes = *std::move(written);
  return parse(bytes);
}

}  // namespace

TEST_CASE("a token that several merges make keeps those that the tokenizer follows") {
  const std::vector<std::string> made = {"ab", "abc", "cd", "bc"};
  std::vector<std::byte> bytes;
  // "ab c" makes abc, since "a b" comes before "b c"; the first in the list, "a bc", never does.
  const io::Gguf file = merge_vocabulary(made, {"a b", "a bc", "ab c", "c d", "b c"}, bytes);
  auto tokenizer = text::Tokenizer::from_gguf(file);
  REQUIRE_MESSAGE(tokenizer, test::why(tokenizer));
  CHECK(*tokenizer->encode("abcd") == std::vector<std::int32_t>{257, 'd'});
  // All texts of these letters, with each choice of tokens to use.
  std::vector<std::string> texts = {""};
  for (std::size_t i = 0; i < texts.size() && texts[i].size() < 6; ++i) {
    for (const char c : {'a', 'b', 'c', 'd'}) texts.push_back(texts[i] + c);
  }
  for (unsigned choice = 0; choice < 16; ++choice) {
    CAPTURE(choice);
    std::vector<std::int32_t> used;
    for (std::int32_t i = 0; i < 4; ++i) {
      if (choice >> i & 1) used.push_back(256 + i);
    }
    const auto kept = close_tokens(file, used);
    REQUIRE_MESSAGE(kept, test::why(kept));
    io::GgufWriter writer;
    writer.copy_metadata(file);
    REQUIRE(compress::detail::write_kept_vocabulary(file, *kept, writer));
    const auto small_bytes = writer.to_bytes();
    const io::Gguf small_file = parse(*small_bytes);
    auto small = text::Tokenizer::from_gguf(small_file);
    REQUIRE_MESSAGE(small, test::why(small));
    std::size_t n_same = 0, n_other = 0;
    for (const std::string& one : texts) {
      const auto ids = tokenizer->encode(one), small_ids = small->encode(one);
      const bool stays = std::all_of(ids->begin(), ids->end(), [&](std::int32_t id) {
        return std::binary_search(kept->begin(), kept->end(), id);
      });
      if (!stays) continue;
      std::vector<std::int32_t> back;
      for (const std::int32_t id : *small_ids)
        back.push_back((*kept)[static_cast<std::size_t>(id)]);
      ++(back == *ids ? n_same : n_other);
    }
    CHECK(n_other == 0);
    CHECK(n_same > 100);
  }
}

TEST_CASE("what stands beside the rows of tokens is cut with them") {
  auto file = io::Gguf::open(bundled());
  REQUIRE_MESSAGE(file, test::why(file));
  auto tokenizer = text::Tokenizer::from_gguf(*file);
  REQUIRE_MESSAGE(tokenizer, test::why(tokenizer));
  const auto ids = tokenizer->encode("turn the lights off in the kitchen");
  const auto tokens = close_tokens(*file, *ids);
  REQUIRE_MESSAGE(tokens, test::why(tokens));
  PruneKeep keep;
  keep.tokens = *tokens;
  const auto same_logits = [&](const io::Gguf& in) {
    const auto bytes = pruned(in, keep);
    const io::Gguf small = parse(bytes);
    auto model = Model::from_gguf<graph::AllFormats>(in);
    auto small_model = Model::from_gguf<graph::AllFormats>(small);
    REQUIRE_MESSAGE(model, test::why(model));
    REQUIRE_MESSAGE(small_model, test::why(small_model));
    auto session = Session::create(*model, {.n_ctx = 64});
    auto small_session = Session::create(*small_model, {.n_ctx = 64});
    const auto logits = session->append(*ids);
    const auto small_logits = small_session->append(
        *small_model->tokenizer()->encode("turn the lights off in the kitchen"));
    REQUIRE_MESSAGE(small_logits, test::why(small_logits));
    REQUIRE(small_logits->extent(1) == static_cast<Index>(tokens->size()));
    int n_wrong = 0;
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      n_wrong += (*small_logits)(0, static_cast<Index>(i)) != (*logits)(0, (*tokens)[i]);
    }
    CHECK(n_wrong == 0);
  };
  // 8-bit codes with a scale for each row, and a range of the input.
  const bool is_tied = file->find_tensor("output.weight") == nullptr;
  const std::string output = is_tied ? "token_embd" : "output";
  std::vector<ProductInput> inputs = {{output + ".weight", {0.05f, 120, true}}};
  const auto int8 = to_static_int8(*file, inputs);
  REQUIRE_MESSAGE(int8, test::why(int8));
  REQUIRE(parse(*int8).find_tensor(output + ".scales") != nullptr);
  REQUIRE(parse(*int8).find_tensor(output + ".input_zero") != nullptr);
  same_logits(parse(*int8));
  // Factors, of an output that is not tied.
  io::GgufWriter untied;
  untied.copy_metadata(*file);
  for (const io::GgufTensor& tensor : file->tensors()) untied.add_tensor(*file, tensor);
  if (is_tied) {
    io::GgufTensor head = *file->tensor("token_embd.weight");
    head.name = "output.weight";
    untied.add_tensor(*file, head);
  }
  const auto untied_bytes = untied.to_bytes();
  REQUIRE_MESSAGE(untied_bytes, test::why(untied_bytes));
  InlineExecutor alone;
  const auto factored = factor_model(
      parse(*untied_bytes),
      [&](std::string_view name) -> std::optional<FactorChoice> {
        if (name != "output.weight") return {};
        FactorChoice choice;
        choice.rank.rank = 32;
        return choice;
      },
      alone);
  REQUIRE_MESSAGE(factored, test::why(factored));
  REQUIRE(parse(*factored).find_tensor("output.factor_a.weight") != nullptr);
  same_logits(parse(*factored));
  // What nobody knows is not copied as it is.
  io::GgufWriter writer;
  writer.copy_metadata(*file);
  for (const io::GgufTensor& tensor : file->tensors()) writer.add_tensor(*file, tensor);
  const std::vector<float> numbers(4);
  writer.add_tensor("output.other", io::GgmlType::f32, std::vector<std::uint64_t>{4},
                    std::as_bytes(std::span(numbers)));
  const auto with_other = writer.to_bytes();
  const auto refused = prune_model(parse(*with_other), keep);
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::unsupported);
  CHECK(test::why(refused).find("'output.other'") != std::string::npos);
  keep.tokens.clear();
  CHECK(prune_model(parse(*with_other), keep));
}

}  // namespace prune_vocabulary_test
