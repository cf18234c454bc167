// SPDX-License-Identifier: Apache-2.0
//
// A file that appears under its name only when it is complete.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/io/mapped_file.hpp"

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Writes to a temporary file beside `path`, of which commit() makes `path`, atomically. Without
// commit() nothing changes. On Linux the temporary file has no name until commit(): it is gone
// however the program ends (unless that is in the moment in which it replaces a file: then a whole
// copy may be left). Elsewhere, and on file systems that cannot do this, it is removed by
// the destructor and stays if the program is killed.
//
// A symbolic link is followed: the file that it names is replaced, the link stays. A file that is
// replaced keeps its permissions, and its owner where the system allows it. What is not a regular
// file (a folder, a device, a pipe, a socket) and a file that nobody may write are refused. On
// Windows links are refused too, and a file that is replaced gets the permissions of a new one.
//
// A program with a limit on the size of files should ignore SIGXFSZ: write() then returns the error
// instead.
class OutputFile {
 public:
  // Errors: io, with path and reason; invalid_argument (a path that is empty or contains a NUL).
  static Result<OutputFile> create(const std::string& path);

  OutputFile(OutputFile&& other) noexcept
      : path_(std::move(other.path_)),
        temporary_(std::move(other.temporary_)),
        handle_(std::exchange(other.handle_, kClosed)) {
    other.temporary_.clear();
  }
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile() { discard(); }

  // Errc::io with path and reason, e.g. a full disk; the temporary file is then removed.
  Result<void> write(std::span<const std::byte> bytes) {
    return catch_out_of_memory([&] { return write_all(bytes); });
  }

  // Flushes to the device before renaming: after a power failure there is the old file or the new
  // one, never a partial one. No writes afterwards.
  Result<void> commit() {
    return catch_out_of_memory([&] { return finish(); });
  }

 private:
#if defined(_WIN32)
  using Handle = void*;
  static constexpr Handle kClosed = nullptr;
  using SystemPath = std::wstring;
#else
  using Handle = int;
  static constexpr Handle kClosed = -1;
  using SystemPath = std::string;
#endif

  explicit OutputFile(std::string path) : path_(std::move(path)) {}

  Result<void> open();
  Result<void> check_target() const;  // that what is there, if anything, may be replaced
  Result<void> write_all(std::span<const std::byte> bytes);
  Result<void> finish();
  Result<void> give_name();  // links a file without a name
  void discard() noexcept;
  Error fail(const char* what) {
    Error error = detail::system_error(path_, what);
    discard();
    return error;
  }
  Error refused(const char* why) const {
    return {Errc::io, printable(path_) + ": cannot be written: " + why};
  }

  std::string path_;      // of the file itself, after all links
  SystemPath temporary_;  // empty: it has no name
  Handle handle_ = kClosed;
};

inline Result<OutputFile> OutputFile::create(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<OutputFile> {
    NIBBLE_CHECK(detail::check_path(path));
    OutputFile file(path);
    NIBBLE_CHECK(file.open());
    return file;
  });
}

namespace detail {

// How many temporary names are tried: others may write to the same folder at the same time.
inline constexpr int kTemporaryNames = 100;

// A temporary name in the folder of `path`; short, since a name may be as long as the system
// allows.
inline std::string temporary_name(const std::string& path, unsigned long process, int i) {
#if defined(_WIN32)
  const std::size_t end = path.find_last_of("/\\:");
#else
  const std::size_t end = path.rfind('/');
#endif
  const std::string folder = end == std::string::npos ? std::string() : path.substr(0, end + 1);
  return folder + "nibble-" + to_text(process) + "-" + to_text(i) + ".tmp";
}

}  // namespace detail

#if defined(_WIN32)

inline Result<void> OutputFile::check_target() const {
  constexpr unsigned long kNone = 0xffffffff;  // INVALID_FILE_ATTRIBUTES
  constexpr unsigned long kReadOnly = 0x1, kDirectory = 0x10, kDevice = 0x40, kReparse = 0x400;
  const unsigned long attributes = GetFileAttributesW(detail::wide_path(path_).c_str());
  if (attributes == kNone) return ok();
  if ((attributes & kDirectory) != 0) return refused("it is a directory");
  if ((attributes & kDevice) != 0) return refused("it is a device");
  if ((attributes & kReparse) != 0) return refused("it is a link; name the file itself");
  if ((attributes & kReadOnly) != 0) return refused("it is read-only");
  return ok();
}

inline Result<void> OutputFile::open() {
  NIBBLE_CHECK(check_target());
  for (int i = 0;; ++i) {
    const std::string name = detail::temporary_name(path_, GetCurrentProcessId(), i);
    SystemPath wide = detail::wide_path(name);
    handle_ = detail::open_file(name, detail::FileUse::create_new);
    if (handle_ != nullptr) {
      temporary_ = std::move(wide);
      return ok();
    }
    constexpr unsigned long kFileExists = 80;  // ERROR_FILE_EXISTS
    if (GetLastError() != kFileExists || i == detail::kTemporaryNames) {
      return detail::system_error(path_, "cannot create");
    }
  }
}

inline Result<void> OutputFile::write_all(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto chunk = static_cast<unsigned long>((std::min)(bytes.size(), detail::kMaxTransfer));
    unsigned long written = 0;
    if (WriteFile(handle_, bytes.data(), chunk, &written, nullptr) == 0 || written == 0) {
      return fail("cannot write");
    }
    bytes = bytes.subspan(written);
  }
  return ok();
}

inline Result<void> OutputFile::finish() {
  if (FlushFileBuffers(handle_) == 0) return fail("cannot write");
  if (CloseHandle(std::exchange(handle_, kClosed)) == 0) return fail("cannot write");
  NIBBLE_CHECK(check_target());  // again: others may have put something else there meanwhile
  constexpr unsigned long kReplaceExisting = 1;  // MOVEFILE_REPLACE_EXISTING
  if (MoveFileExW(temporary_.c_str(), detail::wide_path(path_).c_str(), kReplaceExisting) == 0) {
    return fail("cannot replace");
  }
  temporary_.clear();
  return ok();
}

inline void OutputFile::discard() noexcept {
  if (handle_ != kClosed) CloseHandle(std::exchange(handle_, kClosed));
  if (!temporary_.empty()) DeleteFileW(temporary_.c_str());
  temporary_.clear();
}

#else

namespace detail {

// The file that `path` names after all symbolic links in its place, which need not exist; links
// among the folders before it need no care. Error: io.
inline Result<std::string> follow_links(std::string path) {
  constexpr int kMaxLinks = 40;
  constexpr std::size_t kMaxLink = 4096;
  std::string link(kMaxLink, '\0');
  for (int i = 0; i <= kMaxLinks; ++i) {
    const ::ssize_t n = ::readlink(path.c_str(), link.data(), link.size());
    if (n < 0) return path;  // no link; what else is wrong is seen when it is used
    const auto size = static_cast<std::size_t>(n);
    if (size == 0 || size == link.size()) break;
    const std::size_t end = path.rfind('/');
    const bool is_absolute = link[0] == '/' || end == std::string::npos;
    path.resize(is_absolute ? 0 : end + 1);
    path.append(link.data(), size);
  }
  return Error{Errc::io, printable(path) + ": too many symbolic links"};
}

#if defined(O_TMPFILE)
// A name of an open file that has no other.
inline std::string name_of(int descriptor) { return "/proc/self/fd/" + to_text(descriptor); }
#endif

}  // namespace detail

inline Result<void> OutputFile::check_target() const {
  struct stat info {};
  if (::lstat(path_.c_str(), &info) != 0) return ok();  // nothing there
  if (S_ISDIR(info.st_mode)) return refused("it is a directory");
  if (!S_ISREG(info.st_mode)) return refused("it is not a regular file");
  constexpr ::mode_t kAnyWrite = 0222;  // root may write a file without it, but should not
  if ((info.st_mode & kAnyWrite) == 0 || ::access(path_.c_str(), W_OK) != 0) {
    return refused("it is write-protected");
  }
  return ok();
}

inline Result<void> OutputFile::open() {
  struct stat named {
  }, found{};
  const bool exists = ::stat(path_.c_str(), &named) == 0;
  // Before links are followed: those in /dev and /proc may lead to what has no name.
  if (exists && S_ISDIR(named.st_mode)) return refused("it is a directory");
  if (exists && !S_ISREG(named.st_mode)) return refused("it is not a regular file");
  NIBBLE_TRY(target, detail::follow_links(path_));
  path_ = std::move(target);
  NIBBLE_CHECK(check_target());
  if (exists && (::stat(path_.c_str(), &found) != 0 || found.st_dev != named.st_dev ||
                 found.st_ino != named.st_ino)) {
    return refused("it is a link to a file without a name");
  }

  const ::mode_t mode = exists ? S_IRUSR | S_IWUSR : 0666;
#if defined(O_TMPFILE)
  const std::size_t end = path_.rfind('/');
  const std::string folder = end == std::string::npos ? "." : path_.substr(0, end + 1);
  handle_ = ::open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, mode);
  // Its name will be made from the one in /proc, which is not everywhere.
  if (handle_ >= 0 && ::access(detail::name_of(handle_).c_str(), F_OK) != 0) discard();
#endif
  for (int i = 0; handle_ < 0; ++i) {
    std::string name = detail::temporary_name(path_, static_cast<unsigned long>(::getpid()), i);
    handle_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (handle_ >= 0) {
      temporary_ = std::move(name);
    } else if (errno != EEXIST || i == detail::kTemporaryNames) {
      return detail::system_error(path_, "cannot create");
    }
  }
  if (exists) {
    // Only root may give a file away, and others a group only if it is theirs.
    if (::fchown(handle_, named.st_uid, named.st_gid) != 0 &&
        ::fchown(handle_, static_cast< ::uid_t>(-1), named.st_gid) != 0) {
      named.st_mode &= ~static_cast< ::mode_t>(S_IRWXG);  // this group is another one
    }
    // EPERM: the file system has the same permissions for all files.
    if (::fchmod(handle_, named.st_mode & 0777) != 0 && errno != EPERM) {
      return fail("cannot set permissions");
    }
  }
  return ok();
}
inline Result<void> OutputFile::write_all(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t chunk = (std::min)(bytes.size(), detail::kMaxTransfer);
    const ::ssize_t written = ::write(handle_, bytes.data(), chunk);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return fail("cannot write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return ok();
}

inline Result<void> OutputFile::give_name() {
#if defined(O_TMPFILE)
  const std::string from = detail::name_of(handle_);
  const auto link = [&](const std::string& name) {
    const int flag = AT_SYMLINK_FOLLOW;
    return ::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, name.c_str(), flag) == 0 ? 0 : errno;
  };
  int error = link(path_);
  // If there is a file of this name, only a file that has a name itself can replace it. Should the
  // program be killed just then, the file that is left over is complete.
  for (int i = 0; error == EEXIST && i <= detail::kTemporaryNames; ++i) {
    temporary_ = detail::temporary_name(path_, static_cast<unsigned long>(::getpid()), i);
    error = link(temporary_);
    if (error != 0) temporary_.clear();  // not ours: it must not be removed
  }
  if (error == 0) return ok();
  errno = error;
#endif
  return fail("cannot create");
}

inline Result<void> OutputFile::finish() {
  // EINVAL: the file system cannot sync; there is nothing to wait for.
  if (::fsync(handle_) != 0 && errno != EINVAL) return fail("cannot write");
  NIBBLE_CHECK(check_target());  // again: others may have put something else there meanwhile
  if (temporary_.empty()) NIBBLE_CHECK(give_name());
  if (::close(std::exchange(handle_, kClosed)) != 0) return fail("cannot write");
  if (!temporary_.empty() && ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return fail("cannot replace");
  }
  temporary_.clear();
  return ok();
}

inline void OutputFile::discard() noexcept {
  if (handle_ != kClosed) ::close(std::exchange(handle_, kClosed));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

#endif

}}}  // namespace nibble::NIBBLE_ABI::io
