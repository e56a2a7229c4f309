"""The report in a real browser: no console messages, no requests, and working controls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.report import page as pages
from tests.support.browser import OpenedPage, launch_browser, open_page
from tests.support.processes import wait_until
from tests.support.report_data import HOSTILE_TEXTS, make_many_cluster_content

pytestmark = [pytest.mark.slow, pytest.mark.ray]
MAP = 'figure[data-chart="map"]'


@pytest.fixture(scope="module")
def report(full_feature_run: PipelineGraph) -> Path:
    return Path(full_feature_run.workdir.path) / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def wide(chromium: Any, report: Path) -> Iterator[OpenedPage]:
    with open_page(chromium, report) as found:
        yield found


def discs(found: OpenedPage) -> int:
    return found.page.locator(f"{MAP} .mark-symbol.marks path").count()


def disc_of(found: OpenedPage, number: int) -> Any:
    return found.page.locator(f"{MAP} .mark-symbol.marks path").nth(number)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (820, True), (1280, False)])
def test_it_opens_from_disk_without_console_messages_or_requests(chromium: Any, report: Path, width: int, dark: bool) -> None:
    with open_page(chromium, report, width=width, dark=dark) as found:
        assert found.console_messages == []
        assert found.requests == [report.as_uri()]
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        for figure in found.page.locator("figure[data-chart]").all():
            assert figure.locator("svg, canvas").count() >= 1 or figure.is_hidden(), figure.get_attribute("data-chart")
            assert figure.is_hidden() or figure.bounding_box()["width"] <= width
        body = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert body == ("rgb(18, 22, 29)" if dark else "rgb(255, 255, 255)")


def test_text_of_the_corpus_is_never_executed(wide: OpenedPage) -> None:
    page = wide.page
    rows = page.evaluate("JSON.parse(document.getElementById('data').textContent).nodes.node.length")
    page.locator("#all summary").click()
    for button in page.locator("#list button.cluster").all():  # each cluster, with the excerpts of all three origins
        button.click()
        for tab in page.locator("#panel .tabs button").all():
            tab.click()
    assert rows > 4
    assert page.evaluate("window.hurt") is None
    assert page.locator("#panel img, #panel script, #panel svg, main q *").count() == 0
    shown = page.evaluate("document.body.innerText")
    assert HOSTILE_TEXTS[0] in shown or HOSTILE_TEXTS[1] in shown
    assert wide.console_messages == []


def test_hover_shows_a_tooltip_and_a_click_shows_excerpts(wide: OpenedPage) -> None:
    page = wide.page
    page.locator("#map").scroll_into_view_if_needed()
    disc = disc_of(wide, 0)
    disc.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    tooltip = page.locator("#vg-tooltip-element").inner_text()
    assert "in the new corpus" in tooltip
    disc.click()
    title = page.locator("#panel h3").inner_text()
    assert title.startswith("Cluster ")
    assert page.locator("#panel q").count() >= 1
    data = json.loads(page.locator("#data").text_content() or "")
    leaf = int(title.split(":")[0].split()[1])
    node = data["nodes"]["node"][data["nodes"]["leaf"].index(leaf)]
    shown = page.locator("#panel q").first.text_content()
    assert shown in [text[0] for texts in data["excerpts"][str(node)].values() for text in texts]


def test_levels_and_subclusters_navigate_the_tree(wide: OpenedPage) -> None:
    page = wide.page
    clusters = discs(wide)
    page.get_by_role("button", name="level 1").click()
    page.wait_for_function(f"document.querySelectorAll('{MAP} .mark-symbol.marks path').length < {clusters}")
    groups = discs(wide)
    assert 1 < groups < clusters
    disc_of(wide, 0).click()
    assert page.locator("#panel h3").inner_text().startswith("node ")
    page.get_by_role("button", name="Show subclusters").click()
    page.wait_for_function("document.querySelector('#path strong') !== null")
    inside = page.locator("#path .note").inner_text()
    assert int(inside.split()[0]) < clusters
    page.get_by_role("button", name="All clusters").click()
    page.locator("#levels").get_by_role("button", name="clusters").click()
    page.wait_for_function(f"document.querySelectorAll('{MAP} .mark-symbol.marks path').length === {clusters}")


def test_selecting_a_specialist_recolours_the_map(wide: OpenedPage) -> None:
    page = wide.page
    data = json.loads(page.locator("#data").text_content() or "")
    nodes = data["nodes"]
    number = data["specialists"].index("kitchen")
    best = max((i for i, leaf in enumerate(nodes["leaf"]) if leaf >= 0), key=lambda i: nodes[f"sample{number}"][i])

    def fills() -> list[str]:
        return [path.get_attribute("fill") or "" for path in page.locator(f"{MAP} .mark-symbol.marks path").all()]

    before = fills()
    page.select_option("#colour", f"sample{number}")
    wait_until(lambda: fills() != before)
    page.locator("#find").fill(nodes["name"][best])
    page.wait_for_function("document.querySelectorAll('#list tbody tr').length === 1")
    assert str(nodes["leaf"][best]) in (page.locator("#list tbody tr").first.text_content() or "")
    page.locator("#find").fill("no such word anywhere")
    page.wait_for_function("document.querySelectorAll('#list tbody tr').length === 0")
    page.wait_for_function(f"document.querySelector('{MAP}').innerText.includes('No cluster here')")
    page.locator("#find").fill("")
    page.select_option("#colour", "after")
    page.wait_for_function(f"document.querySelector('{MAP} .mark-symbol.marks path') !== null")
    assert wide.console_messages == []


def test_the_wheel_zooms_the_map(wide: OpenedPage) -> None:
    page = wide.page
    page.wait_for_function("document.querySelectorAll('#list tbody tr').length > 1")
    disc = disc_of(wide, 0)
    before = disc.get_attribute("transform")

    def turned() -> bool:
        # The figure, which stays while Vega draws its svg anew: what is drawn late may have moved it, and the wheel the page.
        page.locator(MAP).evaluate("one => one.scrollIntoView({block: 'center'})")
        box = page.locator(MAP).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
        page.mouse.wheel(0, -200)
        return disc.get_attribute("transform") != before

    wait_until(turned, every_s=0.5)


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_accessibility_violation(chromium: Any, report: Path, dark: bool) -> None:
    with open_page(chromium, report, dark=dark) as found:
        for details in found.page.locator("details").all():
            details.evaluate("one => { one.open = true }")
        results = Axe().run(found.page)
        serious = [one for one in results.response["violations"] if one["impact"] in ("serious", "critical")]
        assert not serious, json.dumps(
            [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious], indent=1
        )


def test_the_map_can_be_used_by_keyboard(chromium: Any, report: Path) -> None:
    with open_page(chromium, report) as found:
        page = found.page
        page.locator("#all summary").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        wanted = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Enter")
        assert page.locator("#panel h3").inner_text().split(":")[0] == f"Cluster {wanted.split()[0]}"
        assert page.evaluate("document.activeElement.id") == "panel"


def test_printing_includes_collapsed_details(chromium: Any, report: Path, tmp_path: Path) -> None:
    with open_page(chromium, report) as found:
        found.page.emulate_media(media="print")
        assert found.page.locator("nav").is_hidden()
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert found.page.locator("#provenance details").first.get_attribute("open") is not None
        assert found.page.pdf(format="A4").startswith(b"%PDF")


def test_the_theme_of_the_system_can_be_overridden(chromium: Any, report: Path) -> None:
    with open_page(chromium, report) as found:
        found.page.locator("#theme").click()
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
        assert found.console_messages == []


def test_4096_clusters_are_on_the_map_and_can_be_browsed(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    path.write_text(pages.render_page(make_many_cluster_content(64)), encoding="utf-8")
    with open_page(chromium, path) as found:
        page = found.page
        assert found.console_messages == []
        assert page.locator("#path").inner_text().strip() == "4,096 clusters"
        assert page.locator("#list tbody tr").count() == 100
        page.get_by_role("button", name="level 1").click()
        page.wait_for_function("document.querySelector('#path').innerText.includes('64 groups')")
        page.locator("#all summary").click()
        page.locator("#list button.cluster").first.click()
        page.get_by_role("button", name="Show subclusters").click()
        assert "64 clusters" in page.locator("#path").inner_text()
        page.locator("#find").fill("word70,")
        assert found.console_messages == []
