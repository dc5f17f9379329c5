/** The old names, on the real Backbone. */

import assert from "node:assert/strict";
import { beforeEach, describe, it } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import type { Connection } from "../src/connection.js";
import { installLegacyNames } from "../src/legacy.js";
import { connected, type FakeSocket } from "./fakes.js";

let connection: Connection;
let socket: FakeSocket;
let seq: number;
beforeEach(async () => {
  ({ connection, socket } = await connected());
  seq = 10;
});

const upsert = (id: number, extra: object = {}): object => ({ event: "todo:upsert", data: { id, ...extra }, seq: (seq += 1) });
const remove = (id: number): object => ({ event: "todo:delete", data: { id }, seq: (seq += 1) });

describe("old names", () => {
  it("need an installed Backsync", () => {
    assert.throws(() => installLegacyNames(Backbone), /Call install\(Backbone, connection\) first/);
    install(Backbone, () => connection);
    installLegacyNames(Backbone);
  });

  it("bindBackend with a name, and one with a channel", async () => {
    const todos = new (Backbone.Collection.extend({ backend: "todo" }))();
    const lines: string[] = [];
    todos.on("backend", (method: string, row: any) => lines.push(`backend ${method} ${row.id}`));
    todos.on("backend:create", (row: any) => lines.push(`create ${row.id}`));
    todos.on("backend:update backend:delete", (row: any) => lines.push(`other ${row.id}`));
    todos.bindBackend();
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 10, records: [{ id: 1 }] });
    assert.deepEqual(lines, []);
    await socket.frame(upsert(2));
    await socket.frame(upsert(2, { n: 1 }));
    await socket.frame(remove(1));
    assert.deepEqual(lines, ["backend create 2", "create 2", "backend update 2", "other 2", "backend delete 1", "other 1"]);
    assert.deepEqual(todos.pluck("id"), [2]);

    const keyed = new (Backbone.Collection.extend({ url: "/x", backend: { name: "room", channel: "a" } }))();
    keyed.bindBackend();
    assert.deepEqual(socket.takeOne("room:subscribe").data, { channel: "a" });
  });

  it("ioBind on collections and models, ioUnbind, ioUnbindAll", async () => {
    const todos = new (Backbone.Collection.extend({ url: "/todo" }))([{ id: 1 }]);
    const lines: string[] = [];
    const context = {};
    todos.ioBind("create", function (this: unknown, row: any) {
      lines.push(`create ${row.id} ${this === context}`);
    }, context);
    const onDelete = (row: any): void => void lines.push(`delete ${row.id}`);
    todos.ioBind("delete", { socket: "ignored" }, onDelete);
    todos.get(1).ioBind("update", (row: any) => lines.push(`update ${row.id}`));
    todos.get(1).ioBind("delete", onDelete);
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "resume", epoch: "e", seq: 10 });
    await socket.frame(upsert(1), upsert(2), remove(1), remove(3));
    assert.deepEqual(lines.splice(0), ["update 1", "create 2 true", "delete 1", "delete 1", "delete 3"]);
    todos.ioUnbind("delete", onDelete);
    todos.get(1).ioUnbindAll();
    await socket.frame(upsert(1), upsert(2), remove(1));
    assert.deepEqual(lines, ["create 2 true"]);
  });

  it("ioBind on a model that is in no collection", async () => {
    const model = new (Backbone.Model.extend({ urlRoot: "/todo" }))({ id: 5 });
    const rows: unknown[] = [];
    model.ioBind("update", (row: unknown) => rows.push(row));
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "resume", epoch: "e", seq: 10 });
    await socket.frame(upsert(5, { n: 1 }), upsert(6));
    assert.deepEqual(rows, [{ id: 5, n: 1 }]);
    model.ioUnbindAll();
    socket.takeOne("todo:unsubscribe");
  });
});

describe("backbone.io's examples", () => {
  const answer = (sent: any, data: object = sent.data): Promise<void> => socket.reply(sent, data);

  it("backend alone says where writes go: on a class, an instance, in the options, of a model", async () => {
    const Messages = Backbone.Collection.extend({ backend: "messages" });
    const one = new Messages();
    one.create({ text: "x" });
    const sent = socket.takeOne("messages:upsert");
    assert.deepEqual(sent.data, { text: "x" });
    await answer(sent, { id: 1, text: "x" });
    one.at(0).save({ text: "y" });
    await answer(socket.takeOne("messages:upsert"));
    one.at(0).destroy();
    await answer(socket.takeOne("messages:delete"), {});
    one.fetch();
    await answer(socket.takeOne("messages:read"), [{ id: 2 }]);
    assert.deepEqual(one.pluck("id"), [2]);
    const two = new Backbone.Collection([], { backend: "others" });
    two.create({ text: "x" });
    socket.takeOne("others:upsert");
    const model = new (Backbone.Model.extend({ backend: { name: "single" } }))({ id: 5 });
    model.save({ n: 1 });
    await answer(socket.takeOne("single:upsert"));
    model.fetch();
    await answer(socket.takeOne("single:read"), { id: 5, n: 2 });
    assert.equal(model.get("n"), 2);
    assert.equal(Backbone.io.connect(), undefined);
  });

  it("own writes fire no backend events, with wait: true and without; others' do", async () => {
    const todos = new (Backbone.Collection.extend({ backend: "todo" }))();
    todos.bindBackend();
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 10, records: [] });
    const lines: string[] = [];
    todos.on("backend", (method: string, row: any) => lines.push(`${method} ${row.id}`));
    todos.create({ text: "own" });
    const own = socket.takeOne("todo:upsert");
    await socket.frame({ id: own.id, event: own.event, data: { id: 1, text: "own" } }, upsert(1, { text: "own" }));
    todos.create({ text: "own" }, { wait: true });
    const waited = socket.takeOne("todo:upsert");
    await socket.frame({ id: waited.id, event: waited.event, data: { id: 2, text: "own" } }, upsert(2, { text: "own" }));
    todos.get(1).save({ text: "mine" });
    const saved = socket.takeOne("todo:upsert");
    await socket.frame({ id: saved.id, event: saved.event, data: { id: 1, text: "mine" } }, upsert(1, { text: "mine" }));
    todos.get(2).destroy();
    const gone = socket.takeOne("todo:delete");
    await socket.frame({ id: gone.id, event: gone.event, data: {} }, remove(2));
    assert.deepEqual([lines, todos.length], [[], 1]);
    await socket.frame(upsert(3), upsert(1, { text: "theirs" }));
    assert.deepEqual(lines.sort(), ["create 3", "update 1"]);
  });

  it("bind(\"backend:create\", …) without bindBackend(): the page applies what it hears", async () => {
    const lines: string[] = [];
    const Messages = Backbone.Collection.extend({
      backend: "todo",
      initialize(this: any) {
        this.bind("backend:create", (row: any) => this.add(row));
        this.on({ "backend:update": (row: any) => this.get(row.id).set(row) });
        this.bind("backend:delete", (row: any) => this.remove(row.id));
        this.on("backend", (method: string, row: any) => lines.push(`${method} ${row.id}`));
      },
    });
    const todos = new Messages();
    await Promise.resolve();
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "resume", epoch: "e", seq: 10 });
    await socket.frame(upsert(1), upsert(1, { n: 1 }), upsert(2), remove(1), remove(7));
    assert.deepEqual(todos.toJSON(), [{ id: 2 }]);
    assert.deepEqual(lines.splice(0), ["create 1", "update 1", "create 2", "delete 1"]);
    todos.create({ n: 5 });
    const own = socket.takeOne("todo:upsert");
    await socket.frame({ id: own.id, event: own.event, data: { id: 3, n: 5 } }, upsert(3, { n: 5 }));
    assert.deepEqual([lines, todos.pluck("id")], [[], [2, 3]]);
  });

  it("bindBackend() of a model follows its record", async () => {
    const model = new (Backbone.Model.extend({ backend: "todo" }))({ id: 1, n: 0 });
    const lines: string[] = [];
    model.on("backend", (method: string, row: any) => lines.push(`${method} ${row.id}`));
    assert.equal(model.bindBackend(), model);
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "resume", epoch: "e", seq: 10 });
    await socket.frame(upsert(1, { n: 1 }), upsert(2), remove(1));
    assert.deepEqual([model.get("n"), lines], [1, ["update 1", "delete 1"]]);
    assert.throws(() => new Backbone.Model().bindBackend(), /without a backend/);
  });

  it("what has no backend stays as it is", () => {
    const model = new Backbone.Model({ id: 1 }) as any;
    model.urlRoot = "/x";
    assert.throws(() => model.save(), /there is no jQuery/);
  });
});

describe("backbone.iobind's events", () => {
  it("are fired on the object, too, and `off` ends a binding", async () => {
    const todos = new (Backbone.Collection.extend({ url: "/todo" }))([{ id: 1 }]);
    const lines: string[] = [];
    const onRefresh = (row: any): void => void lines.push(`bound ${row.id}`);
    todos.get(1).on("refresh", (row: any) => lines.push(`on ${row.id}`));
    todos.get(1).ioBind("refresh", onRefresh);
    todos.get(1).ioBind("update", (row: any) => lines.push(`update ${row.id}`));
    await socket.reply(socket.takeOne("todo:subscribe"), { mode: "resume", epoch: "e", seq: 10 });
    const refresh = (id: number): object => ({ event: "todo:refresh", data: { id } });
    await socket.frame(refresh(1), refresh(2), upsert(1));
    assert.deepEqual(lines.splice(0), ["bound 1", "on 1", "update 1"]);
    todos.get(1).off("refresh", onRefresh);
    await socket.frame(refresh(1), upsert(1));
    assert.deepEqual(lines.splice(0), ["update 1"]);
    todos.get(1).off();
    socket.takeOne("todo:unsubscribe");
  });
});
