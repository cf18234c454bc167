// SPDX-License-Identifier: Apache-2.0
//
// What a scheduler has: its queue, its lanes, an engine and a cache of prefixes. Included by
// scheduler-inl.hpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "nibble/generate/completion-inl.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/ngram_drafts.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/generate/sequence-inl.hpp"
#include "nibble/generate/speculator.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Scheduler::State {
  using Request = Completion::State;

  // A place for a request that runs. Its sequence serves one request after the other.
  struct Lane {
    explicit Lane(Sequence s) noexcept : sequence(std::move(s)) {}
    bool is_prompt() const noexcept { return n_left_of_prompt() > 0; }
    // Where the prompt ends, with learned rows of the adapter before it.
    Index prompt_end() const noexcept { return request->prompt_end(); }
    Index n_left_of_prompt() const noexcept { return prompt_end() - sequence.position(); }
    // Learned rows that are still to be computed; that takes one step, with the first token.
    Index n_learned_rows() const noexcept { return is_prompt() ? sequence.n_pending() : 0; }
    // Until where the next steps compute the prompt.
    Index n_until_stop() const noexcept {
      const Index at = sequence.position();
      return (stop > at ? stop : prompt_end()) - at;
    }
    // Makes the sequence empty, with the adapter of a request that submit() has checked.
    void restart(const SequenceAdapter& adapter) noexcept {
      sequence.state_->cut(0);
      (void)sequence.set_adapter(adapter);
    }
    void stop_at(Index n) noexcept {
      const Index at = sequence.position();
      if (n > at && (stop <= at || n < stop)) stop = n;
    }

    Sequence sequence;
    Shared<Request> request;   // null: free
    std::uint64_t number = 0;  // of the requests that have begun
    // Which lane it waits for, with which request, and until when: that one is computing the first
    // n_awaited tokens of this prompt too.
    Lane* leader = nullptr;
    std::uint64_t leader_number = 0;
    Index n_awaited = 0;
    // With recurrent state: a place where a step of the prompt ends, so that the cache of prefixes
    // has the state there, from which others go on. Not after where it is: none.
    Index stop = 0;
    Index n_found = 0;  // tokens of the prompt in the cache of prefixes, until they are counted
    std::int32_t certain = text::kNoToken;  // the next token, if the grammar has decided on it
    bool goes_on = false;  // has not computed all tokens in a row that were certain
    std::optional<detail::Speculator> speculator;  // of the request, if it wants guesses
    Index n_rows = 0;                              // of the step, without guesses and learned rows
    std::span<const std::int32_t> guesses;         // that the step computes after them
    Index n_outputs = 0;
    ops::SegmentKind kind = ops::SegmentKind::generation;
    bool ends_prompt = false;
    Index output = -1;     // its first row of the logits; -1: none
    bool is_full = false;  // no token fits any more
    Result<TokenLogprob> sampled = TokenLogprob{};
  };

  State(Engine e, const SchedulerOptions& o) noexcept
      : max_wait_ms(o.max_wait_ms), engine(std::move(e)), options(o) {}
  ~State();

  static constexpr Index kMost = Index{1} << 20;  // of what options count
  static Error out_of_range(const char* name, Index value);
  static Result<void> check_max_wait_ms(Index value);
  static Result<EngineOptions> engine_options(const SchedulerOptions& options);
  Result<void> check_options(const GenerateOptions& wanted) const;
  // Of itself and its tables.
  static std::size_t table_bytes(const SchedulerOptions& options) noexcept;
  Result<void> check_prefixes() const;

  // On the thread that submits (scheduler_requests-inl.hpp).
  Result<Shared<Request>> make_request(GenerateRequest from) const;
  Result<std::vector<std::int32_t>> prompt_of(GenerateRequest& from) const;
  Index pages_for(Index n_prompt, Index max_tokens) const noexcept;
  Result<void> check_queue();  // with the lock held
  Result<void> enqueue(Shared<Request> request);

  // On the thread that steps: requests begin and end (scheduler_admission-inl.hpp).
  bool has_work() noexcept;
  void wait_for_more() noexcept;
  void change_depth() noexcept;
  void begin_and_end();
  void end_waiting();  // with the lock held
  void begin_waiting() noexcept;
  Shared<Request> first_waiting() noexcept;
  void remove_waiting(const Shared<Request>& request) noexcept;
  bool begin(Lane& lane, Shared<Request> request) noexcept;
  void begin_speculation(Lane& lane) noexcept;
  Index promised_pages() noexcept;
  void find_prefix(Lane& lane) noexcept;
  static Index n_in_common(const Lane& lane, const Lane& other) noexcept;
  bool awaits_prefix(Lane& lane) noexcept;
  // (A prompt of one token is computed as generated tokens are: it is no beginning of others.)
  bool is_kept(const Request& request) const noexcept {
    return prefixes && request.prompt_end() > 1;
  }
  void keep_prefix(Lane& lane) noexcept;
  void end(Lane& lane) noexcept;

  // And a step of those that run (scheduler_steps-inl.hpp).
  bool plan();
  void follow_prompt(Lane& lane);
  Lane* next_with_learned_rows() noexcept;
  Index share_learned_rows(Index n_left) noexcept;
  void share(Index n_left, Index n_prompts) noexcept;
  void plan_prompt(Lane& lane);
  void plan_generation(Lane& lane, Index max_rows);
  bool find_certain(Lane& lane);
  void plan_guesses();
  void guess(Lane& lane, Index most, detail::StepLoad& load);
  SequenceInput input_of(Lane& lane) noexcept;
  void make_room() noexcept;
  void run();
  void run_alone(Lane& lane, SequenceInput input);
  void measure(std::int64_t nanoseconds) noexcept;
  void finish_rows(std::span<Lane* const> of_step, MatrixView<const float> logits);
  void sample(std::span<Lane* const> of_step, MatrixView<const float> logits) noexcept;
  void choose(Lane& lane, MatrixView<const float> logits);
  bool choose_one(Lane& lane);
  bool take(Lane& lane, const TokenLogprob& token);
  void fail(Lane& lane, Error error);
  void deliver(Lane& lane, const Token& token);

  // The queue and what is beside it, for all threads.
  mutable std::atomic<std::uint32_t> mutex{0};
  std::vector<Shared<Request>> queue;  // (at most max_queue), the next one last
  std::int64_t window_start = 0;       // when a request came into the empty queue, in nanoseconds
  std::vector<Index> next_left_out;  // with next_n_layers: the depth of the next step
  Index next_n_layers = 0;
  std::atomic<bool> depth_changes{false};
  std::atomic<Index> max_wait_ms;
  std::atomic<bool> is_stopped{false};
  std::atomic<std::uint32_t> n_submitted{0};
  std::atomic<std::uint32_t> n_sleepers{0};  // threads that sleep until n_submitted changes

  // What stats() reads besides. Only n_refused is changed by other threads than the one that steps.
  std::atomic<Index> n_running{0}, n_promised_pages{0};
  std::atomic<std::int64_t> n_steps{0}, n_prompt_tokens{0}, n_cached_tokens{0}, n_cache_hits{0},
      n_generated_tokens{0}, n_drafted{0}, n_accepted{0}, n_ended{0}, n_refused{0};

  Engine engine;
  std::vector<Index> left_out;  // of the depth that it has
  SchedulerOptions options;
  std::optional<PrefixCache> prefixes;
  std::optional<NgramDrafts> ngrams;   // with max_drafts
  detail::StepTimes step_times;        // of steps without prompts, with max_drafts
  std::vector<Lane> lanes;             // (max_batch)
  std::uint64_t n_begun = 0;           // requests
  std::vector<Lane*> planned;          // of the step, as in `inputs`
  std::vector<SequenceInput> inputs;   // of the step
  std::vector<Shared<Request>> ended;  // in the queue
};

}}  // namespace nibble::NIBBLE_ABI
