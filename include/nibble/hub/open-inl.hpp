// SPDX-License-Identifier: Apache-2.0
//
// Functions that open folders. Included by open.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/families.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/hub/modules.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/hub/tensors.hpp"
#include "nibble/hub/tokenizer_keys.hpp"
#include "nibble/io/file_kind.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI {
namespace hub {

namespace detail {

inline Result<io::Gguf> open_folder(const Folder& folder) {
  NIBBLE_TRY(config, Config::open(folder));
  NIBBLE_TRY(family, family_of(config));
  io::GgufWriter out;
  out.set("general.architecture", family.architecture);
  out.set("general.type", std::string_view("model"));
  if (!folder.last_name().empty()) out.set("general.name", folder.last_name());
  Keys keys(config, family.architecture, out);
  family.keys(keys);
  NIBBLE_CHECK(config.status());
  NIBBLE_TRY(weights, open_weights(folder));
  NIBBLE_CHECK(take_modules(folder, keys, weights));
  Tensors tensors(config, family, keys.shape, weights, out);
  NIBBLE_CHECK(tensors.take());
  NIBBLE_TRY(format, quant::format_of(tensors.type()));
  NIBBLE_TRY(file_type, quant::gguf_file_type(format));
  out.set("general.file_type", file_type);
  if (tensors.n_rows() > kMaxRows) {
    return Error{Errc::malformed,
                 folder.name() + ": " + to_text(tensors.n_rows()) + " rows in the token embedding"};
  }
  keys.set("vocab_size", static_cast<std::uint32_t>(tensors.n_rows()));
  if (config.has("type_vocab_size")) {
    out.set("tokenizer.ggml.token_type_count", config.integer({"type_vocab_size"}));
    NIBBLE_CHECK(config.status());
  }
  NIBBLE_CHECK(tokenizer_keys(folder, tensors.n_rows(), out));
  NIBBLE_TRY(bytes, out.to_bytes());
  NIBBLE_TRY(memory, AlignedBuffer::allocate(bytes.size()));
  std::copy(bytes.begin(), bytes.end(), memory.data());
  return io::Gguf::join(std::move(memory), tensors.in_place(), std::move(weights.files),
                        folder.name());
}

}  // namespace detail

NIBBLE_INLINE Result<io::Gguf> open(const std::string& folder) {
  return catch_out_of_memory([&] { return detail::open_folder(Folder(folder)); });
}

}  // namespace hub

NIBBLE_INLINE Result<io::Gguf> open_model(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<io::Gguf> {
    const bool is_folder = io::detail::is_folder(path);
    if (is_folder && hub::Folder(path).has(hub::kConfigFile)) return hub::open(path);
    return io::Gguf::open(path);
  });
}

}}  // namespace nibble::NIBBLE_ABI
