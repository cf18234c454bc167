// SPDX-License-Identifier: Apache-2.0
//
// Templates for models whose file has none, by family, and how to tell the family.
#pragma once

#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/gguf_vocabulary.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

struct BuiltinTemplate {
  std::string_view name;
  std::string_view source;
  // A vocabulary with all of these tokens is of the family, unless it is of one further above.
  std::string_view tokens[2] = {};
  // Without such tokens: part of the model's name, in lower case.
  std::string_view model = {};
};

NIBBLE_HIDDEN inline constexpr BuiltinTemplate kBuiltinTemplates[] = {
    {"chatml",
     R"jinja({% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %})jinja",
     {"<|im_start|>", "<|im_end|>"}},
    {"llama-3",
     R"jinja({{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %})jinja",
     {"<|start_header_id|>", "<|eot_id|>"}},
    {"gemma",
     R"jinja({{ bos_token }}
{%- set ns = namespace(system='') %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = message.content | trim + '\n\n' %}
{% else %}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- ns.system + message.content | trim + '<end_of_turn>\n' }}
{%- set ns.system = '' %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model\n' }}
{%- endif %})jinja",
     {"<start_of_turn>", "<end_of_turn>"}},
    {"granite",
     R"jinja({% for message in messages %}
{{ '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %})jinja",
     {"<|start_of_role|>", "<|end_of_role|>"}},
    {"command-r",
     R"jinja({{ bos_token }}
{%- for message in messages %}
{% set role = {'system': 'SYSTEM', 'assistant': 'CHATBOT'}.get(message.role, 'USER') %}
{{ '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' + message.content | trim }}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
{%- endif %})jinja",
     {"<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"}},
    {"deepseek",
     R"jinja({{ bos_token }}
{%- for message in messages %}
{% if message.role == 'user' %}
{{ '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' %}
{{ '<｜Assistant｜>' + message.content + eos_token }}
{%- else %}
{{ message.content }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<｜Assistant｜>' }}
{%- endif %})jinja",
     {"<｜User｜>", "<｜Assistant｜>"}},
    {"phi-3",
     R"jinja({% for message in messages %}
{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\n' }}
{%- endif %})jinja",
     {"<|user|>", "<|end|>"}},
    {"mistral-v3",
     R"jinja({{ bos_token }}
{%- set ns = namespace(system='') %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = message.content + '\n\n' %}
{% elif message.role == 'assistant' %}
{{ ' ' + message.content + eos_token }}
{%- else %}
{{ '[INST] ' + ns.system + message.content + '[/INST]' }}
{%- set ns.system = '' %}
{% endif %}
{% endfor %})jinja",
     {"[INST]", "[/INST]"}},
    {"zephyr",
     R"jinja({% for message in messages %}
{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\n' }}
{%- endif %})jinja",
     {"<|user|>", "<|assistant|>"},
     "zephyr"},
    {"zephyr", {}, {}, "tinyllama"},
    {"llama-2",
     R"jinja({% set ns = namespace(system='') %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}
{% elif message.role == 'assistant' %}
{{ ' ' + message.content | trim + ' ' + eos_token }}
{%- else %}
{{ bos_token + '[INST] ' + (ns.system + message.content) | trim + ' [/INST]' }}
{%- set ns.system = '' %}
{% endif %}
{% endfor %})jinja",
     {},
     "llama-2"},
    {"mistral",
     R"jinja({{ bos_token }}
{%- set ns = namespace(system='') %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = message.content + '\n\n' %}
{% elif message.role == 'assistant' %}
{{ ' ' + message.content + eos_token }}
{%- else %}
{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}
{%- set ns.system = '' %}
{% endif %}
{% endfor %})jinja",
     {},
     "mistral"},
    // For models that only continue text: a line per message.
    {"plain",
     R"jinja({% for message in messages %}
{{ message.content + '\n' }}
{%- endfor %})jinja"},
};

// The template with this name; null if there is none.
inline const BuiltinTemplate* find_builtin_template(std::string_view name) noexcept {
  for (const BuiltinTemplate& known : kBuiltinTemplates) {
    if (known.name == name && !known.source.empty()) return &known;
  }
  return nullptr;
}

// The template of the family that a model is of, by its vocabulary, else by its name
// (general.name); "plain" if neither tells.
inline const BuiltinTemplate& detect_builtin_template(const text::Vocabulary& vocabulary,
                                                      std::string_view model) noexcept {
  for (const BuiltinTemplate& known : kBuiltinTemplates) {
    if (!known.tokens[0].empty() && vocabulary.find(known.tokens[0]) != text::kNoToken &&
        vocabulary.find(known.tokens[1]) != text::kNoToken)
      return known;
  }
  for (const BuiltinTemplate& known : kBuiltinTemplates) {
    if (!known.model.empty() && text::detail::contains_ignoring_case(model, known.model))
      return *find_builtin_template(known.name);
  }
  return *find_builtin_template("plain");
}

}}}  // namespace nibble::NIBBLE_ABI::chat
