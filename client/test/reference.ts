/**
 * A server as the protocol wants it, small enough to be believed: one model, positions, resume, snapshots, memory of
 * transactions. Each link delivers only what the test lets through. Counts what was applied; judges nothing else.
 */

import assert from "node:assert/strict";

import type { OpenSocket, SocketHandlers } from "../src/socket.js";
import type { Storage, StoredWrite } from "../src/storage.js";

type Row = Record<string, any> & { id: unknown };
type Message = Record<string, any> & { event: string };

export class ReferenceServer {
  readonly records = new Map<unknown, Row>();
  readonly links = new Set<Link>();
  /** How often a record with this birth mark was created, and how often each write was applied. */
  readonly births = new Map<unknown, number>();
  readonly applied = new Map<unknown, number>();
  readonly #changes = new Map<unknown, { seq: number; row: Row | null }>(); // the newest last
  readonly #memory = new Map<string, { text: string; reply: object }>();
  #epoch = 1;
  #seq = 0;
  #lastId = 0;
  /** Positions below it get a snapshot. */
  horizon = 0;

  handle(link: Link, text: string): void {
    const message = JSON.parse(text) as Message;
    const reply = (data: unknown): void => link.send({ id: message.id, event: message.event, data });
    switch (message.event) {
      case "$:hello":
        link.client = message.data.client;
        return reply({ version: 1, heartbeat: 25 });
      case "$:ping":
      case "Todo:unsubscribe":
        return reply({});
      case "Todo:subscribe":
        return this.#subscribe(link, message);
      default:
        return this.#once(link, message, text);
    }
  }

  /** History is lost: a new epoch, and a snapshot for everybody who listens. */
  forget(): void {
    this.#epoch += 1;
    this.#seq = 0;
    this.horizon = 0;
    this.#changes.clear();
    const data = { epoch: this.#epoch, seq: 0, records: [...this.records.values()] };
    for (const link of this.links) if (link.subscribed) link.send({ event: "Todo:snapshot", data });
  }

  /** What happened so far can only be had as a snapshot. */
  shorten(): void {
    this.horizon = this.#seq;
  }

  /** Somebody else's change. */
  write(id: unknown, row: Row | null): void {
    if (row === null ? !this.records.delete(id) : !this.records.set(id, row)) return;
    this.#publish(id, row);
  }

  #subscribe(link: Link, { id, event, since }: Message): void {
    link.subscribed = true;
    if (since !== undefined && since.epoch === this.#epoch && since.seq >= this.horizon && since.seq <= this.#seq) {
      link.send({ id, event, data: { mode: "resume", epoch: this.#epoch, seq: since.seq } });
      for (const [key, change] of this.#changes) if (change.seq > since.seq) link.send(push(key, change));
    } else {
      link.send({ id, event, data: { mode: "snapshot", epoch: this.#epoch, seq: this.#seq, records: [...this.records.values()] } });
    }
  }

  #once(link: Link, message: Message, text: string): void {
    const name = `${link.client} ${message.id}`;
    const before = this.#memory.get(name);
    if (before !== undefined) {
      assert.equal(text, before.text, "a write that may have been sent was changed");
      link.send(before.reply);
      return;
    }
    const { data, error, publish } = this.#apply(message);
    const reply = { id: message.id, event: message.event, data, ...(error === undefined ? {} : { error }) };
    this.#memory.set(name, { text, reply });
    link.send(reply); // before its echo
    publish?.();
  }

  #apply({ event, data, unset = [] }: Message): { data: unknown; error?: object; publish?: () => void } {
    const refuse = (code: string): { data: null; error: object } => ({ data: null, error: { code, message: code } });
    if (data.n !== undefined && data.n % 10 === 7) return refuse("invalid");
    if (event === "Todo:delete") {
      assert.notEqual(data.id, undefined, "a delete without an id");
      const had = this.records.delete(data.id);
      return had ? { data: {}, publish: () => this.#publish(data.id, null) } : { data: {} };
    }
    let row: Row;
    if (event === "Todo:patch") {
      const old = this.records.get(data.id);
      if (old === undefined) return refuse("not_found");
      row = { ...old, ...data };
      for (const name of unset) delete row[name];
    } else {
      assert.equal(event, "Todo:upsert");
      row = { ...data, id: data.id ?? (this.#lastId += 1) };
      if (data.id === undefined && row.born !== undefined) count(this.births, row.born);
    }
    count(this.applied, row.mark);
    this.records.set(row.id, row);
    return { data: { ...row }, publish: () => this.#publish(row.id, row) };
  }

  #publish(id: unknown, row: Row | null): void {
    this.#seq += 1;
    const change = { seq: this.#seq, row };
    this.#changes.delete(id);
    this.#changes.set(id, change);
    for (const link of this.links) if (link.subscribed) link.send(push(id, change));
  }
}

function push(id: unknown, { seq, row }: { seq: number; row: Row | null }): object {
  return row === null ? { event: "Todo:delete", data: { id }, seq } : { event: "Todo:upsert", data: row, seq };
}

function count(counts: Map<unknown, number>, name: unknown): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}

/** One socket: two queues that move when the test says so. */
export class Link {
  client = "";
  subscribed = false;
  isOpen = false;
  readonly arriving: string[] = [];
  leaving: Message[] = [];
  readonly #server: ReferenceServer;
  readonly handlers: SocketHandlers;

  constructor(server: ReferenceServer, handlers: SocketHandlers) {
    this.#server = server;
    this.handlers = handlers;
    server.links.add(this);
  }

  send(message: object): void {
    this.leaving.push(message as Message);
  }

  /** Lets `amount` messages of the client reach the server. */
  hear(amount: number): void {
    for (const text of this.arriving.splice(0, amount)) this.#server.handle(this, text);
  }

  /** Lets `amount` messages of the server reach the client in one frame, `times` times. */
  say(amount: number, times: number): void {
    const frame = this.leaving.splice(0, amount);
    for (let time = 0; time < times; time += 1) for (const message of frame) this.handlers.message(JSON.stringify(message));
  }

  /** A slow client gets the newest state of each record only: an older change of a record that is waiting is left out. */
  conflate(): void {
    const start = Math.max(...["Todo:snapshot", "Todo:subscribe"].map((event) => this.leaving.map((message) => message.event).lastIndexOf(event)));
    this.leaving = this.leaving.filter(
      (message, index) =>
        message.seq === undefined || index < start || !this.leaving.slice(index + 1).some((later) => later.seq !== undefined && later.data.id === message.data.id),
    );
  }

  end(): void {
    this.#server.links.delete(this);
  }
}

/** Sockets of one page. `reachable` decides whether new ones open. */
export class Wire {
  readonly #server: ReferenceServer;
  link: Link | null = null;
  reachable = true;
  /** Every text that was sent, the greeting's and subscriptions' too. */
  readonly sent: Message[][] = [];

  constructor(server: ReferenceServer) {
    this.#server = server;
  }

  readonly open: OpenSocket = (_url, _options, handlers) => {
    const link = new Link(this.#server, handlers);
    this.link = link;
    const batch: Message[] = [];
    this.sent.push(batch);
    return {
      send: (text) => {
        if (this.link !== link) return;
        batch.push(JSON.parse(text) as Message);
        link.arriving.push(text);
      },
      close: () => this.#end(link),
    };
  };

  /** Opens the socket that is being opened, or refuses it. */
  answer(): void {
    if (this.link === null || this.link.isOpen) return;
    if (!this.reachable) {
      this.cut(0);
      return;
    }
    this.link.isOpen = true;
    this.link.handlers.open("fake");
  }

  /** The connection is gone; of what was on its way `heard` messages reach the server, whose answers are lost. */
  cut(heard: number): void {
    const { link } = this;
    if (link === null) return;
    link.hear(heard);
    this.#end(link);
    link.handlers.close(1006, "");
  }

  /** The page is gone, with its sockets. */
  vanish(heard: number): void {
    this.link?.hear(heard);
    if (this.link !== null) this.#end(this.link);
  }

  #end(link: Link): void {
    link.end();
    if (this.link === link) this.link = null;
  }
}

/** What outlives pages. Each page opens a storage on it; a page that has ended writes no more. */
export class Disk {
  readonly rows = new Map<string, StoredWrite>();
  readonly client = "the client of the disk";
  broken = false;

  storage(): Storage & { end(): void } {
    const { rows } = this;
    let ended = false;
    return {
      end: () => void (ended = true),
      open: async () => ({ client: this.client, writes: [...rows.values()] }),
      put: (write, done) => {
        setImmediate(() => {
          if (ended) return;
          if (!this.broken) rows.set(write.id, { ...write });
          done();
        });
      },
      remove: (id) => void setImmediate(() => !ended && rows.delete(id)),
    };
  }
}
