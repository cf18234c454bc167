// SPDX-License-Identifier: Apache-2.0
//
// Before it starts: whether a model, an engine and its sequences fit in memory, found out without
// allocating them, and what would fit instead.
//
//   const auto outline = nibble::load(path, {.outline_only = true});
//   const auto fit = nibble::fits(*outline, {.n_ctx = 8192});
//   if (!fit->fits && fit->smaller_cache) options.kv_type = *fit->smaller_cache;
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>

#include "nibble/core/available_memory.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_cache.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// All sizes in bytes.
struct Fit {
  std::size_t weights = 0;   // of the model; 0 if they are in memory already
  std::size_t in_place = 0;  // of the file, mapped: no memory of its own, but slow where it is not
                             // in the system's cache
  EngineMemory engine;
  std::size_t available = 0;  // what needed() was compared with
  bool fits = false;          // with a tenth of `available` to spare
  // Where it does not, what would: with the same context, the cache of the most precision; with the
  // same cache, the longest context, in whole pages of ops::kPagePositions. None and 0: nothing.
  std::optional<ops::KvType> smaller_cache;
  Index shorter_context = 0;
  bool only_together = false;  // neither alone fits, but this context with this cache

  std::size_t needed() const noexcept { return weights + engine.total(); }
};

namespace detail {

// What fits of the memory that a machine has: not the last tenth, since other programs live too.
constexpr bool fits_in(std::size_t needed, std::size_t available) noexcept {
  return needed <= available - available / 10;
}

// The longest context of whole pages below that of `options`, of which weights and engine fit; 0 if
// none does.
inline Result<Index> longest_context(const Model& model, EngineOptions options, std::size_t weights,
                                     std::size_t available) {
  const Index n_ctx =
      options.n_ctx > 0 ? options.n_ctx : (std::min)(model.config().n_ctx, kDefaultContext);
  Index least = 0, most = (n_ctx - 1) / ops::kPagePositions;  // pages: fits, may fit
  const Index cache_positions = options.cache_positions;
  while (least < most) {
    const Index pages = most - (most - least) / 2;
    options.n_ctx = pages * ops::kPagePositions;
    if (cache_positions > 0) {  // never more than its sequences can fill
      options.cache_positions = (std::min)(cache_positions, options.n_ctx * options.max_sequences);
    }
    NIBBLE_TRY(needed, Engine::memory_needed(model, options));
    if (fits_in(weights + needed.total(), available))
      least = pages;
    else
      most = pages - 1;
  }
  return least * ops::kPagePositions;
}

}  // namespace detail

// Whether an engine for `model` fits in memory together with max_sequences sequences and, if the
// model is an outline (LoadOptions::outline_only), with its weights. `available`: the bytes that
// may be taken; 0: what the system says (available_memory()). Loading takes some more memory for a
// short time: ModelMemory::loading of memory_needed(). A session is an engine with one sequence.
// Errors: those of Engine::create() that do not come from the lack of memory.
inline Result<Fit> fits(const Model& model, const EngineOptions& options = {},
                        std::size_t available = 0) {
  Fit fit;
  NIBBLE_TRY(needed, Engine::memory_needed(model, options));
  fit.engine = needed;
  fit.in_place = model.weight_bytes_in_place();
  if (!model.has_weights()) fit.weights = model.weight_bytes() - fit.in_place;
  fit.available = available > 0 ? available : available_memory();
  fit.fits = detail::fits_in(fit.needed(), fit.available);
  if (fit.fits) return fit;

  EngineOptions smallest = options;
  std::size_t least = needed.cache, most = 0;
  for (const ops::KvType type : ops::kKvTypes) {
    EngineOptions other = options;
    other.kv_type = type;
    NIBBLE_TRY(smaller, Engine::memory_needed(model, other));
    if (smaller.cache < least) {
      least = smaller.cache;
      smallest.kv_type = type;
    }
    // Of equal ones the first, as kKvTypes has them.
    if (smaller.cache >= needed.cache || smaller.cache <= most) continue;
    if (!detail::fits_in(fit.weights + smaller.total(), fit.available)) continue;
    most = smaller.cache;
    fit.smaller_cache = type;
  }
  NIBBLE_TRY(shorter, detail::longest_context(model, options, fit.weights, fit.available));
  fit.shorter_context = shorter;
  if (fit.smaller_cache || shorter > 0 || least == needed.cache) return fit;
  NIBBLE_TRY(together, detail::longest_context(model, smallest, fit.weights, fit.available));
  if (together == 0) return fit;
  fit.smaller_cache = smallest.kv_type;
  fit.shorter_context = together;
  fit.only_together = true;
  return fit;
}

}}  // namespace nibble::NIBBLE_ABI
