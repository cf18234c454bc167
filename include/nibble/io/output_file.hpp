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
#include <cstdio>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Writes to a temporary file next to `path`; commit() renames it to `path`, which atomically
// replaces the old file. Without commit() the temporary file is removed and `path` stays as it was.
class OutputFile {
 public:
  static Result<OutputFile> create(const std::string& path);

  OutputFile(OutputFile&& other) noexcept
      : path_(std::move(other.path_)),
        temporary_(std::move(other.temporary_)),
        handle_(std::exchange(other.handle_, kClosed)) {}
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile() { discard(); }

  // Errc::io with path and reason, e.g. a full disk; the temporary file is then removed.
  Result<void> write(std::span<const std::byte> bytes);

  // Flushes to the device before renaming: after a power failure there is the old file or the new
  // one, never a partial one. No writes afterwards.
  Result<void> commit();

 private:
#if defined(_WIN32)
  using Handle = void*;
  static constexpr Handle kClosed = nullptr;
#else
  using Handle = int;
  static constexpr Handle kClosed = -1;
#endif

  OutputFile(std::string path, std::string temporary, Handle handle)
      : path_(std::move(path)), temporary_(std::move(temporary)), handle_(handle) {}

  void discard() noexcept;
  Error fail(const char* what) {
    Error error = detail::system_error(path_, what);
    discard();
    return error;
  }

  std::string path_;
  std::string temporary_;
  Handle handle_;
};

// How many temporary names are tried: others may write to the same path at the same time.
inline constexpr int kTemporaryNames = 100;

#if defined(_WIN32)

inline Result<OutputFile> OutputFile::create(const std::string& path) {
  NIBBLE_CHECK(detail::check_path(path));
  const std::string stem = path + ".tmp." + to_text(GetCurrentProcessId()) + ".";
  for (int i = 0;; ++i) {
    const std::string temporary = stem + to_text(i);
    void* const handle = detail::open_file(temporary, detail::FileUse::create_new);
    if (handle != nullptr) return OutputFile(path, temporary, handle);
    constexpr unsigned long kFileExists = 80;  // ERROR_FILE_EXISTS
    if (GetLastError() != kFileExists || i == kTemporaryNames) {
      return detail::system_error(path, "cannot create");
    }
  }
}

inline Result<void> OutputFile::write(std::span<const std::byte> bytes) {
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

inline Result<void> OutputFile::commit() {
  if (FlushFileBuffers(handle_) == 0) return fail("cannot write");
  if (CloseHandle(std::exchange(handle_, kClosed)) == 0) return fail("cannot write");
  constexpr unsigned long kReplaceExisting = 1;  // MOVEFILE_REPLACE_EXISTING
  if (MoveFileExW(detail::wide_path(temporary_).c_str(), detail::wide_path(path_).c_str(),
                  kReplaceExisting) == 0) {
    return fail("cannot replace");
  }
  temporary_.clear();
  return ok();
}

inline void OutputFile::discard() noexcept {
  if (handle_ != kClosed) CloseHandle(std::exchange(handle_, kClosed));
  if (!temporary_.empty()) DeleteFileW(detail::wide_path(temporary_).c_str());
  temporary_.clear();
}

#else

inline Result<OutputFile> OutputFile::create(const std::string& path) {
  NIBBLE_CHECK(detail::check_path(path));
  const std::string stem = path + ".tmp." + to_text(::getpid()) + ".";
  for (int i = 0;; ++i) {
    const std::string temporary = stem + to_text(i);
    const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return OutputFile(path, temporary, fd);
    if (errno != EEXIST || i == kTemporaryNames) {
      return detail::system_error(path, "cannot create");
    }
  }
}

inline Result<void> OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t chunk = (std::min)(bytes.size(), detail::kMaxTransfer);
    const ::ssize_t written = ::write(handle_, bytes.data(), chunk);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return fail("cannot write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return ok();
}

inline Result<void> OutputFile::commit() {
  // EINVAL: the file system cannot sync; there is nothing to wait for.
  if (::fsync(handle_) != 0 && errno != EINVAL) return fail("cannot write");
  if (::close(std::exchange(handle_, kClosed)) != 0) return fail("cannot write");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return fail("cannot replace");
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
