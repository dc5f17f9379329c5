"""The README does what it says: its program is cut out and run in a browser; knows its shape, not its prose."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser import Visitors
from tests.servers import ROOT, Server


def first_block(text: str, language: str) -> str:
    """The first fenced block of that language, without its fences."""
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"README.md has no ```{language} block"
    return found.group(1)


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


async def test_its_program_shows_in_one_tab_what_is_typed_in_another(
    readme: str, tmp_path: Path, serve: Callable[..., Server], visitors: Visitors
) -> None:
    new_page = visitors.new_page
    for name, language in (("app.py", "python"), ("index.html", "html")):
        assert f"`{name}`" in readme, f"README.md does not say that the {language} block is `{name}`"
        (tmp_path / name).write_text(first_block(readme, language))
    server = serve("app:app", cwd=tmp_path)

    first, second = await new_page(server.url), await new_page(server.url)
    await first.get_by_role("textbox").fill("Hello from the first tab")
    await first.get_by_role("textbox").press("Enter")
    for page in (first, second):
        await expect(page.locator("ul > li", has_text="Hello from the first tab")).to_have_count(1)

    await second.get_by_role("textbox").fill("<b>And back</b>")
    await second.get_by_role("textbox").press("Enter")
    for page in (first, second):
        await expect(page.locator("ul > li")).to_contain_text(["Hello from the first tab", "<b>And back</b>"])

    late = await new_page(server.url)
    await expect(late.locator("ul > li")).to_contain_text(["Hello from the first tab", "<b>And back</b>"])


async def test_its_program_shows_what_the_server_refuses(
    readme: str, tmp_path: Path, serve: Callable[..., Server], visitors: Visitors
) -> None:
    """A refused write is taken back; that alone would look as if nothing had happened."""
    for name, language in (("app.py", "python"), ("index.html", "html")):
        (tmp_path / name).write_text(first_block(readme, language))
    page = await visitors.new_page(serve("app:app", cwd=tmp_path).url)
    await page.get_by_role("textbox").press("Enter")
    await expect(page.get_by_text("Say something.", exact=True)).to_be_visible()
    await expect(page.locator("ul > li")).to_have_count(0)

    await page.get_by_role("textbox").fill("Hello")
    await page.get_by_role("textbox").press("Enter")
    await expect(page.locator("ul > li")).to_have_text(["Hello"])
    await expect(page.get_by_text("Say something.", exact=True)).to_have_count(0)


async def test_without_that_line_the_console_shows_it(
    readme: str, tmp_path: Path, serve: Callable[..., Server], visitors: Visitors
) -> None:
    """A page that looks at no refusal has it in the console, with the model, the code and the message."""
    page_text = first_block(readme, "html")
    (line,) = [line for line in page_text.splitlines(keepends=True) if '.on("error"' in line]
    (tmp_path / "index.html").write_text(page_text.replace(line, ""))
    (tmp_path / "app.py").write_text(first_block(readme, "python"))
    page = await visitors.new_page(serve("app:app", cwd=tmp_path).url)
    async with page.expect_console_message(lambda message: message.type == "warning") as warned:
        await page.get_by_role("textbox").press("Enter")
    assert (await warned.value).text == "backsync: ChatMessage:upsert was refused: Say something. (invalid)"


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_command_it_names_exists(readme: str, target: str) -> None:
    assert re.search(rf"\bmake {target}\b", readme), f"README.md does not name `make {target}`"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_its_pictures_are_there(readme: str) -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)|<img[^>]*\bsrc=\"([^\"]+)\"", readme)
    assert pictures, "README.md shows no picture (with a text for those who cannot see it)"
    for path in (markdown or html for markdown, html in pictures):
        assert path.startswith("docs/"), f"{path} is not in docs/"
        head = (ROOT / path).read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n", f"{path} is no PNG picture"
        width, height = struct.unpack(">II", head[16:24])
        assert width >= 300 <= height, f"{path} is only {width} x {height} pixels"


def test_its_links_to_files_lead_somewhere(readme: str) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:|#)([^)#\s]+)", readme):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


def test_a_block_is_found_by_its_language() -> None:
    text = "a\n```sh\nmake demo\n```\n```python\nimport this\n```\n```python\nsecond\n```\n"
    assert first_block(text, "python") == "import this\n"
    with pytest.raises(AssertionError, match="no ```html block"):
        first_block(text, "html")
