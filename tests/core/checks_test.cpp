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

#include "nibble/core/view.hpp"

namespace {

volatile int sink = 0;

// The signal that ended a child process that ran `action`, or 0 if it ended normally.
template <class Action>
int signal_of(Action action) {
  std::fflush(nullptr);  // otherwise the child prints it again
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    for (const int s : {SIGILL, SIGTRAP, SIGSEGV, SIGABRT}) std::signal(s, SIG_DFL);
    action();
    _exit(0);
  }
  int status = -1;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  return WEXITSTATUS(status) == 0 ? 0 : -1;
}

bool is_trap(int signal) { return signal == SIGILL || signal == SIGTRAP; }

int elements[12] = {};
const nibble::MatrixView<int> m(elements, 3, 4);

}  // namespace

TEST_CASE("in debug builds an index out of bounds stops the program") {
  CHECK(signal_of([] { sink = m(2, 3); }) == 0);
  CHECK(is_trap(signal_of([] { sink = m(3, 0); })));
  CHECK(is_trap(signal_of([] { sink = m(0, 4); })));  // inside the memory, but outside the row
  CHECK(is_trap(signal_of([] { sink = m(0, -1); })));
}

TEST_CASE("in debug builds wrong rows and wrong static extents stop the program") {
  CHECK(signal_of([] { sink = m[2](3); }) == 0);
  CHECK(signal_of([] { sink = m.rows(1, 2)(1, 3); }) == 0);
  CHECK(is_trap(signal_of([] { sink = m[3].data() != nullptr; })));
  CHECK(is_trap(signal_of([] { sink = m.rows(1, 3).data() != nullptr; })));
  CHECK(is_trap(signal_of([] { sink = m.rows(-1, 1).data() != nullptr; })));
  CHECK(is_trap(signal_of([] { sink = m.rows(1, INT64_MAX).data() != nullptr; })));
  CHECK(is_trap(signal_of([] {
    const nibble::View<int, 3, 5> wrong = m;
    sink = static_cast<int>(wrong.size());
  })));
}

#else

TEST_CASE("debug checks of views") { MESSAGE("skipped: needs fork()"); }

#endif
