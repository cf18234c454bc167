// SPDX-License-Identifier: Apache-2.0
//
// Reads the vocabulary of a tokenizer.model: the file of SentencePiece, which folders of older
// models have instead of tokenizer.json. It is a message of Protocol Buffers (sentencepiece_model.
// proto of google/sentencepiece), of which only the needed fields are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/text/tokenizer_json_parts.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

// One field after the other of a message; nothing is nested deeper than the caller's code.
class ProtoReader {
 public:
  explicit ProtoReader(std::string_view bytes) noexcept : bytes_(bytes) {}

  struct Field {
    std::uint64_t number = 0;
    std::uint64_t value = 0;  // of a varint, or the bits of a fixed number
    std::string_view bytes;   // of a string or a message
  };

  bool at_end() const noexcept { return bytes_.empty(); }

  // Error: malformed.
  Result<Field> next() {
    Field field;
    NIBBLE_TRY(tag, varint());
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0: {
        NIBBLE_TRY(value, varint());
        field.value = value;
        return field;
      }
      case 1:
      case 5: {
        const std::size_t n = (tag & 7) == 1 ? 8 : 4;
        if (bytes_.size() < n) break;
        std::memcpy(&field.value, bytes_.data(), n);  // little-endian host: see byte_reader.hpp
        bytes_.remove_prefix(n);
        return field;
      }
      case 2: {
        NIBBLE_TRY(n, varint());
        if (n > bytes_.size()) break;
        field.bytes = bytes_.substr(0, io::narrow<std::size_t>(n));
        bytes_.remove_prefix(field.bytes.size());
        return field;
      }
      default: break;
    }
    return broken();
  }

 private:
  static Error broken() { return Error{Errc::malformed, "not a SentencePiece model"}; }

  Result<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_[0]);
      bytes_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    return broken();
  }

  std::string_view bytes_;
};

inline Result<Piece> read_sentencepiece(std::string_view message) {
  Piece piece;
  for (ProtoReader in(message); !in.at_end();) {
    NIBBLE_TRY(field, in.next());
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) {
      const auto bits = static_cast<std::uint32_t>(field.value);
      std::memcpy(&piece.score, &bits, sizeof bits);
    }
    // SentencePiece's numbers are GGUF's.
    if (field.number == 3) {
      if (field.value < 1 || field.value > 6) {
        return Error{Errc::malformed, "a piece of type " + to_text(field.value)};
      }
      piece.type = static_cast<PieceType>(field.value);
    }
  }
  return piece;
}

// The id in a field; −1, which takes ten bytes, is none.
inline std::int32_t id_in(const ProtoReader::Field& field) noexcept {
  return field.value <= 0x7fffffff ? static_cast<std::int32_t>(field.value) : kNoToken;
}

// What a model says besides its pieces.
class SentencePieceSettings {
 public:
  // A field of TrainerSpec.
  void take_trainer(const ProtoReader::Field& field) noexcept {
    switch (field.number) {
      case 3: kind_ = field.value; break;
      case 24: spaces_follow_ = field.value != 0; break;
      case 40: settings_.unk = id_in(field); break;
      case 41: settings_.bos = id_in(field); break;
      case 42: settings_.eos = id_in(field); break;
      case 43: settings_.pad = id_in(field); break;
      default: break;
    }
  }
  // A field of NormalizerSpec.
  void take_normalizer(const ProtoReader::Field& field) {
    switch (field.number) {
      case 2: settings_.characters_map = field.bytes; break;
      case 3: settings_.add_space_prefix = field.value != 0; break;
      case 4: settings_.merges_spaces = field.value != 0; break;
      case 5: escapes_spaces_ = field.value != 0; break;
      default: break;
    }
  }

  // Error: unsupported.
  Result<VocabularySettings> get() && {
    if (kind_ != 1 && kind_ != 2)
      return Error{Errc::unsupported, "a SentencePiece model of kind " + to_text(kind_) +
                                          "; known are unigram (1) and BPE (2)"};
    if (spaces_follow_ || !escapes_spaces_)
      return Error{Errc::unsupported, std::string("a SentencePiece model with ") +
                                          (spaces_follow_ ? "treat_whitespace_as_suffix"
                                                          : "escape_whitespaces = false")};
    settings_.kind = kind_ == 1 ? VocabularyKind::unigram : VocabularyKind::spm;
    return std::move(settings_);
  }

 private:
  static VocabularySettings defaults() {
    VocabularySettings settings;
    settings.merges_spaces = settings.fuse_unknown = true;
    return settings;
  }

  VocabularySettings settings_ = defaults();
  std::uint64_t kind_ = 1;
  bool spaces_follow_ = false, escapes_spaces_ = true;
};

// Reads added_tokens_decoder of a tokenizer_config.json: {"32000": {"content": "...", "special":
// true}, ...}.
inline Result<void> read_added_pieces(std::string_view config, std::vector<Piece>& pieces,
                                      std::vector<std::string>& texts) {
  constexpr std::uint64_t kMaxAdded = 1u << 16;  // beyond the pieces of the model
  struct Added {
    std::uint64_t id = 0;
    std::string text;
    bool is_special = false;
  };
  std::vector<Added> added;
  io::JsonReader json(config);
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key != "added_tokens_decoder") return json.skip();
    return json.object([&](const std::string& id) -> Result<void> {
      io::JsonReader number(id);
      NIBBLE_TRY(value, number.unsigned_integer());
      if (!number.at_end()) return json.error("an added token whose id is no number");
      NIBBLE_TRY(token, io::JsonValue::read(json));
      const io::JsonValue* const content = token.find("content");
      const io::JsonValue* const special = token.find("special");
      if (content == nullptr || value >= pieces.size() + kMaxAdded) {
        return json.error("an added token without content, or far beyond the others");
      }
      added.push_back({value, content->string(), special != nullptr && special->boolean()});
      return ok();
    });
  }));
  texts.reserve(kMaxAdded + added.size());  // pieces refer to it
  for (Added& token : added) {
    while (pieces.size() <= token.id) {
      texts.push_back("[PAD" + to_text(pieces.size()) + "]");
      pieces.push_back({texts.back(), -1000, PieceType::unused});
    }
    Piece& piece = pieces[io::narrow<std::size_t>(token.id)];
    if (piece.type == PieceType::unknown || piece.type == PieceType::byte) continue;
    texts.push_back(std::move(token.text));
    piece = {texts.back(), -1000, token.is_special ? PieceType::control : PieceType::user_defined};
  }
  return ok();
}

// Sets what a tokenizer_config.json says of tokens with a role. Its names win over the model's ids:
// fine-tuned models have other ends.
inline void set_roles(const TokenRoles& roles, std::span<const Piece> pieces,
                      VocabularySettings& settings) {
  const std::pair<std::string_view, std::int32_t*> named[] = {{roles.bos, &settings.bos},
                                                              {roles.eos, &settings.eos},
                                                              {roles.pad, &settings.pad},
                                                              {roles.mask, &settings.mask}};
  for (const auto& [text, id] : named)
    for (std::size_t i = 0; i < pieces.size() && !text.empty(); ++i)
      if (pieces[i].text == text) *id = static_cast<std::int32_t>(i);
  settings.add_bos = roles.add_bos.value_or(settings.add_bos);
  settings.add_eos = roles.add_eos.value_or(settings.add_eos);
}

}  // namespace detail

// `config`: the text of tokenizer_config.json, which may be empty; it says whether a text begins
// and ends with a token, which tokens have a role, and names added tokens. Errors: malformed,
// unsupported (a kind other than BPE and unigram, spaces that are not before words as U+2581),
// limit, those of Vocabulary::make.
inline Result<Vocabulary> read_sentencepiece_model(std::string_view bytes,
                                                   std::string_view config = {}) {
  return catch_out_of_memory([&]() -> Result<Vocabulary> {
    std::vector<Piece> pieces;
    detail::SentencePieceSettings model;
    for (detail::ProtoReader in(bytes); !in.at_end();) {
      NIBBLE_TRY(field, in.next());
      if (field.number == 1) {
        NIBBLE_TRY(piece, detail::read_sentencepiece(field.bytes));
        pieces.push_back(piece);
      }
      for (detail::ProtoReader spec(field.number == 2 || field.number == 3 ? field.bytes
                                                                           : std::string_view());
           !spec.at_end();) {
        NIBBLE_TRY(setting, spec.next());
        if (field.number == 3) {
          model.take_normalizer(setting);
        } else {
          model.take_trainer(setting);
        }
      }
    }
    NIBBLE_TRY(settings, std::move(model).get());
    std::vector<std::string> added;  // texts of added tokens, to which pieces refer
    if (!config.empty()) {
      auto roles = detail::read_roles(config);
      if (!roles) return std::move(roles).error().in("tokenizer_config.json");
      NIBBLE_CHECK(detail::read_added_pieces(config, pieces, added));
      detail::set_roles(*roles, pieces, settings);
    }
    return Vocabulary::make(pieces, settings);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::text
