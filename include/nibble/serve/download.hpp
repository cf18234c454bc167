// SPDX-License-Identifier: Apache-2.0
//
// Downloads a bundle into the slot that does not run (update.hpp), over connections that break and
// with power that fails. The bytes are from a BundleSource, which the host implements:
// examples/bundle/http_source.hpp does with HTTPS and ranges. Only chunks are asked for that are
// not on the device, in whatever file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/callback.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/slots.hpp"
#include "nibble/serve/update.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// Where the files of a bundle are from. What it gives is not believed.
class BundleSource {
 public:
  // Takes bytes; false: no more of them are wanted.
  using Sink = FunctionRef<bool(std::span<const std::byte> bytes)>;

  virtual ~BundleSource() = default;

  // A whole small file, of at most `limit` bytes. Errors: io (worth another try), and others, which
  // end the download.
  virtual Result<std::string> text(const std::string& name, std::uint64_t limit) = 0;
  // Bytes [offset, offset + size) of a file, in order, in pieces of any size, until the sink wants
  // no more. Errors: the same.
  virtual Result<void> fetch(const std::string& name, std::uint64_t offset, std::uint64_t size,
                             Sink sink) = 0;
};

struct DownloadProgress {
  std::uint64_t n_bytes = 0;       // of all files of the bundle
  std::uint64_t n_there = 0;       // that are in the slot
  std::uint64_t n_downloaded = 0;  // that came from the source, also those that were wrong
};

struct DownloadOptions {
  std::uint64_t part_size = std::uint64_t{8} << 20;   // bytes asked for, and made lasting, at once
  std::uint64_t max_chunk = std::uint64_t{64} << 20;  // bytes of a chunk, which is held in memory
  // Attempts in a row that bring no chunk; and the wait after the first, which doubles.
  unsigned max_failures = 10;
  std::uint64_t first_wait_ms = 1000, max_wait_ms = std::uint64_t{10} * 60'000;
  // Waits on the host's clock; empty: no waiting. False: the download ends.
  Callback<bool(std::uint64_t milliseconds)> wait;
  // Called whenever bytes come, however few. False: the download ends.
  Callback<bool(const DownloadProgress& progress)> progress;
};

struct Downloaded {
  bool is_installed = false;  // false: it runs already, or at the next start
  std::uint64_t version = 0;
  DownloadProgress progress;
};

namespace detail {

class Downloader {
 public:
  Downloader(BundleSource& source, const DownloadOptions& options) noexcept
      : source_(source), options_(options) {}

  Result<Downloaded> run(Slots& device, Executor& executor, std::uint64_t now) {
    NIBBLE_TRY(text, manifest_text());
    NIBBLE_TRY(opened, open_manifest(text, device.keys(), device.crypto()));
    Downloaded out;
    out.version = opened.manifest.version;
    for (std::size_t slot = 0; slot < 2; ++slot) {
      const SlotState& state = device.state().of[slot];
      const bool is_to_start = state.status == SlotStatus::trial || slot == device.running();
      if (is_to_start && state.status != SlotStatus::empty && state.id == opened.id) return out;
    }
    NIBBLE_TRY(update, Update::begin(device, text, now));
    NIBBLE_CHECK(update.take_from_running());
    for (const ManifestFile& file : update.manifest().files) progress_.n_bytes += file.size;
    progress_.n_there = progress_.n_bytes;
    for (const Update::Part& part : update.missing(0)) {  // single chunks
      progress_.n_there -= part.size;
      if (part.size <= options_.max_chunk) continue;
      return Error{Errc::limit, "a bundle with chunks of " + to_text(part.size) + " bytes"};
    }
    for (auto parts = update.missing(options_.part_size); !parts.empty();
         parts = update.missing(options_.part_size)) {
      const std::uint64_t before = progress_.n_there;
      auto fetched = fetch(update, parts.front());
      if (is_over_) return std::move(fetched).error();
      NIBBLE_CHECK(update.sync());
      if (progress_.n_there > before) n_failures_ = 0;
      if (!fetched) NIBBLE_CHECK(fail(std::move(fetched).error()));
    }
    NIBBLE_CHECK(update.finish(executor));
    out.is_installed = true;
    out.progress = progress_;
    return out;
  }

 private:
  Result<std::string> manifest_text() {
    for (;;) {
      auto text = source_.text(std::string(kBundleFile), kMaxEnvelope);
      if (text) return text;
      NIBBLE_CHECK(fail(std::move(text).error()));
    }
  }

  // One part; each chunk is written when it is complete.
  Result<void> fetch(Update& update, const Update::Part& part) {
    const ManifestFile& file = update.manifest().files[part.file];
    std::uint64_t at = part.offset;
    const std::uint64_t end = part.offset + part.size;
    std::optional<Error> refused;
    chunk_.clear();
    auto fetched = source_.fetch(file.name, at, part.size, [&](std::span<const std::byte> bytes) {
      auto taken = take(update, part.file, at, end, bytes);
      if (!taken) refused = std::move(taken).error();
      return !refused;
    });
    if (refused) return *std::move(refused);
    if (!fetched || at == end) return fetched;
    return Error{Errc::io, "file " + io::quoted(file.name) + ": fewer bytes than were asked for"};
  }

  // Bytes of a file from `at` on, behind those of chunk_.
  Result<void> take(Update& update, std::size_t file, std::uint64_t& at, std::uint64_t end,
                    std::span<const std::byte> bytes) {
    progress_.n_downloaded += bytes.size();
    while (!bytes.empty()) {
      const auto size = io::narrow<std::size_t>((std::min)(update.manifest().chunk_size, end - at));
      if (size == 0) return Error{Errc::io, "more bytes than were asked for"};
      const std::size_t n = (std::min)(size - chunk_.size(), bytes.size());
      NIBBLE_CHECK(ends(catch_out_of_memory([&]() -> Result<void> {
        chunk_.insert(chunk_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
        return ok();
      })));
      bytes = bytes.subspan(n);
      if (chunk_.size() < size) break;
      auto put = update.put(file, at, chunk_);
      if (!put && put.error().code == Errc::malformed) return put;  // another attempt may help
      NIBBLE_CHECK(ends(std::move(put)));
      at += size;
      progress_.n_there += size;
      chunk_.clear();
    }
    if (options_.progress && !options_.progress(progress_)) return ends(cancelled());
    return ok();
  }

  // An error of this end: there is no other attempt.
  Result<void> ends(Result<void> done) {
    is_over_ = is_over_ || !done;
    return done;
  }

  // After an attempt that failed: ok if there may be another.
  Result<void> fail(Error error) {
    const bool is_passing = error.code == Errc::io || error.code == Errc::malformed;
    if (!is_passing || ++n_failures_ >= options_.max_failures) return error;
    wait_ms_ =
        n_failures_ == 1 ? options_.first_wait_ms : (std::min)(2 * wait_ms_, options_.max_wait_ms);
    if (options_.wait && !options_.wait(wait_ms_)) return cancelled();
    return ok();
  }
  static Error cancelled() { return {Errc::cancelled, "the download was ended"}; }

  BundleSource& source_;
  const DownloadOptions& options_;
  DownloadProgress progress_;
  std::vector<std::byte> chunk_;  // the part of a chunk that is there
  unsigned n_failures_ = 0;
  std::uint64_t wait_ms_ = 0;
  bool is_over_ = false;
};

}  // namespace detail

// Downloads the bundle of the source, if it is not the one that runs or will, verifies each chunk
// before it is written, and sets it on trial at the next start. What a download that was ended, by
// whatever, has written is not asked for again. For a thread of its own, which nobody else uses the
// Slots beside. `now`: as Update::begin. Errors: those of Update, of the source (after max_failures
// attempts), cancelled, limit (a chunk that is larger than max_chunk).
inline Result<Downloaded> download(Slots& device, BundleSource& source, Executor& executor,
                                   std::uint64_t now, const DownloadOptions& options = {}) {
  return catch_out_of_memory([&]() -> Result<Downloaded> {
    return detail::Downloader(source, options).run(device, executor, now);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
