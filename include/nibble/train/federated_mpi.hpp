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
#include "nibble/core/scalar.hpp"
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
    sends_.splice(sends_.end(), other.sends_);
    arriving_.splice(arriving_.end(), other.arriving_);
  }
  MpiTransport& operator=(MpiTransport&&) = delete;
  // What is still under way may be read by MPI at any time: it is left to it.
  ~MpiTransport() override {
    finish_sends();
    sends_.splice(sends_.end(), arriving_);
    for (Message& m : sends_) {
      if (m.request != MPI_REQUEST_NULL) MPI_Request_free(&m.request);
    }
    if (!sends_.empty()) new std::list<Message>(std::move(sends_));
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
      for (const Message& m : sends_) {
        if (m.rank == to) {
          return Error{Errc::limit,
                       "MPI: rank " + to_text(to) + " has not taken the message before this one"};
        }
      }
      Message& m = sends_.emplace_back();
      m.rank = to;
      m.bytes.assign(message.begin(), message.end());
      const Result<void> sent =
          checked(MPI_Isend(m.bytes.data(), static_cast<int>(m.bytes.size()), MPI_BYTE,
                            static_cast<int>(to), options_.tag, options_.communicator, &m.request));
      if (sent) return ok();
      sends_.pop_back();
      return sent.error();
    });
  }

  Result<std::optional<Received>> receive(double seconds) override {
    return catch_out_of_memory([&]() -> Result<std::optional<Received>> {
      const std::int64_t begin = monotonic_nanoseconds(), end = begin + nanoseconds(seconds);
      for (;;) {
        finish_sends();
        NIBBLE_CHECK(begin_to_receive());
        if (auto received = finish_receiving()) return received;
        // What has begun to come gets a little more time: with 0 seconds it would never be whole.
        const std::int64_t grace = arriving_.empty() ? 0 : 100'000'000;
        if (monotonic_nanoseconds() >= (std::max)(end, begin + grace)) {
          return std::optional<Received>();
        }
        std::this_thread::sleep_for(std::chrono::microseconds(arriving_.empty() ? 500 : 100));
      }
    });
  }

  // Waits up to `seconds` until all that was sent has been taken; whether it has.
  bool flush(double seconds) {
    const std::int64_t end = monotonic_nanoseconds() + nanoseconds(seconds);
    for (;;) {
      finish_sends();
      if (sends_.empty()) return true;
      if (monotonic_nanoseconds() >= end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }

 private:
  // One that is under way.
  struct Message {
    Index rank = 0;  // where it goes to, or comes from
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
    bool is_too_large = false;
  };

  explicit MpiTransport(const MpiOptions& options) : options_(options) {}

  static std::int64_t nanoseconds(double seconds) noexcept {
    return static_cast<std::int64_t>(larger(0.0, smaller(seconds, 3e7)) * 1e9);  // a year at most
  }
  static Result<void> checked(int code) {
    if (code == MPI_SUCCESS) return ok();
    char text[MPI_MAX_ERROR_STRING + 1] = {};
    int n = 0;
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS) n = 0;
    return Error{Errc::io, "MPI: " + printable(std::string(text, static_cast<std::size_t>(n)))};
  }

  // Forgets the messages that have gone.
  void finish_sends() {
    for (auto it = sends_.begin(); it != sends_.end();) {
      int is_done = 0;
      const int code = MPI_Test(&it->request, &is_done, MPI_STATUS_IGNORE);
      // After an error the request is none any more, and the message is lost: nobody is there.
      it = code != MPI_SUCCESS || is_done != 0 ? sends_.erase(it) : std::next(it);
    }
  }

  // Takes memory for a message that has begun to come, if there is one. Senders who do not finish
  // theirs hold no more of it than one message for each party.
  Result<void> begin_to_receive() {
    if (arriving_.size() >= static_cast<std::size_t>(n_ranks_)) return ok();
    int is_there = 0, n = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    NIBBLE_CHECK(checked(MPI_Improbe(MPI_ANY_SOURCE, options_.tag, options_.communicator, &is_there,
                                     &message, &status)));
    if (is_there == 0) return ok();
    NIBBLE_CHECK(checked(MPI_Get_count(&status, MPI_BYTE, &n)));
    const bool is_too_large = n < 0 || static_cast<std::size_t>(n) > options_.most_bytes;
    // MPI cuts what has no place, and says so.
    std::vector<std::byte> bytes(is_too_large ? 0 : static_cast<std::size_t>(n));
    Message& m = arriving_.emplace_back();
    m.rank = status.MPI_SOURCE;
    m.bytes = std::move(bytes);
    m.is_too_large = is_too_large;
    Result<void> begun = checked(MPI_Imrecv(m.bytes.data(), static_cast<int>(m.bytes.size()),
                                            MPI_BYTE, &message, &m.request));
    if (!begun) arriving_.pop_back();
    return begun;
  }

  // The first message that is whole, and behind no other of its sender that is not.
  std::optional<Received> finish_receiving() {
    for (auto it = arriving_.begin(); it != arriving_.end(); ++it) {
      const auto is_of_sender = [&](const Message& m) { return m.rank == it->rank; };
      if (std::any_of(arriving_.begin(), it, is_of_sender)) continue;
      int is_done = 0;
      const int code = MPI_Test(&it->request, &is_done, MPI_STATUS_IGNORE);
      if (code == MPI_SUCCESS && is_done == 0) continue;
      Received received{it->rank, std::move(it->bytes), code != MPI_SUCCESS || it->is_too_large};
      arriving_.erase(it);
      return received;
    }
    return std::nullopt;
  }

  MpiOptions options_;
  int rank_ = 0, n_ranks_ = 0;
  std::list<Message> sends_, arriving_;  // MPI knows where they are: they do not move
};

}}}  // namespace nibble::NIBBLE_ABI::train
