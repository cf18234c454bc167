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
#include "nibble/hub/llama2c.hpp"
#include "nibble/hub/modules.hpp"
#include "nibble/hub/onnx_weights.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/hub/packed_codes.hpp"
#include "nibble/hub/tensors.hpp"
#include "nibble/hub/tokenizer_keys.hpp"
#include "nibble/io/file_kind.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI {
namespace hub {

namespace detail {

// The weights are those of the folder, or of an ONNX file if there is a path.
inline Result<io::Gguf> open_folder(const Folder& folder, const std::string& onnx = {}) {
  NIBBLE_TRY(config, Config::open(folder));
  NIBBLE_TRY(family, family_of(config));
  io::GgufWriter out;
  out.set("general.architecture", family.architecture);
  out.set("general.type", std::string_view("model"));
  if (!folder.last_name().empty()) out.set("general.name", folder.last_name());
  Keys keys(config, family.architecture, out);
  family.keys(keys);
  NIBBLE_CHECK(config.status());
  NIBBLE_TRY(weights, onnx.empty() ? open_weights(folder)
                                   : open_onnx(onnx, family.architecture, keys.shape.n_layers));
  if (onnx.empty()) NIBBLE_CHECK(take_modules(folder, keys, weights));
  // (MXFP4 is how gpt-oss is published: its experts are as they are.)
  const io::JsonValue* const codes_of = config.find("quantization_config");
  const io::JsonValue* const method =
      codes_of == nullptr ? nullptr : codes_of->find("quant_method");
  const bool is_own =
      family.architecture == "gpt-oss" && method != nullptr && method->string() == "mxfp4";
  if (onnx.empty() && codes_of != nullptr && !is_own) {
    NIBBLE_TRY(codes, PackedCodes::of(config));
    NIBBLE_CHECK(codes.join(weights));
  }
  if (onnx.empty() && family.prepare != nullptr) NIBBLE_CHECK(family.prepare(keys.shape, weights));
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

// Exporters put the configuration beside the graph, or one folder above it.
inline Result<io::Gguf> open_onnx_model(const std::string& path) {
  const std::size_t slash = path.find_last_of("/\\");
  const std::string own = slash == path.npos ? "." : path.substr(0, slash + 1);
  for (const std::string& where : {own, own + "/.."}) {
    const Folder folder(where);
    if (folder.has(kConfigFile)) return open_folder(folder, path);
  }
  return Error{Errc::not_found, printable(path) +
                                    ": an ONNX file needs the config.json and the tokenizer of its "
                                    "model, in the same folder or the one above it"};
}

}  // namespace detail

NIBBLE_INLINE Result<io::Gguf> open(const std::string& folder) {
  return catch_out_of_memory([&] { return detail::open_folder(Folder(folder)); });
}

}  // namespace hub

NIBBLE_INLINE Result<io::Gguf> open_model(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<io::Gguf> {
    const bool is_folder = io::detail::is_folder(path);
    if (!is_folder && path.ends_with(".onnx")) return hub::detail::open_onnx_model(path);
    if (!is_folder && path.ends_with(".bin")) {
      NIBBLE_TRY(file, io::MappedFile::open(path));
      if (hub::Llama2c::is_one(file.bytes())) return hub::Llama2c::open(path);
    }
    if (is_folder && hub::Folder(path).has(hub::kConfigFile)) return hub::open(path);
    return io::Gguf::open(path);
  });
}

}}  // namespace nibble::NIBBLE_ABI
