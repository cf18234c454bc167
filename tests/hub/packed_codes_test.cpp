// SPDX-License-Identifier: Apache-2.0
//
// Folders of GPTQ and AWQ: their weights exactly, in a block format. Checkpoints of llama2.c.
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "hub_folder.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace packed_codes_test {

using namespace nibble;
using test::HubWeights;
using test::TemporaryFolder;

namespace {

constexpr std::size_t kInputs = 256, kOutputs = 16, kGroup = 128;

// Codes 0 to 15, (inputs, outputs); zeros and scales, (groups, outputs).
struct Codes {
  std::vector<std::uint32_t> codes, zeros;
  std::vector<float> scales;

  // zero: 8 for all, or -1 for any from `low` on.
  explicit Codes(int zero, std::uint32_t low = 0, float grid = 0) {
    std::mt19937 generator(5);
    const auto random = [&] { return static_cast<std::uint32_t>(generator()); };
    for (std::size_t i = 0; i < kInputs * kOutputs; ++i) codes.push_back(random() % 16);
    for (std::size_t i = 0; i < kInputs / kGroup * kOutputs; ++i) {
      zeros.push_back(zero >= 0 ? static_cast<std::uint32_t>(zero) : low + random() % 15);
      // 11 bits, which F16 has; or a power of two.
      scales.push_back(grid > 0 ? grid : static_cast<float>(1024 + random() % 1024) / 65536);
    }
  }
  double weight(std::size_t output, std::size_t input) const {
    const std::size_t g = input / kGroup * kOutputs + output;
    return static_cast<double>(scales[g]) *
           (static_cast<double>(codes[input * kOutputs + output]) - static_cast<double>(zeros[g]));
  }
};

HubWeights integers(const std::string& name, std::vector<std::uint64_t> shape,
                    const std::vector<std::uint32_t>& words) {
  HubWeights tensor{name, std::move(shape), {}, "I32"};
  for (const std::uint32_t word : words) tensor.values.push_back(std::bit_cast<float>(word));
  return tensor;
}

const std::string kBase = "model.layers.0.mlp.down_proj";

// As AutoGPTQ writes them: codes along the inputs, zeros less one along the outputs.
std::vector<HubWeights> gptq(const Codes& c, std::uint32_t less = 1) {
  std::vector<std::uint32_t> codes(kInputs / 8 * kOutputs), zeros(kInputs / kGroup * kOutputs / 8);
  for (std::size_t i = 0; i < kInputs; ++i) {
    for (std::size_t j = 0; j < kOutputs; ++j) {
      codes[i / 8 * kOutputs + j] |= c.codes[i * kOutputs + j] << (4 * (i % 8));
    }
  }
  std::vector<std::uint32_t> order;
  for (std::size_t g = 0; g < kInputs / kGroup; ++g) {
    for (std::size_t j = 0; j < kOutputs; ++j) {
      zeros[(g * kOutputs + j) / 8] |= ((c.zeros[g * kOutputs + j] - less) & 15u) << (4 * (j % 8));
    }
  }
  for (std::size_t i = 0; i < kInputs; ++i) order.push_back(static_cast<std::uint32_t>(i / kGroup));
  return {{"model.embed_tokens.weight", {5, 8}, {}},
          integers(kBase + ".qweight", {kInputs / 8, kOutputs}, codes),
          integers(kBase + ".qzeros", {kInputs / kGroup, kOutputs / 8}, zeros),
          {kBase + ".scales", {kInputs / kGroup, kOutputs}, c.scales},
          integers(kBase + ".g_idx", {kInputs}, order)};
}

// As AutoAWQ writes them: codes and zeros along the outputs, first those of even places.
std::vector<HubWeights> awq(const Codes& c) {
  constexpr std::size_t kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};
  const auto packed = [&](const std::vector<std::uint32_t>& values) {
    std::vector<std::uint32_t> words(values.size() / 8);
    for (std::size_t w = 0; w < words.size(); ++w) {
      for (std::size_t b = 0; b < 8; ++b) words[w] |= values[w * 8 + kOrder[b]] << (4 * b);
    }
    return words;
  };
  return {{"model.embed_tokens.weight", {5, 8}, {}},
          integers(kBase + ".qweight", {kInputs, kOutputs / 8}, packed(c.codes)),
          integers(kBase + ".qzeros", {kInputs / kGroup, kOutputs / 8}, packed(c.zeros)),
          {kBase + ".scales", {kInputs / kGroup, kOutputs}, c.scales}};
}

std::string config_with(const std::string& quantization) {
  return R"({"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":12,)"
         R"("num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":64,)"
         R"("rms_norm_eps":1e-6,"quantization_config":{)" +
         quantization + "}}";
}
const std::string kGptq = R"("quant_method":"gptq","bits":4,"group_size":128,"desc_act":false)";
const std::string kGptq2 = kGptq + R"(,"checkpoint_format":"gptq_v2")";
const std::string kAwq = R"("quant_method":"awq","bits":4,"group_size":128,"version":"gemm")";

// That the folder's matrix has this type, and exactly these weights.
void check_exact(const std::string& quantization, const std::vector<HubWeights>& tensors,
                 const Codes& codes, io::GgmlType type) {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, config_with(quantization), tensors);
  const auto gguf = open_model(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(gguf->tensors().size() == 2);
  const auto tensor = gguf->tensor("blk.0.ffn_down.weight");
  REQUIRE_MESSAGE(tensor, test::why(tensor));
  CHECK(tensor->type == type);
  CHECK(tensor->dims[0] == kInputs);
  CHECK(tensor->dims[1] == kOutputs);
  const auto format = quant::format_of(tensor->type);
  REQUIRE(format);
  const std::size_t row_bytes = tensor->data.size() / kOutputs;
  std::size_t n_wrong = 0;
  for (std::size_t row = 0; row < kOutputs; ++row) {
    std::vector<float> weights(kInputs);
    REQUIRE(quant::row_to_f32(*format, tensor->data.subspan(row * row_bytes, row_bytes), weights));
    for (std::size_t i = 0; i < kInputs; ++i) {
      n_wrong += static_cast<double>(weights[i]) != codes.weight(row, i);
    }
  }
  CHECK(n_wrong == 0);
}

void check_refused(const std::string& quantization, const std::vector<HubWeights>& tensors,
                   Errc code, const std::string& part) {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, config_with(quantization), tensors);
  const auto gguf = open_model(folder.path(""));
  REQUIRE_FALSE(gguf);
  CHECK_MESSAGE(gguf.error().code == code, gguf.error().message);
  CHECK_MESSAGE(test::contains(gguf.error().message, part), gguf.error().message);
}

}  // namespace

TEST_CASE("GPTQ and AWQ: the same weights in a block format") {
  const Codes symmetric(8), any(-1, 1), powers(-1, 1, 0.0625f);
  check_exact(kGptq, gptq(symmetric), symmetric, io::GgmlType::q4_0);
  check_exact(kGptq, gptq(any), any, io::GgmlType::q5_0);
  check_exact(kGptq, gptq(powers), powers, io::GgmlType::q4_1);
  check_exact(kGptq2, gptq(any, 0), any, io::GgmlType::q5_0);
  const Codes from_zero(-1, 0);
  check_exact(kAwq, awq(symmetric), symmetric, io::GgmlType::q4_0);
  check_exact(kAwq, awq(from_zero), from_zero, io::GgmlType::q5_0);
  check_exact(kAwq, awq(powers), powers, io::GgmlType::q4_1);
}

TEST_CASE("GPTQ and AWQ: what is refused") {
  const Codes codes(8);
  const auto changed = [&](const std::function<void(std::vector<HubWeights>&)>& change) {
    auto tensors = gptq(codes);
    change(tensors);
    return tensors;
  };
  using Tensors = std::vector<HubWeights>;
  check_refused(kGptq, changed([](Tensors& t) { t[4].values[3] = std::bit_cast<float>(1u); }),
                Errc::unsupported, "its inputs are in another order (g_idx; saved with desc_act)");
  check_refused(kGptq, gptq(Codes(16)), Errc::unsupported, "a zero that is stored as 15");
  check_refused(kGptq, changed([](Tensors& t) { t[3].values[7] = 0.1f; }), Errc::unsupported,
                "has no exact value in F16");
  check_refused(kGptq, changed([](Tensors& t) { t.pop_back(), t.pop_back(); }), Errc::not_found,
                "its qzeros or scales are missing");
  check_refused(kGptq, changed([](Tensors& t) {
                  t[3].shape = {1, 16};
                }),
                Errc::malformed, "groups of 128 inputs do not go together");
  check_refused(kGptq, changed([](Tensors& t) {
                  t[2].shape = {16};
                  t[2].values.resize(16);
                }),
                Errc::malformed, "its parts are no matrices");
  check_refused(kGptq, changed([](Tensors& t) {
                  t[4].shape = {8};
                  t[4].values.resize(8);
                }),
                Errc::malformed, "its g_idx is no list of 256 integers");
  check_refused(R"("quant_method":"bitsandbytes")", gptq(codes), Errc::unsupported,
                "weights quantized by 'bitsandbytes'; known are gptq and awq");
  check_refused(R"("quant_method":"gptq","bits":3)", gptq(codes), Errc::unsupported,
                "weights of 3 bits, not 4");
  check_refused(R"("quant_method":"gptq","bits":4,"group_size":1e300)", gptq(codes),
                Errc::unsupported, "which are no whole blocks of 32");
  check_refused(R"("quant_method":"gptq","bits":4,"group_size":0)", gptq(codes), Errc::unsupported,
                "groups of 0 weights");
  check_refused(R"("quant_method":"awq","bits":4,"version":"gemv")", awq(codes), Errc::unsupported,
                "the layout 'gemv' of AWQ");
}

TEST_CASE("checkpoints of llama2.c: the tensors and pieces of the GGUF file") {
  const auto path = test::data_path("models/stories260K/stories260K.bin");
  const auto gguf_path = test::data_path("models/stories260K/stories260K.gguf");
  if (!path || !gguf_path) return;
  const auto model = open_model(*path);
  const auto gguf = open_model(*gguf_path);
  REQUIRE_MESSAGE(model, test::why(model));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  std::size_t n = 0;
  for (const io::GgufTensor& tensor : gguf->tensors()) {
    CAPTURE(std::string(tensor.name));
    const auto* const own = model->find_tensor(tensor.name);
    // The GGUF file repeats the embedding.
    const auto* const same = own == nullptr && tensor.name == "output.weight"
                                 ? model->find_tensor("token_embd.weight")
                                 : own;
    REQUIRE(same != nullptr);
    CHECK(same->dims == tensor.dims);
    REQUIRE(same->data.size() == tensor.data.size());
    CHECK(std::memcmp(same->data.data(), tensor.data.data(), tensor.data.size()) == 0);
    ++n;
  }
  CHECK(n == model->tensors().size() + 1);
  CHECK(*model->get_strings("tokenizer.ggml.tokens") ==
        *gguf->get_strings("tokenizer.ggml.tokens"));
  CHECK(*model->get_array<std::int32_t>("tokenizer.ggml.token_type") ==
        *gguf->get_array<std::int32_t>("tokenizer.ggml.token_type"));
  CHECK(*model->get_array<float>("tokenizer.ggml.scores") ==
        *gguf->get_array<float>("tokenizer.ggml.scores"));
  for (const char* const key :
       {"llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.head_count_kv", "llama.block_count", "llama.rope.dimension_count"}) {
    CHECK(*model->get_u32(key) == *gguf->get_u32(key));
  }
  CHECK(*model->get_u32("llama.context_length") == 512);
}

TEST_CASE("checkpoints of llama2.c: sizes that do not go together, vocabularies that are cut") {
  // dim 2, ffn 3, 1 layer, 1 head, 3 tokens, 4 positions.
  const auto checkpoint = [](std::int32_t n_tokens, std::size_t n_floats) {
    test::FileBuilder file;
    for (const std::int32_t n : {2, 3, 1, 1, 1, n_tokens, 4}) file.number(n);
    for (std::size_t i = 0; i < n_floats; ++i) file.number(static_cast<float>(i));
    return file.bytes();
  };
  const std::size_t n = 6 + 2 + 4 * 4 + 2 + 3 * 6 + 2 + 4 + 4;
  const TemporaryFolder folder;
  folder.write("m.bin", checkpoint(3, n));
  auto model = open_model(folder.path("m.bin"));
  REQUIRE_MESSAGE(model, test::why(model));
  CHECK(model->find_tensor("output.weight") == nullptr);
  CHECK(test::contains(std::string(*model->get_string(hub::kTokenizerErrorKey)),
                       "the folder has no tok3.bin and no tokenizer.bin"));
  folder.write("m.bin", checkpoint(-3, n + 6));
  model = open_model(folder.path("m.bin"));
  REQUIRE_MESSAGE(model, test::why(model));
  CHECK(model->find_tensor("output.weight")->data.size() == 24);

  for (const std::size_t other : {n - 1, n + 1, std::size_t{0}}) {
    folder.write("m.bin", checkpoint(3, other));
    CHECK_FALSE(open_model(folder.path("m.bin")));
  }
  for (const std::int32_t other : {0, 4, -2147483647 - 1, 2147483647}) {
    folder.write("m.bin", checkpoint(other, n));
    CHECK_FALSE(open_model(folder.path("m.bin")));
  }
  folder.write("m.bin", {});
  CHECK_FALSE(open_model(folder.path("m.bin")));

  folder.write("m.bin", checkpoint(3, n));
  const auto vocabulary = [&](std::int32_t longest, std::int32_t size, std::size_t n_pieces) {
    test::FileBuilder file;
    file.number(longest);
    for (std::size_t i = 0; i < n_pieces; ++i) file.number(0.5f).number(size).raw("a b");
    folder.write("tokenizer.bin", file.bytes());
    return open_model(folder.path("m.bin"));
  };
  CHECK(vocabulary(3, 3, 3));
  const std::int32_t wrong[][3] = {
      {3, 3, 2}, {3, 3, 4}, {2, 3, 3}, {3, -1, 3}, {2147483647, 2147483647, 3}};
  for (const auto& [longest, size, n_pieces] : wrong) {
    const auto bad = vocabulary(longest, size, static_cast<std::size_t>(n_pieces));
    REQUIRE_FALSE(bad);
    CHECK(bad.error().code == Errc::malformed);
    CHECK(bad.error().message.find("tokenizer.bin: ") != std::string::npos);
  }
}

}  // namespace packed_codes_test
