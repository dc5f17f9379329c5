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
