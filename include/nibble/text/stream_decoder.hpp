// SPDX-License-Identifier: Apache-2.0
//
// Decodes tokens one at a time, as a model generates them, into text that can be shown at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// The concatenated results of all push() calls and the final flush() are exactly what
// Tokenizer::decode returns for the same ids. A character that spans several tokens is held back
// until it is complete: as long as the model writes UTF-8, every part is UTF-8. Bytes that can no
// longer become a character are passed through, not replaced, so nothing is lost. A caller who
// needs valid text replaces them.
//
// Allocates when it is created, never afterwards. The tokenizer must outlive it and must not move.
class StreamDecoder {
 public:
  // `options` as in decode; at_start = false if the stream continues a prompt's text.
  explicit StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {})
      : tokenizer_(&tokenizer), options_(options), state_(options) {
    buffer_.reserve(kMaxHeld + tokenizer.vocabulary().longest());
  }

  // Move-only: a copy would lose the reserved capacity.
  StreamDecoder(StreamDecoder&&) = default;
  StreamDecoder& operator=(StreamDecoder&&) = default;

  // The text that this token completes, often empty. Valid until the next call.
  std::string_view push(std::int32_t id) {
    buffer_.erase(0, shown_);
    tokenizer_->append_text(id, state_, buffer_);
    shown_ = buffer_.size() - utf8_unfinished(buffer_);
    return std::string_view(buffer_).substr(0, shown_);
  }

  // Call it at the end. Returns the bytes of an incomplete last character, usually none. Valid
  // until the next call; the decoder is then in its initial state.
  std::string_view flush() {
    buffer_.erase(0, shown_);
    shown_ = buffer_.size();
    state_ = options_;
    return buffer_;
  }

 private:
  static constexpr std::size_t kMaxHeld = 3;

  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  DecodeOptions state_;    // options_ with the current at_start
  std::string buffer_;     // what was last returned, then what is held back
  std::size_t shown_ = 0;  // length of what was last returned, in bytes
};

}}}  // namespace nibble::NIBBLE_ABI::text
