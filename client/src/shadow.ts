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
  /** The server's last word; null: it has no such record; undefined: it has said nothing yet. */
  confirmed: Attributes | null | undefined;
  readonly #writes: PendingWrite[] = [];

  get pending(): boolean {
    return this.#writes.length > 0;
  }

  get pendingCreate(): PendingWrite | undefined {
    return this.#writes.find((write) => write.kind === "create");
  }

  get pendingDelete(): boolean {
    return this.#writes.some((write) => write.kind === "delete");
  }

  begin(write: PendingWrite): void {
    this.#writes.push(write);
  }

  /** The fields in which `attributes` differ from the server's record, with their local values. */
  differences(attributes: Attributes, base: Attributes = this.confirmed ?? {}): Attributes {
    const fields: Attributes = {};
    for (const name of new Set([...Object.keys(attributes), ...Object.keys(base)])) {
      if (!same(attributes[name], base[name])) fields[name] = attributes[name];
    }
    return fields;
  }

  /**
   * Takes the server's whole record. Returns what the view takes of it: fields with a pending local value are left out,
   * fields that the server no longer has are undefined.
   */
  receive(record: Attributes): Attributes {
    const view: Attributes = { ...record };
    for (const name of Object.keys(this.confirmed ?? {})) if (!Object.hasOwn(record, name)) view[name] = undefined;
    this.confirmed = { ...record };
    return this.withoutPending(view);
  }

  /** The server has accepted the write and answered with `record` (null: with nothing that is a record). */
  succeed(write: PendingWrite, record: Attributes | null): void {
    this.#settle(write);
    if (write.kind === "delete") {
      this.confirmed = null;
      return;
    }
    const confirmed: Attributes = { ...this.confirmed, ...write.fields, ...record };
    for (const name of Object.keys(confirmed)) if (confirmed[name] === undefined) delete confirmed[name];
    this.confirmed = confirmed;
  }

  /**
   * The server has refused the write. Returns what the view takes back: the server's values (undefined: no such field)
   * of the fields that still show this write's value and that no other pending write shows.
   */
  fail(write: PendingWrite, attributes: Attributes): Attributes {
    this.#settle(write);
    const back: Attributes = {};
    for (const [name, value] of Object.entries(this.withoutPending(write.fields))) {
      if (same(attributes[name], value)) back[name] = this.confirmed?.[name];
    }
    return back;
  }

  /** `fields` without those that have a pending local value. */
  withoutPending(fields: Attributes): Attributes {
    if (!this.pending) return fields;
    return Object.fromEntries(Object.entries(fields).filter(([name]) => !this.#writes.some((write) => Object.hasOwn(write.fields, name))));
  }

  #settle(write: PendingWrite): void {
    const index = this.#writes.indexOf(write);
    if (index >= 0) this.#writes.splice(index, 1);
  }
}

function same(one: unknown, other: unknown): boolean {
  return one === other || (one !== undefined && other !== undefined && canonical(one) === canonical(other));
}
