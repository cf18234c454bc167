// SPDX-License-Identifier: Apache-2.0
//
// Shared by the example programs: command line, errors, signals, files, terminal, readable numbers,
// peak memory.
#pragma once

#include <CLI/CLI.hpp>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"

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

// Checks of options. CLI11's own let NaN pass, and turn -1 into the largest unsigned number.
inline std::string is_not_empty(const std::string& text) {
  return text.empty() ? "must not be empty" : "";
}
inline std::string is_not_negative(const std::string& text) {
  return text.starts_with('-') ? "Value " + text + " is less than 0" : "";
}
inline std::string is_number(const std::string& text) {
  double value = 0;
  return CLI::detail::lexical_cast(text, value) && value - value == 0 ? ""
                                                                      : text + " is not a number";
}

// Options that many programs have; --help shows their defaults. A number is in [least, most].
template <class Number>
using Limit = std::conditional_t<std::is_floating_point_v<Number>, Number, std::int64_t>;
template <class Number>
CLI::Option* add_number(CLI::App& app, const char* name, Number& value, const std::string& what,
                        Limit<Number> least, Limit<Number> most) {
  return app.add_option(name, value, what)
      ->check(is_number)
      ->check(CLI::Range(least, most))
      ->capture_default_str();
}
inline void add_seed(CLI::App& app, std::uint64_t& seed, const char* what) {
  app.add_option("--seed", seed, what)->check(is_not_negative)->capture_default_str();
}
inline void add_threads(CLI::App& app, nibble::Index& n_threads) {
  app.add_option("--threads", n_threads, "threads; 0: one per core")->check(CLI::Range(0, 1024));
}

// Parses the command line. If it returns a value, the program ends with that exit code (--help, an
// error).
inline std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s (see --help)\n", app.get_name().c_str(),
                 nibble::printable(error.what()).c_str());
    return kUsage;
  }
  return std::nullopt;
}

// Prints one line to stderr; returns the exit code.
inline int fail(const CLI::App& app, const std::string& message) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), message.c_str());
  return kFailed;
}

// Whether all that the program printed to stdout has arrived, e.g. not on a full disk.
inline bool is_stdout_written() { return std::fflush(stdout) == 0 && std::ferror(stdout) == 0; }

// The exit code of work that has ended: its own, if it was done. An error is printed, but that it
// was interrupted (Errc::cancelled) is known to who did it.
inline int ended(const CLI::App& app, const nibble::Result<int>& done) {
  if (!done && done.error().code == nibble::Errc::cancelled) return kInterrupted;
  if (!done) return fail(app, done.error().message);
  const int written = is_stdout_written() ? kOk : fail(app, "cannot write to stdout");
  return *done == kOk ? written : *done;
}
inline int ended(const CLI::App& app, const nibble::Result<void>& done) {
  return ended(app, done ? nibble::Result<int>(kOk) : nibble::Result<int>(done.error()));
}

// A program whose options are known: reads the command line, calls work(), which returns
// Result<void> or the exit code, Result<int>, and says how that ended. What the libraries of a
// program throw, for example where no memory is left, ends it with a message, too.
template <class Work>
int run(CLI::App& app, int argc, char** argv, Work&& work) {
  try {
    if (const auto exit_code = parse(app, argc, argv)) return *exit_code;
    return ended(app, work());
  } catch (const std::exception& error) {
    return fail(app, error.what());
  }
}

// Set by Ctrl-C and by the signals that ask a program to end.
inline std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // set by a signal handler

extern "C" inline void on_interrupt(int signal) {
  interrupted.store(true);
  std::signal(signal, SIG_DFL);  // a second Ctrl-C ends the program at once
}

// For work that looks at `interrupted` from here on, to end in an orderly way. And a limit on the
// size of files becomes an error of writing.
inline void catch_signals() {
  std::signal(SIGINT, on_interrupt);
  std::signal(SIGTERM, on_interrupt);
#if !defined(_WIN32)
  if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) std::signal(SIGHUP, on_interrupt);  // not nohup's
  std::signal(SIGXFSZ, SIG_IGN);
#endif
}

// All bytes of a file; "-" is stdin. Errors: io, limit (more than 1 GiB).
inline nibble::Result<std::string> read_text(const std::string& path) {
  constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
  const bool is_stdin = path == "-";
  const std::string name = is_stdin ? "stdin" : nibble::printable(path);
  std::FILE* const file = is_stdin ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    return nibble::Error{nibble::Errc::io, name + ": cannot open: " + std::strerror(errno)};
  }
  std::string text;
  char part[1 << 14];
  for (std::size_t n;
       text.size() <= kMaxBytes && (n = std::fread(part, 1, sizeof(part), file)) > 0;) {
    text.append(part, n);
  }
  const int failed = std::ferror(file) != 0 ? errno : 0;  // a folder can be opened, but not read
  if (!is_stdin) std::fclose(file);
  if (failed != 0) {
    return nibble::Error{nibble::Errc::io, name + ": cannot read: " + std::strerror(failed)};
  }
  if (text.size() > kMaxBytes) {
    return nibble::Error{nibble::Errc::limit, name + ": more than 1 GiB of text"};
  }
  return text;
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
