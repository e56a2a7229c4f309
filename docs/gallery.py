"""Make the pictures of docs/gallery.md from the demo's report, with a real browser: `make gallery`, when the page is another.

`docs/gallery/made.json` notes which code the pictures are of, and a test holds it to the present one.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "gallery"
REPORT = Path(__file__).parent.parent / "runs" / "demo" / "report.html"
sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.report import page  # noqa: E402
from tests.support.browser import browser, opened  # noqa: E402


def picture(found: Any, name: str, selector: str | None = None) -> str:
    """A picture of what is seen, or of one element."""
    place = FOLDER / f"{name}.png"
    if selector:
        found.page.locator(selector).screenshot(path=place)
    else:
        found.page.screenshot(path=place)
    return place.name


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = []
    with browser() as started:
        with opened(started, REPORT, width=1200, height=860) as found:
            made.append(picture(found, "verdict"))
            made.append(picture(found, "map", "#map"))
            made.append(picture(found, "before-after", 'figure[data-chart="movers"]'))
            made.append(picture(found, "certainty", "#certainty"))
        with opened(started, REPORT, width=1200, height=860, dark=True) as found:
            found.page.locator("#map").scroll_into_view_if_needed()
            found.page.evaluate("document.querySelector('#map').scrollIntoView()")
            made.append(picture(found, "dark"))
        with opened(started, REPORT, width=390, height=844) as found:
            made.append(picture(found, "phone"))
    (FOLDER / "made.json").write_text(
        json.dumps({"page": page.VERSION, "pictures": sorted(made)}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"{len(made)} pictures in {FOLDER}")


if __name__ == "__main__":
    main()
