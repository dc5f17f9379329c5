/** Subscriptions: positions, resume, snapshots, keys. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import type { Connection } from "../src/connection.js";
import type { Change, ServerRecord } from "../src/protocol.js";
import type { Sink } from "../src/subscriptions.js";
import { connected, type FakeServer, type FakeSocket, settle } from "./fakes.js";

class Recorder implements Sink {
  readonly log: unknown[] = [];
  snapshot(records: ServerRecord[]): void {
    this.log.push({ snapshot: records.map((record) => record.id) });
  }
  changes(changes: Change[]): void {
    this.log.push(changes.map((change) => `${change.method} ${(change.data as ServerRecord).id} ${change.seq}`));
  }
  failed(error: Error & { code: string }, over: boolean): void {
    this.log.push(`failed ${error.code} ${over}`);
  }
  take(): unknown[] {
    return this.log.splice(0);
  }
}

const upsert = (id: unknown, seq: number, extra: object = {}): object => ({ event: "Todo:upsert", data: { id }, seq, ...extra });
const snapshotOf = (seq: number, ...ids: unknown[]): object => ({ mode: "snapshot", epoch: "e1", seq, records: ids.map((id) => ({ id })) });

async function following(): Promise<{ server: FakeServer; connection: Connection; socket: FakeSocket; sink: Recorder; subscription: ReturnType<Connection["subscribe"]> }> {
  const { server, connection, socket } = await connected();
  const sink = new Recorder();
  const subscription = connection.subscribe("Todo", {}, sink);
  assert.equal(connection.status, "behind");
  await socket.reply(socket.takeOne("Todo:subscribe"), snapshotOf(10, 1, 2));
  assert.equal(connection.status, "live");
  assert.deepEqual(sink.take(), [{ snapshot: [1, 2] }]);
  return { server, connection, socket, sink, subscription };
}

async function again(server: FakeServer): Promise<FakeSocket> {
  await server.socket.cut();
  await server.host.advance(2_000);
  return server.accept();
}

describe("one channel", () => {
  it("applies the changes of a frame in one go, and moves its position", async () => {
    const { socket, sink, subscription } = await following();
    await socket.frame(upsert(3, 11), { event: "Todo:delete", data: { id: 1 }, seq: 12 }, { event: "Todo:typing", data: { id: "a" } });
    assert.deepEqual(sink.take(), [["upsert 3 11", "delete 1 12", "typing a null"]]);
    assert.deepEqual(subscription.position, { epoch: "e1", seq: 12 });
  });

  it("with another token, set while offline, asks from nothing", async () => {
    const { server, connection, socket, sink, subscription } = await following();
    await socket.cut();
    void connection.authenticate("other");
    await server.host.advance(2_000);
    const next = await server.accept();
    const [auth, asked] = next.take();
    assert.deepEqual([auth!.event, asked!.event, asked!.since], ["$:auth", "Todo:subscribe", undefined]);
    await next.reply(auth!, {});
    await next.reply(asked!, snapshotOf(3, 7));
    assert.deepEqual(sink.take(), [{ snapshot: [7] }]);
    assert.deepEqual(subscription.position, { epoch: "e1", seq: 3 });
    assert.deepEqual((await again(server)).takeOne("Todo:subscribe").since, { epoch: "e1", seq: 3 });
  });

  it("with another token, cut off before the new user's snapshot has come, asks from nothing", async () => {
    const { server, connection, socket, sink } = await following();
    const done = connection.authenticate("other");
    const auth = socket.takeOne("$:auth");
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e1", seq: 11, records: [{ id: 1 }] } }); // still the old user's
    await socket.frame({ id: auth.id, event: auth.event, data: {} }, upsert(2, 12), upsert(2, 11));
    await done;
    assert.deepEqual(sink.take(), [{ snapshot: [1] }, ["upsert 2 12"]]);
    const next = await again(server);
    const asked = next.takeOne("Todo:subscribe");
    assert.equal(asked.since, undefined);
    assert.equal((await again(server)).takeOne("Todo:subscribe").since, undefined);
  });

  it("with another token resumes once the new user's snapshot has come; with the same token at once", async () => {
    const { server, connection, socket } = await following();
    const done = connection.authenticate("other");
    await socket.reply(socket.takeOne("$:auth"), {});
    await done;
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e1", seq: 11, records: [] } });
    const next = await again(server);
    assert.deepEqual(next.takeOne("Todo:subscribe").since, { epoch: "e1", seq: 11 });
    void connection.authenticate("other");
    await next.reply(next.takeOne("$:auth"), {});
    assert.deepEqual((await again(server)).takeOne("Todo:subscribe").since, { epoch: "e1", seq: 11 });
  });

  it("ignores repeats: an older state must not replace a newer one", async () => {
    const { socket, sink } = await following();
    await socket.frame(upsert(3, 12), upsert(3, 11), upsert(1, 10));
    assert.deepEqual(sink.take(), [["upsert 3 12"]]);
  });

  it("resumes from its position; the resume reply does not move it", async () => {
    const { server, socket, sink, subscription } = await following();
    await socket.frame(upsert(3, 15));
    sink.take();
    const back = await again(server);
    const sent = back.takeOne("Todo:subscribe");
    assert.deepEqual(sent.since, { epoch: "e1", seq: 15 });
    await back.frame({ id: sent.id, event: sent.event, data: { mode: "resume", epoch: "e1", seq: 15 } }, upsert(4, 18));
    assert.deepEqual(sink.take(), [["upsert 4 18"]]);
    assert.deepEqual(subscription.position, { epoch: "e1", seq: 18 });
  });

  it("takes a snapshot instead when its history is gone, with a new epoch and a lower number", async () => {
    const { server, sink, subscription, connection } = await following();
    const back = await again(server);
    assert.equal(connection.status, "behind");
    await back.reply(back.takeOne("Todo:subscribe"), { mode: "snapshot", epoch: "e2", seq: 3, records: [{ id: 9 }] });
    assert.deepEqual(sink.take(), [{ snapshot: [9] }]);
    await back.frame(upsert(1, 4));
    assert.deepEqual(sink.take(), [["upsert 1 4"]]);
    assert.deepEqual(subscription.position, { epoch: "e2", seq: 4 });
    assert.equal(connection.status, "live");
  });

  it("takes a snapshot that is pushed, in order with the changes around it", async () => {
    const { socket, sink, subscription } = await following();
    await socket.frame(upsert(3, 11), { event: "Todo:snapshot", data: { epoch: "e2", seq: 5, records: [{ id: 7 }] } }, upsert(8, 6));
    assert.deepEqual(sink.take(), [["upsert 3 11"], { snapshot: [7] }, ["upsert 8 6"]]);
    assert.deepEqual(subscription.position, { epoch: "e2", seq: 6 });
  });

  it("holds changes that come before its snapshot and drops those that it contains", async () => {
    const { connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", {}, sink);
    const sent = socket.takeOne("Todo:subscribe");
    await socket.frame(upsert(1, 9), upsert(2, 11));
    assert.deepEqual(sink.take(), []);
    await socket.reply(sent, snapshotOf(10, 1));
    assert.deepEqual(sink.take(), [{ snapshot: [1] }, ["upsert 2 11"]]);
  });

  it("asks again on the next connection when the answer was lost, and ignores nothing but the lost one", async () => {
    const { server, connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", {}, sink);
    const lost = socket.takeOne("Todo:subscribe");
    const back = await again(server);
    const sent = back.takeOne("Todo:subscribe");
    assert.equal(sent.since, undefined);
    assert.notEqual(sent.id, lost.id);
    await back.reply(sent, snapshotOf(1, 5));
    assert.deepEqual(sink.take(), [{ snapshot: [5] }]);
  });

  it("applies what came before the connection was cut", async () => {
    const { socket, sink, subscription } = await following();
    socket.handlers.message(JSON.stringify(upsert(3, 11)));
    await socket.cut();
    assert.deepEqual(sink.take(), [["upsert 3 11"]]);
    assert.equal(subscription.position?.seq, 11);
  });

  it("applies changes before a reply that follows them, and a reply before the changes that follow it", async () => {
    const { connection, socket, sink } = await following();
    connection.request({ event: "Todo:upsert", data: {} }, {}, () => sink.log.push("reply"));
    const sent = socket.takeOne("Todo:upsert");
    await socket.frame(upsert(3, 11), { id: sent.id, event: sent.event, data: { id: 4 } }, upsert(4, 12));
    assert.deepEqual(sink.take(), [["upsert 3 11"], "reply", ["upsert 4 12"]]);
  });

  it("sends unanswered writes before it resumes, so that their replies precede their echoes", async () => {
    const { server, connection, socket } = await following();
    connection.call("Todo:upsert", { id: 1 }).catch(() => {});
    socket.take();
    const back = await again(server);
    assert.deepEqual(back.take().map((message) => message.event), ["Todo:upsert", "Todo:subscribe"]);
  });

  it("without records starts at the present and resumes like others", async () => {
    const { server, connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", { snapshot: false }, sink);
    const sent = socket.takeOne("Todo:subscribe");
    assert.equal(sent.snapshot, false);
    await socket.reply(sent, { mode: "resume", epoch: "e1", seq: 7 });
    await socket.frame(upsert(1, 8));
    const back = await again(server);
    const second = back.takeOne("Todo:subscribe");
    assert.deepEqual(second.since, { epoch: "e1", seq: 8 });
    await back.reply(second, { mode: "snapshot", epoch: "e2", seq: 1 });
    await back.frame(upsert(2, 2));
    assert.deepEqual(sink.take(), [["upsert 1 8"], ["upsert 2 2"]]);
  });

  it("stops: nothing comes any more, the server is told", async () => {
    const { socket, sink, subscription } = await following();
    subscription.stop();
    subscription.stop();
    socket.takeOne("Todo:unsubscribe");
    await socket.frame(upsert(3, 11));
    assert.deepEqual(sink.take(), []);
  });
});

describe("refusals", () => {
  it("end a subscription that never succeeded", async () => {
    const { server, connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", {}, sink);
    await socket.refuse(socket.takeOne("Todo:subscribe"), "forbidden");
    assert.deepEqual(sink.take(), ["failed forbidden true"]);
    assert.equal(connection.status, "live");
    assert.deepEqual((await again(server)).take(), []);
  });

  it("end one that has succeeded before, too", async () => {
    const { server, sink, connection } = await following();
    const back = await again(server);
    await back.refuse(back.takeOne("Todo:subscribe"), "unauthorized");
    assert.deepEqual(sink.take(), ["failed unauthorized true"]);
    assert.equal(connection.status, "live");
    assert.deepEqual((await again(server)).take(), []);
  });

  it("a mistake in the server is told, and asked about again until it is mended", async () => {
    const { server, sink, connection } = await following();
    const back = await again(server);
    await back.refuse(back.takeOne("Todo:subscribe"), "handler_error");
    assert.deepEqual(sink.take(), ["failed handler_error false"]);
    assert.equal(connection.status, "behind");
    await server.host.advance(250);
    const sent = back.takeOne("Todo:subscribe");
    assert.deepEqual(sent.since, { epoch: "e1", seq: 10 });
    await back.reply(sent, { mode: "resume", epoch: "e1", seq: 10 });
    assert.equal(connection.status, "live");
  });

  it("that pass are tried again, not before the server wishes", async () => {
    const { server, connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", {}, sink);
    await socket.refuse(socket.takeOne("Todo:subscribe"), "rate_limited", { retry_after: 3 });
    await server.host.advance(3000);
    assert.deepEqual(socket.take(), []);
    await server.host.advance(250);
    await socket.refuse(socket.takeOne("Todo:subscribe"), "unavailable");
    await server.host.advance(500);
    await socket.reply(socket.takeOne("Todo:subscribe"), snapshotOf(1));
    assert.deepEqual(sink.take(), [{ snapshot: [] }]);
  });

  it("an answer without a position is told as what it is", async () => {
    const { connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", {}, sink);
    await socket.reply(socket.takeOne("Todo:subscribe"), [{ id: 1 }]);
    assert.deepEqual(sink.take(), ["failed invalid true"]);
  });

  it("a closed connection ends them all, later ones, too", async () => {
    const { connection, sink } = await following();
    connection.close();
    await settle();
    assert.deepEqual(sink.take(), ["failed closed true"]);
    connection.subscribe("Todo", {}, sink);
    await settle();
    assert.deepEqual(sink.take(), ["failed closed true"]);
  });
});

describe("keys", () => {
  const inRoom = (room: string, id: number, seq: number): object => upsert(id, seq, { key: { room } });

  async function rooms(): Promise<{ connection: Connection; socket: FakeSocket; server: FakeServer; a: Recorder; b: Recorder; stopA: () => void }> {
    const { connection, socket, server } = await connected();
    const a = new Recorder();
    const b = new Recorder();
    const first = connection.subscribe("Todo", { query: { room: "a", limit: 5 } }, a);
    connection.subscribe("Todo", { query: { room: "b" } }, b);
    const [askedA, askedB] = socket.take();
    assert.deepEqual(askedA?.data, { room: "a", limit: 5 });
    await socket.reply(askedA!, snapshotOf(10));
    await socket.reply(askedB!, snapshotOf(50));
    a.take();
    b.take();
    return { connection, socket, server, a, b, stopA: () => first.stop() };
  }

  it("route changes; each channel has its own numbers", async () => {
    const { socket, server, a, b } = await rooms();
    await socket.frame(inRoom("a", 1, 11), inRoom("b", 2, 51), inRoom("a", 3, 12));
    assert.deepEqual(a.take(), [["upsert 1 11", "upsert 3 12"]]);
    assert.deepEqual(b.take(), [["upsert 2 51"]]);
    const back = await again(server);
    assert.deepEqual(back.take().map((message) => (message.since as { seq: number }).seq), [12, 51]);
  });

  it("route pushed snapshots", async () => {
    const { socket, a, b } = await rooms();
    await socket.frame({ event: "Todo:snapshot", key: { room: "b" }, data: { epoch: "e1", seq: 60, records: [{ id: 5 }] } });
    await socket.frame(inRoom("a", 1, 11));
    await socket.frame({ event: "Todo:snapshot", key: { room: "b" }, data: { epoch: "e1", seq: 61, records: [{ id: 6 }] } });
    assert.deepEqual(a.take(), [["upsert 1 11"]]);
    assert.deepEqual(b.take(), [{ snapshot: [5] }, { snapshot: [6] }]);
  });

  it("a stopped room is left, at the latest when something comes from it, once", async () => {
    const { socket, b, stopA } = await rooms();
    stopA();
    assert.deepEqual(socket.take(), []); // whether both queries are one channel is not known yet
    await socket.frame(inRoom("a", 1, 11), inRoom("a", 2, 12));
    assert.deepEqual(socket.takeOne("Todo:unsubscribe").data, { room: "a" });
    await socket.frame(inRoom("b", 2, 51));
    assert.deepEqual(b.take(), [["upsert 2 51"]]);
  });

  it("a stopped room is left at once when the key's fields are known", async () => {
    const { socket, stopA } = await rooms();
    await socket.frame(inRoom("b", 2, 51));
    stopA();
    assert.deepEqual(socket.takeOne("Todo:unsubscribe").data, { room: "a", limit: 5 });
  });

  it("two queries of one model without a key share its changes; stopping one does not silence the other", async () => {
    const { connection, socket } = await connected();
    const open = new Recorder();
    const done = new Recorder();
    const first = connection.subscribe("Todo", { query: { done: false } }, open);
    connection.subscribe("Todo", { query: { done: true } }, done);
    for (const sent of socket.take()) await socket.reply(sent, snapshotOf(10));
    await socket.frame(upsert(1, 11));
    first.stop();
    assert.deepEqual(socket.take(), []);
    await socket.frame(upsert(1, 12));
    assert.deepEqual(open.take().slice(1), [["upsert 1 11"]]);
    assert.deepEqual(done.take().slice(1), [["upsert 1 11"], ["upsert 1 12"]]);
  });

  it("a pushed snapshot that could answer either of two queries makes both ask again", async () => {
    const { connection, socket } = await connected();
    const sink = new Recorder();
    connection.subscribe("Todo", { query: { done: false } }, sink);
    connection.subscribe("Todo", { query: { done: true } }, sink);
    for (const sent of socket.take()) await socket.reply(sent, snapshotOf(10));
    await socket.frame({ event: "Todo:snapshot", data: { epoch: "e2", seq: 1, records: [] } });
    assert.deepEqual(socket.take().map((message) => [message.event, message.since]), [
      ["Todo:subscribe", undefined],
      ["Todo:subscribe", undefined],
    ]);
  });
});
