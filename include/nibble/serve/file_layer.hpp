// SPDX-License-Identifier: Apache-2.0
//
// The operations on files of which updates are made, as an interface: tests cut the power at each
// of them. serve/system_files.hpp has those of the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/mapped_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// What is written may be lost by a power cut, in whole or in part and in any order, until sync() of
// the file; what appears, disappears or is renamed in a folder until sync_folder() of that folder.
// rename() is atomic: after a power cut the name has the old file or the new one. Errors of all:
// io, with path and reason; not_found where it is named; out_of_memory.
class FileLayer {
 public:
  virtual ~FileLayer() = default;

  // Bytes of a regular file. Error: not_found.
  virtual Result<std::uint64_t> size(const std::string& path) = 0;
  // Fills `out` from `offset` on; an error if the file is shorter. Error: not_found.
  virtual Result<void> read(const std::string& path, std::uint64_t offset,
                            std::span<std::byte> out) = 0;
  // The paths of all regular files below a folder, relative to it, in any order; none if there is
  // no such folder. What is neither a file nor a folder (a link, a device) is an error.
  virtual Result<std::vector<std::string>> list(const std::string& folder) = 0;

  // Maps a regular file. Error: unsupported (a layer that cannot; read() does).
  virtual Result<io::MappedFile> map(const std::string& path) {
    return Error{Errc::unsupported, printable(path) + ": cannot be mapped"};
  }

  // Makes the file if there is none, and lengthens it by zeros if it ends before `offset`.
  virtual Result<void> write(const std::string& path, std::uint64_t offset,
                             std::span<const std::byte> bytes) = 0;
  virtual Result<void> sync(const std::string& path) = 0;
  virtual Result<void> sync_folder(const std::string& path) = 0;
  // Replaces what has the name `to`.
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  // A file or an empty folder. No error if there is none.
  virtual Result<void> remove(const std::string& path) = 0;
  // No error if there is one. The folder above it exists.
  virtual Result<void> make_folder(const std::string& path) = 0;
};

// A whole file of at most `limit` bytes. Errors: those of read(), limit.
inline Result<std::string> read_text(FileLayer& files, const std::string& path,
                                     std::uint64_t limit) {
  NIBBLE_TRY(size, files.size(path));
  if (size > limit) return Error{Errc::limit, printable(path) + ": " + to_text(size) + " bytes"};
  std::string text(io::narrow<std::size_t>(size), '\0');
  NIBBLE_CHECK(files.read(path, 0, std::as_writable_bytes(std::span(text.data(), text.size()))));
  return text;
}

// Makes `path`, a file in `folder`, have this text, at once: after a power cut it has the old text
// or the new one.
inline Result<void> replace_text(FileLayer& files, const std::string& folder,
                                 const std::string& path, std::string_view text) {
  const std::string next = path + ".new";
  NIBBLE_CHECK(files.remove(next));
  NIBBLE_CHECK(files.write(next, 0, std::as_bytes(std::span(text.data(), text.size()))));
  NIBBLE_CHECK(files.sync(next));
  NIBBLE_CHECK(files.rename(next, path));
  return files.sync_folder(folder);
}

}}}  // namespace nibble::NIBBLE_ABI::serve
