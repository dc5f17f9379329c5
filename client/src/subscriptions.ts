/**
 * Who follows which channel, from which position, and what has to be asked when a socket opens.
 * Knows nothing of sockets and of how records are kept: a `Sink` does that.
 */

import type { Settle } from "./calls.js";
import { BacksyncError } from "./errors.js";
import { guarded, type Host, type Timer } from "./host.js";
import { retryDelay } from "./backoff.js";
import { Pages } from "./pages.js";
import {
  type Change,
  canonical,
  type Incoming,
  isObject,
  matches,
  type Message,
  type Position,
  type Query,
  type ServerRecord,
  splitEvent,
} from "./protocol.js";

/** Where a channel's records go. Repeats are harmless by contract: everything is an upsert or a delete. */
export interface Sink {
  /** These are all records of the channel now: what it lacks is gone. */
  snapshot(records: ServerRecord[], seq: number): void;
  /** What happened in one frame, in order. */
  changes(changes: Change[]): void;
  /** Further records of a list that is read page by page; what is there stays. Without it they come as changes. */
  more?(records: ServerRecord[]): void;
  /**
   * Refused. `over`: for good, by the server or because the connection is closed; unless it is closed, the records are
   * not to be seen any more. Else the server could not answer, and is asked again.
   */
  failed?(error: BacksyncError, over: boolean): void;
  /** The server cannot answer at present, for whatever reason, and is asked again; null: now it has answered. */
  delayed?(error: BacksyncError | null): void;
}

/** How the manager reaches the server: on the present socket only, which is the only one that it is true for. */
export type Ask = (message: Message, settle: Settle) => void;

/** What an answer says of a model: its key fields, none for one without; null: the server refuses this query for good. */
export type Taught = (model: string, names: string[] | null, query: Query | undefined) => void;

/** Refusals that pass by themselves. */
const PASSING = new Set(["unavailable", "timeout", "rate_limited"]);

/** A mistake in the server: it ends a first question, so that it is seen, but says nothing about a right that there was. */
const MISTAKE = "handler_error";

export class Subscription {
  readonly model: string;
  readonly query: Query | undefined;
  readonly #stop: () => void;
  /** The last change that was received; null until the first answer. */
  position: Position | null = null;
  /** The key fields of its channel, for a keyed model, once the server has answered. */
  key: Query | null = null;
  /** Where it is read page by page. */
  readonly #pages: Pages | null;

  /** @internal */
  constructor(model: string, query: Query | undefined, stop: () => void, pages: Pages | null) {
    this.model = model;
    this.query = query;
    this.#stop = stop;
    this.#pages = pages;
  }

  /** Whether there are records after those of the pages that are open. */
  get hasMore(): boolean {
    return this.#pages?.hasMore ?? false;
  }

  /** Opens one more page; resolves when it is there, at once where there is none. Rejects if it is refused. */
  more(): Promise<void> {
    return this.#pages === null ? Promise.resolve() : this.#pages.more();
  }

  /** Ends it: nothing reaches the sink any more. */
  stop(): void {
    this.#stop();
    this.#pages?.stop(new BacksyncError("aborted", `The subscription to ${this.model} was stopped.`));
  }
}

interface Entry {
  subscription: Subscription;
  sink: Sink;
  /** False: only what happens from now on, no records (2012's `syncBind`). */
  wantsRecords: boolean;
  /** It only asks for the key fields: over with the first answer. */
  once: boolean;
  /** `waiting` for a socket or a later try, `asking` for an answer, `following` the channel. */
  state: "waiting" | "asking" | "following";
  /** Whether it has ever been up to date. */
  answered: boolean;
  /** Counts the questions: the answer to an older one is ignored. */
  question: number;
  /** Refusals since it was last answered that pass, each told as `delayed`. */
  attempts: number;
  retry: Timer | null;
  /** Its position may be another user's: it is not asked from there. */
  foreign: boolean;
  /** Messages of the present frame, and those that came while the answer is awaited. */
  held: Incoming[];
}

export class Subscriptions {
  readonly #host: Host;
  readonly #changed: () => void;
  readonly #taught: Taught;
  readonly #entries = new Set<Entry>();
  /** The key fields of models, learned from messages: two queries with the same key are one channel. */
  readonly #keyFields = new Map<string, string[]>();
  readonly #leaving = new Set<string>();
  #ask: Ask | null = null;

  /** `changed` is called when `behind` may have changed. */
  constructor(host: Host, changed: () => void, taught: Taught) {
    this.#host = host;
    this.#changed = changed;
    this.#taught = taught;
  }

  /** Whether some subscription has not caught up with the server. */
  get behind(): boolean {
    for (const entry of this.#entries) if (entry.state !== "following") return true;
    return false;
  }

  /** A model's key fields, none for one without; undefined: nothing of it has been answered yet. */
  keyFields(model: string): string[] | undefined {
    return this.#keyFields.get(model);
  }

  /** Sees to it that a model's key fields get known: asks for them unless an answer is due that tells them. */
  learn(model: string, query: Query): void {
    for (const entry of this.#entries) if (entry.subscription.model === model && !entry.answered) return;
    this.add(model, query, false, { snapshot() {}, changes() {} }, true);
  }

  add(model: string, query: Query | undefined, wantsRecords: boolean, sink: Sink, once = false): Subscription {
    const pages = sink instanceof Pages ? sink : null;
    const subscription = new Subscription(model, query, () => this.#remove(entry), pages);
    const entry: Entry = {
      subscription,
      sink,
      wantsRecords,
      once,
      state: "waiting",
      answered: false,
      question: 0,
      attempts: 0,
      retry: null,
      foreign: false,
      held: [],
    };
    this.#entries.add(entry);
    this.#question(entry);
    return subscription;
  }

  opened(ask: Ask): void {
    this.#ask = ask;
    for (const entry of this.#entries) this.#question(entry);
  }

  lost(): void {
    this.#ask = null;
    this.#leaving.clear();
    for (const entry of this.#entries) {
      this.#wait(entry);
      entry.held = []; // what was not applied is not counted in the position: it comes again
    }
  }

  /** Somebody else may be signed in now: what was received tells nothing of what they may see, until a snapshot has come. */
  userChanged(): void {
    for (const entry of this.#entries) entry.foreign = true;
  }

  failAll(error: BacksyncError): void {
    for (const entry of [...this.#entries]) {
      this.#forget(entry);
      // Later: whoever is just subscribing has not got its subscription yet.
      queueMicrotask(() => guarded(this.#host, () => entry.sink.failed?.(error, true)));
    }
  }

  /** Takes a message that is no reply; it is applied at the next `flush`. */
  receive(message: Incoming): void {
    const [model] = splitEvent(message.event) ?? [];
    if (model === undefined) return;
    const key = isObject(message.key) ? message.key : null;
    if (key !== null) this.#teach(model, Object.keys(key));
    let wanted = false;
    for (const entry of this.#entries) {
      if (entry.subscription.model !== model) continue;
      if (key !== null && !matches(entry.subscription.query ?? {}, key)) continue;
      wanted = true;
      if (entry.state !== "waiting") entry.held.push(message);
    }
    if (!wanted && key !== null) this.#leave(model, key);
  }

  /** Hands what has been received to the sinks: one call of each, however many messages there were. */
  flush(): void {
    for (const entry of [...this.#entries]) {
      if (entry.state === "following" && entry.held.length > 0) this.#apply(entry);
    }
  }

  #question(entry: Entry): void {
    const ask = this.#ask;
    if (ask === null || entry.state !== "waiting") return;
    this.#wait(entry);
    entry.state = "asking";
    const question = entry.question;
    if (entry.foreign) entry.subscription.position = null;
    entry.foreign = false;
    const { model, query, position } = entry.subscription;
    const message: Message = { event: `${model}:subscribe` };
    if (query !== undefined) message.data = query;
    if (position !== null) message.since = position;
    if (!entry.wantsRecords) message.snapshot = false;
    this.#changed();
    ask(message, (error, data) => {
      if (!this.#entries.has(entry) || entry.question !== question) return;
      if (error !== null) this.#refused(entry, error);
      else this.#answered(entry, data);
      this.#changed();
    });
  }

  #answered(entry: Entry, data: unknown): void {
    const { mode, epoch, seq, records, key } = (isObject(data) ? data : {}) as Record<string, unknown>;
    if (typeof seq !== "number") {
      const got = JSON.stringify(data) ?? "nothing";
      this.#refused(entry, new BacksyncError("invalid", `The reply to ${entry.subscription.model}:subscribe has no position: ${got}.`));
      return;
    }
    entry.state = "following";
    entry.answered = true;
    const delayed = entry.attempts > 0;
    entry.attempts = 0;
    const { model } = entry.subscription;
    if (isObject(key)) entry.subscription.key = key;
    this.#teach(model, isObject(key) ? Object.keys(key) : (this.#keyFields.get(model) ?? []));
    if (!this.#entries.has(entry)) return;
    if (entry.once) {
      this.#remove(entry);
      return;
    }
    const position = entry.subscription.position;
    if (mode === "snapshot") entry.foreign = false;
    if (mode === "snapshot" || position === null) {
      entry.subscription.position = { epoch: epoch as string, seq };
      if (entry.wantsRecords) this.#snapshot(entry, records, seq);
    }
    this.#apply(entry);
    if (delayed) guarded(this.#host, () => entry.sink.delayed?.(null));
  }

  #refused(entry: Entry, error: BacksyncError): void {
    this.#wait(entry);
    const isMistake = error.code === MISTAKE && entry.answered;
    if (PASSING.has(error.code) || isMistake) {
      const { retry_after: seconds } = (isObject(error.details) ? error.details : {}) as { retry_after?: unknown };
      const asked = typeof seconds === "number" ? seconds * 1000 : 0;
      const delay = asked + retryDelay(entry.attempts, this.#host.random());
      entry.attempts += 1;
      entry.retry = this.#host.setTimeout(() => this.#question(entry), delay);
      if (entry.attempts === 2 || (isMistake && entry.attempts === 1)) {
        console.warn(`backsync: ${entry.subscription.model} is not up to date: ${error.message} (${error.code}); it is asked for again`);
      }
      guarded(this.#host, () => entry.sink.delayed?.(error));
      if (isMistake) guarded(this.#host, () => entry.sink.failed?.(error, false));
      return;
    }
    this.#taught(entry.subscription.model, null, entry.subscription.query);
    this.#forget(entry);
    guarded(this.#host, () => entry.sink.failed?.(error, true));
  }

  #teach(model: string, names: string[]): void {
    const before = this.#keyFields.get(model);
    this.#keyFields.set(model, names);
    if (before === undefined || canonical(before) !== canonical(names)) this.#taught(model, names, undefined);
  }

  #apply(entry: Entry): void {
    const messages = entry.held;
    entry.held = [];
    let changes: Change[] = [];
    const flush = (): void => {
      if (changes.length > 0) {
        const batch = changes;
        guarded(this.#host, () => entry.sink.changes(batch));
      }
      changes = [];
    };
    for (const message of messages) {
      const [, method] = splitEvent(message.event) as [string, string];
      if (method === "snapshot" && isObject(message.data)) {
        flush();
        const { epoch, seq, records } = message.data as { epoch: string; seq: number; records: unknown };
        if (this.#isOnlyQuery(entry)) {
          entry.subscription.position = { epoch, seq };
          entry.foreign = false;
          if (entry.wantsRecords) this.#snapshot(entry, records, seq);
        } else {
          // Which of several queries these records answer is not said: each asks again, from nothing.
          entry.subscription.position = null;
          this.#wait(entry);
          this.#question(entry);
          return;
        }
        continue;
      }
      const seq = typeof message.seq === "number" ? message.seq : null;
      const position = entry.subscription.position;
      if (seq !== null && position !== null) {
        if (seq <= position.seq) continue; // a repeat: an older state must not replace a newer one
        entry.subscription.position = { epoch: position.epoch, seq };
      }
      changes.push({ method, data: message.data, seq, key: isObject(message.key) ? message.key : null });
    }
    flush();
  }

  #snapshot(entry: Entry, records: unknown, seq: number): void {
    const rows = Array.isArray(records) ? (records as unknown[]).filter(isObject) : [];
    guarded(this.#host, () => entry.sink.snapshot(rows, seq));
  }

  #wait(entry: Entry): void {
    entry.state = "waiting";
    entry.question += 1;
    if (entry.retry !== null) this.#host.clearTimeout(entry.retry);
    entry.retry = null;
  }

  #forget(entry: Entry): void {
    this.#wait(entry);
    this.#entries.delete(entry);
    this.#changed();
  }

  #remove(entry: Entry): void {
    if (!this.#entries.has(entry)) return;
    const { model, query } = entry.subscription;
    const asked = entry.state !== "waiting";
    this.#forget(entry);
    if (!asked || this.#ask === null) return;
    for (const other of this.#entries) {
      if (other.subscription.model === model && this.#mayShareChannel(model, other.subscription.query, query)) return;
    }
    const message: Message = { event: `${model}:unsubscribe` };
    if (query !== undefined) message.data = query;
    this.#ask(message, () => {});
  }

  /** Unsure counts as yes: a channel too many is closed at its first message, one too few would be silence. */
  #mayShareChannel(model: string, one: Query | undefined, other: Query | undefined): boolean {
    const fields = this.#keyFields.get(model);
    if (fields === undefined) return true;
    return fields.every((field) => canonical(one?.[field]) === canonical(other?.[field]));
  }

  /** A channel that nobody here follows any more. */
  #leave(model: string, key: Query): void {
    const channel = `${model}:${canonical(key)}`;
    if (this.#ask === null || this.#leaving.has(channel)) return;
    this.#leaving.add(channel);
    this.#ask({ event: `${model}:unsubscribe`, data: key }, () => this.#leaving.delete(channel));
  }

  #isOnlyQuery(entry: Entry): boolean {
    const { model, query } = entry.subscription;
    for (const other of this.#entries) {
      if (other === entry || other.subscription.model !== model || !other.wantsRecords) continue;
      if (this.#mayShareChannel(model, other.subscription.query, query) && canonical(other.subscription.query) !== canonical(query)) {
        return false;
      }
    }
    return true;
  }
}
