// SPDX-License-Identifier: Apache-2.0
//
// A model pool's functions. Included by model_pool.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/scheduler_thread.hpp"
#include "nibble/serve/model_pool.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// ---- A switch ----------------------------------------------------------------------------------

struct Switch::State {
  explicit State(Variant v) noexcept : variant(std::move(v)) {}

  void set(SwitchStage to) noexcept {
    stage.store(static_cast<std::uint32_t>(to));
    wake_all(stage);
  }
  void fail(Error why) noexcept {
    error.emplace(std::move(why));
    set(SwitchStage::failed);
  }

  std::atomic<std::uint32_t> stage{static_cast<std::uint32_t>(SwitchStage::waiting)};
  Variant variant;             // of the pool's thread
  std::optional<Error> error;  // written before the stage is `failed`
};

NIBBLE_INLINE Switch::Switch(Shared<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE SwitchStage Switch::stage() const noexcept {
  return static_cast<SwitchStage>(state_->stage.load());
}

NIBBLE_INLINE Result<void> Switch::wait() const {
  for (;;) {
    const std::uint32_t seen = state_->stage.load();
    if (seen == static_cast<std::uint32_t>(SwitchStage::done)) return ok();
    if (seen == static_cast<std::uint32_t>(SwitchStage::failed)) {
      return catch_out_of_memory([&]() -> Result<void> { return *state_->error; });
    }
    sleep_while(state_->stage, seen);
  }
}

// ---- What is loaded ----------------------------------------------------------------------------

struct ModelPool::Served {
  struct Adapter {
    std::string name;
    SequenceAdapter adapter;
    AdapterMetrics metrics = {};
  };

  Served(Model m, Scheduler s) noexcept : model(std::move(m)), scheduler(std::move(s)) {}

  // Ends its thread and frees what it has; requests that have not ended are cancelled. (The object
  // may live on for a moment, with the last Lease.)
  void free() noexcept {
    thread.reset();
    scheduler.reset();
    adapters.clear();
    model.reset();
  }
  // A user is a lease or a request that has not ended. With the pool's lock held, or by a user.
  void add_user() noexcept { n_users.fetch_add(1); }
  // Either this sees that the pool waits for the last user, or the pool sees that there is none.
  void remove_user() noexcept {
    if (n_users.fetch_sub(1) == 1 && is_retired.load()) signal();
  }
  void signal() noexcept {
    n_changes->fetch_add(1);
    wake_all(*n_changes);
  }

  std::string variant;
  std::uint64_t number = 0;
  std::optional<Model> model;
  std::optional<Scheduler> scheduler;
  std::optional<SchedulerThread> thread;
  std::vector<Adapter> adapters;
  std::size_t bytes = 0, working_bytes = 0;
  Index max_wait_ms = 0;  // of its own
  bool has_prefixes = false;
  const ModelPoolOptions* options = nullptr;
  std::atomic<std::uint32_t>* n_changes = nullptr;  // of the pool

  std::atomic<std::uint32_t> n_users{0};
  std::atomic<bool> is_retired{false};  // another one has taken its place
  std::int64_t n_cached_tokens = 0;     // that are in the metrics; with the lock for that held
};

// Looks on while a request of the pool is answered, and counts it as a user until its last token.
struct ModelPool::Observer {
  Served* served = nullptr;
  std::optional<RequestRecorder> recorder = {};
  Counter* adapter_tokens = nullptr;  // of its adapter; null: it has none
  DriftMonitor* drift = nullptr;
  Callback<void(const Token&)> other = {};  // the request's own

  double logprobs = 0;
  Index n_tokens = 0;

  void operator()(const Token& token) {
    if (recorder) (*recorder)(token);
    if (token.id >= 0) {
      logprobs += static_cast<double>(token.logprob);
      ++n_tokens;
      if (adapter_tokens != nullptr) adapter_tokens->add();
    }
    if (other) other(token);
    if (token.finish == Finish::none) return;
    if (drift != nullptr && n_tokens > 0) {
      drift->record_answer(logprobs / static_cast<double>(n_tokens));
    }
    served->remove_user();  // the last: the pool may be waiting for it
  }
};

struct ModelPool::State {
  explicit State(const ModelPoolOptions& o) : options(o) {
    if (!options.now) options.now = Callback<std::int64_t()>(monotonic_nanoseconds);
    loaded.reserve(2);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State();

  static Result<void> validate(const Variant& variant);

  // Of the pool's thread.
  void run() noexcept;
  void change(Switch::State& to);
  Result<Shared<Served>> bring_up(Switch::State& from);
  Result<void> check_answers(Scheduler& scheduler, const std::vector<KnownAnswer>& known);
  void retire(const Shared<Served>& old) noexcept;
  void signal() noexcept {
    n_changes.fetch_add(1);
    wake_all(n_changes);
  }

  void count_prefixes(Served& served) noexcept;
  Result<void> apply_effort(Served& served) const;  // with the lock held

  ModelPoolOptions options;
  std::atomic<bool> is_stopped{false}, is_ending{false};
  std::atomic<std::uint32_t> n_changes{0};  // what the pool's thread waits for

  std::atomic<std::uint32_t> mutex{0};  // of what follows
  Shared<Served> current;               // null: none yet
  std::vector<Shared<Served>> loaded;   // that one and one that is drained
  Shared<Switch::State> next;           // waits
  bool is_switching = false;            // one has begun, or its predecessor is drained
  std::uint64_t n_switches = 0;
  std::string last_error;
  Effort effort;

  std::atomic<std::uint32_t> counting{0};  // a mutex: what counts n_cached_tokens

  NativeThread thread;
  bool has_thread = false;
};

// ---- Loading -----------------------------------------------------------------------------------

NIBBLE_INLINE Result<void> ModelPool::State::validate(const Variant& variant) {
  const auto bad = [&](const std::string& what) {
    return Error{Errc::invalid_argument, "variant '" + printable(variant.name) + "': " + what};
  };
  if (variant.name.empty()) return bad("it has no name");
  if (!variant.load) return bad("it has no function that loads it");
  for (std::size_t i = 0; i < variant.adapters.size(); ++i) {
    const VariantAdapter& adapter = variant.adapters[i];
    if (adapter.name.empty() || !adapter.load) {
      return bad("an adapter without a name or a function that loads it");
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (variant.adapters[j].name != adapter.name) continue;
      return bad("two adapters have the name '" + printable(adapter.name) + "'");
    }
  }
  return ok();
}

NIBBLE_INLINE void ModelPool::State::run() noexcept {
  for (;;) {
    const std::uint32_t seen = n_changes.load();
    if (is_ending) return;
    Shared<Switch::State> to;
    {
      const WordLock lock(mutex);
      to = std::move(next);
      is_switching = static_cast<bool>(to);
    }
    if (to) {
      change(*to);
    } else {
      sleep_while(n_changes, seen);
    }
  }
}

NIBBLE_INLINE void ModelPool::State::change(Switch::State& to) {
  const std::int64_t start = options.now();
  auto made = catch_out_of_memory([&]() -> Result<Shared<Served>> {
    const std::string name = to.variant.name;  // bring_up() takes it
    auto served = bring_up(to);
    if (served) return served;
    return std::move(served).error().in("variant '" + printable(name) + "'");
  });
  to.variant = {};  // whatever its functions have
  if (!made) {
    if (options.metrics != nullptr) options.metrics->failed_switches->add();
    (void)catch_out_of_memory([&]() -> Result<void> {
      const WordLock lock(mutex);
      last_error = made.error().message;
      return ok();
    });
    return to.fail(std::move(made).error());
  }
  const Shared<Served> fresh = *std::move(made);
  Shared<Served> old;
  {
    const WordLock lock(mutex);
    (void)apply_effort(*fresh);  // it was checked; without memory, all is as usual
    fresh->number = ++n_switches;
    loaded.push_back(fresh);
    old = std::exchange(current, fresh);
  }
  if (options.metrics != nullptr) {
    options.metrics->switches->add();
    options.metrics->model_load->observe(static_cast<double>(options.now() - start) * 1e-9);
  }
  to.set(SwitchStage::done);
  if (old) retire(old);
}

NIBBLE_INLINE Result<Shared<ModelPool::Served>> ModelPool::State::bring_up(Switch::State& from) {
  Variant& variant = from.variant;
  from.set(SwitchStage::loading);
  NIBBLE_TRY(model, variant.load());
  from.set(SwitchStage::checking);
  if (variant.verify_model) NIBBLE_CHECK(variant.verify_model(model));
  std::vector<Served::Adapter> adapters;
  for (VariantAdapter& adapter : variant.adapters) {
    auto set = adapter.load(model);
    if (!set) return std::move(set).error().in("adapter '" + printable(adapter.name) + "'");
    Index& rank = variant.scheduler.max_factor_rank;
    rank = (std::max)(rank, set->max_rank());
    AdapterMetrics metrics;
    if (options.metrics != nullptr) {
      NIBBLE_TRY(made, options.metrics->of_adapter(adapter.name));
      metrics = made;
    }
    adapters.push_back(
        {std::move(adapter.name), {.set = *std::move(set), .strength = adapter.strength}, metrics});
  }
  NIBBLE_TRY(scheduler, Scheduler::create(model, variant.scheduler));
  NIBBLE_CHECK(scheduler.warm_up());
  NIBBLE_CHECK(check_answers(scheduler, variant.known_answers));

  Shared<Served> served(
      Owned<Served>(new (std::nothrow) Served(std::move(model), std::move(scheduler))));
  if (!served) return Error{Errc::out_of_memory, "a variant"};
  served->variant = std::move(variant.name);
  served->adapters = std::move(adapters);
  served->working_bytes = served->scheduler->bytes();
  served->bytes = served->model->weight_bytes() + served->working_bytes;
  served->max_wait_ms = variant.scheduler.max_wait_ms;
  served->has_prefixes = variant.scheduler.prefix_cache_bytes > 0;
  served->options = &options;
  served->n_changes = &n_changes;
  served->n_cached_tokens = served->scheduler->stats().n_cached_tokens;
  NIBBLE_TRY(stepping, SchedulerThread::start(*served->scheduler));
  served->thread.emplace(std::move(stepping));
  return served;
}

NIBBLE_INLINE Result<void> ModelPool::State::check_answers(Scheduler& scheduler,
                                                           const std::vector<KnownAnswer>& known) {
  for (const KnownAnswer& expected : known) {
    GenerateRequest request = expected.request;
    request.on_token = {};
    NIBBLE_TRY(completion, scheduler.submit(std::move(request)));
    while (completion.finish() == Finish::none) {
      if (is_ending) return Error{Errc::cancelled, "pool has ended"};
      scheduler.step();
    }
    NIBBLE_CHECK(completion.status());
    std::string answer;
    while (const auto token = completion.poll()) answer += token->text;
    if (answer == expected.answer) continue;
    return Error{Errc::malformed, "it answered '" + printable(answer) + "' to '" +
                                      printable(expected.request.prompt) + "', not '" +
                                      printable(expected.answer) + "'"};
  }
  return ok();
}

// Waits until nobody uses the old one any more, and frees it.
NIBBLE_INLINE void ModelPool::State::retire(const Shared<Served>& old) noexcept {
  old->is_retired.store(true);
  for (;;) {
    const std::uint32_t seen = n_changes.load();
    if (is_ending) return;  // it is freed with the pool
    if (old->n_users.load() == 0) {
      const WordLock lock(mutex);
      if (old->n_users.load() == 0) {  // or somebody looks at its numbers
        loaded.erase(loaded.begin());
        break;
      }
    }
    sleep_while(n_changes, seen);
  }
  count_prefixes(*old);
  old->free();
}

// ---- The pool ----------------------------------------------------------------------------------

NIBBLE_INLINE ModelPool::State::~State() {
  is_stopped.store(true);
  is_ending.store(true);
  signal();
  if (has_thread) thread.join();
  if (next) next->fail(Error{Errc::cancelled, "pool has ended"});
  for (const Shared<Served>& served : loaded) served->free();
}

NIBBLE_INLINE ModelPool::ModelPool(Owned<State> state) noexcept : state_(std::move(state)) {}
NIBBLE_INLINE ModelPool::~ModelPool() = default;

NIBBLE_INLINE Result<ModelPool> ModelPool::create(const ModelPoolOptions& options) {
  return catch_out_of_memory([&]() -> Result<ModelPool> {
    Owned<State> state(new (std::nothrow) State(options));
    if (!state) return Error{Errc::out_of_memory, "a pool of models"};
    const int error = state->thread.start(
        [](void* argument) noexcept { static_cast<State*>(argument)->run(); }, state.get());
    if (error != 0) {
      return Error{Errc::io, "pool: a thread did not start: system error " + to_text(error)};
    }
    state->has_thread = true;
    return ModelPool(std::move(state));
  });
}

NIBBLE_INLINE Result<Switch> ModelPool::switch_to(Variant variant) {
  return catch_out_of_memory([&]() -> Result<Switch> {
    State& s = *state_;
    NIBBLE_CHECK(State::validate(variant));
    if (s.is_stopped) return Error{Errc::cancelled, "pool: it is stopped"};
    Shared<Switch::State> made(
        Owned<Switch::State>(new (std::nothrow) Switch::State(std::move(variant))));
    if (!made) return Error{Errc::out_of_memory, "a switch"};
    Shared<Switch::State> replaced = made;
    {
      const WordLock lock(s.mutex);
      std::swap(s.next, replaced);
    }
    if (replaced) {
      auto why = catch_out_of_memory([&]() -> Result<void> {
        return Error{Errc::cancelled, "variant '" + printable(replaced->variant.name) +
                                          "': a later switch took its place"};
      });
      replaced->fail(std::move(why).error());
    }
    s.signal();
    return Switch(std::move(made));
  });
}

NIBBLE_INLINE Result<ModelPool::Lease> ModelPool::lease() {
  return catch_out_of_memory([&]() -> Result<Lease> {
    State& s = *state_;
    {
      const WordLock lock(s.mutex);
      if (s.current && !s.is_stopped) {
        s.current->add_user();
        return Lease(s.current);
      }
    }
    const Errc code = s.is_stopped ? Errc::cancelled : Errc::not_found;
    if (s.options.metrics != nullptr) s.options.metrics->error(code)->add();
    return Error{code, s.is_stopped ? "pool: it is stopped" : "pool: no model is loaded yet"};
  });
}

NIBBLE_INLINE Result<Completion> ModelPool::submit(GenerateRequest request,
                                                   std::string_view adapter) {
  NIBBLE_TRY(leased, lease());
  return leased.submit(std::move(request), adapter);
}

NIBBLE_INLINE Result<void> ModelPool::set_effort(const Effort& effort) {
  return catch_out_of_memory([&]() -> Result<void> {
    constexpr Index kMostMs = Index{1} << 20;  // as of a scheduler
    const bool is_depth = !is_nan(effort.depth) && effort.depth > 0 && effort.depth <= 1;
    if (!is_depth || effort.max_wait_ms < 0 || effort.max_wait_ms > kMostMs) {
      return Error{
          Errc::invalid_argument,
          "pool: a depth is above 0 and at most 1, a wait at most " + to_text(kMostMs) + " ms"};
    }
    State& s = *state_;
    const WordLock lock(s.mutex);
    const Effort old = std::exchange(s.effort, effort);
    for (const Shared<Served>& served : s.loaded) {
      auto applied = s.apply_effort(*served);
      if (applied) continue;
      s.effort = old;
      return applied;
    }
    return ok();
  });
}

NIBBLE_INLINE Result<void> ModelPool::State::apply_effort(Served& served) const {
  Scheduler& scheduler = *served.scheduler;
  NIBBLE_CHECK(scheduler.set_max_wait_ms((std::max)(served.max_wait_ms, effort.max_wait_ms)));
  const Index n_layers = served.model->config().n_layers;
  const auto n_computed = static_cast<Index>(effort.depth * static_cast<double>(n_layers) + 0.999);
  const Index n_first = (std::min)((std::max)(n_computed, Index{1}), n_layers);
  auto changed = scheduler.set_depth({.n_layers = n_first == n_layers ? 0 : n_first});
  if (!changed && changed.error().code != Errc::unsupported) return changed;
  return ok();
}

NIBBLE_INLINE bool ModelPool::is_ready() const noexcept {
  const WordLock lock(state_->mutex);
  return state_->current && !state_->is_stopped;
}

NIBBLE_INLINE Result<ModelPoolStatus> ModelPool::status() const {
  return catch_out_of_memory([&]() -> Result<ModelPoolStatus> {
    State& s = *state_;
    ModelPoolStatus status;
    const WordLock lock(s.mutex);
    if (s.current) {
      status.variant = s.current->variant;
      status.number = s.current->number;
      status.stats = s.current->scheduler->stats();
      status.working_bytes = s.current->working_bytes;
    }
    status.n_loaded = static_cast<Index>(s.loaded.size());
    for (const Shared<Served>& served : s.loaded) status.bytes += served->bytes;
    status.is_switching = s.is_switching || s.next;
    status.last_error = s.last_error;
    return status;
  });
}

NIBBLE_INLINE void ModelPool::State::count_prefixes(Served& served) noexcept {
  if (options.metrics == nullptr) return;
  const WordLock lock(counting);
  const std::int64_t n = served.scheduler->stats().n_cached_tokens;
  options.metrics->prefix_cache_hits->add(static_cast<std::uint64_t>(n - served.n_cached_tokens));
  served.n_cached_tokens = n;
}

NIBBLE_INLINE void ModelPool::collect() noexcept {
  State& s = *state_;
  if (s.options.metrics == nullptr) return;
  Shared<Served> served[2];
  std::size_t n = 0;
  {
    const WordLock lock(s.mutex);
    for (const Shared<Served>& each : s.loaded) {
      each->add_user();  // so that it is not freed meanwhile
      served[n++] = each;
    }
  }
  const ServingMetrics& metrics = *s.options.metrics;
  Index n_running = 0, n_waiting = 0;
  double kv_usage = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const SchedulerStats stats = served[i]->scheduler->stats();
    n_running += stats.n_running;
    n_waiting += stats.n_waiting;
    kv_usage = 1 - static_cast<double>(stats.n_free_pages) / static_cast<double>(stats.n_pages);
    bytes += served[i]->bytes;
    s.count_prefixes(*served[i]);
    served[i]->remove_user();
  }
  metrics.num_requests_running->set(static_cast<double>(n_running));
  metrics.num_requests_waiting->set(static_cast<double>(n_waiting));
  metrics.kv_cache_usage_perc->set(kv_usage);  // of the last, which serves
  metrics.models_loaded->set(static_cast<double>(n));
  metrics.model_bytes->set(static_cast<double>(bytes));
}

NIBBLE_INLINE void ModelPool::stop() noexcept {
  State& s = *state_;
  const WordLock lock(s.mutex);  // so that no lease begins after it
  s.is_stopped.store(true);
}

NIBBLE_INLINE bool ModelPool::drain(Index time_limit_ms) noexcept {
  State& s = *state_;
  const std::int64_t end = monotonic_nanoseconds() + std::int64_t{time_limit_ms} * 1'000'000;
  for (;;) {
    {
      const WordLock lock(s.mutex);
      bool is_used = false;
      for (const Shared<Served>& served : s.loaded) {
        const SchedulerStats stats = served->scheduler->stats();
        is_used = is_used || served->n_users > 0 || stats.n_running + stats.n_waiting > 0;
      }
      if (!is_used) return true;
    }
    if (monotonic_nanoseconds() >= end) return false;
    sleep_microseconds(1000);
  }
}

// ---- A lease -----------------------------------------------------------------------------------

NIBBLE_INLINE ModelPool::Lease::Lease(Shared<Served> served) noexcept
    : served_(std::move(served)) {}

NIBBLE_INLINE ModelPool::Lease& ModelPool::Lease::operator=(Lease&& other) noexcept {
  Lease taken(std::move(other));  // gives back, at the end of this function, what this object had
  std::swap(served_, taken.served_);
  return *this;
}

NIBBLE_INLINE ModelPool::Lease::~Lease() {
  if (served_) served_->remove_user();
}

NIBBLE_INLINE const std::string& ModelPool::Lease::variant() const noexcept {
  return served_->variant;
}
NIBBLE_INLINE std::uint64_t ModelPool::Lease::number() const noexcept { return served_->number; }
NIBBLE_INLINE const Model& ModelPool::Lease::model() const noexcept { return *served_->model; }
NIBBLE_INLINE Index ModelPool::Lease::n_ctx() const noexcept { return served_->scheduler->n_ctx(); }
NIBBLE_INLINE Index ModelPool::Lease::n_adapters() const noexcept {
  return static_cast<Index>(served_->adapters.size());
}
NIBBLE_INLINE const std::string& ModelPool::Lease::adapter_name(Index i) const noexcept {
  return served_->adapters[static_cast<std::size_t>(i)].name;
}

NIBBLE_INLINE Result<Completion> ModelPool::Lease::submit(GenerateRequest request,
                                                          std::string_view adapter) {
  Served& served = *served_;
  const ServingMetrics* const metrics = served.options->metrics;
  AdapterMetrics of_adapter;
  auto completion = catch_out_of_memory([&]() -> Result<Completion> {
    if (!adapter.empty()) {
      const auto found = std::find_if(served.adapters.begin(), served.adapters.end(),
                                      [&](const auto& each) { return each.name == adapter; });
      if (found == served.adapters.end()) {
        return Error{Errc::not_found, "variant '" + printable(served.variant) +
                                          "': it has no adapter '" + printable(adapter) + "'"};
      }
      request.adapter = found->adapter;
      of_adapter = found->metrics;
    }
    Observer observer{.served = &served,
                      .adapter_tokens = of_adapter.generation_tokens,
                      .drift = served.options->drift,
                      .other = std::move(request.observer)};
    if (metrics != nullptr) observer.recorder.emplace(*metrics, served.options->now);
    request.observer = Callback<void(const Token&)>(std::move(observer));
    served.add_user();  // until the request's last token
    auto taken = served.scheduler->submit(std::move(request));
    if (!taken) served.remove_user();
    return taken;
  });
  if (completion && served.options->drift != nullptr) {
    served.options->drift->record_prompt(completion->prompt());
  }
  if (metrics == nullptr) return completion;
  if (!completion) {
    metrics->error(completion.error().code)->add();
    return completion;
  }
  const auto n_prompt = static_cast<std::uint64_t>(completion->n_prompt());
  if (of_adapter.requests != nullptr) {
    of_adapter.requests->add();
    of_adapter.prompt_tokens->add(n_prompt);
  }
  metrics->prompt_tokens->add(n_prompt);
  metrics->request_prompt_tokens->observe(static_cast<double>(n_prompt));
  if (served.has_prefixes) metrics->prefix_cache_queries->add(n_prompt);
  return completion;
}

}}}  // namespace nibble::NIBBLE_ABI::serve
