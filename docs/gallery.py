"""Take the pictures of docs/gallery.md from the demo's report in a real browser: run `make gallery` when the page changed.

`docs/gallery/made.json` records the version of the page in the pictures; a test compares it with the current version.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "gallery"
REPORT = Path(__file__).parent.parent / "runs" / "demo" / "report.html"
sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.report import page  # noqa: E402
from tests.support.browser import launch_browser, open_page  # noqa: E402


def take_picture(found: Any, name: str, selector: str | None = None) -> str:
    """Take a picture of the viewport, or of one element."""
    place = FOLDER / f"{name}.png"
    if selector:
        found.page.locator(selector).screenshot(path=place)
    else:
        found.page.screenshot(path=place)
    return place.name


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = []
    with launch_browser() as started:
        with open_page(started, REPORT, width=1200, height=860) as found:
            made.append(take_picture(found, "summary"))
            made.append(take_picture(found, "map", "#map"))
            made.append(take_picture(found, "before-after", 'figure[data-chart="movers"]'))
            made.append(take_picture(found, "uncertainty", "#uncertainty"))
        with open_page(started, REPORT, width=1200, height=860, dark=True) as found:
            found.page.locator("#map").scroll_into_view_if_needed()
            found.page.evaluate("document.querySelector('#map').scrollIntoView()")
            made.append(take_picture(found, "dark"))
        with open_page(started, REPORT, width=390, height=844) as found:
            made.append(take_picture(found, "phone"))
    (FOLDER / "made.json").write_text(
        json.dumps({"page": page.VERSION, "pictures": sorted(made)}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"{len(made)} pictures in {FOLDER}")


if __name__ == "__main__":
    main()
