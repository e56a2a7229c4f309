"""The pictures of docs/gallery.md show the current version of the page."""

import json
import re

from pipeline.report import page
from tests.support.processes import ROOT

DOCS = ROOT / "docs"


def test_gallery_shows_the_current_page_and_every_picture() -> None:
    manifest = json.loads((DOCS / "gallery" / "made.json").read_text(encoding="utf-8"))
    assert manifest["page"] == page.VERSION, "the page changed: run `make gallery`, check the pictures, and commit them"
    shown = re.findall(r"!\[.+?\]\(gallery/(.+?)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    assert sorted(shown) == manifest["pictures"]
    for name in manifest["pictures"]:
        assert (DOCS / "gallery" / name).read_bytes().startswith(b"\x89PNG")
