/**
 * One record as the server knows it, and the local writes that it has not answered yet. Pure: knows nothing of Backbone,
 * so that any way of keeping records can be optimistic with it.
 */

import { canonical } from "./protocol.js";

export type Attributes = Record<string, unknown>;

/** A local write without an answer: the fields that it shows before the server has agreed; undefined: field removed. */
export interface PendingWrite {
  readonly kind: "create" | "write" | "delete";
  readonly fields: Attributes;
}

export class Shadow {
  #confirmed: Attributes | null | undefined;
  /** What the server said before it said that there is no such record: what a pending write may still be about. */
  #before: Attributes = {};
  readonly #writes = new Set<PendingWrite>(); // in the order in which they were made
  readonly #shown = new Map<string, number>(); // how many writes show a value of a field

  /** The server's last word; null: it has no such record; undefined: it has said nothing yet. */
  get confirmed(): Attributes | null | undefined {
    return this.#confirmed;
  }
  set confirmed(record: Attributes | null | undefined) {
    if (record === null) this.#before = this.#confirmed ?? this.#before;
    this.#confirmed = copied(record); // what is shown is the page's, and may be changed in place
  }

  /** The writes without an answer, oldest first. */
  get writes(): ReadonlySet<PendingWrite> {
    return this.#writes;
  }

  get pending(): boolean {
    return this.#writes.size > 0;
  }

  begin(write: PendingWrite): void {
    if (!this.pending && this.confirmed === null) this.#before = {}; // a new record under an old id
    this.#writes.add(write);
    for (const name of Object.keys(write.fields)) this.#shown.set(name, (this.#shown.get(name) ?? 0) + 1);
  }

  /** The fields that a write of the whole record changes: those that differ from the server's or that are pending already. */
  differences(attributes: Attributes): Attributes {
    if ([...this.#writes].some((write) => write.kind === "delete")) return copied(attributes);
    const base = this.confirmed ?? {};
    const fields: Attributes = {};
    for (const name of new Set([...Object.keys(attributes), ...Object.keys(base), ...this.#shown.keys()])) {
      if (this.#shown.has(name) || !same(attributes[name], base[name])) fields[name] = copied(attributes[name]);
    }
    return fields;
  }

  /** The names of those fields of a write that the page has set: all but those that are the server's. */
  touched(fields: Attributes): string[] {
    const base = [...this.#writes].some((write) => write.kind === "delete") ? {} : (this.confirmed ?? {});
    return Object.keys(fields).filter((name) => this.#shown.has(name) || !same(fields[name], base[name]));
  }

  /**
   * Takes the server's whole record. Returns what the view takes of it: fields with a pending local value are left out,
   * fields that the server no longer has are undefined.
   */
  receive(record: Attributes): Attributes {
    const view: Attributes = { ...record };
    for (const name of Object.keys(this.confirmed ?? {})) if (!Object.hasOwn(record, name)) view[name] = undefined;
    this.confirmed = record;
    return this.withoutPending(view);
  }

  /** Another view of the same record has heard of it first: what it heard is at least as new as `record`. */
  absorb(twin: Shadow, record: Attributes): Attributes {
    const confirmed = { ...record, ...twin.confirmed };
    this.confirmed = confirmed;
    return copied(confirmed);
  }

  /**
   * The server has accepted the write and answered with `record` (null: with nothing that is a record). Returns the names
   * of fields that the record had before it was deleted meanwhile, and has no more.
   */
  succeed(write: PendingWrite, record: Attributes | null): string[] {
    this.#settle(write);
    if (write.kind === "delete") {
      this.confirmed = null;
      this.#before = {};
      return [];
    }
    const before = this.confirmed === null ? this.#before : {};
    const confirmed: Attributes = { ...this.confirmed, ...write.fields, ...record };
    for (const name of Object.keys(confirmed)) if (confirmed[name] === undefined) delete confirmed[name];
    this.confirmed = confirmed;
    return Object.keys(before).filter((name) => !Object.hasOwn(confirmed, name) && !this.#shown.has(name));
  }

  /**
   * The server has refused the write. Returns what the view takes back: of the fields that still show this write's value
   * that of the latest other write which shows one, else the server's (undefined: no such field).
   */
  fail(write: PendingWrite, attributes: Attributes): Attributes {
    this.#settle(write);
    const back: Attributes = {};
    for (const [name, value] of Object.entries(write.fields)) {
      if (!same(attributes[name], value)) continue;
      const showing = this.#shown.has(name) ? [...this.#writes].reverse().find((other) => Object.hasOwn(other.fields, name)) : undefined;
      const present = showing === undefined ? this.confirmed?.[name] : showing.fields[name];
      if (!same(present, value)) back[name] = copied(present);
    }
    return back;
  }

  /** `fields` without those that have a pending local value. */
  withoutPending(fields: Attributes): Attributes {
    if (this.#shown.size === 0) return fields;
    return Object.fromEntries(Object.entries(fields).filter(([name]) => !this.#shown.has(name)));
  }

  /** The record as it is to be shown: the server's, under all that is pending; null: there is none. */
  view(): Attributes | null {
    let record: Attributes | null = this.confirmed ?? (this.pending ? this.#before : null);
    for (const { kind, fields } of this.#writes) record = kind === "delete" ? null : { ...record, ...fields };
    if (record !== null && this.pending) {
      for (const name of Object.keys(record)) if (record[name] === undefined) delete record[name];
    }
    return record;
  }

  #settle(write: PendingWrite): void {
    if (!this.#writes.delete(write)) return;
    for (const name of Object.keys(write.fields)) {
      const count = (this.#shown.get(name) ?? 1) - 1;
      if (count === 0) this.#shown.delete(name);
      else this.#shown.set(name, count);
    }
  }
}

/** Whether two values are one in JSON; what JSON cannot carry is equal to itself only. */
export function same(one: unknown, other: unknown): boolean {
  if (one === other) return true;
  if (one === undefined || other === undefined) return false;
  if (typeof one === "string" && typeof other !== "object") return false;
  try {
    return canonical(one) === canonical(other);
  } catch {
    return false;
  }
}

/** What JSON nests deeper than this it does not carry: it contains itself. */
const DEEPEST = 1000;

/**
 * A value that shares no array and no plain object with the given one. Instances of classes are kept, and so is a value
 * that contains itself.
 */
export function copied<T>(value: T): T {
  if (!isNested(value)) return value;
  try {
    return copy(value, 0);
  } catch {
    return value;
  }
}

function copy<T extends Attributes | unknown[]>(value: T, depth: number): T {
  if (depth > DEEPEST) throw new RangeError("too deep");
  const result = Array.isArray(value) ? [...(value as unknown[])] : { ...value };
  for (const [name, part] of Object.entries(result)) {
    if (isNested(part)) (result as Attributes)[name] = copy(part, depth + 1);
  }
  return result as T;
}

/** Freezes a value with all arrays and plain objects in it. */
export function frozen<T>(value: T): T {
  if (!isNested(value) || Object.isFrozen(value)) return value;
  Object.freeze(value);
  for (const part of Object.values(value as Attributes)) frozen(part);
  return value;
}

function isNested(value: unknown): value is Attributes | unknown[] {
  if (typeof value !== "object" || value === null) return false;
  if (Array.isArray(value)) return true;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null; // of any realm
}
