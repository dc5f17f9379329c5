/** LiveCollection in a real React, in StrictMode, by the hook of the README. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { beforeEach, it } from "node:test";

import React from "react";
import renderer from "react-test-renderer";

import type { Connection } from "../src/connection.js";
import { LiveCollection } from "../src/live.js";
import { connected, type FakeServer, type FakeSocket, settle, type VirtualHost } from "./fakes.js";

const { StrictMode, act, createElement, useEffect, useMemo, useSyncExternalStore } = React;
(globalThis as any).IS_REACT_ACT_ENVIRONMENT = true;

let server: FakeServer;
let connection: Connection;
let socket: FakeSocket;
let host: VirtualHost;
beforeEach(async () => ({ server, connection, socket, host } = await connected()));

/** The hook as the README shows it. */
async function useLiveOfReadme(): Promise<(connection: Connection, model: string, options?: object) => LiveCollection> {
  const readme = await readFile("README.md", "utf8");
  const code = /```jsx\n([^]*?)```/.exec(readme)?.[1] ?? assert.fail("README.md has no ```jsx block");
  const hook = /function useLive\([^]*?\n\}/.exec(code)?.[0] ?? assert.fail("and no useLive in it");
  return new Function("React", "LiveCollection", `const { useMemo, useSyncExternalStore } = React; return ${hook}`)(React, LiveCollection);
}

async function render(component: () => any): Promise<{ text: () => string; end: () => Promise<void> }> {
  let root: any;
  await act(async () => (root = renderer.create(createElement(StrictMode, null, createElement(component)))));
  return { text: () => JSON.stringify(root.toJSON()), end: () => act(async () => root.unmount()) };
}

const answer = (records: object[]): Promise<void> =>
  act(async () => {
    const sent = socket.take().filter(({ event }) => event === "Task:subscribe");
    assert.equal(sent.length, 1, "it follows the server once");
    await socket.reply(sent[0]!, { mode: "snapshot", epoch: "e", seq: 1, records });
  });

it("the README's hook: loads, shows what waits and what went wrong, needs no ids for keys, and ends with its component", async (t) => {
  const useLive = await useLiveOfReadme();
  const complaints = t.mock.method(console, "error", () => {});
  let tasks!: LiveCollection;
  const page = await render(() => {
    tasks = useLive(connection, "Task");
    if (tasks.status !== "live") return tasks.status;
    return [`${tasks.pending} waiting`, ...tasks.records.map((task) => createElement("li", { key: tasks.keyOf(task) }, String(task.text)))];
  });
  assert.equal(page.text(), '"behind"');
  await answer([]);
  assert.equal(page.text(), '"0 waiting"');
  await act(async () => {
    void tasks.upsert({ text: "one" });
    void tasks.upsert({ text: "two" });
    await settle();
  });
  assert.match(page.text(), /2 waiting.*one.*two/);
  await act(async () => {
    for (const sent of socket.take()) await socket.reply(sent, { ...sent.data, id: sent.id });
  });
  assert.match(page.text(), /0 waiting.*one.*two/);
  await act(() => socket.cut());
  assert.equal(page.text(), '"offline"');
  await act(() => host.advance(500));
  await act(async () => {
    socket = await server.accept();
  });
  await answer([{ id: 9, text: "nine" }]);
  assert.match(page.text(), /0 waiting.*nine/);
  await page.end();
  await host.advance(1000);
  assert.deepEqual(socket.take().map(({ event }) => event), ["Task:unsubscribe"]);
  const said = complaints.mock.calls.map(({ arguments: words }) => words.join(" "));
  assert.deepEqual(said.filter((words) => !words.includes("react-test-renderer is deprecated")), []);
});

it("the obvious hook, which closes as its component goes, works in StrictMode too", async () => {
  const page = await render(() => {
    const tasks = useMemo(() => new LiveCollection(connection, "Task", { lazy: true }), []);
    useEffect(() => () => tasks.close(), [tasks]);
    const list = useSyncExternalStore(tasks.subscribe, tasks.getSnapshot);
    return list.map(({ text }: any) => text).join() || "nothing";
  });
  await act(async () => {
    const asked = socket.take().filter(({ event }) => event === "Task:subscribe").at(-1)!;
    await socket.reply(asked, { mode: "snapshot", epoch: "e", seq: 1, records: [{ id: 1, text: "seen" }] });
  });
  assert.equal(page.text(), '"seen"');
  await page.end();
});
