// SPDX-License-Identifier: Apache-2.0
//
// Orders documents by how well they answer a query: by the cosine of embeddings, or by how likely a
// generating model finds the query after the document.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/score.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Ranked {
  std::size_t index = 0;  // of the document
  double score = 0;
};

namespace detail {

// The best first; of equal ones the first.
inline void sort_ranked(std::vector<Ranked>& ranked) {
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return a.score != b.score ? a.score > b.score : a.index < b.index;
  });
}

}  // namespace detail

// By the cosine of the embeddings of query and document, in [-1, 1]; the best first. Tokens, as the
// model's tokenizer makes them: what a model wants before each text ("query: ", "search_document:
// ") is a part of it. Documents are computed together, as the embedder's options allow; they are of
// any length if it splits long texts. Errors: those of Embedder::embed.
inline Result<std::vector<Ranked>> rerank(Embedder& embedder, Embedder::Tokens query,
                                          std::span<const Embedder::Tokens> documents) {
  return catch_out_of_memory([&]() -> Result<std::vector<Ranked>> {
    std::vector<Embedder::Tokens> texts = {query};
    texts.insert(texts.end(), documents.begin(), documents.end());
    const auto width = static_cast<std::size_t>(embedder.width());
    std::vector<Scalar<float>> rows(texts.size() * width);
    NIBBLE_CHECK(embedder.embed(
        texts,
        MatrixView<float>(values(rows), static_cast<Index>(texts.size()), embedder.width())));
    const auto product = [&](std::size_t a, std::size_t b) {
      double sum = 0;
      for (std::size_t j = 0; j < width; ++j) {
        sum += static_cast<double>(rows[a * width + j].value) *
               static_cast<double>(rows[b * width + j].value);
      }
      return sum;
    };
    std::vector<Ranked> ranked;
    for (std::size_t i = 1; i < texts.size(); ++i) {
      const double lengths = libm::sqrt(product(0, 0)) * libm::sqrt(product(i, i));
      ranked.push_back({i - 1, lengths > 0 ? product(0, i) / lengths : 0});
    }
    detail::sort_ranked(ranked);
    return ranked;
  });
}

// By the mean log-probability, in nats, of the tokens of `query` after each of the prompts (query
// likelihood: Ponte and Croft 1998). A prompt has a document and what leads to a query. The best
// first. Errors: those of score().
NIBBLE_LAZY Result<std::vector<Ranked>> rerank(
    Engine& engine, std::span<const std::span<const std::int32_t>> prompts,
    std::span<const std::int32_t> query) {
  return catch_out_of_memory([&]() -> Result<std::vector<Ranked>> {
    std::vector<ScoreInput> inputs;
    for (const auto& prompt : prompts) inputs.push_back({prompt, query});
    NIBBLE_TRY(scores, score(engine, inputs));
    std::vector<Ranked> ranked;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      ranked.push_back({i, scores[i].logprob / static_cast<double>(query.size())});
    }
    detail::sort_ranked(ranked);
    return ranked;
  });
}

}}  // namespace nibble::NIBBLE_ABI
