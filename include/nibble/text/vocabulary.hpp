// SPDX-License-Identifier: Apache-2.0
//
// The vocabulary of a model: its pieces with their scores and types, its merges, the tokens with a
// special role, and hash tables to find pieces and merges. Immutable after creation, so threads may
// share one.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/byte_characters.hpp"
#include "nibble/text/hash_index.hpp"
#include "nibble/text/pre_tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// What stands for a space in the pieces of SentencePiece: U+2581, "▁".
NIBBLE_HIDDEN inline constexpr std::string_view kSpmSpace = "\xE2\x96\x81";

// Value of a token id that means: no token.
inline constexpr std::int32_t kNoToken = -1;

// The values are GGUF's (tokenizer.ggml.token_type).
enum class PieceType : std::uint8_t {
  undefined = 0,
  normal = 1,
  unknown = 2,       // represents text that the vocabulary cannot spell
  control = 3,       // begin, end, roles of a chat: no text of its own
  user_defined = 4,  // recognized in any text before all other pieces
  unused = 5,
  byte = 6,  // "<0x00>" to "<0xFF>": spells what no other piece spells
};

struct Piece {
  std::string_view text;
  float score = 0;  // the pair whose union has the highest score merges first
  PieceType type = PieceType::normal;
  bool strip_after = false;   // of a special token: the white space behind it is dropped
  bool strip_before = false;  // the white space before it is
};

// A rule of byte-level BPE: these two pieces, side by side, become the piece that has both texts.
struct TextMerge {
  std::string_view left, right;
};

// How text becomes pieces. GGUF's names (tokenizer.ggml.model): llama, gpt2, bert, t5.
enum class VocabularyKind : std::uint8_t { spm, bpe, wordpiece, unigram };

// Which characters are spaces where spaces are merged and dropped.
enum class WhiteSpace : std::uint8_t {
  spaces,     // only spaces: SentencePiece
  ends,       // what is dropped at the ends is any white space: Hugging Face's "Strip"
  everywhere  // any white space: "WhitespaceSplit"
};

// The settings of a vocabulary besides its pieces. The defaults are those of GGUF for
// tokenizer.ggml.model = "llama". An id is kNoToken or the index of a piece.
struct VocabularySettings {
  VocabularyKind kind = VocabularyKind::spm;
  std::string pre = "default";  // bpe: the name of the pre-tokenizer (pre_tokenizer.hpp)
  std::int32_t bos = 1;
  std::int32_t eos = 2;
  std::int32_t unk = 0;
  std::int32_t pad = kNoToken;
  std::int32_t eot = kNoToken;   // end of a turn
  std::int32_t eom = kNoToken;   // end of a message, which a tool is to answer
  std::int32_t mask = kNoToken;  // what a model is to fill in
  bool add_bos = true;
  bool add_eos = false;
  bool add_space_prefix = true;  // encode text as if a space stood before it (wordpiece: always)
  bool prefix_once = false;      // only at the beginning, not after special tokens
  bool prefix_unless_space = false;  // only before what does not begin with a space
  bool splits_spaces = false;        // spm, bpe of characters, unigram: each space begins a word
  bool ignore_merges = false;  // bpe: a word that is a piece is that token, whatever merging gives
  bool fuse_unknown = false;   // spm, bpe of characters: unknown characters in a row are one token
  bool compose = false;        // bring the text into Unicode's form NFC first
  bool lower_case = false;     // wordpiece: make the text lower case
  bool strip_accents = false;  // wordpiece: drop marks
  bool clean_text = true;      // wordpiece: drop controls
  bool split_chinese = true;   // wordpiece: each Chinese character is a word
  // spm, unigram: spaces in a row are one, those at the ends none, or also one where this says so.
  bool merges_spaces = false;
  bool keeps_first_space = false;
  bool keeps_last_space = false;
  WhiteSpace white_space = WhiteSpace::spaces;
  std::string characters_map = {};  // spm, unigram: what replaces what (characters_map.hpp)
};

namespace detail {

// "left right"; a space may be the first character of the left one.
inline TextMerge split_merge(std::string_view text) noexcept {
  const std::size_t at = text.find(' ', 1);
  if (at == text.npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

// The byte that "<0xNN>" names; -1 for any other text.
constexpr int byte_of_name(std::string_view text) noexcept {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace detail

class Vocabulary {
 public:
  // Longer pieces are rejected: the time to encode a text grows with its length times this value.
  static constexpr std::size_t kMaxPieceBytes = 4096;

  // Copies the pieces; a token id is an index into `pieces`. Errors: no pieces, more pieces than an
  // id can count, a piece that is too long, a score that is not finite, an invalid type, a byte
  // piece that is not written "<0xNN>", an id outside the vocabulary, a vocabulary that cannot
  // spell every text (it needs 256 byte pieces or an unknown token; with bpe, bytes that have no
  // piece are lost), a pre-tokenizer that is not known, merges of what is no piece.
  //
  // If several ids have the same text, the text is encoded as the last of them, and all of them
  // decode to it. Other programs do the same (such files exist). An empty piece is never encoded.
  static Result<Vocabulary> make(std::span<const Piece> pieces, const VocabularySettings& settings,
                                 std::span<const TextMerge> merges = {});

  // Reads the keys tokenizer.ggml.* of a file (gguf_vocabulary.hpp).
  static Result<Vocabulary> from_gguf(const io::Gguf& file);

  std::size_t size() const noexcept { return types_.size(); }
  bool contains(std::int32_t id) const noexcept {
    return id >= 0 && static_cast<std::size_t>(id) < size();
  }

  // Text as the file spells it ("▁the", "<0x0A>"), score and type of a token of this vocabulary:
  // contains(id) must be true.
  std::string_view text(std::int32_t id) const noexcept {
    NIBBLE_ASSERT(contains(id));
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(pool_).substr(begins_[i], begins_[i + 1] - begins_[i]);
  }
  float score(std::int32_t id) const noexcept {
    NIBBLE_ASSERT(contains(id));
    return scores_[static_cast<std::size_t>(id)].value;
  }
  PieceType type(std::int32_t id) const noexcept {
    NIBBLE_ASSERT(contains(id));
    return types_[static_cast<std::size_t>(id)];
  }

  // The special tokens behind which, or before which, white space is dropped; ascending.
  std::span<const std::int32_t> strips_after() const noexcept { return strips_after_; }
  std::span<const std::int32_t> strips_before() const noexcept { return strips_before_; }
  bool strips_after(std::int32_t id) const noexcept {
    return std::binary_search(strips_after_.begin(), strips_after_.end(), id);
  }
  bool strips_before(std::int32_t id) const noexcept {
    return std::binary_search(strips_before_.begin(), strips_before_.end(), id);
  }

  // The least score of a piece of type normal; 0 if there is none.
  float least_score() const noexcept { return least_score_; }

  // The byte that a piece of type byte represents.
  unsigned char byte_value(std::int32_t id) const noexcept {
    NIBBLE_ASSERT(type(id) == PieceType::byte);
    return static_cast<unsigned char>(detail::byte_of_name(text(id)));
  }
  // The token that spells this byte, or kNoToken.
  std::int32_t byte_token(unsigned char byte) const noexcept { return byte_tokens_[byte]; }

  // Whether every byte has a token.
  bool spells_bytes() const noexcept {
    return std::find(byte_tokens_.begin(), byte_tokens_.end(), kNoToken) == byte_tokens_.end();
  }

  // The token with exactly this text, of any type, or kNoToken. Never allocates.
  std::int32_t find(std::string_view text) const noexcept {
    if (text.size() > longest_) return kNoToken;
    return index_.find(detail::hash_of(text),
                       [&](std::int32_t id) { return this->text(id) == text; });
  }

  // The same, but kNoToken if it is a control, unknown or byte piece: text does not become those by
  // spelling their names.
  std::int32_t find_ordinary(std::string_view text) const noexcept {
    const std::int32_t id = find(text);
    if (id == kNoToken) return id;
    const PieceType type = this->type(id);
    const bool named_only =
        type == PieceType::control || type == PieceType::unknown || type == PieceType::byte;
    return named_only ? kNoToken : id;
  }
  // The token for what cannot be spelled, or kNoToken. (Files of the kind bpe also name tokens that
  // mean something else.)
  std::int32_t unknown() const noexcept {
    const std::int32_t unk = settings_.unk;
    const bool is_one = settings_.kind != VocabularyKind::bpe ||
                        (unk != kNoToken && type(unk) == PieceType::unknown);
    return is_one ? unk : kNoToken;
  }

  // ---- Merges, the first one first ----
  struct Merge {
    std::int32_t left, right, result;
  };
  std::span<const Merge> merges() const noexcept { return merges_; }
  // The position of the merge of these two tokens, or -1.
  std::int32_t find_merge(std::int32_t left, std::int32_t right) const noexcept {
    return merge_index_.find(detail::hash_of(left, right), [&](std::int32_t rank) {
      const Merge& merge = merges_[static_cast<std::size_t>(rank)];
      return merge.left == left && merge.right == right;
    });
  }
  // Null if the kind is not bpe.
  const PreTokenizer* pre_tokenizer() const noexcept { return pre_tokenizer_; }
  // Whether each byte of a piece is written as one character (byte_characters.hpp).
  bool is_byte_level() const noexcept {
    return pre_tokenizer_ != nullptr && pre_tokenizer_->byte_level;
  }

  // What can be encoded alone of a text that has U+2581 for spaces, and is not empty. With
  // splits_spaces: what is before a space that is not its first character. Else the spaces at its
  // beginning and what is before the next one, if no piece has U+2581 behind another character;
  // else all of it.
  std::string_view first_word(std::string_view text) const noexcept {
    if (settings_.splits_spaces) return text.substr(0, text.find(kSpmSpace, 1));
    if (!has_separate_words_) return text;
    std::size_t begin = 0;
    while (text.substr(begin, kSpmSpace.size()) == kSpmSpace) begin += kSpmSpace.size();
    return text.substr(0, text.find(kSpmSpace, begin));
  }

  const VocabularySettings& settings() const noexcept { return settings_; }

  // True for tokens that end a model's answer: eos, eot, eom, and tokens that other programs
  // recognize by their text ("<|im_end|>", "<end_of_turn>", ...).
  bool ends_generation(std::int32_t id) const noexcept {
    return std::find(ends_.begin(), ends_.end(), id) != ends_.end();
  }

  // Length in bytes of the longest piece.
  std::size_t longest() const noexcept { return longest_; }

 private:
  // Ranks are compared as numbers of type float, which are exact up to here.
  static constexpr std::size_t kMaxMerges = std::size_t{1} << 24;

  Vocabulary() = default;
  Result<void> take_pieces(std::span<const Piece> pieces);
  Result<void> fill_index();
  Result<void> take_settings(const VocabularySettings& settings);
  Result<void> take_merges(std::span<const TextMerge> merges);
  void find_byte_tokens();
  void find_ends();
  void find_least_score();

  static bool has_inner_space(std::string_view text) noexcept {
    while (text.starts_with(kSpmSpace)) text.remove_prefix(kSpmSpace.size());
    return text.find(kSpmSpace) != text.npos;
  }

  std::string pool_;                   // all texts, concatenated
  std::vector<std::uint32_t> begins_;  // (size + 1) where each text begins in the pool
  std::vector<Scalar<float>> scores_;  // (size)
  std::vector<PieceType> types_;       // (size)
  std::vector<std::int32_t> strips_after_, strips_before_;
  detail::HashIndex index_;  // the token of each text
  std::vector<Merge> merges_;
  detail::HashIndex merge_index_;  // the position of each pair's merge
  const PreTokenizer* pre_tokenizer_ = nullptr;
  std::array<std::int32_t, 256> byte_tokens_{};
  std::vector<std::int32_t> ends_;
  std::size_t longest_ = 0;
  float least_score_ = 0;
  bool has_separate_words_ = true;
  VocabularySettings settings_;
};

inline Result<Vocabulary> Vocabulary::make(std::span<const Piece> pieces,
                                           const VocabularySettings& settings,
                                           std::span<const TextMerge> merges) {
  return catch_out_of_memory([&]() -> Result<Vocabulary> {
    Vocabulary vocabulary;
    NIBBLE_CHECK(vocabulary.take_pieces(pieces));
    NIBBLE_CHECK(vocabulary.fill_index());
    NIBBLE_CHECK(vocabulary.take_settings(settings));
    NIBBLE_CHECK(vocabulary.take_merges(merges));
    return vocabulary;
  });
}

inline Result<void> Vocabulary::take_pieces(std::span<const Piece> pieces) {
  if (pieces.empty()) return Error{Errc::malformed, "the vocabulary has no pieces"};
  if (pieces.size() > std::size_t{(std::numeric_limits<std::int32_t>::max)()})
    return Error{Errc::limit, "the vocabulary has more pieces than a token id can count"};
  const auto wrong = [](std::size_t i, const char* what) {
    return Error{Errc::malformed, "piece " + to_text(i) + " " + what};
  };
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    if (piece.text.size() > kMaxPieceBytes)
      return Error{Errc::limit,
                   "piece " + to_text(i) + " has more than " + to_text(kMaxPieceBytes) + " bytes"};
    if (!is_finite(static_cast<double>(piece.score)))
      return wrong(i, "has a score that is not a finite number");
    if (piece.type > PieceType::byte) return wrong(i, "has a type that does not exist");
    if (piece.type == PieceType::byte && detail::byte_of_name(piece.text) < 0)
      return wrong(i, "has the type of a byte, but is not written <0xNN>");
    bytes += piece.text.size();  // at most 2^31 pieces of 2^12 bytes
    longest_ = (std::max)(longest_, piece.text.size());
    has_separate_words_ = has_separate_words_ && !has_inner_space(piece.text);
  }
  if (bytes > (std::numeric_limits<std::uint32_t>::max)())
    return Error{Errc::limit, "the pieces of the vocabulary have more than 4 GiB of text"};

  pool_.reserve(io::narrow<std::size_t>(bytes));
  begins_.reserve(pieces.size() + 1);
  scores_.reserve(pieces.size());
  types_.reserve(pieces.size());
  for (const Piece& piece : pieces) {
    begins_.push_back(io::narrow<std::uint32_t>(pool_.size()));
    pool_.append(piece.text);
    scores_.push_back({piece.score});
    const auto id = static_cast<std::int32_t>(types_.size());
    if (piece.strip_after) strips_after_.push_back(id);
    if (piece.strip_before) strips_before_.push_back(id);
    types_.push_back(piece.type);
  }
  begins_.push_back(io::narrow<std::uint32_t>(pool_.size()));
  return ok();
}

inline Result<void> Vocabulary::fill_index() {
  index_.reset(size());
  for (std::int32_t id = 0; contains(id); ++id) {
    const std::string_view text = this->text(id);
    if (text.empty()) continue;
    if (!index_.insert(detail::hash_of(text), id,
                       [&](std::int32_t other) { return this->text(other) == text; }))
      return Error{Errc::limit, "the pieces around " + to_text(id) +
                                    " collide in the hash table beyond what chance can do"};
  }
  return ok();
}

// A byte is spelled by its byte piece, otherwise by a piece that is exactly this byte.
inline void Vocabulary::find_byte_tokens() {
  std::string name;
  for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    const char c = static_cast<char>(byte);
    name.clear();
    if (is_byte_level()) {
      append_byte_characters(name, std::string_view(&c, 1));
    } else {
      name.push_back(c);
    }
    const std::int32_t id = find(name);
    const bool spells = id != kNoToken && type(id) == PieceType::normal;
    byte_tokens_[byte] = spells ? id : kNoToken;
  }
  for (std::int32_t id = 0; contains(id); ++id)
    if (type(id) == PieceType::byte) byte_tokens_[byte_value(id)] = id;
}

inline Result<void> Vocabulary::take_settings(const VocabularySettings& settings) {
  settings_ = settings;
  if (settings.kind == VocabularyKind::bpe) {
    pre_tokenizer_ = find_pre_tokenizer(settings.pre);
    if (pre_tokenizer_ == nullptr)
      return Error{Errc::unsupported, "the pre-tokenizer " + io::quoted(settings.pre) +
                                          " is not known (tokenizer.ggml.pre); token ids work"};
  }
  find_byte_tokens();
  const std::pair<const char*, std::int32_t> ids[] = {
      {"bos", settings.bos}, {"eos", settings.eos}, {"unk", settings.unk},  {"pad", settings.pad},
      {"eot", settings.eot}, {"eom", settings.eom}, {"mask", settings.mask}};
  for (const auto& [name, id] : ids)
    if (id != kNoToken && !contains(id))
      return Error{Errc::malformed, std::string("the ") + name + " token is " + to_text(id) +
                                        ", the vocabulary has " + to_text(size()) + " pieces"};
  // (Words of wordpiece are never spelled in bytes.)
  const bool needs_unknown = settings.kind == VocabularyKind::wordpiece ||
                             (settings.kind != VocabularyKind::bpe && !spells_bytes());
  if (settings.unk == kNoToken && needs_unknown)
    return Error{Errc::malformed,
                 "the vocabulary has neither all 256 byte pieces nor an unknown token"};
  settings_.add_bos = settings.add_bos && settings.bos != kNoToken;
  settings_.add_eos = settings.add_eos && settings.eos != kNoToken;

  find_ends();
  for (const std::int32_t id : {settings.eos, settings.eot, settings.eom})
    if (id != kNoToken && !ends_generation(id)) ends_.push_back(id);
  find_least_score();
  return ok();
}

inline void Vocabulary::find_least_score() {
  float least = (std::numeric_limits<float>::max)();
  bool has_any = false;
  for (std::int32_t id = 0; contains(id); ++id) {
    if (type(id) != PieceType::normal) continue;
    least = smaller(least, score(id));
    has_any = true;
  }
  least_score_ = has_any ? least : 0;
}

inline Result<void> Vocabulary::take_merges(std::span<const TextMerge> merges) {
  if (merges.size() > kMaxMerges)
    return Error{Errc::limit, "the vocabulary has more merges than " + to_text(kMaxMerges)};
  merges_.reserve(merges.size());
  merge_index_.reset(merges.size());
  std::string both;
  for (const TextMerge& merge : merges) {
    const auto rank = static_cast<std::int32_t>(merges_.size());
    both.assign(merge.left).append(merge.right);
    const Merge ids = {find(merge.left), find(merge.right), find(both)};
    if (ids.left == kNoToken || ids.right == kNoToken || ids.result == kNoToken)
      return Error{Errc::malformed, "merge " + to_text(rank) + ", " + io::quoted(merge.left) +
                                        " and " + io::quoted(merge.right) +
                                        ": they or their union are no piece"};
    if (find_merge(ids.left, ids.right) >= 0) continue;  // the first one counts
    if (!merge_index_.insert(detail::hash_of(ids.left, ids.right), rank,
                             [](std::int32_t) { return false; }))
      return Error{Errc::limit, "the merges around " + to_text(rank) +
                                    " collide in the hash table beyond what chance can do"};
    merges_.push_back(ids);
  }
  return ok();
}

// Files often name only one end token, and sometimes give an end token the type of ordinary text.
// The names are those that llama.cpp knows; the last two lines end the filling of a gap in code.
inline void Vocabulary::find_ends() {
  const auto has = [&](std::string_view name) { return find(name) != kNoToken; };
  const bool has_call = has("<|call|>") || has("<|calls|>");
  // clang-format off
  for (const std::string_view name :
       {"</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>", "▁<EOT>", "[EOT]", "<|eot_id|>", "<|eom_id|>",
        "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
        "<end_of_turn>", "<turn|>", "<|tool_response>", "<|endoftext|>", "<|end_of_text|>",
        "<end_of_utterance>", "<｜end▁of▁sentence｜>", "[e~[",
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
        "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"}) {
    // clang-format on
    // Here these end a part of an answer, or nothing.
    if (name == "<|end|>" && has_call && (has("<|return|>") || has("<|flush|>"))) continue;
    if (name == "</s>" && has("<|tool_response>")) continue;
    const std::int32_t id = find(name);
    if (id == kNoToken) continue;
    PieceType& type = types_[static_cast<std::size_t>(id)];
    if (type == PieceType::normal) type = PieceType::control;
    ends_.push_back(id);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::text
