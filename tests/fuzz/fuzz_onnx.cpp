// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as an ONNX file of a Llama of one layer (dim 4), beside a file with data: an error, or
// a model whose tensors can be read. The folder is in TMPDIR (best in memory).
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

void write(const std::string& path, std::span<const std::uint8_t> bytes) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  require(file != nullptr);
  require(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  std::fclose(file);
}

const std::string& folder() {
  static const std::string path = [] {
    const char* const parent = std::getenv("TMPDIR");
    std::string made = std::string(parent != nullptr ? parent : "/tmp") + "/fuzz_onnx_XXXXXX";
    require(mkdtemp(made.data()) != nullptr);
    constexpr std::string_view kConfig =
        R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"intermediate_size":6,)"
        R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,)"
        R"("max_position_embeddings":64,"rms_norm_eps":1e-05,"tie_word_embeddings":false})";
    write(made + "/config.json",
          {reinterpret_cast<const std::uint8_t*>(kConfig.data()), kConfig.size()});
    write(made + "/data", std::vector<std::uint8_t>(256, 1));
    return made;
  }();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string path = folder() + "/model.onnx";
  write(path, {data, size});
  const auto gguf = nibble::open_model(path);
  if (!gguf) {
    require(!gguf.error().message.empty());
    return 0;
  }
  std::vector<std::byte> copy;
  for (const auto& tensor : gguf->tensors()) {
    require(gguf->find_tensor(tensor.name) == &tensor);
    copy.resize(tensor.data.size());
    require(gguf->bytes_of(tensor).read(0, copy).has_value());
  }
  return 0;
}
