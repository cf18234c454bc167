// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/output_file.hpp"

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "test_data.hpp"

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace output_file_test {

namespace fs = std::filesystem;

using nibble::Errc;
using nibble::Result;
using nibble::io::OutputFile;
using test::contains;

namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  return test::FileBuilder().raw(text).bytes();
}

Result<void> write(const std::string& path, std::string_view text) {
  NIBBLE_TRY(file, OutputFile::create(path));
  NIBBLE_CHECK(file.write(bytes_of(text)));
  return file.commit();
}

bool holds(const std::string& path, std::string_view text) {
  return test::read_file(path) == bytes_of(text);
}

}  // namespace

TEST_CASE("a file is there, or replaced, when it is complete") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("model");
  {
    auto file = OutputFile::create(path);
    REQUIRE(file);
    REQUIRE(file->write(bytes_of("one ")));
    CHECK(!fs::exists(path));
    OutputFile moved = std::move(*file);
    REQUIRE(moved.write(bytes_of("two")));
    REQUIRE(moved.commit());
  }
  CHECK(holds(path, "one two"));
  {
    auto file = OutputFile::create(path);
    REQUIRE(file);
    REQUIRE(file->write(bytes_of("three")));
    CHECK(holds(path, "one two"));
    REQUIRE(file->commit());
    CHECK(holds(path, "three"));
  }
  {
    auto file = OutputFile::create(path);
    REQUIRE(file);
    REQUIRE(file->write(bytes_of("never")));
  }
  CHECK(holds(path, "three"));
  CHECK(folder.count() == 1);
}

TEST_CASE("two writers of one path do not disturb each other; the last is there") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("model");
  for (int round = 0; round < 2; ++round) {  // of a new file and of one that is there
    auto first = OutputFile::create(path);
    auto second = OutputFile::create(path);
    REQUIRE(first);
    REQUIRE(second);
    REQUIRE(first->write(bytes_of("first")));
    REQUIRE(second->write(bytes_of("second")));
    REQUIRE(second->commit());
    CHECK(holds(path, "second"));
    REQUIRE(first->commit());
    CHECK(holds(path, "first"));
    CHECK(folder.count() == 1);
  }
}

TEST_CASE("a name may be as long as the system allows") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path(std::string(250, 'n'));
  REQUIRE(write(path, "old"));
  REQUIRE(write(path, "new"));
  CHECK(holds(path, "new"));
  CHECK(folder.count() == 1);
}

TEST_CASE("a folder is refused before anything is written") {
  const test::TemporaryFolder folder;
  for (const std::string name : {"", "inner"}) {
    const std::string path = folder.path(name);
    fs::create_directories(path);
    const auto file = OutputFile::create(path);
    REQUIRE(!file);
    CHECK(file.error().code == Errc::io);
    CHECK(contains(file.error().message, "cannot be written: it is a directory"));
  }
  CHECK(OutputFile::create("").error().code == Errc::invalid_argument);
  const auto strange = OutputFile::create(folder.path("no\x1b[2Jsuch/\xc3\xa9"));
  REQUIRE(!strange);
  CHECK(contains(strange.error().message, "no?[2Jsuch/\xc3\xa9: cannot create: "));
}

#if !defined(_WIN32)

TEST_CASE("what is not a regular file is refused and stays") {
  const test::TemporaryFolder folder;
  const std::string pipe = folder.path("pipe"), socket_path = folder.path("socket");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::vector<std::string> paths = {pipe};

  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket >= 0 && socket_path.size() < sizeof(address.sun_path)) {
    std::copy(socket_path.begin(), socket_path.end(), address.sun_path);
    if (::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      paths.push_back(socket_path);
    }
  }
  // A node of our own, never one of the system.
  const std::string device = folder.path("device");
  if (::mknod(device.c_str(), S_IFCHR | 0666, ::dev_t{0x0103}) == 0) {
    paths.push_back(device);
  } else {
    MESSAGE("skipped: a device (only root may make one)");
  }
  for (std::size_t i = 0, n = paths.size(); i < n; ++i) {
    paths.push_back(folder.path("link" + std::to_string(i)));
    fs::create_symlink(paths[i], paths.back());
  }
  const std::size_t n_before = folder.count();
  for (const std::string& path : paths) {
    CAPTURE(path);
    const auto type = fs::symlink_status(path).type();
    const auto file = OutputFile::create(path);  // must not wait for a reader of the pipe
    REQUIRE(!file);
    CHECK(file.error().code == Errc::io);
    CHECK(contains(file.error().message, "cannot be written: it is not a regular file"));
    CHECK(fs::symlink_status(path).type() == type);
  }
  if (socket >= 0) ::close(socket);
  CHECK(folder.count() == n_before);
}

TEST_CASE("what appears at the path meanwhile is not destroyed") {
  const test::TemporaryFolder folder;
  for (const bool replaces : {false, true}) {
    const std::string path = folder.path(replaces ? "old" : "new");
    if (replaces) REQUIRE(write(path, "old"));
    auto file = OutputFile::create(path);
    REQUIRE(file);
    REQUIRE(file->write(bytes_of("text")));
    fs::remove(path);
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    const auto done = file->commit();
    REQUIRE(!done);
    CHECK(contains(done.error().message, "not a regular file"));
    CHECK(fs::is_fifo(path));
  }
  CHECK(folder.count() == 2);
}

TEST_CASE("links are followed: the file that they name is replaced") {
  const test::TemporaryFolder folder;
  fs::create_directory(folder.path("a"));
  fs::create_directory(folder.path("b"));
  const std::string target = folder.path("b/target");
  REQUIRE(write(target, "old"));
  fs::create_symlink("../b/target", folder.path("a/link"));
  fs::create_symlink(folder.path("a/link"), folder.path("link"));
  REQUIRE(write(folder.path("link"), "new"));
  CHECK(fs::is_symlink(folder.path("link")));
  CHECK(fs::is_symlink(folder.path("a/link")));
  CHECK(!fs::is_symlink(target));
  CHECK(holds(target, "new"));

  // A link to nothing: its target is made.
  fs::create_symlink("../b/made", folder.path("a/nowhere"));
  REQUIRE(write(folder.path("a/nowhere"), "text"));
  CHECK(fs::is_symlink(folder.path("a/nowhere")));
  CHECK(holds(folder.path("b/made"), "text"));

  fs::create_symlink("loop", folder.path("loop"));
  const auto loop = OutputFile::create(folder.path("loop"));
  REQUIRE(!loop);
  CHECK(contains(loop.error().message, "too many symbolic links"));

  fs::create_directory_symlink("b", folder.path("c"));
  REQUIRE(write(folder.path("c/target"), "newer"));
  CHECK(holds(target, "newer"));
  CHECK(fs::is_symlink(folder.path("c")));
}

TEST_CASE("a file that is replaced keeps its permissions; a new one has the usual ones") {
  const test::TemporaryFolder folder;
  const auto mode_of = [](const std::string& path) {
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    return static_cast<int>(info.st_mode & 07777);
  };
  const ::mode_t old_mask = ::umask(027);
  const std::string path = folder.path("model");
  REQUIRE(write(path, "new"));
  CHECK(mode_of(path) == 0640);
  for (const int mode : {0600, 0664, 0200, 0666}) {
    REQUIRE(::chmod(path.c_str(), static_cast<::mode_t>(mode)) == 0);
    REQUIRE(write(path, "again"));
    CHECK(mode_of(path) == mode);
  }
  ::umask(old_mask);
}

TEST_CASE("a write-protected file is refused, also for root") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("model");
  REQUIRE(write(path, "precious"));
  REQUIRE(::chmod(path.c_str(), 0444) == 0);
  const auto done = write(path, "other");
  REQUIRE(!done);
  CHECK(done.error().code == Errc::io);
  CHECK(contains(done.error().message, path + ": cannot be written: it is write-protected"));
  CHECK(holds(path, "precious"));
  CHECK(folder.count() == 1);
}

#if defined(O_TMPFILE)
TEST_CASE("a program that is killed leaves nothing behind") {
  const test::TemporaryFolder folder;
  const int probe = ::open(folder.path("").c_str(), O_TMPFILE | O_WRONLY, 0600);
  if (probe < 0) {
    MESSAGE("skipped: this file system has no files without a name");
    return;
  }
  ::close(probe);
  REQUIRE(write(folder.path("old"), "old"));
  for (const char* const name : {"old", "new"}) {
    const ::pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      auto file = OutputFile::create(folder.path(name));
      const bool written = file && file->write(std::vector<std::byte>(1 << 20));
      if (written) ::raise(SIGKILL);
      ::_exit(1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(folder.count() == 1);
    CHECK(holds(folder.path("old"), "old"));
  }
}
#endif
#endif

}  // namespace output_file_test
