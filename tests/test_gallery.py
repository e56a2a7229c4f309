"""The pictures of docs/gallery.md are of the page as it is made now."""

import json
import re

from pipeline.report import page
from tests.support.processes import ROOT

DOCS = ROOT / "docs"


def test_pictures_are_of_the_present_page_and_all_are_shown() -> None:
    made = json.loads((DOCS / "gallery" / "made.json").read_text(encoding="utf-8"))
    assert made["page"] == page.VERSION, "the page is made otherwise now: run `make gallery`, look at the pictures, commit them"
    shown = re.findall(r"!\[.+?\]\(gallery/(.+?)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    assert sorted(shown) == made["pictures"]
    for name in made["pictures"]:
        assert (DOCS / "gallery" / name).read_bytes().startswith(b"\x89PNG")
