// SPDX-License-Identifier: Apache-2.0
//
// bundle: makes keys, encrypts models, signs folders as bundles, verifies and shows them, and brings
// them to devices.
//
//   bundle keygen release                          release.key and release.pub
//   bundle keygen --secret fleet                   fleet.secret, for encryption
//   bundle encrypt model.gguf home/model.sealed --secret fleet.secret
//   bundle sign home --key release.key --version 7 --days 90
//   bundle verify home --key release.pub
//   bundle update DEVICE https://models.example/home --key release.pub
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bundle/http_source.hpp"
#include "common.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/download.hpp"
#include "nibble/serve/make_bundle.hpp"
#include "nibble/serve/openssl_crypto.hpp"
#include "nibble/serve/sealed_file.hpp"
#include "nibble/serve/slots.hpp"
#include "nibble/serve/system_files.hpp"

namespace {

using nibble::Errc;
using nibble::Error;
using nibble::ok;
using nibble::Result;
namespace serve = nibble::serve;

const serve::OpensslCrypto kCrypto;
constexpr std::uint64_t kDay = 86'400;  // seconds
constexpr std::uint64_t kMaxKeyFile = 1 << 16;

std::uint64_t seconds_now() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(
                                        std::chrono::system_clock::now().time_since_epoch())
                                        .count());
}

Result<std::vector<std::byte>> read_pem(const std::string& path, const std::string& label) {
  serve::SystemFiles files;
  NIBBLE_TRY(text, serve::read_text(files, path, kMaxKeyFile));
  auto bytes = serve::from_pem(text, label);
  if (!bytes) return std::move(bytes).error().in(nibble::printable(path));
  return bytes;
}

Result<serve::SecretKey> read_secret(const std::string& path) {
  NIBBLE_TRY(bytes, read_pem(path, "NIBBLE SECRET KEY"));
  if (bytes.size() != serve::SecretKey::kBytes) {
    return Error{Errc::malformed, nibble::printable(path) + ": not a key of 32 bytes"};
  }
  return serve::SecretKey(std::span<const std::byte, serve::SecretKey::kBytes>(bytes));
}

// A key of which a part could be read by others is no key: the file is only the owner's.
Result<void> write_key(const std::string& path, const std::string& text, bool is_secret) {
  serve::SystemFiles files;
  if (files.size(path)) {
    return Error{Errc::invalid_argument, nibble::printable(path) + ": there is such a file already"};
  }
  const ::mode_t before = ::umask(is_secret ? 077 : 022);
  auto written = files.write(path, 0, serve::bytes_of(text));
  ::umask(before);
  if (!written) return written;
  std::printf("%s\n", nibble::printable(path).c_str());
  return files.sync(path);
}

int keygen(int argc, char** argv) {
  CLI::App app("Makes keys.", "bundle keygen");
  std::string prefix;
  bool is_p256 = false;
  bool is_secret = false;
  app.add_option("NAME", prefix, "writes NAME.key and NAME.pub, or NAME.secret")
      ->check(example::is_not_empty)
      ->required();
  auto* const p256 = app.add_flag("--p256", is_p256, "ECDSA P-256 instead of Ed25519");
  app.add_flag("--secret", is_secret, "a key for encryption instead")->excludes(p256);
  return example::run(app, argc, argv, [&]() -> Result<void> {
    if (is_secret) {
      serve::SecretKey key;
      NIBBLE_CHECK(kCrypto.random(key.bytes()));
      return write_key(prefix + ".secret", serve::to_pem(key.bytes(), "NIBBLE SECRET KEY"), true);
    }
    NIBBLE_TRY(pair, is_p256 ? serve::OpensslCrypto::make_p256()
                             : serve::OpensslCrypto::make_ed25519());
    NIBBLE_CHECK(write_key(prefix + ".key", serve::to_pem(pair.private_key, "PRIVATE KEY"), true));
    return write_key(prefix + ".pub", serve::to_pem(pair.public_key, "PUBLIC KEY"), false);
  });
}

int encrypt(int argc, char** argv) {
  CLI::App app("Encrypts a file, for a bundle.", "bundle encrypt");
  std::string from, to, secret, cipher = "ocb";
  app.add_option("IN", from, "the file")->check(example::is_not_empty)->required();
  app.add_option("OUT", to, "the encrypted file, a new one")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("--secret", secret, "NAME.secret of keygen --secret")
      ->check(example::is_not_empty)
      ->required();
  const std::map<std::string, serve::Aead> ciphers = {
      {"ocb", serve::Aead::aes_128_ocb},
      {"gcm", serve::Aead::aes_256_gcm},
      {"chacha", serve::Aead::chacha20_poly1305}};
  app.add_option("--cipher", cipher,
                 "ocb: AES-128-OCB; gcm: AES-256-GCM, for devices that have only that; chacha: "
                 "ChaCha20-Poly1305, for processors without AES instructions")
      ->check(CLI::IsMember(ciphers))
      ->capture_default_str();
  return example::run(app, argc, argv, [&]() -> Result<void> {
    NIBBLE_TRY(key, read_secret(secret));
    serve::SystemFiles files;
    serve::SealOptions options;
    options.aead = ciphers.at(cipher);
    return serve::seal_file(files, from, to, key, kCrypto, options);
  });
}

serve::FileRole role_of(std::string_view name) {
  if (name.ends_with(".gguf") || name.ends_with(".safetensors") || name.ends_with(".sealed")) {
    return serve::FileRole::model;
  }
  return name.starts_with("tokenizer") ? serve::FileRole::tokenizer : serve::FileRole::other;
}

Result<bool> is_sealed(serve::FileLayer& files, const std::string& path) {
  NIBBLE_TRY(size, files.size(path));
  if (size < serve::SealedHeader::kBytes) return false;
  std::byte magic[8];
  NIBBLE_CHECK(files.read(path, 0, magic));
  return serve::SealedHeader::has_magic(magic);
}

int sign(int argc, char** argv) {
  CLI::App app("Signs all files of a folder as a bundle.", "bundle sign");
  std::string folder, key_path, name = "model", secret_name = "default";
  std::vector<std::string> adapters, settings;
  std::string health;
  std::uint64_t version = 0, days = 0, chunk_kib = 1024;
  app.add_option("FOLDER", folder, "the folder; FOLDER/bundle.json is written")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("--key", key_path, "NAME.key of keygen")->check(example::is_not_empty)->required();
  app.add_option("--version", version, "counts up; devices refuse lower ones than they have had")
      ->check(example::is_not_negative)
      ->required();
  app.add_option("--name", name, "of the bundle")->capture_default_str();
  app.add_option("--days", days, "until it expires; 0: never")
      ->check(example::is_not_negative)
      ->capture_default_str();
  app.add_option("--adapter", adapters, "files that are adapters")->allow_extra_args(false);
  app.add_option("--health", health, "the file with the health check");
  app.add_option("--secret-name", secret_name, "what devices call the key of encrypted files")
      ->check(example::is_not_empty)
      ->capture_default_str();
  app.add_option("--setting", settings, "KEY=VALUE for the program that uses it")
      ->allow_extra_args(false);
  app.add_option("--chunk-kib", chunk_kib, "KiB that are hashed apart, a power of two")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 20))
      ->capture_default_str();
  return example::run(app, argc, argv, [&]() -> Result<void> {
    serve::SystemFiles files;
    NIBBLE_TRY(key, read_pem(key_path, "PRIVATE KEY"));
    serve::Manifest manifest;
    manifest.name = name;
    manifest.version = version;
    manifest.created = seconds_now();
    manifest.expires = days == 0 ? 0 : manifest.created + days * kDay;
    manifest.chunk_size = chunk_kib << 10;
    if (days > 1'000'000) return Error{Errc::invalid_argument, "--days: too many"};
    for (const std::string& setting : settings) {
      const std::size_t end = setting.find('=');
      if (end == std::string::npos) {
        return Error{Errc::invalid_argument, "--setting: KEY=VALUE is wanted"};
      }
      manifest.settings.emplace_back(setting.substr(0, end), setting.substr(end + 1));
    }
    NIBBLE_TRY(names, files.list(folder));
    for (const std::string& file_name : names) {
      if (file_name == serve::kBundleFile) continue;
      serve::FileRole role = role_of(file_name);
      for (const std::string& adapter : adapters) {
        if (adapter == file_name) role = serve::FileRole::adapter;
      }
      if (file_name == health) role = serve::FileRole::health;
      NIBBLE_TRY(sealed, is_sealed(files, folder + "/" + file_name));
      NIBBLE_TRY(file, serve::describe_file(files, folder, file_name, role, manifest.chunk_size,
                                            kCrypto, sealed ? secret_name : std::string()));
      manifest.files.push_back(std::move(file));
    }
    NIBBLE_TRY(text, serve::sign_manifest(manifest, key, kCrypto));
    return serve::replace_text(files, folder, folder + "/" + std::string(serve::kBundleFile), text);
  });
}

// The manifest, for people.
void show(const serve::Manifest& manifest, const serve::Digest& id) {
  std::printf("name     %s\nversion  %llu\n", nibble::printable(manifest.name).c_str(),
              static_cast<unsigned long long>(manifest.version));
  if (manifest.expires != 0) {
    const std::uint64_t now = seconds_now();
    const bool is_over = now > manifest.expires;
    const std::uint64_t days =
        (is_over ? now - manifest.expires : manifest.expires - now) / kDay;
    std::printf(is_over ? "expired  %llu days ago\n" : "expires  in %llu days\n",
                static_cast<unsigned long long>(days));
  }
  std::printf("id       %s\n", serve::to_hex(id).c_str());
  for (const serve::ManifestFile& file : manifest.files) {
    const std::string_view role = serve::kFileRoles[static_cast<std::size_t>(file.role)];
    std::printf("%12llu  %-9.*s %s%s%s\n", static_cast<unsigned long long>(file.size),
                static_cast<int>(role.size()), role.data(), nibble::printable(file.name).c_str(),
                file.key.empty() ? "" : ", encrypted with the key ",
                nibble::printable(file.key).c_str());
  }
  for (const auto& [key, value] : manifest.settings) {
    std::printf("setting  %s=%s\n", nibble::printable(key).c_str(),
                nibble::printable(value).c_str());
  }
}

Result<std::vector<serve::KeyBytes>> read_keys(const std::vector<std::string>& paths) {
  std::vector<serve::KeyBytes> keys;
  for (const std::string& path : paths) {
    NIBBLE_TRY(key, read_pem(path, "PUBLIC KEY"));
    keys.push_back(std::move(key));
  }
  return keys;
}

int check_bundle(int argc, char** argv) {
  CLI::App app("Verifies a bundle, or a model signed as OpenSSF Model Signing has it (model.sig).",
               "bundle verify");
  std::string folder, secret;
  std::vector<std::string> key_paths;
  std::uint64_t min_version = 0;
  nibble::Index n_threads = 0;
  app.add_option("FOLDER", folder, "the folder")->check(example::is_not_empty)->required();
  app.add_option("--key", key_paths, "public keys in PEM, one of which must have signed")
      ->allow_extra_args(false)
      ->required();
  app.add_option("--min-version", min_version, "refuse lower ones")
      ->check(example::is_not_negative)
      ->capture_default_str();
  app.add_option("--secret", secret, "decrypts too, with this NAME.secret");
  example::add_threads(app, n_threads);
  return example::run(app, argc, argv, [&]() -> Result<void> {
    NIBBLE_TRY(keys, read_keys(key_paths));
    NIBBLE_TRY(threads, nibble::ThreadPool::create({.n_threads = n_threads}));
    serve::SystemFiles files;
    NIBBLE_TRY(bundle, serve::Bundle::open(files, folder, keys, kCrypto));
    NIBBLE_CHECK(serve::check_current(bundle.manifest(), seconds_now(), min_version));
    NIBBLE_CHECK(bundle.check_all(*threads));
    serve::KeySource source;
    source.release = [&](const serve::KeyRequest&, std::span<const std::byte>) {
      return read_secret(secret);
    };
    for (const serve::ManifestFile& file : bundle.manifest().files) {
      if (!file.key.empty() && !secret.empty()) NIBBLE_CHECK(bundle.read(file, *threads, &source));
    }
    show(bundle.manifest(), bundle.id());
    std::puts("verified");
    return ok();
  });
}

int update(int argc, char** argv) {
  CLI::App app("Downloads a bundle to a device: what it does not have. It is tried at the next start.",
               "bundle update");
  std::string root;
  example::HttpSourceOptions from;
  std::vector<std::string> key_paths;
  app.add_option("DEVICE", root, "the folder with the slots a and b")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("URL", from.url, "of the bundle's folder, on a server with ranges")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("--key", key_paths, "public keys in PEM, one of which must have signed")
      ->allow_extra_args(false)
      ->required();
  app.add_option("--authorization", from.authorization, "sent to the server: \"Bearer ...\"");
  app.add_option("--ca", from.ca_file, "certificates in PEM to trust instead of the system's");
  return example::run(app, argc, argv, [&]() -> Result<void> {
    NIBBLE_TRY(keys, read_keys(key_paths));
    NIBBLE_TRY(threads, nibble::ThreadPool::create({.n_threads = 1}));
    serve::SystemFiles files;
    NIBBLE_CHECK(files.make_folder(root));
    NIBBLE_TRY(device, serve::Slots::open(files, root, keys, kCrypto));
    example::HttpSource source(from);
    serve::DownloadOptions options;
    options.wait = [](std::uint64_t ms) {
      std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      return true;
    };
    options.max_failures = 5;
    NIBBLE_TRY(done, serve::download(device, source, *threads, seconds_now(), options));
    const auto version = static_cast<unsigned long long>(done.version);
    if (!done.is_installed) {
      std::printf("version %llu is there already\n", version);
    } else {
      std::printf("version %llu: %llu bytes downloaded of %llu; on trial at the next start\n", version,
                  static_cast<unsigned long long>(done.progress.n_downloaded),
                  static_cast<unsigned long long>(done.progress.n_bytes));
    }
    return ok();
  });
}

int inspect(int argc, char** argv) {
  CLI::App app("Shows what a bundle says of itself, without verifying it.", "bundle inspect");
  std::string folder;
  app.add_option("FOLDER", folder, "the folder")->check(example::is_not_empty)->required();
  return example::run(app, argc, argv, [&]() -> Result<void> {
    serve::SystemFiles files;
    const std::string path = folder + "/" + std::string(serve::kBundleFile);
    NIBBLE_TRY(text, serve::read_text(files, path, serve::detail::kMaxEnvelope));
    NIBBLE_TRY(envelope, serve::parse_envelope(text));
    NIBBLE_TRY(manifest, serve::parse_manifest(envelope.payload));
    NIBBLE_TRY(id, kCrypto.sha256_of(serve::bytes_of(envelope.payload)));
    show(manifest, id);
    std::puts("not verified");
    return ok();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const struct {
    std::string_view name;
    int (*program)(int, char**);
  } commands[] = {{"keygen", keygen},
                  {"encrypt", encrypt},
                  {"sign", sign},
                  {"verify", check_bundle},
                  {"update", update},
                  {"inspect", inspect}};
  for (const auto& command : commands) {
    if (argc > 1 && argv[1] == command.name) return command.program(argc - 1, argv + 1);
  }
  CLI::App app("Makes and verifies signed bundles of models.", "bundle");
  for (const auto& command : commands) {
    app.add_subcommand(std::string(command.name), "see bundle " + std::string(command.name) + " --help");
  }
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 failed, refused or not verified, 2 wrong usage.");
  return example::run(app, argc, argv, [] { return ok(); });
}
