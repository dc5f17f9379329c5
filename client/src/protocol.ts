/** The words of the wire: message shapes, encoding and names. Knows nothing of sockets, time or Backbone. */

import { BacksyncError } from "./errors.js";

/** A place in a channel's order: which history (`epoch`) and how far in it (`seq`). */
export interface Position {
  epoch: string | number;
  seq: number;
}

/** A query, or the key fields of a keyed model with their values. */
export type Query = Record<string, unknown>;

/** A record as the server sends it. */
export type ServerRecord = Record<string, unknown>;

/** What the client sends; `id` is added when the message is sent. */
export interface Message {
  event: string;
  data?: unknown;
  unset?: string[];
  since?: Position;
  snapshot?: false;
}

/** What the server sends, before anything about it is known. */
export interface Incoming {
  id?: unknown;
  event?: unknown;
  data?: unknown;
  error?: unknown;
  seq?: unknown;
  key?: unknown;
}

/** One thing that happened in a channel: a change (`upsert`, `delete`), or a transient event, which has no `seq`. */
export interface Change {
  method: string;
  data: unknown;
  seq: number | null;
  key: Query | null;
  /** What the server has said, where this is only what follows from it for a page's open records. */
  origin?: Change;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Reads one message; null for what is not a JSON object, which is ignored as the protocol demands. */
export function decode(text: string): Incoming | null {
  let value: unknown;
  try {
    // A reviver makes parsing many times slower: it runs only where the name can occur, written plainly or escaped.
    value = /__proto__|\\u00[57]/.test(text) ? JSON.parse(text, withoutProto) : JSON.parse(text);
  } catch {
    return null;
  }
  return isObject(value) ? (value as Incoming) : null;
}

function withoutProto(key: string, value: unknown): unknown {
  return key === "__proto__" ? undefined : value;
}

const UNSAFE_FIELDS = ["__proto__", "constructor", "prototype"];

/** The record without the field names that could reach a prototype when it is merged. */
export function safeRecord<T>(record: T): T {
  if (!isObject(record) || !UNSAFE_FIELDS.some((name) => Object.hasOwn(record, name))) return record;
  return Object.fromEntries(Object.entries(record).filter(([name]) => !UNSAFE_FIELDS.includes(name))) as T;
}

/** `"Todo:upsert"` → `["Todo", "upsert"]`; null without a colon. */
export function splitEvent(event: unknown): [model: string, method: string] | null {
  if (typeof event !== "string") return null;
  const colon = event.indexOf(":");
  return colon < 0 ? null : [event.slice(0, colon), event.slice(colon + 1)];
}

/** The model that a Backbone url names: its first path segment. `/Todo/5` → `Todo`. */
export function modelName(url: string): string {
  const path = url.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, "").replace(/^\/+/, "");
  const segment = decodeURIComponent(/^[^/?#]*/.exec(path)?.[0] ?? "");
  if (!/^[A-Za-z_][A-Za-z0-9_.-]*$/.test(segment)) {
    throw new BacksyncError(
      "invalid",
      `The url "${url}" names no model: its first path segment must start with a letter or "_" and go on with letters, ` +
        `digits, "_", "." or "-". Write for example url: "/Todo".`,
    );
  }
  return segment;
}

/** The same text for the same query, whatever the order of its fields. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (!isObject(value)) return JSON.stringify(value) ?? "null";
  if (typeof value.toJSON === "function") return canonical((value as { toJSON(): unknown }).toJSON());
  const fields = Object.keys(value).filter((name) => value[name] !== undefined);
  return `{${fields.sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join()}}`;
}

/** Whether `record` has every field of `key` with the same value. */
export function matches(record: Record<string, unknown>, key: Query): boolean {
  return Object.keys(key).every((name) => Object.hasOwn(record, name) && canonical(record[name]) === canonical(key[name]));
}
