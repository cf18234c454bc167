// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/mapped_file.hpp"

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"

#if !defined(_WIN32)
#include <sys/stat.h>
#endif

namespace mapped_file_test {

using nibble::Errc;
using nibble::io::Advice;
using nibble::io::MappedFile;
using test::contains;

TEST_CASE("a mapped file shows the file's bytes and survives moving") {
  const test::TemporaryFolder folder;
  test::FileBuilder builder;
  for (unsigned i = 0; i < 10000; ++i) builder.u8(i * 7);
  const auto expected = builder.bytes();
  auto file = MappedFile::open(folder.write("a.bin", expected));
  REQUIRE(file);
  const std::byte* address = file->bytes().data();
  MappedFile moved = std::move(*file);
  CHECK(file->bytes().empty());
  CHECK(moved.bytes().data() == address);
  CHECK(std::ranges::equal(moved.bytes(), expected));
  for (const Advice advice :
       {Advice::sequential, Advice::random, Advice::will_need, Advice::normal}) {
    moved.advise(advice);
  }
  CHECK(std::ranges::equal(moved.bytes(), expected));

  auto other = MappedFile::open(folder.write("b.bin", std::span(expected).first(10)));
  REQUIRE(other);
  moved = std::move(*other);
  CHECK(moved.bytes().size() == 10);
}

TEST_CASE("pieces are read like the mapping, and not beyond a file that was cut") {
  const test::TemporaryFolder folder;
  test::FileBuilder builder;
  for (unsigned i = 0; i < 20000; ++i) builder.u8(i * 7);
  const auto expected = builder.bytes();
  const std::string path = folder.write("a.bin", expected);
  auto file = MappedFile::open(path);
  REQUIRE(file);
  std::vector<std::byte> out(20000);
  for (const auto& [at, n] : {std::pair<std::size_t, std::size_t>{0, 20000},
                              {4095, 2},
                              {17, 9000},
                              {19999, 1},
                              {20000, 0}}) {
    const auto part = file->bytes().subspan(at, n);
    CHECK(file->contains(part));
    REQUIRE(file->read(part, out.data()));
    CHECK(std::ranges::equal(std::span(out).first(n), std::span(expected).subspan(at, n)));
  }
  CHECK(!file->contains(expected));
  CHECK(!MappedFile().contains(file->bytes()));
  CHECK(!MappedFile().contains({}));

#if !defined(_WIN32)
  const MappedFile moved = std::move(*file);
  std::filesystem::resize_file(path, 8000);
  CHECK(moved.read(moved.bytes().first(8000), out.data()));
  const auto cut = moved.read(moved.bytes().first(8001), out.data());
  REQUIRE(!cut);
  CHECK(cut.error().code == Errc::io);
  CHECK(contains(cut.error().message, "shorter"));
#endif
}

TEST_CASE("an empty file maps to no bytes") {
  const test::TemporaryFolder folder;
  auto file = MappedFile::open(folder.write("empty", {}));
  REQUIRE(file);
  CHECK(file->bytes().empty());
  file->advise(Advice::will_need);
}

TEST_CASE("what cannot be mapped is an error that names path and reason") {
  const test::TemporaryFolder folder;
  const std::string missing = folder.path("missing.gguf");
  auto file = MappedFile::open(missing);
  REQUIRE(!file);
  CHECK(file.error().code == Errc::io);
  CHECK(contains(file.error().message, missing));
  CHECK(contains(file.error().message, "No such file"));

  file = MappedFile::open(folder.path(""));
  REQUIRE(!file);
  CHECK(file.error().code == Errc::io);
#if !defined(_WIN32)
  CHECK(contains(file.error().message, "is a directory"));

  const std::string pipe = folder.path("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  file = MappedFile::open(pipe);  // must not block until there is a writer
  REQUIRE(!file);
  CHECK(contains(file.error().message, "not a regular file"));

  const std::string locked = folder.write("locked", test::FileBuilder().u64(1).bytes());
  std::filesystem::permissions(locked, std::filesystem::perms::none);
  if (::geteuid() != 0) {
    file = MappedFile::open(locked);
    REQUIRE(!file);
    CHECK(file.error().code == Errc::io);
    CHECK(contains(file.error().message, locked + ": cannot open: Permission denied"));
  } else {
    MESSAGE("skipped: a file without read permission (root may read everything)");
  }
#endif

  CHECK(MappedFile::open("").error().code == Errc::invalid_argument);
  CHECK(MappedFile::open(std::string("a\0b", 3)).error().code == Errc::invalid_argument);
}

}  // namespace mapped_file_test
