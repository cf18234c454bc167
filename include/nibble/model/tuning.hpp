// SPDX-License-Identifier: Apache-2.0
//
// Tuning as text, to be printed, saved and forced, and its measurement on the machine.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/kernels/tuning.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// "weights=l1@10240 cache=l1@12288 many_rows=l2 tasks_per_worker=2 rows_per_task=64"
std::string to_string(const Tuning& tuning);

// Errors: invalid_argument, for a number out of range.
Result<void> check_tuning(const Tuning& tuning);

// The Tuning of a text as to_string() writes it. What the text leaves out keeps its default.
// Errors: invalid_argument, for an unknown name or a value out of range.
Result<Tuning> parse_tuning(std::string_view text);

// The Tuning that reads `weights` fastest here: times products with one row, as in generation, with
// different ways to fetch. Takes about 10 ms; reads up to 96 MB of the weights, and allocates
// memory for one row of each side of a product. Other ways to fetch must be 3 % faster than `from`,
// which is also the result if the weights are smaller than 4 MiB (the caches hold them) or memory
// runs out. `executor`: its workers read as they do in generation.
Tuning measure_tuning(std::span<const graph::Weight> weights, Executor& executor,
                      const Tuning& from = {});

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/model/tuning-inl.hpp"
#endif
