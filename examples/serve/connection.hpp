// SPDX-License-Identifier: Apache-2.0
//
// One client's connection, with limits on what it may send and how long it may take. httplib reads
// requests from it; unlike httplib's own, it keeps what was read ahead, so pipelined requests are
// answered, and it bounds headers as a whole.
#pragma once

#include <fcntl.h>
#include <httplib.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "tls.hpp"

namespace example::server {

struct HttpLimits {
  std::size_t max_header_bytes = std::size_t{16} << 10;  // the request line and all headers
  std::size_t max_body_bytes = std::size_t{1} << 20;
  int header_ms = 10'000;              // from the first byte of a request to the end of its headers
  int body_ms = 30'000;                // for all of its body
  int write_ms = 10'000;               // for a client to take any part of what is written
  int idle_ms = 15'000;                // between the requests of a connection
  std::size_t max_requests = 100'000;  // of one connection
  std::size_t max_connections = 256;   // at a time; each has a thread
};

class Connection final : public httplib::Stream {
 public:
  // Takes the socket over, and closes it in the end. `is_stopped` ends all that it waits for.
  Connection(socket_t socket, const HttpLimits& limits, const TlsContext* tls,
             const std::atomic<bool>& is_stopped)
      : socket_(socket), limits_(limits), is_stopped_(is_stopped), tls_(tls, socket) {
    int one = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    ::fcntl(socket_, F_SETFL, ::fcntl(socket_, F_GETFL, 0) | O_NONBLOCK);
    current() = this;
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override {
    current() = nullptr;
    close();
  }

  // That of this thread; null elsewhere.
  static Connection*& current() {
    thread_local Connection* connection = nullptr;
    return connection;
  }

  // Waits for a request; false if none comes, or `is_ending` says that none is to come.
  bool wait_for_request(const std::atomic<bool>& is_ending) {
    constexpr int kSliceMs = 200;
    if (!tls_.handshake(limits_.header_ms)) return false;
    for (int waited = 0; n_ == at_ && !is_ending && !is_stopped_; waited += kSliceMs) {
      if (waited >= limits_.idle_ms) return false;
      if (tls_.has_buffered() || wait(POLLIN, kSliceMs)) break;
    }
    return !is_ending && !is_stopped_;
  }
  void begin_request() {
    in_headers_ = true;
    n_line_end_ = 0;
    n_header_bytes_ = n_body_bytes_ = 0;
    cannot_read_ = is_too_large_ = is_too_slow_ = false;
    body_is_read_ = true;
    deadline_ = Clock::now() + std::chrono::milliseconds(limits_.header_ms);
  }

  // Whether more requests can follow: the body of the last one was read to its end.
  bool may_go_on() const { return !cannot_read_ && !cannot_write_ && body_is_read_; }
  // A body that nobody reads would be taken for a request.
  void expect_body() { body_is_read_ = false; }
  void body_was_read() { body_is_read_ = true; }

  // Why reading failed, if it did.
  bool is_too_large() const { return is_too_large_; }
  bool is_too_slow() const { return is_too_slow_; }

  // Whether the client is still there, and the server goes on. Reads nothing.
  bool is_alive() const {
    if (cannot_write_ || is_stopped_) return false;
    pollfd waited{socket_, POLLIN | kClosed, 0};
    if (::poll(&waited, 1, 0) <= 0) return true;
    if ((waited.revents & (POLLERR | POLLHUP | POLLNVAL | kClosed)) != 0) return false;
    return tls_.is_open();
  }

  bool is_readable() const override { return at_ < n_ || wait(POLLIN, limits_.body_ms); }
  bool is_writable() const override { return is_alive(); }
  ssize_t read(char* to, std::size_t size) override {
    if (cannot_read_ || size == 0) return -1;
    if (at_ == n_) {
      const ssize_t n = fill();
      if (n <= 0) {
        cannot_read_ = true;
        return n;
      }
    }
    const std::size_t n = std::min(in_headers_ ? 1 : size, n_ - at_);
    std::copy_n(buffer_ + at_, n, to);
    at_ += n;
    return count(to, n) ? static_cast<ssize_t>(n) : -1;
  }
  ssize_t write(const char* from, std::size_t size) override {
    if (cannot_write_) return -1;
    const auto deadline = Clock::now() + std::chrono::milliseconds(limits_.write_ms);
    for (;;) {
      const ssize_t n = tls_.write(from, size);
      if (n > 0) return n;
      if (n < 0 || !wait(tls_.wants() != 0 ? tls_.wants() : POLLOUT, left(deadline))) {
        cannot_write_ = true;
        return -1;
      }
    }
  }
  using Stream::write;

  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    address_of(::getpeername, ip, port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    address_of(::getsockname, ip, port);
  }
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;
#if defined(POLLRDHUP)
  static constexpr short kClosed = POLLRDHUP;  // also where bytes before the end are not read yet
#else
  static constexpr short kClosed = 0;
#endif

  static int left(Clock::time_point deadline) {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    return static_cast<int>(std::clamp<std::chrono::milliseconds::rep>(ms.count(), 0, 1 << 30));
  }
  // Whether the socket is ready within the time. Its end and its errors count as ready.
  bool wait(int events, int ms) const {
    pollfd waited{socket_, static_cast<short>(events), 0};
    int n = 0;
    do {
      n = ::poll(&waited, 1, ms);
    } while (n < 0 && errno == EINTR);
    return n > 0;
  }

  ssize_t fill() {
    for (;;) {
      const ssize_t n = tls_.read(buffer_, sizeof(buffer_));
      if (n > 0) {
        at_ = 0;
        n_ = static_cast<std::size_t>(n);
        return n;
      }
      if (n != kAgain) return n == kEnd ? 0 : -1;
      const int ms = left(deadline_);
      if (ms == 0 || !wait(tls_.wants() != 0 ? tls_.wants() : POLLIN, ms)) {
        is_too_slow_ = true;
        return -1;
      }
    }
  }

  // Counts what a request has sent; false if it is too much.
  bool count(const char* bytes, std::size_t n) {
    if (!in_headers_) {
      // The limit of bodies is kept by who reads them. Here all bytes count, with those around the
      // chunks of a body.
      n_body_bytes_ += n;
      is_too_large_ = n_body_bytes_ / 8 > limits_.max_body_bytes;
    } else {
      is_too_large_ = ++n_header_bytes_ > limits_.max_header_bytes;
      if (*bytes == '\n') {
        ++n_line_end_;
      } else if (*bytes != '\r') {
        n_line_end_ = 0;
      }
      if (n_line_end_ == 2) {
        in_headers_ = false;
        deadline_ = Clock::now() + std::chrono::milliseconds(limits_.body_ms);
      }
    }
    cannot_read_ = is_too_large_;
    return !is_too_large_;
  }

  template <class Get>
  void address_of(Get get, std::string& ip, int& port) const {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";
    port = -1;
    if (get(socket_, reinterpret_cast<sockaddr*>(&address), &size) != 0) return;
    if (::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof(host), service,
                      sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
      return;
    }
    ip = host;
    port = std::atoi(service);
  }

  // What the client still sends is read for a moment: closing a socket with unread bytes would take
  // the answer away from it.
  void close() {
    tls_.close();
    ::shutdown(socket_, SHUT_WR);
    const bool has_unread = !body_is_read_ || is_too_large_;
    const auto deadline = Clock::now() + std::chrono::milliseconds(300);
    for (int i = 0; i < 256 && has_unread && wait(POLLIN, left(deadline)); ++i) {
      if (::recv(socket_, buffer_, sizeof(buffer_), 0) <= 0) break;
    }
    ::close(socket_);
  }

  socket_t socket_;
  const HttpLimits& limits_;
  const std::atomic<bool>& is_stopped_;
  TlsStream tls_;
  char buffer_[8192];
  std::size_t at_ = 0, n_ = 0;  // of buffer_: what was read and not yet delivered
  Clock::time_point deadline_{};
  bool in_headers_ = true, body_is_read_ = true;
  bool cannot_read_ = false, cannot_write_ = false;
  bool is_too_large_ = false, is_too_slow_ = false;
  int n_line_end_ = 0;  // line feeds since the last other character
  std::size_t n_header_bytes_ = 0, n_body_bytes_ = 0;
};

}  // namespace example::server
