// SPDX-License-Identifier: Apache-2.0
//
// A scheduler's functions. Included by scheduler.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/completion-inl.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Scheduler::State {
  using Request = Completion::State;

  // A place for a request that runs. Its sequence serves one request after the other.
  struct Lane {
    explicit Lane(Sequence s) noexcept : sequence(std::move(s)) {}
    bool is_prompt() const noexcept { return n_left_of_prompt() > 0; }
    Index n_left_of_prompt() const noexcept {
      return static_cast<Index>(request->prompt.size()) - sequence.position();
    }

    Sequence sequence;
    Shared<Request> request;  // null: free
    Index n_rows = 0;         // of the step
    Index output = -1;        // its row of the logits; -1: none
    bool is_full = false;     // no token fits any more
    Result<TokenLogprob> sampled = TokenLogprob{};
  };

  State(Engine e, const SchedulerOptions& o) noexcept : engine(std::move(e)), options(o) {}
  ~State();

  static Result<EngineOptions> engine_options(const SchedulerOptions& options);

  // On the thread that submits.
  Result<Shared<Request>> make_request(GenerateRequest from) const;
  Result<std::vector<std::int32_t>> prompt_of(GenerateRequest& from) const;
  Index pages_for(Index n_prompt, Index max_tokens) const noexcept;
  Result<void> check_queue();  // with the lock held
  Result<void> enqueue(Shared<Request> request);

  // On the thread that steps.
  bool has_work() noexcept;
  void wait_for_more() noexcept;
  void begin_and_end();
  void end_waiting();
  void begin_waiting() noexcept;
  bool plan();
  void follow_prompt(Lane& lane);
  void share(Index n_left, Index n_prompts) noexcept;
  SequenceInput input_of(Lane& lane) noexcept;
  void run();
  void finish_rows(std::span<Lane* const> of_step, MatrixView<const float> logits);
  void sample(std::span<Lane* const> of_step, MatrixView<const float> logits) noexcept;
  void choose(Lane& lane);
  void fail(Lane& lane, Error error);
  void deliver(Lane& lane, const Token& token);

  // The queue and what is beside it, for all threads.
  mutable std::atomic<std::uint32_t> mutex{0};
  std::vector<Shared<Request>> queue;  // (at most max_queue), the next one last
  std::int64_t window_start = 0;       // when a request came into the empty queue, in nanoseconds
  std::atomic<bool> is_stopped{false};
  std::atomic<std::uint32_t> n_submitted{0};
  std::atomic<std::uint32_t> n_sleepers{0};  // threads that sleep until n_submitted changes

  // What stats() reads besides. Only n_refused is changed by other threads than the one that steps.
  std::atomic<Index> n_running{0}, n_promised_pages{0};
  std::atomic<std::int64_t> n_steps{0}, n_prompt_tokens{0}, n_generated_tokens{0}, n_ended{0},
      n_refused{0};

  Engine engine;
  SchedulerOptions options;
  std::vector<Lane> lanes;             // (max_batch)
  std::vector<Lane*> planned;          // of the step, as in `inputs`
  std::vector<SequenceInput> inputs;   // of the step
  std::vector<Shared<Request>> ended;  // in the queue
};

NIBBLE_INLINE Scheduler::Scheduler(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<EngineOptions> Scheduler::State::engine_options(
    const SchedulerOptions& options) {
  constexpr Index kMost = Index{1} << 20;
  const auto out_of_range = [](const char* name, Index value) {
    return Error{Errc::invalid_argument,
                 std::string("scheduler: ") + name + " " + to_text(value) + " out of range"};
  };
  if (options.max_batch < 1 || options.max_batch > kMost)
    return out_of_range("max_batch", options.max_batch);
  if (options.max_queue < 1 || options.max_queue > kMost)
    return out_of_range("max_queue", options.max_queue);
  if (options.max_wait_ms < 0 || options.max_wait_ms > kMost)
    return out_of_range("max_wait_ms", options.max_wait_ms);
  if (options.max_step_tokens < options.max_batch) {
    return Error{Errc::invalid_argument,
                 "scheduler: max_step_tokens " + to_text(options.max_step_tokens) +
                     " is less than max_batch " + to_text(options.max_batch)};
  }
  return EngineOptions{.n_ctx = options.n_ctx,
                       .max_sequences = options.max_batch,
                       .cache_positions = options.cache_positions,
                       .max_step_tokens = options.max_step_tokens,
                       .kv_type = options.kv_type,
                       .executor = options.executor,
                       .max_factor_rank = options.max_factor_rank};
}

NIBBLE_INLINE Result<Scheduler> Scheduler::create(const Model& model,
                                                  const SchedulerOptions& options) {
  return catch_out_of_memory([&]() -> Result<Scheduler> {
    NIBBLE_TRY(engine_options, State::engine_options(options));
    NIBBLE_TRY(engine, Engine::create(model, engine_options));
    if (engine.gives_embeddings()) {
      return Error{Errc::unsupported,
                   "scheduler: the model gives embeddings of texts, no next tokens; use Embedder"};
    }
    Owned<State> state(new (std::nothrow) State(std::move(engine), options));
    if (!state) return Error{Errc::out_of_memory, "a scheduler"};
    const auto n = static_cast<std::size_t>(options.max_batch);
    state->lanes.reserve(n);
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_TRY(sequence, state->engine.new_sequence());
      state->lanes.emplace_back(std::move(sequence));
    }
    state->planned.reserve(n);
    state->inputs.reserve(n);
    state->queue.reserve(static_cast<std::size_t>(options.max_queue));
    state->ended.reserve(static_cast<std::size_t>(options.max_queue));
    return Scheduler(std::move(state));
  });
}

NIBBLE_INLINE Scheduler::State::~State() {
  for (const Shared<Request>& request : queue) request->end(Finish::cancelled);
  for (const Lane& lane : lanes) {
    if (lane.request) lane.request->end(Finish::cancelled);
  }
}

NIBBLE_INLINE const Model& Scheduler::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE Index Scheduler::n_ctx() const noexcept { return state_->engine.n_ctx(); }
NIBBLE_INLINE std::size_t Scheduler::bytes() const noexcept {
  std::size_t bytes = sizeof(State) + state_->engine.bytes();
  for (const State::Lane& lane : state_->lanes) bytes += lane.sequence.bytes();
  return bytes;
}

NIBBLE_INLINE SchedulerStats Scheduler::stats() const noexcept {
  const State& s = *state_;
  SchedulerStats stats;
  {
    const WordLock lock(s.mutex);
    stats.n_waiting = static_cast<Index>(s.queue.size());
  }
  stats.n_running = s.n_running.load(std::memory_order_relaxed);
  stats.n_pages = s.engine.n_pages();
  stats.n_free_pages = stats.n_pages - s.n_promised_pages.load(std::memory_order_relaxed);
  stats.n_steps = s.n_steps.load(std::memory_order_relaxed);
  stats.n_prompt_tokens = s.n_prompt_tokens.load(std::memory_order_relaxed);
  stats.n_generated_tokens = s.n_generated_tokens.load(std::memory_order_relaxed);
  stats.n_ended = s.n_ended.load(std::memory_order_relaxed);
  stats.n_refused = s.n_refused.load(std::memory_order_relaxed);
  return stats;
}

NIBBLE_INLINE Result<Completion> Scheduler::submit(GenerateRequest request) {
  return catch_out_of_memory([&]() -> Result<Completion> {
    {
      const WordLock lock(state_->mutex);  // before the work of a prompt that would be refused
      NIBBLE_CHECK(state_->check_queue());
    }
    NIBBLE_TRY(made, state_->make_request(std::move(request)));
    Completion completion(made);
    NIBBLE_CHECK(state_->enqueue(std::move(made)));
    return completion;
  });
}

NIBBLE_INLINE Result<void> Scheduler::State::check_queue() {
  if (is_stopped) return Error{Errc::cancelled, "scheduler: it is stopped"};
  if (static_cast<Index>(queue.size()) < options.max_queue) return ok();
  n_refused.fetch_add(1, std::memory_order_relaxed);
  return Error{Errc::limit, "scheduler: " + to_text(options.max_queue) +
                                " requests wait already (see max_queue); try again later"};
}

NIBBLE_INLINE Result<std::vector<std::int32_t>> Scheduler::State::prompt_of(
    GenerateRequest& from) const {
  const auto bad = [](const std::string& what) {
    return Error{Errc::invalid_argument, "scheduler: " + what};
  };
  if (!from.tokens.empty() && !from.prompt.empty()) return bad("a prompt of text and of tokens");
  if (from.tokens.empty()) {
    NIBBLE_TRY(ids, detail::encode_prompt(engine.model(), from.prompt, from.options, true));
    if (ids.empty()) return bad("the prompt is empty");
    return ids;
  }
  const Index vocab_size = engine.model().config().vocab_size;
  for (const std::int32_t id : from.tokens) {
    if (id >= 0 && id < vocab_size) continue;
    return bad("token " + to_text(id) + " of the prompt is not in [0, " + to_text(vocab_size) +
               ")");
  }
  return std::move(from.tokens);
}

// The last token that is generated is never computed.
NIBBLE_INLINE Index Scheduler::State::pages_for(Index n_prompt, Index max_tokens) const noexcept {
  const Index n_generated = (std::min)(max_tokens, engine.n_ctx() - n_prompt);
  return engine.pages_for((std::max)(n_prompt, n_prompt + n_generated - 1));
}

NIBBLE_INLINE Result<Shared<Completion::State>> Scheduler::State::make_request(
    GenerateRequest from) const {
  const std::int64_t now = monotonic_nanoseconds();
  const Model& model = engine.model();
  NIBBLE_CHECK(detail::Generation::validate(from.options, model));
  NIBBLE_CHECK(engine.check_adapter(from.adapter));
  if (from.adapter.set.n_prefix() > 0) {
    return Error{Errc::unsupported, "scheduler: an adapter with a prefix is for sessions"};
  }
  if (from.options.when_full == WhenFull::roll) {
    return Error{Errc::unsupported, "scheduler: when_full = roll is for sessions"};
  }
  const bool is_text = from.tokens.empty();
  NIBBLE_TRY(prompt, prompt_of(from));
  const auto n_prompt = static_cast<Index>(prompt.size());
  if (n_prompt > engine.n_ctx()) {
    return Error{Errc::limit, "scheduler: a prompt of " + to_text(n_prompt) +
                                  " tokens does not fit in a context of " +
                                  to_text(engine.n_ctx())};
  }
  const Index n_pages = pages_for(n_prompt, from.options.max_tokens);
  if (n_pages > engine.n_pages()) {
    return Error{Errc::limit, "scheduler: prompt and max_tokens may need " + to_text(n_pages) +
                                  " pages of the cache, which has " + to_text(engine.n_pages()) +
                                  " (see cache_positions)"};
  }
  NIBBLE_TRY(generation, detail::Generation::create(from.options, model));
  const bool at_start = is_text && !detail::has_text(*model.tokenizer(), prompt);
  NIBBLE_TRY(text, generation.new_text(from.options, at_start));
  generation.begin(std::move(text), now);

  Shared<Request> made(Owned<Request>(new (std::nothrow) Request(model, std::move(generation))));
  if (!made) return Error{Errc::out_of_memory, "a request"};
  made->prompt = std::move(prompt);
  made->adapter = std::move(from.adapter);
  made->priority = from.priority;
  made->n_pages = n_pages;
  made->on_token = std::move(from.on_token);
  if (!made->on_token) {
    const Index most = (std::min)(from.options.max_tokens, engine.n_ctx() - n_prompt);
    made->entries.resize(static_cast<std::size_t>(most) + 1);
    made->text.emplace(model.tokenizer(), from.options.stop, at_start);
  }
  return made;
}

NIBBLE_INLINE Result<void> Scheduler::State::enqueue(Shared<Request> request) {
  {
    const WordLock lock(mutex);
    NIBBLE_CHECK(check_queue());
    if (queue.empty()) window_start = monotonic_nanoseconds();
    const auto comes_later = [&](const Shared<Request>& other) {
      return other->priority < request->priority;
    };
    const auto at = std::partition_point(queue.begin(), queue.end(), comes_later);
    queue.insert(at, std::move(request));
  }
  n_submitted.fetch_add(1);
  if (n_sleepers.load() > 0) wake_all(n_submitted);
  return ok();
}

NIBBLE_INLINE void Scheduler::stop() noexcept {
  state_->is_stopped.store(true);
  state_->n_submitted.fetch_add(1);
  wake_all(state_->n_submitted);
}

NIBBLE_INLINE bool Scheduler::State::has_work() noexcept {
  if (n_running.load(std::memory_order_relaxed) > 0) return true;
  const WordLock lock(mutex);
  return !queue.empty();
}

NIBBLE_INLINE bool Scheduler::wait_for_work() noexcept {
  State& s = *state_;
  for (;;) {
    const std::uint32_t seen = s.n_submitted.load();
    if (s.is_stopped) return false;
    if (s.has_work()) return true;
    s.n_sleepers.fetch_add(1);
    sleep_while(s.n_submitted, seen);
    s.n_sleepers.fetch_sub(1);
  }
}

NIBBLE_INLINE bool Scheduler::step() {
  State& s = *state_;
  s.wait_for_more();
  s.begin_and_end();
  if (s.plan()) s.run();
  return s.has_work();
}

// Lets a batch gather, if nothing runs that would be held up. (In short sleeps: what wakes a thread
// at a change or after a time is not to be had alike on all systems.)
NIBBLE_INLINE void Scheduler::State::wait_for_more() noexcept {
  constexpr std::int64_t kMostMicroseconds = 200;
  if (options.max_wait_ms == 0 || n_running.load(std::memory_order_relaxed) > 0) return;
  while (!is_stopped) {
    std::int64_t left = 0;
    {
      const WordLock lock(mutex);
      if (queue.empty() || static_cast<Index>(queue.size()) >= options.max_batch) return;
      left = window_start + options.max_wait_ms * 1'000'000 - monotonic_nanoseconds();
    }
    if (left <= 0) return;
    sleep_microseconds((std::min)(left / 1000 + 1, kMostMicroseconds));
  }
}

// Callbacks are called without the lock, since they may submit.
NIBBLE_INLINE void Scheduler::State::begin_and_end() {
  for (Lane& lane : lanes) {
    if (!lane.request) continue;
    const Finish why = lane.request->interrupted();
    if (why != Finish::none) deliver(lane, lane.request->generation.end(why));
  }
  {
    const WordLock lock(mutex);
    end_waiting();
    begin_waiting();
  }
  for (const Shared<Request>& request : ended) {
    request->end(request->ending);
    n_ended.fetch_add(1, std::memory_order_relaxed);
  }
  ended.clear();
}

NIBBLE_INLINE void Scheduler::State::end_waiting() {
  std::size_t n = 0;
  for (Shared<Request>& request : queue) {
    request->ending = request->interrupted();
    if (request->ending != Finish::none) {
      ended.push_back(std::move(request));
    } else {
      std::swap(queue[n++], request);
    }
  }
  queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(n), queue.end());
}

NIBBLE_INLINE void Scheduler::State::begin_waiting() noexcept {
  const auto is_free = [](const Lane& lane) { return !lane.request; };
  while (!queue.empty()) {
    const Index n_pages = n_promised_pages.load(std::memory_order_relaxed) + queue.back()->n_pages;
    const auto lane = std::find_if(lanes.begin(), lanes.end(), is_free);
    if (lane == lanes.end() || n_pages > engine.n_pages()) return;
    lane->request = std::move(queue.back());
    // Cannot fail: submit() has checked it, and the sequence is empty.
    (void)lane->sequence.set_adapter(std::exchange(lane->request->adapter, {}));
    queue.pop_back();
    n_promised_pages.store(n_pages, std::memory_order_relaxed);
    n_running.fetch_add(1, std::memory_order_relaxed);
  }
}

// Chooses the rows of a step; whether there are any.
NIBBLE_INLINE bool Scheduler::State::plan() {
  Index n_left = engine.max_step_tokens(), n_prompts = 0;
  for (Lane& lane : lanes) {
    lane.n_rows = 0;
    if (!lane.request) continue;
    if (lane.is_prompt()) {
      follow_prompt(lane);
      n_prompts += lane.request ? 1 : 0;
    } else {
      lane.n_rows = 1;
      --n_left;
    }
  }
  share(n_left, n_prompts);
  planned.clear();
  inputs.clear();
  for (Lane& lane : lanes) {
    if (!lane.request || lane.n_rows == 0) continue;
    planned.push_back(&lane);
    inputs.push_back(input_of(lane));
  }
  return !planned.empty();
}

// Ends a prompt that its options' `progress` cancels.
NIBBLE_INLINE void Scheduler::State::follow_prompt(Lane& lane) {
  const Progress* const progress = lane.request->generation.options().progress;
  if (progress == nullptr || !*progress) return;
  if ((*progress)(static_cast<std::size_t>(lane.sequence.position()),
                  lane.request->prompt.size())) {
    return;
  }
  deliver(lane, lane.request->generation.end(Finish::cancelled));
}

// Shares rows among the prompts: equal parts; what short ones leave goes to the others.
NIBBLE_INLINE void Scheduler::State::share(Index n_left, Index n_prompts) noexcept {
  while (n_left > 0 && n_prompts > 0) {
    const Index part = (std::max)(n_left / n_prompts, Index{1});
    n_prompts = 0;  // that want more
    for (Lane& lane : lanes) {
      if (!lane.request || !lane.is_prompt()) continue;
      const Index wanted = lane.n_left_of_prompt() - lane.n_rows;
      const Index n = (std::min)({wanted, part, n_left});
      lane.n_rows += n;
      n_left -= n;
      n_prompts += wanted > n ? 1 : 0;
    }
  }
}

NIBBLE_INLINE SequenceInput Scheduler::State::input_of(Lane& lane) noexcept {
  SequenceInput input{.sequence = &lane.sequence};
  const std::span<const std::int32_t> prompt = lane.request->prompt;
  // As in a session: a prompt of one token is computed as generated tokens are.
  if (!lane.is_prompt() || prompt.size() == 1) input.kind = ops::SegmentKind::generation;
  if (!lane.is_prompt()) return input;  // computes the pending token
  input.tokens = prompt.subspan(static_cast<std::size_t>(lane.sequence.position()),
                                static_cast<std::size_t>(lane.n_rows));
  input.n_outputs = lane.n_rows == lane.n_left_of_prompt() ? 1 : 0;
  return input;
}

NIBBLE_INLINE void Scheduler::State::run() {
  n_steps.fetch_add(1, std::memory_order_relaxed);
  for (const SequenceInput& input : inputs) {
    n_prompt_tokens.fetch_add(input.n_rows(), std::memory_order_relaxed);
  }
  const auto logits = engine.run(inputs);
  if (logits) return finish_rows(planned, *logits);
  // One of them has made the step fail: alone, it fails again, and the others do not.
  for (std::size_t i = 0; i < planned.size(); ++i) {
    auto alone = engine.run({&inputs[i], 1});
    if (alone) {
      finish_rows({&planned[i], 1}, *alone);
    } else {
      fail(*planned[i], std::move(alone).error());
    }
  }
}

// After the rows of these requests were computed: logits (their outputs, vocab_size).
NIBBLE_INLINE void Scheduler::State::finish_rows(std::span<Lane* const> of_step,
                                                 MatrixView<const float> logits) {
  Index n_outputs = 0;
  for (Lane* const lane : of_step) {
    lane->output = lane->is_prompt() ? Index{-1} : n_outputs++;
    lane->is_full = lane->sequence.position() == engine.n_ctx();
  }
  sample(of_step, logits);
  for (Lane* const lane : of_step) {
    if (lane->output >= 0) choose(*lane);
  }
}

// Choosing takes a request's own sampler and tokens only, so all may choose at once.
NIBBLE_INLINE void Scheduler::State::sample(std::span<Lane* const> of_step,
                                            MatrixView<const float> logits) noexcept {
  const auto sample_one = [&](Index task, Index) {
    Lane& lane = *of_step[static_cast<std::size_t>(task)];
    if (lane.output < 0 || lane.is_full) return;
    lane.sampled =
        lane.request->generation.sample(logits.rows(lane.output, 1), lane.sequence.tokens());
  };
  const auto n = static_cast<Index>(of_step.size());
  if (options.executor != nullptr && n > 1) return options.executor->parallel_for(n, sample_one);
  for (Index i = 0; i < n; ++i) sample_one(i, 0);
}

// Takes the chosen token.
NIBBLE_INLINE void Scheduler::State::choose(Lane& lane) {
  detail::Generation& generation = lane.request->generation;
  if (lane.is_full) return deliver(lane, generation.end(Finish::context_full));
  if (!lane.sampled) return fail(lane, std::move(lane.sampled).error().in("scheduler"));
  if (auto pushed = lane.sequence.push(lane.sampled->id); !pushed) {
    return fail(lane, std::move(pushed).error());
  }
  n_generated_tokens.fetch_add(1, std::memory_order_relaxed);
  deliver(lane, generation.take(*lane.sampled, lane.sequence.position() == engine.n_ctx()));
}

NIBBLE_INLINE void Scheduler::State::fail(Lane& lane, Error error) {
  lane.request->error.emplace(std::move(error));
  deliver(lane, lane.request->generation.end(Finish::failed));
}

// Gives a token to who asked for it. After the last, the lane is free.
NIBBLE_INLINE void Scheduler::State::deliver(Lane& lane, const Token& token) {
  lane.request->deliver(token);
  if (token.finish == Finish::none) return;
  n_promised_pages.fetch_sub(lane.request->n_pages, std::memory_order_relaxed);
  n_running.fetch_sub(1, std::memory_order_relaxed);
  n_ended.fetch_add(1, std::memory_order_relaxed);
  lane.request = {};
  (void)lane.sequence.rewind(0);  // to the start a sequence can always go
  (void)lane.sequence.set_adapter({});
}

}}  // namespace nibble::NIBBLE_ABI
