// SPDX-License-Identifier: Apache-2.0
//
// httplib's server with limits: of connections, of what each may send, and of time. A thread for
// each connection, made when it is needed.
#pragma once

#include <httplib.h>
#include <sys/socket.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "connection.hpp"
#include "nibble/core/result.hpp"
#include "tls.hpp"

namespace example::server {

// Runs connections. One more than there may be is run at once by the thread that accepts, which is
// told to refuse it.
class ConnectionThreads final : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(std::size_t most) : most_(most) {}

  static bool& is_refusing() {
    thread_local bool refusing = false;
    return refusing;
  }

  // Later versions of httplib want to know that it is run.
  using Enqueued = decltype(std::declval<httplib::TaskQueue&>().enqueue(nullptr));
  Enqueued enqueue(std::function<void()> connection) override {
    if (!take(connection)) {
      is_refusing() = true;
      connection();
      is_refusing() = false;
    }
    return static_cast<Enqueued>(true);
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
    }
    waiting_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  bool take(std::function<void()>& connection) {
    const std::lock_guard lock(mutex_);
    if (n_idle_ <= queue_.size() && !add_thread()) return false;
    queue_.push_back(std::move(connection));
    waiting_.notify_one();
    return true;
  }
  bool add_thread() {
    if (threads_.size() == most_) return false;
    try {
      threads_.emplace_back([this] { run(); });
    } catch (const std::system_error&) {  // the system has no more
      return false;
    }
    ++n_idle_;
    return true;
  }
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      waiting_.wait(lock, [this] { return !queue_.empty() || is_ending_; });
      if (queue_.empty()) return;
      const std::function<void()> connection = std::move(queue_.front());
      queue_.pop_front();
      --n_idle_;
      lock.unlock();
      connection();
      lock.lock();
      ++n_idle_;
    }
  }

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable waiting_;
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  std::size_t n_idle_ = 0;  // threads that wait, or will, for what is in the queue
  bool is_ending_ = false;
};

class HttpServer final : public httplib::Server {
 public:
  HttpServer(const HttpLimits& limits, std::unique_ptr<TlsContext> tls)
      : limits_(limits), tls_(std::move(tls)) {
    std::signal(SIGPIPE, SIG_IGN);
    new_task_queue = [this] { return new ConnectionThreads(limits_.max_connections); };
    // Two servers of one port are a mistake; httplib's own options let them share it.
    set_socket_options([](socket_t socket) {
      int one = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    });
    set_payload_max_length(limits_.max_body_bytes);
  }

  const HttpLimits& limits() const { return limits_; }
  bool has_tls() const { return tls_ != nullptr; }

  // Binds to an address; port 0: any that is free. Returns the port. Errors: io.
  nibble::Result<int> bind(const std::string& host, int port) {
    const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
    // As many may wait to be accepted as the system allows; httplib lets five wait.
    if (bound < 0 || ::listen(svr_sock_, SOMAXCONN) != 0) {
      return nibble::Error{nibble::Errc::io, "cannot listen at " + nibble::printable(host) + ":" +
                                                 std::to_string(port) + "; is the port in use?"};
    }
    return bound;
  }

  // Connections end after the request that they answer; those that wait for another end now. New
  // ones are told so (see Routes). What is being answered goes on.
  void drain() { is_draining_ = true; }
  bool is_draining() const { return is_draining_; }
  // Connections that have begun to send a request and are not answered yet.
  std::size_t n_active() const { return n_active_; }
  // Ends all connections, and listen_after_bind().
  void end() {
    is_stopped_ = true;
    stop();
  }

 private:
  bool process_and_close_socket(socket_t socket) override {
    Connection connection(socket, limits_, tls_.get(), is_stopped_);
    if (ConnectionThreads::is_refusing()) return refuse(connection);
    const std::atomic<bool>* is_ending = &is_stopped_;
    for (std::size_t i = 1; connection.wait_for_request(*is_ending); ++i) {
      const Active active(n_active_);
      connection.begin_request();
      bool is_closed = false;
      const bool is_last = i == limits_.max_requests;
      if (!process(*this, connection, is_last, is_closed) || is_closed || is_last ||
          !connection.may_go_on()) {
        break;
      }
      is_ending = &is_draining_;
    }
    return true;
  }

  struct Active {
    explicit Active(std::atomic<std::size_t>& n) : n_active(n) { ++n_active; }
    Active(const Active&) = delete;
    Active& operator=(const Active&) = delete;
    ~Active() { --n_active; }
    std::atomic<std::size_t>& n_active;
  };

  bool refuse(Connection& connection) {
    if (has_tls()) return false;  // it would have to wait for the client
    const std::string body =
        R"({"error": {"message": "too many connections", "type": "overloaded_error", )"
        R"("param": null, "code": null}})";
    const std::string answer =
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
        "Content-Type: application/json\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    connection.write(answer);
    return false;
  }

  // Reads a request and answers it. The signature depends on httplib's version.
  template <class Self>
  static bool process(Self& self, Connection& connection, bool is_last, bool& is_closed) {
    const auto setup = [&connection](httplib::Request& request) {
      // Answers are small, or streams: compressing them costs more than it saves, and nobody wants
      // parts of them.
      request.headers.erase("Accept-Encoding");
      request.ranges.clear();
      const bool has_body = request.has_header("Transfer-Encoding") ||
                            (request.has_header("Content-Length") &&
                             request.get_header_value("Content-Length") != "0");
      if (has_body) connection.expect_body();
    };
    if constexpr (requires { self.process_request(connection, is_last, is_closed, setup); }) {
      return self.process_request(connection, is_last, is_closed, setup);
    } else {
      std::string remote, local;
      int remote_port = 0, local_port = 0;
      connection.get_remote_ip_and_port(remote, remote_port);
      connection.get_local_ip_and_port(local, local_port);
      return self.process_request(connection, remote, remote_port, local, local_port, is_last,
                                  is_closed, setup);
    }
  }

  HttpLimits limits_;
  std::unique_ptr<TlsContext> tls_;
  std::atomic<bool> is_draining_{false}, is_stopped_{false};
  std::atomic<std::size_t> n_active_{0};
};

}  // namespace example::server
