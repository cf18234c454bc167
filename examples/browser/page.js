// SPDX-License-Identifier: Apache-2.0
//
// The page: sends what is typed to the worker and shows what comes back. `?ask=TEXT` types TEXT.
const prompt = document.getElementById("prompt");
const answer = document.getElementById("answer");
const error = document.getElementById("error");
const status = document.getElementById("status");

const worker = new Worker("worker.js", { type: "module" });
let asked = 0;  // the last question; answers to those before it are not shown

function ask() {
  answer.textContent = error.textContent = "";
  const text = prompt.value.trim();
  worker.postMessage({ id: ++asked, text });
}

worker.onmessage = ({ data }) => {
  switch (data.kind) {
    case "ready":
      status.textContent = `${data.target}, model of ${(data.bytes / 1e6).toFixed(2)} MB, ` +
        `ready after ${data.seconds.toFixed(2)} s`;
      ask();
      break;
    case "token":
      if (data.id === asked) answer.textContent += data.text;
      break;
    case "done":
      if (data.id !== asked) break;
      status.textContent = `${data.tokens} tokens in ${(data.seconds * 1000).toFixed(1)} ms: ` +
        `${(data.tokens / data.seconds).toFixed(0)} tokens/s on ${data.target}`;
      document.body.dataset.answered = prompt.value;
      break;
    case "error":
      error.textContent = data.text;
      break;
  }
};
worker.onerror = (event) => { error.textContent = event.message || "the worker did not start"; };

prompt.addEventListener("input", ask);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
prompt.value = new URLSearchParams(location.search).get("ask") ?? "";
