// SPDX-License-Identifier: Apache-2.0
//
// A plug-in that uses the whole library (plugins.cmake).
#include <string>

#include "nibble/io/safetensors.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/nibble.hpp"

using namespace nibble;

static Result<std::string> answer(const char* path) {
  NIBBLE_TRY(file, io::Gguf::open(path));
  NIBBLE_TRY(bytes, quantize_model(file, ConvertOptions{}));
  if (io::Safetensors::parse(bytes, "a GGUF file")) return std::string("one format for another");
  NIBBLE_TRY(pool, ThreadPool::create({.n_threads = 2}));
  NIBBLE_TRY(model, load(path));
  SessionOptions options;
  options.executor = pool.get();
  NIBBLE_TRY(session, Session::create(model, options));
  std::string text;
  const auto on_token = [&](const Token& token) {
    text += token.text;
    return true;
  };
  GenerateOptions greedy;
  greedy.sampling.temperature = 0;
  NIBBLE_CHECK(
      generate(session, "could you please dim the office light to 10 percent\n", greedy, on_token));
  return text;
}

extern "C" int plugin_run(const char* path) {
  const auto text = answer(path);
  return text && *text == "light.set(room=office, level=10)" ? 0 : 1;
}
