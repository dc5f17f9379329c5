"""Pages under a stream of changes: what is promised is counted; benchmarks/browser measures how fast it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.async_api import expect

from tests.browser import Visitors
from tests.e2e.test_client import until_equal
from tests.servers import Server

RATE, SECONDS = 300, 3

# A second collection of the same model, whose updates are counted beside the frames that the page draws.
COUNT = """async () => {
    const lines = new (Backbone.Collection.extend({ url: "/LogLine" }))();
    await lines.live();
    const seen = globalThis.seen = { updates: 0, frames: 0, added: 0, longest: 0 };
    lines.on("update", (_, { changes }) => { seen.updates += 1; seen.added += changes.added.length; });
    let last = performance.now();
    const frame = () => {
        const now = performance.now();
        seen.frames += 1;
        seen.longest = Math.max(seen.longest, now - last);
        last = now;
        requestAnimationFrame(frame);
    };
    frame();
}"""


async def test_a_stream_of_single_changes_is_applied_once_per_frame(
    serve: Callable[..., Server], visitors: Visitors, tmp_path: Path
) -> None:
    """Kind: work that a page does for each message, so that many small ones keep it from answering."""
    server = serve("benchmarks.browser.app:app", env={"DATABASE_URL": f"sqlite:///{tmp_path}/todos.db"})
    page = await visitors.new_page(server.url + "/console/")
    await expect(page.get_by_test_id("status")).to_have_text("Live")
    await page.evaluate(COUNT)
    await page.request.post(f"{server.url}/flood?rate={RATE}&seconds={SECONDS}")
    await page.get_by_test_id("pause").click()
    await expect(page.get_by_test_id("pause")).to_have_attribute("aria-pressed", "true")
    await until_equal(page, "seen.added", RATE * SECONDS)
    seen = await page.evaluate("seen")
    print(f"{RATE} lines/s: {seen['updates']} updates in {seen['frames']} frames, the longest {seen['longest']:.0f} ms")
    assert seen["updates"] <= seen["frames"] + 2  # a frame may be drawn by no one, and its changes applied all the same


async def test_a_long_list_is_toggled_as_a_whole(
    serve: Callable[..., Server], visitors: Visitors, tmp_path: Path
) -> None:
    server = serve("benchmarks.browser.app:app", env={"DATABASE_URL": f"sqlite:///{tmp_path}/todos.db"})
    page = await visitors.new_page(server.url + "/todo/")
    await page.request.post(server.url + "/fill?count=300")
    await expect(page.get_by_test_id("todo")).to_have_count(300)
    shown, stored = await page.evaluate(
        """async () => {
            const start = performance.now();
            document.getElementById("toggle-all").click();
            await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
            const shown = performance.now() - start;
            const open = document.querySelectorAll("#todos > li:not(.done)").length;
            if (open > 0) throw new Error(`${open} are not done`);
            while (Backsync.connection.pending > 0) await new Promise((resolve) => setTimeout(resolve, 5));
            return [shown, performance.now() - start];
        }"""
    )
    print(f"300 todos toggled: shown within {shown:.0f} ms, stored within {stored:.0f} ms")
    await page.reload()
    await expect(page.locator("#todos > li.done")).to_have_count(300)
