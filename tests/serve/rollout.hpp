// SPDX-License-Identifier: Apache-2.0
//
// A year of a fleet: releases come, some of them bad; devices download them, lose power at any
// moment, and have clocks that jump. The policy is that of serve/update.hpp and serve/slots.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "memory_files.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/serve/slots.hpp"
#include "nibble/serve/update.hpp"
#include "small_bundles.hpp"
#include "toy_crypto.hpp"

namespace test {

enum class ReleaseKind { good, crashes_at_load, wrong_answers, resets_later };

struct Release {
  std::uint64_t day;
  ReleaseKind kind;
  SmallBundle bundle;
};

// What happened to all devices.
struct RolloutCounts {
  std::uint64_t n_starts = 0;
  std::uint64_t n_trials = 0;
  std::uint64_t n_cuts = 0;
  std::uint64_t n_installs = 0;
  std::uint64_t n_expired = 0;     // updates refused for their date
  std::uint64_t n_downgrades = 0;  // refused
  std::uint64_t n_latest = 0;      // devices that end on the latest good release
  std::uint64_t n_bad = 0;         // on a bad one
  std::uint64_t n_dead = 0;        // starts that found no bundle
  std::string first_failure;       // of anything that must not happen
};

class Rollout {
 public:
  static constexpr std::uint64_t kDay = 86'400;  // seconds
  static constexpr std::uint64_t kBegin = 1'700'000'000;
  static constexpr std::uint64_t kDays = 365;

  explicit Rollout(std::uint64_t seed) : seed_(seed) {
    Chance chance(seed);
    std::string model = text_of_size(600, 1);
    std::uint64_t version = 1;
    add(0, ReleaseKind::good, version++, model);
    for (std::uint64_t day = 20; day < kDays - 20; day += 12 + chance.below(20)) {
      if (chance.one_in(4)) model = text_of_size(500 + chance.below(300), chance.next());
      const auto kind = static_cast<ReleaseKind>(chance.one_in(3) ? 1 + chance.below(3) : 0);
      add(day, kind, version++, model);
    }
    add(kDays - 20, ReleaseKind::good, version, model);  // a bad last one is corrected in time
  }

  std::size_t n_releases() const { return releases_.size(); }
  std::size_t n_bad_releases() const {
    std::size_t n = 0;
    for (const Release& release : releases_) n += release.kind == ReleaseKind::good ? 0u : 1u;
    return n;
  }

  void run_device(std::uint64_t device, RolloutCounts& counts) const {
    Device it(Chance(seed_ * 1'000'003 + device), counts);
    (void)it.files.make_folder("root");
    (void)it.files.sync_folder("");
    place(it.files, "root/a", releases_[0].bundle);
    for (std::uint64_t day = 1; day < kDays; ++day) live_a_day(it, day);
    // Time to come to rest: the power stays on, and the clock is right.
    it.clock_error = 0;
    for (int start = 0; start < 8; ++start) {
      it.cut_power();
      boot(it, kDays, false);
    }
    if (it.running == releases_.size() - 1) {
      ++counts.n_latest;
    } else if (it.running >= releases_.size() || releases_[it.running].kind != ReleaseKind::good) {
      ++counts.n_bad;
      it.fail("a device ends on a bad release");
    }
  }

 private:
  struct Device {
    Device(Chance by_chance, RolloutCounts& all) : chance(by_chance), counts(all) {}
    void cut_power() {
      files.cut_power();
      ++counts.n_cuts;
      files.power_on(chance);
    }
    void fail(const std::string& what) {
      if (counts.first_failure.empty()) counts.first_failure = what;
    }

    Chance chance;
    RolloutCounts& counts;
    MemoryFiles files;
    std::int64_t clock_error = 0;  // seconds
    std::size_t running = 0;       // index of a release
  };

  void add(std::uint64_t day, ReleaseKind kind, std::uint64_t version, const std::string& model) {
    releases_.push_back({day, kind,
                         sign_small({{"model.gguf", model},
                                     {"adapters/home", text_of_size(300, version)}},
                                    version, kBegin + day * kDay)});
  }

  void live_a_day(Device& it, std::uint64_t day) const {
    if (it.chance.one_in(60)) {
      constexpr std::int64_t kYear = 365 * 86'400;
      const std::int64_t jumps[] = {-static_cast<std::int64_t>(kBegin), 5 * kYear, -2 * kYear, 3600};
      it.clock_error = jumps[it.chance.below(4)];
    } else if (it.chance.one_in(10)) {
      it.clock_error = 0;  // the network told the time
    }
    bool is_new = false;
    for (const Release& release : releases_) is_new = is_new || release.day == day;
    const bool was_cut = it.chance.one_in(25);
    if (was_cut) it.cut_power();
    if (!is_new && !was_cut && !it.chance.one_in(15)) return;
    for (int i = 0; i < 3; ++i) {  // an install, a trial, and a start after it
      if (it.chance.one_in(3)) it.files.cut_power_after(1 + it.chance.below(60));
      boot(it, day, true);
      if (it.files.is_off() || i < 2) it.cut_power();
    }
  }

  // From a start to the next.
  void boot(Device& it, std::uint64_t day, bool is_rough) const {
    auto opened = serve_open(it);
    if (!opened) return;  // only because of the power
    ++it.counts.n_starts;
    auto started = opened->start([&](const nibble::serve::Bundle& bundle, bool is_trial) {
      return load(it, bundle, is_trial);
    });
    if (it.files.is_off()) return;
    if (!started) {
      ++it.counts.n_dead;
      return it.fail("a device does not start: " + started.error().message);
    }
    it.running = index_of(*started);
    if (started->is_trial) {
      ++it.counts.n_trials;
      if (releases_[it.running].kind == ReleaseKind::resets_later) return it.files.cut_power();
      if (!opened->confirm()) return;
    } else if (releases_[it.running].kind != ReleaseKind::good) {
      it.fail("a bad release starts without being on trial");
    }
    if (is_rough && it.chance.one_in(8)) attack(it, *opened, day);
    if (!it.files.is_off()) update(it, *opened, day, is_rough);
  }

  static nibble::Result<nibble::serve::Slots> serve_open(Device& it) {
    static const std::vector<nibble::serve::KeyBytes> keys = {kToyKey};
    static const ToyCrypto crypto;
    return nibble::serve::Slots::open(it.files, "root", keys, crypto);
  }

  std::size_t index_of(const nibble::serve::Slots::Started& started) const {
    return static_cast<std::size_t>(started.bundle.manifest().version) - 1;
  }

  nibble::Result<void> load(Device& it, const nibble::serve::Bundle& bundle, bool is_trial) const {
    nibble::InlineExecutor executor;
    NIBBLE_CHECK(bundle.check_all(executor));
    const auto release = static_cast<std::size_t>(bundle.manifest().version) - 1;
    if (!is_trial) return nibble::ok();
    if (releases_[release].kind == ReleaseKind::wrong_answers) {
      return nibble::Error{nibble::Errc::invalid_argument, "wrong answers"};
    }
    if (releases_[release].kind == ReleaseKind::crashes_at_load) it.files.cut_power();
    return nibble::ok();
  }

  std::uint64_t clock_of(const Device& it, std::uint64_t day) const {
    const auto now = static_cast<std::int64_t>(kBegin + day * kDay) + it.clock_error;
    return now < 0 ? 0 : static_cast<std::uint64_t>(now);
  }

  // Somebody offers what was signed once.
  void attack(Device& it, nibble::serve::Slots& device, std::uint64_t day) const {
    const std::uint64_t highest = device.state().highest;
    if (highest < 2) return;
    const std::size_t old = it.chance.below(highest - 1);
    const auto update =
        nibble::serve::Update::begin(device, releases_[old].bundle.text, clock_of(it, day));
    if (update) return it.fail("a downgrade is accepted");
    ++it.counts.n_downgrades;
  }

  void update(Device& it, nibble::serve::Slots& device, std::uint64_t day, bool is_rough) const {
    const Release* latest = nullptr;
    for (const Release& release : releases_) {
      if (release.day <= day) latest = &release;
    }
    auto update = nibble::serve::Update::begin(device, latest->bundle.text, clock_of(it, day));
    if (!update) {
      it.counts.n_expired += update.error().code == nibble::Errc::limit ? 1u : 0u;
      return;
    }
    if (!update->take_from_running()) return;
    for (const auto& part : update->missing(256)) {
      const std::string& whole =
          latest->bundle.files.at(update->manifest().files[part.file].name);
      std::string text = whole.substr(part.offset, part.size);
      if (is_rough && it.chance.one_in(10)) {
        text[it.chance.below(text.size())] ^= 1;
        if (update->put(part.file, part.offset, nibble::serve::bytes_of(text))) {
          return it.fail("a changed part is accepted");
        }
        if (it.chance.one_in(2)) return;  // the connection is lost
        text = whole.substr(part.offset, part.size);
      }
      if (!update->put(part.file, part.offset, nibble::serve::bytes_of(text))) return;
    }
    nibble::InlineExecutor executor;
    if (update->finish(executor)) ++it.counts.n_installs;
  }

  std::uint64_t seed_;
  std::vector<Release> releases_;
};

}  // namespace test
