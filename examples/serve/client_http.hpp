// SPDX-License-Identifier: Apache-2.0
//
// A small HTTP client for tests of the server: it can send anything, also what is no HTTP.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace example::client {

inline constexpr int kWaitMs = 20'000;  // for anything: a server that hangs is a failure

// A connection to a port of this machine.
class Socket {
 public:
  explicit Socket(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    is_open_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    int one = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() { close(); }

  bool is_open() const { return is_open_; }
  bool send(std::string_view bytes) {
    while (is_open_ && !bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return is_open_;
  }
  void end_sending() { ::shutdown(socket_, SHUT_WR); }
  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
    is_open_ = false;
  }

  // Appends what comes to `read`; false at the end, at an error, or if nothing comes in the time.
  bool receive(int ms = kWaitMs) {
    has_hung_ = false;
    pollfd waited{socket_, POLLIN, 0};
    if (!is_open_ || ::poll(&waited, 1, ms) <= 0) {
      has_hung_ = is_open_;
      return false;
    }
    char part[16384];
    const ssize_t n = ::recv(socket_, part, sizeof(part), 0);
    if (n <= 0) return false;
    read.append(part, static_cast<std::size_t>(n));
    return true;
  }
  // Whether the last receive() waited in vain.
  bool has_hung() const { return has_hung_; }

  std::string read;  // and not taken

 private:
  int socket_;
  bool is_open_ = false, has_hung_ = false;
};

struct Reply {
  int status = 0;  // 0: the connection ended before
  std::string head, body;

  std::string header(std::string name) const {
    name = "\r\n" + name + ": ";
    const auto same = [](char a, char b) { return std::tolower(a) == std::tolower(b); };
    const auto at = std::search(head.begin(), head.end(), name.begin(), name.end(), same);
    if (at == head.end()) return {};
    const auto begin = static_cast<std::size_t>(at - head.begin()) + name.size();
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }
};

// Takes one answer from a connection. `on_part` sees the body of a stream as it comes; false:
// enough.
template <class OnPart>
Reply read_reply(Socket& socket, OnPart on_part) {
  Reply reply;
  std::size_t end = 0;
  while ((end = socket.read.find("\r\n\r\n")) == socket.read.npos) {
    if (!socket.receive()) return reply;
  }
  reply.head = socket.read.substr(0, end + 2);
  socket.read.erase(0, end + 4);
  const auto take = [&](std::size_t n) {
    while (socket.read.size() < n && socket.receive()) continue;
    if (socket.read.size() < n) return false;
    reply.body += socket.read.substr(0, n);
    socket.read.erase(0, n);
    return true;
  };
  const int status = std::atoi(reply.head.c_str() + std::min<std::size_t>(9, end));
  if (reply.header("Transfer-Encoding") == "chunked") {
    for (std::size_t size = 1; size > 0;) {
      while ((end = socket.read.find("\r\n")) == socket.read.npos) {
        if (!socket.receive()) return reply;
      }
      size = std::strtoul(socket.read.c_str(), nullptr, 16);
      socket.read.erase(0, end + 2);
      if (!take(size + 2)) return reply;
      reply.body.resize(reply.body.size() - 2);
      if (!on_part(reply.body)) return reply;
    }
  } else if (!take(std::strtoul(reply.header("Content-Length").c_str(), nullptr, 10))) {
    return reply;
  }
  reply.status = status;
  return reply;
}
inline Reply read_reply(Socket& socket) {
  return read_reply(socket, [](const std::string&) { return true; });
}

inline std::string request_text(const char* method, const std::string& path,
                                const std::string& body = {}, const std::string& headers = {}) {
  std::string text =
      std::string(method) + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers;
  if (std::string_view(method) == "POST") {
    text +=
        "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  }
  return text + "\r\n" + body;
}
inline Reply ask(int port, const char* method, const std::string& path,
                 const std::string& body = {}, const std::string& headers = {}) {
  Socket socket(port);
  socket.send(request_text(method, path, body, headers));
  return read_reply(socket);
}
inline Reply get(int port, const std::string& path, const std::string& headers = {}) {
  return ask(port, "GET", path, {}, headers);
}
inline Reply post(int port, const std::string& path, const std::string& body,
                  const std::string& headers = {}) {
  return ask(port, "POST", path, body, headers);
}

}  // namespace example::client
