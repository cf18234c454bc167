// SPDX-License-Identifier: Apache-2.0
//
// Reads the vocabulary of a hub folder: tokenizer.json, and tokenizer_config.json beside it. The
// first has the pieces and what happens to a text before and after they are used; the second names
// the tokens with a role.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/text/tokenizer_json_parts.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

class TokenizerJson {
 public:
  Result<void> read(std::string_view text) {
    io::JsonReader json(text);
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      if (key == "model") return read_model(json);
      if (key == "added_tokens") return json.array([&] { return read_added_token(json); });
      if (key == "normalizer") return read_part(json, normalizer_);
      if (key == "pre_tokenizer") return read_part(json, pre_tokenizer_);
      if (key == "post_processor") return read_part(json, post_processor_);
      return json.skip();
    }));
    if (!json.at_end()) return json.error("more text behind the tokenizer");
    if (type_ == "WordPiece") respell_words();
    return ok();
  }

  Result<Vocabulary> make(const TokenRoles& roles) const {
    NIBBLE_TRY(pieces, make_pieces());
    NIBBLE_TRY(settings, make_settings(pieces, roles));
    std::vector<TextMerge> merges;
    merges.reserve(merges_.size());
    for (const auto& [left, right] : merges_) merges.push_back({view(left), view(right)});
    return Vocabulary::make(pieces, settings, merges);
  }

 private:
  struct Text {
    std::size_t begin, size;  // in pool_
  };
  struct Entry {
    Text text;
    std::uint64_t id;
    float score;
  };
  struct AddedToken {
    Text text;
    std::uint64_t id;
    bool special, strip_after, strip_before, single_word;
  };

  // The parts with settings are small.
  static constexpr std::size_t kMaxPartBytes = std::size_t{1} << 20;

  std::string_view view(Text text) const noexcept {
    return std::string_view(pool_).substr(text.begin, text.size);
  }
  Result<Text> read_text(io::JsonReader& json) {
    NIBBLE_TRY(text, json.string());
    return keep(text);
  }
  Text keep(std::string_view text) {
    const Text kept = {pool_.size(), text.size()};
    pool_.append(text);
    return kept;
  }

  static Result<void> read_part(io::JsonReader& json, io::JsonValue& part) {
    NIBBLE_TRY(text, json.raw());
    if (text.size() > kMaxPartBytes)
      return Error{Errc::limit, "tokenizer.json: a part with settings has more than " +
                                    to_text(kMaxPartBytes) + " bytes"};
    NIBBLE_TRY(value, io::JsonValue::parse(text));
    part = std::move(value);
    return ok();
  }

  Result<void> read_model(io::JsonReader& json) {
    return json.object([&](const std::string& key) -> Result<void> {
      if (key == "type") return read_string(json, type_);
      if (key == "vocab") return json.peek() == '[' ? read_scored(json) : read_numbered(json);
      if (key == "merges") return json.array([&] { return read_merge(json); });
      if (key == "unk_token") return read_string(json, unk_token_);
      if (key == "unk_id") return read_number(json, unk_id_);
      if (key == "max_input_chars_per_word") return read_number(json, max_characters_);
      if (key == "byte_fallback") return read_flag(json, byte_fallback_);
      if (key == "fuse_unk") return read_flag(json, fuse_unk_);
      if (key == "ignore_merges") return read_flag(json, ignore_merges_);
      if (key == "continuing_subword_prefix") return read_string(json, word_prefix_);
      if (key == "end_of_word_suffix") return read_string(json, word_suffix_);
      return json.skip();
    });
  }

  // null is as if the member were not there.
  static Result<void> read_string(io::JsonReader& json, std::string& out) {
    if (json.accept_null()) return ok();
    NIBBLE_TRY(text, json.string());
    out = std::move(text);
    return ok();
  }
  static Result<void> read_flag(io::JsonReader& json, bool& out) {
    if (json.accept_null()) return ok();
    NIBBLE_TRY(flag, json.boolean());
    out = flag;
    return ok();
  }
  static Result<void> read_number(io::JsonReader& json, std::uint64_t& out) {
    if (json.accept_null()) return ok();
    NIBBLE_TRY(number, json.unsigned_integer());
    out = number;
    return ok();
  }

  // {"piece": id, ...}
  Result<void> read_numbered(io::JsonReader& json) {
    return json.object([&](const std::string& text) -> Result<void> {
      NIBBLE_TRY(id, json.unsigned_integer());
      entries_.push_back({keep(text), id, 0});
      return ok();
    });
  }

  // [["piece", score], ...]
  Result<void> read_scored(io::JsonReader& json) {
    return json.array([&]() -> Result<void> {
      Entry entry = {{}, entries_.size(), 0};
      std::size_t n = 0;
      NIBBLE_CHECK(json.array([&]() -> Result<void> {
        if (++n > 2) return json.error("a piece with more than a text and a score");
        if (n == 1) {
          NIBBLE_TRY(text, read_text(json));
          entry.text = text;
        } else {
          NIBBLE_TRY(score, json.number());
          entry.score = static_cast<float>(score);
        }
        return ok();
      }));
      if (n != 2) return json.error("a piece without a text or a score");
      entries_.push_back(entry);
      return ok();
    });
  }

  // Brings "##piece" and "piece" into GGUF's spelling: "piece" and "▁piece". Names in brackets
  // stay.
  void respell_words() {
    for (Entry& entry : entries_) {
      const std::string text(view(entry.text));
      if (text.starts_with("##")) {
        entry.text = {entry.text.begin + 2, entry.text.size - 2};
      } else if (!(text.starts_with('[') && text.ends_with(']') && text.size() > 2)) {
        const Text space = keep(kSpmSpace);
        entry.text = {space.begin, space.size + text.size()};
        pool_.append(text);
      }
    }
  }

  // "left right" or ["left", "right"].
  Result<void> read_merge(io::JsonReader& json) {
    if (json.peek() != '[') {
      NIBBLE_TRY(text, read_text(json));
      const TextMerge parts = split_merge(view(text));
      const std::size_t left = parts.left.size(), right = parts.right.size();
      merges_.push_back({{text.begin, left}, {text.begin + text.size - right, right}});
      return ok();
    }
    Text parts[2] = {};
    std::size_t n = 0;
    NIBBLE_CHECK(json.array([&]() -> Result<void> {
      if (n == 2) return json.error("a merge of more than two pieces");
      NIBBLE_TRY(text, read_text(json));
      parts[n++] = text;
      return ok();
    }));
    if (n != 2) return json.error("a merge of fewer than two pieces");
    merges_.push_back({parts[0], parts[1]});
    return ok();
  }

  Result<void> read_added_token(io::JsonReader& json) {
    AddedToken token = {};
    bool has_id = false;
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      if (key == "id") {
        NIBBLE_TRY(id, json.unsigned_integer());
        token.id = id;
        has_id = true;
        return ok();
      }
      if (key == "content") {
        NIBBLE_TRY(text, read_text(json));
        token.text = text;
        return ok();
      }
      if (key == "special") return read_flag(json, token.special);
      if (key == "rstrip") return read_flag(json, token.strip_after);
      if (key == "lstrip") return read_flag(json, token.strip_before);
      if (key == "single_word") return read_flag(json, token.single_word);
      return json.skip();
    }));
    if (!has_id) return json.error("an added token without an id");
    if (token.single_word)
      return Error{Errc::unsupported,
                   "the added token " + io::quoted(view(token.text)) + ": single_word"};
    added_tokens_.push_back(token);
    return ok();
  }

  Result<std::vector<Piece>> make_pieces() const;
  Result<VocabularySettings> make_settings(std::vector<Piece>& pieces,
                                           const TokenRoles& roles) const;
  Result<void> choose_kind(VocabularySettings& settings) const;

  std::string pool_;  // the texts of all pieces and merges
  std::string type_, unk_token_, word_prefix_, word_suffix_;
  std::uint64_t unk_id_ = static_cast<std::uint64_t>(-1);
  std::uint64_t max_characters_ = 100;  // in a word of WordPiece
  bool byte_fallback_ = false, fuse_unk_ = false, ignore_merges_ = false;
  std::vector<Entry> entries_;
  std::vector<std::pair<Text, Text>> merges_;
  std::vector<AddedToken> added_tokens_;
  io::JsonValue normalizer_, pre_tokenizer_, post_processor_;
};

inline Result<std::vector<Piece>> TokenizerJson::make_pieces() const {
  std::uint64_t size = 0;
  for (const Entry& entry : entries_) size = (std::max)(size, entry.id);
  for (const AddedToken& token : added_tokens_) size = (std::max)(size, token.id);
  const std::size_t n_named = entries_.size() + added_tokens_.size();
  if (n_named == 0) return Error{Errc::malformed, "tokenizer.json: there are no pieces"};
  // Some ids may have no piece, but not most of them.
  if (size > 4 * n_named + 4096)
    return Error{Errc::limit, "tokenizer.json: the id " + to_text(size) + " among " +
                                  to_text(n_named) + " pieces"};
  std::vector<Piece> pieces(io::narrow<std::size_t>(size) + 1, {{}, 0, PieceType::unused});
  for (const Entry& entry : entries_) {
    std::string_view text = view(entry.text);
    const bool is_byte = byte_fallback_ && byte_of_name(text) >= 0;
    pieces[io::narrow<std::size_t>(entry.id)] = {text, entry.score,
                                                 is_byte ? PieceType::byte : PieceType::normal};
  }
  for (const AddedToken& token : added_tokens_) {
    Piece& piece = pieces[io::narrow<std::size_t>(token.id)];
    piece.text = view(token.text);
    piece.type = token.special ? PieceType::control : PieceType::user_defined;
    piece.strip_after = token.strip_after;
    piece.strip_before = token.strip_before;
  }
  return pieces;
}

inline Result<void> TokenizerJson::choose_kind(VocabularySettings& settings) const {
  if (!word_prefix_.empty() && type_ == "BPE")
    return Error{Errc::unsupported, "tokenizer.json: continuing_subword_prefix with BPE"};
  if (!word_suffix_.empty()) return Error{Errc::unsupported, "tokenizer.json: end_of_word_suffix"};
  if (type_ == "BPE" || (type_.empty() && !merges_.empty())) {
    settings.kind = VocabularyKind::bpe;
    settings.ignore_merges = ignore_merges_;
    NIBBLE_TRY(replaces_spaces, read_bpe_normalizer(normalizer_, settings));
    settings.fuse_unknown = fuse_unk_;
    return read_pre_tokenizer(pre_tokenizer_, replaces_spaces, settings);
  }
  if (type_ == "WordPiece") {
    if (word_prefix_ != "##" && !word_prefix_.empty())
      return Error{Errc::unsupported, "tokenizer.json: continuing_subword_prefix is not \"##\""};
    if (max_characters_ != 100)
      return Error{Errc::unsupported, "tokenizer.json: max_input_chars_per_word is " +
                                          to_text(max_characters_) + ", not 100"};
    settings.kind = VocabularyKind::wordpiece;
    settings.add_space_prefix = true;
    NIBBLE_CHECK(read_bert_pre_tokenizer(pre_tokenizer_));
    return read_bert_normalizer(normalizer_, settings);
  }
  if (type_ == "Unigram") {
    settings.kind = VocabularyKind::unigram;
    return read_unigram_parts(normalizer_, pre_tokenizer_, settings);
  }
  return Error{Errc::unsupported,
               "tokenizer.json: the model " + io::quoted(type_) + " is not supported"};
}

inline Result<VocabularySettings> TokenizerJson::make_settings(std::vector<Piece>& pieces,
                                                               const TokenRoles& roles) const {
  VocabularySettings settings;
  settings.bos = settings.eos = settings.unk = kNoToken;
  settings.add_bos = settings.add_space_prefix = false;
  NIBBLE_CHECK(choose_kind(settings));
  const auto id_of = [&](std::string_view text) {
    for (std::size_t i = pieces.size(); i-- > 0 && !text.empty();)
      if (pieces[i].text == text) return static_cast<std::int32_t>(i);
    return kNoToken;
  };
  settings.unk = unk_id_ < pieces.size() ? static_cast<std::int32_t>(unk_id_) : id_of(unk_token_);
  if (settings.unk != kNoToken) {
    Piece& piece = pieces[static_cast<std::size_t>(settings.unk)];
    const PreTokenizer* const words = find_pre_tokenizer(settings.pre);
    // (Byte-level BPE needs none, and files name tokens that mean something else.)
    const bool is_byte_level =
        settings.kind == VocabularyKind::bpe && words != nullptr && words->byte_level;
    if (!is_byte_level || byte_fallback_) piece.type = PieceType::unknown;
  }
  const AddedEnds ends = ends_of(post_processor_);
  if (!ends.error.empty())
    return Error{Errc::unsupported, "tokenizer.json: post_processor: " + ends.error};
  settings.bos = id_of(ends.begin);
  settings.eos = id_of(ends.end);
  settings.add_bos = settings.bos != kNoToken;
  settings.add_eos = settings.eos != kNoToken;
  if (settings.bos == kNoToken) settings.bos = id_of(roles.bos);
  if (settings.eos == kNoToken) settings.eos = id_of(roles.eos);
  settings.pad = id_of(roles.pad);
  settings.mask = id_of(roles.mask);
  settings.add_bos = roles.add_bos.value_or(settings.add_bos);
  settings.add_eos = roles.add_eos.value_or(settings.add_eos);
  return settings;
}

}  // namespace detail

// The vocabulary refers to neither text afterwards. `config`, the text of tokenizer_config.json,
// may be empty. Errors name the member that is wrong or not supported.
inline Result<Vocabulary> read_tokenizer_json(std::string_view json, std::string_view config = {}) {
  return catch_out_of_memory([&]() -> Result<Vocabulary> {
    detail::TokenRoles roles;
    if (!config.empty()) {
      auto read = detail::read_roles(config);
      if (!read) return std::move(read).error().in("tokenizer_config.json");
      roles = *std::move(read);
    }
    detail::TokenizerJson tokenizer;
    auto read = tokenizer.read(json);
    if (!read) return std::move(read).error().in("tokenizer.json");
    return tokenizer.make(roles);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::text
