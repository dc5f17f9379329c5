/** The entry of the `<script>` file: defines `Backsync`, and `Backbone` and `_` where the page has none. */

import * as backsync from "./index.js";

declare const require: (name: "backbone" | "underscore") => unknown;

type Page = typeof globalThis & { Backbone?: Parameters<typeof backsync.install>[0]; _?: unknown; Backsync?: unknown };

const page = globalThis as Page;
const script = typeof document === "object" ? (document.currentScript as HTMLScriptElement | null) : null;

/** The directory that the script came from is where Backsync is mounted. */
function home(): string {
  const source = script?.src ?? "";
  if (source === "") {
    throw new backsync.BacksyncError(
      "usage",
      'Backsync.connection does not know its server: the script was not loaded by <script src="…/backsync.js">. ' +
        'Set it first: Backsync.connection = Backsync.connect("/backsync").',
    );
  }
  return new URL(".", source).href;
}

let connection: backsync.Connection | null = null;
let persist: string | null = null;

const Backsync = {
  ...backsync,
  get connection(): backsync.Connection {
    return (connection ??= new backsync.Connection(home(), persist === null ? {} : { persist }));
  },
  set connection(other: backsync.Connection) {
    connection = other;
  },
  /** The name under which unsent writes of `Backsync.connection` survive reloads; to be set before it is used. */
  get persist(): string | null {
    return persist;
  },
  set persist(name: string | null) {
    if (connection !== null) throw new backsync.BacksyncError("usage", "Backsync.persist was set too late: Backsync.connection is in use already.");
    persist = name;
  },
  get debug(): boolean {
    return backsync.debug.enabled;
  },
  set debug(enabled: boolean) {
    backsync.debug.enabled = enabled;
  },
};

// A second copy of the script would put a second adapter over the first.
if (page.Backsync === undefined) {
  // Both are evaluated only where they are needed: a page's own come first.
  (page as { _?: unknown })._ ??= require("underscore");
  page.Backbone ??= require("backbone") as NonNullable<Page["Backbone"]>;
  page.Backsync = Backsync;
  backsync.install(page.Backbone, () => Backsync.connection);
}
