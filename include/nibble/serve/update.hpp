// SPDX-License-Identifier: Apache-2.0
//
// Brings a new bundle into the slot that does not run. Only what the hashes say is missing is
// downloaded, each part is verified before it is written, and after a power cut begin() with the
// same manifest goes on where it was.
//
//   auto update = serve::Update::begin(slots_, manifest_text, now);
//   update->take_from_running();                        // parts that are on the device already
//   for (const auto& part : update->missing())          // e.g. by HTTP ranges
//     update->put(part.file, part.offset, download(...));
//   update->finish(threads);                            // on trial at the next start
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/serve/bundle.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/file_layer.hpp"
#include "nibble/serve/manifest.hpp"
#include "nibble/serve/slots.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// Refers to the Slots, which live longer. One at a time.
class Update {
 public:
  // Verifies the text of a "bundle.json" and empties the idle slot of all that the bundle does not
  // have. `now` in seconds since 1970; a clock that is before the creation of what runs is not
  // believed. Errors: those of open_manifest and check_current; invalid_argument (it runs already;
  // what runs is on trial; it was rolled back before), unsupported (a manifest without sizes:
  // model.sig), those of the files.
  static Result<Update> begin(Slots& slots_of_device, std::string_view text, std::uint64_t now) {
    return catch_out_of_memory([&]() -> Result<Update> {
      const SlotsState& state = slots_of_device.state();
      NIBBLE_TRY(opened, open_manifest(text, slots_of_device.keys(), slots_of_device.crypto()));
      if (!opened.has_sizes) {
        return Error{Errc::unsupported, "an update needs sizes; its manifest has none"};
      }
      const SlotState& runs = state.of[slots_of_device.running()];
      NIBBLE_CHECK(check_current(opened.manifest, (std::max)(now, runs.created), state.highest));
      const auto refuse = [&](const char* why) {
        return Error{Errc::invalid_argument, "bundle " + io::quoted(opened.manifest.name) +
                                                 ", version " + to_text(opened.manifest.version) +
                                                 why};
      };
      if (runs.status == SlotStatus::good && runs.id == opened.id) return refuse(" runs already");
      if (state.is_refused(opened.id)) return refuse(" was rolled back on this device");
      NIBBLE_CHECK(slots_of_device.release_idle());
      Update update(slots_of_device, std::move(opened));
      NIBBLE_CHECK(update.prepare(text));
      return update;
    });
  }

  const Manifest& manifest() const noexcept { return signed_.manifest; }

  // Bytes [offset, offset + size) of files[file]; whole chunks.
  struct Part {
    std::size_t file;
    std::uint64_t offset;
    std::uint64_t size;
  };

  // What is missing, neighbours in one part of at most `max_size` bytes (or one chunk, if that is
  // more).
  std::vector<Part> missing(std::uint64_t max_size = std::uint64_t{64} << 20) const {
    std::vector<Part> parts;
    for (std::size_t f = 0; f < has_.size(); ++f) {
      for (std::size_t c = 0; c < has_[f].size(); ++c) {
        if (has_[f][c]) continue;
        const Part chunk = chunk_of(f, c);
        const bool follows = !parts.empty() && parts.back().file == f &&
                             parts.back().offset + parts.back().size == chunk.offset &&
                             parts.back().size + chunk.size <= max_size;
        if (follows) {
          parts.back().size += chunk.size;
        } else {
          parts.push_back(chunk);
        }
      }
    }
    return parts;
  }

  // Writes bytes of a file, whole chunks, if they are what was signed. Errors: invalid_argument (not
  // whole chunks), malformed (other bytes), those of the files.
  Result<void> put(std::size_t file, std::uint64_t offset, std::span<const std::byte> bytes) {
    return catch_out_of_memory([&]() -> Result<void> {
      const std::uint64_t chunk_size = manifest().chunk_size;
      const auto first = io::narrow<std::size_t>(offset / chunk_size);
      std::size_t rest = bytes.size();
      std::size_t c = first;
      if (file < has_.size() && offset % chunk_size == 0) {
        for (; c < has_[file].size() && chunk_of(file, c).size <= rest && rest > 0; ++c) {
          const auto size = io::narrow<std::size_t>(chunk_of(file, c).size);
          NIBBLE_CHECK(detail::check_digest(bytes.subspan(bytes.size() - rest, size),
                                            digest_of(file, c), manifest().files[file],
                                            device_->crypto()));
          rest -= size;
        }
      }
      if (c == first || rest != 0) {
        return Error{Errc::invalid_argument, "a part of an update that is not whole chunks"};
      }
      NIBBLE_CHECK(device_->files().write(path_of(file), offset, bytes));
      is_new_[file] = true;
      for (; c > first; --c) has_[file][c - 1] = true;
      return ok();
    });
  }

  // Copies what the running bundle has, in whatever file and place. What cannot be read there stays
  // missing. Errors: those of writing.
  Result<void> take_from_running() {
    return catch_out_of_memory([&]() -> Result<void> {
      const std::string folder = device_->folder(device_->running());
      const auto running =
          Bundle::open(device_->files(), folder, device_->keys(), device_->crypto());
      if (!running) return ok();
      std::vector<Source> sources;
      for (const ManifestFile& file : running->manifest().files) {
        add_sources(file, folder + "/" + file.name, running->manifest().chunk_size, sources);
      }
      const auto before = [](const Source& a, const Source& b) { return a.digest < b.digest; };
      std::sort(sources.begin(), sources.end(), before);
      std::vector<std::byte> bytes;
      for (std::size_t f = 0; f < has_.size(); ++f) {
        for (std::size_t c = 0; c < has_[f].size(); ++c) {
          if (has_[f][c]) continue;
          const Part part = chunk_of(f, c);
          Source wanted{digest_of(f, c), {}, 0, part.size};
          const auto found = std::lower_bound(sources.begin(), sources.end(), wanted, before);
          if (found == sources.end() || found->digest != wanted.digest) continue;
          if (found->size != part.size) continue;
          bytes.resize(io::narrow<std::size_t>(part.size));
          if (!device_->files().read(found->path, found->offset, bytes)) continue;
          auto copied = put(f, part.offset, bytes);
          if (!copied && copied.error().code != Errc::malformed) return copied;
        }
      }
      return ok();
    });
  }

  // Makes what was written lasting: after a power cut begin() finds it. Errors: those of the files.
  Result<void> sync() {
    return catch_out_of_memory([&]() -> Result<void> {
      FileLayer& files = device_->files();
      const std::string folder = device_->folder(idle());
      for (std::size_t f = 0; f < is_new_.size(); ++f) {
        if (is_new_[f]) NIBBLE_CHECK(files.sync(path_of(f)));
        is_new_[f] = false;
      }
      for (const std::string& name : folders()) NIBBLE_CHECK(files.sync_folder(folder + "/" + name));
      NIBBLE_CHECK(files.sync_folder(folder));
      return files.sync_folder(device_->root());
    });
  }

  // Verifies the whole bundle as it is on the disk, makes it lasting, and sets it on trial. Errors:
  // invalid_argument (something is missing), malformed (the disk has other bytes than were
  // written), those of the files.
  Result<void> finish(Executor& executor) {
    return catch_out_of_memory([&]() -> Result<void> {
      if (!missing().empty()) {
        return Error{Errc::invalid_argument, "an update of which parts are missing"};
      }
      FileLayer& files = device_->files();
      const std::string folder = device_->folder(idle());
      NIBBLE_CHECK(sync());
      NIBBLE_TRY(bundle, Bundle::open(files, folder, device_->keys(), device_->crypto()));
      NIBBLE_CHECK(bundle.check_all(executor));
      return device_->try_idle(signed_);
    });
  }

 private:
  // Bytes that are on the device.
  struct Source {
    Digest digest;
    std::string path;
    std::uint64_t offset;
    std::uint64_t size;
  };

  Update(Slots& device, SignedManifest&& signed_manifest)
      : device_(&device), signed_(std::move(signed_manifest)) {}

  std::size_t idle() const noexcept { return 1 - device_->running(); }
  std::string path_of(std::size_t file) const {
    return device_->folder(idle()) + "/" + manifest().files[file].name;
  }

  // A file without chunks is one, with the digest of the file.
  const Digest& digest_of(std::size_t f, std::size_t c) const noexcept {
    const ManifestFile& file = manifest().files[f];
    return file.chunks.empty() ? file.sha256 : file.chunks[c];
  }
  Part chunk_of(std::size_t f, std::size_t c) const noexcept {
    const std::uint64_t offset = c * manifest().chunk_size;
    return {f, offset, (std::min)(manifest().chunk_size, manifest().files[f].size - offset)};
  }

  static void add_sources(const ManifestFile& file, const std::string& path,
                          std::uint64_t chunk_size, std::vector<Source>& sources) {
    if (file.chunks.empty()) sources.push_back({file.sha256, path, 0, file.size});
    for (std::size_t c = 0; c < file.chunks.size(); ++c) {
      const std::uint64_t offset = c * chunk_size;
      sources.push_back({file.chunks[c], path, offset, (std::min)(chunk_size, file.size - offset)});
    }
  }

  // The folders below the slot's that files are in, each before those in it.
  std::vector<std::string> folders() const {
    std::vector<std::string> names;
    for (const ManifestFile& file : manifest().files) {
      for (std::size_t at = file.name.find('/'); at != std::string::npos;
           at = file.name.find('/', at + 1)) {
        names.push_back(file.name.substr(0, at));
      }
    }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return names;
  }

  Result<void> prepare(std::string_view text) {
    FileLayer& files = device_->files();
    const std::string folder = device_->folder(idle());
    NIBBLE_CHECK(files.make_folder(folder));
    NIBBLE_TRY(names, files.list(folder));
    for (const std::string& name : names) {
      const ManifestFile* const wanted = manifest().find(name);
      NIBBLE_TRY(size, files.size(folder + "/" + name));
      if (name == kBundleFile || (wanted != nullptr && size <= wanted->size)) continue;
      NIBBLE_CHECK(files.remove(folder + "/" + name));
      // Folders that are empty now may have the name of a file.
      for (std::size_t at = name.rfind('/'); at != std::string::npos && at > 0;
           at = name.rfind('/', at - 1)) {
        if (!files.remove(folder + "/" + name.substr(0, at))) break;
      }
    }
    const std::string path = folder + "/" + std::string(kBundleFile);
    const auto present = read_text(files, path, detail::kMaxEnvelope);
    if (!present || *present != text) NIBBLE_CHECK(replace_text(files, folder, path, text));
    for (const std::string& name : folders()) NIBBLE_CHECK(files.make_folder(folder + "/" + name));
    std::vector<std::byte> bytes;
    for (std::size_t f = 0; f < manifest().files.size(); ++f) {
      const ManifestFile& file = manifest().files[f];
      has_.emplace_back(file.chunks.empty() ? std::size_t{1} : file.chunks.size(), false);
      is_new_.push_back(false);
      if (file.size == 0) NIBBLE_CHECK(files.write(path_of(f), 0, {}));
      const auto size = files.size(path_of(f));
      if (!size) continue;
      is_new_[f] = true;  // written by somebody whose power failed, perhaps
      for (std::size_t c = 0; c < has_[f].size(); ++c) {
        const Part part = chunk_of(f, c);
        if (part.offset + part.size > *size) break;
        bytes.resize(io::narrow<std::size_t>(part.size));
        NIBBLE_CHECK(files.read(path_of(f), part.offset, bytes));
        has_[f][c] = detail::check_digest(bytes, digest_of(f, c), file, device_->crypto())
                         .has_value();
      }
    }
    return ok();
  }

  Slots* device_;
  SignedManifest signed_;
  std::vector<std::vector<bool>> has_;  // by file and chunk
  std::vector<bool> is_new_;            // by file: it may have bytes that are not lasting
};

}}}  // namespace nibble::NIBBLE_ABI::serve
