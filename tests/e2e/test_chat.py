"""The chat example in a real browser, over each kind of transport; knows the page's `data-testid`s, not its code."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal

import pytest
from playwright.async_api import BrowserContext, Locator, Page, Request, ViewportSize, WebSocket, expect

from backsync_asgi.stores import SQLStore
from tests.browser import DESKTOP, PHONE, Visitors
from tests.e2e.pages import LOST_CONNECTION, expect_in_window, expect_to_fit, tab_to
from tests.e2e.picture_app import FIRST
from tests.servers import ROOT, Server, uvicorn_server

Transport = Literal["websocket", "xhr-streaming", "xhr-polling"]
KEPT = 500  # messages that the chat keeps, and some more until it makes room

TRANSPORTS: tuple[Transport, ...] = ("websocket", "xhr-streaming", "xhr-polling")

# The requests that tell which transport carries: sending is the same over both HTTP ones.
CARRIERS = {"websocket": "websocket", "xhr_streaming": "xhr-streaming", "xhr": "xhr-polling"}

BACK_WITHIN = 60_000  # milliseconds; a client's attempts are up to 8 s apart, and polling is its last resort


class Chat:
    """The chat at `url`, and people who come to it with browsers that leave them no better transport."""

    def __init__(self, url: str, visitors: Visitors, transport: Transport = "websocket") -> None:
        self.url = url
        self.transport = transport
        self.carried: set[str] = set()  # the transports over which something has really come
        self._visitors = visitors

    async def new_context(self, viewport: ViewportSize = DESKTOP, **options: Any) -> BrowserContext:
        context = await self._visitors.new_context(viewport, **options)
        context.on("page", lambda page: page.on("websocket", self._on_websocket))
        context.on("requestfinished", self._on_request)
        context.on("response", lambda response: self._on_request(response.request))  # a stream does not finish
        if self.transport != "websocket":
            await context.add_init_script("delete window.WebSocket")
        if self.transport == "xhr-polling":
            await context.route(re.compile(r"/(xhr_streaming|eventsource)(\?|$)"), lambda route: route.abort())
            self._visitors.expect_problem(r"net::ERR_FAILED .*/(xhr_streaming|eventsource)\b")
        return context

    async def enter(self, name: str, viewport: ViewportSize = DESKTOP, **options: Any) -> Page:
        """Another person comes and says a name."""
        context = await self.new_context(viewport, **options)
        page = await self._visitors.new_page(self.url, context=context)
        await page.get_by_test_id("name-input").fill(name)
        await page.get_by_test_id("name-join").click()
        await expect(page.get_by_test_id("people").locator(".you")).to_have_count(1, timeout=BACK_WITHIN)
        await expect(page.get_by_test_id("status")).to_have_text("Live")
        return page

    def _on_request(self, request: Request) -> None:
        self._note(request.url)

    def _on_websocket(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda _: self._note(socket.url))

    def _note(self, url: str) -> None:
        found = re.search(r"/backsync/[^/]+/[^/]+/(\w+)(\?|$)", url)
        if found is not None and found.group(1) in CARRIERS:
            self.carried.add(CARRIERS[found.group(1)])


@pytest.fixture
def chat(examples: Server, visitors: Visitors) -> Chat:
    return Chat(examples.url + "/chat/", visitors)


@pytest.fixture(params=TRANSPORTS)
def chat_by(request: pytest.FixtureRequest, examples: Server, visitors: Visitors) -> Chat:
    """As `chat`, once for each kind of transport."""
    return Chat(examples.url + "/chat/", visitors, request.param)


def texts(page: Page) -> Locator:
    return page.get_by_test_id("message").locator(".text")


def authors(page: Page) -> Locator:
    return page.get_by_test_id("message").locator(".author")


def names(page: Page) -> Locator:
    return page.get_by_test_id("people").locator(".name")


async def say(page: Page, *messages: str) -> None:
    """Type and send; each is confirmed, or waits for the connection, before the next one."""
    for text in messages:
        await page.get_by_test_id("message-input").fill(text)
        await page.get_by_test_id("message-input").press("Enter")


async def test_two_people_chat_and_a_third_sees_what_was_said_and_who_is_here(chat_by: Chat) -> None:
    ada, grace = await asyncio.gather(chat_by.enter("Ada"), chat_by.enter("Grace"))
    await expect(names(ada)).to_have_text(["Ada", "Grace"])
    await expect(names(grace)).to_have_text(["Grace", "Ada"])

    await say(ada, "Hello, Grace")
    await expect(texts(grace)).to_have_text(["Hello, Grace"])
    await say(grace, "Hello, Ada", "How are you?")
    for page, who in ((ada, ["You", "Grace", "Grace"]), (grace, ["Ada", "You", "You"])):
        await expect(texts(page)).to_have_text(["Hello, Grace", "Hello, Ada", "How are you?"])
        await expect(authors(page)).to_have_text(who)
        await expect(page.get_by_test_id("draft")).to_have_count(0)

    linus = await chat_by.enter("Linus")
    await expect(texts(linus)).to_have_text(["Hello, Grace", "Hello, Ada", "How are you?"])
    await expect(authors(linus)).to_have_text(["Ada", "Grace", "Grace"])
    await expect(names(linus)).to_have_text(["Linus", "Ada", "Grace"])
    for page in (ada, grace, linus):
        await expect(page.get_by_test_id("count")).to_have_text("3")

    await linus.close()
    await expect(names(ada)).to_have_text(["Ada", "Grace"])
    await expect(names(grace)).to_have_text(["Grace", "Ada"])
    await expect(ada.get_by_test_id("count")).to_have_text("2")
    assert chat_by.carried == {chat_by.transport}


async def test_a_page_without_network_comes_back_and_misses_nothing(chat_by: Chat, visitors: Visitors) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    ada, grace = await asyncio.gather(chat_by.enter("Ada"), chat_by.enter("Grace"))
    await say(grace, "Before")
    await expect(texts(ada)).to_have_text(["Before"])

    await ada.context.set_offline(True)
    await expect(ada.get_by_test_id("status")).to_contain_text("Offline")
    missed = [f"Message {number}" for number in range(1, 11)]
    await say(grace, *missed)
    await expect(texts(grace)).to_have_text(["Before", *missed])
    await say(ada, "Said while away")
    await expect(ada.get_by_test_id("draft")).to_contain_text(["Waiting to be sent"])

    await ada.context.set_offline(False)
    for page in (ada, grace):
        await expect(texts(page)).to_have_text(["Before", *missed, "Said while away"], timeout=BACK_WITHIN)
    await expect(ada.get_by_test_id("status")).to_have_text("Live")
    await expect(ada.get_by_test_id("draft")).to_have_count(0)
    await say(grace, "After")
    await expect(texts(ada)).to_have_text(["Before", *missed, "Said while away", "After"])
    await expect(names(ada)).to_have_text(["Ada", "Grace"])
    await expect(names(grace)).to_have_text(["Grace", "Ada"])
    assert chat_by.carried == {chat_by.transport}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_pages_come_back_to_a_server_that_was_killed_and_started_again(
    transport: Transport, visitors: Visitors, database_url: str
) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    env = {"DATABASE_URL": database_url}
    with uvicorn_server("examples.app:app", env=env) as first:
        chat = Chat(first.url + "/chat/", visitors, transport)
        ada, grace = await asyncio.gather(chat.enter("Ada"), chat.enter("Grace"))
        await say(ada, "Said before it was killed")
        await expect(texts(grace)).to_have_count(1)

        first.kill()
        for page in (ada, grace):
            await expect(page.get_by_test_id("status")).not_to_have_text("Live")
        await say(ada, "Said while it was down", "And this")
        await expect(ada.get_by_test_id("draft")).to_have_count(2)

        said = ["Said before it was killed", "Said while it was down", "And this"]
        with uvicorn_server("examples.app:app", port=first.port, env=env):
            for page in (ada, grace):
                await expect(texts(page)).to_have_text(said, timeout=BACK_WITHIN)
                await expect(page.get_by_test_id("status")).to_have_text("Live", timeout=BACK_WITHIN)
            await say(grace, "Here again")
            for page, who in ((ada, "Grace"), (grace, "Ada")):
                await expect(texts(page)).to_have_text([*said, "Here again"])
                await expect(names(page)).to_contain_text([who])
                await expect(page.get_by_test_id("count")).to_have_text("2")
            await expect(ada.get_by_test_id("draft")).to_have_count(0)
            assert chat.carried == {transport}
            await asyncio.gather(ada.close(), grace.close())


async def test_who_gives_no_name_is_anonymous(chat: Chat, visitors: Visitors) -> None:
    ada = await chat.enter("  Ada  ")  # what is typed is tidied
    await expect(names(ada)).to_have_text(["Ada"])

    async def leave_empty(page: Page) -> None:
        await page.get_by_test_id("name-input").fill("   ")
        await page.get_by_test_id("name-join").click()

    async def decline(page: Page) -> None:
        await page.get_by_test_id("name-input").fill("Not me")
        await page.get_by_test_id("name-cancel").click()

    async def escape(page: Page) -> None:
        await page.keyboard.press("Escape")

    ways: list[Callable[[Page], Awaitable[None]]] = [leave_empty, decline, escape]
    for number, way in enumerate(ways, start=2):
        page = await visitors.new_page(chat.url)
        await expect(page.get_by_test_id("name-dialog")).to_be_visible()
        await way(page)
        await expect(page.get_by_test_id("name-dialog")).to_be_hidden()
        await expect(names(page).first).to_have_text(re.compile(r"^Anonymous \d{4}$"))
        await expect(names(ada)).to_have_count(number)
        await say(page, "Guess who")
        await expect(authors(ada).last).to_have_text(await names(page).first.inner_text())
        await expect(texts(ada)).to_have_count(number - 1)


async def test_a_person_can_be_renamed_and_stays_the_same_after_a_reload(chat: Chat) -> None:
    ada, grace = await chat.enter("Ada"), await chat.enter("Grace")
    await say(ada, "It is me")
    await ada.get_by_test_id("rename").click()
    await expect(ada.get_by_test_id("name-input")).to_have_value("Ada")
    await expect(ada.get_by_test_id("name-join")).to_have_text("Rename")
    await ada.get_by_test_id("name-input").fill("Augusta Ada")
    await ada.get_by_test_id("name-join").click()
    await expect(names(grace)).to_have_text(["Grace", "Augusta Ada"])

    await ada.reload()
    await expect(ada.get_by_test_id("name-dialog")).to_be_hidden()
    await expect(names(ada)).to_have_text(["Augusta Ada", "Grace"])
    await expect(authors(ada)).to_have_text(["You"])
    await say(ada, "Still me")
    await expect(authors(grace)).to_have_text(["Ada", "Augusta Ada"])
    await expect(grace.get_by_test_id("count")).to_have_text("2")


async def test_a_person_s_url_shows_only_what_they_wrote(chat: Chat, visitors: Visitors) -> None:
    ada, grace = await chat.enter("Ada"), await chat.enter("Grace")
    await say(ada, "One")
    await expect(texts(grace)).to_have_count(1)
    await say(grace, "Two")
    await expect(texts(ada)).to_have_count(2)

    await names(ada).get_by_text("Grace").click()
    await expect(ada).to_have_url(re.compile(r"/chat/#users/[0-9a-f]{16}$"))
    url = ada.url
    seen = texts(ada).filter(visible=True)
    await expect(ada.get_by_test_id("filter-name")).to_have_text("Grace")
    await expect(seen).to_have_text(["Two"])
    await say(grace, "Three")
    await expect(seen).to_have_text(["Two", "Three"])

    await ada.get_by_test_id("show-all").click()
    await expect(seen).to_have_text(["One", "Two", "Three"])
    await expect(ada.get_by_test_id("filter")).to_be_hidden()
    await ada.go_back()
    await expect(seen).to_have_text(["Two", "Three"])
    await say(ada, "Four")  # one sees what one has written
    await expect(seen).to_have_text(["One", "Two", "Three", "Four"])

    linus = await visitors.new_page(url)
    await linus.get_by_test_id("name-cancel").click()
    await expect(texts(linus).filter(visible=True)).to_have_text(["Two", "Three"])
    await expect(linus.get_by_test_id("filter-name")).to_have_text("Grace")


async def test_text_is_never_html(chat: Chat) -> None:
    hostile = [
        "<img src=x onerror='window.hacked = true'>",
        "</script><script>window.hacked = true</script>",
        "&lt;b&gt; & <b>bold</b>",
        "javascript:hacked=true",
        "{{constructor.constructor('hacked = true')()}} ${hacked = true}",
    ]
    name = "<i onclick=x>Ada</i>"
    ada, grace = await chat.enter(name), await chat.enter("Grace")
    await say(ada, *hostile)
    for page in (ada, grace):
        await expect(texts(page)).to_have_text(hostile)
        await expect(names(page).filter(has_text=name)).to_have_count(1)
        for inside in ("messages", "people"):
            await expect(page.get_by_test_id(inside).locator("img, script, b, i")).to_have_count(0)
        assert await page.evaluate("typeof hacked") == "undefined"
    await expect(authors(grace).first).to_have_text(name)


async def test_a_long_message_arrives_whole_and_a_longer_one_is_refused_with_words(chat: Chat) -> None:
    ada, grace = await chat.enter("Ada"), await chat.enter("Grace")
    longest = "".join(f"{number:>4}" for number in range(1, 500)).strip().ljust(2000, "€")
    await say(ada, longest)
    await expect(texts(grace)).to_have_count(1)
    assert await texts(grace).first.text_content() == longest

    await say(ada, "x" * 2001)  # the page does not let one type so much
    await expect(texts(grace).last).to_have_text("x" * 2000)
    await ada.get_by_test_id("message-input").evaluate("(element) => element.removeAttribute('maxlength')")
    await say(ada, "y" * 2001)
    draft = ada.get_by_test_id("draft")
    await expect(draft.get_by_role("alert")).to_contain_text("1 to 2000 characters, please.")
    await expect(draft).to_have_attribute("data-state", "refused")
    await draft.get_by_role("button", name="Try again").click()
    await expect(draft.get_by_role("alert")).to_contain_text("1 to 2000 characters, please.")
    await say(ada, "Shorter")
    await expect(texts(grace).last).to_have_text("Shorter")
    await draft.get_by_role("button", name="Discard").click()
    await expect(draft).to_have_count(0)
    for page in (ada, grace):
        await expect(texts(page)).to_have_text([longest, "x" * 2000, "Shorter"])


async def test_on_a_phone_everything_fits_and_can_be_reached(chat: Chat, visitors: Visitors) -> None:
    context = await chat.new_context(PHONE, has_touch=True, is_mobile=True)
    ada = await visitors.new_page(chat.url, context=context)
    dialog = ada.get_by_test_id("name-dialog")
    await expect_in_window(ada, dialog, ada.get_by_test_id("name-join"), ada.get_by_test_id("name-cancel"))
    await expect_to_fit(ada)
    await ada.get_by_test_id("name-input").fill("Ada" * 13)
    await ada.get_by_test_id("name-join").tap()

    others = await asyncio.gather(*(chat.enter(f"Guest with a long name {letter}", PHONE) for letter in "ABC"))
    await expect(names(ada)).to_have_count(4)
    await say(others[-1], "Wörter" * 60, "https://example.org/" + "a/" * 100, *("And then?",) * 12)
    await say(ada, "x" * 200)
    await expect(texts(ada)).to_have_count(15)
    await expect(texts(ada).last).to_be_in_viewport()
    await expect_to_fit(ada)
    controls = [ada.get_by_test_id(name) for name in ("status", "rename", "message-input", "send", "count")]
    await expect_in_window(ada, *controls)
    for control in controls[1:4]:
        box = await control.bounding_box()
        assert box is not None
        assert box["height"] >= 36, "too small for a finger"

    await names(ada).last.scroll_into_view_if_needed()
    await names(ada).last.tap()
    await expect(ada.get_by_test_id("filter-name")).to_have_text("Guest with a long name C")
    await expect_in_window(ada, ada.get_by_test_id("show-all"))
    await expect_to_fit(ada)
    await ada.get_by_test_id("show-all").tap()
    await texts(ada).first.scroll_into_view_if_needed()
    await ada.get_by_test_id("newest").tap()
    await expect(texts(ada).last).to_be_in_viewport()


async def test_who_is_at_the_end_stays_there_as_the_window_becomes_smaller(chat: Chat) -> None:
    ada = await chat.enter("Ada", PHONE)
    await say(ada, *(f"Line {number}" for number in range(20)), "Last")
    await expect(texts(ada).last).to_be_in_viewport()
    # The event of a scroll comes with the next frame, by when there may be less room than there was.
    await ada.evaluate(
        """async () => {
            const scroller = document.getElementById("scroller");
            const item = scroller.querySelector("ol").lastElementChild;
            const more = item.cloneNode();
            more.style.height = "80px";
            item.before(more);
            await null;
            scroller.style.height = scroller.clientHeight - 100 + "px";
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
        }"""
    )
    await expect(texts(ada).last).to_be_in_viewport()
    await expect(ada.get_by_test_id("newest")).to_be_hidden()
    await ada.evaluate("document.getElementById('scroller').scrollTop -= 200")
    await expect(ada.get_by_test_id("newest")).to_be_visible()


async def test_on_a_phone_a_long_own_name_leaves_room_for_the_others(chat: Chat) -> None:
    ada = await chat.enter("Ada" * 13, PHONE)
    await expect_in_window(ada, names(ada).first)  # who is alone has all the room
    grace = await chat.enter("Grace")
    await expect(names(ada)).to_have_text(["Ada" * 13, "Grace"])
    await expect_in_window(ada, ada.get_by_test_id("person").locator(".you"), names(ada).last)
    await expect_in_window(grace, names(grace).first)


async def test_no_keyboard_covers_a_phone_before_somebody_wants_to_write(chat: Chat, visitors: Visitors) -> None:
    context = await chat.new_context(PHONE, has_touch=True, is_mobile=True)
    ada = await visitors.new_page(chat.url, context=context)
    await expect(ada.get_by_test_id("name-join")).to_have_text("Join")
    await ada.get_by_test_id("name-cancel").tap()
    await expect(ada.get_by_test_id("name-dialog")).to_be_hidden()
    await expect(names(ada)).to_have_count(1)
    await expect(ada.get_by_test_id("message-input")).not_to_be_focused()


async def test_everything_can_be_done_with_the_keyboard_alone(chat: Chat, visitors: Visitors) -> None:
    ada = await visitors.new_page(chat.url)
    await expect(ada.get_by_test_id("name-input")).to_be_focused()
    await ada.keyboard.type("Ada")
    await ada.keyboard.press("Enter")
    await expect(ada.get_by_test_id("name-dialog")).to_be_hidden()
    await expect(ada.get_by_test_id("message-input")).to_be_focused()
    grace = await chat.enter("Grace")
    await say(grace, "Hello")
    await expect(texts(ada)).to_have_text(["Hello"])

    await ada.keyboard.type("Two")
    await ada.keyboard.press("Shift+Enter")
    await ada.keyboard.type("lines")
    await ada.keyboard.press("Enter")
    await expect(texts(grace)).to_have_count(2)
    assert await texts(grace).last.text_content() == "Two\nlines"
    await expect(ada.get_by_test_id("message-input")).to_have_value("")
    await ada.keyboard.type("By button")
    await tab_to(ada, ada.get_by_test_id("send"))
    await ada.keyboard.press("Enter")
    await expect(texts(grace)).to_have_count(3)

    seen = texts(ada).filter(visible=True)
    await tab_to(ada, ada.get_by_test_id("person").get_by_role("link", name="Grace"), "Shift+Tab")
    await ada.keyboard.press("Enter")
    await expect(seen).to_have_text(["Hello"])
    await tab_to(ada, ada.get_by_test_id("show-all"))
    await ada.keyboard.press("Enter")
    await expect(seen).to_have_count(3)
    await tab_to(ada, ada.get_by_test_id("rename"), "Shift+Tab")
    await ada.keyboard.press("Enter")
    await ada.keyboard.type("Augusta")
    await ada.keyboard.press("Enter")
    await expect(names(grace)).to_have_text(["Grace", "Augusta"])
    await expect(ada.get_by_test_id("message-input")).to_be_focused()


async def test_others_see_who_types(chat: Chat) -> None:
    ada, grace = await asyncio.gather(chat.enter("Ada"), chat.enter("Grace"))
    await grace.get_by_test_id("message-input").press_sequentially("Well")
    await expect(ada.get_by_test_id("typing")).to_have_text("Grace is typing…")
    await grace.keyboard.press("Enter")
    await expect(texts(ada)).to_have_text(["Well"])
    await expect(ada.get_by_test_id("typing")).to_be_empty()


async def test_who_leaves_types_no_more(chat: Chat) -> None:
    ada, grace = await asyncio.gather(chat.enter("Ada"), chat.enter("Grace"))
    await grace.get_by_test_id("message-input").press_sequentially("Well")
    await expect(ada.get_by_test_id("typing")).to_have_text("Grace is typing…")
    # How many are here when the mark goes: who is cut off stays a while, and the mark of one who stops even longer.
    await ada.evaluate(
        """() => {
            const [typing, count] = ["typing", "count"].map((id) => document.getElementById(id));
            const note = () => { if (!typing.textContent) window.hereThen ??= count.textContent; };
            new MutationObserver(note).observe(typing, { childList: true });
        }"""
    )
    await grace.close()
    await expect(ada.get_by_test_id("count")).to_have_text("1")
    assert await ada.evaluate("window.hereThen") == "2"


async def test_it_keeps_the_newest_messages(
    database_url: str, serve: Callable[..., Server], visitors: Visitors
) -> None:
    store = SQLStore(database_url)
    store.bind("ChatMessage", None)
    for number in range(KEPT + 5):
        time = (FIRST + timedelta(seconds=number)).isoformat()
        await store.upsert({"text": f"Number {number}", "time": time, "userId": "linus", "screenName": "Linus"})
    await store.close()

    chat = Chat(serve("examples.chat:app").url, visitors)
    ada, grace = await asyncio.gather(chat.enter("Ada"), chat.enter("Grace"))
    for page in (ada, grace):
        await expect(texts(page)).to_have_count(KEPT + 5)
        await expect(texts(page).first).to_have_text("Number 0")
    await say(ada, "One more")
    for page in (ada, grace):
        await expect(texts(page)).to_have_count(KEPT + 1)
        await expect(texts(page).first).to_have_text("Number 5")
        await expect(texts(page).last).to_have_text("One more")


PICTURE = ROOT / "docs" / "chat.png"

# The names of the clients are chosen for the colours that the page makes of them.
PEOPLE = (
    ("Ada", "ada-421", ViewportSize(width=940, height=700)),
    ("Grace", "grace-26", PHONE),
    ("Linus", "linus-52", PHONE),
)

TALK = (
    ("Ada", "Good morning! Two windows, one conversation."),
    ("Grace", "Good morning. I am on my phone today."),
    ("Linus", "And I was on a train, without network. What did I miss?"),
    ("Grace", "Nothing. All of it was there when you came back."),
    ("Ada", "So who keeps our lists equal?"),
    ("Linus", "Not me. I wrote an ordinary Backbone collection."),
    ("Ada", "Same here: a decorated function in Python."),
)

FRAME = """<!doctype html>
<style>
  body {{ display: flex; align-items: center; justify-content: center; gap: 32px; height: 100vh; margin: 0; }}
  body {{ background: #e6e9f2; }}
  img {{ height: 700px; border-radius: 12px; box-shadow: 0 0 0 1px #0002, 0 16px 40px #1a245033; }}
  img + img {{ border: 7px solid #1b1f27; border-radius: 34px; }}
</style>
<img src="{}" alt=""><img src="{}" alt="">"""


async def test_its_picture_for_the_readme(serve: Callable[..., Server], visitors: Visitors) -> None:
    """Taken each time; with UPDATE_PICTURES=1 it becomes the one in docs/."""
    server = serve("tests.e2e.picture_app:app")
    people = {}
    for name, client, viewport in PEOPLE:
        context = await visitors.new_context(viewport, device_scale_factor=2, locale="en-GB", timezone_id="UTC")
        await context.clock.set_fixed_time(FIRST)
        for key, value in (("me", json.dumps({"screenName": name})), ("backsync:chat", client)):
            entry = f"{json.dumps(key)}, {json.dumps(value)}"
            await context.add_init_script(f"if (origin !== 'null') sessionStorage.setItem({entry})")
        people[name] = await visitors.new_page(server.url, context=context)
    for page in people.values():
        await page.add_style_tag(content="html { font-family: 'Liberation Sans' }")  # near to what most systems show
        await expect(page.get_by_test_id("person")).to_have_count(len(PEOPLE))
    for number, (name, text) in enumerate(TALK, start=1):
        await say(people[name], text)
        for page in people.values():
            await expect(texts(page)).to_have_count(number)
            await expect(page.get_by_test_id("draft")).to_have_count(0)

    shots = [await people[name].screenshot(caret="hide", animations="disabled") for name in ("Ada", "Grace")]
    images = [f"data:image/png;base64,{base64.b64encode(shot).decode()}" for shot in shots]
    context = await visitors.new_context({"width": 1380, "height": 780}, device_scale_factor=1.5)
    frame = await visitors.new_page(context=context)
    await frame.set_content(FRAME.format(*images), wait_until="load")
    picture = await frame.screenshot()
    assert picture.startswith(b"\x89PNG")
    if os.environ.get("UPDATE_PICTURES") == "1":
        PICTURE.write_bytes(picture)
    assert PICTURE.is_file(), "run this test with UPDATE_PICTURES=1"


BLOCKED = """for (const name of ["sessionStorage", "localStorage", "indexedDB"]) {
    Object.defineProperty(window, name, { get() { throw new DOMException("Access is denied", "SecurityError"); } });
}"""


async def test_it_works_where_the_browser_keeps_nothing(chat: Chat) -> None:
    """Kind: what a browser refuses to a page, such as storage where cookies are blocked, must not stop the page."""
    context = await chat.new_context()
    await context.add_init_script(BLOCKED)
    page = await context.new_page()
    await page.goto(chat.url)
    await page.get_by_test_id("name-input").fill("Ada")
    await page.get_by_test_id("name-join").click()
    await expect(page.get_by_test_id("status")).to_have_text("Live")
    await say(page, "I keep nothing")
    await expect(texts(page)).to_have_text(["I keep nothing"])
    await expect(page.get_by_test_id("draft")).to_have_count(0)


async def test_a_page_that_is_still_connecting_does_not_say_that_there_is_nothing(
    chat: Chat, visitors: Visitors
) -> None:
    visitors.expect_problem(LOST_CONNECTION)
    context = await chat.new_context()
    await context.add_init_script("window.WebSocket = class extends EventTarget { close() {} }")
    page = await context.new_page()
    await page.goto(chat.url)
    await expect(page.get_by_test_id("empty")).to_have_text("Fetching the messages…")
    await expect(page.get_by_test_id("count")).to_have_text("…")


@pytest.mark.parametrize("name", ["chat", "todo", "console"])
async def test_without_javascript_a_page_says_that_it_needs_it(examples: Server, visitors: Visitors, name: str) -> None:
    """As a parser reads it that does not run scripts; Chromium shows nothing of it where only its scripts are off."""
    visitors.expect_problem("Blocked script execution|Blocked autofocusing")
    page = await visitors.new_page(f"{examples.url}/{name}/")
    seen = await page.evaluate(
        """async () => {
            const text = await (await fetch("")).text();
            const frame = document.createElement("iframe");
            frame.sandbox = "allow-same-origin"; // and no scripts
            frame.srcdoc = text.replaceAll(/<link[^>]*>/g, "");
            await new Promise((resolve) => { frame.onload = resolve; document.body.append(frame); });
            const { body } = frame.contentDocument;
            const seen = [...body.querySelectorAll("p, span, button")].filter((each) => each.checkVisibility());
            return seen.map((each) => each.textContent);
        }"""
    )
    assert seen == ["This page needs JavaScript, and your browser does not run it."]


async def test_namesakes_are_told_apart_while_both_are_here(chat: Chat) -> None:
    ada, other = await chat.enter("Ada"), await chat.enter("ada")
    await say(other, "Which one am I?")
    mark = ada.get_by_test_id("message").get_by_test_id("mark")
    await expect(mark).to_have_text([re.compile(r"^#[0-9a-f]{4}$")])
    await expect(ada.get_by_test_id("people").get_by_test_id("mark")).to_have_count(2)
    await other.close()
    await expect(ada.get_by_test_id("mark")).to_have_count(0)


async def test_what_came_while_the_reader_looked_elsewhere_is_counted(chat: Chat) -> None:
    ada, grace = await chat.enter("Ada"), await chat.enter("Grace")
    await say(grace, *(f"Message {number}" for number in range(30)))
    await expect(texts(ada)).to_have_count(30)
    await texts(ada).first.scroll_into_view_if_needed()
    await expect(ada.get_by_test_id("newest")).to_have_text("Newest ↓")
    await ada.evaluate("Object.defineProperty(document, 'hidden', { get: () => hidden })")
    await ada.evaluate("globalThis.hidden = true")
    await say(grace, "One", "Two")
    await expect(ada.get_by_test_id("newest")).to_have_text("2 new ↓")
    await expect(ada).to_have_title("(2) Chat · Backsync")
    await ada.evaluate("globalThis.hidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(ada).to_have_title("Chat · Backsync")
    await ada.get_by_test_id("newest").click()
    await expect(ada.get_by_test_id("newest")).to_be_hidden()
    await expect(texts(ada).last).to_be_in_viewport()


async def test_the_keyboard_is_not_led_by_every_message(chat: Chat) -> None:
    ada = await chat.enter("Ada")
    await say(ada, *(f"Message {number}" for number in range(45)))
    await expect(texts(ada)).to_have_count(45)
    await tab_to(ada, ada.get_by_test_id("rename"))
    await tab_to(ada, ada.get_by_test_id("message-input"))


async def test_what_is_said_is_neither_changed_nor_said_again(chat: Chat) -> None:
    ada = await chat.enter("Ada")
    await say(ada, "Once")
    await expect(ada.get_by_test_id("draft")).to_have_count(0)
    codes = await ada.evaluate(
        """async () => {
            const [{ id }] = await Backsync.connection.call("ChatMessage:read");
            const write = (method, fields) => Backsync.connection.call(`ChatMessage:${method}`, { id, ...fields });
            const writes = [write("patch", { text: "Twice" }), write("upsert", { text: "Twice" })];
            return (await Promise.allSettled(writes)).map(({ reason }) => reason?.code);
        }"""
    )
    assert codes == ["forbidden", "forbidden"]
    await expect(texts(ada)).to_have_text(["Once"])


async def test_text_has_its_own_direction(chat: Chat) -> None:
    ada = await chat.enter("Ada")
    await say(ada, "\u0645\u0631\u062d\u0628\u0627!", "Hello!")
    await expect(texts(ada)).to_have_count(2)
    directions = await texts(ada).evaluate_all("(all) => all.map((each) => getComputedStyle(each).direction)")
    assert directions == ["rtl", "ltr"]
