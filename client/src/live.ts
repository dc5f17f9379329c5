/**
 * A live collection for pages without Backbone: an array of records that equals the server's, under the page's own unanswered
 * writes. Knows nothing of any user interface; it has the two functions that React's `useSyncExternalStore` asks for.
 */

import type { StartOptions } from "./calls.js";
import { localName, recordName } from "./coalesce.js";
import type { Connection, Status } from "./connection.js";
import { BacksyncError, warnOfEnd } from "./errors.js";
import { guarded, type Timer } from "./host.js";
import { inOrder, type Order } from "./pages.js";
import { type Change, isObject, matches, type Message, type Query, safeRecord, type ServerRecord } from "./protocol.js";
import { warnOfRefusal, WritePromise } from "./refusals.js";
import { copied, frozen, type PendingWrite, same, Shadow } from "./shadow.js";
import type { Sink, Subscription } from "./subscriptions.js";

export interface LiveCollectionOptions<Item> {
  /** For a keyed model its key fields; else what the server's read handler gets. */
  query?: Query | undefined;
  /** Default: the server's order, what is new at the end; with `page` that of `order`. */
  sort?: ((one: Item, other: Item) => number) | undefined;
  /** Records of a page, 1 to 1 000: only the first page comes, `more()` opens the next one. */
  page?: number | undefined;
  /** The order of the pages: a field, `-field` for descending, or several. Default: by id. */
  order?: Order | undefined;
  /**
   * True: it follows the server while somebody subscribes to it: from the first `subscribe` on, until shortly after the
   * last subscriber has gone. Default: from now on, until `close()`.
   */
  lazy?: boolean | undefined;
}

const OPTIONS = ["query", "sort", "page", "order", "lazy"];

/** A lazy collection that somebody subscribes to again within this time stays open. */
const LINGER_MS = 1000;

/** The type of a record's id. */
export type IdOf<Item> = Item extends { id: infer Id } ? Id : unknown;

/** Some fields of a record, one at least. */
export type SomeOf<Item> = string extends keyof Item ? Partial<Item> : { [Name in keyof Item]-?: Partial<Item> & Required<Pick<Item, Name>> }[keyof Item];

/** Changes of a record's fields; undefined ones are removed. */
export type ChangesOf<Item> = { [Name in keyof Item]?: Item[Name] | undefined };

interface Entry<Item> {
  /** Its place in the collection's table: the name of its id, or a local name until there is one. */
  name: string;
  /** The same for as long as the record is here, before it has an id and after. */
  key: string;
  shadow: Shadow;
  /** What is shown; null: nothing. The same object as long as nothing in it has changed. */
  view: Item | null;
}

/** What `useSyncExternalStore` compares: an array of its own for each change of what can be seen here. */
interface View<Item> {
  records: readonly Item[];
  state: string;
  error: BacksyncError | null;
  snapshot: readonly Item[];
}

/** `Draft` is what `upsert` takes: by default any fields, one at least; a stricter type says which ones the page must give. */
export class LiveCollection<Item extends object = ServerRecord, Draft extends object = SomeOf<Item>> {
  readonly #connection: Connection;
  readonly #model: string;
  readonly #options: LiveCollectionOptions<Item>;
  readonly #sort: ((one: Item, other: Item) => number) | undefined;
  readonly #query: Query | undefined;
  readonly #listeners = new Set<() => void>();
  readonly #keys = new WeakMap<object, string>();
  /** Entries with writes that have no answer. */
  readonly #unanswered = new Set<Entry<Item>>();
  #subscription: Subscription | null = null;
  /** The key fields of its room, also while it is not open. */
  #room: Query | null = null;
  #unbind: () => void = () => {};
  #linger: Timer | null = null;
  #ready: Promise<this>;
  #entries = new Map<string, Entry<Item>>(); // in the server's order
  #records: readonly Item[] = Object.freeze([]);
  #shown: View<Item> | null = null;
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
    this.#options = options;
    this.#sort = options.sort ?? (page === undefined ? undefined : (inOrder(order ?? []) as (one: object, other: object) => number));
    this.#query = query;
    this.#ready = this.#promise();
    if (options.lazy !== true) this.#open();
  }

  #promise(): Promise<this> {
    const ready = new Promise<this>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    ready.catch(() => {}); // told by `error` and `status`, too
    return ready;
  }

  #open(): void {
    const { query, page, order } = this.#options;
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
    this.#unbind = this.#connection.on("status", () => this.#changed());
    this.#subscription = this.#connection.subscribe(this.#model, { ...(query === undefined ? {} : { query }), page, order }, sink);
  }

  /** Resolves when it first equals the server's; rejects if that is refused, or it is closed before. */
  get ready(): Promise<this> {
    return this.#ready;
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
    return this.#subscription?.hasMore ?? false;
  }

  /** Opens one more page; resolves when it is there, at once where there is none. Rejects if it is refused. */
  more(): Promise<void> {
    return this.#subscription?.more() ?? Promise.resolve();
  }

  /** Number of records with writes that have no answer yet. */
  get pending(): number {
    return this.#unanswered.size;
  }

  get(id: unknown): Item | undefined {
    const name = recordName(id);
    const entry = name === null ? undefined : this.#entries.get(name);
    if (entry === undefined) return undefined;
    return this.#view(entry) ?? undefined;
  }

  /**
   * Calls back once after each frame, and after local writes, that change anything here; returns what ends that. A
   * collection that is not open, because it is lazy or was closed, is opened by it.
   */
  readonly subscribe = (listener: () => void): (() => void) => {
    const own = (): void => listener();
    this.#listeners.add(own);
    this.#stayOpen();
    if (this.#subscription === null) this.#reopen();
    return () => {
      if (!this.#listeners.delete(own) || this.#listeners.size > 0 || this.#options.lazy !== true) return;
      this.#stayOpen();
      this.#linger = this.#connection.host.setTimeout(() => this.#rest(), LINGER_MS);
    };
  };

  /**
   * The records, for `useSyncExternalStore(collection.subscribe, collection.getSnapshot)`: another array whenever
   * `records`, `status`, `pending`, `error` or `hasMore` is another one, so that all of them are drawn as they are.
   */
  readonly getSnapshot = (): readonly Item[] => {
    const { records, error } = this;
    const state = `${this.status} ${this.pending} ${this.hasMore}`;
    const shown = this.#shown;
    if (shown !== null && shown.records === records && shown.state === state && shown.error === error) return shown.snapshot;
    const snapshot = shown?.records === records ? Object.freeze([...records]) : records;
    this.#shown = { records, state, error, snapshot };
    return snapshot;
  };

  /** A text that stays the same for as long as a record is here, also for one that has no id yet: for `key` in React. */
  readonly keyOf = (record: Item): string => this.#keys.get(record) ?? recordName((record as ServerRecord).id) ?? "";

  /** Adds a record, or replaces the one with its id. Shown at once; taken back if it is refused. Resolves with the stored record. */
  upsert(record: Draft): Promise<Item> {
    const given = safeRecord(record) as ServerRecord;
    const name = recordName(given.id);
    const entry = this.#entry(name ?? localName());
    const fields = { ...this.#key, ...given }; // it is of this room, new or not
    const write: PendingWrite = { kind: name === null ? "create" : "write", fields: entry.shadow.differences(fields) };
    return this.#write(entry, { event: "upsert", data: fields }, write, this.#query) as Promise<Item>;
  }

  /** Changes some fields of a record; undefined ones are removed. */
  patch(id: IdOf<Item>, fields: ChangesOf<Item>): Promise<Item> {
    const changed = safeRecord(fields) as ServerRecord;
    const unset = Object.keys(changed).filter((name) => changed[name] === undefined);
    const message: Message = { event: "patch", data: { ...changed, id }, ...(unset.length > 0 ? { unset } : {}) };
    return this.#write(this.#entry(this.#nameOf(id)), message, { kind: "write", fields: copied(changed) }) as Promise<Item>;
  }

  /** Deletes a record. */
  delete(id: IdOf<Item>): Promise<void> {
    return this.#write(this.#entry(this.#nameOf(id)), { event: "delete", data: { id } }, { kind: "delete", fields: {} }) as Promise<void>;
  }

  /** Ends it: the records stay as they are, and what was written still goes out. A later `subscribe` opens it again. */
  close(): void {
    if (this.#closed) return;
    this.#stayOpen();
    this.#subscription?.stop();
    this.#end(new BacksyncError("aborted", `The live ${this.#model} collection was closed before its first records came.`));
  }

  /** The key fields of the room that it shows, once they are known. */
  get #key(): Query | null {
    return this.#subscription?.key ?? this.#room;
  }

  #reopen(): void {
    this.#closed = false;
    this.#filled = false;
    this.#error = null;
    this.#ready = this.#promise();
    this.#open();
    this.#changed();
  }

  #stayOpen(): void {
    if (this.#linger !== null) this.#connection.host.clearTimeout(this.#linger);
    this.#linger = null;
  }

  /** A lazy collection without subscribers. */
  #rest(): void {
    this.#linger = null;
    if (this.#closed) return;
    this.#room = this.#key;
    this.#subscription?.stop();
    this.#subscription = null;
    this.#filled = false;
    this.#unbind();
  }

  #nameOf(id: unknown): string {
    const name = recordName(id);
    if (name === null) throw new BacksyncError("usage", `${this.#model}: ${String(id)} is no id. Pass a text or a number.`);
    return name;
  }

  #entry(name: string): Entry<Item> {
    let entry = this.#entries.get(name);
    if (entry === undefined) this.#entries.set(name, (entry = { name, key: name, shadow: new Shadow(), view: null }));
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
        if (!entry.shadow.pending) this.#unanswered.delete(entry);
        this.#tidy(entry);
        this.#changed();
      });
      entry.shadow.begin(write);
      this.#unanswered.add(entry);
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
    const key = this.#key;
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
    this.#room = this.#key;
    this.#subscription = null;
    this.#closed = true;
    this.#unbind();
    this.#reject(error);
    this.#changed();
  }

  // What is shown.

  #view(entry: Entry<Item>): Item | null {
    const view = entry.shadow.view() as Item | null;
    if (!same(entry.view ?? undefined, view ?? undefined)) entry.view = frozen(view);
    if (entry.view !== null) this.#keys.set(entry.view, entry.key);
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
