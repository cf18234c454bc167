// SPDX-License-Identifier: Apache-2.0
//
// Files that are encrypted on the disk and decrypted into memory only. The construction is STREAM
// (Hoang, Reyhanitabar, Rogaway, Vizar: "Online Authenticated-Encryption and its Nonce-Reuse
// Misuse-Resistance", 2015): chunks that are encrypted one by one, with nonces that hold the
// number of the chunk and whether it is the last. Chunks that are changed, cut off, added, or in
// another order do not decrypt. The key of a file is derived (HKDF) from the given key, a random
// salt and the header, as Tink's streaming AEAD does; so nonces need no random part, and a header
// that is changed gives another key.
//
//   bytes 0 to 7    "NBLSEAL2"
//   byte 8          Aead
//   byte 9          log2 of the bytes of plain text in a chunk, 12 to 24
//   bytes 10 to 15  0
//   bytes 16 to 23  bytes of plain text in all, little-endian
//   bytes 24 to 55  salt
//   then            the tag of each chunk, 16 bytes: with the header, the file's head
//   then            the ciphertext of all chunks, as long as the plain text
//
// The nonce of a chunk: 7 zeros, its number in 4 bytes, big-endian, and 1 for the last, else 0. An
// empty file has one empty chunk.
//
// Who has the digest of the head from somebody it trusts (ManifestFile::seal) knows that the file is
// that one and not another that was encrypted with the same key, and need not hash the ciphertext:
// whatever decrypts to one of these tags was encrypted by a holder of the key. (Tags are no hashes:
// holders of the key can make other bytes for the same tag.)
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/file_layer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// The header of a sealed file, checked against the size of the file.
struct SealedHeader {
  static constexpr std::size_t kBytes = 56;
  static constexpr unsigned kMinLog2 = 12, kMaxLog2 = 24;

  Aead aead = Aead::aes_128_ocb;
  unsigned chunk_log2 = 18;
  std::uint64_t plain_size = 0;
  std::array<std::byte, 32> salt{};

  std::uint64_t chunk_size() const noexcept { return std::uint64_t{1} << chunk_log2; }
  std::uint64_t n_chunks() const noexcept {
    return plain_size == 0 ? 1 : ((plain_size - 1) >> chunk_log2) + 1;
  }
  // Bytes of header and tags, and of the whole file.
  std::uint64_t head_size() const noexcept { return kBytes + n_chunks() * Crypto::kTagBytes; }
  std::uint64_t sealed_size() const noexcept { return head_size() + plain_size; }

  std::array<std::byte, kBytes> bytes() const noexcept {
    std::array<std::byte, kBytes> out{};
    std::memcpy(out.data(), "NBLSEAL2", 8);
    out[8] = static_cast<std::byte>(aead);
    out[9] = static_cast<std::byte>(chunk_log2);
    std::memcpy(out.data() + 16, &plain_size, sizeof plain_size);
    std::memcpy(out.data() + 24, salt.data(), salt.size());
    return out;
  }

  static bool has_magic(std::span<const std::byte> begin) noexcept {
    return begin.size() >= 8 && std::memcmp(begin.data(), "NBLSEAL2", 8) == 0;
  }

  // The header in the first bytes of a file of `size` bytes. Errors: malformed, unsupported.
  static Result<SealedHeader> parse(std::span<const std::byte> sealed, std::uint64_t size) {
    if (sealed.size() < kBytes || !has_magic(sealed)) {
      return Error{Errc::malformed, "not an encrypted file of a bundle"};
    }
    SealedHeader header;
    header.aead = static_cast<Aead>(sealed[8]);
    header.chunk_log2 = static_cast<unsigned>(sealed[9]);
    header.plain_size = io::load_le<std::uint64_t>(sealed.data() + 16);
    std::memcpy(header.salt.data(), sealed.data() + 24, header.salt.size());
    if (sealed[8] < std::byte{1} || sealed[8] > std::byte{3}) {
      return Error{Errc::unsupported, "a file encrypted with a cipher that is not known"};
    }
    const bool fits = header.chunk_log2 >= kMinLog2 && header.chunk_log2 <= kMaxLog2 &&
                      header.plain_size <= size && header.n_chunks() <= 0xFFFFFFFFu &&
                      header.sealed_size() == size &&
                      std::memcmp(header.bytes().data(), sealed.data(), kBytes) == 0;
    if (!fits) return Error{Errc::malformed, "an encrypted file that was cut off or changed"};
    return header;
  }
};

namespace detail {

inline std::array<std::byte, Crypto::kNonceBytes> chunk_nonce(std::uint64_t chunk,
                                                              bool is_last) noexcept {
  std::array<std::byte, Crypto::kNonceBytes> nonce{};
  for (std::size_t i = 0; i < 4; ++i) nonce[7 + i] = static_cast<std::byte>(chunk >> (24 - 8 * i));
  nonce[11] = static_cast<std::byte>(is_last ? 1 : 0);
  return nonce;
}

inline Result<SecretKey> file_key(const SealedHeader& header, const SecretKey& key,
                                  const Crypto& crypto) {
  return crypto.derive(key, header.salt, header.bytes());
}

// Runs work(i) -> Result<void> for i in [0, n) on the executor; the error of the lowest i that has
// one, of those that ran: after an error no more are begun.
template <class Work>
Result<void> for_all(std::uint64_t n, Executor& executor, const Work& work) {
  std::vector<Error> errors(n == 0 ? 1 : static_cast<std::size_t>(executor.n_workers()));
  std::vector<std::uint64_t> failed(errors.size(), n);
  std::atomic<bool> stop{false};
  const auto task = [&](Index i, Index worker) {
    if (stop.load(std::memory_order_relaxed)) return;
    Result<void> done = catch_out_of_memory([&] { return work(static_cast<std::uint64_t>(i)); });
    const auto w = static_cast<std::size_t>(worker);
    if (done || failed[w] < static_cast<std::uint64_t>(i)) return;
    stop.store(true, std::memory_order_relaxed);
    failed[w] = static_cast<std::uint64_t>(i);
    errors[w] = std::move(done).error();
  };
  executor.parallel_for(static_cast<Index>(n), task);
  std::size_t first = 0;
  for (std::size_t w = 1; w < failed.size(); ++w) {
    if (failed[w] < failed[first]) first = w;
  }
  if (failed[first] < n) return std::move(errors[first]);
  return ok();
}

}  // namespace detail

// Header and tags of a sealed file, in memory: a file that is mapped may change after it was read.
struct SealedHead {
  SealedHeader header;
  std::vector<std::byte> bytes;

  // `sealed`: the first bytes of the file, or all; `size`: of the file. Errors: malformed,
  // unsupported.
  static Result<SealedHead> copy(std::span<const std::byte> sealed, std::uint64_t size) {
    return catch_out_of_memory([&]() -> Result<SealedHead> {
      SealedHead head;
      NIBBLE_TRY(seen, SealedHeader::parse(sealed, size));
      if (seen.head_size() > sealed.size()) {
        return Error{Errc::malformed, "an encrypted file without all of its head"};
      }
      const auto begin = sealed.first(io::narrow<std::size_t>(seen.head_size()));
      head.bytes.assign(begin.begin(), begin.end());
      NIBBLE_TRY(copied, SealedHeader::parse(head.bytes, size));
      if (copied.head_size() != head.bytes.size()) {
        return Error{Errc::malformed, "an encrypted file that changes while it is read"};
      }
      head.header = copied;
      return head;
    });
  }

  Crypto::ConstTag tag(std::uint64_t chunk) const noexcept {
    const auto at = io::narrow<std::size_t>(chunk * Crypto::kTagBytes);
    return std::span(bytes).subspan(SealedHeader::kBytes + at).first<Crypto::kTagBytes>();
  }
};

// Decrypts the ciphertext behind a head into memory, by all workers of the executor. Errors:
// malformed (it was changed, or this is not its key), out_of_memory, io.
inline Result<AlignedBuffer> open_sealed(const SealedHead& head, std::span<const std::byte> text,
                                         const SecretKey& key, const Crypto& crypto,
                                         Executor& executor) {
  return catch_out_of_memory([&]() -> Result<AlignedBuffer> {
    const SealedHeader& header = head.header;
    if (text.size() != header.plain_size) {
      return Error{Errc::malformed, "an encrypted file that was cut off"};
    }
    NIBBLE_TRY(own_key, detail::file_key(header, key, crypto));
    NIBBLE_TRY(plain, AlignedBuffer::allocate(text.size()));
    const std::uint64_t n_chunks = header.n_chunks();
    NIBBLE_CHECK(detail::for_all(n_chunks, executor, [&](std::uint64_t i) -> Result<void> {
      const auto at = io::narrow<std::size_t>(i << header.chunk_log2);
      const std::size_t size =
          (std::min)(text.size() - at, std::size_t{1} << header.chunk_log2);
      const auto nonce = detail::chunk_nonce(i, i + 1 == n_chunks);
      auto opened = crypto.open(header.aead, own_key, nonce, text.subspan(at, size), head.tag(i),
                                plain.bytes().subspan(at, size));
      if (!opened) return std::move(opened).error().in("encrypted chunk " + to_text(i));
      return opened;
    }));
    return plain;
  });
}

// The same for a whole sealed file. Errors: also those of SealedHead::copy.
inline Result<AlignedBuffer> open_sealed(std::span<const std::byte> sealed, const SecretKey& key,
                                         const Crypto& crypto, Executor& executor) {
  NIBBLE_TRY(head, SealedHead::copy(sealed, sealed.size()));
  return open_sealed(head, sealed.subspan(head.bytes.size()), key, crypto, executor);
}

struct SealOptions {
  Aead aead = Aead::aes_128_ocb;
  unsigned chunk_log2 = 18;  // of the bytes in a chunk, 12 to 24
};

// Encrypts the file `from` as `to`, which must not exist: for tools. Errors: invalid_argument, those
// of the files and of Crypto.
inline Result<void> seal_file(FileLayer& files, const std::string& from, const std::string& to,
                              const SecretKey& key, const Crypto& crypto,
                              const SealOptions& options = {}) {
  return catch_out_of_memory([&]() -> Result<void> {
    if (options.chunk_log2 < SealedHeader::kMinLog2 || options.chunk_log2 > SealedHeader::kMaxLog2) {
      return Error{Errc::invalid_argument, "chunk_log2 must be 12 to 24"};
    }
    if (files.size(to)) {
      return Error{Errc::invalid_argument, printable(to) + ": there is such a file already"};
    }
    SealedHeader header;
    header.aead = options.aead;
    header.chunk_log2 = options.chunk_log2;
    NIBBLE_TRY(plain_size, files.size(from));
    header.plain_size = plain_size;
    if (header.n_chunks() > 0xFFFFFFFFu) {
      return Error{Errc::limit, printable(from) + ": too large for chunks of this size"};
    }
    NIBBLE_CHECK(crypto.random(header.salt));
    NIBBLE_TRY(own_key, detail::file_key(header, key, crypto));
    std::vector<std::byte> head(io::narrow<std::size_t>(header.head_size()));
    std::memcpy(head.data(), header.bytes().data(), SealedHeader::kBytes);
    std::vector<std::byte> plain;
    std::vector<std::byte> text;
    for (std::uint64_t i = 0; i < header.n_chunks(); ++i) {
      const std::uint64_t at = i << header.chunk_log2;
      const std::uint64_t left = plain_size - at;
      plain.resize(io::narrow<std::size_t>(left < header.chunk_size() ? left : header.chunk_size()));
      text.resize(plain.size());
      NIBBLE_CHECK(files.read(from, at, plain));
      const auto nonce = detail::chunk_nonce(i, i + 1 == header.n_chunks());
      const auto tag = std::span(head).subspan(SealedHeader::kBytes +
                                               io::narrow<std::size_t>(i) * Crypto::kTagBytes);
      NIBBLE_CHECK(crypto.seal(header.aead, own_key, nonce, plain, text,
                               tag.first<Crypto::kTagBytes>()));
      NIBBLE_CHECK(files.write(to, header.head_size() + at, text));
    }
    NIBBLE_CHECK(files.write(to, 0, head));
    return files.sync(to);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
