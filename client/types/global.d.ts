/** What `backsync.js` defines in a page that loads it by a script tag: `import type {} from "backsync/global";`. */

import type * as backsync from "./index.js";

declare global {
  const Backsync: Omit<typeof backsync, "debug"> & {
    /** The connection to the server that the script came from; another one may be set before it is used. */
    connection: backsync.Connection;
    /** The name under which unanswered writes of `connection` are kept over reloads; to be set before it is used. */
    persist: string | null;
    /** Whether all messages are logged. */
    debug: boolean;
  };
}
