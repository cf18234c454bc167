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
    if (type == nullptr || path == nullptr) {
      return Error{Errc::malformed,
                   folder.name_of(kModulesFile) + ": a module without type or path"};
    }
    const std::string_view name = type->string();
    Module module{name.substr(name.rfind('.') + 1), path->string()};  // all of it without a dot
    // The model itself, and what programs do with its results: scale them to length 1.
    if (module.type == "Transformer" || module.type == "Normalize") continue;
    if (module.type != "Pooling" && module.type != "Dense") {
      return Error{Errc::unsupported, folder.name_of(kModulesFile) + ": the module " +
                                          io::quoted(name) +
                                          " is not computed; known are Transformer, Pooling, "
                                          "Dense and Normalize"};
    }
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

// GGUF's number of the one way of pooling that a configuration turns on: by pooling_mode, a name,
// or by flags in older files. Error: unsupported (another way, or several, whose results
// sentence-transformers puts behind each other).
inline Result<std::uint32_t> pooling_of(const io::JsonValue& config, const std::string& file) {
  constexpr std::pair<std::string_view, std::uint32_t> kModes[] = {
      {"mean", 1}, {"cls", 2}, {"lasttoken", 3}, {"mean_tokens", 1}, {"cls_token", 2}};
  std::vector<std::string_view> on;
  constexpr std::string_view kPrefix = "pooling_mode";
  if (const io::JsonValue* const mode = config.find(kPrefix)) {
    if (!mode->string().empty()) on.push_back(mode->string());
    for (const io::JsonValue& one : mode->elements()) on.push_back(one.string());
  } else {
    for (std::size_t i = 0; i < config.keys().size(); ++i) {
      const std::string_view key = config.keys()[i];
      if (!key.starts_with(kPrefix) || !config.elements()[i].boolean()) continue;
      on.push_back(key.substr(kPrefix.size() + 1));
    }
    if (on.empty()) on.push_back("mean");  // as sentence-transformers has it
  }
  std::string all;
  for (const std::string_view mode : on) all += (all.empty() ? "" : ", ") + io::quoted(mode);
  for (const auto& [name, value] : kModes) {
    if (on.size() == 1 && on[0] == name) return value;
  }
  return Error{Errc::unsupported, file + ": pooling by " + (all.empty() ? "nothing" : all) +
                                      " is not computed; one of mean, cls and lasttoken is"};
}

}  // namespace detail

// Sets the keys of pooling, and adds the weights of products as dense_2, dense_3. Errors name the
// file: io, malformed, unsupported (modules that are not computed, a product with an activation).
inline Result<void> take_modules(const Folder& folder, Keys& keys, WeightFiles& weights) {
  if (!folder.has(kModulesFile)) return ok();
  NIBBLE_TRY(json, folder.json(kModulesFile));
  NIBBLE_TRY(modules, detail::read_modules(folder, json));
  int n_dense = 1;
  for (const detail::Module& module : modules) {
    const std::string file = module.path + "/config.json";
    NIBBLE_TRY(config, folder.json(file));
    if (module.type == "Pooling") {
      NIBBLE_TRY(type, detail::pooling_of(config, folder.name_of(file)));
      keys.set("pooling_type", type);
      continue;
    }
    const io::JsonValue* const activation = config.find("activation_function");
    // Without the key, sentence-transformers takes Tanh.
    const std::string function = activation == nullptr ? "Tanh" : activation->string();
    if (!function.ends_with("Identity")) {
      return Error{Errc::unsupported, folder.name_of(file) + ": activation_function " +
                                          io::quoted(function) + " after pooling is not supported"};
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
