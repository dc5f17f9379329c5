/** LiveCollection: records without Backbone, under the page's own writes. */

import assert from "node:assert/strict";
import { beforeEach, describe, it, mock } from "node:test";

import type { Connection } from "../src/connection.js";
import { LiveCollection } from "../src/live.js";
import type { ServerRecord } from "../src/protocol.js";
import { connected, type FakeServer, type FakeSocket, settle, type VirtualHost } from "./fakes.js";

let server: FakeServer;
let connection: Connection;
let socket: FakeSocket;
let host: VirtualHost;
let seq = 10;
beforeEach(async () => ({ server, connection, socket, host } = await connected()));

const upsert = (data: object, extra: object = {}): object => ({ event: "Todo:upsert", data, seq: (seq += 1), ...extra });
const remove = (id: unknown, extra: object = {}): object => ({ event: "Todo:delete", data: { id }, seq: (seq += 1), ...extra });
const snapshot = (records: object[]): object => ({ mode: "snapshot", epoch: "e1", seq: (seq += 1), records });

async function live(records: object[] = [], options = {}): Promise<{ todos: LiveCollection; told: () => number }> {
  const todos = new LiveCollection(connection, "Todo", options);
  await socket.reply(socket.takeOne("Todo:subscribe"), snapshot(records));
  await todos.ready;
  let count = 0;
  todos.subscribe(() => (count += 1));
  return { todos, told: () => [count, (count = 0)][0] as number };
}

describe("LiveCollection", () => {
  it("follows the server, tells once for each frame, and keeps what has not changed as it is", async () => {
    const { todos, told } = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    const before = todos.records;
    assert.equal(todos.getSnapshot(), before);
    await socket.frame(upsert({ id: 3, n: 1 }), upsert({ id: 1, n: 2 }), remove(9), upsert({ id: 3, n: 3 }));
    assert.equal(told(), 1);
    assert.deepEqual(todos.records, [{ id: 1, n: 2 }, { id: 2, n: 1 }, { id: 3, n: 3 }]);
    assert.equal(todos.records[1], before[1]);
    assert.equal(todos.get(2), before[1]);
    assert.equal(todos.get("2"), before[1]);
    assert.equal(todos.get("02"), undefined);
    const after = todos.records;
    await socket.frame(upsert({ id: 1, n: 2 }), { event: "Todo:typing", data: {} });
    assert.equal(todos.records, after);
    assert.equal(Object.isFrozen(after) && Object.isFrozen(after[0]), true);
    await socket.frame(remove(2));
    assert.deepEqual(todos.records.map(({ id }) => id), [1, 3]);
  });

  it("takes 1 and \"1\" for one id, as the server does", async () => {
    const { todos } = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }, { id: "3", n: 1 }]);
    await socket.frame(remove("1"), upsert({ id: 3, n: 2 }));
    assert.deepEqual(todos.records, [{ id: 2, n: 1 }, { id: 3, n: 2 }]);
    const written = todos.upsert({ id: "2", n: 2 });
    const changed = todos.patch(2, { n: 3 });
    assert.deepEqual([todos.records.length, todos.pending, todos.get(2)?.n, todos.get("2")?.n], [2, 1, 3, 3]);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 2, n: 2 });
    await socket.reply(socket.takeOne("Todo:patch"), { id: 2, n: 3 });
    await Promise.all([written, changed]);
    assert.deepEqual(todos.records, [{ id: 2, n: 3 }, { id: 3, n: 2 }]);
    void todos.delete("3");
    assert.deepEqual(todos.records, [{ id: 2, n: 3 }]);
    await socket.reply(socket.takeOne("Todo:delete"), {});
    assert.equal(todos.pending, 0);
  });

  it("has the server's order, or the page's", async () => {
    const { todos } = await live([{ id: 2 }, { id: 1 }]);
    await socket.frame(upsert({ id: 0 }), upsert({ id: 2 }));
    assert.deepEqual(todos.records.map(({ id }) => id), [2, 1, 0]);
    const sorted = await live([{ id: 2 }, { id: 1 }], { sort: (one: ServerRecord, other: ServerRecord) => Number(one.id) - Number(other.id) });
    assert.deepEqual(sorted.todos.records.map(({ id }) => id), [1, 2]);
  });

  it("shows writes at once, under pushes, and lets them settle", async () => {
    const { todos, told } = await live([{ id: 1, n: 1, m: 1, due: 5 }]);
    const written = todos.patch(1, { n: 2, due: undefined });
    assert.deepEqual(todos.records, [{ id: 1, n: 2, m: 1 }]);
    assert.equal(todos.pending, 1);
    await settle();
    assert.equal(told(), 1);
    const sent = socket.takeOne("Todo:patch");
    assert.deepEqual([sent.data, sent.unset], [{ id: 1, n: 2 }, ["due"]]);
    await socket.frame(upsert({ id: 1, n: 9, m: 2, due: 5 }));
    assert.deepEqual(todos.records, [{ id: 1, n: 2, m: 2 }]);
    const shown = todos.records;
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 1, n: 2, m: 2 } }, upsert({ id: 1, n: 2, m: 2 }));
    assert.deepEqual(await written, { id: 1, n: 2, m: 2 });
    assert.equal(todos.records, shown);
    assert.equal(todos.pending, 0);
  });

  it("takes back what is refused, and only that", async () => {
    const { todos } = await live([{ id: 1, a: 0, b: 0 }]);
    const first = todos.patch(1, { a: 1, b: 1 });
    const second = todos.patch(1, { b: 2 });
    const third = todos.delete(1);
    assert.deepEqual(todos.records, []);
    await socket.refuse(socket.takeOne("Todo:patch"), "forbidden");
    await assert.rejects(first, { code: "forbidden" });
    const fourth = todos.upsert({ id: 1, a: 3, b: 3 });
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden"); // what the second write changed is part of that
    await assert.rejects(second, { code: "forbidden" });
    await assert.rejects(third, { code: "forbidden" });
    assert.deepEqual(todos.records, [{ id: 1, a: 3, b: 3 }]);
    await socket.refuse(socket.takeOne("Todo:upsert"), "conflict", { current: { id: 1, a: 5, b: 5 } });
    await assert.rejects(fourth, { code: "conflict" });
    assert.deepEqual(todos.records, [{ id: 1, a: 5, b: 5 }]);
  });

  it("a new record gets its id, whichever comes first, reply or push; a refused one goes", async () => {
    const { todos } = await live();
    const [one, two, three] = [todos.upsert({ n: 1 }), todos.upsert({ n: 2 }), todos.upsert({ n: 3 })];
    assert.deepEqual(todos.records, [{ n: 1 }, { n: 2 }, { n: 3 }]);
    const [first, second, third] = socket.take();
    await socket.frame({ id: first!.id, event: "Todo:upsert", data: { id: 5, n: 1 } }, upsert({ id: 5, n: 1 }), upsert({ id: 6, n: 2, likes: 1 }));
    await socket.reply(second!, { id: 6, n: 2 });
    await socket.refuse(third!, "invalid");
    assert.deepEqual(await one, { id: 5, n: 1 });
    assert.deepEqual(await two, { id: 6, n: 2 });
    await assert.rejects(three, { code: "invalid" });
    assert.deepEqual(todos.records, [{ id: 5, n: 1 }, { id: 6, n: 2, likes: 1 }]);
    assert.deepEqual(todos.get(6), { id: 6, n: 2, likes: 1 });
  });

  it("a record that was deleted by others stays while a write of it has no answer, which decides", async () => {
    const { todos } = await live([{ id: 1, n: 1, m: 1 }, { id: 2, n: 1 }]);
    void todos.upsert({ id: 1, n: 2, m: 1 });
    void todos.patch(2, { n: 2 });
    const [one, two] = socket.take();
    await socket.frame(remove(1), remove(2));
    assert.deepEqual(todos.records, [{ id: 1, n: 2, m: 1 }, { id: 2, n: 2 }]);
    await socket.reply(one!, { id: 1, n: 2, m: 1 });
    await socket.refuse(two!, "not_found");
    assert.deepEqual(todos.records, [{ id: 1, n: 2, m: 1 }]);
  });

  it("an upsert after a delete is the whole new record", async () => {
    const { todos } = await live([{ id: 1, n: 1, old: true }]);
    void todos.delete(1);
    void todos.upsert({ id: 1, n: 1 });
    assert.deepEqual(todos.records, [{ id: 1, n: 1 }]);
    await socket.reply(socket.takeOne("Todo:delete"), {});
    assert.deepEqual(todos.records, [{ id: 1, n: 1 }]);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, n: 1 });
    assert.deepEqual(todos.records, [{ id: 1, n: 1 }]);
  });

  it("works offline, catches up, and a snapshot replaces all but what is pending", async () => {
    const { todos } = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    await socket.cut();
    assert.equal(todos.status, "offline");
    for (let n = 2; n < 100; n += 1) void todos.patch(1, { n });
    void todos.upsert({ n: "new" });
    assert.equal(todos.pending, 2);
    await host.advance(1000);
    socket = await server.accept();
    const [edit, creation, subscribe] = socket.take();
    assert.equal(todos.status, "behind");
    assert.deepEqual(edit?.data, { id: 1, n: 99 });
    await socket.reply(subscribe!, snapshot([{ id: 3 }]));
    assert.deepEqual(todos.records, [{ id: 3 }, { id: 1, n: 99 }, { n: "new" }]);
    await socket.refuse(edit!, "not_found");
    await socket.reply(creation!, { id: 4, n: "new" });
    assert.deepEqual(todos.records, [{ id: 3 }, { id: 4, n: "new" }]);
    assert.equal(todos.status, "live");
  });

  it("a delete in its room removes the record, wherever our copy says that it is", async () => {
    const { todos } = await live([{ id: 1, room: "a" }], { query: { room: "a" } });
    void todos.patch(1, { room: "b" });
    const sent = socket.takeOne("Todo:patch");
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 1, room: "b" } }, remove(1, { key: { room: "a" } }));
    assert.deepEqual(todos.records, []);
  });

  it("refused: `ready` rejects, status and error tell; closed: the records stay", async () => {
    const refused = new LiveCollection(connection, "Todo");
    let told = 0;
    refused.subscribe(() => (told += 1));
    const warned = mock.method(console, "warn", () => {});
    await socket.refuse(socket.takeOne("Todo:subscribe"), "forbidden");
    await assert.rejects(refused.ready, { code: "forbidden" });
    assert.match(String(warned.mock.calls[0]?.arguments[0]), /Todo is not live: no: forbidden/);
    warned.mock.restore();
    assert.deepEqual([refused.status, refused.error?.code], ["closed", "forbidden"]);
    assert.ok(told > 0);
    const { todos } = await live([{ id: 1 }]);
    todos.close();
    todos.close();
    socket.takeOne("Todo:unsubscribe");
    await socket.frame(remove(1));
    assert.deepEqual(todos.records, [{ id: 1 }]);
    assert.equal(todos.status, "closed");
    assert.throws(() => new LiveCollection(connection, "Todo", { querry: {} } as never), /does not know the option "querry".*query, sort, page, order/);
    assert.throws(() => todos.patch(undefined, {}), /undefined is no id/);
  });

  it("tells why the server cannot let it catch up, until it can", async () => {
    const todos = new LiveCollection(connection, "Todo");
    await socket.refuse(socket.takeOne("Todo:subscribe"), "unavailable");
    assert.deepEqual([todos.status, todos.error?.code], ["behind", "unavailable"]);
    await host.advance(500);
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e1", seq: 1, records: [{ id: 1 }] });
    await todos.ready;
    assert.deepEqual([todos.status, todos.error], ["live", null]);
    for (const code of ["timeout", "handler_error"]) {
      await socket.cut();
      await host.advance(1000);
      socket = await server.accept();
      await socket.refuse(socket.takeOne("Todo:subscribe"), code);
      assert.deepEqual([todos.status, todos.error?.code, todos.records.length], ["behind", code, 1]);
      await host.advance(500);
      let told = 0;
      todos.subscribe(() => (told += 1));
      await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "resume", epoch: "e1", seq: 1 });
      assert.deepEqual([todos.status, todos.error, told > 0], ["live", null, true]);
    }
  });

  it("shows nothing any more that the server refuses after a cut, but what is pending", async () => {
    const { todos, told } = await live([{ id: 1, n: 1 }, { id: 2, n: 1 }]);
    const written = todos.patch(2, { n: 2 });
    await socket.cut();
    await host.advance(1000);
    socket = await server.accept();
    const [edit, subscribe] = socket.take();
    told();
    await socket.refuse(subscribe!, "forbidden");
    assert.equal(told(), 1);
    assert.deepEqual(todos.records, [{ id: 2, n: 2 }]);
    assert.deepEqual([todos.status, todos.error?.code, connection.status], ["closed", "forbidden", "live"]);
    await socket.refuse(edit!, "forbidden");
    await assert.rejects(written, { code: "forbidden" });
    assert.deepEqual(todos.records, []);
  });

  it("a new record is of the room that is followed; one of another room leaves at the answer", async () => {
    const todos = new LiveCollection(connection, "Todo", { query: { room: "a" } });
    await socket.reply(socket.takeOne("Todo:subscribe"), { ...snapshot([]), key: { room: "a" } });
    void todos.upsert({ text: "here" });
    void todos.upsert({ id: "x", text: "there", room: "b" });
    const [here, there] = socket.take();
    assert.deepEqual(here!.data, { text: "here", room: "a" });
    assert.equal(todos.records.length, 2);
    await socket.reply(here!, { id: 1, ...here!.data });
    await socket.reply(there!, there!.data);
    assert.deepEqual(todos.records, [{ id: 1, text: "here", room: "a" }]);
  });

  it("takes back what JSON cannot carry, and refuses to follow such a query", async () => {
    const { todos } = await live([{ id: 1, n: 1 }]);
    for (const written of [todos.patch(1, { n: 5n }), todos.upsert({ id: 1, n: 5n }), todos.upsert({ n: 5n })]) {
      await assert.rejects(written, { code: "invalid", message: /JSON cannot carry its data .*BigInt/ });
    }
    assert.deepEqual([todos.records, todos.pending, connection.pending], [[{ id: 1, n: 1 }], 0, 0]);
    const notes = new LiveCollection(connection, "Note", { query: { n: 5n } });
    const note = notes.upsert({ text: "a" });
    await assert.rejects(notes.ready, { code: "invalid" });
    await socket.refuse(socket.takeOne("Note:upsert"), "invalid"); // nobody will say what else it needs
    await assert.rejects(note, { code: "invalid" });
    assert.equal(socket.take().length, 0);
    await socket.cut();
    await host.advance(1000);
    (await server.accept()).takeOne("Todo:subscribe");
  });

  it("says at once what it needs", () => {
    for (const wrong of [undefined, "/backsync", {}]) {
      assert.throws(() => new LiveCollection(wrong as never, "Todo"), { code: "usage", message: /needs a connection first/ });
    }
    for (const wrong of [[], ["Todo"], ["Todo", { snapshot() {}, changes() {} }], ["Todo", {}, () => {}], [5, {}, { snapshot() {}, changes() {} }]]) {
      assert.throws(() => connection.subscribe(...(wrong as [never, never, never])), { code: "usage", message: /subscribe\(\) needs a model's name/ });
    }
    assert.equal(socket.take().length, 0);
  });

  it("goes on when a listener throws, and tells no one who has left", async () => {
    const { todos, told } = await live();
    todos.subscribe(() => {
      throw new Error("listener");
    });
    const leave = todos.subscribe(() => assert.fail("has left"));
    leave();
    await socket.frame(upsert({ id: 1 }));
    assert.equal(told(), 1);
    assert.match(String(host.reported), /listener/);
    assert.equal(todos.records.length, 1);
  });
});

describe("frames", () => {
  it("apply all changes of a frame in one go, in however many messages they came", async () => {
    const { todos, told } = await live([{ id: 1, n: 0 }]);
    host.drawFrames();
    for (let n = 1; n <= 100; n += 1) await socket.frame(upsert({ id: 1, n }), upsert({ id: `new${n}`, n }));
    assert.deepEqual([todos.records.length, told()], [1, 0]);
    await host.paint();
    assert.deepEqual([todos.records.length, todos.get(1)?.n, told()], [101, 100, 1]);
    await host.paint();
    assert.equal(told(), 0);
  });

  it("are not waited for by answers, nor by what came before an answer", async () => {
    const { todos } = await live([{ id: 1, n: 0 }, { id: 2, n: 0 }]);
    host.drawFrames();
    const written = todos.patch(1, { n: 1 });
    const sent = socket.takeOne("Todo:patch");
    await socket.frame(upsert({ id: 2, n: 5 }), upsert({ id: 1, n: 7, m: 7 }));
    await socket.frame({ id: sent.id, event: sent.event, data: { id: 1, n: 1, m: 7 } }, upsert({ id: 3, n: 3 }));
    await written;
    assert.deepEqual(todos.records, [{ id: 1, n: 1, m: 7 }, { id: 2, n: 5 }, { id: 3, n: 3 }]);
  });

  it("are waited for by answers, in their order, once applying has taken too much of the present one", async () => {
    const { todos } = await live([{ id: 1, n: 0 }]);
    host.drawFrames();
    todos.subscribe(() => void (host.time += 10)); // a page that draws slowly
    const answered: unknown[] = [];
    for (const n of [1, 2]) {
      void connection.call("Todo:count", n).then((count) => answered.push([count, todos.get(1)?.n]));
    }
    const calls = socket.take();
    await socket.frame(upsert({ id: 1, n: 1 }), { id: calls[0]!.id, event: "Todo:count", data: 1 });
    await socket.frame(upsert({ id: 1, n: 2 }), { id: calls[1]!.id, event: "Todo:count", data: 2 }, upsert({ id: 1, n: 3 }));
    assert.deepEqual(answered, [[1, 1]]);
    await host.paint();
    assert.deepEqual(answered, [[1, 1], [2, 3]]);
  });

  it("lose nothing of what has arrived where the socket or the page ends before the next one", async () => {
    const { todos } = await live([]);
    host.drawFrames();
    const call = connection.call("Todo:count");
    const [sent] = socket.take();
    await socket.frame(upsert({ id: 1, n: 1 }));
    await socket.cut();
    assert.deepEqual(todos.records, [{ id: 1, n: 1 }]);
    await host.advance(1000);
    socket = await server.accept();
    const again = socket.take().find(({ event }) => event === "Todo:count")!;
    assert.equal(again.id, sent!.id);
    socket.handlers.message(JSON.stringify({ id: again.id, event: again.event, data: 5 }));
    connection.close();
    assert.equal(await call, 5);
  });
});

describe("refused writes", () => {
  let warnings: string[] = [];
  beforeEach(() => {
    warnings = [];
    mock.method(console, "warn", (text: string) => void warnings.push(text));
  });
  const refuse = async (event: string): Promise<void> => {
    await socket.refuse(socket.takeOne(event), "invalid");
    await host.advance(1);
  };

  it("are warned of where the page leaves their promise alone, with what was refused and why", async () => {
    const { todos } = await live([{ id: 1, n: 1 }]);
    void todos.upsert({ id: 2 });
    await refuse("Todo:upsert");
    void todos.patch(1, { n: 2 });
    await refuse("Todo:patch");
    void todos.delete(1);
    await refuse("Todo:delete");
    assert.deepEqual(warnings, ["upsert", "patch", "delete"].map((method) => `backsync: Todo:${method} was refused: no: invalid (invalid)`));
  });

  it("are not warned of where the page takes their promise, in whatever way", async () => {
    const { todos } = await live([{ id: 1, n: 1 }]);
    const taking: ((promise: Promise<unknown>) => unknown)[] = [
      (promise) => promise.catch(() => {}),
      (promise) => promise.then(() => {}, () => {}),
      (promise) => Promise.allSettled([promise]),
      async (promise) => {
        try {
          await promise;
        } catch {
          // As a page does.
        }
      },
    ];
    for (const take of taking) {
      void take(todos.patch(1, { n: 2 }));
      await refuse("Todo:patch");
    }
    assert.deepEqual(warnings, []);
  });

  it("are not warned of where it was the page that gave them up", async () => {
    const { todos } = await live([{ id: 1, n: 1 }]);
    void todos.patch(1, { n: 2 });
    connection.discard();
    void todos.patch(1, { n: 3 });
    connection.close();
    await host.advance(1);
    assert.deepEqual(warnings, []);
  });
});

describe("the snapshot of a view", () => {
  it("is another one whenever anything that the page may draw is: records, status, pending, error, hasMore", async () => {
    const todos = new LiveCollection(connection, "Todo");
    const seen: unknown[] = [];
    const look = (): boolean => {
      const snapshot = todos.getSnapshot();
      assert.equal(todos.getSnapshot(), snapshot); // or React would never end
      assert.deepEqual(snapshot, todos.records);
      return seen.push(snapshot) === 1 || snapshot !== seen.at(-2);
    };
    todos.subscribe(() => {});
    look();
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([])); // empty, as before, but live
    assert.equal(look(), true);
    const written = todos.upsert({ id: 1 });
    assert.equal(look(), true);
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1 });
    await written;
    assert.deepEqual([look(), todos.pending], [true, 0]); // the same records, and nothing is waiting
    assert.equal(look(), false);
    await socket.cut();
    assert.deepEqual([look(), todos.status], [true, "offline"]);
  });

  it("has a key for each record that stays when it gets its id, and through later changes and snapshots", async () => {
    const { todos } = await live([{ id: 1 }]);
    void todos.upsert({ n: 1 });
    const [, before] = todos.records.map(todos.keyOf);
    assert.notEqual(before, "");
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 2, n: 1 });
    assert.equal(todos.keyOf(todos.get(2)!), before);
    await socket.frame(upsert({ id: 2, n: 2 }));
    const keys = todos.records.map(todos.keyOf);
    assert.deepEqual([new Set(keys).size, keys[1]], [2, before]);
  });
});

describe("following while somebody subscribes", () => {
  it("begins again after close(), as where React mounts a component twice", async () => {
    const { todos } = await live([{ id: 1 }]);
    const leave = todos.subscribe(() => {});
    leave();
    todos.close();
    assert.equal(todos.status, "closed");
    socket.take();
    todos.subscribe(() => {});
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 2 }]));
    assert.equal(await todos.ready, todos);
    assert.deepEqual([todos.status, todos.records], ["live", [{ id: 2 }]]);
  });

  it("is all that a lazy one does: none before the first subscriber, none after the last", async () => {
    const todos = new LiveCollection(connection, "Todo", { lazy: true });
    await settle();
    assert.deepEqual([socket.take(), todos.status], [[], "behind"]);
    const leave = todos.subscribe(() => {});
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 1 }]));
    await todos.ready;
    leave();
    const again = todos.subscribe(() => {}); // at once: it was not worth ending
    await host.advance(10_000);
    assert.deepEqual(socket.take(), []);
    again();
    again(); // once counts
    await host.advance(1000);
    socket.takeOne("Todo:unsubscribe");
    assert.deepEqual(todos.records, [{ id: 1 }]);
    todos.subscribe(() => {});
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshot([{ id: 2 }]));
    assert.deepEqual(todos.records, [{ id: 2 }]);
  });

  it("leaves nothing behind where nobody ever subscribed", async () => {
    const timers = host.timers;
    for (let n = 0; n < 10; n += 1) new LiveCollection(connection, "Todo", { lazy: true });
    assert.equal(host.timers, timers);
    connection.close();
    await settle();
    assert.deepEqual(host.reported, []);
  });
});

describe("a collection of one room", () => {
  it("gives its key fields to every whole record that is written in it, new or not", async () => {
    const cursors = new LiveCollection(connection, "Cursor", { query: { room: "a" } });
    await socket.reply(socket.takeOne("Cursor:subscribe"), { ...snapshot([{ id: 1, x: 1, room: "a" }]), key: { room: "a" } });
    void cursors.upsert({ id: 1, x: 2 });
    const sent = socket.takeOne("Cursor:upsert");
    assert.deepEqual(sent.data, { id: 1, x: 2, room: "a" });
    assert.deepEqual(cursors.get(1), { id: 1, x: 2, room: "a" });
    await socket.reply(sent, { id: 1, x: 2, room: "a" });
    void cursors.upsert({ id: 1, x: 3, room: "b" }); // the page's own word counts
    assert.deepEqual(socket.takeOne("Cursor:upsert").data, { id: 1, x: 3, room: "b" });
  });
});
