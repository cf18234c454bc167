// SPDX-License-Identifier: Apache-2.0
//
// Manifests, envelopes and encodings: what is accepted, and what is not.
#include "nibble/serve/manifest.hpp"

#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/envelope.hpp"
#include "small_bundles.hpp"
#include "why.hpp"

using namespace nibble;
using test::SmallBundle;

namespace {

const test::ToyCrypto kCrypto;
const std::vector<serve::KeyBytes> kKeys = {test::kToyKey};

std::string good_manifest() {
  const SmallBundle bundle = test::sign_small(
      {{"model.gguf", test::text_of_size(700, 1)}, {"adapters/a", "x"}, {"empty", ""}}, 3);
  serve::Manifest manifest = bundle.manifest;
  manifest.settings = {{"context", "512"}, {"note", "\"ü\""}};
  std::sort(manifest.files.begin(), manifest.files.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return to_json(manifest);
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE_MESSAGE(at != std::string::npos, from);
  text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a manifest has one text") {
  const std::string text = good_manifest();
  const auto manifest = serve::parse_manifest(text);
  REQUIRE_MESSAGE(manifest, test::why(manifest));
  CHECK(to_json(*manifest) == text);
  CHECK(manifest->version == 3);
  REQUIRE(manifest->find(serve::FileRole::model) != nullptr);
  CHECK(manifest->find(serve::FileRole::model)->chunks.size() == 3);
  CHECK(manifest->find("adapters/a")->role == serve::FileRole::adapter);
  CHECK(*manifest->setting("note") == "\"ü\"");
  CHECK(manifest->setting("none") == nullptr);
  CHECK(manifest->find(serve::FileRole::health) == nullptr);
  for (std::size_t n = 0; n < text.size(); ++n) {
    CHECK_FALSE(serve::parse_manifest(std::string_view(text).substr(0, n)));
  }
}

TEST_CASE("hostile manifests are errors") {
  const std::string good = good_manifest();
  const auto refused = [&](const std::string& from, const std::string& to, Errc code,
                           const std::string& part) {
    CAPTURE(to);
    std::string text = good;
    replace(text, from, to);
    const auto manifest = serve::parse_manifest(text);
    REQUIRE_FALSE(manifest);
    CHECK(manifest.error().code == code);
    CHECK_MESSAGE(manifest.error().message.find(part) != std::string::npos,
                  manifest.error().message);
  };
  const auto name = [&](const std::string& other, const std::string& part) {
    refused("\"adapters/a\"", "\"" + other + "\"", Errc::malformed, part);
  };
  name("../a", "leads out of the folder");
  name("a/../../b", "leads out of the folder");
  name("a/./b", "leads out of the folder");
  name("/etc/passwd", "begins or ends with '/'");
  name("a//b", "begins or ends with '/'");
  name("a/", "begins or ends with '/'");
  name("", "the length of its name");
  name("a\\\\b", "'\\' or ':' in its name");
  name("C:b", "'\\' or ':' in its name");
  name("a\\u0000b", "a control character");
  name("a. /b", "ends in '.' or ' '");
  name("bundle.json", "the name of the manifest itself");
  name("zzz", "out of order");
  name("empty", "is there twice");
  name("EMPTY", "the same name in other case, or is a folder of it");
  name("MODEL.gguf/a", "the same name in other case, or is a folder of it");
  name(std::string(5000, 'a'), "the length of its name");
  refused("\"size\":700", "\"size\":18446744073709551615", Errc::limit, "its size");
  refused("\"size\":700", "\"size\":18446744073709551616", Errc::malformed, "does not fit in 64");
  refused("\"size\":700", "\"size\":70000000000000", Errc::limit, "the number of chunks");
  refused("\"size\":700", "\"size\":769", Errc::malformed, "3 chunks, not 4");
  refused("\"size\":700", "\"size\":-1", Errc::malformed, "expected an unsigned integer");
  refused("\"size\":700", "\"size\":0700", Errc::malformed, "leading zero");
  refused("\"chunk_size\":256", "\"chunk_size\":0", Errc::limit, "a chunk size of 0");
  refused("\"chunk_size\":256", "\"chunk_size\":300", Errc::limit, "a chunk size of 300");
  refused("\"chunk_size\":256", "\"chunk_size\":2147483648", Errc::limit, "a chunk size");
  refused("\"version\":3", "\"version\":9007199254740993", Errc::limit, "the number");
  refused("\"version\":3", "\"version\":3,\"more\":1", Errc::malformed, "a key that is not known");
  refused("\"size\":700", "\"size\":700,\"mode\":1", Errc::malformed, "a key that is not known");
  refused("\"version\":3", "\"version\":3,\"version\":4", Errc::malformed, "the one form");
  refused("\"version\":3", "\"version\": 3", Errc::malformed, "the one form");
  refused("\"version\":3,", "", Errc::malformed, "the one form");
  refused("\"role\":\"model\"", "\"role\":\"virus\"", Errc::malformed, "a role that is not known");
  refused("\"context\"", "\"zebra\"", Errc::malformed, "out of order");
  refused("\"context\"", "\"note\"", Errc::malformed, "is there twice");
  std::string upper = good;
  const std::size_t digest = upper.find("\"sha256\":\"") + 10;
  upper[digest] = 'A';
  CHECK_FALSE(serve::parse_manifest(upper));
  upper[digest] = 'g';
  CHECK_FALSE(serve::parse_manifest(upper));
  CHECK_FALSE(serve::parse_manifest(good + "\n"));
  CHECK_FALSE(serve::parse_manifest(std::string(100'000, '[')));
  std::string none = good;
  none.erase(none.find("[{") + 1, none.rfind("}]") - none.find("[{"));
  CHECK(test::why(serve::parse_manifest(none)) == "a bundle without files");
}

TEST_CASE("an envelope is opened if a trusted key has signed it") {
  const auto text = serve::sign_envelope("text/plain", "hello", test::kToyKey, kCrypto);
  REQUIRE(text);
  CHECK(serve::pre_authentication_encoding("text/plain", "hello") ==
        "DSSEv1 10 text/plain 5 hello");
  const std::vector<serve::KeyBytes> two = {serve::KeyBytes(3, std::byte{1}), test::kToyKey};
  const auto opened = serve::open_envelope(*text, two, kCrypto);
  REQUIRE_MESSAGE(opened, test::why(opened));
  CHECK(opened->type == "text/plain");
  CHECK(opened->payload == "hello");
  CHECK_FALSE(serve::open_envelope(*text, {}, kCrypto));
  CHECK_FALSE(serve::open_envelope(*text, std::span(two).first(1), kCrypto));
  // Another type, or any other bit of type, payload and signature.
  std::string other = *text;
  replace(other, "text/plain", "text/plaim");
  CHECK_FALSE(serve::open_envelope(other, kKeys, kCrypto));
  const std::size_t payload = text->find("aGVsbG8=");
  for (std::size_t i = payload; i < payload + 8; ++i) {
    other = *text;
    other[i] = other[i] == 'A' ? 'B' : 'A';
    CHECK_FALSE(serve::open_envelope(other, kKeys, kCrypto));
  }
  for (const char* const bad :
       {"", "[]", "{}", R"({"payloadType":"a","payload":"","signatures":[]})",
        R"({"payload":"","payload":"","payloadType":"a","signatures":[]})",
        R"({"payloadType":"a","payload":"!","signatures":[]})",
        R"({"payloadType":"a","payload":"","signatures":[{}]})",
        R"({"payloadType":"a","payload":"","signatures":[{"sig":"","sig":""}]})",
        R"({"dsseEnvelope":{},"dsseEnvelope":{}})", R"({"dsseEnvelope":1})"}) {
    CAPTURE(bad);
    CHECK_FALSE(serve::open_envelope(bad, kKeys, kCrypto));
  }
  std::string many = R"({"payloadType":"a","payload":"","signatures":[{"sig":""})";
  for (int i = 0; i < 20; ++i) many += R"(,{"sig":""})";
  CHECK(test::why(serve::parse_envelope(many + "]}")).ends_with("too many signatures"));
}

TEST_CASE("base64, hexadecimal digits and PEM") {
  const std::pair<const char*, const char*> vectors[] = {  // RFC 4648, 10
      {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, digits] : vectors) {
    CHECK(serve::to_base64(serve::bytes_of(plain)) == digits);
    const auto back = serve::from_base64(digits);
    REQUIRE(back);
    CHECK(serve::text_of(*back) == plain);
  }
  for (const char* const bad : {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "Z===", "====",
                                "Zm9v Zm9v", "Zm9v\n", "Zm8=A", "Zm-v"}) {
    CAPTURE(bad);
    CHECK_FALSE(serve::from_base64(bad));
  }
  const std::string long_text = test::text_of_size(100, 3);
  const std::string pem = serve::to_pem(serve::bytes_of(long_text), "KEY");
  const auto back = serve::from_pem("note\n" + pem, "KEY");
  REQUIRE(back);
  CHECK(serve::text_of(*back) == long_text);
  CHECK_FALSE(serve::from_pem(pem, "OTHER"));
  CHECK_FALSE(serve::from_pem("-----END KEY----------BEGIN KEY-----", "KEY"));
}

TEST_CASE("a bundle is refused for every bit that differs, and for files that were not signed") {
  const SmallBundle bundle =
      test::sign_small({{"model.gguf", test::text_of_size(600, 1)}, {"adapter", "x"}}, 1);
  InlineExecutor executor;
  const auto check = [&](test::MemoryFiles& files) -> Result<void> {
    NIBBLE_TRY(opened, serve::Bundle::open(files, "x", kKeys, kCrypto));
    return opened.check_all(executor);
  };
  test::MemoryFiles files;
  test::place(files, "x", bundle);
  REQUIRE_MESSAGE(check(files), test::why(check(files)));
  for (const auto& [name, text] : bundle.files) {
    for (std::size_t at = 0; at < text.size(); ++at) {
      REQUIRE(files.flip("x/" + name, at));
      CHECK_FALSE(check(files));
      REQUIRE(files.flip("x/" + name, at));
    }
  }
  // A bit of the manifest; what stands beside it is signed by nobody, and may be white space.
  const std::size_t payload = bundle.text.find("\"payload\":\"") + 11;
  for (std::size_t at = payload; at < bundle.text.find('"', payload); at += 7) {
    REQUIRE(files.flip("x/bundle.json", at));
    CHECK_FALSE(check(files));
    REQUIRE(files.flip("x/bundle.json", at));
  }
  REQUIRE(files.write("x/tokenizer.json", 0, serve::bytes_of("{}")));
  CHECK(test::why(check(files)) == "x: file 'tokenizer.json': not a file that was signed");
  REQUIRE(files.remove("x/tokenizer.json"));
  REQUIRE(files.write("x/adapter", 1, serve::bytes_of("y")));
  CHECK(test::why(check(files)) == "x: file 'adapter': not the bytes that were signed");
  REQUIRE(files.remove("x/adapter"));
  CHECK_FALSE(check(files));
  REQUIRE(files.remove("x/bundle.json"));
  CHECK(test::why(check(files)) == "x: no bundle: neither bundle.json nor model.sig is there");
}

TEST_CASE("an encrypted file is refused for every bit that differs, when it is decrypted") {
  test::MemoryFiles files;
  const std::string text = test::text_of_size(8300, 4);
  REQUIRE(files.make_folder("x"));
  REQUIRE(files.write("plain", 0, serve::bytes_of(text)));
  REQUIRE(serve::seal_file(files, "plain", "x/model", serve::SecretKey(), kCrypto,
                           {serve::Aead::aes_256_gcm, 12}));
  serve::Manifest manifest;
  manifest.chunk_size = 256;
  const auto file =
      serve::describe_file(files, "x", "model", serve::FileRole::model, 256, kCrypto, "k");
  REQUIRE_MESSAGE(file, test::why(file));
  manifest.files = {*file};
  const auto signed_text = serve::sign_manifest(manifest, test::kToyKey, kCrypto);
  REQUIRE_MESSAGE(signed_text, test::why(signed_text));
  REQUIRE(files.write("x/bundle.json", 0, serve::bytes_of(*signed_text)));
  InlineExecutor executor;
  serve::KeySource keys;
  keys.release = [](const serve::KeyRequest&, std::span<const std::byte>) {
    return Result<serve::SecretKey>(serve::SecretKey());
  };
  const auto read = [&]() -> Result<std::string> {
    NIBBLE_TRY(bundle, serve::Bundle::open(files, "x", kKeys, kCrypto));
    NIBBLE_TRY(plain, bundle.read(bundle.manifest().files[0], executor, &keys));
    return std::string(serve::text_of(plain.bytes()));
  };
  REQUIRE_MESSAGE(read(), test::why(read()));
  CHECK(*read() == text);
  const std::size_t head = 56 + 3 * 16;
  CHECK(file->size == head + text.size());
  for (std::size_t at = 0; at < file->size; at += at < head + 20 ? 1 : 13) {
    CAPTURE(at);
    REQUIRE(files.flip("x/model", at));
    CHECK_FALSE(read());
    REQUIRE(files.flip("x/model", at));
  }
  // The digest of the head, and the name of the key, are signed with the rest.
  const std::string json = to_json(manifest);
  const auto other = [&](const std::string& from, const std::string& to) {
    std::string changed = json;
    replace(changed, from, to);
    return test::why(serve::parse_manifest(changed));
  };
  const std::string seal = ",\"seal\":\"" + serve::to_hex(file->seal) + "\"";
  CHECK(other(seal, seal) == "");
  CHECK(other(seal, "").find("the one form") != std::string::npos);
  CHECK(other(",\"key\":\"k\"", "").find("the one form") != std::string::npos);
  CHECK_FALSE(other(seal, ",\"seal\":\"00\"").empty());
}
