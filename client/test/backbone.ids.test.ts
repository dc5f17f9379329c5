/**
 * Records whose ids are unlike what Backbone expects: like a cid, named otherwise, made of several fields, numbers and
 * texts. Each way in which a record arrives, changes, moves and leaves. On the real Backbone.
 */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { afterEach, beforeEach, describe, it } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import { Connection } from "../src/connection.js";
import { LiveCollection } from "../src/live.js";
import { connected, type FakeSocket, settle, VirtualHost } from "./fakes.js";
import { ReferenceServer, Wire } from "./reference.js";

let connection: Connection;
let socket: FakeSocket;
let host: VirtualHost;
let seq = 10;
install(Backbone, () => connection);

const Todos = Backbone.Collection.extend({ url: "/Todo" });

beforeEach(async () => {
  ({ connection, socket, host } = await connected());
  seq = 10;
});
afterEach(async () => {
  await settle();
  assert.deepEqual(host.reported, []);
});

const upsert = (data: object, extra: object = {}): object => ({ event: "Todo:upsert", data, seq: (seq += 1), ...extra });
const remove = (id: unknown, extra: object = {}): object => ({ event: "Todo:delete", data: { id }, seq: (seq += 1), ...extra });
const snapshot = (records: object[]): object => ({ mode: "snapshot", epoch: "e1", seq: (seq += 1), records });

async function live(records: object[] = [], Class: any = Todos, options: object = {}): Promise<any> {
  const todos = new Class();
  todos.live(options);
  await socket.reply(socket.takeOne("Todo:subscribe"), snapshot(records));
  return todos;
}

const shown = (todos: any): unknown[] => todos.map((model: any) => [model.id, model.get("n")]);

/** The number in the cid that the next model gets. */
function nextNumber(): number {
  return Number(new (Backbone.Model as any)().cid.slice(1)) + 1;
}

/** Kind: a table with two sorts of keys, in which one is taken for the other. */
describe("ids that look like cids", () => {
  for (const prefix of ["c", "view", "m-", ""]) {
    it(`in a snapshot, a push, a reply and a delete (cidPrefix "${prefix}")`, async () => {
      const Model = Backbone.Model.extend({ cidPrefix: prefix } as any);
      const Class = Todos.extend({ model: Model });
      const first = nextNumber();
      const ids = Array.from({ length: 8 }, (_, index) => `${prefix}${first + index}`);
      const todos = await live([{ id: "todo", n: 0 }, ...ids.map((id, n) => ({ id, n }))], Class);
      assert.deepEqual(shown(todos), [["todo", 0], ...ids.map((id, n) => [id, n])]);
      for (const id of ids) assert.equal(todos.get(id).id, id);
      await socket.frame(...ids.map((id, n) => upsert({ id, n: n + 100 })));
      assert.deepEqual(shown(todos), [["todo", 0], ...ids.map((id, n) => [id, n + 100])]);
      todos.get(ids[3]).save({ n: 7 });
      const sent = socket.takeOne("Todo:upsert");
      assert.deepEqual(sent.data, { id: ids[3], n: 7 });
      await socket.reply(sent, sent.data);
      assert.deepEqual([todos.get(ids[3]).get("n"), todos.length], [7, 9]);
      for (const [index, id] of ids.entries()) {
        await socket.frame(remove(id));
        assert.deepEqual(todos.pluck("id"), ["todo", ...ids.slice(index + 1)]);
      }
    });
  }

  it("of models that are in the collection already", async () => {
    const todos = await live([{ id: "a", n: 1 }, { id: "b", n: 2 }]);
    const [a, b] = todos.models;
    await socket.frame(upsert({ id: a.cid, n: 3 }), upsert({ id: b.cid, n: 4 }));
    assert.deepEqual(shown(todos), [["a", 1], ["b", 2], [a.cid, 3], [b.cid, 4]]);
    await socket.frame(remove(a.cid));
    assert.deepEqual(shown(todos), [["a", 1], ["b", 2], [b.cid, 4]]);
    assert.equal(todos.get(a), a);
    assert.equal(todos.get({ cid: b.cid }), b);
    assert.equal(todos.get(b.cid).get("n"), 4);
    assert.equal(todos.get(a.cid), a);
    a.save({ n: 9 });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: "a", n: 9 });
  });

  it("by create, fetch, add and a page, and through a rollback", async () => {
    const todos = await live();
    const draft = todos.add({ n: 0 });
    const made = todos.create({ id: draft.cid, n: 1 });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: draft.cid, n: 1, rev: 1 });
    assert.deepEqual([todos.length, made.get("rev"), draft.attributes], [2, 1, { n: 0 }]);
    draft.save();
    const id = made.cid;
    await socket.reply(socket.takeOne("Todo:upsert"), { id, n: 0 });
    assert.deepEqual(shown(todos), [[made.cid, 0], [draft.cid, 1]]);
    todos.fetch();
    await socket.reply(socket.takeOne("Todo:read"), [{ id: made.cid, n: 5 }, { id: draft.cid, n: 6 }, { id: "x", cid: draft.cid, n: 7 }]);
    assert.deepEqual(shown(todos), [[made.cid, 5], [draft.cid, 6], ["x", 7]]);
    made.destroy();
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual(shown(todos).sort(), [[made.cid, 5], [draft.cid, 6], ["x", 7]].sort());
    assert.equal(todos.get(draft.cid), made);
    todos.reset([{ id: "y" }]);
    assert.equal(todos.get(draft.cid), undefined);
  });

  it("in two collections that share a model", async () => {
    const one = await live([{ id: "a", n: 1 }]);
    const two = await live();
    const model = one.get("a");
    two.add(model);
    await socket.frame(upsert({ id: model.cid, n: 2 }), upsert({ id: "a", n: 3 }));
    assert.deepEqual(shown(one), [["a", 3], [model.cid, 2]]);
    assert.deepEqual(shown(two), [["a", 3], [model.cid, 2]]);
    await socket.frame(remove(model.cid));
    assert.deepEqual([shown(one), shown(two)], [[["a", 3]], [["a", 3]]]);
  });

  it("and a listener of `remove` does not find the model any more", async () => {
    const todos = await live([{ id: "a" }, { id: "b" }]);
    const seen: unknown[] = [];
    todos.on("remove", (model: any) => seen.push([todos.get(model), todos.get(model.id), todos.get(model.cid), todos.length]));
    await socket.frame(remove("a"));
    assert.deepEqual(seen, [[undefined, undefined, undefined, 1]]);
  });
});

/** Kind: the page and the wire have different names for one record. */
describe("ids that the page names otherwise", () => {
  const Mongo = Todos.extend({ model: Backbone.Model.extend({ idAttribute: "_id" }) });

  it("idAttribute without parse: create, save, push, fetch, delete", async () => {
    const todos = await live([], Mongo);
    const model = todos.create({ n: 1 });
    await socket.reply(socket.takeOne("Todo:upsert"), { id: "x", n: 1 });
    await socket.frame(upsert({ id: "x", n: 1 }));
    assert.deepEqual(shown(todos), [["x", 1]]);
    await socket.frame(upsert({ id: "x", n: 2 }), upsert({ id: "y", n: 1 }));
    assert.deepEqual(shown(todos), [["x", 2], ["y", 1]]);
    assert.equal(model.isNew(), false);
    model.save({ n: 3 });
    const sent = socket.takeOne("Todo:upsert");
    assert.deepEqual(sent.data, { id: "x", n: 3 }); // the server's records have no field `_id`
    await socket.reply(sent, { id: "x", n: 3, rev: 1 });
    todos.get("y").save({ n: 4 }, { patch: true });
    await socket.reply(socket.takeOne("Todo:patch"), { id: "y", n: 4 });
    model.fetch();
    assert.deepEqual(socket.takeOne("Todo:read").data, { id: "x" });
    todos.fetch();
    await socket.reply(socket.takeOne("Todo:read"), [{ id: "x", n: 5 }, { id: "z", n: 6 }]);
    assert.deepEqual(shown(todos), [["x", 5], ["z", 6]]);
    todos.get("z").destroy();
    assert.deepEqual(socket.takeOne("Todo:delete").data, { id: "z" });
    await socket.frame(remove("x"));
    assert.equal(todos.length, 0);
  });

  it("idAttribute without parse, in a snapshot; with a parse, or a field of the server's, both names are sent", async () => {
    const todos = await live([{ id: "x", n: 1 }], Mongo);
    todos.get("x").save({ n: 2 });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: "x", n: 2 });
    todos.create({ _id: "mine", n: 3 });
    const sent = socket.takeOne("Todo:upsert");
    assert.deepEqual(sent.data, { id: "mine", n: 3 });
    await socket.reply(sent, sent.data);
    await socket.frame(upsert({ id: "mine", n: 4 }));
    assert.deepEqual(shown(todos), [["x", 2], ["mine", 4]]);

    const Parsing = Todos.extend({ model: Backbone.Model.extend({ idAttribute: "key", parse: ({ id, ...row }: any) => ({ key: id, ...row }) }) });
    const parsed = await live([{ id: 1, n: 1 }], Parsing);
    parsed.fetch();
    await socket.reply(socket.takeOne("Todo:read"), [{ id: 1, n: 2 }, { id: 2, n: 2 }]);
    assert.deepEqual(parsed.toJSON(), [{ key: 1, n: 2 }, { key: 2, n: 2 }]);
    parsed.get(2).save({ n: 3 });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 2, key: 2, n: 3 });
  });

  it("an accepted create with the id of a record that is here leaves one model", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    const model = todos.get(1);
    todos.create({ id: 1, n: 2 });
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 1, n: 2 } }, upsert({ id: 1, n: 2 }));
    assert.deepEqual([todos.length, todos.get(1) === model, model.get("n")], [1, true, 2]);
  });

  it("models of several classes", async () => {
    const Plain = Backbone.Model.extend({});
    const Named = Backbone.Model.extend({ idAttribute: "key" });
    const Mixed = Todos.extend({ model: ((row: any, options: any) => (row.kind === "named" ? new Named(row, options) : new Plain(row, options))) as any });
    const todos = await live([{ id: "a", n: 1 }, { id: "b", kind: "named", n: 2 }], Mixed);
    await socket.frame(upsert({ id: "a", n: 3 }), upsert({ id: "b", kind: "named", n: 4 }), upsert({ id: "c", kind: "named", n: 5 }));
    assert.deepEqual(shown(todos), [["a", 3], ["b", 4], ["c", 5]]);
    todos.get("b").save({ n: 6 });
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: "b", kind: "named", n: 6 });
    await socket.frame(remove("c"), remove("a"));
    assert.deepEqual(shown(todos), [["b", 6]]);
  });

  it("an id made of several fields: it changes, moves between rooms and leaves", async () => {
    const Cells = Todos.extend({ modelId: ({ row, column }: any) => `${row}/${column}` });
    const todos = new Cells() as any;
    const key = (room: string): object => ({ key: { room } });
    for (const room of ["a", "b"]) {
      todos.live({ query: { room } });
      await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([{ id: `${room}1`, room, row: 1, column: room, n: 1 }]), ...key(room) });
    }
    assert.deepEqual(shown(todos), [["a1", 1], ["b1", 1]]);
    const model = todos.get("1/a");
    await socket.frame(upsert({ id: "a1", room: "a", row: 2, column: "a", n: 2 }, key("a")));
    assert.equal(todos.get("2/a"), model);
    assert.equal(todos.get("1/a"), undefined);
    model.save({ column: "z" });
    const sent = socket.takeOne("Todo:upsert");
    assert.equal(sent.data.id, "a1");
    await socket.frame(upsert({ id: "a1", room: "a", row: 3, column: "a", n: 3 }, key("a"))); // under the unanswered write
    assert.deepEqual([todos.length, model.get("row"), model.get("column")], [2, 3, "z"]);
    await socket.reply(sent, { id: "a1", room: "a", row: 3, column: "z", n: 3 });
    await socket.frame(remove("a1", key("a")), upsert({ id: "a1", room: "b", row: 3, column: "z", n: 4 }, key("b")));
    assert.deepEqual(shown(todos), [["b1", 1], ["a1", 4]]);
    assert.equal(todos.get("3/z").get("room"), "b");
    await socket.frame(remove("a1", key("b")), remove("b1", key("b")));
    assert.equal(todos.length, 0);
  });

  it("an id that `parse` makes of several fields, in a field of its own or in place of the server's", async () => {
    for (const idAttribute of ["id", "uid"]) {
      const Model = Backbone.Model.extend({
        idAttribute,
        parse: (row: any) => ({ ...row, [idAttribute]: `${row.kind}-${row.id}` }),
        toJSON(this: any) {
          const { id, uid, ...others } = this.attributes;
          return others;
        },
      });
      const todos = await live([{ id: 1, kind: "x", n: 1 }], Todos.extend({ model: Model }));
      await socket.frame(upsert({ id: 1, kind: "x", n: 2 }), upsert({ id: 2, kind: "y", n: 1 }));
      assert.deepEqual(todos.map((model: any) => [model.id, model.get("n")]), [["x-1", 2], ["y-2", 1]]);
      todos.create({ kind: "z", n: 3 });
      await socket.reply(socket.takeOne("Todo:upsert"), { id: 3, kind: "z", n: 3 });
      await socket.frame(upsert({ id: 3, kind: "z", n: 4 }));
      todos.get("z-3").save({ n: 5 });
      const sent = socket.takeOne("Todo:upsert");
      assert.deepEqual([sent.data.id, sent.data.n], [3, 5]);
      await socket.reply(sent, { id: 3, kind: "z", n: 5 });
      todos.get("x-1").destroy();
      const gone = socket.takeOne("Todo:delete");
      assert.equal(gone.data.id, 1);
      await socket.frame(upsert({ id: 1, kind: "x", n: 9 }));
      assert.equal(todos.length, 2);
      await socket.reply(gone, {});
      await socket.frame(remove(1), remove(2), remove(3));
      assert.equal(todos.length, 0);
    }
  });

  it("1 and \"1\" are one record, and neither is the model in the first place", async () => {
    const todos = await live([{ id: 1, n: 1 }]);
    await socket.frame(upsert({ id: "1", n: 2 }), upsert({ id: "0", n: 3 }), upsert({ id: 0, n: 4 }));
    assert.deepEqual(todos.pluck("n"), [2, 4]);
    await socket.frame(remove("1"), remove(0));
    assert.equal(todos.length, 0);
  });

  it("a slug that is equal to another record's id is not taken for it", async () => {
    const Slugs = Todos.extend({ model: Backbone.Model.extend({ idAttribute: "slug" }) });
    const todos = await live([{ id: 1, slug: "2", n: 1 }, { id: 2, slug: "1", n: 2 }], Slugs);
    await socket.frame(upsert({ id: 2, slug: "1", n: 3 }));
    assert.deepEqual(shown(todos), [["2", 1], ["1", 3]]);
    todos.get("2").save({ slug: "first" });
    const sent = socket.takeOne("Todo:upsert");
    assert.deepEqual(sent.data, { id: 1, slug: "first", n: 1 });
    await socket.reply(sent, sent.data);
    await socket.frame(remove(2));
    assert.deepEqual(shown(todos), [["first", 1]]);
  });
});

describe("the lookup", () => {
  it("changes nothing about Backbone where ids and cids differ: the same calls give the same events and results", () => {
    const require = createRequire(import.meta.url);
    const file = require.resolve("backbone");
    const fresh = (): any => {
      delete require.cache[file];
      return require("backbone");
    };
    const run = (Own: any, seed: number): string[] => {
      let state = seed;
      const below = (limit: number): number => (state = (state * 48_271) % 2_147_483_647) % limit;
      const lines: string[] = [];
      const todos = new (Own.Collection.extend({ comparator: seed % 3 === 0 ? "n" : undefined }))();
      const other = new Own.Collection();
      todos.on("all", (name: string, model: any, where: any) => lines.push([name, model.id, where === todos, todos.pluck("id")].join(" ")));
      const row = (): object => (below(5) === 0 ? { n: below(9) } : { id: below(12), n: below(9) });
      for (let step = 0; step < 60; step += 1) {
        const model = todos.at(below(Math.max(1, todos.length)));
        const kind = below(11);
        if (kind < 3) todos.add([row(), row()], { merge: kind === 0, at: kind === 1 ? 0 : undefined });
        else if (kind < 5) todos.set([row(), model ?? row(), row()], { remove: kind === 3 });
        else if (kind === 5) todos.remove([below(12), model, model?.cid, below(12)]);
        else if (kind === 6) model?.set({ id: 20 + step });
        else if (kind === 7 && model !== undefined) other.add(model);
        else if (kind === 8) todos.reset([row(), model ?? row()]);
        else if (kind === 9) model?.trigger("destroy", model, todos);
        else model?.set({ n: below(9) });
        for (let id = 0; id < 12; id += 1) lines.push(String(todos.get(id)?.get("n")));
        lines.push(String(todos.has(model)), String(todos.get(model?.cid)?.id), String(todos.get({ id: 3 })?.get("n")));
      }
      return lines;
    };
    for (let seed = 1; seed < 200; seed += 1) {
      const plain = fresh();
      const patched = fresh();
      install(patched, () => connection);
      assert.deepEqual(run(patched, seed), run(plain, seed), `seed ${seed}`);
    }
  });
});

/** Kind: Backbone's collections and ours must show the same, whatever the ids. */
describe("any ids", () => {
  it("a Backbone collection shows what a LiveCollection does", async () => {
    const mixed = ["c1", "c2", 701, "702", "toString", "constructor", "a/b", "", "0", "x y"];
    for (let seed = 1; seed <= Number(process.env.SEEDS ?? 40); seed += 1) {
      let state = seed;
      const below = (limit: number): number => (state = (state * 48_271) % 2_147_483_647) % limit;
      const first = nextNumber();
      const ids = [...mixed, ...Array.from({ length: 12 }, (_, index) => `c${first + index}`)];
      const reference = new ReferenceServer();
      const pages = [0, 1].map(() => {
        const host = new VirtualHost();
        const wire = new Wire(reference);
        return { host, wire, connection: new Connection("http://test.invalid", {}, host, wire.open) };
      });
      const [one, two] = pages as [(typeof pages)[0], (typeof pages)[0]];
      const Class = [Todos, Todos.extend({ model: Backbone.Model.extend({ idAttribute: "_id" }) }), Todos.extend({ modelId: ({ id, n }: any) => `${n}-${id}` })][seed % 3];
      const todos = new (Class as any)();
      todos.live({ connection: one.connection });
      const wanted = new LiveCollection(two.connection, "Todo");
      const deliver = async (): Promise<void> => {
        for (const { wire } of pages) {
          wire.answer();
          await settle();
          wire.link?.hear(Infinity);
          wire.link?.say(Infinity, 1);
          await settle();
          wire.link?.hear(Infinity);
          wire.link?.say(Infinity, 1);
        }
        await settle();
      };
      for (let step = 0; step < 60; step += 1) {
        const id = ids[below(ids.length)];
        const kind = below(12);
        const model = todos.at(below(Math.max(1, todos.length)));
        if (kind < 4) reference.write(id, { id, n: below(5) });
        else if (kind < 6) reference.write(id, null);
        else if (kind < 7) wanted.upsert({ id, n: below(5) });
        else if (kind < 9) model?.save({ n: below(5) });
        else if (kind < 10) model?.destroy();
        else if (kind < 11) todos.create({ n: below(5) });
        else reference.forget();
        if (below(3) === 0) await deliver();
      }
      await deliver();
      await deliver();
      const rows = todos.models.map(({ attributes }: any) => [String(attributes.id), attributes.n]).sort();
      assert.deepEqual(rows, wanted.records.map((record) => [String(record.id), record.n]).sort(), `seed ${seed}`);
      assert.deepEqual(rows, [...reference.records.values()].map((record) => [String(record.id), record.n]).sort(), `seed ${seed}`);
      for (const { connection: used } of pages) used.close();
    }
  });
});
