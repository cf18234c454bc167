// SPDX-License-Identifier: Apache-2.0
//
// Names of formats on the command line, and rules that choose them by tensor name.
#pragma once

#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "common.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"

namespace example {

// "f32, f16, …": those that files have row by row.
inline std::string format_names() {
  std::string names;
  for (const nibble::quant::Format format : nibble::quant::kFormats) {
    if (!nibble::quant::ggml_type_of(format)) continue;
    names += (names.empty() ? "" : ", ") + std::string(to_string(format));
  }
  return names;
}

// A check of an option.
inline std::string is_format(const std::string& name) {
  const auto format = nibble::quant::format_from_name(name);
  if (format && nibble::quant::ggml_type_of(*format)) return "";
  return "'" + name + "': formats are " + format_names();
}

inline nibble::quant::Format parse_format(const std::string& name) {
  const std::string wrong = is_format(name);
  if (!wrong.empty()) throw CLI::ValidationError(wrong);
  return *nibble::quant::format_from_name(name);
}

// Options --tensor REGEX=FORMAT.
class FormatRules {
 public:
  void add_option_to(CLI::App& app) {
    app.add_option(
           "--tensor", texts_,
           "REGEX=FORMAT: another format for matrices whose names contain a match; of several "
           "options the last that matches counts, and each must match a matrix (a layer's ffn_gate "
           "and ffn_up are faster alike)")
        ->allow_extra_args(false);
  }

  // In a callback of the parser: what is invalid is then a usage error.
  void parse() {
    for (const std::string& text : texts_) {
      const std::size_t at = text.rfind('=');  // the format is what follows the last
      if (at == std::string::npos) throw CLI::ValidationError("'" + text + "' is not REGEX=FORMAT");
      try {
        rules_.push_back({text, std::regex(text.substr(0, at)), parse_format(text.substr(at + 1))});
      } catch (const std::regex_error& error) {
        throw CLI::ValidationError("'" + text + "': " + error.what());
      }
    }
  }

  // The format of the last rule that matches.
  std::optional<nibble::quant::Format> operator()(std::string_view name) const {
    std::optional<nibble::quant::Format> format;
    for (const Rule& rule : rules_) {
      if (std::regex_search(name.begin(), name.end(), rule.pattern)) format = rule.format;
    }
    return format;
  }

  // Error: invalid_argument, for a rule that matches no matrix of the model.
  nibble::Result<void> check(const nibble::io::Gguf& file) const {
    for (const Rule& rule : rules_) {
      bool has_matched = false;
      for (const auto& tensor : file.tensors()) {
        has_matched = has_matched ||
                      (tensor.n_dims >= 2 &&
                       std::regex_search(tensor.name.begin(), tensor.name.end(), rule.pattern));
      }
      if (has_matched) continue;
      return nibble::Error{nibble::Errc::invalid_argument,
                           "--tensor " + nibble::printable(rule.text) + ": no matrix of " +
                               file.name() + " has such a name"};
    }
    return nibble::ok();
  }

 private:
  struct Rule {
    std::string text;
    std::regex pattern;
    nibble::quant::Format format;
  };
  std::vector<std::string> texts_;
  std::vector<Rule> rules_;
};

}  // namespace example
