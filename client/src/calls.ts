/**
 * The calls that wait for a reply: their ids, deadlines and order, over as many sockets as it takes.
 * Knows nothing of sockets, subscriptions or Backbone; the connection says when sending is possible.
 */

import { debug } from "./debug.js";
import { BacksyncError } from "./errors.js";
import { guarded, type Host, type Timer } from "./host.js";
import type { Incoming, Message } from "./protocol.js";

/** Called once, never before `start` has returned: with an error, or with the reply's data. */
export type Settle = (error: BacksyncError | null, data: unknown) => void;

export interface Call {
  /** Gives up: rejects with `aborted`. The server may have done its work already. */
  abort(): void;
  /** True when the server cannot have heard of it. */
  readonly unsent: boolean;
}

interface PendingCall {
  id: number;
  event: string;
  text: string;
  sent: boolean;
  /** Belongs to one socket: forgotten without an answer when that ends. */
  oneSocket: boolean;
  timer: Timer | null;
  settle: Settle;
}

/** Calls that may wait for a connection; more are a page that loops, or one that was offline for very long. */
const MAX_WAITING = 1000;

/**
 * Characters that may be unanswered before the next call waits. SockJS over HTTP puts all that is waiting into one
 * request body, and servers limit that (128 KiB in Backsync): a long queue must not go out in one piece.
 */
const WINDOW = 32_768;

/** Replies to calls that were given up may still come; as many of their ids are remembered. */
const MAX_ABANDONED = 1000;

export class Calls {
  readonly #host: Host;
  readonly #pending = new Map<number, PendingCall>(); // in the order in which they were made, which is the order of sending
  readonly #abandoned = new Set<number>();
  #lastId = 0;
  #waiting = 0;
  #unanswered = 0;
  #send: ((text: string) => void) | null = null;

  constructor(host: Host) {
    this.#host = host;
  }

  /** Calls without an answer yet, sent or not. */
  get size(): number {
    let size = 0;
    for (const call of this.#pending.values()) if (!call.oneSocket) size += 1;
    return size;
  }

  /** Makes a call that outlives sockets: it waits for one, and is sent again, with the same id, when one is lost. */
  start(message: Message, timeoutMs: number, settle: Settle): Call {
    if (this.#waiting >= MAX_WAITING) {
      const error = new BacksyncError(
        "unavailable",
        `${message.event} was not sent: ${MAX_WAITING} calls are waiting for a connection already. Wait until it is back.`,
      );
      queueMicrotask(() => guarded(this.#host, () => settle(error, null)));
      return { abort() {}, unsent: true };
    }
    const call = this.#register(message, timeoutMs, settle, false);
    this.#waiting += 1;
    this.#pump();
    return {
      abort: () => this.#giveUp(call, new BacksyncError("aborted", `${call.event} was aborted by the page.`)),
      get unsent() {
        return !call.sent;
      },
    };
  }

  /** Makes a call on this socket only and at once; when the socket is lost nobody is told. */
  startNow(message: Message, timeoutMs: number, send: (text: string) => void, settle: Settle): void {
    const call = this.#register(message, timeoutMs, settle, true);
    call.sent = true;
    send(call.text);
  }

  /** Takes a reply. False if the message is none: what carries an id that nobody waits for is not a reply. */
  receive(message: Incoming): boolean {
    const id = message.id as number;
    if (this.#abandoned.delete(id)) return true;
    const call = this.#pending.get(id);
    if (call === undefined || !call.sent) return false;
    this.#remove(call);
    const failed = message.error !== undefined && message.error !== null;
    guarded(this.#host, () =>
      failed ? call.settle(BacksyncError.fromWire(message.error), null) : call.settle(null, message.data),
    );
    this.#pump();
    return true;
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
      if (call.oneSocket) {
        this.#remove(call);
      } else if (call.sent) {
        call.sent = false;
        this.#waiting += 1;
        this.#unanswered -= call.text.length;
      }
    }
    this.#abandoned.clear(); // their replies went to the socket that is gone
  }

  /** Nothing will be sent any more. */
  failAll(error: BacksyncError): void {
    for (const call of [...this.#pending.values()]) this.#giveUp(call, error);
  }

  #register(message: Message, timeoutMs: number, settle: Settle, oneSocket: boolean): PendingCall {
    const id = this.#lastId + 1;
    const text = JSON.stringify({ id, ...message }); // now: what the page does to the data later is not part of this call
    this.#lastId = id;
    const call: PendingCall = { id, event: message.event, text, sent: false, oneSocket, timer: null, settle };
    this.#pending.set(id, call);
    if (timeoutMs === Infinity) return call;
    call.timer = this.#host.setTimeout(() => {
      const where = call.sent ? "the server did not answer" : "there was no connection";
      this.#giveUp(call, new BacksyncError("timeout", `${call.event} got no reply within ${timeoutMs / 1000} s: ${where}.`));
    }, timeoutMs);
    return call;
  }

  #pump(): void {
    if (this.#send === null || this.#waiting === 0) return;
    for (const call of this.#pending.values()) {
      if (call.sent) continue;
      if (this.#unanswered > 0 && this.#unanswered + call.text.length > WINDOW) return;
      call.sent = true;
      this.#waiting -= 1;
      this.#unanswered += call.text.length;
      this.#send(call.text);
      if (this.#send === null) return; // sending has found out that the socket is dead
    }
  }

  #giveUp(call: PendingCall, error: BacksyncError): void {
    if (this.#pending.get(call.id) !== call) return;
    if (call.sent) {
      this.#abandoned.add(call.id);
      for (const oldest of this.#abandoned) {
        if (this.#abandoned.size <= MAX_ABANDONED) break;
        this.#abandoned.delete(oldest);
      }
    }
    debug.log("·", call.event, error.code);
    this.#remove(call);
    queueMicrotask(() => guarded(this.#host, () => call.settle(error, null)));
    this.#pump();
  }

  #remove(call: PendingCall): void {
    this.#pending.delete(call.id);
    if (call.timer !== null) this.#host.clearTimeout(call.timer);
    if (call.oneSocket) return;
    if (call.sent) this.#unanswered -= call.text.length;
    else this.#waiting -= 1;
  }
}
