// SPDX-License-Identifier: Apache-2.0
//
// A session: one sequence of tokens run through a model. Holds everything that changes (cache,
// working memory), allocated once when it is created; a token then allocates nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "nibble/core/executor.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/rope_table.hpp"

namespace nibble::inline NIBBLE_ABI {

struct SessionOptions {
  // Positions of the cache; 0: as many as the model was trained for, at most kDefaultContext. May
  // be more than that (quality is then the model's affair) unless positions are learned.
  Index n_ctx = 0;
  Index max_batch = 64;   // tokens that one step of a prompt computes together
  Index max_outputs = 1;  // rows of logits that one call may ask for, at most max_batch
  ops::KvType kv_type = ops::KvType::f16;
  Executor* executor = nullptr;  // must outlive the session; null: the calling thread
};

inline constexpr Index kDefaultContext = 4096;

// Not thread-safe; sessions of one model may run on different threads, each with its own executor.
template <class ModelType>
class BasicSession {
 public:
  // The model must outlive the session and stay where it is. Errors: invalid_argument,
  // out_of_memory.
  static Result<BasicSession> create(const ModelType& model, const SessionOptions& options = {});
  static Result<BasicSession> create(const ModelType&&, const SessionOptions& = {}) = delete;

  // Appends `tokens` to the sequence and returns the logits of the last `n_outputs` of them:
  // (n_outputs, vocab_size), valid until the next call. Errors change nothing: invalid_argument (no
  // tokens, an id out of range, more outputs than tokens or than max_outputs), limit (the cache is
  // full).
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens, Index n_outputs = 1);

  const ModelType& model() const noexcept { return *model_; }
  // The sequence; valid until the next call that changes it.
  std::span<const std::int32_t> tokens() const noexcept {
    return {tokens_, static_cast<std::size_t>(position_)};
  }
  // How many tokens it has, and may have.
  Index position() const noexcept { return position_; }
  Index capacity() const noexcept { return limits_.n_positions; }
  // The most rows of logits that one call may ask for.
  Index max_outputs() const noexcept { return limits_.max_outputs; }

  // Forgets all tokens from `position` on. Error: invalid_argument if there are not that many.
  Status rewind(Index position) {
    if (position < 0 || position > position_) {
      return Error{Errc::invalid_argument, "session: cannot go back to position " +
                                               std::to_string(position) + " of " +
                                               std::to_string(position_)};
    }
    position_ = position;
    return ok();
  }

  // Bytes that the session holds: working memory, cache, rotation tables, tokens.
  std::size_t bytes() const noexcept { return memory_.size(); }

 private:
  BasicSession() = default;
  Status allocate(const SessionOptions& options);
  Status check(std::span<const std::int32_t> tokens, Index n_outputs) const;

  const ModelType* model_ = nullptr;
  graph::Limits limits_;
  graph::Plan plan_;
  AlignedBuffer memory_;
  graph::RunArgs args_;
  std::unique_ptr<InlineExecutor> own_executor_;
  std::int32_t* tokens_ = nullptr;  // (n_positions), in memory_
  Index position_ = 0;
};

using Session = BasicSession<Model>;

// ---- Implementation ----------------------------------------------------------------------------

template <class ModelType>
Result<BasicSession<ModelType>> BasicSession<ModelType>::create(const ModelType& model,
                                                                const SessionOptions& options) {
  NIBBLE_CHECK(simd::ensure_target());
  const ModelConfig& config = model.config();
  BasicSession session;
  session.model_ = &model;
  graph::Limits& limits = session.limits_;
  limits.n_positions = options.n_ctx > 0 ? options.n_ctx : std::min(config.n_ctx, kDefaultContext);
  limits.max_tokens = std::min(options.max_batch, limits.n_positions);
  limits.max_outputs = options.max_outputs;
  if (options.n_ctx < 0 || options.n_ctx > (Index{1} << 30) || options.max_batch < 1 ||
      options.max_outputs < 1) {
    return Error{Errc::invalid_argument, "session: n_ctx " + std::to_string(options.n_ctx) +
                                             ", max_batch " + std::to_string(options.max_batch) +
                                             ", max_outputs " +
                                             std::to_string(options.max_outputs) + " out of range"};
  }
  limits.max_outputs = std::min(limits.max_outputs, limits.max_tokens);
  if (config.architecture == Architecture::gpt2 && limits.n_positions > config.n_ctx) {
    return Error{Errc::invalid_argument, "session: " + std::to_string(limits.n_positions) +
                                             " positions, but the model has learned only " +
                                             std::to_string(config.n_ctx)};
  }
  // So that no size below overflows: the rows of the widest result.
  const Index q = Index{config.n_heads} * config.head_dim;
  const Index widest =
      std::max({3 * q, Index{config.ffn_dim}, Index{config.dim}, Index{config.vocab_size}});
  if (limits.max_tokens > (Index{1} << 50) / widest) {
    return Error{Errc::invalid_argument, "session: max_batch " + std::to_string(options.max_batch) +
                                             " is too large for this model"};
  }
  if (options.executor == nullptr) session.own_executor_ = std::make_unique<InlineExecutor>();
  session.args_.executor =
      options.executor != nullptr ? options.executor : session.own_executor_.get();
  limits.max_workers = session.args_.executor->n_workers();
  session.plan_ = model.visit([&](const auto& expression) {
    return graph::make_plan<typename ModelType::FormatTypes>(expression, limits);
  });
  NIBBLE_ASSERT(session.plan_.is_valid());
  NIBBLE_CHECK(session.allocate(options));
  return session;
}

template <class ModelType>
Status BasicSession<ModelType>::allocate(const SessionOptions& options) {
  const ModelConfig& config = model_->config();
  ops::KvCacheLayout layout;
  layout.type = options.kv_type;
  layout.n_layers = config.n_layers;
  layout.n_kv_heads = config.n_kv_heads;
  layout.head_dim = config.head_dim;
  layout.capacity = limits_.n_positions;
  if (!layout.is_valid()) return Error{Errc::invalid_argument, "session: the cache is too large"};
  const Index n_pairs = config.rope_dim / 2;
  const auto n_positions = static_cast<std::size_t>(limits_.n_positions);
  const auto table = static_cast<std::size_t>(limits_.n_positions * n_pairs);
  auto memory = AlignedBuffer::allocate(
      align_up(plan_.bytes) + align_up(layout.bytes()) + 2 * align_up(table * sizeof(float)) +
      align_up(n_positions * sizeof(std::int32_t)) +
      align_up(static_cast<std::size_t>(n_pairs) * sizeof(double)));
  if (!memory) return std::move(memory).error().in("session: working memory and cache");
  memory_ = *std::move(memory);
  Arena arena(memory_.bytes());
  args_.arena = {arena.take<std::byte>(plan_.bytes), plan_.bytes};
  NIBBLE_TRY(cache,
             ops::KvCache::create({arena.take<std::byte>(layout.bytes()), layout.bytes()}, layout));
  args_.cache = cache;
  args_.weights = model_->weights();
  tokens_ = arena.take<std::int32_t>(n_positions);
  if (n_pairs == 0) return ok();

  const MatrixView<float> cos(arena.take<float>(table), limits_.n_positions, n_pairs);
  const MatrixView<float> sin(arena.take<float>(table), limits_.n_positions, n_pairs);
  const auto n_frequencies = static_cast<std::size_t>(n_pairs);
  const std::span<double> frequencies(arena.take<double>(n_frequencies), n_frequencies);
  ops::rope_frequencies(frequencies, static_cast<double>(config.rope_theta), model_->rope_factors(),
                        static_cast<double>(config.rope_scale));
  for (Index position = 0; position < limits_.n_positions; ++position) {
    ops::rope_table(frequencies, {&position, 1}, cos.rows(position, 1), sin.rows(position, 1));
  }
  args_.rope_cos = cos;
  args_.rope_sin = sin;
  return ok();
}

template <class ModelType>
Status BasicSession<ModelType>::check(std::span<const std::int32_t> tokens, Index n_outputs) const {
  const auto n = static_cast<Index>(tokens.size());
  if (n < 1 || n_outputs < 1 || n_outputs > std::min(n, limits_.max_outputs)) {
    return Error{Errc::invalid_argument, "session: " + std::to_string(n_outputs) + " outputs of " +
                                             std::to_string(n) + " tokens; at most " +
                                             std::to_string(limits_.max_outputs) + " at once"};
  }
  if (n > limits_.n_positions - position_) {
    return Error{Errc::limit, "session: " + std::to_string(n) + " tokens at position " +
                                  std::to_string(position_) + " do not fit in a context of " +
                                  std::to_string(limits_.n_positions)};
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= model_->config().vocab_size) {
      return Error{Errc::invalid_argument,
                   "session: token " + std::to_string(i) + " is " + std::to_string(tokens[i]) +
                       ", not in [0, " + std::to_string(Index{model_->config().vocab_size}) + ")"};
    }
  }
  return ok();
}

template <class ModelType>
Result<MatrixView<const float>> BasicSession<ModelType>::append(
    std::span<const std::int32_t> tokens, Index n_outputs) {
  NIBBLE_CHECK(check(tokens, n_outputs));
  std::memmove(tokens_ + position_, tokens.data(), tokens.size_bytes());  // may be tokens() itself
  tokens = {tokens_ + position_, tokens.size()};
  // The last step must hold all outputs; the steps before it compute one that nobody reads.
  const auto max_tokens = static_cast<std::size_t>(limits_.max_tokens);
  MatrixView<const float> logits;
  while (!tokens.empty()) {
    std::size_t n = std::min(tokens.size(), max_tokens);
    const std::size_t rest = tokens.size() - n;
    if (rest > 0 && rest < static_cast<std::size_t>(n_outputs)) {
      n = tokens.size() - static_cast<std::size_t>(n_outputs);
    }
    args_.tokens = tokens.first(n);
    args_.first_position = position_;
    args_.n_outputs = n == tokens.size() ? n_outputs : 1;
    logits = model_->visit([&](const auto& expression) {
      return MatrixView<const float>(
          graph::run<typename ModelType::FormatTypes>(expression, plan_, limits_, args_));
    });
    position_ += static_cast<Index>(n);
    tokens = tokens.subspan(n);
  }
  return logits;
}

}  // namespace nibble::inline NIBBLE_ABI
