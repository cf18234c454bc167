// SPDX-License-Identifier: Apache-2.0
//
// Embeddings of texts, for search and comparison: of models that give one row of numbers for a text
// (BERT, Nomic, Gemma Embedding, ...). How the rows of its tokens become one is stated by the
// model's file.
//
//   auto embedder = nibble::Embedder::create(*model);
//   auto query = embedder->embed("how do I descale the machine?");  // query->extent(0) numbers
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct EmbedderOptions {
  // Tokens of one text; 0: as many as the model was trained for, at most kDefaultContext.
  Index n_ctx = 0;
  // How many texts one step computes together, and how many tokens of theirs; 0: n_ctx.
  Index max_texts = 8;
  Index max_step_tokens = 0;
  bool normalize = true;  // to length 1, so that a dot product is the cosine
  // A text of more than n_ctx tokens: cut into pieces of nearly equal length, each with the begin
  // and the end token of the text, if it has them. The embedding is the mean of those of the
  // pieces, weighted by their tokens, and then normalized. (For a model that takes the mean of the
  // rows of all tokens, it is that mean; only that no token saw those of other pieces.) false: such
  // a text is an error.
  bool splits_long_texts = false;
  ops::KvType kv_type = ops::KvType::f32;
  Executor* executor = nullptr;  // must outlive the embedder; null: the calling thread
};

// Holds all memory that it needs; not thread-safe. Embedders of one model may run on different
// threads, each with its own executor.
class Embedder {
 public:
  using Tokens = std::span<const std::int32_t>;

  // Errors: unsupported (a model that gives logits), and those of Engine::create().
  static Result<Embedder> create(const Model& model, const EmbedderOptions& options = {});
  // What bytes() will be, without allocating that. Errors: as create().
  static Result<std::size_t> bytes_needed(const Model& model, const EmbedderOptions& options = {});

  const Model& model() const noexcept;
  Index width() const noexcept;  // numbers of an embedding
  Index n_ctx() const noexcept;  // tokens that a text, or a piece of it, may have
  // Bytes that the embedder holds: working memory, cache, rotation tables, tokens.
  std::size_t bytes() const noexcept;

  // The embedding of a text, valid until the next call. Errors: invalid_argument (no tokens, or ids
  // that are none), limit (a longer text than n_ctx tokens, unless the options split it), malformed
  // (what the model gives are no numbers), and for texts those of the tokenizer.
  Result<VectorView<const float>> embed(std::string_view text);
  Result<VectorView<const float>> embed(Tokens tokens);
  // out (texts, width) = the embeddings of many texts. The result for a text is, bit for bit, what
  // it would be alone. Errors: the same; some rows of `out` may then be written.
  Result<void> embed(std::span<const Tokens> texts, MatrixView<float> out);

 private:
  struct State;
  explicit Embedder(Owned<State> state) noexcept;

  Owned<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/embedder-inl.hpp"
#endif
