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
  /**
   * Calls back once, when the page is about to draw: at the next animation frame, or in a task of its own where nothing is
   * drawn. Without it everything is applied in the task in which it arrives.
   */
  frame?(callback: () => void): void;
  /** An error of somebody else's callback: shown like an uncaught one, but without stopping our work. */
  report(error: unknown): void;
}

/** Browsers take a longer delay for none at all. */
const LONGEST_DELAY_MS = 2 ** 31 - 1;

/** A visible page may draw nothing all the same: in a frame that is scrolled away, or on a screen that is off. */
const LONGEST_FRAME_MS = 100;

/** Timers of hidden pages run once a second; a message to oneself comes with the next task. */
let channel: MessageChannel | null = null;
const posted: (() => void)[] = [];

function nextTask(callback: () => void): void {
  if (typeof document !== "object" || typeof MessageChannel !== "function") {
    setTimeout(callback, 0);
    return;
  }
  if (channel === null) {
    channel = new MessageChannel();
    channel.port1.onmessage = () => posted.shift()?.();
  }
  posted.push(callback);
  channel.port2.postMessage(null);
}

function nextFrame(callback: () => void): void {
  if (typeof document !== "object" || document.visibilityState !== "visible" || typeof requestAnimationFrame !== "function") {
    nextTask(callback);
    return;
  }
  const run = (): void => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    callback();
  };
  const frame = requestAnimationFrame(run);
  const timer = setTimeout(run, LONGEST_FRAME_MS);
}

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
  frame: nextFrame,
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
