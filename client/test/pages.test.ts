/** Long lists page by page: what is open is live, what is not stays away, over reconnects and while pages are read. */

import assert from "node:assert/strict";
import { beforeEach, describe, it } from "node:test";

import Backbone from "backbone";

import { install } from "../src/backbone/install.js";
import type { Connection } from "../src/connection.js";
import { LiveCollection } from "../src/live.js";
import { inOrder } from "../src/pages.js";
import type { Change, ServerRecord } from "../src/protocol.js";
import { connected, type FakeServer, type FakeSocket, type Sent } from "./fakes.js";

let server: FakeServer;
let connection: Connection;
let socket: FakeSocket;
let seq = 0;
beforeEach(async () => {
  ({ server, connection, socket } = await connected());
  seq = 10;
});

const row = (at: number, more: object = {}): ServerRecord => ({ id: `r${at}`, at, ...more });
const rows = (...ats: number[]): ServerRecord[] => ats.map((at) => row(at));
const upsert = (data: object): object => ({ event: "Row:upsert", data, seq: (seq += 1) });
const remove = (id: unknown): object => ({ event: "Row:delete", data: { id }, seq: (seq += 1) });
const snapshot = (records: object[]): object => ({ mode: "snapshot", epoch: "e1", seq, records });
const ats = (list: LiveCollection): unknown[] => list.records.map(({ at }) => at);

/** A list of pages of three, ordered by `at`; two pages are open: 10 to 60. */
async function twoPages(options: object = {}): Promise<LiveCollection> {
  const list = new LiveCollection(connection, "Row", { page: 3, order: "at", ...options });
  await socket.reply(socket.takeOne("Row:subscribe"), snapshot(rows(10, 20, 30)));
  const more = list.more();
  await socket.reply(socket.takeOne("Row:read"), rows(40, 50, 60));
  await more;
  assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60]);
  return list;
}

describe("pages", () => {
  it("come one by one, each after the last record of the one before", async () => {
    const list = new LiveCollection(connection, "Row", { page: 3, order: "at", query: { room: "a" } });
    const asked = socket.takeOne("Row:subscribe");
    assert.deepEqual(asked.data, { room: "a", $order: "at", $limit: 3 });
    const early = list.more(); // while the first one is on its way
    const in_a = (...of: number[]): ServerRecord[] => of.map((at) => row(at, { room: "a" }));
    await socket.reply(asked, snapshot(in_a(10, 20, 30)));
    assert.equal(await list.ready, list);
    const second = socket.takeOne("Row:read");
    assert.deepEqual(second.data, { room: "a", $order: "at", $limit: 3, $after: row(30) });
    assert.equal(list.more(), early, "one at a time");
    await socket.reply(second, in_a(40, 50, 60));
    await early;
    assert.equal(list.hasMore, true);
    const last = list.more();
    const third = socket.takeOne("Row:read");
    assert.equal(third.data.$after.at, 60);
    await socket.reply(third, in_a(70));
    await last;
    assert.deepEqual([ats(list), list.hasMore], [[10, 20, 30, 40, 50, 60, 70], false]);
    await list.more();
    assert.deepEqual(socket.take(), []);
  });

  it("a short first page is all there is", async () => {
    const list = new LiveCollection(connection, "Row", { page: 3 });
    await socket.reply(socket.takeOne("Row:subscribe"), snapshot(rows(10)));
    assert.equal(list.hasMore, false);
    await socket.frame(upsert(row(99)));
    assert.deepEqual(ats(list), [10, 99]);
  });

  it("changes of what is open arrive in order, those of other records do not", async () => {
    const list = await twoPages();
    await socket.frame(upsert(row(55)), upsert(row(61)), upsert({ ...row(20), text: "new" }), upsert({ id: "r100", at: 5 }));
    assert.deepEqual(ats(list), [5, 10, 20, 30, 40, 50, 55, 60]);
    assert.equal(list.get("r20")?.text, "new");
    await socket.frame(upsert({ id: "r10", at: 1000 }), remove("r30"), remove("r61"));
    assert.deepEqual(ats(list), [5, 20, 40, 50, 55, 60]);
    assert.equal(list.get("r10"), undefined, "it has moved to where nobody has looked yet");
    await socket.frame(upsert({ id: "r10", at: 15 }));
    assert.deepEqual(ats(list), [5, 15, 20, 40, 50, 55, 60]);
  });

  it("records that do not match the query stay away, and leave when they match no more", async () => {
    const list = new LiveCollection(connection, "Row", { page: 3, order: "-at", query: { done: false } });
    await socket.reply(socket.takeOne("Row:subscribe"), snapshot([row(30, { done: false }), row(20, { done: false })]));
    await socket.frame(upsert(row(40, { done: true })), upsert(row(30, { done: true })), upsert(row(10, { done: false })));
    assert.deepEqual(ats(list), [20, 10]);
  });

  it("what changes while a page is read counts, whatever the page says", async () => {
    const list = await twoPages();
    const more = list.more();
    const asked = socket.takeOne("Row:read");
    await socket.frame(upsert({ ...row(80), text: "changed" }), remove("r70"), upsert(row(75)), upsert({ id: "r90", at: 500 }));
    assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60]);
    await socket.reply(asked, [row(70), row(80), row(90)]);
    await more;
    assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60, 75, 80]);
    assert.equal(list.get("r80")?.text, "changed");
  });

  it("a new snapshot renews all that was open, at once, and nothing that was not", async () => {
    const list = await twoPages();
    let told = 0;
    list.subscribe(() => (told += 1));
    await socket.cut();
    await server.host.advance(10_000);
    socket = await server.accept();
    told = 0;
    seq = 3;
    const again = socket.takeOne("Row:subscribe");
    assert.deepEqual(again.data, { $order: "at", $limit: 3 });
    await socket.reply(again, { ...snapshot(rows(10, 15, 20)), epoch: "e2" });
    assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60], "until all is there");
    const rest = socket.takeOne("Row:read");
    assert.deepEqual([rest.data.$after.at, rest.data.$limit], [20, 3]);
    await socket.frame(upsert({ ...row(10), text: "meanwhile" }), remove("r50"), upsert(row(45)));
    await socket.reply(rest, rows(30, 40, 50));
    const more = socket.takeOne("Row:read");
    assert.equal(more.data.$after.at, 50);
    await socket.reply(more, rows(60, 70, 80));
    assert.deepEqual(ats(list), [10, 15, 20, 30, 40, 45, 60, 70, 80]);
    assert.equal(list.get("r10")?.text, "meanwhile");
    assert.equal(list.hasMore, true);
  });

  it("what cannot be renewed is closed, and opens again on demand", async () => {
    const list = await twoPages();
    await socket.frame({ event: "Row:snapshot", data: { epoch: "e2", seq: 1, records: rows(10, 20, 30) } });
    const waiting = list.more();
    await socket.refuse(socket.takeOne("Row:read"), "forbidden");
    assert.deepEqual([ats(list), list.hasMore], [[10, 20, 30], true]);
    await socket.reply(socket.takeOne("Row:read"), rows(40));
    await waiting;
    assert.deepEqual([ats(list), list.hasMore], [[10, 20, 30, 40], false]);
    await socket.frame({ event: "Row:snapshot", data: { epoch: "e3", seq: 1, records: rows(10, 20, 30) } });
    const rest = socket.takeOne("Row:read");
    assert.equal(rest.data.$limit, 1000, "all was open");
    await socket.reply(rest, rows(40, 50));
    assert.deepEqual([ats(list), list.hasMore], [[10, 20, 30, 40, 50], false]);
  });

  it("a snapshot that comes while a page is read has it read anew", async () => {
    const list = await twoPages();
    const more = list.more();
    const lost = socket.takeOne("Row:read");
    await socket.frame({ event: "Row:snapshot", data: { epoch: "e2", seq: 1, records: rows(10, 20, 30) } });
    const renewed = socket.takeOne("Row:read");
    await socket.reply(lost, rows(70, 80, 90));
    await socket.reply(renewed, rows(40, 50, 60));
    assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60]);
    await socket.reply(socket.takeOne("Row:read"), rows(70));
    await more;
    assert.deepEqual(ats(list), [10, 20, 30, 40, 50, 60, 70]);
  });

  it("a page that is refused rejects, and leaves what is open as it is", async () => {
    const list = await twoPages();
    const refused = list.more();
    await socket.refuse(socket.takeOne("Row:read"), "forbidden");
    await assert.rejects(refused, { code: "forbidden" });
    await socket.frame(upsert(row(25)));
    assert.deepEqual(ats(list), [10, 20, 25, 30, 40, 50, 60]);
    const aborted = list.more();
    list.close();
    await assert.rejects(aborted, { code: "aborted" });
    await socket.reply(socket.take().find(({ event }) => event === "Row:read") as Sent, rows(70));
    assert.equal(list.records.length, 7);
  });

  it("own writes show at once, and stay where they are within what is open", async () => {
    const list = await twoPages();
    const written = list.upsert({ id: "mine", at: 35 });
    assert.deepEqual(ats(list), [10, 20, 30, 35, 40, 50, 60]);
    await socket.reply(socket.takeOne("Row:upsert"), { id: "mine", at: 35 });
    await written;
    await socket.frame(upsert({ id: "mine", at: 35 }));
    const far = list.upsert({ id: "far", at: 900 });
    assert.equal(list.get("far")?.at, 900);
    await socket.reply(socket.takeOne("Row:upsert"), { id: "far", at: 900 });
    await far;
    await socket.frame(upsert({ id: "far", at: 900 }));
    assert.deepEqual(ats(list), [10, 20, 30, 35, 40, 50, 60], "nobody has opened its page yet");
  });

  it("a sink of one's own gets pages as changes, and events as they are", async () => {
    const heard: Change[] = [];
    const all: unknown[] = [];
    const sink = { snapshot: (records: ServerRecord[]) => all.push(...records), changes: (changes: Change[]) => heard.push(...changes) };
    const following = connection.subscribe("Row", { page: 1, order: "at" }, sink);
    await socket.reply(socket.takeOne("Row:subscribe"), snapshot(rows(10)));
    const more = following.more();
    await socket.reply(socket.takeOne("Row:read"), rows(20));
    await more;
    await socket.frame({ event: "Row:typing", data: { who: "Ada" } }, upsert(row(30)));
    assert.deepEqual(all, rows(10));
    assert.deepEqual(heard.map(({ method, data }) => [method, data]), [["upsert", row(20)], ["typing", { who: "Ada" }], ["delete", { id: "r30" }]]);
    const whole = connection.subscribe("Note", {}, sink);
    assert.equal(whole.hasMore, false);
    await whole.more();
  });

  it("a Backbone collection opens page by page, too", async () => {
    const { uninstall } = install(Backbone, connection);
    try {
      const list = new (Backbone.Collection.extend({ url: "/Row", comparator: "at" }))() as any;
      const heard: unknown[] = [];
      list.syncBind("upsert", (data: ServerRecord) => heard.push(data.at));
      socket.take();
      const live = list.live({ page: 2, order: "at" });
      await socket.reply(socket.take().find(({ data }) => data?.$limit === 2) as Sent, snapshot(rows(10, 20)));
      await live;
      const first = list.first();
      const more = live.more();
      await socket.reply(socket.take().find(({ event }) => event === "Row:read") as Sent, rows(30, 40));
      await more;
      assert.deepEqual(list.pluck("at"), [10, 20, 30, 40]);
      assert.deepEqual(heard, [], "pages are no changes");
      assert.equal(live.hasMore, true);
      await socket.frame(upsert(row(25)), upsert(row(50)), upsert({ id: "r20", at: 100 }));
      assert.deepEqual(list.pluck("at"), [10, 25, 30, 40]);
      assert.deepEqual(heard, [25, 50, 100]);
      assert.equal(list.first(), first);
      assert.throws(() => list.live({ pages: 2 }), /does not know the option "pages"/);
    } finally {
      uninstall();
    }
  });

  it("wrong options are told at once", () => {
    for (const page of [0, 1001, 1.5, "10"]) assert.throws(() => new LiveCollection(connection, "Row", { page: page as number }), /from 1 to 1000/);
    assert.throws(() => new LiveCollection(connection, "Row", { page: 3, query: { $limit: 5 } }), /say order and page/);
    assert.throws(() => new LiveCollection(connection, "Row", { order: "at" }), /order without page/);
    const sink = { snapshot() {}, changes() {} };
    assert.throws(() => connection.subscribe("Row", { page: 3, snapshot: false }, sink), /page without records/);
  });
});

describe("the order of pages", () => {
  it("is that of the server's stores", () => {
    const values = [undefined, null, false, 0, -1.5, true, 1, 2, 10, "", "10", "9", "a", "\uffff", "😀", [1], { a: 1 }];
    const records = values.map((value, index) => ({ id: index, ...(value === undefined ? {} : { value }) }));
    const sorted = (order: string[]): unknown[] => [...records].reverse().sort(inOrder(order)).map(({ id }) => values[id as number]);
    const ascending = [undefined, null, -1.5, false, 0, true, 1, 2, 10, "", "10", "9", [1], "a", { a: 1 }, "\uffff", "😀"];
    assert.deepEqual(sorted(["value"]), ascending);
    assert.deepEqual(sorted(["-value"]), [...ascending].reverse());
    const large = ["-Infinity", "-9007199254740993", -5, 7, "9007199254740993", "10000000000000000", "1234567890123456789", "Infinity", "9223372036854775808", "NaN"];
    const ofLarge = large.map((value, id) => ({ id, value }));
    assert.deepEqual([...ofLarge].reverse().sort(inOrder("value")), ofLarge);
    const pairs = [{ id: 1, a: 1, b: 1 }, { id: 2, a: 1, b: 2 }, { id: 3, a: 0, b: 0 }];
    assert.deepEqual([...pairs].sort(inOrder(["a", "-b"])).map(({ id }) => id), [3, 2, 1]);
  });

  it("has ids that are integers before others, by their value", () => {
    const ids = [
      "-9223372036854775808", "-9007199254740993", -100, "-20", -3, 0, "1", 9, "10", 99, 1000, "9007199254740993", "10000000000000000",
      "9223372036854775806", "", " 7", "-0", "-9223372036854775809", "007", "1.0", "1e3", "9223372036854775807", "9223372036854775808",
      "A", "a", "c1", "c10", "c9", "\uffff", "😀",
    ]; // prettier-ignore
    const records = ids.map((id) => ({ id, same: 1 }));
    const mixed = [...records].sort((one, other) => String(one.id).length - String(other.id).length).reverse();
    for (const order of [[], "id", "same", ["same", "id"]]) assert.deepEqual([...mixed].sort(inOrder(order)), records);
    for (const order of ["-id", "-same"]) assert.deepEqual([...mixed].sort(inOrder(order)), [...records].reverse());
    assert.equal(inOrder([])({ id: 1 }, { id: "1" }), 0, "one id");
  });
});
