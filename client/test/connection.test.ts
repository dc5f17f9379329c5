/** The connection: greeting, calls, coming back, watching. */

import assert from "node:assert/strict";
import { describe, it, mock } from "node:test";

import { retryDelay } from "../src/backoff.js";
import { BacksyncError } from "../src/errors.js";
import { connected, FakeServer, settle } from "./fakes.js";

/** How a call ended, without waiting for it. */
function watch(promise: Promise<unknown>): { state: "pending" | "resolved" | "rejected"; value: any } {
  const seen: { state: "pending" | "resolved" | "rejected"; value: any } = { state: "pending", value: undefined };
  promise.then(
    (value) => Object.assign(seen, { state: "resolved", value }),
    (value) => Object.assign(seen, { state: "rejected", value }),
  );
  return seen;
}

describe("greeting", () => {
  it("opens at first use, greets, and sends nothing else before the answer", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    assert.equal(connection.status, "offline");
    assert.equal(server.sockets.length, 0);
    void connection.call("Todo:read");
    assert.equal(connection.status, "connecting");
    assert.deepEqual(server.urls, ["http://test.invalid/backsync"]);
    server.socket.handlers.open("fake");
    const hello = server.socket.takeOne("$:hello");
    assert.deepEqual(hello.data, { version: 1, client: connection.clientId });
    assert.match(connection.clientId, /^[0-9a-f]{32}$/);
    await server.socket.reply(hello, { version: 1, heartbeat: 25 });
    assert.equal(connection.status, "live");
    assert.equal(connection.transport, "fake");
    assert.deepEqual(server.socket.takeOne("Todo:read"), { id: 1, event: "Todo:read" });
  });

  it("keeps its client id over reconnects, and no two connections share one", async () => {
    const { server, connection, host } = await connected();
    await server.socket.cut();
    await host.advance(30_000);
    server.socket.handlers.open("fake");
    assert.equal(server.socket.takeOne("$:hello").data.client, connection.clientId);
    assert.notEqual(server.connection().clientId, connection.clientId);
  });

  it("sends a token, asks a function for a new one each time", async () => {
    const server = new FakeServer();
    let tokens = 0;
    server.connection({ token: async () => `token ${(tokens += 1)}` }).open();
    for (const expected of ["token 1", "token 2"]) {
      server.socket.handlers.open("fake");
      await settle();
      assert.equal(server.socket.takeOne("$:hello").data.token, expected);
      await server.socket.cut();
      await server.host.advance(30_000);
    }
  });

  it("is closed for good when the greeting is refused as unauthorized", async () => {
    const server = new FakeServer();
    const connection = server.connection({ token: "bad" }).open();
    server.socket.handlers.open("fake");
    await server.socket.refuse(server.socket.takeOne("$:hello"), "unauthorized");
    assert.equal(connection.status, "closed");
    assert.equal(connection.closed?.reason, "no: unauthorized");
    await server.host.advance(100_000);
    assert.equal(server.sockets.length, 1);
  });

  it("knows its public name from the greeting, and asks again where it is another user's", async () => {
    const { server, connection, socket, host } = await connected();
    assert.equal(connection.publicId, null);
    await socket.cut();
    await host.advance(500);
    server.socket.handlers.open("fake");
    await settle();
    await server.socket.reply(server.socket.takeOne("$:hello"), { version: 1, id: "c0ffee" });
    assert.equal(connection.publicId, "c0ffee");
    const signedIn = connection.authenticate("ada");
    await server.socket.reply(server.socket.takeOne("$:auth"), {});
    await signedIn;
    const hello = server.socket.takeOne("$:hello");
    assert.deepEqual(hello.data, { version: 1, client: connection.clientId });
    await server.socket.reply(hello, { version: 1, id: "ada5" });
    assert.equal(connection.publicId, "ada5");
  });

  it("warns once why it does not get in, as where the server's auth hook raises", async () => {
    const warn = mock.method(console, "warn", () => {});
    const server = new FakeServer();
    server.connection().open();
    for (let attempt = 0; attempt < 3; attempt += 1) {
      const { socket } = server;
      socket.handlers.open("fake");
      await settle();
      await socket.refuse(socket.takeOne("$:hello"), "handler_error");
      await server.host.advance(30_000);
    }
    assert.deepEqual(warn.mock.calls.map(({ arguments: words }) => words), [
      ["backsync: http://test.invalid/backsync: the greeting was refused: no: handler_error (handler_error); it is tried again"],
    ]);
    warn.mock.restore();
  });

  it("warns once of a server that closes with 1011, again after a connection that stood", async () => {
    const warn = mock.method(console, "warn", () => {});
    const server = new FakeServer();
    server.connection().open();
    const fail = async (): Promise<void> => {
      server.socket.handlers.open("fake");
      await settle();
      server.socket.handlers.close(1011, "The auth hook failed");
      await server.host.advance(30_000);
    };
    const text = "backsync: http://test.invalid/backsync: the server closed the connection (1011: The auth hook failed); it is opened again";
    await fail();
    await fail();
    assert.deepEqual(warn.mock.calls.map(({ arguments: words }) => words), [[text]]);
    server.socket.handlers.open("fake");
    await server.socket.reply(server.socket.takeOne("$:hello"), { version: 1, heartbeat: 25 });
    await server.socket.cut();
    await server.host.advance(30_000);
    await fail();
    assert.deepEqual(warn.mock.calls.map(({ arguments: words }) => words), [[text], [text]]);
    warn.mock.restore();
  });

  it("authenticates on a live connection and greets with that token afterwards", async () => {
    const { server, connection, socket, host } = await connected();
    const done = connection.authenticate("fresh");
    const auth = socket.takeOne("$:auth");
    assert.deepEqual(auth.data, { token: "fresh" });
    await socket.reply(auth, {});
    await done;
    await socket.cut();
    await host.advance(30_000);
    server.socket.handlers.open("fake");
    assert.equal(server.socket.takeOne("$:hello").data.token, "fresh");
  });

  it("tells an unknown option, a wrong transport and a wrong url", () => {
    const server = new FakeServer();
    assert.throws(() => server.connection({ retries: 3 } as never), /Unknown connection option "retries".*transport, transports, timeout, token/);
    assert.throws(() => server.connection({ transport: "carrier pigeon" as never }), /must be "sockjs" or "websocket"/);
  });
});

describe("calls", () => {
  it("resolve with the reply's data and reject with the server's error", async () => {
    const { connection, socket } = await connected();
    const good = watch(connection.call("Todo:upsert", { text: "a" }));
    const bad = watch(connection.call("Todo:upsert", { text: "" }));
    const [first, second] = socket.take();
    assert.deepEqual(first?.data, { text: "a" });
    await socket.refuse(second!, "invalid", [{ field: "text", message: "empty" }]);
    await socket.reply(first!, { id: 1, text: "a" });
    assert.deepEqual(good, { state: "resolved", value: { id: 1, text: "a" } });
    assert.ok(bad.value instanceof BacksyncError);
    assert.equal(bad.value.code, "invalid");
    assert.equal(bad.value.message, "no: invalid");
    assert.deepEqual(bad.value.details, [{ field: "text", message: "empty" }]);
  });

  it("understand the plain texts that servers in 2012 mode send as errors", async () => {
    const { connection, socket } = await connected();
    const call = watch(connection.call("Todo:read"));
    const sent = socket.takeOne("Todo:read");
    await socket.frame({ id: sent.id, event: sent.event, data: null, error: "Unknown" });
    assert.equal(call.value.message, "Unknown");
  });

  it("time out after 30 s, or what the connection or the call says, waiting included", async () => {
    const { connection, host } = await connected();
    const standard = watch(connection.call("A:a"));
    const own = watch(connection.call("A:a", null, { timeout: 1000 }));
    await host.advance(1000);
    assert.equal(own.value.code, "timeout");
    await host.advance(28_999);
    assert.equal(standard.state, "pending");
    await host.advance(1);
    assert.equal(standard.value.code, "timeout");
    assert.match(standard.value.message, /A:a got no reply within 30 s: the server did not answer/);

    const waiting = new FakeServer();
    const unconnected = watch(waiting.connection({ timeout: 500 }).call("A:a"));
    await waiting.host.advance(500);
    assert.match(unconnected.value.message, /there was no connection/);
  });

  it("wait for ever with timeout: Infinity", async () => {
    const { connection, socket, host } = await connected({ timeout: 5 });
    const call = watch(connection.call("A:a", null, { timeout: Infinity }));
    const sent = socket.takeOne("A:a");
    for (let i = 0; i < 20; i += 1) {
      await host.advance(20_000);
      socket.handlers.heartbeat();
    }
    await socket.reply(sent, 1);
    assert.equal(call.value, 1);
  });

  it("have ids that are never used twice", async () => {
    const { connection, socket } = await connected();
    for (let i = 0; i < 5; i += 1) connection.call("A:a").catch(() => {});
    const ids = socket.sent.map((message) => message.id);
    assert.equal(new Set(ids).size, ids.length);
  });

  it("take as reply only what has a pending id: a push with another id is a push", async () => {
    const { connection, socket } = await connected();
    const pushes: unknown[] = [];
    connection.on("message", (message) => pushes.push(message.data));
    const call = watch(connection.call("A:a"));
    const sent = socket.takeOne("A:a");
    await socket.frame({ id: sent.id + 1000, event: "A:upsert", data: "push" }, { id: null, event: "A:upsert", data: "null" });
    assert.deepEqual(pushes, ["push", "null"]);
    assert.equal(call.state, "pending");
  });

  it("do not take a reply that comes after their deadline for a push", async () => {
    const { connection, socket, host } = await connected();
    const pushes: unknown[] = [];
    connection.on("message", (message) => pushes.push(message));
    connection.call("A:upsert", {}, { timeout: 10 }).catch(() => {});
    const sent = socket.takeOne("A:upsert");
    await host.advance(10);
    await socket.reply(sent, { id: 1 });
    assert.deepEqual(pushes, []);
  });

  it("keep the data as it was when the call was made", async () => {
    const server = new FakeServer();
    const data = { text: "before" };
    server.connection().call("A:a", data).catch(() => {});
    data.text = "after";
    const socket = await server.accept();
    assert.deepEqual(socket.takeOne("A:a").data, { text: "before" });
  });

  it("reject what cannot be written as JSON, and nothing else is lost", async () => {
    const { connection, socket } = await connected();
    const circular: Record<string, unknown> = {};
    circular.self = circular;
    const bad = watch(connection.call("A:a", circular));
    const good = watch(connection.call("A:a", 1));
    await socket.reply(socket.takeOne("A:a"), 2);
    assert.equal(bad.value.code, "invalid");
    assert.match(bad.value.message, /A:a was not sent: JSON cannot carry its data .*circular/);
    assert.equal(good.value, 2);
  });

  it("wait for a connection, in order, at most 1 000 of them", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const calls = Array.from({ length: 1001 }, (_, index) => watch(connection.call("A:a", index)));
    await settle();
    assert.equal(connection.pending, 1000);
    assert.equal(calls[1000]?.value.code, "unavailable");
    const socket = await server.accept();
    const got: unknown[] = [];
    for (let sent = socket.take(); sent.length > 0; sent = socket.take()) {
      got.push(...sent.map((message) => message.data));
      for (const message of sent) await socket.reply(message, null);
    }
    assert.deepEqual(got, Array.from({ length: 1000 }, (_, index) => index));
    assert.equal(connection.pending, 0);
  });

  it("do not leave in one piece: a long queue waits for answers", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    for (let i = 0; i < 10; i += 1) connection.call("A:a", "x".repeat(10_000)).catch(() => {});
    const socket = await server.accept();
    const first = socket.take();
    assert.equal(first.length, 3);
    await socket.reply(first[0]!, null);
    assert.equal(socket.take().length, 1);
    connection.call("A:big", "x".repeat(60_000)).catch(() => {});
    assert.equal(socket.take().length, 0);
  });

  it("that were not answered when the connection was lost are sent again with the same id, in order, before new ones", async () => {
    const { server, connection, socket, host } = await connected();
    const first = watch(connection.call("Todo:upsert", { n: 1 }));
    const second = watch(connection.call("Todo:upsert", { n: 2 }));
    const [one, two] = socket.take();
    await socket.reply(one!, { n: 1 });
    await socket.cut();
    void connection.call("Todo:upsert", { n: 3 });
    await host.advance(500);
    const again = await server.accept();
    const resent = again.take();
    assert.deepEqual(resent.map((message) => message.data.n), [2, 3]);
    assert.equal(resent[0]?.id, two?.id);
    await again.reply(resent[0]!, { n: 2 });
    assert.equal(first.state, "resolved");
    assert.equal(second.state, "resolved");
  });

  it("are not sent again after their deadline", async () => {
    const { server, connection, socket, host } = await connected();
    const call = watch(connection.call("Todo:upsert", {}, { timeout: 100 }));
    await socket.cut();
    await host.advance(500);
    assert.equal(call.value.code, "timeout");
    assert.deepEqual((await server.accept()).take(), []);
  });
});

describe("coming back", () => {
  it("waits with full jitter: doubling ceilings from 0.5 s to 30 s", () => {
    assert.deepEqual([0, 1, 2, 5, 6, 60].map((attempt) => retryDelay(attempt, 1)), [500, 1000, 2000, 16_000, 30_000, 30_000]);
    assert.equal(retryDelay(3, 0), 0);
    assert.equal(retryDelay(3, 0.25), 1000);
  });

  it("tries again and again, longer apart, and from the beginning after a connection that stood", async () => {
    const { server, connection, host } = await connected();
    await host.advance(10_000);
    for (const delay of [250, 500, 1000]) {
      const sockets = server.sockets.length;
      await server.socket.cut();
      assert.equal(connection.status, "offline");
      await host.advance(delay - 1);
      assert.equal(server.sockets.length, sockets);
      await host.advance(1);
      assert.equal(server.sockets.length, sockets + 1);
      assert.equal(connection.status, "connecting");
    }
    await server.accept();
    await host.advance(10_000);
    await server.socket.cut();
    const sockets = server.sockets.length;
    await host.advance(250);
    assert.equal(server.sockets.length, sockets + 1);
  });

  it("does not hammer a server that accepts and closes at once", async () => {
    const { server, host } = await connected();
    await server.socket.cut();
    await host.advance(250);
    await server.accept();
    await server.socket.cut();
    const sockets = server.sockets.length;
    await host.advance(499);
    assert.equal(server.sockets.length, sockets);
  });

  it("comes back within 5 s after 1012", async () => {
    const { server, host } = await connected();
    await server.socket.cut(1012, "restart");
    await host.advance(2499);
    assert.equal(server.sockets.length, 1);
    await host.advance(1);
    assert.equal(server.sockets.length, 2);
  });

  it("honours the window of $:bye, lets answers come and keeps new calls for the next connection", async () => {
    const { server, connection, socket, host } = await connected();
    const before = watch(connection.call("A:before"));
    const sent = socket.takeOne("A:before");
    await socket.frame({ event: "$:bye", data: { code: 1012, reason: "drain", retry: [10, 20] } });
    const after = watch(connection.call("A:after"));
    assert.deepEqual(socket.take(), []);
    await socket.reply(sent, 1);
    assert.equal(before.value, 1);
    await socket.cut(1012);
    await host.advance(14_999);
    assert.equal(server.sockets.length, 1);
    await host.advance(1);
    assert.equal(server.sockets.length, 2);
    const again = await server.accept();
    await again.reply(again.takeOne("A:after"), 2);
    assert.equal(after.value, 2);
  });

  it("leaves a server that said goodbye and forgets to close", async () => {
    const { server, socket, host } = await connected();
    await socket.frame({ event: "$:bye", data: { retry: [0, 1] } });
    await host.advance(9_000);
    assert.equal(socket.closedByPage, true);
    assert.equal(server.sockets.length, 2);
  });

  for (const code of [3500, 3999, 4500, 4999]) {
    it(`is closed for good by code ${code}`, async () => {
      const { server, connection, socket, host } = await connected();
      const call = watch(connection.call("A:a"));
      await socket.cut(code, "forbidden origin");
      assert.equal(connection.status, "closed");
      assert.deepEqual(connection.closed, { code, reason: "forbidden origin" });
      assert.equal(call.value.code, "closed");
      assert.match(call.value.message, new RegExp(`${code}: forbidden origin.*connection.open\\(\\)`));
      await host.advance(100_000);
      assert.equal(server.sockets.length, 1);
      assert.equal(host.timers, 0);
      assert.equal(watch(connection.call("A:a")).state, "pending");
      await settle();
      assert.equal(server.sockets.length, 1);
    });
  }

  for (const code of [1000, 1006, 3000, 3499, 4000, 4499, 2010]) {
    it(`comes back after code ${code}`, async () => {
      const { server, connection, socket, host } = await connected();
      await socket.cut(code);
      assert.equal(connection.status, "offline");
      await host.advance(500);
      assert.equal(server.sockets.length, 2);
    });
  }

  it("gives up a socket that does not open within 30 s", async () => {
    const server = new FakeServer();
    server.connection().open();
    await server.host.advance(30_250);
    assert.equal(server.sockets[0]?.closedByPage, true);
    assert.equal(server.sockets.length, 2);
  });

  it("ignores what a socket says that was given up", async () => {
    const { connection, socket, host } = await connected();
    host.network(false);
    await host.advance(2_000);
    await socket.frame({ event: "A:upsert", data: {} });
    await socket.cut(4500);
    assert.equal(connection.status, "offline");
  });

  it("follows the page's network: offline as soon as the server does not answer, back at once", async () => {
    const { server, connection, socket, host } = await connected();
    host.network(false);
    socket.takeOne("$:ping");
    await host.advance(2_000);
    assert.equal(connection.status, "offline");
    assert.equal(socket.closedByPage, true);
    await host.advance(10_000);
    assert.equal(server.sockets.length, 1);
    host.network(true);
    assert.equal(connection.status, "connecting");
    await server.accept();
    assert.equal(connection.status, "live");
  });

  it("does not wait for the network's return for ever, since pages err about it", async () => {
    const { server, host } = await connected();
    host.network(false);
    await host.advance(24_500);
    assert.equal(server.sockets.length, 2);
  });

  it("keeps a connection that works though the page has no network: it may need none", async () => {
    const { server, connection, socket, host } = await connected();
    host.network(false);
    await socket.reply(socket.takeOne("$:ping"), {});
    await host.advance(20_000);
    assert.equal(connection.status, "live");
    assert.equal(server.sockets.length, 1);
    await socket.cut(); // it was wrong about the network: the next try is not put off
    await host.advance(500);
    assert.equal(server.sockets.length, 2);
  });

  it("reconnects when the page wants it to: at once, or when there is a network", async () => {
    const { server, connection, socket, host } = await connected();
    connection.reconnect();
    assert.equal(socket.closedByPage, true);
    assert.equal(server.sockets.length, 2);
    await server.accept();
    host.network(false);
    connection.reconnect();
    assert.equal(connection.status, "offline");
    await host.advance(10_000);
    assert.equal(server.sockets.length, 2);
    connection.close();
    connection.reconnect();
    assert.equal(connection.status, "closed");
  });
});

describe("watching", () => {
  it("asks after a heartbeat of silence and comes back when nobody answers, within 35 s", async () => {
    const { server, socket, host } = await connected();
    await host.advance(26_999);
    assert.deepEqual(socket.take(), []);
    await host.advance(1);
    socket.takeOne("$:ping");
    await host.advance(8_000);
    assert.equal(socket.closedByPage, true);
    await host.advance(500);
    assert.equal(server.sockets.length, 2);
  });

  it("is content with any sign of life", async () => {
    const { connection, socket, host } = await connected();
    for (let i = 0; i < 10; i += 1) {
      await host.advance(20_000);
      socket.handlers.heartbeat();
    }
    assert.deepEqual(socket.take(), []);
    await host.advance(27_000);
    const ping = socket.takeOne("$:ping");
    await socket.reply(ping, {});
    await host.advance(20_000);
    assert.equal(connection.status, "live");
    assert.equal(socket.closedByPage, false);
  });

  it("uses the heartbeat that the server announces", async () => {
    const server = new FakeServer();
    server.connection().open();
    const socket = await server.accept(5);
    await server.host.advance(7_000);
    socket.takeOne("$:ping");
  });
});

describe("status, closing, errors of others", () => {
  it("tells each change once, until unbound", async () => {
    const server = new FakeServer();
    const connection = server.connection();
    const seen: string[] = [];
    const unbind = connection.on("status", (status) => seen.push(status));
    connection.open();
    await server.accept();
    await server.socket.cut();
    unbind();
    connection.close();
    assert.deepEqual(seen, ["connecting", "live", "offline"]);
  });

  it("closes for good, leaves nothing behind, and opens again when told to", async () => {
    const { server, connection, socket, host } = await connected();
    const call = watch(connection.call("A:a"));
    connection.close();
    await settle();
    assert.equal(connection.status, "closed");
    assert.equal(socket.closedByPage, true);
    assert.equal(call.value.code, "closed");
    assert.equal(host.timers, 0);
    assert.equal(host.networkListeners, 0);
    connection.open();
    await server.accept();
    assert.equal(connection.status, "live");
  });

  it("goes on when a listener throws, and reports it", async () => {
    const { connection, socket, host } = await connected();
    const oops = new Error("oops");
    connection.on("message", () => {
      throw oops;
    });
    const call = watch(connection.call("A:a"));
    const sent = socket.takeOne("A:a");
    await socket.frame({ event: "A:upsert", data: {} }, { id: sent.id, event: "A:a", data: 1 });
    assert.equal(call.value, 1);
    assert.deepEqual(host.reported, [oops]);
  });

  it("ignores what is not a JSON object", async () => {
    const { connection, socket } = await connected();
    for (const text of ["", "nonsense", "[]", "null", "5", '"text"', '{"event": 5}', "{}"]) socket.handlers.message(text);
    await settle();
    assert.equal(connection.status, "live");
  });

  it("survives a socket that throws while sending", async () => {
    const { server, connection, socket, host } = await connected();
    socket.broken = true;
    const call = watch(connection.call("A:a"));
    await socket.cut();
    await host.advance(500);
    const again = await server.accept();
    await again.reply(again.takeOne("A:a"), 1);
    assert.equal(call.value, 1);
  });
});
