/**
 * The calls that wait for a reply, in the order in which they were made, over as many sockets as it takes; and the outbox
 * that they are: writes of one record that have not been sent become one message, what has been sent is never changed.
 * Knows nothing of sockets, subscriptions or Backbone; the connection says when sending is possible.
 */

import { coalesce, completed, isIncomplete, isLocal, recordName, writeMethod } from "./coalesce.js";
import { debug } from "./debug.js";
import { BacksyncError } from "./errors.js";
import { guarded, type Host, type Timer } from "./host.js";
import { type Incoming, isObject, type Message, type Query, splitEvent } from "./protocol.js";
import { same } from "./shadow.js";
import type { Storage, StoredWrite } from "./storage.js";

/** Called once, never before `start` has returned: with an error, or with the reply's data. */
export type Settle = (error: BacksyncError | null, data: unknown) => void;

export interface Call {
  /** Gives up: rejects with `aborted`. What has left, or is part of a message for other callers too, may be done all the same. */
  abort(): void;
}

export interface StartOptions {
  /** Milliseconds from now on, whatever the connection does. */
  timeout?: number | undefined;
  /** The name of the record that is written, where the message does not have its id. */
  record?: string;
  /** The id fields of that record, asked once its creation has been answered. Default: `id` of the answer. */
  identity?: () => Record<string, unknown>;
  /** The fields of the written record that the page has set; the others follow the answer to a write that is under way. */
  own?: string[];
  /** The record as the server has it: what the fields of a refused write go back to in later ones. */
  before?: Record<string, unknown> | null | undefined;
  /** For a new record the query of its live collection: the key fields among these are added, as soon as they are known. */
  query?: Query | undefined;
}

interface Caller {
  call: PendingCall;
  settle: Settle;
  timer: Timer | null;
  /** Waits for a connection for as long as it takes; time runs only while the message is unanswered on one. */
  isPatient: boolean;
}

/** One of several writes of a record that have become one message. */
interface Part {
  event: string;
  /** The message that it would have been. */
  text: string;
  own: string[] | null;
  base: Base | null;
  callers: Caller[];
}

/** The fields that a write changes, with the values that they had before it. */
type Base = Record<string, unknown>;

interface PendingCall {
  id: number | string;
  model: string;
  event: string;
  /** What is sent; changed only while `frozen` is false. */
  text: string;
  /** The record that it writes; null: it is no such write, or of a record that nobody can name. */
  record: string | null;
  /** `leaving`: to be sent as soon as it is stored and nothing of its model is before it. */
  state: "waiting" | "leaving" | "sent";
  /** May have been sent, on this socket or an earlier one. */
  frozen: boolean;
  /** Stored as sent, or not to be stored. */
  safe: boolean;
  /** Writes of one record: no time runs while they are not connected, and they outlive the page where it is wanted. */
  isWrite: boolean;
  isRead: boolean;
  /** Belongs to one socket: forgotten without an answer when that ends. */
  oneSocket: boolean;
  /** The creation whose answer brings the id that this message lacks. */
  after: PendingCall | null;
  identity: (() => Record<string, unknown>) | null;
  /** Some of these fields may be the key of the room that the record is missing: it waits until the server has said which. */
  query: Query | null;
  /** The fields that the page has set; null: it has not said. */
  own: string[] | null;
  /** Null: not known. */
  base: Base | null;
  /** The writes that it stands for; null: it is one, or cannot be taken apart. */
  parts: Part[] | null;
  /** A write joins an earlier one only if nothing but writes of single records is between them. */
  era: number;
  timer: Timer | null;
  callers: Caller[];
}

/** Messages that may wait for a connection, as many as the server remembers for retries; more are a page that loops. */
const MAX_WAITING = 1000;

/** Characters that may wait: a fraction of what browsers let a page store. */
const MAX_WAITING_CHARACTERS = 4 * 1024 * 1024;

/**
 * Characters that may be unanswered before the next call waits. SockJS over HTTP puts all that is waiting into one
 * request body, and servers limit that (128 KiB in Backsync): a long queue must not go out in one piece.
 */
const WINDOW = 32_768;

/** Bytes of a message that a server takes unless it says otherwise: writes are not joined to more before it has spoken. */
const USUAL_LIMIT = 65_536;

/** Parts of a message that are sent again each on its own if it is refused; more are joined for good. */
const MAX_PARTS = 16;

/** Errors that are not about what a write says: its parts would fare no better, or may have been done. */
const NOT_ABOUT_CONTENT = new Set([
  ...["aborted", "closed", "timeout", "unavailable", "rate_limited", "unauthorized", "handler_error", "not_found"],
  ...["unknown_model", "unknown_method", "bad_message"],
]);

export class Calls {
  readonly #host: Host;
  readonly #timeoutMs: number;
  readonly #changed: () => void;
  readonly #refused: (error: BacksyncError, message: Message) => void;
  #pending = new Map<number | string, PendingCall>(); // in the order in which they were made, which is the order of sending
  readonly #latest = new Map<string, PendingCall>(); // of each record
  readonly #eras = new Map<string, number>(); // of each model
  /** Writes whose time has run out. */
  readonly #overdue = new Set<PendingCall>();
  #storage: Storage | null = null;
  #prefix = "";
  #lastId = 0;
  #size = 0;
  #waiting = 0;
  #waitingCharacters = 0;
  #unanswered = 0;
  /** Bytes that the server takes in one message; null: it has not said. */
  #limit: number | null = null;
  #send: ((text: string) => void) | null = null;

  /** `changed`: `size` may have. `refused`: a write of an earlier page was, and nobody is left who made it. */
  constructor(host: Host, timeoutMs: number, changed: () => void, refused: (error: BacksyncError, message: Message) => void) {
    this.#host = host;
    this.#timeoutMs = timeoutMs;
    this.#changed = changed;
    this.#refused = refused;
  }

  /** Messages without an answer yet that may change something: reads, and what belongs to one socket, do not count. */
  get size(): number {
    return this.#size;
  }

  /** Keeps writes in `storage` from now on; `prefix` makes ids differ from those of earlier pages with the same client id. */
  persist(storage: Storage, prefix: string): void {
    this.#storage = storage;
    this.#prefix = prefix;
  }

  /** Makes a call that outlives sockets: it waits for one, and is sent again, with the same id, when one is lost. */
  start(message: Message, options: StartOptions, settle: Settle): Call {
    const id = this.#nextId();
    const text = this.#encoded(id, message, settle); // now: what the page does to the data later is not part of this call
    if (text === null) return { abort() {} };
    const isWrite = writeMethod(message) !== null;
    const record = isWrite ? (options.record ?? recordName((message.data as { id?: unknown }).id)) : null;
    const [model = "", method] = splitEvent(message.event) ?? [];
    const latest = record === null ? undefined : this.#latest.get(place(model, record));

    if (this.#isTooLarge(text)) {
      const error = this.#tooLarge(message.event, text);
      return this.#refuse(settle, error);
    }
    const joined = latest === undefined ? null : this.#joined(latest, text);
    const isMore = joined === null || joined === "nothing";
    const joinedText = isMore ? "" : encode((latest as PendingCall).id, joined);
    const more = isMore ? text.length : joinedText.length - (latest as PendingCall).text.length;
    const isFull = (isMore && this.#waiting >= MAX_WAITING) || (more > 0 && this.#waitingCharacters + more > MAX_WAITING_CHARACTERS);
    if (isFull && joined !== "nothing") {
      const limit = this.#waiting >= MAX_WAITING ? `${MAX_WAITING} messages` : `${this.#waitingCharacters} characters`;
      const error = new BacksyncError("unavailable", `${message.event} was not sent: ${limit} are waiting for a connection already. Wait until it is back.`);
      return this.#refuse(settle, error);
    }

    const base = isWrite ? baseOf(message, options, latest) : null;
    let call = latest as PendingCall;
    if (joined === "nothing" && call.after === null) {
      this.#finish(call, new BacksyncError("aborted", `${call.event} was not sent: the record was deleted before.`), null);
      queueMicrotask(() => guarded(this.#host, () => settle(null, {})));
      return { abort() {} };
    }
    const caller: Caller = { call, settle, timer: null, isPatient: isWrite && options.timeout === undefined };
    if (joined !== null) {
      const part = { event: message.event, text, own: options.own ?? null, base, callers: [caller] };
      // A record whose creation is on its way is deleted once it has its id.
      this.#join(call, part, joined === "nothing" ? encode(call.id, parse(text)) : joinedText, options.query ?? call.query);
    } else {
      const isRead = method === "read";
      if (!isWrite && !isRead) this.#eras.set(model, this.#era(model) + 1);
      call = { ...blank(id, model, message.event, text), record, own: options.own ?? null, base, query: lacking(text, options.query ?? null), isWrite, isRead, era: this.#era(model) };
      if (latest !== undefined && isLocal(record as string)) call.after = latest;
      this.#add(call);
      caller.call = call;
      call.callers.push(caller);
    }
    call.identity = options.identity ?? call.identity;
    const timeout = options.timeout ?? this.#timeoutMs;
    if (!caller.isPatient && timeout !== Infinity) caller.timer = this.#host.setTimeout(() => this.#leave(caller, this.#timedOut(caller.call, timeout)), timeout);
    this.#pump();
    if (call.state === "waiting") this.#store(call);
    return { abort: () => this.#leave(caller, new BacksyncError("aborted", `${message.event} was aborted by the page.`)) };
  }

  /** Null, and refused, where JSON cannot carry the data. */
  #encoded(id: number | string, message: Message, settle: Settle): string | null {
    try {
      return encode(id, message);
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      const remedy = "Make it of texts, numbers, booleans, null, arrays and plain objects.";
      this.#refuse(settle, new BacksyncError("invalid", `${message.event} was not sent: JSON cannot carry its data (${why}). ${remedy}`));
      return null;
    }
  }

  #refuse(settle: Settle, error: BacksyncError): Call {
    queueMicrotask(() => guarded(this.#host, () => settle(error, null)));
    return { abort() {} };
  }

  /** Makes a call on this socket only and at once; when the socket is lost nobody is told. */
  startNow(message: Message, timeoutMs: number, send: (text: string) => void, settle: Settle): void {
    const id = this.#nextId();
    const text = this.#encoded(id, message, settle);
    if (text === null) return;
    if (this.#isTooLarge(text)) {
      this.#refuse(settle, this.#tooLarge(message.event, text));
      return;
    }
    const call = { ...blank(id, "", message.event, text), isRead: true, oneSocket: true };
    call.state = "sent";
    call.callers.push({ call, settle, timer: null, isPatient: true });
    this.#pending.set(id, call);
    this.#startTimer(call, timeoutMs);
    send(call.text);
  }

  /**
   * Takes a reply. False if the message is none: what carries an id that was never given away is not a reply. Replies
   * that nobody waits for any more, and repeated ones, are taken and forgotten.
   */
  receive(message: Incoming): boolean {
    const call = this.#pending.get(message.id as number | string);
    if (call === undefined || call.state !== "sent") return this.#isOwn(message.id);
    const failed = message.error !== undefined && message.error !== null;
    const error = failed ? BacksyncError.fromWire(message.error) : null;
    if (error !== null && call.parts !== null && !NOT_ABOUT_CONTENT.has(error.code)) this.#split(call);
    else this.#finish(call, error, message.data, true);
    this.#pump();
    return true;
  }

  /**
   * The other side has shown a sign of life: writes that should have been answered are given up. Without one it is the
   * connection that is dead, and they are sent again on the next.
   */
  alive(): void {
    for (const call of [...this.#overdue]) {
      const error = this.#timedOut(call, this.#timeoutMs);
      this.#overdue.delete(call);
      if (call.callers.every((caller) => caller.isPatient)) this.#finish(call, error, null);
      else for (const caller of call.callers.filter(({ isPatient }) => isPatient)) this.#leave(caller, error);
    }
  }

  /** The server has said how many bytes a message may have; null: it has not. What is larger is given up, however old it is. */
  limit(bytes: number | null): void {
    this.#limit = bytes;
    for (const call of [...this.#pending.values()]) {
      if (!call.oneSocket && this.#isTooLarge(call.text)) this.#finish(call, this.#tooLarge(call.event, call.text), null);
    }
  }

  /** The socket was closed because a message was too large for somebody on the way: the largest one is not sent again. */
  closedAsTooLarge(): void {
    this.#send = null;
    let largest: PendingCall | null = null;
    for (const call of this.#pending.values()) {
      if (call.state === "sent" && call.text.length > (largest?.text.length ?? 0)) largest = call;
    }
    if (largest !== null) this.#finish(largest, this.#tooLarge(largest.event, largest.text), null, true);
  }

  /** Sends all that waits, oldest first, and from now on at once. */
  opened(send: (text: string) => void): void {
    this.#send = send;
    this.#pump();
  }

  /** No new call is sent any more; replies may still come. */
  paused(): void {
    this.#send = null;
  }

  /** The socket is gone: what was sent is to be sent again. */
  lost(): void {
    this.#send = null;
    for (const call of [...this.#pending.values()]) {
      if (call.oneSocket) this.#remove(call);
      else if (call.state !== "waiting") this.#setState(call, "waiting");
    }
  }

  /** Nothing will be sent any more, but what is stored stays for another time. */
  failAll(error: BacksyncError): void {
    for (const call of [...this.#pending.values()]) {
      if (this.#storage === null || !call.isWrite) this.#finish(call, error, null);
    }
  }

  /** Forgets all writes, stored ones too. */
  discard(error: BacksyncError): void {
    for (const call of [...this.#pending.values()]) if (call.isWrite) this.#finish(call, error, null);
  }

  /** Takes over what earlier pages left behind. `first`: before what this page has written, which may join it. */
  restore(writes: StoredWrite[], first: boolean): void {
    const own = first ? [...this.#pending.values()] : [];
    for (const call of own) this.#pending.delete(call.id);
    for (const write of writes) {
      if (this.#pending.has(write.id)) continue;
      const message = parse(write.text);
      const [model = ""] = splitEvent(message.event) ?? [];
      const call = { ...blank(write.id, model, message.event, write.text), record: write.record, own: write.own ?? null, base: write.base ?? null, query: write.query ?? null, isWrite: true, frozen: write.sent, safe: write.sent };
      call.era = this.#era(model);
      call.parts = write.parts?.map((part) => ({ ...part, callers: [] })) ?? null;
      call.after = write.after === null ? null : (this.#pending.get(write.after) ?? null);
      this.#add(call);
    }
    for (const call of own) this.#rejoin(call);
    this.#pump();
  }

  /** The writes that wait until the key fields of their model are known. */
  *incomplete(): Iterable<{ model: string; query: Query }> {
    for (const { model, query } of this.#pending.values()) if (query !== null) yield { model, query };
  }

  /** The server has said which are a model's key fields, or (null) will not say so for this query. */
  complete(model: string, names: string[] | null, query: Query | undefined): void {
    let any = false;
    for (const call of this.#pending.values()) {
      if (call.query === null || call.model !== model || (names === null && !same(call.query, query))) continue;
      const { query: wanted } = call;
      call.query = null;
      this.#edit(call, (write) => completed(write, wanted, names ?? []));
      this.#store(call);
      any = true;
    }
    if (any) this.#pump();
  }

  #rejoin(call: PendingCall): void {
    const latest = call.record === null ? undefined : this.#latest.get(place(call.model, call.record));
    const joined = latest === undefined || latest === call ? null : this.#joined(latest, call.text);
    this.#pending.set(call.id, call);
    if (latest === undefined || joined === null || joined === "nothing") {
      if (call.record !== null) this.#latest.set(place(call.model, call.record), call);
      return;
    }
    for (const part of call.parts ?? [partOf(call)]) {
      const whole = coalesce(parse(latest.text), parse(part.text)) as Message;
      this.#join(latest, part, encode(latest.id, whole), call.query ?? latest.query);
    }
    for (const caller of latest.callers) caller.call = latest;
    call.callers = [];
    this.#remove(call);
    this.#store(latest);
  }

  /** Makes a write part of a call that has not been sent; `text` is the message for both. */
  #join(call: PendingCall, part: Part, text: string, query: Query | null): void {
    const methods = [call.text, part.text].map((one) => writeMethod(parse(one)));
    if (methods.includes("delete")) call.parts = null;
    else if (call.parts === null) call.parts = [partOf(call)];
    if (call.parts !== null) addPart(call.parts, part);
    this.#rewrite(call, text, part.event);
    call.own = methods[1] === "patch" ? both(call.own, part.own) : part.own;
    call.base = call.base === null || part.base === null ? null : { ...part.base, ...call.base };
    call.query = lacking(text, query);
    for (const caller of part.callers) caller.call = call;
    call.callers.push(...part.callers);
    if (call.parts?.length === 1) call.parts = null; // the last one changes all that those before it have
  }

  /** A message that stands for several writes was refused: each is sent on its own, so that only the bad ones are. */
  #split(call: PendingCall): void {
    const waiting = [...this.#pending.values()];
    const later = waiting.slice(waiting.indexOf(call) + 1);
    for (const other of later) this.#pending.delete(other.id);
    let last: PendingCall | null = null;
    for (const { event, text, own, base, callers } of call.parts ?? []) {
      const id = this.#nextId();
      const next: PendingCall = { ...blank(id, call.model, event, encode(id, parse(text))), record: call.record, own, base, isWrite: true, era: call.era, identity: call.identity };
      next.callers = callers.filter((caller) => call.callers.includes(caller)); // others have given up
      for (const caller of next.callers) caller.call = next;
      if (call.record !== null && isLocal(call.record)) next.after = last;
      this.#add(next);
      this.#store(next);
      last = next;
    }
    for (const other of later) {
      if (other.after === call) other.after = last;
      const follows = other.record !== null && other.record === call.record && other.model === call.model;
      if (follows) {
        // It has not left, and is stored again, under another id: a page that finds it must find the parts before it.
        this.#storage?.remove(String(other.id));
        other.id = this.#nextId();
        this.#rewrite(other, encode(other.id, parse(other.text)), other.event);
        this.#latest.set(place(other.model, other.record as string), other);
      }
      this.#pending.set(other.id, other);
      if (follows) this.#store(other);
    }
    call.callers = [];
    this.#remove(call);
  }

  /** Changes a message that has not been sent, and all its parts. */
  #edit(call: PendingCall, change: (message: Message, of: PendingCall | Part) => Message): void {
    for (const part of call.parts ?? []) part.text = JSON.stringify(change(parse(part.text), part));
    const text = encode(call.id, change(parse(call.text), call));
    if (text === call.text) return; // no part has changed either
    this.#rewrite(call, text, call.event);
    this.#store(call);
  }

  /** The one message for a call and a later one of its record; null where each stays its own. */
  #joined(call: PendingCall, text: string): Message | "nothing" | null {
    if (!this.#isOpen(call)) return null;
    const joined = coalesce(parse(call.text), parse(text));
    const isFitting = joined === null || joined === "nothing" || !exceeds(encode(call.id, joined), this.#limit ?? USUAL_LIMIT);
    return isFitting ? joined : null;
  }

  #isTooLarge(text: string): boolean {
    return this.#limit !== null && exceeds(text, this.#limit);
  }

  #tooLarge(event: string, text: string): BacksyncError {
    const size = `it has ${byteLength(text)} bytes`;
    if (this.#isTooLarge(text)) return new BacksyncError("too_large", `${event} was not sent: ${size}, and the server takes ${this.#limit} in one message.`, { limit: this.#limit });
    return new BacksyncError("too_large", `${event} is not sent again: ${size}, and a message's size made somebody close the connection (code 1009).`, { limit: null });
  }

  #nextId(): number | string {
    this.#lastId += 1;
    return this.#prefix === "" ? this.#lastId : this.#prefix + String(this.#lastId);
  }

  #isOwn(id: unknown): boolean {
    if (typeof id === "number") return Number.isInteger(id) && id > 0 && id <= this.#lastId && this.#prefix === "";
    return typeof id === "string" && this.#prefix !== "";
  }

  #era(model: string): number {
    return this.#eras.get(model) ?? 0;
  }

  /** Whether a later write may still become part of it. */
  #isOpen(call: PendingCall): boolean {
    return call.state === "waiting" && !call.frozen && call.era === this.#era(call.model);
  }

  #add(call: PendingCall): void {
    this.#pending.set(call.id, call);
    this.#waiting += 1;
    this.#waitingCharacters += call.text.length;
    if (call.record !== null) this.#latest.set(place(call.model, call.record), call);
    if (!call.isRead) this.#resize(1);
  }

  #rewrite(call: PendingCall, text: string, event: string): void {
    this.#waitingCharacters += text.length - call.text.length;
    call.text = text;
    call.event = event;
  }

  #setState(call: PendingCall, state: PendingCall["state"]): void {
    const wasWaiting = call.state === "waiting";
    const isWaiting = state === "waiting";
    call.state = state;
    if (isWaiting) this.#stopTimer(call);
    if (wasWaiting === isWaiting) return;
    const sign = isWaiting ? 1 : -1;
    this.#waiting += sign;
    this.#waitingCharacters += sign * call.text.length;
    this.#unanswered -= sign * call.text.length;
  }

  /**
   * Lets leave what may: oldest first, each model's in order, not too much at once. A write waits for the answer to the one
   * before it of its record, which may bring a version that it has to name; writes of other records may overtake it.
   */
  #pump(): void {
    if (this.#send === null || (this.#waiting === 0 && this.#storage === null)) return;
    const stopped = new Set<string>(); // models in which nothing more may leave: something waits that nothing may overtake
    const waiting = new Set<string>(); // models in which a write waits for another one of its record
    const busy = new Set<string>(); // records with an unanswered write
    const held = new Set<string>(); // models in which something has to be stored before anything more is sent
    for (const call of this.#pending.values()) {
      const record = call.record === null ? null : place(call.model, call.record);
      const isBusy = record !== null && busy.has(record);
      if (record !== null) busy.add(record);
      if (call.state === "sent" || stopped.has(call.model)) continue;
      if (call.state === "waiting") {
        if (this.#unanswered > 0 && this.#unanswered + call.text.length > WINDOW) return;
        if (call.after !== null || call.query !== null || (waiting.has(call.model) && !call.isWrite)) {
          stopped.add(call.model);
          continue;
        }
        if (isBusy) {
          waiting.add(call.model);
          continue;
        }
        if (this.#isTooLarge(call.text)) {
          this.#finish(call, this.#tooLarge(call.event, call.text), null); // it has got its id since it was measured
          continue;
        }
        this.#setState(call, "leaving");
        call.frozen = true;
        this.#store(call);
      }
      if (!call.safe) held.add(call.model);
      if (held.has(call.model)) continue;
      this.#setState(call, "sent");
      if (call.isWrite) this.#startTimer(call, this.#timeoutMs);
      this.#send(call.text);
      if (this.#send === null) return; // sending has found out that the socket is dead
    }
  }

  /** Writes are stored before they are sent, as sent: a page that comes later must not take them for unsent. */
  #store(call: PendingCall): void {
    if (call.safe || this.#pending.get(call.id) !== call) return;
    if (this.#storage === null || !call.isWrite) {
      call.safe = call.frozen;
      return;
    }
    const { text, record, own, base, query, frozen } = call;
    const parts = call.parts?.map((part) => ({ event: part.event, text: part.text, own: part.own, base: part.base }));
    this.#storage.put({ id: String(call.id), text, record, own, base, ...(parts === undefined ? {} : { parts }), query, sent: frozen, after: call.after === null ? null : String(call.after.id) }, () => {
      if (!frozen || call.safe) return;
      call.safe = true;
      this.#pump();
    });
  }

  #startTimer(call: PendingCall, timeoutMs: number): void {
    if (timeoutMs === Infinity) return;
    call.timer = this.#host.setTimeout(() => {
      if (call.isWrite) this.#overdue.add(call);
      else this.#finish(call, this.#timedOut(call, timeoutMs), null);
    }, timeoutMs);
  }

  #stopTimer(call: PendingCall): void {
    if (call.timer !== null) this.#host.clearTimeout(call.timer);
    call.timer = null;
    this.#overdue.delete(call);
  }

  #timedOut(call: PendingCall, timeoutMs: number): BacksyncError {
    const where = call.state === "sent" ? "the server did not answer" : "there was no connection";
    return new BacksyncError("timeout", `${call.event} got no reply within ${timeoutMs / 1000} s: ${where}.`);
  }

  /** One caller gives up; the call does when it was the only one. */
  #leave(caller: Caller, error: BacksyncError): void {
    const { call } = caller;
    if (!call.callers.includes(caller)) return;
    if (call.callers.length === 1) {
      this.#finish(call, error, null);
      return;
    }
    call.callers.splice(call.callers.indexOf(caller), 1);
    if (caller.timer !== null) this.#host.clearTimeout(caller.timer);
    queueMicrotask(() => guarded(this.#host, () => caller.settle(error, null)));
  }

  /** Ends a call: all callers hear the same. `now`: in order with the frame that brought the answer. */
  #finish(call: PendingCall, error: BacksyncError | null, data: unknown, now = false): void {
    if (this.#pending.get(call.id) !== call) return;
    if (!now) debug.log("·", call.event, error?.code);
    this.#remove(call);
    const { callers } = call;
    const tell = (): void => {
      for (const caller of callers) guarded(this.#host, () => caller.settle(error, data));
      if (callers.length === 0 && error !== null) this.#refused(error, parse(call.text));
      this.#release(call, error, data);
    };
    if (now) tell();
    else queueMicrotask(tell);
  }

  /** What has waited for the id that the call was to bring, or for its answer. */
  #release(call: PendingCall, error: BacksyncError | null, data: unknown): void {
    if (error === null && isObject(data) && call.record !== null) this.#bringUpToDate(call, data);
    if (error !== null && !NOT_ABOUT_CONTENT.has(error.code) && call.record !== null) this.#takeOut(call);
    for (const follower of [...this.#pending.values()]) {
      if (follower.after !== call) continue;
      follower.after = null;
      const message = parse(follower.text);
      if (error === null) {
        this.#identify(follower, isObject(data) ? data.id : undefined);
      } else if (call.frozen && (error.code === "timeout" || error.code === "aborted")) {
        this.#finish(follower, error, null); // nobody knows whether there is such a record: another one must not be made
        continue;
      } else if (writeMethod(message) === "delete") {
        this.#finish(follower, null, {});
        continue;
      } // else it is the creation now
      this.#store(follower);
    }
    this.#pump();
  }

  /** Gives a write the id of its record, and with it those that wait for this one: they do not create the record any more. */
  #identify(call: PendingCall, id: unknown): void {
    const fields = call.identity?.() ?? { id };
    this.#edit(call, (message) => ({ ...message, data: { ...(message.data as object), ...fields } }));
    const followers = [...this.#pending.values()].filter(({ after }) => after === call);
    this.#rename(call, recordName(fields.id));
    for (const follower of followers) {
      follower.after = null;
      this.#identify(follower, id);
    }
  }

  /** What waits with fields that the page has not set gets those that the record has by now: its version, above all. */
  #bringUpToDate(call: PendingCall, answer: Record<string, unknown>): void {
    const sent = parse(call.text).data as Record<string, unknown>;
    for (const other of this.#waitingAfter(call)) {
      this.#edit(other, (message, { own, base }) => {
        const fields = { ...(message.data as Record<string, unknown>) };
        const isOwn = (name: string): boolean => own?.includes(name) ?? !(Object.hasOwn(sent, name) && same(sent[name], fields[name]));
        for (const name of Object.keys(fields)) if (Object.hasOwn(answer, name) && !isOwn(name)) fields[name] = answer[name];
        for (const name of Object.keys(base ?? {})) if (Object.hasOwn(answer, name)) (base as Base)[name] = answer[name];
        return { ...message, data: fields };
      });
    }
  }

  /** Whole records that wait do not repeat what was refused, unless they are the ones that change it. */
  #takeOut(call: PendingCall): void {
    const sent = parse(call.text).data as Record<string, unknown>;
    for (const other of this.#waitingAfter(call)) {
      this.#edit(other, (message, { base }) => {
        const fields = { ...(message.data as Record<string, unknown>) };
        for (const [name, value] of Object.entries(call.base ?? {})) {
          if (base !== null && Object.hasOwn(base, name)) {
            if (same(base[name], sent[name])) base[name] = value;
          } else if (writeMethod(message) === "upsert" && same(fields[name], sent[name])) {
            if (value === undefined) delete fields[name];
            else fields[name] = value;
          }
        }
        return { ...message, data: fields };
      });
    }
  }

  /** The writes of its record that may still be changed. */
  #waitingAfter(call: PendingCall): PendingCall[] {
    const isChangeable = ({ record, model, state, frozen }: PendingCall): boolean =>
      record === call.record && model === call.model && state === "waiting" && !frozen;
    return [...this.#pending.values()].filter(isChangeable);
  }

  #rename(call: PendingCall, record: string | null): void {
    if (call.record !== null && this.#latest.get(place(call.model, call.record)) === call) this.#latest.delete(place(call.model, call.record));
    call.record = record;
    if (record !== null) this.#latest.set(place(call.model, record), call);
  }

  #remove(call: PendingCall): void {
    this.#pending.delete(call.id);
    this.#stopTimer(call);
    for (const caller of call.callers) if (caller.timer !== null) this.#host.clearTimeout(caller.timer);
    if (call.oneSocket) return;
    if (call.state === "waiting") {
      this.#waiting -= 1;
      this.#waitingCharacters -= call.text.length;
    } else {
      this.#unanswered -= call.text.length;
    }
    if (call.record !== null && this.#latest.get(place(call.model, call.record)) === call) this.#latest.delete(place(call.model, call.record));
    if (call.isWrite) this.#storage?.remove(String(call.id));
    if (!call.isRead) this.#resize(-1);
  }

  #resize(by: number): void {
    this.#size += by;
    this.#changed();
  }
}

function blank(id: number | string, model: string, event: string, text: string): PendingCall {
  const flags = { frozen: false, safe: false, isWrite: false, isRead: false, oneSocket: false };
  return { id, model, event, text, record: null, state: "waiting", ...flags, after: null, identity: null, query: null, own: null, base: null, parts: null, era: 0, timer: null, callers: [] };
}

function partOf({ event, text, own, base, callers }: PendingCall): Part {
  return { event, text: JSON.stringify(parse(text)), own, base, callers: [...callers] };
}

/** Adds a part, or joins it to the last one, if it changes all that this changes, or if there are too many. */
function addPart(parts: Part[], part: Part): void {
  const last = parts.at(-1);
  const replaces = last?.base != null && part.base !== null && Object.keys(last.base).every((name) => Object.hasOwn(part.base as Base, name));
  if (last === undefined || (!replaces && parts.length < MAX_PARTS)) {
    parts.push({ ...part, text: JSON.stringify(parse(part.text)) });
    return;
  }
  const joined = coalesce(parse(last.text), parse(part.text)) as Message;
  parts[parts.length - 1] = {
    event: joined.event,
    text: JSON.stringify(joined),
    own: writeMethod(parse(part.text)) === "patch" ? both(last.own, part.own) : part.own,
    base: last.base === null || part.base === null ? null : { ...part.base, ...last.base },
    callers: [...last.callers, ...part.callers],
  };
}

/** Null: nobody has said which fields it changes. `latest` is the write of the record before it that has no answer yet. */
function baseOf(message: Message, { own, before }: StartOptions, latest: PendingCall | undefined): Base | null {
  const fields = message.data as Record<string, unknown>;
  const names = writeMethod(message) === "patch" ? [...Object.keys(fields), ...(message.unset ?? [])] : own;
  if (names === undefined || writeMethod(message) === "delete") return null;
  const shown = latest === undefined ? {} : (parse(latest.text).data as Record<string, unknown>);
  const base: Base = {};
  for (const name of names) {
    if (name === "id" || (Object.hasOwn(shown, name) && same(shown[name], fields[name]))) continue; // only carried along
    base[name] = Object.hasOwn(shown, name) ? shown[name] : before?.[name];
  }
  return base;
}

function lacking(text: string, query: Query | null): Query | null {
  return query !== null && isIncomplete(parse(text), query) ? query : null;
}

function byteLength(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** A character is one to three bytes of UTF-8: only where that leaves it open is the text encoded. */
function exceeds(text: string, bytes: number): boolean {
  return text.length > bytes || (text.length * 3 > bytes && byteLength(text) > bytes);
}

/** The fields set by either of two writes that are one message now. */
function both(one: string[] | null, other: string[] | null): string[] | null {
  return one === null || other === null ? null : [...new Set([...one, ...other])];
}

function place(model: string, record: string): string {
  return `${model} ${record}`;
}

function encode(id: number | string, message: Message): string {
  return JSON.stringify({ id, ...message });
}

/** The message without its id. */
function parse(text: string): Message {
  const { id: _, ...message } = JSON.parse(text) as Message & { id: unknown };
  return message;
}
