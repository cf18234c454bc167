// SPDX-License-Identifier: Apache-2.0
//
// Caches of prefixes in files: what is restored is bit-equal to computing it; what is damaged, of
// another model, or hostile is refused, and nothing changes then.
#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/prefix_places.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/simd/dispatch.hpp"
#include "test_data.hpp"

namespace prefix_file_test {

using namespace nibble;
using namespace test;
using ops::kPagePositions;

namespace {

// A saved file with changes: arrays by key, and then the checksum that belongs to them.
class ChangedFile {
  io::Gguf file_;

 public:
  explicit ChangedFile(const std::string& path)
      : file_(must(io::Gguf::open(path))), n_pages(must(file_.get_u32("prefix.n_pages"))) {
    for (const char* const key : {"parents", "tokens", "pages"}) i32[key] = read<std::int32_t>(key);
    i32["n_tokens"] = {};
    for (const auto n : read<std::uint32_t>("n_tokens")) {
      i32["n_tokens"].push_back(static_cast<std::int32_t>(n));
    }
    for (const char* const key : {"weights", "last_used", "lane_checksums", "state_checksums"}) {
      u64[key] = read<std::uint64_t>(key);
    }
  }
  std::vector<std::byte> bytes(const std::string& without_tensor = "") const {
    io::GgufWriter writer;
    writer.copy_metadata(file_);
    std::uint64_t sum = 0;
    const auto set = [&](const char* key, const auto& numbers) {
      writer.set_array("prefix." + std::string(key), numbers);
      sum = io::checksum(std::as_bytes(std::span(numbers)), sum);
    };
    for (const char* const key : {"parents", "tokens", "pages"}) set(key, i32.at(key));
    set("n_tokens",
        std::vector<std::uint32_t>(i32.at("n_tokens").begin(), i32.at("n_tokens").end()));
    for (const char* const key : {"weights", "last_used", "lane_checksums", "state_checksums"}) {
      set(key, u64.at(key));
    }
    const std::uint32_t pages[] = {n_pages};
    writer.set("prefix.n_pages", n_pages);
    writer.set("prefix.checksum", io::checksum(std::as_bytes(std::span(pages)), sum));
    if (more) more(writer);
    for (const io::GgufTensor& tensor : file_.tensors()) {
      if (tensor.name != without_tensor) writer.add_tensor(tensor);
    }
    return must(writer.to_bytes());
  }

  std::map<std::string, std::vector<std::int32_t>> i32;
  std::map<std::string, std::vector<std::uint64_t>> u64;
  std::uint32_t n_pages;
  std::function<void(io::GgufWriter&)> more;

 private:
  template <class T>
  std::vector<T> read(const char* key) const {
    std::vector<T> out;
    for (const auto& [value] : must(file_.get_array<Scalar<T>>("prefix." + std::string(key)))) {
      out.push_back(value);
    }
    return out;
  }
};

}  // namespace

TEST_CASE("what is restored is bit-equal to what was computed") {
  const TemporaryFile file;
  const std::pair<const char*, Model> models[] = {
      {"llama", llama_model()}, {"windows", gemma_model(70)}, {"recurrent state", conv_model()}};
  for (const auto& [name, model] : models) {
    CAPTURE(name);
    for (const ops::KvType kv_type : ops::kKvTypes) {
      Place first(model, options_of(kv_type));
      fill(first.engine, first.cache);
      REQUIRE(first.cache.save(file.path));
      Place second(model, options_of(kv_type));
      REQUIRE(second.cache.restore(file.path));
      CHECK(second.cache.n_pages() == first.cache.n_pages());
      CHECK(second.cache.bytes() == first.cache.bytes());
      check_restored(second);
      // Once more: saved again, restored where pages are in use.
      REQUIRE(second.cache.save(file.path));
      second.cache.clear();
      Sequence user = must(second.engine.new_sequence());
      append(second.engine, user, some_ids(130, 9));
      REQUIRE(second.cache.restore(file.path));
      check_restored(second);
      // It goes on as the first would: what was used longest ago goes first.
      CHECK(second.cache.make_room(second.engine.n_pages()) ==
            second.engine.n_pages() - user.n_pages());
    }
  }
  Place empty(models[0].second);
  REQUIRE(empty.cache.save(file.path));
  REQUIRE(empty.cache.restore(file.path));
  CHECK(empty.cache.n_pages() == 0);
}

TEST_CASE("files of other models, types, targets and engines are refused") {
  const TemporaryFile file;
  const Model model = llama_model();
  Place first(model);
  fill(first.engine, first.cache);
  REQUIRE(first.cache.save(file.path));
  const auto check_error = [](const Error& error, Errc code, const char* part) {
    CAPTURE(error.message);
    CHECK(error.code == code);
    CHECK(error.message.find(part) != std::string::npos);
  };
  Place other(llama_model(0, 10));
  check_error(other.refused(file.path), Errc::invalid_argument, "another model");
  Place windows(llama_model(70));
  check_error(windows.refused(file.path), Errc::invalid_argument, "another model");
  Place type(model, options_of(ops::KvType::int8));
  check_error(type.refused(file.path), Errc::invalid_argument,
              "a cache of type 'f16'; here it is 'int8'");
  Place few(model, {.n_ctx = 400, .cache_positions = 5 * kPagePositions}, std::size_t{1} << 30);
  check_error(few.refused(file.path), Errc::limit, "free");
  Place small(model, options_of(), 3 * page_bytes_of(first.engine));
  check_error(small.refused(file.path), Errc::limit, "bytes");
  Place short_context(model, {.n_ctx = 249, .cache_positions = 64 * kPagePositions});
  check_error(short_context.refused(file.path), Errc::limit, "n_ctx");
  Place right(model);
  check_error(right.refused(file.path + ".not"), Errc::io, "cannot open");
  const auto again = first.cache.restore(file.path);
  REQUIRE(!again);
  check_error(again.error(), Errc::invalid_argument, "not empty");
  CHECK(first.cache.n_cached(prompts()[0].first) == 249);

  const auto was = simd::active_target();
  if (simd::available_targets().bits() != (std::uint64_t{1} << static_cast<int>(was))) {
    for (int i = 0; i < simd::kTargetCount; ++i) {
      const auto target = static_cast<simd::Target>(i);
      if (target == was || !simd::available_targets().contains(target)) continue;
      REQUIRE(simd::force_target(target));
      check_error(right.refused(file.path), Errc::invalid_argument, "SIMD target");
      break;
    }
    REQUIRE(simd::force_target(was));
  }
  // The window's margin decides how layers share pages.
  const Model gemma = gemma_model(70);
  Place narrow(gemma);
  fill(narrow.engine, narrow.cache);
  REQUIRE(narrow.cache.save(file.path));
  Place wide(gemma, options_of(ops::KvType::f16, -1));
  check_error(wide.refused(file.path), Errc::invalid_argument, "window_margin");
}

TEST_CASE("a file that is cut off or has one wrong byte is refused") {
  const TemporaryFile file, damaged;
  for (const Model& model : {llama_model(), conv_model()}) {
    Place first(model), second(model);
    fill(first.engine, first.cache);
    REQUIRE(first.cache.save(file.path));
    const auto bytes = read_file(file.path);
    for (std::size_t n = 0; n < bytes.size(); n += n < 4000 ? 97 : 20011) {
      damaged.write(std::span(bytes).first(n));
      second.refused(damaged.path);
    }
    // Bytes that mean something: all but padding, which is zeros up to the system's pages, and the
    // names of keys that nobody reads.
    std::size_t n_accepted = 0, n_tried = 0;
    for (std::size_t at = 0; at < bytes.size(); at += at < 6000 ? 13 : 10007) {
      auto changed = bytes;
      changed[at] ^= std::byte{0x10};
      damaged.write(changed);
      ++n_tried;
      if (!second.cache.restore(damaged.path)) {
        CHECK(second.engine.n_free_pages() == second.engine.n_pages());
        continue;
      }
      n_accepted += bytes[at] != std::byte{0};
      check_restored(second);  // the byte meant nothing
      second.cache.clear();
    }
    CHECK(n_accepted <= n_tried / 20);
    second.cache.clear();
    REQUIRE(second.cache.restore(file.path));
  }
}

TEST_CASE("a file that is made to harm is refused") {
  const TemporaryFile file, hostile;
  const Model model = gemma_model(70);
  Place first(model), second(model);
  fill(first.engine, first.cache);
  REQUIRE(first.cache.save(file.path));
  {  // Unchanged, it is accepted.
    hostile.write(ChangedFile(file.path).bytes());
    REQUIRE(second.cache.restore(hostile.path));
    check_restored(second);
    second.cache.clear();
  }
  const auto check_refused = [&](const char* what, const auto& change) {
    CAPTURE(what);
    ChangedFile changed(file.path);
    change(changed);
    hostile.write(changed.bytes());
    const Error error = second.refused(hostile.path);
    CAPTURE(error.message);
    CHECK(error.message.find(hostile.path) != std::string::npos);
  };
  for (const int parent : {-2, 0, 1, 77, INT32_MAX, INT32_MIN}) {
    check_refused("parent", [&](ChangedFile& f) { f.i32["parents"][0] = parent; });
  }
  for (const int n : {0, 1, 99, INT32_MAX, -1}) {
    check_refused("n_tokens", [&](ChangedFile& f) { f.i32["n_tokens"][0] = n; });
  }
  for (const int token : {-1, 50, INT32_MAX, INT32_MIN}) {
    check_refused("token", [&](ChangedFile& f) { f.i32["tokens"][5] = token; });
  }
  for (const int page : {-1, -2, 100000, INT32_MAX, INT32_MIN}) {
    check_refused("page", [&](ChangedFile& f) { f.i32["pages"][0] = page; });
  }
  check_refused("page -2", [&](ChangedFile& f) { f.i32["pages"][1] = -2; });
  for (const char* const key : {"parents", "tokens", "pages", "n_tokens"}) {
    check_refused(key, [&](ChangedFile& f) { f.i32[key].pop_back(); });
    check_refused(key, [&](ChangedFile& f) { f.i32[key].push_back(1); });
    check_refused(key, [&](ChangedFile& f) { f.i32[key].clear(); });
  }
  for (const char* const key : {"weights", "last_used", "lane_checksums", "state_checksums"}) {
    check_refused(key, [&](ChangedFile& f) { f.u64[key].pop_back(); });
    check_refused(key, [&](ChangedFile& f) { f.u64[key].push_back(1); });
  }
  check_refused("time", [&](ChangedFile& f) { f.u64["last_used"][0] = UINT64_MAX; });
  check_refused("weights of a child", [&](ChangedFile& f) {
    for (std::size_t i = 0; i < f.i32["parents"].size(); ++i) {
      if (f.i32["parents"][i] >= 0) f.u64["weights"][i] = 3;
    }
  });
  check_refused("two nodes that begin alike", [&](ChangedFile& f) {
    std::size_t token = 0;
    for (std::size_t i = 0; i < f.i32["parents"].size(); ++i) {
      if (f.i32["parents"][i] >= 0) f.i32["tokens"][token] = 3;
      token += static_cast<std::size_t>(f.i32["n_tokens"][i]);
    }
  });
  check_refused("version", [&](ChangedFile& f) {
    f.more = [](io::GgufWriter& w) { w.set("prefix.version", std::uint32_t{3}); };
  });
  check_refused("kind", [&](ChangedFile& f) {
    f.more = [](io::GgufWriter& w) { w.set("general.type", std::string_view("model")); };
  });
  check_refused("type of a key", [&](ChangedFile& f) {
    f.more = [](io::GgufWriter& w) { w.set("prefix.model", std::string_view("mine")); };
  });
  for (const std::uint32_t n : {0u, 1u, 1000000u, UINT32_MAX}) {
    check_refused("number of pages", [&](ChangedFile& f) { f.n_pages = n; });
  }
  check_refused("tables", [&](ChangedFile& f) {
    f.more = [](io::GgufWriter& w) { w.set("prefix.n_tables", 0); };
  });
  hostile.write(ChangedFile(file.path).bytes("lane.1"));
  CHECK(second.refused(hostile.path).code == Errc::malformed);
  hostile.write(RandomModel({}, 1).gguf());
  CHECK(second.refused(hostile.path).message.find("no cache of prefixes") != std::string::npos);
}

}  // namespace prefix_file_test
