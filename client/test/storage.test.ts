/** The outbox in a real browser's IndexedDB: reloads, several pages at once, browsers that keep nothing. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { it } from "node:test";

import { build } from "esbuild";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
/** On a busy machine a browser takes seconds to start; what is awaited in it, and never comes, ends here. */
const DEADLINE_MS = 60_000;
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** In a frame of its own: a page whose server is a few lines. `hash` says what it does; it tells the frame around it. */
const FRAME = `<!doctype html><script type="module">
import { Connection } from "/client.js";
const { name, online, answer, edits, without, mount = "/backsync" } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const tell = (message) => parent.postMessage(message, "*");
if (without === "locks") Object.defineProperty(navigator, "locks", { value: undefined });
const never = () => new Promise(() => {});
const refuse = () => { throw new DOMException("not here", "SecurityError"); };
if (without === "answers") indexedDB.open = () => ({});
if (without === "transactions") IDBDatabase.prototype.transaction = () => ({ objectStore: () => ({ getAll: () => ({}), put: () => ({}), delete: () => ({}) }) });
if (without === "puts") IDBObjectStore.prototype.put = function () { return this.transaction.abort(), {}; };
if (without === "stored") {
  const { transaction } = IDBDatabase.prototype; // reading works, and storing never ends
  IDBDatabase.prototype.transaction = function (names, mode) {
    const real = transaction.call(this, names, mode);
    return mode === "readonly" ? real : { objectStore: () => ({ getAll: () => real.objectStore(names).getAll(), put: () => ({}), delete: () => ({}) }) };
  };
}
if (without === "locking") navigator.locks.request = never;
if (without === "session") Object.defineProperty(window, "sessionStorage", { get: refuse });
if (without === "everything") {
  for (const thing of ["sessionStorage", "indexedDB", "BroadcastChannel"]) Object.defineProperty(window, thing, { get: refuse });
  Object.defineProperty(navigator, "locks", { value: { request: refuse, query: never } });
}
if (without === "indexedDB") indexedDB.open = () => { throw new DOMException("not here", "SecurityError"); };
console.warn = (...warning) => tell({ warning: warning.join(" ") });
let onOnline;
const open = (url, options, handlers) => {
  onOnline = () => handlers.open("fake");
  if (online) setTimeout(onOnline);
  return {
    send(text) {
      const message = JSON.parse(text);
      tell({ sent: text });
      if (message.event === "$:hello" || answer) queueMicrotask(() => handlers.message(JSON.stringify({ id: message.id, event: message.event, data: {} })));
    },
    close() {},
  };
};
const connection = new Connection(mount, { persist: name }, undefined, open);
connection.on("pending", (pending) => tell({ pending }));
for (const [event, data] of edits ?? []) connection.call(event, data).catch(() => {});
const rows = () => new Promise((resolve) => {
  const request = indexedDB.open("backsync:" + name);
  request.onsuccess = () => {
    const all = request.result.transaction("writes").objectStore("writes").getAll();
    all.onsuccess = () => { request.result.close(); resolve(all.result); };
  };
});
addEventListener("message", async ({ data }) => {
  if (data === "rows") tell({ rows: await rows() });
  if (data === "close" || data === "discard") connection[data]();
  if (data === "open") connection.open();
  if (data === "delete") {
    const request = indexedDB.deleteDatabase("backsync:" + name);
    request.onsuccess = () => tell({ deleted: true });
    request.onblocked = () => tell({ blocked: true });
  }
  if (data === "edit") connection.call("Todo:upsert", { id: 7, late: true }).catch(() => {});
});
connection.open();
tell({ ready: true });
</script>`;

/** The frame around: plays the cases, sends the results. Each waits for what it expects, for as long as the test lets it. */
const DRIVER = `<!doctype html><script type="module">
function frame(options) {
  const element = document.createElement("iframe");
  const messages = [];
  const waiting = new Set();
  addEventListener("message", (event) => {
    if (event.source !== element.contentWindow) return;
    messages.push(event.data);
    for (const check of waiting) check();
  });
  element.src = "/frame#" + encodeURIComponent(JSON.stringify(options));
  document.body.append(element);
  return {
    until: (condition) => new Promise((resolve) => {
      const check = () => condition(messages) && (waiting.delete(check), resolve(messages));
      waiting.add(check);
      check();
    }),
    async rows(count) {
      for (;;) {
        const before = messages.length;
        element.contentWindow.postMessage("rows", "*");
        await this.until((all) => all.slice(before).some((message) => message.rows));
        const { rows } = messages.slice(before).find((message) => message.rows);
        if (rows.length === count) return rows;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    },
    writes: () => messages.filter((message) => message.sent).map((message) => JSON.parse(message.sent)).filter((message) => message.event !== "$:hello"),
    client: () => messages.filter((message) => message.sent).map((message) => JSON.parse(message.sent)).find((message) => message.event === "$:hello")?.data.client,
    say: (command) => element.contentWindow.postMessage(command, "*"),
    all: messages,
    close: () => element.remove(),
  };
}
const ready = (all) => all.some((message) => message.ready);
const sent = (count) => (all) => all.filter((message) => message.sent).length > count; // and the greeting
const edits = [["Todo:upsert", { id: 1, n: 1 }], ["Todo:upsert", { id: 1, n: 2 }], ["Todo:upsert", { text: "new" }]];

async function reload(name, without) {
  const before = frame({ name, edits, without });
  await before.until(ready);
  const rows = await before.rows(2);
  before.close();
  const unanswered = frame({ name, online: true, without });
  await unanswered.until(sent(2));
  unanswered.close();
  const after = frame({ name, online: true, answer: true, without });
  await after.until(sent(2));
  await after.rows(0);
  after.close();
  return { rows, first: unanswered.writes(), again: after.writes(), clients: [...new Set([rows[0].client, unanswered.client(), after.client()])].length };
}

async function together() {
  const name = "together";
  const one = frame({ name, edits: edits.slice(0, 1) });
  await one.until(ready);
  await one.rows(1);
  const two = frame({ name, online: true, answer: true, edits: [["Todo:upsert", { id: 2 }]] });
  await two.until(sent(1));
  const alone = two.writes();
  one.close();
  await two.until(sent(2));
  await two.rows(0);
  two.close();
  return { alone, inherited: two.writes().slice(1) };
}

/** A tab that was open before another one came, and wrote, and was closed. */
async function inherited() {
  const name = "inherited";
  const open = frame({ name, online: true, answer: true });
  await open.until(sent(0));
  const other = frame({ name, edits: edits.slice(0, 1) });
  await other.until(ready);
  await other.rows(1);
  const alone = open.writes();
  other.close();
  await open.until(sent(1));
  await open.rows(0);
  open.close();
  return { alone, writes: open.writes() };
}

/** A creation that may have reached the server goes out again under the client id that it was sent with, and no other. */
async function doubtful() {
  const name = "doubtful";
  const open = frame({ name, online: true, answer: true });
  await open.until(sent(0));
  const other = frame({ name, online: true, edits });
  await other.until(sent(2));
  await other.rows(2);
  other.close();
  await open.until(sent(1));
  const left = await open.rows(1);
  const next = frame({ name, online: true, answer: true });
  await next.until(sent(1));
  await next.rows(0);
  next.close();
  open.close();
  return { open: open.writes(), left: left.map(({ text }) => JSON.parse(text).data), next: next.writes(), clients: [next.client() === other.client(), next.client() === open.client()] };
}

/** Pages of one origin and one name, each with a server of its own. */
async function servers() {
  const name = "servers";
  const one = frame({ name, mount: "/one", edits: edits.slice(0, 1) });
  await one.until(ready);
  await one.rows(1);
  one.close();
  const two = frame({ name, mount: "/two", online: true, answer: true, edits: [["Todo:upsert", { id: 2 }]] });
  await two.until((all) => sent(1)(all) && all.at(-1).pending === 0);
  const left = await two.rows(1);
  const again = frame({ name, mount: "/one", online: true, answer: true });
  await again.until(sent(1));
  await again.rows(0);
  again.close();
  two.close();
  return { two: two.writes(), left: left.map(({ text }) => JSON.parse(text).data), again: again.writes(), clients: [left[0].client === again.client(), again.client() === two.client()] };
}

/** A page that wipes its origin when somebody signs out. */
async function wiped(command) {
  const name = "wiped-" + command;
  const page = frame({ name, online: true, edits: edits.slice(0, 1) });
  await page.until(sent(1));
  await page.rows(1);
  page.say(command);
  page.say("delete");
  await page.until((all) => all.some((message) => message.deleted));
  page.say("open");
  page.say("edit");
  await page.until((all) => all.some((message) => message.sent?.includes("late"))); // what is sent is stored
  const rows = await page.rows(1);
  page.close();
  return { blocked: page.all.some((message) => message.blocked), warned: page.all.some((message) => message.warning), rows: rows.map(({ text }) => JSON.parse(text).data.id) };
}

async function nothingKept(without) {
  const page = frame({ name: "nothing-" + without, online: true, answer: true, edits, without });
  await page.until((all) => all.at(-1)?.pending === 0 && sent(2)(all));
  page.close();
  return { writes: page.writes(), warnings: page.all.filter((message) => message.warning).map((message) => message.warning) };
}

const results = await (async () => {
  try {
    const steps = {};
    const names = ["transactions", "puts", "stored", "locking", "session", "everything"];
    await Promise.all(names.map(async (name) => (steps[name] = await nothingKept(name))));
    const more = { steps, inherited: await inherited(), doubtful: await doubtful(), servers: await servers(), closed: await wiped("close"), discarded: await wiped("discard") };
    return { ...more, reload: await reload("reload"), withoutLocks: await reload("bare", "locks"), together: await together(), nothingKept: await nothingKept("indexedDB"), noAnswer: await nothingKept("answers") };
  } catch (error) {
    return { error: String(error) };
  }
})();
await fetch("/results", { method: "POST", body: JSON.stringify(results) });
</script><body></body>`;

it("outlives pages, is sent once by several of them, and is done without where it must", { skip: !existsSync(CHROMIUM) && "no Chromium" }, async () => {
  const out = await mkdtemp(path.join(process.cwd(), ".test", "storage-"));
  const options = { bundle: true, define: { global: "globalThis" }, format: "esm", logLevel: "warning", platform: "browser" } as const;
  await build({ ...options, entryPoints: ["src/index.ts"], outfile: path.join(out, "client.js") });
  const client = await readFile(path.join(out, "client.js"));
  let done: (results: any) => void = () => {};
  const finished = new Promise<any>((resolve) => (done = resolve));
  const server = createServer((request, response) => {
    const [type, body] = request.url === "/client.js" ? ["text/javascript", client] : ["text/html", request.url === "/frame" ? FRAME : DRIVER];
    if (request.method === "POST") {
      let text = "";
      request.on("data", (part) => (text += part)).on("end", () => done(JSON.parse(text)));
    }
    response.writeHead(200, { "Content-Type": type as string }).end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${path.join(out, "profile")}`, url], { detached: true, stdio: "ignore" });
  const ended = new Promise((resolve) => browser.on("exit", resolve));
  let deadline: NodeJS.Timeout | undefined;
  try {
    const ending = ended.then(() => assert.fail("the browser has ended"));
    const late = new Promise<never>((_, reject) => (deadline = setTimeout(() => reject(new Error(`no results within ${DEADLINE_MS / 1000} s`)), DEADLINE_MS)));
    const results = await Promise.race([finished, ending, late]);
    assert.equal(results.error, undefined);
    for (const { rows, first, again, clients } of [results.reload, results.withoutLocks]) {
      assert.deepEqual(rows.map((row: any) => row.sent), [false, false]);
      assert.deepEqual(first.map((message: any) => message.data), [{ id: 1, n: 2 }, { text: "new" }]);
      assert.deepEqual(again, first);
      assert.equal(clients, 1);
    }
    assert.deepEqual(results.together.alone.map((message: any) => message.data), [{ id: 2 }]);
    assert.deepEqual(results.together.inherited.map((message: any) => message.data), [{ id: 1, n: 1 }]);
    assert.deepEqual(results.inherited.alone, []);
    assert.deepEqual(results.inherited.writes.map((message: any) => message.data), [{ id: 1, n: 1 }]);
    assert.deepEqual(results.doubtful.open.map((message: any) => message.data.id), [1]);
    assert.deepEqual(results.doubtful.left, [{ text: "new" }]);
    assert.deepEqual(results.doubtful.next.map((message: any) => message.data), [{ text: "new" }]);
    assert.deepEqual(results.doubtful.clients, [true, false]);
    assert.deepEqual(results.servers.two.map((message: any) => message.data), [{ id: 2 }]);
    assert.deepEqual(results.servers.left, [{ id: 1, n: 1 }]);
    assert.deepEqual(results.servers.again.map((message: any) => message.data), [{ id: 1, n: 1 }]);
    assert.deepEqual(results.servers.clients, [true, false]);
    for (const wiped of [results.closed, results.discarded]) assert.deepEqual([wiped.blocked, wiped.warned, wiped.rows], [false, false, [7]]);
    for (const [step, { writes, warnings }] of Object.entries<any>(results.steps)) {
      assert.deepEqual(writes.map((message: any) => message.data), [{ id: 1, n: 2 }, { text: "new" }], step);
      assert.equal(warnings.length, step === "session" ? 0 : 1, `${step}: ${warnings.join()}`);
    }
    for (const [result, why] of [[results.nothingKept, /not here/], [results.noAnswer, /did not open in 3000 ms/]]) {
      assert.deepEqual(result.writes.map((message: any) => message.data), [{ id: 1, n: 2 }, { text: "new" }]);
      assert.equal(result.warnings.length, 1);
      assert.match(result.warnings[0], /unsent writes do not survive this page/);
      assert.match(result.warnings[0], why);
    }
  } finally {
    clearTimeout(deadline);
    if (browser.exitCode === null) process.kill(-browser.pid!, "SIGKILL");
    await ended;
    server.closeAllConnections();
    server.close();
    await rm(out, { recursive: true, force: true, maxRetries: 5 });
  }
});
