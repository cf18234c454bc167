// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "why.hpp"

namespace quantize_test {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;

namespace {

io::Gguf open_shipped() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR is not set");
  auto file = io::Gguf::open(std::string(folder) + "/examples/models/home-commands-f16.gguf");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

struct Converted {
  std::vector<std::byte> bytes;
  std::map<std::string, ConvertedTensor> report;
};

Converted convert(const io::Gguf& file, const WeightedConvertOptions& options) {
  Converted result;
  auto bytes = quantize_model(file, weighted(options), [&](const ConvertedTensor& tensor) {
    result.report[tensor.name] = tensor;
    return true;
  });
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  result.bytes = *std::move(bytes);
  return result;
}

std::vector<float> weights_of(const io::GgufTensor& tensor) {
  std::vector<float> w(static_cast<std::size_t>(tensor.n_elements()));
  REQUIRE(quant::row_to_f32(tensor.type, tensor.data, w));
  return w;
}

// Importance by tensor: from 1 to 17, in another order for each name.
std::vector<float> importance_of(std::string_view name, std::size_t k) {
  std::vector<float> w(k);
  for (std::size_t j = 0; j < k; ++j) {
    w[j] = 1.0f + static_cast<float>((j * 5 + name.size() * 3) % 17);
  }
  return w;
}

}  // namespace

TEST_CASE("every matrix is searched with the importance of its name, whatever runs it") {
  const auto file = open_shipped();
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool);
  std::map<std::string, std::vector<float>> all;
  for (const auto& tensor : file.tensors()) {
    if (tensor.n_dims < 2 || tensor.name == "blk.1.attn_k.weight") continue;
    all[std::string(tensor.name)] =
        importance_of(tensor.name, static_cast<std::size_t>(tensor.dims[0]));
  }
  for (const quant::Emphasis emphasis : {quant::Emphasis::none, quant::Emphasis::magnitude}) {
    WeightedConvertOptions options;
    options.convert.format = Format::q4_0;
    options.convert.choose = [](std::string_view name) -> std::optional<Format> {
      if (name == "blk.0.ffn_up.weight") return Format::f16;    // stays
      if (name == "blk.0.ffn_down.weight") return Format::f32;  // no blocks
      if (name == "blk.2.ffn_up.weight") return Format::q4_k;
      return std::nullopt;
    };
    options.importance = [&](std::string_view name) -> std::span<const float> {
      const auto found = all.find(std::string(name));
      if (found == all.end()) return {};
      return found->second;
    };
    options.emphasis = emphasis;
    const Converted alone = convert(file, options);
    options.convert.executor = pool->get();
    CHECK(convert(file, options).bytes == alone.bytes);
    const auto out = io::Gguf::parse(alone.bytes, "out");
    REQUIRE_MESSAGE(out, test::why(out));
    for (const auto& tensor : file.tensors()) {
      CAPTURE(std::string(tensor.name));
      const auto written = out->tensor(tensor.name);
      REQUIRE(written);
      const auto& plan = alone.report.at(std::string(tensor.name));
      CHECK(written->type == *quant::ggml_type_of(plan.to));
      const std::vector<float> before = weights_of(tensor), after = weights_of(*written);
      double errors = 0;
      for (std::size_t i = 0; i < before.size(); ++i) {
        errors += std::pow(double{before[i]} - double{after[i]}, 2);
      }
      CHECK(plan.errors.sum_squared_error == doctest::Approx(errors).epsilon(1e-6));
      const auto k = static_cast<std::size_t>(tensor.dims[0]);
      const auto row_bytes = *quant::row_bytes(plan.to, k);
      std::vector<std::byte> row(row_bytes);
      std::vector<float> w(k);
      for (std::size_t r = 0; r < before.size() / k; r += 7) {
        const auto x = std::span(before).subspan(r * k, k);
        if (tensor.n_dims < 2) {
          REQUIRE(quant::row_from_f32(plan.to, x, row));
        } else {
          const auto given = options.importance(tensor.name);
          quant::emphasize(emphasis, x, given, w);
          REQUIRE(quant::search_row(plan.to, x, w, row));
        }
        CHECK(std::memcmp(row.data(), written->data.data() + r * row_bytes, row_bytes) == 0);
      }
    }
  }
}

namespace {

// Of rows whose channels are alike, more or less.
InputStatistics alike_inputs(Index k, float common, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  InputStatistics input(k, {.second_moments = true});
  std::vector<float> x(static_cast<std::size_t>(k));
  for (Index t = 0; t < 2 * k; ++t) {
    const float shared = common * normal(random);
    for (float& v : x) v = normal(random) + shared;
    input.add(MatrixView<const float>(x.data(), Index{1}, k));
  }
  return input;
}

std::vector<double> moments_of(const InputStatistics& input) {
  std::vector<double> h(static_cast<std::size_t>(input.k() * input.k()));
  input.copy_second_moments(h);
  return h;
}

}  // namespace

TEST_CASE("matrices whose second moments are known are rounded by columns, each by its own") {
  const auto file = open_shipped();
  const std::string name = "blk.1.attn_q.weight", same_inputs = "blk.1.attn_v.weight";
  const std::string other_inputs = "blk.1.ffn_up.weight";  // rows as long, after them in the file
  const auto tensor = file.tensor(name);
  REQUIRE(tensor);
  const auto k = static_cast<Index>(tensor->dims[0]), n = static_cast<Index>(tensor->dims[1]);
  REQUIRE(file.tensor(other_inputs)->dims[0] == tensor->dims[0]);
  Statistics statistics;
  const std::vector<std::string> first = {name, same_inputs}, second = {other_inputs};
  REQUIRE(statistics.add(alike_inputs(k, 2, 5), first));
  REQUIRE(statistics.add(alike_inputs(k, 1, 6), second));
  WeightedConvertOptions options;
  options.convert.format = Format::q4_0;
  options.statistics = &statistics;
  options.by_columns = true;
  options.columns.damping = 0.05;
  const Converted converted = convert(file, options);
  const auto out = io::Gguf::parse(converted.bytes, "out");
  REQUIRE(out);
  for (const std::string& by_columns : {name, same_inputs, other_inputs}) {
    CAPTURE(by_columns);
    const auto h = moments_of(*statistics.find(by_columns));
    const auto before = weights_of(*file.tensor(by_columns));
    const auto written = *out->tensor(by_columns);
    InlineExecutor executor;
    const auto factor = ColumnFactor::create(h, k, {.damping = 0.05}, executor);
    REQUIRE(factor);
    std::vector<std::byte> rows(written.data.size());
    REQUIRE(
        round_columns(*factor, before, static_cast<Index>(written.dims[1]), {}, executor, rows));
    CHECK(std::equal(rows.begin(), rows.end(), written.data.begin()));
  }
  WeightedConvertOptions plain = options;
  plain.statistics = nullptr;
  const Converted by_rows = convert(file, plain);
  const auto other = io::Gguf::parse(by_rows.bytes, "other");
  REQUIRE(other);
  const auto before = weights_of(*tensor);
  const auto h = moments_of(*statistics.find(name));
  CHECK(output_error(before, weights_of(*out->tensor(name)), n, k, h) <
        0.8 * output_error(before, weights_of(*other->tensor(name)), n, k, h));
  CHECK(std::ranges::equal(out->tensor("blk.0.attn_q.weight")->data,
                           other->tensor("blk.0.attn_q.weight")->data));
}

TEST_CASE("what was observed gives the importance of columns, unless something else does") {
  const auto file = open_shipped();
  const std::string name = "blk.1.attn_q.weight";
  const auto k = static_cast<std::size_t>(file.tensor(name)->dims[0]);
  Statistics statistics;
  InputStatistics input(static_cast<Index>(k));
  const auto squares = importance_of(name, k);
  std::vector<float> x;
  for (const float w : squares) x.push_back(std::sqrt(w));
  input.add(MatrixView<const float>(x.data(), Index{1}, static_cast<Index>(k)));
  const std::vector<std::string> names = {name};
  REQUIRE(statistics.add(std::move(input), names));
  WeightedConvertOptions observed, given, both;
  observed.convert.format = given.convert.format = Format::q4_0;
  // One layer: to search all of them takes long.
  observed.convert.choose = given.convert.choose = [](std::string_view of) {
    return of.starts_with("blk.1.") ? Format::q4_0 : Format::f16;
  };
  observed.statistics = &statistics;
  std::vector<float> of_name;
  given.importance = [&](std::string_view of) -> std::span<const float> {
    if (of != name) return {};
    of_name.clear();
    for (const float v : x) of_name.push_back(v * v);
    return of_name;
  };
  CHECK(convert(file, observed).bytes == convert(file, given).bytes);
  both = given;
  both.statistics = &statistics;
  both.importance = [&](std::string_view) {
    of_name.assign(k, 1.0f);
    return std::span<const float>(of_name);
  };
  WeightedConvertOptions ones = both;
  ones.statistics = nullptr;
  // (Rows of another length than k are refused: only those of this one are compared.)
  both.convert.choose = ones.convert.choose = [&](std::string_view of) {
    const bool is_searched = of.starts_with("blk.1.") && file.find_tensor(of)->dims[0] == k;
    return is_searched ? Format::q4_0 : Format::f16;
  };
  CHECK(convert(file, both).bytes == convert(file, ones).bytes);
}

TEST_CASE("a tensor of several matrices has importance for each or for all") {
  std::vector<float> w(3 * 2 * 64);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& v : w) v = normal(random);
  io::GgufWriter writer;
  writer.set("general.architecture", "llama");
  const std::array<std::uint64_t, 3> dims = {64, 2, 3};
  writer.add_tensor("experts", io::GgmlType::f32, dims, std::as_bytes(std::span(w)));
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = io::Gguf::parse(*bytes, "experts");
  REQUIRE(file);
  std::vector<float> importance;
  for (const char* const name : {"a", "bb", "ccc"}) {
    const auto one = importance_of(name, 64);
    importance.insert(importance.end(), one.begin(), one.end());
  }
  for (const std::size_t n : {std::size_t{64}, importance.size()}) {
    WeightedConvertOptions options;
    options.convert.format = Format::q4_0;
    options.importance = [&](std::string_view) { return std::span(importance).first(n); };
    const auto out = io::Gguf::parse(convert(*file, options).bytes, "out");
    REQUIRE(out);
    std::vector<std::byte> row(36);
    for (std::size_t r = 0; r < 6; ++r) {
      REQUIRE(quant::search_row(Format::q4_0, std::span(w).subspan(r * 64, 64),
                                std::span(importance).subspan(n == 64 ? 0 : r / 2 * 64, 64), row));
      CHECK(std::memcmp(row.data(), out->tensors()[0].data.data() + r * 36, 36) == 0);
    }
  }
}

TEST_CASE("statistics of another model are refused, with the tensor's name") {
  const auto file = open_shipped();
  const auto refused = [&](const WeightedConvertOptions& options) {
    const auto bytes = quantize_model(file, weighted(options));
    REQUIRE(!bytes);
    return bytes.error();
  };
  std::vector<float> importance(100, 1.0f);
  WeightedConvertOptions options;
  options.convert.format = Format::q4_0;
  options.importance = [&](std::string_view) { return std::span<const float>(importance); };
  Error error = refused(options);
  CHECK(error.code == Errc::invalid_argument);
  CHECK(error.message.find("weight'") != std::string::npos);
  CHECK(error.message.find("importance of 100 columns for rows of 256") != std::string::npos);
  importance.assign(256, 1.0f);
  importance[9] = NAN;
  CHECK(refused(options).message.find("column 9") != std::string::npos);
  options.importance = {};
  options.by_columns = true;
  const std::vector<std::string> names = {"blk.0.attn_q.weight"};
  for (const Index k : {16, 256}) {  // of rows of another length, and of nothing
    Statistics statistics;
    REQUIRE(statistics.add(InputStatistics(k, {.second_moments = true}), names));
    options.statistics = &statistics;
    error = refused(options);
    CHECK(error.code == (k == 16 ? Errc::invalid_argument : Errc::malformed));
    CHECK(error.message.find(k == 16 ? "moments of 16 columns" : "no data were seen") !=
          std::string::npos);
  }
  // An error of one matrix leaves nothing behind for those after it.
  Statistics some;
  const std::vector<std::string> seen = {"blk.0.attn_k.weight"};
  REQUIRE(some.add(alike_inputs(256, 2, 8), seen));
  REQUIRE(some.add(InputStatistics(256, {.second_moments = true}), names));
  options.statistics = &some;
  const ConvertOptions shared = weighted(options);
  const auto first = quantize_tensor(file, seen[0], shared);
  REQUIRE_MESSAGE(first, test::why(first));
  CHECK(!quantize_tensor(file, names[0], shared));
  const auto again = quantize_tensor(file, seen[0], shared);
  REQUIRE_MESSAGE(again, test::why(again));
  CHECK(*again == *first);
  options.statistics = nullptr;
  const auto cancelled =
      quantize_model(file, weighted(options), [](const ConvertedTensor&) { return false; });
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code == Errc::cancelled);
}

}  // namespace quantize_test
