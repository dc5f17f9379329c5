/** `Backbone.sync` over a connection: what is sent for each method, and how its answer comes back. Applies no pushes. */

import type { Call } from "../calls.js";
import type { Connection } from "../connection.js";
import { BacksyncError } from "../errors.js";
import { isObject, type Message, modelName } from "../protocol.js";
import type { Attributes } from "../shadow.js";
import { warnOfRefusal, WritePromise } from "../refusals.js";
import { type Deferred, withDeferred } from "./deferred.js";
import type { Records, Write } from "./records.js";
import { wireId } from "./lookup.js";
import { type BackboneCollection, type BackboneModel, isCollection, type Options, result } from "./types.js";

/** What `fetch`, `save` and `destroy` return. Its rejection is handled already: the `error` event tells of it, too. */
export interface SyncPromise extends Promise<unknown>, Deferred {
  /** Gives up: `error` is called with code `aborted`. The server may have done its work already. */
  abort(): void;
}

const WIRE_METHODS: Record<string, string> = { create: "upsert", update: "upsert", patch: "patch", delete: "delete", read: "read" };

export function syncOver(
  connection: Connection,
  records: Records,
  method: string,
  subject: BackboneModel | BackboneCollection,
  options: Options,
  hasCallback: boolean,
): SyncPromise {
  const message = toMessage(records, method, subject, options);
  const isNew = (method === "create" || method === "update") && !isCollection(subject) && records.isUnknown(subject);
  if (isNew && isObject(message.data)) message.data = { ...records.room(subject), ...message.data };
  const query = isNew ? records.query(subject) : undefined;
  const write = method === "read" || isCollection(subject) ? null : records.begin(method, subject, options);
  let resolve: (response: unknown) => void = () => {};
  let reject: (error: BacksyncError) => void = () => {};
  const answer = WritePromise.make<unknown>((...settlers) => ([resolve, reject] = settlers));
  const promise = withDeferred(answer) as Promise<unknown> as SyncPromise;

  let stopWatching: (() => void) | null = null;
  let over = false;
  const settle = (error: BacksyncError | null, response: unknown): void => {
    if (over) return;
    over = true;
    stopWatching?.();
    try {
      if (error === null) succeed(response);
      else fail(error);
    } finally {
      if (error === null) resolve(response);
      else reject(error);
    }
  };
  const succeed = (response: unknown): void => {
    const success = (answer: unknown): void => options.success?.(answer);
    if (write === null) records.fetched(subject, response, options, success);
    else records.succeed(write, subject as BackboneModel, response, options, success);
    if (isNew) records.place(subject);
  };
  const fail = (error: BacksyncError): void => {
    const tell = (): void => options.error?.(error);
    // Where its events arrive.
    const places = [subject, ...(write === null ? collectionOf(subject) : write.places.map(({ collection }) => collection))];
    warnOfRefusal(connection.host, message.event, error, () => answer.isTaken || hasCallback || places.some(isListenedTo));
    if (write === null) tell();
    else records.fail(write, subject as BackboneModel, error, options, tell);
  };
  let call: Call | null = null;
  promise.abort = () => call?.abort();
  if (write === null) {
    call = connection.request(message, timeoutOf(options), settle);
  } else {
    const model = subject as BackboneModel;
    const shadow = records.shadow(model);
    const own = isObject(message.data) ? shadow.touched(message.data) : [];
    const where = { record: records.name(model), identity: () => identity(records, model), own, before: shadow.confirmed, query };
    call = connection.request(message, { ...timeoutOf(options), ...where }, settle);
    if (write.kind === "create") stopWatching = watchDestroy(connection, records, model, message, options);
  }

  options.xhr = promise;
  subject.trigger("request", subject, promise, options);
  return promise;
}

/** The request of a method, taken now: with `wait: true` the attributes are the new ones only inside `sync`. */
function toMessage(records: Records, method: string, subject: BackboneModel | BackboneCollection, options: Options): Message {
  const named = (options.url ?? null) === null ? records.modelName(subject) : undefined;
  const url = (options.url ?? (named === undefined ? result(subject, "url") : "")) as unknown;
  if (named === undefined && (typeof url !== "string" || url === "")) throw new Error('A "url" property or function must be specified');
  const message: Message = { event: `${named ?? modelName(url as string)}:${WIRE_METHODS[method] ?? method}` };
  if (options.data !== undefined && options.data !== null) {
    message.data = options.data;
  } else if (method === "read" || method === "delete") {
    if (!isCollection(subject) && !subject.isNew()) message.data = identity(records, subject);
  } else {
    const attributes = (options.attrs ?? (subject as BackboneModel).toJSON(options)) as unknown;
    message.data = isObject(attributes) && !isCollection(subject) ? withIdentity(records, subject, attributes) : attributes;
    if (method === "patch" && isObject(attributes)) {
      const unset = Object.keys(attributes).filter((name) => attributes[name] === undefined); // JSON would lose them
      if (unset.length > 0) message.unset = unset;
    }
  }
  return message;
}

/** The id under the wire's name and under the model's own, unless the server does not know that. */
function identity(records: Records, model: BackboneModel): Attributes {
  const { idAttribute } = model;
  const id = wireId(model);
  return idAttribute === "id" || records.isRenamed(model) ? { id } : { id, [idAttribute]: model.attributes[idAttribute] };
}

function withIdentity(records: Records, model: BackboneModel, attributes: Attributes): Attributes {
  const { idAttribute } = model;
  if (model.isNew()) return attributes;
  if (idAttribute === "id") {
    const isKnown = attributes.id !== undefined && wireId(model) === model.attributes.id;
    return isKnown ? attributes : { ...attributes, ...identity(records, model) };
  }
  const { [idAttribute]: own, ...others } = attributes;
  const named = own === undefined || records.isRenamed(model) ? {} : { [idAttribute]: own };
  return { ...others, ...identity(records, model), ...named };
}

function collectionOf(subject: BackboneModel | BackboneCollection): BackboneCollection[] {
  return isCollection(subject) || !subject.collection ? [] : [subject.collection];
}

/** Whether the page listens to the events of refused requests. */
function isListenedTo({ _events }: BackboneModel | BackboneCollection): boolean {
  return ["error", "rollback"].some((name) => (_events?.[name]?.length ?? 0) > 0);
}

function timeoutOf(options: Options): { timeout?: number } {
  return typeof options.timeout === "number" && options.timeout > 0 ? { timeout: options.timeout } : {};
}

/**
 * Backbone does not tell `sync` when a model is destroyed that has no id yet, though the server may be giving it one: the
 * record goes the same way, and is not shown until then. A creation that has not left never does.
 */
function watchDestroy(connection: Connection, records: Records, model: BackboneModel, created: Message, options: Options): () => void {
  const listener = (other: BackboneModel): void => {
    if (other !== model || !model.isNew()) return;
    const creation = records.destroyedUnborn(model);
    if (creation === null) return;
    let write: Write | null = null;
    const message: Message = { event: created.event.replace(/:.*$/, ":delete"), data: {} };
    const identified = (): Attributes => {
      const places = creation.places.map(({ collection }) => ({ collection, index: collection.length }));
      write = records.begin("delete", model, {}, places);
      return identity(records, model);
    };
    if (wireId(model) !== undefined) message.data = identified(); // only Backbone does not know its id
    connection.request(message, { ...timeoutOf(options), record: records.name(model), identity: identified }, (error) => {
      if (write === null) return; // there never was such a record
      if (error === null) records.succeed(write, model, null, {}, () => {});
      else records.fail(write, model, error, options, () => model.trigger("error", model, error, options));
    });
  };
  model.on("destroy", listener);
  return () => model.off("destroy", listener);
}
