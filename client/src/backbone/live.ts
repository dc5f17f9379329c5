/**
 * Live collections: each keeps a Backbone collection equal to one or more channels of the server.
 * Knows nothing of how messages travel.
 */

import type { Connection } from "../connection.js";
import { BacksyncError, warnOfEnd } from "../errors.js";
import { guarded, type Host } from "../host.js";
import type { Order } from "../pages.js";
import { type Change, isObject, matches, type Query, safeRecord, type ServerRecord } from "../protocol.js";
import { type Attributes, copied, same } from "../shadow.js";
import type { Sink, Subscription } from "../subscriptions.js";
import { aimed, holds, idIn, idName, knowWireId, modelById, modelsOfRecord, wireId } from "./lookup.js";
import { dropUndefined, type Records, sort } from "./records.js";
import type { BackboneCollection, BackboneModel, Options } from "./types.js";

/** What `.live()` returns: resolves with the collection when it first equals the server's. */
export interface LivePromise<C = BackboneCollection> extends Promise<C> {
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
  /** The server's records have come. */
  #isFilled = false;
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

  /** Whether all records of its channel are here. */
  get isComplete(): boolean {
    return this.#isFilled && !this.#subscription.hasMore;
  }

  stop(): void {
    this.#subscription.stop();
    this.#options.ended(null);
    this.#leave();
    this.#reject(new BacksyncError("aborted", `The live ${this.#options.model} collection was stopped before its first records came.`));
  }

  failed(error: BacksyncError, over: boolean): void {
    if (over) {
      if (error.code !== "closed") this.#fill([], { fromServer: true, snapshot: true, seq: null }); // no longer to be seen
      this.#options.ended(error);
      this.#reject(error);
      warnOfEnd(this.#options.model, error);
      if (error.code === "closed" && !this.#isLast()) return; // one connection is closed, however many rooms it carried
    }
    this.#collection.trigger("error", this.#collection, error, { fromServer: true });
  }

  snapshot(records: ServerRecord[], seq: number): void {
    this.#fill(records, { fromServer: true, snapshot: true, seq });
    this.#isFilled = true;
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

  #fill(records: ServerRecord[], options: Options): void {
    const rows = records.flatMap((record) => this.#row(record) ?? []);
    try {
      this.#replace(rows, options);
    } catch (error) {
      // A listener has thrown in the middle of Backbone's work, which leaves the rest undone.
      this.#host.report(error);
      guarded(this.#host, () => {
        const list = this.#list(rows, options);
        this.#collection.reset([...list], options);
        this.#finish(list);
      });
    }
  }

  #replace(rows: Row[], options: Options): void {
    const list = this.#list(rows, options);
    this.#owned.clear();
    for (const { name } of rows) this.#owned.add(name);
    this.#collection.set([...list], { ...options, remove: true });
    this.#finish(list);
  }

  #list(rows: Row[], options: Options): Listed {
    const list = new Listed();
    const before = [...this.#collection.models];
    for (const model of before) if (!this.#covers(String(wireId(model)))) list.keep(model);
    for (const row of rows) this.#upsert(list, row, options);
    for (const model of before) {
      if (list.has(model)) continue;
      const shadow = this.#records.shadow(model);
      if (shadow.confirmed !== undefined) shadow.confirmed = null;
      if (shadow.pending) list.keep(model);
    }
    const names = new Set(rows.map(({ name }) => name));
    for (const [name, model] of this.#records.hiddenIn(this.#collection)) {
      if (!names.has(name) && this.#covers(name)) this.#records.shadow(model).confirmed = null;
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
      const id = String(wireId(model));
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
    const latest = new Map<string, Row | null>(); // null: deleted
    let seq: number | null = null;
    for (const change of changes) {
      if (change.method !== "upsert" && change.method !== "delete") continue;
      const row = this.#row(change.data);
      if (row === null) continue;
      const { name } = row;
      if (change.method === "delete" && change.key !== null && !this.#leaves(change.key, name, latest.get(name))) continue;
      latest.delete(name); // and at the end again: new records are added in the order of their last change
      latest.set(name, change.method === "upsert" ? row : null);
      seq = change.seq ?? seq;
    }
    if (latest.size === 0) return;
    const options = { fromServer: true, seq };
    const list = new Listed();
    const removed: BackboneModel[] = [];
    for (const [name, row] of latest) {
      if (row !== null) {
        this.#owned.add(name);
        this.#upsert(list, row, options);
      } else {
        this.#owned.delete(name);
        removed.push(...this.#delete(name));
      }
    }
    list.leaveOutShown();
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

  #upsert(list: Listed, { name, id, record }: Row, options: Options): void {
    const hidden = this.#records.hidden(this.#collection, name);
    const models = modelsOfRecord(this.#collection, name);
    if (hidden !== undefined) {
      this.#records.shadow(hidden).receive(this.#records.withId(hidden, hidden.parse(copied(record), options), id));
      if (models.length === 0) return;
    }
    const row = copied(record); // the page's `parse` may change it, and other collections get it, too
    let [model] = models;
    let attributes: Attributes | undefined;
    if (model !== undefined && models.length === 1) {
      attributes = this.#records.withId(model, safeRecord(model.parse(row, options)), id);
    } else {
      const made = this.#records.make(this.#collection, row, id, options);
      if (made === false) return;
      const own = idIn(this.#collection, made.attributes, made.idAttribute);
      model = modelById(this.#collection, own);
      if (model === undefined) {
        this.#records.made(made, row);
        list.add(made, own, id);
        return;
      }
      attributes = made.attributes; // another record of the wire's that the collection takes for the same one
    }
    list.merge(model, this.#records.shadow(model).receive(attributes), id);
  }

  /** The models to remove, if they are to be removed now. */
  #delete(name: string): BackboneModel[] {
    const hidden = this.#records.hidden(this.#collection, name);
    if (hidden !== undefined) this.#records.shadow(hidden).confirmed = null;
    return modelsOfRecord(this.#collection, name).filter((model) => {
      const shadow = this.#records.shadow(model);
      shadow.confirmed = null;
      return !shadow.pending; // a pending write may bring it back: its answer decides
    });
  }

  /** Whether a record that has left the channel `key` leaves the collection: it may have moved to another one that is shown here. */
  #leaves(key: Query, name: string, coming: Row | null | undefined): boolean {
    const [model] = modelsOfRecord(this.#collection, name);
    const record = coming?.record ?? (model === undefined ? {} : (this.#records.shadow(model).confirmed ?? model.attributes));
    return matches(record, key) || !this.#isElsewhere(record);
  }

  /** After `set`: what it cannot do. */
  #finish(list: Listed): void {
    for (const [model, view] of list.merged()) dropUndefined(model, view);
    for (const [model, id] of list.ids()) if (holds(this.#collection, model)) knowWireId(this.#collection, model, id);
    // What another collection has changed in a model that both have, `set` has found unchanged here.
    if (list.isShared(this.#collection)) sort(this.#collection, { fromServer: true });
  }

  /** The server's record and its id; null: it has none. */
  #row(data: unknown): Row | null {
    if (!isObject(data)) return null;
    const record = safeRecord(data);
    const id = idName(record.id) === undefined ? idIn(this.#collection, record) : record.id;
    const name = idName(id);
    return name === undefined ? null : { name, id, record };
  }
}

/** A record of the server's, by its id on the wire. */
interface Row {
  name: string;
  id: unknown;
  record: Attributes;
}

/** The argument of `collection.set`, and which entry stands for which model. */
class Listed {
  readonly #merged = new Map<BackboneModel, Attributes>();
  readonly #items = new Map<BackboneModel, BackboneModel | Attributes>();
  readonly #ids = new Map<BackboneModel, unknown>();
  readonly #added = new Map<string, BackboneModel>();

  get size(): number {
    return this.#items.size;
  }

  has(model: BackboneModel): boolean {
    return this.#items.has(model);
  }

  /** A new model; `own` is its id in the collection. The last one of a record counts. */
  add(model: BackboneModel, own: unknown, id: unknown): void {
    const name = String(own ?? model.cid);
    const other = this.#added.get(name);
    if (other !== undefined) this.#items.delete(other);
    this.#added.set(name, model);
    this.#items.set(model, model);
    this.#ids.set(model, id);
  }

  /** A model that is there and stays as it is. */
  keep(model: BackboneModel): void {
    this.#items.set(model, model);
  }

  /** A model that is there and gets new values. */
  merge(model: BackboneModel, view: Attributes, id: unknown): void {
    const values = aimed({ ...view }, model);
    this.#merged.set(model, values);
    this.#items.set(model, values);
    this.#ids.set(model, id);
  }

  /** Takes out the models that show their new values already: an `update` would have the page draw for nothing. */
  leaveOutShown(): void {
    for (const [model, values] of this.#merged) {
      if (!Object.keys(values).every((name) => same(values[name], model.attributes[name]))) continue;
      this.#merged.delete(model);
      this.#items.delete(model);
    }
  }

  /** Moves a model's entry from another list, or keeps the model. */
  take(model: BackboneModel, from: Listed): void {
    this.#items.set(model, from.#items.get(model) ?? model);
    from.#items.delete(model);
  }

  merged(): Iterable<[BackboneModel, Attributes]> {
    return this.#merged;
  }

  /** The models of records, with the ids of these on the wire. */
  ids(): Iterable<[BackboneModel, unknown]> {
    return this.#ids;
  }

  /** Whether it has models whose first collection is another one. */
  isShared(collection: BackboneCollection): boolean {
    for (const model of this.#ids.keys()) if (model.collection !== collection) return true;
    return false;
  }

  [Symbol.iterator](): Iterator<BackboneModel | Attributes> {
    return this.#items.values();
  }
}
