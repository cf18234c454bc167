// SPDX-License-Identifier: Apache-2.0
//
// A scheduler: many requests at once on one model. Prompts and generation share the steps of one
// engine, so weights are read once for all of them; requests come and go between steps, and each
// gets, bit for bit, what it would get alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/core/callback.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/completion.hpp"
#include "nibble/generate/depth.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct SchedulerOptions {
  Index n_ctx = 0;      // positions of a sequence, see EngineOptions
  Index max_batch = 8;  // requests that run together
  // Tokens of all requests in one step, at least max_batch: the more, the faster are prompts, and
  // the longer do those wait that generate meanwhile.
  Index max_step_tokens = 64;
  // Positions of the cache for all requests together; 0: n_ctx for each of max_batch, and pages of
  // prefix_cache_bytes beside them. With fewer, a request waits until the pages that it may need at
  // most (prompt and max_tokens) are free.
  Index cache_positions = 0;
  Index max_queue = 1000;  // requests that wait; more are refused
  // When nothing runs, how long the first request waits for others to begin with it.
  Index max_wait_ms = 0;
  // Most bytes of a cache of prefixes (prefix_cache.hpp): what several prompts begin with is
  // computed once. It takes pages that no request needs, so it costs nobody else a place. With
  // cache_positions of the caller these may be none, when max_batch requests may need all. 0: there
  // is none.
  std::size_t prefix_cache_bytes = 0;
  // Guesses of next tokens that requests may have computed with a token (Speculation::max_drafts),
  // at most kMaxDrafts; each takes memory for max_batch more rows of logits.
  Index max_drafts = 0;
  ops::KvType kv_type = ops::KvType::f16;
  Index max_factor_rank = 0;     // of adapters of requests, see EngineOptions
  Executor* executor = nullptr;  // must outlive the scheduler; null: the thread that steps
};

struct GenerateRequest {
  std::string prompt = {};                // a text
  std::vector<std::int32_t> tokens = {};  // or tokens in its place
  // Time limit and `cancel` also hold while the request waits; `cancel` and `progress` must live
  // until it has ended, and so must `speculation.source`. (Without a source, guesses are what
  // followed the same few tokens before, in the texts of all requests.)
  GenerateOptions options = {};
  // Computes the prompt and the answer; the request shares it until it has ended. Requests with
  // different adapters run in the same steps (see SchedulerOptions::max_factor_rank). Learned rows
  // before the prompt are computed in one step.
  SequenceAdapter adapter = {};
  int priority = 0;  // of those that wait, the highest comes first, then the oldest
  // Called with each token by the thread that steps, in place of Completion::poll(). False cancels.
  // The last token is always delivered, see there. It may submit and cancel, but not step; it must
  // not throw.
  Callback<bool(const Token&)> on_token = {};
  // Called with each token before anybody else gets it, whoever takes them: for what only looks on,
  // such as metrics. By the thread that steps, or that destroys the scheduler, which cancels what
  // has not ended; so every request that was taken shows it one last token. It must not throw.
  Callback<void(const Token&)> observer = {};
  // The answer too goes into the prefix cache, for the next turn of a chat: a prompt that goes on
  // with some of this answer has, bit for bit, what a session would have. (That differs in rounding
  // from reading the answer as a part of a prompt.)
  bool keeps_answer = false;
};

// At some moment; and since the scheduler was made.
struct SchedulerStats {
  Index n_waiting = 0, n_running = 0;   // requests
  Index n_free_pages = 0, n_pages = 0;  // of the cache, not promised to a request; of all
  std::int64_t n_steps = 0;
  std::int64_t n_prompt_tokens = 0, n_generated_tokens = 0;  // that were computed, or chosen
  // Requests that found the beginning of their prompt in the prefix cache; tokens of it.
  std::int64_t n_cache_hits = 0, n_cached_tokens = 0;
  std::int64_t n_drafted = 0, n_accepted = 0;  // guesses that were computed; that were right
  std::int64_t n_ended = 0, n_refused = 0;     // requests
};

// submit(), stats(), stop(), set_depth() and set_max_wait_ms() may be called from any thread at any
// time; the other functions that are not const, and save_prefixes(), by one thread at a time, for
// example step() by that of a SchedulerThread.
//
// A step gives one row to each request that generates, and shares the rest of max_step_tokens among
// prompts in equal parts, so that none stalls for a long one. Requests begin in the order of
// priority and time, and only when all pages that they may need are free: none is ever broken off
// for lack of memory, and one that waits for a large part of the cache is not overtaken. What the
// grammar of a request leaves no choice about takes no step for each token: as many of them as are
// its part of max_step_tokens are computed together, as a Generator does.
//
// A step without prompts computes guesses of the next tokens too (Speculation), for requests that
// ask for it, as far as that makes the tokens of all requests cheaper: with many of them, when
// arithmetic is what takes time, seldom. Models with recurrent state get none.
//
// With a prefix cache, a request begins with the longest beginning of its prompt that is there, and
// needs no pages for that. If another request is computing more of it just then, it waits for that.
// What is computed of a prompt goes into the cache when the prompt ends, and its pages stay there
// until a request needs them. Each still gets, bit for bit, what it would get alone (but see
// keeps_answer).
//
// After create() only submit() allocates; but for steps in which a prompt ends that the prefix
// cache does not have yet, or a text that a grammar makes certain begins, and the first with an
// adapter that has learned rows.
class Scheduler {
 public:
  // Errors: those of Engine::create(), unsupported (a model that gives embeddings),
  // invalid_argument (an option outside its range).
  static Result<Scheduler> create(const Model& model, const SchedulerOptions& options = {});

  // What bytes() will be, without allocating that. Errors: as create().
  static Result<std::size_t> bytes_needed(const Model& model, const SchedulerOptions& options = {});

  // Takes a request; it waits until step() lets it begin. Errors: invalid_argument (options as for
  // Generator::create(), more guesses than max_drafts, no prompt or two, a token that does not
  // exist, an adapter of another model); limit (the queue is full, a prompt longer than n_ctx, more
  // pages than there are, an adapter of a higher rank than max_factor_rank, or with more learned
  // rows than max_step_tokens - max_batch); unsupported (when_full = roll); cancelled (after
  // stop()); those of Tokenizer::encode; out_of_memory.
  Result<Completion> submit(GenerateRequest request);

  // As warm_up() of an engine (generate/warm_up.hpp), to be called before the first step. Errors: as
  // there.
  Result<void> warm_up();

  // Lets requests begin, ends those that are cancelled or out of time, and computes one step of all
  // that run. Whether requests are left. May sleep up to max_wait_ms.
  bool step();
  // Sleeps until there are requests: true; or until stop(): false.
  bool wait_for_work() noexcept;
  // No more requests are taken, and wait_for_work() ends. Those that were taken can be stepped to
  // their end.
  void stop() noexcept;

  // Less work for each token, for a host that is hot or busy: all requests have fewer layers from
  // the next step on (Engine::set_depth(), whose errors it has; or out_of_memory). What is computed
  // so does not go into the prefix cache.
  Result<void> set_depth(const Depth& depth);
  // Changes max_wait_ms of the options. Error: invalid_argument.
  Result<void> set_max_wait_ms(Index max_wait_ms);

  // Writes the prefix cache to a file, and fills it from one, while it is empty: for example before
  // the first step. Errors: those of PrefixCache::save() and restore(); invalid_argument (there is
  // no prefix cache).
  Result<void> save_prefixes(const std::string& path) const;
  Result<void> restore_prefixes(const std::string& path);

  SchedulerStats stats() const noexcept;
  const Model& model() const noexcept;
  // As in the options, or as it was chosen.
  Index n_ctx() const noexcept;
  // Of the engine and the sequences. (Tokens and states in a prefix cache come on top.)
  std::size_t bytes() const noexcept;

 private:
  struct State;
  explicit Scheduler(Owned<State> state) noexcept;

  Owned<State> state_;  // requests that have not ended are cancelled with it
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/scheduler-inl.hpp"
#endif
