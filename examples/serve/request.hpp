// SPDX-License-Identifier: Apache-2.0
//
// What clients ask for, as plain values; request_reader.hpp makes them of JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nibble/chat/chat_template.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/sampling.hpp"

namespace example::server {

using nibble::Index;

// More of anything is refused: what one client asks for must leave room for others.
struct RequestLimits {
  std::size_t max_messages = 1024;
  std::size_t max_answers = 64;  // prompts of a request times `n`
  std::size_t max_stops = 16;
  std::size_t max_inputs = 256;                   // texts to embed
  std::size_t max_tokens = std::size_t{1} << 20;  // of prompts given as tokens
};

enum class Api : unsigned char { chat, completions, responses };

// A text, or tokens in its place.
struct Prompt {
  std::string text = {};
  std::vector<std::int32_t> tokens = {};
};

enum class ToolChoice : unsigned char { none, automatic, required };

struct GenerationRequest {
  Api api = Api::chat;
  std::string model = {};
  std::vector<nibble::chat::ChatMessage> messages = {};  // chat and responses
  std::string instructions = {};     // of responses; the first of the messages, too
  std::vector<Prompt> prompts = {};  // completions
  nibble::SamplingOptions sampling = {};
  std::optional<std::uint64_t> seed = {};
  std::optional<Index> max_tokens = {};
  std::vector<std::string> stop = {};
  Index n = 1;  // answers to each prompt
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;    // sampling.top_logprobs says of how many more tokens
  std::string schema = {};  // a JSON Schema of the answer; empty: any text
  std::string tools = {};   // a JSON array; empty: none
  ToolChoice tool_choice = ToolChoice::automatic;
  std::string tool_name = {};           // the only one that may be called; empty: any
  std::string template_variables = {};  // a JSON object (chat_template_kwargs)
};

struct EmbeddingsRequest {
  std::string model = {};
  std::vector<Prompt> inputs = {};
  bool is_base64 = false;
};

struct TokenizeRequest {
  std::string text = {};
  bool add_special = true;
  bool parse_special = false;
  bool with_pieces = false;
};

}  // namespace example::server
