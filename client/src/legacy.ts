/**
 * Names of older libraries for what Backsync does under its own: `bindBackend` (backbone.io) and `ioBind` (backbone.iobind).
 * Optional: nothing else knows of it.
 */

import { BacksyncError } from "./errors.js";
import type { LiveCallOptions } from "./backbone/install.js";
import type { LivePromise } from "./backbone/live.js";
import type { SyncListener } from "./backbone/install.js";
import type { BackboneCollection, BackboneLike, BackboneModel, Options } from "./backbone/types.js";
import { result } from "./backbone/types.js";
import { isObject, modelName } from "./protocol.js";

type LiveCollection = BackboneCollection & {
  url?: unknown;
  backend?: string | { name: string; channel?: string };
  live(options?: LiveCallOptions): LivePromise;
  syncBind(event: string, listener: SyncListener, context?: unknown): unknown;
  syncUnbind(event?: string, listener?: SyncListener, context?: unknown): unknown;
};
type Callback = (data: unknown) => void;
/** The socket that the old signatures allow as second argument is accepted and ignored. */
type BindArguments = [callback: Callback, context?: unknown] | [io: object, callback: Callback, context?: unknown];

interface OldBinding {
  event: string;
  callback: Callback;
  stop(): void;
}

/** Adds the old names to a Backbone that Backsync is installed in; returns what takes them out again. */
export function installLegacyNames(Backbone: BackboneLike): () => void {
  const model = Backbone.Model.prototype as Record<string, unknown>;
  const collection = Backbone.Collection.prototype as Record<string, unknown>;
  if (typeof collection.live !== "function") {
    throw new BacksyncError("usage", "installLegacyNames() needs a Backbone with Backsync in it. Call install(Backbone, connection) first.");
  }
  const bound = new WeakMap<object, OldBinding[]>();

  function bind(this: BackboneModel | LiveCollection, event: string, ...rest: BindArguments): unknown {
    const [callback, context] = (typeof rest[0] === "function" ? rest : rest.slice(1)) as [Callback, unknown];
    const source = "models" in this ? this : sourceOf(Backbone, this);
    const stops = Object.entries(wireEvents(event)).map(([wireEvent, concerns]) => {
      const listener: SyncListener = (data) => {
        if (concerns(this, data)) callback.call(context ?? this, data);
      };
      source.syncBind(wireEvent, listener);
      return () => source.syncUnbind(wireEvent, listener);
    });
    const bindings = bound.get(this) ?? [];
    bound.set(this, bindings);
    bindings.push({ event, callback, stop: () => stops.forEach((stop) => stop()) });
    return this;
  }

  function unbind(this: object, event?: string, ...rest: BindArguments | []): unknown {
    const callback = rest.find((argument) => typeof argument === "function");
    const keep: OldBinding[] = [];
    for (const binding of bound.get(this) ?? []) {
      if ((event !== undefined && binding.event !== event) || (callback !== undefined && binding.callback !== callback)) keep.push(binding);
      else binding.stop();
    }
    bound.set(this, keep);
    return this;
  }

  function unbindAll(this: object): unknown {
    return unbind.call(this);
  }

  const names = { ioBind: bind, ioUnbind: unbind, ioUnbindAll: unbindAll };
  Object.assign(model, names);
  Object.assign(collection, names, { bindBackend });
  return () => {
    for (const name of Object.keys(names)) {
      delete model[name];
      delete collection[name];
    }
    delete collection.bindBackend;
  };
}

/** `backend: "name"`, or `{name, channel}`, says what the url says elsewhere; the channel is the model's key. */
function bindBackend(this: LiveCollection): LivePromise {
  const { name, channel } = typeof this.backend === "string" ? { name: this.backend, channel: undefined } : (this.backend ?? {});
  if (name !== undefined && result(this, "url") === undefined) this.url = `/${name}`;
  const tell = (method: string, model: BackboneModel): void => {
    this.trigger("backend", method, model.toJSON());
    this.trigger(`backend:${method}`, model.toJSON());
  };
  this.on("update", (_: unknown, options: Options) => {
    if (options.fromServer !== true || options.snapshot === true) return;
    const { added, merged, removed } = options.changes as Record<string, BackboneModel[]>;
    added?.forEach((model) => tell("create", model));
    merged?.forEach((model) => tell("update", model));
    removed?.forEach((model) => tell("delete", model));
  });
  return this.live({
    ...(name === undefined ? {} : { name }),
    ...(channel === undefined ? {} : { query: { channel } }),
  });
}

/** A model hears through its collection; without one through a collection that nobody sees. */
function sourceOf(Backbone: BackboneLike, model: BackboneModel): LiveCollection {
  if (model.collection !== undefined) return model.collection as LiveCollection;
  const source = new (Backbone.Collection as unknown as new () => LiveCollection)();
  source.url = `/${modelName(String(result(model, "url")))}`;
  if (model.backsync !== undefined) source.backsync = model.backsync;
  return source;
}

type Concerns = (subject: BackboneModel | LiveCollection, data: unknown) => boolean;

/** The wire events that an old event name stands for, and whether one of them concerns this model or collection. */
function wireEvents(event: string): Record<string, Concerns> {
  const same: Concerns = (subject, data) => "models" in subject || idOf(subject, data) === subject.attributes[subject.idAttribute];
  const known = (subject: BackboneModel | LiveCollection, data: unknown): boolean =>
    "models" in subject && isObject(data) && subject.get(subject.modelId(data)) !== undefined;
  if (event === "create") return { upsert: (subject, data) => "models" in subject && !known(subject, data) };
  if (event === "update") return { upsert: (subject, data) => ("models" in subject ? known(subject, data) : same(subject, data)) };
  return { [event]: same };
}

function idOf(model: BackboneModel, data: unknown): unknown {
  return isObject(data) ? (data[model.idAttribute] ?? data.id) : undefined;
}
