// SPDX-License-Identifier: Apache-2.0
//
// The server as a process of its own, for tests.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "client_http.hpp"

namespace example::client {

// Wrong answers so far. Each is told.
inline int& n_wrong() {
  static int n = 0;
  return n;
}
inline void check(bool is_right, const std::string& what) {
  if (is_right) return;
  ++n_wrong();
  std::printf("WRONG: %s\n", what.substr(0, 1000).c_str());
}

class ServerProcess {
 public:
  // Starts the program at a free port and waits until it is ready.
  ServerProcess(const std::string& program, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {program, "--port", "0", "--quiet"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int ends[2] = {-1, -1};
    if (::pipe(ends) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      ::execv(program.c_str(), argv.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    output_ = ends[0];
    read_port();
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess() {
    if (output_ >= 0) ::close(output_);
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  int port() const { return port_; }

  // Until the model is loaded. Before, the server says 503.
  bool wait_until_ready() const {
    for (int i = 0; i < 1000 && port_ > 0; ++i) {
      const Reply reply = get(port_, "/health");
      if (reply.status == 200) return true;
      check(reply.status == 503, "while loading: " + std::to_string(reply.status));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

  void terminate() const { ::kill(pid_, SIGTERM); }
  // The exit code, or -1 if it does not end.
  int wait_for_end() {
    for (int i = 0; i < kWaitMs / 10; ++i) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return -1;
  }

  // Bytes of memory that are in use; 0 where the system does not tell.
  std::size_t resident_bytes() const {
    const std::string path = "/proc/" + std::to_string(pid_) + "/statm";
    std::size_t all = 0, resident = 0;
    if (std::FILE* const file = std::fopen(path.c_str(), "r")) {
      if (std::fscanf(file, "%zu %zu", &all, &resident) != 2) resident = 0;
      std::fclose(file);
    }
    return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  }

 private:
  void read_port() {
    std::string line;
    for (char c = 0; line.size() < 256 && ::read(output_, &c, 1) == 1 && c != '\n';) line += c;
    const std::size_t colon = line.rfind(':');
    if (line.starts_with("listening at ") && colon != line.npos) {
      port_ = std::atoi(line.c_str() + colon + 1);
    }
    check(port_ > 0, "the server does not start: " + line);
  }

  pid_t pid_ = -1;
  int output_ = -1;
  int port_ = 0;
};

}  // namespace example::client
