// SPDX-License-Identifier: Apache-2.0
//
// A slow recognizer for the expressions of a grammar, to compare with: it tries everything, text
// position by text position, and shares nothing with automata.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "nibble/grammar/rules.hpp"

namespace test {

// Of one text. The grammar must have no left recursion and no rules that match nothing.
class Recognizer {
 public:
  Recognizer(const nibble::grammar::Rules& rules, nibble::grammar::RuleId root,
             std::string_view text)
      : rules_(rules), text_(text) {
    const std::set<std::size_t> ends = ends_of(rules.body(root), 0);
    is_whole_ = ends.contains(text.size());
    is_beginning_ = is_beginning_ || is_whole_;
  }

  // Whether the text is in the grammar, or more text could make it so.
  bool is_whole() const { return is_whole_; }
  bool is_beginning() const { return is_beginning_; }

 private:
  using Ends = std::set<std::size_t>;

  Ends ends_of(nibble::grammar::ExprId id, std::size_t at) {
    const auto key = std::pair(id.value, at);
    if (const auto known = known_.find(key); known != known_.end()) return known->second;
    Ends ends = find_ends(id, at);
    known_[key] = ends;
    return ends;
  }

  Ends find_ends(nibble::grammar::ExprId id, std::size_t at) {
    using Kind = nibble::grammar::Expr::Kind;
    const nibble::grammar::Expr& e = rules_.expr(id);
    Ends ends;
    switch (e.kind) {
      case Kind::text: {
        const std::string_view wanted = rules_.text_of(e);
        const std::string_view have = text_.substr(at);
        if (have.starts_with(wanted))
          ends.insert(at + wanted.size());
        else if (wanted.starts_with(have))
          is_beginning_ = true;
        break;
      }
      case Kind::set: ends = ends_of_character(rules_.set_of(e), at); break;
      case Kind::rule: ends = ends_of(rules_.body({e.first}), at); break;
      case Kind::choice:
        for (const auto part : rules_.parts(e)) ends.merge(ends_of(part, at));
        break;
      case Kind::sequence: {
        ends = {at};
        for (const auto part : rules_.parts(e)) {
          Ends next;
          for (const std::size_t from : ends) next.merge(ends_of(part, from));
          ends = next;
        }
        break;
      }
      case Kind::repeat: {
        Ends now = {at}, seen;
        if (e.min == 0) ends = now;
        for (std::uint32_t n = 1; n <= e.max && !now.empty(); ++n) {
          Ends next;
          for (const std::size_t from : now) next.merge(ends_of(rules_.parts(e)[0], from));
          if (n >= e.min) ends.insert(next.begin(), next.end());
          if (n > e.min && next == seen) break;
          seen = now = next;
          if (n > e.min + text_.size() + 2) break;
        }
        break;
      }
    }
    return ends;
  }

  Ends ends_of_character(const nibble::grammar::CodePoints& set, std::size_t at) {
    const std::string_view have = text_.substr(at, 4);
    if (have.empty()) {
      is_beginning_ = true;
      return {};
    }
    const auto lead = static_cast<unsigned char>(have[0]);
    const std::size_t n = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (n == 0 || lead >= 0xF8) return {};
    // The characters that begin with these bytes are low to high.
    std::uint32_t low = n == 1 ? lead : lead & (0x7Fu >> n), high = low;
    for (std::size_t i = 1; i < n; ++i) {
      const bool is_there = i < have.size();
      const auto byte = is_there ? static_cast<unsigned char>(have[i]) : 0x80u;
      if ((byte & 0xC0) != 0x80) return {};
      low = low << 6 | (byte & 0x3F);
      high = high << 6 | (is_there ? byte & 0x3F : 0x3F);
    }
    low = std::max(low, n == 2 ? 0x80u : n == 3 ? 0x800u : n == 4 ? 0x10000u : 0u);
    for (const auto& range : set.ranges()) {
      for (std::uint32_t c = std::max(low, range.first); c <= std::min(high, range.last); ++c) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        if (have.size() >= n) return {at + n};
        is_beginning_ = true;
        return {};
      }
    }
    return {};
  }

  const nibble::grammar::Rules& rules_;
  std::string_view text_;
  std::map<std::pair<std::uint32_t, std::size_t>, Ends> known_;
  bool is_whole_ = false;
  bool is_beginning_ = false;
};

}  // namespace test
