// SPDX-License-Identifier: Apache-2.0
//
// Recognizes files that people pass where a GGUF file is wanted, and says what to do with them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

#if defined(_WIN32)
#include "nibble/core/windows.hpp"
#include "nibble/io/mapped_file.hpp"
#else
#include <sys/stat.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace io { namespace detail {

// What to do with a part of a model as Hugging Face has them, for a message.
NIBBLE_HIDDEN inline constexpr const char* kUseFolder =
    "a model of this kind is a folder with config.json, tokenizer.json and *.safetensors, and is "
    "loaded by the folder's path";

#if defined(_WIN32)
inline bool has_attributes(const std::string& path, unsigned long mask) {
  const unsigned long attributes = GetFileAttributesW(wide_path(path).c_str());
  return attributes != 0xFFFFFFFFul && (attributes & mask) == mask;  // INVALID_FILE_ATTRIBUTES
}
inline bool is_folder(const std::string& path) {
  return has_attributes(path, 0x10);  // FILE_ATTRIBUTE_DIRECTORY
}
inline bool exists(const std::string& path) { return has_attributes(path, 0); }
#else
inline bool is_folder(const std::string& path) noexcept {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}
// Whether there is a file, a folder or a link of this name, which need not lead anywhere.
inline bool exists(const std::string& path) noexcept {
  struct stat info {};
#if !NIBBLE_HAS_MMAP  // nor links
  return ::stat(path.c_str(), &info) == 0;
#else
  return ::lstat(path.c_str(), &info) == 0;
#endif
}
#endif

// Why bytes that do not begin like a GGUF file are none.
inline std::string not_gguf(std::span<const std::byte> bytes) {
  if (bytes.empty()) return "the file is empty";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("tjgg") || text.starts_with("fmgg") || text.starts_with("lmgg")) {
    return "a model file of 2023 from before GGUF (GGML, GGJT), which is not supported; take a "
           "GGUF of the model, or the original: " +
           std::string(kUseFolder);
  }
  if (text.starts_with("PK\3\4") || text.starts_with("\x80\2")) {
    return "a PyTorch file (.bin, .pt, .pth), which is not read: it is a program; load the model "
           "with PyTorch and save it again, model.save_pretrained(FOLDER); the folder can be "
           "loaded";
  }
  if (text.size() > 8 && text[8] == '{' && load_le<std::uint64_t>(bytes.data()) < text.size()) {
    return std::string("a safetensors file, not a GGUF file; ") + kUseFolder;
  }
  if (text.starts_with("version https://git-lfs")) {
    return "a Git LFS pointer, not the model itself; git lfs pull brings the model";
  }
  if (text.starts_with("<!") || text.starts_with("<html")) {
    return "a web page, not a GGUF file; the download gave a page about the model";
  }
  return "not a GGUF file (no \"GGUF\" at its start)";
}

}}}}  // namespace nibble::NIBBLE_ABI::io::detail
