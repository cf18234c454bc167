// SPDX-License-Identifier: Apache-2.0
//
// Any body of a request to the example server: what it asks for, within the limits, or an error.
// The first byte says what it is read as.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "examples/serve/request_reader.hpp"

namespace {

using namespace example::server;

void require(bool condition) {
  if (!condition) __builtin_trap();
}

template <class T>
bool has_read(const nibble::Result<T>& result) {
  if (!result) require(!result.error().message.empty());
  return result.has_value();
}

void check(const GenerationRequest& request, const RequestLimits& limits) {
  require(request.api == Api::completions ? !request.prompts.empty() : !request.messages.empty());
  require(request.messages.size() <= limits.max_messages + 1);  // and instructions
  require(request.prompts.size() <= limits.max_answers);
  require(request.n >= 1 && request.n <= 64);
  require(!request.max_tokens || *request.max_tokens >= 1);
  require(request.sampling.temperature >= 0 && request.sampling.temperature <= 2);
  require(request.sampling.top_p > 0 && request.sampling.top_p <= 1);
  require(request.sampling.top_logprobs >= 0 && request.sampling.top_logprobs <= 20);
  require(request.stop.size() <= limits.max_stops);
  for (const auto& stop : request.stop) require(!stop.empty());
  // What is kept as JSON is JSON.
  for (const auto* json : {&request.schema, &request.tools, &request.template_variables}) {
    if (json->empty()) continue;
    JsonReader reader(*json);
    require(reader.skip() && reader.at_end());
  }
  for (const auto& message : request.messages) {
    if (message.tool_calls.empty()) continue;
    JsonReader reader(message.tool_calls);
    require(reader.skip() && reader.at_end());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const RequestLimits limits = {
      .max_messages = 8, .max_answers = 8, .max_stops = 4, .max_inputs = 8, .max_tokens = 64};
  RequestReader reader(body, limits);
  switch (data[0] % 7) {
    case 0:
    case 1:
    case 2: {
      const auto read = reader.generation(static_cast<Api>(data[0] % 7));
      if (has_read(read)) check(*read, limits);
      break;
    }
    case 3: {
      const auto read = reader.embeddings();
      if (has_read(read))
        require(!read->inputs.empty() && read->inputs.size() <= limits.max_inputs);
      break;
    }
    case 4: has_read(reader.tokenize()); break;
    case 5: {
      const auto read = reader.detokenize();
      if (has_read(read)) require(read->size() <= limits.max_tokens);
      break;
    }
    default: {
      const auto read = reader.one_string("model");
      if (has_read(read)) require(!read->empty());
      break;
    }
  }
  return 0;
}
