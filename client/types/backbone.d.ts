/** What `install` adds to Backbone, for programs that use @types/backbone: `import type {} from "backsync/backbone";`. */

import type { Connection, LiveCallOptions, LivePromise, SyncListener } from "./index.js";

declare module "backbone" {
  interface ModelBase {
    /** `true`: synced over the default connection; a connection: over that one; `false`: not at all. */
    backsync?: boolean | Connection;
    /** Whether writes that the server refuses are taken back. */
    rollback?: boolean;
    /** Writes of a model without an answer; of a collection: its records with such writes, destroyed ones included. */
    syncPending(): number;
  }

  interface Collection<TModel extends Model = Model> {
    /** Fills the collection with the server's records, and keeps it equal to them. */
    live(options?: LiveCallOptions): LivePromise<this>;
    /** Calls back with each change and event of the collection's model. */
    syncBind(event: string, listener: SyncListener, context?: unknown): this;
    /** Ends what `syncBind` has begun: all of it, that of an event, or a listener. */
    syncUnbind(event?: string, listener?: SyncListener, context?: unknown): this;
  }
}
