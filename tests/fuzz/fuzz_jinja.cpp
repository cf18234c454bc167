// SPDX-License-Identifier: Apache-2.0
//
// Any template and any variables: text, or an error. Up to the first NUL the input is the template;
// what follows is a JSON object of variables.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/chat/jinja.hpp"

namespace {

using namespace nibble::chat;

void require(bool condition) {
  if (!condition) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const auto parsed = JinjaTemplate::parse(input.substr(0, end));
  if (!parsed) {
    require(!parsed.error().message.empty());
    return 0;
  }
  std::vector<Variable> variables;
  const auto object =
      value_from_json(end == input.npos ? "{}" : input.substr(end + 1), Origin::foreign);
  if (object && object->is(Type::dict)) {
    for (const Entry& entry : object->entries())
      variables.push_back({std::string(entry.key.bytes()), entry.value});
  }
  const RenderLimits limits = {.max_steps = 20'000, .max_bytes = 1 << 20};
  const auto text = parsed->render(variables, limits, std::tm{});
  if (!text) {
    require(!text.error().message.empty());
    return 0;
  }
  require(text->size() <= limits.max_bytes);
  require(!variables.empty() || !text->has_foreign());
  // The same again: nothing of one rendering is left in the template.
  const auto again = parsed->render(variables, limits, std::tm{});
  require(again && again->bytes() == text->bytes());
  return 0;
}
