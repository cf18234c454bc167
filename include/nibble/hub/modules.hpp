// SPDX-License-Identifier: Apache-2.0
//
// What the folders of embedding models have besides the model: sentence-transformers' modules.json,
// which says how the rows of a text become one, and products after that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

namespace detail {

struct Module {
  std::string_view type;  // the last part of a class's name
  std::string path;       // its folder in the model's
};

inline Result<std::vector<Module>> read_modules(const Folder& folder, const io::JsonValue& json) {
  std::vector<Module> modules;
  for (const io::JsonValue& entry : json.elements()) {
    const io::JsonValue* const type = entry.find("type");
    const io::JsonValue* const path = entry.find("path");
    if (type == nullptr || path == nullptr) continue;
    const std::string_view name = type->string();
    Module module{name.substr(name.rfind('.') + 1), path->string()};  // all of it without a dot
    if (module.type != "Pooling" && module.type != "Dense") continue;
    if (module.path.empty() || module.path[0] == '.' ||
        module.path.find_first_of("/\\:") != module.path.npos ||
        module.path.find('\0') != module.path.npos) {
      return Error{Errc::malformed, folder.name_of(kModulesFile) + ": path " +
                                        io::quoted(module.path) + " is no folder of this folder"};
    }
    modules.push_back(std::move(module));
  }
  return modules;
}

}  // namespace detail

// Sets the keys of pooling, and adds the weights of products as dense_2, dense_3. Errors name the
// file: io, malformed, unsupported (a product with an activation).
inline Result<void> take_modules(const Folder& folder, Keys& keys, WeightFiles& weights) {
  if (!folder.has(kModulesFile)) return ok();
  NIBBLE_TRY(json, folder.json(kModulesFile));
  NIBBLE_TRY(modules, detail::read_modules(folder, json));
  int n_dense = 1;
  for (const detail::Module& module : modules) {
    const std::string file = module.path + "/config.json";
    NIBBLE_TRY(config, folder.json(file));
    if (module.type == "Pooling") {
      constexpr std::pair<std::string_view, std::uint32_t> kModes[] = {
          // GGUF's numbers
          {"pooling_mode_mean_tokens", 1},
          {"pooling_mode_cls_token", 2},
          {"pooling_mode_lasttoken", 3}};
      for (const auto& [mode, value] : kModes) {
        const io::JsonValue* const is_on = config.find(mode);
        if (is_on != nullptr && is_on->boolean()) keys.set("pooling_type", value);
      }
      continue;
    }
    const io::JsonValue* const activation = config.find("activation_function");
    if (activation != nullptr && !activation->string().ends_with("Identity")) {
      return Error{Errc::unsupported, folder.name_of(file) + ": activation_function " +
                                          io::quoted(activation->string()) +
                                          " after pooling is not supported"};
    }
    const std::string name = "dense_" + to_text(++n_dense);
    NIBBLE_CHECK(detail::add_weights(
        folder, module.path + '/' + std::string(kWeightsFile), weights,
        [](const std::string&) { return true; }, name + '.'));
    for (const char* const side : {"in", "out"}) {
      const io::JsonValue* const n = config.find(side + std::string("_features"));
      if (n == nullptr || !(n->number() >= 1) || n->number() > kMaxHubDim) {
        return Error{Errc::malformed, folder.name_of(file) + ": in_features or out_features"};
      }
      keys.set(name + "_feat_" + side, static_cast<std::uint32_t>(n->number()));
    }
  }
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::hub
