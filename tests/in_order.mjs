// Sorts records as pages of the client do: reads {records, order} as JSON, prints the ids. It knows no server.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const [, , client, folder] = process.argv;
const outfile = join(folder, "pages.mjs");
createRequire(join(client, "package.json"))("esbuild").buildSync({
  entryPoints: [join(client, "src", "pages.ts")],
  bundle: true,
  format: "esm",
  outfile,
  logLevel: "error",
});
const { inOrder } = await import(pathToFileURL(outfile).href);
const { records, orders } = JSON.parse(await text(process.stdin));
console.log(JSON.stringify(orders.map((order) => [...records].sort(inOrder(order)).map(({ id }) => id))));
