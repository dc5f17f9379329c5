/**
 * What the server knows of each model, and the local writes that wait for its answer: optimistic until refused.
 * Knows nothing of connections: it is told what was answered.
 */

import { localName, recordName } from "../coalesce.js";
import { BacksyncError } from "../errors.js";
import { isObject, matches, type Query, safeRecord } from "../protocol.js";
import { type Attributes, copied, type PendingWrite, Shadow } from "../shadow.js";
import { aimed, holds, idIn, idName, knowWireId, modelById, modelsOfRecord, wireId } from "./lookup.js";
import { type BackboneCollection, type BackboneModel, isCollection, type Options, result } from "./types.js";

/** What the records need to know of a live collection. */
export interface LiveOptions {
  /** The key fields of each channel that it follows; null for one that has none, or is not known yet. */
  rooms(): (Query | null)[];
  /** The query of the one channel that it follows; undefined: it has none, or there are several. */
  query(): Query | undefined;
  /** Whether all that the server has is here: what is not is new. */
  isComplete(): boolean;
}

/** Where a model is, or was before it was destroyed; -1: about to be added. */
export interface Place {
  collection: BackboneCollection;
  index: number;
}

/** A local write between its sending and its answer. */
export class Write implements PendingWrite {
  readonly kind: PendingWrite["kind"];
  readonly fields: Attributes;
  /** False with `wait: true`: nothing was shown, nothing is taken back. */
  readonly optimistic: boolean;
  /** Where the model was when the write began. */
  readonly places: Place[];
  /** Whether it is to be taken back if it is refused, as of its beginning: the collection may be live no more by then. */
  readonly rollsBack: boolean;
  /** The model was destroyed before the server had answered its creation. */
  destroyed = false;

  constructor(kind: PendingWrite["kind"], fields: Attributes, optimistic: boolean, places: Place[], rollsBack: boolean) {
    this.kind = kind;
    this.fields = fields;
    this.optimistic = optimistic;
    this.places = places;
    this.rollsBack = rollsBack;
  }
}

export class Records {
  readonly #shadows = new WeakMap<BackboneModel, Shadow>();
  readonly #names = new WeakMap<BackboneModel, string>();
  /** Models with writes that have no answer, and where they are or were. */
  readonly #unanswered = new Map<BackboneModel, Set<BackboneCollection>>();
  /** Optimistically destroyed models by id: the server's changes must not bring them back before it has answered. */
  readonly #hidden = new WeakMap<BackboneCollection, Map<string, BackboneModel>>();
  readonly live = new Map<BackboneCollection, LiveOptions>();
  /** What `live()` was told, also after it has ended: writes of the collection's models still follow it. */
  readonly told = new WeakMap<BackboneCollection, { rollback: boolean; name: string | undefined }>();
  /** Models that `collection.create` is saving. */
  readonly #created = new WeakSet<BackboneModel>();
  /** Models and collections whose id attribute is another name of ours for the wire's `id`: the server does not know it. */
  readonly #renamed = new WeakSet<BackboneModel | BackboneCollection>();

  shadow(model: BackboneModel): Shadow {
    let shadow = this.#shadows.get(model);
    if (shadow === undefined) this.#shadows.set(model, (shadow = new Shadow()));
    return shadow;
  }

  /** Whether the server has said nothing of it yet. */
  isUnknown(model: BackboneModel): boolean {
    return this.shadow(model).confirmed === undefined;
  }

  /** What the outbox calls the record: by its id, or by a name of our own as long as it has none. */
  name(model: BackboneModel): string {
    const own = recordName(wireId(model));
    if (own !== null) return own;
    let name = this.#names.get(model);
    if (name === undefined) this.#names.set(model, (name = localName()));
    return name;
  }

  /** Writes of a model without an answer; of a collection: records with such writes, destroyed ones included. */
  pending(subject: BackboneModel | BackboneCollection): number {
    if (!isCollection(subject)) return this.shadow(subject).writes.size;
    let count = 0;
    for (const [model, places] of this.#unanswered) if (places.has(subject) || holds(subject, model)) count += 1;
    return count;
  }

  /** An optimistically destroyed model by its id on the wire. */
  hidden(collection: BackboneCollection, id: string): BackboneModel | undefined {
    return this.#hidden.get(collection)?.get(id);
  }

  /** The optimistically destroyed models of a collection, by id. */
  hiddenIn(collection: BackboneCollection): Iterable<[string, BackboneModel]> {
    return this.#hidden.get(collection) ?? [];
  }

  /** A model was made of a server's record: what the record said is confirmed, the model's own defaults are not. */
  made(model: BackboneModel, record: Attributes): void {
    const defaults = (result(model, "defaults") ?? {}) as Attributes;
    const known = Object.entries(model.attributes).filter(([name]) => Object.hasOwn(record, name) || !Object.hasOwn(defaults, name));
    this.shadow(model).confirmed = Object.fromEntries(known);
  }

  // Ids: the wire's `id` is the model's, whatever the page calls it.

  /** The server's record with the id attribute of the model that it is for: the model's own id, or the wire's if it has none. */
  withId(model: BackboneModel, record: Attributes, wire: unknown): Attributes {
    const { idAttribute, collection } = model;
    if (idAttribute === "id" || (record[idAttribute] ?? null) !== null || idName(wire) === undefined) return record;
    this.#renamed.add(model);
    if (collection !== undefined) this.#renamed.add(collection);
    return { ...record, [idAttribute]: model.attributes[idAttribute] ?? wire };
  }

  /** Whether the server's records have no field with the name of the model's id attribute. */
  isRenamed(model: BackboneModel): boolean {
    return this.#renamed.has(model) || (model.collection !== undefined && this.#renamed.has(model.collection));
  }

  /** The server knows the model by this id. */
  known(model: BackboneModel, wire: unknown): void {
    if (idName(wire) === undefined) return;
    for (const collection of this.#places(model)) if (holds(collection, model)) knowWireId(collection, model, wire);
  }

  /** The server's model of a collection, or of the collection that a model is in, if `live()` was told one. */
  modelName(subject: BackboneModel | BackboneCollection): string | undefined {
    const collection = isCollection(subject) ? subject : subject.collection;
    return collection === undefined ? undefined : this.told.get(collection)?.name;
  }

  /** Runs `create` of a collection: the server has no such record yet, even if the page has given it an id. */
  creating<T>(model: BackboneModel, create: () => T): T {
    this.#created.add(model);
    try {
      return create();
    } finally {
      this.#created.delete(model);
    }
  }

  // Rooms: a collection that follows one channel of a keyed model has only records of that.

  /** The key fields that a new record of the model's collection has if it does not say so itself. */
  room(model: BackboneModel): Query {
    const rooms = model.collection === undefined ? [] : (this.live.get(model.collection)?.rooms() ?? []);
    return (rooms.length === 1 ? rooms[0] : null) ?? {};
  }

  /** Where a new record of the model's collection gets the key fields from that are not known yet. */
  query(model: BackboneModel): Query | undefined {
    return model.collection === undefined ? undefined : this.live.get(model.collection)?.query();
  }

  /** Takes a record that was made for a room that a collection does not follow out of it. */
  place(model: BackboneModel): void {
    const record = this.shadow(model).confirmed;
    if (record === null || record === undefined) return;
    for (const collection of this.#places(model)) {
      const rooms = this.live.get(collection)?.rooms() ?? [];
      if (rooms.length === 0 || rooms.some((room) => room === null || matches(record, room))) continue;
      if (holds(collection, model)) collection.remove(model, { fromServer: true, seq: null });
    }
  }

  // Writes: begin, then succeed or fail, once.

  begin(method: string, model: BackboneModel, options: Options, places: Place[] = this.#placesOf(model)): Write {
    const shadow = this.shadow(model);
    const isCreation = method === "create" || (method !== "delete" && shadow.confirmed === undefined && this.#isNew(model));
    const kind = method === "delete" ? "delete" : isCreation ? "create" : "write";
    const optimistic = options.wait !== true;
    let fields: Attributes = {};
    if (kind === "delete" && optimistic) {
      for (const { collection } of places) this.#hide(collection, model);
    } else if (kind !== "delete" && optimistic) {
      // A model that the server has not told us about: the best guess is what it was before its last `set`.
      if (shadow.confirmed === undefined && kind === "write") {
        shadow.confirmed = { ...(model.hasChanged() ? model.previousAttributes() : model.attributes) };
      }
      fields = method === "patch" ? copied((options.attrs ?? {}) as Attributes) : shadow.differences(model.attributes);
    }
    const write = new Write(kind, fields, optimistic, places, this.#rollsBack(model, places.map(({ collection }) => collection)));
    shadow.begin(write);
    const collections = this.#unanswered.get(model) ?? new Set();
    for (const { collection } of places) collections.add(collection);
    this.#unanswered.set(model, collections);
    if (kind !== "delete" && optimistic) this.#sort(model, options);
    return write;
  }

  /** The model, which has no id yet, was destroyed: what is unanswered will not be shown. Null if nothing is, or it was said before. */
  destroyedUnborn(model: BackboneModel): Write | null {
    const writes = [...this.shadow(model).writes] as Write[];
    const [creation] = writes;
    if (creation === undefined || creation.destroyed) return null;
    for (const write of writes) write.destroyed = true;
    return creation;
  }

  /** The server has accepted; `done` runs Backbone's own success with what it may set. */
  succeed(write: Write, model: BackboneModel, response: unknown, options: Options, done: (response: unknown) => void): void {
    const shadow = this.shadow(model);
    const wire = isObject(response) && write.kind !== "delete" ? response.id : undefined;
    let settled = false;
    const take = (parsed: unknown): unknown => {
      settled = true;
      const record = isObject(parsed) ? this.withId(model, safeRecord(parsed), wire) : null;
      const gone = shadow.succeed(write, record);
      if (record === null) return parsed;
      for (const name of gone) if (name !== model.idAttribute) model.unset(name, { fromServer: true });
      return shadow.withoutPending(write.kind === "create" ? this.#absorbTwin(model, record, wire) : record);
    };
    try {
      if (write.kind === "delete") done(response);
      else if (options.parse === false) done(take(response));
      else withParse(model, take, () => done(response));
    } finally {
      if (!settled) shadow.succeed(write, null);
      this.known(model, wire);
      if (write.destroyed) {
        // With `wait: true` Backbone has added it only now.
        for (const { collection } of write.places) if (holds(collection, model)) collection.remove(model, { fromServer: true });
      }
      this.#show(write, model);
      this.#settled(model);
      if (write.kind !== "delete") this.#sort(model, options);
    }
  }

  /** The server has refused; `done` runs Backbone's own error, while model and collection still show the attempt. */
  fail(write: Write, model: BackboneModel, error: BacksyncError, options: Options, done: () => void): void {
    const shadow = this.shadow(model);
    const collections = write.kind === "delete" ? write.places.map((place) => place.collection) : this.#places(model);
    try {
      done();
    } finally {
      const back = shadow.fail(write, model.attributes);
      this.#show(write, model);
      // A model that was destroyed after this write is nowhere now, but may come back.
      const where = [...collections, ...write.places.map((place) => place.collection)];
      const rollback = write.optimistic && (write.rollsBack || this.#rollsBack(model, where));
      const serverSide = { rollback: true, fromServer: true, error };
      const current = error.code === "conflict" && isObject(error.details) ? error.details.current : undefined;
      const news = isObject(current) ? shadow.receive(this.withId(model, safeRecord(model.parse(copied(current), serverSide)), current.id)) : {};
      // Whatever was written, the server has no such record: the model goes, and keeps what the page may want to save.
      const unknown = shadow.confirmed === null || (rollback && write.kind === "create" && shadow.confirmed === undefined);
      if (unknown && !shadow.pending) {
        for (const collection of collections) if (holds(collection, model)) collection.remove(model, serverSide);
      } else if (rollback) this.#takeBack(write, model, { ...back, ...news }, collections, serverSide);
      if (rollback && !write.destroyed) {
        model.trigger("rollback", model, error, options);
        for (const collection of collections) {
          if (!holds(collection, model)) collection.trigger("rollback", model, error, options); // it hears the model no more
        }
      }
      this.#settled(model);
    }
  }

  // Reads: what comes confirms, and pending fields keep their local value.

  fetched(subject: BackboneModel | BackboneCollection, response: unknown, options: Options, done: (response: unknown) => void): void {
    if (isCollection(subject)) this.#fetchedAll(subject, response, options, done);
    else this.#fetchedOne(subject, response, options, done);
  }

  #fetchedOne(model: BackboneModel, response: unknown, options: Options, done: (response: unknown) => void): void {
    const wire = isObject(response) ? response.id : undefined;
    const take = (parsed: unknown): unknown => {
      if (!isObject(parsed)) return parsed;
      const shadow = this.shadow(model);
      const record = this.withId(model, safeRecord(parsed), wire);
      shadow.confirmed = record;
      return shadow.withoutPending(record);
    };
    if (options.parse === false) done(take(response));
    else withParse(model, take, () => done(response));
    this.known(model, wire);
  }

  #fetchedAll(collection: BackboneCollection, response: unknown, options: Options, done: (response: unknown) => void): void {
    const rows: Attributes[] = [];
    const take = (parsed: unknown): unknown => {
      if (!Array.isArray(parsed)) return isObject(parsed) ? safeRecord(parsed) : parsed;
      return (parsed as unknown[]).flatMap((row) => {
        if (!isObject(row)) return [row];
        const record = safeRecord(row);
        const id = idName(record.id);
        const hidden = id === undefined ? undefined : this.hidden(collection, id);
        if (hidden !== undefined) {
          this.shadow(hidden).receive(this.withId(hidden, hidden.parse(copied(record), options), record.id));
          return [];
        }
        rows.push(record);
        const model = this.find(collection, record);
        if (model !== undefined) return [aimed({ ...this.shadow(model).withoutPending(record) }, model)];
        const made = isOfPlainIds(collection) ? record : this.make(collection, record, record.id, options);
        return made === false ? [] : [made];
      });
    };
    if (options.parse === false) done(take(response));
    else withParse(collection, take, () => done(response));
    for (const row of rows) {
      const model = this.find(collection, row);
      if (model === undefined) continue;
      knowWireId(collection, model, row.id ?? wireId(model));
      if (!this.shadow(model).pending) this.made(model, row);
    }
  }

  /** The model of a record as the server names it, or by the collection's rule. */
  find(collection: BackboneCollection, record: Attributes): BackboneModel | undefined {
    const name = idName(record.id);
    const models = name === undefined ? [] : modelsOfRecord(collection, name);
    return models.length === 1 ? models[0] : modelById(collection, idIn(collection, record));
  }

  /** A new model of a record, as `set` would make it, with an id; false: it is not valid. */
  make(collection: BackboneCollection, record: Attributes, wire: unknown, options: Options): BackboneModel | false {
    const model = collection._prepareModel(record, { ...options, parse: options.parse !== false });
    if (model === false) return false;
    this.identify(model, wire);
    return model;
  }

  /** Gives a model that is in no collection yet the id of its record. */
  identify(model: BackboneModel, wire: unknown): void {
    if (this.withId(model, model.attributes, wire) !== model.attributes) model.set({ [model.idAttribute]: wire }, { silent: true });
  }

  #settled(model: BackboneModel): void {
    if (!this.shadow(model).pending) this.#unanswered.delete(model);
  }

  #placesOf(model: BackboneModel): Place[] {
    return this.#places(model).map((collection) => ({ collection, index: collection.indexOf(model) }));
  }

  /** The collections that a model is in and that an answer may concern. */
  #places(model: BackboneModel): BackboneCollection[] {
    const places = [...this.live.keys()].filter((collection) => holds(collection, model));
    if (model.collection !== undefined && !places.includes(model.collection)) places.push(model.collection);
    return places;
  }

  #rollsBack(model: BackboneModel, collections: BackboneCollection[]): boolean {
    if (model.rollback !== undefined) return model.rollback;
    return collections.some((collection) => this.told.get(collection)?.rollback ?? collection.rollback ?? false);
  }

  /** Whether the server cannot have a record that it has not sent: the page creates it, or shows all that there is. */
  #isNew(model: BackboneModel): boolean {
    if (this.#created.has(model)) return true;
    return model.collection !== undefined && holds(model.collection, model) && (this.live.get(model.collection)?.isComplete() ?? false);
  }

  /** `collection.set` sorts by what it has changed itself; a model that was changed elsewhere has to be put in its place, too. */
  #sort(model: BackboneModel, options: Options): void {
    for (const collection of this.live.keys()) if (holds(collection, model)) sort(collection, { ...options });
  }

  #takeBack(
    write: Write,
    model: BackboneModel,
    back: Attributes,
    collections: BackboneCollection[],
    options: Options,
  ): void {
    const shadow = this.shadow(model);
    let view = back;
    if (write.kind === "delete") {
      for (const { collection, index } of write.places) {
        if (index >= 0) collection.add(model, hasOrder(collection) ? options : { ...options, at: index });
      }
      view = shadow.withoutPending(copied(shadow.confirmed ?? {}));
    }
    if (Object.keys(view).length > 0) assign(model, view, options);
    for (const collection of collections) if (holds(collection, model)) sort(collection, options);
  }

  /**
   * A push has made a model of the record that this model is creating: one of them has to go, and the page holds this
   * one. What the push said is at least as new as the answer.
   */
  #absorbTwin(model: BackboneModel, record: Attributes, wire: unknown): Attributes {
    const isNew = model.isNew();
    const name = idName(wire);
    let merged = record;
    for (const collection of this.#places(model)) {
      if (!isNew && !holds(collection, model)) continue; // the page's model of the record is the one that is there
      const twins = new Set(name === undefined ? [] : modelsOfRecord(collection, name));
      const twin = modelById(collection, idIn(collection, record, model.idAttribute));
      if (twin !== undefined) twins.add(twin);
      twins.delete(model);
      for (const other of twins) {
        if (isNew) merged = this.shadow(model).absorb(this.shadow(other), merged);
        collection.remove(other, { fromServer: true });
      }
    }
    return merged;
  }

  #hide(collection: BackboneCollection, model: BackboneModel): void {
    const hidden = this.#hidden.get(collection) ?? new Map<string, BackboneModel>();
    this.#hidden.set(collection, hidden.set(String(wireId(model)), model));
  }

  #show(write: Write, model: BackboneModel): void {
    if (write.kind !== "delete") return;
    for (const { collection } of write.places) {
      const hidden = this.#hidden.get(collection);
      for (const [id, other] of hidden ?? []) if (other === model) hidden?.delete(id);
    }
  }
}

/** Sets `view`, where undefined means that the field is to go, with one round of change events. */
export function assign(model: BackboneModel, view: Attributes, options: Options): void {
  model.set(view, options);
  dropUndefined(model, view);
}

/** Fields are set to undefined first, so that their change is an event like others, and then taken out without one. */
export function dropUndefined(model: BackboneModel, view: Attributes): void {
  for (const [name, value] of Object.entries(view)) {
    if (value === undefined && model.attributes[name] === undefined) delete model.attributes[name];
  }
}

function hasOrder(collection: BackboneCollection): boolean {
  return collection.comparator !== undefined && collection.comparator !== null && collection.comparator !== false;
}

/** Whether all models of a collection have their id where the wire has it. */
function isOfPlainIds(collection: BackboneCollection): boolean {
  return (collection.model as { prototype?: { idAttribute?: string } } | undefined)?.prototype?.idAttribute === "id";
}

/** Sorts a collection that is out of order. */
export function sort(collection: BackboneCollection, options: Options): void {
  if (!hasOrder(collection)) return;
  const before = [...collection.models];
  collection.sort({ ...options, silent: true });
  if (collection.models.some((model, index) => model !== before[index])) collection.trigger("sort", collection, options);
}

/**
 * Runs `action` with `change` applied to what the next `parse` of `subject` returns. Backbone parses and sets in one
 * step of its own; this is the only place to stand between the two, and only once, so that listeners see the real one.
 */
export function withParse(subject: BackboneModel | BackboneCollection, change: (parsed: unknown) => unknown, action: () => void): void {
  const target = subject as { parse: (response: unknown, options?: Options) => unknown };
  const own = Object.getOwnPropertyDescriptor(target, "parse");
  const parse = target.parse;
  let standing = true;
  const restore = (): void => {
    if (!standing) return;
    standing = false;
    if (own === undefined) delete (target as { parse?: unknown }).parse;
    else Object.defineProperty(target, "parse", own);
  };
  target.parse = (response, options) => {
    restore();
    return change(parse.call(subject, response, options));
  };
  try {
    action();
  } finally {
    restore();
  }
}
