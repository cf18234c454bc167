#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The official client of the OpenAI API (PyPI: openai) against the program serve.

openai_test.py PROGRAM. Exit codes: 0 all is right, 1 something is not, 77 there is no client here.
"""
import json
import subprocess
import sys

try:
    import openai
except ImportError:
    print("nibble: skipped, there is no Python package openai here")
    sys.exit(77)

COMMAND = "could you please dim the office light to 10 percent"
CALL = "light.set(room=office, level=10)"
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["office", "hall"]}, "level": {"type": "integer"}},
    "required": ["room", "level"],
    "additionalProperties": False,
}
LEVEL = {
    "type": "object",
    "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["level"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "dim", "parameters": LEVEL}}]
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": COMMAND}]

wrong = 0


def check(what, value, expected):
    global wrong
    if value != expected:
        wrong += 1
        print(f"WRONG: {what}: {value!r}, not {expected!r}")


def chat(client, model):
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    check("chat", answer.choices[0].message.content, CALL)
    check("usage", answer.usage.total_tokens,
          answer.usage.prompt_tokens + answer.usage.completion_tokens)
    text, usage = "", None
    for part in client.chat.completions.create(model=model, messages=MESSAGES, temperature=0,
                                               stream=True, logprobs=True, top_logprobs=3,
                                               stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            text += choice.delta.content or ""
            for token in (choice.logprobs.content if choice.logprobs else []):
                check("top_logprobs", len(token.top_logprobs), 3)
    check("stream", text, CALL)
    check("usage of a stream", usage.completion_tokens, answer.usage.completion_tokens)

    form = {"type": "json_schema", "json_schema": {"name": "light", "schema": SCHEMA}}
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0,
                                            response_format=form)
    check("schema", sorted(json.loads(answer.choices[0].message.content)), ["level", "room"])
    short = [{"role": "user", "content": "a"}]  # the context of the model has few tokens
    answer = client.chat.completions.create(model=model, messages=short, temperature=0,
                                            tools=TOOLS, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    check("tool", call.function.name, "dim")
    check("arguments", list(json.loads(call.function.arguments)), ["level"])
    check("finish", answer.choices[0].finish_reason, "tool_calls")
    turn = [*MESSAGES, answer.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    answer = client.chat.completions.create(model=model, messages=turn, temperature=0)
    check("the turn after a call", answer.choices[0].message.content, CALL)

    with client.chat.completions.stream(model=model, messages=MESSAGES, temperature=0) as stream:
        for _ in stream:
            pass
        check("the helper for streams", stream.get_final_completion().choices[0].message.content,
              CALL)


def completions(client, model):
    answer = client.completions.create(model=model, prompt=[COMMAND + "\n"] * 2, temperature=0,
                                       max_tokens=64, logprobs=2, stop=[", level"])
    check("completions", [c.text for c in answer.choices], ["light.set(room=office"] * 2)
    check("finish", answer.choices[0].finish_reason, "stop")
    text = ""
    for part in client.completions.create(model=model, prompt=COMMAND + "\n", temperature=0,
                                          max_tokens=64, stream=True):
        text += part.choices[0].text
    check("a stream of a completion", text, CALL)
    one = client.completions.create(model=model, prompt="a", seed=3, temperature=1, n=2)
    two = client.completions.create(model=model, prompt="a", seed=3, temperature=1, n=2)
    check("seed", [c.text for c in one.choices], [c.text for c in two.choices])


def responses(client, model):
    answer = client.responses.create(model=model, input=COMMAND, temperature=0)
    check("response", answer.output_text, CALL)
    text = ""
    for event in client.responses.create(model=model, input=MESSAGES[1:], temperature=0,
                                         stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type == "response.completed":
            check("the whole response", event.response.output_text, CALL)
    check("a stream of a response", text, CALL)


def errors(client, model):
    try:
        client.chat.completions.create(model=model, messages=[])
        check("no messages", "no error", "BadRequestError")
    except openai.BadRequestError as error:
        check("the error's type", error.type, "invalid_request_error")
    try:
        client.embeddings.create(model=model, input="a")
        check("no embedding model", "no error", "BadRequestError")
    except openai.BadRequestError as error:
        check("embeddings", "--embedding-model" in error.message, True)
    try:
        client.with_options(api_key="wrong").models.list()
        check("another key", "no error", "AuthenticationError")
    except openai.AuthenticationError as error:
        check("the error's code", error.code, "invalid_api_key")


def main():
    server = subprocess.Popen([sys.argv[1], "--port", "0", "--quiet", "--api-key", "secret"],
                              stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        client = openai.OpenAI(base_url=address + "/v1", api_key="secret", timeout=60,
                               max_retries=8)  # 503 while it loads
        while not (models := list(client.models.list())):
            pass
        model = models[0].id
        for part in (chat, completions, responses, errors):
            part(client, model)
    finally:
        server.terminate()
        check("exit code", server.wait(timeout=30), 0)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


sys.exit(main())
