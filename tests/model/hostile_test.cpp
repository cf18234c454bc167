// SPDX-License-Identifier: Apache-2.0
//
// Model files made to break the reader: cut, with flipped bits, with absurd numbers, with tensors
// that are missing, superfluous, of other shapes and types. Each gives an error, or a model that
// runs two tokens; no large allocation either way. Best run under the address and
// undefined-behaviour sanitizers.
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "doctest/doctest.h"
#include "io/largest_allocation.hpp"
#include "model/random_model.hpp"
#include "nibble/generate/session.hpp"
#include "why.hpp"

namespace hostile_test {
namespace {

using namespace nibble;
using test::Architecture;
using test::Format;
using test::ModelShape;
using test::RandomModel;
using Bytes = std::vector<std::byte>;

// The files have some kilobytes. Only what a valid file may ask for can be large: a context of up
// to kDefaultContext positions.
constexpr std::size_t kLargestAllocation = std::size_t{1} << 20;

struct Tally {
  int errors = 0, models = 0, sessions = 0;
};

// Loads the file from a buffer of exactly its size, so that a sanitizer finds a read of even one
// byte beyond it.
void try_file(std::span<const std::byte> bytes, Tally& tally) {
  const std::unique_ptr<std::byte[]> exact(new std::byte[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), exact.get());
  test::largest_allocation = 0;
  const auto run = [&]() -> Result<void> {
    NIBBLE_TRY(file, io::Gguf::parse({exact.get(), bytes.size()}, "hostile.gguf"));
    NIBBLE_TRY(model, Model::from_gguf(file));
    ++tally.models;
    CHECK(model.weight_bytes() <= kLargestAllocation);  // large buffers are mapped, not new-ed
    NIBBLE_TRY(session, Session::create(model, {.max_step_tokens = 2, .max_outputs = 2}));
    ++tally.sessions;
    CHECK(session.bytes() <= kLargestAllocation);
    const std::int32_t tokens[] = {0, static_cast<std::int32_t>(model.config().vocab_size) - 1};
    NIBBLE_TRY(first, session.append({tokens, 1}));
    CHECK(first.extent(1) == Index{model.config().vocab_size});
    if (session.capacity() < 2) return ok();
    NIBBLE_TRY(second, session.append({tokens + 1, 1}));
    // Read every logit: whatever its value is, it must be initialized memory of the session.
    float sum = 0;
    for (Index j = 0; j < second.extent(1); ++j) sum += second(0, j);
    CHECK((sum == sum || sum != sum));
    return ok();
  };
  const Result<void> status = run();
  if (!status) {
    ++tally.errors;
    CHECK_FALSE(status.error().message.empty());
    CHECK(status.error().code != Errc::out_of_memory);
  }
  CHECK(test::largest_allocation <= kLargestAllocation);
}

RandomModel tiny_model(Architecture architecture, const std::vector<Format>& formats) {
  ModelShape s;
  s.architecture = architecture;
  s.vocab_size = 6;
  s.dim = formats[0] == Format::f32 ? 8 : 32;
  s.n_layers = 2;
  s.n_heads = 2;
  s.n_kv_heads = 1;
  s.head_dim = s.dim / 2;
  s.rope_dim = 4;
  s.ffn_dim = formats[0] == Format::f32 ? 5 : 32;
  s.n_ctx = 12;
  s.qkv_bias = true;
  s.rope_factors = architecture == Architecture::llama;
  s.rope_scale = 2;
  s.formats = formats;
  return RandomModel(s, 1);
}

// The parts of a file, which tests change before they write it.
struct Recipe {
  struct Tensor {
    std::string name;
    io::GgmlType type;
    std::vector<std::uint64_t> dims;
    Bytes data;
  };
  io::GgufWriter metadata;
  std::vector<Tensor> tensors;

  Bytes write() const {
    io::GgufWriter writer = metadata;
    for (const Tensor& t : tensors) writer.add_tensor(t.name, t.type, t.dims, t.data);
    auto bytes = writer.to_bytes();
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    return *std::move(bytes);
  }
};

Recipe recipe_of(const RandomModel& model) {
  Recipe recipe;
  recipe.metadata = model.metadata();
  recipe.metadata.set("tokenizer.ggml.model", "llama");
  recipe.metadata.set_array("tokenizer.ggml.tokens",
                            std::vector<std::string>{"<unk>", "<s>", "</s>", "a", "b", "ab"});
  recipe.metadata.set_array("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -1, -2, -3});
  recipe.metadata.set_array("tokenizer.ggml.token_type", std::vector<int>{2, 3, 3, 1, 1, 1});
  const Bytes bytes = model.gguf();
  const auto file = io::Gguf::parse(bytes, "tiny.gguf");
  REQUIRE(file.has_value());
  for (const io::GgufTensor& t : file->tensors()) {
    recipe.tensors.push_back({std::string(t.name),
                              t.type,
                              {t.dims.begin(), t.dims.begin() + t.n_dims},
                              {t.data.begin(), t.data.end()}});
  }
  return recipe;
}

// Calls f for the models that the tests start from.
void for_each_recipe(const std::function<void(const Recipe&)>& f) {
  f(recipe_of(tiny_model(Architecture::llama, {Format::f32})));
  f(recipe_of(tiny_model(Architecture::gpt2, {Format::f32})));
  f(recipe_of(tiny_model(Architecture::llama, {Format::q8_0, Format::q4_1, Format::f16})));
}

// Number of bytes before the tensor data.
std::size_t header_size(const Recipe& recipe) {
  Recipe without = recipe;
  for (auto& t : without.tensors) t.dims = {0}, t.data.clear();
  return recipe.write().size() - [&] {
    std::size_t data = 0;
    for (const auto& t : recipe.tensors) data += (t.data.size() + 31) / 32 * 32;
    return data;
  }();
}

}  // namespace

TEST_CASE("the files to start from are good") {
  for_each_recipe([](const Recipe& recipe) {
    Tally tally;
    try_file(recipe.write(), tally);
    CHECK(tally.errors == 0);
    CHECK(tally.sessions == 1);
  });
}

TEST_CASE("cut at every length") {
  for_each_recipe([](const Recipe& recipe) {
    const Bytes bytes = recipe.write();
    Tally tally;
    int cuts = 0;
    for (std::size_t size = 0; size < bytes.size(); size += size < 256 ? 1 : 7) {
      try_file(std::span(bytes).first(size), tally);
      ++cuts;
    }
    CHECK(cuts > 500);
    // Only the padding after the last tensor may be missing.
    CHECK(tally.models <= 5);
  });
}

TEST_CASE("bits flipped and bytes replaced") {
  for_each_recipe([](const Recipe& recipe) {
    const Bytes bytes = recipe.write();
    const std::size_t header = header_size(recipe);
    REQUIRE(header > 500);
    REQUIRE(header < bytes.size());
    std::mt19937 random(7);
    Tally tally;
    for (std::size_t at = 0; at < header; ++at) {
      Bytes changed = bytes;
      changed[at] ^= std::byte{1} << (random() % 8);
      try_file(changed, tally);
      for (const std::byte value : {std::byte{0}, std::byte{255}}) {
        if (random() % 4 != 0) continue;
        changed = bytes;
        changed[at] = value;
        try_file(changed, tally);
      }
    }
    for (int i = 0; i < 300; ++i) {  // weights: NaN, infinities, huge scales
      Bytes changed = bytes;
      for (int n = 0; n < 8; ++n) {
        changed[header + random() % (bytes.size() - header)] =
            std::byte(random() % 2 ? 0xff : 0x7f);
      }
      try_file(changed, tally);
    }
    CHECK(tally.errors > 500);
    CHECK(tally.sessions > 300);
  });
}

TEST_CASE("absurd numbers in the metadata") {
  for_each_recipe([](const Recipe& recipe) {
    const Bytes bytes = recipe.write();
    const auto file = io::Gguf::parse(bytes, "tiny.gguf");
    REQUIRE(file.has_value());
    Tally tally;
    int n = 0;
    const auto with = [&](std::string_view key, auto value) {
      Recipe changed = recipe;
      changed.metadata.set(key, value);
      try_file(changed.write(), tally);
      ++n;
    };
    std::vector<std::string> keys = {
        "llama.rope.freq_base",          "llama.rope.scaling.factor",
        "llama.rope.scale_linear",       "llama.attention.key_length",
        "gpt2.attention.key_length",     "llama.attention.value_length",
        "llama.rope.scaling.type",       "gpt2.attention.head_count_kv",
        "llama.attention.sliding_window"};
    for (const io::GgufEntry& entry : file->metadata()) keys.emplace_back(entry.key);
    for (const std::string& key : keys) {
      if (key == io::kGgufAlignmentKey) continue;
      for (const std::uint32_t v :
           {0u, 1u, 2u, 3u, 7u, 11u, 4096u, 65536u, 1u << 20, 1u << 30, 0x7fffffffu, 0xffffffffu}) {
        with(key, v);
      }
      for (const std::uint64_t v :
           {std::uint64_t{1} << 32, std::uint64_t{1} << 62, ~std::uint64_t{0}}) {
        with(key, v);
      }
      with(key, std::int32_t{-1});
      with(key, std::int64_t{-8});
      for (const float v : {0.0f, -1.0f, 1e-45f, 1e-38f, 1e38f, INFINITY, -INFINITY, NAN}) {
        with(key, v);
      }
      with(key, 1e300);
      with(key, true);
      with(key, std::string_view("none"));
      with(key, std::string_view("a text of another length"));
      Recipe changed = recipe;
      changed.metadata.set_array(key, std::vector<std::uint32_t>{1, 2, 3});
      try_file(changed.write(), tally);
    }
    CHECK(n > 300);
    CHECK(tally.errors > 200);
    CHECK(tally.sessions > 20);
  });
}

TEST_CASE("tensors missing, added, of other shapes and types") {
  for_each_recipe([](const Recipe& recipe) {
    Tally good, bad;
    try_file(recipe.write(), good);
    for (std::size_t i = 0; i < recipe.tensors.size(); ++i) {
      const Recipe::Tensor& original = recipe.tensors[i];
      CAPTURE(original.name);
      // Without these a model is a different one, not a broken one.
      const bool optional =
          original.name == "output.weight" || original.name == "rope_freqs.weight" ||
          (original.name.ends_with(".bias") && recipe.tensors[0].name == "token_embd.weight" &&
           recipe.tensors[1].name != "position_embd.weight");
      const auto changed = [&](auto change) {
        Recipe copy = recipe;
        change(copy.tensors[i]);
        return copy.write();
      };
      {
        Recipe copy = recipe;
        copy.tensors.erase(copy.tensors.begin() + static_cast<std::ptrdiff_t>(i));
        try_file(copy.write(), optional ? good : bad);
        copy.tensors.push_back(original);  // at another place
        try_file(copy.write(), good);
        copy.tensors.push_back(original);
        copy.tensors.back().name += "x";
        try_file(copy.write(), bad);
        copy.tensors.back().name = "blk.2.attn_q.weight";
        try_file(copy.write(), bad);
      }
      try_file(changed([](auto& t) { t.name += ".weight"; }), bad);
      // One row more, one row less, one column more, transposed, flat, with a third dimension.
      const std::size_t row = original.dims.size() == 1 ? original.data.size()
                                                        : original.data.size() / original.dims[1];
      if (original.dims.size() == 2) {
        for (const int by : {-1, 1}) {
          // The embedding's rows determine the size of the vocabulary; then the output differs.
          try_file(changed([&](auto& t) {
                     t.dims[1] =
                         static_cast<std::uint64_t>(static_cast<std::int64_t>(t.dims[1]) + by);
                     t.data.resize(row * t.dims[1]);
                   }),
                   bad);
        }
        const bool is_f32 = original.type == io::GgmlType::f32;
        if (is_f32 && original.dims[0] != original.dims[1]) {
          try_file(changed([](auto& t) { std::swap(t.dims[0], t.dims[1]); }), bad);
        }
        if (is_f32 && original.dims[1] != 1) {
          try_file(changed([](auto& t) { t.dims = {t.dims[0] * t.dims[1]}; }), bad);
        }
        try_file(changed([](auto& t) {
                   t.dims.push_back(2);
                   t.data.resize(t.data.size() * 2);
                 }),
                 bad);
      } else if (original.name != "rope_freqs.weight") {
        try_file(changed([](auto& t) {
                   t.dims.push_back(2);
                   t.data.resize(t.data.size() * 2);
                 }),
                 bad);
      }
      for (const std::uint64_t width : {std::uint64_t{64}, original.dims[0] + 32}) {
        try_file(changed([&](auto& t) {
                   t.dims[0] = width;
                   t.data.resize(*io::tensor_bytes(t.type, t.dims));
                 }),
                 bad);
      }
      // Types that have kernels are accepted where rows are whole blocks; others are not.
      for (const io::GgmlType type :
           {io::GgmlType::f16, io::GgmlType::bf16, io::GgmlType::q4_0, io::GgmlType::q8_0,
            io::GgmlType::q5_0, io::GgmlType::f64, io::GgmlType::i8, io::GgmlType::i32}) {
        const auto bytes = io::tensor_bytes(type, original.dims);
        if (!bytes) continue;
        Tally either;
        try_file(changed([&](auto& t) {
                   t.type = type;
                   t.data.assign(*bytes, std::byte{0x3c});
                 }),
                 either);
        const bool known = quant::format_of(type).has_value();
        if (!known) CHECK(either.errors == 1);
      }
    }
    CHECK(good.errors == 0);
    CHECK(good.sessions > 20);
    CHECK(bad.models == 0);
    CHECK(bad.errors > 100);
  });
}

TEST_CASE("a store refuses what does not fit") {
  WeightStore store(1, graph::AllFormats{});
  alignas(8) const std::byte bytes[64] = {};
  const auto code = [&](Slot slot, Index layer, Format format, Index n, Index k,
                        std::span<const std::byte> rows) {
    const auto status = store.add(slot, layer, format, n, k, rows);
    return status ? std::optional<Errc>() : std::optional<Errc>(status.error().code);
  };
  using enum Slot;
  const std::span<const std::byte> all(bytes);
  CHECK(code(attn_q, 1, Format::f32, 4, 4, all) == Errc::invalid_argument);
  CHECK(code(attn_q, -2, Format::f32, 4, 4, all) == Errc::invalid_argument);
  CHECK(code(attn_q, Index{1} << 62, Format::f32, 4, 4, all) == Errc::invalid_argument);
  CHECK(code(attn_q, 0, Format::f32, 4, 5, all) == Errc::invalid_argument);
  CHECK(code(attn_q, 0, Format::f32, -4, 4, all) == Errc::invalid_argument);
  CHECK(code(attn_q, 0, Format::f32, 4, 0, {}) == Errc::invalid_argument);
  CHECK(code(attn_q, 0, Format::f32, 4, -4, all).has_value());
  CHECK(code(attn_q, 0, Format::q8_0, 1, 33, all) == Errc::invalid_argument);
  CHECK(code(attn_q, 0, Format::i8_channel, 1, 48, all).has_value());
  CHECK(code(attn_norm, 0, Format::q8_0, 0, 32, all.first(34)) == Errc::unsupported);
  CHECK_FALSE(code(attn_q, 0, Format::f16, 3, 4, all.subspan(1, 24)).has_value());  // anywhere
  CHECK_FALSE(code(attn_k, 0, Format::f32, 4, 4, all).has_value());
  CHECK(code(attn_k, 0, Format::f32, 2, 8, all) == Errc::invalid_argument);  // twice
  InlineExecutor executor;
  const auto stop = [](std::size_t, std::size_t) { return false; };
  const Progress progress = stop;
  const auto packed = store.pack(executor, &progress);
  REQUIRE_FALSE(packed.has_value());
  CHECK(packed.error().code == Errc::cancelled);
}

}  // namespace hostile_test
