// SPDX-License-Identifier: Apache-2.0
#include "nibble/train/data.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "why.hpp"

namespace data_test {

using namespace nibble;
using namespace nibble::train;
using test::contains;

namespace {

using Tokens = std::vector<std::int32_t>;

// Example i has 2 + i % 5 tokens, which start with i; the last two count.
MemorySource numbered(int n) {
  std::vector<Example> examples;
  for (int i = 0; i < n; ++i) {
    Example e;
    for (int j = 0; j < 2 + i % 5; ++j) e.tokens.push_back(j == 0 ? i : 1000 * j + i);
    e.count_from(e.tokens.size() - 2);
    examples.push_back(e);
  }
  return MemorySource(std::move(examples));
}
BatchOptions options_of(Index max_rows, std::uint64_t seed = 7) {
  BatchOptions options;
  options.context = 5;
  options.max_rows = max_rows;
  options.vocabulary = 100000;
  options.seed = seed;
  return options;
}
bool same(const Batch& a, const Batch& b) {
  return a.offsets == b.offsets && a.tokens == b.tokens && a.targets == b.targets &&
         a.weights == b.weights && a.examples == b.examples && a.n_counted == b.n_counted &&
         a.epoch == b.epoch;
}

}  // namespace

TEST_CASE("random numbers are those of splitmix64") {
  // The first outputs of the reference implementation for seeds 0 and 1234567.
  Random zero(0);
  CHECK(zero.next() == 0xE220A8397B1DCDAFu);
  CHECK(zero.next() == 0x6E789E6AA1B965F4u);
  CHECK(zero.next() == 0x06C45D188009454Fu);
  Random other(1234567);
  CHECK(other.next() == 6457827717110365317u);
  CHECK(other.next() == 3203168211198807973u);
  Random again(other.state());
  CHECK(again.next() == other.next());

  // A die of six: 60 000 throws, each side within five standard deviations (91).
  int counts[6] = {};
  for (int i = 0; i < 60000; ++i) ++counts[other.below(6)];
  for (const int count : counts) CHECK(std::abs(count - 10000) < 457);
  // Of 3 · 2³⁰ numbers, those that 3 divides would come twice as often without refusals.
  int thirds[3] = {};
  for (int i = 0; i < 30000; ++i) ++thirds[other.below(3u << 30) % 3];
  for (const int count : thirds) CHECK(std::abs(count - 10000) < 410);
  double mean = 0;
  for (int i = 0; i < 10000; ++i) mean += other.uniform() / 10000;
  CHECK(std::fabs(mean - 0.5) < 0.015);
}

TEST_CASE("all orders of four come, equally often") {
  std::map<std::vector<int>, int> seen;
  Random random(5);
  for (int i = 0; i < 24000; ++i) {
    std::vector<int> x = {0, 1, 2, 3};
    shuffle(std::span(x), random);
    ++seen[x];
  }
  CHECK(seen.size() == 24);
  for (const auto& [order, count] : seen) CHECK(std::abs(count - 1000) < 160);  // 5 deviations
}

TEST_CASE("each epoch has each example once, packed without padding, targets inside borders") {
  const MemorySource source = numbered(103);
  auto batches = Batches::create(source, options_of(16));
  REQUIRE(batches);
  std::vector<std::vector<std::uint32_t>> orders;
  Batch batch;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::uint32_t> order;
    while (order.size() < 103) {
      REQUIRE(batches->next(batch));
      REQUIRE(batch.epoch == epoch);
      REQUIRE(batch.n_rows() > 0);
      REQUIRE(batch.n_rows() <= 16);
      REQUIRE(batch.offsets.front() == 0);
      REQUIRE(batch.offsets.back() == batch.n_rows());
      Index n_counted = 0;
      for (std::size_t s = 0; s < batch.examples.size(); ++s) {
        Example example;
        REQUIRE(source.read(Index{batch.examples[s]}, example));
        const auto n = static_cast<Index>(example.tokens.size()) - 1;
        REQUIRE(batch.offsets[s + 1] - batch.offsets[s] == n);
        for (Index i = 0; i < n; ++i) {
          const auto row = static_cast<std::size_t>(batch.offsets[s] + i);
          const auto at = static_cast<std::size_t>(i);
          REQUIRE(batch.tokens[row] == example.tokens[at]);
          REQUIRE(batch.targets[row] == example.tokens[at + 1]);
          REQUIRE(batch.weights[row] == example.weights[at + 1]);
          n_counted += example.weights[at + 1] > 0 ? 1 : 0;
        }
        order.push_back(batch.examples[s]);
      }
      REQUIRE(batch.n_counted == n_counted);
      REQUIRE(batch.weight == static_cast<double>(n_counted));
      // The next example would not have fitted: what is left is less than the longest.
      if (order.size() < 103) REQUIRE(batch.n_rows() > 16 - 5);
    }
    REQUIRE(std::set<std::uint32_t>(order.begin(), order.end()).size() == 103);
    orders.push_back(order);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  CHECK(!std::is_sorted(orders[0].begin(), orders[0].end()));

  BatchOptions in_order = options_of(1000);
  in_order.shuffles = false;
  in_order.max_sequences = 4;
  auto four = Batches::create(source, in_order);
  REQUIRE(four);
  REQUIRE(four->next(batch));
  CHECK(batch.examples == std::vector<std::uint32_t>{0, 1, 2, 3});
  REQUIRE(four->next(batch));
  CHECK(batch.examples == std::vector<std::uint32_t>{4, 5, 6, 7});
}

TEST_CASE("a batch may be exactly full") {
  const MemorySource source({{{1, 2, 3}, {}}, {{1, 2, 3, 4}, {}}, {{5, 6}, {}}});
  BatchOptions options = options_of(5);
  options.shuffles = false;
  auto batches = Batches::create(source, options);
  REQUIRE(batches);
  Batch batch;
  REQUIRE(batches->next(batch));
  CHECK(batch.n_rows() == 5);
  CHECK(batch.tokens == Tokens{1, 2, 1, 2, 3});
  CHECK(batch.targets == Tokens{2, 3, 2, 3, 4});
  CHECK(batch.weights == std::vector<float>(5, 1.0f));
  CHECK(batch.n_counted == 5);
  REQUIRE(batches->next(batch));
  CHECK(batch.examples == std::vector<std::uint32_t>{2});
}

TEST_CASE("a run that continues sees the same batches; another seed or data does not") {
  const MemorySource source = numbered(40);
  auto whole = Batches::create(source, options_of(9));
  REQUIRE(whole);
  Batch a, b;
  for (int n = 0; n < 45; ++n) {  // into the third epoch
    const DataPosition position = whole->position();
    REQUIRE(whole->next(a));
    auto other = Batches::create(source, options_of(9));
    REQUIRE(other);
    REQUIRE(other->seek(position));
    CHECK(other->position() == position);
    REQUIRE(other->next(b));
    REQUIRE(same(a, b));
    CHECK(other->position() == whole->position());
  }
  CHECK(a.epoch >= 2);

  auto other = Batches::create(source, options_of(9, 8));
  REQUIRE(other);
  auto first = Batches::create(source, options_of(9));
  REQUIRE(first->next(a));
  REQUIRE(other->next(b));
  CHECK(!same(a, b));
  const auto seed = other->seek(whole->position());
  REQUIRE(!seed);
  CHECK(contains(seed.error().message, "seed 7, now of 8"));
  const MemorySource more = numbered(41);
  auto grown = Batches::create(more, options_of(9));
  const auto count = grown->seek(whole->position());
  REQUIRE(!count);
  CHECK(contains(count.error().message, "40 examples, now 41"));
  CHECK(!whole->seek({7, 40, 0, 41}));
}

TEST_CASE("batches do not allocate once they are warm") {
  const MemorySource source = numbered(40);
  auto batches = Batches::create(source, options_of(16));
  REQUIRE(batches);
  Batch batch;
  // The longest example has come when an epoch is over.
  while (batches->position().epoch == 0) REQUIRE(batches->next(batch));
  const long long before = allocation_count();
  for (int i = 0; i < 40; ++i) REQUIRE(batches->next(batch));
  CHECK(allocation_count() == before);
}

TEST_CASE("wrong data and options are errors that name the example") {
  const auto fails = [](Example example, const char* why) {
    const MemorySource source({{{1, 2}, {}}, std::move(example)});
    BatchOptions options = options_of(20);
    options.shuffles = false;
    options.vocabulary = 50;
    auto batches = Batches::create(source, options);
    REQUIRE(batches);
    const DataPosition before = batches->position();
    Batch batch;
    const auto next = batches->next(batch);
    REQUIRE(!next);
    CHECK_MESSAGE(contains(next.error().message, std::string("example 1: ") + why),
                  next.error().message);
    CHECK(batches->position() == before);
  };
  fails({{}, {}}, "0 tokens");
  fails({{1}, {}}, "1 tokens");
  fails({{1, 2, 3, 4, 5, 6, 7}, {}}, "6 rows, more than the context of 5");
  fails({{1, 50}, {}}, "token 1 is 50");
  fails({{-1, 2}, {}}, "token 0 is -1");
  fails({{1, 2}, {1}}, "1 weights for 2 tokens");
  fails({{1, 2}, {1, -1}}, "a weight");
  fails({{1, 2}, {1, std::nanf("")}}, "a weight");

  const MemorySource source = numbered(3), none(std::vector<Example>{});
  const auto refuses = [&](const Source& from, auto change, const char* why) {
    BatchOptions options = options_of(20);
    change(options);
    auto made = Batches::create(from, options);
    REQUIRE(!made);
    CHECK_MESSAGE(contains(made.error().message, why), made.error().message);
  };
  refuses(
      none, [](BatchOptions&) {}, "the data set is empty");
  refuses(
      source, [](BatchOptions& o) { o.context = 0; }, "context");
  refuses(
      source, [](BatchOptions& o) { o.max_rows = 4; }, "4 rows do not hold");
  refuses(
      source, [](BatchOptions& o) { o.max_sequences = 0; }, "sequence");
  refuses(
      source, [](BatchOptions& o) { o.vocabulary = 0; }, "vocabulary");
  refuses(
      source, [](BatchOptions& o) { o.context = o.max_rows = std::numeric_limits<Index>::max(); },
      "more than 2^31 rows");
}

TEST_CASE("lines of a text file") {
  const test::TemporaryFolder folder;
  const auto file = [&](const std::string& text) {
    return folder.write("lines.txt", std::as_bytes(std::span<const char>(text)));
  };
  const EncodeExample bytes = [](std::string_view line, Example& out) -> Result<void> {
    if (line == "bad") return Error{Errc::malformed, "no tab"};
    for (const char c : line) out.tokens.push_back(static_cast<unsigned char>(c));
    return ok();
  };
  auto source = LineSource::open(file("one\n\r\n\ntwo\r\nbad\nend"), bytes);
  REQUIRE_MESSAGE(source, test::why(source));
  REQUIRE(source->n_examples() == 4);
  Example example;
  REQUIRE(source->read(3, example));
  CHECK(example.tokens == Tokens{'e', 'n', 'd'});
  REQUIRE(source->read(1, example));
  CHECK(example.tokens == Tokens{'t', 'w', 'o'});
  const auto bad = source->read(2, example);
  REQUIRE(!bad);
  CHECK(contains(bad.error().message, "lines.txt: example 2: no tab"));
  for (const char* empty : {"", "\n\n\r\n"}) {
    const auto none = LineSource::open(file(empty), bytes);
    REQUIRE(!none);
    CHECK(contains(none.error().message, "has no lines"));
  }
  CHECK(!LineSource::open(folder.path("missing"), bytes));
}

TEST_CASE("windows of tokens in memory, in files and of a text: each token is predicted once") {
  const test::TemporaryFolder folder;
  for (int n = 2; n < 40; ++n) {
    Tokens tokens;
    std::vector<std::uint16_t> narrow;
    std::vector<std::uint32_t> wide;
    for (int i = 0; i < n; ++i) {
      tokens.push_back(i * 1601);
      narrow.push_back(static_cast<std::uint16_t>(i * 1601));
      wide.push_back(static_cast<std::uint32_t>(i * 1601));
    }
    const auto path16 = folder.write("t16", std::as_bytes(std::span(narrow)));
    const auto path32 = folder.write("t32", std::as_bytes(std::span(wide)));
    auto memory = WindowSource::of(tokens, 6);
    auto file16 = WindowSource::open_tokens(path16, TokenWidth::u16, 6);
    auto file32 = WindowSource::open_tokens(path32, TokenWidth::u32, 6);
    REQUIRE((memory && file16 && file32));
    Tokens targets;
    for (Index i = 0; i < memory->n_examples(); ++i) {
      Example a, b, c;
      REQUIRE(memory->read(i, a));
      REQUIRE(file16->read(i, b));
      REQUIRE(file32->read(i, c));
      REQUIRE(a.tokens.size() >= 2);
      REQUIRE(a.tokens.size() <= 7);
      targets.insert(targets.end(), a.tokens.begin() + 1, a.tokens.end());
      REQUIRE(a.tokens == b.tokens);
      REQUIRE(a.tokens == c.tokens);
    }
    REQUIRE(targets == Tokens(tokens.begin() + 1, tokens.end()));
    REQUIRE(file16->n_examples() == memory->n_examples());
    REQUIRE(file32->n_examples() == memory->n_examples());
  }
  const auto one_window = WindowSource::of({1, 2, 3}, std::numeric_limits<Index>::max());
  REQUIRE(one_window);
  CHECK(one_window->n_examples() == 1);
  Example whole_example;
  REQUIRE(one_window->read(0, whole_example));
  CHECK(whole_example.tokens == Tokens{1, 2, 3});
  CHECK(!WindowSource::of({1}, 4));
  CHECK(!WindowSource::of({}, 4));
  CHECK(!WindowSource::of({1, 2}, 0));
  const auto odd = folder.write("odd", std::as_bytes(std::span("abcde", 5)));
  const auto broken = WindowSource::open_tokens(odd, TokenWidth::u16, 4);
  REQUIRE(!broken);
  CHECK(contains(broken.error().message, "5 bytes are no tokens of 2 bytes each"));

  std::string text;
  for (int i = 0; i < 300000; ++i) text += i % 10 == 9 ? '\n' : static_cast<char>('a' + i % 9);
  text += "the end";  // two pieces
  const auto path = folder.write("text", std::as_bytes(std::span<const char>(text)));
  int n_pieces = 0;
  const EncodeText encode = [&](std::string_view piece, Tokens& out) -> Result<void> {
    ++n_pieces;
    for (const char c : piece) out.push_back(c);
    return ok();
  };
  auto whole = WindowSource::open_text(path, encode, 100);
  REQUIRE(whole);
  CHECK(whole->n_tokens() == static_cast<Index>(text.size()));
  CHECK(n_pieces == 1);
  std::string long_text;
  while (long_text.size() < 3 * (std::size_t{1} << 20)) long_text += text;
  const auto long_path = folder.write("long", std::as_bytes(std::span<const char>(long_text)));
  n_pieces = 0;
  auto long_source = WindowSource::open_text(long_path, encode, 100);
  REQUIRE(long_source);
  CHECK(long_source->n_tokens() == static_cast<Index>(long_text.size()));
  CHECK(n_pieces >= 3);
  Example example;
  REQUIRE(long_source->read(12345, example));
  for (std::size_t i = 0; i <= 100; ++i) REQUIRE(example.tokens[i] == long_text[1234500 + i]);
}

TEST_CASE("a token of a file beyond the vocabulary, and one that no int holds") {
  const test::TemporaryFolder folder;
  const std::vector<std::uint32_t> wide = {1, 0xFFFFFFFFu, 2};
  const auto path = folder.write("t", std::as_bytes(std::span(wide)));
  auto source = WindowSource::open_tokens(path, TokenWidth::u32, 5);
  REQUIRE(source);
  auto batches = Batches::create(*source, options_of(5));
  REQUIRE(batches);
  Batch batch;
  const auto next = batches->next(batch);
  REQUIRE(!next);
  CHECK(contains(next.error().message, "token 1 is -1"));
}

}  // namespace data_test
