/** The one error type of the client and the codes it carries. Knows nothing of where errors come from. */

/** Codes made by the client itself; all others come from the server as they are (see the README's table). */
export type ClientErrorCode = "timeout" | "unavailable" | "closed" | "aborted" | "invalid" | "usage";

/** A refused or failed call. `code` is for programs, `message` for people, `details` depends on the code. */
export class BacksyncError extends Error {
  readonly code: string;
  readonly details: unknown;

  constructor(code: string, message: string, details?: unknown) {
    super(message);
    this.name = "BacksyncError";
    this.code = code;
    this.details = details;
  }

  /** Reads the `error` of a reply: an object, or a plain text as servers in 2012 mode send it. */
  static fromWire(error: unknown): BacksyncError {
    if (typeof error === "string") return new BacksyncError("handler_error", error);
    const { code, message, details } = (error ?? {}) as Record<string, unknown>;
    const known = typeof code === "string" ? code : "handler_error";
    return new BacksyncError(known, typeof message === "string" ? message : known, details);
  }
}

/** Says in the console that a live collection has ended, where the page has not closed the connection itself. */
export function warnOfEnd(model: string, error: BacksyncError): void {
  const byPage = error.code === "closed" && (error.details as { code?: unknown }).code === 1000;
  if (!byPage) console.warn(`backsync: ${model} is not live: ${error.message} (${error.code})`);
}
