// Backbone with its own REST sync, its requests made by fetch; prints what it has got as JSON. It knows no Backsync.
import { createRequire } from "node:module";

const [, , modules, url] = process.argv;
const Backbone = createRequire(modules + "/")("backbone");
Backbone.ajax = async ({ type, url, data, contentType, success, error }) => {
  const headers = contentType ? { "content-type": contentType } : {};
  const answer = await fetch(url, { method: type, body: type === "GET" ? undefined : data, headers });
  const text = await answer.text();
  if (answer.ok) success(text ? JSON.parse(text) : undefined);
  else error({ status: answer.status, responseJSON: JSON.parse(text) });
};
const settled = (start) =>
  new Promise((resolve, reject) => {
    start({ wait: true, success: resolve, error: (_, xhr) => reject(new Error(JSON.stringify(xhr))) });
  });

const Todos = Backbone.Collection.extend({ url });
const todos = new Todos();
const seen = [];
const note = () => seen.push(todos.map((todo) => todo.omit("id")));
await settled((options) => todos.fetch(options));
note();
await settled((options) => todos.create({ text: "tea" }, options));
note();
await settled((options) => todos.first().save({ text: "milk" }, options));
note();
await settled((options) => todos.first().save({ done: true }, { patch: true, ...options }));
note();
const others = new Todos();
await settled((options) => others.fetch(options));
await settled((options) => others.first().fetch(options));
seen.push(others.first().id === todos.first().id);
const stale = others.first();
await settled((options) => todos.first().save({ text: "cocoa" }, options));
const late = settled((options) => stale.save({ text: "late" }, options));
seen.push(await late.catch((error) => JSON.parse(error.message).status));
await settled((options) => todos.first().destroy(options));
note();
console.log(JSON.stringify(seen));
