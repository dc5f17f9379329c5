/**
 * A live collection for pages without Backbone: an array of records that equals the server's, under the page's own unanswered
 * writes. Knows nothing of any user interface; it has the two functions that React's `useSyncExternalStore` asks for.
 */

import type { StartOptions } from "./calls.js";
import { localName, recordName } from "./coalesce.js";
import type { Connection, Status } from "./connection.js";
import { BacksyncError, warnOfEnd } from "./errors.js";
import { guarded } from "./host.js";
import { inOrder, type Order } from "./pages.js";
import { type Change, isObject, matches, type Message, type Query, safeRecord, type ServerRecord } from "./protocol.js";
import { warnOfRefusal, WritePromise } from "./refusals.js";
import { copied, frozen, type PendingWrite, same, Shadow } from "./shadow.js";
import type { Sink, Subscription } from "./subscriptions.js";

export interface LiveCollectionOptions<Item> {
  /** For a keyed model its key fields; else what the server's read handler gets. */
  query?: Query;
  /** Default: the server's order, what is new at the end; with `page` that of `order`. */
  sort?: (one: Item, other: Item) => number;
  /** Records of a page, 1 to 1 000: only the first page comes, `more()` opens the next one. */
  page?: number;
  /** The order of the pages: a field, `-field` for descending, or several. Default: by id. */
  order?: Order;
}

const OPTIONS = ["query", "sort", "page", "order"];

interface Entry<Item> {
  /** Its place in the collection's table: the name of its id, or a local name until there is one. */
  name: string;
  shadow: Shadow;
  /** What is shown; null: nothing. The same object as long as nothing in it has changed. */
  view: Item | null;
}

export class LiveCollection<Item extends ServerRecord = ServerRecord> {
  /** Resolves when it first equals the server's; rejects if that is refused, or it is closed before. */
  readonly ready: Promise<this>;
  readonly #connection: Connection;
  readonly #model: string;
  readonly #sort: ((one: Item, other: Item) => number) | undefined;
  readonly #query: Query | undefined;
  readonly #subscription: Subscription;
  readonly #listeners = new Set<() => void>();
  readonly #unbind: () => void;
  #entries = new Map<string, Entry<Item>>(); // in the server's order
  #records: readonly Item[] = Object.freeze([]);
  #stale = false;
  #telling = false;
  #filled = false;
  #closed = false;
  #error: BacksyncError | null = null;
  #resolve: (collection: this) => void = () => {};
  #reject: (error: BacksyncError) => void = () => {};

  /** Follows the server's `model` from now on, until `close()`. */
  constructor(connection: Connection, model: string, options: LiveCollectionOptions<Item> = {}) {
    if (typeof connection?.subscribe !== "function" || typeof connection.request !== "function") {
      throw new BacksyncError("usage", "new LiveCollection() needs a connection first: write for example new LiveCollection(Backsync.connection, \"Todo\").");
    }
    for (const name of Object.keys(options)) {
      if (!OPTIONS.includes(name)) throw new BacksyncError("usage", `LiveCollection does not know the option "${name}". It knows ${OPTIONS.join(", ")}.`);
    }
    const { query, page, order } = options;
    this.#connection = connection;
    this.#model = model;
    this.#sort = options.sort ?? (page === undefined ? undefined : inOrder(order ?? []));
    this.#query = query;
    this.ready = new Promise<this>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.ready.catch(() => {}); // told by `error` and `status`, too
    this.#unbind = connection.on("status", () => this.#changed());
    const sink: Sink = {
      snapshot: (records) => this.#fill(records),
      changes: (changes) => this.#apply(changes),
      more: (records) => this.#add(records),
      failed: (error, over) => {
        if (over) this.#refused(error);
      },
      delayed: (error) => {
        this.#error = error;
        this.#changed();
      },
    };
    this.#subscription = connection.subscribe(model, { ...(query === undefined ? {} : { query }), page, order }, sink);
  }

  /** All records, frozen; the same array as long as nothing in it has changed. */
  get records(): readonly Item[] {
    if (this.#stale) this.#rebuild();
    return this.#records;
  }

  /** The connection's status; `closed` also where the server has refused the subscription, or `close()` was called. */
  get status(): Status {
    const { status } = this.#connection;
    if (this.#closed) return "closed";
    return status === "live" && !this.#filled ? "behind" : status;
  }

  /** Why it is `closed`, or why the server does not let it catch up at present. */
  get error(): BacksyncError | null {
    return this.#error;
  }

  /** Whether the server has records after those of the pages that are open. */
  get hasMore(): boolean {
    return this.#subscription.hasMore;
  }

  /** Opens one more page; resolves when it is there, at once where there is none. Rejects if it is refused. */
  more(): Promise<void> {
    return this.#subscription.more();
  }

  /** Number of records with writes that have no answer yet. */
  get pending(): number {
    let count = 0;
    for (const entry of this.#entries.values()) if (entry.shadow.pending) count += 1;
    return count;
  }

  get(id: unknown): Item | undefined {
    const name = recordName(id);
    const entry = name === null ? undefined : this.#entries.get(name);
    if (entry === undefined) return undefined;
    return this.#view(entry) ?? undefined;
  }

  /** Calls back once after each frame, and after local writes, that change anything here; returns what ends that. */
  readonly subscribe = (listener: () => void): (() => void) => {
    const own = (): void => listener();
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  };

  /** `records`, for `useSyncExternalStore(collection.subscribe, collection.getSnapshot)`. */
  readonly getSnapshot = (): readonly Item[] => this.records;

  /** Adds a record, or replaces the one with its id. Shown at once; taken back if it is refused. Resolves with the stored record. */
  upsert(record: Partial<Item>): Promise<Item> {
    const given = safeRecord(record) as ServerRecord;
    const name = recordName(given.id);
    const entry = this.#entry(name ?? localName());
    const fields = entry.shadow.confirmed === undefined ? { ...this.#subscription.key, ...given } : given; // a new one is of this room
    const write: PendingWrite = { kind: name === null ? "create" : "write", fields: entry.shadow.differences(fields) };
    const query = entry.shadow.confirmed === undefined ? this.#query : undefined;
    return this.#write(entry, { event: "upsert", data: fields }, write, query) as Promise<Item>;
  }

  /** Changes some fields of a record; undefined ones are removed. */
  patch(id: Item["id"], fields: Partial<Item>): Promise<Item> {
    const changed = safeRecord(fields) as ServerRecord;
    const unset = Object.keys(changed).filter((name) => changed[name] === undefined);
    const message: Message = { event: "patch", data: { ...changed, id }, ...(unset.length > 0 ? { unset } : {}) };
    return this.#write(this.#entry(this.#nameOf(id)), message, { kind: "write", fields: copied(changed) }) as Promise<Item>;
  }

  /** Deletes a record. */
  delete(id: Item["id"]): Promise<void> {
    return this.#write(this.#entry(this.#nameOf(id)), { event: "delete", data: { id } }, { kind: "delete", fields: {} }) as Promise<void>;
  }

  /** Ends it: the records stay as they are, and what was written still goes out. */
  close(): void {
    if (this.#closed) return;
    this.#subscription.stop();
    this.#end(new BacksyncError("aborted", `The live ${this.#model} collection was closed before its first records came.`));
  }

  #nameOf(id: unknown): string {
    const name = recordName(id);
    if (name === null) throw new BacksyncError("usage", `${this.#model}: ${String(id)} is no id. Pass a text or a number.`);
    return name;
  }

  #entry(name: string): Entry<Item> {
    let entry = this.#entries.get(name);
    if (entry === undefined) this.#entries.set(name, (entry = { name, shadow: new Shadow(), view: null }));
    return entry;
  }

  // Writes.

  #write(entry: Entry<Item>, { event, ...message }: Message, write: PendingWrite, query?: Query): Promise<unknown> {
    const own = entry.shadow.touched({ ...(message.data as ServerRecord), ...write.fields });
    const options: StartOptions = { record: entry.name, own, before: entry.shadow.confirmed, query };
    const promise = WritePromise.make<unknown>((resolve, reject) => {
      this.#connection.request({ event: `${this.#model}:${event}`, ...message }, options, (error, reply) => {
        if (error === null) {
          entry.shadow.succeed(write, isObject(reply) && write.kind !== "delete" ? safeRecord(reply) : null);
          this.#identify(entry);
          this.#place(entry);
          resolve(write.kind === "delete" ? undefined : reply);
        } else {
          this.#rollBack(entry, write, error);
          reject(error);
          warnOfRefusal(this.#connection.host, `${this.#model}:${event}`, error, () => promise.isTaken);
        }
        this.#tidy(entry);
        this.#changed();
      });
      entry.shadow.begin(write);
      this.#changed();
    });
    return promise;
  }

  #rollBack(entry: Entry<Item>, write: PendingWrite, error: BacksyncError): void {
    entry.shadow.fail(write, {});
    const current = error.code === "conflict" && isObject(error.details) ? error.details.current : undefined;
    if (isObject(current)) entry.shadow.receive(safeRecord(current));
    else if (error.code === "not_found") entry.shadow.confirmed = null;
  }

  /** A record that has got its id takes its place under it: the place of a push that was faster, if there is one. */
  #identify(entry: Entry<Item>): void {
    const name = recordName(entry.shadow.confirmed?.id);
    if (name === null || name === entry.name) return;
    const twin = this.#entries.get(name);
    if (twin !== undefined) entry.shadow.absorb(twin.shadow, entry.shadow.confirmed ?? {});
    const entries = [...this.#entries.values()].filter((other) => other !== twin);
    entry.name = name;
    this.#entries = new Map(entries.map((other) => [other.name, other]));
  }

  /** A record of another room than ours is not shown here. */
  #place({ shadow }: Entry<Item>): void {
    const { key } = this.#subscription;
    if (key !== null && !matches(shadow.confirmed ?? key, key)) shadow.confirmed = null;
  }

  #tidy(entry: Entry<Item>): void {
    const { shadow } = entry;
    if (!shadow.pending && (shadow.confirmed ?? null) === null && this.#entries.get(entry.name) === entry) this.#entries.delete(entry.name);
  }

  // What the server says.

  #fill(records: ServerRecord[]): void {
    this.#replace(records);
    this.#filled = true;
    this.#error = null;
    this.#resolve(this);
    this.#changed();
  }

  #replace(records: ServerRecord[]): void {
    const before = this.#entries;
    this.#entries = new Map();
    for (const record of records) {
      const name = recordName(record.id);
      if (name === null) continue;
      const entry = before.get(name);
      if (entry !== undefined) this.#entries.set(name, entry);
      this.#entry(name).shadow.receive(safeRecord(record));
    }
    for (const [name, entry] of before) {
      if (this.#entries.has(name)) continue;
      if (entry.shadow.confirmed !== undefined) entry.shadow.confirmed = null;
      if (entry.shadow.pending) this.#entries.set(name, entry);
    }
  }

  #add(records: ServerRecord[]): void {
    for (const record of records) {
      const name = recordName(record.id);
      if (name !== null) this.#entry(name).shadow.receive(safeRecord(record));
    }
    this.#changed();
  }

  #apply(changes: Change[]): void {
    for (const { method, data } of changes) {
      if ((method !== "upsert" && method !== "delete") || !isObject(data)) continue;
      const name = recordName(data.id);
      if (name === null) continue;
      if (method === "upsert") {
        this.#entry(name).shadow.receive(safeRecord(data));
        continue;
      }
      const entry = this.#entries.get(name);
      if (entry === undefined) continue;
      entry.shadow.confirmed = null;
      this.#tidy(entry);
    }
    this.#changed();
  }

  #refused(error: BacksyncError): void {
    this.#error = error;
    if (error.code !== "closed") this.#replace([]); // what the server does not show any more is not shown
    warnOfEnd(this.#model, error);
    this.#end(error);
  }

  #end(error: BacksyncError): void {
    this.#closed = true;
    this.#unbind();
    this.#reject(error);
    this.#changed();
  }

  // What is shown.

  #view(entry: Entry<Item>): Item | null {
    const view = entry.shadow.view() as Item | null;
    if (!same(entry.view ?? undefined, view ?? undefined)) entry.view = frozen(view);
    return entry.view;
  }

  #rebuild(): void {
    this.#stale = false;
    const records: Item[] = [];
    for (const entry of this.#entries.values()) {
      const view = this.#view(entry);
      if (view !== null) records.push(view);
    }
    if (this.#sort !== undefined) records.sort(this.#sort);
    const isSame = records.length === this.#records.length && records.every((record, index) => record === this.#records[index]);
    if (!isSame) this.#records = Object.freeze(records);
  }

  /** A frame is handled in one go: listeners are told once, after all of it. */
  #changed(): void {
    this.#stale = true;
    if (this.#telling) return;
    this.#telling = true;
    queueMicrotask(() => {
      this.#telling = false;
      for (const listener of [...this.#listeners]) guarded(this.#connection.host, listener);
    });
  }
}
