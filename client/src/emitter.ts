/** Named events with typed arguments. Knows nothing of what they mean. */

import { guarded, type Host } from "./host.js";

type Listener<Details extends unknown[]> = (...details: Details) => void;

export class Emitter<Events extends Record<string, unknown[]>> {
  readonly #listeners: { [Name in keyof Events]?: Set<Listener<Events[Name]>> } = {};
  readonly #host: Host;

  constructor(host: Host) {
    this.#host = host;
  }

  /** Calls `listener` at each `name` until the returned function is called. */
  on<Name extends keyof Events>(name: Name, listener: Listener<Events[Name]>): () => void {
    const own: Listener<Events[Name]> = (...details) => listener(...details); // the same listener may be bound twice
    const listeners = (this.#listeners[name] ??= new Set());
    listeners.add(own);
    return () => void listeners.delete(own);
  }

  /** True if anybody listens. */
  emit<Name extends keyof Events>(name: Name, ...details: Events[Name]): boolean {
    const listeners = [...(this.#listeners[name] ?? [])];
    for (const listener of listeners) guarded(this.#host, () => listener(...details));
    return listeners.length > 0;
  }
}
