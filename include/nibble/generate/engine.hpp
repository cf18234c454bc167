// SPDX-License-Identifier: Apache-2.0
//
// An engine: everything that running a model takes (working memory, the cache, tables of
// rotations), for any number of sequences. One step computes rows of several sequences together.
// Weights are read once for all of them, and the result of each sequence is, bit for bit, what it
// would be alone.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/depth.hpp"
#include "nibble/generate/placement.hpp"
#include "nibble/generate/sequence.hpp"
#include "nibble/graph/observer.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_type.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct EngineOptions {
  // How many positions a sequence may have; 0: as many as the model was trained for, at most
  // kDefaultContext. May be more than the model was trained for (quality is then up to the model)
  // unless positions are learned.
  Index n_ctx = 0;
  Index max_sequences = 1;  // in one step
  // Positions of the cache, for all sequences together, in whole pages of ops::kPagePositions; 0:
  // n_ctx for each of max_sequences. (Where layers have windows, longer sequences fit in them:
  // these layers keep only their window.)
  Index cache_positions = 0;
  // If that is 0: bytes of pages beside those, in whole pages, for a cache of prefixes
  // (prefix_cache.hpp), which has room then also when all sequences are long. (Memory that is never
  // written to costs nothing where the system gives pages when they are used.)
  std::size_t spare_bytes = 0;
  // Layers with a window keep so many positions before it as well: a sequence can go back that far
  // (Sequence::rewind). -1: they keep all positions, as other layers do.
  Index window_margin = 256;
  Index max_step_tokens = 64;  // of all sequences in one step
  Index max_outputs = 0;       // rows of logits of one step; 0: one for each of max_sequences
  ops::KvType kv_type = ops::KvType::f16;
  Executor* executor = nullptr;  // must outlive the engine; null: the calling thread
  // Pages of a file can take the place of the cache's, so that processes share them
  // (PrefixCache::restore with PageUse::map). The cache gets up to 64 pages more. Not on Windows.
  bool maps_pages = false;
  // Has working memory for weights of any format: others can then take the place of the model's
  // (exchange_weights).
  bool exchangeable_weights = false;
  // The rank that adapters of sequences may have (AdapterSet::max_rank), and, with
  // exchangeable_weights, factors of other weights, if it is more than the model's own. 0: there is
  // no memory for adapters.
  Index max_factor_rank = 0;
  // Look into the graph while it runs (graph/run.hpp); empty: nobody does. Results do not change.
  // The engine shares the callables. They must not run the engine.
  graph::Observer observer = {};  // what a Tap shows, of architectures that keep them (kIsFused)
  graph::ProductObserver product_observer = {};  // the inputs of products
  // Parts of the model that something else computes. Early exit, fewer layers and drafts are not to
  // be had then.
  Placement placement = {};
};

inline constexpr Index kDefaultContext = 4096;

// What an engine and its sequences take, in bytes.
struct EngineMemory {
  std::size_t cache = 0;      // pages of keys and values, and their administration
  std::size_t working = 0;    // what a step computes in, and what the engine itself is
  std::size_t tables = 0;     // rotations of positions
  std::size_t sequences = 0;  // tokens, page tables and recurrent state of max_sequences
  std::size_t engine() const noexcept { return cache + working + tables; }
  std::size_t total() const noexcept { return engine() + sequences; }
};

// What one step appends to one sequence; nothing, if it has pending tokens to compute.
struct SequenceInput {
  Sequence* sequence = nullptr;
  std::span<const std::int32_t> tokens = {};
  // Instead of tokens: rows (n, width) in place of embeddings, for example of images, audio or
  // memory.
  MatrixView<const float> rows = {};
  Index n_outputs = 1;  // how many of the last rows get logits; may be 0
  // generation: each row is computed as if it were alone, as in decoding; also for drafts that are
  // verified.
  ops::SegmentKind kind = ops::SegmentKind::prompt;

  Index n_rows() const noexcept {
    return rows.data() != nullptr ? rows.extent(0) : static_cast<Index>(tokens.size());
  }
};

class Engine {
 public:
  // Errors: invalid_argument, out_of_memory, limit (where pointers have 32 bits), unsupported.
  static Result<Engine> create(const Model& model, const EngineOptions& options = {});
  // What bytes() will be, without allocating that. Errors: as create().
  static Result<std::size_t> bytes_needed(const Model& model, const EngineOptions& options = {});
  // The same in parts, with those of sequences.
  static Result<EngineMemory> memory_needed(const Model& model, const EngineOptions& options = {});

  // An empty sequence of at most `capacity` positions (0: n_ctx). It takes pages only as it grows.
  // Errors: out_of_memory, invalid_argument (more than n_ctx).
  Result<Sequence> new_sequence(Index capacity = 0);

  // Runs one step: adds what is given to the sequences and computes it, together with their pending
  // tokens. Returns logits (all outputs, vocab_size), or embeddings (inputs, output_width()) if the
  // model gives such, in the order of `inputs`, valid until the next call. Errors change nothing:
  // invalid_argument (no inputs or rows, a sequence twice or of another engine, a token out of
  // range, rows of another width, more outputs than rows), limit (a sequence or the cache is full;
  // more rows, sequences or outputs than the options allow; a key or value of the model is too
  // large for an f16 cache), io (the back end of EngineOptions::placement failed).
  Result<MatrixView<const float>> run(std::span<const SequenceInput> inputs);

  // How many free pages run() takes for these inputs, which must be such as it accepts; less than
  // 0: it gives more back.
  Index pages_needed(std::span<const SequenceInput> inputs) const noexcept;

  // Chooses which pages of the cache each row reads (sparse attention); null: all. The policy must
  // stay alive.
  void set_policy(const ops::PagePolicy* policy) noexcept;

  // Runs fewer layers from now on (generate/depth.hpp); {}: all. May be called between any two
  // steps, and costs as good as nothing. Errors change nothing: invalid_argument (a layer that the
  // model does not have, all layers left out), unsupported (a model that gives embeddings or has
  // recurrent state).
  Result<void> set_depth(const Depth& depth);
  // Lets rows end early from now on (generate/depth.hpp), and begins to count anew; {}: none. This
  // allocates; steps do not. Errors change nothing: invalid_argument (an exit after no layer or
  // after all, a threshold that is not a number), unsupported (as set_depth()), out_of_memory.
  Result<void> set_early_exit(const EarlyExit& exit);
  EarlyExitCounts early_exit_counts() const noexcept;

  // As run(), but with the first n_layers layers only, followed by the end of the model: quick
  // logits, for drafts. Nothing of it lasts: tokens that it adds, and those that were pending, are
  // pending afterwards, and the next run() computes them as if there had been no draft(), bit for
  // bit. (The next draft() of as many layers or fewer goes on where this one ended.) So a draft of
  // k tokens is k times draft() and Sequence::push(), and its verification is one run() with k + 1
  // outputs and SegmentKind::generation; rewind() forgets what was refused. Errors: as run();
  // invalid_argument (n_layers not from 1 to the number of layers, rows of numbers), unsupported
  // (as set_depth()).
  Result<MatrixView<const float>> draft(std::span<const SequenceInput> inputs, Index n_layers);
  // Whether it can: the errors of draft() that do not depend on inputs.
  Result<void> check_draft(Index n_layers) const;

  // Runs with other weights from now on: a table of the model's slots, where each weight has the
  // shape of the model's, in any format. An empty table: the model's own. The table and what it
  // refers to must outlive the last step with it. Sequences keep what they have computed. For
  // trials of formats, of changed or of adapted weights. Error: invalid_argument (another shape,
  // a weight too many or missing, data that are not aligned to 64 bytes, factors of a higher rank
  // than the model's and max_factor_rank, other factors of the rotation, an engine without
  // exchangeable_weights); nothing changes then.
  Result<void> exchange_weights(graph::WeightTable weights);

  // Whether sequences of the engine can have an adapter. Errors: invalid_argument (it was made for
  // another model; a strength that is not finite), limit (its rank is more than max_factor_rank).
  Result<void> check_adapter(const SequenceAdapter& adapter) const;

  const Model& model() const noexcept;
  // Whether a step gives one embedding for each input instead of logits: the model is one for
  // Embedder. And how many numbers a row of the result has.
  bool gives_embeddings() const noexcept;
  Index output_width() const noexcept;
  // As in the options, or as the engine chose.
  Index n_ctx() const noexcept;
  Index max_sequences() const noexcept;
  Index max_step_tokens() const noexcept;
  Index max_outputs() const noexcept;
  // Pages of the cache, and how many of them no sequence uses.
  Index n_pages() const noexcept;
  Index n_free_pages() const noexcept;
  // How many pages a sequence takes at most when it has n positions: one for each begun
  // ops::kPagePositions, or, where only some layers have a window, n_page_tables(), of which some
  // are given back.
  Index pages_for(Index n_positions) const noexcept;
  Index n_page_tables() const noexcept;
  // Bytes that the engine holds: working memory, cache, tables. More once rows of numbers were
  // given.
  std::size_t bytes() const noexcept;

 private:
  friend class Sequence;
  friend class Session;
  friend class Embedder;
  friend class PrefixCache;
  friend class Scheduler;
  struct State;
  struct Pool;
  explicit Engine(Owned<State> state) noexcept;
  // The same as create() for a model that gives `what`; others are refused before anything large
  // is allocated.
  enum class Gives : std::uint8_t { any, logits, embeddings };
  static Result<Engine> create(const Model& model, const EngineOptions& options, Gives what);
  // Whether an input can be run in as many steps as it takes. Errors: as run().
  Result<void> can_run(const SequenceInput& input) const;

  Owned<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/engine-inl.hpp"
#endif
