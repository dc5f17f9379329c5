/**
 * Finds the models of a collection: by the collection's id, by the wire's id, and by cid, each in a table of its own.
 * Backbone keeps ids and cids in one table, in which a record with the id `c1` takes the place of the model with that cid.
 */

import type { Attributes } from "../shadow.js";
import type { BackboneCollection, BackboneLike, BackboneModel, Options } from "./types.js";

interface Table {
  ids: Map<string, BackboneModel>;
  cids: Map<string, BackboneModel>;
  /** Only models whose id on the wire is not their id in the collection. */
  wires: Map<string, Set<BackboneModel>>;
  /** The id under which each model is kept; null: it has none. */
  keys: Map<BackboneModel, string | null>;
  /** The names under which models are in `wires`. */
  wired: Map<BackboneModel, string>;
  /** A model that `_removeModels` is about to look up, though it is out of the tables already. */
  leaving: BackboneModel | null;
}

const tables = new WeakMap<BackboneCollection, Table>();

/** The id by which the server knows a model, where the collection has another one for it. */
const wireIds = new WeakMap<BackboneModel, { id: unknown; isAttribute: boolean }>();

/** New values of a model that is in the collection already, given to `collection.set`. */
const aims = new WeakMap<object, BackboneModel>();

/** What ids are compared by, as on the server: 1 and "1" are the same. Undefined: no id. */
export function idName(id: unknown): string | undefined {
  return typeof id === "string" || typeof id === "number" ? String(id) : undefined;
}

/** The collection's id of these attributes. Without a prototype to ask, as of a `model` that is an arrow function, it is `id`. */
export function idIn(collection: BackboneCollection, attributes: Attributes, idAttribute?: string): unknown {
  const hasClass = (collection.model as { prototype?: unknown } | undefined)?.prototype !== undefined;
  return collection.modelId(attributes, idAttribute ?? (hasClass ? undefined : "id"));
}

/** The id by which the server knows the model. */
export function wireId(model: BackboneModel): unknown {
  const known = wireIds.get(model);
  if (known !== undefined && !known.isAttribute) return known.id;
  const own = model.attributes[model.idAttribute];
  return own === undefined || own === null ? model.attributes.id : own; // a new record may be given its id by the wire's name
}

/** Remembers by which id the server knows a model of the collection. */
export function knowWireId(collection: BackboneCollection, model: BackboneModel, id: unknown): void {
  const table = tableOf(collection);
  const isAttribute = idName(model.attributes[model.idAttribute]) === idName(id);
  const known = wireIds.get(model);
  if (isAttribute && table.keys.get(model) === idName(id)) {
    if (known === undefined) return;
    wireIds.delete(model);
  } else if (known === undefined || known.id !== id || known.isAttribute !== isAttribute) {
    wireIds.set(model, { id, isAttribute });
  }
  wire(table, model);
}

/** The models of the record with this id on the wire: one, unless the collection's ids tell apart what the server's do not. */
export function modelsOfRecord(collection: BackboneCollection, id: string): BackboneModel[] {
  const table = tableOf(collection);
  const own = table.ids.get(id);
  return [...(table.wires.get(id) ?? (own === undefined ? [] : [own]))].filter((model) => idName(wireId(model)) === id);
}

/** The model with this id in the collection; never one with such a cid. */
export function modelById(collection: BackboneCollection, id: unknown): BackboneModel | undefined {
  return id === undefined || id === null ? undefined : tableOf(collection).ids.get(String(id));
}

/** Whether this very model is in the collection, and not another one of the same record. */
export function holds(collection: BackboneCollection, model: BackboneModel): boolean {
  return tableOf(collection).keys.has(model);
}

/** Makes `collection.set` take `values` for this model's, whatever id they have or lack. */
export function aimed(values: Attributes, model: BackboneModel): Attributes {
  aims.set(values, model);
  return values;
}

/** Puts the lookup into a Backbone; returns what takes it out again. */
export function installLookup(Backbone: BackboneLike): () => void {
  const collections = Backbone.Collection.prototype as BackboneCollection;
  const Model = Backbone.Model as unknown as new () => BackboneModel;
  const { get, _reset, _addReference, _removeReference, _removeModels, _onModelEvent } = collections;
  const additions = {
    get(this: BackboneCollection, subject: unknown): BackboneModel | undefined {
      if (subject === null || subject === undefined) return undefined;
      const table = tableOf(this);
      if (typeof subject !== "object") return table.ids.get(String(subject)) ?? table.cids.get(String(subject));
      if (subject === table.leaving) {
        table.leaving = null;
        return subject as BackboneModel;
      }
      const model = aims.get(subject);
      if (model !== undefined && table.keys.has(model)) return model;
      const { cid } = subject as { cid?: string };
      if (subject instanceof Model) {
        return table.keys.has(subject) ? subject : modelById(this, idIn(this, subject.attributes, subject.idAttribute));
      }
      const id = idIn(this, subject as Attributes);
      // A record may have a field `cid`: only where it has no id is that taken for a model's.
      return id === undefined || id === null ? table.cids.get(String(cid)) : table.ids.get(String(id));
    },
    /** Ids such as `toString` must not find what every object inherits. */
    _reset(this: BackboneCollection): void {
      _reset.call(this);
      this._byId = Object.assign(Object.create(null) as Record<string, BackboneModel>, this._byId);
      tables.set(this, emptyTable());
    },
    _addReference(this: BackboneCollection, model: BackboneModel, options?: Options): void {
      _addReference.call(this, model, options);
      add(this, tableOf(this), model);
    },
    _removeReference(this: BackboneCollection, model: BackboneModel, options?: Options): void {
      forget(tableOf(this), model);
      _removeReference.call(this, model, options);
      model.off("all", _onModelEvent, this); // bound before this was installed
    },
    _removeModels(this: BackboneCollection, models: unknown[], options?: Options): unknown {
      let answer = _removeModels.call(this, [], options);
      const removed: unknown[] = [];
      for (const item of [...models]) {
        const model = this.get(item);
        if (model === undefined) continue;
        const table = tableOf(this);
        forget(table, model); // listeners of `remove` do not find it any more
        table.leaving = model;
        answer = _removeModels.call(this, [model], options);
        table.leaving = null;
        if (Array.isArray(answer)) removed.push(...answer);
      }
      return removed.length > 0 ? removed : answer;
    },
    _onModelEvent(this: BackboneCollection, event: string, model: unknown, ...details: unknown[]): void {
      if (event === "change" || event === "changeId") rekey(this, model as BackboneModel);
      _onModelEvent.call(this, event, model, ...details);
    },
  };
  Object.assign(collections, additions);
  return () => {
    Object.assign(collections, { get, _reset, _addReference, _removeReference, _removeModels, _onModelEvent });
  };
}

function emptyTable(): Table {
  return { ids: new Map(), cids: new Map(), wires: new Map(), keys: new Map(), wired: new Map(), leaving: null };
}

/** A collection that was filled before the lookup was installed gets its table when it is first needed. */
function tableOf(collection: BackboneCollection): Table {
  let table = tables.get(collection);
  if (table === undefined) {
    tables.set(collection, (table = emptyTable()));
    for (const model of collection.models) add(collection, table, model);
  }
  return table;
}

function add(collection: BackboneCollection, table: Table, model: BackboneModel): void {
  table.cids.set(model.cid, model);
  const id = idIn(collection, model.attributes, model.idAttribute);
  const key = id === undefined || id === null ? null : String(id);
  table.keys.set(model, key);
  if (key !== null) table.ids.set(key, model);
  wire(table, model);
}

function forget(table: Table, model: BackboneModel): void {
  const key = table.keys.get(model);
  table.keys.delete(model);
  if (typeof key === "string" && table.ids.get(key) === model) table.ids.delete(key);
  if (table.cids.get(model.cid) === model) table.cids.delete(model.cid);
  unwire(table, model);
}

/** The model's attributes have changed, and with them perhaps the id: it may be made of any of them. */
function rekey(collection: BackboneCollection, model: BackboneModel): void {
  const table = tableOf(collection);
  const old = table.keys.get(model);
  if (old === undefined) return;
  const id = idIn(collection, model.attributes, model.idAttribute);
  const key = id === undefined || id === null ? null : String(id);
  if (key !== old) {
    if (old !== null && table.ids.get(old) === model) table.ids.delete(old);
    table.keys.set(model, key);
    if (key !== null) table.ids.set(key, model);
  }
  wire(table, model);
}

/** Keeps a model by its id on the wire, too, if the collection has another one for it. */
function wire(table: Table, model: BackboneModel): void {
  const id = idName(wireId(model));
  const name = id === table.keys.get(model) ? undefined : id;
  if (table.wired.get(model) === name) return;
  unwire(table, model);
  if (name === undefined) return;
  table.wired.set(model, name);
  table.wires.set(name, (table.wires.get(name) ?? new Set()).add(model));
}

function unwire(table: Table, model: BackboneModel): void {
  const name = table.wired.get(model);
  const models = name === undefined ? undefined : table.wires.get(name);
  table.wired.delete(model);
  if (models?.delete(model) && models.size === 0) table.wires.delete(name as string);
}
