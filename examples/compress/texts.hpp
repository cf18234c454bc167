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
#include "../measure.hpp"
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

// From prompts and answers: each sample is a sequence of its own (begin, prompt, newline, answer,
// end), of which the answer is scored.
inline nibble::Result<Texts> texts_of_samples(const nibble::text::Tokenizer& tokenizer,
                                              const std::vector<Sample>& samples,
                                              nibble::Index n_ctx, const TextOptions& options) {
  Texts texts;
  texts.context = n_ctx;
  const auto& settings = tokenizer.vocabulary().settings();
  if (settings.add_bos) texts.bos = settings.bos;
  nibble::Index n_trial = 0, n_report = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    NIBBLE_TRY(prompt, tokenizer.encode(samples[i].prompt + "\n", {.add_eos = false}));
    NIBBLE_TRY(ids,
               tokenizer.encode(samples[i].prompt + "\n" + samples[i].answer, {.add_eos = false}));
    if (settings.eos >= 0) ids.push_back(settings.eos);
    if (static_cast<nibble::Index>(ids.size()) > n_ctx || prompt.size() >= ids.size()) continue;
    const std::size_t turn = i % 5;
    if (turn < 3) {
      if (static_cast<nibble::Index>(texts.calibration.size()) > options.n_calibration) continue;
      texts.calibration.insert(texts.calibration.end(), ids.begin(), ids.end());
      continue;
    }
    nibble::Index& n = turn == 3 ? n_trial : n_report;
    if (n > (turn == 3 ? options.n_trial : options.n_report)) continue;
    n += static_cast<nibble::Index>(ids.size());
    NIBBLE_CHECK((turn == 3 ? texts.trial : texts.report)
                     .add(ids, static_cast<nibble::Index>(prompt.size())));
  }
  if (texts.report.n_sequences() == 0) {
    return nibble::Error{nibble::Errc::invalid_argument,
                         nibble::printable(options.path) +
                             ": at least five samples are needed that fit in the context of " +
                             std::to_string(n_ctx) + " tokens"};
  }
  return texts;
}

// Six tenths of the text's chunks to observe, two to decide, two to report, as far as the options
// allow; chunks of the three parts take turns, since a text may change along its way. A file .tsv
// has prompts and answers, a tab between them.
inline nibble::Result<Texts> read_texts(const nibble::Model& model, const TextOptions& options) {
  const nibble::text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) return *model.tokenizer_error();
  if (options.path.ends_with(".tsv")) {
    NIBBLE_TRY(samples, read_samples(options.path));
    return texts_of_samples(*tokenizer, samples, nibble::Index{model.config().n_ctx}, options);
  }
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
