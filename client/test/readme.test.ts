/** The README's code runs: every block, in a page made of the built script. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import path from "node:path";
import { it } from "node:test";
import vm from "node:vm";

import { FakeServer, type Sent, settle } from "./fakes.js";

function unanswered(server: FakeServer): Sent[] {
  return server.sockets.length === 0 ? [] : server.socket.take().filter(({ event }) => /:(upsert|patch)$/.test(event));
}

it("the README's code blocks run, one after the other", async () => {
  const out = await mkdtemp(path.join(process.cwd(), ".test", "readme-"));
  try {
    assert.equal(spawnSync(process.execPath, ["scripts/build.mjs", out]).status, 0);
    const source = { src: "http://site.test/backsync/backsync.js" };
    const document = { currentScript: source, baseURI: "http://site.test/", domain: "site.test", title: "" };
    const location = { href: "http://site.test/", protocol: "http:" };
    const shared = { console, URL, setTimeout, clearTimeout, queueMicrotask, performance, crypto };
    const quiet = { ...shared, console: { ...console, log() {} } };
    const window: any = vm.createContext({ ...quiet, document, location, addEventListener() {}, removeEventListener() {} });
    window.window = window.self = window;
    vm.runInContext(await readFile(path.join(out, "backsync.js"), "utf8"), window);
    const server = new FakeServer();
    window.Backsync.connection = new window.Backsync.Connection("/backsync", {}, server.host, server.open);

    const readme = await readFile("README.md", "utf8");
    const scripts = [...readme.matchAll(/```html\n([^]*?)```/g)].flatMap(([, html]) => [...html!.matchAll(/<script>([^]*?)<\/script>/g)]);
    const blocks = [...scripts, ...readme.matchAll(/```js\n([^]*?)```/g)].map(([, code]) => code!);
    assert.equal(blocks.length, 15);
    for (const code of blocks) {
      if (code.startsWith("import")) {
        for (const [, names] of code.matchAll(/import \{ ([^}]*) \} from "backsync"/g)) {
          for (const name of names!.split(", ")) assert.equal(typeof window.Backsync[name], "function", name);
        }
        continue;
      }
      vm.runInContext(code, window);
      if (server.sockets.length > 0 && window.Backsync.connection.status === "connecting") await server.accept();
      await settle();
      // Later writes of a record wait for these answers.
      for (let writes = unanswered(server); writes.length > 0; writes = unanswered(server)) {
        for (const write of writes) await server.socket.reply(write, { id: 1, ...write.data });
      }
    }
    const sent = server.socket.sent.map((message) => message.event);
    assert.deepEqual(sent, [
      "$:hello",
      "Todo:upsert",
      "Todo:subscribe",
      "ChatMessage:subscribe",
      "ChatMessage:unsubscribe",
      "Todo:upsert",
      "Todo:patch",
      "Todo:read",
      "Todo:patch",
      "Todo:upsert",
      "Todo:upsert",
      "Account:pay",
      "Task:subscribe",
      "Task:upsert",
      "Task:unsubscribe",
      "Line:subscribe",
      "Line:unsubscribe",
      "Line:subscribe",
      "Line:unsubscribe",
      "ChatMessage:subscribe",
      "ChatMessage:typing",
      "ChatMessage:unsubscribe",
      "Note:subscribe",
      "Note:unsubscribe",
      "Todo:clear",
    ]);
    assert.deepEqual(server.host.reported, []);
    window.Backsync.connection.close();
    await settle();
  } finally {
    await rm(out, { recursive: true, force: true });
  }
});
