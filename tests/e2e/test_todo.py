"""The todo example in a real browser, with and without a connection; knows the page's `data-testid`s, not its code."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import asyncpg
import pytest
from playwright.async_api import Locator, Page, ViewportSize, expect

from tests.browser import DESKTOP, PHONE, Visitors
from tests.e2e.pages import LOST_CONNECTION, expect_in_window, expect_to_fit, tab_to
from tests.postgres import PostgreSQL
from tests.servers import Server, uvicorn_server

Open = Callable[..., Awaitable[Page]]


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """The todo list alone, on a server of this test's own."""
    return serve("examples.todo:app")


@pytest.fixture
def open_list(server: Server, visitors: Visitors) -> Open:
    """`await open_list(viewport=PHONE)`: another person opens the list, and has all of it."""

    async def open_list(path: str = "/", **options: Any) -> Page:
        context = await visitors.new_context(**options)
        page = await visitors.new_page(server.url + path, context=context)
        await expect(page.get_by_test_id("status")).to_have_text("Live")
        return page

    return open_list


def titles(page: Page) -> Locator:
    return page.get_by_test_id("title").filter(visible=True)


def item(page: Page, title: str) -> Locator:
    """The todo of that title, whether or not it is being edited."""
    return page.get_by_test_id("todo").filter(has=page.get_by_test_id("title").get_by_text(title, exact=True))


async def add(page: Page, *texts: str) -> None:
    for text in texts:
        await page.get_by_test_id("new").fill(text)
        await page.get_by_test_id("new").press("Enter")


async def rename(page: Page, title: str, text: str, key: str = "Enter") -> None:
    """Double-click, write, and press the key."""
    await item(page, title).get_by_test_id("title").dblclick()
    edit = page.get_by_test_id("edit").filter(visible=True)
    await expect(edit).to_be_focused()
    await edit.fill(text)
    await edit.press(key)
    await expect(edit).to_have_count(0)


async def toggle(page: Page, title: str) -> None:
    await item(page, title).get_by_test_id("toggle").click()


async def expect_list(page: Page, *todos: str) -> None:
    """Exactly these, in this order; one that is done is written as `-Title`."""
    await expect(titles(page)).to_have_text([todo.removeprefix("-") for todo in todos])
    classes = [re.compile(r"\bdone\b") if todo.startswith("-") else "todo" for todo in todos]
    await expect(page.get_by_test_id("todo").filter(visible=True)).to_have_class(classes)


async def expect_saved(page: Page) -> None:
    await expect(page.get_by_test_id("status")).to_have_text("Live")
    await expect(page.get_by_test_id("waiting").filter(visible=True)).to_have_count(0)


async def cut(page: Page) -> None:
    await expect_saved(page)  # else what is on its way is lost, and waits as well
    await page.get_by_test_id("cut").click()
    await expect(page.get_by_test_id("status")).to_contain_text("Offline")


async def join(page: Page) -> None:
    await page.get_by_test_id("cut").click()
    await expect_saved(page)


async def test_two_people_work_on_one_list(open_list: Open) -> None:
    ada, grace = await open_list(), await open_list()
    for page in (ada, grace):
        await expect(page.get_by_test_id("empty")).to_have_text("Nothing to do.")
    await add(ada, "  Bread ", "Milk", "Tea", "   ")
    await expect(ada.get_by_test_id("new")).to_have_value("")
    await expect_list(grace, "Bread", "Milk", "Tea")
    await expect(grace.get_by_test_id("count")).to_have_text("3 todos left")

    await rename(grace, "Milk", "Oat milk")
    await toggle(grace, "Bread")
    for page in (ada, grace):
        await expect_list(page, "-Bread", "Oat milk", "Tea")
        await expect(page.get_by_test_id("count")).to_have_text("2 todos left")
    await rename(ada, "Tea", "Coffee", "Escape")
    await rename(ada, "Bread", "  ")
    await expect_list(grace, "Oat milk", "Tea")
    await item(ada, "Tea").hover()
    await item(ada, "Tea").get_by_test_id("remove").click()
    await expect_list(grace, "Oat milk")
    await expect(grace.get_by_test_id("count")).to_have_text("1 todo left")

    await add(grace, "Sugar", "Salt")
    await expect_list(ada, "Oat milk", "Sugar", "Salt")
    await toggle(ada, "Sugar")
    await expect(grace.get_by_test_id("toggle-all")).not_to_be_checked()
    await grace.get_by_test_id("toggle-all").click()
    await expect_list(ada, "-Oat milk", "-Sugar", "-Salt")
    await expect(ada.get_by_test_id("toggle-all")).to_be_checked()
    await ada.get_by_test_id("toggle-all").click()
    await expect_list(grace, "Oat milk", "Sugar", "Salt")
    await expect(grace.get_by_test_id("clear")).to_be_hidden()
    await toggle(grace, "Salt")
    await toggle(grace, "Oat milk")
    await expect_list(ada, "-Oat milk", "Sugar", "-Salt")
    await ada.get_by_test_id("clear").click()
    for page in (ada, grace):
        await expect_list(page, "Sugar")
        await expect(page.get_by_test_id("note")).to_have_count(0)


async def test_each_filter_has_a_url(open_list: Open) -> None:
    ada = await open_list("/#/")
    await add(ada, "Bread", "Milk", "Tea")
    await toggle(ada, "Milk")
    await ada.get_by_test_id("show-active").click()
    await expect(ada).to_have_url(re.compile(r"/#/active$"))
    await expect(ada.get_by_test_id("show-active")).to_have_attribute("aria-current", "true")
    await expect_list(ada, "Bread", "Tea")

    grace = await open_list("/#/completed")
    await expect_list(grace, "-Milk")
    await toggle(ada, "Bread")
    await expect_list(ada, "Tea")
    await expect_list(grace, "-Bread", "-Milk")
    await ada.go_back()
    await expect_list(ada, "-Bread", "-Milk", "Tea")
    await ada.go_forward()
    await toggle(ada, "Tea")
    await expect(ada.get_by_test_id("empty")).to_have_text("All done.")
    await add(grace, "Sugar")  # one sees what one has written
    await expect_list(grace, "-Bread", "-Milk", "-Tea", "Sugar")
    await expect_list(ada, "Sugar")


@pytest.mark.parametrize("way", ["switch", "network"])
async def test_a_page_that_was_offline_and_one_that_was_not_end_equal(
    open_list: Open, visitors: Visitors, way: Literal["switch", "network"]
) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    ada, grace = await open_list(), await open_list()
    await add(ada, "Bread", "Milk", "Tea", "Salt")
    await expect_list(grace, "Bread", "Milk", "Tea", "Salt")

    if way == "switch":
        await cut(ada)
    else:
        await ada.context.set_offline(True)
    status = ada.get_by_test_id("status")
    await expect(status).to_have_text("Offline")
    await toggle(ada, "Bread")
    await expect(status).to_have_text("Offline: 1 change waiting")
    await rename(ada, "Milk", "Oat milk")
    await rename(ada, "Tea", "Green tea")
    await rename(ada, "Salt", "Sea salt")
    await add(ada, "From Ada")
    await expect(status).to_have_text("Offline: 5 changes waiting")
    await expect(ada.get_by_test_id("waiting").filter(visible=True)).to_have_count(5)
    await rename(grace, "Bread", "Dark bread")  # another field of the same todo
    await toggle(grace, "Milk")
    await rename(grace, "Tea", "Black tea")
    await item(grace, "Salt").hover()
    await item(grace, "Salt").get_by_test_id("remove").click()
    await add(grace, "From Grace")
    await expect_list(grace, "Dark bread", "-Milk", "Black tea", "From Grace")
    await expect_list(ada, "-Bread", "Oat milk", "Green tea", "Sea salt", "From Ada")

    if way == "switch":
        await join(ada)
    else:
        await ada.context.set_offline(False)
    merged = ("-Dark bread", "-Oat milk", "Black tea", "From Grace", "From Ada")
    await expect_list(ada, *merged)
    await expect_list(grace, *merged)
    await expect_saved(ada)
    linus = await open_list()
    await expect_list(linus, *merged)

    await expect(ada.get_by_test_id("note")).to_have_count(2)
    conflict = item(ada, "Black tea").get_by_test_id("note")
    await expect(conflict).to_contain_text("Somebody else was quicker. You wrote: “Green tea”")
    gone = ada.get_by_test_id("lost").get_by_test_id("note")
    await expect(gone).to_contain_text("“Sea salt” was not changed. Somebody else has deleted it.")
    await conflict.get_by_role("button", name="Use mine").click()
    await gone.get_by_role("button", name="Write it anew").click()
    await expect(ada.get_by_test_id("new")).to_have_value("Sea salt")
    await ada.get_by_test_id("new").press("Enter")
    for page in (ada, grace, linus):
        await expect_list(page, "-Dark bread", "-Oat milk", "Green tea", "From Grace", "From Ada", "Sea salt")
    await expect(ada.get_by_test_id("note")).to_have_count(0)


async def test_the_switch_keeps_the_connection_cut(open_list: Open) -> None:
    ada, grace = await open_list(), await open_list()
    await cut(ada)
    await ada.evaluate("window.statuses = []; void Backsync.connection.on('status', (status) => statuses.push(status))")
    await ada.evaluate("void dispatchEvent(new Event('online'))")  # so that the client tries at once
    await ada.wait_for_function("statuses.includes('connecting') && statuses.at(-1) === 'offline'")
    await add(grace, "Bread")
    await expect_saved(grace)
    assert await ada.evaluate("statuses") == ["connecting", "offline"]
    await expect_list(ada)
    await join(ada)
    await expect_list(ada, "Bread")


async def test_twenty_edits_made_offline_arrive(open_list: Open) -> None:
    ada, grace = await open_list(), await open_list()
    await add(ada, "Zero")
    await expect_list(grace, "Zero")
    await cut(ada)
    numbers = [f"Number {number}" for number in range(1, 11)]
    await add(ada, *numbers)
    for number in numbers[:9]:
        await toggle(ada, number)
    await toggle(ada, "Zero")
    await rename(ada, "Zero", "Nought")
    await item(ada, "Number 1").get_by_test_id("remove").click()  # never sent: nothing is to be done
    await expect(ada.get_by_test_id("status")).to_have_text("Offline: 10 changes waiting")  # one for each todo
    await expect_list(grace, "Zero")
    await join(ada)
    for page in (ada, grace):
        await expect_list(page, "-Nought", *(f"-Number {number}" for number in range(2, 10)), "Number 10")
    await expect(ada.get_by_test_id("note")).to_have_count(0)


@pytest.mark.parametrize("connected", [True, False], ids=["live", "cut"])
async def test_what_the_server_refuses_is_taken_back_and_said(open_list: Open, connected: bool) -> None:
    ada, grace = await open_list(), await open_list()
    await add(ada, "Bread")
    await expect_list(grace, "Bread")
    too_long = "x" * 201
    if not connected:
        await cut(ada)
    await add(ada, too_long)
    await toggle(ada, "Bread")
    await rename(ada, "Bread", too_long)
    if not connected:
        await expect_list(ada, f"-{too_long}", too_long)  # at once; the server has not been asked yet
        await join(ada)
    edited = item(ada, "Bread").get_by_test_id("note")
    await expect(edited).to_contain_text("Not changed. A todo has 1 to 200 characters; this one has 201.")
    refused = ada.get_by_test_id("lost").get_by_test_id("note")
    await expect(refused).to_contain_text("was not added. A todo has 1 to 200 characters; this one has 201.")
    for page in (ada, grace):
        await expect_list(page, "-Bread")  # the tick was not at fault
    await expect_saved(ada)

    await edited.get_by_role("button", name="Edit again").click()
    edit = item(ada, "Bread").get_by_test_id("edit")
    await expect(edit).to_have_value(too_long)
    await edit.fill("Dark bread")
    await edit.press("Enter")
    await refused.get_by_role("button", name="Write it anew").click()
    await expect(ada.get_by_test_id("new")).to_have_value(too_long)
    await add(ada, "Milk")
    for page in (ada, grace):
        await expect_list(page, "-Dark bread", "Milk")
        await expect(page.get_by_test_id("note")).to_have_count(0)


async def test_changes_that_wait_outlive_a_reload(open_list: Open) -> None:
    ada, grace = await open_list(), await open_list()
    await add(ada, "Bread", "Milk", "Tea", "Sugar")
    await expect_list(grace, "Bread", "Milk", "Tea", "Sugar")
    await cut(ada)
    await rename(ada, "Bread", "Dark bread")
    await toggle(ada, "Milk")
    await item(ada, "Tea").hover()
    await item(ada, "Tea").get_by_test_id("remove").click()
    await add(ada, "Salt", "x" * 201)
    await toggle(ada, "Salt")
    await rename(ada, "Sugar", "Brown sugar")
    await expect(ada.get_by_test_id("status")).to_have_text("Offline: 6 changes waiting")
    await rename(grace, "Sugar", "White sugar")
    await expect_list(grace, "Bread", "Milk", "Tea", "White sugar")

    await ada.reload()  # the switch is off again
    for page in (ada, grace):
        await expect_list(page, "Dark bread", "-Milk", "White sugar", "-Salt")
    await expect_saved(ada)
    notes = ada.get_by_test_id("note")
    await expect(notes).to_have_count(2)
    await expect(notes.first).to_contain_text("was not saved. A todo has 1 to 200 characters")
    await expect(notes.last).to_contain_text("“Brown sugar” was not saved. Somebody else was quicker.")
    await notes.last.get_by_role("button", name="Write it anew").click()
    await expect(ada.get_by_test_id("new")).to_have_value("Brown sugar")


async def test_editing_is_not_disturbed_by_others(open_list: Open) -> None:
    ada, grace = await open_list(), await open_list()
    await add(ada, "Bread", "Milk")
    await expect_list(grace, "Bread", "Milk")
    await item(ada, "Milk").get_by_test_id("title").dblclick()
    edit = ada.get_by_test_id("edit").filter(visible=True)
    await edit.fill("Oat milk")
    await toggle(grace, "Milk")
    await rename(grace, "Bread", "Dark bread")
    await rename(grace, "Milk", "Goat milk")
    await expect(ada.get_by_test_id("title").first).to_have_text("Dark bread")
    await expect(ada.get_by_test_id("todo").last).to_have_class(re.compile(r"\bdone\b"))
    await expect(edit).to_be_focused()
    await expect(edit).to_have_value("Oat milk")
    await edit.press("Enter")
    await expect(item(ada, "Goat milk").get_by_test_id("note")).to_contain_text("You wrote: “Oat milk”")

    await item(ada, "Dark bread").get_by_test_id("title").dblclick()
    await edit.fill("Light bread")
    await item(grace, "Dark bread").hover()
    await item(grace, "Dark bread").get_by_test_id("remove").click()
    gone = ada.get_by_test_id("lost").get_by_test_id("note")
    await expect(gone).to_contain_text("“Dark bread” was deleted by somebody else while you edited it.")
    await gone.get_by_role("button", name="Keep my text").click()
    await expect_list(grace, "-Goat milk", "Light bread")


async def test_a_conflict_shows_both_texts_whole(open_list: Open) -> None:
    grace = await open_list()
    ada = await open_list(viewport=PHONE)
    long = "Paint the fence " * 11
    await add(ada, long)
    await expect_list(grace, long.strip())
    await cut(ada)
    await item(ada, long.strip()).get_by_test_id("begin").click()
    edit = ada.get_by_test_id("edit").filter(visible=True)
    await edit.fill(long + "in green")
    await edit.press("Enter")
    await rename(grace, long.strip(), long + "in blue")
    await expect_saved(grace)
    await join(ada)
    note = item(ada, long + "in blue").get_by_test_id("note")
    await expect(note).to_contain_text(f"You wrote: “{long}in green”")
    await expect_in_window(ada, note)
    await expect_to_fit(ada)


async def test_text_is_never_html(open_list: Open) -> None:
    hostile = [
        "<img src=x onerror='window.hacked = true'>",
        "</script><script>window.hacked = true</script>",
        "&lt;b&gt; & <b>bold</b>",
        "{{constructor.constructor('hacked = true')()}} ${hacked = true}",
    ]
    ada, grace = await open_list(), await open_list()
    await add(ada, *hostile, hostile[0] * 5)
    for page in (ada, grace):
        await expect(titles(page)).to_have_text(hostile)
        await expect(page.get_by_test_id("todos").locator("img, script, b")).to_have_count(0)
    await expect(ada.get_by_test_id("note")).to_have_count(1)
    await expect(ada.get_by_test_id("note").locator("img")).to_have_count(0)
    assert await ada.evaluate("typeof hacked") == "undefined"


async def test_on_a_phone_everything_fits_and_can_be_reached(open_list: Open) -> None:
    grace = await open_list()
    ada = await open_list(viewport=PHONE, has_touch=True, is_mobile=True)
    await add(ada, "Bread", "Wörter" * 30, "https://example.org/" + "a/" * 80, "x" * 201)
    await expect_saved(ada)
    await ada.get_by_test_id("cut").tap()
    await item(ada, "Bread").get_by_test_id("toggle").tap()
    await expect(ada.get_by_test_id("status")).to_have_text("Offline: 1 change waiting")
    await expect_to_fit(ada)
    await expect_in_window(ada, *(ada.get_by_test_id(name) for name in ("status", "cut", "new", "add")))
    await item(ada, "Bread").get_by_test_id("begin").tap()
    edit = ada.get_by_test_id("edit").filter(visible=True)
    await expect(edit).to_be_focused()
    await edit.fill("Dark bread")
    await ada.get_by_test_id("new").tap()  # leaving it saves
    await expect(item(ada, "Dark bread")).to_be_visible()
    await ada.get_by_test_id("cut").tap()
    await expect(titles(grace).first).to_have_text("Dark bread")
    for name in ("begin", "remove", "show-active", "add"):
        box = await ada.get_by_test_id(name).first.bounding_box()
        assert box is not None
        assert box["height"] >= 36, f"{name} is too small for a finger"
    await ada.get_by_test_id("show-completed").tap()
    await expect_list(ada, "-Dark bread")
    await ada.get_by_test_id("remove").filter(visible=True).tap()
    await expect(titles(grace)).to_have_count(2)
    await expect_to_fit(ada)


async def test_everything_can_be_done_with_the_keyboard_alone(open_list: Open) -> None:
    ada = await open_list()
    await expect(ada.get_by_test_id("new")).to_be_focused()
    for text in ("Bread", "Milk"):
        await ada.keyboard.type(text)
        await ada.keyboard.press("Enter")
    await expect_saved(ada)
    await tab_to(ada, ada.get_by_test_id("toggle").first)
    await ada.keyboard.press("Space")
    await expect_list(ada, "-Bread", "Milk")
    await expect_saved(ada)
    await expect(ada.get_by_test_id("toggle").first).to_be_focused()
    await tab_to(ada, ada.get_by_test_id("begin").first)
    await ada.keyboard.press("Enter")
    await ada.keyboard.press("ControlOrMeta+A")
    await ada.keyboard.type("Dark bread")
    await ada.keyboard.press("Enter")
    await expect_list(ada, "-Dark bread", "Milk")
    await expect(ada.get_by_test_id("begin").first).to_be_focused()
    await tab_to(ada, ada.get_by_test_id("remove").first)
    await ada.keyboard.press("Enter")
    await expect_list(ada, "Milk")
    await expect(ada.get_by_test_id("remove")).to_be_focused()
    await tab_to(ada, ada.get_by_test_id("toggle-all"), "Shift+Tab")
    await ada.keyboard.press("Space")
    await expect_list(ada, "-Milk")
    await expect_saved(ada)  # else it is still on its way when the connection is cut, and waits, too
    await tab_to(ada, ada.get_by_test_id("cut"), "Shift+Tab")
    await ada.keyboard.press("Space")
    await expect(ada.get_by_test_id("status")).to_have_text("Offline")
    await tab_to(ada, ada.get_by_test_id("clear"))
    await ada.keyboard.press("Enter")
    await expect(titles(ada)).to_have_count(0)
    await expect(ada.get_by_test_id("status")).to_have_text("Offline: 1 change waiting")
    await tab_to(ada, ada.get_by_test_id("cut"), "Shift+Tab")
    await ada.keyboard.press("Space")
    await expect_saved(ada)


async def test_among_the_other_examples_it_is_a_list_as_well(examples: Server, visitors: Visitors) -> None:
    ada, grace = [await visitors.new_page(examples.url) for _ in range(2)]
    for page in (ada, grace):
        await page.get_by_role("link", name="Todo").click()
        await expect(page).to_have_url(examples.url + "/todo/")
    await add(ada, "Bread")
    await expect_list(grace, "Bread")
    await grace.get_by_role("link", name="Backsync").click()
    await expect(grace).to_have_url(examples.url + "/")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_the_ring_of_the_edit_box_leaves_the_circle_free(open_list: Open, viewport: ViewportSize) -> None:
    page = await open_list(viewport=viewport)
    await add(page, "Bread")
    title = await item(page, "Bread").get_by_test_id("title").bounding_box()
    await item(page, "Bread").get_by_test_id("title").dblclick()
    edit = page.get_by_test_id("edit").filter(visible=True)
    await expect(edit).to_be_focused()
    circle = await item(page, "Bread").get_by_test_id("toggle").bounding_box()
    box = await edit.bounding_box()
    assert title is not None
    assert circle is not None
    assert box is not None
    ring, inside = await edit.evaluate("""(edit) => {
        const style = getComputedStyle(edit);
        const sum = (...names) => names.reduce((total, name) => total + parseFloat(style[name]), 0);
        return [sum("outlineOffset", "outlineWidth"), sum("paddingLeft", "borderLeftWidth")];
    }""")
    assert box["x"] - ring > circle["x"] + circle["width"]
    assert box["x"] + inside == pytest.approx(title["x"], abs=1), "the text stays where it was"


@pytest.fixture(params=["sqlite", "postgresql"])
async def kept_in(request: pytest.FixtureRequest, database_url: str) -> str:
    """The URL of an empty database, once for each kind."""
    if request.param == "sqlite":
        return database_url
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    connection = await asyncpg.connect(postgresql.url)
    await connection.execute("CREATE DATABASE todo_example")
    await connection.close()
    return postgresql.url.removesuffix("/postgres") + "/todo_example"


async def test_the_list_outlives_its_server(kept_in: str, visitors: Visitors) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    env = {"DATABASE_URL": kept_in}
    with uvicorn_server("examples.todo:app", env=env) as first:
        ada = await visitors.new_page(first.url)
        await add(ada, "Bread", "Milk", "Tea")
        await toggle(ada, "Milk")
        await rename(ada, "Tea", "Green tea")
        await expect_saved(ada)
        first.kill()
        await expect(ada.get_by_test_id("status")).to_contain_text("Offline")
        await rename(ada, "Bread", "Dark bread")
        await add(ada, "Sugar")

        with uvicorn_server("examples.todo:app", env=env, port=first.port):
            grace = await visitors.new_page(first.url)
            for page in (ada, grace):
                await expect_list(page, "Dark bread", "-Milk", "Green tea", "Sugar")
            await add(grace, "Salt")
            await expect_list(ada, "Dark bread", "-Milk", "Green tea", "Sugar", "Salt")
            await expect(ada.get_by_test_id("note")).to_have_count(0)
            for page in (ada, grace):
                await page.close()
