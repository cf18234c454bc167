// SPDX-License-Identifier: Apache-2.0
//
// Opens the page of the server in headless Chromium, asks, and reads what it shows: node page_test.mjs
// PROGRAM. Needs chromedriver (Debian's chromium-driver). Exit codes: 0 all is right, 1 something is
// not, 77 there is no chromedriver.
import { spawn } from "node:child_process";

// The first match of an expression in what a process writes to stdout.
function said(child, expression) {
  return new Promise((resolve, reject) => {
    let text = "";
    child.on("exit", (code) => reject(new Error(`it ended with ${code}: ${text}`)));
    child.stdout.on("data", (data) => {
      text += data;
      const found = expression.exec(text);
      if (found) resolve(found[1]);
    });
  });
}

const driver = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
driver.on("error", () => {
  console.log("nibble: skipped, there is no chromedriver here");
  process.exit(77);
});
const port = await said(driver, /successfully on port (\d+)/);
const server = spawn(process.argv[2], ["--port", "0", "--quiet", "--pace", "0"],
                     { stdio: ["ignore", "pipe", "inherit"] });
const page = await said(server, /listening at (\S+)/);

async function call(method, where, body) {
  const response = await fetch(`http://127.0.0.1:${port}${where}`,
    { method, body: body === undefined ? undefined : JSON.stringify(body) });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${where}: ${value.message}`);
  return value;
}

let failed = 0;
function check(what, is, expected) {
  const isRight = expected instanceof RegExp ? expected.test(is) : is === expected;
  console.log(`${isRight ? "right" : "WRONG"}: ${what}: ${is}`);
  if (!isRight) ++failed;
}

let session;
try {
  const made = await call("POST", "/session", { capabilities: { alwaysMatch: {
    "goog:chromeOptions": { args: ["--headless=new", "--no-sandbox", "--disable-gpu"] } } } });
  session = `/session/${made.sessionId}`;
  const run = (script) => call("POST", `${session}/execute/sync`, { script, args: [] });
  const shown = (id) => run(`return document.getElementById("${id}").textContent`);
  async function wait(what, is) {
    for (let i = 0; i < 300; ++i) {
      if (await is()) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`waited half a minute for ${what}; the page says: ${await shown("error")}`);
  }
  const ask = async (text) => {
    await call("POST", `${session}/element/${input}/clear`, {});
    await call("POST", `${session}/element/${input}/value`, { text: text + "\n" });
    await wait(`the answer to "${text}"`, async () =>
      await run("return document.body.dataset.answered") === text);
    return shown("answer");
  };

  await call("POST", `${session}/url`, { url: page });
  const found = await call("POST", `${session}/element`, { using: "css selector", value: "#prompt" });
  const input = Object.values(found)[0];
  await wait("the model", async () => (await shown("model")) === "home-commands-f16");

  // Counts how often the answer changes: it comes in parts. (A part may have several tokens, and on a
  // fast machine one of these short answers may come at once: then it is asked again.)
  await run(`window.grown = 0;
    new MutationObserver((all) => { window.grown += all.length; })
      .observe(document.getElementById("answer"), { childList: true, characterData: true,
                                                    subtree: true });`);
  check("a command", await ask("could you please dim the office light to 10 percent"),
        "light.set(room=office, level=10)");
  let grown = await run("return window.grown");
  for (let i = 0; i < 20 && grown < 3; ++i) {
    await run("window.grown = 0");
    await ask(`set the bedroom light to ${20 + i} percent`);
    grown = await run("return window.grown");
  }
  check("it came in parts", grown >= 3, true);
  check("its speed", await shown("status"), /^[1-9]\d* tokens in [\d.]+ s, the first after [\d.]+ ms$/);
  check("another", await ask("switch on the kitchen light"), "light.on(room=kitchen)");
  await wait("live metrics", async () => Number(await shown("tokens")) > 10);
  check("requests", await shown("requests"), /^\d+, \d+$/);
  check("time to first token", await shown("first"), /^[\d.]+ ms$/);
  check("memory", await shown("memory"), /^\d+ MiB$/);
  check("no error", await shown("error"), "");
} catch (error) {
  console.log(`WRONG: ${error.message}`);
  ++failed;
} finally {
  if (session) await call("DELETE", session).catch(() => {});
  driver.removeAllListeners("exit").kill();
  server.removeAllListeners("exit").kill();
}
process.exit(failed > 0 ? 1 : 0);
