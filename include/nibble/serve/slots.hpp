// SPDX-License-Identifier: Apache-2.0
//
// Two slots for bundles in a folder, of which one runs and the other is updated: an update that
// does not work is rolled back, and a power cut at any moment leaves a bundle that starts.
//
//   ROOT/a, ROOT/b   bundles (bundle.hpp); a device is delivered with one of them
//   ROOT/state       what is in them, replaced at once (made by the first update)
//
// A new bundle (update.hpp) is on trial until confirm(): each start counts, and after some that were
// not confirmed, for whatever reason, the old one starts again. If that happens twice, or if the new
// one was wrong, it is not installed again. What runs is never written to.
//
// The state is not signed. Who may write to ROOT can have the device start an older bundle that
// somebody signed, or install one; a device that must prevent that keeps the highest version in
// hardware as well and compares it in load().
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/json.hpp"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/encoding.hpp"
#include "nibble/serve/file_layer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

enum class SlotStatus : unsigned char {
  empty,  // nothing, or part of an update
  trial,  // complete, not confirmed yet
  good,   // confirmed
};

struct SlotState {
  SlotStatus status = SlotStatus::empty;
  std::uint64_t version = 0;
  std::uint64_t created = 0;
  Digest id{};
};

// A bundle that was rolled back, and how often. Answers that are wrong and bytes that are damaged
// count as kMaxStrikes. So do two rounds of starts that were not confirmed: one may have been ended
// by power cuts.
struct Strikes {
  Digest id{};
  std::uint64_t n = 0;
};
NIBBLE_HIDDEN inline constexpr std::uint64_t kMaxStrikes = 2;  // it is not installed again

// What ROOT/state holds.
struct SlotsState {
  static constexpr std::size_t kMaxKnown = 16;

  std::array<SlotState, 2> of{};  // a and b
  std::size_t active = 0;         // which one starts, unless the other is on trial
  std::uint64_t tries_left = 0;   // of the trial
  std::uint64_t highest = 0;      // version that was ever confirmed
  std::vector<Strikes> strikes;   // of the last kMaxKnown that were rolled back; the latest is last

  bool is_refused(const Digest& id) const noexcept {
    for (const Strikes& known : strikes) {
      if (known.id == id) return known.n >= kMaxStrikes;
    }
    return false;
  }
};

inline std::string to_json(const SlotsState& state) {
  std::string out = "{\"slots\":[";
  for (std::size_t i = 0; i < state.of.size(); ++i) {
    const SlotState& slot = state.of[i];
    out += std::string(i == 0 ? "" : ",") + "{\"status\":" +
           to_text(static_cast<unsigned>(slot.status)) + ",\"version\":" + to_text(slot.version) +
           ",\"created\":" + to_text(slot.created) + ",\"id\":\"" + to_hex(slot.id) + "\"}";
  }
  out += "],\"active\":" + to_text(state.active) + ",\"tries_left\":" + to_text(state.tries_left) +
         ",\"highest\":" + to_text(state.highest) + ",\"strikes\":[";
  for (std::size_t i = 0; i < state.strikes.size(); ++i) {
    out += std::string(i == 0 ? "" : ",") + "{\"id\":\"" + to_hex(state.strikes[i].id) +
           "\",\"n\":" + to_text(state.strikes[i].n) + "}";
  }
  return out + "]}\n";
}

// The reverse of to_json, and nothing else. Error: malformed.
inline Result<SlotsState> parse_slots_state(std::string_view text) {
  SlotsState state;
  std::size_t n_slots = 0;
  io::JsonReader json(text);
  const auto number = [&](std::uint64_t& out) -> Result<void> {
    NIBBLE_TRY(value, json.unsigned_integer());
    out = value;
    return ok();
  };
  const auto digest = [&](Digest& out) -> Result<void> {
    NIBBLE_TRY(value, detail::read_digest(json));
    out = value;
    return ok();
  };
  const auto read_slot = [&]() -> Result<void> {
    if (n_slots == state.of.size()) return json.error("more than two slots");
    SlotState& slot = state.of[n_slots++];
    std::uint64_t status = 0;
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      if (key == "status") return number(status);
      if (key == "version") return number(slot.version);
      if (key == "created") return number(slot.created);
      if (key == "id") return digest(slot.id);
      return json.error("a key that is not known");
    }));
    if (status > static_cast<std::uint64_t>(SlotStatus::good)) return json.error("a bad status");
    slot.status = static_cast<SlotStatus>(status);
    return ok();
  };
  std::uint64_t active = 0;
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key == "slots") return json.array(read_slot);
    if (key == "active") return number(active);
    if (key == "tries_left") return number(state.tries_left);
    if (key == "highest") return number(state.highest);
    if (key != "strikes") return json.error("a key that is not known");
    return json.array([&]() -> Result<void> {
      if (state.strikes.size() == SlotsState::kMaxKnown) return json.error("too many strikes");
      Strikes& added = state.strikes.emplace_back();
      return json.object([&](const std::string& name) -> Result<void> {
        if (name == "id") return digest(added.id);
        if (name == "n") return number(added.n);
        return json.error("a key that is not known");
      });
    });
  }));
  if (active > 1) return json.error("a bad slot");
  state.active = io::narrow<std::size_t>(active);
  if (to_json(state) != text || state.of[state.active].status == SlotStatus::trial) {
    return Error{Errc::malformed, "not a state of slots"};
  }
  return state;
}

struct SlotOptions {
  std::uint64_t tries = 3;  // starts of a bundle on trial before it is rolled back
};

// Refers to the file layer, the keys and Crypto, which live longer. For one thread at a time, and
// one program at a time.
class Slots {
 public:
  // Reads the state. If there is none, or it is damaged, it is what the slots themselves say: of two
  // bundles the older is taken as good, the newer as on trial. Errors: those of the files.
  static Result<Slots> open(FileLayer& files, const std::string& root,
                            std::span<const KeyBytes> keys, const Crypto& crypto,
                            const SlotOptions& options = {}) {
    return catch_out_of_memory([&]() -> Result<Slots> {
      Slots opened(files, root, keys, crypto, options);
      constexpr std::uint64_t kMaxState = 64 << 10;
      auto text = read_text(files, opened.state_path(), kMaxState);
      if (!text && text.error().code != Errc::not_found && text.error().code != Errc::limit) {
        return std::move(text).error();
      }
      auto state = text ? parse_slots_state(*text) : Result<SlotsState>(std::move(text).error());
      if (state) {
        opened.state_ = *std::move(state);
        opened.is_saved_ = true;
      } else {
        opened.look();
      }
      opened.running_ = opened.state_.active;
      return opened;
    });
  }

  // What a host does with a bundle that is to start: map, load, try it (health.hpp). An error means
  // that it does not start.
  using Load = FunctionRef<Result<void>(const Bundle& bundle, bool is_trial)>;

  struct Started {
    Bundle bundle;
    bool is_trial;  // confirm() or reject() it
  };

  // Starts the bundle on trial, if it has tries left, else the good ones, until load() has no error.
  // A bundle on trial that does not load is rolled back at once. Errors: not_found (no slot has a
  // bundle), else the error of the last that was tried.
  Result<Started> start(Load load) {
    return catch_out_of_memory([&]() -> Result<Started> {
      Error last{Errc::not_found, printable(root_) + ": neither slot has a bundle that starts"};
      const std::size_t idle = 1 - state_.active;
      if (state_.of[idle].status == SlotStatus::trial) {
        if (state_.tries_left == 0) {
          roll_back(idle, 1);
          (void)save();  // if it fails, the next start rolls back again
        } else {
          --state_.tries_left;
          if (save()) {  // it is not tried without being counted
            auto started = attempt(idle, true, load);
            if (started) return started;
            last = std::move(started).error();
            const bool is_to_blame = last.code != Errc::io && last.code != Errc::out_of_memory;
            roll_back(idle, is_to_blame ? kMaxStrikes : 0);
            (void)save();
          }
        }
      }
      for (const std::size_t slot : {state_.active, idle}) {
        if (state_.of[slot].status != SlotStatus::good) continue;
        auto started = attempt(slot, false, load);
        if (started) return started;
        last = std::move(started).error();
      }
      return last;
    });
  }

  // What runs works: it is what starts from now on, and the other slot is its replacement. Nothing
  // changes if it is not on trial. Errors: those of the files; it is on trial still.
  Result<void> confirm() {
    return catch_out_of_memory([&]() -> Result<void> {
      if (state_.of[running_].status != SlotStatus::trial) return ok();
      SlotsState before = state_;
      state_.of[running_].status = SlotStatus::good;
      state_.active = running_;
      state_.tries_left = 0;
      state_.highest = (std::max)(state_.highest, state_.of[running_].version);
      auto saved = save();
      if (!saved) state_ = std::move(before);
      return saved;
    });
  }

  // What runs does not work, be it on trial or not: start() has the other slot. Errors: not_found
  // (there is no other), those of the files.
  Result<void> reject() {
    return catch_out_of_memory([&]() -> Result<void> {
      const std::size_t other = 1 - running_;
      if (state_.of[other].status != SlotStatus::good) {
        return Error{Errc::not_found, printable(root_) + ": there is no other bundle to go back to"};
      }
      roll_back(running_, kMaxStrikes);
      state_.active = other;
      running_ = other;
      return save();
    });
  }

  const SlotsState& state() const noexcept { return state_; }
  // 0 or 1: what start() has started; before, what it would start if nothing is on trial.
  std::size_t running() const noexcept { return running_; }
  std::string folder(std::size_t slot) const { return root_ + (slot == 0 ? "/a" : "/b"); }
  const std::string& root() const noexcept { return root_; }
  FileLayer& files() const noexcept { return *files_; }
  const Crypto& crypto() const noexcept { return *crypto_; }
  std::span<const KeyBytes> keys() const noexcept { return keys_; }

  // For update.hpp. Empties the slot that does not run, before it is written to. Errors:
  // invalid_argument (what runs is on trial), those of the files.
  Result<void> release_idle() {
    if (state_.of[running_].status == SlotStatus::trial) {
      return Error{Errc::invalid_argument,
                   printable(root_) + ": what runs is on trial; confirm or reject it first"};
    }
    const std::size_t idle = 1 - running_;
    if (state_.active == running_ && state_.of[idle].status == SlotStatus::empty && is_saved_) {
      return ok();
    }
    state_.active = running_;
    state_.of[idle] = SlotState{};
    state_.tries_left = 0;
    return save();
  }
  // For update.hpp. The slot that does not run is complete, verified and synced.
  Result<void> try_idle(const SignedManifest& installed) {
    SlotState& idle = state_.of[1 - running_];
    idle.status = SlotStatus::trial;
    idle.version = installed.manifest.version;
    idle.created = installed.manifest.created;
    idle.id = installed.id;
    state_.tries_left = options_.tries;
    auto saved = save();
    if (!saved) idle = SlotState{};
    return saved;
  }

 private:
  Slots(FileLayer& files, std::string root, std::span<const KeyBytes> keys, const Crypto& crypto,
        const SlotOptions& options)
      : files_(&files), root_(std::move(root)), keys_(keys), crypto_(&crypto), options_(options) {}

  std::string state_path() const { return root_ + "/state"; }

  Result<void> save() {
    auto saved = replace_text(*files_, root_, state_path(), to_json(state_));
    is_saved_ = saved.has_value();
    return saved;
  }

  // Without a state: what the folders say.
  void look() {
    state_ = SlotsState{};
    for (std::size_t slot = 0; slot < 2; ++slot) {
      const auto bundle = Bundle::open(*files_, folder(slot), keys_, *crypto_);
      if (!bundle) continue;
      state_.of[slot].status = SlotStatus::good;
      state_.of[slot].version = bundle->manifest().version;
      state_.of[slot].created = bundle->manifest().created;
      state_.of[slot].id = bundle->id();
    }
    const bool has_a = state_.of[0].status == SlotStatus::good;
    const bool has_b = state_.of[1].status == SlotStatus::good;
    if (has_b && (!has_a || state_.of[1].version < state_.of[0].version)) state_.active = 1;
    state_.highest = state_.of[state_.active].version;
    if (!has_a || !has_b) return;
    state_.of[1 - state_.active].status = SlotStatus::trial;
    state_.tries_left = options_.tries;
  }

  void roll_back(std::size_t slot, std::uint64_t n_strikes) {
    Strikes added{state_.of[slot].id, n_strikes};
    for (std::size_t i = 0; i < state_.strikes.size(); ++i) {
      if (state_.strikes[i].id != added.id) continue;
      added.n = (std::min)(state_.strikes[i].n + n_strikes, kMaxStrikes);
      state_.strikes.erase(state_.strikes.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
    if (state_.strikes.size() == SlotsState::kMaxKnown) state_.strikes.erase(state_.strikes.begin());
    if (added.n > 0) state_.strikes.push_back(added);
    state_.of[slot] = SlotState{};
    state_.tries_left = 0;
  }

  Result<Started> attempt(std::size_t slot, bool is_trial, Load load) {
    NIBBLE_TRY(bundle, Bundle::open(*files_, folder(slot), keys_, *crypto_));
    if (bundle.id() != state_.of[slot].id) {
      return Error{Errc::malformed,
                   printable(folder(slot)) + ": not the bundle that was installed"};
    }
    NIBBLE_CHECK(load(bundle, is_trial));
    running_ = slot;
    return Started{std::move(bundle), is_trial};
  }

  FileLayer* files_;
  std::string root_;
  std::span<const KeyBytes> keys_;
  const Crypto* crypto_;
  SlotOptions options_;
  SlotsState state_;
  std::size_t running_ = 0;
  bool is_saved_ = false;  // the state on the disk is state_
};

}}}  // namespace nibble::NIBBLE_ABI::serve
