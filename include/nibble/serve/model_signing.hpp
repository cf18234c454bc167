// SPDX-License-Identifier: Apache-2.0
//
// Models signed as the OpenSSF Model Signing specification has it (OMS, version 1; the Python
// package model-signing writes it): a Sigstore bundle whose envelope holds an in-toto statement with
// the SHA-256 of each file. Signatures by bare keys; certificates and Sigstore's identities are not
// checked and therefore not accepted.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/encoding.hpp"
#include "nibble/serve/manifest.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// The type of a statement in an envelope.
NIBBLE_HIDDEN inline constexpr std::string_view kStatementType = "application/vnd.in-toto+json";
// The file that the specification's tools write into the folder of the model.
NIBBLE_HIDDEN inline constexpr std::string_view kModelSignatureFile = "model.sig";

struct ModelStatement {
  // Its version is 0 and it never expires: the specification has neither. Sizes are not known (0).
  Manifest manifest;
  std::vector<std::string> ignored;  // files and folders that are not signed
};

// Reads a statement. The files need not be sorted; other keys mean nothing, as the specification
// says. Errors: malformed, limit, unsupported (other hashes than SHA-256, files in shards).
inline Result<ModelStatement> parse_model_statement(std::string_view text, const Crypto& crypto) {
  return catch_out_of_memory([&]() -> Result<ModelStatement> {
    constexpr std::size_t kMaxStatement = std::size_t{8} << 20;  // its tree is some times larger
    if (text.size() > kMaxStatement) {
      return Error{Errc::limit, "a statement of " + to_text(text.size()) + " bytes"};
    }
    NIBBLE_TRY(root, io::JsonValue::parse(text));
    const auto string_of = [](const io::JsonValue* value, std::string_view key) -> std::string {
      const io::JsonValue* const found = value == nullptr ? nullptr : value->find(key);
      return found == nullptr ? std::string() : found->string();
    };
    const auto malformed = [](const std::string& what) {
      return Error{Errc::malformed, "model signature: " + what};
    };
    if (string_of(&root, "_type") != "https://in-toto.io/Statement/v1") {
      return malformed("not an in-toto statement, version 1");
    }
    if (string_of(&root, "predicateType") != "https://model_signing/signature/v1.0") {
      return Error{Errc::unsupported, "model signature: the predicate is " +
                                          io::quoted(string_of(&root, "predicateType")) +
                                          ", not https://model_signing/signature/v1.0"};
    }
    const io::JsonValue* const subject = root.find("subject");
    const io::JsonValue* const predicate = root.find("predicate");
    if (subject == nullptr || subject->elements().size() != 1 || predicate == nullptr ||
        predicate->find("resources") == nullptr || predicate->find("serialization") == nullptr) {
      return malformed("without one subject, resources or serialization");
    }
    const io::JsonValue& how = *predicate->find("serialization");
    if (string_of(&how, "method") != "files" || string_of(&how, "hash_type") != "sha256") {
      return Error{Errc::unsupported,
                   "model signature: only whole files with SHA-256 are read; sign with the "
                   "method files and the hash sha256"};
    }
    ModelStatement out;
    out.manifest.name = string_of(&subject->elements()[0], "name");
    out.manifest.chunk_size = ManifestLimits::kMaxChunk;
    if (const io::JsonValue* const ignored = how.find("ignore_paths")) {
      for (const io::JsonValue& path : ignored->elements()) {
        if (!path.string().empty()) out.ignored.push_back(path.string());
      }
    }
    std::string all;  // digests, in their order
    for (const io::JsonValue& resource : predicate->find("resources")->elements()) {
      if (string_of(&resource, "algorithm") != "sha256") {
        return Error{Errc::unsupported, "model signature: a file without SHA-256"};
      }
      ManifestFile file;
      file.name = string_of(&resource, "name");
      NIBBLE_TRY(digest, digest_from_hex(string_of(&resource, "digest")));
      file.sha256 = digest;
      all.append(text_of(digest));
      out.manifest.files.push_back(std::move(file));
    }
    NIBBLE_TRY(root_digest, crypto.sha256_of(bytes_of(all)));
    if (string_of(subject->elements()[0].find("digest"), "sha256") != to_hex(root_digest)) {
      return malformed("the digest of its subject is not that of its files");
    }
    std::sort(out.manifest.files.begin(), out.manifest.files.end(),
              [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
    NIBBLE_CHECK(check_manifest(out.manifest));
    return out;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
