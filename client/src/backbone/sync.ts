/** `Backbone.sync` over a connection: what is sent for each method, and how its answer comes back. Applies no pushes. */

import type { Call } from "../calls.js";
import type { Connection } from "../connection.js";
import { BacksyncError } from "../errors.js";
import { isObject, type Message, modelName } from "../protocol.js";
import type { Attributes } from "../shadow.js";
import type { Records, Write } from "./records.js";
import { type BackboneCollection, type BackboneModel, isCollection, type Options, result } from "./types.js";

/** What `fetch`, `save` and `destroy` return. Its rejection is handled already: the `error` event tells of it, too. */
export interface SyncPromise extends Promise<unknown> {
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
): SyncPromise {
  const message = toMessage(method, subject, options);
  const write = method === "read" || isCollection(subject) ? null : records.begin(method, subject, options);
  let resolve: (response: unknown) => void = () => {};
  let reject: (error: BacksyncError) => void = () => {};
  const promise = new Promise<unknown>((...settlers) => ([resolve, reject] = settlers)) as SyncPromise;
  promise.catch(() => {}); // the page need not listen: `error` says the same

  let call: Call | null = null;
  let over = false;
  const settle = (error: BacksyncError | null, response: unknown): void => {
    if (over) return;
    over = true;
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
    if (write?.destroyed === true) deleteToo(connection, records, subject as BackboneModel, write, message, options);
  };
  const fail = (error: BacksyncError): void => {
    const tell = (): void => options.error?.(error);
    if (write === null) tell();
    else records.fail(write, subject as BackboneModel, error, options, tell);
  };
  const send = (): void => {
    if (!over) call = connection.request(message, timeoutOf(options), settle);
  };
  promise.abort = () => {
    if (call !== null) call.abort();
    else queueMicrotask(() => settle(new BacksyncError("aborted", `${message.event} was aborted by the page.`), null));
  };

  if (write === null) {
    send();
  } else {
    const model = subject as BackboneModel;
    const creation = records.pendingCreation(model, write);
    if (creation === null) send();
    else creation.whenSettled(() => (creation.destroyed ? promise.abort() : sendWithId(model, message, send)));
    if (write.kind === "create") watchDestroy(model, write, () => call?.unsent === true && call.abort());
  }

  options.xhr = promise;
  subject.trigger("request", subject, promise, options);
  return promise;
}

/** The request of a method, taken now: with `wait: true` the attributes are the new ones only inside `sync`. */
function toMessage(method: string, subject: BackboneModel | BackboneCollection, options: Options): Message {
  const url = (options.url ?? result(subject, "url")) as unknown;
  if (typeof url !== "string" || url === "") throw new Error('A "url" property or function must be specified');
  const message: Message = { event: `${modelName(url)}:${WIRE_METHODS[method] ?? method}` };
  if (options.data !== undefined && options.data !== null) {
    message.data = options.data;
  } else if (method === "read" || method === "delete") {
    if (!isCollection(subject) && !subject.isNew()) message.data = identity(subject);
  } else {
    const attributes = (options.attrs ?? (subject as BackboneModel).toJSON(options)) as unknown;
    message.data = isObject(attributes) && !isCollection(subject) ? withIdentity(subject, attributes) : attributes;
    if (method === "patch" && isObject(attributes)) {
      const unset = Object.keys(attributes).filter((name) => attributes[name] === undefined); // JSON would lose them
      if (unset.length > 0) message.unset = unset;
    }
  }
  return message;
}

/** The id under the wire's name and under the model's own. */
function identity(model: BackboneModel): Attributes {
  const id = model.attributes[model.idAttribute];
  return model.idAttribute === "id" ? { id } : { id, [model.idAttribute]: id };
}

function withIdentity(model: BackboneModel, attributes: Attributes): Attributes {
  if (model.isNew()) return attributes;
  const missing = Object.entries(identity(model)).filter(([name]) => attributes[name] === undefined);
  return missing.length === 0 ? attributes : { ...attributes, ...Object.fromEntries(missing) };
}

/** The model got its id after the message was made. */
function sendWithId(model: BackboneModel, message: Message, send: () => void): void {
  if (isObject(message.data)) message.data = withIdentity(model, message.data);
  send();
}

function timeoutOf(options: Options): { timeout?: number } {
  return typeof options.timeout === "number" && options.timeout > 0 ? { timeout: options.timeout } : {};
}

/** Backbone does not tell `sync` when a model is destroyed that has no id yet, though the server may be giving it one. */
function watchDestroy(model: BackboneModel, write: Write, destroyed: () => void): void {
  const listener = (other: BackboneModel): void => {
    if (other !== model || !model.isNew()) return;
    write.destroyed = true;
    destroyed();
  };
  model.on("destroy", listener);
  write.whenSettled(() => model.off("destroy", listener));
}

/** The server has made a record whose model is destroyed already: it goes the same way, and is not shown until then. */
function deleteToo(
  connection: Connection,
  records: Records,
  model: BackboneModel,
  creation: Write,
  created: Message,
  options: Options,
): void {
  if (model.isNew()) return;
  const places = creation.places.map(({ collection }) => ({ collection, index: collection.length }));
  const write = records.begin("delete", model, {}, places);
  const message: Message = { event: created.event.replace(/:.*$/, ":delete"), data: identity(model) };
  connection.request(message, timeoutOf(options), (error) => {
    if (error === null) records.succeed(write, model, null, {}, () => {});
    else records.fail(write, model, error, options, () => model.trigger("error", model, error, options));
  });
}
