/** The pure parts: messages, names, and what the server knows of a record. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { closeWindow, isFinal, readWindow } from "../src/backoff.js";
import { canonical, decode, matches, modelName, safeRecord } from "../src/protocol.js";
import { type PendingWrite, Shadow } from "../src/shadow.js";

describe("protocol", () => {
  it("decode takes objects only", () => {
    assert.deepEqual(decode('{"event":"A:b"}'), { event: "A:b" });
    for (const text of ["[]", "1", "null", '"x"', "{", ""]) assert.equal(decode(text), null);
  });

  it("decode drops __proto__ at any depth, however it is spelled, and nothing else", () => {
    for (const name of ["__proto__", "\\u005f_proto__", "__\\u0070roto__"]) {
      const message = decode(`{"data":{"a":[{"${name}":{"x":1},"constructor":2}],"text":"__proto__"}}`) as any;
      assert.deepEqual(Object.keys(message.data.a[0]), ["constructor"]);
      assert.equal(message.data.text, "__proto__");
    }
  });

  it("safeRecord leaves safe records as they are", () => {
    const record = { id: 1 };
    assert.equal(safeRecord(record), record);
    assert.deepEqual(safeRecord({ id: 1, constructor: 1, prototype: 2 }), { id: 1 });
  });

  it("canonical is the same for the same query", () => {
    assert.equal(canonical({ b: [1, { d: 1, c: "x" }], a: undefined }), canonical({ b: [1, { c: "x", d: 1 }] }));
    assert.notEqual(canonical({ a: 1 }), canonical({ a: "1" }));
    assert.notEqual(canonical(new Date(1)), canonical(new Date(2)));
  });

  it("matches wants each field of the key with its value", () => {
    assert.equal(matches({ room: "a", limit: 1 }, { room: "a" }), true);
    assert.equal(matches({ room: "a" }, { room: "a", team: 1 }), false);
    assert.equal(matches({}, { toString: undefined }), false);
  });

  it("modelName wants a name", () => {
    assert.equal(modelName("/a-b.c_d/1"), "a-b.c_d");
    for (const url of ["", "/", "/$", "/1a", "?x"]) assert.throws(() => modelName(url), { code: "invalid" });
  });

  it("close codes and windows", () => {
    assert.deepEqual([1000, 1006, 3499, 3500, 3999, 4000, 4499, 4500, 4999].map(isFinal), [false, false, false, true, true, false, false, true, true]);
    assert.deepEqual(closeWindow(1012), [0, 5]);
    assert.equal(closeWindow(1006), null);
    assert.deepEqual(readWindow([1, 2]), [1, 2]);
    for (const bad of [undefined, 5, [1], [2, 1], [-1, 2], ["1", 2], [1, 2, 3]]) assert.equal(readWindow(bad), null);
  });
});

describe("shadow", () => {
  const write = (fields: object): PendingWrite => ({ kind: "write", fields: { ...fields } });

  it("receive: pending fields are left out, lost fields are undefined", () => {
    const shadow = new Shadow();
    assert.deepEqual(shadow.receive({ id: 1, a: 1, b: 1 }), { id: 1, a: 1, b: 1 });
    shadow.begin(write({ a: 2 }));
    assert.deepEqual(shadow.receive({ id: 1, a: 3 }), { id: 1, b: undefined });
    assert.deepEqual(shadow.confirmed, { id: 1, a: 3 });
  });

  it("fail: what no other write shows comes back, unless it was changed since", () => {
    const shadow = new Shadow();
    shadow.receive({ id: 1, a: 0, b: 0, c: 0 });
    const first = write({ a: 1, b: 1, c: 1, d: 1 });
    const second = write({ b: 2 });
    shadow.begin(first);
    shadow.begin(second);
    assert.deepEqual(shadow.fail(first, { id: 1, a: 1, b: 2, c: 9, d: 1 }), { a: 0, d: undefined });
    assert.equal(shadow.pending, true);
  });

  it("succeed: the reply counts over the write, and unset fields are gone", () => {
    const shadow = new Shadow();
    shadow.receive({ id: 1, a: 0, b: 0 });
    const one = write({ a: 1, b: undefined });
    shadow.begin(one);
    shadow.succeed(one, { id: 1, a: 5 });
    assert.deepEqual(shadow.confirmed, { id: 1, a: 5 });
    assert.equal(shadow.pending, false);
  });

  it("differences compare values, not objects", () => {
    const shadow = new Shadow();
    shadow.receive({ id: 1, list: [1, { x: 1 }], gone: 1 });
    assert.deepEqual(shadow.differences({ id: 1, list: [1, { x: 1 }], fresh: 2 }), { gone: undefined, fresh: 2 });
  });
});
