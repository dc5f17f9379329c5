/** The outbox: writes that wait, join, follow a creation, are kept over reloads; and the page that introduces itself first. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import { LiveCollection } from "../src/live.js";
import { coalesce } from "../src/coalesce.js";
import { Connection, type ConnectionOptions } from "../src/connection.js";
import type { BacksyncError } from "../src/errors.js";
import { connected, FakeServer, type FakeSocket, settle } from "./fakes.js";
import { Disk } from "./reference.js";

type Watched = { state: "pending" | "resolved" | "rejected"; value: any };

function watch(promise: Promise<unknown>): Watched {
  const seen: Watched = { state: "pending", value: undefined };
  promise.then(
    (value) => Object.assign(seen, { state: "resolved", value }),
    (value) => Object.assign(seen, { state: "rejected", value }),
  );
  return seen;
}

const write = (method: string, data: object, extra: object = {}): { event: string; data: object } => ({ event: `Todo:${method}`, data, ...extra });
const bodies = (socket: FakeSocket): unknown[] => socket.take().map(({ id: _, ...message }) => message);

describe("two writes of one record as one", () => {
  const cases: [string, object, object, unknown][] = [
    ["upsert, upsert", write("upsert", { id: 1, a: 1 }), write("upsert", { id: 1, b: 2 }), write("upsert", { id: 1, b: 2 })],
    ["patch, upsert", write("patch", { id: 1, a: 1 }), write("upsert", { id: 1, b: 2 }), write("upsert", { id: 1, b: 2 })],
    ["upsert, patch", write("upsert", { id: 1, a: 1, c: 3 }), write("patch", { id: 1, b: 2 }, { unset: ["c"] }), write("upsert", { id: 1, a: 1, b: 2 })],
    ["creation, patch", write("upsert", { a: 1 }), write("patch", { a: 2 }), write("upsert", { a: 2 })],
    ["patch, patch", write("patch", { id: 1, a: 1 }, { unset: ["b", "c"] }), write("patch", { id: 1, b: 2 }, { unset: ["a"] }), write("patch", { id: 1, b: 2 }, { unset: ["c", "a"] })],
    ["edit, delete", write("patch", { id: 1, a: 1 }), write("delete", { id: 1 }), write("delete", { id: 1 })],
    ["creation, delete", write("create", { a: 1 }), write("delete", {}), "nothing"],
    ["delete, upsert", write("delete", { id: 1 }), write("update", { id: 1, a: 1 }), write("update", { id: 1, a: 1 })],
    ["delete, patch", write("delete", { id: 1 }), write("patch", { id: 1, a: 1 }), null],
    ["anything, a custom method", write("upsert", { id: 1 }), write("archive", { id: 1 }), null],
    ["arrays", write("upsert", [{ id: 1 }]), write("upsert", [{ id: 1 }]), null],
  ];
  for (const [name, first, second, expected] of cases) {
    it(name, () => assert.deepEqual(coalesce(first as never, second as never), expected));
  }
});

describe("without a connection", () => {
  it("writes of 1 and of \"1\" are writes of one record", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const calls = [watch(connection.call("Todo:patch", { id: 1, n: 1 })), watch(connection.call("Todo:patch", { id: "1", m: 2 }))];
    assert.equal(connection.pending, 1);
    const socket = await server.accept();
    const sent = socket.takeOne("Todo:patch");
    assert.deepEqual(sent.data, { id: "1", n: 1, m: 2 });
    await socket.reply(sent, { id: 1, n: 1, m: 2 });
    assert.deepEqual(calls.map(({ state }) => state), ["resolved", "resolved"]);
  });

  it("1 000 edits of 10 records are 10 messages, each caller gets the reply that covers its edit", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const calls = Array.from({ length: 1000 }, (_, index) => watch(connection.call("Todo:upsert", { id: index % 10, n: index })));
    assert.equal(connection.pending, 10);
    const socket = await server.accept();
    const sent = socket.take();
    assert.deepEqual(sent.map(({ data }) => data), Array.from({ length: 10 }, (_, id) => ({ id, n: 990 + id })));
    for (const message of sent) await socket.reply(message, { ...message.data, stored: true });
    assert.deepEqual(calls.map(({ value }) => value), Array.from({ length: 1000 }, (_, index) => ({ id: index % 10, n: 990 + (index % 10), stored: true })));
    assert.equal(connection.pending, 0);
  });

  it("writes wait as long as it takes; only what has a timeout of its own, and what is no write, does not", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const patient = watch(connection.call("Todo:upsert", { id: 1, n: 1 }));
    const hasty = watch(connection.call("Todo:upsert", { id: 1, n: 2 }, { timeout: 1000 }));
    const question = watch(connection.call("Todo:read", { id: 1 }));
    await server.host.advance(1000);
    assert.equal(hasty.value.code, "timeout");
    await server.host.advance(24 * 3_600_000);
    assert.equal(question.value.code, "timeout");
    assert.equal(patient.state, "pending");
    server.host.network(true);
    const socket = await server.accept();
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 1, n: 2 });
    assert.equal(patient.state, "resolved");
  });

  it("what has left is never changed, only sent again; what comes later joins behind it", async () => {
    const { server, connection, socket, host } = await connected();
    const first = watch(connection.call("Todo:upsert", { id: 1, n: 1 }));
    const sent = socket.takeOne("Todo:upsert");
    await socket.cut();
    for (const n of [2, 3]) connection.call("Todo:patch", { id: 1, n }).catch(() => {});
    connection.call("Todo:upsert", { id: 2 }).catch(() => {});
    await host.advance(1000);
    const again = await server.accept();
    const [repeated, other] = again.take();
    assert.deepEqual(repeated, sent);
    assert.deepEqual(other?.data, { id: 2 });
    await again.reply(repeated!, { id: 1, n: 1 });
    assert.deepEqual(first.value, { id: 1, n: 1 });
    assert.deepEqual(again.takeOne("Todo:patch").data, { id: 1, n: 3 });
  });

  it("nothing joins over a custom method of the same model in between", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    for (const [event, data] of [["Todo:upsert", { id: 1, n: 1 }], ["Todo:clear", {}], ["Todo:upsert", { id: 1, n: 2 }], ["Note:clear", {}], ["Todo:upsert", { id: 1, n: 3 }]] as const) {
      connection.call(event, data).catch(() => {});
    }
    const socket = await server.accept();
    const [first, ...others] = socket.take();
    assert.deepEqual([first, ...others].map((sent) => [sent!.event, sent!.data]), [["Todo:upsert", { id: 1, n: 1 }], ["Todo:clear", {}], ["Note:clear", {}]]);
    await socket.reply(first!, { id: 1, n: 1 });
    assert.deepEqual(bodies(socket), [{ event: "Todo:upsert", data: { id: 1, n: 3 } }]);
  });

  it("nothing but writes of other records overtakes one that waits for an answer", async () => {
    const { connection, socket } = await connected();
    for (const [event, data] of [["upsert", { id: 1, rev: 1 }], ["upsert", { id: 1, rev: 1, n: 2 }], ["upsert", { id: 2 }], ["read", { id: 1 }], ["upsert", { id: 3 }]] as const) {
      connection.call(`Todo:${event}`, data).catch(() => {});
    }
    const [first, second] = socket.take();
    assert.deepEqual([first!.data, second!.data], [{ id: 1, rev: 1 }, { id: 2 }]);
    await socket.reply(first!, { id: 1, rev: 2 });
    assert.deepEqual(bodies(socket), [
      { event: "Todo:upsert", data: { id: 1, rev: 2, n: 2 } },
      { event: "Todo:read", data: { id: 1 } },
      { event: "Todo:upsert", data: { id: 3 } },
    ]);
  });

  it("has limits, in messages and in characters, and says so; what joins still fits", async () => {
    const connection = new FakeServer().connection();
    for (let id = 0; id < 1000; id += 1) connection.call("Todo:upsert", { id }).catch(() => {});
    const tooMany = watch(connection.call("Todo:upsert", { id: "one more" }));
    const joins = watch(connection.call("Todo:upsert", { id: 5, n: 1 }));
    const large = new FakeServer().connection();
    for (let id = 0; id < 4; id += 1) large.call("Todo:upsert", { id, text: "x".repeat(1_000_000) }).catch(() => {});
    const tooLarge = watch(large.call("Todo:upsert", { id: 5, text: "x".repeat(1_000_000) }));
    await settle();
    assert.match(tooMany.value.message, /Todo:upsert was not sent: 1000 messages are waiting/);
    assert.match(tooLarge.value.message, /4000\d+ characters are waiting/);
    assert.equal(joins.state, "pending");
    assert.equal(connection.pending, 1000);
  });
});

describe("what is too large for the server", () => {
  const limits = { message: 200 };
  const large = "ü".repeat(100); // 100 characters, 200 bytes

  it("is rejected at once; all else goes on", async () => {
    const server = new FakeServer();
    const connection = server.connection().open();
    const socket = await server.accept(25, limits);
    const refused = watch(connection.call("Todo:upsert", { id: 1, text: large }));
    connection.call("Todo:upsert", { id: 2, text: "x".repeat(100) }).catch(() => {});
    await settle();
    assert.deepEqual([refused.value.code, refused.value.details], ["too_large", { limit: 200 }]);
    assert.match(refused.value.message, /Todo:upsert was not sent: it has 2\d\d bytes, and the server takes 200/);
    assert.equal(socket.takeOne("Todo:upsert").data.id, 2);
  });

  it("is rejected when the limit becomes known; what has joined others is not more than usual", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const refused = watch(connection.call("Todo:upsert", { id: 1, text: large }));
    connection.call("Todo:upsert", { id: 2 }).catch(() => {});
    connection.call("Todo:patch", { id: 3, a: "x".repeat(40_000) }).catch(() => {});
    connection.call("Todo:patch", { id: 3, b: "x".repeat(40_000) }).catch(() => {});
    assert.equal(connection.pending, 4);
    const socket = await server.accept(25, limits);
    assert.equal(refused.value.code, "too_large");
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 2 });
    assert.equal(connection.pending, 1);
  });

  it("writes that fit are not joined to one that does not", async () => {
    const server = new FakeServer();
    const connection = server.connection().open();
    const first = await server.accept(25, limits);
    await first.cut();
    for (const name of ["a", "b"]) connection.call("Todo:patch", { id: 1, [name]: "x".repeat(90) }).catch(() => {});
    assert.equal(connection.pending, 2);
  });

  it("a close with 1009 takes the largest message with it, whatever the greeting said", async () => {
    const { server, connection, socket, host } = await connected();
    const refused = watch(connection.call("Todo:upsert", { id: 1, text: large }));
    const other = watch(connection.call("Todo:upsert", { id: 2 }));
    const third = watch(connection.call("Note:upsert", { id: 3 }));
    socket.take();
    await socket.cut(1009, "A message may have 100 bytes");
    assert.deepEqual([refused.value.code, refused.value.details], ["too_large", { limit: null }]);
    await host.advance(1000);
    const again = await server.accept();
    for (const sent of again.take()) await again.reply(sent, sent.data);
    assert.deepEqual([other.value, third.value], [{ id: 2 }, { id: 3 }]);
    assert.equal(connection.pending, 0);
  });

  it("a subscription can be it, too", async () => {
    const { server, connection, socket, host } = await connected();
    const failed: unknown[] = [];
    connection.subscribe("Todo", { query: { text: large } }, { snapshot() {}, changes() {}, failed: (error, over) => failed.push([error.code, over]) });
    socket.takeOne("Todo:subscribe");
    await socket.cut(1009);
    assert.deepEqual(failed, [["too_large", true]]);
    await host.advance(1000);
    assert.deepEqual((await server.accept()).take(), []);
  });
});

describe("a connection that stands", () => {
  it("a write that is not answered for 30 s of it is given up, at the next sign of life", async () => {
    const { connection, socket, host } = await connected();
    const call = watch(connection.call("Todo:upsert", { id: 1 }));
    await host.advance(20_000);
    socket.handlers.heartbeat();
    await host.advance(10_000);
    assert.equal(call.state, "pending");
    socket.handlers.heartbeat();
    await settle();
    assert.match(call.value.message, /no reply within 30 s: the server did not answer/);
  });

  it("without a sign of life it was the connection: the write goes out again on the next one", async () => {
    const { server, connection, socket, host } = await connected();
    const call = watch(connection.call("Todo:upsert", { id: 1 }));
    socket.take();
    await host.advance(40_000);
    assert.equal(socket.closedByPage, true);
    const again = await server.accept();
    await again.reply(again.takeOne("Todo:upsert"), { id: 1 });
    assert.equal(call.state, "resolved");
  });

  it("tells the number of waiting changes, once for all that happens in one go", async () => {
    const { server, connection, socket, host } = await connected();
    const seen: unknown[] = [];
    connection.on("pending", (pending) => seen.push(pending));
    connection.on("status", (status, pending) => seen.push([status, pending]));
    await socket.cut();
    for (const id of [1, 2, 2, 3]) connection.call("Todo:upsert", { id }).catch(() => {});
    connection.call("Todo:read").catch(() => {});
    await settle();
    await host.advance(1000);
    const again = await server.accept();
    const sent = again.take();
    await again.frame(...sent.slice(0, 2).map(({ id, event }) => ({ id, event, data: {} })));
    assert.deepEqual(seen, [["offline", 0], 3, ["connecting", 3], ["live", 3], 1]);
  });

  it("forgets replies that come twice, instead of taking them for changes", async () => {
    const { connection, socket } = await connected();
    const pushes: unknown[] = [];
    connection.on("message", (message) => pushes.push(message));
    connection.call("Todo:upsert", { id: 1 }).catch(() => {});
    const sent = socket.takeOne("Todo:upsert");
    await socket.reply(sent, { id: 1 });
    await socket.reply(sent, { id: 1 });
    assert.deepEqual(pushes, []);
  });
});

describe("a record that has no id yet", () => {
  let connection: Connection;
  const Todos = Backbone.Collection.extend({ url: "/Todo", backsync: true });
  install(Backbone, () => connection);

  it("edits before the creation has left are part of it; a destroy takes it back", async () => {
    const server = new FakeServer();
    connection = server.connection();
    const todos = new Todos() as any;
    const model = todos.create({ text: "a" });
    const saved = watch(model.save({ text: "ab" }));
    todos.create({ text: "gone" }).destroy();
    const socket = await server.accept();
    const sent = socket.takeOne("Todo:upsert");
    assert.deepEqual(sent.data, { text: "ab" });
    await socket.reply(sent, { id: 5, text: "ab" });
    assert.equal(saved.value.id, 5);
    assert.equal(model.id, 5);
  });

  it("edits after it are one message, with its id, before anything later of that model", async () => {
    const connectedNow = await connected();
    const { socket } = connectedNow;
    connection = connectedNow.connection;
    const todos = new Todos() as any;
    const model = todos.create({ text: "a" });
    const creation = socket.takeOne("Todo:upsert");
    for (const text of ["ab", "abc"]) model.save({ text });
    connection.call("Todo:sort").catch(() => {});
    connection.call("Note:sort").catch(() => {});
    socket.takeOne("Note:sort");
    assert.equal(todos.syncPending(), 1);
    assert.equal(model.syncPending(), 3);
    await socket.reply(creation, { id: 5, text: "a" });
    assert.deepEqual(bodies(socket), [{ event: "Todo:upsert", data: { text: "abc", id: 5 } }, { event: "Todo:sort" }]);
  });

  it("a refused creation makes its follower the creation; one with an unknown end takes it along", async () => {
    const connectedNow = await connected();
    const { socket, host } = connectedNow;
    connection = connectedNow.connection;
    const model = (new Todos() as any).create({ text: "" });
    const creation = socket.takeOne("Todo:upsert");
    const second = watch(model.save({ text: "a" }));
    await socket.refuse(creation, "invalid");
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "a" });
    const third = watch(model.save({ text: "ab" }));
    await host.advance(29_999);
    socket.handlers.heartbeat();
    await host.advance(1);
    socket.handlers.heartbeat();
    await settle();
    assert.deepEqual([second.value.code, third.value.code], ["timeout", "timeout"]);
    assert.deepEqual(socket.take().map(({ event }) => event), ["$:ping"]);
  });
});

describe("a new record before the key of its room is known", () => {
  const answer = (key?: object): object => ({ mode: "snapshot", epoch: "e", seq: 1, records: [], ...(key === undefined ? {} : { key }) });
  const subscribed = { event: "Todo:subscribe", data: { room: "a", done: false } };

  for (const kind of ["Backbone", "LiveCollection"]) {
    const start = (connection: Connection): { todos: any; add(record: object): Promise<any> } => {
      if (kind === "LiveCollection") {
        const todos = new LiveCollection(connection, "Todo", { query: subscribed.data });
        return { todos, add: (record) => todos.upsert(record) };
      }
      const own = Backbone.noConflict();
      const todos = new (own.Collection.extend({ url: "/Todo" }))() as any;
      install(own, connection);
      todos.live({ query: subscribed.data, connection });
      return { todos, add: (record) => new Promise((success, error) => void todos.create(record, { success, error: (_: unknown, reason: unknown) => error(reason) })) };
    };

    it(`${kind}: waits for the first answer and gets the key fields, no others`, async () => {
      const { connection, socket } = await connected();
      const { todos, add } = start(connection);
      const [plain, own] = [watch(add({ n: 1 })), watch(add({ id: "x", n: 2, room: "b" }))];
      assert.equal(todos.records?.length ?? todos.length, 2);
      assert.equal(connection.pending, 2);
      await socket.reply(socket.takeOne("Todo:subscribe"), answer({ room: "a" }));
      const [first, second] = socket.take();
      assert.deepEqual([first!.data, second!.data], [{ n: 1, room: "a" }, { id: "x", n: 2, room: "b" }]);
      await socket.reply(first!, { id: 1, ...first!.data });
      await socket.reply(second!, second!.data);
      assert.deepEqual([plain.state, own.state, connection.pending], ["resolved", "resolved", 0]);
      assert.deepEqual(todos.records ?? todos.toJSON(), [{ id: 1, n: 1, room: "a" }]);
      assert.deepEqual(socket.take(), []);
    });

    it(`${kind}: goes out as it is where there is no key, or nobody is told`, async () => {
      const { connection, socket } = await connected();
      const { add } = start(connection);
      void add({ n: 1 });
      await socket.reply(socket.takeOne("Todo:subscribe"), answer());
      assert.deepEqual(socket.takeOne("Todo:upsert").data, { n: 1 });
      const other = await connected();
      const refused = watch(start(other.connection).add({ n: 1 }));
      await other.socket.refuse(other.socket.takeOne("Todo:subscribe"), "forbidden");
      const sent = other.socket.takeOne("Todo:upsert");
      assert.deepEqual(sent.data, { n: 1 });
      await other.socket.refuse(sent, "forbidden");
      assert.equal(refused.value.code, "forbidden");
    });
  }

  it("is of the room that it was made in, though another one was entered meanwhile", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const a = new LiveCollection(connection, "Todo", { query: { room: "a" } });
    void a.upsert({ id: "x", n: 1 });
    void a.upsert({ id: "x", n: 2 });
    a.close();
    new LiveCollection(connection, "Todo", { query: { room: "b" } });
    const socket = await server.accept();
    const asked = socket.take();
    await socket.reply(asked.find(({ data }) => data.room === "b")!, answer({ room: "b" }));
    assert.deepEqual(socket.take().filter(({ event }) => event === "Todo:upsert").map(({ data }) => data), [{ room: "a", id: "x", n: 2 }]);
  });

  it("asks itself when nobody follows the model any more", async () => {
    const { connection, socket } = await connected();
    const todos = new LiveCollection(connection, "Todo", { query: subscribed.data });
    void todos.upsert({ n: 1 });
    todos.close();
    const [, ...left] = socket.take();
    const asked = left.find(({ event }) => event === "Todo:subscribe")!;
    assert.deepEqual([asked.data, asked.snapshot], [subscribed.data, false]);
    await socket.reply(asked, { mode: "resume", epoch: "e", seq: 1, key: { room: "a" } });
    const [upsert, leave] = socket.take();
    assert.deepEqual([upsert!.data, leave!.event], [{ n: 1, room: "a" }, "Todo:unsubscribe"]);
    assert.equal(connection.status, "live");
  });
});

describe("persist", () => {
  function page(disk: Disk, options: ConnectionOptions = {}): { server: FakeServer; connection: Connection; end(): void } {
    const server = new FakeServer();
    const storage = disk.storage();
    const connection = new Connection("http://test.invalid", { persist: "me", ...options }, server.host, server.open, () => storage);
    return { server, connection, end: () => storage.end() };
  }
  const call = (connection: Connection, method: string, data: object): void => void connection.call(`Todo:${method}`, data).catch(() => {});

  it("unsent writes outlive the page, and writes of the next page join them", async () => {
    const disk = new Disk();
    const before = page(disk);
    for (const n of [1, 2]) call(before.connection, "upsert", { id: 1, n });
    call(before.connection, "upsert", { id: 2, n: 1 });
    await settle();
    before.end();
    const after = page(disk);
    call(after.connection, "patch", { id: 2, m: 1 });
    assert.equal(after.connection.pending, 1);
    await settle();
    assert.equal(after.connection.pending, 2);
    const socket = await after.server.accept();
    await settle();
    const sent = socket.take();
    assert.deepEqual(sent.map(({ data }) => data), [{ id: 1, n: 2 }, { id: 2, n: 1, m: 1 }]);
    for (const message of sent) await socket.reply(message, message.data);
    await settle();
    assert.equal(disk.rows.size, 0);
  });

  it("a write whose reply was lost is sent again as it was, by the same client", async () => {
    const disk = new Disk();
    const before = page(disk);
    call(before.connection, "upsert", { text: "a" });
    const first = await before.server.accept();
    await settle();
    const sent = first.takeOne("Todo:upsert");
    before.end();
    const after = page(disk);
    await settle();
    after.server.socket.handlers.open("fake");
    await settle();
    const hello = after.server.socket.takeOne("$:hello");
    assert.equal(hello.data.client, (first.sent[0] as { data: { client: string } }).data.client);
    await after.server.socket.reply(hello, {});
    assert.deepEqual(after.server.socket.takeOne("Todo:upsert"), sent);
  });

  it("nothing is sent before it is stored as sent", async () => {
    const disk = new Disk();
    const { server, connection } = page(disk);
    call(connection, "upsert", { id: 1 });
    const socket = await server.accept();
    await settle();
    call(connection, "upsert", { id: 2 });
    call(connection, "clear", {});
    assert.deepEqual(socket.take().map(({ data }) => data), [{ id: 1 }]);
    assert.equal([...disk.rows.values()].filter(({ sent }) => sent).length, 1);
    await settle();
    assert.deepEqual(socket.take().map(({ event }) => event), ["Todo:upsert", "Todo:clear"]);
  });

  it("a follower finds its creation's id on the next page, too", async () => {
    const disk = new Disk();
    const before = page(disk);
    install(Backbone, () => before.connection).uninstall();
    install(Backbone, () => before.connection);
    const model = new (Backbone.Model.extend({ urlRoot: "/Todo", backsync: true }))() as any;
    model.save({ text: "a" });
    (await before.server.accept()).take();
    await settle();
    model.save({ text: "ab" });
    await settle();
    before.end();
    const after = page(disk);
    await settle();
    const socket = await after.server.accept();
    await settle();
    await socket.reply(socket.takeOne("Todo:upsert"), { id: 7, text: "a" });
    await settle();
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { text: "ab", id: 7 });
  });

  it("close() and a server that does not want us leave them for another time; discard() does not", async () => {
    const disk = new Disk();
    const { server, connection } = page(disk);
    const kept = watch(connection.call("Todo:upsert", { id: 1 }));
    const question = watch(connection.call("Todo:read"));
    await settle();
    connection.close();
    await settle();
    assert.equal(question.value.code, "closed");
    assert.equal(kept.state, "pending");
    connection.open();
    (await server.accept()).take();
    connection.discard();
    await settle();
    await settle();
    assert.equal(kept.value.code, "aborted");
    assert.equal(disk.rows.size, 0);
  });

  it("a write that waits behind another one of its record gets its version on the next page, too", async () => {
    const disk = new Disk();
    const before = page(disk);
    const todos = new LiveCollection(before.connection, "Todo");
    const socket = await before.server.accept();
    await settle();
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 1, records: [{ id: 1, n: 1, rev: 1 }] });
    void todos.patch(1, { n: 2 });
    void todos.upsert({ id: 1, n: 3, rev: 1 });
    await settle();
    before.end();
    const after = page(disk);
    await settle();
    const next = await after.server.accept();
    await settle();
    await next.reply(next.takeOne("Todo:patch"), { id: 1, n: 2, rev: 2 });
    await settle();
    assert.deepEqual(next.takeOne("Todo:upsert").data, { id: 1, n: 3, rev: 2 });
  });

  it("what is too large is not kept, nor sent by a later page", async () => {
    const disk = new Disk();
    const before = page(disk);
    call(before.connection, "upsert", { id: 1, text: "x".repeat(200) });
    await settle();
    before.end();
    const { server, connection } = page(disk);
    const refused: unknown[] = [];
    connection.on("refused", (error) => refused.push(error.code));
    await settle();
    const socket = await server.accept(25, { message: 150 });
    call(connection, "upsert", { id: 2, text: "x".repeat(200) });
    call(connection, "upsert", { id: 3 });
    await settle();
    await settle();
    assert.deepEqual(refused, ["too_large"]);
    assert.deepEqual(socket.takeOne("Todo:upsert").data, { id: 3 });
    assert.deepEqual([...disk.rows.values()].map(({ record }) => record), ['"3"']);
  });

  for (const isFollowed of [true, false]) {
    it(`a creation gets the key of its room on a later page, which ${isFollowed ? "follows" : "does not follow"} it`, async () => {
      const disk = new Disk();
      const before = page(disk);
      void new LiveCollection(before.connection, "Todo", { query: { room: "a" } }).upsert({ n: 1 });
      await settle();
      before.end();
      const { server, connection } = page(disk);
      if (isFollowed) new LiveCollection(connection, "Todo", { query: { room: "b" } });
      await settle();
      const socket = await server.accept();
      await settle();
      const asked = socket.takeOne("Todo:subscribe");
      assert.deepEqual(asked.data, { room: isFollowed ? "b" : "a" });
      await socket.reply(asked, { mode: "snapshot", epoch: "e", seq: 1, records: [], key: asked.data });
      await settle();
      const sent = socket.take().find(({ event }) => event === "Todo:upsert")!;
      assert.deepEqual(sent.data, { room: "a", n: 1 });
      await socket.reply(sent, { id: 1, ...sent.data });
      await settle();
      assert.deepEqual([connection.pending, disk.rows.size], [0, 0]);
    });
  }

  it("a write of an earlier page that is refused is told by an event", async () => {
    const disk = new Disk();
    const before = page(disk);
    call(before.connection, "upsert", { id: 1, text: "" });
    await settle();
    before.end();
    const { server, connection } = page(disk);
    const refused: unknown[] = [];
    connection.on("refused", (error, message) => refused.push([error.code, message]));
    await settle();
    const socket = await server.accept();
    await settle();
    await socket.refuse(socket.takeOne("Todo:upsert"), "invalid");
    assert.deepEqual(refused, [["invalid", { event: "Todo:upsert", data: { id: 1, text: "" } }]]);
  });
});

describe("onOpen", () => {
  it("runs after the greeting, and all else waits until it is done", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const seen: unknown[] = [];
    connection.onOpen(async (opening) => seen.push(await opening.call("User:upsert", { name: "me" })));
    connection.call("Todo:upsert", { id: 1 }).catch(() => {});
    connection.subscribe("Todo", {}, { snapshot() {}, changes() {} });
    for (let time = 0; time < 2; time += 1) {
      const socket = await server.accept();
      assert.equal(connection.status, "connecting");
      await socket.reply(socket.takeOne("User:upsert"), "hello");
      assert.deepEqual(socket.take().map(({ event }) => event), ["Todo:upsert", "Todo:subscribe"]);
      await socket.cut();
      await server.host.advance(1000);
    }
    assert.deepEqual(seen, ["hello", "hello"]);
  });

  it("runs at once on a connection that stands, until taken out", async () => {
    const { connection, socket, server, host } = await connected();
    const stop = connection.onOpen((opening) => void opening.call("User:upsert").catch(() => {}));
    socket.takeOne("User:upsert");
    stop();
    await socket.cut();
    await host.advance(1000);
    assert.deepEqual((await server.accept()).take(), []);
  });

  it("does not hold the rest up for ever, nor when it fails; its calls end with their socket", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const lost: unknown[] = [];
    const warn = console.warn;
    console.warn = (text: unknown) => lost.push(text);
    try {
      connection.onOpen((opening) => opening.call("User:upsert").catch((error) => lost.push(error.code)));
      connection.onOpen(() => Promise.reject(new Error("oops")));
      connection.open();
      const socket = await server.accept();
      socket.takeOne("User:upsert");
      connection.call("Todo:clear").catch(() => {});
      await server.host.advance(9_999);
      assert.deepEqual(socket.take(), []);
      await server.host.advance(1);
      socket.takeOne("Todo:clear");
      await socket.cut();
      assert.match(String(lost[0]), /not done within 10 s/);
      assert.equal(lost[1], "unavailable");
      assert.match(String(server.host.reported[0]), /oops/);
    } finally {
      console.warn = warn;
    }
  });
});

/** Kind: what has joined another write shares its fate. */
describe("a refused message that stands for several writes", () => {
  const outcome = (promise: Promise<any>): Promise<unknown> => promise.then((row) => row, (error: BacksyncError) => error.code);

  it("is sent again in its parts: only the bad one is refused", async () => {
    const { connection, socket } = await connected();
    const todos = new LiveCollection<any>(connection, "Todo");
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 1, records: [{ id: "s1", text: "t" }] });
    const writes = [{ a: 1 }, { text: "" }, { c: 3 }].map((fields) => outcome(todos.patch("s1", fields)));
    const other = outcome(todos.upsert({ id: "s2" }));
    const [first, second] = socket.take();
    await socket.reply(first!, { id: "s1", text: "t", a: 1 });
    await socket.reply(second!, { id: "s2" });
    const joined = socket.takeOne("Todo:patch");
    assert.deepEqual(joined.data, { id: "s1", text: "", c: 3 });
    const late = outcome(todos.patch("s1", { d: 4 }));
    await socket.refuse(joined, "invalid");
    const bad = socket.takeOne("Todo:patch");
    assert.deepEqual(bad.data, { id: "s1", text: "" });
    assert.notEqual(bad.id, joined.id);
    await socket.refuse(bad, "invalid");
    assert.deepEqual(todos.get("s1"), { id: "s1", text: "t", a: 1, c: 3, d: 4 });
    const good = socket.takeOne("Todo:patch");
    assert.deepEqual(good.data, { id: "s1", c: 3 });
    await socket.reply(good, { id: "s1", text: "t", a: 1, c: 3 });
    const last = socket.takeOne("Todo:patch");
    assert.deepEqual(last.data, { id: "s1", d: 4 });
    await socket.reply(last, { id: "s1", text: "t", a: 1, c: 3, d: 4 });
    const row = { id: "s1", text: "t", a: 1 };
    assert.deepEqual(await Promise.all([...writes, other, late]), [row, "invalid", { ...row, c: 3 }, { id: "s2" }, { ...row, c: 3, d: 4 }]);
    assert.equal(connection.pending, 0);
  });

  it("whole records do not repeat what was refused before them, joined or not", async () => {
    const { connection, socket, server, host } = await connected();
    const todos = new LiveCollection<any>(connection, "Todo");
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 1, records: [{ id: 1, text: "t" }] });
    await socket.cut();
    const writes = [{ a: 1 }, { text: "" }, { c: 3 }].map((fields) => outcome(todos.upsert({ ...todos.get(1), ...fields })));
    await host.advance(2_000);
    const again = await server.accept();
    const joined = again.take().find(({ event }) => event === "Todo:upsert");
    assert.deepEqual(joined!.data, { id: 1, text: "", a: 1, c: 3 });
    await again.refuse(joined!, "forbidden");
    const first = again.takeOne("Todo:upsert");
    assert.deepEqual(first.data, { id: 1, text: "t", a: 1 });
    await again.reply(first, { id: 1, text: "t", a: 1, rev: 2 });
    const second = again.takeOne("Todo:upsert");
    assert.deepEqual(second.data, { id: 1, text: "", a: 1 });
    await again.refuse(second, "forbidden");
    const third = again.takeOne("Todo:upsert");
    assert.deepEqual(third.data, { id: 1, text: "t", a: 1, c: 3 });
    await again.reply(third, { ...third.data, rev: 3 });
    assert.deepEqual(await Promise.all(writes), [{ id: 1, text: "t", a: 1, rev: 2 }, "forbidden", { id: 1, text: "t", a: 1, c: 3, rev: 3 }]);
    assert.deepEqual(todos.get(1), { id: 1, text: "t", a: 1, c: 3, rev: 3 });
    // Sent while another one is under way: it waits, and nothing joins it.
    const bad = outcome(todos.upsert({ ...todos.get(1), text: "" }));
    const good = outcome(todos.upsert({ ...todos.get(1), e: 5 }));
    await again.refuse(again.takeOne("Todo:upsert"), "invalid");
    const last = again.takeOne("Todo:upsert");
    assert.deepEqual([last.data.text, last.data.e], ["t", 5]);
    await again.reply(last, last.data);
    assert.equal(await bad, "invalid");
    assert.equal(((await good) as any).e, 5);
    assert.equal(todos.get(1).text, "t");
  });

  it("a creation and edits: one record, whichever of them is refused", async () => {
    for (const refused of [0, 1, 2]) {
      const { connection, socket, server, host } = await connected();
      await socket.cut();
      const record = "~mine";
      const settled: unknown[] = [];
      for (const data of [{ a: 1 }, { a: 1, b: 2 }, { a: 1, b: 2, c: 3 }]) {
        connection.request({ event: "Todo:upsert", data }, { record, own: Object.keys(data) }, (error, row) => settled.push(error?.code ?? (row as any).id));
      }
      await host.advance(2_000);
      const again = await server.accept();
      await again.refuse(again.take().find(({ event }) => event === "Todo:upsert")!, "invalid");
      let ids = 0;
      for (const index of [0, 1, 2]) {
        const part = again.takeOne("Todo:upsert");
        if (index === refused) await again.refuse(part, "invalid");
        else await again.reply(part, { id: part.data.id ?? (ids += 1), ...part.data });
      }
      assert.deepEqual([ids, again.take(), connection.pending], [1, [], 0]);
      assert.deepEqual(settled, [0, 1, 2].map((index) => (index === refused ? "invalid" : 1)));
    }
  });

  it("as Backbone saves them", async () => {
    const { connection, socket } = await connected();
    const todos = new (Backbone.Collection.extend({ url: "/Todo" }))() as any;
    install(Backbone, () => connection);
    todos.live({ connection });
    await socket.reply(socket.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e", seq: 1, records: [{ id: 1, text: "t" }] });
    const rolledBack: unknown[] = [];
    const model = todos.get(1);
    model.on("rollback", (_: unknown, error: BacksyncError) => rolledBack.push(error.code));
    model.save({ a: 1 });
    model.save({ text: "" });
    model.save({ c: 3 });
    for (let sent = socket.take(); sent.length > 0; sent = socket.take()) {
      for (const message of sent) {
        if (message.data.text === "") await socket.refuse(message, "invalid");
        else await socket.reply(message, message.data);
      }
    }
    assert.deepEqual([model.attributes, rolledBack, todos.syncPending()], [{ id: 1, text: "t", a: 1, c: 3 }, ["invalid"], 0]);
  });

  it("is not, for what is no fault of theirs, and not with a deletion among them", async () => {
    for (const code of ["unavailable", "rate_limited", "handler_error", "unauthorized"]) {
      const { connection, socket } = await connected();
      const first = outcome(connection.call("Todo:patch", { id: 1, a: 1 }));
      const others = [{ b: 1 }, { c: 1 }].map((fields) => outcome(connection.call("Todo:patch", { id: 1, ...fields })));
      await socket.reply(socket.takeOne("Todo:patch"), { id: 1 });
      await socket.refuse(socket.takeOne("Todo:patch"), code);
      assert.deepEqual(await Promise.all([first, ...others]), [{ id: 1 }, code, code]);
      assert.deepEqual(socket.take(), []);
    }
    const { connection, socket } = await connected();
    void outcome(connection.call("Todo:patch", { id: 1, a: 1 }));
    const edit = outcome(connection.call("Todo:patch", { id: 1, b: 1 }));
    const gone = outcome(connection.call("Todo:delete", { id: 1 }));
    await socket.reply(socket.takeOne("Todo:patch"), { id: 1 });
    await socket.refuse(socket.takeOne("Todo:delete"), "forbidden");
    assert.deepEqual([await edit, await gone, socket.take()], ["forbidden", "forbidden", []]);
  });

  it("edits of one field are one part, however many; there is a bound for the others", async () => {
    const { connection, socket } = await connected();
    const calls = Array.from({ length: 100 }, (_, n) => connection.call("Todo:patch", { id: 1, text: `t${n}` }));
    const fields = Array.from({ length: 60 }, (_, n) => connection.call("Todo:patch", { id: 1, [`f${n}`]: n }));
    const all = Promise.allSettled([...calls, ...fields]);
    await socket.reply(socket.takeOne("Todo:patch"), { id: 1 });
    await socket.refuse(socket.takeOne("Todo:patch"), "invalid");
    let messages = 0;
    for (let sent = socket.take(); sent.length > 0; sent = socket.take()) {
      for (const message of sent) {
        messages += 1;
        await (message.data.text === undefined ? socket.reply(message, { id: 1 }) : socket.refuse(message, "invalid"));
      }
    }
    assert.equal(messages, 16);
    assert.equal((await all).filter(({ status }) => status === "rejected").length, 99);
    assert.equal(connection.pending, 0);
  });

  it("is stored in order: a page that finds the parts sends what was written later after them, to the same record", async () => {
    const disk = new Disk();
    const page = async (): Promise<{ storage: { end(): void }; connection: Connection; socket: FakeSocket }> => {
      const server = new FakeServer();
      const storage = disk.storage();
      const connection = new Connection("http://test.invalid", { persist: "p" }, server.host, server.open, () => storage);
      await settle();
      connection.open();
      await settle();
      const socket = await server.accept();
      await settle();
      return { storage, connection, socket };
    };
    const wait = async (): Promise<void> => {
      for (let round = 0; round < 4; round += 1) await settle();
    };
    const first = await page();
    const write = (data: object): void => void first.connection.request({ event: "Todo:upsert", data }, { record: "~mine", own: Object.keys(data) }, () => {});
    await first.socket.cut();
    for (const data of [{ a: 1 }, { a: 1, b: 2 }]) write(data);
    await wait();
    first.storage.end();
    const second = await page();
    const joined = second.socket.takeOne("Todo:upsert");
    assert.deepEqual(joined.data, { a: 1, b: 2 });
    second.connection.request({ event: "Todo:upsert", data: { a: 1, b: 2, c: 3 } }, { record: "~mine", own: ["a", "b", "c"] }, () => {});
    await wait();
    await second.socket.refuse(joined, "invalid");
    await wait();
    second.storage.end(); // before any part is answered
    const third = await page();
    await wait();
    for (const data of [{ a: 1 }, { id: 7, a: 1, b: 2 }, { id: 7, a: 1, b: 2, c: 3 }]) {
      const sent = third.socket.takeOne("Todo:upsert");
      assert.deepEqual(sent.data, data);
      await third.socket.reply(sent, { id: 7, ...sent.data });
      await wait();
    }
    assert.deepEqual([third.socket.take(), disk.rows.size], [[], 0]);
  });

  it("what an earlier page has left is taken apart, too", async () => {
    const disk = new Disk();
    const page = async (): Promise<{ server: FakeServer; connection: Connection }> => {
      const server = new FakeServer();
      const connection = new Connection("http://test.invalid", { persist: "p" }, server.host, server.open, () => disk.storage());
      await settle();
      return { server, connection };
    };
    const before = await page();
    for (const data of [{ id: 1, text: "" }, { id: 1, done: true }]) before.connection.call("Todo:patch", data).catch(() => {});
    await settle();
    await settle();
    const { server, connection } = await page();
    const refused: unknown[] = [];
    connection.on("refused", (error, message) => refused.push([error.code, message.data]));
    connection.open();
    await settle();
    const socket = await server.accept();
    await settle();
    await settle();
    const joined = socket.takeOne("Todo:patch");
    assert.deepEqual(joined.data, { id: 1, text: "", done: true });
    await socket.refuse(joined, "invalid");
    await settle();
    await socket.refuse(socket.takeOne("Todo:patch"), "invalid");
    await settle();
    const good = socket.takeOne("Todo:patch");
    assert.deepEqual(good.data, { id: 1, done: true });
    await socket.reply(good, { id: 1 });
    await settle();
    assert.deepEqual([refused, disk.rows.size], [[["invalid", { id: 1, text: "" }]], 0]);
  });
});
