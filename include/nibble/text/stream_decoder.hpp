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

// What the calls of push and the flush at the end return is, put together, exactly what
// Tokenizer::decode returns for the same ids. A character that comes in several tokens is held back
// until it is whole, so as long as the model writes UTF-8 every part is UTF-8. Bytes that can no
// longer become a character are passed through, not replaced: nothing is lost, and who needs valid
// text replaces them with what suits him.
//
// Allocates when it is made, never afterwards. The tokenizer must outlive it and stay where it is.
class StreamDecoder {
 public:
  // `options` as in decode; at_start = false where the stream continues a prompt's text.
  explicit StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {})
      : tokenizer_(&tokenizer), options_(options), state_(options) {
    buffer_.reserve(kMaxHeld + tokenizer.vocabulary().longest());
  }

  // A copy would not have the reserve.
  StreamDecoder(StreamDecoder&&) = default;
  StreamDecoder& operator=(StreamDecoder&&) = default;

  // The text that this token completes, often empty; valid until the next call.
  std::string_view push(std::int32_t id) {
    buffer_.erase(0, shown_);
    tokenizer_->append_text(id, state_, buffer_);
    shown_ = buffer_.size() - utf8_unfinished(buffer_);
    return std::string_view(buffer_).substr(0, shown_);
  }

  // At the end: the beginning of a character that never became whole, usually nothing. Valid until
  // the next call; the decoder is then as new.
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
  DecodeOptions state_;    // at_start as it is now
  std::string buffer_;     // what was returned last, then what is held back
  std::size_t shown_ = 0;  // bytes of it that were returned
};

}}}  // namespace nibble::NIBBLE_ABI::text
