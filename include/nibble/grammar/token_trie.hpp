// SPDX-License-Identifier: Apache-2.0
//
// The texts of a vocabulary's tokens as a trie, to check all of them against a grammar in one walk.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/decode.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// A set of token ids.
class TokenSet {
 public:
  TokenSet() = default;
  // Empty; for ids in [0, n_tokens).
  explicit TokenSet(std::size_t n_tokens)
      : words_(spare_id(n_tokens) / 64 + 1), n_tokens_(n_tokens) {}

  std::size_t n_tokens() const noexcept { return n_tokens_; }
  bool contains(std::int32_t id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    return i < n_tokens_ && (words_[i / 64].value >> (i % 64) & 1) != 0;
  }
  // An id that add() takes and nothing shows: of what is no token.
  static constexpr std::size_t spare_id(std::size_t n_tokens) noexcept {
    return (n_tokens + 63) / 64 * 64;
  }
  // `id` is in [0, n_tokens), or the spare one.
  void add(std::int32_t id) noexcept {
    const auto i = static_cast<std::size_t>(id);
    words_[i / 64].value |= std::uint64_t{1} << (i % 64);
  }
  // `other` has as many ids.
  void add(std::span<const Scalar<std::uint64_t>> other) noexcept {
    for (std::size_t i = 0; i < other.size(); ++i) words_[i].value |= other[i].value;
  }
  void clear() noexcept { std::fill(words_.begin(), words_.end(), Scalar<std::uint64_t>{}); }
  std::size_t count() const noexcept {
    std::size_t n = 0;
    for (const auto word : words()) n += static_cast<std::size_t>(std::popcount(word.value));
    return n;
  }
  // The bits: id i is bit i % 64 of word i / 64.
  std::span<const Scalar<std::uint64_t>> words() const noexcept {
    return std::span<const Scalar<std::uint64_t>>(words_).first(spare_id(n_tokens_) / 64);
  }
  // Calls f(id) for each id, ascending.
  template <class Function>
  void for_each(Function f) const {
    for (std::size_t i = 0; i < words().size(); ++i) {
      for (std::uint64_t left = words_[i].value; left != 0; left &= left - 1) {
        f(static_cast<std::int32_t>(i * 64 + static_cast<std::size_t>(std::countr_zero(left))));
      }
    }
  }

 private:
  std::vector<Scalar<std::uint64_t>> words_;  // the last one is for the spare id
  std::size_t n_tokens_ = 0;
};

// Nodes in depth-first order. Node 0 is the empty text.
class Trie {
 public:
  struct Node {
    std::uint32_t end = 0;    // after its last descendant
    std::int32_t token = 0;   // whose text ends here; if there is none, the spare one of TokenSet
    std::uint16_t depth = 0;  // bytes of its text
    std::uint8_t byte = 0;    // the last of them
    bool has_more = false;    // other tokens have the same text
  };
  static constexpr std::size_t kMaxNodes = std::size_t{1} << 26;
  static constexpr std::size_t kMaxDepth = 0xFFFF;

  struct Text {
    std::string_view text;  // not empty
    std::int32_t id = 0;
  };
  // Sorts the texts, of a vocabulary of n_tokens. False: too many nodes, or too long a text.
  bool build(std::span<Text> texts, std::size_t n_tokens);

  std::uint32_t n_nodes() const noexcept { return static_cast<std::uint32_t>(nodes_.size()); }
  const Node& node(std::uint32_t i) const noexcept { return nodes_[i]; }
  bool has_token(std::uint32_t i) const noexcept { return nodes_[i].token != spare_; }
  // Adds the tokens whose text ends at the node.
  void add_tokens(std::uint32_t i, TokenSet& set) const noexcept {
    set.add(nodes_[i].token);
    if (nodes_[i].has_more) add_more(i, set);
  }
  // Finds the node of a text. False: no text begins with it.
  bool find(std::string_view text, std::uint32_t& node) const noexcept {
    node = 0;
    for (const char c : text) {
      const std::uint32_t end = nodes_[node].end;
      std::uint32_t child = node + 1;
      while (child < end && nodes_[child].byte != static_cast<std::uint8_t>(c)) {
        child = nodes_[child].end;
      }
      if (child >= end) return false;
      node = child;
    }
    return true;
  }
  // Bytes of the longest text.
  std::size_t depth() const noexcept { return depth_; }

 private:
  struct More {
    std::uint32_t node;
    std::int32_t token;
  };
  void add_more(std::uint32_t i, TokenSet& set) const noexcept {
    auto more =
        std::partition_point(more_.begin(), more_.end(), [&](const More& m) { return m.node < i; });
    for (; more != more_.end() && more->node == i; ++more) set.add(more->token);
  }

  std::vector<Node> nodes_{Node{1}};
  std::vector<More> more_;  // ascending
  std::int32_t spare_ = 0;
  std::size_t depth_ = 0;
};

inline bool Trie::build(std::span<Text> texts, std::size_t n_tokens) {
  std::sort(texts.begin(), texts.end(), [](const Text& a, const Text& b) {
    return a.text != b.text ? a.text < b.text : a.id < b.id;
  });
  spare_ = static_cast<std::int32_t>(TokenSet::spare_id(n_tokens));
  nodes_.assign(1, {0, spare_});
  std::vector<Scalar<std::uint32_t>> path{{0}};  // the nodes of the last text
  std::string_view last;
  for (const Text& t : texts) {
    if (t.text.size() > kMaxDepth) return false;
    std::size_t same = 0;
    while (same < last.size() && same < t.text.size() && last[same] == t.text[same]) ++same;
    const auto here = static_cast<std::uint32_t>(nodes_.size());
    for (std::size_t i = same + 1; i < path.size(); ++i) nodes_[path[i].value].end = here;
    path.resize(same + 1);
    for (std::size_t i = same; i < t.text.size(); ++i) {
      if (nodes_.size() == kMaxNodes) return false;
      path.push_back({static_cast<std::uint32_t>(nodes_.size())});
      nodes_.push_back(
          {0, spare_, static_cast<std::uint16_t>(i + 1), static_cast<std::uint8_t>(t.text[i])});
    }
    Node& node = nodes_[path.back().value];
    if (node.token == spare_) {
      node.token = t.id;
    } else {
      node.has_more = true;
      more_.push_back({path.back().value, t.id});
    }
    depth_ = (std::max)(depth_, t.text.size());
    last = t.text;
  }
  const auto here = static_cast<std::uint32_t>(nodes_.size());
  for (const auto node : path) nodes_[node.value].end = here;
  return true;
}

// What grammars need to know of a vocabulary. Make it once for a tokenizer; immutable, so threads
// and grammars may share it. (128 256 tokens: about 10 MB.)
//
// Tokens count with the text that they add to an answer: control and unknown tokens have none, and
// unused ones are left out, too. No grammar allows those.
class TokenTrie {
 public:
  // Errors: limit (more than Trie::kMaxNodes bytes of tokens without a common beginning).
  static Result<TokenTrie> create(const text::Vocabulary& vocabulary) {
    return catch_out_of_memory([&]() -> Result<TokenTrie> {
      TokenTrie trie;
      NIBBLE_CHECK(trie.read(vocabulary));
      return trie;
    });
  }

  std::size_t n_tokens() const noexcept { return begins_.size() - 1; }
  bool contains(std::int32_t id) const noexcept {
    return id >= 0 && static_cast<std::size_t>(id) < n_tokens();
  }
  // The text of a token; empty if no grammar allows it.
  std::string_view text(std::int32_t id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(bytes_).substr(begins_[i].value,
                                           begins_[i + 1].value - begins_[i].value);
  }
  // The tokens that end an answer, ascending: allowed where the text may end.
  std::span<const Scalar<std::int32_t>> ends() const noexcept { return ends_; }
  bool is_end(std::int32_t id) const noexcept {
    return std::binary_search(ends_.begin(), ends_.end(), Scalar<std::int32_t>{id},
                              [](auto a, auto b) { return a.value < b.value; });
  }

  const Trie& all() const noexcept { return all_; }
  // Tokens of more than kLong bytes: few, most of them spaces or the like.
  static constexpr std::size_t kLong = 24;
  const Trie& long_ones() const noexcept { return long_ones_; }

  // ---- Plain tokens: of characters that JSON strings have as they are, '"' and '\' excepted ----
  // Grammars that allow any text somewhere allow all of these at once, which spares walking them:
  // the "slices" of llguidance.
  static constexpr bool is_plain(std::uint32_t c) noexcept {
    return c >= 0x20 && c != '"' && c != '\\' && c != 0x7F;
  }
  // The trie of the other tokens.
  const Trie& others() const noexcept { return others_; }
  const TokenSet& plain() const noexcept { return plain_; }
  // The plain tokens of at most `length` characters, and of at most kLong bytes; length <= kLong.
  const TokenSet& plain(std::size_t length) const noexcept { return plain_sets_[length]; }

  // Bytes that it takes.
  std::size_t bytes() const noexcept;

 private:
  TokenTrie() = default;
  Result<void> read(const text::Vocabulary& vocabulary);
  void find_plain(std::span<const Trie::Text> texts);
  // Characters of a text of plain ones; 0 for any other.
  static std::size_t plain_characters(std::string_view text) noexcept;

  std::string bytes_;
  std::vector<Scalar<std::uint32_t>> begins_;
  std::vector<Scalar<std::int32_t>> ends_;
  Trie all_, long_ones_, others_;
  TokenSet plain_;
  std::vector<TokenSet> plain_sets_;  // those of at most so many characters, 0 to kLong
};

inline Result<void> TokenTrie::read(const text::Vocabulary& vocabulary) {
  const std::size_t n = vocabulary.size();
  begins_.reserve(n + 1);
  std::vector<Trie::Text> texts;
  for (std::int32_t id = 0; vocabulary.contains(id); ++id) {
    begins_.push_back({static_cast<std::uint32_t>(bytes_.size())});
    if (vocabulary.ends_generation(id)) {
      ends_.push_back({id});
    } else if (vocabulary.type(id) != text::PieceType::unused) {
      text::append_token_text(vocabulary, id, false, bytes_);
    }
  }
  begins_.push_back({static_cast<std::uint32_t>(bytes_.size())});
  for (std::int32_t id = 0; contains(id); ++id)
    if (!text(id).empty()) texts.push_back({text(id), id});
  if (!all_.build(texts, n)) {
    return Error{Errc::limit, "grammar: the vocabulary has more than " + to_text(Trie::kMaxNodes) +
                                  " bytes of tokens, or a token of more than " +
                                  to_text(Trie::kMaxDepth)};
  }
  find_plain(texts);
  std::vector<Trie::Text> some = texts;
  std::erase_if(some, [](const Trie::Text& t) { return t.text.size() <= kLong; });
  long_ones_.build(some, n);
  std::erase_if(texts, [&](const Trie::Text& t) { return plain_.contains(t.id); });
  others_.build(texts, n);
  return ok();
}

inline std::size_t TokenTrie::plain_characters(std::string_view text) noexcept {
  std::size_t n = 0;
  for (; !text.empty(); ++n) {
    const std::size_t length = utf8_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (length == 0 || !is_plain(first)) return 0;
    text.remove_prefix(length);
  }
  return n;
}

inline void TokenTrie::find_plain(std::span<const Trie::Text> texts) {
  plain_ = TokenSet(n_tokens());
  plain_sets_.assign(kLong + 1, TokenSet(n_tokens()));
  for (const Trie::Text& t : texts) {
    const std::size_t length = plain_characters(t.text);
    if (length == 0) continue;
    plain_.add(t.id);
    if (t.text.size() <= kLong) plain_sets_[length].add(t.id);
  }
  for (std::size_t i = 1; i <= kLong; ++i) plain_sets_[i].add(plain_sets_[i - 1].words());
}

inline std::size_t TokenTrie::bytes() const noexcept {
  const std::size_t n_nodes = all_.n_nodes() + others_.n_nodes() + long_ones_.n_nodes();
  return bytes_.capacity() + begins_.capacity() * sizeof(std::uint32_t) +
         n_nodes * sizeof(Trie::Node) + (plain_sets_.size() + 1) * plain_.words().size() * 8;
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
