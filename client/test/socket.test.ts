/** The one interface over SockJS and WebSocket: what it passes on, and what it keeps to itself. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, it } from "node:test";

import { openSocket, type SocketHandlers } from "../src/socket.js";

class FakeWebSocket {
  static last: FakeWebSocket;
  readonly sent: string[] = [];
  closed: unknown[] | null = null;
  onopen: (() => void) | null = null;
  onmessage: ((event: object) => void) | null = null;
  onclose: ((event: object) => void) | null = null;
  onerror: (() => void) | null = null;
  readonly url: string;

  constructor(url: string) {
    this.url = url;
    FakeWebSocket.last = this;
  }
  send(text: string): void {
    this.sent.push(text);
  }
  close(...how: unknown[]): void {
    this.closed = how;
  }
}

const original = globalThis.WebSocket;
let lines: string[];
let handlers: SocketHandlers;
beforeEach(() => {
  globalThis.WebSocket = FakeWebSocket as never;
  lines = [];
  handlers = {
    open: (transport) => lines.push(`open ${transport}`),
    message: (text) => lines.push(`message ${text}`),
    heartbeat: () => lines.push("heartbeat"),
    close: (code, reason) => lines.push(`close ${code} ${reason}`),
  };
});
afterEach(() => {
  globalThis.WebSocket = original;
});

it("a plain WebSocket goes to the raw endpoint and passes everything on", () => {
  const socket = openSocket("https://host.test/backsync", { transport: "websocket" }, handlers);
  const inner = FakeWebSocket.last;
  assert.equal(inner.url, "wss://host.test/backsync/websocket");
  inner.onopen?.();
  inner.onmessage?.({ data: "{}" });
  socket.send("x");
  assert.deepEqual(inner.sent, ["x"]);
  inner.onclose?.({ code: 4501, reason: "no" });
  assert.deepEqual(lines, ["open websocket", "message {}", "close 4501 no"]);
});

it("a socket that the page closes says nothing any more", () => {
  const socket = openSocket("http://host.test/backsync", { transport: "websocket" }, handlers);
  const inner = FakeWebSocket.last;
  socket.close();
  assert.deepEqual(inner.closed, [1000, ""]);
  for (const event of ["onopen", "onmessage", "onclose", "onerror"] as const) assert.equal(inner[event], null);
});

it("an error is the end, once, whether a close event follows or not", () => {
  openSocket("http://host.test/backsync", { transport: "websocket" }, handlers);
  const inner = FakeWebSocket.last;
  inner.onerror?.();
  inner.onclose?.({ code: 1006, reason: "" });
  assert.deepEqual(lines, ["close 1006 "]);
});

it("without a WebSocket says what to do", () => {
  globalThis.WebSocket = undefined as never;
  assert.throws(() => openSocket("http://host.test/", { transport: "websocket" }, handlers), /Use transport: "sockjs"/);
});
