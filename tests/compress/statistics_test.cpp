// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/statistics.hpp"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "why.hpp"

namespace statistics_test {

using namespace nibble;
using namespace nibble::compress;

namespace {

struct Rows {
  Index m, k, stride;
  std::vector<float> x;

  Rows(Index rows, Index columns, std::uint32_t seed)
      : m(rows),
        k(columns),
        stride(columns + 3),
        x(static_cast<std::size_t>(m * stride), 1e30f) {  // what is between rows is not read
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (Index i = 0; i < m; ++i) {
      const float common = normal(random);
      for (Index j = 0; j < k; ++j) {
        x[static_cast<std::size_t>(i * stride + j)] =
            (normal(random) + common) * static_cast<float>(1 + j % 5) + (j == 2 ? 3.0f : 0.0f);
      }
    }
  }
  float operator()(Index i, Index j) const { return x[static_cast<std::size_t>(i * stride + j)]; }
  MatrixView<const float> view(Index first, Index n) const {
    return {x.data() + first * stride, {n, k}, {stride, 1}};
  }
};

void check_statistics(const InputStatistics& s, const Rows& rows) {
  CHECK(s.k() == rows.k);
  CHECK(s.n_rows() == static_cast<std::uint64_t>(rows.m));
  double all_low = INFINITY, all_high = -INFINITY;
  for (Index j = 0; j < rows.k; ++j) {
    double sum = 0, squares = 0, sizes = 0, low = INFINITY, high = -INFINITY;
    for (Index i = 0; i < rows.m; ++i) {
      const double v = static_cast<double>(rows(i, j));
      sum += v;
      squares += v * v;
      sizes += std::fabs(v);
      low = std::fmin(low, v);
      high = std::fmax(high, v);
    }
    CHECK(s.sum(j) == doctest::Approx(sum).epsilon(1e-12));
    CHECK(s.sum_squares(j) == doctest::Approx(squares).epsilon(1e-12));
    CHECK(s.sum_sizes(j) == doctest::Approx(sizes).epsilon(1e-12));
    CHECK(static_cast<double>(s.smallest(j)) == low);
    CHECK(static_cast<double>(s.largest(j)) == high);
    all_low = std::fmin(all_low, low);
    all_high = std::fmax(all_high, high);
  }
  CHECK(static_cast<double>(s.smallest()) == all_low);
  CHECK(static_cast<double>(s.largest()) == all_high);
  CHECK(s.histogram().n_values() == static_cast<std::uint64_t>(rows.m * rows.k));
}

void check_moments(const InputStatistics& s, const Rows& rows) {
  REQUIRE(s.has_second_moments());
  std::vector<double> whole(static_cast<std::size_t>(rows.k * rows.k));
  s.copy_second_moments(whole);
  for (Index a = 0; a < rows.k; ++a) {
    for (Index b = 0; b < rows.k; ++b) {
      double sum = 0, sizes = 0;
      for (Index i = 0; i < rows.m; ++i) {
        const double product = static_cast<double>(rows(i, a)) * static_cast<double>(rows(i, b));
        sum += product;
        sizes += std::fabs(product);
      }
      // Sums of up to 16 products in floats: each product and each addition rounds once.
      CHECK(std::fabs(s.second_moment(a, b) - sum) <= 16 * std::exp2(-23) * sizes);
      CHECK(whole[static_cast<std::size_t>(a * rows.k + b)] == s.second_moment(a, b));
    }
  }
}

constexpr InputStatisticsOptions kAll{.second_moments = true, .channel_histograms = true};

// A file with matrices of these names, all with rows of k weights.
io::Gguf file_with(const std::vector<std::string>& names, std::uint64_t k) {
  static std::vector<float> weights;
  weights.assign(static_cast<std::size_t>(4 * k), 1.0f);
  io::GgufWriter writer;
  const std::uint64_t dims[] = {k, 4};
  for (const std::string& name : names) {
    writer.add_tensor(name, io::GgmlType::f32, dims, std::as_bytes(std::span(weights)));
  }
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  auto memory = AlignedBuffer::allocate(bytes->size());
  REQUIRE(memory);
  std::memcpy(memory->data(), bytes->data(), bytes->size());
  auto file = io::Gguf::parse(*std::move(memory), "model.gguf");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

InputStatistics of_rows(const Rows& rows, const InputStatisticsOptions& options = {}) {
  InputStatistics s(rows.k, options);
  s.add(rows.view(0, rows.m));
  return s;
}

}  // namespace

TEST_CASE("statistics: sums, extremes and second moments, of rows in pieces of any size") {
  // Beyond the pieces in which moments are computed: 16 rows, 32 of their rows, 256 columns.
  for (const Index k : {Index{1}, Index{3}, Index{33}, Index{70}, Index{290}}) {
    for (const Index piece : {Index{1}, Index{5}, Index{16}, Index{40}}) {
      CAPTURE(k);
      CAPTURE(piece);
      const Rows rows(k > 100 ? 21 : 53, k, static_cast<std::uint32_t>(k));
      InputStatistics s(k, {.second_moments = true});
      for (Index i = 0; i < rows.m; i += piece) {
        s.add(rows.view(i, std::min(piece, rows.m - i)));
      }
      check_statistics(s, rows);
      if (piece == 16 || k < 100) check_moments(s, rows);
    }
  }
}

TEST_CASE("statistics: workers compute the same moments") {
  const Rows rows(37, 131, 7);
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool);
  InputStatistics alone(131, {.second_moments = true}), together(131, {.second_moments = true});
  alone.add(rows.view(0, 37));
  together.add(rows.view(0, 37), pool->get());
  for (Index i = 0; i < 131; ++i) {
    for (Index j = 0; j < 131; ++j)
      CHECK(alone.second_moment(i, j) == together.second_moment(i, j));
  }
}

TEST_CASE("statistics: merging two is observing both") {
  const Rows rows(40, 19, 3);
  InputStatistics a(19, kAll), b(19, kAll);
  a.add(rows.view(0, 13));
  b.add(rows.view(13, 27));
  REQUIRE(a.merge(b));
  check_statistics(a, rows);
  check_moments(a, rows);
  const InputStatistics whole = of_rows(rows, kAll);
  for (Index j = 0; j < 19; ++j) {
    CHECK(std::equal(a.histogram(j).above_zero().begin(), a.histogram(j).above_zero().end(),
                     whole.histogram(j).above_zero().begin()));
    CHECK(a.histogram(j).n_values() == 40);
  }
  REQUIRE(a.merge(InputStatistics(19, kAll)));  // of nothing
  check_statistics(a, rows);
  CHECK(!a.merge(InputStatistics(18, kAll)));
  CHECK(!a.merge(InputStatistics(19)));
}

TEST_CASE("statistics: memory does not grow with the rows") {
  Rows rows(64, 200, 5);
  InputStatistics s(200, kAll);
  const std::size_t bytes = s.bytes();
  const long long n_allocations = allocation_count(), n_bytes = allocated_bytes();
  for (int i = 0; i < 50; ++i) {
    for (float& x : rows.x) x *= i % 2 == 0 ? 3.0f : -0.5f;  // ranges grow, signs change
    s.add(rows.view(0, 64));
  }
  CHECK(allocation_count() == n_allocations);
  CHECK(allocated_bytes() == n_bytes);
  CHECK(s.bytes() == bytes);
  CHECK(s.n_rows() == 3200);
  // What it says it holds is what it was given.
  InputStatistics again(200, kAll);
  const long long held = allocated_bytes() - n_bytes;
  CHECK((held == 0 || held == static_cast<long long>(again.bytes())));
}

TEST_CASE("statistics: ranges of an input and of its channels") {
  const Rows rows(500, 6, 11);
  const InputStatistics plain = of_rows(rows), full = of_rows(rows, kAll);
  for (const bool is_unsigned : {false, true}) {
    const auto all = plain.range({RangeMethod::min_max, is_unsigned});
    REQUIRE(all);
    float largest_scale = 0;
    for (Index j = 0; j < 6; ++j) {
      const auto one = plain.range(j, {RangeMethod::min_max, is_unsigned});
      const auto same = full.range(j, {RangeMethod::min_max, is_unsigned});
      REQUIRE(one);
      REQUIRE(same);
      CHECK(one->scale.scale == same->scale.scale);
      CHECK(one->scale.zero_point == same->scale.zero_point);
      largest_scale = std::fmax(largest_scale, one->scale.scale);
      if (!is_unsigned) {
        CHECK(one->scale.scale ==
              doctest::Approx(std::fmax(-plain.smallest(j), plain.largest(j)) / 127));
      }
      const auto finer = full.range(j, {RangeMethod::mse, is_unsigned});
      REQUIRE(finer);
      CHECK(finer->scale.scale <= one->scale.scale * 1.0001f);
    }
    if (!is_unsigned) CHECK(all->scale.scale == largest_scale);
  }
  const auto none = plain.range(0, {RangeMethod::kl});
  CHECK(test::why(none).find("channel histograms") != std::string::npos);
  CHECK(test::why(InputStatistics(3).range()).find("no numbers") != std::string::npos);
  CHECK(!InputStatistics(3).range(0));
}

TEST_CASE("statistics: by name, shared by matrices with one input, for one model") {
  const Rows rows(9, 5, 13), others(4, 5, 14);
  const std::string qkv[] = {"blk.0.attn_v.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight"};
  const std::string output[] = {"output.weight"};
  Statistics s;
  REQUIRE(s.add(of_rows(rows), qkv));
  REQUIRE(s.add(of_rows(others), output));
  CHECK(s.inputs().size() == 2);
  REQUIRE(s.entries().size() == 4);
  for (std::size_t i = 1; i < 4; ++i) CHECK(s.entries()[i - 1].name < s.entries()[i].name);
  CHECK(s.find("blk.0.attn_q.weight") == s.find("blk.0.attn_v.weight"));
  CHECK(s.find("blk.0.attn_q.weight") != s.find("output.weight"));
  CHECK(s.find("blk.0.attn_z.weight") == nullptr);
  check_statistics(*s.find("output.weight"), others);
  check_statistics(*s.find("blk.0.attn_k.weight"), rows);
  CHECK(!s.add(of_rows(rows), output));  // twice
  CHECK(!s.add(of_rows(rows), {}));
  CHECK(s.inputs().size() == 2);

  std::vector<std::string> names(std::begin(qkv), std::end(qkv));
  names.push_back("output.weight");
  names.push_back("token_embd.weight");
  CHECK(test::why(s.check_model(file_with(names, 5))) == "");
  const auto about = [](const Result<void>& r, const char* what) {
    CAPTURE(test::why(r));
    CHECK(!r);
    CHECK(test::why(r).find(what) != std::string::npos);
  };
  about(s.check_model(file_with(names, 6)),
        "6 columns, its statistics 5: they are of another model");
  names.push_back("blk.1.attn_q.weight");
  about(s.check_model(file_with(names, 5)), "no statistics for 'blk.1.attn_q.weight'");
  about(s.check_model(file_with({"output.weight"}, 5)),
        "'blk.0.attn_k.weight', but no such tensor");

  Statistics same, less, longer;
  REQUIRE(same.add(of_rows(others), qkv));
  REQUIRE(same.add(of_rows(rows), output));
  REQUIRE(s.merge(same));
  CHECK(s.find("output.weight")->n_rows() == 13);
  REQUIRE(less.add(of_rows(others), qkv));
  about(s.merge(less), "of another model");
  const Rows six(4, 6, 1);
  REQUIRE(longer.add(of_rows(others), qkv));
  REQUIRE(longer.add(of_rows(six), output));
  about(s.merge(longer), "of another model");
  Statistics renamed;
  const std::string head[] = {"head.weight"};
  REQUIRE(renamed.add(of_rows(others), qkv));
  REQUIRE(renamed.add(of_rows(rows), head));
  about(s.merge(renamed), "'head.weight'");
  CHECK(s.find("output.weight")->n_rows() == 13);
}

}  // namespace statistics_test
