// SPDX-License-Identifier: Apache-2.0
//
// How the parties of federated learning reach each other: byte messages between numbered places.
// The coordinator is at rank 0, clients at the others. Here is the interface, and one for parties
// in the same process; federated_mpi.hpp has one for processes.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

inline constexpr Index kCoordinator = 0;

struct Received {
  Index from = 0;  // who sent it: the transport knows, whatever the bytes say
  std::vector<std::byte> bytes;
  bool is_lost = false;  // the message was larger than the transport accepts: there are no bytes
};

// A place of one party. Messages from one place to another arrive in the order in which they were
// sent, or not at all; nobody learns that one was lost.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual Index rank() const noexcept = 0;
  virtual Index n_ranks() const noexcept = 0;
  // Takes a copy and does not wait until it arrives. Errors: invalid_argument (no such rank), limit
  // (a message to this place is still under way: whoever is there does not take it), io.
  virtual Result<void> send(Index to, std::span<const std::byte> message) = 0;
  // The next message, from anybody; waits for up to `seconds`. None: nothing came. Error: io.
  virtual Result<std::optional<Received>> receive(double seconds) = 0;
};

// Places in one process, at least one: of one thread that visits them in turn, or of several
// threads.
class Mailboxes {
 public:
  explicit Mailboxes(Index n_ranks) : boxes_(static_cast<std::size_t>(n_ranks)) {}
  Index n_ranks() const noexcept { return static_cast<Index>(boxes_.size()); }

  void put(Index to, Received message) {
    Box& box = boxes_[static_cast<std::size_t>(to)];
    {
      const std::lock_guard lock(box.mutex);
      box.messages.push_back(std::move(message));
    }
    box.has_come.notify_one();
  }
  std::optional<Received> take(Index at, double seconds) {
    Box& box = boxes_[static_cast<std::size_t>(at)];
    std::unique_lock lock(box.mutex);
    const auto is_there = [&] { return !box.messages.empty(); };
    if (!is_there() && seconds > 0) {
      // Longer than a year is for ever.
      const std::chrono::duration<double> wait((std::min)(seconds, 3e7));
      box.has_come.wait_for(lock, wait, is_there);
    }
    if (!is_there()) return std::nullopt;
    std::optional<Received> first(std::move(box.messages.front()));
    box.messages.pop_front();
    return first;
  }

 private:
  struct Box {
    std::mutex mutex;
    std::condition_variable has_come;
    std::deque<Received> messages;
  };
  std::deque<Box> boxes_;  // which never move
};

class InProcessTransport final : public Transport {
 public:
  // The mailboxes must live as long; `rank` is one of theirs.
  InProcessTransport(Mailboxes& mailboxes, Index rank) : mailboxes_(&mailboxes), rank_(rank) {
    NIBBLE_ASSERT(rank >= 0 && rank < mailboxes.n_ranks());
  }

  Index rank() const noexcept override { return rank_; }
  Index n_ranks() const noexcept override { return mailboxes_->n_ranks(); }
  Result<void> send(Index to, std::span<const std::byte> message) override {
    if (to < 0 || to >= n_ranks()) {
      return Error{Errc::invalid_argument, "there is no rank " + to_text(to) + " to send to"};
    }
    return catch_out_of_memory([&]() -> Result<void> {
      mailboxes_->put(to, {rank_, {message.begin(), message.end()}});
      return ok();
    });
  }
  Result<std::optional<Received>> receive(double seconds) override {
    return mailboxes_->take(rank_, seconds);
  }

 private:
  Mailboxes* mailboxes_;
  Index rank_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
