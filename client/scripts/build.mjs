/**
 * Builds the client: the files that the Python package serves, and the npm package's own.
 * `node scripts/build.mjs [directory [package]]` writes the served files, and those of the npm package, there instead (the
 * tests do).
 */

import { spawnSync } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const require = createRequire(import.meta.url);
const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const served = path.resolve(process.argv[2] ?? path.join(root, "..", "backsync_asgi", "static"));
const packed = process.argv[2] === undefined ? path.join(root, "dist") : (process.argv[3] ?? null);

const common = {
  absWorkingDir: root,
  bundle: true,
  charset: "utf8",
  define: { "process.env.NODE_ENV": '"production"', global: "globalThis" },
  legalComments: "none",
  logLevel: "warning",
  minify: true,
  sourcemap: "linked",
  sourcesContent: true,
  target: ["es2022"],
};

/** jQuery is the page's affair: Backbone gets it if it is there, and nothing asks for it otherwise. */
const jQueryOfThePage = {
  name: "jquery-of-the-page",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^jquery$/ }, () => ({ path: "jquery", namespace: "page" }));
    onLoad({ filter: /.*/, namespace: "page" }, () => ({ contents: "module.exports = globalThis.jQuery;" }));
  },
};

/**
 * Parts of SockJS that no page of ours uses: what browsers of 2012 lacked, Internet Explorer's XDomainRequest, and the
 * inside of its iframe page, which loads sockjs.js.
 */
const UNUSED = {
  "shims.js": "",
  "iframe-bootstrap.js": "module.exports = () => {};",
  "transport/sender/xdr.js": "module.exports = { enabled: false };",
  "transport/xdr-streaming.js": "module.exports = { enabled: () => false, transportName: 'xdr-streaming' };",
  "transport/xdr-polling.js": "module.exports = { enabled: () => false, transportName: 'xdr-polling' };",
};
const withoutUnused = {
  name: "without-unused",
  setup({ onLoad }) {
    onLoad({ filter: /sockjs-client[/\\]lib[/\\].*\.js$/ }, ({ path: file }) => {
      const contents = UNUSED[file.split(path.sep).join("/").split("/sockjs-client/lib/").at(-1)];
      return contents === undefined ? undefined : { contents };
    });
  },
};

/** The licences of what is bundled ask for their text to go along: read from the packages that the build really used. */
async function licences(metafile) {
  const inputs = Object.keys(metafile.inputs).map((input) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1]);
  const texts = ["Backsync's client is under the MIT licence. Built into backsync.js, and partly into backsync.mjs and sockjs.js:\n"];
  for (const name of [...new Set(inputs)].filter(Boolean).sort()) {
    const directory = path.join(root, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(path.join(directory, "package.json"), "utf8"));
    const file = (await readdir(directory)).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file === undefined ? "" : await readFile(path.join(directory, file), "utf8");
    texts.push(`\n== ${name} ${version} (${license})\n\n${text.trim()}\n`);
  }
  return texts.join("");
}

/** SockJS's own page for its iframe transports loads this; its source map is not served. */
async function sockjs() {
  const dist = path.join(path.dirname(require.resolve("sockjs-client/package.json")), "dist");
  const text = await readFile(path.join(dist, "sockjs.min.js"), "utf8");
  return text.replace(/\/\/# sourceMappingURL=.*\s*$/, "");
}

/** One file of types out of the compiler's many: declarations in order of use, and the door's export list at the end. */
async function bundleTypes() {
  const directory = await mkdtemp(path.join(root, ".types-"));
  try {
    const tsc = path.join(path.dirname(require.resolve("typescript/package.json")), "bin", "tsc");
    const run = spawnSync(process.execPath, [tsc, "-p", path.join(root, "tsconfig.types.json"), "--outDir", directory], { encoding: "utf8" });
    if (run.status !== 0) throw new Error(run.stdout + run.stderr);
    return await flatten(path.join(directory, "index.d.ts"));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function flatten(entry) {
  const seen = new Set();
  const declarations = [];
  const visit = async (file) => {
    if (seen.has(file)) return;
    seen.add(file);
    const text = await readFile(file, "utf8");
    for (const [, from] of text.matchAll(/(?:from|import) "(\.[^"]+)\.js"/g)) {
      await visit(path.resolve(path.dirname(file), `${from}.d.ts`));
    }
    const own = text
      .replace(/^(import|export) [^;]*? from "[^"]*";\n/gm, "")
      .replace(/^export \{\};\n/gm, "")
      .replace(/^export (?=declare|interface|type|abstract|class|function|const)/gm, "");
    declarations.push(own.trim());
  };
  await visit(entry);
  const door = await readFile(entry, "utf8");
  const names = [...door.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(([, list]) => list.split(","));
  names.push(...[...door.matchAll(/^export declare (?:function|class|const) (\w+)/gm)].map(([, name]) => name));
  const exported = names.map((name) => name.trim()).filter(Boolean).sort();
  return `${declarations.filter(Boolean).join("\n")}\nexport { ${exported.join(", ")} };\n`;
}

await mkdir(served, { recursive: true });
const banner = { js: "/*! Backsync (MIT) with third-party code: LICENSES.txt beside this file. */" };
const [types, script] = await Promise.all([
  bundleTypes(),
  build({
    ...common,
    banner,
    metafile: true,
    entryPoints: ["src/script.ts"],
    format: "iife",
    outfile: path.join(served, "backsync.js"),
    platform: "browser",
    plugins: [jQueryOfThePage, withoutUnused],
  }),
  build({
    ...common,
    banner,
    entryPoints: ["src/index.ts"],
    format: "esm",
    outfile: path.join(served, "backsync.mjs"),
    platform: "browser",
    plugins: [withoutUnused],
  }),
  packed &&
    build({
      ...common,
      entryPoints: ["src/index.ts"],
      external: ["sockjs-client"],
      format: "esm",
      minify: false,
      outfile: path.join(packed, "index.js"),
      platform: "neutral",
    }),
]);
await writeFile(path.join(served, "backsync.d.ts"), types);
await writeFile(path.join(served, "sockjs.js"), await sockjs());
const licenceTexts = await licences(script.metafile);
await writeFile(path.join(served, "LICENSES.txt"), licenceTexts);
if (packed !== null) {
  await writeFile(path.join(packed, "index.d.ts"), types);
  for (const name of ["backbone.d.ts", "global.d.ts"]) await copyFile(path.join(root, "types", name), path.join(packed, name));
  await writeFile(path.join(packed, "LICENSES.txt"), licenceTexts);
  for (const name of ["backsync.js", "backsync.js.map", "backsync.mjs", "backsync.mjs.map"]) await copyFile(path.join(served, name), path.join(packed, name));
}

for (const name of (await readdir(served)).sort()) {
  if (!/\.(js|mjs|ts)$/.test(name)) continue;
  const file = path.join(served, name);
  const gzipped = gzipSync(await readFile(file)).length;
  console.log(`${name.padEnd(16)} ${String((await stat(file)).size).padStart(7)} bytes, ${String(gzipped).padStart(6)} gzipped`);
}
