/** Makes refused requests visible in the console where the page does not look at them. Knows nothing of records. */

import type { BacksyncError } from "./errors.js";
import type { Host } from "./host.js";

/** The promise of a request. It may be left alone: its rejection is never reported as unhandled. */
export class WritePromise<T> extends Promise<T> {
  #isTaken = false;

  /** Promises derived from it are ordinary ones. */
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  static make<T>(executor: (resolve: (value: T) => void, reject: (error: unknown) => void) => void): WritePromise<T> {
    const promise = new WritePromise<T>(executor);
    Promise.prototype.then.call(promise, undefined, () => {});
    return promise;
  }

  /** Whether `then`, `catch`, `finally` or `await` was used on it. */
  get isTaken(): boolean {
    return this.#isTaken;
  }

  override then<One = T, Other = never>(
    onFulfilled?: ((value: T) => One | PromiseLike<One>) | null,
    onRejected?: ((reason: unknown) => Other | PromiseLike<Other>) | null,
  ): Promise<One | Other> {
    this.#isTaken = true;
    return super.then(onFulfilled, onRejected);
  }
}

/** What the page has done itself: it gave up the request, or closed the connection. */
function isByPage({ code, details }: BacksyncError): boolean {
  return code === "aborted" || (code === "closed" && (details as { code?: unknown } | undefined)?.code === 1000);
}

/**
 * Warns of a refused request, one task later: until then the page may take its promise. `event` is the request's, as
 * `Todo:upsert`; `isSeen` says whether the page looks at the refusal.
 */
export function warnOfRefusal(host: Host, event: string, error: BacksyncError, isSeen: () => boolean): void {
  if (isByPage(error)) return;
  host.setTimeout(() => {
    if (!isSeen()) console.warn(`backsync: ${event} was refused: ${error.message} (${error.code})`);
  }, 0);
}
