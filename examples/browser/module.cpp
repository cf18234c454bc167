// SPDX-License-Identifier: Apache-2.0
//
// A model for a web page: nibble as a WebAssembly module with a C interface. One model, one text at
// a time; texts are UTF-8 that end in 0. Functions that can fail say so by what they return, and
// nibble_error() says why. worker.js calls them.
#include <emscripten/emscripten.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/model/llama.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

// What the page's model is made of; each format less makes the module smaller.
using Formats = nibble::graph::FormatList<nibble::quant::F32, nibble::quant::Q4_0>;
using Architectures = nibble::ArchitectureList<nibble::Llama>;

struct State {
  std::optional<nibble::Model> model;
  std::optional<nibble::Session> session;
  std::optional<nibble::Generator> generator;
  std::string text;  // of the last token
  std::string error;
};
State& state() {
  static State all;
  return all;
}

bool succeeds(const nibble::Result<void>& result) {
  if (!result) state().error = result.error().message;
  return result.has_value();
}

nibble::Result<void> load(const std::byte* bytes, std::size_t n) {
  State& s = state();
  s.generator.reset();
  s.session.reset();
  NIBBLE_TRY(memory, nibble::AlignedBuffer::allocate(n));
  std::memcpy(memory.data(), bytes, n);
  NIBBLE_TRY(file, nibble::io::Gguf::parse(std::move(memory), "model"));
  NIBBLE_TRY(model, (nibble::Model::from_gguf<Formats, Architectures>(file)));
  NIBBLE_TRY(session, nibble::Session::create(model, {.n_ctx = 256, .max_step_tokens = 32}));
  s.model.emplace(std::move(model));
  s.session.emplace(std::move(session));
  return nibble::ok();
}

// What a text that is being typed has in common with the one before is not computed again.
nibble::Result<void> ask(const char* prompt, int max_tokens) {
  State& s = state();
  if (!s.session) return nibble::Error{nibble::Errc::invalid_argument, "no model is loaded"};
  const auto* const tokenizer = s.model->tokenizer();
  if (tokenizer == nullptr) return *s.model->tokenizer_error();
  NIBBLE_TRY(ids, tokenizer->encode(prompt, {.add_eos = false}));
  if (ids.empty()) return nibble::Error{nibble::Errc::invalid_argument, "the text is empty"};
  const auto before = s.session->tokens();
  const std::size_t most = (std::min)(before.size(), ids.size() - 1);
  const auto [end, at] =
      std::mismatch(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(most), before.begin());
  const auto n_common = end - ids.begin();
  NIBBLE_CHECK(s.session->rewind(n_common));
  NIBBLE_TRY(generator, nibble::Generator::create(*s.session, {.max_tokens = max_tokens}));
  NIBBLE_CHECK(generator.prompt(std::span(ids).subspan(static_cast<std::size_t>(n_common)), true));
  s.generator.emplace(std::move(generator));
  return nibble::ok();
}

nibble::Result<bool> next() {
  State& s = state();
  if (!s.generator) return nibble::Error{nibble::Errc::invalid_argument, "nothing is asked"};
  NIBBLE_TRY(token, s.generator->next());
  if (!token) return false;
  s.text = token->text;
  return true;
}

}  // namespace

extern "C" {

// Takes a copy of the model's bytes. 1: it is loaded; 0: see nibble_error().
EMSCRIPTEN_KEEPALIVE int nibble_load(const std::byte* bytes, std::size_t n) {
  return succeeds(load(bytes, n)) ? 1 : 0;
}
// Reads a prompt. 1: nibble_next() gives the answer; 0: see nibble_error().
EMSCRIPTEN_KEEPALIVE int nibble_ask(const char* prompt, int max_tokens) {
  return succeeds(ask(prompt, max_tokens)) ? 1 : 0;
}
// Computes the next token. 1: nibble_text() is what it shows; 0: the answer has ended; -1: see
// nibble_error().
EMSCRIPTEN_KEEPALIVE int nibble_next() {
  const auto more = next();
  if (!more) state().error = more.error().message;
  return !more ? -1 : *more ? 1 : 0;
}
// Valid until the next call of a function.
EMSCRIPTEN_KEEPALIVE const char* nibble_text() { return state().text.c_str(); }
EMSCRIPTEN_KEEPALIVE const char* nibble_error() { return state().error.c_str(); }
// The instruction set that computes.
EMSCRIPTEN_KEEPALIVE const char* nibble_target() {
  return nibble::simd::to_string(nibble::simd::active_target());
}

}  // extern "C"
