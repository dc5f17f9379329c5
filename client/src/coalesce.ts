/** What one message does that stands for two writes of one record, neither of which has been sent. Pure: no queue, no socket. */

import { isObject, type Message, type Query, splitEvent } from "./protocol.js";

export type WriteMethod = "upsert" | "patch" | "delete";

const WRITES: Record<string, WriteMethod> = { upsert: "upsert", create: "upsert", update: "upsert", patch: "patch", delete: "delete" };

/** What an event does to the one record that its data names; null: something else, or several records at once. */
export function writeMethod(message: Message): WriteMethod | null {
  const [, method] = splitEvent(message.event) ?? [];
  if (method === undefined || !Object.hasOwn(WRITES, method) || !isObject(message.data)) return null;
  return WRITES[method] as WriteMethod;
}

/** The name of a record with this id within its model, the same for 1 and "1" as on the server; no local name is equal to one. */
export function recordName(id: unknown): string | null {
  return typeof id === "string" || typeof id === "number" ? JSON.stringify(String(id)) : null;
}

/** Whether the record lacks fields of the query that it is written under: they may be the key of its room. */
export function isIncomplete(message: Message, query: Query): boolean {
  const data = message.data;
  return writeMethod(message) === "upsert" && isObject(data) && Object.keys(query).some((name) => !Object.hasOwn(data, name));
}

/** The write with those of the key fields `names` that its record lacks, as the query has them. */
export function completed(message: Message, query: Query, names: string[]): Message {
  if (!isIncomplete(message, query)) return message;
  const key = Object.fromEntries(names.filter((name) => Object.hasOwn(query, name)).map((name) => [name, query[name]]));
  return { ...message, data: { ...key, ...(message.data as Record<string, unknown>) } };
}

let lastLocal = 0;

/** A name, used once in this page, for a record that has no id yet. */
export function localName(): string {
  return `~${(lastLocal += 1)}`;
}

export function isLocal(record: string): boolean {
  return record.startsWith("~");
}

/**
 * The one message for both; `"nothing"` for a creation that is deleted again; null where there is no such message.
 * An upsert carries the whole record, so a later one replaces an earlier one; a patch carries some fields of it.
 */
export function coalesce(first: Message, second: Message): Message | "nothing" | null {
  const before = writeMethod(first);
  const after = writeMethod(second);
  if (before === null || after === null) return null;
  const old = first.data as Record<string, unknown>;
  if (after === "delete") {
    const { id } = old;
    if ((id ?? null) === null) return before === "upsert" ? "nothing" : second;
    return { ...second, data: { id, ...(second.data as Record<string, unknown>) } }; // the page may name it by its creation
  }
  if (after === "upsert") return second;
  if (before === "delete") return null;
  const fields = { ...old, ...(second.data as Record<string, unknown>) };
  for (const name of second.unset ?? []) delete fields[name];
  if (before === "upsert") return { event: first.event, data: fields };
  const unset = [...(first.unset ?? []).filter((name) => !Object.hasOwn(fields, name)), ...(second.unset ?? [])];
  return { event: first.event, data: fields, ...(unset.length > 0 ? { unset: [...new Set(unset)] } : {}) };
}
