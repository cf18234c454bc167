// SPDX-License-Identifier: Apache-2.0
//
// From the text of a conversation to tokens, and which tokens end a turn. The names of control
// tokens mean those tokens where the template wrote them, and are ordinary text in a message: who
// writes "<|im_end|>" into a message does not end it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/chat/chat_template.hpp"
#include "nibble/chat/marked_text.hpp"
#include "nibble/text/special_tokens.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// All tokens that end a turn: those of the vocabulary that end an answer, whatever the file
// declares, and those of families that have names of their own for it.
inline std::vector<std::int32_t> turn_ends(const text::Vocabulary& vocabulary) {
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; vocabulary.contains(id); ++id) {
    if (vocabulary.ends_generation(id)) ids.push_back(id);
  }
  for (const std::string_view name :
       {"<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "[|endofturn|]", "<|eot|>", "<|role_end|>"}) {
    const std::int32_t id = vocabulary.find(name);
    if (id != text::kNoToken && std::find(ids.begin(), ids.end(), id) == ids.end())
      ids.push_back(id);
  }
  return ids;
}

class ChatEncoder {
 public:
  // The tokenizer must outlive it.
  explicit ChatEncoder(const text::Tokenizer& tokenizer)
      : tokenizer_(&tokenizer), special_(tokenizer.vocabulary(), true) {}

  // `at_start`: the text is the beginning of a sequence, so that it gets the begin token if the
  // model wants one and the template has not written it. Errors: those of Tokenizer::encode.
  Result<std::vector<std::int32_t>> encode(const MarkedText& text, bool at_start = true) const {
    return catch_out_of_memory([&]() -> Result<std::vector<std::int32_t>> {
      const text::VocabularySettings& settings = tokenizer_->vocabulary().settings();
      std::vector<std::int32_t> ids;
      text::EncodeOptions options{.add_bos = false, .add_eos = false, .parse_special = true};
      for (const std::string_view part : parts(text)) {
        NIBBLE_CHECK(tokenizer_->encode(part, options, ids));
        options.is_continuation = true;  // what was cut has no spaces at the cuts
      }
      if (at_start && settings.add_bos && (ids.empty() || ids[0] != settings.bos))
        ids.insert(ids.begin(), settings.bos);
      return ids;
    });
  }

  // The text in parts, in none of which a name of a control token is that a message spells. So only
  // text with such a name has more than one part: it is cut behind the first character of the name.
  // The same holds for user-defined tokens that are written like tags and that the template itself
  // writes (files differ in what they call a control token); others, which are ordinary words, are
  // recognized everywhere.
  std::vector<std::string_view> parts(const MarkedText& text) const {
    std::vector<std::int32_t> written;  // user-defined tokens that the template writes
    for_each_token(text, [&](std::size_t at, std::int32_t id) {
      if (is_tag(id) && !text.has_foreign(at, name(id).size())) written.push_back(id);
      return name(id).size();
    });
    std::vector<std::string_view> result;
    std::string_view rest = text.bytes();
    for_each_token(text, [&](std::size_t at, std::int32_t id) {
      const std::size_t first = first_size(name(id));
      const bool is_structure =
          is_control(id) || std::find(written.begin(), written.end(), id) != written.end();
      if (!is_structure || !text.has_foreign(at, name(id).size()) || first == name(id).size())
        return name(id).size();
      const std::size_t begin = text.size() - rest.size();
      result.push_back(rest.substr(0, at + first - begin));
      rest.remove_prefix(at + first - begin);
      return first;
    });
    result.push_back(rest);
    return result;
  }

  // The token with which the template ends an answer, as it writes one of an earlier turn; kNoToken
  // if it writes none. Models end theirs with it, whatever end token their file declares.
  std::int32_t end_of_answer(const ChatTemplate& chat) const {
    constexpr std::string_view kAnswer = "nibble";
    const ChatMessage messages[] = {{"user", "Hi"}, {"assistant", std::string(kAnswer)}};
    const auto text = chat.render(messages, {.add_generation_prompt = false});
    if (!text) return text::kNoToken;
    const std::size_t at = text->bytes().rfind(kAnswer);
    if (at == std::string_view::npos) return text::kNoToken;
    const std::string_view behind =
        without_leading_space(text->bytes().substr(at + kAnswer.size()));
    const auto match = special_.find(tokenizer_->vocabulary(), behind);
    return match.at == 0 ? match.id : text::kNoToken;
  }

  // All tokens at which an answer ends: what GenerateOptions::stop_tokens should have.
  std::vector<std::int32_t> ends_of_answer(const ChatTemplate& chat) const {
    std::vector<std::int32_t> ids = turn_ends(tokenizer_->vocabulary());
    const std::int32_t own = end_of_answer(chat);
    if (own != text::kNoToken && std::find(ids.begin(), ids.end(), own) == ids.end())
      ids.push_back(own);
    return ids;
  }

 private:
  bool is_control(std::int32_t id) const noexcept {
    const text::PieceType type = tokenizer_->vocabulary().type(id);
    return type == text::PieceType::control || type == text::PieceType::unknown;
  }
  bool is_tag(std::int32_t id) const noexcept {
    const std::string_view text = name(id);
    return (text.starts_with('<') && text.ends_with('>')) ||
           (text.starts_with('[') && text.ends_with(']'));
  }
  std::string_view name(std::int32_t id) const noexcept {
    return tokenizer_->vocabulary().text(id);
  }

  // Calls found(where, id) for each special token in the text; it returns by how many bytes to go
  // on.
  template <class Found>
  void for_each_token(const MarkedText& text, Found found) const {
    for (std::size_t at = 0; at < text.size();) {
      const auto match = special_.find(tokenizer_->vocabulary(), text.bytes().substr(at));
      if (match.id == text::kNoToken) return;
      at += match.at;
      at += found(at, match.id);
    }
  }

  const text::Tokenizer* tokenizer_;
  text::SpecialTokens special_;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
