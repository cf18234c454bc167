// SPDX-License-Identifier: Apache-2.0
//
// Any bytes give an error, or tensors that tile the data section exactly.
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/io/safetensors.hpp"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file = nibble::io::Safetensors::parse(bytes, "fuzz");
  if (!file) return 0;
  std::uint64_t total = 0;
  unsigned sum = 0;
  for (const auto& tensor : file->tensors()) {
    require(file->find_tensor(tensor.name) == &tensor);
    for (const std::byte b : tensor.data) sum += static_cast<unsigned>(b);
    total += tensor.data.size();
  }
  for (const auto& entry : file->metadata()) {
    require(file->find_metadata(entry.key) == &entry.value);
  }
  const auto header = nibble::io::load_le<std::uint64_t>(bytes.data());
  require(8 + header + total == size);
  [[maybe_unused]] static volatile unsigned sink;  // keeps the reads of the data
  sink = sum;
  return 0;
}
