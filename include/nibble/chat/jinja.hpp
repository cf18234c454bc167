// SPDX-License-Identifier: Apache-2.0
//
// Templates in the language of Jinja, as chat models have them, with the settings of Hugging Face
// transformers. They have all of the language that chat templates use: no inheritance, no imports.
#pragma once

#include <ctime>
#include <span>
#include <string_view>
#include <utility>

#include "nibble/chat/jinja_interpreter.hpp"
#include "nibble/chat/jinja_parser.hpp"
#include "nibble/core/shared.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// Immutable; copies share the parsed template, and threads may render it at the same time.
class JinjaTemplate {
 public:
  // Errors: malformed, unsupported (what of Jinja is left out), limit (longer than 4 MiB, nested
  // more than 64 deep). They name the line.
  static Result<JinjaTemplate> parse(std::string_view source) {
    return catch_out_of_memory([&]() -> Result<JinjaTemplate> {
      NIBBLE_TRY(program, JinjaParser::parse(source));
      return JinjaTemplate(Shared<Program>(std::move(program)));
    });
  }

  // `now`: what strftime_now() tells. Takes at most 256 KiB of stack. Errors, which name the line:
  // invalid_argument (the template asks for something impossible, or refuses the variables),
  // unsupported, limit.
  Result<MarkedText> render(std::span<const Variable> variables, const RenderLimits& limits = {},
                            const std::tm& now = local_time_now()) const {
    return catch_out_of_memory(
        [&] { return JinjaInterpreter(*program_, limits, now).run(variables); });
  }

 private:
  explicit JinjaTemplate(Shared<Program> program) noexcept : program_(std::move(program)) {}

  Shared<Program> program_;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
