// SPDX-License-Identifier: Apache-2.0
//
// Writes small folders as model hubs have them, independently of the library.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "why.hpp"

namespace test {

struct HubWeights {
  std::string name;
  std::vector<std::uint64_t> shape;  // row-major
  std::vector<float> values;         // 0, 1, 2, ... if there are none
  std::string type = "F32";          // or F64, BF16, U8; any other has values of 4 bytes

  std::uint64_t n() const {
    return std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>());
  }
};

inline std::vector<std::byte> safetensors_of(const std::vector<HubWeights>& tensors) {
  std::string header = "{";
  FileBuilder data;
  for (const HubWeights& tensor : tensors) {
    const std::size_t begin = data.size();
    for (std::uint64_t i = 0; i < tensor.n(); ++i) {
      const float value = tensor.values.empty() ? static_cast<float>(i) : tensor.values[i];
      if (tensor.type == "F64") {
        data.number(static_cast<double>(value));
      } else if (tensor.type == "U8") {
        data.u8(static_cast<unsigned>(value));
      } else if (tensor.type == "BF16") {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        data.number(static_cast<std::uint16_t>(bits >> 16));
      } else {
        data.number(value);
      }
    }
    std::string shape;
    for (const std::uint64_t d : tensor.shape) {
      shape += (shape.empty() ? "" : ",") + std::to_string(d);
    }
    header += (header.size() > 1 ? ",\"" : "\"") + tensor.name + "\":{\"dtype\":\"" + tensor.type +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  }
  header += "}";
  FileBuilder file;
  file.string(header);  // not padded: some writers do not align
  for (const std::byte b : data.bytes()) file.u8(static_cast<unsigned>(b));
  return file.bytes();
}

inline void write_text(const TemporaryFolder& folder, const std::string& name,
                       const std::string& text) {
  folder.write(name, std::as_bytes(std::span(text.data(), text.size())));
}

inline void write_hub_folder(const TemporaryFolder& folder, const std::string& config,
                             const std::vector<HubWeights>& tensors) {
  write_text(folder, "config.json", config);
  folder.write("model.safetensors", safetensors_of(tensors));
}

// A tensor's values in the order that it has.
inline std::vector<float> values_of(const nibble::io::Gguf& gguf, std::string_view name) {
  const auto tensor = gguf.tensor(name);
  REQUIRE_MESSAGE(tensor, why(tensor));
  REQUIRE(tensor->type == nibble::io::GgmlType::f32);
  std::vector<float> values(tensor->n_elements());
  const auto read = nibble::io::TensorBytes(tensor->data, tensor->swapped)
                        .read(0, std::as_writable_bytes(std::span(values)));
  REQUIRE_MESSAGE(read, why(read));
  return values;
}

}  // namespace test
