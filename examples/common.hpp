// SPDX-License-Identifier: Apache-2.0
//
// Shared by the example programs: command line, terminal, readable numbers, peak memory.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"

#if defined(_WIN32)
#include <io.h>
#else
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace example {

inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;  // an error of the input or the machine
inline constexpr int kUsage = 2;   // an error of the command line
inline constexpr int kInterrupted = 130;

// Parses the command line. If it returns a value, the program ends with that exit code (--help, an
// error).
inline std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s (see --help)\n", app.get_name().c_str(), error.what());
    return kUsage;
  }
  return std::nullopt;
}

// Prints one line to stderr; returns the exit code.
inline int fail(const CLI::App& app, const nibble::Error& error) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.message.c_str());
  return kFailed;
}

inline bool is_terminal(std::FILE* stream) {
#if defined(_WIN32)
  return _isatty(_fileno(stream)) != 0;
#else
  return isatty(fileno(stream)) != 0;
#endif
}

// A status line on stderr: on terminals it is overwritten in place. Elsewhere (a log file), with
// kInLogs, what takes longer than a second writes a line after that and then every ten seconds.
class StatusLine {
 public:
  enum Where { kTerminals, kInLogs };

  explicit StatusLine(bool wanted = true, Where where = kTerminals)
      : is_shown_(wanted && is_terminal(stderr)), is_logged_(wanted && where == kInLogs) {}
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  ~StatusLine() { show({}); }

  // Replaces the line; an empty text clears it: the work is done.
  void show(const std::string& text) {
    if (text.empty() && last_.empty()) return;
    if (is_shown_) {
      std::fprintf(stderr, "\r%s\x1b[K", text.c_str());
      std::fflush(stderr);
    } else if (is_logged_) {
      log(text);
    }
    last_ = text;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void log(const std::string& text) {
    const auto now = Clock::now();
    if (last_.empty()) next_ = now + std::chrono::seconds(1);
    if (text.empty() || now < next_) return;
    std::fprintf(stderr, "%s\n", text.c_str());
    next_ = now + std::chrono::seconds(10);
  }

  bool is_shown_, is_logged_;
  std::string last_;
  Clock::time_point next_;
};

// Formats 1234567 as "1 234 567".
inline std::string grouped(std::uint64_t n) {
  std::string text = std::to_string(n);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<std::size_t>(at), 1, ' ');
  }
  return text;
}

inline std::string mebibytes(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
  return text;
}

// Peak RAM use of this process, everything included: code, weights, mapped pages of files. Empty
// where the system does not tell.
inline std::optional<std::uint64_t> peak_ram() {
#if defined(_WIN32)
  return std::nullopt;
#else
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0 || usage.ru_maxrss <= 0) return std::nullopt;
#if defined(__APPLE__)
  return static_cast<std::uint64_t>(usage.ru_maxrss);
#else
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
#endif
#endif
}

}  // namespace example
