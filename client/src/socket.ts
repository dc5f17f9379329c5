/** One interface over SockJS and over a plain WebSocket. Knows nothing of the messages that it carries. */

import SockJS from "sockjs-client";

import { BacksyncError } from "./errors.js";

export interface SocketHandlers {
  open(transport: string): void;
  message(text: string): void;
  /** The other side is alive, without a message: SockJS's heartbeat frame. */
  heartbeat(): void;
  /** The last call: nothing follows. */
  close(code: number, reason: string): void;
}

export interface Socket {
  send(text: string): void;
  /** Closes; `handlers.close` is not called any more. */
  close(code?: number, reason?: string): void;
}

export interface SocketOptions {
  /** `"sockjs"` (default) falls back to HTTP where WebSockets do not get through; `"websocket"` does not. */
  transport?: "sockjs" | "websocket" | undefined;
  /** SockJS transports to use, in SockJS's names: `["xhr-streaming", "xhr-polling"]`. Default: those of the example and WebSocket. */
  transports?: string[] | undefined;
}

export type OpenSocket = (url: string, options: SocketOptions, handlers: SocketHandlers) => Socket;

/** SockJS gives a transport some round trips and then tries the next: on a busy machine that is too little. */
const TRANSPORT_TIMEOUT_MS = 3000;

/** What a close event says when there was no close frame. */
const FAILED = 1006;

/** What a browser that can run this client may need, best first; iframes and JSONP are for browsers that are gone. */
const TRANSPORTS = ["websocket", "xhr-streaming", "xhr-polling"];

/** SockJS's close code for "no transport came about", as opposed to a server that cannot be reached. */
const NO_TRANSPORT = 2000;

export const openSocket: OpenSocket = (url, options, handlers) => {
  const transports = options.transports ?? TRANSPORTS;
  const isPlain = options.transport === "websocket" || (!hasHttp() && typeof WebSocket === "function" && transports.includes("websocket"));
  return isPlain ? openWebSocket(url, handlers) : openSockJS(url, transports, handlers);
};

/** Whether SockJS can ask over HTTP, as it does first: not in a service worker. (In Node it does so in its own way.) */
function hasHttp(): boolean {
  return typeof XMLHttpRequest === "function" || typeof process === "object";
}

/**
 * Tries one transport after the other, each with a SockJS of its own: SockJS 1.6 does not stop the timer of a transport
 * that has failed early, which then ends the attempt after it, often the last one.
 */
function openSockJS(url: string, transports: string[], handlers: SocketHandlers): Socket {
  const others = transports.slice(1);
  const sockjs = new SockJS(url, undefined, { timeout: TRANSPORT_TIMEOUT_MS, transports: transports.slice(0, 1) });
  let next: Socket | null = null;
  let isOpen = false;
  sockjs.onopen = () => {
    isOpen = true;
    handlers.open(sockjs.transport);
  };
  sockjs.onmessage = (event) => handlers.message(asText(event.data));
  sockjs.onheartbeat = () => handlers.heartbeat();
  sockjs.onclose = ({ code, reason }) => {
    if (!isOpen && code === NO_TRANSPORT && others.length > 0) next = openSockJS(url, others, handlers);
    else handlers.close(code, reason);
  };
  return {
    send: (text) => (next ?? sockjs).send(text),
    close(code = 1000, reason = "") {
      sockjs.onopen = sockjs.onmessage = sockjs.onheartbeat = sockjs.onclose = null;
      (next ?? sockjs).close(code, reason);
    },
  };
}

function openWebSocket(url: string, handlers: SocketHandlers): Socket {
  if (typeof WebSocket !== "function") {
    throw new BacksyncError("usage", `transport: "websocket" needs a global WebSocket, and there is none here. Use transport: "sockjs".`);
  }
  const socket = new WebSocket(`${url.replace(/^http/i, "ws")}/websocket`);
  const detach = (): void => {
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
  };
  socket.onopen = () => handlers.open("websocket");
  socket.onmessage = (event: MessageEvent) => handlers.message(asText(event.data));
  socket.onclose = ({ code, reason }) => handlers.close(code, reason);
  // An error is always the end of a WebSocket. A close event follows, except in Node 20 when nobody listens on the port.
  socket.onerror = () => {
    detach();
    handlers.close(FAILED, "");
  };
  return {
    send: (text) => socket.send(text),
    close(code = 1000, reason = "") {
      detach();
      socket.close(code, reason);
    },
  };
}

/** A server in 2012 mode puts objects, not texts, into SockJS's frames. */
function asText(data: unknown): string {
  return typeof data === "string" ? data : JSON.stringify(data);
}
