"""The report page for 4,096 clusters in Chromium: size against 10 MB, time to open against 3 s, frame times while the map is moved.

.venv/bin/python benchmarks/report.py [--branching 64] [--repeats 5]
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.report.page import render_page
from tests.support.browser import launch_browser, open_page
from tests.support.report_data import make_many_cluster_content

LIMIT_BYTES, LIMIT_S, FRAME_MS = 10_000_000, 3.0, 1000 / 30

# Records the time between frames of the browser, while the mouse wheel turns and the mouse drags.
FRAMES = """async () => {
  const took = []; let last = performance.now(); window.watching = true;
  const tick = (now) => { took.push(now - last); last = now; if (window.watching) requestAnimationFrame(tick); };
  requestAnimationFrame(tick); window.took = took;
}"""


def frames(page: Any) -> list[float]:
    """Return the milliseconds between frames while the map is zoomed in and out and dragged."""
    box = page.locator('figure[data-chart="map"]').bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 3
    page.mouse.move(x, y)
    page.evaluate(FRAMES)
    for turn in (-120, -120, -120, 120, 120):
        page.mouse.wheel(0, turn)
        page.wait_for_timeout(60)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(x + 6 * step, y + 3 * step)
    page.mouse.up()
    page.evaluate("window.watching = false")
    return [float(ms) for ms in page.evaluate("window.took.slice(1)")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branching", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    html = render_page(make_many_cluster_content(args.branching)).encode()
    print(f"{args.branching**2:,} clusters: {len(html):,} bytes, {len(html) / LIMIT_BYTES:.2f} of {LIMIT_BYTES:,}")
    opening, between = [], []
    with tempfile.TemporaryDirectory() as folder, launch_browser() as started:
        path = Path(folder) / "report.html"
        path.write_bytes(html)
        for _ in range(args.repeats):
            begun = time.monotonic()
            with open_page(started, path) as found:
                opening.append(time.monotonic() - begun)
                found.page.locator("#map").evaluate("one => one.scrollIntoView()")
                between += frames(found.page)
    median_s, median_ms = statistics.median(opening), statistics.median(between)
    worst_ms = statistics.quantiles(between, n=20)[-1]
    print(
        f"time to open and draw everything: {median_s:.2f} s, {median_s / LIMIT_S:.2f} of {LIMIT_S:g} s (median of {len(opening)})"
    )
    print(
        f"time between frames while the map is zoomed and dragged: {median_ms:.0f} ms, 95% below {worst_ms:.0f} ms; "
        f"{median_ms / FRAME_MS:.2f} of {FRAME_MS:.0f} ms (30 per second), drawn without a GPU"
    )


if __name__ == "__main__":
    main()
