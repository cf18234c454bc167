// SPDX-License-Identifier: Apache-2.0
//
// Runs the model beside the page. Takes {id, text}; posts {kind: "ready" | "token" | "done" | "error"}.
// A new question ends the answer to the one before it: between two tokens the worker looks whether
// there is one.
import createNibble from "./nibble.mjs";

const kMaxTokens = 64;
let nibble;
let next = null;  // the newest question that nobody has begun to answer
let isRunning = false;

const text = (pointer) => nibble.UTF8ToString(pointer);

function withText(value, use) {
  const n = nibble.lengthBytesUTF8(value) + 1;
  const pointer = nibble._malloc(n);
  try {
    nibble.stringToUTF8(value, pointer, n);
    return use(pointer);
  } finally {
    nibble._free(pointer);
  }
}

// Lets messages come in.
const { port1, port2 } = new MessageChannel();
const pause = () => new Promise((resolve) => {
  port1.onmessage = resolve;
  port2.postMessage(null);
});

function load(bytes) {
  const pointer = nibble._malloc(bytes.length);
  try {
    nibble.HEAPU8.set(bytes, pointer);
    if (!nibble._nibble_load(pointer, bytes.length)) throw new Error(text(nibble._nibble_error()));
  } finally {
    nibble._free(pointer);
  }
}

async function answer({ id, text: prompt }) {
  const start = performance.now();
  if (!withText(prompt + "\n", (pointer) => nibble._nibble_ask(pointer, kMaxTokens))) {
    throw new Error(text(nibble._nibble_error()));
  }
  for (let tokens = 0; ; ++tokens) {
    const more = nibble._nibble_next();
    if (more < 0) throw new Error(text(nibble._nibble_error()));
    if (more === 0) {
      const seconds = (performance.now() - start) / 1000;
      postMessage({ kind: "done", id, tokens, seconds, target: text(nibble._nibble_target()) });
      return;
    }
    postMessage({ kind: "token", id, text: text(nibble._nibble_text()) });
    await pause();
    if (next !== null) return;
  }
}

async function run() {
  if (isRunning || nibble === undefined) return;
  isRunning = true;
  while (next !== null) {
    const question = next;
    next = null;
    if (question.text === "") continue;
    try {
      await answer(question);
    } catch (problem) {
      postMessage({ kind: "error", text: String(problem.message ?? problem) });
    }
  }
  isRunning = false;
}

onmessage = ({ data }) => {
  next = data;
  run();
};

try {
  const start = performance.now();
  const [module, response] = await Promise.all([createNibble(), fetch("model.gguf")]);
  if (!response.ok) throw new Error(`model.gguf: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  nibble = module;
  load(bytes);
  postMessage({
    kind: "ready", bytes: bytes.length, target: text(nibble._nibble_target()),
    seconds: (performance.now() - start) / 1000,
  });
  run();
} catch (problem) {
  nibble = undefined;
  postMessage({ kind: "error", text: String(problem.message ?? problem) });
}
