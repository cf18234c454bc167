// SPDX-License-Identifier: Apache-2.0
//
// A session's functions. Included by session.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "nibble/core/arena.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/ops/rope_table.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

template <class ModelType>
struct BasicSession<ModelType>::State {
  Status allocate(const SessionOptions& options);
  Status check(std::span<const std::int32_t> ids, Index n_outputs) const;
  Result<MatrixView<const float>> append(std::span<const std::int32_t> ids, Index n_outputs);

  const ModelType* model = nullptr;
  graph::Limits limits;
  graph::Plan plan;
  AlignedBuffer memory;
  graph::RunArgs args;
  InlineExecutor own_executor;
  std::int32_t* tokens = nullptr;  // (n_positions), in memory
  Index position = 0;
};

template <class ModelType>
BasicSession<ModelType>::BasicSession(Owned<State> state) noexcept : state_(std::move(state)) {}

template <class ModelType>
const ModelType& BasicSession<ModelType>::model() const noexcept {
  return *state_->model;
}

template <class ModelType>
std::span<const std::int32_t> BasicSession<ModelType>::tokens() const noexcept {
  return {state_->tokens, static_cast<std::size_t>(state_->position)};
}

template <class ModelType>
Index BasicSession<ModelType>::position() const noexcept {
  return state_->position;
}

template <class ModelType>
Index BasicSession<ModelType>::capacity() const noexcept {
  return state_->limits.n_positions;
}

template <class ModelType>
Index BasicSession<ModelType>::max_outputs() const noexcept {
  return state_->limits.max_outputs;
}

template <class ModelType>
std::size_t BasicSession<ModelType>::bytes() const noexcept {
  return state_->memory.size();
}

template <class ModelType>
Status BasicSession<ModelType>::rewind(Index position) {
  if (position < 0 || position > state_->position) {
    return Error{Errc::invalid_argument, "session: cannot go back to position " +
                                             std::to_string(position) + " of " +
                                             std::to_string(state_->position)};
  }
  state_->position = position;
  return ok();
}

template <class ModelType>
Result<MatrixView<const float>> BasicSession<ModelType>::append(
    std::span<const std::int32_t> tokens, Index n_outputs) {
  return state_->append(tokens, n_outputs);
}

template <class ModelType>
Result<BasicSession<ModelType>> BasicSession<ModelType>::create(const ModelType& model,
                                                                const SessionOptions& options) {
  NIBBLE_CHECK(simd::ensure_target());
  const ModelConfig& config = model.config();
  Owned<State> state(new (std::nothrow) State);
  if (!state) return Error{Errc::out_of_memory, "session"};
  State& session = *state;
  session.model = &model;
  graph::Limits& limits = session.limits;
  limits.n_positions = options.n_ctx > 0 ? options.n_ctx : std::min(config.n_ctx, kDefaultContext);
  limits.max_tokens = std::min(options.max_step_tokens, limits.n_positions);
  limits.max_outputs = options.max_outputs;
  if (options.n_ctx < 0 || options.n_ctx > (Index{1} << 30) || options.max_step_tokens < 1 ||
      options.max_outputs < 1) {
    return Error{Errc::invalid_argument,
                 "session: n_ctx " + std::to_string(options.n_ctx) + ", max_step_tokens " +
                     std::to_string(options.max_step_tokens) + ", max_outputs " +
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
    return Error{Errc::invalid_argument, "session: max_step_tokens " +
                                             std::to_string(options.max_step_tokens) +
                                             " is too large for this model"};
  }
  session.args.executor = options.executor != nullptr ? options.executor : &session.own_executor;
  limits.max_workers = session.args.executor->n_workers();
  session.plan = model.visit([&](const auto& expression) {
    return graph::make_plan<typename ModelType::FormatTypes>(expression, limits);
  });
  if (!session.plan.is_valid()) {  // where pointers have 32 bits
    return Error{Errc::limit, "session: max_step_tokens " +
                                  std::to_string(options.max_step_tokens) +
                                  " is too large for the address space"};
  }
  NIBBLE_CHECK(session.allocate(options));
  return BasicSession(std::move(state));
}

template <class ModelType>
Status BasicSession<ModelType>::State::allocate(const SessionOptions& options) {
  const ModelConfig& config = model->config();
  ops::KvCacheLayout layout;
  layout.type = options.kv_type;
  layout.n_layers = config.n_layers;
  layout.n_kv_heads = config.n_kv_heads;
  layout.head_dim = config.head_dim;
  layout.capacity = limits.n_positions;
  if (!layout.is_valid()) return Error{Errc::invalid_argument, "session: the cache is too large"};
  const Index n_pairs = config.rope_dim / 2;
  const auto n_positions = static_cast<std::size_t>(limits.n_positions);
  const auto table = static_cast<std::size_t>(limits.n_positions * n_pairs);
  if (static_cast<Index>(layout.bytes()) > kMaxBytes / 2 ||
      limits.n_positions * (8 * n_pairs + 4) > kMaxBytes / 4) {  // no sum below overflows
    return Error{Errc::limit, "session: the cache is too large for the address space"};
  }
  auto allocated = AlignedBuffer::allocate(
      align_up(plan.bytes) + align_up(layout.bytes()) + 2 * align_up(table * sizeof(float)) +
      align_up(n_positions * sizeof(std::int32_t)) +
      align_up(static_cast<std::size_t>(n_pairs) * sizeof(double)));
  if (!allocated) return std::move(allocated).error().in("session: working memory and cache");
  memory = *std::move(allocated);
  Arena arena(memory.bytes());
  args.arena = {arena.take<std::byte>(plan.bytes), plan.bytes};
  NIBBLE_TRY(cache,
             ops::KvCache::create({arena.take<std::byte>(layout.bytes()), layout.bytes()}, layout));
  args.cache = cache;
  args.weights = model->weights();
  tokens = arena.take<std::int32_t>(n_positions);
  if (n_pairs == 0) return ok();

  const MatrixView<float> cos(arena.take<float>(table), limits.n_positions, n_pairs);
  const MatrixView<float> sin(arena.take<float>(table), limits.n_positions, n_pairs);
  const auto n_frequencies = static_cast<std::size_t>(n_pairs);
  const std::span<double> frequencies(arena.take<double>(n_frequencies), n_frequencies);
  ops::rope_frequencies(frequencies, static_cast<double>(config.rope_theta), model->rope_factors(),
                        static_cast<double>(config.rope_scale));
  for (Index p = 0; p < limits.n_positions; ++p) {
    ops::rope_table(frequencies, {&p, 1}, cos.rows(p, 1), sin.rows(p, 1));
  }
  args.rope_cos = cos;
  args.rope_sin = sin;
  return ok();
}

template <class ModelType>
Status BasicSession<ModelType>::State::check(std::span<const std::int32_t> ids,
                                             Index n_outputs) const {
  const auto n = static_cast<Index>(ids.size());
  if (n < 1 || n_outputs < 1 || n_outputs > std::min(n, limits.max_outputs)) {
    return Error{Errc::invalid_argument, "session: " + std::to_string(n_outputs) + " outputs of " +
                                             std::to_string(n) + " tokens; at most " +
                                             std::to_string(limits.max_outputs) + " at once"};
  }
  if (n > limits.n_positions - position) {
    return Error{Errc::limit, "session: " + std::to_string(n) + " tokens at position " +
                                  std::to_string(position) + " do not fit in a context of " +
                                  std::to_string(limits.n_positions)};
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model->config().vocab_size) {
      return Error{Errc::invalid_argument,
                   "session: token " + std::to_string(i) + " is " + std::to_string(ids[i]) +
                       ", not in [0, " + std::to_string(Index{model->config().vocab_size}) + ")"};
    }
  }
  return ok();
}

template <class ModelType>
Result<MatrixView<const float>> BasicSession<ModelType>::State::append(
    std::span<const std::int32_t> ids, Index n_outputs) {
  NIBBLE_CHECK(check(ids, n_outputs));
  std::memmove(tokens + position, ids.data(), ids.size_bytes());  // may be tokens() itself
  ids = {tokens + position, ids.size()};
  // The last step must hold all outputs; the steps before it compute one that nobody reads.
  const auto max_tokens = static_cast<std::size_t>(limits.max_tokens);
  MatrixView<const float> logits;
  while (!ids.empty()) {
    std::size_t n = std::min(ids.size(), max_tokens);
    const std::size_t rest = ids.size() - n;
    if (rest > 0 && rest < static_cast<std::size_t>(n_outputs)) {
      n = ids.size() - static_cast<std::size_t>(n_outputs);
    }
    args.tokens = ids.first(n);
    args.first_position = position;
    args.n_outputs = n == ids.size() ? n_outputs : 1;
    logits = model->visit([&](const auto& expression) {
      return MatrixView<const float>(
          graph::run<typename ModelType::FormatTypes>(expression, plan, limits, args));
    });
    position += static_cast<Index>(n);
    ids = ids.subspan(n);
  }
  return logits;
}

}}  // namespace nibble::NIBBLE_ABI
