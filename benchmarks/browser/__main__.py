"""Measures the example pages in Chromium: `python -m benchmarks.browser`. Needs the packages that the tests need.

For each rate of log lines: frames per second, how old the newest line is when it is drawn, the share of a core that the
page's main thread needs (all of it, and of that script, layout and style), and how long a click on "Pause" takes.
For a todo list of 300: how long "all are done" takes until the page shows it and until all are stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from playwright.async_api import Browser, CDPSession, Page, async_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")

# Counts frames and the age of the newest line that the page shows.
WATCH = """() => {
  const seen = globalThis.seen = { frames: 0, lags: [], start: performance.now() };
  const frame = () => {
    seen.frames += 1;
    const time = document.querySelector("#lines li:last-child time")?.getAttribute("datetime");
    if (time) seen.lags.push(Date.now() - Date.parse(time));
    seen.timer = requestAnimationFrame(frame);
  };
  frame();
}"""
SEEN = """() => {
  const { frames, lags, start, timer } = globalThis.seen;
  cancelAnimationFrame(timer);
  const sorted = lags.sort((a, b) => a - b);
  return { fps: frames / (performance.now() - start) * 1000, lag: sorted[Math.floor(sorted.length / 2)] / 1000 };
}"""
SPENT = {"cpu": "TaskDuration", "script": "ScriptDuration", "layout": "LayoutDuration", "style": "RecalcStyleDuration"}
TOGGLE = """async () => {
  const start = performance.now();
  document.getElementById("toggle-all").click();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const shown = performance.now() - start;
  while (Backsync.connection.pending > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  return { shown: shown / 1000, stored: (performance.now() - start) / 1000 };
}"""


async def console(page: Page, url: str, rate: int, seconds: float) -> dict[str, float]:
    await page.goto(f"{url}/console/")
    await page.wait_for_function("document.getElementById('status').dataset.status === 'live'")
    await page.request.post(f"{url}/flood?rate=1000&seconds=1")  # the list is full as it is after a while
    await page.wait_for_timeout(2500)
    await page.request.post(f"{url}/flood?rate={rate}&seconds={seconds + 3}")
    await page.wait_for_timeout(1000)
    await page.evaluate(WATCH)
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = await spent(session)
    await page.wait_for_timeout(seconds * 1000)
    after = await spent(session)
    result: dict[str, float] = await page.evaluate(SEEN)
    result |= {name: (after[name] - before[name]) / (after["at"] - before["at"]) for name in SPENT}
    start = time.monotonic()
    await page.mouse.click(*await middle(page, "#pause"))
    await page.wait_for_function("document.getElementById('pause').ariaPressed === 'true'", polling=5)
    return {"rate": rate, **result, "pause": time.monotonic() - start}


async def spent(session: CDPSession) -> dict[str, float]:
    """Seconds of CPU time that the page's main thread has needed so far, for what."""
    metrics = {each["name"]: each["value"] for each in (await session.send("Performance.getMetrics"))["metrics"]}
    return {"at": time.monotonic(), **{name: metrics[metric] for name, metric in SPENT.items()}}


async def middle(page: Page, selector: str) -> tuple[float, float]:
    box = await page.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


async def todo(page: Page, url: str, count: int) -> dict[str, float]:
    await page.request.post(f"{url}/fill?count={count}")
    await page.goto(f"{url}/todo/")
    await page.wait_for_function(f"document.querySelectorAll('#todos > li').length === {count}")
    result: dict[str, float] = await page.evaluate(TOGGLE)
    return {"todos": count, **result}


async def measure(browser: Browser, url: str, rates: list[int], seconds: float, count: int) -> list[dict[str, float]]:
    results = []
    for rate in rates:
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        results.append(await console(page, url, rate, seconds))
        await page.close()
        print("  ".join(f"{name} {value:.3g}" for name, value in results[-1].items()), flush=True)
    page = await browser.new_page(viewport={"width": 1280, "height": 800})
    results.append(await todo(page, url, count))
    print("  ".join(f"{name} {value:.3g}" for name, value in results[-1].items()), flush=True)
    return results


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.browser", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--rates", type=int, nargs="+", default=[20, 100, 300, 1000], help="log lines a second")
    parser.add_argument("--seconds", type=float, default=5, help="of each rate")
    parser.add_argument("--todos", type=int, default=300)
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{folder}/todos.db"}
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "benchmarks.browser.app:app",
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        server = subprocess.Popen(command, cwd=ROOT, env=environment)  # noqa: ASYNC220
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    urlopen(f"{url}/console/").close()  # noqa: ASYNC210
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
                )
                results = await measure(browser, url, options.rates, options.seconds, options.todos)
                await browser.close()
        finally:
            server.terminate()
            server.wait()
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
