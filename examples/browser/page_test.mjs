// SPDX-License-Identifier: Apache-2.0
//
// Opens the page in headless Chromium, types commands, and reads the answers: node page_test.mjs FOLDER,
// the folder of the built page. Needs chromedriver (Debian's chromium-driver). Exit codes: 0 all is
// right, 1 something is not, 77 there is no chromedriver.
import { spawn } from "node:child_process";
import { createReadStream, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { gzipSync } from "node:zlib";
import path from "node:path";

const folder = path.resolve(process.argv[2] ?? ".");
const kTypes = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript",
                 ".wasm": "application/wasm", ".gguf": "application/octet-stream" };

const served = new Set();
const server = createServer((request, response) => {
  const name = new URL(request.url, "http://localhost").pathname.slice(1);
  const file = path.join(folder, name);
  try {
    if (path.relative(folder, file).startsWith("..") || !statSync(file).isFile()) throw new Error();
  } catch {
    response.writeHead(404).end();
    return;
  }
  served.add(name);
  response.writeHead(200, { "Content-Type": kTypes[path.extname(name)] ?? "text/plain" });
  createReadStream(file).pipe(response);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const page = `http://127.0.0.1:${server.address().port}/index.html`;

const driver = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
const port = await new Promise((resolve) => {
  driver.on("error", () => {
    console.log("nibble: skipped, there is no chromedriver here");
    process.exit(77);
  });
  let text = "";
  driver.stdout.on("data", (data) => {
    text += data;
    const found = /successfully on port (\d+)/.exec(text);
    if (found) resolve(Number(found[1]));
  });
});

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
    for (let i = 0; i < 600; ++i) {
      if (await is()) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`waited a minute for ${what}; the page says: ${await shown("error")}`);
  }
  const type = async (element, text) =>
    call("POST", `${session}/element/${element}/value`, { text });
  const answered = (text) => wait(`the answer to "${text}"`, async () =>
    await run("return document.body.dataset.answered") === text);

  await call("POST", `${session}/url`, { url: page });
  await wait("the model", async () => (await shown("status")).includes("ready"));
  check("instruction set", await shown("status"), /WASM/);
  const found = await call("POST", `${session}/element`, { using: "css selector", value: "#prompt" });
  const input = Object.values(found)[0];

  // The answer follows what is typed: to each text the one that it has alone.
  await type(input, "switch on the kitchen light");
  await answered("switch on the kitchen light");
  check("a command", await shown("answer"), "light.on(room=kitchen)");
  await type(input, " and");
  await answered("switch on the kitchen light and");
  await call("POST", `${session}/element/${input}/clear`, {});
  await type(input, "could you please dim the office light to 10 percent");
  await answered("could you please dim the office light to 10 percent");
  check("another", await shown("answer"), "light.set(room=office, level=10)");
  check("its speed", await shown("status"), /^\d+ tokens in [\d.]+ ms: \d+ tokens\/s on WASM$/);
  check("no error", await shown("error"), "");

  let bytes = 0;
  for (const name of served) bytes += gzipSync(readFileSync(path.join(folder, name)), { level: 9 }).length;
  console.log(`with gzip: ${(bytes / 1e6).toFixed(3)} MB of ${[...served].join(", ")}`);
  check("no more than 1.2 MB", bytes <= 1.2e6, true);
} catch (error) {
  console.log(`WRONG: ${error.message}`);
  ++failed;
} finally {
  if (session) await call("DELETE", session).catch(() => {});
  driver.kill();
  server.close();
}
process.exit(failed > 0 ? 1 : 0);
