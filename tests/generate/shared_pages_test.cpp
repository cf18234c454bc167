// SPDX-License-Identifier: Apache-2.0
//
// Pages of a prompt that processes share: a file takes the place of a part of an engine's cache.
// What is mapped is bit-equal to what is computed, nobody's writes reach the file or the others,
// and a process that is killed does not matter to the rest.
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/prefix_places.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "test_data.hpp"

#if defined(_WIN32)

TEST_CASE("pages of a file cannot be mapped here, and an error says so") {
  nibble::EngineOptions options = test::options_of();
  options.maps_pages = true;
  const auto engine = nibble::Engine::create(test::llama_model(), options);
  REQUIRE(!engine);
  CHECK(engine.error().code == nibble::Errc::unsupported);
}

#else
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace shared_pages_test {

using namespace nibble;
using namespace test;
using ops::kPagePositions;

namespace {

EngineOptions mapping(EngineOptions options = options_of()) {
  options.maps_pages = true;
  return options;
}

// The tokens that a model finds most likely after `prompt`, with the logits of each.
struct Answer {
  Ids ids;
  std::vector<float> logits;
  bool operator==(const Answer&) const = default;
};
void continue_with(Engine& engine, Sequence& sequence, std::size_t n, Answer& answer) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::int32_t last[] = {answer.ids.back()};
    const auto logits = append(engine, sequence, last);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    answer.ids.push_back(static_cast<std::int32_t>(best));
    answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
  }
}
// From the cached beginning of the prompt on.
std::pair<Sequence, Answer> start(Place& place, const Ids& prompt) {
  Sequence sequence = must(place.cache.match(prompt));
  append(place.engine, sequence, rest_of(prompt, sequence.position()));
  return {std::move(sequence), Answer{{prompt.back()}, {}}};
}

// A process of its own that runs `body` and ends. It is killed, if it still runs, at the latest
// when this ends.
class Process {
 public:
  template <class Body>
  explicit Process(Body&& body) {
    REQUIRE(::pipe(pipe_) == 0);
    id_ = ::fork();
    REQUIRE(id_ >= 0);
    if (id_ != 0) return;
    body(pipe_[1]);
    ::_exit(0);
  }
  ~Process() {
    kill();
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }
  void kill() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    ::waitpid(id_, nullptr, 0);
    id_ = 0;
  }
  // Waits until it has written so many bytes.
  std::vector<std::byte> read(std::size_t n) {
    std::vector<std::byte> bytes(n);
    for (std::size_t at = 0; at < n;) {
      const ssize_t now = ::read(pipe_[0], bytes.data() + at, n - at);
      REQUIRE(now > 0);
      at += static_cast<std::size_t>(now);
    }
    return bytes;
  }

 private:
  int pipe_[2] = {};
  pid_t id_ = 0;
};
void write_all(int to, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(to, bytes.data(), bytes.size());
    if (n <= 0) ::_exit(1);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

}  // namespace

TEST_CASE("mapped pages are bit-equal to computed ones, and the file never changes") {
  const TemporaryFile file;
  const std::pair<const char*, Model> models[] = {
      {"llama", llama_model()}, {"windows", gemma_model(70)}, {"recurrent state", conv_model()}};
  for (const auto& [name, model] : models) {
    CAPTURE(name);
    for (const ops::KvType kv_type : ops::kKvTypes) {
      Place first(model, options_of(kv_type));
      fill(first.engine, first.cache);
      REQUIRE(first.cache.save(file.path));
      const auto saved = read_file(file.path);
      Place second(model, mapping(options_of(kv_type)));
      CHECK(second.engine.bytes() ==
            must(Engine::bytes_needed(model, mapping(options_of(kv_type)))));
      REQUIRE(second.cache.restore(file.path, PageUse::map));
      CHECK(second.cache.n_pages() == first.cache.n_pages());
      check_restored(second);
      // The same pages again, now with other tokens; and a second time from the file.
      second.cache.clear();
      CHECK(second.engine.n_free_pages() == second.engine.n_pages());
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK(logits_of(second.engine, some_ids(390, 20 + i)) ==
              logits_of(first.engine, some_ids(390, 20 + i)));
      }
      REQUIRE(second.cache.restore(file.path, PageUse::map));
      check_restored(second);
      CHECK(read_file(file.path) == saved);
    }
  }
}

#if defined(__linux__)
TEST_CASE("mapped pages are the file's, not copies") {
  const TemporaryFile file;
  const Model model = llama_model();
  Place first(model), second(model, mapping());
  fill(first.engine, first.cache);
  REQUIRE(first.cache.save(file.path));
  const auto n_mappings = [&] {
    std::ifstream maps("/proc/self/maps");
    int n = 0;
    for (std::string line; std::getline(maps, line);) n += line.find(file.path) != line.npos;
    return n;
  };
  CHECK(n_mappings() == 0);
  REQUIRE(second.cache.restore(file.path, PageUse::map));
  CHECK(n_mappings() >= 3);  // at least one for each layer
}
#endif

TEST_CASE("two processes share a prompt, one is killed, the other continues bit-equal") {
  const TemporaryFile file;
  const Model model = llama_model();
  const Ids prompt = prompts()[0].first;
  constexpr std::size_t kTokens = 40;
  Answer expected;
  {
    Place alone(model);
    fill(alone.engine, alone.cache);
    REQUIRE(alone.cache.save(file.path));
    auto [sequence, answer] = start(alone, prompt);
    continue_with(alone.engine, sequence, kTokens, answer);
    expected = std::move(answer);
  }
  const auto saved = read_file(file.path);

  // It writes to its copies of the shared pages without end.
  Process killed([&](int out) {
    Place place(model, mapping());
    if (!place.cache.restore(file.path, PageUse::map)) ::_exit(1);
    for (std::size_t round_trip = 0;; ++round_trip) {
      auto [sequence, answer] = start(place, prompt);
      continue_with(place.engine, sequence, kTokens, answer);
      const std::byte one[] = {answer == expected ? std::byte{1} : std::byte{0}};
      if (round_trip < 2) write_all(out, one);
    }
  });
  Process whole([&](int out) {
    Place place(model, mapping());
    if (!place.cache.restore(file.path, PageUse::map)) ::_exit(1);
    auto [sequence, answer] = start(place, prompt);
    continue_with(place.engine, sequence, kTokens, answer);
    write_all(out, std::as_bytes(std::span(answer.logits)));
  });
  Place place(model, mapping());
  REQUIRE(place.cache.restore(file.path, PageUse::map));
  auto [sequence, answer] = start(place, prompt);
  continue_with(place.engine, sequence, kTokens / 2, answer);
  CHECK(killed.read(2) == std::vector<std::byte>(2, std::byte{1}));
  killed.kill();
  continue_with(place.engine, sequence, kTokens / 2, answer);
  CHECK(answer == expected);
  const auto theirs = whole.read(expected.logits.size() * sizeof(float));
  CHECK(
      std::equal(theirs.begin(), theirs.end(), std::as_bytes(std::span(expected.logits)).begin()));
  CHECK(read_file(file.path) == saved);
  // What is mapped stays when the file is gone.
  REQUIRE(std::filesystem::remove(file.path));
  check_restored(place);
}

TEST_CASE("mapping refuses what restoring refuses, and what cannot be mapped") {
  const TemporaryFile file, other;
  const Model model = llama_model();
  Place first(model), copies(model), second(model, mapping());
  fill(first.engine, first.cache);
  REQUIRE(first.cache.save(file.path));
  const auto refused = [](Place& place, const std::string& path) {
    const auto restored = place.cache.restore(path, PageUse::map);
    REQUIRE(!restored);
    CHECK(place.cache.bytes() == 0);
    CHECK(place.engine.n_free_pages() == place.engine.n_pages());
    return restored.error().code;
  };
  CHECK(refused(copies, file.path) == Errc::invalid_argument);
  const auto bytes = read_file(file.path);
  for (std::size_t at = bytes.size() - 1; at > bytes.size() / 2; at -= bytes.size() / 9) {
    auto changed = bytes;
    changed[at] ^= std::byte{1};
    other.write(changed);
    if (second.cache.restore(other.path, PageUse::map)) {  // padding
      check_restored(second);
      second.cache.clear();
    }
    other.write(std::span(bytes).first(at));
    CHECK(refused(second, other.path) == Errc::malformed);
  }
  // Pages that are not where pages of the system's memory are: with another alignment.
  const io::Gguf opened = must(io::Gguf::open(file.path));
  io::GgufWriter writer;
  writer.copy_metadata(opened);
  writer.set("general.alignment", std::uint32_t{64});
  for (const io::GgufTensor& tensor : opened.tensors()) writer.add_tensor(tensor);
  REQUIRE(writer.write(other.path));
  CHECK(refused(second, other.path) == Errc::unsupported);
  REQUIRE(second.cache.restore(other.path));  // copied
  check_restored(second);
  second.cache.clear();
  // Free pages, but not in a row.
  std::vector<Sequence> users;
  for (Index i = 0; i < second.engine.n_pages(); ++i) {
    users.push_back(must(second.engine.new_sequence(1)));
    append(second.engine, users.back(), some_ids(1, 1));
  }
  for (std::size_t i = 0; i < users.size(); i += 2) users[i] = must(second.engine.new_sequence(1));
  const auto scattered = second.cache.restore(file.path, PageUse::map);
  REQUIRE(!scattered);
  CHECK(scattered.error().code == Errc::limit);
  REQUIRE(second.cache.restore(file.path));
  users.clear();
  check_restored(second);
}

}  // namespace shared_pages_test

#endif
