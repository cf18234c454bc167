// SPDX-License-Identifier: Apache-2.0
//
// A folder of any bytes gives an error, or a model whose tensors can be read. The input is the
// files, each behind its length in two bytes: config.json, model.safetensors, an index,
// tokenizer.json, tokenizer_config.json, generation_config.json, tokenizer.model. The folder is in
// TMPDIR (best in memory).
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

const std::string& folder() {
  static const std::string path = [] {
    const char* const parent = std::getenv("TMPDIR");
    std::string made = std::string(parent != nullptr ? parent : "/tmp") + "/fuzz_hub_XXXXXX";
    require(mkdtemp(made.data()) != nullptr);
    return made;
  }();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::span<const std::uint8_t> input(data, size);
  for (const char* const name :
       {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json", "generation_config.json", "tokenizer.model"}) {
    const std::string path = folder() + '/' + name;
    std::remove(path.c_str());
    if (input.size() < 2) continue;
    const std::size_t wanted = input[0] + input[1] * 256u;
    input = input.subspan(2);
    if (wanted == 0) continue;  // the file is missing
    const auto bytes = input.first(wanted < input.size() ? wanted : input.size());
    input = input.subspan(bytes.size());
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    require(file != nullptr);
    require(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    std::fclose(file);
  }
  const auto gguf = nibble::open_model(folder());
  if (!gguf) {
    require(!gguf.error().message.empty());
    return 0;
  }
  std::vector<std::byte> copy;
  for (const auto& tensor : gguf->tensors()) {
    require(gguf->find_tensor(tensor.name) == &tensor);
    copy.resize(tensor.data.size());
    require(nibble::io::TensorBytes(tensor.data, tensor.swapped).read(0, copy).has_value());
  }
  return 0;
}
