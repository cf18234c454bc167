// SPDX-License-Identifier: Apache-2.0
//
// The page: asks, shows the tokens as they come, and what the server says of itself each second.
const shown = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
let asking;  // an AbortController while an answer comes

function headers() {
  const all = { "Content-Type": "application/json" };
  if (shown.key.value) all.Authorization = `Bearer ${shown.key.value}`;
  return all;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = /^data: (.*)$/m.exec(text.slice(0, end));
      if (data && data[1] !== "[DONE]") yield JSON.parse(data[1]);
    }
  }
}

async function ask() {
  asking?.abort();
  const mine = asking = new AbortController();
  shown.answer.textContent = shown.error.textContent = shown.status.textContent = "";
  delete document.body.dataset.answered;
  shown.stop.disabled = false;
  const begin = performance.now();
  let first = 0, usage;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), signal: mine.signal,
      body: JSON.stringify({
        messages: [{ role: "user", content: shown.prompt.value }],
        temperature: 0, stream: true, stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices[0]?.delta ?? {};
      const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
      if (text && !first) first = performance.now();
      if (mine === asking) shown.answer.textContent += text;
    }
    if (mine !== asking) return;
    const seconds = (performance.now() - begin) / 1000;
    shown.status.textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(3)} s, ` +
      `the first after ${((first || performance.now()) - begin).toFixed(1)} ms`;
    document.body.dataset.answered = shown.prompt.value;
  } catch (error) {
    if (mine === asking && error.name !== "AbortError") shown.error.textContent = error.message;
  } finally {
    if (mine === asking) shown.stop.disabled = true;
  }
}

// The sum of a metric over its labels.
function metric(text, name) {
  let sum = 0;
  for (const line of text.split("\n")) {
    if (line.startsWith(`nibble_${name} `) || line.startsWith(`nibble_${name}{`) ||
        line.startsWith(`${name} `)) sum += Number(line.slice(line.lastIndexOf(" ")));
  }
  return sum;
}

let last;
async function look() {
  try {
    const response = await fetch("/metrics", { headers: headers() });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const text = await response.text();
    const now = performance.now(), tokens = metric(text, "generation_tokens_total");
    const n = metric(text, "time_to_first_token_seconds_count");
    shown.requests.textContent =
      `${metric(text, "num_requests_running")}, ${metric(text, "num_requests_waiting")}`;
    if (last) shown.speed.textContent = ((tokens - last.tokens) / (now - last.now) * 1e3).toFixed(0);
    last = { now, tokens };
    shown.tokens.textContent = tokens;
    shown.first.textContent = n === 0 ? "" :
      `${(metric(text, "time_to_first_token_seconds_sum") / n * 1e3).toFixed(1)} ms`;
    shown.cache.textContent = `${(metric(text, "kv_cache_usage_perc") * 100).toFixed(0)} %`;
    shown.memory.textContent =
      `${(metric(text, "process_resident_memory_bytes") / 2 ** 20).toFixed(0)} MiB`;
    if (shown.model.textContent === "…") await name();
  } catch (error) {
    shown.error.textContent ||= error.message;
  }
}
async function name() {
  const { data } = await (await fetch("/v1/models", { headers: headers() })).json();
  if (data.length > 0) shown.model.textContent = data[0].id;
}

shown.ask.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
shown.stop.addEventListener("click", () => asking?.abort());
shown.key.addEventListener("change", () => { shown.error.textContent = ""; look(); });
look();
setInterval(() => { if (!document.hidden) look(); }, 1000);
