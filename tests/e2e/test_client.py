"""The client as it is served, in pages that use it as its README says: one script, or the module and npm's Backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.async_api import Page, expect
from playwright.async_api import TimeoutError as PlaywrightTimeoutError

from tests.browser import Visitors
from tests.servers import ROOT, Server


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve("tests.e2e.client_app:app")


@pytest.fixture
async def tabs(server: Server, visitors: Visitors) -> tuple[Page, Page]:
    """Two tabs of one browser, each with a live collection `todos`."""
    first = await visitors.new_page(server.url)
    second = await visitors.new_page(server.url, context=first.context)
    for page in (first, second):
        await page.evaluate("() => ready.then(() => null)")
    return first, second


async def until_equal(page: Page, expression: str, expected: Any) -> None:
    """Wait until the expression's value in the page is that (as JSON); AssertionError that shows both."""
    try:
        await page.wait_for_function(
            f"(expected) => JSON.stringify({expression}) === JSON.stringify(expected)", arg=expected, timeout=15_000
        )
    except PlaywrightTimeoutError:
        assert await page.evaluate(expression) == expected


async def titles_are(expected: list[str], *pages: Page) -> None:
    for page in pages:
        await until_equal(page, "todos.pluck('title')", expected)


async def test_what_one_tab_writes_appears_in_the_other(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    await first.evaluate("() => { todos.create({ title: 'Bread' }); todos.create({ title: 'Milk' }); }")
    await titles_are(["Bread", "Milk"], first, second)
    ids = await second.evaluate("todos.pluck('id')")
    await until_equal(first, "todos.pluck('id')", ids)

    await second.evaluate("todos.first().save({ title: 'Rye bread' })")
    await titles_are(["Rye bread", "Milk"], first, second)
    await first.evaluate("todos.first().save({ done: true, count: 2 }, { patch: true })")
    await until_equal(second, "todos.first().omit('id')", {"title": "Rye bread", "done": True, "count": 2})
    await second.evaluate("todos.first().save({ count: undefined }, { patch: true })")
    await until_equal(first, "todos.first().omit('id')", {"title": "Rye bread", "done": True})

    await second.evaluate("todos.first().destroy()")
    await titles_are(["Milk"], first, second)

    fetched = """async () => {
        const list = new (Backbone.Collection.extend({ url: "/Todo", backsync: true }))();
        const model = new (Backbone.Model.extend({ urlRoot: "/Todo", backsync: true }))({ id: todos.first().id });
        await Promise.all([list.fetch(), model.fetch()]);
        return [list.pluck("title"), model.get("title")];
    }"""
    assert await first.evaluate(fetched) == [["Milk"], "Milk"]


async def test_changes_say_whether_they_come_from_the_server(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    for page in tabs:
        await page.evaluate("""() => {
            window.heard = [];
            todos.on("add change remove", (model, second, third) => {
                const options = third ?? second;
                heard.push([model.get("title"), options.fromServer === true, typeof options.seq]);
            });
        }""")
    await first.evaluate("todos.create({ title: 'Bread' })")
    await until_equal(second, "heard", [["Bread", True, "number"]])
    await titles_are(["Bread"], first)
    assert await first.evaluate("heard[0]") == ["Bread", False, "undefined"]


async def test_a_write_that_the_server_refuses_is_taken_back(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    await first.evaluate("""() => {
        window.told = [];
        todos.on("rollback", (model, error) => told.push(["collection", error.code, error.message]));
        for (const title of ["One", "Two", "Three"]) todos.create({ title, pinned: true });
    }""")
    await titles_are(["One", "Two", "Three"], first, second)
    await second.evaluate("() => { window.seen = []; todos.on('add change remove', () => seen.push(todos.length)); }")
    rollbacks = []

    shown = """() => { todos.create({ title: 'forbidden' }); return todos.pluck('title'); }"""
    assert await first.evaluate(shown) == ["One", "Two", "Three", "forbidden"]
    rollbacks += [["collection", "forbidden", "Not this one."]]
    await until_equal(first, "told", rollbacks)
    await titles_are(["One", "Two", "Three"], first)

    shown = """() => {
        const two = todos.at(1);
        two.on("rollback", (model, error) => told.push(["model", error.code, error.message]));
        two.save({ title: 'forbidden' });
        return todos.pluck('title');
    }"""
    assert await first.evaluate(shown) == ["One", "forbidden", "Three"]
    rollbacks += [["model", "forbidden", "Not this one."], ["collection", "forbidden", "Not this one."]]
    await until_equal(first, "told", rollbacks)
    await titles_are(["One", "Two", "Three"], first)

    shown = """() => { todos.at(1).destroy(); return todos.pluck('title'); }"""
    assert await first.evaluate(shown) == ["One", "Three"]
    rollbacks += [["model", "forbidden", "This one stays."], ["collection", "forbidden", "This one stays."]]
    await until_equal(first, "told", rollbacks)
    await titles_are(["One", "Two", "Three"], first)  # at its old place

    # What comes after all that is the first thing that the other tab hears.
    await first.evaluate("todos.create({ title: 'Four' })")
    await titles_are(["One", "Two", "Three", "Four"], first, second)
    assert await second.evaluate("seen") == [4]


async def test_a_burst_of_changes_is_few_update_events(tabs: tuple[Page, Page]) -> None:
    await tabs[0].evaluate("fetch('/burst', { method: 'POST' }).then(() => null)")
    expected = sorted(f"Change {number}" for number in range(250, 500))
    for page in tabs:
        await until_equal(page, "todos.pluck('title').sort()", expected)
        assert 1 <= await page.evaluate("updates") <= 20


async def test_a_tab_s_own_burst_of_writes_reaches_the_other_in_order(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    await first.evaluate("for (let number = 0; number < 500; number += 1) todos.create({ title: `Todo ${number}` })")
    expected = [f"Todo {number}" for number in range(500)]
    await titles_are(expected, first, second)
    await until_equal(first, "[Backsync.connection.pending, todos.some((todo) => todo.isNew())]", [0, False])
    assert await first.evaluate("todos.pluck('id')") == await second.evaluate("todos.pluck('id')")


HOSTILE_IDS = ["toString", "__proto__", "constructor", "hasOwnProperty", "__defineGetter__", "0", "<b>", "ключ"]


async def test_ids_and_fields_that_every_object_has_are_only_ids_and_fields(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    assert await first.evaluate("(ids) => ids.map((id) => todos.get(id) === undefined)", HOSTILE_IDS) == [True] * 8
    await first.evaluate("(ids) => { for (const id of ids) todos.create({ id, title: `The ${id}` }); }", HOSTILE_IDS)
    await titles_are([f"The {id}" for id in HOSTILE_IDS], first, second)
    for page in tabs:
        found = await page.evaluate("(ids) => ids.map((id) => todos.get(id).get('title'))", HOSTILE_IDS)
        assert found == [f"The {id}" for id in HOSTILE_IDS]
    await second.evaluate("(ids) => { for (const id of ids) todos.get(id).destroy(); }", HOSTILE_IDS[:-1])
    await titles_are(["The ключ"], first, second)

    await first.evaluate("""() => Backsync.connection.call("Todo:upsert",
        JSON.parse('{"id": "p", "title": "Bad", "__proto__": {"bad": 1}, "constructor": {"prototype": {"bad": 1}}}')
    )""")
    await titles_are(["The ключ", "Bad"], first, second)
    await second.reload()
    await titles_are(["The ключ", "Bad"], second)
    for page in tabs:
        assert await page.evaluate("[todos.get('p').get('bad'), {}.bad, todos.bad]") == [None] * 3


async def test_records_with_any_ids_are_the_same_in_every_tab(tabs: tuple[Page, Page]) -> None:
    """Ids of the server's and cids of Backbone's are different things, whatever they look like."""
    first, second = tabs
    await first.evaluate("""() => {
        for (let n = 1; n <= 12; n += 1) todos.create({ id: `c${n}`, title: `T${n}` });
        todos.create({ id: "todo", title: "todo" });
        todos.create({ id: "refused", title: "forbidden" });
    }""")
    rows = [[f"c{n}", f"T{n}"] for n in range(1, 13)] + [["todo", "todo"]]
    for page in tabs:
        await until_equal(page, "todos.map((todo) => [todo.id, todo.get('title')])", rows)
    await second.evaluate("() => { todos.get('c3').save({ title: 'three' }); todos.get('c4').destroy(); }")
    await first.evaluate("() => { const one = todos.get('c5'); one.save({ title: 'x' }); one.destroy(); }")
    rows[2] = ["c3", "three"]
    del rows[3:5]
    for page in tabs:
        await until_equal(page, "todos.map((todo) => [todo.id, todo.get('title')])", rows)
    named = """async () => {
        const Model = Backbone.Model.extend({ idAttribute: "_id" });
        window.named = new (Backbone.Collection.extend({ url: "/api/v2/todos", model: Model }))();
        await named.live({ name: "Todo" });
        named.create({ title: "named" });
    }"""
    await first.evaluate(named)
    await titles_are([*(title for _, title in rows), "named"], *tabs)
    await until_equal(first, "named.pluck('title')", [*(title for _, title in rows), "named"])
    await first.evaluate("named.last().save({ title: 'renamed' })")
    await titles_are([*(title for _, title in rows), "renamed"], *tabs)
    assert await first.evaluate("named.last().id === todos.last().id && !todos.last().has('_id')")


async def test_the_module_works_with_the_backbone_of_npm(server: Server, visitors: Visitors) -> None:
    assert (ROOT / "client" / "node_modules" / "backbone").is_dir(), "`make setup` installs it"
    page, other = await visitors.new_page(server.url + "/module"), await visitors.new_page(server.url)
    await expect(page).to_have_title("Live")
    assert await page.evaluate("[typeof Backsync, connection.status]") == ["undefined", "live"]
    await page.evaluate("todos.create({ title: 'From the module' })")
    await titles_are(["From the module"], page, other)
    await other.evaluate("todos.first().save({ title: 'And back' })")
    await titles_are(["And back"], page, other)


WORKERS = {
    "module": "new Promise((done) => { new Worker(url, { type: 'module' }).onmessage = ({ data }) => done(data); })",
    "blob": """fetch('/worker/module').then((response) => response.text()).then((text) => new Promise((done) => {
        const absolute = text.replace('"/backsync/', `"${location.origin}/backsync/`);
        const blob = new Blob([absolute], { type: 'text/javascript' });
        new Worker(URL.createObjectURL(blob), { type: 'module' }).onmessage = ({ data }) => done(data); }))""",
    "classic": "new Promise((done) => { new Worker(url).onmessage = ({ data }) => done(data); })",
    "shared": """new Promise((done) => {
        new SharedWorker(url, { type: 'module' }).port.onmessage = ({ data }) => done(data); })""",
    "service": """new Promise((done) => {
        navigator.serviceWorker.onmessage = ({ data }) => done(data);
        navigator.serviceWorker.register(url, { type: 'module' }).then(async (registration) => {
            const worker = registration.installing ?? registration.active;
            worker.postMessage('run');
        });
        navigator.serviceWorker.startMessages();
    })""",
}


@pytest.mark.parametrize("kind", WORKERS)
async def test_it_works_where_there_is_no_document(server: Server, visitors: Visitors, kind: str) -> None:
    """Kind: places without document and window, such as workers: they lack session storage, some XMLHttpRequest."""
    page = await visitors.new_page(server.url)
    got = await page.evaluate(f"(url) => {WORKERS[kind]}", f"/worker/{kind}")
    name = "module" if kind == "blob" else kind
    assert got == {"record": {"id": name, "title": name}, "transport": "websocket"}
    await until_equal(page, f"todos.get('{name}')?.get('title')", name)
