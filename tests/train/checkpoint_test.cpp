// SPDX-License-Identifier: Apache-2.0
#include "nibble/train/checkpoint.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "kernels/arrays.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/sgd.hpp"
#include "test_data.hpp"
#include "why.hpp"

#if !defined(_WIN32)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace checkpoint_test {

using namespace nibble;
using namespace nibble::train;
using nibble_test::Floats, nibble_test::random_floats;
using test::contains;

namespace {

// A small run: two parameters that learn numbers from the data, with whatever is random.
template <class Optimizer, class Options>
struct Run {
  Floats a, b, gradient_a, gradient_b;
  MemorySource source;
  Optimizer optimizer;
  Batches batches;
  Random random{99};
  std::string fingerprint;

  explicit Run(const Options& options)
      : a(random_floats(600, -1, 1)),
        b(random_floats(10, -1, 1)),
        gradient_a(600),
        gradient_b(10),
        source(examples()),
        optimizer(optimizer_of(options)),
        batches(batches_of()),
        fingerprint("optimizer: " + optimizer.fingerprint() + "\ndata: " + batches.fingerprint()) {}

  static std::vector<Example> examples() {
    std::vector<Example> out;
    for (int i = 0; i < 30; ++i) out.push_back({{i, i + 1, 2 * i}, {}});
    return out;
  }
  Optimizer optimizer_of(const Options& options) {
    auto made = Optimizer::create(
        {{"blk.0.weight", a, gradient_a, true, 1, 20}, {"norm", b, gradient_b, false}}, options);
    REQUIRE(made);
    return *std::move(made);
  }
  Batches batches_of() {
    BatchOptions options;
    options.context = 4;
    options.max_rows = 9;
    options.vocabulary = 100;
    auto made = Batches::create(source, options);
    REQUIRE(made);
    return *std::move(made);
  }
  void steps(int n) {
    InlineExecutor executor;
    Batch batch;
    for (int i = 0; i < n; ++i) {
      REQUIRE(batches.next(batch));
      for (std::size_t j = 0; j < a.size(); ++j) {
        const auto token = batch.tokens[j % batch.tokens.size()];
        gradient_a[j] =
            a[j] - static_cast<float>(token) / 30 + static_cast<float>(random.uniform() - 0.5);
      }
      for (std::size_t j = 0; j < b.size(); ++j) gradient_b[j] = b[j] - static_cast<float>(j);
      REQUIRE(optimizer.step(executor, 0.01));
    }
  }
  Result<void> save(const std::string& path) {
    return save_run(path, {0, batches.position(), random.state(), fingerprint}, optimizer);
  }
  Result<void> resume(const std::string& path) {
    NIBBLE_TRY(state, resume_run(path, fingerprint, optimizer));
    NIBBLE_CHECK(batches.seek(state.data));
    random = Random(state.random);
    return ok();
  }
  std::vector<std::byte> everything() {
    std::vector<std::byte> out;
    for (const StateTensor& t : tensors_of(optimizer)) {
      out.insert(out.end(), t.bytes.begin(), t.bytes.end());
    }
    return out;
  }
};

template <class Optimizer, class Options>
void check_resuming(const Options& options) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("run.gguf");
  Run<Optimizer, Options> whole(options), first(options), second(options);
  whole.steps(23);
  first.steps(11);
  REQUIRE(first.save(path));
  second.steps(2);  // of which nothing must remain
  const auto resumed = second.resume(path);
  REQUIRE_MESSAGE(resumed, test::why(resumed));
  CHECK(second.optimizer.n_steps() == 11);
  second.steps(12);
  CHECK(second.everything() == whole.everything());
  CHECK(second.batches.position() == whole.batches.position());
  CHECK(second.random.state() == whole.random.state());
  CHECK(folder.count() == 1);
}

using AdamWRun = Run<AdamW, AdamWOptions>;

void edit(std::vector<std::byte>& bytes, std::size_t at) { bytes[at] ^= std::byte{1}; }

}  // namespace

TEST_CASE("a run that stops and continues is the run that did not stop, bit for bit") {
  AdamWOptions options;
  options.clip_norm = 5;
  check_resuming<AdamW>(options);
  options.moments = Moments::bits8;
  check_resuming<AdamW>(options);
  check_resuming<Sgd>(SgdOptions{0.9, 0.01, 0, true});
}

TEST_CASE("a checkpoint of another run says what differs, and changes nothing") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("run.gguf");
  AdamWRun run{AdamWOptions{}};
  run.steps(3);
  REQUIRE(run.save(path));

  const auto before = run.everything();
  const auto fails = [&](const auto& result, const std::string& why) {
    REQUIRE(!result);
    CHECK_MESSAGE(contains(result.error().message, why), result.error().message);
    CHECK(contains(result.error().message, "run.gguf"));
    CHECK(run.everything() == before);
  };
  fails(resume_run(path, run.fingerprint + " and more", run.optimizer),
        "the run was 'data: context 4 rows 9 sequences 9223372036854775807 shuffled', this one is "
        "'data: context 4 rows 9 sequences 9223372036854775807 shuffled and more'");
  AdamWOptions other;
  other.beta2 = 0.95;
  AdamWRun faster{other};
  fails(faster.resume(path), "optimizer: adamw 0.9");

  auto tensors = tensors_of(run.optimizer);
  const auto load = [&](const std::vector<StateTensor>& list) {
    return load_checkpoint(path, run.fingerprint, list);
  };
  REQUIRE(load(tensors));
  auto changed = tensors;
  changed[0].name = "blk.1.weight";
  fails(load(changed), "has a tensor 'blk.0.weight', which this run does not have");
  changed = tensors;
  changed.push_back({"extra", StateTensor::Kind::f32, tensors[0].bytes});
  fails(load(changed), "has no tensor 'extra'");
  changed = tensors;
  changed.pop_back();
  fails(load(changed), "which this run does not have");
  changed = tensors;
  changed[0].columns = 30;
  fails(load(changed), "'blk.0.weight' has the shape (20, 30) there and (30, 20) in this run");
  changed = tensors;
  changed[1].bytes = changed[1].bytes.first(36);
  fails(load(changed), "'norm' has the shape (10) there and (9) in this run");
  changed = tensors;
  changed[1].kind = StateTensor::Kind::i8;
  fails(load(changed), "'norm' is F32 there and I8 in this run");
}

TEST_CASE("a damaged or foreign file is an error, and changes nothing") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("run.gguf");
  AdamWRun run{AdamWOptions{}};
  run.steps(2);
  REQUIRE(run.save(path));
  const auto good = test::read_file(path);
  run.steps(1);
  const auto before = run.everything();

  // Any bit that is not padding: every 97th byte and all of the last tensors.
  int n_refused = 0, n_padding = 0;
  for (std::size_t at = 0; at < good.size(); at += at < 2000 ? 1 : 97) {
    auto bytes = good;
    edit(bytes, at);
    folder.write("run.gguf", bytes);
    const auto resumed = run.resume(path);
    if (resumed) {
      ++n_padding;
      // Padding: what was loaded is what was saved.
      AdamWRun same{AdamWOptions{}};
      same.steps(2);
      CHECK(run.everything() == same.everything());
      REQUIRE(run.batches.position() == same.batches.position());
      run.random = same.random;
      run.steps(1);
      REQUIRE(run.everything() == before);
    } else {
      ++n_refused;
      REQUIRE(run.everything() == before);
    }
  }
  CHECK(n_refused > 1400);
  CHECK(n_padding < 200);

  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10}, good.size() / 2, good.size() - 32}) {
    folder.write("run.gguf", std::span(good).first(size));
    const auto resumed = run.resume(path);
    CHECK(!resumed);
  }
  CHECK(!run.resume(folder.path("missing")));
  folder.write("run.gguf", test::read_file(std::string(std::getenv("NIBBLE_PROJECT_DIR")) +
                                           "/examples/models/home-commands-f16.gguf"));
  const auto model = run.resume(path);
  REQUIRE(!model);
  CHECK(contains(model.error().message, "is no checkpoint of a training run"));
  CHECK(run.everything() == before);
}

TEST_CASE("names that a file cannot hold are errors before anything is written") {
  const test::TemporaryFolder folder;
  Floats x(4);
  const auto bytes = std::as_writable_bytes(std::span(x));
  const std::string path = folder.path("c");
  const std::vector<StateTensor> twice = {{"x", {}, bytes}, {"x", {}, bytes}};
  CHECK(!save_checkpoint(path, {}, twice));
  const std::vector<StateTensor> long_name = {{std::string(65, 'n'), {}, bytes}};
  CHECK(!save_checkpoint(path, {}, long_name));
  CHECK(folder.count() == 0);
}

#if !defined(_WIN32)
TEST_CASE("if the disk is full, the last good checkpoint stays") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("run.gguf");
  AdamWRun run{AdamWOptions{}};
  run.steps(2);
  REQUIRE(run.save(path));
  const auto good = test::read_file(path);
  run.steps(2);
  // A limit on the size of files stands for a disk without space: the write fails halfway.
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const ::rlimit limit{good.size() / 2, good.size() / 2};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(2);
    const auto saved = run.save(path);
    ::_exit(saved ? 3 : saved.error().code == Errc::io ? 0 : 4);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(test::read_file(path) == good);
  CHECK(folder.count() == 1);
  CHECK(run.resume(path));
}
#endif

}  // namespace checkpoint_test
