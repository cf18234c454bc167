// SPDX-License-Identifier: Apache-2.0
//
// What depends on a processor beside its instructions: how far ahead of their use weights are asked
// for, into which cache, and how work is cut. No value changes any result: sums keep their order
// and their types. The defaults are safe where nothing is known; model/tuning.hpp measures what is
// best.
#pragma once

#include <cstdint>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Where a prefetch brings data. Where the fastest is differs: on a Zen 5 `once` is up to 14 %
// faster than `l1`; on a Granite Rapids it has half the speed of `l1`, and `none` is the fastest.
enum class Fetch : std::uint8_t {
  none,  // no prefetch: the processor's own prefetchers do it
  once,  // into L1, as data that is used once (non-temporal)
  l1,    // into all caches
  l2,    // into L2
};

struct Tuning {
  // Few rows, as in generation: weights, and keys and values, are streams. They are fetched this
  // many bytes ahead. (On a Zen 5, for weights half of that is 10 % slower; for the cache the best
  // was 9 KiB with f32, whose tile is larger than L1, 18 with 16 bits and 13 with 8; 32 KiB, or
  // fetching into L2, is slower for both.)
  Fetch weights = Fetch::l1;
  Index weights_distance = 10 * 1024;
  Fetch cache = Fetch::l1;
  Index cache_distance = 12 * 1024;
  // Many rows, as in a prompt: what comes next is fetched while present weights, keys and values
  // are used.
  Fetch many_rows = Fetch::l2;
  // How many tasks a product is cut into for each worker. Some more balance cores of unequal speed;
  // but a task starts with weights that were not fetched.
  Index tasks_per_worker = 2;
  // Rows that one task multiplies with the same weights: at k = 4096, 64 rows are 256 KiB of 8-bit
  // codes, which stay in L2. (Products of tiles take as many as TileTaskRows says.)
  Index rows_per_task = 64;

  friend bool operator==(const Tuning&, const Tuning&) = default;
};

}}  // namespace nibble::NIBBLE_ABI
