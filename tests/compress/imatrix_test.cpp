// SPDX-License-Identifier: Apache-2.0
//
// Importance matrices: the files of llama-imatrix 0.7.0 (build 11669) for stories260K on
// text/tinystories_eval.txt with a context of 128 (-c 128 -b 128 -ub 128 -fa off -ctk f32 -ctv f32
// --process-output --chunks 40), in both formats, are in tests/compress/data.
#include "nibble/compress/imatrix.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "test_data.hpp"
#include "why.hpp"

namespace imatrix_test {

using namespace nibble;
using namespace nibble::compress;

namespace {

std::string data_file(const std::string& name) {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(project != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  return std::string(project) + "/tests/compress/data/" + name;
}

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

ImatrixEntry entry(const std::string& name, std::vector<float> sums, std::vector<float> counts) {
  ImatrixEntry e;
  e.name = name;
  for (const float v : sums) e.sum_squares.push_back({v});
  for (const float v : counts) e.counts.push_back({v});
  return e;
}

Imatrix small() {
  Imatrix m;
  m.entries.push_back(entry("blk.0.attn_q.weight", {1, 2, 3, 0.5f}, {128}));
  m.entries.push_back(entry("blk.0.experts.weight", {1, 2, 0, 0, 5, 7}, {64, 0, 128}));
  m.entries.push_back(entry("output.weight", {8}, {130}));
  m.datasets = {"a text", "another"};
  m.n_chunks = 2;
  m.chunk_size = 64;
  return m;
}

bool equal(const Imatrix& a, const Imatrix& b) {
  if (a.entries.size() != b.entries.size() || a.datasets != b.datasets ||
      a.n_chunks != b.n_chunks || a.chunk_size != b.chunk_size) {
    return false;
  }
  for (std::size_t i = 0; i < a.entries.size(); ++i) {
    const ImatrixEntry &x = a.entries[i], &y = b.entries[i];
    const auto same = [](const auto& u, const auto& v) {
      return u.size() == v.size() && std::memcmp(u.data(), v.data(), u.size() * 4) == 0;
    };
    if (x.name != y.name || !same(x.sum_squares, y.sum_squares) || !same(x.counts, y.counts)) {
      return false;
    }
  }
  return true;
}

// Bytes that start where a reader of GGUF wants them to.
struct Aligned {
  std::vector<std::uint64_t> words;
  std::size_t size;
  explicit Aligned(const std::vector<std::byte>& bytes)
      : words(bytes.size() / 8 + 1), size(bytes.size()) {
    std::memcpy(words.data(), bytes.data(), size);
  }
  std::span<const std::byte> bytes() const {
    return std::as_bytes(std::span<const std::uint64_t>(words)).first(size);
  }
};

Result<Imatrix> parsed(const std::vector<std::byte>& bytes, std::uint32_t chunk_size = 64) {
  return parse_imatrix(Aligned(bytes).bytes(), "file", {chunk_size});
}

class DatFile {
 public:
  DatFile& number(std::int32_t n) { return raw(&n, sizeof(n)); }
  DatFile& text(const std::string& s) {
    number(static_cast<std::int32_t>(s.size()));
    return raw(s.data(), s.size());
  }
  DatFile& floats(const std::vector<float>& x) {
    number(static_cast<std::int32_t>(x.size()));
    return raw(x.data(), x.size() * sizeof(float));
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  DatFile& raw(const void* data, std::size_t n) {
    const auto* const p = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), p, p + n);
    return *this;
  }
  std::vector<std::byte> bytes_;
};

void check_about(const Result<Imatrix>& r, const std::string& what) {
  CAPTURE(test::why(r));
  CHECK(!r);
  CHECK(test::why(r).find(what) != std::string::npos);
}

}  // namespace

TEST_CASE("imatrix: files of llama.cpp, in both formats, say the same") {
  const Imatrix gguf = must(read_imatrix(data_file("stories260K.imatrix.gguf")));
  const Imatrix dat = must(read_imatrix(data_file("stories260K.imatrix.dat"), {128}));
  CHECK(gguf.entries.size() == 36);  // 7 matrices in each of 5 layers, and the output
  CHECK(gguf.n_chunks == 40);
  CHECK(dat.n_chunks == 40);
  CHECK(gguf.chunk_size == 128);
  REQUIRE(gguf.datasets.size() == 1);
  CHECK(gguf.datasets == dat.datasets);
  REQUIRE(dat.entries.size() == 36);
  for (std::size_t i = 0; i < 36; ++i) {
    const ImatrixEntry &a = gguf.entries[i], &b = dat.entries[i];
    CHECK(a.name == b.name);
    REQUIRE(a.counts.size() == 1);
    CHECK(a.counts[0].value == 40 * 128);
    CHECK(b.counts[0].value == 40 * 128);
    REQUIRE(a.sum_squares.size() == b.sum_squares.size());
    for (std::size_t j = 0; j < a.sum_squares.size(); ++j) {
      CHECK(std::fabs(a.mean_square(j) - b.mean_square(j)) <= 3e-7f * a.mean_square(j));
    }
  }
  const ImatrixEntry* const down = gguf.find("blk.4.ffn_down.weight");
  REQUIRE(down != nullptr);
  CHECK(down->sum_squares.size() == 172);
  CHECK(gguf.find("blk.5.ffn_down.weight") == nullptr);
  CHECK(down->importance().size() == 172);
}

TEST_CASE("imatrix: what is written is what is read") {
  const Imatrix m = small();
  CHECK(equal(must(parsed(must(imatrix_bytes(m)))), m));
  const Imatrix back = must(parsed(must(imatrix_dat_bytes(m))));
  CHECK(back.n_chunks == 2);
  REQUIRE(back.datasets.size() == 1);
  CHECK(back.datasets[0] == "another");
  REQUIRE(back.entries.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(back.entries[i].name == m.entries[i].name);
    REQUIRE(back.entries[i].sum_squares.size() == m.entries[i].sum_squares.size());
    for (std::size_t j = 0; j < m.entries[i].sum_squares.size(); ++j) {
      CHECK(back.entries[i].mean_square(j) == doctest::Approx(m.entries[i].mean_square(j)));
    }
  }
  // 128 rows are two calls, 130 are three.
  CHECK(back.entries[0].counts[0].value == 128);
  CHECK(back.entries[2].counts[0].value == 192);
  CHECK(m.entries[1].mean_square(3) == 1);  // of an expert without rows nothing is known

  const auto folder = std::filesystem::temp_directory_path() / "nibble-imatrix-test";
  std::filesystem::create_directories(folder);
  const std::string as_gguf = (folder / "a.dat").string(), as_dat = (folder / "b.gguf").string();
  REQUIRE(write_imatrix(m, as_gguf));  // the name says nothing
  REQUIRE(write_imatrix_dat(m, as_dat));
  CHECK(equal(must(read_imatrix(as_gguf)), m));
  CHECK(equal(must(read_imatrix(as_dat, {64})), back));
  CHECK(!read_imatrix((folder / "none").string()));
  std::filesystem::remove_all(folder);
}

TEST_CASE("imatrix: the bytes of the older format") {
  const std::vector<std::byte> file = DatFile()
                                          .number(2)
                                          .text("b")
                                          .number(3)  // calls
                                          .floats({6, 9})
                                          .text("a")
                                          .number(1)
                                          .floats({0.5f})
                                          .number(4)
                                          .text("x")
                                          .bytes();
  const Imatrix m = must(parsed(file, 10));
  REQUIRE(m.entries.size() == 2);
  CHECK(m.entries[0].name == "a");  // sorted
  CHECK(m.entries[1].name == "b");
  CHECK(m.entries[1].counts[0].value == 30);
  CHECK(m.entries[1].sum_squares[0].value == 60);
  CHECK(m.entries[1].mean_square(1) == 3);
  CHECK(m.n_chunks == 4);
  CHECK(m.datasets == std::vector<std::string>{"x"});
  // Our bytes are these, sorted.
  const std::vector<std::byte> sorted = DatFile()
                                            .number(2)
                                            .text("a")
                                            .number(1)
                                            .floats({0.5f})
                                            .text("b")
                                            .number(3)
                                            .floats({6, 9})
                                            .number(4)
                                            .text("x")
                                            .bytes();
  CHECK(must(imatrix_dat_bytes(m)) == sorted);
  // The first versions ended after the entries.
  CHECK(must(parsed(DatFile().number(1).text("a").number(1).floats({1}).bytes())).n_chunks == 0);
  CHECK(must(parsed(DatFile().number(1).text("a").number(1).floats({1}).number(7).bytes()))
            .n_chunks == 7);
}

TEST_CASE("imatrix: files that are cut anywhere are errors, or what the first versions wrote") {
  for (const bool is_gguf : {false, true}) {
    const std::vector<std::byte> whole =
        must(is_gguf ? imatrix_bytes(small()) : imatrix_dat_bytes(small()));
    std::size_t n_fine = 0;
    for (std::size_t n = 0; n < whole.size(); ++n) {
      const auto r = parsed({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)});
      if (r) {
        ++n_fine;
        CHECK(r->entries.size() == 3);
      } else {
        CHECK(test::why(r).find("file: ") == 0);
      }
    }
    CHECK(n_fine <= (is_gguf ? 32u : 2u));  // padding; without chunks, without a dataset
    std::vector<std::byte> longer = whole;
    longer.push_back(std::byte{1});
    if (!is_gguf) check_about(parsed(longer), "after the end");
    // Any byte may be anything.
    for (std::size_t i = 0; i < whole.size(); ++i) {
      for (const int bit : {0x01, 0x80, 0xFF}) {
        std::vector<std::byte> bad = whole;
        bad[i] ^= static_cast<std::byte>(bit);
        (void)parsed(bad);
      }
    }
  }
}

TEST_CASE("imatrix: values that cannot be") {
  check_about(parsed({}), "the file ends");
  check_about(parsed(DatFile().number(0).bytes()), "0 entries");
  check_about(parsed(DatFile().number(-1).bytes()), "is -1");
  check_about(parsed(DatFile().number(0x7FFFFFFF).number(1).number(1).number(1).bytes()),
              "2147483647 entries");
  check_about(parsed(DatFile().number(1).number(-5).number(1).number(1).bytes()), "is -5");
  check_about(parsed(DatFile().number(1).text("a").number(0).floats({1}).bytes()), "saw no data");
  check_about(parsed(DatFile().number(1).text("a").number(-3).floats({1}).bytes()), "-3 calls");
  check_about(parsed(DatFile().number(1).text("a").number(1).number(0x40000000).bytes()),
              "more than the file has");
  check_about(parsed(DatFile().number(1).text("a").number(1).floats({}).bytes()), "no values");
  check_about(parsed(DatFile().number(1).text("").number(1).floats({1}).bytes()), "without a name");
  check_about(parsed(DatFile().number(1).text(std::string(99, 'a')).number(1).floats({1}).bytes()),
              "a name of 99 bytes");
  check_about(parsed(DatFile()
                         .number(2)
                         .text("a")
                         .number(1)
                         .floats({1})
                         .text("a")
                         .number(1)
                         .floats({1})
                         .bytes()),
              "it is there twice");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  for (const float v : {nan, infinite, -1.0f}) {
    check_about(parsed(DatFile().number(1).text("a").number(1).floats({1, v}).bytes()),
                "value 1 is negative or not finite");
  }
  CHECK(!parse_imatrix({}, "file", {0}));

  // In GGUF files, which others may write: ours refuses to.
  const auto refused = [](const ImatrixEntry& e, const std::string& what) {
    Imatrix m = small();
    m.entries[0] = e;
    for (const auto& r : {imatrix_bytes(m), imatrix_dat_bytes(m)}) {
      CAPTURE(test::why(r));
      CHECK(!r);
      CHECK(r.error().code == Errc::invalid_argument);
      CHECK(test::why(r).find(what) != std::string::npos);
    }
  };
  refused(entry("a", {1, nan}, {1}), "value 1 is negative or not finite");
  refused(entry("a", {1, -1}, {1}), "value 1 is negative or not finite");
  refused(entry("a", {1, 1}, {0}), "no rows");
  refused(entry("a", {0, 0}, {0}), "saw no data");
  refused(entry("a", {1, 1}, {-2}), "a count of rows is negative");
  refused(entry("a", {1, 1}, {nan}), "not finite");
  refused(entry("a", {1, 1, 1}, {1, 1}), "2 counts for 3 values");
  refused(entry("a", {1}, {}), "0 counts");
  refused(entry("a", {}, {1}), "no values");
  refused(entry("", {1}, {1}), "without a name");
  refused(entry("z", {1}, {1}), "out of order");
  CHECK(!imatrix_bytes({}));
}

namespace {

// A GGUF file with these tensors of ones.
struct OneTensor {
  std::string name;
  std::vector<std::uint64_t> dims;
  float value = 1;
  io::GgmlType type = io::GgmlType::f32;
};

std::vector<std::byte> gguf_with(const std::vector<OneTensor>& tensors,
                                 const std::string& type = "imatrix") {
  io::GgufWriter writer;
  std::vector<std::vector<float>> data;
  data.reserve(tensors.size());
  writer.set("general.type", type);
  for (const OneTensor& t : tensors) {
    std::size_t n = 1;
    for (const std::uint64_t d : t.dims) n *= static_cast<std::size_t>(d);
    data.emplace_back(n, t.value);
    const std::size_t bytes = t.type == io::GgmlType::f32 ? 4 * n : 2 * n;
    writer.add_tensor(t.name, t.type, t.dims, std::as_bytes(std::span(data.back())).first(bytes));
  }
  return must(writer.to_bytes());
}

}  // namespace

TEST_CASE("imatrix: GGUF files that are none, or not whole") {
  const OneTensor sums{"a.in_sum2", {4, 2}}, counts{"a.counts", {1, 2}};
  const Imatrix m = must(parsed(gguf_with({sums, counts, {"a.in_sum", {4, 2}, -1}, {"b", {3}}})));
  CHECK(m.entries.size() == 1);  // others are ignored
  CHECK(m.chunk_size == 64);     // not stated
  CHECK(m.entries[0].counts.size() == 2);
  // Older files have one count for all.
  CHECK(must(parsed(gguf_with({sums, {"a.counts", {1}, 3}}))).entries[0].counts.size() == 1);
  check_about(parsed(gguf_with({sums, counts}, "model")), "general.type is 'model'");
  check_about(parsed(gguf_with({})), "no entries");
  check_about(parsed(gguf_with({sums})), "sums without counts");
  check_about(parsed(gguf_with({counts})), "counts without sums");
  check_about(parsed(gguf_with({sums, {"a.counts", {1, 3}}})), "3 counts for 2 matrices");
  check_about(parsed(gguf_with({sums, {"a.counts", {2, 1}}})), "2 counts for 2 matrices");
  check_about(parsed(gguf_with({sums, {"a.counts", {1, 2}, 0}})), "the sum of no rows");
  check_about(parsed(gguf_with({{"a.in_sum2", {4, 2}, NAN}, counts})), "not finite");
  check_about(parsed(gguf_with({sums, {"a.counts", {1, 2}, 1, io::GgmlType::f16}})), "not F32");
  check_about(parsed(gguf_with({{".in_sum2", {4}}, {".counts", {1}}})), "without a name");
  std::vector<std::byte> cut = gguf_with({sums, counts});
  cut.resize(cut.size() - 25);  // 24 are padding
  check_about(parsed(cut), "file: ");
}

TEST_CASE("imatrix: merging adds sums and counts") {
  Imatrix m = small();
  Imatrix other = small();
  other.entries.erase(other.entries.begin());
  other.entries[0] = entry("blk.0.experts.weight", {10, 0, 1, 1, 0, 0}, {1});
  other.entries.push_back(entry("zz", {4}, {2}));
  other.n_chunks = 5;
  other.datasets = {"third"};
  REQUIRE(merge(m, other));
  REQUIRE(m.entries.size() == 4);
  CHECK(m.n_chunks == 7);
  CHECK(m.datasets == std::vector<std::string>{"a text", "another", "third"});
  CHECK(equal({{m.entries[0]}, {}, 0, 1}, {{small().entries[0]}, {}, 0, 1}));
  // One count for all experts is the count of each.
  CHECK(equal({{m.entries[1]}, {}, 0, 1},
              {{entry("blk.0.experts.weight", {11, 2, 1, 1, 5, 7}, {65, 1, 129})}, {}, 0, 1}));
  CHECK(equal({{m.entries[2]}, {}, 0, 1}, {{entry("output.weight", {16}, {260})}, {}, 0, 1}));
  CHECK(equal({{m.entries[3]}, {}, 0, 1}, {{entry("zz", {4}, {2})}, {}, 0, 1}));
  Imatrix twice = small();  // each expert has its own count
  REQUIRE(merge(twice, small()));
  CHECK(equal({{twice.entries[1]}, {}, 0, 1},
              {{entry("blk.0.experts.weight", {2, 4, 0, 0, 10, 14}, {128, 0, 256})}, {}, 0, 1}));
  const Imatrix before = m;
  other.entries[0] = entry("output.weight", {1, 2}, {1});
  other.entries.resize(1);
  CHECK(!merge(m, other));
  CHECK(equal(m, before));
  other = small();
  other.chunk_size = 512;
  CHECK(!merge(m, other));
}

TEST_CASE("imatrix: counts that do not go with values are refused by a merge") {
  const Imatrix before = small();
  const std::vector<ImatrixEntry> bad = {
      entry("blk.0.attn_q.weight", {1, 2, 3, 4}, {1, 1, 1}),        // they do not divide them
      entry("blk.0.attn_q.weight", {1, 2, 3, 4}, {1, 1, 1, 1, 1}),  // more than values
      entry("blk.0.attn_q.weight", {1, 2, 3, 4}, {}),
      entry("blk.0.attn_q.weight", {1, -2, 3, 4}, {1}),
      entry("another", {1, 2, 3, 4}, {1, 1, 1}),
      entry("another", {}, {})};
  for (const ImatrixEntry& e : bad) {
    Imatrix m = before, other = before;
    other.entries = {e};
    const auto added = merge(m, other);
    REQUIRE(!added);
    CHECK(added.error().code == Errc::invalid_argument);
    CHECK(test::why(added).find("'" + e.name + "'") != std::string::npos);
    CHECK(equal(m, before));
    Imatrix into = other;
    CHECK(!merge(into, before));
    // Nothing is known of its values.
    if (e.counts.size() > 4 || e.counts.empty()) CHECK(e.mean_square(0) == 1.0f);
  }
  CHECK(entry("a", {2, 4, 6}, {2}).mean_square(2) == 3.0f);
  CHECK(entry("a", {2, 4, 6, 8}, {2, 4}).mean_square(2) == 1.5f);
}

TEST_CASE("imatrix: of this model or of another") {
  const auto path = test::data_path("models/stories260K/stories260K.gguf");
  if (!path) return;
  const io::Gguf file = must(io::Gguf::open(*path));
  const Imatrix m = must(read_imatrix(data_file("stories260K.imatrix.gguf")));
  CHECK(test::why(check_imatrix(m, file)) == "");
  const auto about = [&](const Imatrix& bad, const std::string& what) {
    const auto r = check_imatrix(bad, file);
    CAPTURE(test::why(r));
    CHECK(!r);
    CHECK(test::why(r).find(what) != std::string::npos);
  };
  Imatrix bad = m;
  bad.entries[3].sum_squares.pop_back();
  about(bad, bad.entries[3].name);
  about(bad, "of another model");
  bad = m;
  bad.entries[3].name = "blk.0.other.weight";
  about(bad, "no such tensor");
  bad = m;
  const std::string gone = bad.entries[3].name;
  bad.entries.erase(bad.entries.begin() + 3);
  about(bad, "no statistics for '" + gone + "'");
  bad = m;
  bad.entries[3].counts.assign(2, {1.0f});
  about(bad, "2 matrices");
}

TEST_CASE("imatrix: of statistics") {
  InputStatistics input(2);
  const float rows[] = {1, 2, 3, -4};
  input.add(MatrixView<const float>(rows, 2, 2));
  Statistics statistics;
  const std::string names[] = {"b", "a"};
  REQUIRE(statistics.add(std::move(input), names));
  const Imatrix m = must(imatrix_of(statistics, "text", 3, 7));
  CHECK(equal(m, {{entry("a", {10, 20}, {2}), entry("b", {10, 20}, {2})}, {"text"}, 3, 7}));
  Statistics nothing;
  REQUIRE(nothing.add(InputStatistics(2), names));
  CHECK(!imatrix_of(nothing, "text", 3, 7));
  CHECK(!imatrix_of({}, "text", 3, 7));
}

}  // namespace imatrix_test
