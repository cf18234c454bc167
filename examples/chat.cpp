// SPDX-License-Identifier: Apache-2.0
//
// chat: a conversation with a GGUF model in the terminal. Answers go to stdout as they are
// generated. Each line of stdin is a message, or a command (/help).
#include <chrono>
#include <csignal>
#include <filesystem>
#include <span>
#include <vector>

#include "common.hpp"
#include "nibble/chat/chat_encoder.hpp"
#include "nibble/chat/chat_template.hpp"
#include "nibble/chat/thoughts.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/tokenizer.hpp"
#include "settings.hpp"

namespace {

using example::interrupted;
using nibble::Index;
using nibble::chat::ChatMessage;
using Clock = std::chrono::steady_clock;

constexpr const char* kHelp =
    "/reset      forget the conversation\n"
    "/stats      tokens, speed, memory\n"
    "/save FILE  write the conversation as JSON\n"
    "/help       this list\n"
    "/quit       end, as does the end of input\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.\n";

struct Options : example::Settings {
  std::string system;
  std::string chat_template;
  nibble::chat::ChatOptions chat;
};

void add_options(CLI::App& app, Options& o) {
  example::add_model_options(app, o);
  app.add_option("--system", o.system, "the system prompt: how the model is to answer");
  app.add_option("--template", o.chat_template,
                 "a built-in chat template (chatml, llama-2, plain, ...), a file with one, or a "
                 "further one of the model's file; default: the model's own");
  app.add_option("--template-vars", o.chat.variables,
                 "a JSON object for the template, e.g. {\"enable_thinking\": false}");
  app.add_option("--max-tokens", o.generate.max_tokens,
                 "the most tokens of an answer; 0: as many as the context has room for")
      ->check(example::any_count())
      ->capture_default_str();
  example::add_sampling_options(app, o);
  app.footer(std::string("Commands in the conversation:\n") + kHelp +
             "\nExit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C).");
  app.callback([&o] { example::finish_settings(o); });
}

// While one exists, Ctrl-C only sets `interrupted`; otherwise it ends the program.
class CatchInterrupt {
 public:
  CatchInterrupt() {
    interrupted = false;
    std::signal(SIGINT, example::on_interrupt);
  }
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;
  ~CatchInterrupt() { std::signal(SIGINT, SIG_DFL); }
};

// Shows an answer as it comes. What the model thinks before it is dimmed on a terminal, and between
// tags elsewhere.
class Answer {
 public:
  explicit Answer(std::string_view prompt)
      : splitter_(prompt), is_terminal_(example::is_terminal(stdout)) {}
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;
  ~Answer() { mark(false); }

  void add(std::string_view text) {
    splitter_.push(text, [this](std::string_view part, bool is_thought) {
      mark(is_thought);
      print(part);
    });
    std::fflush(stdout);
  }
  void finish() {
    splitter_.finish([this](std::string_view part, bool is_thought) {
      mark(is_thought);
      print(part);
    });
  }

  ChatMessage message() const {
    return {.role = "assistant",
            .content = std::string(splitter_.answer()),
            .reasoning_content = std::string(splitter_.thoughts())};
  }

 private:
  // Begins or ends the thoughts on the screen.
  void mark(bool is_thought) {
    if (is_thought == was_thought_) return;
    was_thought_ = is_thought;
    if (is_terminal_) {
      print(is_thought ? "\x1b[2m" : "\x1b[0m");
    } else {
      print(is_thought ? "<think>" : "</think>");
    }
  }
  static void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

  nibble::chat::ThoughtSplitter splitter_;
  bool is_terminal_;
  bool was_thought_ = false;
};

class Chat {
 public:
  // `status`: where the progress of reading a prompt is shown; cleared before the answer.
  Chat(Options& options, example::StatusLine& status, nibble::Session session,
       nibble::Generator generator, nibble::chat::ChatTemplate chat_template)
      : options_(&options),
        status_(&status),
        session_(std::move(session)),
        generator_(std::move(generator)),
        template_(std::move(chat_template)),
        encoder_(*session_.model().tokenizer()) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!options_->system.empty()) messages_.push_back({"system", options_->system});
  }

  // One turn. On an error the conversation is as it was before.
  nibble::Result<nibble::Finish> say(const std::string& text) {
    const std::vector<ChatMessage> before = messages_;
    messages_.push_back({"user", text});
    const CatchInterrupt catch_interrupt;
    auto finish = answer();
    if (!finish || *finish == nibble::Finish::none) messages_ = before;
    return finish;
  }

  void print_stats() const {
    const auto rate = [](Index n, double seconds) {
      return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
    };
    const auto count = [](Index n) { return static_cast<long long>(n); };
    std::fprintf(stderr, "template  %s\n", template_.name().c_str());
    std::fprintf(stderr, "context   %lld of %lld tokens, %zu messages\n",
                 count(session_.position()), count(session_.capacity()), messages_.size());
    std::fprintf(stderr, "prompt    %lld tokens, of them %lld kept; %.1f tokens/s\n",
                 count(n_kept_ + n_read_), count(n_kept_), rate(n_read_, read_seconds_));
    std::fprintf(stderr, "answer    %lld tokens, %.1f tokens/s\n", count(n_generated_),
                 rate(n_generated_ - 1, generate_seconds_));
    std::fprintf(stderr, "memory    weights %s, session %s\n",
                 example::mebibytes(session_.model().weight_bytes()).c_str(),
                 example::mebibytes(session_.bytes()).c_str());
  }

  nibble::Result<void> save(const std::string& path) const {
    NIBBLE_TRY(json, nibble::chat::messages_to_json(messages_));
    json += '\n';
    NIBBLE_TRY(file, nibble::io::OutputFile::create(path));
    NIBBLE_CHECK(file.write(std::as_bytes(std::span<const char>(json))));
    return file.commit();
  }

 private:
  // The tokens of the conversation, and its text, up to where the answer begins. What does not fit
  // in the context with some room for the answer is forgotten, oldest turns first.
  nibble::Result<std::vector<std::int32_t>> prompt(std::string& asked) {
    const Index room = std::min<Index>(session_.capacity() / 4, 512);
    for (;;) {
      NIBBLE_TRY(text, template_.render(messages_, options_->chat));
      NIBBLE_TRY(ids, encoder_.encode(text));
      asked = text.bytes();
      const bool fits = static_cast<Index>(ids.size()) + room <= session_.capacity();
      if (fits || !forget_oldest_turn()) return ids;
      if (!options_->quiet) std::fprintf(stderr, "(the oldest turn is forgotten: no room)\n");
    }
  }
  // False if only the system prompt and the last message are left.
  bool forget_oldest_turn() {
    const auto first = messages_.begin() + (messages_[0].role == "system" ? 1 : 0);
    auto next = first + 1;
    while (next < messages_.end() && next->role != "user") ++next;
    if (next >= messages_.end()) return false;
    messages_.erase(first, next);
    return true;
  }

  // Finish::none if the answer was stopped before it began.
  nibble::Result<nibble::Finish> answer() {
    std::string asked;
    NIBBLE_TRY(ids, prompt(asked));
    // What the session has already read stays; at least the last token is read, for its logits.
    const auto read = session_.tokens();
    std::size_t same = 0;
    while (same < read.size() && same + 1 < ids.size() && read[same] == ids[same]) ++same;
    NIBBLE_CHECK(session_.rewind(static_cast<Index>(same)));
    n_kept_ = static_cast<Index>(same);

    auto start = Clock::now();
    const auto rest = std::span<const std::int32_t>(ids).subspan(same);
    auto done = generator_.prompt(rest, true);
    status_->show({});
    if (!done) {
      const bool is_limit = done.error().code == nibble::Errc::limit;
      return nibble::Error{done.error().code,
                           done.error().message + (is_limit ? " (see --ctx and --kv)" : "")};
    }
    if (interrupted) return nibble::Finish::none;
    n_read_ = static_cast<Index>(rest.size());
    read_seconds_ = seconds_since(start);

    start = Clock::now();
    Answer shown(asked);
    for (;;) {
      NIBBLE_TRY(token, generator_.next());
      if (!token || std::ferror(stdout) != 0) break;
      shown.add(token->text);
    }
    shown.finish();
    generate_seconds_ = seconds_since(start);
    n_generated_ = generator_.n_tokens();
    messages_.push_back(shown.message());
    return interrupted ? nibble::Finish::cancelled : generator_.finish();
  }

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Options* options_;
  example::StatusLine* status_;
  nibble::Session session_;
  nibble::Generator generator_;
  nibble::chat::ChatTemplate template_;
  nibble::chat::ChatEncoder encoder_;
  std::vector<ChatMessage> messages_;
  // Of the last turn.
  Index n_kept_ = 0, n_read_ = 0, n_generated_ = 0;
  double read_seconds_ = 0, generate_seconds_ = 0;
};

// A line of stdin, and those that it goes on in; nothing at the end of input.
std::optional<std::string> read_message(bool is_interactive) {
  std::string text;
  for (bool goes_on = false;; goes_on = true) {
    if (is_interactive) {
      std::fputs(goes_on ? ". " : "> ", stdout);
      std::fflush(stdout);
    }
    const std::size_t begin = text.size();
    int c = 0;
    while ((c = std::getchar()) != EOF && c != '\n') text += static_cast<char>(c);
    if (c == EOF && text.empty()) return std::nullopt;
    if (text.size() > begin && text.back() == '\r') text.pop_back();
    if (c == EOF || !text.ends_with('\\')) return text;
    text.back() = '\n';
  }
}

nibble::Result<nibble::chat::ChatTemplate> template_for(
    const Options& o, const nibble::io::Gguf& file, const nibble::text::Vocabulary& vocabulary) {
  using nibble::chat::ChatTemplate;
  const std::string& name = o.chat_template;
  if (name.empty()) return ChatTemplate::from_gguf(file, vocabulary);
  if (file.find("tokenizer.chat_template." + name) != nullptr)
    return ChatTemplate::from_gguf(file, vocabulary, name);
  std::error_code ignored;
  if (std::filesystem::is_regular_file(name, ignored)) {
    NIBBLE_TRY(source, example::read_text(name));
    return ChatTemplate::make(source, vocabulary, nibble::printable(name));
  }
  return ChatTemplate::builtin(name, vocabulary);
}

// The conversation. Returns the exit code.
nibble::Result<int> converse(Chat& chat, const Options& o) {
  const bool is_interactive = example::is_terminal(stdin) && example::is_terminal(stdout);
  if (is_interactive && !o.quiet) std::fprintf(stderr, "Type a message, or /help.\n");
  int exit_code = example::kOk;
  const auto report = [&](const nibble::Error& error) {
    std::fprintf(stderr, "chat: %s\n", error.message.c_str());
    if (!is_interactive) exit_code = example::kFailed;
  };
  while (const auto text = read_message(is_interactive)) {
    if (*text == "/quit" || *text == "/exit") break;
    if (text->empty()) continue;
    if (*text == "/reset") {
      chat.reset();
    } else if (*text == "/stats") {
      chat.print_stats();
    } else if (*text == "/help") {
      std::fputs(kHelp, stderr);
    } else if (text->starts_with("/save ")) {
      if (const auto saved = chat.save(text->substr(6)); !saved) report(saved.error());
    } else if (text->starts_with('/') && text->find(' ') == text->npos) {
      report({nibble::Errc::invalid_argument,
              "no command " + nibble::printable(*text) + " (see /help)"});
    } else {
      const auto finish = chat.say(*text);
      std::fputs("\n", stdout);
      if (!finish) {
        report(finish.error());
      } else if (*finish == nibble::Finish::context_full) {
        std::fprintf(stderr, "(the context is full: see --ctx)\n");
      }
      if (interrupted && !is_interactive) return example::kInterrupted;
    }
    if (!example::is_stdout_written())
      return nibble::Error{nibble::Errc::io, "cannot write to stdout"};
  }
  if (is_interactive) std::fputs("\n", stdout);
  return exit_code;
}

nibble::Result<int> run(Options& o) {
  if (o.target) NIBBLE_CHECK(nibble::simd::force_target(*o.target));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads, .pin = o.pin}));
  o.session.executor = pool.get();
  o.generate.cancel = &interrupted;

  NIBBLE_TRY(file, nibble::open_model(o.model));
  example::StatusLine status(!o.quiet, example::StatusLine::kInLogs);
  const auto on_load = [&](std::size_t done, std::size_t total) {
    status.show("loading: " + example::mebibytes(done) + " of " + example::mebibytes(total));
    return !interrupted.load();
  };
  const nibble::Progress progress(on_load);
  std::optional<CatchInterrupt> catch_interrupt(std::in_place);
  const auto model = nibble::Model::from_gguf<nibble::graph::AllFormats>(
      file, {.executor = pool.get(), .progress = &progress});
  catch_interrupt.reset();
  status.show({});
  if (!model) return model.error();
  if (model->tokenizer() == nullptr) return *model->tokenizer_error();
  const auto& tokenizer = *model->tokenizer();
  NIBBLE_TRY(chat_template, template_for(o, file, tokenizer.vocabulary()));
  const nibble::chat::ChatEncoder encoder(tokenizer);
  for (const std::int32_t id : encoder.ends_of_answer(chat_template))
    o.generate.stop_tokens.push_back(id);

  NIBBLE_CHECK(example::set_dry_breakers(o, *model));
  NIBBLE_TRY(session, nibble::Session::create(*model, o.session));
  if (o.generate.max_tokens == 0) o.generate.max_tokens = session.capacity();
  const auto on_prompt = [&](std::size_t done, std::size_t total) {
    status.show("reading: " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
    return true;
  };
  const nibble::Progress prompt_progress(on_prompt);
  o.generate.progress = &prompt_progress;
  NIBBLE_TRY(generator, nibble::Generator::create(session, o.generate));
  Chat chat(o, status, std::move(session), std::move(generator), std::move(chat_template));
  return converse(chat, o);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A conversation with a GGUF model in the terminal.", "chat");
  Options options;
  options.generate.max_tokens = 0;
  options.generate.sampling.temperature = 0.8f;
  add_options(app, options);
  return example::run(app, argc, argv, [&] { return run(options); });
}
