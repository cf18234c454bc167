// SPDX-License-Identifier: Apache-2.0
#include "forms/split/answer.hpp"

#include "nibble/text/tokenizer.hpp"

namespace split {

nibble::Result<std::string> answer(const nibble::Model& model, nibble::Executor& executor,
                                   std::string_view prompt) {
  if (model.tokenizer() == nullptr || model.tokenizer()->vocabulary().size() == 0) {
    return nibble::Error{nibble::Errc::not_found, "tokenizer"};
  }
  NIBBLE_TRY(session, nibble::Session::create(model, {.executor = &executor}));
  std::string text;
  NIBBLE_TRY(done, nibble::generate(session, prompt, {}, [&](const nibble::Token& token) {
               text += token.text;
               return true;
             }));
  if (done.n_tokens < 1) return nibble::Error{nibble::Errc::malformed, "no tokens"};
  return text;
}

}  // namespace split
