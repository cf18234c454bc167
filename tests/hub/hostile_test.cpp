// SPDX-License-Identifier: Apache-2.0
//
// Folders that are incomplete, that do not go together, or that mean harm: an error each, which
// says where and what.
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "hub_folder.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"

namespace hostile_test {

using namespace nibble;
using test::TemporaryFolder;

namespace {

const std::string kGood =
    R"("architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":12,)"
    R"("num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":64)";
const std::vector<test::HubWeights> kTensors = {{"model.embed_tokens.weight", {5, 8}, {}}};

// That the error is this one; its path is left out.
void check(const TemporaryFolder& folder, Errc code, const std::string& part) {
  CAPTURE(part);
  const std::string path = folder.path("");  // ends in a slash, which messages leave out
  const auto gguf = open_model(path);
  REQUIRE_FALSE(gguf);
  CHECK(gguf.error().code == code);
  CHECK_MESSAGE(test::contains(gguf.error().message, part), gguf.error().message);
  CHECK(gguf.error().message.starts_with(path.substr(0, path.size() - 1)));
}

}  // namespace

TEST_CASE("a config.json that is wrong") {
  const TemporaryFolder folder;
  folder.write("model.safetensors", test::safetensors_of(kTensors));
  const auto refused = [&](const std::string& config, Errc code, const std::string& part) {
    test::write_text(folder, "config.json", config);
    check(folder, code, part);
  };
  const auto with = [&](const std::string& more) { return "{" + kGood + "," + more + "}"; };
  const std::string eps = R"("rms_norm_eps":1e-6)";
  refused("", Errc::malformed, "config.json: JSON at byte 0: expected a number");
  refused("[1]", Errc::malformed, "config.json: not a JSON object");
  refused("{}", Errc::not_found, "config.json: key 'architectures' names no architecture");
  refused(R"({"architectures":["Bloom\u001b[2J"]})", Errc::unsupported,
          "architecture 'Bloom?[2J' is not supported as a folder; known are LlamaForCausalLM, ");
  refused(with(R"("hidden_act":"gelu")"), Errc::unsupported,
          "key 'hidden_act' 'gelu' is not computed for the architecture llama");
  refused(with(eps + R"(,"quantization_config":{"quant_method":"fp8"})"), Errc::unsupported,
          "key 'quantization_config': weights quantized by 'fp8'; known are gptq and awq");
  refused(with(R"("x":1)"), Errc::not_found, "key 'rms_norm_eps' is missing");
  refused(with(R"("rms_norm_eps":"a")"), Errc::malformed,
          "key 'rms_norm_eps' is not a number that fits in 32 bits");
  refused(with(R"("rms_norm_eps":1e39)"), Errc::malformed, "fits in 32 bits");
  refused(with(R"("rms_norm_eps":1e999)"), Errc::malformed, "a number that is too large");
  refused(with(eps + R"(,"num_key_value_heads":-1)"), Errc::malformed,
          "key 'num_key_value_heads' is not an integer of 32 bits");
  refused(with(eps + R"(,"num_key_value_heads":1.5)"), Errc::malformed, "is not an integer");
  refused(with(eps + R"(,"num_key_value_heads":0)"), Errc::malformed,
          "key 'num_key_value_heads' is 0, not in [1, 1048576]");
  refused(with(eps + R"(,"head_dim":4294967295)"), Errc::malformed, "is 4294967295, not in");
  refused(with(eps + R"(,"rope_scaling":{"type":"mrope"})"), Errc::unsupported,
          "key 'rope_type' 'mrope' is not known");
  refused(with(eps + R"(,"rope_scaling":{"type":"longrope"})"), Errc::unsupported,
          "longrope is known for phi3 alone");
  refused(with(eps + R"(,"rope_scaling":{"type":"yarn","factor":2,"attention_factor":1})"),
          Errc::unsupported, "key 'attention_factor' is not computed");
  refused(with(eps + R"(,"rope_scaling":{"type":"linear"})"), Errc::not_found,
          "key 'factor' is missing");
  refused(with(eps + R"(,"rope_scaling":{"type":"llama3","low_freq_factor":4})"), Errc::malformed,
          "llama3 with numbers that do not go together");
  refused(R"({"architectures":["Olmo3ForCausalLM"],"hidden_size":8,"num_hidden_layers":1,)"
          R"("num_attention_heads":2,"max_position_embeddings":64,"rms_norm_eps":1,)"
          R"("sliding_window":8,"sliding_window_pattern":0})",
          Errc::malformed, "key 'sliding_window_pattern' is 0");
  refused(with(eps + R"(,"partial_rotary_factor":1.5)"), Errc::malformed, "dimensions to rotate");
  refused(
      with(eps + R"(,"rope_scaling":{"type":"yarn","factor":2,"mscale":1,"mscale_all_dim":0.7})"),
      Errc::unsupported, "key 'mscale' is 1 with mscale_all_dim 0.7");
  for (const char* const part : {"1e30", "-1", "-1e30"}) {
    refused(R"({"architectures":["Phi3ForCausalLM"],"hidden_size":8,"intermediate_size":12,)"
            R"("num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":64,)"
            R"("rms_norm_eps":1,"rope_scaling":{"type":"longrope","partial_rotary_factor":)" +
                std::string(part) + "}}",
            Errc::malformed, "key 'partial_rotary_factor' leaves");
  }
  refused(with(eps + R"(,"tie_word_embeddings":"yes")"), Errc::malformed, "is not true or false");
  std::string deep(100000, '[');
  refused(R"({"x":)" + deep, Errc::malformed, "nested too deeply");
  refused(std::string(std::size_t{2} << 20, ' '), Errc::limit, "config.json: 2097152 bytes");
}

TEST_CASE("weights that do not go with the configuration") {
  const TemporaryFolder folder;
  test::write_text(folder, "config.json", "{" + kGood + R"(,"rms_norm_eps":1e-6})");
  check(folder, Errc::not_found,
        "the folder has no model.safetensors and no model.safetensors.ind");
  test::write_text(folder, "pytorch_model.bin", "");
  check(folder, Errc::not_found, "pytorch_model.bin is not read");

  const auto refused = [&](const test::HubWeights& tensor, Errc code, const std::string& part) {
    folder.write("model.safetensors", test::safetensors_of({tensor}));
    check(folder, code, "model.safetensors: tensor '" + tensor.name + "': " + part);
  };
  refused({"model.layers.0.self_attn.z_proj.weight", {8, 8}, {}}, Errc::unsupported,
          "it has no place in the architecture llama");
  refused({"model.layers.x.self_attn.q_proj.weight", {8, 8}, {}}, Errc::unsupported,
          "it has no place");
  refused({"model.layers.01.self_attn.q_proj.weight", {8, 8}, {}}, Errc::unsupported,
          "it has no place");
  refused({"model.layers..self_attn.q_proj.weight", {8, 8}, {}}, Errc::unsupported,
          "it has no place");
  refused({"norm", {8}, {}}, Errc::unsupported, "it has no place");
  refused({"norm.scale", {8}, {}}, Errc::unsupported, "it has no place");
  refused({"model.norm.weight", {8}, {}, "I32"}, Errc::unsupported, "element type I32; weights");
  refused({"model.norm.weight", {}, {}}, Errc::malformed, "0 dimensions, not 1 to 4");
  refused({"model.norm.weight", {0}, {}}, Errc::malformed, "a dimension is 0");
  refused({"model.embed_tokens.weight", {1 << 24, 0}, {}}, Errc::malformed, "a dimension is 0");
  refused({"model.norm.weight", {1, 1, 1, 2, 1}, {}}, Errc::malformed, "5 dimensions");
  refused({"model.layers.0.self_attn.q_proj.weight", {6, 8}, {}}, Errc::malformed,
          "6 rows are not for 2 heads, 2 of k and v");
  refused({"model.layers.0.self_attn.k_proj.bias", {7}, {}}, Errc::malformed, "7 rows are not");
  refused({"model.layers.0.self_attn.q_proj.weight", {8, 2, 2}, {}}, Errc::malformed,
          "2 rows are not for 2 heads");

  folder.write("model.safetensors",
               test::safetensors_of({{"model.norm.weight", {8}, {}}, {"norm.weight", {8}, {}}}));
  check(folder, Errc::malformed, "tensor 'output_norm.weight' appears twice");
  test::write_text(folder, "model.safetensors", "PK");
  check(folder, Errc::malformed, "model.safetensors: the file ends inside the header's length");
}

TEST_CASE("an index that leads out of the folder, or does not fit its files") {
  const TemporaryFolder folder;
  test::write_text(folder, "config.json", "{" + kGood + R"(,"rms_norm_eps":1e-6})");
  folder.write("a.safetensors", test::safetensors_of(kTensors));
  const auto refused = [&](const std::string& index, Errc code, const std::string& part) {
    test::write_text(folder, "model.safetensors.index.json", index);
    check(folder, code, part);
  };
  const auto naming = [](const std::string& file) {
    return R"({"weight_map":{"model.embed_tokens.weight":")" + file + R"("}})";
  };
  for (const char* const file :
       {"../a.safetensors", "/tmp/a.safetensors", "x/../a.safetensors", "..\\\\a.safetensors",
        "C:a.safetensors", ".safetensors", "a.safetensors\\u0000.safetensors", "a.bin", ""}) {
    refused(naming(file), Errc::malformed, "which is no *.safetensors of this folder");
  }
  refused(naming("b.safetensors"), Errc::io, "index.json: ");
  refused("{}", Errc::malformed, "weight_map is missing");
  refused(R"({"weight_map":{"a":1}})", Errc::malformed, "expected '\"'");
  refused(R"({"weight_map":{},"weight_map":{}})", Errc::malformed, "weight_map appears twice");
  refused(R"({"weight_map":{}} x)", Errc::malformed, "more text behind the index");
  refused(R"({"weight_map":{"a":"a.safetensors","a":"a.safetensors"}})", Errc::malformed,
          "tensor 'a' appears twice");
  refused(R"({"weight_map":{"model.norm.weight":"a.safetensors"}})", Errc::malformed,
          "a.safetensors: tensor 'model.norm.weight' is missing, which");
  std::string many = R"({"weight_map":{)";
  for (int i = 0; i < 1025; ++i) {
    const std::string n = std::to_string(i);
    many += (i > 0 ? ",\"" : "\"") + n + "\":\"" + n + ".safetensors\"";
  }
  refused(many + "}}", Errc::malformed, "more than 1024 files");
  test::write_text(folder, "model.safetensors.index.json", naming("a.safetensors"));
  CHECK(open_model(folder.path("")).has_value());
#if !defined(_WIN32)
  // Links are followed: downloaders put links to their cache into a folder. One that leads nowhere
  // is an error, not a file that is missing.
  std::filesystem::rename(folder.path("a.safetensors"), folder.path("blob"));
  std::filesystem::create_symlink("blob", folder.path("a.safetensors"));
  CHECK(open_model(folder.path("")).has_value());
  std::filesystem::create_symlink("nowhere", folder.path("model.safetensors"));
  check(folder, Errc::io, "model.safetensors: cannot open");
  std::filesystem::remove(folder.path("config.json"));
  std::filesystem::create_symlink("config.json", folder.path("config.json"));
  check(folder, Errc::io, "config.json: cannot open");
#endif
}

TEST_CASE("files of sentence-transformers that lead out of the folder") {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, "{" + kGood + R"(,"rms_norm_eps":1e-6})", kTensors);
  for (const char* const path : {"../x", "/x", ".", ""}) {
    test::write_text(folder, "modules.json",
                     std::string(R"([{"path":")") + path + R"(","type":"a.Pooling"}])");
    check(folder, Errc::malformed, "is no folder of this folder");
  }
  test::write_text(folder, "modules.json", R"([{"path":"1","type":"a.Pooling"}])");
  check(folder, Errc::io, "1/config.json");
  test::write_text(folder, "modules.json", R"([{"path":"1"}])");
  check(folder, Errc::malformed, "a module without type or path");
  test::write_text(folder, "modules.json", R"([{"path":"1","type":"a.LSTM"}])");
  check(folder, Errc::unsupported, "the module 'a.LSTM' is not computed");
}

TEST_CASE("elements smaller than a byte, where one is added to weights") {
  const TemporaryFolder folder;
  test::write_text(
      folder, "config.json",
      R"({"architectures":["Gemma3TextModel"],"hidden_size":4,"num_hidden_layers":1,"head_dim":4,)"
      R"("intermediate_size":8,"sliding_window":8})");
  for (const std::string type : {"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "I32"}) {
    CAPTURE(type);
    const std::size_t n = type == "I32" ? 32 : type[1] == '4' ? 4 : type[1] == '6' ? 6 : 8;
    test::FileBuilder file;
    file.string(R"({"norm.weight":{"dtype":")" + type + R"(","shape":[8],"data_offsets":[0,)" +
                std::to_string(n) + "]}}");
    for (std::size_t i = 0; i < n; ++i) file.u8(0);
    folder.write("model.safetensors", file.bytes());
    check(folder, Errc::unsupported, "element type " + type);
  }
}

TEST_CASE("tokenizer files that would take much memory") {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, "{" + kGood + R"(,"rms_norm_eps":1e-6})", kTensors);
  std::string many = R"({"chat_template":[0)";
  for (int i = 0; i < 600'000; ++i) many += ",0";
  test::write_text(folder, "tokenizer_config.json", many + "]}");
  check(folder, Errc::limit, "tokenizer_config.json: chat_template: 1200003 bytes");
  std::filesystem::remove(folder.path("tokenizer_config.json"));

  // Rows without a token.
  const std::string tokenizer =
      R"({"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":)"
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},)"
      R"("decoder":{"type":"ByteLevel"},"post_processor":null,)"
      R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
  test::write_text(folder, "tokenizer.json", tokenizer);
  for (const std::uint64_t n_rows : {3 + (1 << 14), 4 + (1 << 14)}) {
    folder.write("model.safetensors",
                 test::safetensors_of({{"model.embed_tokens.weight", {n_rows, 1}, {}}}));
    const auto gguf = open_model(folder.path(""));
    REQUIRE(gguf);
    const bool is_padded = n_rows == 3 + (1 << 14);
    CHECK((gguf->find("tokenizer.ggml.tokens") != nullptr) == is_padded);
    CHECK((gguf->find(hub::kTokenizerErrorKey) == nullptr) == is_padded);
  }
}

}  // namespace hostile_test
