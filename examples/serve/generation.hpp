// SPDX-License-Identifier: Apache-2.0
//
// A request for text from when it is read to its last token: whole, or as a stream of events. A
// client that goes away cancels it.
#pragma once

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "answer.hpp"
#include "backend.hpp"
#include "channel.hpp"
#include "connection.hpp"
#include "errors.hpp"
#include "formats.hpp"
#include "nibble/generate/completion.hpp"
#include "request.hpp"

namespace example::server {

// A number that no other request of this server has, in 16 hexadecimal digits.
inline std::string new_id() {
  static std::atomic<std::uint64_t> next{std::random_device{}() * std::uint64_t{0x100000001}};
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx",
                static_cast<unsigned long long>(next.fetch_add(0x9e3779b97f4a7c15)));
  return text;
}

class Generation {
 public:
  // Sends the request to the model. `time_limit_ms`: for all of it. `pace_ms`: between the events
  // of a stream, at least; tokens that come sooner share one.
  static ApiResult<std::shared_ptr<Generation>> start(Backend& backend, GenerationRequest request,
                                                      nibble::Index time_limit_ms,
                                                      nibble::Index pace_ms) {
    auto use = backend.use();
    if (!use) return ApiError::unavailable(use.error());
    auto made = std::make_shared<Generation>(Private{}, *std::move(use), std::move(request),
                                             std::chrono::milliseconds(pace_ms));
    if (auto error = made->prepare()) return *std::move(error);
    if (auto error = made->submit(time_limit_ms)) return *std::move(error);
    return made;
  }

  bool is_stream() const { return request_.stream; }

  // Waits for the whole answer. Nothing: the client has gone.
  std::optional<ApiResult<Json>> whole() {
    while (!channel_->has_ended()) {
      add(channel_->take(kLook));
      if (channel_->is_broken()) return ApiError::internal("out of memory");
      if (!is_client_there()) return std::nullopt;
    }
    if (auto error = failure()) return *std::move(error);
    return ApiResult<Json>(format_->whole(answers_, usage()));
  }

  // Writes more of the stream. False: it is over, or the client has gone.
  bool stream(httplib::DataSink& sink) {
    std::string out;
    if (!is_begun_) out = format_->begin();
    is_begun_ = true;
    // The first token is never held back.
    const auto earliest = has_token_ ? last_write_ + pace_ : Clock::time_point();
    for (const std::size_t i : add(channel_->take_next(kLook, earliest))) {
      has_token_ = true;
      if (!answers_[i].has_failed()) out += format_->part(i, answers_[i]);
      clear(answers_[i]);
    }
    const bool is_end = channel_->has_ended() || channel_->is_broken();
    if (is_end) {
      if (auto error = failure()) {
        out += sse(error->json());
      } else {
        out += format_->end(answers_, usage());
      }
      out += "data: [DONE]\n\n";
    }
    if (!is_client_there()) return false;
    if (out.empty() && Clock::now() - last_write_ > kHeartbeat) out = ": still here\n\n";
    if (!out.empty()) {
      last_write_ = Clock::now();
      if (!sink.write(out.data(), out.size())) return false;
    }
    if (is_end) sink.done();
    return true;
  }

 private:
  using Clock = Channel::Clock;
  struct Private {};
  // How often it is looked whether the client is there, and how often it hears something. (Only
  // writing finds out that a network has gone.)
  static constexpr std::chrono::milliseconds kLook{100};
  static constexpr std::chrono::seconds kHeartbeat{5};

 public:
  Generation(Private, Backend::Use use, GenerationRequest request, std::chrono::milliseconds pace)
      : use_(std::move(use)), request_(std::move(request)), pace_(pace) {}

 private:
  std::optional<ApiError> prepare() {
    auto tools = use_.dialect->tools(request_);
    if (!tools) return ApiError::bad_request(tools.error());
    tools_ = *std::move(tools);
    auto constraint = use_.dialect->constraint(request_, tools_);
    if (!constraint) return ApiError::bad_request(constraint.error());
    constraint_ = *std::move(constraint);
    if (request_.api != Api::completions) {
      auto prompt = use_.dialect->conversation(request_);
      if (!prompt) return ApiError::bad_request(prompt.error());
      prompts_.push_back(*std::move(prompt));
    }
    for (const Prompt& text : request_.prompts) {
      auto prompt = use_.dialect->prompt(text);
      if (!prompt) return ApiError::bad_request(prompt.error());
      prompts_.push_back(*std::move(prompt));
    }
    for (const PromptTokens& prompt : prompts_) {
      if (static_cast<nibble::Index>(prompt.ids.size()) < use_.lease.n_ctx()) continue;
      return ApiError{400, "invalid_request_error", "context_length_exceeded",
                      "the prompt has " + std::to_string(prompt.ids.size()) +
                          " tokens, and the context of the model is " +
                          std::to_string(use_.lease.n_ctx()) + " with the answer"};
    }
    return std::nullopt;
  }

  std::optional<ApiError> submit(nibble::Index time_limit_ms) {
    const std::size_t n = static_cast<std::size_t>(request_.n);
    channel_ = std::make_shared<Channel>(prompts_.size() * n, request_.logprobs);
    const std::string adapter = adapter_of_request();
    format_ = format_of(request_, new_id(), adapter.empty() ? use_.lease.variant() : adapter);
    const std::uint64_t seed = request_.seed ? *request_.seed : std::random_device{}();
    for (const PromptTokens& prompt : prompts_) {
      for (std::size_t i = 0; i < n; ++i) {
        answers_.emplace_back(tools_, prompt.text, request_.api != Api::completions);
        auto completion = use_.lease.submit(request_of(prompt, seed, time_limit_ms), adapter);
        if (!completion) return ApiError::refused(completion.error());
        completions_.push_back(*std::move(completion));
      }
    }
    return std::nullopt;
  }

  // Whose name is that of the model in the request; "" if none has it.
  std::string adapter_of_request() const {
    for (nibble::Index i = 0; i < use_.lease.n_adapters(); ++i) {
      if (use_.lease.adapter_name(i) == request_.model) return request_.model;
    }
    return {};
  }

  nibble::GenerateRequest request_of(const PromptTokens& prompt, std::uint64_t seed,
                                     nibble::Index time_limit_ms) const {
    const std::size_t number = completions_.size();
    nibble::GenerateRequest out;
    out.tokens = prompt.ids;
    out.options.sampling = request_.sampling;
    out.options.sampling.seed = seed + number;
    const auto room = use_.lease.n_ctx() - static_cast<nibble::Index>(prompt.ids.size());
    // Of completions the API says how many tokens there are if nobody does.
    const nibble::Index wanted =
        request_.max_tokens.value_or(request_.api == Api::completions ? 16 : room);
    out.options.max_tokens = std::min(wanted, room);
    out.options.stop = request_.stop;
    out.options.stop_tokens = prompt.stop_tokens;
    out.options.time_limit_ms = time_limit_ms;
    out.options.grammar = constraint_.get();
    out.keeps_answer = request_.api != Api::completions;  // the next turn goes on with it
    // The request may outlive this object by a step: it keeps what it uses.
    out.on_token = [channel = channel_, constraint = constraint_, dialect = use_.dialect,
                    number](const nibble::Token& token) { return channel->push(number, token); };
    return out;
  }

  // Adds what has come to the answers; returns which have more.
  std::vector<std::size_t> add(const std::vector<TokenEvent>& events) {
    const auto* const vocabulary =
        request_.logprobs ? &use_.dialect->tokenizer().vocabulary() : nullptr;
    std::vector<std::size_t> changed;
    for (const TokenEvent& event : events) {
      answers_[event.answer].add(event, vocabulary);
      if (std::find(changed.begin(), changed.end(), event.answer) == changed.end()) {
        changed.push_back(event.answer);
      }
    }
    return changed;
  }
  static void clear(Answer& answer) {
    answer.content.clear();
    answer.reasoning.clear();
    answer.tokens.clear();
    answer.calls.clear();
  }

  Usage usage() const {
    Usage usage;
    for (const PromptTokens& prompt : prompts_) {
      usage.prompt += static_cast<std::int64_t>(prompt.ids.size());
    }
    for (const Answer& answer : answers_) usage.completion += answer.n_tokens;
    return usage;
  }

  std::optional<ApiError> failure() {
    if (channel_->is_broken()) return ApiError::internal("out of memory");
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      if (answers_[i].finish == nibble::Finish::cancelled) {
        return ApiError::unavailable({nibble::Errc::cancelled, "the server ends"});
      }
      if (answers_[i].finish != nibble::Finish::failed) continue;
      (void)completions_[i].wait();  // its last token may come before it has ended
      const auto status = completions_[i].status();
      return ApiError::internal(status ? "the answer failed" : status.error().message);
    }
    return std::nullopt;
  }

  static bool is_client_there() {
    const Connection* const connection = Connection::current();
    return connection == nullptr || connection->is_alive();
  }

  Backend::Use use_;
  GenerationRequest request_;
  std::chrono::milliseconds pace_;
  ToolUse tools_;
  Dialect::SharedConstraint constraint_;
  std::vector<PromptTokens> prompts_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<Format> format_;
  std::vector<Answer> answers_;  // n of each prompt
  bool is_begun_ = false, has_token_ = false;
  Clock::time_point last_write_ = Clock::now();
  std::vector<nibble::Completion> completions_;  // destroying them cancels
};

}  // namespace example::server
