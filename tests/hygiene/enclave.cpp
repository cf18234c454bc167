// SPDX-License-Identifier: Apache-2.0
//
// What runs in an enclave: a model that was encrypted in a bundle, decrypted in memory, answers. It
// has its bytes from the host, and the cipher of this test is none. enclave.cmake looks at what it
// is linked with; it exits with the number of the step that failed.
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "nibble/nibble.hpp"
#include "nibble/serve/sealed_file.hpp"
#include "serve/toy_crypto.hpp"

extern "C" const unsigned char enclave_model[], enclave_model_end[];

using Formats = nibble::graph::FormatList<nibble::quant::F16, nibble::quant::F32>;
using Architectures = nibble::ArchitectureList<nibble::Llama>;

namespace {

namespace serve = nibble::serve;

// As seal_file() does, which needs files.
std::vector<std::byte> sealed(std::span<const std::byte> plain, const serve::SecretKey& key,
                              const serve::Crypto& crypto) {
  serve::SealedHeader header;
  header.plain_size = plain.size();
  const auto own = serve::detail::file_key(header, key, crypto);
  std::vector<std::byte> out(static_cast<std::size_t>(header.sealed_size()));
  std::memcpy(out.data(), header.bytes().data(), serve::SealedHeader::kBytes);
  const auto tags = std::span(out).subspan(serve::SealedHeader::kBytes);
  const auto text = std::span(out).subspan(static_cast<std::size_t>(header.head_size()));
  for (std::size_t i = 0; i < header.n_chunks(); ++i) {
    const std::size_t at = i << header.chunk_log2;
    const std::size_t left = plain.size() - at;
    const std::size_t n = left < header.chunk_size() ? left : std::size_t{1} << header.chunk_log2;
    const auto nonce = serve::detail::chunk_nonce(i, i + 1 == header.n_chunks());
    const auto tag = tags.subspan(i * serve::Crypto::kTagBytes).first<serve::Crypto::kTagBytes>();
    if (!crypto.seal(header.aead, *own, nonce, plain.subspan(at, n), text.subspan(at, n), tag)) {
      return {};
    }
  }
  return out;
}

}  // namespace

int main() {
  const test::ToyCrypto crypto;
  const serve::SecretKey key;
  nibble::InlineExecutor alone;
  const auto* const begin = reinterpret_cast<const std::byte*>(enclave_model);
  const auto size = static_cast<std::size_t>(enclave_model_end - enclave_model);
  const std::vector<std::byte> file = sealed({begin, size}, key, crypto);
  auto plain = serve::open_sealed(file, key, crypto, alone);
  if (!plain) return 1;
  const auto gguf = nibble::io::Gguf::parse(*std::move(plain), "model");
  if (!gguf) return 2;
  const auto model = nibble::Model::from_gguf<Formats, Architectures>(*gguf);
  if (!model) return 3;
  auto session = nibble::Session::create(*model);
  if (!session) return 4;
  std::string answer;
  const auto done =
      nibble::generate(*session, "could you please dim the office light to 10 percent\n", {},
                       [&](const nibble::Token& token) {
                         answer += token.text;
                         return true;
                       });
  if (!done) return 5;
  return answer == "light.set(room=office, level=10)" ? 0 : 6;
}
