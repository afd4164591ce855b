"""How long a browser takes to open and to move through an HTML report of many events."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.browser import Browser, found_browser
from benchmarks.common import publish
from memplan.blocks import BlockLabel, BlockLives
from memplan.html import write_html

REPEATS = 5
EVENTS = (5_000, 50_000, 200_000, 1_000_000)


def lives_of(num_events: int) -> BlockLives:
    """Return a life of half as many blocks, each allocated and freed once, 2,000 labels."""
    rng = np.random.default_rng(14)
    num_blocks = num_events // 2
    made = np.arange(num_blocks) * 2
    labels = tuple(
        BlockLabel(
            band=("parameter", "gradient", "activation", "workspace", "temporary")[i % 5],
            tensor=f"16 x {i} x 40 x 40, float16",
            module=f"model.{i}.cv1.conv Conv2d",
            operator="convolution",
            line=f"yolov9/blocks.py:{i} forward",
        )
        for i in range(2000)
    )
    lives = BlockLives(
        title=f"{num_events:,} events",
        origin="simulated",
        num_events=num_events,
        made=made,
        freed=np.minimum(made + rng.integers(1, 600, num_blocks), num_events),
        num_bytes=rng.integers(1, 1 << 14, num_blocks) * 512,
        label=rng.integers(0, len(labels), num_blocks),
        labels=labels,
    )
    reserved = np.maximum.accumulate(lives.allocated_bytes())
    return BlockLives(**{**vars(lives), "reserved_bytes": reserved})


def opened(browser: Browser, path: Path) -> tuple[float, float]:
    """Return seconds from the request to a drawn page, and milliseconds that a redraw takes."""
    start = time.perf_counter()
    browser.open(path)
    seconds = time.perf_counter() - start
    if browser.value("document.documentElement.dataset.pictures") != "1" or browser.complaints():
        raise SystemExit(f"{path.name} is not drawn: {browser.complaints()}")
    redraw = browser.value(
        "(() => { const zoom = document.querySelector('[data-act=in]'), start = performance.now();"
        "for (let i = 0; i < 5; i++) zoom.click();"
        "return (performance.now() - start) / 5; })()"
    )
    return seconds, redraw


def main() -> None:
    """Open pages of several sizes a few times and publish the medians."""
    program = found_browser()
    if program is None:
        sys.exit("No Chromium is installed: apt-get install chromium.")
    rows = []
    with tempfile.TemporaryDirectory() as folder, Browser(program) as browser:
        for num_events in EVENTS:
            begun = time.perf_counter()
            path = write_html(
                Path(folder) / f"{num_events}.html", lives=[lives_of(num_events)], command="-"
            )
            writing = time.perf_counter() - begun
            runs = [opened(browser, path) for _ in range(REPEATS)]
            seconds = [one for one, _ in runs]
            rows.append(
                (
                    f"{num_events:,}",
                    f"{path.stat().st_size / 1e6:.1f}",
                    f"{writing:.2f}",
                    f"{statistics.median(seconds):.2f}",
                    f"{max(seconds):.2f}",
                    f"{statistics.median(one for _, one in runs):.0f}",
                )
            )
        version = browser.ask("Browser.getVersion")["product"]
    publish(
        "html_speed",
        "An HTML report in a browser, from request to drawn timeline",
        ("Events", "File MB", "Written s", "Opened s", "Worst s", "Zoom ms"),
        rows,
        [
            f"{version}, 1200 x 900, no GPU; median and worst of {REPEATS} openings of a file.",
            "A block is two events; a page tells at most 100,000 blocks apart and sums the rest.",
            "Asked for: 50,000 events within 2 s.",
        ],
    )


if __name__ == "__main__":
    main()
