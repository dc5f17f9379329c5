/**
 * Live collections: each keeps a Backbone collection equal to one or more channels of the server.
 * Knows nothing of how messages travel.
 */

import type { Connection } from "../connection.js";
import { BacksyncError, warnOfEnd } from "../errors.js";
import { guarded, type Host } from "../host.js";
import type { Order } from "../pages.js";
import { type Change, isObject, matches, type Query, safeRecord, type ServerRecord } from "../protocol.js";
import type { Attributes } from "../shadow.js";
import type { Sink, Subscription } from "../subscriptions.js";
import { dropUndefined, type Records } from "./records.js";
import type { BackboneCollection, BackboneModel, Options } from "./types.js";

/** What `.live()` returns: resolves with the collection when it first equals the server's. */
export interface LivePromise extends Promise<BackboneCollection> {
  /**
   * Ends it: the collection hears no more of the server. It keeps its records; of a keyed model those leave that are in
   * no other room which it follows.
   */
  stop(): void;
  /** Whether the server has records after those of the pages that are open. */
  readonly hasMore: boolean;
  /** Opens one more page; resolves when it is there, at once where there is none. Rejects if it is refused. */
  more(): Promise<void>;
}

export interface BindingOptions {
  model: string;
  query: Query | undefined;
  page: number | undefined;
  order: Order | undefined;
  /** Whether a record that the server deletes also fires Backbone's `destroy`, as if the page had destroyed it. */
  destroy: boolean;
  /** Told of each change and event after it has been applied. */
  heard(change: Change): void;
  /** The binding is over: refused, or (null) stopped by the page. */
  ended(error: BacksyncError | null): void;
}

export class Binding implements Sink {
  readonly promise: LivePromise;
  readonly #host: Host;
  readonly #collection: BackboneCollection;
  readonly #records: Records;
  readonly #options: BindingOptions;
  readonly #siblings: Iterable<Binding>;
  readonly #subscription: Subscription;
  /** Ids that came through this channel: with several channels in one collection a snapshot replaces only its own. */
  readonly #owned = new Set<string>();
  #resolve: (collection: BackboneCollection) => void = () => {};
  #reject: (error: BacksyncError) => void = () => {};

  constructor(
    collection: BackboneCollection,
    connection: Connection,
    records: Records,
    siblings: Iterable<Binding>,
    options: BindingOptions,
  ) {
    this.#host = connection.host;
    this.#collection = collection;
    this.#records = records;
    this.#siblings = siblings;
    this.#options = options;
    this.promise = new Promise<BackboneCollection>((...settlers) => ([this.#resolve, this.#reject] = settlers)) as LivePromise;
    this.promise.catch(() => {}); // told by the `error` event, too
    const { model, query, page, order } = options;
    const subscription = connection.subscribe(model, { ...(query === undefined ? {} : { query }), page, order }, this);
    this.#subscription = subscription;
    this.promise.stop = () => this.stop();
    this.promise.more = () => subscription.more();
    Object.defineProperty(this.promise, "hasMore", { get: () => subscription.hasMore });
  }

  /** The key fields of its channel; null: it has none, or the server has not answered yet. */
  get key(): Query | null {
    return this.#subscription.key;
  }

  get query(): Query | undefined {
    return this.#options.query;
  }

  stop(): void {
    this.#subscription.stop();
    this.#options.ended(null);
    this.#leave();
    this.#reject(new BacksyncError("aborted", `The live ${this.#options.model} collection was stopped before its first records came.`));
  }

  failed(error: BacksyncError, over: boolean): void {
    if (over) {
      if (error.code !== "closed") this.#fill(new Map(), { fromServer: true, snapshot: true, seq: null }); // no longer to be seen
      this.#options.ended(error);
      this.#reject(error);
      warnOfEnd(this.#options.model, error);
      if (error.code === "closed" && !this.#isLast()) return; // one connection is closed, however many rooms it carried
    }
    this.#collection.trigger("error", this.#collection, error, { fromServer: true });
  }

  snapshot(records: ServerRecord[], seq: number): void {
    const rows = new Map<string, Attributes>();
    for (const record of records) {
      const id = this.#idOf(record);
      if (id !== undefined) rows.set(String(id), safeRecord(record));
    }
    this.#fill(rows, { fromServer: true, snapshot: true, seq });
    this.#resolve(this.#collection);
  }

  changes(changes: Change[]): void {
    try {
      this.#apply(changes);
    } catch (error) {
      this.#host.report(error);
      for (const change of changes) guarded(this.#host, () => this.#apply([change])); // repeats are harmless
    }
    for (const change of changes) this.#options.heard(change.origin ?? change);
  }

  more(records: ServerRecord[]): void {
    const changes = records.map((data) => ({ method: "upsert", data, seq: null, key: null }));
    guarded(this.#host, () => this.#apply(changes));
  }

  #isLast(): boolean {
    for (const sibling of this.#siblings) if (sibling !== this) return false;
    return true;
  }

  // A snapshot: the channel's rows, in the server's order, and what must not be lost.

  #fill(rows: Map<string, Attributes>, options: Options): void {
    try {
      this.#replace(rows, options);
    } catch (error) {
      // A listener has thrown in the middle of Backbone's work, which leaves the rest undone.
      this.#host.report(error);
      guarded(this.#host, () => this.#collection.reset([...this.#list(rows, options)], options));
    }
  }

  #replace(rows: Map<string, Attributes>, options: Options): void {
    const list = this.#list(rows, options);
    this.#owned.clear();
    for (const id of rows.keys()) this.#owned.add(id);
    this.#collection.set([...list], { ...options, remove: true });
    this.#finish(list);
  }

  #list(rows: Map<string, Attributes>, options: Options): Listed {
    const list = new Listed();
    const missing: BackboneModel[] = [];
    for (const model of this.#collection.models) {
      const id = String(this.#collection.modelId(model.attributes, model.idAttribute));
      if (!this.#covers(id)) list.keep(model);
      else if (!rows.has(id)) missing.push(model);
    }
    for (const [id, row] of rows) this.#upsert(list, id, row, options);
    for (const model of missing) {
      if (list.has(model)) continue; // its record came under another id than the wire's
      const shadow = this.#records.shadow(model);
      if (shadow.confirmed !== undefined) shadow.confirmed = null;
      if (shadow.pending) list.keep(model);
    }
    for (const [id, model] of this.#records.hiddenIn(this.#collection)) {
      if (!rows.has(id) && this.#covers(id)) this.#records.shadow(model).confirmed = null;
    }
    return list;
  }

  /** Whether a record that the snapshot lacks is gone: not if another channel of this collection has it. */
  #covers(id: string): boolean {
    let alone = true;
    for (const sibling of this.#siblings) {
      if (sibling === this) continue;
      alone = false;
      if (sibling.#owned.has(id)) return false;
    }
    return alone || this.#owned.has(id);
  }

  /** Takes the records of a room that was left out of the collection. */
  #leave(): void {
    const { key } = this.#subscription;
    if (key === null) return;
    const leaving = this.#collection.models.filter((model) => {
      const id = String(this.#collection.modelId(model.attributes, model.idAttribute));
      const record = this.#records.shadow(model).confirmed ?? model.attributes;
      return (this.#owned.has(id) || matches(record, key)) && !this.#isElsewhere(record);
    });
    this.#owned.clear();
    if (leaving.length > 0) guarded(this.#host, () => this.#collection.remove(leaving, { fromServer: true, seq: null }));
  }

  /** Whether another room that this collection follows has the record. */
  #isElsewhere(record: Attributes): boolean {
    for (const sibling of this.#siblings) {
      const key = sibling.#subscription.key ?? sibling.#options.query;
      if (sibling !== this && key !== undefined && matches(record, key)) return true;
    }
    return false;
  }

  // Changes: the last one of each record counts; one `update` event for all.

  #apply(changes: Change[]): void {
    const latest = new Map<string, Attributes | null>(); // null: deleted
    let seq: number | null = null;
    for (const change of changes) {
      if ((change.method !== "upsert" && change.method !== "delete") || !isObject(change.data)) continue;
      const record = safeRecord(change.data);
      const id = this.#idOf(record);
      if (id === undefined) continue;
      const name = String(id);
      if (change.method === "delete" && change.key !== null && !this.#leaves(change.key, name, latest.get(name))) continue;
      latest.delete(name); // and at the end again: new records are added in the order of their last change
      latest.set(name, change.method === "upsert" ? record : null);
      seq = change.seq ?? seq;
    }
    if (latest.size === 0) return;
    const options = { fromServer: true, seq };
    const list = new Listed();
    const removed: BackboneModel[] = [];
    for (const [id, record] of latest) {
      if (record !== null) {
        this.#owned.add(id);
        this.#upsert(list, id, record, options);
      } else {
        this.#owned.delete(id);
        const model = this.#delete(id);
        if (model !== null) removed.push(model);
      }
    }
    if (removed.length === 0) {
      if (list.size > 0) this.#collection.set([...list], { ...options, remove: false });
    } else if (list.size === 0) {
      this.#collection.remove(removed, options);
    } else {
      // Both in one `update` event: what stays where it is, then what is new; what is missing is removed. (Backbone adds a
      // `sort` event of its own, as after every `set` that makes an unsorted collection longer or shorter.)
      const all = new Listed();
      for (const model of this.#collection.models) if (!removed.includes(model)) all.take(model, list);
      this.#collection.set([...all, ...list], { ...options, remove: true });
    }
    this.#finish(list);
    if (this.#options.destroy) {
      for (const model of removed) {
        model.trigger("destroy", model, this.#collection, options);
        this.#collection.trigger("destroy", model, this.#collection, options); // it hears the model no more
      }
    }
  }

  #upsert(list: Listed, id: string, row: Attributes, options: Options): void {
    const hidden = this.#records.hidden(this.#collection, id);
    if (hidden !== undefined) {
      this.#records.shadow(hidden).receive(hidden.parse(row, options));
      return;
    }
    let model = this.#collection.get(id);
    let attributes: Attributes | undefined;
    if (model !== undefined) {
      attributes = safeRecord(model.parse(row, options));
    } else {
      const made = this.#collection._prepareModel(row, { ...options, parse: true });
      if (made === false) return;
      model = this.#collection.get(this.#collection.modelId(made.attributes, made.idAttribute));
      if (model === undefined) {
        this.#records.made(made, row);
        list.add(made);
        return;
      }
      attributes = made.attributes; // `parse` has given it another id than the one on the wire
    }
    list.merge(model, this.#records.shadow(model).receive(attributes), model.attributes[model.idAttribute]);
  }

  /** The model to remove, if it is to be removed now. */
  #delete(id: string): BackboneModel | null {
    const hidden = this.#records.hidden(this.#collection, id);
    if (hidden !== undefined) this.#records.shadow(hidden).confirmed = null;
    const model = this.#collection.get(id);
    if (model === undefined) return null;
    const shadow = this.#records.shadow(model);
    shadow.confirmed = null;
    return shadow.pending ? null : model; // a pending write may bring it back: its answer decides
  }

  /** Whether a record that has left the channel `key` leaves the collection: it may have moved to another one that is shown here. */
  #leaves(key: Query, id: string, coming: Attributes | null | undefined): boolean {
    const model = this.#collection.get(id);
    const record = isObject(coming) ? coming : model === undefined ? {} : (this.#records.shadow(model).confirmed ?? model.attributes);
    return matches(record, key) || !this.#isElsewhere(record);
  }

  #finish(list: Listed): void {
    for (const [model, view] of list.merged()) dropUndefined(model, view);
  }

  /** A record's id by the collection's rule, else under the wire's name, which deletes always use. */
  #idOf(record: Attributes): unknown {
    return this.#collection.modelId(record) ?? record.id ?? undefined;
  }
}

/** The argument of `collection.set`, and which entry stands for which model. */
class Listed {
  readonly #merged = new Map<BackboneModel, Attributes>();
  readonly #items = new Map<BackboneModel, BackboneModel | Attributes>();

  get size(): number {
    return this.#items.size;
  }

  has(model: BackboneModel): boolean {
    return this.#items.has(model);
  }

  /** A new model. */
  add(model: BackboneModel): void {
    this.#items.set(model, model);
  }

  /** A model that is there and stays as it is. */
  keep(model: BackboneModel): void {
    this.#items.set(model, model);
  }

  /** A model that is there and gets new values; its id, present or not, is how `set` finds it. */
  merge(model: BackboneModel, view: Attributes, id: unknown): void {
    const values = { ...view, [model.idAttribute]: id };
    this.#merged.set(model, values);
    this.#items.set(model, values);
  }

  /** Moves a model's entry from another list, or keeps the model. */
  take(model: BackboneModel, from: Listed): void {
    this.#items.set(model, from.#items.get(model) ?? model);
    from.#items.delete(model);
  }

  merged(): Iterable<[BackboneModel, Attributes]> {
    return this.#merged;
  }

  [Symbol.iterator](): Iterator<BackboneModel | Attributes> {
    return this.#items.values();
  }
}
