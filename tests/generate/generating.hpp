// SPDX-License-Identifier: Apache-2.0
//
// For tests of generation: sessions and generators of the model of the examples, and what they
// give.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "must.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace test {

using Ids = std::vector<std::int32_t>;

inline constexpr const char* kPrompt = "could you please dim the office light to 10 percent\n";
inline constexpr const char* kAnswer = "light.set(room=office, level=10)";

inline nibble::Session make_session(const nibble::SessionOptions& options = {},
                                    const nibble::Model& model = home_model()) {
  return must(nibble::Session::create(model, options));
}

inline nibble::Generator make_generator(nibble::Session& session,
                                        const nibble::GenerateOptions& options = {}) {
  return must(nibble::Generator::create(session, options));
}

struct Outcome {
  std::string text;
  Ids ids;  // without the token that is only text
};

// At most n tokens.
inline Outcome take(nibble::Generator& generator, std::size_t n = 1000) {
  Outcome outcome;
  while (outcome.ids.size() < n) {
    const auto token = must(generator.next());
    if (!token) break;
    CHECK(token->finish == generator.finish());
    outcome.text += token->text;
    if (token->id >= 0) outcome.ids.push_back(token->id);
  }
  return outcome;
}

inline Ids encode(std::string_view text, bool add_bos = true) {
  return must(home_model().tokenizer()->encode(text, {.add_bos = add_bos, .add_eos = false}));
}

inline Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

inline Ids copy(std::span<const std::int32_t> ids) { return Ids(ids.begin(), ids.end()); }

// The model of the examples with another file: `metadata` may set keys, `weights` change the
// numbers of a tensor, all of which are f32.
inline nibble::Model changed_model(
    const std::function<void(nibble::io::GgufWriter&)>& metadata,
    const std::function<void(const std::string&, std::vector<float>&)>& weights = {}) {
  namespace io = nibble::io;
  const auto file = must(io::Gguf::open(home_model_path()));
  io::GgufWriter writer;
  writer.copy_metadata(file);
  if (metadata) metadata(writer);
  std::vector<std::vector<float>> all;
  all.reserve(file.tensors().size());
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (!weights || tensor.type != io::GgmlType::f16) {
      writer.add_tensor(tensor);
      continue;
    }
    const auto* const halves = reinterpret_cast<const nibble::f16*>(tensor.data.data());
    std::vector<float>& numbers = all.emplace_back();
    for (std::size_t i = 0; i < tensor.data.size() / sizeof(*halves); ++i) {
      numbers.push_back(nibble::to_f32(halves[i]));
    }
    weights(std::string(tensor.name), numbers);
    writer.add_tensor(tensor.name, io::GgmlType::f32, std::span(tensor.dims).first(tensor.n_dims),
                      std::as_bytes(std::span<const float>(numbers)));
  }
  const auto bytes = must(writer.to_bytes());
  const auto changed = must(io::Gguf::parse(bytes, "changed.gguf"));
  return must(nibble::Model::from_gguf(changed));
}

}  // namespace test
