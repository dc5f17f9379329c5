/** Live collections: what the server pushes, optimistic writes, rollback, the echo race. On the real Backbone. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import type { Connection } from "../src/connection.js";
import { connected, type FakeServer, type FakeSocket, type Sent, settle, type VirtualHost } from "./fakes.js";

let server: FakeServer;
let connection: Connection;
let socket: FakeSocket;
let host: VirtualHost;
install(Backbone, () => connection);

const Todos = Backbone.Collection.extend({ url: "/Todo" });

let unhandled: unknown[];
const onUnhandled = (reason: unknown): void => void unhandled.push(reason);
beforeEach(async () => {
  ({ server, connection, socket, host } = await connected());
  seq = 10;
  unhandled = [];
  process.on("unhandledRejection", onUnhandled);
});
afterEach(async () => {
  await settle();
  process.off("unhandledRejection", onUnhandled);
  assert.deepEqual(unhandled, []);
  assert.deepEqual(host.reported, []);
});

let seq = 10;
const upsert = (data: object, extra: object = {}): object => ({ event: "Todo:upsert", data, seq: (seq += 1), ...extra });
const remove = (id: unknown, extra: object = {}): object => ({ event: "Todo:delete", data: { id }, seq: (seq += 1), ...extra });
const snapshot = (records: object[], epoch = "e1"): object => ({ mode: "snapshot", epoch, seq: (seq += 1), records });

/** A live collection with these records. */
async function live(records: object[] = [], options: object = {}, Class: any = Todos): Promise<any> {
  const todos = new Class();
  const promise = todos.live(options);
  await socket.reply(socket.takeOne("Todo:subscribe"), snapshot(records));
  assert.equal(await promise, todos);
  return todos;
}

/** What is said, in a form that reads well. */
function log(subject: any, ...only: string[]): string[] {
  const lines: string[] = [];
  subject.on("all", (name: string, first: any) => {
    if (only.length > 0 && !only.includes(name)) return;
    lines.push(first?.cid === undefined ? name : `${name} ${first.id ?? "new"}`);
  });
  return lines;
}

async function reconnect(): Promise<FakeSocket> {
  await server.socket.cut();
  await host.advance(2_000);
  socket = await server.accept();
  return socket;
}

describe("live()", () => {
  it("fills the collection, follows it, and stops", async () => {
    const todos = await live([{ id: 1, text: "a" }]);
    assert.deepEqual(todos.toJSON(), [{ id: 1, text: "a" }]);
    await socket.frame(upsert({ id: 2, text: "b" }), upsert({ id: 1, text: "A" }));
    assert.deepEqual(todos.toJSON(), [{ id: 1, text: "A" }, { id: 2, text: "b" }]);
    todos.live().stop();
    socket.takeOne("Todo:unsubscribe");
    await socket.frame(remove(1));
    assert.equal(todos.length, 2);
  });

  it("again is the same promise; after stop() a new one", async () => {
    const todos = new Todos() as any;
    const promise = todos.live();
    assert.equal(todos.live(), promise);
    socket.takeOne("Todo:subscribe");
    promise.stop();
    await assert.rejects(promise, { code: "aborted" });
    assert.notEqual(todos.live(), promise);
    assert.deepEqual(socket.take().map((message) => message.event), ["Todo:unsubscribe", "Todo:subscribe"]);
  });

  it("makes writes of the collection's models go over the socket", async () => {
    const todos = await live();
    todos.create({ text: "a" });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "a" });
  });

  it("takes name, query and connection", async () => {
    const other = await connected();
    const todos = new (Backbone.Collection.extend({ url: "/api/v1/todos" }))() as any;
    todos.live({ name: "Todo", query: { room: "a" }, connection: other.connection });
    const sent = other.socket.takeOne("Todo:subscribe");
    assert.deepEqual(sent.data, { room: "a" });
    assert.throws(() => todos.live({ querry: {} }), /does not know the option "querry".*query, connection, rollback, destroy, name/);
    assert.throws(() => new Backbone.Collection().live(), /A "url" property or function must be specified/);
  });

  it("refused: the promise rejects, `error` is fired, and it may be tried again", async () => {
    const todos = new Todos() as any;
    const lines = log(todos);
    const warnings: unknown[] = [];
    const warn = console.warn;
    console.warn = (text: unknown) => warnings.push(text);
    try {
      const promise = todos.live();
      await socket.refuse(socket.takeOne("Todo:subscribe"), "forbidden");
      await assert.rejects(promise, { code: "forbidden" });
      assert.deepEqual(lines, ["error"]);
      assert.match(String(warnings[0]), /Todo is not live: no: forbidden/);
      assert.notEqual(todos.live(), promise);
      socket.takeOne("Todo:subscribe");
    } finally {
      console.warn = warn;
    }
  });

  it("refused after a cut: the records leave, with them refused writes; those of other rooms stay", async () => {
    const warn = console.warn;
    console.warn = () => {};
    try {
      const todos = await live([{ id: 1, room: "a" }, { id: 2, room: "a" }, { id: 3, room: "a" }], { query: { room: "a" } });
      const other = todos.live({ query: { room: "b" } });
      await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 9, room: "b" }]));
      await other;
      todos.get(1).destroy();
      todos.get(2).save({ text: "mine" });
      todos.create({ room: "a" });
      socket.take();
      await reconnect();
      const [destroy, edit, creation, a, b] = socket.take();
      const lines = log(todos, "error", "update");
      await socket.refuse(a!, "forbidden");
      assert.deepEqual(todos.pluck("id"), [9, undefined, 2]);
      assert.deepEqual(lines, ["update", "error"]);
      await socket.refuse(b!, "unknown_model");
      assert.equal(connection.status, "live");
      for (const write of [destroy!, edit!, creation!]) await socket.refuse(write, "forbidden");
      assert.deepEqual(todos.toJSON(), []);
      await reconnect();
      assert.deepEqual(socket.take(), []);
    } finally {
      console.warn = warn;
    }
  });

  it("of one room: what is created is of that room; what was created for another one leaves at the answer", async () => {
    const todos = new Todos() as any;
    todos.live({ query: { room: "a", limit: 5 } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([]), key: { room: "a" } });
    todos.create({ text: "here" });
    todos.create({ text: "there", room: "b" }, { wait: true });
    todos.create({ id: "x" });
    const [here, there, named] = socket.take();
    assert.deepEqual([here!.data, there!.data, named!.data], [{ text: "here", room: "a" }, { text: "there", room: "b" }, { id: "x", room: "a" }]);
    await socket.reply(here!, { id: 1, ...here!.data });
    await socket.reply(there!, { id: 2, ...there!.data });
    await socket.reply(named!, named!.data);
    assert.deepEqual(todos.toJSON(), [{ text: "here", id: 1, room: "a" }, { id: "x", room: "a" }]);
    todos.live({ query: { room: "b" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([{ id: 2, room: "b" }]), key: { room: "b" } });
    todos.create({ room: "b" });
    const sent = socket.takeOne("Todo:upsert");
    await socket.reply(sent, { id: 3, room: "b" });
    assert.deepEqual(todos.pluck("id"), [1, "x", 2, 3]);
  });

  it("catches up after a cut", async () => {
    const todos = await live([{ id: 1 }]);
    await socket.frame(upsert({ id: 2 }));
    await reconnect();
    const sent = socket.takeOne("Todo:subscribe");
    assert.deepEqual(sent.since, { epoch: "e1", seq });
    await socket.frame({ id: sent.id, event: sent.event, data: { mode: "resume", epoch: "e1", seq } }, remove(1), upsert({ id: 3 }));
    assert.deepEqual(todos.pluck("id"), [2, 3]);
  });
});

describe("pushes", () => {
  it("give one `update` per frame, with add, change and remove of each record", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 2 }, { id: 3, n: 3 }]);
    const lines = log(todos);
    let options: any;
    todos.on("update", (_: unknown, updateOptions: unknown) => (options = updateOptions));
    await socket.frame(upsert({ id: 4, n: 4 }), upsert({ id: 2, n: 22 }), remove(1), upsert({ id: 5, n: 5 }));
    assert.deepEqual(lines, ["change:n 2", "change 2", "remove 1", "add 4", "add 5", "sort", "update"]);
    assert.deepEqual(todos.pluck("id"), [2, 3, 4, 5]);
    assert.equal(options.fromServer, true);
    assert.equal(options.seq, seq);
    assert.deepEqual(options.changes.added.map((model: any) => model.id), [4, 5]);
    assert.deepEqual(options.changes.removed.map((model: any) => model.id), [1]);
    assert.deepEqual(options.changes.merged.map((model: any) => model.id), [2]);
  });

  it("only deletes, or only upserts: one `update`, too", async () => {
    const todos = await live([{ id: 1 }, { id: 2 }, { id: 3 }]);
    const lines = log(todos, "update");
    await socket.frame(remove(1), remove(3));
    await socket.frame(upsert({ id: 4 }), upsert({ id: 5 }));
    assert.deepEqual(lines, ["update", "update"]);
    assert.deepEqual(todos.pluck("id"), [2, 4, 5]);
  });

  it("the last change of a record in a frame counts", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    const lines = log(todos);
    await socket.frame(upsert({ id: 2, n: 1 }), remove(1), upsert({ id: 2, n: 2 }), upsert({ id: 1, n: 5 }), upsert({ id: 3 }), remove(3));
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 5 }, { id: 2, n: 2 }]);
    assert.equal(lines.includes("add 3"), false);
  });

  it("carry {fromServer, seq} on each event", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    const seen: any[] = [];
    todos.on("change", (_: unknown, options: unknown) => seen.push(options));
    todos.on("add remove", (_: unknown, __: unknown, options: unknown) => seen.push(options));
    await socket.frame(upsert({ id: 1, n: 2 }), upsert({ id: 2 }), remove(2), upsert({ id: 3 }));
    await socket.frame(remove(3));
    assert.deepEqual(seen.map((options) => [options.fromServer, typeof options.seq]), Array(3).fill([true, "number"]));
  });

  it("sort again, where a plain model.set would not", async () => {
    const Sorted = Todos.extend({ comparator: "n" });
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 2 }], {}, Sorted);
    const lines = log(todos, "sort");
    await socket.frame(upsert({ id: 1, n: 3 }), upsert({ id: 3, n: 0 }));
    assert.deepEqual(todos.pluck("id"), [3, 2, 1]);
    await socket.frame(upsert({ id: 4, n: 2.5 }), remove(3));
    assert.deepEqual(todos.pluck("id"), [2, 4, 1]);
    assert.deepEqual(lines, ["sort", "sort"]);
  });

  it("go through the model's parse, not the collection's", async () => {
    const Parsed = Todos.extend({
      parse: (response: any) => response.items,
      model: Backbone.Model.extend({ parse: (row: any) => ({ ...row, parsed: true }) }),
    });
    const todos = await live([{ id: 1 }], {}, Parsed);
    await socket.frame(upsert({ id: 1, n: 1 }), upsert({ id: 2 }));
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 1, parsed: true }, { id: 2, parsed: true }]);
  });

  it("records are whole: a field that is gone is gone, defaults and the page's own fields stay", async () => {
    const Own = Todos.extend({ model: Backbone.Model.extend({ defaults: { color: "red" } }) });
    const todos = await live([{ id: 1, due: 5 }], {}, Own);
    todos.get(1).set({ selected: true });
    const lines = log(todos.get(1));
    await socket.frame(upsert({ id: 1 }));
    assert.deepEqual(todos.get(1).attributes, { id: 1, color: "red", selected: true });
    assert.deepEqual(lines, ["change:due 1", "change 1"]);
  });

  it("do not fire `destroy`, unless asked for", async () => {
    const todos = await live([{ id: 1 }]);
    const lines = log(todos);
    await socket.frame(remove(1));
    assert.deepEqual(lines, ["remove 1", "update"]);

    const others = new Todos() as any;
    others.live({ destroy: true });
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 1 }]));
    const model = others.get(1);
    const modelLines = log(model);
    const otherLines = log(others);
    await socket.frame(remove(1));
    assert.deepEqual(modelLines, ["remove 1", "destroy 1"]);
    assert.deepEqual(otherLines, ["remove 1", "update", "destroy 1"]);
  });

  it("ids such as toString and hasOwnProperty, 0 and '' work", async () => {
    const ids = ["toString", "hasOwnProperty", "constructor", "__proto__", "valueOf", 0, ""];
    const todos = await live();
    assert.equal(todos.get("toString"), undefined);
    await socket.frame(...ids.map((id) => upsert({ id, n: 1 })));
    await socket.frame(...ids.map((id) => upsert({ id, n: 2 })));
    assert.deepEqual(todos.pluck("id"), ids);
    assert.deepEqual(todos.pluck("n"), ids.map(() => 2));
    todos.reset();
    assert.equal(todos.get("toString"), undefined);
    await socket.frame(...ids.map((id) => upsert({ id, n: 3 })));
    assert.deepEqual(todos.pluck("id"), ids);
    await socket.frame(...ids.map((id) => remove(id)));
    assert.equal(todos.length, 0);
  });

  it("fields named __proto__, constructor or prototype are not merged", async () => {
    const todos = await live();
    const text = `{"event":"Todo:upsert","seq":999,"data":{"id":1,"ok":1,"__proto__":{"polluted":1},"constructor":1,"prototype":1}}`;
    socket.handlers.message(text);
    await settle();
    assert.deepEqual(todos.toJSON(), [{ id: 1, ok: 1 }]);
    assert.equal(({} as any).polluted, undefined);
  });

  it("honour idAttribute and collection.modelId", async () => {
    const Mongo = Todos.extend({ model: Backbone.Model.extend({ idAttribute: "_id" }) });
    const todos = await live([{ _id: "a", n: 1 }], {}, Mongo);
    await socket.frame(upsert({ _id: "a", n: 2 }), upsert({ _id: "b", n: 1 }));
    assert.deepEqual(todos.pluck("n"), [2, 1]);
    await socket.frame(remove("a"), { event: "Todo:delete", data: { _id: "b" }, seq: (seq += 1) });
    assert.equal(todos.length, 0);

    const Typed = Todos.extend({ modelId: (attributes: any) => (attributes.id === undefined ? undefined : `${attributes.type}/${attributes.id}`) });
    const typed = new Typed() as any;
    typed.live();
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ type: "x", id: 1, n: 1 }, { type: "y", id: 1, n: 1 }]));
    await socket.frame(upsert({ type: "y", id: 1, n: 2 }));
    assert.deepEqual(typed.pluck("n"), [1, 2]);
  });

  it("a parse that renames the id still finds the model", async () => {
    const Renaming = Todos.extend({
      model: Backbone.Model.extend({ idAttribute: "key", parse: ({ id, ...row }: any) => ({ key: id, ...row }) }),
    });
    const todos = await live([{ id: 1, n: 1 }], {}, Renaming);
    await socket.frame(upsert({ id: 1, n: 2 }));
    assert.deepEqual(todos.toJSON(), [{ key: 1, n: 2 }]);
    await socket.frame(remove(1));
    assert.equal(todos.length, 0);
  });

  it("a record with a field `cid` is not taken for a local model", async () => {
    const todos = await live();
    const draft = todos.add({ text: "draft" });
    await socket.frame(upsert({ id: 1, cid: draft.cid }));
    assert.equal(todos.length, 2);
    assert.equal(draft.id, undefined);
  });

  it("records without an id, and what is no record, are ignored", async () => {
    const todos = await live([{ id: 1 }]);
    await socket.frame(upsert({ n: 1 }), { event: "Todo:upsert", data: [1], seq: 50 }, { event: "Todo:delete", data: null, seq: 51 });
    assert.deepEqual(todos.pluck("id"), [1]);
  });

  it("a listener that throws is reported, and everything is applied all the same", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    todos.once("change:n", () => {
      throw new Error("listener");
    });
    await socket.frame(upsert({ id: 1, n: 2 }), upsert({ id: 2, n: 2 }), upsert({ id: 3, n: 2 }), remove(4));
    assert.match(String(host.reported.splice(0)), /^Error: listener$/);
    assert.deepEqual(todos.pluck("n"), [2, 2, 2]);
  });
});

describe("snapshots", () => {
  it("replace: rows that they lack leave, in one `update`", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    await reconnect();
    const lines = log(todos);
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 3 }, { id: 2, n: 2 }], "e2"));
    assert.deepEqual(todos.toJSON(), [{ id: 3 }, { id: 2, n: 2 }]);
    assert.equal(lines.filter((line) => line === "update").length, 1);
    assert.equal(lines.includes("remove 1"), true);
  });

  it("to nothing", async () => {
    const todos = await live([{ id: 1 }]);
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e2", seq: 1, records: [] } });
    assert.equal(todos.length, 0);
  });

  it("keep rows with pending local writes: edits, creations; and do not bring back what is being destroyed", async () => {
    const todos = await live([{ id: 1, n: 1, m: 1 }, { id: 2, n: 1 }, { id: 3, n: 1 }, { id: 4, n: 1 }]);
    todos.get(1).save({ n: 5 });
    todos.get(2).save({ n: 5 });
    todos.get(3).destroy();
    todos.create({ n: 9 });
    const [edit1, edit2, destroy, create] = socket.take();
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e2", seq: 5, records: [{ id: 1, n: 1, m: 2 }, { id: 3, n: 1 }] } });
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 5, m: 2 }, { id: 2, n: 5 }, { n: 9 }]);
    await socket.reply(edit1!, { id: 1, n: 5, m: 2 });
    await socket.refuse(edit2!, "not_found");
    await socket.reply(destroy!, {});
    await socket.reply(create!, { id: 7, n: 9 });
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 5, m: 2 }, { id: 7, n: 9 }]);
  });

  it("when a listener throws the collection still ends equal", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    todos.on("change:n", () => {
      throw new Error("listener");
    });
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e2", seq: 5, records: [{ id: 3, n: 3 }, { id: 2, n: 2 }, { id: 1, n: 2 }] } });
    assert.match(String(host.reported.splice(0)), /^Error: listener$/);
    assert.deepEqual(todos.toJSON(), [{ id: 3, n: 3 }, { id: 2, n: 2 }, { id: 1, n: 2 }]);
  });
});

describe("several rooms in one collection", () => {
  const key = (room: string): object => ({ key: { room } });

  async function rooms(): Promise<any> {
    const todos = new Todos() as any;
    const a = todos.live({ query: { room: "a" } });
    assert.notEqual(todos.live({ query: { room: "b" } }), a);
    assert.equal(todos.live({ query: { room: "a" } }), a);
    const [first, second] = socket.take();
    await socket.reply(first!, snapshot([{ id: 1, room: "a" }, { id: 2, room: "a" }]));
    await socket.reply(second!, snapshot([{ id: 3, room: "b" }]));
    assert.deepEqual(todos.pluck("id"), [1, 2, 3]);
    return todos;
  }

  it("a snapshot replaces the records of its own room", async () => {
    const todos = await rooms();
    await socket.frame({ event: "Todo:snapshot", ...key("a"), data: { epoch: "e2", seq: 1, records: [{ id: 2, room: "a" }, { id: 4, room: "a" }] } });
    assert.deepEqual(todos.pluck("id").sort(), [2, 3, 4]);
  });

  it("a delete removes only what our copy has in that room: the record may have moved", async () => {
    const todos = await rooms();
    await socket.frame(upsert({ id: 1, room: "b" }, key("b")), remove(1, key("a")));
    assert.equal(todos.get(1).get("room"), "b");
    await socket.frame(remove(2, key("b")));
    assert.ok(todos.get(2));
    await socket.frame(remove(2, key("a")), upsert({ id: 2, room: "b" }, key("b")));
    assert.equal(todos.get(2).get("room"), "b");
    await socket.frame(remove(2, key("b")));
    assert.equal(todos.get(2), undefined);
  });

  it("a room that is left takes its records along, also our own unanswered ones; switching is leaving and entering", async () => {
    const todos = new Todos() as any;
    const keyed = (room: string, ...ids: number[]): object => ({ ...snapshot(ids.map((id) => ({ id, room }))), ...key(room) });
    const a = todos.live({ query: { room: "a" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), keyed("a", 1, 2));
    todos.create({ room: "a", text: "mine" });
    socket.take();
    a.stop();
    assert.deepEqual(socket.takeOne("Todo:unsubscribe").data, { room: "a" });
    assert.equal(todos.length, 0);
    todos.live({ query: { room: "b" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), keyed("b", 3));
    assert.deepEqual(todos.pluck("id"), [3]);
    await socket.frame(upsert({ id: 1, room: "a" }, key("a")));
    assert.deepEqual(todos.pluck("id"), [3]);
  });

  it("a room that is left leaves what is in another one that is followed", async () => {
    const todos = new Todos() as any;
    const a = todos.live({ query: { room: "a" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([{ id: 1, room: "a" }, { id: 2, room: "a" }]), ...key("a") });
    todos.live({ query: { room: "b" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([{ id: 3, room: "b" }]), ...key("b") });
    await socket.frame(upsert({ id: 1, room: "b" }, key("b")));
    a.stop();
    assert.deepEqual(socket.takeOne("Todo:unsubscribe").data, { room: "a" });
    assert.deepEqual(todos.pluck("id"), [1, 3]);
  });

  it("a record that we move out of the only room that is shown leaves it", async () => {
    const todos = new Todos() as any;
    todos.live({ query: { room: "a" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([{ id: 1, room: "a" }]), ...key("a") });
    todos.get(1).save({ room: "b" });
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 1, room: "b" } }, remove(1, key("a")));
    assert.equal(todos.length, 0);
  });

  it("within one room a delete of what has just come from it counts", async () => {
    const todos = await rooms();
    await socket.frame(upsert({ id: 9, room: "a" }, key("a")), remove(9, key("a")), upsert({ id: 8, room: "a" }, key("a")));
    assert.deepEqual(todos.pluck("id"), [1, 2, 3, 8]);
  });
});

describe("the echo race", () => {
  it("reply first: one model, and the echo changes nothing", async () => {
    const todos = await live();
    const mine = todos.create({ text: "a" });
    const sent = socket.takeOne("Todo:upsert");
    const lines = log(todos, "add", "remove");
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 55, text: "a" } }, upsert({ id: 55, text: "a" }));
    assert.equal(todos.length, 1);
    assert.equal(todos.get(55), mine);
    assert.deepEqual(lines, []);
  });

  for (const wait of [false, true]) {
    it(`push first${wait ? ", with wait: true" : ""}: one model, the page's own, with what is newer`, async () => {
      const todos = await live();
      const mine = todos.create({ text: "a" }, { wait });
      const sent = socket.takeOne("Todo:upsert");
      await socket.frame(upsert({ id: 55, text: "a", likes: 1 }));
      await socket.reply(sent, { id: 55, text: "a" });
      assert.equal(todos.length, 1);
      assert.equal(todos.get(55), mine);
      assert.deepEqual(mine.attributes, { id: 55, text: "a", likes: 1 });
      await socket.frame(upsert({ id: 55, text: "b" }));
      assert.deepEqual(todos.toJSON(), [{ id: 55, text: "b" }]);
    });
  }

  it("with an id of the page's own the push finds the model at once", async () => {
    const todos = await live();
    const mine = todos.add({ id: "my-id", text: "a" });
    mine.save();
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame(upsert({ id: "my-id", text: "a", rev: 1 }));
    await socket.reply(sent, { id: "my-id", text: "a", rev: 1 });
    assert.equal(todos.length, 1);
    assert.equal(todos.get("my-id"), mine);
  });

  it("another live collection of the same model keeps its own copy", async () => {
    const one = await live();
    const two = await live();
    const mine = one.create({ text: "a" });
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame(upsert({ id: 55, text: "a" }));
    await socket.reply(sent, { id: 55, text: "a" });
    assert.equal(one.get(55), mine);
    assert.equal(one.length, 1);
    assert.equal(two.length, 1);
  });
});

describe("pending writes under pushes", () => {
  it("pending fields keep their local value until the reply, others change", async () => {
    const todos = await live([{ id: 1, text: "a", done: false }]);
    const model = todos.get(1);
    model.save({ text: "mine" }, { patch: true });
    const sent = socket.takeOne("Todo:patch");
    await socket.frame(upsert({ id: 1, text: "theirs", done: true }));
    assert.deepEqual(model.attributes, { id: 1, text: "mine", done: true });
    await socket.reply(sent, { id: 1, text: "mine", done: true });
    await socket.frame(upsert({ id: 1, text: "mine", done: true }));
    await socket.frame(upsert({ id: 1, text: "theirs again", done: true }));
    assert.equal(model.get("text"), "theirs again");
  });

  it("a reply does not undo what was written after it was asked for", async () => {
    const todos = await live([{ id: 1, text: "" }]);
    const model = todos.get(1);
    const seen: string[] = [];
    model.on("change:text", () => seen.push(model.get("text")));
    model.save({ text: "h" });
    model.save({ text: "he" });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "h", rev: 1 });
    const second = socket.takeOne("Todo:upsert");
    assert.equal(model.get("text"), "he");
    assert.equal(model.get("rev"), 1);
    await socket.frame(upsert({ id: 1, text: "h", rev: 1 }));
    await socket.reply(second, { id: 1, text: "he", rev: 2 });
    await socket.frame(upsert({ id: 1, text: "he", rev: 2 }));
    assert.deepEqual(seen, ["h", "he"]);
    assert.equal(model.get("rev"), 2);
  });

  it("a save during a save names the version that the first one has made, and what else the page has not set", async () => {
    const todos = await live([{ id: 1, text: "", done: false, rev: 1, by: "" }, { id: 2, rev: 1 }]);
    const model = todos.get(1);
    model.save({ text: " a" });
    model.save({ done: true }, { patch: true });
    model.save({ text: " ab" });
    todos.get(2).save({ done: true }); // other records do not wait
    const [first, other] = socket.take();
    assert.deepEqual([first!.data.rev, other!.data.id], [1, 2]);
    await socket.reply(first!, { id: 1, text: "a", done: false, rev: 2, by: "me" });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 1, text: " ab", done: true, rev: 2, by: "me" });
  });

  it("a version that the page has set stays, also while a save is under way", async () => {
    const todos = await live([{ id: 1, text: "", rev: 1 }]);
    const model = todos.get(1);
    model.save({ text: "a" });
    model.save({ text: "b", rev: 7 });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "a", rev: 2 });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 1, text: "b", rev: 7 });
  });

  it("a delete waits for the answer to a pending write, which decides", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    todos.get(1).save({ n: 2 });
    todos.get(2).save({ n: 2 });
    const [one, two] = socket.take();
    await socket.frame(remove(1), remove(2));
    assert.equal(todos.length, 2);
    await socket.reply(one!, { id: 1, n: 2 });
    await socket.refuse(two!, "not_found");
    assert.deepEqual(todos.pluck("id"), [1]);
  });

  it("a record that was deleted under a pending write comes back without what it had before", async () => {
    const todos = await live([{ id: 1, n: 1, old: true }]);
    todos.get(1).save({ n: 2 }, { patch: true });
    const sent = socket.takeOne("Todo:patch");
    await socket.frame(remove(1));
    await socket.reply(sent, { id: 1, n: 2 });
    await socket.frame(upsert({ id: 1, n: 2 }));
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 2 }]);
  });

  it("a destroyed model is not brought back by pushes before the answer, but by those after it", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    todos.get(1).destroy();
    const sent = socket.takeOne("Todo:delete");
    await socket.frame(upsert({ id: 1, n: 2 }));
    assert.equal(todos.length, 0);
    await socket.reply(sent, {});
    await socket.frame(remove(1));
    assert.equal(todos.length, 0);
    await socket.frame(upsert({ id: 1, n: 3 }));
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 3 }]);
  });

  it("fetch() on a live collection keeps them, too", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    todos.get(1).save({ n: 2 });
    socket.take();
    todos.fetch({ remove: false });
    await socket.reply(socket.takeOne("Todo:read"), [{ id: 1, n: 1, m: 1 }]);
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 2, m: 1 }]);
    todos.get(1).fetch();
    await socket.reply(socket.takeOne("Todo:read"), { id: 1, n: 1, m: 2 });
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 2, m: 2 }]);
  });
});

describe("rollback", () => {
  it("of an edit: the server's values come back, `error` and then `rollback` on model and collection", async () => {
    const todos = await live([{ id: 1, text: "a", done: false }]);
    const model = todos.get(1);
    const lines = log(todos, "error", "rollback", "change");
    let details: any[] = [];
    model.on("rollback", (...all: unknown[]) => (details = all));
    model.set({ done: true });
    model.save({ text: "b", extra: 1 }, { note: "mine" });
    lines.length = 0;
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(model.attributes, { id: 1, text: "a", done: false });
    assert.deepEqual(lines, ["error 1", "change 1", "rollback 1"]);
    assert.equal(details[0], model);
    assert.equal(details[1].code, "forbidden");
    assert.equal(details[2].note, "mine");
  });

  it("of what JSON cannot carry: like a refusal", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    const circle: Record<string, unknown> = {};
    circle.self = circle;
    for (const n of [5n, circle]) {
      const lines = log(todos, "error", "rollback");
      const codes: string[] = [];
      const options = { error: (_: unknown, error: { code: string }) => codes.push(error.code) };
      const created = todos.create({ n }, options);
      todos.get(1).save({ n }, options);
      assert.deepEqual([todos.length, todos.syncPending(), created.syncPending()], [2, 2, 1]);
      await settle();
      assert.deepEqual([todos.toJSON(), todos.syncPending(), created.syncPending()], [[{ id: 1, n: 1 }], 0, 0]);
      assert.deepEqual(codes, ["invalid", "invalid"]);
      assert.deepEqual(lines.map((line) => line.split(" ")[0]), ["error", "rollback", "error", "rollback"]);
      todos.off();
    }
    assert.deepEqual(socket.take(), []);
    assert.equal(connection.pending, 0);
  });

  it("takes back to what was pushed meanwhile", async () => {
    const todos = await live([{ id: 1, text: "a" }]);
    todos.get(1).save({ text: "mine" });
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame(upsert({ id: 1, text: "theirs" }));
    await socket.refuse(sent, "forbidden");
    assert.equal(todos.get(1).get("text"), "theirs");
  });

  it("leaves fields alone that another pending write or the user has changed since", async () => {
    const todos = await live([{ id: 1, a: 0, b: 0, c: 0 }]);
    const model = todos.get(1);
    model.save({ a: 1, b: 1, c: 1 }, { patch: true });
    model.save({ b: 2 }, { patch: true });
    model.set({ c: 3 });
    await socket.refuse(socket.takeOne("Todo:patch"), "forbidden");
    assert.deepEqual(model.attributes, { id: 1, a: 0, b: 2, c: 3 });
    await socket.refuse(socket.takeOne("Todo:patch"), "forbidden");
    assert.deepEqual(model.attributes, { id: 1, a: 0, b: 0, c: 3 });
  });

  it("of a later write shows the earlier one again, which has no answer yet", async () => {
    const todos = await live([{ id: 1, a: 0 }]);
    const model = todos.get(1);
    model.save({ a: 1 }, { patch: true });
    const second = model.save({ a: 2 }, { patch: true });
    assert.equal(model.syncPending(), 2);
    second.abort();
    await settle();
    assert.equal(model.get("a"), 1);
    await socket.reply(socket.take()[0]!, { id: 1, a: 1 });
    assert.equal(model.get("a"), 1);
    assert.equal(todos.syncPending(), 0);
  });

  it("of edits and their delete that went as one: the record is back as the server has it", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    await socket.cut();
    const model = todos.get(1);
    model.save({ n: 2, extra: true });
    model.destroy();
    assert.equal(todos.syncPending(), 1);
    await host.advance(2_000);
    socket = await server.accept();
    const [gone, subscribe] = socket.take();
    assert.equal(gone?.event, "Todo:delete");
    await socket.reply(subscribe!, snapshot([{ id: 1, n: 5 }]));
    assert.equal(todos.length, 0);
    await socket.refuse(gone!, "forbidden");
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 5 }]);
    assert.equal(todos.syncPending(), 0);
  });

  it("of an unset field", async () => {
    const todos = await live([{ id: 1, due: 5 }]);
    const model = todos.get(1);
    model.unset("due");
    model.save();
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(model.attributes, { id: 1, due: 5 });
  });

  it("of a creation: the model leaves, and the collection hears of it", async () => {
    const todos = await live();
    const lines = log(todos);
    const mine = todos.create({ text: "" });
    lines.length = 0;
    await socket.refuse(socket.takeOne("Todo:upsert"), "invalid");
    assert.equal(todos.length, 0);
    assert.deepEqual(lines, ["error new", "remove new", "update", "rollback new"]);
    assert.equal(mine.get("text"), "");
  });

  it("of a destruction: the model is back in its place, with what was pushed meanwhile", async () => {
    const todos = await live([{ id: 1 }, { id: 2, n: 1 }, { id: 3 }]);
    const model = todos.get(2);
    model.destroy();
    const sent = socket.takeOne("Todo:delete");
    await socket.frame(upsert({ id: 2, n: 2 }));
    const lines = log(todos, "add", "rollback");
    await socket.refuse(sent, "forbidden");
    assert.deepEqual(todos.pluck("id"), [1, 2, 3]);
    assert.equal(todos.get(2), model);
    assert.equal(model.get("n"), 2);
    assert.deepEqual(lines, ["add 2", "rollback 2"]);
  });

  it("of a destruction that somebody else has carried out: stays away", async () => {
    const todos = await live([{ id: 1 }]);
    todos.get(1).destroy();
    const sent = socket.takeOne("Todo:delete");
    await socket.frame(remove(1));
    await socket.refuse(sent, "unavailable");
    assert.equal(todos.length, 0);
  });

  it("sorts again", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 2 }], {}, Todos.extend({ comparator: "n" }));
    todos.get(1).save({ n: 3 });
    todos.sort();
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(todos.pluck("id"), [1, 2]);
    todos.get(1).destroy();
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual(todos.pluck("id"), [1, 2]);
  });

  it("of a conflict: takes the current record that the server sends along", async () => {
    const todos = await live([{ id: 1, text: "a", rev: 1 }]);
    todos.get(1).save({ text: "mine" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "conflict", { current: { id: 1, text: "theirs", rev: 2 } });
    assert.deepEqual(todos.get(1).attributes, { id: 1, text: "theirs", rev: 2 });
    todos.create({ id: 2, text: "mine" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "conflict", { current: { id: 2, text: "was there" } });
    assert.deepEqual(todos.get(2).attributes, { id: 2, text: "was there" });
  });

  it("nothing with wait: true, since nothing was shown", async () => {
    const todos = await live([{ id: 1, text: "a" }]);
    const lines = log(todos, "rollback", "change", "remove", "error");
    todos.get(1).save({ text: "b" }, { wait: true });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    todos.get(1).destroy({ wait: true });
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual(lines, ["error 1", "error 1"]);
    assert.equal(todos.length, 1);
  });

  it("not with rollback: false", async () => {
    const todos = await live([{ id: 1, text: "a" }], { rollback: false });
    const lines = log(todos, "rollback");
    todos.get(1).save({ text: "b" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    todos.create({ text: "c" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.equal(todos.get(1).get("text"), "b");
    assert.equal(todos.length, 2);
    assert.deepEqual(lines, []);
  });

  it("the page may save again in its error handler", async () => {
    const todos = await live([{ id: 1, text: "a" }]);
    const model = todos.get(1);
    model.save({ text: "b" }, { error: () => model.save({ text: "b" }) });
    await socket.refuse(socket.takeOne("Todo:upsert"), "rate_limited");
    assert.equal(model.get("text"), "b");
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, text: "b" });
    assert.equal(model.get("text"), "b");
  });
});

describe("creations that have no answer yet", () => {
  it("a second save waits and becomes an update of the same record", async () => {
    const todos = await live();
    const model = todos.create({ text: "a" });
    model.save({ text: "ab" });
    const first = socket.takeOne("Todo:upsert");
    await socket.reply(first, { id: 5, text: "a" });
    assert.equal(model.get("text"), "ab");
    const second = socket.takeOne("Todo:upsert");
    assert.deepEqual(second.data, { id: 5, text: "ab" });
    await socket.reply(second, { id: 5, text: "ab" });
    assert.deepEqual(todos.toJSON(), [{ id: 5, text: "ab" }]);
  });

  it("the second one may be aborted before it is sent", async () => {
    const todos = await live();
    const model = todos.create({ text: "a" });
    const promise = model.save({ text: "ab" });
    promise.abort();
    await assert.rejects(promise, { code: "aborted" });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 5, text: "a" });
    assert.deepEqual(socket.take(), []);
    assert.equal(model.get("text"), "a");
  });

  it("a destroy before the answer follows it, and nothing is shown in between", async () => {
    const todos = await live();
    const model = todos.create({ text: "a" });
    const sent = socket.takeOne("Todo:upsert");
    const lines = log(todos, "add");
    assert.equal(model.destroy(), false);
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 5, text: "a" } }, upsert({ id: 5, text: "a" }));
    const gone: Sent = socket.takeOne("Todo:delete");
    assert.deepEqual(gone.data, { id: 5 });
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove(5));
    assert.equal(todos.length, 0);
    assert.deepEqual(lines, []);
  });

  it("a destroy before it was sent keeps it from being sent", async () => {
    const todos = await live();
    await socket.cut();
    todos.create({ text: "a" }).destroy();
    await settle();
    await host.advance(2_000);
    const again = await server.accept();
    assert.deepEqual(again.take().map((message) => message.event), ["Todo:subscribe"]);
  });
});

describe("syncBind", () => {
  it("brings changes and events of one's own without records, and unbinds", async () => {
    const todos = new Todos() as any;
    const seen: unknown[] = [];
    const context = { me: true };
    const onUpsert = function (this: unknown, data: any, options: any): void {
      seen.push(["upsert", this === context, data.id, options.seq, options.fromServer]);
    };
    const onTyping = function (this: unknown, data: any): void {
      seen.push(["typing", this === todos, data]);
    };
    assert.equal(todos.syncBind("upsert", onUpsert, context), todos);
    todos.syncBind("typing", onTyping);
    const sent = socket.takeOne("Todo:subscribe");
    assert.equal(sent.snapshot, false);
    await socket.reply(sent, { mode: "resume", epoch: "e1", seq: 10 });
    await socket.frame(upsert({ id: 1 }), { event: "Todo:typing", data: "me" }, remove(1));
    assert.deepEqual(seen, [["upsert", true, 1, 11, true], ["typing", true, "me"]]);
    assert.equal(todos.length, 0);
    todos.syncUnbind("upsert", onUpsert);
    await socket.frame(upsert({ id: 2 }), { event: "Todo:typing", data: "you" });
    assert.deepEqual(seen.length, 3);
    todos.syncUnbind();
    socket.takeOne("Todo:unsubscribe");
  });

  it("on a live collection comes after the change was applied", async () => {
    const todos = await live();
    const seen: unknown[] = [];
    todos.syncBind("upsert", (data: any) => seen.push(todos.get(data.id)?.get("n")));
    todos.syncBind("delete", (data: any) => seen.push([data.id, todos.length]));
    assert.deepEqual(socket.take(), []);
    await socket.frame(upsert({ id: 1, n: 1 }));
    await socket.frame(remove(1));
    assert.deepEqual(seen, [1, [1, 0]]);
  });

  it("a collection that becomes live keeps its listeners, and they hear each change once", async () => {
    const todos = new Todos() as any;
    let heard = 0;
    todos.syncBind("upsert", () => (heard += 1));
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "resume", epoch: "e1", seq: 10 });
    const promise = todos.live();
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([]));
    await socket.frame(upsert({ id: 1 }));
    assert.equal(heard, 1);
    socket.take();
    promise.stop();
    assert.deepEqual(socket.take().map(({ event, snapshot: wanted }) => [event, wanted]), [
      ["Todo:unsubscribe", undefined],
      ["Todo:subscribe", false],
    ]);
  });

  it("in a keyed room is silent while no room is live, and the refusal is the one that is told", async (context) => {
    const warn = context.mock.method(console, "warn", () => {});
    const todos = new Todos() as any;
    const errors: string[] = [];
    todos.on("error", (_: unknown, error: { code: string }) => errors.push(error.code));
    let heard = 0;
    todos.syncBind("typing", () => (heard += 1));
    await socket.refuse(socket.takeOne("Todo:subscribe"), "invalid"); // no key: only live() will know it
    assert.match(String(warn.mock.calls[0]?.arguments[0]), /syncBind hears nothing until live\(\) has said of what: no: invalid/);
    todos.live({ query: { room: "a" } });
    await socket.refuse(socket.takeOne("Todo:subscribe"), "forbidden");
    assert.deepEqual([errors, socket.take()], [["forbidden"], []]);
    const promise = todos.live({ query: { room: "b" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([]), key: { room: "b" } });
    await socket.frame({ event: "Todo:typing", data: "me", key: { room: "b" } });
    promise.stop();
    socket.takeOne("Todo:unsubscribe");
    todos.syncBind("typing", () => {});
    assert.deepEqual([heard, errors, socket.take()], [1, ["forbidden"], []]);
  });

  it("a closed connection is told once, with and without rooms", async () => {
    const [bare, one, two] = [new Todos(), new Todos(), new Todos()] as any[];
    one.live();
    for (const room of ["a", "b"]) two.live({ query: { room } });
    const counts = [bare, one, two].map((todos) => {
      todos.syncBind("upsert", () => {});
      return log(todos, "error");
    });
    connection.close();
    await settle();
    assert.deepEqual(counts.map((lines) => lines.length), [1, 1, 1]);
  });

  it("wants a function", () => {
    assert.throws(() => new Todos().syncBind("upsert", undefined), /syncBind\("upsert", …\) got undefined instead of a function/);
  });
});

/** Kind: a record that the server does not have is shown as if it had. */
describe("refused creations with an id of the page's own", () => {
  for (const id of ["mine", "", "x".repeat(200), 0]) {
    it(`leave: ${JSON.stringify(id).slice(0, 10)}`, async () => {
      const todos = await live([{ id: 1 }]);
      const lines = log(todos, "error", "remove", "rollback");
      todos.create({ id, done: 1 });
      await socket.refuse(socket.takeOne("Todo:upsert"), "invalid");
      assert.deepEqual(todos.pluck("id"), [1]);
      assert.deepEqual(lines.map((line) => line.split(" ")[0]), ["error", "remove", "rollback"]);
    });
  }

  it("before the first records have come, offline, after add() and save(), as a patch", async () => {
    const early = new Todos() as any;
    early.live();
    early.create({ id: "early" });
    const [subscribe, creation] = socket.take();
    await socket.refuse(creation!, "invalid");
    assert.equal(early.length, 0);
    await socket.reply(subscribe!, snapshot([]));
    const todos = await live([{ id: 1, n: 1 }]);
    todos.add({ id: "added" }).save({ n: 1 });
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    todos.add({ id: "patched" }).save({ n: 1 }, { patch: true });
    await socket.refuse(socket.takeOne("Todo:patch"), "not_found");
    assert.deepEqual(todos.pluck("id"), [1]);
    await socket.cut();
    todos.create({ id: "offline" });
    todos.get("offline").save({ n: 2 });
    await host.advance(2_000);
    socket = await server.accept();
    const [sent, ...subscriptions] = socket.take();
    for (const subscription of subscriptions) await socket.reply(subscription, snapshot([{ id: 1, n: 1 }]));
    await socket.refuse(sent!, "invalid");
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 1 }]);
  });

  it("but a record that the server turns out to have stays", async () => {
    const todos = await live();
    todos.create({ id: "theirs", n: 1 });
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame(upsert({ id: "theirs", n: 2 }));
    await socket.refuse(sent, "forbidden");
    assert.deepEqual(todos.toJSON(), [{ id: "theirs", n: 2 }]);
    todos.create({ id: "theirs", n: 3 }); // finds the model that is there; the one that was made is in no collection
    await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
    assert.deepEqual(todos.toJSON(), [{ id: "theirs", n: 2 }]);
  });

  it("after live() was refused, too", async (context) => {
    context.mock.method(console, "warn", () => {});
    const todos = new Todos() as any;
    todos.live();
    await socket.refuse(socket.takeOne("Todo:subscribe"), "unknown_model");
    todos.create({ text: "hello" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "unknown_model");
    todos.create({ id: "mine", text: "hello" });
    await socket.refuse(socket.takeOne("Todo:upsert"), "unknown_model");
    assert.equal(todos.length, 0);
  });
});

/** Kind: the answer to one write of a record undoes what another write of it shows. */
describe("a destroyed record does not come back", () => {
  const other = async (todos: any): Promise<any> => {
    const second = new Todos() as any;
    second.live();
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot(todos.toJSON()));
    return second;
  };

  it("as the save before it is answered, in any collection that shows it", async () => {
    const todos = await live([{ id: 1, text: "x" }]);
    const second = await other(todos);
    const shared = new Todos() as any;
    shared.live();
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([]));
    shared.add(todos.get(1));
    const lines = [todos, shared].map((collection) => log(collection, "add", "remove"));
    const model = todos.get(1);
    model.save({ text: "y" });
    model.save({ more: 1 }, { patch: true });
    model.destroy();
    const save = socket.takeOne("Todo:upsert");
    await socket.frame({ id: save.id, event: save.event, data: { id: 1, text: "y" } }, upsert({ id: 1, text: "y" }));
    assert.equal(second.get(1).get("text"), "y");
    const gone = socket.takeOne("Todo:delete"); // the patch has joined it
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove(1));
    assert.deepEqual(lines, [["remove 1"], ["remove 1"]]);
    assert.deepEqual([todos.length, shared.length, second.length], [0, 0, 0]);
  });

  it("as its save is refused, or after a reconnect with a snapshot in between", async () => {
    const todos = await live([{ id: 1, text: "x" }]);
    const lines = log(todos, "add", "remove");
    const model = todos.get(1);
    model.save({ text: "" });
    model.destroy();
    await reconnect();
    const [save, subscribe] = socket.take();
    await socket.reply(subscribe!, snapshot([{ id: 1, text: "x" }]));
    await socket.refuse(save!, "invalid");
    await socket.frame(upsert({ id: 1, text: "z" }));
    const gone = socket.takeOne("Todo:delete");
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove(1));
    assert.deepEqual(lines, ["remove 1"]);
    await socket.frame(upsert({ id: 1, text: "again" }));
    assert.deepEqual(todos.toJSON(), [{ id: 1, text: "again" }]);
  });

  it("by a fetch, and the refused deletion shows what was fetched", async () => {
    const todos = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    todos.get(1).destroy();
    const gone = socket.takeOne("Todo:delete");
    todos.fetch();
    await socket.reply(socket.takeOne("Todo:read"), [{ id: 1, n: 2 }, { id: 2, n: 2 }]);
    assert.deepEqual(todos.toJSON(), [{ id: 2, n: 2 }]);
    await socket.refuse(gone, "forbidden");
    assert.deepEqual(todos.toJSON(), [{ id: 1, n: 2 }, { id: 2, n: 2 }]);
  });

  it("as its creation is answered, with an id of the page's own or with wait: true", async () => {
    const todos = await live();
    const mine = todos.create({ id: "mine" });
    const creation = socket.takeOne("Todo:upsert");
    mine.destroy();
    const lines = log(todos, "add");
    await socket.frame({ id: creation.id, event: creation.event, data: { id: "mine" } }, upsert({ id: "mine" }));
    const gone = socket.takeOne("Todo:delete");
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove("mine"));
    assert.deepEqual([lines, todos.length], [[], 0]);
    const waiting = todos.create({ n: 1 }, { wait: true });
    const sent = socket.takeOne("Todo:upsert");
    waiting.destroy();
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 5, n: 1 } }, upsert({ id: 5, n: 1 }));
    assert.equal(todos.length, 0);
    const last = socket.takeOne("Todo:delete");
    await socket.frame({ id: last.id, event: last.event, data: {} }, remove(5));
    assert.equal(todos.length, 0);
  });

  it("but one that is created again under its id is shown, and follows the server", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    todos.get(1).destroy();
    const gone = socket.takeOne("Todo:delete");
    const again = todos.create({ id: 1, n: 2 });
    await socket.frame(upsert({ id: 1, n: 1, rev: 7 }));
    assert.deepEqual([todos.length, again.get("rev")], [1, 7]);
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove(1));
    const creation = socket.takeOne("Todo:upsert");
    await socket.frame({ id: creation.id, event: creation.event, data: { id: 1, n: 2 } }, upsert({ id: 1, n: 2 }));
    await socket.frame(upsert({ id: 1, n: 3 }));
    assert.deepEqual([todos.length, todos.get(1) === again, again.get("n")], [1, true, 3]);
  });
});

/** Kind: the author's page shows another order than everybody else's. */
describe("the order after an own write", () => {
  const comparators: Record<string, unknown> = {
    "a field": "rank",
    "a function of one": (todo: any) => todo.get("rank"),
    "a function of two": (one: any, other: any) => one.get("rank") - other.get("rank"),
  };
  for (const [name, comparator] of Object.entries(comparators)) {
    it(`by ${name}: save, patch, wait, the server's own value, rollback`, async () => {
      const rows = [1, 2, 3, 4].map((rank) => ({ id: `t${rank}`, rank }));
      const todos = await live(rows, {}, Todos.extend({ comparator } as any));
      const sorts = log(todos, "sort");
      const save = async (id: string, fields: object, options: object, answer: object = {}): Promise<void> => {
        todos.get(id).save(fields, options);
        const [sent] = socket.take();
        const row = { id, ...fields, ...answer };
        await socket.frame({ id: sent!.id, event: sent!.event, data: row }, upsert(row));
      };
      await save("t1", { rank: 9 }, {});
      assert.deepEqual(todos.pluck("id"), ["t2", "t3", "t4", "t1"]);
      await save("t2", { rank: 10 }, { patch: true });
      assert.deepEqual(todos.pluck("id"), ["t3", "t4", "t1", "t2"]);
      await save("t3", { rank: 11 }, { wait: true });
      assert.deepEqual(todos.pluck("id"), ["t4", "t1", "t2", "t3"]);
      await save("t4", { rank: 0 }, {}, { rank: 12 });
      assert.deepEqual(todos.pluck("id"), ["t1", "t2", "t3", "t4"]);
      assert.equal(sorts.length, 4);
      todos.get("t1").save({ rank: 99 });
      assert.deepEqual(todos.pluck("id"), ["t2", "t3", "t4", "t1"]);
      await socket.refuse(socket.takeOne("Todo:upsert"), "forbidden");
      assert.deepEqual(todos.pluck("id"), ["t1", "t2", "t3", "t4"]);
    });
  }

  it("in every live collection that shares the model", async () => {
    const Sorted = Todos.extend({ comparator: "rank" });
    const one = await live([{ id: 1, rank: 1 }, { id: 2, rank: 2 }], {}, Sorted);
    const two = await live([], {}, Sorted);
    two.add(one.models);
    one.get(1).save({ rank: 3 });
    assert.deepEqual([one.pluck("id"), two.pluck("id")], [[2, 1], [2, 1]]);
    await socket.frame(upsert({ id: 2, rank: 9 }));
    assert.deepEqual([one.pluck("id"), two.pluck("id")], [[1, 2], [1, 2]]);
  });
});

/** Kind: the page is asked to draw what it shows already. */
describe("echoes", () => {
  it("of own writes, and repeated frames, fire nothing", async () => {
    const todos = await live([{ id: 1, text: "a", list: [{ n: 1 }] }, { id: 2 }]);
    const lines = log(todos);
    todos.get(1).save({ text: "b" });
    const sent = socket.takeOne("Todo:upsert");
    const row = { id: 1, text: "b", list: [{ n: 1 }], rev: 1 };
    await socket.frame({ id: sent.id, event: sent.event, data: row }, upsert(row));
    assert.deepEqual(lines.splice(0), ["change:text 1", "change 1", "request 1", "change:rev 1", "change 1", "sync 1"]);
    await socket.frame(upsert(row), remove(7));
    assert.deepEqual(lines, []);
    await socket.frame(upsert(row), upsert({ id: 2, n: 1 }));
    assert.deepEqual(lines, ["change:n 2", "change 2", "update"]);
  });
});

/** Kind: what the page changes in place is taken for the server's word. */
describe("values that have parts", () => {
  it("are the page's own: a change in place is a change, is kept under pushes, and is taken back", async () => {
    const todos = await live([{ id: 1, text: "a", meta: { k: [1] } }]);
    const model = todos.get(1);
    model.get("meta").k.push(2);
    model.save({ text: "" });
    const sent = socket.takeOne("Todo:upsert");
    assert.deepEqual(sent.data.meta, { k: [1, 2] });
    await socket.frame(upsert({ id: 1, text: "a", meta: { k: [9] } }));
    assert.deepEqual(model.get("meta"), { k: [1, 2] });
    await socket.refuse(sent, "invalid");
    assert.deepEqual(model.attributes, { id: 1, text: "a", meta: { k: [9] } });
    model.get("meta").k.push(3);
    model.save({}, { patch: true });
    await socket.reply(socket.takeOne("Todo:patch"), { id: 1, text: "a", meta: { k: [9] } });
    model.get("meta").k.push(4);
    model.save({ meta: model.get("meta") }, { patch: true });
    await socket.refuse(socket.takeOne("Todo:patch"), "invalid");
    assert.deepEqual(model.get("meta"), { k: [9] });
    model.get("meta").k.push(5);
    model.destroy();
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual(todos.get(1).get("meta"), { k: [9] });
  });

  it("are not shared by collections, nor with listeners, nor changed by another one's parse", async () => {
    const Parsing = Todos.extend({
      model: Backbone.Model.extend({
        parse(row: any) {
          row.meta.k.push("parsed");
          return row;
        },
      }),
    });
    const one = await live([], {}, Parsing);
    const two = await live();
    const heard: any[] = [];
    two.syncBind("upsert", (data: any) => heard.push(data));
    await socket.frame(upsert({ id: 1, meta: { k: [1] } }));
    one.get(1).get("meta").k.push(2);
    heard[0].meta.k.push(3);
    assert.deepEqual([one.get(1).get("meta").k, two.get(1).get("meta").k], [[1, "parsed", 2], [1]]);
    await socket.frame(upsert({ id: 1, meta: { k: [1] } }));
    assert.deepEqual(two.get(1).get("meta").k, [1]);
  });
});

describe("live({name})", () => {
  it("names the model for writes, reads and listeners, too, also after it has ended", async () => {
    const Notes = Backbone.Collection.extend({
      url: "/api/v1/notes",
      model: Backbone.Model.extend({ urlRoot: "/api/v1/notes" }),
    });
    const notes = new Notes() as any;
    const heard: unknown[] = [];
    notes.syncBind("typing", (who: unknown) => heard.push(who));
    const early = socket.takeOne("api:subscribe");
    const errors = log(notes, "error");
    const promise = notes.live({ name: "Note" });
    assert.deepEqual(socket.take().map(({ event }) => event), ["Note:subscribe", "api:unsubscribe"]);
    await socket.refuse(early, "unknown_model");
    assert.deepEqual(errors, []);
    notes.create({ id: 1, text: "x" });
    notes.create({ text: "y" });
    notes.get(1).fetch();
    notes.get(1).save({ text: "z" }, { url: "/Other/1" });
    notes.fetch();
    promise.stop();
    const events = socket.take().map(({ event }) => event);
    assert.deepEqual(events, ["Note:upsert", "Note:upsert", "Note:read", "Other:upsert", "Note:read", "Note:unsubscribe", "Note:subscribe"]);
    notes.at(1).destroy();
    notes.get(1).destroy();
    await settle();
    notes.live({ query: { room: "a" } });
    assert.equal(socket.take().at(-1)?.event, "Note:subscribe");
  });

  it("a listener without live() whose url names no model waits for it", async (context) => {
    const warn = context.mock.method(console, "warn", () => {});
    const notes = new (Backbone.Collection.extend({ url: "/api/v1/notes" }))() as any;
    const errors = log(notes, "error");
    const heard: unknown[] = [];
    notes.syncBind("typing", (who: unknown) => heard.push(who));
    await socket.refuse(socket.takeOne("api:subscribe"), "unknown_model");
    assert.match(String(warn.mock.calls[0]?.arguments[0]), /syncBind hears nothing until live\(\) has said of what: no: unknown_model/);
    notes.live({ name: "Todo" });
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([]));
    await socket.frame({ event: "Todo:typing", data: "me" });
    assert.deepEqual([errors, heard], [[], ["me"]]);
  });
});
