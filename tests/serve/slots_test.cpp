// SPDX-License-Identifier: Apache-2.0
//
// Slots and updates, with the power cut at each operation.
#include "nibble/serve/update.hpp"

#include <map>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/serve/health.hpp"
#include "nibble/serve/slots.hpp"
#include "small_bundles.hpp"
#include "why.hpp"

namespace slots_test {

using namespace nibble;
using test::Chance;
using test::MemoryFiles;
using test::SmallBundle;

namespace {

const test::ToyCrypto kCrypto;
const std::vector<serve::KeyBytes> kKeys = {test::kToyKey};
constexpr std::uint64_t kNow = 2000;

Result<serve::Slots> open_slots(MemoryFiles& files) {
  return serve::Slots::open(files, "root", kKeys, kCrypto);
}

// Starts if all bytes are those that were signed.
Result<void> load_all(const serve::Bundle& bundle, bool) {
  InlineExecutor executor;
  return bundle.check_all(executor);
}

void deliver(MemoryFiles& files, const SmallBundle& bundle) {
  REQUIRE(files.make_folder("root"));
  REQUIRE(files.sync_folder(""));
  test::place(files, "root/a", bundle);
}

// Downloads what is missing. Returns how many bytes that were.
Result<std::uint64_t> install(serve::Slots& device, const SmallBundle& bundle) {
  NIBBLE_TRY(update, serve::Update::begin(device, bundle.text, kNow));
  NIBBLE_CHECK(update.take_from_running());
  std::uint64_t n = 0;
  for (const auto& part : update.missing(512)) {
    const std::string& text = bundle.files.at(update.manifest().files[part.file].name);
    NIBBLE_CHECK(update.put(part.file, part.offset,
                            serve::bytes_of(std::string_view(text).substr(part.offset, part.size))));
    n += part.size;
  }
  InlineExecutor executor;
  NIBBLE_CHECK(update.finish(executor));
  return n;
}

const std::string kModel = test::text_of_size(1500, 1);
// (Made in a test: assertions need one.)
const SmallBundle& first_bundle() {
  static const SmallBundle bundle =
      test::sign_small({{"model.gguf", kModel}, {"adapter", "old"}}, 1);
  return bundle;
}
const SmallBundle& second_bundle() {
  static const SmallBundle bundle = test::sign_small(
      {{"model.gguf", kModel}, {"adapters/home", test::text_of_size(300, 2)}, {"empty", ""}}, 2,
      1500);
  return bundle;
}

}  // namespace

TEST_CASE("an update downloads what is new, is tried, confirmed, and starts from then on") {
  MemoryFiles files;
  deliver(files, first_bundle());
  auto device = open_slots(files);
  REQUIRE_MESSAGE(device, test::why(device));
  auto started = device->start(load_all);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->bundle.manifest().version == 1);
  CHECK_FALSE(started->is_trial);
  const auto n = install(*device, second_bundle());
  REQUIRE_MESSAGE(n, test::why(n));
  CHECK(*n == 300);  // the adapter alone
  for (int start = 0; start < 2; ++start) {
    auto again = open_slots(files);
    REQUIRE_MESSAGE(again, test::why(again));
    auto next = again->start(load_all);
    REQUIRE_MESSAGE(next, test::why(next));
    CHECK(next->bundle.manifest().version == 2);
    CHECK(next->is_trial == (start == 0));
    REQUIRE(again->confirm());
    CHECK(again->state().highest == 2);
  }
  auto last = open_slots(files);
  REQUIRE(last->start(load_all));
  const auto same = serve::Update::begin(*last, second_bundle().text, kNow);
  REQUIRE_FALSE(same);
  CHECK(same.error().message.ends_with("version 2 runs already"));
  const auto older = serve::Update::begin(*last, first_bundle().text, kNow);
  REQUIRE_FALSE(older);
  CHECK(older.error().message ==
        "version 1 of bundle 'small' is a downgrade: this device has had version 2");
  // The old one is given up before its slot is written to.
  CHECK(open_slots(files)->state().of[0].status == serve::SlotStatus::good);
  const SmallBundle third = test::sign_small({{"model.gguf", kModel}}, 3, 1600);
  REQUIRE(serve::Update::begin(*last, third.text, kNow));
  CHECK(open_slots(files)->state().of[0].status == serve::SlotStatus::empty);
}

TEST_CASE("a signed bundle that came into a slot by other ways than an update does not start") {
  MemoryFiles files;
  deliver(files, first_bundle());
  auto device = open_slots(files);
  REQUIRE(device->start(load_all));
  REQUIRE(install(*device, second_bundle()));
  REQUIRE(device->start(load_all));
  REQUIRE(device->confirm());
  for (const auto& [name, text] : second_bundle().files) REQUIRE(files.remove("root/b/" + name));
  REQUIRE(files.remove("root/b/adapters"));
  REQUIRE(files.remove("root/b/bundle.json"));
  test::place(files, "root/b", test::sign_small({{"model.gguf", "x"}}, 9, 1600));
  REQUIRE(serve::Bundle::open(files, "root/b", kKeys, kCrypto));
  auto started = open_slots(files)->start(load_all);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->bundle.manifest().version == 1);
}

TEST_CASE("what an update refuses") {
  MemoryFiles files;
  deliver(files, first_bundle());
  auto device = open_slots(files);
  REQUIRE(device->start(load_all));
  const auto refused = [&](const std::string& text, std::uint64_t now, const std::string& part) {
    const auto update = serve::Update::begin(*device, text, now);
    REQUIRE_FALSE(update);
    CHECK_MESSAGE(update.error().message.find(part) != std::string::npos, update.error().message);
  };
  refused(second_bundle().text, 400 * 86'400, "has expired 3022500 seconds ago");
  const SmallBundle stale = test::sign_small({{"model.gguf", "x"}}, 3, 0);
  REQUIRE(serve::Update::begin(*device, stale.text, 0));
  const SmallBundle other = test::sign_small({{"model.gguf", "x"}}, 3, 1000,
                                             serve::KeyBytes(32, std::byte{1}));
  refused(other.text, kNow, "not signed by any of the 1 keys");
  std::string changed = second_bundle().text;
  changed[changed.find("\"payload\":\"") + 30] ^= 1;
  refused(changed, kNow, "");

  auto update = serve::Update::begin(*device, second_bundle().text, kNow);
  REQUIRE_MESSAGE(update, test::why(update));
  InlineExecutor executor;
  const auto early = update->finish(executor);
  CHECK((!early && early.error().code == Errc::invalid_argument));
  const auto missing = update->missing();
  REQUIRE(missing.size() == 2);
  CHECK(missing[0].size == 300);
  CHECK(missing[1].size == 1500);
  const std::string text = test::text_of_size(1500, 99);
  const auto wrong = update->put(missing[1].file, 0, serve::bytes_of(text));
  REQUIRE_FALSE(wrong);
  CHECK(wrong.error().message == "file 'model.gguf': not the bytes that were signed");
  for (const auto& [offset, size] : {std::pair<std::uint64_t, std::size_t>{0, 100}, {10, 256},
                                     {0, 0}, {1536, 256}}) {
    const auto part = update->put(missing[1].file, offset, serve::bytes_of(text.substr(0, size)));
    CHECK((!part && part.error().code == Errc::invalid_argument));
  }
  const std::string tail = kModel.substr(1280) + "x";
  const auto beyond = update->put(missing[1].file, 1280, serve::bytes_of(tail));
  CHECK((!beyond && beyond.error().code == Errc::invalid_argument));
  CHECK_FALSE(update->put(99, 0, serve::bytes_of(text)));
  CHECK(update->put(missing[1].file, 256, serve::bytes_of(kModel.substr(256, 512))));
  CHECK(update->missing().size() == 3);
}

TEST_CASE("a bundle on trial that is not confirmed is rolled back, and not installed again") {
  for (const char* const how : {"health", "tries", "reject", "no memory"}) {
    CAPTURE(how);
    const std::string_view way = how;
    MemoryFiles files;
    deliver(files, first_bundle());
    {
      auto device = open_slots(files);
      REQUIRE(device->start(load_all));
      REQUIRE(install(*device, second_bundle()));
    }
    const auto load = [&](const serve::Bundle& bundle, bool is_trial) -> Result<void> {
      if (is_trial && way == "health") return Error{Errc::invalid_argument, "wrong answers"};
      if (is_trial && way == "no memory") return Error{Errc::out_of_memory, "just now"};
      return load_all(bundle, is_trial);
    };
    int n_trials = 0;
    for (int start = 0; start < 5; ++start) {
      auto device = open_slots(files);
      auto started = device->start(load);
      REQUIRE_MESSAGE(started, test::why(started));
      n_trials += started->is_trial ? 1 : 0;
      if (started->is_trial && way == "reject") REQUIRE(device->reject());
    }
    CHECK(n_trials == (way == "tries" ? 3 : way == "reject" ? 1 : 0));
    auto device = open_slots(files);
    auto started = device->start(load_all);
    REQUIRE(started);
    CHECK(started->bundle.manifest().version == 1);
    const auto again = serve::Update::begin(*device, second_bundle().text, kNow);
    CHECK(again.has_value() == (way == "no memory" || way == "tries"));
    if (way != "tries") continue;
    // A second round without confirm() is the last.
    REQUIRE(install(*device, second_bundle()));
    for (int start = 0; start < 4; ++start) REQUIRE(open_slots(files)->start(load));
    auto last = open_slots(files);
    REQUIRE(last->start(load));
    CHECK(test::why(serve::Update::begin(*last, second_bundle().text, kNow))
              .ends_with("was rolled back on this device"));
  }
}

TEST_CASE("a bundle that crashes the device at each start is tried three times, not more") {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Chance chance(seed);
    MemoryFiles files;
    deliver(files, first_bundle());
    {
      auto device = open_slots(files);
      REQUIRE(device->start(load_all));
      REQUIRE(install(*device, second_bundle()));
    }
    int n_trials = 0;
    for (int boot = 0; boot < 8; ++boot) {
      files.cut_power();
      files.power_on(chance);
      auto device = open_slots(files);
      REQUIRE_MESSAGE(device, test::why(device));
      const auto started = device->start([&](const serve::Bundle& bundle, bool is_trial) {
        n_trials += is_trial ? 1 : 0;
        if (is_trial) files.cut_power();
        return load_all(bundle, is_trial);
      });
      if (!files.is_off()) REQUIRE_MESSAGE(started, test::why(started));
    }
    CHECK(n_trials == 3);
  }
}

TEST_CASE("damage to what runs brings back the other slot; the one good slot is never written to") {
  MemoryFiles files;
  deliver(files, first_bundle());
  auto device = open_slots(files);
  REQUIRE(device->start(load_all));
  REQUIRE(install(*device, second_bundle()));
  REQUIRE(device->start(load_all));
  REQUIRE(device->confirm());
  REQUIRE(files.flip("root/b/model.gguf", 700));
  auto after = open_slots(files);
  auto started = after->start(load_all);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->bundle.manifest().version == 1);
  // A damaged state is found again from the slots; the damaged bundle is tried once more.
  REQUIRE(files.flip("root/state", 20));
  auto found = open_slots(files);
  started = found->start(load_all);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->bundle.manifest().version == 1);
  CHECK(found->running() == 0);
  const SmallBundle third = test::sign_small({{"model.gguf", kModel}}, 3, 1600);
  REQUIRE(install(*found, third));
  CHECK(found->folder(1 - found->running()) == "root/b");
  // And without any that starts there is an error.
  REQUIRE(files.flip("root/a/model.gguf", 0));
  REQUIRE(files.flip("root/b/model.gguf", 0));
  auto none = open_slots(files);
  CHECK_FALSE(none->start(load_all));
  MemoryFiles empty;
  REQUIRE(empty.make_folder("root"));
  auto fresh = open_slots(empty);
  const auto nothing = fresh->start(load_all);
  REQUIRE_FALSE(nothing);
  CHECK(nothing.error().message == "root: neither slot has a bundle that starts");
  REQUIRE(install(*fresh, first_bundle()));  // a device without a bundle gets its first one
  started = fresh->start(load_all);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->is_trial);
}

TEST_CASE("the state of slots has one form") {
  serve::SlotsState state;
  state.of[0] = {serve::SlotStatus::good, 7, 1000, test::ToyCrypto::digest_of({})};
  state.of[1].status = serve::SlotStatus::trial;
  state.tries_left = 2;
  state.highest = 7;
  state.strikes = {{state.of[0].id, 2}, {{}, 1}};
  const std::string text = to_json(state);
  auto read = serve::parse_slots_state(text);
  REQUIRE_MESSAGE(read, test::why(read));
  CHECK(to_json(*read) == text);
  CHECK(read->is_refused(state.of[0].id));
  CHECK_FALSE(read->is_refused({}));
  for (std::size_t n = 0; n < text.size(); ++n) CHECK_FALSE(serve::parse_slots_state(text.substr(0, n)));
  CHECK_FALSE(serve::parse_slots_state(text + " "));
  state.active = 1;  // a trial cannot be what starts without one
  CHECK_FALSE(serve::parse_slots_state(to_json(state)));
}

// Everything that a device does with an update, from a start to the next. False if the power was
// cut.
static bool update_once(MemoryFiles& files) {
  auto device = open_slots(files);
  if (!device) return false;
  auto started = device->start(load_all);
  if (files.is_off()) return false;
  REQUIRE_MESSAGE(started, test::why(started));
  if (!device->confirm()) return false;
  if (started->bundle.manifest().version < 2) {
    const auto n = install(*device, second_bundle());
    if (files.is_off()) return false;
    REQUIRE_MESSAGE(n, test::why(n));
  }
  return true;
}

TEST_CASE("a power cut at any operation of an update leaves a bundle that starts") {
  std::uint64_t n_operations = 0;
  {
    MemoryFiles files;
    deliver(files, first_bundle());
    const std::uint64_t before = files.n_operations();
    REQUIRE(update_once(files));
    REQUIRE(update_once(files));
    n_operations = files.n_operations() - before;
  }
  CHECK(n_operations > 30);
  int n_old = 0;
  int n_new = 0;
  for (std::uint64_t at = 1; at <= n_operations; ++at) {
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
      CAPTURE(at);
      CAPTURE(seed);
      Chance chance(at * 1000 + seed);
      MemoryFiles files;
      deliver(files, first_bundle());
      files.cut_power_after(at);
      while (update_once(files) && !files.is_off()) {
        if (files.n_operations() > 10'000) break;
        if (update_once(files)) break;
      }
      // Cuts again, sometimes, while it recovers.
      for (int again = 0; again < 3; ++again) {
        if (!files.is_off()) files.cut_power();
        files.power_on(chance);
        auto device = open_slots(files);
        REQUIRE_MESSAGE(device, test::why(device));
        auto started = device->start(load_all);
        REQUIRE_MESSAGE(started, test::why(started));  // never a state that does not start
        (started->bundle.manifest().version == 1 ? n_old : n_new) += 1;
        files.cut_power_after(1 + chance.below(n_operations));
        if (update_once(files)) update_once(files);
      }
      if (!files.is_off()) files.cut_power();
      files.power_on(chance);
      for (int start = 0; start < 6; ++start) REQUIRE(update_once(files));
      auto device = open_slots(files);
      REQUIRE(device->start(load_all));
      CHECK(device->state().of[device->running()].version == 2);  // nothing is lost for ever
    }
  }
  CHECK(n_old > 100);
  CHECK(n_new > 100);
}

TEST_CASE("a health check says which answer was wrong or late") {
  const auto plan = serve::parse_health_plan(
      R"({"max_first_token_seconds":0.5,"max_seconds":3,"cases":[{"prompt":"a","answer":"1"},)"
      R"({"prompt":"b","answer":"2"}]})");
  REQUIRE_MESSAGE(plan, test::why(plan));
  serve::HealthAnswer second{"2, of course", 0.5, 3};
  const auto ask = [&](const std::string& prompt) -> Result<serve::HealthAnswer> {
    serve::HealthAnswer first{"1", 0.1, 0.2};
    return prompt == "a" ? first : second;
  };
  CHECK(serve::check_health(*plan, ask));
  second.seconds = 3.5;
  CHECK(test::why(serve::check_health(*plan, ask)) ==
        "health check, 'b': the answer after 3.5 s");
  second = {"2", 0.6, 1};
  CHECK(test::why(serve::check_health(*plan, ask)) ==
        "health check, 'b': the first token after 0.6 s");
  second.text = "3";
  CHECK(test::why(serve::check_health(*plan, ask)) ==
        "health check, 'b': answered '3', not '2'");
  for (const char* const bad : {"", "{}", R"({"cases":[]})", R"({"cases":[{"x":1}]})",
                                R"({"cases":[{"prompt":"a"}]} x)", R"({"what":1})"}) {
    CHECK_FALSE(serve::parse_health_plan(bad));
  }
}

}  // namespace slots_test
