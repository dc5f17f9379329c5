/**
 * Where the outbox is kept while there is no page: an IndexedDB database, and who of several pages owns what in it.
 * Knows nothing of what the texts say. Where the browser does not let it work it warns once, and memory has to do.
 */

/** A write as it is stored. */
export interface StoredWrite {
  id: string;
  text: string;
  record: string | null;
  /** The fields that the page has set; null: it has not said. Missing in rows of earlier versions. */
  own?: string[] | null;
  /** It may have reached the server: it must stay as it is. */
  sent: boolean;
  /** The id of the creation whose answer brings what `text` lacks. */
  after: string | null;
}

export interface Storage {
  /** The client id to use, and what a page of that id has left, in order. `late` brings what other pages leave when they end. */
  open(late: (writes: StoredWrite[]) => void): Promise<{ client: string; writes: StoredWrite[] }>;
  /** Adds, or replaces; `done` once it will survive the page, or never can. */
  put(write: StoredWrite, done: () => void): void;
  remove(id: string): void;
}

export type OpenStorage = (name: string, randomId: () => string) => Storage;

/** `client` owns the write; `order` is its place among the writes of one client. */
type Row = StoredWrite & { client: string; order: number };

const TABLE = "writes";
/** A page that is being reloaded may need a moment to let go of what is its own. */
const LOCK_TIMEOUT_MS = 1000;
/** Browsers are known to leave a database unopened for ever; the page must not wait for it to connect. */
const OPEN_TIMEOUT_MS = 3000;

export const openStorage: OpenStorage = (name, randomId) => new IndexedStorage(name, randomId);

class IndexedStorage implements Storage {
  readonly #name: string;
  readonly #randomId: () => string;
  readonly #orders = new Map<string, number>();
  #lastOrder = 0;
  #client = "";
  #database: Promise<IDBDatabase | null> | null = null;
  #opened: Promise<unknown> = Promise.resolve();
  #warned = false;

  constructor(name: string, randomId: () => string) {
    this.#name = `backsync:${name}`;
    this.#randomId = randomId;
  }

  open(late: (writes: StoredWrite[]) => void): Promise<{ client: string; writes: StoredWrite[] }> {
    const opening = this.#open(late);
    this.#opened = opening;
    return opening;
  }

  async #open(late: (writes: StoredWrite[]) => void): Promise<{ client: string; writes: StoredWrite[] }> {
    this.#database = openDatabase(this.#name).catch((error: unknown) => this.#fail(error));
    const owners = await this.#owners();
    this.#client = await this.#claim(owners);
    try {
      sessionStorage.setItem(this.#name, this.#client);
    } catch {
      // Without it a reloaded page is a new client: what it has left is taken over like that of any other page.
    }
    const writes = await this.#take(this.#client);
    for (const owner of owners) {
      if (owner !== this.#client) void this.#inherit(owner, late);
    }
    return { client: this.#client, writes };
  }

  put(write: StoredWrite, done: () => void): void {
    void this.#opened.then(async () => {
      await this.#transaction("readwrite", (table) => table.put(this.#row(write)));
      done();
    });
  }

  remove(id: string): void {
    this.#orders.delete(id);
    void this.#opened.then(() => this.#transaction("readwrite", (table) => table.delete(id)));
  }

  #row(write: StoredWrite): Row {
    const order = this.#orders.get(write.id) ?? (this.#lastOrder += 1);
    this.#orders.set(write.id, order);
    return { ...write, client: this.#client, order };
  }

  /** The clients that have left something. */
  async #owners(): Promise<string[]> {
    const rows = (await this.#transaction("readonly", (table) => table.getAll() as IDBRequest<Row[]>)) ?? [];
    return [...new Set(rows.map((row) => row.client))];
  }

  /** This tab's own client id, or one that nobody uses any more, or a new one; it is ours for as long as the page lives. */
  async #claim(owners: string[]): Promise<string> {
    let own: string | null = null;
    try {
      own = sessionStorage.getItem(this.#name);
    } catch {
      // A browser that keeps nothing.
    }
    if (!hasLocks()) return own ?? this.#randomId();
    if (own !== null && (await this.#lock(own, { signal: AbortSignal.timeout(LOCK_TIMEOUT_MS) }))) return own;
    for (const owner of owners) if (await this.#lock(owner, { ifAvailable: true })) return owner;
    const fresh = this.#randomId();
    await this.#lock(fresh, {});
    return fresh;
  }

  /** Waits until another page has ended, which it may have long ago, and takes over what it has left. */
  async #inherit(owner: string, late: (writes: StoredWrite[]) => void): Promise<void> {
    if (!hasLocks() || !(await this.#lock(owner, {}))) return;
    const writes = await this.#take(owner);
    if (writes.length > 0) late(writes);
  }

  /** True once the lock is held; it is given back when the page ends. */
  #lock(client: string, options: LockOptions): Promise<boolean> {
    return new Promise((resolve) => {
      const held = (lock: Lock | null): Promise<void> | undefined => {
        resolve(lock !== null);
        return lock === null ? undefined : new Promise(() => {});
      };
      navigator.locks.request(`${this.#name}:${client}`, options, held).catch(() => resolve(false));
    });
  }

  /** Makes what `owner` has left our own, behind what is. */
  async #take(owner: string): Promise<StoredWrite[]> {
    let rows: Row[] = [];
    await this.#transaction("readwrite", (table) => {
      const request = table.getAll() as IDBRequest<Row[]>;
      request.onsuccess = () => {
        rows = request.result.filter((row) => row.client === owner).sort((one, other) => one.order - other.order);
        for (const row of rows) table.put(this.#row(row));
      };
      return request;
    });
    return rows.map(({ id, text, record, own = null, sent, after }) => ({ id, text, record, own, sent, after }));
  }

  /** The result once the transaction is complete; undefined if it cannot be. */
  async #transaction<T>(mode: IDBTransactionMode, action: (table: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
    const database = await this.#database;
    if (database === null || database === undefined) return undefined;
    try {
      return await new Promise<T>((resolve, reject) => {
        const transaction = database.transaction(TABLE, mode);
        const request = action(transaction.objectStore(TABLE));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = () => reject(transaction.error ?? new Error("aborted"));
      });
    } catch (error) {
      this.#fail(error);
      return undefined;
    }
  }

  #fail(error: unknown): null {
    if (!this.#warned) console.warn("backsync: unsent writes do not survive this page:", error);
    this.#warned = true;
    return null;
  }
}

function hasLocks(): boolean {
  return typeof navigator === "object" && navigator.locks !== undefined;
}

function openDatabase(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error as DOMException);
    request.onblocked = () => reject(new Error("the database is in use by another version"));
    setTimeout(() => reject(new Error(`the database did not open in ${OPEN_TIMEOUT_MS} ms`)), OPEN_TIMEOUT_MS);
  });
}
