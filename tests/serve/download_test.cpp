// SPDX-License-Identifier: Apache-2.0
//
// Downloads from a source that breaks off, lies and goes away, with the power cut at each
// operation.
#include "nibble/serve/download.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/serve/slots.hpp"
#include "small_bundles.hpp"
#include "why.hpp"

using namespace nibble;
using test::Chance;
using test::MemoryFiles;
using test::SmallBundle;

namespace {

const test::ToyCrypto kCrypto;
const std::vector<serve::KeyBytes> kKeys = {test::kToyKey};
constexpr std::uint64_t kNow = 2000;

// A bundle on a server, over a bad line.
class StandInSource final : public serve::BundleSource {
 public:
  explicit StandInSource(const SmallBundle& bundle) : bundle_(bundle) {}

  Result<std::string> text(const std::string& name, std::uint64_t limit) override {
    ++n_requests;
    CHECK(name == "bundle.json");
    if (breaks()) return broken();
    if (bundle_.text.size() > limit) return Error{Errc::limit, "too many bytes"};
    return bundle_.text;
  }
  Result<void> fetch(const std::string& name, std::uint64_t offset, std::uint64_t size,
                     Sink sink) override {
    ++n_requests;
    largest = (std::max)(largest, size);
    if (is_gone) return Error{Errc::not_found, "status 404"};
    std::string rest = bundle_.files.at(name).substr(offset, size);
    CHECK(rest.size() == size);
    if (is_short) rest.pop_back();
    if (is_long) rest.push_back('x');
    if (is_wrong || (lies_one_in != 0 && chance.one_in(lies_one_in))) rest[rest.size() / 2] ^= 1;
    while (!rest.empty()) {
      if (breaks()) return broken();
      const std::size_t n = 1 + chance.below(rest.size());
      if (!sink(serve::bytes_of(std::string_view(rest).substr(0, n)))) return ok();
      n_bytes += n;
      rest.erase(0, n);
    }
    return ok();
  }

  Chance chance{1};
  std::uint64_t breaks_one_in = 0, lies_one_in = 0;  // 0: never
  bool is_gone = false, is_wrong = false, is_short = false, is_long = false;
  std::uint64_t n_requests = 0, n_bytes = 0, largest = 0;

 private:
  bool breaks() { return breaks_one_in != 0 && chance.one_in(breaks_one_in); }
  static Error broken() { return {Errc::io, "the connection is broken"}; }

  const SmallBundle& bundle_;
};

const std::string kModel = test::text_of_size(3000, 1);
const SmallBundle& old_bundle() {
  static const SmallBundle bundle = test::sign_small({{"model.gguf", kModel}, {"adapter", "x"}}, 1);
  return bundle;
}
// An adapter is new, and one chunk of the model.
const SmallBundle& new_bundle() {
  static const SmallBundle bundle = [] {
    std::string model = kModel;
    model[300] = '!';
    return test::sign_small(
        {{"model.gguf", model}, {"adapters/home", test::text_of_size(1400, 2)}, {"empty", ""}}, 2,
        1500);
  }();
  return bundle;
}
constexpr std::uint64_t kNewBytes = 1400 + 256;

void deliver_old(MemoryFiles& files) {
  REQUIRE(files.make_folder("root"));
  REQUIRE(files.sync_folder(""));
  test::place(files, "root/a", old_bundle());
}

// From a start to the end of a download.
Result<serve::Downloaded> run_device(MemoryFiles& files, serve::BundleSource& source,
                                     const serve::DownloadOptions& options = {}) {
  InlineExecutor executor;
  NIBBLE_TRY(device, serve::Slots::open(files, "root", kKeys, kCrypto));
  NIBBLE_CHECK(device.start([&](const serve::Bundle& bundle, bool) -> Result<void> {
    return bundle.check_all(executor);
  }));
  NIBBLE_CHECK(device.confirm());
  return serve::download(device, source, executor, kNow, options);
}

std::uint64_t version_of(MemoryFiles& files) {
  auto device = serve::Slots::open(files, "root", kKeys, kCrypto);
  REQUIRE_MESSAGE(device, test::why(device));
  InlineExecutor executor;
  auto started = device->start([&](const serve::Bundle& bundle, bool) -> Result<void> {
    return bundle.check_all(executor);
  });
  REQUIRE_MESSAGE(started, test::why(started));
  return started->bundle.manifest().version;
}

}  // namespace

TEST_CASE("a download brings what is not on the device, in parts") {
  MemoryFiles files;
  deliver_old(files);
  StandInSource source(new_bundle());
  serve::DownloadOptions options;
  options.part_size = 600;
  std::vector<std::uint64_t> there;
  options.progress = [&](const serve::DownloadProgress& progress) {
    CHECK(progress.n_bytes == 4400);
    there.push_back(progress.n_there);
    return true;
  };
  const auto done = run_device(files, source, options);
  REQUIRE_MESSAGE(done, test::why(done));
  CHECK(done->is_installed);
  CHECK(done->version == 2);
  CHECK(done->progress.n_downloaded == kNewBytes);
  CHECK(done->progress.n_there == 4400);
  CHECK(source.n_bytes == kNewBytes);
  CHECK(source.largest == 512);
  REQUIRE(there.size() >= 4);
  CHECK(there.back() == 4400);
  CHECK(std::is_sorted(there.begin(), there.end()));
  // It is on trial, then it runs: nothing is asked for but the manifest.
  source.n_requests = 0;
  auto device = serve::Slots::open(files, "root", kKeys, kCrypto);
  REQUIRE_MESSAGE(device, test::why(device));
  InlineExecutor executor;
  const auto on_trial = serve::download(*device, source, executor, kNow);
  REQUIRE_MESSAGE(on_trial, test::why(on_trial));
  CHECK_FALSE(on_trial->is_installed);
  CHECK(source.n_requests == 1);
  CHECK(version_of(files) == 2);
  source.n_requests = 0;
  const auto again = run_device(files, source);
  REQUIRE_MESSAGE(again, test::why(again));
  CHECK_FALSE(again->is_installed);
  CHECK(source.n_requests == 1);
}

TEST_CASE("a download over a line that breaks and changes bytes is complete in the end") {
  std::uint64_t n_requests = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    MemoryFiles files;
    deliver_old(files);
    StandInSource source(new_bundle());
    source.chance = Chance(seed);
    source.breaks_one_in = 4;
    source.lies_one_in = 5;
    serve::DownloadOptions options;
    options.part_size = seed % 2 == 0 ? 512 : 4096;
    options.max_failures = 100;
    const auto done = run_device(files, source, options);
    REQUIRE_MESSAGE(done, test::why(done));
    CHECK(done->progress.n_downloaded >= kNewBytes);
    CHECK(version_of(files) == 2);
    n_requests += source.n_requests;
  }
  CHECK(n_requests > 60 * 6);
}

TEST_CASE("a power cut at any operation of a download costs one part, and never what runs") {
  serve::DownloadOptions options;
  options.part_size = 512;
  std::uint64_t n_operations = 0;
  {
    MemoryFiles files;
    deliver_old(files);
    const std::uint64_t before = files.n_operations();
    StandInSource source(new_bundle());
    REQUIRE(run_device(files, source, options));
    n_operations = files.n_operations() - before;
  }
  CHECK(n_operations > 25);
  bool has_kept = false;
  for (std::uint64_t at = 1; at <= n_operations; ++at) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      CAPTURE(at);
      CAPTURE(seed);
      Chance chance(at * 1000 + seed);
      MemoryFiles files;
      deliver_old(files);
      StandInSource source(new_bundle());
      source.chance = Chance(seed);
      files.cut_power_after(at);
      CHECK_FALSE(run_device(files, source, options));
      CHECK(files.is_off());
      files.power_on(chance);
      const std::uint64_t before = source.n_bytes;
      const std::uint64_t version = version_of(files);
      CHECK((version == 1 || version == 2));
      if (version == 1) {
        const auto done = run_device(files, source, options);
        REQUIRE_MESSAGE(done, test::why(done));
        has_kept = has_kept || source.n_bytes - before < kNewBytes - 512;
      }
      // A part in progress, and a chunk of which the sink has refused the end.
      CHECK(source.n_bytes <= kNewBytes + 512 + 256);
      CHECK(version_of(files) == 2);
    }
  }
  CHECK(has_kept);
}

TEST_CASE("what ends a download") {
  MemoryFiles files;
  deliver_old(files);
  serve::DownloadOptions options;
  std::vector<std::uint64_t> waits;
  options.max_failures = 6;
  options.first_wait_ms = 100;
  options.max_wait_ms = 500;
  options.wait = [&](std::uint64_t ms) {
    waits.push_back(ms);
    return true;
  };
  const auto error_of = [&](StandInSource& source) {
    waits.clear();
    const auto done = run_device(files, source, options);
    REQUIRE_FALSE(done);
    CHECK(version_of(files) == 1);
    return done.error();
  };
  // Six attempts in a row; there may be others before them that brought a chunk.
  const auto has_five_waits = [&] {
    const std::vector<std::uint64_t> five = {100, 200, 400, 500, 500};
    return waits.size() >= 5 && std::equal(five.begin(), five.end(), waits.end() - 5);
  };
  {
    StandInSource source(new_bundle());
    source.breaks_one_in = 1;
    CHECK(error_of(source).message == "the connection is broken");
    CHECK(has_five_waits());
    CHECK(source.n_requests == 6);
  }
  {
    StandInSource source(new_bundle());
    source.is_wrong = true;
    CHECK(error_of(source).message.ends_with("not the bytes that were signed"));
    CHECK(has_five_waits());
  }
  {
    StandInSource source(new_bundle());
    source.is_short = true;
    CHECK(error_of(source).message.ends_with("fewer bytes than were asked for"));
  }
  {
    StandInSource source(new_bundle());
    source.is_long = true;  // the bytes that were asked for came before
    waits.clear();
    const auto done = run_device(files, source, options);
    REQUIRE_MESSAGE(done, test::why(done));
    CHECK_FALSE(waits.empty());
    CHECK(version_of(files) == 2);
  }
}

TEST_CASE("what ends a download at once") {
  MemoryFiles files;
  deliver_old(files);
  const auto code_after = [&](StandInSource& source, const serve::DownloadOptions& options) {
    const auto done = run_device(files, source, options);
    REQUIRE_FALSE(done);
    CHECK(version_of(files) == 1);
    return done.error().code;
  };
  StandInSource source(new_bundle());
  source.is_gone = true;
  CHECK(code_after(source, {}) == Errc::not_found);
  CHECK(source.n_requests == 2);
  source.is_gone = false;
  serve::DownloadOptions small;
  small.max_chunk = 255;
  CHECK(code_after(source, small) == Errc::limit);
  serve::DownloadOptions ended;
  ended.progress = [](const serve::DownloadProgress&) { return false; };
  CHECK(code_after(source, ended) == Errc::cancelled);
  CHECK(source.n_bytes < 600);
  ended.progress = {};
  ended.wait = [](std::uint64_t) { return false; };
  source.breaks_one_in = 1;
  CHECK(code_after(source, ended) == Errc::cancelled);
  const SmallBundle strange =
      test::sign_small({{"model.gguf", "x"}}, 3, 1600, serve::KeyBytes(32, std::byte{1}));
  StandInSource other(strange);
  CHECK(code_after(other, {}) == Errc::malformed);
  StandInSource older(old_bundle());
  source.breaks_one_in = 0;
  REQUIRE(run_device(files, source));
  CHECK(version_of(files) == 2);
  const auto done = run_device(files, older);
  REQUIRE_FALSE(done);
  CHECK(done.error().message.find("is a downgrade") != std::string::npos);
}
