// SPDX-License-Identifier: Apache-2.0
//
// Federated learning between processes, over MPI (MPI 3.1, chapter 3). Optional: it needs <mpi.h>
// and the flags of an MPI compiler, and nothing else of nibble includes it.
//
// Nothing waits for anybody: messages are sent and received without blocking and looked at again
// and again until a deadline, so a process that hangs, is slow or is gone costs its rounds and no
// more. That needs the launcher to let the others live: Open MPI's mpirun ends all processes when
// one dies by a signal, unless it is told `--enable-recovery`. MPI_Finalize() waits for the dead,
// too: give it some seconds, then end by std::_Exit() (examples/federated_mpi.cpp). ULFM, which
// would repair a communicator, is not assumed.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/train/federated_transport.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct MpiOptions {
  MPI_Comm communicator = MPI_COMM_WORLD;
  int tag = 1;  // of all messages
  // A message that is larger is dropped; 2³¹ − 1 at most.
  std::size_t most_bytes = std::size_t{1} << 30;
};

// Between MPI_Init() and MPI_Finalize(), of one thread. Errors of the communicator are returned
// from then on, they do not end the program.
class MpiTransport final : public Transport {
 public:
  // Errors: invalid_argument (MPI is not initialized, a limit that MPI cannot count), io.
  static Result<MpiTransport> create(const MpiOptions& options = {}) {
    int is_initialized = 0;
    if (MPI_Initialized(&is_initialized) != MPI_SUCCESS || is_initialized == 0) {
      return Error{Errc::invalid_argument, "MPI: MPI_Init() has not been called"};
    }
    if (options.most_bytes > static_cast<std::size_t>(INT_MAX)) {
      return Error{Errc::invalid_argument, "MPI: messages have 2^31 - 1 bytes at most"};
    }
    MpiTransport made(options);
    NIBBLE_CHECK(checked(MPI_Comm_set_errhandler(options.communicator, MPI_ERRORS_RETURN)));
    NIBBLE_CHECK(checked(MPI_Comm_rank(options.communicator, &made.rank_)));
    NIBBLE_CHECK(checked(MPI_Comm_size(options.communicator, &made.n_ranks_)));
    return made;
  }
  MpiTransport(MpiTransport&& other) noexcept
      : options_(other.options_), rank_(other.rank_), n_ranks_(other.n_ranks_) {
    pending_.splice(pending_.end(), other.pending_);
  }
  MpiTransport& operator=(MpiTransport&&) = delete;
  // What is still under way may be read by MPI at any time: it is left to it.
  ~MpiTransport() override {
    finish_sends();
    for (Pending& p : pending_) {
      if (p.request != MPI_REQUEST_NULL) MPI_Request_free(&p.request);
    }
    if (!pending_.empty()) new std::list<Pending>(std::move(pending_));
  }

  Index rank() const noexcept override { return rank_; }
  Index n_ranks() const noexcept override { return n_ranks_; }

  Result<void> send(Index to, std::span<const std::byte> message) override {
    return catch_out_of_memory([&]() -> Result<void> {
      if (to < 0 || to >= n_ranks_) {
        return Error{Errc::invalid_argument, "MPI: there is no rank " + to_text(to)};
      }
      if (message.size() > options_.most_bytes) {
        return Error{Errc::limit, "MPI: a message of " + to_text(message.size()) + " bytes"};
      }
      finish_sends();
      for (const Pending& p : pending_) {
        if (p.to == to) {
          return Error{Errc::limit,
                       "MPI: rank " + to_text(to) + " has not taken the message before this one"};
        }
      }
      Pending& p = pending_.emplace_back();
      p.to = to;
      p.bytes.assign(message.begin(), message.end());
      const Result<void> sent =
          checked(MPI_Isend(p.bytes.data(), static_cast<int>(p.bytes.size()), MPI_BYTE,
                            static_cast<int>(to), options_.tag, options_.communicator, &p.request));
      if (sent) return ok();
      pending_.pop_back();
      return sent.error();
    });
  }

  Result<std::optional<Received>> receive(double seconds) override {
    return catch_out_of_memory([&]() -> Result<std::optional<Received>> {
      const std::int64_t end = monotonic_nanoseconds() + nanoseconds(seconds);
      for (;;) {
        finish_sends();
        int is_there = 0;
        MPI_Message message = MPI_MESSAGE_NULL;
        MPI_Status status;
        NIBBLE_CHECK(checked(MPI_Improbe(MPI_ANY_SOURCE, options_.tag, options_.communicator,
                                         &is_there, &message, &status)));
        if (is_there != 0) {
          auto taken = take(message, status, end);
          if (!taken || *taken) return taken;
        }
        if (monotonic_nanoseconds() >= end) return std::optional<Received>();
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      }
    });
  }

  // Waits up to `seconds` until all that was sent has been taken; whether it has.
  bool flush(double seconds) {
    const std::int64_t end = monotonic_nanoseconds() + nanoseconds(seconds);
    for (;;) {
      finish_sends();
      if (pending_.empty()) return true;
      if (monotonic_nanoseconds() >= end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }

 private:
  struct Pending {
    Index to = 0;  // -1: received
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  explicit MpiTransport(const MpiOptions& options) : options_(options) {}

  static std::int64_t nanoseconds(double seconds) noexcept {
    return static_cast<std::int64_t>((seconds < 3e7 ? seconds : 3e7) * 1e9);  // a year at most
  }
  static Result<void> checked(int code) {
    if (code == MPI_SUCCESS) return ok();
    char text[MPI_MAX_ERROR_STRING + 1] = {};
    int n = 0;
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS) n = 0;
    return Error{Errc::io, "MPI: " + printable(std::string(text, static_cast<std::size_t>(n)))};
  }

  // Forgets the messages that have gone, and what was received too late.
  void finish_sends() {
    for (auto it = pending_.begin(); it != pending_.end();) {
      int is_done = 0;
      const int code = MPI_Test(&it->request, &is_done, MPI_STATUS_IGNORE);
      // After an error the request is none any more, and the message is lost: nobody is there.
      it = code != MPI_SUCCESS || is_done != 0 ? pending_.erase(it) : std::next(it);
    }
  }

  // The bytes of a message that has begun to come: none if its sender does not finish in time.
  Result<std::optional<Received>> take(MPI_Message& message, const MPI_Status& status,
                                       std::int64_t end) {
    int n = 0;
    NIBBLE_CHECK(checked(MPI_Get_count(&status, MPI_BYTE, &n)));
    const bool is_too_large = n < 0 || static_cast<std::size_t>(n) > options_.most_bytes;
    Pending& p = pending_.emplace_back();
    p.to = -1;
    // MPI cuts what has no place, and says so.
    p.bytes.resize(is_too_large ? 0 : static_cast<std::size_t>(n));
    NIBBLE_CHECK(checked(MPI_Imrecv(p.bytes.data(), static_cast<int>(p.bytes.size()), MPI_BYTE,
                                    &message, &p.request)));
    const Index from = status.MPI_SOURCE;
    // A little more than the deadline, so that what is there already is taken with 0 seconds.
    const std::int64_t last = (std::max)(end, monotonic_nanoseconds() + 100'000'000);
    for (;;) {
      int is_done = 0;
      const int code = MPI_Test(&p.request, &is_done, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS || is_done != 0) {
        Received received{from, std::move(p.bytes), code != MPI_SUCCESS || is_too_large};
        pending_.pop_back();
        return std::optional<Received>(std::move(received));
      }
      if (monotonic_nanoseconds() >= last) return std::optional<Received>();  // stays in pending_
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  MpiOptions options_;
  int rank_ = 0, n_ranks_ = 0;
  std::list<Pending> pending_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
