// SPDX-License-Identifier: Apache-2.0
//
// A pool of models: many requests at once on the variant that serves, while another one is loaded,
// checked and warmed up beside it. Then new requests go to the new one at once, the old one ends
// those that it has, and is freed: no request is lost, none is answered twice, and each gets, bit
// for bit, what the variant that took it gives it alone.
//
//   NIBBLE_TRY(pool, serve::ModelPool::create());
//   NIBBLE_TRY(change, pool.switch_to({.name = "int4", .load = [] { return load("int4.gguf"); }}));
//   NIBBLE_CHECK(change.wait());
//   NIBBLE_TRY(completion, pool.submit({.prompt = "Once upon a time"}));
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/callback.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/completion.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/model.hpp"
#include "nibble/serve/drift.hpp"
#include "nibble/serve/serving_metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// An adapter that requests of a variant can name.
struct VariantAdapter {
  std::string name;
  Callback<Result<AdapterSet>(const Model&)> load = {};
  float strength = 1;
};

// A request and the whole text of its answer.
struct KnownAnswer {
  GenerateRequest request;
  std::string answer;
};

// A model as it is served: of some format, with some memory for requests. What it refers to (an
// executor) must outlive the pool. Its functions are called by the pool's own thread; they must not
// call the pool, nor throw.
struct Variant {
  std::string name = {};                // for people and logs: "f16", "int8", "int4"
  Callback<Result<Model>()> load = {};  // from wherever the host has it
  std::vector<VariantAdapter> adapters = {};
  SchedulerOptions scheduler = {};  // max_factor_rank is raised to what the adapters need
  // Whether the model may serve, before memory for requests is taken; empty: it may.
  Callback<Result<void>(const Model&)> verify_model = {};
  // What it must answer before it serves; this also warms it up.
  std::vector<KnownAnswer> known_answers = {};
};

struct ModelPoolOptions {
  const ServingMetrics* metrics = nullptr;  // null: nothing is measured; must outlive the pool
  DriftMonitor* drift = nullptr;  // gets prompts and confidences; null: none; must outlive the pool
  // Nanoseconds of a clock that does not go back, for the metrics, from any thread; empty:
  // monotonic_nanoseconds().
  Callback<std::int64_t()> now = {};
};

enum class SwitchStage : unsigned char { waiting, loading, checking, done, failed };

constexpr const char* to_string(SwitchStage stage) noexcept {
  switch (stage) {
    case SwitchStage::waiting: return "waiting";
    case SwitchStage::loading: return "loading";
    case SwitchStage::checking: return "checking";
    case SwitchStage::done: return "done";
    case SwitchStage::failed: return "failed";
  }
  return "unknown";
}

// How much work requests are, for a host that is hot or busy (governor.hpp).
struct Effort {
  double depth = 1;       // the part of a model's layers that is computed, the first ones
  Index max_wait_ms = 0;  // as in SchedulerOptions, if that of a variant is less
};

// A change to another variant. It may outlive the pool; any thread may call its functions.
class Switch {
 public:
  // done: the variant serves new requests; it may have been replaced since.
  SwitchStage stage() const noexcept;
  // Waits for its end. Errors: those of the variant's functions, Scheduler::create() and
  // Scheduler::submit() (of its known answers), malformed (it answers otherwise), io (the system
  // gives no more threads); cancelled (a later switch took its place before it began, or the pool
  // has ended). What served before then still does.
  Result<void> wait() const;

 private:
  friend class ModelPool;
  struct State;
  explicit Switch(Shared<State> state) noexcept;

  Shared<State> state_;
};

struct ModelPoolStatus {
  std::string variant = {};       // that serves; "" if there is none yet
  std::uint64_t number = 0;       // of its switch, from 1
  SchedulerStats stats = {};      // of that variant
  Index n_loaded = 0;             // variants in memory: 2 while an old one is drained
  std::size_t bytes = 0;          // of their weights and what they compute in
  std::size_t working_bytes = 0;  // of these, what the variant that serves computes in
  bool is_switching = false;      // a switch waits or has begun
  std::string last_error = {};    // of the last switch that has failed, with its variant; "": none
};

// All functions may be called from any thread; the destructor when no other is called any more and
// no Lease is left. It cancels requests that have not ended, and waits for a load() that runs.
class ModelPool {
  struct Served;    // a variant that is loaded
  struct Observer;  // of a request

 public:
  // One variant and what a caller needs of it for one request: as long as it exists, the variant
  // takes requests. So a prompt can be made for the model that reads it. A pool waits for it when
  // it drains the variant, so it is not to be kept.
  class Lease {
   public:
    Lease(Lease&& other) noexcept = default;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();

    const std::string& variant() const noexcept;
    std::uint64_t number() const noexcept;  // of its switch, from 1
    const Model& model() const noexcept;
    Index n_ctx() const noexcept;
    Index n_adapters() const noexcept;
    const std::string& adapter_name(Index i) const noexcept;

    // As Scheduler::submit(). `adapter` is the name of one of the variant's, "" is none or that of
    // the request. Further errors: not_found (no such adapter).
    Result<Completion> submit(GenerateRequest request, std::string_view adapter = {});

   private:
    friend class ModelPool;
    explicit Lease(Shared<Served> served) noexcept;

    Shared<Served> served_;
  };

  // With no variant; its thread sleeps until there is something to load. Errors: io (the system
  // gives no more threads), out_of_memory.
  static Result<ModelPool> create(const ModelPoolOptions& options = {});
  ModelPool(ModelPool&& other) noexcept = default;
  ModelPool& operator=(ModelPool&& other) = delete;
  ~ModelPool();

  // Makes a variant the one that serves, in the background, after the switch that has begun, if
  // there is one, and its drain: so two variants are in memory at most. One that has not begun is
  // cancelled: the last wins. Errors: invalid_argument (no load function, no name, an adapter
  // without them or twice), cancelled (after stop()), out_of_memory.
  Result<Switch> switch_to(Variant variant);

  // The variant that serves. Errors: not_found (there is none yet), cancelled (after stop()).
  Result<Lease> lease();
  // A request to it; see Lease::submit().
  Result<Completion> submit(GenerateRequest request, std::string_view adapter = {});

  // From the next steps on, of the variants that are loaded and of those that will be. Models of
  // which all layers must be computed (Scheduler::set_depth) go on with all. Errors:
  // invalid_argument (a depth not above 0 or above 1, a wait below 0 or above 2^20), out_of_memory.
  Result<void> set_effort(const Effort& effort);

  // Whether a variant serves and the pool is not stopped.
  bool is_ready() const noexcept;
  Result<ModelPoolStatus> status() const;  // errors: out_of_memory
  // Brings those metrics up to date that show what is, such as requests that wait: before their
  // text is written.
  void collect() noexcept;

  // No more requests and no more switches are taken.
  void stop() noexcept;
  // After stop(): waits until all requests have ended, but no longer than this. Whether they have.
  bool drain(Index time_limit_ms) noexcept;

 private:
  struct State;
  explicit ModelPool(Owned<State> state) noexcept;

  Owned<State> state_;
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/model_pool-inl.hpp"
#endif
