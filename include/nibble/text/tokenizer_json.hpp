// SPDX-License-Identifier: Apache-2.0
//
// Reads the vocabulary of a hub folder: tokenizer.json, and tokenizer_config.json beside it.
#pragma once

#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// The vocabulary refers to neither text afterwards. `config`, the text of tokenizer_config.json,
// may be empty. Errors name the member that is wrong or not supported.
inline Result<Vocabulary> read_tokenizer_json(std::string_view json, std::string_view config = {}) {
  static_cast<void>(json);
  static_cast<void>(config);
  return Error{Errc::unsupported, "tokenizer.json is not read yet"};
}

}}}  // namespace nibble::NIBBLE_ABI::text
