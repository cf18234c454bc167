// SPDX-License-Identifier: Apache-2.0
//
// A whole file, mapped into memory read-only: opening copies nothing and uses no RAM until it is
// read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "nibble/core/config.hpp"
#include "nibble/core/result.hpp"

#if defined(_WIN32)
#include "nibble/core/windows.hpp"
#else
#if NIBBLE_HAS_MMAP
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <cerrno>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

namespace detail {

// The operating system's last error as an Error. Call it before anything else can change errno.
inline Error system_error(const std::string& path, const char* what) {
#if defined(_WIN32)
  const std::error_code code(static_cast<int>(GetLastError()), std::system_category());
#else
  const std::error_code code(errno, std::generic_category());
#endif
  return Error{Errc::io, printable(path) + ": " + what + ": " + code.message()};
}

// The system takes a path as a C string: a NUL inside would silently name another file.
inline Result<void> check_path(const std::string& path) {
  if (path.empty()) return Error{Errc::invalid_argument, "the file path is empty"};
  if (path.find('\0') != std::string::npos) {
    return Error{Errc::invalid_argument, "the file path contains a NUL character"};
  }
  return ok();
}

// Largest transfer per call: macOS refuses more than INT_MAX bytes, Windows counts them in 32 bits.
inline constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

#if defined(_WIN32)
// Converts UTF-8 to the system's UTF-16; empty if `path` is not UTF-8.
inline std::wstring wide_path(const std::string& path) {
  const int size = static_cast<int>(path.size());
  constexpr unsigned kUtf8 = 65001;            // CP_UTF8
  constexpr unsigned long kRefuseInvalid = 8;  // MB_ERR_INVALID_CHARS
  const int n = MultiByteToWideChar(kUtf8, kRefuseInvalid, path.data(), size, nullptr, 0);
  std::wstring wide(static_cast<std::size_t>(n > 0 ? n : 0), L'\0');
  if (n > 0) MultiByteToWideChar(kUtf8, kRefuseInvalid, path.data(), size, wide.data(), n);
  return wide;
}

// CreateFileW, but returns nullptr if the file cannot be opened or created.
enum class FileUse : unsigned char { read, create_new };
inline void* open_file(const std::string& path, FileUse use) {
  constexpr unsigned long kRead = 0x80000000, kWrite = 0x40000000;   // GENERIC_...
  constexpr unsigned long kShareReadDelete = 1 | 4, kNormal = 0x80;  // FILE_...
  constexpr unsigned long kCreateNew = 1, kOpenExisting = 3;
  const bool reads = use == FileUse::read;
  void* const handle =
      CreateFileW(wide_path(path).c_str(), reads ? kRead : kWrite, reads ? kShareReadDelete : 0,
                  nullptr, reads ? kOpenExisting : kCreateNew, kNormal, nullptr);
  return reinterpret_cast<std::intptr_t>(handle) == -1 ? nullptr : handle;
}
#endif

}  // namespace detail

// How the bytes will be read. A hint to the system; it never changes the bytes.
enum class Advice : unsigned char {
  normal,
  sequential,  // front to back, once
  random,      // no read-ahead
  will_need,   // start loading now
};

// Move-only. bytes() keep their address when the MappedFile moves, and end with it. On POSIX it
// also holds a file descriptor while it lives. If another process truncates the file, access to
// bytes() beyond the new end faults (read() does not). So replace files by rename (as GgufWriter
// does), never in place.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept
      : bytes_(std::exchange(other.bytes_, {})),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    if (this != &other) {
      unmap();
      bytes_ = std::exchange(other.bytes_, {});
      descriptor_ = std::exchange(other.descriptor_, -1);
    }
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { unmap(); }

  // Maps the regular file `path` (UTF-8 on Windows). Errc::io with path and reason if it is
  // missing, not readable, a directory or a device; unsupported where the system maps no files. An
  // empty file gives empty bytes().
  static Result<MappedFile> open(const std::string& path) {
    return catch_out_of_memory([&] { return map(path); });
  }

  // The file's bytes; the first one is page-aligned.
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

  // Whether `part` lies inside bytes().
  bool contains(std::span<const std::byte> part) const noexcept {
    return !bytes_.empty() && part.data() >= bytes_.data() &&
           part.data() + part.size() <= bytes_.data() + bytes_.size();
  }

  // Copies `part`, which lies inside bytes(), to `out`: for data that is read once, front to back.
  // On POSIX systems it reads from the file instead of the mapping. Then no pages of the file count
  // as this process's memory. For a file in the page cache it takes half the time of faulting in
  // the mapping (the same time if the cache holds the file in large pages). And a file that was
  // truncated gives an error, not a fault. Several threads may read at once. Error: io.
  Result<void> read(std::span<const std::byte> part, std::byte* out) const {
    NIBBLE_ASSERT(contains(part));
    return catch_out_of_memory([&] { return copy(part, out); });
  }

  // Makes the memory at `to` a copy of `part`, which lies inside bytes(), without copying: the
  // system's pages of the file take the place of those at `to`, shared with every other process
  // that maps the file. A write to them makes a private copy of the system's page; the file never
  // changes. They outlive the MappedFile. `to` must be in a block of AlignedBuffer::allocate_pages;
  // `to`, the size of `part` and its place in the file must be multiples of system_page_bytes().
  // Errors: io, unsupported (no mmap).
  Result<void> place(std::span<const std::byte> part, std::byte* to) const;
  // 0 without mmap.
  static std::size_t system_page_bytes() noexcept;

  void advise(Advice advice) const noexcept;

 private:
  static Result<MappedFile> map(const std::string& path);
  Result<void> copy(std::span<const std::byte> part, std::byte* out) const;
  void unmap() noexcept;

  std::span<const std::byte> bytes_;
  int descriptor_ = -1;  // of the file, for read(); −1 if there is none
};

// The file that holds these bytes; null if none does.
inline const MappedFile* file_with(std::span<const MappedFile> files,
                                   std::span<const std::byte> bytes) noexcept {
  for (const MappedFile& file : files) {
    if (file.contains(bytes)) return &file;
  }
  return nullptr;
}

#if defined(_WIN32)

inline Result<MappedFile> MappedFile::map(const std::string& path) {
  NIBBLE_CHECK(detail::check_path(path));
  void* const file = detail::open_file(path, detail::FileUse::read);
  if (file == nullptr) return detail::system_error(path, "cannot open");
  std::int64_t size = 0;
  if (GetFileSizeEx(file, reinterpret_cast<_LARGE_INTEGER*>(&size)) == 0) {
    Error error = detail::system_error(path, "cannot get the size");
    CloseHandle(file);
    return error;
  }
  MappedFile mapped;
  if (size == 0) {
    CloseHandle(file);
    return mapped;
  }
  if (static_cast<std::uint64_t>(size) > SIZE_MAX) {
    CloseHandle(file);
    return Error{Errc::limit, printable(path) + ": larger than the address space"};
  }
  constexpr unsigned long kPageReadOnly = 2, kMapRead = 4;
  void* const mapping = CreateFileMappingW(file, nullptr, kPageReadOnly, 0, 0, nullptr);
  void* address = mapping == nullptr ? nullptr : MapViewOfFile(mapping, kMapRead, 0, 0, 0);
  if (address == nullptr) {
    Error error = detail::system_error(path, "cannot map");
    if (mapping != nullptr) CloseHandle(mapping);
    CloseHandle(file);
    return error;
  }
  // The view keeps the file and the mapping open.
  CloseHandle(mapping);
  CloseHandle(file);
  mapped.bytes_ = {static_cast<const std::byte*>(address), static_cast<std::size_t>(size)};
  return mapped;
}

inline void MappedFile::unmap() noexcept {
  if (!bytes_.empty()) UnmapViewOfFile(bytes_.data());
}

#elif !NIBBLE_HAS_MMAP

inline Result<MappedFile> MappedFile::map(const std::string& path) {
  NIBBLE_CHECK(detail::check_path(path));
  return Error{Errc::unsupported, printable(path) + ": this system maps no files"};
}

inline void MappedFile::unmap() noexcept {}

#else

inline Result<MappedFile> MappedFile::map(const std::string& path) {
  NIBBLE_CHECK(detail::check_path(path));
  // O_NONBLOCK: opening a pipe without a writer must fail below, not block here.
  MappedFile mapped;
  mapped.descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (mapped.descriptor_ < 0) return detail::system_error(path, "cannot open");
  struct stat info {};
  if (::fstat(mapped.descriptor_, &info) != 0) {
    return detail::system_error(path, "cannot get the size");
  }
  if (!S_ISREG(info.st_mode)) {
    return Error{Errc::io, printable(path) + ": cannot open: " +
                               (S_ISDIR(info.st_mode) ? "is a directory" : "not a regular file")};
  }
  if (info.st_size == 0) return mapped;  // mmap refuses a length of zero
  if (static_cast<std::uint64_t>(info.st_size) > SIZE_MAX) {
    return Error{Errc::limit, printable(path) + ": larger than the address space"};
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, mapped.descriptor_, 0);
  if (address == MAP_FAILED) return detail::system_error(path, "cannot map");
  mapped.bytes_ = {static_cast<const std::byte*>(address), size};
  return mapped;
}

inline void MappedFile::unmap() noexcept {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  if (descriptor_ >= 0) ::close(descriptor_);
}

#endif

#if !NIBBLE_HAS_MMAP

inline Result<void> MappedFile::copy(std::span<const std::byte> part, std::byte* out) const {
  std::memcpy(out, part.data(), part.size());
  return ok();
}

inline Result<void> MappedFile::place(std::span<const std::byte>, std::byte*) const {
  return Error{Errc::unsupported, "a file in place of memory, without mmap"};
}
inline std::size_t MappedFile::system_page_bytes() noexcept { return 0; }

inline void MappedFile::advise(Advice) const noexcept {}

#else

inline Result<void> MappedFile::copy(std::span<const std::byte> part, std::byte* out) const {
  auto at = static_cast<std::size_t>(part.data() - bytes_.data());
  for (std::size_t left = part.size(); left > 0;) {
    const ssize_t n =
        ::pread(descriptor_, out, (std::min)(left, detail::kMaxTransfer), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return detail::system_error("the file", "cannot read");
    if (n == 0) return Error{Errc::io, "the file has become shorter"};
    out += n;
    at += static_cast<std::size_t>(n);
    left -= static_cast<std::size_t>(n);
  }
  return ok();
}

inline std::size_t MappedFile::system_page_bytes() noexcept {
  const long bytes = ::sysconf(_SC_PAGESIZE);
  return bytes > 0 ? static_cast<std::size_t>(bytes) : 0;
}

inline Result<void> MappedFile::place(std::span<const std::byte> part, std::byte* to) const {
  NIBBLE_ASSERT(contains(part) && part.size() % system_page_bytes() == 0);
  if (part.empty()) return ok();
  const auto at = static_cast<std::size_t>(part.data() - bytes_.data());
  void* const address = ::mmap(to, part.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                               descriptor_, static_cast<off_t>(at));
  if (address != MAP_FAILED) return ok();
  return catch_out_of_memory(
      [&]() -> Result<void> { return detail::system_error("the file", "cannot map"); });
}

inline void MappedFile::advise(Advice advice) const noexcept {
  if (bytes_.empty()) return;
  int hint = MADV_NORMAL;
  switch (advice) {
    case Advice::normal: hint = MADV_NORMAL; break;
    case Advice::sequential: hint = MADV_SEQUENTIAL; break;
    case Advice::random: hint = MADV_RANDOM; break;
    case Advice::will_need: hint = MADV_WILLNEED; break;
  }
  (void)::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), hint);
}

#endif

}}}  // namespace nibble::NIBBLE_ABI::io
