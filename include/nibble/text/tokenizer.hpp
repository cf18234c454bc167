// SPDX-License-Identifier: Apache-2.0
//
// Text to token ids and back. The vocabulary decides which algorithm runs; callers see only this
// class.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/bpe.hpp"
#include "nibble/text/decode.hpp"
#include "nibble/text/gguf_vocabulary.hpp"
#include "nibble/text/normalization.hpp"
#include "nibble/text/piece_trie.hpp"
#include "nibble/text/special_tokens.hpp"
#include "nibble/text/spm.hpp"
#include "nibble/text/unicode.hpp"
#include "nibble/text/unigram.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/wordpiece.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

struct EncodeOptions {
  // Begin with BOS, end with EOS. Unset: as the model file says (add_bos_token, add_eos_token).
  std::optional<bool> add_bos = {};
  std::optional<bool> add_eos = {};
  // Recognize control and unknown tokens where the text spells their names. For chat templates;
  // never for text from strangers, who could otherwise write the turns of a chat. User-defined
  // tokens are always recognized.
  bool parse_special = false;
  // The text goes on where another ended: no space is put before it. (After special tokens inside
  // of it as ever.)
  bool is_continuation = false;
};

struct DecodeOptions {
  // Show control and unknown tokens by their names; by default they have no text.
  bool show_special = false;
  // The tokens are the beginning of a text, not the continuation of one: the space that encoding
  // added before the text is removed.
  bool at_start = true;
};

// Immutable: threads may share one tokenizer.
class Tokenizer {
 public:
  // The longest text that can be encoded: three bytes for each of its bytes count in 31 bits.
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 29;

  explicit Tokenizer(Vocabulary vocabulary)
      : vocabulary_(std::move(vocabulary)),
        user_defined_(vocabulary_, false),
        all_special_(vocabulary_, true) {
    const VocabularyKind kind = vocabulary_.settings().kind;
    if (kind == VocabularyKind::wordpiece || kind == VocabularyKind::unigram)
      pieces_ = PieceTrie(vocabulary_, [](PieceType type) {
        return type == PieceType::normal || type == PieceType::unused ||
               type == PieceType::user_defined;
      });
  }

  // Errors: those of Vocabulary::from_gguf.
  static Result<Tokenizer> from_gguf(const io::Gguf& file) {
    return catch_out_of_memory([&]() -> Result<Tokenizer> {
      NIBBLE_TRY(vocabulary, Vocabulary::from_gguf(file));
      return Tokenizer(std::move(vocabulary));
    });
  }

  const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

  // The token's piece as the file spells it, e.g. "▁the"; empty for an id outside the vocabulary.
  // Valid as long as the tokenizer.
  std::string_view piece(std::int32_t id) const noexcept {
    return vocabulary_.contains(id) ? vocabulary_.text(id) : std::string_view();
  }

  // Encodes any bytes, including NUL and invalid UTF-8. decode(encode(text)) gives back the text,
  // byte for byte, with these exceptions. SentencePiece: U+2581 comes back as a space, and a space
  // follows a special token inside the text. Vocabularies that normalize text (WordPiece, unigram,
  // VocabularySettings::compose, characters_map and merges_spaces): the normalized text comes back;
  // with prefix_unless_space, without its first space. White space beside special tokens that strip
  // it is lost, as is text encoded as an
  // unknown token, and bytes for which byte-level BPE has no token. Time O(n log n).
  //
  // Errors: invalid_argument if BOS or EOS is requested and the vocabulary has none; limit if the
  // text has more than kMaxBytes bytes.
  Result<std::vector<std::int32_t>> encode(std::string_view text,
                                           const EncodeOptions& options = {}) const {
    std::vector<std::int32_t> ids;
    NIBBLE_CHECK(encode(text, options, ids));
    return ids;
  }

  // The same, appended to `ids`. On an error, `ids` is unchanged.
  Result<void> encode(std::string_view text, const EncodeOptions& options,
                      std::vector<std::int32_t>& ids) const {
    const std::size_t n = ids.size();
    Result<void> done = catch_out_of_memory([&] { return append_ids(text, options, ids); });
    if (!done) ids.resize(n);
    return done;
  }

  // The text of all ids together. Byte pieces give their bytes, so the result is UTF-8 only if the
  // ids spell UTF-8. Ids outside the vocabulary have no text.
  std::string decode(std::span<const std::int32_t> ids, const DecodeOptions& options = {}) const {
    std::string text;
    DecodeOptions state = options;
    for (const std::int32_t id : ids) append_text(id, state, text);
    return text;
  }

  // One step of decode: appends the text of `id`, which has at most as many bytes as the longest
  // piece, and clears state.at_start at the first token that is not a control or unknown token.
  void append_text(std::int32_t id, DecodeOptions& state, std::string& out) const {
    if (!vocabulary_.contains(id)) return;
    const std::size_t n = out.size();
    append_token_text(vocabulary_, id, state.show_special, out);
    const PieceType type = vocabulary_.type(id);
    if (type == PieceType::control || type == PieceType::unknown) return;
    // Encoding adds no space before a user-defined token, so a space there belongs to the token.
    if (state.at_start && vocabulary_.settings().add_space_prefix &&
        type != PieceType::user_defined && out.size() > n && out[n] == ' ')
      out.erase(n, 1);
    state.at_start = false;
  }

 private:
  Result<void> append_ids(std::string_view text, const EncodeOptions& options,
                          std::vector<std::int32_t>& ids) const;
  // encode(part, whether a space is put before it)
  using EncodePart = FunctionRef<void(std::string_view, bool)>;
  // Appends the special tokens in `text`, and calls `encode` for what is between them.
  void append_parts(std::string_view text, const EncodeOptions& options,
                    std::vector<std::int32_t>& ids, EncodePart encode) const;

  Vocabulary vocabulary_;
  SpecialTokens user_defined_;
  SpecialTokens all_special_;
  PieceTrie pieces_;  // of wordpiece and unigram: what text may become
};

inline Result<void> Tokenizer::append_ids(std::string_view text, const EncodeOptions& options,
                                          std::vector<std::int32_t>& ids) const {
  const VocabularySettings& settings = vocabulary_.settings();
  const bool add_bos = options.add_bos.value_or(settings.add_bos);
  const bool add_eos = options.add_eos.value_or(settings.add_eos);
  if (add_bos && settings.bos == kNoToken)
    return Error{Errc::invalid_argument, "encode: the vocabulary has no BOS token to add"};
  if (add_eos && settings.eos == kNoToken)
    return Error{Errc::invalid_argument, "encode: the vocabulary has no EOS token to add"};
  if (text.size() > kMaxBytes)
    return Error{Errc::limit, "encode: the text has " + to_text(text.size()) +
                                  " bytes, more than " + to_text(kMaxBytes)};

  if (add_bos) ids.push_back(settings.bos);
  if (settings.kind == VocabularyKind::wordpiece) {
    WordPieceEncoder encoder(vocabulary_, pieces_, text.size());
    append_parts(text, options, ids,
                 [&](std::string_view part, bool) { encoder.encode(part, ids); });
  } else if (settings.kind == VocabularyKind::unigram) {
    UnigramEncoder encoder(vocabulary_, pieces_, text.size());
    append_parts(text, options, ids, [&](std::string_view part, bool space_prefix) {
      encoder.encode(part, space_prefix, ids);
    });
  } else if (vocabulary_.is_byte_level()) {
    BpeEncoder encoder(vocabulary_, text.size());
    append_parts(text, options, ids,
                 [&](std::string_view part, bool) { encoder.encode(part, ids); });
  } else {
    SpmEncoder encoder(vocabulary_, text.size());
    append_parts(text, options, ids, [&](std::string_view part, bool space_prefix) {
      encoder.encode(part, space_prefix, ids);
    });
  }
  if (add_eos) ids.push_back(settings.eos);
  return ok();
}

inline void Tokenizer::append_parts(std::string_view text, const EncodeOptions& options,
                                    std::vector<std::int32_t>& ids, EncodePart encode) const {
  const SpecialTokens& special = options.parse_special ? all_special_ : user_defined_;
  const VocabularySettings& settings = vocabulary_.settings();
  Normalizer normalizer;
  bool wants_prefix = settings.add_space_prefix && !options.is_continuation;
  while (!text.empty()) {
    const SpecialTokens::Match match = special.find(vocabulary_, text);
    std::string_view before = text.substr(0, match.at);
    if (match.id != kNoToken && vocabulary_.strips_before(match.id))
      before = without_trailing_space(before);
    if (!before.empty())
      encode(settings.compose ? normalizer.compose(before) : before, wants_prefix);
    if (match.id == kNoToken) break;
    ids.push_back(match.id);
    wants_prefix = settings.add_space_prefix && !settings.prefix_once;
    text.remove_prefix(match.at + vocabulary_.text(match.id).size());
    if (vocabulary_.strips_after(match.id)) text = without_leading_space(text);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::text
