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
  transport?: "sockjs" | "websocket";
  /** SockJS transports to use, in SockJS's names: `["xhr-streaming", "xhr-polling"]`. Default: all. */
  transports?: string[];
}

export type OpenSocket = (url: string, options: SocketOptions, handlers: SocketHandlers) => Socket;

/** SockJS gives a transport some round trips and then tries the next: on a busy machine that is too little. */
const TRANSPORT_TIMEOUT_MS = 3000;

/** What a close event says when there was no close frame. */
const FAILED = 1006;

export const openSocket: OpenSocket = (url, options, handlers) => {
  const socket = options.transport === "websocket" ? openWebSocket(url) : openSockJS(url, options.transports);
  socket.onopen = () => handlers.open("transport" in socket ? socket.transport : "websocket");
  socket.onmessage = (event: { data: unknown }) => handlers.message(asText(event.data));
  socket.onclose = (event: { code: number; reason: string }) => handlers.close(event.code, event.reason);
  if ("onheartbeat" in socket) {
    socket.onheartbeat = () => handlers.heartbeat();
  } else {
    // An error is always the end of a WebSocket. A close event follows, except in Node 20 when nobody listens on the port.
    socket.onerror = () => {
      detach();
      handlers.close(FAILED, "");
    };
  }
  const detach = (): void => {
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (!("onheartbeat" in socket)) socket.onerror = null;
  };
  return {
    send: (text) => socket.send(text),
    close(code = 1000, reason = "") {
      detach();
      socket.close(code, reason);
    },
  };
};

function openSockJS(url: string, transports: string[] | undefined): SockJSSocket {
  const options = transports === undefined ? {} : { transports };
  const socket = new SockJS(url, undefined, { timeout: TRANSPORT_TIMEOUT_MS, ...options });
  socket.onheartbeat = null; // declared here so that it is there to be asked for
  return socket;
}

function openWebSocket(url: string): WebSocket {
  if (typeof WebSocket !== "function") {
    throw new BacksyncError("usage", `transport: "websocket" needs a global WebSocket, and there is none here. Use transport: "sockjs".`);
  }
  return new WebSocket(`${url.replace(/^http/i, "ws")}/websocket`);
}

/** A server in 2012 mode puts objects, not texts, into SockJS's frames. */
function asText(data: unknown): string {
  return typeof data === "string" ? data : JSON.stringify(data);
}
