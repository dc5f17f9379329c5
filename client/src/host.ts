/** What the client takes from its surroundings: time, chance, page events, a log. Knows nothing of the protocol. */

export type Timer = unknown;

/** The outside world, replaceable as a whole: tests bring their own clock and their own luck. */
export interface Host {
  /** Milliseconds on a clock that never jumps back. */
  now(): number;
  setTimeout(callback: () => void, milliseconds: number): Timer;
  clearTimeout(timer: Timer): void;
  /** A number in [0, 1). */
  random(): number;
  /** Calls back on `online` and `offline` of the page, where there is one; returns what stops it. */
  onNetwork(callback: (online: boolean) => void): () => void;
  /** An error of somebody else's callback: shown like an uncaught one, but without stopping our work. */
  report(error: unknown): void;
}

/** Browsers take a longer delay for none at all. */
const LONGEST_DELAY_MS = 2 ** 31 - 1;

export const browserHost: Host = {
  now: () => performance.now(),
  setTimeout: (callback, milliseconds) => setTimeout(callback, Math.min(milliseconds, LONGEST_DELAY_MS)),
  clearTimeout: (timer) => clearTimeout(timer as ReturnType<typeof setTimeout>),
  random: () => Math.random(),
  onNetwork(callback) {
    if (typeof globalThis.addEventListener !== "function") return () => {};
    const online = (): void => callback(true);
    const offline = (): void => callback(false);
    globalThis.addEventListener("online", online);
    globalThis.addEventListener("offline", offline);
    return () => {
      globalThis.removeEventListener("online", online);
      globalThis.removeEventListener("offline", offline);
    };
  },
  report(error) {
    setTimeout(() => {
      throw error;
    });
  },
};

/** Runs somebody else's callback so that its error cannot stop ours. */
export function guarded(host: Host, callback: () => void): void {
  try {
    callback();
  } catch (error) {
    host.report(error);
  }
}
