/** Compiles test/*.test.ts and runs them with Node's own runner. Arguments are names of tests to run: `npm test -- live`. */

import { spawnSync } from "node:child_process";
import { readdir, rm } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const out = path.join(root, ".test");
const wanted = process.argv.slice(2);
const all = (await readdir(path.join(root, "test"))).filter((name) => name.endsWith(".test.ts"));
const files = all.filter((name) => wanted.length === 0 || wanted.some((part) => name.includes(part)));

await rm(out, { recursive: true, force: true });
await build({
  absWorkingDir: root,
  bundle: true,
  entryPoints: files.map((name) => `test/${name}`),
  format: "esm",
  logLevel: "warning",
  outdir: out,
  outExtension: { ".js": ".mjs" },
  packages: "external",
  platform: "node",
  sourcemap: "inline",
  target: "node20",
});
const compiled = files.map((name) => path.join(out, name.replace(/\.ts$/, ".mjs")));
const run = spawnSync(process.execPath, ["--enable-source-maps", "--test", ...compiled], { cwd: root, stdio: "inherit" });
process.exitCode = run.status ?? 1;
