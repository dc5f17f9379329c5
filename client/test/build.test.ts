/** The built files: what a page gets from the script, what a bundler gets from the module, what a compiler gets from the types. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

import { build } from "esbuild";

const root = process.cwd();
let out: string;

before(async () => {
  out = await mkdtemp(path.join(root, ".test", "built-"));
  const run = spawnSync(process.execPath, ["scripts/build.mjs", out], { cwd: root, encoding: "utf8" });
  assert.equal(run.status, 0, run.stderr);
});
after(() => rm(out, { recursive: true, force: true }));

/** A page with no more than the script needs to load. */
async function page(globals: object = {}, source = "http://site.test/some/prefix/backsync.js?v=1"): Promise<any> {
  const location = { href: "http://site.test/", origin: "http://site.test", protocol: "http:", host: "site.test", hash: "" };
  const document = { currentScript: source === "" ? null : { src: source }, baseURI: location.href, domain: "site.test" };
  const names = { document, location, console, URL, setTimeout, clearTimeout, queueMicrotask, performance, crypto };
  const window: any = vm.createContext({ ...names, addEventListener() {}, removeEventListener() {}, ...globals });
  window.window = window;
  window.self = window;
  vm.runInContext(await readFile(path.join(out, "backsync.js"), "utf8"), window);
  return window;
}

describe("the script", () => {
  it("defines Backsync, Backbone and _, and nothing else", async () => {
    const bare = Object.keys(vm.createContext({ window: 1, self: 1 }));
    const window = await page();
    const fresh = Object.keys(window).filter((name) => !bare.includes(name) && typeof window[name] !== "undefined");
    const given = ["document", "location", "console", "URL", "setTimeout", "clearTimeout", "queueMicrotask", "performance", "crypto"];
    assert.deepEqual(fresh.filter((name) => ![...given, "addEventListener", "removeEventListener"].includes(name)).sort(), ["Backbone", "Backsync", "_"]);
    assert.equal(window.Backbone.VERSION, "1.6.1");
    assert.equal(typeof window.Backbone.Collection.prototype.live, "function");
    assert.equal(window.Backbone.$, undefined);
    assert.equal(typeof window._.map, "function");
  });

  it("connects to the directory that it came from, at first use", async () => {
    const { Backsync } = await page();
    assert.equal(Backsync.connection.url, "http://site.test/some/prefix");
    assert.equal(Backsync.connection.status, "offline");
    assert.equal(Backsync.connection, Backsync.connection);
  });

  it("takes another connection instead", async () => {
    const { Backsync } = await page();
    const other = new Backsync.Connection("/elsewhere");
    Backsync.connection = other;
    assert.equal(Backsync.connection, other);
    assert.equal(other.url, "http://site.test/elsewhere");
  });

  it("says what is missing when it cannot know where it came from", async () => {
    const { Backsync } = await page({}, "");
    assert.throws(() => Backsync.connection, /does not know its server.*Backsync\.connection = Backsync\.connect\("\/backsync"\)/);
  });

  it("leaves a page's own Backbone and _ in place and installs itself into them", async () => {
    class Model {}
    class Collection {
      _reset(): void {}
    }
    const Backbone = { VERSION: "page's own", Model, Collection, sync() {} };
    const own = { isUnderscore: "page's own" };
    const window = await page({ Backbone, _: own });
    assert.equal(window.Backbone, Backbone);
    assert.equal(window._, own);
    assert.equal(typeof (Collection.prototype as any).live, "function");
  });

  it("gives the page's jQuery to Backbone", async () => {
    const jQuery = (): void => {};
    assert.equal((await page({ jQuery })).Backbone.$, jQuery);
  });

  it("loads twice without harm", async () => {
    const window = await page();
    const { Backbone } = window;
    const sync = Backbone.sync;
    vm.runInContext(await readFile(path.join(out, "backsync.js"), "utf8"), window);
    assert.equal(window.Backbone, Backbone);
    assert.equal(Backbone.sync, sync);
  });

  it("logs messages with debug = true", async () => {
    const lines: unknown[][] = [];
    const { Backsync } = await page({ console: { log: (...line: unknown[]) => lines.push(line), warn() {} } });
    assert.equal(Backsync.debug, false);
    Backsync.debug = true;
    Backsync.connection.open();
    Backsync.connection.close();
    assert.deepEqual(lines.map((line) => line.join(" ")), ["backsync · status connecting", "backsync · status closed"]);
  });
});

describe("the module", () => {
  it("loads without Backbone and exports what the types say", async () => {
    const module = await import(pathToFileURL(path.join(out, "backsync.mjs")).href);
    assert.deepEqual(Object.keys(module).sort(), ["BacksyncError", "Connection", "LiveCollection", "connect", "debug", "install", "installLegacyNames"]);
    const text = await readFile(path.join(out, "backsync.mjs"), "utf8");
    assert.equal(/Backbone\.js|_\.VERSION|VERSION="1\.6\.1"/.test(text), false);
  });

  it("has types that stand on their own", async () => {
    const use = `
      import { BacksyncError, connect, Connection, debug, LiveCollection, install, installLegacyNames } from "./backsync.mjs";
      import type { LivePromise, Status, SyncPromise } from "./backsync.mjs";
      const connection: Connection = connect("/backsync", { transport: "websocket", timeout: 1000, token: () => "t" });
      const unbind: () => void = connection.on("status", (status: Status) => status.toUpperCase());
      connection.call("Todo:read", {}, { timeout: 5 }).catch((error: BacksyncError) => error.code);
      declare const Backbone: { VERSION: string; sync: unknown; Model: any; Collection: any };
      const { live } = install(Backbone, connection);
      const promise: LivePromise = live(new Backbone.Collection(), { query: { room: "a" }, rollback: false });
      promise.stop();
      interface Task { id: string; text: string; done?: boolean; rank: number }
      class Note { id = 0; text = ""; }
      type Line = { at: number };
      const tasks = new LiveCollection<Task>(connection, "Task", { sort: (one, other) => one.rank - other.rank, query: undefined, lazy: true });
      tasks.upsert({ text: "Milk" }).then((task) => task.text.length, (error: BacksyncError) => error.code);
      tasks.patch("1", { done: undefined });
      tasks.delete("1");
      const keys: string[] = tasks.records.map(tasks.keyOf);
      new LiveCollection<Note>(connection, "Note").get(1)?.text.length;
      new LiveCollection<Line>(connection, "Line").patch(1, { at: 2 });
      new LiveCollection(connection, "Typing").upsert({});
      // @ts-expect-error: a record of nothing
      tasks.upsert({});
      // @ts-expect-error: no such field
      tasks.upsert({ txt: "Milk" });
      // @ts-expect-error: ids are strings
      tasks.patch(1, { text: "Milk" });
      const strict = new LiveCollection<Task, Pick<Task, "text" | "rank">>(connection, "Task");
      // @ts-expect-error: the page must give a rank
      strict.upsert({ text: "Milk" });
      connection.call<number>("Task:count").then((count) => count.toFixed());
      const shown: string | null = connection.publicId;
      export { keys, shown };
      debug.enabled = true;
      installLegacyNames(Backbone);
      // @ts-expect-error: unknown option
      connect("/", { retries: 3 });
      export { unbind, type SyncPromise };
    `;
    await writeFile(path.join(out, "use.ts"), use);
    // TypeScript looks for the types of x.mjs in x.d.mts; the package's export map needs no such name.
    await writeFile(path.join(out, "backsync.d.mts"), await readFile(path.join(out, "backsync.d.ts"), "utf8"));
    const tsc = path.join(root, "node_modules", "typescript", "bin", "tsc");
    const options = ["--ignoreConfig", "--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "--types", "", "--lib", "es2022,dom"];
    const run = spawnSync(process.execPath, [tsc, ...options, path.join(out, "use.ts")], { encoding: "utf8" });
    assert.equal(run.status, 0, run.stdout + run.stderr);
  });
});

describe("the package", () => {
  let project: string;
  const run = (...args: string[]): void => {
    const done = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8" });
    assert.equal(done.status, 0, done.stdout + done.stderr);
  };
  before(async () => {
    project = await mkdtemp(path.join(root, ".test", "project-"));
    const home = path.join(project, "node_modules", "backsync");
    run("scripts/build.mjs", path.join(project, "served"), path.join(home, "dist"));
    await writeFile(path.join(home, "package.json"), await readFile("package.json", "utf8"));
    await writeFile(path.join(project, "package.json"), '{"type": "module"}');
  });
  after(() => rm(project, { recursive: true, force: true }));

  it("loads in a browser as a bundler without settings puts it together: nothing of Node's is expected there", async () => {
    await writeFile(path.join(project, "m.js"), 'import { connect } from "backsync"; globalThis.connection = connect("/backsync");');
    for (const platform of ["browser", "neutral"] as const) {
      const outfile = path.join(project, `${platform}.js`);
      await build({ absWorkingDir: project, bundle: true, entryPoints: ["m.js"], format: "iife", logLevel: "silent", outfile, platform });
      const location = { href: "http://site.test/", protocol: "http:" };
      const names = { document: { baseURI: location.href, domain: "site.test" }, location, console, URL, setTimeout, clearTimeout, queueMicrotask, performance, crypto };
      const window: any = vm.createContext({ ...names, addEventListener() {}, removeEventListener() {} });
      window.window = window.self = window;
      vm.runInContext(await readFile(outfile, "utf8"), window);
      assert.equal(window.connection.url, "http://site.test/backsync");
      window.connection.close();
    }
  });

  it("compiles with @types/backbone, and with the script's global", async () => {
    await writeFile(path.join(project, "with-backbone.ts"), `
      import Backbone from "backbone";
      import { connect, install, installLegacyNames, type LivePromise } from "backsync";
      import type {} from "backsync/backbone";

      install(Backbone, connect("/backsync"));
      installLegacyNames(Backbone);
      class Todo extends Backbone.Model<{ text: string; done: boolean }> {}
      class Todos extends Backbone.Collection<Todo> {
        url = "/Todo";
        model = Todo;
      }
      const todos = new Todos();
      const live: LivePromise<Todos> = todos.live({ query: { room: "a" }, destroy: true });
      live.then((filled) => filled.at(0).get("text")?.toUpperCase());
      live.stop();
      todos.backsync = connect("/other");
      todos.rollback = false;
      todos.syncBind("typing", (who, { seq }) => console.log(who, seq)).syncUnbind("typing").syncUnbind();
      const waiting: number = todos.syncPending() + new Todo().syncPending();
      const lines = new (Backbone.Collection.extend({ url: "/Line", backsync: true }))();
      // @ts-expect-error: no such option
      todos.live({ quer: {} });
      export { waiting, lines };
    `);
    await writeFile(path.join(project, "with-script.ts"), `
      import type {} from "backsync/global";

      Backsync.persist = "ada";
      Backsync.debug = true;
      Backsync.connection = Backsync.connect("/backsync");
      Backsync.connection.on("status", (status) => status.toUpperCase());
      new Backsync.LiveCollection(Backsync.connection, "Todo").close();
      // @ts-expect-error: no text
      Backsync.debug = "yes";
    `);
    const tsc = path.join(root, "node_modules", "typescript", "bin", "tsc");
    const options = ["--ignoreConfig", "--noEmit", "--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "--types", "", "--lib", "es2022,dom", "--skipLibCheck"];
    run(tsc, ...options, path.join(project, "with-backbone.ts"), path.join(project, "with-script.ts"));
  });

  it("loads in Node, as where a server renders pages, and says there what a page would not have to say", async () => {
    await writeFile(path.join(project, "n.js"), 'import { connect } from "backsync"; try { connect("/backsync"); } catch (error) { console.log(error.message); }');
    const { stdout } = spawnSync(process.execPath, [path.join(project, "n.js")], { encoding: "utf8" });
    assert.match(stdout, /"\/backsync" is relative, and outside of a page .* Pass an absolute URL/);
  });
});

describe("the directory", () => {
  it("has exactly what is served, every source map, and the licences of what is built in", async () => {
    const names = (await readdir(out)).filter((name) => !["use.ts", "backsync.d.mts"].includes(name));
    assert.deepEqual(names.sort(), ["LICENSES.txt", "backsync.d.ts", "backsync.js", "backsync.js.map", "backsync.mjs", "backsync.mjs.map", "sockjs.js"]);
    const licences = await readFile(path.join(out, "LICENSES.txt"), "utf8");
    for (const name of ["backbone", "underscore", "sockjs-client", "url-parse"]) assert.match(licences, new RegExp(`== ${name} [^]*(Copyright|\\(c\\))`, "i"));
    assert.equal((await readFile(path.join(out, "sockjs.js"), "utf8")).includes("sourceMappingURL"), false);
  });

  it("is the same at each build, and tells nothing of the machine that built it", async () => {
    const again = await mkdtemp(path.join(root, ".test", "again-"));
    try {
      assert.equal(spawnSync(process.execPath, ["scripts/build.mjs", again], { cwd: root }).status, 0);
      for (const name of await readdir(again)) {
        const text = await readFile(path.join(again, name), "utf8");
        assert.equal(text, await readFile(path.join(out, name), "utf8"), name);
        assert.equal(text.includes(root), false, name);
      }
    } finally {
      await rm(again, { recursive: true, force: true });
    }
  });

  it("is small", async () => {
    const limits: Record<string, number> = { "backsync.js": 180_000, "backsync.mjs": 127_000 };
    for (const [name, limit] of Object.entries(limits)) assert.ok((await readFile(path.join(out, name))).length < limit, name);
  });
});
