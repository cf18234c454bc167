// SPDX-License-Identifier: Apache-2.0
//
// Where examples come from: memory, text files of one example a line, one long text or sequence of
// tokens cut into windows. Files are mapped; an example is read when its turn comes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/mapped_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// A sequence of tokens. Each token but the first is predicted from those before it; `weights[i]` is
// the weight of that prediction of tokens[i] in the loss, 0: it does not count. weights[0] means
// nothing. No weights at all: each counts once.
struct Example {
  std::vector<std::int32_t> tokens;
  std::vector<float> weights;

  void clear() noexcept {
    tokens.clear();
    weights.clear();
  }
  // Only the tokens from `first` on count: the answer behind a prompt of that length.
  void count_from(std::size_t first) {
    weights.assign(tokens.size(), 1.0f);
    std::fill_n(weights.begin(), (std::min)(first, weights.size()), 0.0f);
  }
};

// A fixed list of examples.
class Source {
 public:
  virtual ~Source() = default;
  virtual Index n_examples() const noexcept = 0;
  // Example i, 0 <= i < n_examples(), in place of what `out` held. The same for each call. An error
  // need not name the example.
  virtual Result<void> read(Index i, Example& out) const = 0;

 protected:
  Source() = default;
  Source(const Source&) = default;
  Source(Source&&) = default;
  Source& operator=(const Source&) = default;
  Source& operator=(Source&&) = default;
};

// Fills an example, which is empty, with the tokens of a text and their weights.
using EncodeExample = std::function<Result<void>(std::string_view text, Example& out)>;
// Appends the tokens of a text.
using EncodeText = std::function<Result<void>(std::string_view text, std::vector<std::int32_t>&)>;

class MemorySource final : public Source {
 public:
  explicit MemorySource(std::vector<Example> examples) : examples_(std::move(examples)) {}
  Index n_examples() const noexcept override { return static_cast<Index>(examples_.size()); }
  Result<void> read(Index i, Example& out) const override {
    out = examples_[static_cast<std::size_t>(i)];
    return ok();
  }

 private:
  std::vector<Example> examples_;
};

// The lines of a text file, except empty ones, without their ends ("\n" or "\r\n"). `encode` may
// split a line into a prompt and an answer, as by a tab.
class LineSource final : public Source {
 public:
  // Errors: those of MappedFile::open, invalid_argument (no line that is not empty).
  static Result<LineSource> open(const std::string& path, EncodeExample encode) {
    return catch_out_of_memory([&]() -> Result<LineSource> {
      LineSource made(printable(path), std::move(encode));
      NIBBLE_TRY(file, io::MappedFile::open(path));
      made.file_ = std::move(file);
      made.find_lines();
      if (made.lines_.empty()) {
        return Error{Errc::invalid_argument, made.name_ + ": has no lines to learn from"};
      }
      return made;
    });
  }

  Index n_examples() const noexcept override { return static_cast<Index>(lines_.size()); }
  std::string_view line(Index i) const noexcept {
    const Line at = lines_[static_cast<std::size_t>(i)];
    return text().substr(at.begin, at.size);
  }
  Result<void> read(Index i, Example& out) const override {
    out.clear();
    Result<void> done = encode_(line(i), out);
    if (!done) return std::move(done).error().in(name_ + ": example " + to_text(i));
    return ok();
  }

 private:
  struct Line {
    std::size_t begin, size;
  };

  LineSource(std::string name, EncodeExample encode)
      : name_(std::move(name)), encode_(std::move(encode)) {}

  std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(file_.bytes().data()), file_.bytes().size()};
  }
  void find_lines() {
    const std::string_view all = text();
    for (std::size_t begin = 0; begin < all.size();) {
      std::size_t end = all.find('\n', begin);
      if (end == std::string_view::npos) end = all.size();
      std::size_t size = end - begin;
      if (size > 0 && all[begin + size - 1] == '\r') --size;
      if (size > 0) lines_.push_back({begin, size});
      begin = end + 1;
    }
  }

  std::string name_;
  EncodeExample encode_;
  io::MappedFile file_;
  std::vector<Line> lines_;
};

enum class TokenWidth : unsigned char { u16 = 2, u32 = 4 };

// One long sequence of tokens, cut into windows of `context` predictions: context + 1 tokens, the
// last of which is also the first of the next window, so that each token but the first is predicted
// once. The last window may be shorter.
class WindowSource final : public Source {
 public:
  // Errors: invalid_argument (a context below 1, fewer than two tokens).
  static Result<WindowSource> of(std::vector<std::int32_t> tokens, Index context) {
    WindowSource made("tokens", context);
    made.tokens_ = std::move(tokens);
    made.n_tokens_ = static_cast<Index>(made.tokens_.size());
    return checked(std::move(made));
  }

  // Tokens of a file, little-endian, without a header. Errors: those of MappedFile::open and of(),
  // malformed (a size that is no multiple of the width).
  static Result<WindowSource> open_tokens(const std::string& path, TokenWidth width,
                                          Index context) {
    return catch_out_of_memory([&]() -> Result<WindowSource> {
      WindowSource made(printable(path), context);
      NIBBLE_TRY(file, io::MappedFile::open(path));
      made.file_ = std::move(file);
      made.width_ = static_cast<std::size_t>(width);
      const std::size_t size = made.file_.bytes().size();
      if (size % made.width_ != 0) {
        return Error{Errc::malformed, made.name_ + ": " + to_text(size) +
                                          " bytes are no tokens of " + to_text(made.width_) +
                                          " bytes each"};
      }
      made.n_tokens_ = static_cast<Index>(size / made.width_);
      return checked(std::move(made));
    });
  }

  // The tokens of a text file, which is encoded at once, in pieces of whole lines; 4 bytes for each
  // token are kept. Errors: those of MappedFile::open, of() and `encode`.
  static Result<WindowSource> open_text(const std::string& path, const EncodeText& encode,
                                        Index context) {
    return catch_out_of_memory([&]() -> Result<WindowSource> {
      WindowSource made(printable(path), context);
      NIBBLE_TRY(file, io::MappedFile::open(path));
      const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()),
                                 file.bytes().size());
      constexpr std::size_t kPiece = std::size_t{1} << 20;
      for (std::size_t begin = 0; begin < all.size();) {
        std::size_t end = all.find('\n', (std::min)(begin + kPiece, all.size()));
        end = end == std::string_view::npos ? all.size() : end + 1;
        Result<void> done = encode(all.substr(begin, end - begin), made.tokens_);
        if (!done) return std::move(done).error().in(made.name_);
        begin = end;
      }
      made.n_tokens_ = static_cast<Index>(made.tokens_.size());
      return checked(std::move(made));
    });
  }

  Index n_tokens() const noexcept { return n_tokens_; }
  Index n_examples() const noexcept override { return (n_tokens_ - 2) / context_ + 1; }
  // A u32 token above 2³¹ − 1 becomes negative, which no vocabulary has.
  Result<void> read(Index i, Example& out) const override {
    out.clear();
    const Index begin = i * context_, n_rows = (std::min)(context_, n_tokens_ - 1 - begin);
    for (Index at = begin; at <= begin + n_rows; ++at) out.tokens.push_back(token(at));
    return ok();
  }

 private:
  WindowSource(std::string name, Index context) : name_(std::move(name)), context_(context) {}

  static Result<WindowSource> checked(WindowSource made) {
    if (made.context_ < 1) {
      return Error{Errc::invalid_argument, made.name_ + ": windows need a context of 1 at least"};
    }
    if (made.n_tokens_ < 2) {
      return Error{Errc::invalid_argument, made.name_ + ": has " + to_text(made.n_tokens_) +
                                               " tokens; two are the fewest to learn from"};
    }
    return made;
  }
  std::int32_t token(Index at) const noexcept {
    const auto i = static_cast<std::size_t>(at);
    if (width_ == 0) return tokens_[i];
    const std::byte* const p = file_.bytes().data() + i * width_;
    if (width_ == 2) return io::load_le<std::uint16_t>(p);
    return static_cast<std::int32_t>(io::load_le<std::uint32_t>(p));
  }

  std::string name_;
  Index context_;
  Index n_tokens_ = 0;
  std::vector<std::int32_t> tokens_;  // or, if width_ is not 0,
  io::MappedFile file_;
  std::size_t width_ = 0;  // bytes of a token in it
};

}}}  // namespace nibble::NIBBLE_ABI::train
