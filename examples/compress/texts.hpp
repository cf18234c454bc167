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
#include "../samples.hpp"
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
  nibble::Index n_calibration = 1 << 15;  // the most tokens of each part, but a chunk or sample
  nibble::Index n_trial = 1 << 12;
  nibble::Index n_report = 1 << 14;
};

// The token that sequences begin with; -1 if they begin with none.
inline std::int32_t bos_of(const nibble::text::Tokenizer& tokenizer) {
  const auto& settings = tokenizer.vocabulary().settings();
  return settings.add_bos ? settings.bos : -1;
}

// All tokens of a text. A file .tsv has prompts and answers, a tab between them: they follow each
// other.
inline nibble::Result<std::vector<std::int32_t>> read_tokens(const nibble::Model& model,
                                                             const std::string& path) {
  if (model.tokenizer() == nullptr) return *model.tokenizer_error();
  if (!path.ends_with(".tsv")) {
    NIBBLE_TRY(text, read_text(path));
    return model.tokenizer()->encode(text, {.add_eos = false});
  }
  NIBBLE_TRY(samples, read_samples(path));
  std::vector<std::int32_t> tokens;
  for (const Sample& sample : samples) {
    NIBBLE_TRY(one, sample_tokens(*model.tokenizer(), sample));
    tokens.insert(tokens.end(), one.ids.begin(), one.ids.end());
  }
  return tokens;
}

// From prompts and answers: what is tried and reported are sequences of their own, of which the
// answer is scored. Samples that do not fit in a context of `n_ctx` are left out.
inline nibble::Result<Texts> texts_of_samples(const nibble::text::Tokenizer& tokenizer,
                                              const std::vector<Sample>& samples,
                                              nibble::Index n_ctx, const TextOptions& options) {
  Texts texts;
  texts.bos = bos_of(tokenizer);
  nibble::Index n_trial = 0, n_report = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    NIBBLE_TRY(sample, sample_tokens(tokenizer, samples[i]));
    const auto n = static_cast<nibble::Index>(sample.ids.size());
    if (n > n_ctx || sample.first_of_answer >= n) continue;
    texts.context = std::max(texts.context, n);
    const std::size_t turn = i % 5;
    const auto has_room = [&](nibble::Index sum, nibble::Index most) {
      return sum == 0 || sum + n <= most;
    };
    if (turn < 3) {
      auto& all = texts.calibration;
      if (!has_room(static_cast<nibble::Index>(all.size()), options.n_calibration)) continue;
      all.insert(all.end(), sample.ids.begin(), sample.ids.end());
      continue;
    }
    nibble::Index& sum = turn == 3 ? n_trial : n_report;
    if (!has_room(sum, turn == 3 ? options.n_trial : options.n_report)) continue;
    sum += n;
    NIBBLE_CHECK((turn == 3 ? texts.trial : texts.report).add(sample.ids, sample.first_of_answer));
  }
  if (texts.report.n_sequences() == 0 || texts.trial.n_sequences() == 0) {
    return nibble::Error{nibble::Errc::invalid_argument,
                         nibble::printable(options.path) +
                             ": at least five samples are needed that fit in the context of " +
                             std::to_string(n_ctx) + " tokens"};
  }
  return texts;
}

// Of each five chunks of the text (or samples of a .tsv) three are for observing, one is for
// deciding, one for the report, as far as the options allow: a text may change along its way.
inline nibble::Result<Texts> read_texts(const nibble::Model& model, const TextOptions& options) {
  const nibble::text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) return *model.tokenizer_error();
  const nibble::Index n_ctx = model.config().n_ctx;
  if (options.path.ends_with(".tsv")) {
    NIBBLE_TRY(samples, read_samples(options.path));
    return texts_of_samples(*tokenizer, samples, n_ctx, options);
  }
  NIBBLE_TRY(tokens, read_tokens(model, options.path));
  Texts texts;
  texts.context = std::min(options.context, n_ctx);
  texts.bos = bos_of(*tokenizer);
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
