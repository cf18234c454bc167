// SPDX-License-Identifier: Apache-2.0
//
// What tests of adapters have in common: the bundled model, as it is and quantized.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/compress/tensor_rows.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/nibble.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/training_graph.hpp"

namespace nibble_test {

using namespace nibble;


inline std::string in_project(const std::string& path) {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  return std::string(folder) + "/" + path;
}

inline io::Gguf open_home() {
  auto file = io::Gguf::open(in_project("examples/models/home-commands-f16.gguf"));
  REQUIRE(file);
  return *std::move(file);
}

inline io::Gguf parse(const std::vector<std::byte>& bytes, const std::string& name) {
  auto buffer = AlignedBuffer::allocate(bytes.size());
  REQUIRE(buffer);
  std::memcpy(buffer->data(), bytes.data(), bytes.size());
  auto file = io::Gguf::parse(*std::move(buffer), name);
  REQUIRE(file);
  return *std::move(file);
}

// The file with all matrices in another format.
inline io::Gguf requantized(const io::Gguf& file, quant::Format format) {
  io::GgufWriter writer;
  writer.copy_metadata(file);
  std::vector<std::vector<std::byte>> data;
  data.reserve(file.tensors().size());
  for (const io::GgufTensor& t : file.tensors()) {
    if (t.n_dims != 2) {
      writer.add_tensor(file, t);
      continue;
    }
    const auto floats = compress::tensor_floats(file, t);
    REQUIRE(floats);
    const auto k = static_cast<std::size_t>(t.dims[0]), n = static_cast<std::size_t>(t.dims[1]);
    const auto row_bytes = quant::row_bytes(format, k);
    REQUIRE(row_bytes);
    std::vector<std::byte>& bytes = data.emplace_back(n * *row_bytes);
    for (std::size_t i = 0; i < n; ++i) {
      REQUIRE(quant::row_from_f32(format, std::span(*floats).subspan(i * k, k),
                                  std::span(bytes).subspan(i * *row_bytes, *row_bytes)));
    }
    writer.add_tensor(t.name, *quant::ggml_type_of(format), std::span(t.dims).first(2), bytes);
  }
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  return parse(*bytes, "quantized");
}

inline Model load_home(const io::Gguf& file) {
  auto model = Model::from_gguf<graph::AllFormats>(file);
  REQUIRE(model);
  return *std::move(model);
}

// The sequences of the goldens (make_gradient_goldens.py).
inline train::Batch golden_batch(Index vocab_size) {
  train::Batch batch;
  batch.offsets.push_back(0);
  Index token = 0;
  for (const Index length : {7, 13, 2, 20}) {
    for (Index i = 0; i + 1 < length; ++i) {
      const auto id = [&](Index j) {
        return static_cast<std::int32_t>((37 * (token + j) + 11) % vocab_size);
      };
      batch.tokens.push_back(id(i));
      batch.targets.push_back(id(i + 1));
      batch.weights.push_back(batch.n_rows() % 5 == 0 ? 0.0f : 1.0f);
      batch.n_counted += batch.weights.back() > 0 ? 1 : 0;
    }
    token += length;
    batch.offsets.push_back(batch.n_rows());
  }
  return batch;
}

}  // namespace nibble_test
