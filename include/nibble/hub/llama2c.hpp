// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints of llama2.c (model.bin, "version 0"): seven integers, then the weights of a Llama in
// F32, one kind after the other. The vocabulary is a file beside it, tok<size>.bin or
// tokenizer.bin.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/hub/tokenizer_keys.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

class Llama2c {
 public:
  // The file's header, if its numbers are possible and give exactly the size of the file.
  static bool is_one(std::span<const std::byte> file) {
    Llama2c model;
    return model.read_header(file) && model.place() && model.end_ == file.size();
  }

  // As a GGUF file. Errors name the path: io, malformed (no such file).
  static Result<io::Gguf> open(const std::string& path) {
    NIBBLE_TRY(mapped, io::MappedFile::open(path));
    Llama2c model;
    const std::span<const std::byte> bytes = mapped.bytes();
    if (!model.read_header(bytes) || !model.place() || model.end_ != bytes.size()) {
      return Error{Errc::malformed, printable(path) + ": no checkpoint of llama2.c"};
    }
    io::GgufWriter out;
    model.set_keys(out);
    NIBBLE_CHECK(model.set_vocabulary(path, out));
    NIBBLE_TRY(made, out.to_bytes());
    NIBBLE_TRY(memory, AlignedBuffer::allocate(made.size()));
    std::memcpy(memory.data(), made.data(), made.size());
    std::vector<io::GgufTensor> tensors;
    for (const Tensor& tensor : model.tensors_) {
      io::GgufTensor& to = tensors.emplace_back();
      to.name = tensor.name;
      to.n_dims = tensor.n == 0 ? 1 : 2;
      to.dims[0] = tensor.k;
      to.dims[1] = tensor.n == 0 ? 1 : tensor.n;
      const std::uint64_t n = to.dims[0] * to.dims[1];
      to.data = bytes.subspan(io::narrow<std::size_t>(tensor.at),
                              io::narrow<std::size_t>(n * sizeof(float)));
    }
    std::vector<io::MappedFile> files;
    files.push_back(std::move(mapped));
    return io::Gguf::join(std::move(memory), tensors, std::move(files), path);
  }

 private:
  struct Tensor {
    std::string name;
    std::uint64_t n, k;  // n = 0: a vector
    std::uint64_t at;    // byte
  };
  static constexpr std::uint32_t kMaxLayers = 1024;
  static constexpr std::size_t kHeader = 7 * sizeof(std::int32_t);

  bool read_header(std::span<const std::byte> file) noexcept {
    if (file.size() < kHeader) return false;
    std::array<std::int64_t, 7> number;
    for (std::size_t i = 0; i < number.size(); ++i) {
      number[i] = io::load_le<std::int32_t>(file.data() + i * sizeof(std::int32_t));
    }
    // Without an output of its own, the vocabulary is positive.
    has_output_ = number[5] < 0;
    if (has_output_) number[5] = -number[5];
    for (const std::int64_t n : number) {
      if (n < 1 || n > kMaxHubDim) return false;
    }
    const auto at = [&](std::size_t i) { return static_cast<std::uint32_t>(number[i]); };
    dim_ = at(0);
    ffn_ = at(1);
    n_layers_ = at(2);
    n_heads_ = at(3);
    n_kv_heads_ = at(4);
    n_tokens_ = at(5);
    n_ctx_ = at(6);
    return n_layers_ <= kMaxLayers && dim_ % n_heads_ == 0 && n_heads_ % n_kv_heads_ == 0;
  }

  // Where the tensors lie; false if that is beyond 64 bits.
  bool place() {
    end_ = kHeader;
    const std::uint64_t head = dim_ / n_heads_, kv = head * n_kv_heads_;
    bool fits = true;
    const auto skip = [&](std::uint64_t n, std::uint64_t k) {
      std::uint64_t bytes = 0;
      fits = fits && io::checked_multiply(n, k * sizeof(float), bytes) &&
             io::checked_add(end_, bytes, end_);
    };
    const auto add = [&](std::string name, std::uint64_t n, std::uint64_t k) {
      tensors_.push_back({std::move(name), n, k, end_});
      skip(n == 0 ? 1 : n, k);
    };
    const auto add_layers = [&](const char* name, std::uint64_t n, std::uint64_t k) {
      for (std::uint32_t i = 0; i < n_layers_; ++i) {
        add("blk." + to_text(i) + '.' + name + ".weight", n, k);
      }
    };
    add("token_embd.weight", n_tokens_, dim_);
    add_layers("attn_norm", 0, dim_);
    add_layers("attn_q", dim_, dim_);
    add_layers("attn_k", kv, dim_);
    add_layers("attn_v", kv, dim_);
    add_layers("attn_output", dim_, dim_);
    add_layers("ffn_norm", 0, dim_);
    add_layers("ffn_gate", ffn_, dim_);
    add_layers("ffn_down", dim_, ffn_);
    add_layers("ffn_up", ffn_, dim_);
    add("output_norm.weight", 0, dim_);
    skip(n_ctx_, head / 2);  // cosines and sines, which are computed
    skip(n_ctx_, head / 2);
    if (has_output_) add("output.weight", n_tokens_, dim_);
    return fits;
  }

  void set_keys(io::GgufWriter& out) const {
    out.set("general.architecture", std::string_view("llama"));
    out.set("general.type", std::string_view("model"));
    out.set("general.file_type", std::uint32_t{0});  // F32
    const auto set = [&](std::string_view key, std::uint32_t value) {
      out.set("llama." + std::string(key), value);
    };
    set("block_count", n_layers_);
    set("context_length", n_ctx_);
    set("embedding_length", dim_);
    set("feed_forward_length", ffn_);
    set("attention.head_count", n_heads_);
    set("attention.head_count_kv", n_kv_heads_);
    set("rope.dimension_count", dim_ / n_heads_);
    set("vocab_size", n_tokens_);
    out.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    out.set("llama.rope.freq_base", 10000.0f);
  }

  // A vocabulary that cannot be read is no error (see tokenizer_keys()).
  Result<void> set_vocabulary(const std::string& path, io::GgufWriter& out) const {
    const std::size_t slash = path.find_last_of("/\\");
    const Folder folder(slash == path.npos ? "." : path.substr(0, slash + 1));
    const std::string own = "tok" + to_text(n_tokens_) + ".bin";
    const std::string file = folder.has(own) ? own : "tokenizer.bin";
    if (!folder.has(file)) {
      out.set(kTokenizerErrorKey, std::string_view(folder.name() + ": the folder has no " + own +
                                                   " and no tokenizer.bin"));
      return ok();
    }
    NIBBLE_TRY(text, folder.text(file, kMaxTokenizerBytes));
    Result<void> read = read_vocabulary(std::as_bytes(std::span(text.data(), text.size())), out);
    if (!read) return std::move(read).error().in(folder.name_of(file));
    return ok();
  }

  // The length of the longest piece; then of each piece the score, the length and the text.
  Result<void> read_vocabulary(std::span<const std::byte> bytes, io::GgufWriter& out) const {
    io::ByteReader in(bytes);
    NIBBLE_TRY(longest, in.read<std::int32_t>("the header"));
    std::vector<std::string> pieces;
    std::vector<float> scores;
    std::vector<std::int32_t> types;
    for (std::uint32_t id = 0; id < n_tokens_; ++id) {
      NIBBLE_TRY(score, in.read<float>("a score"));
      NIBBLE_TRY(size, in.read<std::int32_t>("the length of a piece"));
      if (size < 0 || size > longest) {
        return Error{Errc::malformed, "piece " + to_text(id) + " has " + to_text(size) +
                                          " bytes, the longest " + to_text(longest)};
      }
      NIBBLE_TRY(taken, in.take(static_cast<std::uint64_t>(size), "a piece"));
      const std::string_view text(reinterpret_cast<const char*>(taken.data()), taken.size());
      scores.push_back(score);
      text::PieceType type = text::PieceType::normal;
      // Of the control tokens, it has the text to print; and spaces as they are.
      if (id == 1 || id == 2) {
        type = text::PieceType::control;
        pieces.emplace_back(id == 1 ? "<s>" : "</s>");
      } else {
        if (id == 0) type = text::PieceType::unknown;
        if (text.size() == 6 && text.starts_with("<0x") && text[5] == '>') {
          type = text::PieceType::byte;
        }
        std::string& piece = pieces.emplace_back();
        for (const char c : text) {
          if (c == ' ') {
            piece += text::kSpmSpace;
          } else {
            piece += c;
          }
        }
      }
      types.push_back(static_cast<std::int32_t>(type));
    }
    if (in.remaining() != 0) {
      return Error{Errc::malformed, to_text(in.remaining()) + " bytes behind the " +
                                        to_text(n_tokens_) + " pieces that the model has"};
    }
    out.set("tokenizer.ggml.model", std::string_view("llama"));
    out.set_array("tokenizer.ggml.tokens", pieces);
    out.set_array("tokenizer.ggml.scores", scores);
    out.set_array("tokenizer.ggml.token_type", types);
    out.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
    out.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
    out.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
    return ok();
  }

  std::uint32_t dim_ = 0, ffn_ = 0, n_layers_ = 0, n_heads_ = 0, n_kv_heads_ = 0, n_tokens_ = 0,
                n_ctx_ = 0;
  bool has_output_ = false;
  std::vector<Tensor> tensors_;
  std::uint64_t end_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::hub
