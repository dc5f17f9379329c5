"""An application for pages that use the client as it is served; knows nothing of what the tests do with it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from backsync_asgi import Backsync, Context, Reject
from backsync_asgi.stores import MemoryStore
from tests.servers import ROOT

HEAD = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>Test</title>'

SCRIPT = (
    HEAD
    + """
<script src="/backsync/backsync.js"></script>
<script>
  const todos = new (Backbone.Collection.extend({ url: "/Todo" }))();
  let updates = 0;
  todos.on("update", () => { updates += 1; });
  const ready = todos.live();
</script>"""
)

MODULE = (
    HEAD
    + """
<script type="importmap">
  {"imports": {"underscore": "/npm/underscore/underscore-esm.js", "backsync": "/backsync/backsync.mjs"}}
</script>
<script type="module">
  import _ from "underscore";
  import { connect, install } from "backsync";
  globalThis._ = _;
  await import("/npm/backbone/backbone.js");
  globalThis.connection = connect("/backsync");
  install(Backbone, connection);
  globalThis.todos = new (Backbone.Collection.extend({ url: "/Todo" }))();
  await todos.live();
  document.title = "Live";
</script>"""
)

# In a worker of any kind: connects, keeps what is unsent, writes a record, and says what it has then.
WORKER = """
async function run({ connect, LiveCollection }, name) {
  const connection = connect("/backsync", { persist: name });
  const todos = new LiveCollection(connection, "Todo");
  await todos.ready;
  await todos.upsert({ id: name, title: name });
  return { record: todos.get(name), transport: connection.transport };
}
"""
WORKERS = {
    "module": WORKER
    + """
import * as backsync from "/backsync/backsync.mjs";
run(backsync, "module").then(postMessage, (error) => postMessage(String(error)));
""",
    "classic": WORKER
    + """
importScripts("/backsync/backsync.js");
run(Backsync, "classic").then(postMessage, (error) => postMessage(String(error)));
""",
    "shared": WORKER
    + """
import * as backsync from "/backsync/backsync.mjs";
const result = run(backsync, "shared").catch(String);
onconnect = ({ ports: [port] }) => result.then((value) => port.postMessage(value));
""",
    "service": WORKER
    + """
import * as backsync from "/backsync/backsync.mjs";
addEventListener("message", (event) => event.waitUntil(
  run(backsync, "service").catch(String).then((value) => event.source.postMessage(value))));
""",
}

sync = Backsync()
todos = sync.model("Todo", store=MemoryStore())


@todos.on("upsert")
async def save(ctx: Context, todo: dict[str, Any]) -> dict[str, Any]:
    if todo.get("title") == "forbidden":
        raise Reject("forbidden", "Not this one.")
    return dict(await ctx.store.upsert(todo))


@todos.on("delete")
async def remove(ctx: Context, todo: dict[str, Any]) -> None:
    record = await ctx.store.get(todo["id"])
    if record is not None and record.get("pinned"):
        raise Reject("forbidden", "This one stays.")
    await ctx.store.delete(todo["id"])


async def burst(request: Request) -> Response:
    """Many changes at once, as a program makes them that imports a file: each of 250 records twice."""
    for number in range(500):
        await todos.upsert({"id": number % 250, "title": f"Change {number}"})
        if number % 100 == 99:
            await asyncio.sleep(0)  # others have their turn
    return Response()


async def script(request: Request) -> Response:
    return HTMLResponse(SCRIPT)


async def worker(request: Request) -> Response:
    return Response(WORKERS[request.path_params["kind"]], media_type="text/javascript")


async def module(request: Request) -> Response:
    return HTMLResponse(MODULE)


app = Starlette(
    routes=[
        Route("/", script),
        Route("/module", module),
        Route("/worker/{kind}", worker),
        Route("/burst", burst, methods=["POST"]),
        Mount("/npm", app=StaticFiles(directory=ROOT / "client" / "node_modules")),
        Mount("/backsync", app=sync),
    ],
    lifespan=sync.lifespan,
)
