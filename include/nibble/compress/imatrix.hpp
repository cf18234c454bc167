// SPDX-License-Identifier: Apache-2.0
//
// Importance matrices, files of llama.cpp's llama-imatrix: for each matrix of a model, the sums of
// squares of the columns of its inputs. There are two formats.
//
// GGUF (since 2025): general.type = "imatrix"; imatrix.datasets, an array of strings;
// imatrix.chunk_count and imatrix.chunk_size, u32; for each matrix the F32 tensors
// "<name>.in_sum2" (columns, matrices): Σx², and "<name>.counts" (1, matrices): how many rows x.
// Other tensors are ignored.
//
// The older one (".dat"), little-endian: i32 number of entries; each is i32 length and the name,
// i32 number of calls, i32 number of values, and as many f32: the mean of x² times the number of
// calls; then, unless the file is very old, i32 number of chunks, i32 length and the name of the
// dataset. A call is a chunk; its size is not stored.
//
// (Tensor types and keys: ggml-org/llama.cpp, tools/imatrix/imatrix.cpp and pull request 9400.)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/statistics.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/output_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Of one matrix, or of several in one tensor (experts).
struct ImatrixEntry {
  std::string name;                        // of the tensor
  std::vector<Scalar<float>> sum_squares;  // (matrices, columns): Σx²
  std::vector<Scalar<float>> counts;       // of rows: one for all matrices, or one for each

  // The importance of each column, as a view; proportional to its mean square within a matrix.
  std::span<const float> importance() const noexcept {
    return {values(sum_squares), sum_squares.size()};
  }
  // E[x²] of a value; 1 in a matrix that saw no rows, or has no count: nothing is known of it.
  float mean_square(std::size_t i) const noexcept {
    const std::size_t k = counts.empty() ? 0 : sum_squares.size() / counts.size();
    if (k == 0 || i / k >= counts.size()) return 1.0f;
    const float count = counts[i / k].value;
    return count > 0 ? sum_squares[i].value / count : 1.0f;
  }
};

struct Imatrix {
  std::vector<ImatrixEntry> entries;  // sorted by name
  std::vector<std::string> datasets;  // names of the texts
  std::uint32_t n_chunks = 0;
  std::uint32_t chunk_size = 512;  // tokens

  // Null if there is none.
  const ImatrixEntry* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(
        entries.begin(), entries.end(), name,
        [](const ImatrixEntry& e, std::string_view n) { return std::string_view(e.name) < n; });
    return at != entries.end() && at->name == name ? &*at : nullptr;
  }
};

struct ReadImatrixOptions {
  // Tokens of a chunk where the file does not say it (.dat): counts of rows are calls times this.
  std::uint32_t chunk_size = 512;
};

// Reads a file of either format, which its first bytes tell. Errors, with file and entry: io;
// malformed (the format is violated, an entry without values or rows, a value that is negative or
// not finite, a name twice, sums without counts); unsupported (a GGUF file of another kind).
inline Result<Imatrix> read_imatrix(const std::string& path,
                                    const ReadImatrixOptions& options = {});
// The same for bytes in memory, which must start at a multiple of 8. Errors use `name` instead of
// the path.
inline Result<Imatrix> parse_imatrix(std::span<const std::byte> bytes, const std::string& name,
                                     const ReadImatrixOptions& options = {});

// Writes a file, completely or not at all. Errors: io; invalid_argument (nothing to write, an entry
// as no reader takes it).
inline Result<void> write_imatrix(const Imatrix& imatrix, const std::string& path);
inline Result<void> write_imatrix_dat(const Imatrix& imatrix, const std::string& path);
// The same bytes in memory.
inline Result<std::vector<std::byte>> imatrix_bytes(const Imatrix& imatrix);
inline Result<std::vector<std::byte>> imatrix_dat_bytes(const Imatrix& imatrix);

// Adds what another has seen: sums, counts, chunks, datasets. Entries that only one has are kept.
// Errors: invalid_argument (other numbers of values, other chunk sizes, entries as no reader takes
// them); nothing changes then.
inline Result<void> merge(Imatrix& into, const Imatrix& other);

// Whether these are of the model in `file`: each entry has a tensor of its name with as many
// columns, and each matrix of a layer has an entry. Errors: invalid_argument, not_found.
inline Result<void> check_imatrix(const Imatrix& imatrix, const io::Gguf& file);

// What was observed, as an importance matrix. Error: invalid_argument (no rows).
inline Result<Imatrix> imatrix_of(const Statistics& statistics, const std::string& dataset,
                                  std::uint32_t n_chunks, std::uint32_t chunk_size);

namespace detail {

inline constexpr std::string_view kSumsSuffix = ".in_sum2", kCountsSuffix = ".counts";

inline Error imatrix_error(const std::string& name, const std::string& what) {
  return {Errc::malformed, "entry " + io::quoted(name) + ": " + what};
}

// What every entry has to fulfil.
inline Result<void> check_entry(const ImatrixEntry& e) {
  if (e.name.empty()) return Error{Errc::malformed, "an entry without a name"};
  if (e.sum_squares.empty()) return imatrix_error(e.name, "it has no values");
  if (e.counts.empty() || e.sum_squares.size() % e.counts.size() != 0) {
    return imatrix_error(e.name, to_text(e.counts.size()) + " counts for " +
                                     to_text(e.sum_squares.size()) + " values");
  }
  const std::size_t k = e.sum_squares.size() / e.counts.size();
  bool has_rows = false;
  for (std::size_t m = 0; m < e.counts.size(); ++m) {
    const float count = e.counts[m].value;
    if (!is_finite(static_cast<double>(count)) || count < 0) {
      return imatrix_error(e.name, "a count of rows is negative or not finite");
    }
    has_rows = has_rows || count > 0;
    for (std::size_t j = 0; j < k; ++j) {
      const float v = e.sum_squares[m * k + j].value;
      if (!is_finite(static_cast<double>(v)) || v < 0) {
        return imatrix_error(e.name, "value " + to_text(m * k + j) + " is negative or not finite");
      }
      if (count == 0 && v != 0) {
        return imatrix_error(e.name, "value " + to_text(m * k + j) + " is the sum of no rows");
      }
    }
  }
  if (!has_rows) return imatrix_error(e.name, "its count of rows is zero: it saw no data");
  return ok();
}

inline Result<void> check_entries(const Imatrix& imatrix) {
  if (imatrix.entries.empty()) return Error{Errc::malformed, "there are no entries"};
  if (imatrix.chunk_size < 1) return Error{Errc::malformed, "chunks of 0 tokens"};
  for (std::size_t i = 0; i < imatrix.entries.size(); ++i) {
    NIBBLE_CHECK(check_entry(imatrix.entries[i]));
    if (i == 0 || imatrix.entries[i - 1].name < imatrix.entries[i].name) continue;
    const bool twice = imatrix.entries[i - 1].name == imatrix.entries[i].name;
    return imatrix_error(imatrix.entries[i].name, twice ? "it is there twice" : "out of order");
  }
  return ok();
}

// Entries in the order of a file become sorted.
inline void sort_entries(Imatrix& imatrix) {
  std::sort(imatrix.entries.begin(), imatrix.entries.end(),
            [](const ImatrixEntry& a, const ImatrixEntry& b) { return a.name < b.name; });
}

inline Result<std::vector<Scalar<float>>> floats_of(const io::GgufTensor& tensor) {
  if (tensor.type != io::GgmlType::f32) {
    return Error{Errc::malformed, "tensor " + io::quoted(tensor.name) + " is not F32"};
  }
  std::vector<Scalar<float>> out(tensor.data.size() / sizeof(float));
  if (!out.empty()) std::memcpy(values(out), tensor.data.data(), out.size() * sizeof(float));
  return out;
}

inline Result<ImatrixEntry> entry_of(const io::Gguf& file, const io::GgufTensor& sums,
                                     std::string_view name) {
  ImatrixEntry e;
  e.name = std::string(name);
  const io::GgufTensor* const counts = file.find_tensor(e.name + std::string(kCountsSuffix));
  if (counts == nullptr) return imatrix_error(e.name, "sums without counts");
  NIBBLE_TRY(sum_squares, floats_of(sums));
  NIBBLE_TRY(numbers, floats_of(*counts));
  e.sum_squares = std::move(sum_squares);
  e.counts = std::move(numbers);
  const std::uint64_t n_matrices = sums.dims[1] * sums.dims[2] * sums.dims[3];
  if (counts->dims[0] != 1 || (e.counts.size() != 1 && e.counts.size() != n_matrices)) {
    return imatrix_error(
        e.name, to_text(e.counts.size()) + " counts for " + to_text(n_matrices) + " matrices");
  }
  return e;
}

inline Result<Imatrix> imatrix_of_gguf(const io::Gguf& file, const ReadImatrixOptions& options) {
  NIBBLE_TRY(type, file.get_string_or("general.type", ""));
  if (type != "imatrix") {
    return Error{Errc::unsupported, "a GGUF file whose general.type is " + io::quoted(type) +
                                        ", not an importance matrix"};
  }
  Imatrix imatrix;
  NIBBLE_TRY(n_chunks, file.get_u32_or("imatrix.chunk_count", 0));
  NIBBLE_TRY(chunk_size, file.get_u32_or("imatrix.chunk_size", options.chunk_size));
  imatrix.n_chunks = n_chunks;
  imatrix.chunk_size = chunk_size;
  if (file.find("imatrix.datasets") != nullptr) {
    NIBBLE_TRY(datasets, file.get_strings("imatrix.datasets"));
    for (const std::string_view dataset : datasets) imatrix.datasets.emplace_back(dataset);
  }
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name.ends_with(kSumsSuffix)) {
      const std::string_view name = tensor.name.substr(0, tensor.name.size() - kSumsSuffix.size());
      NIBBLE_TRY(entry, entry_of(file, tensor, name));
      imatrix.entries.push_back(std::move(entry));
    } else if (tensor.name.ends_with(kCountsSuffix)) {
      const std::string_view name =
          tensor.name.substr(0, tensor.name.size() - kCountsSuffix.size());
      if (file.find_tensor(std::string(name) + std::string(kSumsSuffix)) == nullptr) {
        return imatrix_error(std::string(name), "counts without sums");
      }
    }
  }
  return imatrix;
}

// Reads a length in 32 bits with sign.
inline Result<std::uint32_t> read_count(io::ByteReader& in, const char* what) {
  NIBBLE_TRY(n, in.read<std::int32_t>(what));
  if (n < 0) return Error{Errc::malformed, std::string(what) + " is " + to_text(n)};
  return static_cast<std::uint32_t>(n);
}

inline Result<std::string> read_name(io::ByteReader& in, const char* what) {
  NIBBLE_TRY(length, read_count(in, what));
  NIBBLE_TRY(bytes, in.take(length, what));
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

inline Result<ImatrixEntry> read_dat_entry(io::ByteReader& in, std::uint32_t chunk_size) {
  ImatrixEntry e;
  NIBBLE_TRY(name, read_name(in, "the length of a name"));
  e.name = std::move(name);
  if (e.name.size() > io::kGgufMaxTensorName) {
    return Error{Errc::malformed, "a name of " + to_text(e.name.size()) + " bytes"};
  }
  NIBBLE_TRY(n_calls, in.read<std::int32_t>("a number of calls"));
  NIBBLE_TRY(n_values, read_count(in, "a number of values"));
  if (n_calls < 1) {
    return imatrix_error(e.name, to_text(n_calls) + " calls: it saw no data");
  }
  if (n_values > in.remaining() / sizeof(float)) {
    return imatrix_error(e.name, to_text(n_values) + " values are more than the file has");
  }
  NIBBLE_TRY(bytes, in.take(std::uint64_t{n_values} * sizeof(float), "values"));
  e.sum_squares.resize(n_values);
  if (n_values > 0) std::memcpy(values(e.sum_squares), bytes.data(), bytes.size());
  const auto rows = static_cast<float>(chunk_size);
  for (auto& v : e.sum_squares) v.value *= rows;
  e.counts.push_back({static_cast<float>(n_calls) * rows});
  return e;
}

inline Result<Imatrix> imatrix_of_dat(std::span<const std::byte> bytes,
                                      const ReadImatrixOptions& options) {
  constexpr std::uint64_t kLeastEntry = 3 * sizeof(std::int32_t);
  io::ByteReader in(bytes);
  Imatrix imatrix;
  imatrix.chunk_size = options.chunk_size;
  NIBBLE_TRY(n_entries, read_count(in, "the number of entries"));
  if (n_entries < 1 || n_entries > in.remaining() / kLeastEntry) {
    return Error{Errc::malformed, "no importance matrix: " + to_text(n_entries) +
                                      " entries in a file of " + to_text(bytes.size()) + " bytes"};
  }
  for (std::uint32_t i = 0; i < n_entries; ++i) {
    auto entry = read_dat_entry(in, options.chunk_size);
    if (!entry) return std::move(entry).error().in("entry " + to_text(i));
    imatrix.entries.push_back(*std::move(entry));
  }
  if (in.remaining() == 0) return imatrix;  // as the first versions wrote it
  NIBBLE_TRY(n_chunks, read_count(in, "the number of chunks"));
  imatrix.n_chunks = n_chunks;
  if (in.remaining() == 0) return imatrix;
  NIBBLE_TRY(dataset, read_name(in, "the name of the dataset"));
  if (!dataset.empty()) imatrix.datasets.push_back(std::move(dataset));
  if (in.remaining() > 0) {
    return Error{Errc::malformed, to_text(in.remaining()) + " bytes after the end"};
  }
  return imatrix;
}

template <class T>
void append_number(std::vector<std::byte>& out, T value) {
  const auto* const bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(T));
}

inline Result<void> append_name(std::vector<std::byte>& out, const std::string& name) {
  if (name.size() > 0x7FFFFFFF) return Error{Errc::invalid_argument, "a name is too long"};
  append_number(out, static_cast<std::int32_t>(name.size()));
  const auto bytes = std::as_bytes(std::span<const char>(name));
  out.insert(out.end(), bytes.begin(), bytes.end());
  return ok();
}

inline Error unwritable(Error error) {
  error.code = Errc::invalid_argument;
  return std::move(error).in("importance matrix");
}

inline Result<void> append_dat_entry(std::vector<std::byte>& out, const Imatrix& imatrix,
                                     const ImatrixEntry& e) {
  if (e.sum_squares.size() > 0x7FFFFFFF) {
    return Error{Errc::invalid_argument, "entry " + io::quoted(e.name) + ": too many values"};
  }
  NIBBLE_CHECK(append_name(out, e.name));
  double most = 0;
  for (const auto& count : e.counts) most = larger(most, static_cast<double>(count.value));
  // Rounded up: rows of less than a chunk are a call too.
  const double n_calls = std::ceil(most / static_cast<double>(imatrix.chunk_size));
  if (n_calls > 0x7FFFFFFF) {
    return Error{Errc::invalid_argument, "entry " + io::quoted(e.name) + ": too many rows"};
  }
  append_number(out, static_cast<std::int32_t>(n_calls));
  append_number(out, static_cast<std::int32_t>(e.sum_squares.size()));
  for (std::size_t i = 0; i < e.sum_squares.size(); ++i) {
    append_number(out, e.mean_square(i) * static_cast<float>(n_calls));
  }
  return ok();
}

// Calls finish(writer) with a writer of the GGUF file.
template <class Finish>
auto to_imatrix_gguf(const Imatrix& imatrix, Finish finish)
    -> decltype(finish(std::declval<const io::GgufWriter&>())) {
  Result<void> checked = check_entries(imatrix);
  if (!checked) return unwritable(std::move(checked).error());
  io::GgufWriter writer;
  writer.set("general.type", std::string_view("imatrix"));
  writer.set_array("imatrix.datasets", imatrix.datasets);
  writer.set("imatrix.chunk_count", imatrix.n_chunks);
  writer.set("imatrix.chunk_size", imatrix.chunk_size);
  for (const ImatrixEntry& e : imatrix.entries) {
    const std::uint64_t n = e.counts.size(), k = e.sum_squares.size() / n;
    const std::uint64_t sums[] = {k, n}, counts[] = {1, n};
    const std::size_t n_dims = n > 1 ? 2 : 1;  // as ggml leaves out dimensions of 1
    writer.add_tensor(e.name + std::string(kSumsSuffix), io::GgmlType::f32,
                      std::span(sums).first(n_dims),
                      std::as_bytes(std::span(values(e.sum_squares), e.sum_squares.size())));
    writer.add_tensor(e.name + std::string(kCountsSuffix), io::GgmlType::f32,
                      std::span(counts).first(n_dims),
                      std::as_bytes(std::span(values(e.counts), e.counts.size())));
  }
  return finish(writer);
}

}  // namespace detail

inline Result<Imatrix> parse_imatrix(std::span<const std::byte> bytes, const std::string& name,
                                     const ReadImatrixOptions& options) {
  if (options.chunk_size < 1) {
    return Error{Errc::invalid_argument, "importance matrix: chunks of 0 tokens"};
  }
  return catch_out_of_memory([&]() -> Result<Imatrix> {
    const bool is_gguf = bytes.size() >= sizeof(io::kGgufMagic) &&
                         io::load_le<std::uint32_t>(bytes.data()) == io::kGgufMagic;
    const auto read = [&]() -> Result<Imatrix> {
      if (!is_gguf) return detail::imatrix_of_dat(bytes, options);
      NIBBLE_TRY(file, io::Gguf::parse(bytes, name));
      return detail::imatrix_of_gguf(file, options);
    };
    auto imatrix = read();
    if (imatrix) {
      detail::sort_entries(*imatrix);
      Result<void> checked = detail::check_entries(*imatrix);
      if (checked) return imatrix;
      imatrix = std::move(checked).error();
    }
    Error error = std::move(imatrix).error();
    const std::string shown = printable(name);
    if (error.message.starts_with(shown)) return error;
    return std::move(error).in(shown);
  });
}

inline Result<Imatrix> read_imatrix(const std::string& path, const ReadImatrixOptions& options) {
  NIBBLE_TRY(file, io::MappedFile::open(path));
  return parse_imatrix(file.bytes(), path, options);
}

inline Result<std::vector<std::byte>> imatrix_bytes(const Imatrix& imatrix) {
  return catch_out_of_memory([&] {
    return detail::to_imatrix_gguf(imatrix,
                                   [](const io::GgufWriter& writer) { return writer.to_bytes(); });
  });
}

inline Result<void> write_imatrix(const Imatrix& imatrix, const std::string& path) {
  return catch_out_of_memory([&] {
    return detail::to_imatrix_gguf(
        imatrix, [&](const io::GgufWriter& writer) { return writer.write(path); });
  });
}

inline Result<std::vector<std::byte>> imatrix_dat_bytes(const Imatrix& imatrix) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    Result<void> checked = detail::check_entries(imatrix);
    if (!checked) return detail::unwritable(std::move(checked).error());
    if (imatrix.entries.size() > 0x7FFFFFFF || imatrix.n_chunks > 0x7FFFFFFF) {
      return Error{Errc::invalid_argument, "importance matrix: too many entries or chunks"};
    }
    std::vector<std::byte> out;
    detail::append_number(out, static_cast<std::int32_t>(imatrix.entries.size()));
    for (const ImatrixEntry& e : imatrix.entries) {
      NIBBLE_CHECK(detail::append_dat_entry(out, imatrix, e));
    }
    detail::append_number(out, static_cast<std::int32_t>(imatrix.n_chunks));
    // There is room for one.
    NIBBLE_CHECK(detail::append_name(
        out, imatrix.datasets.empty() ? std::string() : imatrix.datasets.back()));
    return out;
  });
}

inline Result<void> write_imatrix_dat(const Imatrix& imatrix, const std::string& path) {
  NIBBLE_TRY(bytes, imatrix_dat_bytes(imatrix));
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(file, io::OutputFile::create(path));
    NIBBLE_CHECK(file.write(bytes));
    return file.commit();
  });
}

inline Result<void> merge(Imatrix& into, const Imatrix& other) {
  if (into.chunk_size != other.chunk_size) {
    return Error{Errc::invalid_argument, "importance matrices of chunks of " +
                                             to_text(into.chunk_size) + " and of " +
                                             to_text(other.chunk_size) + " tokens"};
  }
  return catch_out_of_memory([&]() -> Result<void> {
    for (const Imatrix* const one : {static_cast<const Imatrix*>(&into), &other}) {
      for (const ImatrixEntry& e : one->entries) {
        Result<void> checked = detail::check_entry(e);
        if (!checked) return detail::unwritable(std::move(checked).error());
      }
    }
    Imatrix merged = into;
    for (const ImatrixEntry& b : other.entries) {
      const ImatrixEntry* const found = merged.find(b.name);
      if (found == nullptr) continue;
      const auto at = static_cast<std::size_t>(found - merged.entries.data());
      ImatrixEntry* const a = &merged.entries[at];
      if (a->sum_squares.size() != b.sum_squares.size() ||
          (a->counts.size() > 1 && b.counts.size() > 1 && a->counts.size() != b.counts.size())) {
        return Error{Errc::invalid_argument, "importance matrices of different models: entry " +
                                                 io::quoted(b.name) + " has " +
                                                 to_text(a->sum_squares.size()) + " and " +
                                                 to_text(b.sum_squares.size()) + " values"};
      }
      // One count for all matrices is the count of each.
      if (a->counts.size() < b.counts.size()) a->counts.resize(b.counts.size(), a->counts[0]);
      for (std::size_t i = 0; i < a->counts.size(); ++i) {
        a->counts[i].value += b.counts[b.counts.size() == 1 ? 0 : i].value;
      }
      for (std::size_t i = 0; i < a->sum_squares.size(); ++i) {
        a->sum_squares[i].value += b.sum_squares[i].value;
      }
    }
    for (const ImatrixEntry& b : other.entries) {
      if (into.find(b.name) == nullptr) merged.entries.push_back(b);
    }
    detail::sort_entries(merged);
    merged.n_chunks += other.n_chunks;
    merged.datasets.insert(merged.datasets.end(), other.datasets.begin(), other.datasets.end());
    into = std::move(merged);
    return ok();
  });
}

inline Result<void> check_imatrix(const Imatrix& imatrix, const io::Gguf& file) {
  for (const ImatrixEntry& e : imatrix.entries) {
    NIBBLE_CHECK(detail::check_matrix(file, e.name, e.sum_squares.size()));
    const io::GgufTensor* const tensor = detail::tensor_of_product(file, e.name);
    if (e.counts.size() == 1 || e.counts.size() == tensor->dims[2] * tensor->dims[3]) continue;
    return Error{Errc::invalid_argument, file.name() + ": tensor " + io::quoted(e.name) +
                                             ": statistics of " + to_text(e.counts.size()) +
                                             " matrices: they are of another model"};
  }
  return detail::check_layers(file,
                              [&](std::string_view name) { return imatrix.find(name) != nullptr; });
}

inline Result<Imatrix> imatrix_of(const Statistics& statistics, const std::string& dataset,
                                  std::uint32_t n_chunks, std::uint32_t chunk_size) {
  return catch_out_of_memory([&]() -> Result<Imatrix> {
    Imatrix imatrix;
    imatrix.n_chunks = n_chunks;
    imatrix.chunk_size = chunk_size;
    if (!dataset.empty()) imatrix.datasets.push_back(dataset);
    for (const Statistics::Entry& entry : statistics.entries()) {
      const InputStatistics& input = statistics.inputs()[entry.input];
      ImatrixEntry e;
      e.name = entry.name;
      e.sum_squares.resize(static_cast<std::size_t>(input.k()));
      for (Index j = 0; j < input.k(); ++j) {
        e.sum_squares[static_cast<std::size_t>(j)].value = static_cast<float>(input.sum_squares(j));
      }
      e.counts.push_back({static_cast<float>(input.n_rows())});
      imatrix.entries.push_back(std::move(e));
    }
    Result<void> checked = detail::check_entries(imatrix);
    if (!checked) return detail::unwritable(std::move(checked).error());
    return imatrix;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
