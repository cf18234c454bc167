// SPDX-License-Identifier: Apache-2.0
//
// Less work where the machine is hot, its battery low or its processors busy: the library's
// governor with this server's model pool, threads and sensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "nibble/core/available_memory.hpp"
#include "nibble/core/result.hpp"
#include "nibble/serve/governor.hpp"
#include "nibble/serve/host_readings.hpp"
#include "nibble/serve/metrics.hpp"

namespace example::server {

struct PowerOptions {
  bool is_on = false;
  std::vector<std::string> variants;  // smaller files of the model, the largest first
  std::string sensors;                // a folder in front of the paths of the system's files
  double hot = 85;                    // degrees Celsius
  double least_depth = 1;
  std::int64_t down_ms = 5'000, up_ms = 60'000;
};

class Power {
 public:
  // The backend must outlive it. Errors: those of Governor::create() and of Registry.
  static nibble::Result<std::unique_ptr<Power>> create(Backend& backend, const std::string& model,
                                                       const PowerOptions& options) {
    nibble::serve::GovernorOptions rules;
    rules.levels = nibble::serve::power_levels(backend.n_threads(), 1 + options.variants.size(),
                                               options.least_depth);
    rules.hot = options.hot;
    rules.cool = options.hot - 10;
    rules.critical = options.hot + 10;
    rules.down_ms = options.down_ms;
    rules.up_ms = options.up_ms;
    rules.longest_up_ms = std::max(rules.longest_up_ms, options.up_ms);
    NIBBLE_TRY(governor, nibble::serve::Governor::create(rules));
    std::unique_ptr<Power> made(new Power(backend, options, std::move(governor)));
    made->files_ = options.variants;
    made->files_.insert(made->files_.begin(), model);
    NIBBLE_CHECK(made->make_metrics());
    return made;
  }

  // Every so many milliseconds it wants to look.
  std::int64_t period_ms() const {
    return std::clamp<std::int64_t>(options_.down_ms / 2, 20, 1000);
  }

  // Reads the sensors and does what they ask for. `now`: milliseconds of a clock that does not
  // stop. The text says what has changed; "" if nothing has.
  std::string update(std::int64_t now) {
    const std::uint64_t n_before = governor_.n_changes();
    const nibble::serve::PowerLevel& level = governor_.update(now, host_.read());
    std::string text;
    if (governor_.n_changes() != n_before) {
      backend_.limit_threads(level.n_threads);
      const auto set =
          backend_.pool().set_effort({.depth = level.depth, .max_wait_ms = level.wait_ms});
      text = "power level " + std::to_string(governor_.level_index()) + " because of " +
             to_string(governor_.reason()) + ": " + std::to_string(level.n_threads) + " threads";
      if (!set) text += "; " + set.error().message;
      changes_->add(governor_.n_changes() - n_before);
    }
    choose_variant(level.variant, text);
    show(level);
    return text;
  }

 private:
  Power(Backend& backend, const PowerOptions& options, nibble::serve::Governor governor)
      : backend_(backend), options_(options), governor_(std::move(governor)) {}

  nibble::Result<void> make_metrics() {
    nibble::serve::Registry& registry = backend_.registry();
    const auto gauge = [&](nibble::serve::Gauge*& to, const char* name,
                           const char* help) -> nibble::Result<void> {
      NIBBLE_TRY(made, registry.gauge(name, help));
      to = made;
      return nibble::ok();
    };
    NIBBLE_CHECK(gauge(level_, "nibble_power_level", "0 is full power, more is less work."));
    NIBBLE_CHECK(gauge(threads_, "nibble_power_threads", "Threads that compute."));
    NIBBLE_CHECK(gauge(depth_, "nibble_power_depth_ratio", "Part of the layers, 1 is all."));
    NIBBLE_CHECK(gauge(wait_, "nibble_power_wait_seconds", "That requests wait for others."));
    NIBBLE_TRY(changes, registry.counter("nibble_power_changes_total", "Changes of the level."));
    changes_ = changes;
    return nibble::ok();
  }

  void show(const nibble::serve::PowerLevel& level) const {
    level_->set(static_cast<double>(governor_.level_index()));
    threads_->set(static_cast<double>(level.n_threads));
    depth_->set(level.depth);
    wait_->set(static_cast<double>(level.wait_ms) * 1e-3);
  }

  // Begins to load another file of the model where the level wants one and there is room. What
  // could not be loaded is not tried again before the level wants another.
  void choose_variant(std::size_t wanted, std::string& text) {
    if (loading_) {
      if (loading_->stage() == nibble::serve::SwitchStage::done) current_ = asked_;
      if (loading_->stage() == nibble::serve::SwitchStage::failed) {
        text += (text.empty() ? "" : "; ") + loading_->wait().error().message;
      } else if (loading_->stage() != nibble::serve::SwitchStage::done) {
        return;
      }
      loading_.reset();
    }
    const auto status = backend_.pool().status();
    if (!status || status->is_switching) return;
    std::vector<std::size_t> bytes;
    for (const std::string& file : files_) {
      std::error_code error;  // of a folder, for example: then its size is not known
      const std::uintmax_t n = std::filesystem::file_size(file, error);
      bytes.push_back((error ? 0 : static_cast<std::size_t>(n)) + status->working_bytes);
    }
    const std::size_t next = nibble::serve::variant_with_room(
        bytes, wanted, current_, nibble::available_memory(options_.sensors));
    if (next == asked_) return;
    asked_ = next;
    if (next == current_) return;
    if (auto loading = backend_.load(files_[next])) {
      text += (text.empty() ? "" : "; ") + ("loading " + files_[next]);
      loading_.emplace(*std::move(loading));
    }
  }

  Backend& backend_;
  const PowerOptions options_;
  nibble::serve::Governor governor_;
  nibble::serve::Host host_{[this](const std::string& path) {
    return nibble::serve::read_system_file(options_.sensors + path);
  }};
  std::vector<std::string> files_;  // of the model, the largest first
  std::size_t current_ = 0, asked_ = 0;
  std::optional<nibble::serve::Switch> loading_;
  nibble::serve::Gauge *level_ = nullptr, *threads_ = nullptr, *depth_ = nullptr, *wait_ = nullptr;
  nibble::serve::Counter* changes_ = nullptr;
};

}  // namespace example::server
