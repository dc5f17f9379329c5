/**
 * Names of older libraries for what Backsync does under its own: `backend` (backbone.io) and `ioBind` (backbone.iobind).
 * Optional: nothing else knows of it.
 */

import { BacksyncError } from "./errors.js";
import type { LiveCallOptions } from "./backbone/install.js";
import type { LivePromise } from "./backbone/live.js";
import { idName, modelsOfRecord } from "./backbone/lookup.js";
import type { SyncListener } from "./backbone/install.js";
import type { BackboneCollection, BackboneLike, BackboneModel, Options } from "./backbone/types.js";
import { isCollection, result } from "./backbone/types.js";
import { isObject, modelName } from "./protocol.js";
import { copied, same } from "./shadow.js";

/** The server's model, and with `channel` the value of its key field of that name. */
type Backend = string | { name: string; channel?: string };

type LiveCollection = BackboneCollection & {
  url?: unknown;
  backend?: Backend;
  live(options?: LiveCallOptions): LivePromise;
  syncBind(event: string, listener: SyncListener, context?: unknown): unknown;
  syncUnbind(event?: string, listener?: SyncListener, context?: unknown): unknown;
};
type LegacyModel = BackboneModel & { backend?: Backend };
type Subject = LegacyModel | LiveCollection;
type Callback = (data: unknown) => void;
/** The socket that the old signatures allow as second argument is accepted and ignored. */
type BindArguments = [callback: Callback, context?: unknown] | [io: object, callback: Callback, context?: unknown];
type Method = (this: Subject, ...args: any[]) => unknown;

/** One of the server's events on one object, and who is called. */
interface OldBinding {
  callbacks: { callback: Callback; context: unknown }[];
  stop(): void;
}

/** Backbone fires these by itself: fired once more they would reach listeners that expect something else. */
const OF_BACKBONE = new Set(["all", "add", "remove", "update", "reset", "sort", "change", "destroy", "request", "sync", "error", "invalid"]);

/** Adds the old names to a Backbone that Backsync is installed in; returns what takes them out again. */
export function installLegacyNames(Backbone: BackboneLike): () => void {
  if (typeof Backbone.Collection.prototype.live !== "function") {
    throw new BacksyncError("usage", "installLegacyNames() needs a Backbone with Backsync in it. Call install(Backbone, connection) first.");
  }
  const io = ioNames(Backbone);
  const backend = backendNames(Backbone);
  const restore = [
    replace(Backbone.Model.prototype, { ...io(Backbone.Model.prototype), ...backend.model }),
    replace(Backbone.Collection.prototype, { ...io(Backbone.Collection.prototype), ...backend.collection }),
    replace(Backbone, { io: { connect() {} } }), // Backsync connects by itself
  ];
  return () => restore.forEach((undo) => undo());
}

/** Sets properties; returns what puts the old ones back. */
function replace(target: object, properties: Record<string, unknown>): () => void {
  const before = Object.keys(properties).map((name) => [name, Object.getOwnPropertyDescriptor(target, name)] as const);
  Object.assign(target, properties);
  return () => {
    for (const [name, property] of before) {
      if (property === undefined) delete (target as Record<string, unknown>)[name];
      else Object.defineProperty(target, name, property);
    }
  };
}

/** backbone.iobind: its callbacks are called, the event is fired on the object, too, and `off` ends a binding. */
function ioNames(Backbone: BackboneLike): (prototype: any) => Record<string, Method> {
  const bound = new WeakMap<object, Map<string, OldBinding>>();

  function listen(subject: Subject, event: string): OldBinding {
    const source = isCollection(subject) ? (subject as LiveCollection) : sourceOf(Backbone, subject);
    const binding: OldBinding = { callbacks: [], stop: () => stops.forEach((stop) => stop()) };
    const stops = Object.entries(wireEvents(event)).map(([wireEvent, concerns]) => {
      const listener: SyncListener = (data) => {
        if (!concerns(subject, data)) return;
        for (const { callback, context } of [...binding.callbacks]) callback.call(context, data);
        if (!OF_BACKBONE.has(event)) subject.trigger(event, data);
      };
      source.syncBind(wireEvent, listener);
      return () => source.syncUnbind(wireEvent, listener);
    });
    return binding;
  }

  function ioBind(this: Subject, event: string, ...rest: BindArguments): unknown {
    const [callback, context = this] = (typeof rest[0] === "function" ? rest : rest.slice(1)) as [Callback, unknown];
    const bindings = bound.get(this) ?? new Map<string, OldBinding>();
    bound.set(this, bindings);
    const binding = bindings.get(event) ?? listen(this, event);
    bindings.set(event, binding);
    binding.callbacks.push({ callback, context });
    return this;
  }

  function end(subject: Subject, event: unknown, callback: unknown, context: unknown): void {
    const names = (event ?? null) === null ? null : String(event).split(/\s+/);
    const bindings = bound.get(subject);
    for (const [name, binding] of [...(bindings ?? [])]) {
      if (names !== null && !names.includes(name)) continue;
      binding.callbacks = binding.callbacks.filter(
        (other) => (callback !== undefined && callback !== null && other.callback !== callback) || (context !== undefined && context !== null && other.context !== context),
      );
      if (binding.callbacks.length > 0) continue;
      binding.stop();
      bindings?.delete(name);
    }
  }

  function ioUnbind(this: Subject, event?: string, ...rest: BindArguments | []): unknown {
    end(this, event, rest.find((argument) => typeof argument === "function"), null);
    return this;
  }

  const ending = (off: Method): Method =>
    function (event?: unknown, callback?: unknown, context?: unknown) {
      if (bound.has(this) && !isObject(event)) end(this, event, callback, context);
      return off.call(this, event, callback, context);
    };

  return (prototype) => ({
    ioBind,
    ioUnbind,
    ioUnbindAll(this: Subject): unknown {
      return ioUnbind.call(this);
    },
    off: ending(prototype.off),
    unbind: ending(prototype.unbind),
  });
}

/** backbone.io: `backend` on a class, an instance or in a collection's options says what the url says elsewhere. */
function backendNames(Backbone: BackboneLike): { model: Record<string, unknown>; collection: Record<string, unknown> } {
  const live = new WeakSet<object>(); // `bindBackend` was called
  const heard = new WeakSet<object>();

  /** Fires `backend` events of what others do. */
  const tell = (subject: Subject, method: string, data: unknown): void => {
    subject.trigger("backend", method, data);
    subject.trigger(`backend:${method}`, data);
  };

  /** Hears of a backend by a collection that nobody sees. */
  const follow = (subject: Subject, backend: Backend): void => {
    const { name, channel } = parts(backend);
    const source = new (Backbone.Collection as unknown as new () => LiveCollection)();
    source.url = `/${name}`;
    const { backsync } = subject;
    if (typeof backsync === "object") source.backsync = backsync;
    source.syncBind("upsert", (data) => {
      if (!isObject(data)) return;
      const known = modelOf(subject, data);
      if (known === undefined && !isCollection(subject)) return;
      if (known !== undefined && Object.keys(data).every((field) => same(known.attributes[field], data[field]))) return; // an own write
      if (!isCollection(subject)) subject.set(subject.parse(copied(data)), { fromServer: true });
      tell(subject, known === undefined ? "create" : "update", data);
    });
    source.syncBind("delete", (data) => {
      const known = modelOf(subject, data);
      if (known !== undefined) tell(subject, "delete", isCollection(subject) ? known.toJSON() : data);
    });
    if (channel !== undefined) source.live({ query: { channel } });
  };

  /** Writes of what has a backend go to it, without a url and without `backsync: true`. */
  const syncing = (original: Method): Method =>
    function (method: string, subject: Subject, options: Options = {}) {
      const owner = this.backend === undefined && !isCollection(this) ? (this.collection as LiveCollection | undefined) : this;
      if (owner?.backend !== undefined) {
        owner.backsync ??= true;
        options.url ??= `/${parts(owner.backend).name}`;
      }
      return original.call(this, method, subject, options);
    };

  /** The first form of its events: `bind("backend:create", …)` without `bindBackend()`. */
  const listening = (original: Method): Method =>
    function (...args: any[]) {
      const answer = original.apply(this, args);
      const { backend } = this;
      const names = isObject(args[0]) ? Object.keys(args[0]).join(" ") : String(args[0]);
      if (backend === undefined || heard.has(this) || !/(^|\s)backend(:|\s|$)/.test(names)) return answer;
      heard.add(this);
      queueMicrotask(() => {
        if (!live.has(this)) follow(this, backend); // else `bindBackend` tells of them
      });
      return answer;
    };

  function bindCollection(this: LiveCollection): LivePromise {
    const { name, channel } = this.backend === undefined ? { name: undefined, channel: undefined } : parts(this.backend);
    if (name !== undefined && result(this, "url") === undefined) this.url = `/${name}`;
    if (!live.has(this)) {
      live.add(this);
      this.on("update", (_: unknown, { fromServer, snapshot, changes }: Options) => {
        if (fromServer !== true || snapshot === true || changes === undefined) return;
        const { added, merged, removed } = changes as Record<string, BackboneModel[]>;
        added?.forEach((model) => tell(this, "create", model.toJSON()));
        merged?.forEach((model) => tell(this, "update", model.toJSON()));
        removed?.forEach((model) => tell(this, "delete", model.toJSON()));
      });
    }
    return this.live({ ...(name === undefined ? {} : { name }), ...(channel === undefined ? {} : { query: { channel } }) });
  }

  /** The model follows the server's record. */
  function bindModel(this: LegacyModel): unknown {
    const backend = this.backend ?? (this.collection as LiveCollection | undefined)?.backend;
    if (backend === undefined) throw new BacksyncError("usage", 'bindBackend() of a model without a backend. Say for example backend: "messages" on its class.');
    if (!live.has(this)) follow(this, backend);
    live.add(this);
    return this;
  }

  const [model, collection] = [Backbone.Model.prototype, Backbone.Collection.prototype];
  const { preinitialize } = collection;
  const both = (prototype: any): Record<string, unknown> => ({
    sync: syncing(prototype.sync),
    on: listening(prototype.on),
    bind: listening(prototype.bind),
  });
  return {
    model: { ...both(model), bindBackend: bindModel },
    collection: {
      ...both(collection),
      bindBackend: bindCollection,
      preinitialize(this: LiveCollection, ...args: [unknown?, Options?]): unknown {
        if (args[1]?.backend !== undefined) this.backend = args[1].backend as Backend;
        return (preinitialize as Method | undefined)?.apply(this, args);
      },
    },
  };
}

function parts(backend: Backend): { name: string; channel: string | undefined } {
  return typeof backend === "string" ? { name: backend, channel: undefined } : { name: backend.name, channel: backend.channel };
}

/** The model of a record: the one in the collection, or the subject itself. */
function modelOf(subject: Subject, data: unknown): BackboneModel | undefined {
  if (!isObject(data)) return undefined;
  if (!isCollection(subject)) return idOf(subject, data) === subject.attributes[subject.idAttribute] ? subject : undefined;
  const name = idName(data.id);
  return name === undefined ? undefined : modelsOfRecord(subject, name)[0];
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
  const known = (subject: BackboneModel | LiveCollection, data: unknown): boolean => "models" in subject && modelOf(subject, data) !== undefined;
  if (event === "create") return { upsert: (subject, data) => "models" in subject && !known(subject, data) };
  if (event === "update") return { upsert: (subject, data) => ("models" in subject ? known(subject, data) : same(subject, data)) };
  return { [event]: same };
}

function idOf(model: BackboneModel, data: unknown): unknown {
  return isObject(data) ? (data[model.idAttribute] ?? data.id) : undefined;
}
