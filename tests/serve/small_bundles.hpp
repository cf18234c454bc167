// SPDX-License-Identifier: Apache-2.0
//
// Bundles of a few hundred bytes, for tests of what is done with bundles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "doctest/doctest.h"
#include "memory_files.hpp"
#include "nibble/serve/make_bundle.hpp"
#include "toy_crypto.hpp"
#include "why.hpp"

namespace test {

inline const nibble::serve::KeyBytes kToyKey(32, std::byte{42});

struct SmallBundle {
  std::map<std::string, std::string> files;
  nibble::serve::Manifest manifest;
  std::string text;  // of bundle.json
};

inline nibble::serve::FileRole role_of(const std::string& name) {
  using nibble::serve::FileRole;
  return name.starts_with("model") ? FileRole::model
         : name.starts_with("adapter") ? FileRole::adapter
                                       : FileRole::other;
}

// Chunks have 256 bytes. Valid from `created` on, for a year.
inline SmallBundle sign_small(const std::map<std::string, std::string>& files,
                              std::uint64_t version, std::uint64_t created = 1000,
                              const nibble::serve::KeyBytes& key = kToyKey) {
  const ToyCrypto crypto;
  MemoryFiles scratch;
  SmallBundle bundle{files, {}, {}};
  bundle.manifest.name = "small";
  bundle.manifest.version = version;
  bundle.manifest.created = created;
  bundle.manifest.expires = created + 365 * 86'400;
  bundle.manifest.chunk_size = 256;
  REQUIRE(scratch.make_folder("x"));
  for (const auto& [name, text] : files) {
    for (std::size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1)) {
      REQUIRE(scratch.make_folder("x/" + name.substr(0, at)));
    }
    REQUIRE(scratch.write("x/" + name, 0, nibble::serve::bytes_of(text)));
    auto file = nibble::serve::describe_file(scratch, "x", name, role_of(name), 256, crypto);
    REQUIRE_MESSAGE(file, why(file));
    bundle.manifest.files.push_back(*file);
  }
  auto text = nibble::serve::sign_manifest(bundle.manifest, key, crypto);
  REQUIRE_MESSAGE(text, why(text));
  bundle.text = *text;
  return bundle;
}

// Puts it into a folder, synced.
inline void place(MemoryFiles& files, const std::string& folder, const SmallBundle& bundle) {
  const auto put = [&](const std::string& name, const std::string& text) {
    for (std::size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1)) {
      REQUIRE(files.make_folder(folder + "/" + name.substr(0, at)));
      REQUIRE(files.sync_folder(folder));
    }
    const std::string path = folder + "/" + name;
    REQUIRE(files.write(path, 0, nibble::serve::bytes_of(text)));
    REQUIRE(files.sync(path));
    REQUIRE(files.sync_folder(path.substr(0, path.rfind('/'))));
  };
  REQUIRE(files.make_folder(folder));
  const std::size_t end = folder.rfind('/');
  if (end != std::string::npos) REQUIRE(files.sync_folder(folder.substr(0, end)));
  for (const auto& [name, text] : bundle.files) put(name, text);
  put("bundle.json", bundle.text);
}

// Text of a size, which differs by seed everywhere.
inline std::string text_of_size(std::size_t size, std::uint64_t seed) {
  Chance chance(seed);
  std::string text(size, '\0');
  for (char& c : text) c = static_cast<char>('a' + chance.below(26));
  return text;
}

}  // namespace test
