/** The door of the ES module: what a page can name. */

import { Connection, type ConnectionOptions } from "./connection.js";

export { Connection } from "./connection.js";
export type { CallOptions, CloseInfo, ConnectionOptions, Opening, OpenHook, Status, SubscribeOptions, Token } from "./connection.js";
export { LiveCollection } from "./live.js";
export type { ChangesOf, IdOf, LiveCollectionOptions, SomeOf } from "./live.js";
export { BacksyncError } from "./errors.js";
export type { ClientErrorCode } from "./errors.js";
export { debug } from "./debug.js";
export { install } from "./backbone/install.js";
export type { Installed, InstallOptions, LiveCallOptions, SyncListener } from "./backbone/install.js";
export type { LivePromise } from "./backbone/live.js";
export type { SyncPromise } from "./backbone/sync.js";
export type { Order } from "./pages.js";
export type { Change, Position, Query, ServerRecord } from "./protocol.js";
export type { Sink, Subscription } from "./subscriptions.js";
export { installLegacyNames } from "./legacy.js";

/** A connection of one's own, opened at once. */
export function connect(url: string, options?: ConnectionOptions): Connection {
  return new Connection(url, options).open();
}
