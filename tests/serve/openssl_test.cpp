// SPDX-License-Identifier: Apache-2.0
//
// Bundles with real cryptography: OpenSSL's, against signatures and ciphertexts of other programs.
// Left out where CMake finds no OpenSSL.
#if NIBBLE_TEST_OPENSSL
#include "nibble/serve/openssl_crypto.hpp"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "goldens.hpp"
#include "io/file_builder.hpp"
#include "memory_files.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/make_bundle.hpp"
#include "nibble/serve/sealed_file.hpp"
#include "nibble/serve/system_files.hpp"
#include "why.hpp"

using namespace nibble;
using serve::bytes_of;
using test::MemoryFiles;

namespace {

const serve::OpensslCrypto kCrypto;

std::vector<std::byte> bytes_from_hex(const std::string& text) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<std::byte> counting(std::size_t n) {
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

serve::SecretKey counting_key() {
  const auto bytes = counting(32);
  return serve::SecretKey(std::span<const std::byte, 32>(bytes));
}

serve::KeyBytes key_of(const std::string& pem) {
  auto key = serve::from_pem(pem, "PUBLIC KEY");
  REQUIRE_MESSAGE(key, test::why(key));
  return *key;
}

const std::string kMessage = "signed by another library";

}  // namespace

TEST_CASE("OpenSSL: hashes, signatures, ciphers and derived keys are those of other libraries") {
  const auto digest = kCrypto.sha256_of(bytes_of("abc"));  // FIPS 180-4
  REQUIRE(digest);
  CHECK(serve::to_hex(*digest) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  for (const auto& [pem, signature] :
       {std::pair(test::golden::kEd25519Key, test::golden::kEd25519Signature),
        std::pair(test::golden::kP256Key, test::golden::kP256Signature)}) {
    const auto key = key_of(pem);
    auto bytes = bytes_from_hex(signature);
    CHECK(kCrypto.check_signature(key, bytes_of(kMessage), bytes));
    const auto other = kCrypto.check_signature(key, bytes_of("something else"), bytes);
    CHECK((!other && other.error().code == Errc::malformed));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] ^= std::byte{1};
      CHECK_FALSE(kCrypto.check_signature(key, bytes_of(kMessage), bytes));
      bytes[i] ^= std::byte{1};
    }
    CHECK_FALSE(kCrypto.check_signature(key, bytes_of(kMessage), {}));
    CHECK_FALSE(kCrypto.check_signature({}, bytes_of(kMessage), bytes));
    auto longer = key;
    longer.push_back({});
    CHECK_FALSE(kCrypto.check_signature(longer, bytes_of(kMessage), bytes));
  }
  const auto nonce = counting(12);
  for (const auto& [aead, expected] :
       {std::pair(serve::Aead::aes_256_gcm, test::golden::kAesGcm),
        std::pair(serve::Aead::chacha20_poly1305, test::golden::kChaCha20Poly1305),
        std::pair(serve::Aead::aes_128_ocb, test::golden::kAesOcb)}) {
    std::vector<std::byte> sealed(kMessage.size() + 16);
    const auto text = std::span(sealed).first(kMessage.size());
    const auto tag = std::span(sealed).last<16>();
    REQUIRE(kCrypto.seal(aead, counting_key(), nonce, bytes_of(kMessage), text, tag));
    CHECK(serve::to_hex(sealed) == expected);
    std::vector<std::byte> plain(kMessage.size());
    REQUIRE(kCrypto.open(aead, counting_key(), nonce, text, tag, plain));
    CHECK(serve::text_of(plain) == kMessage);
    for (std::size_t i = 0; i < sealed.size(); ++i) {
      sealed[i] ^= std::byte{4};
      CHECK_FALSE(kCrypto.open(aead, counting_key(), nonce, text, tag, plain));
      sealed[i] ^= std::byte{4};
    }
    CHECK_FALSE(kCrypto.open(aead, counting_key(), counting(11), text, tag, plain));
    CHECK_FALSE(kCrypto.open(aead, counting_key(), nonce, text.first(3), tag, plain));
  }
  const auto derived = kCrypto.derive(counting_key(), counting(16), bytes_of(kMessage));
  REQUIRE_MESSAGE(derived, test::why(derived));
  CHECK(serve::to_hex(derived->bytes()) == test::golden::kHkdf);
}

TEST_CASE("OpenSSL: keys that are made sign; other kinds of keys are refused") {
  for (const auto& make : {serve::OpensslCrypto::make_ed25519, serve::OpensslCrypto::make_p256}) {
    const auto pair = make();
    REQUIRE_MESSAGE(pair, test::why(pair));
    const auto signature = kCrypto.sign(pair->private_key, bytes_of(kMessage));
    REQUIRE_MESSAGE(signature, test::why(signature));
    CHECK(kCrypto.check_signature(pair->public_key, bytes_of(kMessage), *signature));
    CHECK_FALSE(kCrypto.sign(pair->public_key, bytes_of(kMessage)));
    // An answer whose origin is proved.
    const auto answer = serve::sign_envelope("text/plain", "42", pair->private_key, kCrypto);
    const std::vector<serve::KeyBytes> keys = {pair->public_key};
    REQUIRE(serve::open_envelope(*answer, keys, kCrypto));
  }
  const auto p384 = kCrypto.check_signature(key_of(test::golden::kModelKey384), {}, {});
  CHECK((!p384 && p384.error().code == Errc::unsupported));
}

TEST_CASE("models that the package model-signing has signed") {
  MemoryFiles files;
  REQUIRE(files.make_folder("m"));
  REQUIRE(files.make_folder("m/sub"));
  std::vector<std::byte> model;
  for (int i = 0; i < 20; ++i) {
    const auto part = counting(256);
    model.insert(model.end(), part.begin(), part.end());
  }
  REQUIRE(files.write("m/config.json", 0, bytes_of("{}\n")));
  REQUIRE(files.write("m/empty", 0, {}));
  REQUIRE(files.write("m/sub/model.safetensors", 0, model));
  REQUIRE(files.write("m/model.sig", 0, bytes_of(test::golden::kModelSignature256)));
  const std::vector<serve::KeyBytes> keys = {key_of(test::golden::kModelKey256)};
  InlineExecutor executor;
  const auto check = [&]() -> Result<void> {
    NIBBLE_TRY(bundle, serve::Bundle::open(files, "m", keys, kCrypto));
    CHECK(bundle.manifest().name == "model");
    CHECK(bundle.manifest().files.size() == 3);
    return bundle.check_all(executor);
  };
  REQUIRE_MESSAGE(check(), test::why(check()));
  REQUIRE(files.write("m/.gitignore", 0, bytes_of("*")));  // not signed, and says so
  CHECK(check());
  REQUIRE(files.write("m/tokenizer.json", 0, bytes_of("{}")));
  CHECK(test::why(check()) == "m: file 'tokenizer.json': not a file that was signed");
  REQUIRE(files.remove("m/tokenizer.json"));
  REQUIRE(files.flip("m/sub/model.safetensors", 5000));
  CHECK(test::why(check()) == "m: file 'sub/model.safetensors': not the bytes that were signed");
  REQUIRE(files.flip("m/sub/model.safetensors", 5000));
  const std::vector<serve::KeyBytes> others = {key_of(test::golden::kP256Key)};
  CHECK_FALSE(serve::open_manifest(test::golden::kModelSignature256, others, kCrypto));
  const std::vector<serve::KeyBytes> larger = {key_of(test::golden::kModelKey384)};
  const auto p384 = serve::open_manifest(test::golden::kModelSignature384, larger, kCrypto);
  CHECK((!p384 && p384.error().code == Errc::unsupported));
  const std::size_t payload = test::golden::kModelSignature256.find("\"payload\":\"") + 11;
  std::string text = test::golden::kModelSignature256;
  for (std::size_t at = payload; text[at] != '"'; at += 13) {
    text[at] = text[at] == 'A' ? 'B' : 'A';
    CHECK_FALSE(serve::open_manifest(text, keys, kCrypto));
    text[at] = test::golden::kModelSignature256[at];
  }
}

TEST_CASE("statements that are signed and wrong all the same") {
  const auto pair = serve::OpensslCrypto::make_ed25519();
  REQUIRE(pair);
  const std::vector<serve::KeyBytes> keys = {pair->public_key};
  const std::vector<serve::KeyBytes> signer = {key_of(test::golden::kModelKey256)};
  const auto original =
      serve::open_envelope(test::golden::kModelSignature256, signer, kCrypto);
  REQUIRE(original);
  const auto error_of = [&](const std::string& from, const std::string& to) {
    std::string text = original->payload;
    const std::size_t at = text.find(from);
    REQUIRE_MESSAGE(at != std::string::npos, from);
    text.replace(at, from.size(), to);
    const auto signed_text =
        serve::sign_envelope(serve::kStatementType, text, pair->private_key, kCrypto);
    return test::why(serve::open_manifest(*signed_text, keys, kCrypto));
  };
  CHECK(error_of("{", "{") == "");
  CHECK(error_of("Statement/v1", "Statement/v0.1").find("not an in-toto") != std::string::npos);
  CHECK(error_of("signature/v1.0", "signature/v2").find("the predicate is") != std::string::npos);
  CHECK(error_of("\"empty\"", "\"../empty\"").find("leads out") != std::string::npos);
  CHECK(error_of("\"empty\"", "\"config.json\"").find("twice") != std::string::npos);
  CHECK(error_of("e3b0c4", "e3b0c5").find("is not that of its files") != std::string::npos);
  CHECK(error_of("e3b0c4", "E3b0c4").find("SHA-256") != std::string::npos);
  CHECK(error_of("\"files\"", "\"shards\"").find("only whole files") != std::string::npos);
  CHECK(error_of("\"resources\"", "\"nothing\"").find("resources") != std::string::npos);
  const auto other = serve::sign_envelope("text/plain", "{}", pair->private_key, kCrypto);
  CHECK(test::why(serve::open_manifest(*other, keys, kCrypto)).find("is no bundle") !=
        std::string::npos);
}

TEST_CASE("encrypted files decrypt to what they were, and not with any bit changed") {
  InlineExecutor executor;
  const serve::Aead ciphers[] = {serve::Aead::aes_128_ocb, serve::Aead::chacha20_poly1305,
                                 serve::Aead::aes_256_gcm};
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4095},
                                 std::size_t{4096}, std::size_t{4097}, std::size_t{12'288}}) {
    CAPTURE(size);
    MemoryFiles files;
    std::vector<std::byte> plain(size);
    for (std::size_t i = 0; i < size; ++i) plain[i] = static_cast<std::byte>(i * 7 + i / 256);
    REQUIRE(files.make_folder("x"));
    REQUIRE(files.write("x/plain", 0, plain));
    const auto key = counting_key();
    REQUIRE(serve::seal_file(files, "x/plain", "x/sealed", key, kCrypto,
                             {ciphers[size % 3], 12}));
    CHECK_FALSE(serve::seal_file(files, "x/plain", "x/sealed", key, kCrypto));
    CHECK_FALSE(serve::seal_file(files, "x/plain", "x/y", key, kCrypto,
                                 {serve::Aead::aes_256_gcm, 11}));
    auto text = serve::read_text(files, "x/sealed", 1 << 20);
    REQUIRE(text);
    std::vector<std::byte> sealed(bytes_of(*text).begin(), bytes_of(*text).end());
    const auto opens = [&](std::span<const std::byte> bytes) {
      const auto opened = serve::open_sealed(bytes, key, kCrypto, executor);
      return opened && std::equal(plain.begin(), plain.end(), opened->bytes().begin(),
                                  opened->bytes().end());
    };
    CHECK(opens(sealed));
    const auto refuses = [&](std::span<const std::byte> bytes) {
      return !serve::open_sealed(bytes, key, kCrypto, executor);
    };
    CHECK_FALSE(serve::open_sealed(sealed, serve::SecretKey(), kCrypto, executor));
    for (std::size_t i = 0; i < sealed.size(); i += i < 110 ? 1 : 97) {
      for (const int bit : {1, 128}) {
        sealed[i] ^= static_cast<std::byte>(bit);
        CHECK(refuses(sealed));
        sealed[i] ^= static_cast<std::byte>(bit);
      }
    }
    CHECK(refuses(std::span(sealed).first(sealed.size() - 1)));
    if (size != 12'288) continue;
    const std::size_t head = 56 + 3 * 16;
    // Without the last chunk and its tag, and with a size that fits.
    auto shorter = sealed;
    shorter.resize(sealed.size() - 4096);
    shorter.erase(shorter.begin() + 56 + 2 * 16, shorter.begin() + 56 + 3 * 16);
    shorter[17] = std::byte{0x20};
    CHECK(refuses(shorter));
    // Two chunks exchanged, and then their tags too.
    auto exchanged = sealed;
    std::swap_ranges(exchanged.begin() + head, exchanged.begin() + head + 4096,
                     exchanged.begin() + head + 4096);
    CHECK(refuses(exchanged));
    std::swap_ranges(exchanged.begin() + 56, exchanged.begin() + 72, exchanged.begin() + 72);
    CHECK(refuses(exchanged));
  }
}

TEST_CASE("an encrypted model of a signed bundle is loaded; the key comes last, against a proof") {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  const std::string source = std::string(project) + "/examples/models/home-commands-f16.gguf";
  const test::TemporaryFolder folder;
  serve::SystemFiles files;
  const std::string path = folder.path("bundle");
  REQUIRE(files.make_folder(path));
  const auto pair = serve::OpensslCrypto::make_p256();
  REQUIRE(pair);
  std::filesystem::copy_file(source, path + "/plain.gguf");
  REQUIRE(serve::seal_file(files, source, path + "/model.sealed", counting_key(), kCrypto));
  serve::Manifest manifest;
  manifest.name = "home";
  manifest.version = 5;
  manifest.chunk_size = 1 << 20;
  for (const char* const name : {"plain.gguf", "model.sealed"}) {
    auto file = serve::describe_file(files, path, name, serve::FileRole::model,
                                     manifest.chunk_size, kCrypto,
                                     name[0] == 'm' ? "fleet-7" : "");
    REQUIRE_MESSAGE(file, test::why(file));
    manifest.files.push_back(*file);
  }
  const auto text = serve::sign_manifest(manifest, pair->private_key, kCrypto);
  REQUIRE_MESSAGE(text, test::why(text));
  REQUIRE(files.write(path + "/bundle.json", 0, bytes_of(*text)));

  const std::vector<serve::KeyBytes> keys = {pair->public_key};
  auto bundle = serve::Bundle::open(files, path, keys, kCrypto);
  REQUIRE_MESSAGE(bundle, test::why(bundle));
  auto pool = ThreadPool::create({.n_threads = 2});
  REQUIRE(pool);
  ThreadPool& threads = **pool;
  const serve::ManifestFile& sealed = *bundle->manifest().find("model.sealed");
  const auto without = bundle->open_model(sealed, threads);
  CHECK(test::why(without).ends_with("encrypted, and there is no source of keys"));
  CHECK_FALSE(bundle->map(sealed, threads));

  std::vector<std::string> calls;
  bool is_trusted = true;
  serve::KeySource source_of_keys;
  source_of_keys.attest =
      [&](const serve::KeyRequest& request) -> Result<std::vector<std::byte>> {
    calls.push_back("attest " + request.key + " " + std::to_string(request.version));
    if (!is_trusted) return Error{Errc::unsupported, "no TEE here"};
    return std::vector<std::byte>(request.id.begin(), request.id.end());
  };
  source_of_keys.release = [&](const serve::KeyRequest& request, std::span<const std::byte> proof) {
    calls.push_back("release " + request.bundle + " " + std::to_string(proof.size()));
    return Result<serve::SecretKey>(counting_key());
  };
  const auto model = bundle->open_model(sealed, threads, &source_of_keys);
  REQUIRE_MESSAGE(model, test::why(model));
  CHECK(calls == std::vector<std::string>{"attest fleet-7 5", "release home 32"});
  const auto plain = bundle->open_model(*bundle->manifest().find("plain.gguf"), threads);
  REQUIRE_MESSAGE(plain, test::why(plain));
  CHECK(plain->files().size() == 1);
  CHECK(model->files().empty());
  REQUIRE(plain->tensors().size() == model->tensors().size());
  for (std::size_t i = 0; i < plain->tensors().size(); ++i) {
    const auto a = plain->tensors()[i].data;
    const auto b = model->tensors()[i].data;
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
  is_trusted = false;
  calls.clear();
  CHECK(test::why(bundle->open_model(sealed, threads, &source_of_keys)) == "no TEE here");
  CHECK(calls.size() == 1);
  CHECK_FALSE(serve::describe_file(files, path, "plain.gguf", serve::FileRole::model,
                                   manifest.chunk_size, kCrypto, "fleet-7"));
  is_trusted = true;
  // A bit of any part: of the header, of the tags and, by the tags, of the ciphertext.
  const auto refused = [&](const serve::ManifestFile& file, std::uint64_t at) {
    std::byte byte{};
    REQUIRE(files.read(path + "/" + file.name, at, std::span(&byte, 1)));
    const std::byte changed = byte ^ std::byte{32};
    REQUIRE(files.write(path + "/" + file.name, at, std::span(&changed, 1)));
    const std::string error = test::why(bundle->open_model(file, threads, &source_of_keys));
    CHECK_FALSE(error.empty());
    CHECK_FALSE(bundle->check_all(threads));
    REQUIRE(files.write(path + "/" + file.name, at, std::span(&byte, 1)));
    return error;
  };
  const serve::ManifestFile& unsealed = *bundle->manifest().find("plain.gguf");
  calls.clear();
  for (const std::uint64_t at : {std::uint64_t{0}, unsealed.size / 2, unsealed.size - 1}) {
    CHECK(refused(unsealed, at).ends_with("not the bytes that were signed"));
  }
  CHECK(refused(sealed, 8).ends_with("with a cipher that is not known"));
  for (const std::uint64_t at : {0, 9, 12, 16, 23, 24, 55, 56, 71, 72, 100}) {
    CHECK(refused(sealed, at).ends_with("not the bytes that were signed"));
  }
  CHECK(calls.empty());  // no key is asked for
  const std::uint64_t head = sealed.size - unsealed.size;
  for (const std::uint64_t at : {head, head + 1, sealed.size / 2, sealed.size - 1}) {
    CHECK(refused(sealed, at).find("encrypted chunk") != std::string::npos);
  }
  CHECK(bundle->check_all(threads));
  // The same model, encrypted once more with the same key; and one chunk of it with its tag.
  REQUIRE(serve::seal_file(files, source, folder.path("again"), counting_key(), kCrypto));
  const auto first = serve::read_text(files, path + "/model.sealed", sealed.size);
  const auto again = serve::read_text(files, folder.path("again"), sealed.size);
  REQUIRE((first && again && first->size() == again->size() && *first != *again));
  const auto replaced_by = [&](const std::string& other) {
    REQUIRE(files.write(path + "/model.sealed", 0, bytes_of(other)));
    return test::why(bundle->open_model(sealed, threads, &source_of_keys));
  };
  CHECK(replaced_by(*again).ends_with("not the bytes that were signed"));
  std::string mixed = *first;
  mixed.replace(head, 1 << 18, again->substr(head, 1 << 18));
  CHECK(replaced_by(mixed).find("encrypted chunk 0") != std::string::npos);
  mixed.replace(56, 16, again->substr(56, 16));
  CHECK(replaced_by(mixed).ends_with("not the bytes that were signed"));
  CHECK(replaced_by(*first) == "");
  std::filesystem::create_symlink(source, path + "/link");
  CHECK(test::why(serve::Bundle::open(files, path, keys, kCrypto))
            .ends_with("neither a regular file nor a folder"));
}
#endif
