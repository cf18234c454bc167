// SPDX-License-Identifier: Apache-2.0
//
// Files that many people have and that do not load, or load in part: the message says what is
// wrong, with which tensor or key, and what to do. And variants that must load.
#include <functional>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "model/random_model.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

using namespace nibble;
using test::Format;
using test::ModelShape;
using test::RandomModel;

namespace {

const ModelShape kShape{.vocab_size = 6, .dim = 32, .head_dim = 8, .ffn_dim = 32, .rope_dim = 8};

// A file that a test changes before it is read: metadata, and tensors that are left out or added.
struct File {
  RandomModel source = RandomModel(kShape, 1);
  io::GgufWriter metadata = source.metadata();
  std::vector<std::string> without;
  std::function<void(io::GgufWriter&)> add = [](io::GgufWriter&) {};

  Result<Model> load() const {
    io::GgufWriter writer = metadata;
    const auto bytes = source.gguf();
    const auto file = io::Gguf::parse(bytes, "m.gguf");
    REQUIRE(file);
    for (const io::GgufTensor& tensor : file->tensors()) {
      bool wanted = true;
      for (const std::string& name : without) wanted = wanted && tensor.name != name;
      if (wanted) writer.add_tensor(tensor);
    }
    add(writer);
    const auto changed = writer.to_bytes();
    REQUIRE_MESSAGE(changed, test::why(changed));
    NIBBLE_TRY(read, io::Gguf::parse(*changed, "m.gguf"));
    return Model::from_gguf(read);
  }
  Error error() const {
    const auto model = load();
    REQUIRE_FALSE(model.has_value());
    return model.error();
  }
  void vocabulary() {
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set_array("tokenizer.ggml.tokens",
                       std::vector<std::string>{"<unk>", "<s>", "</s>", "a", "b", "ab"});
  }
};

void check_logits(const Result<Model>& model) {
  REQUIRE_MESSAGE(model, test::why(model));
  auto session = Session::create(*model);
  REQUIRE(session);
  const std::int32_t token = 3;
  CHECK(session->append({&token, 1}));
}

}  // namespace

TEST_CASE("tensors that are missing are named, up to three of them") {
  File file;
  file.without = {"blk.1.ffn_up.weight"};
  CHECK(file.error().code == Errc::not_found);
  CHECK(file.error().message ==
        "m.gguf: tensor 'blk.1.ffn_up.weight' is missing, which a model of the architecture llama "
        "needs: the file is incomplete, or of a variant that is not supported");
  for (const char* const slot : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
    file.without.push_back("blk.0." + std::string(slot) + ".weight");
  }
  CHECK(test::contains(file.error().message,
                       "m.gguf: tensors 'blk.0.attn_q.weight', 'blk.0.attn_k.weight', "
                       "'blk.0.attn_v.weight' and 2 more are missing"));
}

TEST_CASE("a file with metadata alone says so") {
  io::GgufWriter writer = File().metadata;
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = io::Gguf::parse(*bytes, "vocab.gguf");
  REQUIRE(file);
  CHECK(Model::from_gguf(*file).error().message ==
        "vocab.gguf: the file has no tensors, only metadata, perhaps a vocabulary");
}

TEST_CASE("tensors that are no part of the architecture are named, up to three of them") {
  File file;
  static const std::vector<std::byte> zeros(32 * sizeof(float));
  static const std::uint64_t dims[] = {32};
  int n = 1;
  file.add = [&](io::GgufWriter& writer) {
    for (int i = 0; i < n; ++i) {
      writer.add_tensor("blk." + std::to_string(i) + ".attn_q_norm.weight", io::GgmlType::f32, dims,
                        zeros);
    }
  };
  CHECK(file.error().code == Errc::unsupported);
  CHECK(file.error().message ==
        "m.gguf: tensor 'blk.0.attn_q_norm.weight' is no part of a model of the architecture llama "
        "as it is known here; without it the model would run wrongly");
  n = 3;
  CHECK(test::contains(file.error().message, "'blk.2.attn_q_norm.weight' are no part"));
  n = 8;
  CHECK(test::contains(file.error().message, "'blk.2.attn_q_norm.weight' and 5 more are no part"));
}

TEST_CASE("a type that holds no weights is named, with its tensor") {
  File file;
  file.without = {"blk.0.ffn_down.weight"};
  file.add = [](io::GgufWriter& writer) {
    static const std::vector<std::byte> zeros(2 * 32 * 32);
    const std::uint64_t dims[] = {32, 32};
    writer.add_tensor("blk.0.ffn_down.weight", io::GgmlType::i16, dims, zeros);
  };
  const Error error = file.error();
  CHECK(error.code == Errc::unsupported);
  CHECK(error.message ==
        "m.gguf: tensor 'blk.0.ffn_down.weight': type I16 is no format of weights; those are F32, "
        "F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, Q3_H, Q2_H, "
        "Q2_K, Q3_K, TQ2_0, Q2_0, Q1_0, IQ4_NL, IQ4_XS, MXFP4");
}

TEST_CASE("dimensions may be stated for each layer; most must be equal") {
  const std::vector<std::string> keys = {
      "llama.attention.head_count",    "llama.attention.head_count_kv",
      "llama.feed_forward_length",     "llama.attention.key_length",
      "llama.attention.value_length",  "llama.rope.dimension_count",
      "llama.attention.sliding_window"};
  for (const std::string& key : keys) {
    CAPTURE(key);
    File file;
    const std::uint32_t value = key.ends_with("count_kv")              ? 2
                                : key.ends_with("head_count")          ? 4
                                : key.ends_with("feed_forward_length") ? 32
                                                                       : 8;
    file.metadata.set_array(key, std::vector<std::uint32_t>{value, value});
    check_logits(file.load());
    file.metadata.set_array(key, std::vector<std::int32_t>{static_cast<std::int32_t>(value), 1});
    Error error = file.error();
    if (key.find("head_count") != key.npos) {
      CHECK(error.code == Errc::malformed);
      CHECK(error.message ==
            "m.gguf: heads that differ by layer, without llama.attention.key_length");
    } else if (key.find("feed_forward") != key.npos) {  // the file's tensors are others
      CHECK(error.code == Errc::malformed);
      CHECK(error.message ==
            "m.gguf: tensor 'blk.1.ffn_gate.weight': shape (32, 32), expected (1, 32)");
    } else {
      CHECK(error.code == Errc::unsupported);
      CHECK(error.message == "m.gguf: key '" + key + "' has " + std::to_string(value) +
                                 " for one layer and 1 for another; values per layer are not "
                                 "supported");
    }
    file.metadata.set_array(key, std::vector<std::uint32_t>{});
    CHECK(file.error().code == Errc::malformed);
    file.metadata.set_array(key, std::vector<float>{1, 1});
    CHECK(file.error().code == Errc::malformed);
  }
}

TEST_CASE(
    "heads that differ by layer have as many of keys and values, unless another number is stated") {
  File file;
  io::GgufWriter metadata;
  metadata.set("general.architecture", "llama");
  const auto set = [&](const char* key, std::uint32_t value) {
    metadata.set(std::string("llama.") + key, value);
  };
  set("embedding_length", 32);
  set("block_count", 2);
  set("feed_forward_length", 32);
  set("context_length", 32);
  set("attention.key_length", 8);
  set("attention.value_length", 8);
  set("rope.dimension_count", 8);
  metadata.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  metadata.set_array("llama.attention.head_count", std::vector<std::uint32_t>{4, 3});
  file.metadata = metadata;
  static const std::vector<std::byte> zeros(32 * 32 * sizeof(float));
  file.add = [&](io::GgufWriter& writer) {
    for (std::uint64_t layer = 0; layer < 2; ++layer) {
      const std::uint64_t width = 8 * (4 - layer);
      const auto matrix = [&](const char* name, std::uint64_t n, std::uint64_t k) {
        const std::uint64_t dims[] = {k, n};
        writer.add_tensor("blk." + std::to_string(layer) + name, io::GgmlType::f32, dims,
                          std::span(zeros).first(n * k * sizeof(float)));
      };
      matrix(".attn_q.weight", width, 32);
      matrix(".attn_k.weight", width, 32);
      matrix(".attn_v.weight", width, 32);
      matrix(".attn_output.weight", 32, width);
    }
  };
  for (const char* const layer : {"blk.0", "blk.1"}) {
    for (const char* const slot : {".attn_q", ".attn_k", ".attn_v", ".attn_output"}) {
      file.without.push_back(std::string(layer) + slot + ".weight");
    }
  }
  const auto model = file.load();
  check_logits(model);
  CHECK(model->weights().at(Slot::attn_k, 0).n == 32);
  CHECK(model->weights().at(Slot::attn_k, 1).n == 24);
  file.metadata.set("llama.attention.head_count_kv", std::uint32_t{1});
  CHECK(file.error().code == Errc::malformed);
  CHECK(test::contains(file.error().message, "attn_k.weight': shape (32, 32), expected (8, 32)"));
}

TEST_CASE("a tokenizer that cannot be used is no reason to refuse the model, and says why") {
  const auto why = [](const std::function<void(File&)>& change) {
    File file;
    change(file);
    const auto model = file.load();
    check_logits(model);
    CHECK(model->tokenizer() == nullptr);
    REQUIRE(model->tokenizer_error() != nullptr);
    auto session = Session::create(*model);
    REQUIRE(session);
    auto generator = Generator::create(*session, {});
    REQUIRE(generator);
    const auto refused = generator->prompt("text");
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code == model->tokenizer_error()->code);
    CHECK(test::contains(refused.error().message, model->tokenizer_error()->message));
    return *model->tokenizer_error();
  };
  Error error = why([](File&) {});
  CHECK(error.code == Errc::not_found);
  CHECK(error.message == "m.gguf: the file has no tokenizer");
  error = why([](File& f) { f.metadata.set("tokenizer.ggml.model", "gpt2"); });
  CHECK(test::contains(error.message, "tokenizer.ggml.tokens"));
  error = why([](File& f) { f.metadata.set("tokenizer.ggml.model", "rwkv"); });
  CHECK(error.code == Errc::unsupported);
  CHECK(test::contains(error.message, "'rwkv'"));
  error = why([](File& f) { f.metadata.set("tokenizer.ggml.model", "llama"); });
  CHECK(test::contains(error.message, "tokenizer.ggml.tokens"));
  error = why([](File& f) {
    f.vocabulary();
    f.metadata.set_array("tokenizer.ggml.token_type", std::vector<int>{2, 3, 3, 1, 1, 9});
  });
  CHECK(test::contains(error.message, "piece 5 has a type that does not exist"));
  error = why([](File& f) {
    f.vocabulary();
    f.metadata.set_array("tokenizer.ggml.tokens", std::vector<std::string>(7, "a"));
  });
  CHECK(error.message == "m.gguf: the tokenizer has 7 tokens, but there are 6 rows of embeddings");
}

TEST_CASE("a vocabulary without types and scores, with ids beyond it, is used") {
  File file;
  file.vocabulary();
  file.metadata.set("tokenizer.ggml.padding_token_id", 6u);
  const auto model = file.load();
  REQUIRE_MESSAGE(model, test::why(model));
  REQUIRE(model->tokenizer() != nullptr);
  CHECK(model->tokenizer_error() == nullptr);
  const auto ids = model->tokenizer()->encode("ab", {.add_bos = true});
  REQUIRE(ids);
  CHECK(ids->front() == 1);
}
