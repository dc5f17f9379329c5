/** What Backbone demands of a `sync`: run by the real Backbone, line by line of its contract. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { afterEach, beforeEach, describe, it, mock } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import type { SyncPromise } from "../src/backbone/sync.js";
import { BacksyncError } from "../src/errors.js";
import type { Connection } from "../src/connection.js";
import { connected, type FakeServer, type FakeSocket, settle, type VirtualHost } from "./fakes.js";

let server: FakeServer;
let connection: Connection;
let socket: FakeSocket;
let host: VirtualHost;
const restCalls: unknown[][] = [];
const rest = (...call: unknown[]): string => {
  restCalls.push(call);
  return "rest";
};
Backbone.sync = rest;
const installed = install(Backbone, () => connection);

const Todo = Backbone.Model.extend({ urlRoot: "/Todo", backsync: true });
const Todos = Backbone.Collection.extend({ model: Todo, url: "/Todo", backsync: true });

/** The names of the events of a model or collection, in order. */
function events(subject: any): string[] {
  const names: string[] = [];
  subject.on("all", (name: string) => names.push(name));
  return names;
}

let unhandled: unknown[];
const onUnhandled = (reason: unknown): void => void unhandled.push(reason);
beforeEach(async () => {
  ({ server, connection, socket, host } = await connected());
  restCalls.length = 0;
  unhandled = [];
  process.on("unhandledRejection", onUnhandled);
});
afterEach(async () => {
  await settle();
  process.off("unhandledRejection", onUnhandled);
  assert.deepEqual(unhandled, []);
  assert.deepEqual(host.reported, []);
});

describe("which models are synced", () => {
  it("others keep Backbone's own sync, with all its arguments", () => {
    const options = { data: 1 };
    const model = new Backbone.Model() as any;
    assert.equal(model.sync("read", model, options), "rest");
    assert.deepEqual(restCalls, [["read", model, options]]);
    assert.deepEqual(socket.take(), []);
  });

  it("a model follows its collection, and may say otherwise", () => {
    const todos = new Todos() as any;
    const follower = todos.add(new Backbone.Model({ id: 1 }));
    follower.save();
    const refuser = todos.add(new (Backbone.Model.extend({ backsync: false }))({ id: 2 }));
    refuser.save();
    assert.deepEqual(socket.take().map((message) => message.data.id), [1]);
    assert.equal(restCalls.length, 1);
  });

  it("an instance, a class, or one with sync of its own", () => {
    const one = new Backbone.Model({ id: 1 }) as any;
    one.url = "/One/1";
    one.backsync = true;
    one.fetch();
    const own = new (Backbone.Model.extend({ url: "/Own", sync: installed.sync as any, backsync: true }))() as any;
    own.fetch();
    assert.deepEqual(socket.take().map((message) => message.event), ["One:read", "Own:read"]);
  });

  it("over a connection of its own", async () => {
    const other = await connected();
    const model = new Todo({ id: 1 }) as any;
    model.backsync = other.connection;
    model.fetch();
    assert.deepEqual(socket.take(), []);
    other.socket.takeOne("Todo:read");
  });

  it("all of them where asked for, and Backbone is as before after uninstall", () => {
    const require = createRequire(import.meta.url);
    delete require.cache[require.resolve("backbone")];
    const Fresh = require("backbone");
    const before = { sync: Fresh.sync, reset: Fresh.Collection.prototype._reset };
    const own = install(Fresh, connection, { all: true });
    assert.equal(install(Fresh, connection), own); // twice is once
    const model = new (Fresh.Model.extend({ urlRoot: "/All" }))();
    model.save();
    socket.takeOne("All:upsert");
    model.backsync = false;
    assert.throws(() => model.save(), { code: "usage", message: /ajax.*Add backsync: true, or load jQuery/ }); // Backbone's own way
    Fresh.ajax = () => "a request of its own";
    assert.equal(model.fetch(), "a request of its own");
    own.uninstall();
    assert.equal(Fresh.sync, before.sync);
    assert.equal(Fresh.Collection.prototype._reset, before.reset);
    assert.equal(Fresh.Collection.prototype.live, undefined);
  });
});

describe("urls", () => {
  for (const [name, url, event] of [
    ["with a slash", "/Todo", "Todo:read"],
    ["without a slash", "Todo", "Todo:read"],
    ["with more behind", "/Todo/deep/er?x=1", "Todo:read"],
    ["with a host", "https://example.test/Todo", "Todo:read"],
    ["with an escaped letter", "/T%6Fdo", "Todo:read"],
  ] as const) {
    it(name, () => {
      const todos = new Todos() as any;
      todos.url = url;
      todos.fetch();
      socket.takeOne(event);
    });
  }

  it("functions: url, urlRoot, and an option that wins over both", () => {
    const a = new (Todo.extend({ url: () => "/A" }))() as any;
    const b = new (Todo.extend({ urlRoot: () => "/B" }))({ id: 0 }) as any;
    a.fetch();
    b.fetch();
    b.fetch({ url: "/C/0" });
    assert.deepEqual(socket.take().map((message) => message.event), ["A:read", "B:read", "C:read"]);
  });

  it("a missing one throws at once, as Backbone does", () => {
    const model = new Backbone.Model() as any;
    model.backsync = true;
    assert.throws(() => model.fetch(), /^Error: A "url" property or function must be specified$/);
    const todos = new Todos() as any;
    todos.url = undefined;
    assert.throws(() => todos.fetch(), /A "url" property or function must be specified/);
  });

  it("one that names no model says what it should look like", () => {
    const todos = new Todos() as any;
    todos.url = "/5/Todo";
    assert.throws(() => todos.fetch(), /"\/5\/Todo" names no model.*"\/Todo"/);
  });
});

describe("what is sent", () => {
  it("create: the attributes, no id", () => {
    new Todo().save({ text: "a" });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "a" });
  });

  it("update: all attributes", () => {
    new Todo({ id: 1, text: "a" }).save({ done: true });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 1, text: "a", done: true });
  });

  it("wait: true: the attributes that save() was given, though the model has not got them yet", () => {
    const model = new Todo({ id: 1, text: "a" }) as any;
    model.save({ text: "b" }, { wait: true });
    assert.equal(model.get("text"), "a");
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 1, text: "b" });
  });

  it("patch: only what was given, and the id", () => {
    new Todo({ id: 1, text: "a", done: false }).save({ done: true }, { patch: true });
    assert.deepEqual(socket.takeOne("Todo:patch").data, { id: 1, done: true });
  });

  it("patch: attributes set to undefined are named, JSON would lose them", () => {
    new Todo({ id: 1, text: "a", due: 5 }).save({ due: undefined, text: "b" }, { patch: true });
    const sent = socket.takeOne("Todo:patch");
    assert.deepEqual(sent.data, { id: 1, text: "b" });
    assert.deepEqual(sent.unset, ["due"]);
  });

  it("patch on a new model: a whole record", () => {
    new Todo({ text: "a" }).save({ done: true }, { patch: true });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "a", done: true });
  });

  it("delete: the id", () => {
    new Todo({ id: 1, text: "a" }).destroy();
    assert.deepEqual(socket.takeOne("Todo:delete").data, { id: 1 });
  });

  it("fetch of a model: its id; of a new one: nothing", () => {
    new Todo({ id: 7, text: "a" }).fetch();
    assert.deepEqual(socket.takeOne("Todo:read").data, { id: 7 });
    new Todo().fetch();
    assert.equal("data" in socket.takeOne("Todo:read"), false);
  });

  it("fetch of a collection: the query, or nothing", () => {
    const todos = new Todos() as any;
    todos.fetch({ data: { done: false } });
    assert.deepEqual(socket.takeOne("Todo:read").data, { done: false });
    todos.fetch();
    assert.equal("data" in socket.takeOne("Todo:read"), false);
  });

  /** The next message is a write with this data; it is accepted. */
  async function answer(event: string, data: object): Promise<void> {
    const sent = socket.takeOne(event);
    assert.deepEqual(sent.data, data);
    await socket.reply(sent, sent.data);
  }

  it("options.data wins wherever it is not null", async () => {
    const model = new Todo({ id: 1, text: "a" }) as any;
    model.save(null, { data: { id: 1, only: "this" } });
    await answer("Todo:upsert", { id: 1, only: "this" });
    model.save(null, { data: null });
    await answer("Todo:upsert", { id: 1, text: "a", only: "this" });
    model.destroy({ data: { id: 1, why: "done" } });
    assert.deepEqual(socket.takeOne("Todo:delete").data, { id: 1, why: "done" });
  });

  it("options.attrs, and a toJSON of the model's own with the options", () => {
    new Todo({ id: 1, text: "a" }).save(null, { attrs: { id: 1, x: 2 } } as any);
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 1, x: 2 });
    const Own = Todo.extend({
      toJSON(options: any) {
        return { note: options.note };
      },
    });
    new Own({ id: 3 }).save(null, { note: "hello" } as any);
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 3, note: "hello" });
  });

  it("0 and '' are ids", async () => {
    for (const id of [0, ""]) {
      const model = new Todo({ id, text: "a" }) as any;
      assert.equal(model.isNew(), false);
      model.save({ done: true }, { patch: true });
      await answer("Todo:patch", { id, done: true });
      model.fetch();
      assert.deepEqual(socket.takeOne("Todo:read").data, { id });
      model.destroy();
      assert.deepEqual(socket.takeOne("Todo:delete").data, { id });
    }
  });

  it("another idAttribute goes under its own name and under the wire's", async () => {
    const Mongo = Todo.extend({ idAttribute: "_id" });
    const model = new Mongo({ _id: "x", text: "a" }) as any;
    model.save({ text: "b" }, { patch: true });
    await answer("Todo:patch", { id: "x", _id: "x", text: "b" });
    model.destroy();
    assert.deepEqual(socket.takeOne("Todo:delete").data, { id: "x", _id: "x" });
    const fresh = new Mongo({ text: "a" }) as any;
    fresh.save();
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "a" });
  });
});

describe("answers", () => {
  it("success once, never before save() has returned, with model, response and options", async () => {
    const model = new Todo() as any;
    const seen: unknown[][] = [];
    const options = { success: (...details: unknown[]) => seen.push(details), mark: "mine" };
    model.save({ text: "a" }, options);
    assert.equal(seen.length, 0);
    const sent = socket.takeOne("Todo:upsert");
    await socket.reply(sent, { id: 1, text: "A" });
    await socket.reply(sent, { id: 2, text: "B" });
    assert.equal(seen.length, 1);
    assert.equal(seen[0]?.[0], model);
    assert.deepEqual(seen[0]?.[1], { id: 1, text: "A" });
    assert.equal((seen[0]?.[2] as any).mark, "mine");
    assert.deepEqual(model.attributes, { id: 1, text: "A" });
  });

  it("error once, with the error", async () => {
    const model = new Todo({ id: 1 }) as any;
    const seen: any[][] = [];
    const names = events(model);
    model.save({ text: "a" }, { error: (...details: unknown[]) => seen.push(details) });
    const sent = socket.takeOne("Todo:upsert");
    await socket.refuse(sent, "forbidden");
    await socket.refuse(sent, "forbidden");
    assert.equal(seen.length, 1);
    assert.equal(seen[0]?.[0], model);
    assert.ok(seen[0]?.[1] instanceof BacksyncError);
    assert.equal(names.filter((name) => name === "error").length, 1);
    assert.equal(names.includes("sync"), false);
  });

  it("are asynchronous even where the error is known at once", async () => {
    connection.close();
    const model = new Todo({ id: 1 }) as any;
    let failed = false;
    model.fetch({ error: () => (failed = true) });
    assert.equal(failed, false);
    await settle();
    assert.equal(failed, true);
  });

  it("promise: resolves with the response, rejects with the error, needs nobody to listen", async () => {
    const model = new Todo({ id: 1 }) as any;
    const good: SyncPromise = model.fetch();
    await socket.reply(socket.takeOne("Todo:read"), { id: 1, text: "a" });
    assert.deepEqual(await good, { id: 1, text: "a" });
    const bad: SyncPromise = model.fetch();
    await socket.refuse(socket.takeOne("Todo:read"), "not_found");
    await assert.rejects(bad, { code: "not_found" });
    model.fetch();
    await socket.refuse(socket.takeOne("Todo:read"), "not_found"); // afterEach looks for unhandled rejections
  });

  it("abort: error with `aborted`, once, and a late answer is ignored", async () => {
    const model = new Todo({ id: 1, text: "a" }) as any;
    const codes: string[] = [];
    const promise: SyncPromise = model.save({ text: "b" }, { error: (_: unknown, error: BacksyncError) => codes.push(error.code) });
    const sent = socket.takeOne("Todo:upsert");
    promise.abort();
    promise.abort();
    assert.deepEqual(codes, []);
    await settle();
    await socket.reply(sent, { id: 1, text: "late" });
    assert.deepEqual(codes, ["aborted"]);
    assert.equal(model.get("text"), "b");
  });

  it("options.xhr is the promise, and `request` is triggered by sync itself", () => {
    const model = new Todo({ id: 1 }) as any;
    let seen: any[] = [];
    model.on("request", (...details: unknown[]) => (seen = details));
    const promise = model.fetch();
    assert.equal(seen[0], model);
    assert.equal(seen[1], promise);
    assert.equal(seen[2].xhr, promise);
    assert.equal(typeof promise.then, "function");
    assert.equal(typeof promise.catch, "function");
    assert.equal(typeof promise.abort, "function");
  });

  it("sync works without options, too", async () => {
    const model = new Todo({ id: 1 }) as any;
    const promise = model.sync("read", model);
    await socket.reply(socket.takeOne("Todo:read"), { id: 1, text: "x" });
    assert.deepEqual(await promise, { id: 1, text: "x" });
    assert.equal(model.get("text"), undefined); // nothing is set but by the wrapped callbacks
  });

  it("time out after options.timeout milliseconds", async () => {
    const model = new Todo({ id: 1 }) as any;
    const promise = model.fetch({ timeout: 50 });
    await host.advance(50);
    await assert.rejects(promise, { code: "timeout" });
  });
});

describe("events and options of Backbone that survive", () => {
  it("the order of a plain save: change, request, the server's change, sync", async () => {
    const model = new Todo({ id: 1 }) as any;
    const names = events(model);
    model.save({ text: "a" });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "a", rev: 2 });
    assert.deepEqual(names, ["change:text", "change", "request", "change:rev", "change", "sync"]);
  });

  it("wait: the change comes with the answer", async () => {
    const model = new Todo({ id: 1, text: "a" }) as any;
    const names = events(model);
    model.save({ text: "b" }, { wait: true });
    assert.deepEqual(names, ["request"]);
    await socket.reply(socket.takeOne("Todo:upsert"), {});
    assert.equal(model.get("text"), "b");
    assert.deepEqual(names, ["request", "change:text", "change", "sync"]);
  });

  it("an answer that fails validate: `invalid`, no `sync`", async () => {
    const Strict = Todo.extend({ validate: (attributes: any) => (attributes.text === "bad" ? "bad text" : undefined) });
    const model = new Strict({ id: 1, text: "a" }) as any;
    const names = events(model);
    model.save({ text: "b" });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "bad" });
    assert.equal(names.includes("invalid"), true);
    assert.equal(names.includes("sync"), false);
    assert.equal(model.get("text"), "b");
    assert.equal(model.save({ text: "bad" }), false);
    assert.deepEqual(socket.take(), []);
  });

  it("silent, context, parse and parse: false, unknown options", async () => {
    const Parsing = Todo.extend({ parse: (response: any) => response.wrapped ?? response });
    const model = new Parsing({ id: 1 }) as any;
    const context = {};
    let seen: unknown;
    model.fetch({
      context,
      success(this: unknown, _: unknown, __: unknown, options: any) {
        seen = [this, options.note];
      },
      note: "mine",
    });
    await socket.reply(socket.takeOne("Todo:read"), { wrapped: { id: 1, text: "a" } });
    assert.deepEqual(seen, [context, "mine"]);
    assert.equal(model.get("text"), "a");
    model.fetch({ parse: false });
    await socket.reply(socket.takeOne("Todo:read"), { wrapped: 5 });
    assert.equal(model.get("wrapped"), 5);
    const names = events(model);
    model.save({ text: "b" }, { silent: true });
    await socket.reply(socket.takeOne("Todo:upsert"), { wrapped: { id: 1, text: "c" } });
    assert.equal(names.includes("change"), false);
    assert.equal(model.get("text"), "c");
  });

  it("a parse of the instance's own is still there afterwards, and called once per answer", async () => {
    const model = new Todo({ id: 1 }) as any;
    let calls = 0;
    const own = (response: any): any => ((calls += 1), response);
    model.parse = own;
    model.fetch();
    await socket.reply(socket.takeOne("Todo:read"), { id: 1 });
    model.save({ a: 1 });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, a: 1 });
    assert.equal(calls, 2);
    assert.equal(model.parse, own);
    const plain = new Todo({ id: 2 }) as any;
    plain.fetch();
    await socket.reply(socket.takeOne("Todo:read"), { id: 2 });
    assert.equal(Object.hasOwn(plain, "parse"), false);
  });

  it("reset, merge, remove and a collection's own parse", async () => {
    const Wrapped = Todos.extend({ parse: (response: any) => response.items });
    const todos = new Wrapped([{ id: 1, text: "a" }, { id: 2 }]) as any;
    const answer = async (options: object, items: object[]): Promise<void> => {
      todos.fetch(options);
      await socket.reply(socket.takeOne("Todo:read"), { items });
    };
    await answer({ remove: false }, [{ id: 3 }]);
    assert.deepEqual(todos.pluck("id"), [1, 2, 3]);
    await answer({ merge: false }, [{ id: 1, text: "b" }, { id: 2 }]);
    assert.deepEqual(todos.pluck("id"), [1, 2]);
    assert.equal(todos.get(1).get("text"), "a");
    const names = events(todos);
    await answer({ reset: true }, [{ id: 9 }]);
    assert.deepEqual(names, ["request", "reset", "sync"]);
  });

  it("destroy of a new model returns false and sends nothing", () => {
    assert.equal(new Todo({ text: "a" }).destroy(), false);
    assert.deepEqual(socket.take(), []);
  });

  it("destroy with wait: gone with the answer", async () => {
    const todos = new Todos([{ id: 1 }]) as any;
    todos.get(1).destroy({ wait: true });
    assert.equal(todos.length, 1);
    await socket.reply(socket.takeOne("Todo:delete"), {});
    assert.equal(todos.length, 0);
  });

  it("create returns the model; with wait it is added with the answer, its error reaches the collection", async () => {
    const todos = new Todos() as any;
    const one = todos.create({ text: "a" });
    assert.ok(one instanceof Backbone.Model);
    assert.equal(todos.length, 1);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "a" });
    assert.equal(todos.get(1), one);
    const two = todos.create({ text: "b" }, { wait: true });
    assert.equal(todos.length, 1);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 2, text: "b" });
    assert.equal(todos.get(2), two);
    const names = events(todos);
    todos.create({ text: "c" }, { wait: true });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(names.filter((name) => name === "error"), ["error"]);
    assert.equal(todos.length, 2);
  });

  it("without live or rollback a failed save keeps its values, as in Backbone", async () => {
    const todos = new Todos([{ id: 1, text: "a" }]) as any;
    const names = events(todos);
    todos.get(1).save({ text: "b" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    todos.create({ text: "c" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.equal(todos.get(1).get("text"), "b");
    assert.equal(todos.length, 2);
    assert.equal(names.includes("rollback"), false);
  });

  it("rollback: true on a class takes failed writes back without live", async () => {
    const Careful = Todos.extend({ rollback: true });
    const todos = new Careful() as any;
    todos.fetch();
    await socket.reply(socket.takeOne("Todo:read"), [{ id: 1, text: "a" }]);
    todos.get(1).set({ text: "draft" });
    todos.get(1).save();
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.equal(todos.get(1).get("text"), "a");
    todos.get(1).destroy();
    assert.equal(todos.length, 0);
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.equal(todos.get(1).get("text"), "a");
    todos.create({ text: "b" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(todos.pluck("id"), [1]);
    const guess = new (Todo.extend({ rollback: true }))({ id: 5, text: "a" }) as any;
    guess.save({ text: "b" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.equal(guess.get("text"), "a");
  });
});

describe("records that would reach a prototype", () => {
  it("in replies: fields named __proto__, constructor or prototype are not merged", async () => {
    const model = new Todo({ id: 1 }) as any;
    model.fetch();
    const sent = socket.takeOne("Todo:read");
    const record = '{"id":1,"ok":true,"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}},"prototype":1}';
    socket.handlers.message(`{"id":${sent.id},"event":"Todo:read","data":${record}}`);
    await settle();
    assert.deepEqual(Object.keys(model.attributes), ["id", "ok"]);
    assert.equal(Object.getPrototypeOf(model.attributes), Object.prototype);
    assert.equal(({} as any).polluted, undefined);
  });

  it("spelled with escapes, and deeper down", async () => {
    const model = new Todo({ id: 1 }) as any;
    model.fetch();
    const sent = socket.takeOne("Todo:read");
    socket.handlers.message(`{"id":${sent.id},"event":"Todo:read","data":{"id":1,"a":{"\\u005f_proto__":{"polluted":1},"b":2}}}`);
    await settle();
    assert.deepEqual(Object.keys(model.get("a")), ["b"]);
  });
});

describe("install", () => {
  it("without Backbone says what it got and what to do", () => {
    assert.throws(() => install(undefined as never, () => connection), /got undefined instead of Backbone\. Load Backbone first/);
  });

  it("writes go out again after a cut, and their answer still counts", async () => {
    const model = new Todo() as any;
    const promise = model.save({ text: "a" });
    const first = socket.takeOne("Todo:upsert");
    await socket.cut();
    await host.advance(500);
    const again = await server.accept();
    const second = again.takeOne("Todo:upsert");
    assert.equal(second.id, first.id);
    await again.reply(second, { id: 1, text: "a" });
    await promise;
    assert.equal(model.id, 1);
  });
});

describe("refused writes", () => {
  let warnings: string[];
  beforeEach(() => {
    warnings = [];
    mock.method(console, "warn", (text: string) => void warnings.push(text));
  });
  afterEach(() => mock.restoreAll());
  const refuse = async (): Promise<void> => {
    for (const sent of socket.take()) await socket.refuse(sent, "invalid");
    await host.advance(1);
  };

  it("are warned of where the page looks at neither the promise nor an event", async () => {
    const todos = new Todos();
    todos.on("all sync request invalid", () => {});
    todos.create({ text: "" });
    await refuse();
    new Todo({ id: 1 }).save({ text: "" }, { patch: true });
    await refuse();
    new Todo({ id: 2 }).destroy({ success() {} });
    await refuse();
    todos.fetch();
    await refuse();
    new Todo({ id: 3 }).fetch();
    await refuse();
    const expected = ["upsert", "patch", "delete", "read", "read"].map((method) => `backsync: Todo:${method} was refused: no: invalid (invalid)`);
    assert.deepEqual(warnings, expected);
  });

  it("are not warned of where the page does: by a promise, a callback, or an event of the model or its collection", async () => {
    const ways: ((todo: any, todos: any) => unknown)[] = [
      (todo) => todo.save({ text: "" }).catch(() => {}),
      (todo) => todo.save({ text: "" }, { error() {} }),
      (todo) => todo.save("text", "", { error() {} }),
      (todo) => todo.destroy({ error() {} }),
      (todo) => (todo.on("error", () => {}), todo.save({ text: "" })),
      (todo) => (todo.on("rollback", () => {}), todo.save({ text: "" })),
      (todo, todos) => (todos.on("error", () => {}), todo.save({ text: "" })),
      (_, todos) => (todos.on("rollback", () => {}), todos.create({ text: "" })),
      (_, todos) => todos.create({ text: "" }, { error() {} }),
      (_, todos) => todos.fetch({ error() {} }),
      (_, todos) => (todos.on("error", () => {}), todos.fetch()),
      (todo, todos) => (todos.on("error", () => {}), todo.fetch()),
      (todo) => Backbone.sync("update", todo, { error() {} }),
    ];
    for (const [index, way] of ways.entries()) {
      const todos = new Todos([{ id: index }]);
      way(todos.at(0), todos);
      await refuse();
      assert.deepEqual(warnings, [], String(way));
    }
  });
});

/** Kind: a page's own library is older, or another one, than the adapter was written for. */
describe("pages of another time", () => {
  for (const VERSION of ["0.9.2", "0.9.10", "1.0.0", "1.1.2"]) {
    it(`Backbone ${VERSION} is refused at once`, () => {
      const old = { VERSION, Model: class {}, Collection: class {}, sync() {} } as any;
      const { sync } = old;
      assert.throws(() => install(old, () => connection), (error: BacksyncError) => {
        assert.equal(error.code, "usage");
        assert.match(error.message, new RegExp(`^Backbone ${VERSION} is too old .* needs 1\\.2 or later`));
        return true;
      });
      assert.equal(old.sync, sync);
    });
  }

  it("jQuery's done, fail, always, promise and state", async (context) => {
    const warn = context.mock.method(console, "warn", () => {});
    const model = new Todo({ id: 1 }) as any;
    const lines: unknown[] = [];
    const saved = model.save({ text: "a" });
    assert.equal(saved.state(), "pending");
    const chained = saved
      .done((row: any) => lines.push(["done", row.text]), [(row: any) => lines.push(["also", row.text])])
      .fail(() => lines.push("fail"))
      .always((row: any) => lines.push(["always", row.text]))
      .progress(() => lines.push("progress"));
    assert.equal(chained, saved);
    assert.equal(saved.promise(), saved);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "a" });
    assert.deepEqual(lines.splice(0), [["done", "a"], ["also", "a"], ["always", "a"]]);
    assert.equal(saved.state(), "resolved");
    const refused = model.destroy();
    refused.done(() => lines.push("done")).fail((error: BacksyncError) => lines.push(["fail", error.code])).always((error: BacksyncError) => lines.push(["always", error.code]));
    refused.fail(() => refused).always(() => refused); // as jQuery's own callbacks do
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual(lines.splice(0), [["fail", "forbidden"], ["always", "forbidden"]]);
    assert.equal(refused.state(), "rejected");
    await host.advance(1);
    assert.equal(warn.mock.callCount(), 0); // `fail` has looked at it
    model.save().done(() => lines.push("done"));
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    await host.advance(1);
    assert.deepEqual([lines, warn.mock.callCount()], [[], 1]);
  });

  it("`$.when` as jQuery 1 and 2 write it waits", async () => {
    const todos = new Todos() as any;
    const model = new Todo({ id: 1 }) as any;
    const seen: unknown[] = [];
    // What jQuery 1.12 does with several of them.
    const waiting = [todos.fetch(), model.fetch()];
    let left = waiting.length;
    for (const one of waiting) {
      assert.equal(typeof one.promise, "function");
      one.promise().progress(() => {}).done(() => ((left -= 1) === 0 ? seen.push(todos.length, model.get("text")) : 0)).fail(() => seen.push("fail"));
    }
    const [all, single] = socket.take();
    await socket.reply(all!, [{ id: 1 }, { id: 2 }]);
    assert.deepEqual(seen, []);
    await socket.reply(single!, { id: 1, text: "x" });
    assert.deepEqual(seen, [2, "x"]);
  });
});
