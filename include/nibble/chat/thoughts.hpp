// SPDX-License-Identifier: Apache-2.0
//
// Separates what a model thinks from what it answers, as the text is generated. Models that think
// write <think>...</think> (or [THINK]...[/THINK]) before their answer; the templates of some write
// the first tag themselves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "nibble/chat/characters.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

class ThoughtSplitter {
 public:
  // `prompt`: the text that is answered; it may end with the tag that begins the thoughts.
  explicit ThoughtSplitter(std::string_view prompt = {}) {
    for (const Tags& tags : kTags) {
      if (without_trailing_space(prompt).ends_with(tags.begin)) tags_ = &tags;
    }
    is_thinking_ = tags_ != nullptr;
  }

  bool is_thinking() const noexcept { return is_thinking_; }

  // Takes more of the text, in pieces of any size. Calls show(part, is_thought) with all of it that
  // is no tag, in parts; what may be the beginning of a tag is held back.
  template <class Show>
  void push(std::string_view text, Show show) {
    held_ += text;
    while (may_have_tag()) {
      const Tags* const tags = is_thinking_ ? tags_ : next_begin();
      if (tags == nullptr) break;
      const std::string_view tag = is_thinking_ ? tags->end : tags->begin;
      const std::size_t at = held_.find(tag);
      if (at == held_.npos) break;
      take(at, show);
      held_.erase(0, tag.size());
      is_thinking_ = !is_thinking_;
      tags_ = tags;
    }
    take(held_.size() - (may_have_tag() ? begun_tag() : 0), show);
  }

  // The end of the text: what was held back is no tag.
  template <class Show>
  void finish(Show show) {
    take(held_.size(), show);
  }

  // All that was shown so far, without the white space around it.
  std::string_view thoughts() const noexcept { return trimmed(thoughts_); }
  std::string_view answer() const noexcept { return trimmed(answer_); }

 private:
  struct Tags {
    std::string_view begin, end;
  };
  NIBBLE_HIDDEN static constexpr Tags kTags[] = {{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}};

  static std::string_view trimmed(std::string_view text) noexcept {
    return without_leading_space(without_trailing_space(text));
  }

  // Thoughts come before the answer: a tag inside it is part of it.
  bool may_have_tag() const noexcept { return is_thinking_ || answer().empty(); }

  // The tags of which the first one comes first in the text that is held.
  const Tags* next_begin() const noexcept {
    const Tags* first = nullptr;
    std::size_t first_at = held_.npos;
    for (const Tags& tags : kTags) {
      const std::size_t at = held_.find(tags.begin);
      if (at >= first_at) continue;
      first = &tags;
      first_at = at;
    }
    // Behind other text it would be inside an answer.
    return trimmed(std::string_view(held_).substr(0, first_at)).empty() ? first : nullptr;
  }

  // How many bytes at the end may be the beginning of a tag.
  std::size_t begun_tag() const noexcept {
    std::size_t longest = 0;
    for (const Tags& tags : kTags) {
      const std::string_view tag = is_thinking_ ? tags_->end : tags.begin;
      for (std::size_t n = (std::min)(tag.size() - 1, held_.size()); n > longest; --n) {
        if (held_.ends_with(tag.substr(0, n))) longest = n;
      }
    }
    return longest;
  }

  template <class Show>
  void take(std::size_t n, Show show) {
    if (n == 0) return;
    const std::string_view part = std::string_view(held_).substr(0, n);
    (is_thinking_ ? thoughts_ : answer_).append(part);
    show(part, is_thinking_);
    held_.erase(0, n);
  }

  const Tags* tags_ = nullptr;  // those of the thoughts that have begun
  bool is_thinking_ = false;
  std::string held_;
  std::string thoughts_, answer_;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
