// SPDX-License-Identifier: Apache-2.0
//
// watch_log: reads lines of sensors and says in a line each what somebody should know. What a model
// writes is bound by a grammar that is made from the lines: it can name no other sensor or room.
//
// With the model that ships with nibble, which knows home commands and nothing else: limits say
// what is unusual, the model says what to do about it. With a chat model (--model): some lines at a
// time go to the model, which says itself how severe what is.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <istream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "home_commands/intents.hpp"
#include "home_model.hpp"
#include "nibble/chat/chat_encoder.hpp"
#include "nibble/chat/chat_template.hpp"
#include "nibble/generate/read_intent.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"
#include "watch_log/readings.hpp"

namespace {

namespace grammar = nibble::grammar;
using example::interrupted;
using example::watch::Reading;
using example::watch::Usual;
using nibble::Error;
using nibble::Index;
using nibble::Result;

struct Options {
  std::string log = "-", model;
  std::size_t window = 8;
  Index n_ctx = 0, n_threads = 0;
};

// Gets the readings one by one, and the end.
class Watcher {
 public:
  virtual ~Watcher() = default;
  virtual Result<void> add(const Reading& reading) = 0;
  virtual Result<void> finish() = 0;
};

// ---- With the model of home commands -----------------------------------------------------------

// One alert where a sensor leaves what is usual, not one for each line; it may leave it again when
// it was back.
class CommandWatcher : public Watcher {
 public:
  CommandWatcher(nibble::Session session, grammar::TokenTrie trie)
      : session_(std::move(session)), trie_(std::move(trie)) {}

  Result<void> add(const Reading& reading) override {
    const Usual* const usual = example::watch::usual_of(reading);
    if (usual == nullptr) {
      return Error{nibble::Errc::not_found, "nothing is known of the quantity " + reading.quantity};
    }
    const std::string room = example::watch::said_room(reading.room);
    if (room.empty()) return Error{nibble::Errc::not_found, "there is no room " + reading.room};
    const int is = reading.value < usual->low ? -1 : reading.value > usual->high ? 1 : 0;
    if (int& before = states_[reading.sensor()]; std::exchange(before, is) == is) {
      return nibble::ok();
    }
    if (is == 0) return nibble::ok();
    std::string said(is < 0 ? usual->said_low : usual->said_high);
    said.replace(said.find("{room}"), 6, room);
    NIBBLE_TRY(action, ask(reading, said));
    const double limit = is < 0 ? usual->low : usual->high;
    std::printf("%s %s %s %s, %s %s: %s (%.1f %%)\n", reading.time.c_str(), room.c_str(),
                reading.quantity.c_str(), with_unit(reading.value, *usual).c_str(),
                is < 0 ? "below" : "above", with_unit(limit, *usual).c_str(), action.text.c_str(),
                100 * action.confidence);
    return nibble::ok();
  }
  Result<void> finish() override { return nibble::ok(); }

 private:
  struct Action {
    std::string text;
    double confidence = 0;  // of all of it
  };

  static std::string with_unit(double value, const Usual& usual) {
    return example::watch::number_text(value) + std::string(usual.unit);
  }

  // What can be done about a quantity, in this room only.
  static std::vector<grammar::Intent> actions(const Reading& reading) {
    const grammar::Slot room{.name = "room", .choices = {reading.room}};
    if (reading.quantity == "temperature") {
      return {{"climate.set", {room, example::home::number_slot("degrees", 16, 26)}}};
    }
    const grammar::Slot device{.name = "name", .choices = {"fan", "heater", "humidifier"}};
    return {{"device.on", {device, room}}, {"device.off", {device, room}}};
  }

  Result<Action> ask(const Reading& reading, const std::string& said) {
    NIBBLE_TRY(intents, grammar::Intents::create(actions(reading)));
    NIBBLE_TRY(constraint, grammar::Constraint::create(intents.grammar(), trie_));
    NIBBLE_CHECK(session_.rewind(0));
    nibble::GenerateOptions options;
    options.grammar = &constraint;
    nibble::ScoredText answer;
    NIBBLE_CHECK(nibble::generate(session_, said + "\n", options, [&](const nibble::Token& token) {
      answer.add(token);
      return true;
    }));
    NIBBLE_TRY(value, nibble::intent_of(answer, intents));
    Action action{answer.text(), value.confidence};
    for (const grammar::SlotValue& slot : value.slot_values) action.confidence *= slot.confidence;
    return action;
  }

  nibble::Session session_;
  grammar::TokenTrie trie_;
  std::map<std::string, int> states_;  // of sensors: below, as usual, above
};

// ---- With a chat model -------------------------------------------------------------------------

constexpr const char* kTask =
    "You watch the sensors of a home. Each line has a time, a room, what is measured, and a value. "
    "Say what the people at home should know now: the severity (none, if all is as usual), the "
    "sensor that it is about, and one short sentence.";

class ChatWatcher : public Watcher {
 public:
  ChatWatcher(nibble::Session session, grammar::TokenTrie trie, nibble::chat::ChatTemplate chat,
              std::size_t window)
      : session_(std::move(session)),
        trie_(std::move(trie)),
        template_(std::move(chat)),
        window_(window) {}

  Result<void> add(const Reading& reading) override {
    readings_.push_back(reading);
    return readings_.size() == window_ ? finish() : nibble::ok();
  }
  Result<void> finish() override {
    if (readings_.empty()) return nibble::ok();
    const std::vector<Reading> readings = std::exchange(readings_, {});
    NIBBLE_TRY(answer, ask(readings));
    NIBBLE_TRY(alert, nibble::io::JsonValue::parse(answer));
    const std::string& severity = alert.find("severity")->string();
    if (severity == "none") return nibble::ok();
    std::printf("%s %s: %s: %s\n", readings.back().time.c_str(), severity.c_str(),
                alert.find("sensor")->string().c_str(),
                nibble::printable(alert.find("alert")->string()).c_str());
    return nibble::ok();
  }

 private:
  // The grammar has all members required: the answer has them.
  static std::string schema(std::span<const Reading> readings) {
    std::map<std::string, int> sensors;
    for (const Reading& reading : readings) ++sensors[reading.sensor()];
    std::string names;
    for (const auto& [name, n] : sensors) {
      names += (names.empty() ? "" : ", ") + nibble::io::json_text(name);
    }
    return R"({"type": "object", "properties": {
        "severity": {"enum": ["none", "info", "warning", "critical"]},
        "sensor": {"enum": [)" +
           names + R"(]}, "alert": {"type": "string", "maxLength": 100}},
        "required": ["severity", "sensor", "alert"], "additionalProperties": false})";
  }

  Result<std::string> ask(std::span<const Reading> readings) {
    NIBBLE_TRY(bound, grammar::from_json_schema(schema(readings)));
    NIBBLE_TRY(constraint, grammar::Constraint::create(bound, trie_));
    std::string lines;
    for (const Reading& r : readings) {
      lines += r.time + " " + r.sensor() + " " + example::watch::number_text(r.value) + "\n";
    }
    // (In one message: some templates have no place for a system prompt.)
    const std::vector<nibble::chat::ChatMessage> messages = {
        {.role = "user", .content = std::string(kTask) + "\n\n" + lines}};
    NIBBLE_TRY(text, template_.render(messages));
    const nibble::chat::ChatEncoder encoder(*session_.model().tokenizer());
    NIBBLE_TRY(ids, encoder.encode(text));
    nibble::GenerateOptions options;
    options.grammar = &constraint;
    options.cancel = &interrupted;
    NIBBLE_CHECK(session_.rewind(0));
    NIBBLE_TRY(generator, nibble::Generator::create(session_, options));
    auto read = generator.prompt(ids, true);
    if (!read && read.error().code == nibble::Errc::limit) {
      return Error{read.error().code, read.error().message + " (see --ctx, --window)"};
    }
    if (!read) return std::move(read).error();
    std::string answer;
    for (;;) {
      NIBBLE_TRY(token, generator.next());
      if (!token) break;
      answer += token->text;
    }
    const nibble::Finish finish = generator.finish();
    if (finish == nibble::Finish::cancelled) return Error{nibble::Errc::cancelled, "interrupted"};
    if (finish == nibble::Finish::grammar_end || finish == nibble::Finish::end_of_text) {
      return answer;
    }
    return Error{nibble::Errc::limit,
                 std::string("the alert has no end: ") + to_string(finish) + " (see --ctx)"};
  }

  nibble::Session session_;
  grammar::TokenTrie trie_;
  nibble::chat::ChatTemplate template_;
  std::size_t window_;
  std::vector<Reading> readings_;
};

// ---- The log -----------------------------------------------------------------------------------

// Lines that are none are said and passed over; then the exit code is 1.
Result<int> watch(std::istream& log, const std::string& name, Watcher& watcher) {
  int exit_code = example::kOk;
  const auto check = [&](std::size_t n, const Result<void>& done) -> Result<void> {
    if (done) return nibble::ok();
    if (done.error().code != nibble::Errc::malformed &&
        done.error().code != nibble::Errc::not_found)
      return done.error();
    std::fprintf(stderr, "watch_log: %s: line %zu: %s\n", name.c_str(), n,
                 nibble::printable(done.error().message).c_str());
    exit_code = example::kFailed;
    return nibble::ok();
  };
  std::string line;
  for (std::size_t n = 1; !interrupted && std::getline(log, line); ++n) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    const auto reading = example::watch::reading_of(line);
    NIBBLE_CHECK(check(n, reading ? watcher.add(*reading) : Result<void>(reading.error())));
    if (!example::is_stdout_written()) return exit_code;  // main() says so
  }
  if (log.bad()) return Error{nibble::Errc::io, name + ": cannot read"};
  NIBBLE_CHECK(watcher.finish());
  return interrupted ? example::kInterrupted : exit_code;
}

Result<int> watch_with(const Options& o, std::istream& log) {
  const std::string name = o.log == "-" ? "stdin" : nibble::printable(o.log);
  NIBBLE_CHECK(nibble::simd::ensure_target());
  NIBBLE_TRY(file, nibble::open_model(o.model.empty() ? example::kHomeModel : o.model));
  NIBBLE_TRY(model, nibble::Model::from_gguf(file));
  if (model.tokenizer() == nullptr) return *model.tokenizer_error();
  const auto& vocabulary = model.tokenizer()->vocabulary();
  NIBBLE_TRY(trie, grammar::TokenTrie::create(vocabulary));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(session, nibble::Session::create(model, {.n_ctx = o.n_ctx, .executor = pool.get()}));
  if (o.model.empty()) {
    CommandWatcher watcher(std::move(session), std::move(trie));
    return watch(log, name, watcher);
  }
  NIBBLE_TRY(chat, nibble::chat::ChatTemplate::from_gguf(file, vocabulary));
  ChatWatcher watcher(std::move(session), std::move(trie), std::move(chat), o.window);
  return watch(log, name, watcher);
}

Result<int> run(const Options& o) {
  example::catch_signals();
  if (o.log == "-") return watch_with(o, std::cin);
  std::ifstream log(o.log);
  if (!log) return Error{nibble::Errc::io, nibble::printable(o.log) + ": cannot open"};
  return watch_with(o, log);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Reads lines of sensors and says what somebody should know.", "watch_log");
  Options o;
  app.add_option("LOG", o.log, "a file with lines TIME ROOM QUANTITY NUMBER; - is stdin")
      ->check(example::is_not_empty)
      ->capture_default_str();
  auto* const model =
      app.add_option("--model", o.model,
                     "a chat model that says what is unusual; default: limits for temperature and "
                     "humidity, and the model of home commands for what to do")
          ->check(example::is_not_empty);
  example::add_number(app, "--window", o.window, "lines that a chat model sees at a time", 1, 1000)
      ->needs(model);
  app.add_option("--ctx", o.n_ctx,
                 "positions of the cache; 0: as many as the model was trained with, but at most "
                 "4096")
      ->check(CLI::Range(Index{0}, Index{1} << 30))
      ->needs(model);
  example::add_threads(app, o.n_threads);
  app.footer(
      "A line: 06:00 living_room temperature 27.5\n"
      "Exit codes: 0 done, 1 failed (also if some lines were none), 2 wrong usage, 130 interrupted "
      "(Ctrl-C).");
  return example::run(app, argc, argv, [&] { return run(o); });
}
