// SPDX-License-Identifier: Apache-2.0
//
// Memory that runs out at any point is the error out_of_memory: nothing throws, nothing ends the
// program.
#include <array>
#include <cstring>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace out_of_memory_test {

using namespace nibble;

#if NIBBLE_TEST_COUNTS_ALLOCATIONS && NIBBLE_HAS_EXCEPTIONS

namespace {

// Calls f() -> Result<...> again and again: without the n-th allocation, or all from the n-th on,
// until it needs fewer than n. Returns how many it needs. Only some are left out if there are many.
template <class F>
long long check_each(const char* what, F f) {
  CAPTURE(what);
  long long n = 1;
  for (const bool all : {false, true}) {
    for (n = 1;; n += 1 + n / 64) {
      Error error{Errc::cancelled, ""};
      bool happened = false, has_value = false, threw = false;
      try {
        const FailingAllocations failing(n, all);
        const auto result = f();
        happened = failing.happened();
        has_value = result.has_value();
        if (!has_value) {
          error.code = result.error().code;
          if (error.code != Errc::out_of_memory) error.message = "another error";
        }
      } catch (...) {
        threw = true;
      }
      CAPTURE(n);
      CAPTURE(all);
      REQUIRE(!threw);
      if (!happened) {
        REQUIRE(has_value);
        break;
      }
      // It may do without an allocation that is only for its speed.
      if (!has_value) REQUIRE(error.code == Errc::out_of_memory);
      if (all) REQUIRE(!has_value);
    }
  }
  REQUIRE(n > 1);
  return n;
}

constexpr const char* kPrompt = "could you please dim the office light to 10 percent\n";

}  // namespace

TEST_CASE("reading and loading a file without memory") {
  const std::string path = test::home_model_path();
  check_each("open", [&] { return io::Gguf::open(path); });
  const std::string missing = "there/is/no/file/of/such/a/name";
  check_each("a missing file", [&]() -> Result<void> {
    const auto file = io::Gguf::open(missing);
    if (file || file.error().code == Errc::io) return ok();
    return Error{file.error().code, ""};
  });
  check_each("load", [&] { return load(path); });
  const auto file = io::Gguf::open(path);
  REQUIRE(file);
  check_each("from_gguf", [&] { return Model::from_gguf(*file); });
  check_each("tokenizer", [&] { return text::Tokenizer::from_gguf(*file); });
  check_each("array", [&] { return file->get_strings("tokenizer.ggml.tokens"); });

  std::string header =
      R"({"__metadata__":{"a long key with":"a long value, too"},)"
      R"("weights with a long name":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  while (header.size() % 8 != 0) header += ' ';
  std::vector<std::byte> bytes(8 + header.size() + 8);
  bytes[0] = static_cast<std::byte>(header.size());
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  check_each("safetensors", [&] { return io::Safetensors::parse(bytes, path); });
}

TEST_CASE("answering without memory") {
  const Model model = test::home_model();
  check_each("session", [&] { return Session::create(model); });
  check_each("engine and sequence", [&]() -> Result<void> {
    NIBBLE_TRY(engine, Engine::create(model));
    NIBBLE_TRY(sequence, engine.new_sequence());
    return ok();
  });
  auto session = Session::create(model);
  REQUIRE(session);
  GenerateOptions options;
  options.stop = {"a stop string that needs memory"};
  check_each("generate", [&]() -> Result<void> {
    std::size_t n = 0;
    NIBBLE_CHECK(session->rewind(0));
    auto done = generate(*session, kPrompt, options, [&](const Token& token) {
      n += token.text.size();
      return true;
    });
    if (!done) return std::move(done).error();
    return n == 32 ? ok() : Error{Errc::malformed, ""};
  });
  // A prompt that fails leaves the session as it was.
  auto generator = Generator::create(*session, {});
  REQUIRE(generator);
  check_each("prompt", [&]() -> Result<void> {
    NIBBLE_CHECK(session->rewind(0));
    NIBBLE_CHECK(generator->set_options(options));
    auto done = generator->prompt(kPrompt);
    if (!done && session->position() != 0) return Error{Errc::malformed, "the prompt stayed"};
    return done;
  });
  std::vector<std::int32_t> ids = {7};
  check_each("encode", [&]() -> Result<void> {
    ids.resize(1);
    ids.shrink_to_fit();
    const auto done = model.tokenizer()->encode(kPrompt, {}, ids);
    if (!done && ids.size() != 1) return Error{Errc::malformed, ""};
    return done ? ok() : Error{done.error().code, ""};
  });
}

TEST_CASE("converting and writing without memory") {
  const auto file = io::Gguf::open(test::home_model_path());
  REQUIRE(file);
  const auto folder = std::filesystem::temp_directory_path() /
                      ("nibble_memory_test_" + std::to_string(std::random_device{}()));
  std::filesystem::create_directory(folder);
  const std::string path = (folder / "model-with-a-long-name.gguf").string();
  check_each("quantize to memory", [&] { return quantize_model(*file, {}); });
  check_each("quantize to a file", [&] { return quantize_model(*file, path, {}); });
  CHECK(std::filesystem::exists(path));
  std::filesystem::remove(path);
  CHECK(std::filesystem::is_empty(folder));
  check_each("writer", [&]() -> Result<void> {
    io::GgufWriter writer;
    writer.set("a.key.of.some.length", std::string_view("a value of some length"));
    writer.set_array("a.key.of.an.array", std::array{1, 2, 3});
    writer.add_tensor("a tensor with a long name", io::GgmlType::i8,
                      std::array<std::uint64_t, 1>{3}, std::as_bytes(std::span("ab")));
    return writer.write(path);
  });
  std::filesystem::remove_all(folder);
}

TEST_CASE("a thread pool without memory") {
  check_each("thread pool", [] { return ThreadPool::create({.n_threads = 3}); });
}

#endif

}  // namespace out_of_memory_test
