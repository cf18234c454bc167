// SPDX-License-Identifier: Apache-2.0
//
// Tests the debug checks. A separate file, because the checks are on here in every build.
#undef NIBBLE_DEBUG
#define NIBBLE_DEBUG 1

#include "doctest/doctest.h"

#if defined(__unix__) || defined(__APPLE__)

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <string>

#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"

namespace checks_test {
namespace {

volatile int sink = 0;

// What a child process that ran `action` printed to stderr before it aborted; "ran" if it ended
// normally, "?" otherwise.
template <class Action>
std::string last_words(Action action) {
  std::fflush(nullptr);  // otherwise the child prints it again
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGABRT, SIG_DFL);
    dup2(ends[1], STDERR_FILENO);
    action();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) {
    text.append(part, static_cast<std::size_t>(n));
  }
  close(ends[0]);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "ran" + text;
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? text : "?";
}

// Whether the action failed a check of view.hpp, and said so.
template <class Action>
bool is_out_of_bounds(Action action) {
  const std::string text = last_words(action);
  return text.starts_with("nibble: check failed: ") &&
         text.find("view.hpp:") != std::string::npos && text.ends_with("\n");
}

int elements[12] = {};
const nibble::MatrixView<int> m(elements, 3, 4);

nibble::Result<int> failed() { return nibble::Error{nibble::Errc::io, "tape.gguf: torn"}; }

}  // namespace

TEST_CASE("in debug builds an index out of bounds stops the program") {
  CHECK(last_words([] { sink = m(2, 3); }) == "ran");
  CHECK(is_out_of_bounds([] { sink = m(3, 0); }));
  CHECK(is_out_of_bounds([] { sink = m(0, 4); }));  // inside the memory, but outside the row
  CHECK(is_out_of_bounds([] { sink = m(0, -1); }));
}

TEST_CASE("in debug builds wrong rows and wrong static extents stop the program") {
  CHECK(last_words([] { sink = m[2](3); }) == "ran");
  CHECK(last_words([] { sink = m.rows(1, 2)(1, 3); }) == "ran");
  CHECK(is_out_of_bounds([] { sink = m[3].data() != nullptr; }));
  CHECK(is_out_of_bounds([] { sink = m.rows(1, 3).data() != nullptr; }));
  CHECK(is_out_of_bounds([] { sink = m.rows(-1, 1).data() != nullptr; }));
  CHECK(is_out_of_bounds([] { sink = m.rows(1, INT64_MAX).data() != nullptr; }));
  CHECK(is_out_of_bounds([] {
    const nibble::View<int, 3, 5> wrong = m;
    sink = static_cast<int>(wrong.size());
  }));
}

TEST_CASE("in debug builds an error that is used as a value stops the program with its message") {
  const std::string expected =
      "nibble: a Result without a value is used as one; its error: tape.gguf: torn\n";
  CHECK(last_words([] { sink = *failed(); }) == expected);
  CHECK(last_words([] {
          auto result = failed();
          sink = *result;
        }) == expected);
  CHECK(last_words([] {
          const auto result = failed();
          sink = *result;
        }) == expected);
  CHECK(last_words([] {
          const nibble::Result<std::string> result = nibble::Error{nibble::Errc::io, "torn"};
          sink = static_cast<int>(result->size());
        }).ends_with("its error: torn\n"));
  CHECK(last_words([] {
          const nibble::Result<int> result = 1;
          sink = static_cast<int>(result.error().message.size());
        }).starts_with("nibble: check failed: !has_value_"));
}

}  // namespace checks_test

#else

TEST_CASE("debug checks") { MESSAGE("skipped: needs fork()"); }

#endif
