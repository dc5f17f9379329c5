/** The parts of Backbone that the adapter touches, as structural types: any Backbone of version 1.2 to 1.6 fits. */

import type { Connection } from "../connection.js";
import type { Attributes } from "../shadow.js";

/** Options of a Backbone call; users add their own. */
export type Options = Record<string, any>;

export interface BackboneEvents {
  on(event: string, callback: (...details: never[]) => void, context?: unknown): unknown;
  off(event?: string | null, callback?: ((...details: never[]) => void) | null, context?: unknown): unknown;
  trigger(event: string, ...details: unknown[]): unknown;
  /** The listeners by event. */
  _events?: Record<string, { length: number } | undefined> | undefined;
}

interface Synced {
  /** `true`: synced over the default connection; a connection: over that one; `false`: not at all. */
  backsync?: boolean | Connection;
  /** Whether failed optimistic writes are taken back. */
  rollback?: boolean;
}

export interface BackboneModel extends BackboneEvents, Synced {
  cid: string;
  id?: unknown;
  idAttribute: string;
  attributes: Attributes;
  collection?: BackboneCollection;
  parse(response: unknown, options?: Options): Attributes;
  set(attributes: Attributes, options?: Options): unknown;
  unset(name: string, options?: Options): unknown;
  toJSON(options?: Options): Attributes;
  isNew(): boolean;
  hasChanged(): boolean;
  previousAttributes(): Attributes;
}

export interface BackboneCollection extends BackboneEvents, Synced {
  length: number;
  models: BackboneModel[];
  comparator?: unknown;
  get(id: unknown): BackboneModel | undefined;
  has(model: unknown): boolean;
  add(models: unknown, options?: Options): unknown;
  remove(models: unknown, options?: Options): unknown;
  set(models: unknown, options?: Options): unknown;
  indexOf(model: unknown): number;
  modelId(attributes: Attributes, idAttribute?: string): unknown;
  parse(response: unknown, options?: Options): unknown;
  reset(models: unknown, options?: Options): unknown;
  sort(options?: Options): unknown;
  /** Makes a model of a plain record as `set` does; not documented, but the same since Backbone 0.9. */
  _prepareModel(attributes: unknown, options?: Options): BackboneModel | false;
  create(attributes: unknown, options?: Options): unknown;
  /** A class, or a function that makes a model of a plain record. */
  model?: unknown;
  // What Backbone keeps to itself, the same in all versions that the adapter takes.
  _byId: Record<string, BackboneModel>;
  _reset(): void;
  _addReference(model: BackboneModel, options?: Options): void;
  _removeReference(model: BackboneModel, options?: Options): void;
  _removeModels(models: unknown[], options?: Options): unknown;
  _onModelEvent(event: string, ...details: unknown[]): void;
}

export type SyncFunction = (method: string, model: BackboneModel | BackboneCollection, options?: Options) => unknown;

export interface BackboneLike {
  /** @types/backbone does not know it. */
  VERSION?: string;
  sync: unknown;
  $?: { ajax?: unknown } | undefined;
    Model: { prototype: any };
    Collection: { prototype: any };
}

export function isCollection(subject: BackboneModel | BackboneCollection): subject is BackboneCollection {
  return "models" in subject;
}

/** `url` and `urlRoot` may be values or functions, as everywhere in Backbone. */
export function result(subject: object, property: string): unknown {
  const value = (subject as Record<string, unknown>)[property];
  return typeof value === "function" ? (value as () => unknown).call(subject) : value;
}
