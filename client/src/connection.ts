/**
 * One lasting connection over many sockets: opens, greets, watches, comes back; carries calls and subscriptions.
 * Knows nothing of what the records mean, nor of Backbone.
 */

import { closeWindow, isFinal, offlineDelay, readWindow, retryDelay, type Window, windowDelay } from "./backoff.js";
import { type Call, Calls, type Settle, type StartOptions } from "./calls.js";
import { completed } from "./coalesce.js";
import { debug } from "./debug.js";
import { Emitter } from "./emitter.js";
import { BacksyncError } from "./errors.js";
import { browserHost, guarded, type Host, type Timer } from "./host.js";
import { type Order, Pages } from "./pages.js";
import { decode, type Incoming, isObject, type Message, type Query, splitEvent } from "./protocol.js";
import { type OpenSocket, openSocket, type Socket, type SocketOptions } from "./socket.js";
import { type OpenStorage, openStorage, type Storage } from "./storage.js";
import { type Sink, type Subscription, Subscriptions, type Taught } from "./subscriptions.js";

/**
 * `connecting`: a socket is being opened. `live`: connected, every subscription is up to date. `behind`: connected, some
 * subscription waits for its records. `offline`: no connection; the next try is planned, or nothing has asked for one
 * yet. `closed`: for good, by the page or by a server that does not want it back.
 */
export type Status = "connecting" | "live" | "behind" | "offline" | "closed";

export type Token = string | (() => string | Promise<string>);

export interface ConnectionOptions extends SocketOptions {
  /**
   * Milliseconds until what has no reply is rejected with `timeout`. Default 30 000. For writes of a record only the time
   * counts in which they are unanswered on a connection that stands; for all else waiting for a connection counts, too.
   */
  timeout?: number | undefined;
  /** The name under which unsent and unanswered writes are kept over page reloads. Default: they end with the page. */
  persist?: string | undefined;
  /** Sent with every greeting; a function is asked before each, so that it can renew an expired one. */
  token?: Token | undefined;
}

export interface CallOptions {
  /** Milliseconds from now on, instead of the connection's; waiting for a connection counts, for writes, too. */
  timeout?: number | undefined;
}

/** What `onOpen` gets: the new socket, before anything else that waits may use it. */
export interface Opening {
  /** Calls at once, on this socket only; rejects with `unavailable` when that is lost. */
  call<Result = unknown>(event: string, data?: unknown, options?: CallOptions): Promise<Result>;
}

export type OpenHook = (opening: Opening) => unknown;

export interface SubscribeOptions {
  query?: Query | undefined;
  /** False: no records, only what happens from now on. */
  snapshot?: false | undefined;
  /** Records of a page, 1 to 1 000: only the first page comes, `more()` of the subscription opens the next one. */
  page?: number | undefined;
  /** The order of the pages: a field, `-field` for descending, or several. Default: by id. */
  order?: Order | undefined;
}

/** Why a connection is `closed`. */
export interface CloseInfo {
  code: number;
  reason: string;
}

type Events = {
  status: [status: Status, pending: number];
  /** The number of changes that wait for an answer is another one now. */
  pending: [pending: number];
  /** A write that an earlier page has left was refused: nobody else is there to hear of it. */
  refused: [error: BacksyncError, message: Message];
  /** Each message that is no reply, before it is applied. */
  message: [message: Incoming];
};

const CALL_TIMEOUT_MS = 30_000;
/** Over the worst of SockJS's falling back from one transport to the next. */
const OPEN_TIMEOUT_MS = 30_000;
/** What a page does as a connection opens keeps all else waiting: not for longer than this. */
const HOOKS_TIMEOUT_MS = 10_000;
/** The server's default; its greeting says the real one. */
const HEARTBEAT_S = 25;
/** Silence of a heartbeat and this is asked about with `$:ping`; together with the next number at most 35 s. */
const PING_AFTER_MS = 2_000;
const PING_TIMEOUT_MS = 8_000;
/** The same when the browser says that there is no network. */
const OFFLINE_PING_MS = 2_000;
/** A connection that stood so long starts its delays from the beginning. */
const STABLE_MS = 10_000;
/** Replies are applied at once until this much time of a frame has gone into applying; then they wait for the next frame. */
const FRAME_BUDGET_MS = 4;
/** Messages that may wait for a frame. */
const MAX_INBOX = 5000;
const NORMAL = 1000;
const POLICY = 4500;
/** A hook of the application failed as the client connected. */
const FAILED = 1011;
const TOO_LARGE = 1009;

export class Connection {
  readonly url: string;
  /** @internal */
  readonly host: Host;
  readonly #options: ConnectionOptions;
  readonly #open: OpenSocket;
  readonly #events: Emitter<Events>;
  readonly #calls: Calls;
  readonly #subscriptions: Subscriptions;
  readonly #hooks = new Set<OpenHook>();
  readonly #openings = new Set<(error: BacksyncError) => void>();
  /** The outbox of earlier pages has been read; null: there is none, or it was. */
  #restoring: Promise<void> | null = null;
  #storage: Storage | null = null;
  #clientId: string;
  #publicId: string | null = null;
  #pendingTold = 0;
  #pendingTelling = false;

  #phase: "idle" | "opening" | "greeting" | "introducing" | "ready" | "waiting" | "closed" = "idle";
  #status: Status = "offline";
  #socket: Socket | null = null;
  #transport: string | null = null;
  #closed: CloseInfo | null = null;
  #token: Token | undefined;
  #attempt = 0;
  #readyAt: number | null = null;
  #heardAt = 0;
  #heartbeatMs = HEARTBEAT_S * 1000;
  #window: Window | null = null;
  #networkGone = false;
  /** Messages that have arrived and are not applied yet. */
  #inbox: Incoming[] = [];
  /** The inbox is applied at the end of the present task. */
  #isDue = false;
  /** A frame has been requested. */
  #isFramed = false;
  /** Milliseconds that applying has taken since the last frame. */
  #spent = 0;
  /** The one timer of the present phase: deadline of opening, watchdog, or next attempt. */
  #timer: Timer | null = null;
  #goodbye: Timer | null = null;
  #stopNetwork: (() => void) | null = null;
  /** The last warning about connecting. */
  #warned = "";

  /** `host`, `open` and `storage` are for tests: a page passes none of them. */
  constructor(
    url: string,
    options: ConnectionOptions = {},
    host: Host = browserHost,
    open: OpenSocket = openSocket,
    storage: OpenStorage = openStorage,
  ) {
    this.url = absolute(url);
    checkOptions(options);
    this.#options = options;
    this.#token = options.token;
    this.host = host;
    this.#open = open;
    this.#events = new Emitter<Events>(host);
    this.#calls = new Calls(host, options.timeout ?? CALL_TIMEOUT_MS, () => this.#countPending(), (error, message) => this.#refused(error, message));
    const taught: Taught = (model, names, query) => this.#calls.complete(model, names, query);
    this.#subscriptions = new Subscriptions(host, () => this.#subscriptionsChanged(), taught);
    this.#clientId = randomId(host);
    if (options.persist !== undefined) this.#restore(storage(options.persist, () => randomId(host), this.url));
  }

  /** Random, kept over reconnects, with `persist` over reloads: with it the server recognises a write that is sent twice. */
  get clientId(): string {
    return this.#clientId;
  }

  /**
   * The name under which the server shows this client to others (`ctx.connection.client_id`), for ids of what is its own,
   * such as a cursor. Null until the server has first answered the greeting.
   */
  get publicId(): string | null {
    return this.#publicId;
  }

  get status(): Status {
    return this.#status;
  }

  /** What the present socket uses: `"websocket"`, `"xhr-streaming"`, `"xhr-polling"` …; null without a socket. */
  get transport(): string | null {
    return this.#transport;
  }

  /** Code and reason once `status` is `closed`. */
  get closed(): CloseInfo | null {
    return this.#closed;
  }

  /** Number of changes without an answer yet: messages that are waiting or sent, reads excepted. */
  get pending(): number {
    return this.#calls.size;
  }

  /** Calls `listener` at each event until the returned function is called. */
  on<Name extends keyof Events>(name: Name, listener: (...details: Events[Name]) => void): () => void {
    return this.#events.on(name, listener);
  }

  /**
   * Calls `hook` on each new connection after the greeting, and on the present one at once. Until what it returns is
   * done, for 10 s at most, nothing else is sent: a page can say there who it is. Returns what takes the hook out.
   */
  onOpen(hook: OpenHook): () => void {
    const own: OpenHook = (opening) => hook(opening); // the same hook may be there twice
    this.#hooks.add(own);
    if (this.#phase === "ready") void this.#introduce([own]);
    return () => void this.#hooks.delete(own);
  }

  /** Opens; not needed before calls and subscriptions, which do so. After `close` it opens again. */
  open(): this {
    if (this.#phase === "idle" || this.#phase === "closed") {
      if (this.#phase === "closed") this.#storage?.resume?.();
      this.#closed = null;
      this.#attempt = 0;
      this.#stopNetwork ??= this.host.onNetwork((online) => this.#network(online));
      this.#connect();
    }
    return this;
  }

  /** Closes for good: calls without an answer are rejected with `closed`, subscriptions end; kept writes wait for `open`. */
  close(code = NORMAL, reason = ""): void {
    this.#flush(); // answers that have arrived count
    this.#end({ code, reason });
  }

  /** Hangs up and connects again: at once, or while the browser has no network when it next tries. */
  reconnect(): this {
    if (this.#socket !== null) this.#drop("the page reconnects");
    if (this.#phase === "waiting" && !this.#networkGone) {
      this.#attempt = 0;
      this.#connect();
    }
    return this;
  }

  /** Forgets all writes that have no answer yet, kept ones too, and rejects them with `aborted`: for signing out. */
  discard(): void {
    this.#calls.discard(new BacksyncError("aborted", "Unsent and unanswered writes were discarded by the page."));
  }

  /**
   * Calls `MODEL:METHOD` and resolves with the reply's data. Without a connection it waits for one; over a lost one it
   * is sent again with the same id, so that a write is applied once. Rejects with a `BacksyncError`.
   */
  call<Result = unknown>(event: string, data?: unknown, options: CallOptions = {}): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.request({ event, ...(data === undefined ? {} : { data }) }, options, (error, result) => {
        if (error === null) resolve(result as Result);
        else reject(error);
      });
    });
  }

  /** `call` for adapters: the answer arrives in order with the changes around it, which a promise's would not. */
  request(message: Message, options: StartOptions, settle: Settle): Call {
    if (this.#closed !== null) {
      const error = this.#closedError(this.#closed);
      queueMicrotask(() => guarded(this.host, () => settle(error, null)));
      return { abort() {} };
    }
    const names = options.query === undefined ? undefined : this.#subscriptions.keyFields(splitEvent(message.event)?.[0] ?? "");
    const call =
      options.query === undefined || names === undefined
        ? this.#calls.start(message, options, settle)
        : this.#calls.start(completed(message, options.query, names), { ...options, query: undefined }, settle);
    this.#learn();
    this.open();
    return call;
  }

  /** Follows a channel: its records and all that happens there go to `sink`, over reconnects, until `stop()`. */
  subscribe(model: string, options: SubscribeOptions, sink: Sink): Subscription {
    if (typeof model !== "string" || !isObject(options as unknown) || typeof sink?.snapshot !== "function" || typeof sink.changes !== "function") {
      const form = 'subscribe("Todo", {}, {snapshot(records, seq) {…}, changes(changes) {…}})';
      throw new BacksyncError("usage", `subscribe() needs a model's name, options and a sink with snapshot and changes: ${form}.`);
    }
    const { page, order, query } = options;
    if (page === undefined ? order !== undefined : options.snapshot === false) {
      throw new BacksyncError("usage", "subscribe() got order without page, or page without records. Give both order and page, or neither.");
    }
    const pages = page === undefined ? null : new Pages({ page, order, query }, sink, (data, answered) => {
      this.request({ event: `${model}:read`, data }, {}, answered);
    });
    const asked = pages === null ? query : pages.query;
    const subscription = this.#subscriptions.add(model, asked, options.snapshot !== false, pages ?? sink);
    if (this.#closed === null) this.open();
    else this.#subscriptions.failAll(this.#closedError(this.#closed));
    return subscription;
  }

  /** Signs in, or renews, on the live connection, and greets with this token from now on. */
  async authenticate(token: string): Promise<void> {
    const isOther = token !== this.#token;
    this.#token = token;
    if (isOther) this.#subscriptions.userChanged();
    await new Promise<void>((resolve, reject) => {
      this.request({ event: "$:auth", data: { token } }, {}, (error) => {
        if (isOther) this.#subscriptions.userChanged(); // what has come before the answer was for the user before
        if (isOther && error === null) this.#askForId();
        if (error === null) resolve();
        else reject(error);
      });
    });
  }

  #restore(storage: Storage): void {
    this.#storage = storage;
    this.#calls.persist(storage, `${randomId(this.host).slice(0, 12)}.`);
    const opening = storage.open((writes) => {
      this.#calls.restore(writes, false);
      this.#learn();
      if (this.#phase === "idle") this.open();
    });
    this.#restoring = opening.then(({ client, writes }) => {
      this.#clientId = client;
      this.#restoring = null;
      this.#calls.restore(writes, true);
      this.#learn();
      if (writes.length > 0 && this.#phase === "idle") this.open();
    });
  }

  #subscriptionsChanged(): void {
    this.#learn(); // whoever was to tell may have gone
    this.#showStatus();
  }

  /** Sees to it that writes which wait for the key fields of their model get them, whoever follows it. */
  #learn(): void {
    for (const { model, query } of this.#calls.incomplete()) this.#subscriptions.learn(model, query);
  }

  // The life of a socket: #connect → #opened → #greeted → #introduced → #ended, and again.

  #connect(): void {
    this.#phase = "opening";
    this.#setTimer(OPEN_TIMEOUT_MS, () => this.#drop("no answer while connecting"));
    this.#heardAt = this.host.now();
    let socket: Socket | null = null;
    const current = (): boolean => socket !== null && socket === this.#socket;
    try {
      socket = this.#open(this.url, this.#options, {
        open: (transport) => current() && this.#opened(transport),
        message: (text) => current() && this.#received(text),
        heartbeat: () => {
          if (!current()) return;
          this.#heard();
          this.#flush(); // the answer to a write that is overdue may be among what waits
          this.#calls.alive();
        },
        close: (code, reason) => current() && this.#ended(code, reason),
      });
    } catch (error) {
      this.#end({ code: POLICY, reason: error instanceof Error ? error.message : String(error) });
      return;
    }
    this.#socket = socket;
    this.#showStatus();
  }

  #opened(transport: string): void {
    const socket = this.#socket;
    this.#phase = "greeting";
    this.#transport = transport;
    debug.log("·", "open", transport);
    const greet = (token: string | undefined): void => {
      if (socket === null || socket !== this.#socket) return;
      const data = { version: 1, client: this.#clientId, ...(token === undefined ? {} : { token }) };
      this.#callNow({ event: "$:hello", data }, OPEN_TIMEOUT_MS, (error, reply) => this.#greeted(error, reply));
    };
    const token = this.#token;
    if (typeof token !== "function" && this.#restoring === null) {
      greet(token);
      return;
    }
    const ready = async (): Promise<string | undefined> => {
      await this.#restoring;
      return typeof token === "function" ? token() : token;
    };
    ready().then(greet, (error: unknown) => {
      this.host.report(error);
      if (socket === this.#socket) this.#drop("no token");
    });
  }

  /** The public name belongs to client and user. */
  #askForId(): void {
    if (this.#publicId === null || this.#phase !== "ready") return;
    this.#publicId = null;
    this.#callNow({ event: "$:hello", data: { version: 1, client: this.#clientId } }, CALL_TIMEOUT_MS, (error, reply) => {
      if (error === null && isObject(reply) && typeof reply.id === "string") this.#publicId = reply.id;
    });
  }

  #greeted(error: BacksyncError | null, reply: unknown): void {
    if (error !== null) {
      if (error.code === "unauthorized" || error.code === "forbidden") this.#end({ code: POLICY, reason: error.message });
      else {
        this.#warn(`the greeting was refused: ${error.message} (${error.code}); it is tried again`);
        this.#drop(`greeting refused: ${error.message}`);
      }
      return;
    }
    this.#warned = "";
    const { heartbeat, limits, id } = (isObject(reply) ? reply : {}) as { heartbeat?: unknown; limits?: unknown; id?: unknown };
    this.#publicId = typeof id === "string" ? id : null;
    const { message: limit } = (isObject(limits) ? limits : {}) as { message?: unknown };
    this.#calls.limit(typeof limit === "number" && limit > 0 ? limit : null);
    this.#heartbeatMs = 1000 * (typeof heartbeat === "number" && heartbeat > 0 ? heartbeat : HEARTBEAT_S);
    if (this.#hooks.size === 0) {
      this.#introduced();
      return;
    }
    this.#phase = "introducing";
    const socket = this.#socket;
    const proceed = (): void => {
      if (this.#phase === "introducing" && socket === this.#socket) this.#introduced();
    };
    this.#setTimer(HOOKS_TIMEOUT_MS, () => {
      console.warn(`backsync: an onOpen hook was not done within ${HOOKS_TIMEOUT_MS / 1000} s; the rest goes on without it.`);
      proceed();
    });
    void this.#introduce(this.#hooks).then(proceed);
  }

  async #introduce(hooks: Iterable<OpenHook>): Promise<void> {
    const opening = this.#opening();
    const run = async (hook: OpenHook): Promise<void> => {
      try {
        await hook(opening);
      } catch (error) {
        if (!(error instanceof BacksyncError && error.code === "unavailable")) this.host.report(error);
      }
    };
    await Promise.all([...hooks].map(run));
  }

  #opening(): Opening {
    const socket = this.#socket;
    return {
      call: (event, data, { timeout } = {}) =>
        new Promise((resolve, reject) => {
          const lost = (error: BacksyncError): void => reject(error);
          if (socket === null || socket !== this.#socket) {
            reject(lostError(event));
            return;
          }
          this.#openings.add(lost);
          this.#callNow({ event, ...(data === undefined ? {} : { data }) }, timeout ?? this.#options.timeout ?? CALL_TIMEOUT_MS, (error, reply) => {
            this.#openings.delete(lost);
            if (error === null) resolve(reply as never);
            else reject(error);
          });
        }),
    };
  }

  #introduced(): void {
    this.#phase = "ready";
    this.#readyAt = this.host.now();
    this.#watch();
    // Calls first: the reply to a write that is sent again must come before the change that it made.
    if (this.#goodbye === null) this.#calls.opened((text) => this.#send(text));
    this.#subscriptions.opened((message, settle) => this.#callNow(message, CALL_TIMEOUT_MS, settle));
    this.#showStatus();
  }

  #ended(code: number, reason: string): void {
    debug.log("·", "closed", code, reason);
    this.#flush(); // what was received before the end counts
    if (this.#phase === "closed") return; // a listener has closed us
    if (code === TOO_LARGE && (this.#phase === "ready" || this.#phase === "introducing")) this.#calls.closedAsTooLarge();
    this.#forgetSocket();
    if (isFinal(code)) this.#end({ code, reason });
    else {
      if (code === FAILED) this.#warn(`the server closed the connection (${code}: ${reason}); it is opened again`);
      this.#retry(this.#window ?? closeWindow(code));
    }
  }

  /** Gives up the socket from our side and comes back. */
  #drop(reason: string): void {
    const socket = this.#socket;
    this.#ended(1006, reason);
    if (socket !== null) guarded(this.host, () => socket.close());
  }

  #retry(window: Window | null): void {
    const random = this.host.random();
    if (this.#readyAt !== null && this.host.now() - this.#readyAt >= STABLE_MS) this.#attempt = 0;
    let delay = retryDelay(this.#attempt, random);
    if (this.#networkGone) delay = offlineDelay(random);
    else if (window !== null) delay = windowDelay(window, random);
    this.#attempt += 1;
    this.#readyAt = null;
    this.#window = null;
    this.#phase = "waiting";
    this.#setTimer(delay, () => this.#connect());
    this.#showStatus();
  }

  #end(info: CloseInfo): void {
    if (this.#phase === "closed") return;
    const socket = this.#socket;
    this.#forgetSocket();
    this.#phase = "closed";
    this.#closed = info;
    this.#window = null;
    this.#setTimer(null);
    this.#stopNetwork?.();
    this.#stopNetwork = null;
    this.#networkGone = false;
    if (socket !== null) guarded(this.host, () => socket.close(info.code === NORMAL ? NORMAL : undefined));
    const error = this.#closedError(info);
    this.#calls.failAll(error);
    this.#subscriptions.failAll(error);
    this.#storage?.close?.();
    this.#showStatus();
  }

  /** Once for each state of things, however often it is met with before a connection stands. */
  #warn(text: string): void {
    if (text !== this.#warned) console.warn(`backsync: ${this.url}: ${text}`);
    this.#warned = text;
  }

  #forgetSocket(): void {
    this.#socket = null;
    this.#transport = null;
    this.#inbox = [];
    if (this.#goodbye !== null) this.host.clearTimeout(this.#goodbye);
    this.#goodbye = null;
    for (const lost of this.#openings) lost(lostError("The call"));
    this.#openings.clear();
    this.#calls.lost();
    this.#subscriptions.lost();
  }

  // Messages.

  #received(text: string): void {
    this.#heard();
    const message = decode(text);
    debug.log("←", text);
    if (message === null) return;
    this.#inbox.push(message);
    const isUrgent = isReply(message) || message.event === "$:bye";
    if (isUrgent && this.#spent < FRAME_BUDGET_MS) this.#flushAfterTask();
    else if (this.#inbox.length >= MAX_INBOX) this.#flush();
    else this.#flushAtFrame();
  }

  /** SockJS dispatches all messages of one of its frames in one task: they are applied together, after the last of them. */
  #flushAfterTask(): void {
    if (this.#isDue) return;
    this.#isDue = true;
    queueMicrotask(() => {
      this.#isDue = false;
      this.#flush();
    });
  }

  /** Changes are applied once per frame, however many messages they come in: the page redraws no more often than it is seen. */
  #flushAtFrame(): void {
    if (this.#isFramed) return;
    if (this.host.frame === undefined) {
      this.#flushAfterTask();
      return;
    }
    this.#isFramed = true;
    this.host.frame(() => {
      this.#isFramed = false;
      this.#spent = 0;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#inbox.length === 0) return;
    const start = this.host.now();
    this.#apply();
    // After the page's own microtasks: awaited answers, and the listeners of live collections.
    queueMicrotask(() => {
      const spent = this.host.now() - start;
      if (spent <= 0) return;
      this.#spent += spent;
      this.#flushAtFrame();
    });
  }

  #apply(): void {
    const messages = this.#inbox;
    this.#inbox = [];
    for (const message of messages) {
      const answers = isReply(message);
      if (answers) this.#subscriptions.flush(); // what came before a reply is applied before it
      if (answers && this.#calls.receive(message)) continue;
      if (message.event === "$:bye") this.#bye(message.data);
      this.#events.emit("message", message);
      this.#subscriptions.receive(message);
    }
    this.#subscriptions.flush();
    this.#calls.alive();
  }

  /** The server goes away: no new calls, the answers that are due still come, then back within its window. */
  #bye(data: unknown): void {
    const { retry } = (isObject(data) ? data : {}) as { retry?: unknown };
    if ((this.#phase !== "ready" && this.#phase !== "introducing") || this.#goodbye !== null) return;
    this.#calls.paused();
    this.#window = readWindow(retry) ?? closeWindow(1012);
    const longest = (this.#window?.[1] ?? 0) * 1000;
    // A server that forgets to close is left after the window's end.
    this.#goodbye = this.host.setTimeout(() => {
      this.#window = [0, 0];
      this.#drop("the server said goodbye");
    }, longest + PING_TIMEOUT_MS);
  }

  #send(text: string): void {
    debug.log("→", text);
    try {
      this.#socket?.send(text);
    } catch (error) {
      // A socket that is closing may throw; its close event is on the way and brings us back.
      debug.log("·", "send failed", error);
    }
  }

  #callNow(message: Message, timeoutMs: number, settle: Settle): void {
    this.#calls.startNow(message, timeoutMs, (text) => this.#send(text), settle);
  }

  // Watching.

  #heard(): void {
    this.#heardAt = this.host.now();
  }

  /** Looks at the silence when it may have become too long; one timer, however many messages come. */
  #watch(): void {
    const quiet = this.#heartbeatMs + PING_AFTER_MS;
    const due = this.#heardAt + quiet - this.host.now();
    if (due > 0) {
      this.#setTimer(due, () => this.#watch());
      return;
    }
    this.#ask(PING_TIMEOUT_MS, "the server does not answer");
  }

  /** Asks for a sign of life, and gives the socket up if none comes in time. */
  #ask(timeoutMs: number, reason: string): void {
    let isAnswered = false;
    this.#callNow({ event: "$:ping" }, timeoutMs * 2, () => {
      isAnswered = true;
      this.#networkGone = false;
    });
    const heardAt = this.#heardAt;
    this.#setTimer(timeoutMs, () => {
      if (!isAnswered && this.#heardAt <= heardAt) {
        this.#drop(reason);
        return;
      }
      this.#networkGone = false; // whatever the browser says
      this.#watch();
    });
  }

  /** Browsers mean the internet by it, which a server on this machine, in this network or behind a VPN does not need. */
  #network(online: boolean): void {
    this.#networkGone = !online;
    if (!online && this.#phase === "ready") {
      this.#ask(OFFLINE_PING_MS, "the page is offline");
    } else if (!online && this.#socket !== null) {
      this.#drop("the page is offline");
    } else if (online && this.#phase === "waiting") {
      this.#attempt = 0;
      this.#connect();
    } else if (!online && this.#phase === "waiting") {
      this.#setTimer(offlineDelay(this.host.random()), () => this.#connect());
    }
  }

  #setTimer(milliseconds: number | null, callback?: () => void): void {
    if (this.#timer !== null) this.host.clearTimeout(this.#timer);
    this.#timer = null;
    if (milliseconds === null || callback === undefined) return;
    this.#timer = this.host.setTimeout(() => {
      this.#timer = null;
      callback();
    }, milliseconds);
  }

  #showStatus(): void {
    const status = this.#currentStatus();
    if (status === this.#status) return;
    this.#status = status;
    debug.log("·", "status", status);
    this.#events.emit("status", status, this.pending);
  }

  /** Once for all that happens in one go. */
  #countPending(): void {
    if (this.#pendingTelling) return;
    this.#pendingTelling = true;
    queueMicrotask(() => {
      this.#pendingTelling = false;
      if (this.pending === this.#pendingTold) return;
      this.#pendingTold = this.pending;
      this.#events.emit("pending", this.pending);
    });
  }

  #refused(error: BacksyncError, message: Message): void {
    if (this.#events.emit("refused", error, message) || error.code === "aborted") return;
    console.warn(`backsync: a write of an earlier page was lost: ${message.event}: ${error.message} (${error.code})`);
  }

  #currentStatus(): Status {
    switch (this.#phase) {
      case "idle":
      case "waiting":
        return "offline";
      case "opening":
      case "greeting":
      case "introducing":
        return "connecting";
      case "ready":
        return this.#subscriptions.behind ? "behind" : "live";
      case "closed":
        return "closed";
    }
  }

  #closedError(info: CloseInfo): BacksyncError {
    const { code, reason } = info;
    const why = reason === "" ? `${code}` : `${code}: ${reason}`;
    return new BacksyncError("closed", `The connection to ${this.url} is closed (${why}). connection.open() opens it again.`, info);
  }
}

function absolute(url: string): string {
  const base = home();
  let result: URL;
  try {
    result = new URL(url, base);
  } catch {
    if (base === undefined && typeof url === "string" && !url.includes(":")) {
      const remedy = 'Pass an absolute URL, such as "https://example.com/backsync"; where a server renders pages, connect in the browser only.';
      throw new BacksyncError("usage", `"${url}" is relative, and outside of a page there is nothing that it is relative to. ${remedy}`);
    }
    throw new BacksyncError("usage", `"${url}" is no URL that can be connected to. Pass the one that Backsync is mounted at, such as "/backsync".`);
  }
  return result.href.replace(/^ws/, "http").replace(/[?#].*$/, "").replace(/\/+$/, "");
}

/** What a relative URL is relative to: the page, or the script of a worker. */
function home(): string | undefined {
  if (typeof document === "object") return document.baseURI;
  if (typeof location !== "object") return undefined;
  return location.protocol === "blob:" ? location.origin : location.href;
}

function checkOptions(options: ConnectionOptions): void {
  const known = ["transport", "transports", "timeout", "token", "persist"];
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw new BacksyncError("usage", `Unknown connection option "${name}". The options are ${known.join(", ")}.`);
    }
  }
  if (options.transport !== undefined && options.transport !== "sockjs" && options.transport !== "websocket") {
    throw new BacksyncError("usage", `transport is "${String(options.transport)}": it must be "sockjs" or "websocket".`);
  }
}

function isReply(message: Incoming): boolean {
  return message.id !== undefined && message.id !== null;
}

function lostError(what: string): BacksyncError {
  return new BacksyncError("unavailable", `${what} has no answer: the connection on which it was made is lost.`);
}

function randomId(host: Host): string {
  const bytes = new Uint8Array(16);
  if (typeof crypto === "object") crypto.getRandomValues(bytes);
  else bytes.forEach((_, index) => (bytes[index] = host.random() * 256));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
