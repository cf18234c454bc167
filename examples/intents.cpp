// SPDX-License-Identifier: Apache-2.0
//
// intents: what a sentence wants of a home, as an intent with typed slots, and how sure the model
// is of each. Answers a sentence, or measures on the test files: precision, recall and F1, and
// whether confidences mean what they say.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "home_commands/intents.hpp"
#include "home_model.hpp"
#include "nibble/generate/calibration.hpp"
#include "nibble/generate/read_intent.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/intents.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"

namespace {

namespace grammar = nibble::grammar;
using grammar::IntentValue;
using grammar::SlotValue;
using nibble::JudgedConfidence;
using nibble::Result;
using Judged = std::vector<JudgedConfidence>;

struct Options {
  std::string model = example::kHomeModel;
  std::string sentence;
  std::size_t limit = 0;
};

// What is needed to read sentences.
struct Reader {
  const grammar::Intents& intents;
  const grammar::Constraint& constraint;
  nibble::Session& session;

  Result<IntentValue> operator()(const std::string& sentence) const {
    NIBBLE_CHECK(session.rewind(0));
    return nibble::read_intent(session, sentence + "\n", intents, constraint);
  }
};

std::string shown(const SlotValue& slot) {
  if (slot.items.empty()) return slot.text;
  std::string list;
  for (const std::string& item : slot.items) list += (list.empty() ? "" : ", ") + item;
  return "[" + list + "]";
}

void print(const IntentValue& value) {
  std::printf("%-14s %28.1f %%\n", value.name.c_str(), 100 * value.confidence);
  for (const SlotValue& slot : value.slot_values) {
    std::printf("  %-12s %-20s %7.1f %%\n", slot.name.c_str(), shown(slot).c_str(),
                100 * slot.confidence);
  }
}

// ---- Many sentences ----------------------------------------------------------------------------

// What was found of what was there.
struct Count {
  std::size_t there = 0, found = 0, right = 0;
  double f1() const {
    const std::size_t both = there + found;
    return both == 0 ? 1 : 2 * static_cast<double>(right) / static_cast<double>(both);
  }
  void add(const Count& other) {
    there += other.there;
    found += other.found;
    right += other.right;
  }
};

struct Measured {
  std::map<std::string, Count> intents, slots;
  std::size_t n = 0, n_whole = 0;  // sentences; those of which all is right
  // Of every other sentence: to fit calibrations to, and to measure on.
  std::array<Judged, 2> judged_intents, judged_slots;
};

// Whether the slot is in a call, with the same value.
bool has(const IntentValue& call, const SlotValue& slot) {
  const SlotValue* const other = call.find(slot.name);
  return other != nullptr && other->text == slot.text && other->items == slot.items;
}

void add(const IntentValue& found, const IntentValue& right, Measured& m) {
  const std::size_t half = m.n++ % 2;
  const bool is_right = found.index == right.index;
  ++m.intents[right.name].there;
  ++m.intents[found.name].found;
  if (is_right) ++m.intents[right.name].right;
  m.judged_intents[half].push_back({found.confidence, is_right});
  bool is_whole = is_right && found.slot_values.size() == right.slot_values.size();
  for (const SlotValue& slot : right.slot_values) ++m.slots[slot.name].there;
  for (const SlotValue& slot : found.slot_values) {
    const bool is_slot_right = is_right && has(right, slot);
    Count& count = m.slots[slot.name];
    ++count.found;
    if (is_slot_right) ++count.right;
    is_whole = is_whole && is_slot_right;
    // How likely the slot is, given the intent: judged where that is right.
    if (is_right) m.judged_slots[half].push_back({slot.confidence, is_slot_right});
  }
  m.n_whole += is_whole;
}

Result<void> measure(const std::vector<example::Sample>& samples, std::size_t limit,
                     const char* name, const Reader& read, Measured& m) {
  const std::size_t n = limit == 0 ? samples.size() : std::min(limit, samples.size());
  example::StatusLine status;
  for (std::size_t i = 0; i < n; ++i) {
    if (i % 64 == 0) status.show(std::string(name) + ": " + std::to_string(i));
    NIBBLE_TRY(right, read.intents.parse(samples[i].answer));
    NIBBLE_TRY(found, read(samples[i].prompt));
    add(found, right, m);
  }
  return nibble::ok();
}

void print_counts(const char* what, const std::map<std::string, Count>& counts) {
  std::printf("\n%-14s %6s %10s %8s %8s\n", what, "there", "precision", "recall", "F1");
  Count sum;
  double f1 = 0;
  const auto part = [](std::size_t a, std::size_t b) {
    return b == 0 ? 1 : static_cast<double>(a) / static_cast<double>(b);
  };
  for (const auto& [name, count] : counts) {
    sum.add(count);
    f1 += count.f1();
    std::printf("%-14s %6zu %10.4f %8.4f %8.4f\n", name.c_str(), count.there,
                part(count.right, count.found), part(count.right, count.there), count.f1());
  }
  std::printf("%-14s %6zu %10.4f %8.4f %8.4f   mean of the F1s %.4f\n", "all", sum.there,
              part(sum.right, sum.found), part(sum.right, sum.there), sum.f1(),
              f1 / static_cast<double>(std::max<std::size_t>(counts.size(), 1)));
}

Result<void> print_reliability(const char* what, const Judged& judged) {
  NIBBLE_TRY(result, nibble::reliability(judged));
  std::printf("\n%s: %zu, expected calibration error %.4f\n", what, judged.size(), result.error);
  std::printf("  %-11s %6s %11s %8s\n", "confidence", "n", "mean", "right");
  for (std::size_t i = 0; i < result.bins.size(); ++i) {
    const auto& bin = result.bins[i];
    if (bin.n == 0) continue;
    std::printf("  %.1f to %.1f  %6zu %11.4f %8.4f\n", static_cast<double>(i) / 10,
                static_cast<double>(i + 1) / 10, bin.n, bin.confidence, bin.accuracy);
  }
  return nibble::ok();
}

// The confidences of one half of the sentences, as they are and with the line that fits the other
// half.
Result<void> print_confidences(const char* what, std::array<Judged, 2> judged) {
  if (judged[0].empty() || judged[1].empty()) return nibble::ok();
  NIBBLE_TRY(line, nibble::fit_calibration(judged[0]));
  NIBBLE_CHECK(print_reliability((std::string(what) + " as they are").c_str(), judged[1]));
  for (JudgedConfidence& one : judged[1]) one.confidence = line(one.confidence);
  char text[100];
  std::snprintf(text, sizeof(text), "%s calibrated (slope %.3f, offset %.3f)", what, line.slope,
                line.offset);
  return print_reliability(text, judged[1]);
}

Result<void> run(const Options& options) {
  NIBBLE_CHECK(nibble::simd::ensure_target());
  NIBBLE_TRY(model, nibble::load(options.model));
  if (model.tokenizer() == nullptr) return *model.tokenizer_error();
  NIBBLE_TRY(intents, grammar::Intents::create(example::home::intents()));
  NIBBLE_TRY(trie, grammar::TokenTrie::create(model.tokenizer()->vocabulary()));
  NIBBLE_TRY(constraint, grammar::Constraint::create(intents.grammar(), trie));
  NIBBLE_TRY(session, nibble::Session::create(model));
  const Reader read{intents, constraint, session};
  if (!options.sentence.empty()) {
    NIBBLE_TRY(value, read(options.sentence));
    print(value);
    return nibble::ok();
  }
  NIBBLE_TRY(splits, example::TestSplits::read(std::filesystem::path(options.model).parent_path()));
  Measured m;
  NIBBLE_CHECK(measure(splits.held_out, options.limit, "held-out", read, m));
  NIBBLE_CHECK(measure(splits.hard, options.limit, "hard", read, m));
  std::printf("%zu sentences, half of them hard; all is right in %zu\n", m.n, m.n_whole);
  print_counts("intent", m.intents);
  print_counts("slot", m.slots);
  NIBBLE_CHECK(print_confidences("intents", m.judged_intents));
  return print_confidences("slots", m.judged_slots);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "What a sentence wants of a home: an intent with typed slots, and how sure the model is of "
      "each.",
      "intents");
  Options options;
  app.add_option("SENTENCE", options.sentence,
                 "what is said; without it, the sentences of the test files are measured")
      ->check(example::is_not_empty);
  app.add_option("--model", options.model,
                 "a model of home commands; test_2000.tsv and hard_2000.tsv beside it")
      ->capture_default_str();
  app.add_option("--limit", options.limit, "how many of each test file; 0: all")
      ->check(example::is_not_negative)
      ->capture_default_str();
  app.footer(
      "Confidences: of the intent; of a slot, given the intent and the slots before it. They are\n"
      "fitted to every other sentence and measured on the rest.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage.");
  return example::run(app, argc, argv, [&] { return run(options); });
}
