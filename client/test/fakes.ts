/** A clock, luck, a network and a server's end of sockets, all in the test's hands. No test waits for real time. */

import assert from "node:assert/strict";

import { Connection, type ConnectionOptions } from "../src/connection.js";
import type { Host } from "../src/host.js";
import type { OpenSocket, SocketHandlers } from "../src/socket.js";

/** Lets all promises and microtasks that are due run. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export class VirtualHost implements Host {
  time = 1_000_000;
  luck = 0.5;
  readonly reported: unknown[] = [];
  readonly #timers = new Map<number, { at: number; callback: () => void }>();
  readonly #networkListeners = new Set<(online: boolean) => void>();
  #lastTimer = 0;

  now(): number {
    return this.time;
  }
  setTimeout(callback: () => void, milliseconds: number): number {
    this.#lastTimer += 1;
    this.#timers.set(this.#lastTimer, { at: this.time + milliseconds, callback });
    return this.#lastTimer;
  }
  clearTimeout(timer: unknown): void {
    this.#timers.delete(timer as number);
  }
  random(): number {
    return this.luck;
  }
  onNetwork(callback: (online: boolean) => void): () => void {
    this.#networkListeners.add(callback);
    return () => this.#networkListeners.delete(callback);
  }
  report(error: unknown): void {
    this.reported.push(error);
  }

  get timers(): number {
    return this.#timers.size;
  }
  get networkListeners(): number {
    return this.#networkListeners.size;
  }
  network(online: boolean): void {
    for (const listener of this.#networkListeners) listener(online);
  }
  /** Makes changes wait for `paint`; without it they are applied in the task in which they arrive. */
  drawFrames(): void {
    this.frame = (callback) => void this.#frames.push(callback);
  }
  frame?: (callback: () => void) => void;
  readonly #frames: (() => void)[] = [];
  /** Draws a frame. */
  async paint(): Promise<void> {
    for (const callback of this.#frames.splice(0)) callback();
    await settle();
  }
  /** Runs every timer that is due within the next milliseconds, in order. */
  async advance(milliseconds: number): Promise<void> {
    const end = this.time + milliseconds;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.time = due[1].at;
      due[1].callback();
      await settle();
    }
    this.time = end;
  }
}

export type Sent = Record<string, unknown> & { id: number; event: string; data?: any };

/** One socket as the server sees it. */
export class FakeSocket {
  readonly sent: Sent[] = [];
  readonly handlers: SocketHandlers;
  closedByPage = false;
  /** Set to make `send` fail. */
  broken = false;
  #read = 0;

  constructor(handlers: SocketHandlers) {
    this.handlers = handlers;
  }

  /** Everything that has come since the last `take`. */
  take(): Sent[] {
    const fresh = this.sent.slice(this.#read);
    this.#read = this.sent.length;
    return fresh;
  }

  /** The one message with this event that has come since the last `take`. */
  takeOne(event: string): Sent {
    const fresh = this.take();
    assert.deepEqual(fresh.map((message) => message.event), [event]);
    return fresh[0] as Sent;
  }

  /** One frame: all messages in one task. */
  async frame(...messages: object[]): Promise<void> {
    for (const message of messages) this.handlers.message(JSON.stringify(message));
    await settle();
  }

  reply(to: Sent, data: unknown): Promise<void> {
    return this.frame({ id: to.id, event: to.event, data });
  }

  refuse(to: Sent, code: string, details?: unknown): Promise<void> {
    return this.frame({ id: to.id, event: to.event, data: null, error: { code, message: `no: ${code}`, details } });
  }

  async cut(code = 1006, reason = ""): Promise<void> {
    this.handlers.close(code, reason);
    await settle();
  }
}

export class FakeServer {
  readonly host = new VirtualHost();
  readonly sockets: FakeSocket[] = [];
  readonly urls: string[] = [];
  readonly open: OpenSocket = (url, _options, handlers) => {
    const socket = new FakeSocket(handlers);
    this.urls.push(url);
    this.sockets.push(socket);
    return {
      send: (text) => {
        if (socket.broken) throw new Error("InvalidStateError");
        socket.sent.push(JSON.parse(text) as Sent);
      },
      close: () => {
        socket.closedByPage = true;
      },
    };
  };

  connection(options: ConnectionOptions = {}): Connection {
    return new Connection("http://test.invalid/backsync", options, this.host, this.open);
  }

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    assert.ok(socket, "no socket was opened");
    return socket;
  }

  /** Opens the newest socket and answers its greeting. */
  async accept(heartbeat = 25, limits = {}): Promise<FakeSocket> {
    const socket = this.socket;
    socket.handlers.open("fake");
    await settle();
    const hello = socket.takeOne("$:hello");
    await socket.reply(hello, { version: 1, heartbeat, limits });
    return socket;
  }
}

/** A connection that stands. */
export async function connected(options: ConnectionOptions = {}): Promise<{ server: FakeServer; connection: Connection; socket: FakeSocket; host: VirtualHost }> {
  const server = new FakeServer();
  const connection = server.connection(options).open();
  const socket = await server.accept();
  return { server, connection, socket, host: server.host };
}
