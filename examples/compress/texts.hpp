// SPDX-License-Identifier: Apache-2.0
//
// The text that a compression goes by, in three parts: one to observe the model on, one to decide
// by, one to report on. They never overlap: what a step was fitted to would flatter it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "nibble/compress/predictions.hpp"
#include "nibble/core/result.hpp"
#include "nibble/model/model.hpp"
#include "nibble/text/tokenizer.hpp"

namespace example {

struct Texts {
  std::vector<std::int32_t> calibration;
  nibble::compress::TrialText trial;
  nibble::compress::TrialText report;
  nibble::Index context = 0;
  std::int32_t bos = -1;
};

struct TextOptions {
  std::string path;
  nibble::Index context = 128;            // tokens of a chunk
  nibble::Index n_calibration = 1 << 15;  // the most tokens of each part
  nibble::Index n_trial = 1 << 12;
  nibble::Index n_report = 1 << 14;
};

// Six tenths of the text's chunks to observe, two to decide, two to report, as far as the options
// allow; chunks of the three parts take turns, since a text may change along its way.
inline nibble::Result<Texts> read_texts(const nibble::Model& model, const TextOptions& options) {
  const nibble::text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) return *model.tokenizer_error();
  NIBBLE_TRY(text, read_text(options.path));
  NIBBLE_TRY(tokens, tokenizer->encode(text, {.add_eos = false}));
  Texts texts;
  texts.context = std::min(options.context, nibble::Index{model.config().n_ctx});
  const auto& settings = tokenizer->vocabulary().settings();
  if (settings.add_bos) texts.bos = settings.bos;
  const auto length = static_cast<std::size_t>(texts.context);
  const std::size_t n_chunks = tokens.size() / length;
  if (n_chunks < 5) {
    return nibble::Error{nibble::Errc::invalid_argument,
                         nibble::printable(options.path) + ": " + std::to_string(tokens.size()) +
                             " tokens of text; at least " + std::to_string(5 * length) +
                             " are needed (five chunks of --ctx): more text, or a smaller --ctx"};
  }
  std::vector<std::int32_t> trial, report;
  for (std::size_t c = 0; c < n_chunks; ++c) {
    const std::size_t turn = c % 5;
    auto& part = turn < 3 ? texts.calibration : turn == 3 ? trial : report;
    const auto most = static_cast<std::size_t>(turn < 3    ? options.n_calibration
                                               : turn == 3 ? options.n_trial
                                                           : options.n_report);
    if (!part.empty() && part.size() + length > most) continue;
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(c * length);
    part.insert(part.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
  }
  NIBBLE_TRY(trial_text, nibble::compress::TrialText::chunks(trial, texts.context, texts.bos));
  NIBBLE_TRY(report_text, nibble::compress::TrialText::chunks(report, texts.context, texts.bos));
  texts.trial = std::move(trial_text);
  texts.report = std::move(report_text);
  return texts;
}

}  // namespace example
