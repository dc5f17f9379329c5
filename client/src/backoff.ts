/** When to come back after a connection has ended, and when never. Pure: chance comes in as a number in [0, 1). */

/** Full jitter: the ceiling doubles from 0.5 s up to 30 s, so that a thousand clients do not return together. */
const BASE_MS = 500;
const CAP_MS = 30_000;

/** After 1012 the server comes back at once: everybody within 5 s, spread evenly. */
const RESTART: Window = [0, 5];
const RESTART_CODE = 1012;

/** A span from which a delay is drawn, in seconds as on the wire. */
export type Window = readonly [min: number, max: number];

/** Milliseconds until attempt number `attempt` (0 is the first after a connection that stood). */
export function retryDelay(attempt: number, random: number): number {
  return random * Math.min(CAP_MS, BASE_MS * 2 ** attempt);
}

/** Milliseconds drawn from a window. */
export function windowDelay([min, max]: Window, random: number): number {
  return (min + random * (max - min)) * 1000;
}

/** Milliseconds while the page says that there is no network: slow attempts, since pages are sometimes wrong about it. */
export function offlineDelay(random: number): number {
  return CAP_MS / 2 + (random * CAP_MS) / 2;
}

export function closeWindow(code: number): Window | null {
  return code === RESTART_CODE ? RESTART : null;
}

/** Reads the `retry` of `$:bye`; null unless it is two numbers in order. */
export function readWindow(value: unknown): Window | null {
  if (!Array.isArray(value) || value.length !== 2) return null;
  const [min, max] = value as [unknown, unknown];
  return typeof min === "number" && typeof max === "number" && min >= 0 && max >= min ? [min, max] : null;
}

/** Codes by which the server says: do not come back (bad token, forbidden origin). */
export function isFinal(code: number): boolean {
  return (code >= 3500 && code <= 3999) || (code >= 4500 && code <= 4999);
}
