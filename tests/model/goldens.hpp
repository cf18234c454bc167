// SPDX-License-Identifier: Apache-2.0
//
// Models that are compared with PyTorch transformers: goldens/*.gguf, which make_goldens.py makes,
// have what each computes in double precision for a tiny model of random weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "model/golden_weights.hpp"
#include "model/rare_architectures.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/quant/ggml.hpp"
#include "why.hpp"

namespace test::goldens {

using namespace nibble;

struct Golden {
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;
    std::vector<float> values;
    bool is_f16 = false;  // as it is written
  };
  io::GgufWriter metadata;
  std::vector<std::string> keys;  // of the metadata
  std::vector<Tensor> tensors;
  std::vector<std::int32_t> tokens;
  std::vector<float> expected;

  // The whole GGUF file.
  std::vector<std::byte> write() const {
    io::GgufWriter writer = metadata;
    std::list<std::vector<std::byte>> halves;
    for (const Tensor& t : tensors) {
      if (t.is_f16) {
        std::vector<std::byte>& half = halves.emplace_back(2 * t.values.size());
        REQUIRE(quant::row_from_f32(quant::Format::f16, t.values, half));
        writer.add_tensor(t.name, io::GgmlType::f16, t.dims, half);
      } else {
        writer.add_tensor(t.name, io::GgmlType::f32, t.dims, std::as_bytes(std::span(t.values)));
      }
    }
    auto bytes = writer.to_bytes();
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    return *std::move(bytes);
  }
};

inline Golden read_golden(const std::filesystem::path& path) {
  const auto file = io::Gguf::open(path.string());
  REQUIRE_MESSAGE(file, test::why(file));
  Golden golden;
  for (const io::GgufEntry& entry : file->metadata()) {
    if (entry.key.starts_with("golden.")) continue;
    golden.metadata.set(entry.key, entry.value);
    golden.keys.emplace_back(entry.key);
  }
  const auto tokens = file->get_array<std::int32_t>("golden.tokens");
  const auto names = file->get_strings("golden.names");
  const auto shapes = file->get_array<std::int32_t>("golden.shapes");
  REQUIRE((tokens && names && shapes && shapes->size() == 2 * names->size()));
  golden.tokens = *tokens;
  std::vector<std::int32_t> experts(names->size(), 1);
  if (const auto stated = file->get_array<std::int32_t>("golden.experts")) experts = *stated;
  for (std::size_t i = 0; i < names->size(); ++i) {
    const std::string name((*names)[i]);
    const Index n = (*shapes)[2 * i], k = (*shapes)[2 * i + 1];
    std::vector<std::uint64_t> dims = {static_cast<std::uint64_t>(k)};
    if (n > 0) dims.push_back(static_cast<std::uint64_t>(n / experts[i]));
    if (experts[i] > 1) dims.push_back(static_cast<std::uint64_t>(experts[i]));
    golden.tensors.push_back({name, dims, random_weights(name, n, k)});
  }
  for (const io::GgufTensor& tensor : file->tensors()) {
    std::vector<float> values(tensor.data.size() / sizeof(float));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    if (tensor.name == "golden.expected") {
      golden.expected = std::move(values);
    } else {
      const auto dims = std::span(tensor.dims).first(tensor.n_dims);
      golden.tensors.push_back({std::string(tensor.name), {dims.begin(), dims.end()}, values});
    }
  }
  return golden;
}

inline Result<Model> load_file(const io::Gguf& file) {
  const LoadOptions options{.tuning = Tuning{}};
  const auto name = file.get_string("general.architecture");
  constexpr std::string_view kRare[] = {"olmo2",      "gptneox",       "opt",     "bloom",
                                        "gptneo",     "phi2",          "qwen2moe", "granitemoe",
                                        "granitehybrid", "lfm2moe",    "bitnet"};
  if (name && std::find(std::begin(kRare), std::end(kRare), *name) != std::end(kRare)) {
    return test::load_rare(file, options);
  }
  return Model::from_gguf(file, options);
}
inline Result<Model> load_bytes(std::span<const std::byte> bytes) {
  NIBBLE_TRY(file, io::Gguf::parse(bytes, "golden.gguf"));
  return load_file(file);
}

inline Model load_golden(const Golden& golden) {
  auto model = load_bytes(golden.write());
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

// The largest difference, relative to the largest logit, when `batch` tokens are computed at once.
inline double largest_error(const Model& model, const Golden& golden, Index batch) {
  const auto n_tokens = static_cast<Index>(golden.tokens.size());
  auto session = Session::create(model, {.n_ctx = n_tokens,
                                         .max_step_tokens = batch,
                                         .max_outputs = batch,
                                         .kv_type = ops::KvType::f32});
  REQUIRE_MESSAGE(session, test::why(session));
  const Index vocab_size = model.config().vocab_size;
  REQUIRE(golden.expected.size() == static_cast<std::size_t>(n_tokens * vocab_size));
  double off = 0, largest = 0;
  for (Index at = 0; at < n_tokens; at += batch) {
    const Index n = std::min(batch, n_tokens - at);
    const auto logits = session->append(
        std::span(golden.tokens).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(n)),
        n);
    REQUIRE_MESSAGE(logits, test::why(logits));
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < vocab_size; ++j) {
        const double expected =
            golden.expected[static_cast<std::size_t>((at + i) * vocab_size + j)];
        const double difference = std::fabs(static_cast<double>((*logits)(i, j)) - expected);
        off = difference <= off ? off : std::isnan(difference) ? INFINITY : difference;
        largest = std::fmax(largest, std::fabs(expected));
      }
    }
  }
  return off / largest;
}


// Calls f(name, golden) for each golden.
template <class F>
void for_each_file(const F& f) {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(project) /
                                                               "tests" / "model" / "goldens")) {
    const std::string name = entry.path().filename().string();
    CAPTURE(name);
    f(name, read_golden(entry.path()));
  }
}

// Calls f(name, golden, model) for each golden of models that embed texts, or of the others.
// Returns how many there are.
template <class F>
std::size_t for_each_golden(bool embeds, const F& f) {
  std::size_t n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    const Model model = load_golden(golden);
    const graph::Plan plan = model.architecture().plan({});
    if ((plan.rows == graph::Rows::segments) != embeds) return;
    f(name, golden, model);
    ++n;
  });
  return n;
}

inline double distance(VectorView<const float> row, std::span<const float> expected) {
  REQUIRE(row.extent(0) == static_cast<Index>(expected.size()));
  double most = 0;
  for (Index i = 0; i < row.extent(0); ++i) {
    const double difference = std::fabs(static_cast<double>(row(i)) -
                                        static_cast<double>(expected[static_cast<std::size_t>(i)]));
    most = difference <= most ? most : std::isnan(difference) ? INFINITY : difference;
  }
  return most;
}

}  // namespace test::goldens
