// SPDX-License-Identifier: Apache-2.0
//
// Tokens that a model never uses are rows of its embeddings and of its output layer: a third of
// the bundled model's weights, most of a small multilingual one's. A tokenizer that builds tokens
// by merging needs, beside the tokens of a text, those from which they are merged: close_tokens()
// adds them. A text whose tokens all stay is then cut as before.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

namespace detail {

// Sets array `key` to the elements `at` of that in `file`, in its own type.
template <class Number>
Result<void> write_selected(const io::Gguf& file, std::string_view key, std::span<const Number> at,
                            io::GgufWriter& writer) {
  const io::GgufValue* const value = file.find(key);
  if (value == nullptr) return ok();
  const auto select = [&]<class T, class As = T>(T, As = {})->Result<void> {
    NIBBLE_TRY(all, file.get_array<As>(key));
    std::vector<T> kept;
    for (const Number i : at) {
      if constexpr (std::is_same_v<As, T>) {
        kept.push_back(all[static_cast<std::size_t>(i)]);
      } else {
        kept.push_back(all[static_cast<std::size_t>(i)].value);
      }
    }
    writer.set_array(key, kept);
    return ok();
  };
  switch (value->element_type()) {
    case io::GgufType::string: return select(std::string_view());
    case io::GgufType::f32: return select(float(), Scalar<float>());
    case io::GgufType::i32: return select(std::int32_t(), Scalar<std::int32_t>());
    case io::GgufType::u32: return select(std::uint32_t(), Scalar<std::uint32_t>());
    case io::GgufType::boolean: return select(bool(), Scalar<bool>());
    default: break;
  }
  return Error{Errc::unsupported, file.name() + ": key " + io::quoted(key) + ": an array of " +
                                      io::to_string(value->element_type()) + " to select from"};
}

// The vocabulary of a file as merging sees it.
class MergeVocabulary {
 public:
  static Result<MergeVocabulary> read(const io::Gguf& file) {
    MergeVocabulary v;
    NIBBLE_TRY(model, file.get_string("tokenizer.ggml.model"));
    if (model != "llama" && model != "gpt2") {
      return Error{Errc::unsupported,
                   file.name() + ": the tokenizer " + io::quoted(model) +
                       " cannot lose tokens here; those that can are llama and gpt2"};
    }
    v.has_merges_ = model == "gpt2";
    NIBBLE_TRY(texts, file.get_strings("tokenizer.ggml.tokens"));
    v.texts_ = std::move(texts);
    for (std::size_t i = v.texts_.size(); i-- > 0;) {
      v.ids_[v.texts_[i]] = static_cast<std::int32_t>(i);
    }
    v.types_.assign(v.texts_.size(), 1);
    if (file.find("tokenizer.ggml.token_type") != nullptr) {
      NIBBLE_TRY(types, file.get_array<Scalar<std::int32_t>>("tokenizer.ggml.token_type"));
      for (std::size_t i = 0; i < types.size() && i < v.types_.size(); ++i) {
        v.types_[i] = types[i].value;
      }
      if (types.size() != v.texts_.size()) return v.wrong_size(file, "types");
    } else {
      return Error{Errc::unsupported, file.name() + ": a tokenizer without token types: which " +
                                          "tokens it needs for itself is not known"};
    }
    v.scores_.assign(v.texts_.size(), 0);
    if (file.find("tokenizer.ggml.scores") != nullptr) {
      NIBBLE_TRY(scores, file.get_array<Scalar<float>>("tokenizer.ggml.scores"));
      if (scores.size() != v.texts_.size()) return v.wrong_size(file, "scores");
      for (std::size_t i = 0; i < scores.size(); ++i) v.scores_[i] = scores[i].value;
    }
    if (v.has_merges_) {
      NIBBLE_TRY(merges, file.get_strings("tokenizer.ggml.merges"));
      v.merges_ = std::move(merges);
      for (std::size_t rank = v.merges_.size(); rank-- > 0;) v.ranks_[v.merges_[rank]] = rank;
    }
    return v;
  }

  std::size_t size() const noexcept { return texts_.size(); }
  bool has_merges() const noexcept { return has_merges_; }
  std::span<const std::string_view> merges() const noexcept { return merges_; }
  // Tokens that a tokenizer needs whatever the text: unknown, control, user-defined, and bytes,
  // without which it could not cut every text.
  bool is_needed(std::size_t id) const noexcept {
    if (types_[id] == 2 || types_[id] == 3 || types_[id] == 4 || types_[id] == 6) return true;
    if (!has_merges_) return false;
    // Byte-level BPE: the 256 characters that stand for bytes.
    return utf8_length(texts_[id]) == 1;
  }
  std::int32_t find(std::string_view text) const noexcept {
    const auto found = ids_.find(text);
    return found == ids_.end() ? -1 : found->second;
  }
  // The two texts of a merge; the first may begin with a space.
  static std::pair<std::string_view, std::string_view> parts_of(std::string_view merge) noexcept {
    const std::size_t space = merge.find(' ', 1);
    if (space == merge.npos) return {merge, {}};
    return {merge.substr(0, space), merge.substr(space + 1)};
  }

  // Marks the tokens from which the tokenizer builds `id`: it is cut into characters, and of all
  // neighbours that can be merged the best are, the first of equal ones. Within a longer text the
  // same happens between the ends of the token, so these are all that are needed.
  void mark_parts(std::size_t id, std::vector<bool>& kept) const {
    if (types_[id] != 1) return;  // found as a whole
    std::vector<std::string_view> parts = characters_of(texts_[id]);
    while (true) {
      for (const std::string_view part : parts) {
        if (const std::int32_t i = find(part); i >= 0) kept[static_cast<std::size_t>(i)] = true;
      }
      std::size_t best = parts.size();
      std::optional<double> best_score;
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        const std::optional<double> score = score_of(parts[i], parts[i + 1]);
        if (!score || (best_score && *score <= *best_score)) continue;
        best = i;
        best_score = score;
      }
      if (best == parts.size()) return;
      parts[best] = union_of(parts[best], parts[best + 1]);
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  }

 private:
  Error wrong_size(const io::Gguf& file, const char* what) const {
    return {Errc::malformed, file.name() + ": the tokenizer has not as many " + what + " as its " +
                                 to_text(texts_.size()) + " tokens"};
  }
  static std::size_t utf8_length(std::string_view text) noexcept {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    }));
  }
  static std::vector<std::string_view> characters_of(std::string_view text) {
    std::vector<std::string_view> characters;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t n = 1;
      while (at + n < text.size() && (static_cast<unsigned char>(text[at + n]) & 0xC0) == 0x80) ++n;
      characters.push_back(text.substr(at, n));
      at += n;
    }
    return characters;
  }
  // Of two neighbours in one text.
  static std::string_view union_of(std::string_view left, std::string_view right) noexcept {
    return {left.data(), left.size() + right.size()};
  }
  // How early two neighbours are merged; nothing if they are not. Byte-level BPE goes by the list
  // of merges, which may have several for one token; SentencePiece by the score of their union.
  std::optional<double> score_of(std::string_view left, std::string_view right) const {
    if (has_merges_) {
      const auto rank = ranks_.find(std::string(left).append(" ").append(right));
      if (rank == ranks_.end()) return {};
      return -static_cast<double>(rank->second);
    }
    const std::int32_t id = find(union_of(left, right));
    if (id < 0) return {};
    return static_cast<double>(scores_[static_cast<std::size_t>(id)]);
  }

  bool has_merges_ = false;
  std::vector<std::string_view> texts_;
  std::vector<std::int32_t> types_;
  std::vector<float> scores_;
  std::vector<std::string_view> merges_;
  std::map<std::string_view, std::int32_t> ids_;
  std::map<std::string_view, std::size_t> ranks_;  // of merges; of a repeated one the first
};

inline bool is_token_key(std::string_view key) noexcept {
  return key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id");
}

}  // namespace detail

// The tokens that stay if those in `used` do (any order, repeated or not): also those with a role,
// those that the tokenizer needs for any text, and those from which others are merged. Ascending,
// for PruneKeep::tokens. Errors: unsupported (a tokenizer that cannot lose tokens), malformed,
// invalid_argument (a token that does not exist).
inline Result<std::vector<std::int32_t>> close_tokens(const io::Gguf& file,
                                                      std::span<const std::int32_t> used) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::int32_t>> {
    NIBBLE_TRY(vocabulary, detail::MergeVocabulary::read(file));
    std::vector<bool> kept(vocabulary.size());
    for (const std::int32_t id : used) {
      if (id < 0 || static_cast<std::size_t>(id) >= kept.size()) {
        return Error{Errc::invalid_argument,
                     "pruning: token " + to_text(id) + " of " + to_text(kept.size())};
      }
      kept[static_cast<std::size_t>(id)] = true;
    }
    for (const io::GgufEntry& entry : file.metadata()) {
      if (!detail::is_token_key(entry.key)) continue;
      NIBBLE_TRY(id, entry.value.as<std::int64_t>());
      if (id >= 0 && static_cast<std::size_t>(id) < kept.size()) {
        kept[static_cast<std::size_t>(id)] = true;
      }
    }
    for (std::size_t id = 0; id < kept.size(); ++id) {
      if (vocabulary.is_needed(id)) kept[id] = true;
    }
    const std::vector<bool> roots = kept;
    for (std::size_t id = 0; id < kept.size(); ++id) {
      if (roots[id]) vocabulary.mark_parts(id, kept);
    }
    std::vector<std::int32_t> ids;
    for (std::size_t id = 0; id < kept.size(); ++id) {
      if (kept[id]) ids.push_back(static_cast<std::int32_t>(id));
    }
    return ids;
  });
}

namespace detail {

// The new number of each role's token.
inline Result<void> write_roles(const io::Gguf& file, std::span<const std::int32_t> tokens,
                                std::size_t n_tokens, io::GgufWriter& writer) {
  for (const io::GgufEntry& entry : file.metadata()) {
    if (!is_token_key(entry.key)) continue;
    NIBBLE_TRY(id, entry.value.as<std::int64_t>());
    if (id < 0 || static_cast<std::size_t>(id) >= n_tokens) {
      // "No such token", or one beyond the vocabulary, which stays beyond it.
      writer.set(entry.key, std::uint32_t{0xFFFFFFFF});
      continue;
    }
    const auto found = std::lower_bound(tokens.begin(), tokens.end(), id);
    if (found == tokens.end() || *found != id) {
      return Error{Errc::invalid_argument, "pruning: token " + to_text(id) + " is " +
                                               io::quoted(entry.key) +
                                               " and must stay; see close_tokens()"};
    }
    writer.set(entry.key, static_cast<std::uint32_t>(found - tokens.begin()));
  }
  return ok();
}

// The tokenizer of a model that keeps only `tokens`.
inline Result<void> write_kept_vocabulary(const io::Gguf& file,
                                          std::span<const std::int32_t> tokens,
                                          io::GgufWriter& writer) {
  NIBBLE_TRY(vocabulary, MergeVocabulary::read(file));
  std::vector<bool> kept(vocabulary.size());
  std::int32_t last = -1;
  for (const std::int32_t id : tokens) {
    if (id <= last || static_cast<std::size_t>(id) >= kept.size()) {
      return Error{Errc::invalid_argument, "pruning: tokens to keep are not ascending numbers " +
                                               std::string("below ") + to_text(kept.size())};
    }
    last = id;
    kept[static_cast<std::size_t>(id)] = true;
  }
  for (std::size_t id = 0; id < kept.size(); ++id) {
    if (kept[id] || !vocabulary.is_needed(id)) continue;
    return Error{Errc::invalid_argument, "pruning: the tokenizer needs token " + to_text(id) +
                                             " for any text; see close_tokens()"};
  }
  NIBBLE_CHECK(write_roles(file, tokens, kept.size(), writer));
  for (const char* const key :
       {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    NIBBLE_CHECK(write_selected(file, key, tokens, writer));
  }
  if (vocabulary.has_merges()) {
    std::vector<std::string_view> merges;
    for (const std::string_view merge : vocabulary.merges()) {
      const auto [left, right] = MergeVocabulary::parts_of(merge);
      bool stays = true;
      for (const std::string& part :
           {std::string(left), std::string(right), std::string(left).append(right)}) {
        const std::int32_t id = vocabulary.find(part);
        stays = stays && id >= 0 && kept[static_cast<std::size_t>(id)];
      }
      if (stays) merges.push_back(merge);
    }
    writer.set_array("tokenizer.ggml.merges", merges);
  }
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  if (const std::string key = std::string(name) + ".vocab_size"; file.find(key) != nullptr) {
    writer.set(key, static_cast<std::uint32_t>(tokens.size()));
  }
  return ok();
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::compress
