// SPDX-License-Identifier: Apache-2.0
//
// Loading from files: how much memory it takes at its peak, on how many threads, and what happens
// with files that change in the meantime.
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "io/largest_allocation.hpp"
#include "model/random_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/model.hpp"
#include "why.hpp"

namespace load_test {

using namespace nibble;
using quant::Format;

namespace {

// Kilobytes of a line of /proc/self/status, or 0 where there is none.
std::size_t status_kilobytes(const char* name) {
  std::size_t value = 0;
  std::FILE* const file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return 0;
  char line[256];
  const std::string format = std::string(name) + ": %zu kB";
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::sscanf(line, format.c_str(), &value) == 1) break;
  }
  std::fclose(file);
  return value;
}

// Resets the peak to the present memory. Returns false if the system cannot do it.
bool reset_peak() {
  std::FILE* const file = std::fopen("/proc/self/clear_refs", "w");
  if (file == nullptr) return false;
  const bool written = std::fputs("5", file) >= 0;
  return std::fclose(file) == 0 && written;
}

// By how many bytes the resident memory of the program, including pages of files, grows at most
// while f() runs; nothing if the system does not tell.
template <class F>
std::optional<std::size_t> peak_growth(F f) {
  if (!reset_peak()) return std::nullopt;
  const std::size_t before = status_kilobytes("VmRSS");
  f();
  const std::size_t peak = status_kilobytes("VmHWM");
  if (before == 0 || peak < before) return std::nullopt;
  return (peak - before) * 1024;
}

// A model with 62 MB of Q4_0 weights, all zeros; its largest tensor is a ninth of that.
io::GgufWriter large_model() {
  static constexpr std::uint64_t kDim = 512, kFfn = 24576, kLayers = 3, kVocabulary = 64;
  io::GgufWriter writer;
  writer.set("general.architecture", "llama");
  writer.set("llama.embedding_length", std::uint32_t{kDim});
  writer.set("llama.block_count", std::uint32_t{kLayers});
  writer.set("llama.feed_forward_length", std::uint32_t{kFfn});
  writer.set("llama.attention.head_count", std::uint32_t{8});
  writer.set("llama.context_length", std::uint32_t{16});
  writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  const auto add = [&](Slot slot, int layer, std::uint64_t n, std::uint64_t k) {
    const io::GgmlType type = n == 0 ? io::GgmlType::f32 : io::GgmlType::q4_0;
    std::vector<std::uint64_t> dims = {k};
    if (n > 0) dims.push_back(n);
    static const std::vector<std::byte> zeros(
        *io::tensor_bytes(io::GgmlType::q4_0, std::array<std::uint64_t, 2>{kDim, kFfn}));
    writer.add_tensor(gguf_name(slot, layer), type, dims,
                      std::span(zeros).first(*io::tensor_bytes(type, dims)));
  };
  add(Slot::token_embd, -1, kVocabulary, kDim);
  add(Slot::output_norm, -1, 0, kDim);
  for (int layer = 0; layer < static_cast<int>(kLayers); ++layer) {
    for (const Slot slot : {Slot::attn_q, Slot::attn_k, Slot::attn_v, Slot::attn_output}) {
      add(slot, layer, kDim, kDim);
    }
    add(Slot::attn_norm, layer, 0, kDim);
    add(Slot::ffn_norm, layer, 0, kDim);
    add(Slot::ffn_gate, layer, kFfn, kDim);
    add(Slot::ffn_up, layer, kFfn, kDim);
    add(Slot::ffn_down, layer, kDim, kFfn);
  }
  return writer;
}

// Every byte of a model's weights, where they are.
bool same_weights(const Model& a, const Model& b) {
  for (Index layer = -1; layer < a.config().n_layers; ++layer) {
    for (std::size_t s = 0; s < kSlotCount; ++s) {
      const graph::Weight& x = a.weights().at(static_cast<Slot>(s), layer);
      const graph::Weight& y = b.weights().at(static_cast<Slot>(s), layer);
      if (!x != !y || x.n != y.n || x.k != y.k || x.ops != y.ops) return false;
      if (!x) continue;
      if (std::memcmp(x.data, y.data, static_cast<std::size_t>(x.bytes())) != 0) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("loading holds the weights once, not the file beside them") {
  const test::TemporaryFolder folder;
  const std::string plain = folder.path("plain.gguf"), packed = folder.path("packed.gguf");
  REQUIRE(large_model().write(plain));
  {
    const auto file = io::Gguf::open(plain);
    REQUIRE(file);
    ConvertOptions options;
    options.format = Format::q4_0;
    options.packed = true;
    REQUIRE(quantize_model(*file, packed, options));
  }
  constexpr std::size_t kBeside = std::size_t{2} << 20;  // a huge page, chunks, the file's header
  for (const bool is_packed : {false, true}) {
    CAPTURE(is_packed);
    std::size_t weights = 0;
    const auto growth = peak_growth([&] {
      const auto model = load(is_packed ? packed : plain);
      REQUIRE(model);
      weights = model->weight_bytes();
    });
    REQUIRE(weights > (std::size_t{60} << 20));
    if (!growth) {
      MESSAGE("skipped: the system does not tell the peak of memory");
      return;
    }
    CHECK(*growth <= kBeside + (is_packed ? 0 : weights + weights / 20));
  }
}

TEST_CASE("weights are the same bytes from memory, from a file, on any number of threads") {
  test::ModelShape shape;
  shape.dim = 96;
  shape.ffn_dim = 160;
  shape.vocab_size = 5003;  // several chunks, and not a whole number of panels
  shape.formats = {Format::q4_0, Format::f32,  Format::q8_0,
                   Format::bf16, Format::q4_1, Format::f16};
  const std::vector<std::byte> bytes = test::RandomModel(shape, 3).gguf();
  const auto in_memory = io::Gguf::parse(bytes, "in memory");
  REQUIRE(in_memory);
  const auto expected = Model::from_gguf(*in_memory);
  REQUIRE_MESSAGE(expected, test::why(expected));
  const test::TemporaryFolder folder;
  const std::string path = folder.write("model.gguf", bytes);
  for (const Index n_threads : {1, 2, 3}) {
    auto pool = ThreadPool::create({.n_threads = n_threads});
    REQUIRE(pool);
    LoadOptions options;
    options.executor = pool->get();
    const auto model = load(path, options);
    REQUIRE_MESSAGE(model, test::why(model));
    CHECK(same_weights(*model, *expected));
  }
}

#if !defined(_WIN32)
TEST_CASE("a file that is cut after it was opened is an error that names it") {
  test::ModelShape shape;
  shape.vocab_size = 5003;
  const std::vector<std::byte> bytes = test::RandomModel(shape, 3).gguf();
  const test::TemporaryFolder folder;
  const std::string path = folder.write("model.gguf", bytes);
  const auto file = io::Gguf::open(path);
  REQUIRE(file);
  std::filesystem::resize_file(path, bytes.size() / 2);
  auto pool = ThreadPool::create({.n_threads = 2});
  REQUIRE(pool);
  LoadOptions options;
  options.executor = pool->get();
  const auto model = Model::from_gguf(*file, options);
  REQUIRE(!model);
  CHECK(model.error().code == Errc::io);
  CHECK(model.error().message.find(path) != std::string::npos);
}
#endif

TEST_CASE("what loading needs is known before, to the byte") {
  test::ModelShape shape;
  shape.dim = 96;
  shape.head_dim = shape.rope_dim = 16;  // all rows are whole blocks
  shape.ffn_dim = 160;
  shape.vocab_size = 1003;
  const test::TemporaryFolder folder;
  for (const Format format : {Format::f32, Format::q8_0, Format::q4_0}) {
    for (const bool packed : {false, true}) {
      CAPTURE(std::string(to_string(format)));
      CAPTURE(packed);
      shape.formats = {format};
      const std::vector<std::byte> plain = test::RandomModel(shape, 3).gguf();
      std::string path = folder.write("model.gguf", plain);
      if (packed) {
        const auto file = io::Gguf::open(path);
        REQUIRE(file);
        path = folder.path("packed.gguf");
        REQUIRE(quantize_model(*file, path, {.format = format, .packed = true}));
      }
      for (const Index n_threads : {1, 3}) {
        auto pool = ThreadPool::create({.n_threads = n_threads});
        REQUIRE(pool);
        LoadOptions options;
        options.executor = pool->get();
        const std::size_t before = test::buffer_bytes;
        test::buffer_peak = before;
        const auto needed = memory_needed(path, options);
        REQUIRE_MESSAGE(needed, test::why(needed));
        CHECK(test::buffer_peak == before);  // nothing was allocated for weights
        const auto model = load(path, options);
        REQUIRE_MESSAGE(model, test::why(model));
        CHECK(needed->weights == test::buffer_bytes - before);
        CHECK(needed->peak() == test::buffer_peak - before);
        CHECK(needed->in_place == model->weight_bytes_in_place());
        CHECK(needed->weights + needed->in_place == model->weight_bytes());
        CHECK((needed->in_place > 0) == packed);
        CHECK(needed->loading > 0);
      }
      // From memory that the caller keeps, packed weights are copied, and nothing is read.
      const auto bytes = io::Gguf::open(path);
      REQUIRE(bytes);
      const auto whole = bytes->files()[0].bytes();
      const auto borrowed = io::Gguf::parse(whole, "borrowed");
      REQUIRE(borrowed);
      const auto needed = Model::memory_needed(*borrowed);
      REQUIRE_MESSAGE(needed, test::why(needed));
      CHECK(needed->in_place == 0);
      CHECK(needed->loading == 0);
      CHECK(needed->weights == Model::from_gguf(*borrowed)->weight_bytes());
    }
  }
  CHECK(memory_needed(folder.path("missing.gguf")).error().code == Errc::io);
}

}  // namespace load_test
