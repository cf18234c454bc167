// SPDX-License-Identifier: Apache-2.0
//
// Opens a model as people have it: a GGUF file, or a folder as model hubs have it (config.json,
// tokenizer.json, model.safetensors or several such files). A folder becomes the same thing that a
// GGUF file is: the keys and tensors that a converter would write, of which the tensors stay in the
// folder's files. So everything that takes a GGUF file takes a folder. The same goes for exported
// graphs (ONNX) with such a folder's config.json and tokenizer, and for checkpoints of llama2.c.
#pragma once

#include <string>

#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace io {
class Gguf;
}

namespace hub {

// Reads a folder. Weights are mapped, and neither copied nor read, but for norms that hubs store
// minus 1 and weights in F64. Errors name the file and the key or tensor, and say what to do:
// not_found (a file or key that is missing), unsupported (an architecture, an option of it, weights
// that are quantized or in another format), malformed (files that do not go together or break their
// format), limit, io, out_of_memory.
Result<io::Gguf> open(const std::string& folder);

}  // namespace hub

// A GGUF file; a folder with config.json; "*.onnx" with config.json and tokenizer in its folder or
// the one above; "*.bin" of llama2.c. Errors: those of io::Gguf::open or hub::open; unsupported with
// the names that were not understood (a graph that is no decoder known in hub/onnx_weights.hpp).
Result<io::Gguf> open_model(const std::string& path);

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/hub/open-inl.hpp"
#endif
