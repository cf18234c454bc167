// SPDX-License-Identifier: Apache-2.0
//
// Malicious files: truncated at every length, every bit and byte changed, absurd counts, lengths,
// offsets and shapes. Each gives an error or an object whose views all lie inside the bytes, and
// never causes a large allocation. Best run under the address and undefined-behaviour sanitizers.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "largest_allocation.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/safetensors.hpp"

namespace hostile_test {
namespace {

using nibble::Errc;
using namespace nibble::io;
using Bytes = std::vector<std::byte>;
using test::FileBuilder;

// The largest allowed allocation: a multiple of the file's size (compare the smallest entry with
// its struct in gguf.hpp and safetensors.hpp; vectors double when they grow), plus room for the
// text of an error.
constexpr std::size_t kGgufFactor = 4;
constexpr std::size_t kSafetensorsFactor = 20;
constexpr std::size_t kErrorText = 1024;

struct Tally {
  std::size_t cases = 0, errors = 0, valid = 0, tensors = 0;
};

// A heap copy of exactly the file's size, so that a sanitizer detects the first byte beyond it.
class ExactCopy {
 public:
  explicit ExactCopy(std::span<const std::byte> bytes)
      : size_(bytes.size()), data_(new std::byte[bytes.size()]) {
    std::copy(bytes.begin(), bytes.end(), data_.get());
  }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> data_;
};

bool inside(const void* begin, std::size_t size, std::span<const std::byte> bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const auto low = reinterpret_cast<std::uintptr_t>(bytes.data());
  return size == 0 ||
         (first >= low && first - low <= bytes.size() && size <= bytes.size() - (first - low));
}

unsigned touch(std::span<const std::byte> data) {
  unsigned sum = 0;
  for (const std::byte b : data) sum += static_cast<unsigned>(b);
  return sum;
}

// doctest's CHECK is too slow for hundreds of thousands of cases: results are collected here.
struct Verdict {
  bool good = true;
  unsigned sum = 0;  // of what was read, so that the reads are not optimized away
  void require(bool condition) { good = good && condition; }
};

Verdict examine(const Gguf& gguf, std::span<const std::byte> bytes) {
  Verdict v;
  std::uint64_t total = 0;
  for (const GgufTensor& tensor : gguf.tensors()) {
    v.require(inside(tensor.data.data(), tensor.data.size(), bytes));
    v.require(inside(tensor.name.data(), tensor.name.size(), bytes));
    const auto size = tensor_bytes(tensor.type, tensor.dims);
    v.require(size && *size == tensor.data.size());
    v.require(gguf.find_tensor(tensor.name) == &tensor);
    v.sum += touch(tensor.data);
    total += tensor.data.size();
  }
  v.require(total <= bytes.size());
  for (const GgufEntry& entry : gguf.metadata()) {
    v.require(inside(entry.key.data(), entry.key.size(), bytes));
    v.require(gguf.find(entry.key) == &entry.value);
    v.sum += touch(entry.value.encoded());
    (void)entry.value.as<std::uint64_t>();
    (void)entry.value.as<float>();
    (void)entry.value.as<bool>();
    (void)entry.value.as_array<double>();
    (void)entry.value.as_array<bool>();
    if (const auto text = entry.value.as<std::string_view>()) {
      v.require(inside(text->data(), text->size(), bytes));
    }
    if (const auto texts = entry.value.as_array<std::string_view>()) {
      for (const auto text : *texts) v.require(inside(text.data(), text.size(), bytes));
    }
  }
  return v;
}

Verdict examine(const Safetensors& file, std::span<const std::byte> bytes) {
  Verdict v;
  std::uint64_t total = 0;
  for (const Safetensor& tensor : file.tensors()) {
    v.require(inside(tensor.data.data(), tensor.data.size(), bytes));
    const auto size = tensor_bytes(tensor.type, tensor.shape);
    v.require(size && *size == tensor.data.size());
    v.require(file.find_tensor(tensor.name) == &tensor);
    v.sum += touch(tensor.data);
    total += tensor.data.size();
  }
  v.require(total < bytes.size());
  return v;
}

// Parses an exact copy of `bytes`, checks what must hold for any bytes, and counts the results.
template <class File>
nibble::Result<bool> try_parse(std::span<const std::byte> bytes, Tally& tally) {
  constexpr std::size_t kFactor = std::is_same_v<File, Gguf> ? kGgufFactor : kSafetensorsFactor;
  const ExactCopy copy(bytes);
  test::largest_allocation = 0;
  auto file = File::parse(copy.bytes(), "hostile");
  const std::size_t largest = test::largest_allocation;
  ++tally.cases;
  if (largest > kFactor * bytes.size() + kErrorText) {
    FAIL_CHECK("allocated ", largest, " bytes for a file of ", bytes.size());
  }
  if (!file) {
    ++tally.errors;
    const auto& error = file.error();
    const bool named = error.message.starts_with("hostile: ") && error.message.size() < kErrorText;
    const bool expected = error.code == Errc::malformed || error.code == Errc::unsupported ||
                          error.code == Errc::limit;
    if (!named || !expected) FAIL_CHECK("unexpected error: ", error.message);
    return std::move(file).error();
  }
  ++tally.valid;
  tally.tensors += file->tensors().size();
  if (!examine(*file, copy.bytes()).good) FAIL_CHECK("a view outside of the file");
  return true;
}

Bytes small_gguf() {
  FileBuilder b = test::gguf_header(3, 8);
  b.string("general.architecture").u32(8).string("llama");
  b.string("general.alignment").u32(4).u32(32);
  b.string("llama.block_count").u32(4).u32(1);
  b.string("eps").u32(6).number(1e-5f);
  b.string("flag").u32(7).u8(1);
  b.string("tokens").u32(9).u32(8).u64(3).string("<s>").string("").string("ab");
  b.string("scores").u32(9).u32(6).u64(2).number(0.5f).number(-1.0f);
  b.string("bools").u32(9).u32(7).u64(3).u8(0).u8(1).u8(0);
  b.string("a").u32(1).u64(8).u32(0).u64(0);
  b.string("b").u32(2).u64(32).u64(2).u32(2).u64(32);
  b.string("c").u32(3).u64(2).u64(1).u64(3).u32(1).u64(96);
  b.pad(32);
  for (unsigned i = 0; i < 96 + 12; ++i) b.u8(i);
  return b.bytes();
}

Bytes small_safetensors() {
  return test::safetensors_file(R"({"__metadata__":{"format":"pt","n\u00e9":"\ud83d\ude00"},)"
                                R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                                R"("b":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]},)"
                                R"("none":{"dtype":"I64","shape":[0],"data_offsets":[34,34]}})",
                                34);
}

template <class File>
void change_everything(const Bytes& good, std::size_t header, Tally& tally) {
  Bytes bytes = good;
  for (std::size_t i = 0; i < header; ++i) {  // every bit flipped, every byte set to extremes
    const std::byte original = bytes[i];
    for (unsigned bit = 0; bit < 8; ++bit) {
      bytes[i] = original ^ static_cast<std::byte>(1u << bit);
      (void)try_parse<File>(bytes, tally);
    }
    for (const unsigned value : {0x00u, 0x01u, 0x22u, 0x2cu, 0x5cu, 0x7du, 0x7fu, 0x80u, 0xffu}) {
      bytes[i] = static_cast<std::byte>(value);
      (void)try_parse<File>(bytes, tally);
    }
    bytes[i] = original;
  }
  // Every position is overwritten with numbers that overflow something.
  const std::uint64_t absurd[] = {0,          UINT64_MAX, UINT64_MAX - 7,    UINT64_MAX / 2,
                                  1ull << 63, 1ull << 62, 1ull << 61,        1ull << 32,
                                  UINT32_MAX, 1ull << 31, 0x4000000000000001};
  for (std::size_t i = 0; i + 8 <= header; ++i) {
    for (const std::uint64_t value : absurd) {
      bytes = good;
      std::memcpy(bytes.data() + i, &value, 8);
      (void)try_parse<File>(bytes, tally);
      bytes = good;
      std::memcpy(bytes.data() + i, &value, 4);
      (void)try_parse<File>(bytes, tally);
    }
  }
  std::mt19937_64 random(20240607);
  const auto below = [&](std::size_t n) { return narrow<std::size_t>(random() % n); };
  for (int round = 0; round < 20000; ++round) {  // several flips, cuts and copied ranges at once
    bytes = good;
    const std::size_t flips = 1 + below(8);
    for (std::size_t f = 0; f < flips; ++f) {
      bytes[below(header)] ^= static_cast<std::byte>(1u << below(8));
    }
    if (below(4) == 0) {
      const std::size_t n = 1 + below(16);
      const std::size_t from = below(header - n), to = below(header - n);
      std::copy_n(good.begin() + static_cast<std::ptrdiff_t>(from), n,
                  bytes.begin() + static_cast<std::ptrdiff_t>(to));
    }
    if (below(4) == 0) bytes.resize(below(bytes.size()));
    (void)try_parse<File>(bytes, tally);
  }
}

}  // namespace

TEST_CASE("GGUF cut at every length: an error until the last tensor is complete") {
  const Bytes good = small_gguf();
  Tally tally;
  REQUIRE(try_parse<Gguf>(good, tally));
  for (std::size_t n = 0; n < good.size(); ++n) {
    CAPTURE(n);
    const auto result = try_parse<Gguf>(std::span(good).first(n), tally);
    REQUIRE(!result);
    CHECK(result.error().code == Errc::malformed);
  }
  CHECK(tally.cases > 400);
  CHECK(tally.valid == 1);
}

TEST_CASE("GGUF with every bit and byte of its header changed") {
  const Bytes good = small_gguf();
  Tally tally;
  change_everything<Gguf>(good, good.size() - 108, tally);
  MESSAGE("GGUF: ", tally.cases, " files, ", tally.errors, " refused, ", tally.valid,
          " harmless with ", tally.tensors, " tensors");
  CHECK(tally.cases > 30000);
  CHECK(tally.errors > 10000);
  CHECK(tally.valid > 1000);
  CHECK(tally.tensors > 3000);
}

TEST_CASE("safetensors cut at every length, and with every bit and byte changed") {
  const Bytes good = small_safetensors();
  Tally tally;
  REQUIRE(try_parse<Safetensors>(good, tally));
  for (std::size_t n = 0; n < good.size(); ++n) {
    CAPTURE(n);
    CHECK(!try_parse<Safetensors>(std::span(good).first(n), tally));
  }
  change_everything<Safetensors>(good, good.size() - 34, tally);
  MESSAGE("safetensors: ", tally.cases, " files, ", tally.errors, " refused, ", tally.valid,
          " harmless with ", tally.tensors, " tensors");
  CHECK(tally.cases > 25000);
  CHECK(tally.errors > 10000);
  CHECK(tally.valid > 200);
}

TEST_CASE("named corruptions of GGUF give named errors") {
  const std::string long_name(65, 'n');
  const auto header = [](std::uint64_t n_tensors, std::uint64_t n_entries) {
    return test::gguf_header(n_tensors, n_entries);
  };
  // A file with one tensor; `info` writes everything after its name.
  const auto tensor = [&](auto info) {
    FileBuilder b = header(1, 0);
    b.string("t");
    info(b);
    b.pad(32).raw(std::string(64, 'x'));
    return b;
  };
  const auto alignment = [&](std::uint32_t value) {
    return header(0, 1).string("general.alignment").u32(4).u32(value);
  };
  struct {
    FileBuilder file;
    Errc code;
    const char* message;
  } const cases[] = {
      {FileBuilder(), Errc::malformed, "the file is empty"},
      {FileBuilder().raw("GGUF").u32(3), Errc::malformed,
       "the file ends inside the header at byte 8 of 8"},
      {FileBuilder().raw("GGUX").u32(3).u64(0).u64(0), Errc::malformed, "not a GGUF file"},
      {test::gguf_header(0, 0, 1), Errc::unsupported, "GGUF version 1, not 2 or 3"},
      {test::gguf_header(0, 0, 4), Errc::unsupported, "GGUF version 4"},
      {test::gguf_header(0, 0, 0x03000000), Errc::unsupported, "big-endian"},
      {header(0, UINT64_MAX), Errc::malformed, "metadata entries do not fit"},
      {header(0, 1).raw(std::string(13, 'x')), Errc::malformed, "1 metadata entries do not fit"},
      {header(UINT64_MAX, 0), Errc::malformed, "tensors do not fit"},
      {header(1ull << 40, 0).raw(std::string(100, 'x')), Errc::malformed, "tensors do not fit"},
      {header(0, 1).string("").u32(4).u32(0), Errc::malformed, "key is empty"},
      {header(0, 1).u64(UINT64_MAX).raw(std::string(20, 'k')), Errc::malformed,
       "the file ends inside a key at"},
      {header(0, 1).string(std::string(65536, 'k')).u32(0).u8(0), Errc::malformed,
       "more than 65535"},
      {header(0, 1).string("k").u32(13).u64(0), Errc::malformed, "value type 13 does not exist"},
      {header(0, 1).string("k").u32(7).u8(2), Errc::malformed, "a bool that is neither 0 nor 1"},
      {header(0, 1).string("k").u32(9).u32(7).u64(2).u8(1).u8(3), Errc::malformed,
       "a bool that is neither"},
      {header(0, 1).string("k").u32(9).u32(9).u64(1).u32(4).u64(0), Errc::unsupported,
       "an array of arrays"},
      {header(0, 1).string("k").u32(9).u32(77).u64(1).u64(0), Errc::malformed,
       "value type 77 does not exist"},
      {header(0, 1).string("k").u32(9).u32(10).u64(1ull << 61).u64(0), Errc::malformed,
       "the file ends inside a value"},
      {header(0, 1).string("k").u32(9).u32(8).u64(1ull << 61).u64(0), Errc::malformed,
       "the file ends inside an array of strings"},
      {header(0, 1).string("k").u32(8).u64(UINT64_MAX - 3).u64(0), Errc::malformed,
       "the file ends inside a string"},
      {header(0, 2).string("k").u32(4).u32(0).string("k").u32(4).u32(1), Errc::malformed,
       "key 'k' appears twice"},
      {alignment(0), Errc::malformed, "alignment 0 is not a power of two"},
      {alignment(4), Errc::malformed, "alignment 4 is not"},
      {alignment(33), Errc::malformed, "alignment 33 is not"},
      {alignment(1u << 21), Errc::malformed, "alignment 2097152 is not"},
      {header(0, 1).string("general.alignment").u32(8).string("32"), Errc::malformed,
       "general.alignment: expected an unsigned integer"},
      {header(1, 0).string("").u32(0).u32(0).u64(0).u64(0), Errc::malformed, "name is empty"},
      {header(1, 0).string(long_name).u32(0).u32(0).u64(0), Errc::malformed,
       "has 65 bytes, more than 64"},
      {tensor([](auto& b) { b.u32(5).u64(1).u64(1).u64(1).u64(1).u64(1).u32(0).u64(0); }),
       Errc::malformed, "tensor 0 't': 5 dimensions, more than 4"},
      {tensor([](auto& b) { b.u32(1).u64(0).u32(0).u64(0); }), Errc::malformed,
       "tensor 't': a row of 0 elements"},
      {tensor([](auto& b) { b.u32(2).u64(4).u64(0).u32(0).u64(0); }), Errc::malformed,
       "tensor 't': dimension 1 is zero"},
      {tensor([](auto& b) { b.u32(1).u64(33).u32(2).u64(0); }), Errc::malformed,
       "33 elements is no whole number of Q4_0 blocks of 32"},
      {tensor([](auto& b) { b.u32(1).u64(32).u32(4).u64(0); }), Errc::unsupported,
       "tensor 't': Q4_2 (tensor type 4) was withdrawn"},
      {tensor([](auto& b) { b.u32(1).u64(32).u32(kFirstNibbleType + 99).u64(0); }),
       Errc::unsupported, "another version of nibble"},
      {tensor([](auto& b) { b.u32(2).u64(1ull << 33).u64(1ull << 33).u32(0).u64(0); }), Errc::limit,
       "tensor 't': the size in bytes overflows"},
      // 2^62 floats: the size wraps to 0 if the product is not checked.
      {tensor([](auto& b) { b.u32(2).u64(1ull << 31).u64(1ull << 31).u32(0).u64(0); }), Errc::limit,
       "overflows"},
      {tensor([](auto& b) { b.u32(1).u64(4).u32(0).u64(8); }), Errc::malformed,
       "offset 8 is no multiple of 32"},
      {tensor([](auto& b) { b.u32(1).u64(4).u32(0).u64(64); }), Errc::malformed,
       "16 bytes at offset 64 reach beyond the file's 64 bytes"},
      {tensor([](auto& b) { b.u32(1).u64(4).u32(0).u64(UINT64_MAX - 31); }), Errc::malformed,
       "reach beyond"},
      {tensor([](auto& b) { b.u32(1).u64(17).u32(0).u64(0); }), Errc::malformed,
       "68 bytes at offset 0 reach beyond the file's 64 bytes of tensor data: the file is "
       "incomplete"},
      {header(2, 0).string("t").u32(0).u32(0).u64(0).string("t").u32(0).u32(0).u64(32).pad(32).raw(
           std::string(64, 'x')),
       Errc::malformed, "tensor 't' appears twice"},
      {header(2, 0)
           .string("t")
           .u32(1)
           .u64(9)
           .u32(0)
           .u64(0)
           .string("u")
           .u32(0)
           .u32(0)
           .u64(32)
           .pad(32)
           .raw(std::string(64, 'x')),
       Errc::malformed, "tensors 't' and 'u' overlap"},
      {header(0, 1).string("evil\x1b[2J\n").u32(99).u64(0), Errc::malformed, "key 'evil?[2J?'"},
  };
  Tally tally;
  for (const auto& c : cases) {
    const auto result = try_parse<Gguf>(c.file.bytes(), tally);
    CAPTURE(c.message);
    REQUIRE(!result);
    CAPTURE(result.error().message);
    CHECK(result.error().code == c.code);
    CHECK(test::contains(result.error().message, c.message));
  }
  CHECK(tally.errors == std::size(cases));
}

TEST_CASE("the densest files allocate no more than their size allows") {
  Tally tally;
  FileBuilder gguf = test::gguf_header(2000, 3000);
  for (unsigned i = 0; i < 3000; ++i) gguf.string(std::to_string(i)).u32(0).u8(0);
  for (unsigned i = 0; i < 2000; ++i) gguf.string(std::to_string(i)).u32(0).u32(24).u64(32ull * i);
  gguf.pad(32).raw(std::string(64000, 'x'));
  CHECK(try_parse<Gguf>(gguf.bytes(), tally));

  std::string metadata = R"({"__metadata__":{"x":"")";
  for (unsigned i = 0; i < 3000; ++i) metadata += ",\"" + std::to_string(i) + "\":\"\"";
  CHECK(try_parse<Safetensors>(test::safetensors_file(metadata + "}}", 0), tally));
  std::string shape = R"({"t":{"dtype":"U8","data_offsets":[0,0],"shape":[0)";
  for (unsigned i = 0; i < 5000; ++i) shape += ",0";
  CHECK(try_parse<Safetensors>(test::safetensors_file(shape + "]}}", 0), tally));
  CHECK(tally.valid == 3);

  const std::string nested = R"({"t":)" + std::string(100000, '[');
  CHECK(!try_parse<Safetensors>(test::safetensors_file(nested, 0), tally));
  const std::string objects = [] {
    std::string text;
    for (int i = 0; i < 30000; ++i) text += "{\"t\":";
    return text;
  }();
  CHECK(!try_parse<Safetensors>(test::safetensors_file(objects, 0), tally));
}

}  // namespace hostile_test
