// SPDX-License-Identifier: Apache-2.0
//
// One of several translation units of a program, each compiled with different -m flags. ODR_LEVEL
// names it.
#include <cstdio>
#include <string>

#include "nibble/nibble.hpp"

#define ODR_CONCAT_(a, b) a##b
#define ODR_CONCAT(a, b) ODR_CONCAT_(a, b)

using Formats = nibble::graph::FormatList<nibble::quant::F32, nibble::quant::F16>;
using Architectures = nibble::ArchitectureList<nibble::Llama>;

// The model's answer, or the error.
std::string ODR_CONCAT(answer_, ODR_LEVEL)(const char* path, const char* prompt) {
  auto pool = nibble::ThreadPool::create({.n_threads = 2});
  if (!pool) return pool.error().message;
  const auto file = nibble::io::Gguf::open(path);
  if (!file) return file.error().message;
  const auto model =
      nibble::Model::from_gguf<Formats, Architectures>(*file, {.executor = pool->get()});
  if (!model) return model.error().message;
  auto session = nibble::Session::create(*model, {.executor = pool->get()});
  if (!session) return session.error().message;
  nibble::GenerateOptions options;
  options.sampling.repetition_penalty = 1.0001f;  // the sampler's longer path
  std::string text;
  const auto done = nibble::generate(*session, prompt, options, [&](const nibble::Token& token) {
    text += token.text;
    return true;
  });
  return done ? text : done.error().message;
}
