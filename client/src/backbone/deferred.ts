/** What code written for jQuery expects of the result of `fetch`, `save` and `destroy`, on an ordinary promise. */

type Callback = (result: any) => void;
type Callbacks = (Callback | Callback[] | null | undefined)[];

/** The part of jQuery's promises that pages use, and that `$.when` of jQuery 1 and 2 asks for. */
export interface Deferred {
  /** Calls back with the response. */
  done(...callbacks: Callbacks): this;
  /** Calls back with the error. */
  fail(...callbacks: Callbacks): this;
  /** Calls back with the response or the error. */
  always(...callbacks: Callbacks): this;
  /** Calls nothing back: there is no progress. */
  progress(...callbacks: Callbacks): this;
  promise(): this;
  state(): "pending" | "resolved" | "rejected";
}

/** Adds jQuery's methods to a promise. */
export function withDeferred<T extends Promise<unknown>>(promise: T): T & Deferred {
  let state: ReturnType<Deferred["state"]> = "pending";
  const look = (onDone?: Callback, onFail?: Callback): void =>
    void Promise.prototype.then.call(promise, onDone, onFail ?? (() => {})); // not a use of the promise that looks at a refusal
  look(() => (state = "resolved"), () => (state = "rejected"));
  const each = (callbacks: Callbacks, add: (callback: Callback) => void): T & Deferred => {
    for (const callback of callbacks.flat()) if (typeof callback === "function") add((value) => void callback.call(promise, value)); // its result is not awaited
    return deferred;
  };
  const deferred = Object.assign(promise, {
    done: (...callbacks: Callbacks) => each(callbacks, (callback) => look(callback)),
    fail: (...callbacks: Callbacks) => each(callbacks, (callback) => void promise.then(undefined, callback)),
    always: (...callbacks: Callbacks) => each(callbacks, (callback) => void promise.then(callback, callback)),
    progress: () => deferred,
    promise: () => deferred,
    state: () => state,
  }) as T & Deferred;
  return deferred;
}
