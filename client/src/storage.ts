/**
 * Where the outbox is kept while there is no page: an IndexedDB database, and which of several pages owns what in it.
 * Knows nothing of what the texts say. If the browser refuses, fails or does not answer, at whatever step, it warns once
 * and goes on without: nothing that the connection waits for takes longer than a few seconds.
 */

import { isLocal } from "./coalesce.js";
import type { Query } from "./protocol.js";

/** A write as it is stored. */
export interface StoredWrite {
  id: string;
  text: string;
  record: string | null;
  /** The fields that the page has set; null: it has not said. Missing in rows of earlier versions. */
  own?: string[] | null;
  /** The fields that it changes, with the values before; null: not known. Missing in rows of earlier versions. */
  base?: Record<string, unknown> | null;
  /** The writes that it stands for, if there are several. */
  parts?: { event: string; text: string; own: string[] | null; base: Record<string, unknown> | null }[];
  /** The query of the live collection that it was made in; null: its room is known. Missing in rows of earlier versions. */
  query?: Query | null;
  /** It may have reached the server: it must stay as it is. */
  sent: boolean;
  /** The id of the creation whose answer brings what `text` lacks. */
  after: string | null;
}

export interface Storage {
  /**
   * The client id to use, and what a page of that id has left, in order; it never fails. `late` brings what other pages
   * leave when they end.
   */
  open(late: (writes: StoredWrite[]) => void): Promise<{ client: string; writes: StoredWrite[] }>;
  /** Adds, or replaces; `done` once it will survive the page, or never can. */
  put(write: StoredWrite, done: () => void): void;
  remove(id: string): void;
  /** The connection is closed: lets go of the database until it is needed again, and takes over nothing more. */
  close?(): void;
  /** The connection is open again: takes over what other pages leave. */
  resume?(): void;
}

/** `server`: whose writes these are. Pages of one origin may use several servers under one name. */
export type OpenStorage = (name: string, randomId: () => string, server: string) => Storage;

/** `client` of `server` owns the write; `order` is its place among the writes of one client. */
type Row = StoredWrite & { server: string; client: string; order: number };

const TABLE = "writes";
/** A page that is being reloaded may need a moment to let go of what is its own. */
const LOCK_TIMEOUT_MS = 1000;
/** A page that has ended may be being reloaded: then what it has left is its own. */
const RELOAD_MS = 3000;
/** Browsers are known to leave a database unopened for ever; the page must not wait for it to connect. */
const OPEN_TIMEOUT_MS = 3000;
/** The same for a transaction. */
const STEP_TIMEOUT_MS = 3000;
/** The same for all steps before the connection may be used. */
const START_TIMEOUT_MS = 5000;

export const openStorage: OpenStorage = (name, randomId, server) => new IndexedStorage(name, randomId, server);

class IndexedStorage implements Storage {
  readonly #name: string;
  /** Distinguishes what belongs to one server from what belongs to another: in locks, channels and session storage. */
  readonly #scope: string;
  readonly #server: string;
  readonly #randomId: () => string;
  readonly #orders = new Map<string, number>();
  #lastOrder = 0;
  #client = "";
  #late: (writes: StoredWrite[]) => void = () => {};
  #database: Promise<IDBDatabase> | null = null;
  #opened: Promise<unknown> = Promise.resolve();
  /** Something has not answered: nothing waits for the database any more. */
  #isBroken = false;
  #warned = false;
  /** Ends all waiting for other pages. */
  #watching: AbortController | null = null;

  constructor(name: string, randomId: () => string, server: string) {
    this.#name = `backsync:${name}`;
    this.#scope = `${this.#name} ${server}`;
    this.#server = server;
    this.#randomId = randomId;
  }

  open(late: (writes: StoredWrite[]) => void): Promise<{ client: string; writes: StoredWrite[] }> {
    this.#late = late;
    const opening = within(START_TIMEOUT_MS, "the browser's storage did not answer", this.#open()).catch((error: unknown) => {
      this.#fail(error);
      this.#isBroken = true;
      return { client: this.#randomId(), writes: [] };
    });
    this.#opened = opening;
    return opening;
  }

  async #open(): Promise<{ client: string; writes: StoredWrite[] }> {
    const owners = await this.#owners();
    const client = await this.#claim(owners);
    this.#client = client;
    try {
      sessionStorage.setItem(this.#scope, client);
    } catch {
      // Without it a reloaded page is a new client: what it has left is taken over like that of any other page.
    }
    const writes = await this.#take(client);
    if (!this.#isBroken) this.#watch(owners);
    return { client, writes };
  }

  put(write: StoredWrite, done: () => void): void {
    void this.#opened.then(async () => {
      if (!this.#isBroken) {
        try {
          await this.#transaction("readwrite", (table) => table.put(this.#row(write)));
        } catch (error) {
          this.#fail(error);
          this.#remove(write.id); // an older state of it must not be what a later page sends
        }
      }
      done();
    });
  }

  remove(id: string): void {
    void this.#opened.then(() => this.#remove(id));
  }

  close(): void {
    void this.#opened.then(() => {
      this.#watching?.abort();
      this.#watching = null;
      this.#database?.then((database) => database.close(), () => {});
      this.#database = null;
    });
  }

  resume(): void {
    void this.#opened.then(async () => {
      if (!this.#isBroken && this.#watching === null) this.#watch(await this.#owners());
    }).catch((error: unknown) => this.#fail(error));
  }

  #remove(id: string): void {
    if (!this.#orders.delete(id) && this.#isBroken) return; // it was never stored
    this.#transaction("readwrite", (table) => table.delete(id)).catch((error: unknown) => this.#fail(error));
  }

  #row(write: StoredWrite): Row {
    const order = this.#orders.get(write.id) ?? (this.#lastOrder += 1);
    this.#orders.set(write.id, order);
    return { ...write, server: this.#server, client: this.#client, order };
  }

  /** The clients of this server that have left something. */
  async #owners(): Promise<string[]> {
    const rows = await this.#transaction("readonly", (table) => table.getAll() as IDBRequest<Row[]>);
    return [...new Set(rows.filter(({ server }) => server === this.#server).map(({ client }) => client))];
  }

  /** This tab's own client id, or one that no page uses any more, or a new one; it is ours for as long as the page lives. */
  async #claim(owners: string[]): Promise<string> {
    let own: string | null = null;
    try {
      own = sessionStorage.getItem(this.#scope);
    } catch {
      // A browser that keeps nothing.
    }
    if (!hasLocks()) return own ?? this.#randomId();
    if (own !== null) {
      const waiting = new AbortController();
      const timer = setTimeout(() => waiting.abort(), LOCK_TIMEOUT_MS);
      const isOurs = (await this.#lock(own, { signal: waiting.signal })) !== null;
      clearTimeout(timer);
      if (isOurs) return own;
    }
    for (const owner of owners) if ((await this.#lock(owner, { ifAvailable: true })) !== null) return owner;
    const fresh = this.#randomId();
    await this.#lock(fresh, {});
    return fresh;
  }

  // Other pages: what they leave is ours once they have ended.

  /** Waits for the end of each page that is there, or has left something, and of each that comes. */
  #watch(owners: string[]): void {
    if (!hasLocks()) return;
    const watching = (this.#watching = new AbortController());
    const others = new Set<string>([this.#client]);
    const watch = (client: unknown): void => {
      if (typeof client !== "string" || others.has(client) || watching.signal.aborted) return;
      others.add(client);
      void this.#inherit(client, watching.signal)
        .catch((error: unknown) => this.#fail(error))
        .finally(() => others.delete(client));
    };
    for (const owner of owners) watch(owner);
    const prefix = `${this.#scope}:`;
    navigator.locks.query().then(
      ({ held }) => {
        for (const { name } of held ?? []) if (name?.startsWith(prefix) === true) watch(name.slice(prefix.length));
      },
      () => {},
    );
    try {
      const channel = new BroadcastChannel(this.#scope);
      channel.onmessage = ({ data }) => watch(data);
      channel.postMessage(this.#client);
      watching.signal.addEventListener("abort", () => channel.close());
    } catch {
      // Then only what was there before this page is taken over.
    }
  }

  async #inherit(owner: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      const ended = await this.#lock(owner, { signal });
      if (ended === null) return; // nothing is taken over any more
      ended();
      await new Promise((resolve) => setTimeout(resolve, RELOAD_MS));
      if (signal.aborted) return;
      const release = await this.#lock(owner, { ifAvailable: true });
      if (release === null) continue; // it was reloaded, or another page takes it over
      try {
        const writes = await this.#take(owner, isRepeatable);
        if (writes.length > 0) this.#late(writes);
      } finally {
        release();
      }
      return;
    }
  }

  /** What gives the lock back, which the page's end does as well; null: it was not to be had. */
  #lock(client: string, options: LockOptions): Promise<(() => void) | null> {
    return new Promise((resolve) => {
      const held = (lock: Lock | null): Promise<void> | undefined => {
        if (lock === null || this.#isBroken) {
          resolve(null);
          return undefined;
        }
        return new Promise<void>((release) => resolve(release));
      };
      navigator.locks.request(`${this.#scope}:${client}`, options, held).catch(() => resolve(null));
    });
  }

  /** Makes what `owner` has left our own, behind what is; only the writes of those records that `choose` accepts. */
  async #take(owner: string, choose: (writes: Row[]) => boolean = () => true): Promise<StoredWrite[]> {
    let rows: Row[] = [];
    await this.#transaction("readwrite", (table) => {
      const request = table.getAll() as IDBRequest<Row[]>;
      request.onsuccess = () => {
        if (this.#isBroken) return; // too late: it stays for another page
        const all = request.result.filter(({ server, client }) => server === this.#server && client === owner).sort((one, other) => one.order - other.order);
        rows = all.filter(({ record }) => choose(all.filter((row) => row.record === record)));
        for (const row of rows) table.put(this.#row(row));
      };
      return request;
    });
    return rows.map(({ server: _server, client: _client, order: _order, ...write }) => write);
  }

  /** The result once the transaction is complete. Rejects if it fails or does not end. */
  async #transaction<T>(mode: IDBTransactionMode, action: (table: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    try {
      const database = await this.#connect();
      const completed = new Promise<T>((resolve, reject) => {
        const transaction = database.transaction(TABLE, mode);
        const request = action(transaction.objectStore(TABLE));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = () => reject(transaction.error ?? new Error("the transaction was aborted"));
      });
      return await within(STEP_TIMEOUT_MS, "the database did not answer", completed);
    } catch (error) {
      if (error instanceof Late) this.#isBroken = true;
      throw error;
    }
  }

  /** The database; it is opened again after `close`, or after the page or the browser has deleted it. */
  #connect(): Promise<IDBDatabase> {
    if (this.#database !== null) return this.#database;
    const opening = openDatabase(this.#name, () => {
      if (this.#database === opening) this.#database = null;
    });
    this.#database = opening;
    opening.catch(() => {
      if (this.#database === opening) this.#database = null;
    });
    return opening;
  }

  #fail(error: unknown): void {
    if (!this.#warned) console.warn("backsync: unsent writes do not survive this page:", error);
    this.#warned = true;
  }
}

/**
 * Whether another client may send the writes of one record. The server knows a repeated write by the client that sent
 * it first, and a creation that it does not know is stored twice: it waits for a page that has that client's id.
 */
function isRepeatable(writes: Row[]): boolean {
  return !writes.some(({ record, sent }) => sent && (record === null || isLocal(record)));
}

/** Something has not answered in time. */
class Late extends Error {}

function within<T>(milliseconds: number, what: string, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Late(`${what} in ${milliseconds} ms`)), milliseconds);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function hasLocks(): boolean {
  return typeof navigator === "object" && navigator.locks !== undefined;
}

/** `gone`: what was opened is closed, since the database is being deleted. */
function openDatabase(name: string, gone: () => void): Promise<IDBDatabase> {
  const opening = new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error as DOMException);
  });
  let isLate = false;
  opening.then(
    (database) => {
      const close = (): void => {
        database.close();
        gone();
      };
      if (isLate) close();
      database.onversionchange = close;
      database.onclose = gone;
    },
    () => {},
  );
  return within(OPEN_TIMEOUT_MS, "the database did not open", opening).catch((error: unknown) => {
    isLate = true;
    throw error;
  });
}
