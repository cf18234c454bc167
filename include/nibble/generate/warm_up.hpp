// SPDX-License-Identifier: Apache-2.0
//
// A first step that nobody waits for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/engine.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Runs a prompt of as many tokens as a step may have, and, of a model that gives logits, one token
// after it; what they give is thrown away. Later steps then find the weights read from the file,
// the pages of working memory there, threads awake, code in the caches. Call it before a service
// says that it is ready. Logits of earlier steps are gone; sequences stay as they are. Pages of the
// cache are there only as far as this prompt reaches.
// The prompt is shorter where the cache has no room for it.
// Errors: those of Engine::run (the cache must have room for one token); out_of_memory.
inline Result<void> warm_up(Engine& engine) {
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(sequence, engine.new_sequence());
    const Index capacity = sequence.capacity();
    Index n = (std::min)(engine.max_step_tokens(), capacity);
    while (n > 1 && engine.pages_for((std::min)(n + 1, capacity)) > engine.n_free_pages()) n /= 2;
    const std::vector<Scalar<std::int32_t>> tokens(static_cast<std::size_t>(n));
    const std::span<const std::int32_t> all(values(tokens), tokens.size());
    SequenceInput input{.sequence = &sequence, .tokens = all};
    NIBBLE_CHECK(engine.run({&input, 1}));
    if (engine.gives_embeddings() || sequence.position() == sequence.capacity()) return ok();
    input.tokens = all.first(1);
    input.kind = ops::SegmentKind::generation;
    NIBBLE_CHECK(engine.run({&input, 1}));
    return ok();
  });
}

}}  // namespace nibble::NIBBLE_ABI
