/** Puts Backsync into a Backbone: `sync`, `live`, `syncBind`. Decides what is synced over which connection. */

import { Connection } from "../connection.js";
import { BacksyncError } from "../errors.js";
import { type Change, canonical, modelName, type Query } from "../protocol.js";
import type { Subscription } from "../subscriptions.js";
import { guarded, type Host } from "../host.js";
import type { Order } from "../pages.js";
import { Binding, type LivePromise } from "./live.js";
import { installLookup } from "./lookup.js";
import { Records } from "./records.js";
import { syncOver } from "./sync.js";
import {
  type BackboneCollection,
  type BackboneLike,
  type BackboneModel,
  isCollection,
  type Options,
  result,
  type SyncFunction,
} from "./types.js";

export interface InstallOptions {
  /** True: every model and collection is synced over the socket unless it says `backsync: false`. Default false. */
  all?: boolean;
}

export interface LiveCallOptions {
  /** For a keyed model its key fields; else what the server's read handler gets. */
  query?: Query;
  /** Records of a page, 1 to 1 000: only the first page comes, `more()` of what is returned opens the next one. */
  page?: number;
  /** The order of the pages: a field, `-field` for descending, or several. The collection's comparator should say the same. */
  order?: Order;
  /** Instead of the default connection, or of the collection's `backsync`. */
  connection?: Connection;
  /** Whether writes that the server refuses are taken back. Default true. */
  rollback?: boolean;
  /** Whether a record that the server deletes also fires `destroy`. Default false. */
  destroy?: boolean;
  /** The server's model. Default: the first path segment of the collection's url. */
  name?: string;
}

/** Gets a change's data (a record; `{id}` for a delete; anything for an event of your own) and its options. */
export type SyncListener = (data: unknown, options: { fromServer: true; seq: number | null }) => void;

export interface Installed {
  /** What now is `Backbone.sync`; also usable as the `sync` of a single class or instance. */
  sync: SyncFunction;
  live(collection: BackboneCollection, options?: LiveCallOptions): LivePromise;
  /** Writes of a model without an answer; of a collection: its records with such writes, destroyed ones included. */
  pending(subject: BackboneModel | BackboneCollection): number;
  /** Takes all out again; live collections stop. */
  uninstall(): void;
}

interface Bound {
  event: string;
  listener: SyncListener;
  context: unknown;
}

/** All that there is about one collection. */
interface CollectionState {
  bindings: Map<string, Binding>;
  bound: Bound[];
  /** Brings events to `bound` while no binding does. */
  bare: Subscription | null;
  /** Listeners wait for the next `live()`: without its query, or against a refusal, there is nothing to ask for. */
  isHushed: boolean;
}

const installations = new WeakMap<object, Installed>();

/** Installs into `Backbone`, once; `connection` is what models use that name none of their own. */
export function install(Backbone: BackboneLike, connection: Connection | (() => Connection), options: InstallOptions = {}): Installed {
  if (typeof Backbone?.Model !== "function" || typeof Backbone.Collection !== "function") {
    throw new BacksyncError("usage", `install() got ${Backbone === undefined ? "undefined" : typeof Backbone} instead of Backbone. Load Backbone first, then install(Backbone, connection).`);
  }
  if (/^(0|1\.[01])(\.|$)/.test(Backbone.VERSION ?? "")) {
    throw new BacksyncError("usage", `Backbone ${Backbone.VERSION} is too old for Backsync, which needs 1.2 or later. Load a later one, best 1.6, or none: backsync.js brings 1.6.1.`);
  }
  const before = installations.get(Backbone);
  if (before !== undefined) return before;
  const installed = new Installation(Backbone, typeof connection === "function" ? connection : () => connection, options);
  const handle: Installed = {
    sync: installed.sync,
    live: (collection, liveOptions) => installed.live(collection, liveOptions),
    pending: (subject) => installed.pending(subject),
    uninstall() {
      installed.uninstall();
      installations.delete(Backbone);
    },
  };
  installations.set(Backbone, handle);
  return handle;
}

class Installation {
  readonly sync: SyncFunction;
  readonly #connection: () => Connection;
  readonly #options: InstallOptions;
  readonly #records = new Records();
  readonly #states = new Map<BackboneCollection, CollectionState>();
  readonly #restore: () => void;
  /** Whether the `save`, `destroy` or `fetch` that runs was given an `error` callback; null: none runs. */
  #hasCallback: boolean | null = null;

  constructor(Backbone: BackboneLike, connection: () => Connection, options: InstallOptions) {
    this.#connection = connection;
    this.#options = options;
    const installation = this; // in the functions below `this` is Backbone's
    const original = Backbone.sync as SyncFunction;
    this.sync = function sync(this: unknown, method, subject, syncOptions = {}) {
      const over = installation.#connectionOf(subject);
      if (over === null) return overRest(Backbone, () => original.call(this, method, subject, syncOptions));
      const hasCallback = installation.#hasCallback ?? typeof syncOptions.error === "function";
      return syncOver(over, installation.#records, method, subject, syncOptions, hasCallback);
    };
    Backbone.sync = this.sync;

    const collections = Backbone.Collection.prototype as Record<string, unknown> & BackboneCollection;
    const uninstallLookup = installLookup(Backbone);
    const { create } = collections;
    const additions = {
      create(this: BackboneCollection, attributes: unknown, createOptions?: Options): unknown {
        const model = this._prepareModel(attributes, { ...createOptions });
        if (model === false) return false;
        installation.#records.identify(model, model.attributes.id); // the page may give it its id by the wire's name
        return installation.#records.creating(model, () => create.call(this, model, createOptions));
      },
      live(this: BackboneCollection, liveOptions?: LiveCallOptions): LivePromise {
        return installation.live(this, liveOptions);
      },
      syncBind(this: BackboneCollection, event: string, listener: SyncListener, context?: unknown): BackboneCollection {
        installation.bind(this, event, listener, context);
        return this;
      },
      syncUnbind(this: BackboneCollection, event?: string, listener?: SyncListener, context?: unknown): BackboneCollection {
        installation.unbind(this, event, listener, context);
        return this;
      },
    };
    const models = Backbone.Model.prototype as Record<string, unknown>;
    const { save, destroy, fetch } = models as Record<string, (...args: unknown[]) => unknown>;
    const fetchAll = collections.fetch as (...args: unknown[]) => unknown;
    /** Backbone hides an `error` callback of the page in one of its own, which `sync` gets: it is looked for before. */
    const noting = (method: ((...args: unknown[]) => unknown) | undefined) =>
      function (this: unknown, ...args: unknown[]): unknown {
        const before = installation.#hasCallback;
        installation.#hasCallback = args.some((options) => typeof (options as Options | null | undefined)?.error === "function");
        try {
          return method?.apply(this, args);
        } finally {
          installation.#hasCallback = before;
        }
      };
    Object.assign(models, { save: noting(save), destroy: noting(destroy), fetch: noting(fetch) });
    collections.fetch = noting(fetchAll);
    function syncPending(this: BackboneModel | BackboneCollection): number {
      return installation.pending(this);
    }
    models.syncPending = syncPending;
    Object.assign(collections, additions, { syncPending });
    this.#restore = () => {
      Backbone.sync = original;
      uninstallLookup();
      collections.create = create;
      for (const name of ["live", "syncBind", "syncUnbind", "syncPending"]) delete collections[name];
      delete models.syncPending;
      Object.assign(models, { save, destroy, fetch });
      collections.fetch = fetchAll;
    };
  }

  live(collection: BackboneCollection, options: LiveCallOptions = {}): LivePromise {
    const known = ["query", "connection", "rollback", "destroy", "name", "page", "order"];
    for (const name of Object.keys(options)) {
      if (!known.includes(name)) throw new BacksyncError("usage", `live() does not know the option "${name}". It knows ${known.join(", ")}.`);
    }
    const state = this.#state(collection);
    const channel = canonical(options.query);
    const present = state.bindings.get(channel);
    if (present !== undefined) return present.promise;
    const model = options.name ?? this.#nameOf(collection);
    if (options.connection !== undefined) collection.backsync = options.connection;
    else if (typeof collection.backsync !== "object") collection.backsync = true;
    const connection = this.#connectionOf(collection) as Connection;
    const name = options.name ?? this.#records.told.get(collection)?.name;
    this.#records.told.set(collection, { rollback: options.rollback ?? collection.rollback ?? true, name });
    this.#records.live.set(collection, {
      rooms: () => [...state.bindings.values()].map((binding) => binding.key),
      query: () => (state.bindings.size === 1 ? [...state.bindings.values()][0]?.query : undefined),
      isComplete: () => [...state.bindings.values()].every((binding) => binding.isComplete),
    });
    const ended = (error: BacksyncError | null): void => {
      state.isHushed = error !== null || options.query !== undefined;
      if (state.bindings.get(channel) === binding) state.bindings.delete(channel);
      if (state.bindings.size === 0) this.#records.live.delete(collection);
      this.#arrange(collection, state);
    };
    const binding: Binding = new Binding(collection, connection, this.#records, siblings(state), {
      model,
      query: options.query,
      page: options.page,
      order: options.order,
      destroy: options.destroy ?? false,
      heard: (change) => this.#tell(connection.host, collection, state, change),
      ended,
    });
    state.bindings.set(channel, binding);
    this.#arrange(collection, state);
    return binding.promise;
  }

  pending(subject: BackboneModel | BackboneCollection): number {
    return this.#records.pending(subject);
  }

  bind(collection: BackboneCollection, event: string, listener: SyncListener, context: unknown): void {
    if (typeof listener !== "function") {
      throw new BacksyncError("usage", `syncBind("${event}", …) got ${typeof listener} instead of a function.`);
    }
    const state = this.#state(collection);
    state.bound.push({ event, listener, context });
    this.#arrange(collection, state);
  }

  unbind(collection: BackboneCollection, event?: string, listener?: SyncListener, context?: unknown): void {
    const state = this.#state(collection);
    state.bound = state.bound.filter(
      (bound) =>
        (event !== undefined && bound.event !== event) ||
        (listener !== undefined && bound.listener !== listener) ||
        (context !== undefined && bound.context !== context),
    );
    this.#arrange(collection, state);
  }

  uninstall(): void {
    for (const state of this.#states.values()) {
      state.bare?.stop();
      state.bound = [];
      for (const binding of [...state.bindings.values()]) binding.stop();
    }
    this.#states.clear();
    this.#restore();
  }

  #state(collection: BackboneCollection): CollectionState {
    let state = this.#states.get(collection);
    if (state === undefined) this.#states.set(collection, (state = { bindings: new Map(), bound: [], bare: null, isHushed: false }));
    return state;
  }

  /** Listeners need a subscription: a live one does; without one, one that brings no records. */
  #arrange(collection: BackboneCollection, state: CollectionState): void {
    const needed = state.bound.length > 0 && state.bindings.size === 0 && !state.isHushed;
    if (needed && state.bare === null) {
      const connection = this.#connectionOf(collection) ?? this.#connection();
      state.bare = connection.subscribe(this.#nameOf(collection), { snapshot: false }, {
        snapshot: () => {},
        changes: (changes) => {
          for (const change of changes) this.#tell(connection.host, collection, state, change);
        },
        failed: (error, over) => {
          if (over) state.bare = null;
          if (error.code === "invalid" || error.code === "unknown_model") {
            state.isHushed = true; // which room of a keyed model is meant, or which model, is said by live()
            console.warn(`backsync: syncBind hears nothing until live() has said of what: ${error.message}`);
            return;
          }
          collection.trigger("error", collection, error, { fromServer: true });
        },
      });
    } else if (!needed && state.bare !== null) {
      state.bare.stop();
      state.bare = null;
    }
    if (state.bound.length === 0 && state.bindings.size === 0) this.#states.delete(collection);
  }

  #tell(host: Host, collection: BackboneCollection, state: CollectionState, change: Change): void {
    for (const { event, listener, context } of [...state.bound]) {
      if (event !== change.method) continue;
      guarded(host, () => listener.call(context ?? collection, change.data, { fromServer: true, seq: change.seq }));
    }
  }

  #nameOf(collection: BackboneCollection): string {
    const name = this.#records.modelName(collection);
    if (name !== undefined) return name;
    const url = result(collection, "url");
    if (typeof url !== "string" || url === "") throw new Error('A "url" property or function must be specified');
    return modelName(url);
  }

  /** The connection that a model is synced over; null: none, it keeps Backbone's REST. */
  #connectionOf(subject: BackboneModel | BackboneCollection): Connection | null {
    const own = subject.backsync ?? (isCollection(subject) ? undefined : subject.collection?.backsync) ?? this.#options.all ?? false;
    if (own === false) return null;
    return own === true ? this.#connection() : own;
  }
}

/** Backbone's own sync needs jQuery, or what does its work, and does not say so. */
function overRest(Backbone: BackboneLike, sync: () => unknown): unknown {
  try {
    return sync();
  } catch (error) {
    if (!(error instanceof TypeError) || typeof Backbone.$?.ajax === "function") throw error;
    const message = `Backbone's REST sync failed (${error.message}): there is no jQuery. Add backsync: true, or load jQuery; after collection.live() neither is needed.`;
    throw new BacksyncError("usage", message, error);
  }
}

function siblings(state: CollectionState): Iterable<Binding> {
  return { [Symbol.iterator]: () => state.bindings.values() };
}
