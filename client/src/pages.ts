/**
 * A long list, open as far as somebody has asked for: stands between a channel and the sink that keeps its records, and lets
 * through what belongs to the open part. Keeps no records itself, and knows nothing of sockets.
 */

import { BacksyncError } from "./errors.js";
import { type Change, isObject, matches, type Query, safeRecord, type ServerRecord } from "./protocol.js";
import { recordName } from "./coalesce.js";
import type { Sink } from "./subscriptions.js";

/** As `$order` of a query: a field, `-field` for descending, or several of them. */
export type Order = string | readonly string[];

export interface PageOptions {
  /** Fields are compared for equality; a keyed model's key fields are among them. */
  query?: Query | undefined;
  /** Default: by id. */
  order?: Order | undefined;
  /** Records of a page: 1 to 1 000. */
  page: number;
}

/** Reads records by a query; as `Connection.request` answers. */
export type Read = (query: Query, answered: (error: BacksyncError | null, rows: unknown) => void) => void;

/** Of the server: records in one answer. */
const MAX_PAGE = 1000;

/** Up to where a list was read. */
interface End {
  /** What the server was given last: where the next page begins. */
  cursor: ServerRecord;
  /** The last one of all that was read, as we compare them. */
  last: ServerRecord;
  count: number;
}

export class Pages implements Sink {
  /** Of the subscription: what its snapshots hold. */
  readonly query: Query;
  readonly #size: number;
  readonly #where: Query;
  /** Those by which the next page is found. */
  readonly #fields: string[];
  readonly #compare: (one: ServerRecord, other: ServerRecord) => number;
  readonly #sink: Sink;
  readonly #read: Read;
  /** null: to the end of the list; undefined: no record has come yet. */
  #end: End | null | undefined;
  /** What has changed while a page is read: the last state of each record, null for a deleted one. */
  #late: Map<string, ServerRecord | null> | null = null;
  /** A snapshot has come, and the pages after its own are read again before it is passed on. */
  #renewing = false;
  /** Counts what begins anew: the answer to an older question is ignored. */
  #question = 0;
  #more: { promise: Promise<void>; resolve: () => void; reject: (error: BacksyncError) => void } | null = null;

  constructor({ query = {}, order, page }: PageOptions, sink: Sink, read: Read) {
    if (!Number.isInteger(page) || page < 1 || page > MAX_PAGE) {
      throw new BacksyncError("usage", `page got ${String(page)}, expected a number of records from 1 to ${MAX_PAGE}.`);
    }
    const { $order, $limit, $after, ...where } = query;
    if ([$order, $limit, $after].some((value) => value !== undefined)) {
      throw new BacksyncError("usage", "With page, the query has no $order, $limit and $after: say order and page.");
    }
    this.#size = page;
    this.#where = where;
    this.#compare = inOrder(order ?? []);
    this.#fields = ["id", ...fieldsOf(order ?? []).map(({ name }) => name)];
    this.query = { ...where, ...(order === undefined ? {} : { $order: order }), $limit: page };
    this.#sink = sink;
    this.#read = read;
  }

  /** Whether there are records after the open ones. */
  get hasMore(): boolean {
    return this.#end !== null;
  }

  /** Opens one more page; resolves when it is there. */
  more(): Promise<void> {
    if (this.#more !== null) return this.#more.promise;
    let resolve = (): void => {};
    let reject: (error: BacksyncError) => void = () => {};
    const promise = new Promise<void>((...settlers) => ([resolve, reject] = settlers));
    promise.catch(() => {});
    this.#more = { promise, resolve, reject };
    if (this.#end !== undefined && !this.#renewing) this.#next(this.#end);
    return promise;
  }

  /** It is over: no answer counts any more. */
  stop(error: BacksyncError): void {
    this.#question += 1;
    this.#late = null;
    this.#settle(error);
  }

  // As the channel sees it.

  snapshot(records: ServerRecord[], seq: number): void {
    this.#question += 1;
    this.#renewing = true;
    this.#late = new Map();
    this.#renew(records, this.#endOf(records, this.#size, 0), this.#end, seq);
  }

  changes(changes: Change[]): void {
    const shown: Change[] = [];
    for (const change of changes) {
      const name = isObject(change.data) ? recordName(change.data.id) : null;
      if (name === null || (change.method !== "upsert" && change.method !== "delete")) {
        shown.push(change);
        continue;
      }
      const record = change.method === "upsert" ? safeRecord(change.data as ServerRecord) : null;
      this.#late?.set(name, record);
      if (this.#renewing) continue;
      if (record === null || this.#isOpen(record, this.#end)) shown.push(change);
      else shown.push({ ...change, method: "delete", data: { id: record.id }, origin: change });
    }
    if (shown.length > 0) this.#sink.changes(shown);
  }

  failed(error: BacksyncError, over: boolean): void {
    if (over) this.stop(error);
    this.#sink.failed?.(error, over);
  }

  delayed(error: BacksyncError | null): void {
    this.#sink.delayed?.(error);
  }

  // Reading.

  /** Reads on until all is read again that was open before. */
  #renew(rows: ServerRecord[], end: End | null, before: End | null | undefined, seq: number): void {
    if (before === undefined || end === null || (before !== null && this.#compare(end.last, before.last) >= 0)) {
      this.#renewed(rows, end, seq);
      return;
    }
    const left = before === null ? MAX_PAGE : Math.max(this.#size, before.count - end.count);
    const limit = Math.min(MAX_PAGE, left);
    this.#ask(end, limit, (error, page) => {
      if (error !== null) this.#renewed(rows, end, seq); // less is open than was; more() asks again
      else this.#renew([...rows, ...page], this.#endOf(page, limit, end.count, end.last), before, seq);
    });
  }

  #renewed(rows: ServerRecord[], end: End | null, seq: number): void {
    this.#renewing = false;
    this.#end = end;
    const shown = this.#merged(rows);
    this.#sink.snapshot(shown, seq);
    if (this.#more !== null) this.#next(end);
  }

  #next(end: End | null): void {
    if (end === null) {
      this.#settle(null);
      return;
    }
    this.#late = new Map();
    this.#ask(end, this.#size, (error, page) => {
      if (error === null) {
        this.#end = this.#endOf(page, this.#size, end.count, end.last);
        const shown = this.#merged(page);
        if (this.#sink.more !== undefined) this.#sink.more(shown);
        else this.#sink.changes(shown.map((data) => ({ method: "upsert", data, seq: null, key: null })));
      }
      this.#late = null;
      this.#settle(error);
    });
  }

  #ask(end: End, limit: number, answered: (error: BacksyncError | null, page: ServerRecord[]) => void): void {
    const question = (this.#question += 1);
    this.#read({ ...this.query, $limit: limit, $after: end.cursor }, (error, rows) => {
      if (question === this.#question) answered(error, Array.isArray(rows) ? (rows as unknown[]).filter(isObject) : []);
    });
  }

  #settle(error: BacksyncError | null): void {
    const more = this.#more;
    this.#more = null;
    if (error === null) more?.resolve();
    else more?.reject(error);
  }

  /** The rows with what has changed while they were read: that is not older, as it was written after the question. */
  #merged(rows: ServerRecord[]): ServerRecord[] {
    const merged = new Map(rows.map((row) => [recordName(row.id), row]));
    for (const [name, record] of this.#late ?? []) {
      if (record !== null && this.#isOpen(record, this.#end)) merged.set(name, record);
      else merged.delete(name);
    }
    this.#late = null;
    return [...merged.values()];
  }

  #endOf(rows: ServerRecord[], limit: number, count: number, last?: ServerRecord): End | null {
    const final = rows.at(-1);
    if (final === undefined || rows.length < limit) return null;
    const cursor = Object.fromEntries(this.#fields.map((name) => [name, final[name] ?? null]));
    const all = last === undefined ? rows : [last, ...rows];
    return { cursor, last: all.reduce((one, other) => (this.#compare(one, other) < 0 ? other : one)), count: count + rows.length };
  }

  #isOpen(record: ServerRecord, end: End | null | undefined): boolean {
    return matches(record, this.#where) && (end === null || (end !== undefined && this.#compare(record, end.last) <= 0));
  }
}

/**
 * A function that compares records as the server's stores order them: nothing and null, then numbers and booleans, then text
 * by code points; records that are equal there by their ids, in the direction of the last field. Ids that are integers of 64
 * bits, 1 or "1", compare as numbers and come before others. Elsewhere a text does so if it is a number that the server
 * sends as text: an integer that would be rounded, or an infinity.
 */
export function inOrder(order: Order): (one: ServerRecord, other: ServerRecord) => number {
  const fields = fieldsOf(order);
  const last = fields.at(-1)?.sign ?? 1;
  return (one, other) => {
    for (const { name, sign } of fields) {
      const difference = name === "id" ? byId(one.id, other.id) : byValue(one[name], other[name]);
      if (difference !== 0) return sign * difference;
    }
    return last * byId(one.id, other.id);
  };
}

function fieldsOf(order: Order): { name: string; sign: number }[] {
  const names = typeof order === "string" ? [order] : order;
  return names.map((name) => (name.startsWith("-") ? { name: name.slice(1), sign: -1 } : { name, sign: 1 }));
}

function byId(one: unknown, other: unknown): number {
  if (typeof one === "number" && typeof other === "number") return one - other;
  const texts = [String(one), String(other)] as const;
  return byNumber(integerOf(texts[0]) ?? LAST_INTEGER, integerOf(texts[1]) ?? LAST_INTEGER) || byText(...texts);
}

function byValue(one: unknown, other: unknown): number {
  const [number, otherNumber] = [numberOf(one), numberOf(other)];
  const [kind, otherKind] = [kindOf(one, number), kindOf(other, otherNumber)];
  if (kind !== otherKind) return kind - otherKind;
  if (kind === 0) return 0;
  if (number !== null && otherNumber !== null) return byNumber(number, otherNumber);
  return byText(textOf(one), textOf(other));
}

function kindOf(value: unknown, number: Numeric | null): number {
  if (value === undefined || value === null) return 0;
  return number === null ? 2 : 1;
}

type Numeric = number | bigint;

function numberOf(value: unknown): Numeric | null {
  if (typeof value === "number" || typeof value === "boolean" || value === "Infinity" || value === "-Infinity") return Number(value);
  const integer = typeof value === "string" && value.length > 15 ? integerOf(value) : null;
  return integer === null || Number.isSafeInteger(Number(integer)) ? null : integer;
}

function byNumber(one: Numeric, other: Numeric): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

const LAST_INTEGER = 2n ** 63n - 1n;

/** The integer of 64 bits that a text is, written as JSON does. */
function integerOf(text: string): Numeric | null {
  if (!/^(?:0|-?[1-9]\d{0,18})$/.test(text)) return null;
  if (text.length <= 15) return Number(text);
  const integer = BigInt(text);
  return integer >= -LAST_INTEGER - 1n && integer <= LAST_INTEGER ? integer : null;
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** By code points, where JavaScript itself compares the halves of surrogate pairs. */
function byText(one: string, other: string): number {
  const length = Math.min(one.length, other.length);
  for (let index = 0; index < length; index += 1) {
    const difference = one.charCodeAt(index) - other.charCodeAt(index);
    if (difference !== 0) return rank(one.charCodeAt(index)) - rank(other.charCodeAt(index));
  }
  return one.length - other.length;
}

/** A half of a pair stands for a code point above all that have no pair. */
function rank(unit: number): number {
  return unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit;
}
