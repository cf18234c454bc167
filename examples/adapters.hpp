// SPDX-License-Identifier: Apache-2.0
//
// Adapters that programs take: FILE or FILE:STRENGTH, where the file is llama.cpp's form, or a
// folder PEFT's.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/train/peft.hpp"

namespace example {

inline constexpr const char* kAdapterHelp =
    "an adapter (LoRA) for the model: a GGUF file or a folder of PEFT, with :STRENGTH behind it if "
    "that is not 1; several add up";

// The file and the strength of "FILE" or "FILE:STRENGTH". (What follows a colon and is no number
// belongs to the name.)
inline std::pair<std::string, float> adapter_name(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  float strength = 1;
  if (colon == text.npos || colon == 0 ||
      !CLI::detail::lexical_cast(text.substr(colon + 1), strength)) {
    return {text, 1.0f};
  }
  return {text.substr(0, colon), strength};
}

// All of them together, for the model of the file or folder `path`; none if there are none.
inline nibble::Result<nibble::AdapterSet> open_adapters(const std::string& path,
                                                        const nibble::Model& model,
                                                        const std::vector<std::string>& names) {
  if (names.empty()) return nibble::AdapterSet();
  NIBBLE_TRY(base, nibble::hub::open_model(path));
  std::vector<nibble::Adapter> adapters;
  adapters.reserve(names.size());
  std::vector<nibble::AppliedAdapter> applied;
  for (const std::string& text : names) {
    const auto [name, strength] = adapter_name(text);
    NIBBLE_TRY(adapter, nibble::train::open_adapter(name, base));
    adapters.push_back(std::move(adapter));
    applied.push_back({&adapters.back(), strength});
  }
  return nibble::AdapterSet::create(model, applied);
}

}  // namespace example
