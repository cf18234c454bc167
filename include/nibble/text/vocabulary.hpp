// SPDX-License-Identifier: Apache-2.0
//
// The vocabulary of a model: its pieces with their scores and types, the tokens with a special
// role, and a hash table from text to token. Immutable after creation, so threads may share one.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

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
};

// The settings of a vocabulary besides its pieces. The defaults are those of GGUF for
// tokenizer.ggml.model = "llama". An id is kNoToken or the index of a piece.
struct VocabularySettings {
  std::int32_t bos = 1;
  std::int32_t eos = 2;
  std::int32_t unk = 0;
  std::int32_t pad = kNoToken;
  std::int32_t eot = kNoToken;  // end of a turn
  std::int32_t eom = kNoToken;  // end of a message, which a tool is to answer
  bool add_bos = true;
  bool add_eos = false;
  bool add_space_prefix = true;  // encode text as if a space stood before it
  // Phi-3 was trained on text whose special tokens drop the white space after them. GGUF has no key
  // for this; other programs also decide it from general.name.
  bool strip_after_special = false;
};

namespace detail {

inline std::uint64_t hash_of(std::string_view text) noexcept {
  std::uint64_t hash = 0x9E3779B97F4A7C15u ^ text.size();
  const auto mix = [&hash](std::uint64_t bits) {
    hash = (hash ^ bits) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  };
  std::uint64_t bits = 0;
  for (; text.size() >= sizeof bits; text.remove_prefix(sizeof bits)) {
    std::memcpy(&bits, text.data(), sizeof bits);
    mix(bits);
  }
  bits = 0;
  for (const char c : text) bits = bits << 8 | static_cast<unsigned char>(c);
  mix(bits);
  mix(bits >> 7);
  return hash;
}

}  // namespace detail

class Vocabulary {
 public:
  // Longer pieces are rejected: the time to encode a text grows with its length times this value.
  static constexpr std::size_t kMaxPieceBytes = 4096;

  // Copies the pieces; a token id is an index into `pieces`. Errors: no pieces, more pieces than an
  // id can count, a piece that is too long, a score that is not finite, an invalid type, a byte
  // piece that is not written "<0xNN>", an id outside the vocabulary, and a vocabulary that cannot
  // spell every text (it needs 256 byte pieces or an unknown token).
  //
  // If several ids have the same text, the text is encoded as the last of them, and all of them
  // decode to it. Other programs do the same (such files exist). An empty piece is never encoded.
  static Result<Vocabulary> make(std::span<const Piece> pieces, const VocabularySettings& settings);

  // Reads the keys tokenizer.ggml.* of a file whose tokenizer.ggml.model is "llama"; any other
  // model is Errc::unsupported. Only the tokens are required. Without scores all are 0. Without
  // types, "<0xNN>" is a byte, the tokens with a role that are written "<...>" are control tokens
  // (unk: unknown), and all others are normal. The other keys default to VocabularySettings{}; the
  // id 4294967295 (or -1) means that there is no such token. An id beyond the vocabulary, which
  // fine-tuned models have for tokens that they never use, is replaced by the default, or by
  // kNoToken if that is beyond the vocabulary too: other programs do the same. The vocabulary does
  // not refer to the file afterwards.
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

  // The byte that a piece of type byte represents.
  unsigned char byte_value(std::int32_t id) const noexcept {
    NIBBLE_ASSERT(type(id) == PieceType::byte);
    return static_cast<unsigned char>(parse_byte(text(id)));
  }
  // The token that spells this byte, or kNoToken.
  std::int32_t byte_token(unsigned char byte) const noexcept { return byte_tokens_[byte]; }

  // The token with exactly this text, of any type, or kNoToken. Never allocates.
  std::int32_t find(std::string_view text) const noexcept {
    if (text.size() > longest_) return kNoToken;
    const std::uint64_t hash = detail::hash_of(text);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = place_of(hash) & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.id == kNoToken) return kNoToken;
      if (slot.tag == tag_of(hash) && this->text(slot.id) == text) return slot.id;
    }
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
  struct Slot {
    std::uint32_t tag = 0;  // the bits of the hash that do not select the slot
    std::int32_t id = kNoToken;
  };
  // A lookup takes more probing steps than this only in a file made for that purpose: with the
  // table at most half full, the longest run among a million texts is below a hundred.
  static constexpr std::size_t kMaxSteps = 512;

  Vocabulary() = default;
  Result<void> take_pieces(std::span<const Piece> pieces);
  Result<void> fill_table();
  Result<void> take_settings(const VocabularySettings& settings);
  void find_ends();

  // The bits of a hash that select a slot of the table, and the bits that the slot stores.
  static std::size_t place_of(std::uint64_t hash) noexcept {
    return static_cast<std::uint32_t>(hash);
  }
  static std::uint32_t tag_of(std::uint64_t hash) noexcept {
    return static_cast<std::uint32_t>(hash >> 32);
  }

  // The byte that "<0xNN>" names; -1 for any other text.
  static constexpr int parse_byte(std::string_view text) noexcept {
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

  std::string pool_;                   // all texts, concatenated
  std::vector<std::uint32_t> begins_;  // (size + 1) where each text begins in the pool
  std::vector<Scalar<float>> scores_;  // (size)
  std::vector<PieceType> types_;       // (size)
  std::vector<Slot> slots_;            // a power of two, at most half full, linear probing
  std::array<std::int32_t, 256> byte_tokens_{};
  std::vector<std::int32_t> ends_;
  std::size_t longest_ = 0;
  VocabularySettings settings_;
};

inline Result<Vocabulary> Vocabulary::make(std::span<const Piece> pieces,
                                           const VocabularySettings& settings) {
  return catch_out_of_memory([&]() -> Result<Vocabulary> {
    Vocabulary vocabulary;
    NIBBLE_CHECK(vocabulary.take_pieces(pieces));
    NIBBLE_CHECK(vocabulary.fill_table());
    NIBBLE_CHECK(vocabulary.take_settings(settings));
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
    if (piece.type == PieceType::byte && parse_byte(piece.text) < 0)
      return wrong(i, "has the type of a byte, but is not written <0xNN>");
    bytes += piece.text.size();  // at most 2^31 pieces of 2^12 bytes
    longest_ = (std::max)(longest_, piece.text.size());
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
    types_.push_back(piece.type);
  }
  begins_.push_back(io::narrow<std::uint32_t>(pool_.size()));
  return ok();
}

inline Result<void> Vocabulary::fill_table() {
  slots_.resize(std::bit_ceil(2 * size()));
  const std::size_t mask = slots_.size() - 1;
  for (std::int32_t id = 0; contains(id); ++id) {
    const std::string_view text = this->text(id);
    if (text.empty()) continue;
    const std::uint64_t hash = detail::hash_of(text);
    std::size_t place = place_of(hash) & mask;
    std::size_t steps = 0;
    while (slots_[place].id != kNoToken &&
           !(slots_[place].tag == tag_of(hash) && this->text(slots_[place].id) == text)) {
      if (++steps > kMaxSteps)
        return Error{Errc::limit, "the pieces around " + to_text(id) +
                                      " collide in the hash table beyond what chance can do"};
      place = (place + 1) & mask;
    }
    slots_[place] = {tag_of(hash), id};
  }

  // A byte is spelled by its byte piece, otherwise by a piece that is exactly this byte.
  for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    const char c = static_cast<char>(byte);
    const std::int32_t id = find(std::string_view(&c, 1));
    const bool spells = id != kNoToken && type(id) == PieceType::normal;
    byte_tokens_[byte] = spells ? id : kNoToken;
  }
  for (std::int32_t id = 0; contains(id); ++id)
    if (type(id) == PieceType::byte) byte_tokens_[byte_value(id)] = id;
  return ok();
}

inline Result<void> Vocabulary::take_settings(const VocabularySettings& settings) {
  settings_ = settings;
  const std::pair<const char*, std::int32_t> ids[] = {{"bos", settings.bos}, {"eos", settings.eos},
                                                      {"unk", settings.unk}, {"pad", settings.pad},
                                                      {"eot", settings.eot}, {"eom", settings.eom}};
  for (const auto& [name, id] : ids)
    if (id != kNoToken && !contains(id))
      return Error{Errc::malformed, std::string("the ") + name + " token is " + to_text(id) +
                                        ", the vocabulary has " + to_text(size()) + " pieces"};
  if (settings.unk == kNoToken &&
      std::find(byte_tokens_.begin(), byte_tokens_.end(), kNoToken) != byte_tokens_.end())
    return Error{Errc::malformed,
                 "the vocabulary has neither all 256 byte pieces nor an unknown token"};
  settings_.add_bos = settings.add_bos && settings.bos != kNoToken;
  settings_.add_eos = settings.add_eos && settings.eos != kNoToken;

  find_ends();
  for (const std::int32_t id : {settings.eos, settings.eot, settings.eom})
    if (id != kNoToken && !ends_generation(id)) ends_.push_back(id);
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

namespace detail {

// Sets `id`, which is the default, to the value in the file if it is the id of one of `n_pieces`
// pieces.
inline Result<void> read_token_id(const io::Gguf& file, std::string_view key, std::size_t n_pieces,
                                  std::int32_t& id) {
  if (file.find(key) != nullptr) {
    NIBBLE_TRY(value, file.get<std::int64_t>(key));
    if (value == -1 || value == (std::numeric_limits<std::uint32_t>::max)()) {
      id = kNoToken;
    } else if (value >= 0 && static_cast<std::uint64_t>(value) < n_pieces) {
      id = static_cast<std::int32_t>(value);
    }
  }
  if (id != kNoToken && static_cast<std::size_t>(id) >= n_pieces) id = kNoToken;
  return ok();
}

inline bool contains_ignoring_case(std::string_view text, std::string_view lower_case) noexcept {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  for (; text.size() >= lower_case.size(); text.remove_prefix(1)) {
    std::size_t i = 0;
    while (i < lower_case.size() && lower(text[i]) == lower_case[i]) ++i;
    if (i == lower_case.size()) return true;
  }
  return false;
}

}  // namespace detail

inline Result<Vocabulary> Vocabulary::from_gguf(const io::Gguf& file) {
  NIBBLE_TRY(model, file.get_string("tokenizer.ggml.model"));
  if (model != "llama")
    return Error{Errc::unsupported,
                 file.name() + ": the tokenizer " + io::quoted(model) +
                     (model == "gpt2" ? " (byte-level BPE)" : "") +
                     " is not supported, only 'llama' (SentencePiece) is; token ids work"};
  NIBBLE_TRY(texts, file.get_strings("tokenizer.ggml.tokens"));
  std::vector<Piece> pieces(texts.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i].text = texts[i];
  const auto check_size = [&](const char* what, std::size_t n) -> Result<void> {
    if (n == pieces.size()) return ok();
    return Error{Errc::malformed, file.name() + ": tokenizer.ggml has " + to_text(pieces.size()) +
                                      " tokens but " + to_text(n) + " " + what};
  };
  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  if (file.find(kScores) != nullptr) {
    NIBBLE_TRY(scores, file.get_array<Scalar<float>>(kScores));
    NIBBLE_CHECK(check_size("scores", scores.size()));
    for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i].score = scores[i].value;
  }
  constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
  const bool has_types = file.find(kTypes) != nullptr;
  if (has_types) {
    NIBBLE_TRY(types, file.get_array<std::int64_t>(kTypes));
    NIBBLE_CHECK(check_size("types", types.size()));
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (!std::in_range<std::uint8_t>(types[i]))
        return Error{Errc::malformed,
                     file.name() + ": piece " + to_text(i) + " has a type that does not exist"};
      pieces[i].type = static_cast<PieceType>(types[i]);
    }
  }

  VocabularySettings settings;
  const std::pair<std::string_view, std::int32_t*> ids[] = {
      {"tokenizer.ggml.bos_token_id", &settings.bos},
      {"tokenizer.ggml.eos_token_id", &settings.eos},
      {"tokenizer.ggml.unknown_token_id", &settings.unk},
      {"tokenizer.ggml.padding_token_id", &settings.pad},
      {"tokenizer.ggml.eot_token_id", &settings.eot},
      {"tokenizer.ggml.eom_token_id", &settings.eom}};
  for (const auto& [key, id] : ids)
    NIBBLE_CHECK(detail::read_token_id(file, key, pieces.size(), *id));
  if (!has_types) {
    for (Piece& piece : pieces)
      if (parse_byte(piece.text) >= 0) piece.type = PieceType::byte;
    for (const auto& [key, id] : ids) {
      if (*id == kNoToken) continue;
      Piece& piece = pieces[static_cast<std::size_t>(*id)];
      if (piece.type == PieceType::normal && piece.text.starts_with('<') &&
          piece.text.ends_with('>'))
        piece.type = id == &settings.unk ? PieceType::unknown : PieceType::control;
    }
  }
  const std::pair<std::string_view, bool*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &settings.add_bos},
      {"tokenizer.ggml.add_eos_token", &settings.add_eos},
      {"tokenizer.ggml.add_space_prefix", &settings.add_space_prefix}};
  for (const auto& [key, flag] : flags) {
    NIBBLE_TRY(value, file.get_bool_or(key, *flag));
    *flag = value;
  }
  // If the name is not a string, that is no reason to reject the vocabulary.
  if (const auto name = file.get_string("general.name"))
    settings.strip_after_special = detail::contains_ignoring_case(*name, "phi-3") ||
                                   detail::contains_ignoring_case(*name, "phi3");

  auto vocabulary = make(pieces, settings);
  if (!vocabulary) return std::move(vocabulary).error().in(file.name());
  return vocabulary;
}

}}}  // namespace nibble::NIBBLE_ABI::text
