// SPDX-License-Identifier: Apache-2.0
//
// The file layer of POSIX systems. Not on Windows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/serve/file_layer.hpp"

#if !defined(_WIN32)
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

class SystemFiles final : public FileLayer {
 public:
  Result<std::uint64_t> size(const std::string& path) override {
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) return fail(path, "cannot open");
    if (!S_ISREG(info.st_mode)) return Error{Errc::io, printable(path) + ": not a regular file"};
    return static_cast<std::uint64_t>(info.st_size);
  }

  Result<void> read(const std::string& path, std::uint64_t offset,
                    std::span<std::byte> out) override {
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.number < 0) return fail(path, "cannot open");
    while (!out.empty()) {
      const ::ssize_t n = ::pread(file.number, out.data(), transfer(out.size()),
                                  static_cast< ::off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail(path, "cannot read");
      if (n == 0) return Error{Errc::io, printable(path) + ": shorter than expected"};
      out = out.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
    return ok();
  }

  Result<std::vector<std::string>> list(const std::string& folder) override {
    return catch_out_of_memory([&]() -> Result<std::vector<std::string>> {
      std::vector<std::string> names;
      NIBBLE_CHECK(list_into(folder, "", 0, names));
      return names;
    });
  }

  Result<io::MappedFile> map(const std::string& path) override {
    return io::MappedFile::open(path);
  }

  Result<void> write(const std::string& path, std::uint64_t offset,
                     std::span<const std::byte> bytes) override {
    Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
    if (file.number < 0) return fail(path, "cannot create");
    while (!bytes.empty()) {
      const ::ssize_t n = ::pwrite(file.number, bytes.data(), transfer(bytes.size()),
                                   static_cast< ::off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return fail(path, "cannot write");
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
    return ok();
  }

  Result<void> sync(const std::string& path) override { return flush(path, O_RDWR); }
  Result<void> sync_folder(const std::string& path) override {
    return flush(path, O_RDONLY | O_DIRECTORY);
  }

  Result<void> rename(const std::string& from, const std::string& to) override {
    if (std::rename(from.c_str(), to.c_str()) != 0) return fail(to, "cannot replace");
    return ok();
  }
  Result<void> remove(const std::string& path) override {
    if (std::remove(path.c_str()) != 0 && errno != ENOENT) return fail(path, "cannot remove");
    return ok();
  }
  Result<void> make_folder(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) return fail(path, "cannot create");
    return ok();
  }

 private:
  struct Descriptor {
    explicit Descriptor(int opened) noexcept : number(opened) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
      if (number >= 0) ::close(number);
    }
    int number;
  };

  static Error fail(const std::string& path, const char* what) {
    const bool is_missing = errno == ENOENT || errno == ENOTDIR;
    Error error = io::detail::system_error(path, what);
    if (is_missing) error.code = Errc::not_found;
    return error;
  }

  static std::size_t transfer(std::size_t size) noexcept {
    return size < io::detail::kMaxTransfer ? size : io::detail::kMaxTransfer;
  }

  static Result<void> flush(const std::string& path, int flags) {
    Descriptor file(::open(path.c_str(), flags | O_CLOEXEC));
    if (file.number < 0) return fail(path, "cannot open");
    // EINVAL: the file system cannot sync; there is nothing to wait for.
    if (::fsync(file.number) != 0 && errno != EINVAL) return fail(path, "cannot write");
    return ok();
  }

  static Result<void> list_into(const std::string& folder, const std::string& prefix, int depth,
                                std::vector<std::string>& names) {
    constexpr int kMaxDepth = 32;
    constexpr std::size_t kMaxNames = 100'000;
    if (depth == kMaxDepth) return Error{Errc::limit, printable(folder) + ": nested too deeply"};
    ::DIR* const opened = ::opendir(folder.c_str());
    if (opened == nullptr && errno == ENOENT) return ok();
    if (opened == nullptr) return fail(folder, "cannot open");
    std::vector<std::string> found;
    while (const ::dirent* const entry = ::readdir(opened)) {
      const std::string name = entry->d_name;
      if (name != "." && name != ".." && found.size() < kMaxNames) found.push_back(name);
    }
    ::closedir(opened);
    for (const std::string& name : found) {
      if (names.size() == kMaxNames) return Error{Errc::limit, printable(folder) + ": its files"};
      const std::string path = folder + "/" + name;
      struct stat info {};
      if (::lstat(path.c_str(), &info) != 0) return fail(path, "cannot open");
      if (S_ISDIR(info.st_mode)) {
        NIBBLE_CHECK(list_into(path, prefix + name + "/", depth + 1, names));
      } else if (S_ISREG(info.st_mode)) {
        names.push_back(prefix + name);
      } else {
        return Error{Errc::io, printable(path) + ": neither a regular file nor a folder"};
      }
    }
    return ok();
  }
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#endif
