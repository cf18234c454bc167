// SPDX-License-Identifier: Apache-2.0
//
// Any bytes give an error, or a file whose values can all be read and that has the same content
// after it is written and read again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/io/gguf_writer.hpp"

namespace {

using namespace nibble::io;

void require(bool condition) {
  if (!condition) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto gguf = Gguf::parse(bytes, "fuzz");
  if (!gguf) {
    require(gguf.error().code != nibble::Errc::invalid_argument);  // misaligned: a useless test
    return 0;
  }
  GgufWriter writer;
  writer.copy_metadata(*gguf);
  for (const GgufEntry& entry : gguf->metadata()) {
    (void)entry.value.as<std::int32_t>();
    (void)entry.value.as<float>();
    (void)entry.value.as<bool>();
    (void)entry.value.as<std::string_view>();
    (void)entry.value.as_array<std::uint16_t>();
    (void)entry.value.as_array<float>();
    (void)entry.value.as_array<bool>();
    (void)entry.value.as_array<std::string_view>();
  }
  for (const GgufTensor& tensor : gguf->tensors()) writer.add_tensor(tensor);

  const auto written = writer.to_bytes();
  require(written.has_value());
  const auto again = Gguf::parse(*written, "again");
  require(again.has_value());
  require(again->metadata().size() == gguf->metadata().size());
  for (std::size_t i = 0; i < gguf->metadata().size(); ++i) {
    require(again->metadata()[i].key == gguf->metadata()[i].key);
    require(std::ranges::equal(again->metadata()[i].value.encoded(),
                               gguf->metadata()[i].value.encoded()));
  }
  require(again->tensors().size() == gguf->tensors().size());
  for (const GgufTensor& tensor : gguf->tensors()) {
    const GgufTensor* same = again->find_tensor(tensor.name);
    require(same != nullptr && same->type == tensor.type && same->dims == tensor.dims);
    require(std::ranges::equal(same->data, tensor.data));
  }
  return 0;
}
