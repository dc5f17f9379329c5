"""A page with a long list, which opens as far as somebody scrolls; knows nothing of what is in it."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from backsync_asgi import Backsync
from backsync_asgi.stores import SQLStore

PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>Rows</title>
<style>li { height: 20px }</style>
<ul id="list"></ul>
<button id="more">More</button>
<script src="/backsync/backsync.js"></script>
<script>
  const rows = new Backsync.LiveCollection(Backsync.connection, "Row", { page: 100, order: "at" });
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const item = ({ text }) => Object.assign(document.createElement("li"), { textContent: text });
  rows.subscribe(() => {
    list.replaceChildren(...rows.records.map(item));
    more.hidden = !rows.hasMore;
  });
  const open = () => rows.more();
  more.onclick = open;
  rows.ready.then(() => new IntersectionObserver(([seen]) => seen.isIntersecting && open()).observe(more));
</script>"""

sync = Backsync()
database = os.environ["DATABASE_URL"]
store = SQLStore(database, table="row", index=["at"])
sync.model("Row", store=store, version="rev")
sync.model("Mixed", store=SQLStore(database, table="mixed"))


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


app = Starlette(routes=[Route("/", page), Mount("/backsync", app=sync)], lifespan=sync.lifespan)
