// SPDX-License-Identifier: Apache-2.0
//
// A GGUF file's functions. Included by gguf.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/file_kind.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_tensor.hpp"
#include "nibble/io/gguf_value.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

NIBBLE_INLINE Result<Gguf> Gguf::read_from(std::span<const std::byte> bytes,
                                           const std::string& name) {
  Gguf gguf;
  gguf.name_ = printable(name);
  Result<void> status = gguf.read(bytes);
  if (!status) return std::move(status).error().in(gguf.name_);
  return gguf;
}

NIBBLE_INLINE Result<Gguf> Gguf::parse(AlignedBuffer bytes, const std::string& name) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    Shared<GgufBytes> kept(Owned<GgufBytes>(new (std::nothrow) GgufBytes));
    if (!kept) return Error{Errc::out_of_memory, printable(name)};
    kept->memory = std::move(bytes);
    auto gguf = whole(read_from(kept->memory.bytes(), name));
    if (gguf) gguf->bytes_ = std::move(kept);
    return gguf;
  });
}

NIBBLE_INLINE Result<Gguf> Gguf::parse(MappedFile file, const std::string& name) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    Shared<GgufBytes> kept(Owned<GgufBytes>(new (std::nothrow) GgufBytes));
    if (!kept) return Error{Errc::out_of_memory, printable(name)};
    kept->files.push_back(std::move(file));
    auto gguf = whole(read_from(kept->files[0].bytes(), name));
    if (gguf) gguf->bytes_ = std::move(kept);
    return gguf;
  });
}

NIBBLE_INLINE Result<Gguf> Gguf::parse(std::span<const std::byte> bytes, const std::string& name) {
  return catch_out_of_memory([&] { return whole(read_from(bytes, name)); });
}

NIBBLE_INLINE Result<Gguf> Gguf::parse_static(std::span<const std::byte> bytes,
                                              const std::string& name) {
  auto gguf = parse(bytes, name);
  if (gguf) gguf->is_static_ = true;
  return gguf;
}

NIBBLE_INLINE Result<Gguf> Gguf::join(AlignedBuffer bytes, std::span<const GgufTensor> tensors,
                                      std::vector<MappedFile> files, const std::string& name) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    NIBBLE_TRY(gguf, parse(std::move(bytes), name));
    gguf.bytes_->files = std::move(files);
    Result<void> appended = gguf.append(tensors);
    if (!appended) return std::move(appended).error().in(gguf.name_);
    return gguf;
  });
}

// Opens a file, which may be a part of a split model.
NIBBLE_INLINE Result<Gguf> Gguf::open_part(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file && file.error().code == Errc::io && detail::is_folder(path)) {
    return Error{Errc::io,
                 printable(path) + ": is a folder, not a GGUF file; " + detail::kUseFolder};
  }
  if (!file) return std::move(file).error();
  NIBBLE_TRY(gguf, read_from(file->bytes(), path));
  gguf.bytes_ = Shared<GgufBytes>(Owned<GgufBytes>(new (std::nothrow) GgufBytes));
  if (!gguf.bytes_) return Error{Errc::out_of_memory, printable(path)};
  gguf.bytes_->files.push_back(*std::move(file));
  return gguf;
}

NIBBLE_INLINE Result<Gguf> Gguf::open(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    NIBBLE_TRY(gguf, open_part(path));
    if (gguf.split_.n_parts == 0) return gguf;
    return open_split(path, std::move(gguf));
  });
}

// Opens the other parts of the model of which `path` is one, and puts them together.
NIBBLE_INLINE Result<Gguf> Gguf::open_split(const std::string& path, Gguf part) {
  const Split split = part.split_;
  const std::string shown = part.name_;
  const auto ending = [&](std::uint64_t index) {  // "-00001-of-00002.gguf"
    const auto five_digits = [](std::uint64_t n) {
      std::string text = to_text(n);
      if (text.size() < 5) text.insert(0, 5 - text.size(), '0');
      return text;
    };
    return "-" + five_digits(index + 1) + "-of-" + five_digits(split.n_parts) + ".gguf";
  };
  const std::string own = ending(split.index);
  if (split.index >= split.n_parts || !path.ends_with(own)) {
    return Error{Errc::unsupported, shown + ": " + part.part_text() +
                                        ", which are found by their names: this one must end in " +
                                        own};
  }
  Gguf all;
  for (std::uint64_t i = 0; i < split.n_parts; ++i) {
    const std::string name = path.substr(0, path.size() - own.size()) + ending(i);
    auto next = i == split.index ? Result<Gguf>(std::move(part)) : open_part(name);
    if (!next) {
      return std::move(next).error().in(shown + ": part " + to_text(i + 1) + " of " +
                                        to_text(split.n_parts) + " is missing or unusable");
    }
    const Split& says = next->split_;
    if (says.n_parts != split.n_parts || says.index != i || says.n_tensors != split.n_tensors) {
      return Error{Errc::malformed, next->name_ + ": not a part of the same model as " + shown};
    }
    if (i == 0) {
      all = *std::move(next);
    } else {
      NIBBLE_CHECK(all.append(*std::move(next)));
    }
  }
  all.name_ = shown;
  all.split_ = {};
  if (split.n_tensors != 0 && split.n_tensors != all.tensors_.size()) {
    return Error{Errc::malformed, shown + ": the parts have " + to_text(all.tensors_.size()) +
                                      " tensors together, not " + to_text(split.n_tensors)};
  }
  std::erase_if(all.metadata_,
                [](const GgufEntry& e) { return e.key.starts_with(kGgufSplitPrefix); });
  all.metadata_index_ = {};
  for (const GgufEntry& entry : all.metadata_) all.metadata_index_.add(entry.key);
  NIBBLE_CHECK(all.metadata_index_.sort("key"));
  Result<void> indexed = all.index_tensors();
  if (!indexed) return std::move(indexed).error().in(shown);
  return all;
}

NIBBLE_INLINE Result<void> Gguf::index_tensors() {
  tensor_index_ = {};
  tensor_index_.reserve(tensors_.size());
  for (const GgufTensor& tensor : tensors_) tensor_index_.add(tensor.name);
  return tensor_index_.sort("tensor");
}

// Adds the tensors of a later part. The metadata is in the first one; what a later one repeats must
// be the same, or it is a part of another model.
NIBBLE_INLINE Result<void> Gguf::append(Gguf&& part) {
  for (const GgufEntry& entry : part.metadata_) {
    const GgufValue* const own = find(entry.key);
    if (own == nullptr || entry.key == kGgufAlignmentKey ||
        entry.key.starts_with(kGgufSplitPrefix)) {
      continue;
    }
    const std::span<const std::byte> a = own->encoded(), b = entry.value.encoded();
    if (own->type() != entry.value.type() || a.size() != b.size() ||
        std::memcmp(a.data(), b.data(), a.size()) != 0) {
      return Error{Errc::malformed, part.name_ + ": not a part of the same model as " + name_ +
                                        ": key " + quoted(entry.key) + " differs"};
    }
  }
  alignment_ = (std::min)(alignment_, part.alignment_);
  tensors_.insert(tensors_.end(), part.tensors_.begin(), part.tensors_.end());
  for (MappedFile& file : part.bytes_->files) bytes_->files.push_back(std::move(file));
  return ok();
}

// Adds tensors of other files.
NIBBLE_INLINE Result<void> Gguf::append(std::span<const GgufTensor> tensors) {
  std::size_t n_bytes = 0;
  for (const GgufTensor& tensor : tensors) n_bytes += tensor.name.size();
  std::string& names = bytes_->names;
  names.reserve(n_bytes);  // the tensors refer to it
  for (const GgufTensor& tensor : tensors) {
    NIBBLE_CHECK(detail::check_gguf_name(tensor.name, kGgufMaxTensorName, "tensor name"));
    auto size = tensor_bytes(tensor.type, tensor.dims);
    if (!size) return std::move(size).error().in("tensor " + quoted(tensor.name));
    if (*size != tensor.data.size()) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": " +
                                        to_text(tensor.data.size()) + " bytes, not the " +
                                        to_text(*size) + " of its shape"};
    }
    tensors_.push_back(tensor);
    const std::size_t at = names.size();
    names += tensor.name;
    tensors_.back().name = std::string_view(names).substr(at);
  }
  return index_tensors();
}

// Reads what a part of a split model says about the set.
NIBBLE_INLINE Result<void> Gguf::read_split() {
  const std::pair<std::string_view, std::uint64_t*> numbers[] = {
      {"split.count", &split_.n_parts},
      {"split.no", &split_.index},
      {"split.tensors.count", &split_.n_tensors}};
  for (const auto& [key, number] : numbers) {
    const GgufValue* const value = find(key);
    if (value == nullptr) continue;
    auto read = value->as<std::uint64_t>();
    if (!read) return std::move(read).error().in(std::string(key));
    *number = *read;
  }
  if (split_.n_parts <= 1) split_ = {};  // a set of one file is a whole model
  return ok();
}

// Refuses a part of a split model.
NIBBLE_INLINE Result<Gguf> Gguf::whole(Result<Gguf> gguf) {
  if (gguf && gguf->split_.n_parts > 0) {
    return Error{Errc::unsupported,
                 gguf->name_ + ": " + gguf->part_text() + "; only Gguf::open() reads all parts"};
  }
  return gguf;
}

NIBBLE_INLINE const GgufValue* Gguf::find(std::string_view key) const noexcept {
  const std::size_t i = metadata_index_.find(key);
  return i == NameIndex::kNone ? nullptr : &metadata_[i].value;
}

NIBBLE_INLINE const GgufTensor* Gguf::find_tensor(std::string_view name) const noexcept {
  const std::size_t i = tensor_index_.find(name);
  return i == NameIndex::kNone ? nullptr : &tensors_[i];
}

NIBBLE_INLINE Result<GgufTensor> Gguf::tensor(std::string_view name) const {
  return catch_out_of_memory([&]() -> Result<GgufTensor> {
    const GgufTensor* found = find_tensor(name);
    if (found == nullptr) {
      return Error{Errc::not_found, name_ + ": tensor " + quoted(name) + " is missing"};
    }
    return *found;
  });
}

NIBBLE_INLINE Result<void> Gguf::read(std::span<const std::byte> bytes) {
  // Minimum size of a metadata entry (length, one-byte key, type, one-byte value) and of a tensor
  // info (length, one-byte name, dimensions, type, offset). They bound the counts before memory is
  // reserved.
  constexpr std::uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
  constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % kGgufMinAlignment != 0) {
    return Error{Errc::invalid_argument, "the bytes do not start at a multiple of 8"};
  }
  ByteReader in(bytes);
  const auto magic = in.read<std::uint32_t>("the header");
  if (!magic || *magic != kGgufMagic) return Error{Errc::malformed, detail::not_gguf(bytes)};
  NIBBLE_TRY(version, in.read<std::uint32_t>("the header"));
  if (version != 2 && version != 3) {
    const bool swapped = version != 0 && (version & 0xffff) == 0;
    return Error{Errc::unsupported,
                 swapped ? std::string("a big-endian GGUF file, not a little-endian one")
                         : "GGUF version " + to_text(version) + ", not 2 or 3"};
  }
  version_ = version;
  NIBBLE_TRY(n_tensors, in.read<std::uint64_t>("the header"));
  NIBBLE_TRY(n_entries, in.read<std::uint64_t>("the header"));

  if (n_entries > in.remaining() / kMinEntryBytes) {
    return Error{Errc::malformed, to_text(n_entries) + " metadata entries do not fit in the file"};
  }
  metadata_.reserve(narrow<std::size_t>(n_entries));
  metadata_index_.reserve(narrow<std::size_t>(n_entries));
  for (std::uint64_t i = 0; i < n_entries; ++i) {
    auto entry = read_entry(in);
    if (!entry) return std::move(entry).error().in("metadata entry " + to_text(i));
    metadata_.push_back(*entry);
    metadata_index_.add(entry->key);
  }
  NIBBLE_CHECK(metadata_index_.sort("key"));

  if (const GgufValue* value = find(kGgufAlignmentKey)) {
    auto alignment = value->as<std::uint32_t>();
    if (!alignment) return std::move(alignment).error().in(std::string(kGgufAlignmentKey));
    NIBBLE_CHECK(detail::check_gguf_alignment(*alignment));
    alignment_ = *alignment;
  }

  NIBBLE_CHECK(read_split());

  if (n_tensors > in.remaining() / kMinTensorBytes) {
    return Error{Errc::malformed, to_text(n_tensors) + " tensors do not fit in the file"};
  }
  tensors_.resize(narrow<std::size_t>(n_tensors));
  tensor_index_.reserve(tensors_.size());
  std::vector<std::uint64_t> offsets(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    Result<void> status = read_tensor(in, offsets[i], tensors_[i]);
    if (!status) {
      const std::string_view name = tensors_[i].name;
      return std::move(status).error().in("tensor " + to_text(i) +
                                          (name.empty() ? "" : " " + quoted(name)));
    }
    tensor_index_.add(tensors_[i].name);
  }
  NIBBLE_CHECK(tensor_index_.sort("tensor"));
  return place_tensors(bytes, in.offset(), offsets);
}

NIBBLE_INLINE Result<GgufEntry> Gguf::read_entry(ByteReader& in) const {
  NIBBLE_TRY(key_size, in.read<std::uint64_t>("a key's length"));
  NIBBLE_TRY(key_bytes, in.take(key_size, "a key"));
  const std::string_view key = detail::as_text(key_bytes);
  NIBBLE_CHECK(detail::check_gguf_name(key, kGgufMaxKey, "key"));
  NIBBLE_TRY(type, in.read<std::uint32_t>("a value's type"));
  auto value = GgufValue::read(static_cast<GgufType>(type), in);
  if (!value) return std::move(value).error().in("key " + quoted(key));
  return GgufEntry{key, *value};
}

NIBBLE_INLINE Result<void> Gguf::read_tensor(ByteReader& in, std::uint64_t& offset,
                                             GgufTensor& tensor) const {
  NIBBLE_TRY(name_size, in.read<std::uint64_t>("a tensor name's length"));
  NIBBLE_TRY(name_bytes, in.take(name_size, "a tensor's name"));
  tensor.name = detail::as_text(name_bytes);
  NIBBLE_CHECK(detail::check_gguf_name(tensor.name, kGgufMaxTensorName, "name"));
  NIBBLE_TRY(n_dims, in.read<std::uint32_t>("a tensor's shape"));
  if (n_dims > kGgufMaxDims) {
    return Error{Errc::malformed, to_text(n_dims) + " dimensions, more than 4"};
  }
  tensor.n_dims = n_dims;
  for (std::uint32_t i = 0; i < n_dims; ++i) {
    NIBBLE_TRY(dim, in.read<std::uint64_t>("a tensor's shape"));
    tensor.dims[i] = dim;
  }
  NIBBLE_TRY(type, in.read<std::uint32_t>("a tensor's type"));
  tensor.type = static_cast<GgmlType>(type);
  NIBBLE_TRY(tensor_offset, in.read<std::uint64_t>("a tensor's offset"));
  offset = tensor_offset;
  return ok();
}

// Locates each tensor's data in the data section, which starts at the first multiple of the
// alignment after the tensor infos. The padding after the last tensor may be missing.
NIBBLE_INLINE Result<void> Gguf::place_tensors(std::span<const std::byte> bytes,
                                               std::size_t infos_end,
                                               std::span<const std::uint64_t> offsets) {
  const std::uint64_t padding = (alignment_ - infos_end % alignment_) % alignment_;
  const std::uint64_t begin =
      infos_end + padding;  // no overflow: infos_end is inside a real buffer
  const std::uint64_t section = begin < bytes.size() ? bytes.size() - begin : 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    auto size = tensor_bytes(tensor.type, tensor.dims);
    if (!size) return std::move(size).error().in("tensor " + quoted(tensor.name));
    if (offsets[i] % alignment_ != 0) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": offset " +
                                        to_text(offsets[i]) + " is no multiple of " +
                                        to_text(alignment_)};
    }
    if (offsets[i] > section || *size > section - offsets[i]) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": " + to_text(*size) +
                                        " bytes at offset " + to_text(offsets[i]) +
                                        " reach beyond the file's " + to_text(section) +
                                        " bytes of tensor data: the file is incomplete"};
    }
    tensor.data =
        bytes.subspan(narrow<std::size_t>(begin + offsets[i]), narrow<std::size_t>(*size));
  }
  // If tensors could share bytes, a small file could claim to be a huge model.
  std::vector<std::size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return offsets[a] < offsets[b]; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = tensors_[order[i - 1]];
    if (offsets[order[i]] - offsets[order[i - 1]] < before.data.size()) {
      return Error{Errc::malformed, "tensors " + quoted(before.name) + " and " +
                                        quoted(tensors_[order[i]].name) + " overlap"};
    }
  }
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::io
