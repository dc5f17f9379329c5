"""Draws what a run has measured: `python -m benchmarks.plots RESULTS DIRECTORY`, by the peers' own Python."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

COLOURS = {
    "ours": "#c1272d",
    "ours-sockjs": "#e8746a",
    "ours-plain": "#f0a59c",
    "c": "#222222",
    "bare": "#777777",
    "prebuilt": "#aaaaaa",
    "ws": "#0a6e4f",
    "sockjs-node": "#38a07c",
    "socket.io": "#8fd0b5",
    "starlette": "#1f4e9c",
    "aiohttp-sockjs": "#5b86cc",
    "python-socketio": "#93b1e0",
    "sockjs-tornado": "#c0d2ee",
}
NAMES = {
    "ours": "Backsync",
    "ours-sockjs": "Backsync, SockJS framing",
    "ours-plain": "Backsync, plain uvicorn",
    "c": "C, one send(2) each",
    "prebuilt": "loop over uvicorn's transports",
    "bare": "bare ASGI, send only",
}
Values = dict[str, dict[str, list[float]]]


def figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    drawing, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return drawing, axes


def fan_out(values: Values) -> Any:
    """Cost of a delivery against the number of clients."""
    drawing, axes = figure("Fan-out of one change", "clients", "µs of server CPU for each delivery")
    sizes = sorted(int(name.rpartition(".")[2]) for name in values if name.startswith("H.fanout."))
    for who in values[f"H.fanout.{sizes[0]}"]:
        points = [(n, values[f"H.fanout.{n}"].get(who)) for n in sizes]
        known = [(n, statistics.median(rounds)) for n, rounds in points if rounds]
        axes.plot(*zip(*known, strict=True), marker="o", label=NAMES.get(who, who), color=COLOURS.get(who))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return drawing


def latencies(percentiles: dict[str, list[int]]) -> Any:
    """How long records take from their publishing to a client."""
    drawing, axes = figure(
        "Publish to receive, 1 000 clients, 20 % load", "share of the deliveries, %", "milliseconds (log)"
    )
    for who, values in percentiles.items():
        name, milliseconds = NAMES.get(who, who), [max(1, value) / 1000 for value in values]
        axes.plot(range(len(values)), milliseconds, label=name, color=COLOURS.get(who))
    axes.set_yscale("log")
    axes.set_ylim(top=1000)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    return drawing


def bars(title: str, unit: str, measure: dict[str, list[float]]) -> Any:
    drawing, axes = figure(title, unit, "")
    rows = sorted(((statistics.median(rounds), who) for who, rounds in measure.items()), reverse=True)
    axes.barh(
        [NAMES.get(who, who) for _, who in rows],
        [value for value, _ in rows],
        color=[COLOURS.get(who) for _, who in rows],
    )
    axes.bar_label(axes.containers[0], fmt="%.1f", padding=3, fontsize=8)
    axes.margins(x=0.1)
    axes.grid(visible=False)
    return drawing


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    # Text as text, and the same bytes for the same numbers.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "backsync", "font.family": "sans-serif"})
    values: Values = document["values"]
    drawings = {}
    if any(name.startswith("H.fanout.") for name in values):
        drawings["fan-out"] = fan_out(values)
    if document["percentiles"]:
        drawings["latency"] = latencies(document["percentiles"])
    if "D" in values:
        drawings["memory"] = bars("An idle WebSocket", "KiB of server memory", values["D"])
    if "A" in values:
        drawings["delivery"] = bars("One change to 1 000 clients", "µs of server CPU for each delivery", values["A"])
    for name, drawing in drawings.items():
        drawing.savefig(directory / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
