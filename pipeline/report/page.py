"""Render the page as one HTML file: a template that is readable without scripts, plus embedded data, charts and scripts.

Corpus text is untrusted. The template escapes it, the embedded JSON contains no `<`, the script inserts it only as text content,
and a content security policy stops anything that gets past these from running or being fetched.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.execution import cache
from pipeline.report import charts
from pipeline.report import comparison as comparing
from pipeline.terminal.formatting import format_bytes, format_duration, format_number, percent

_TEMPLATES = Path(__file__).parent / "templates"
VERSION = 1  # raise it when what a page shows changes: pages of an older version are written again
_VEGA_LITE = "6.4"  # grammar version used by `charts`; vl-convert bundles several


def check() -> None:
    """Check that the packages of `crispwrap[report]` are installed.

    Raises:
        ConfigError: one is missing.
    """
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'the report needs a package that is not here ({error.name}): pip install "crispwrap[report]"') from error


def stamp(fingerprint: str) -> str:
    """The text in the head of a page that identifies its inputs and version; `fingerprint` is that of the report step."""
    return f"crispwrap report {fingerprint} {VERSION}"


def render(facts: Mapping[str, Any], *, fingerprint: str = "", comparison: Mapping[str, Any] | None = None) -> str:
    """The HTML of a report.

    Args:
        facts: from `pipeline.report.facts.facts`.
        fingerprint: of the report step; it goes into the page's stamp.
        comparison: from `pipeline.report.comparison.comparison`.

    Raises:
        ConfigError: a package of `crispwrap[report]` is missing.
    """
    check()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "duration": format_duration,
        "bytes": format_bytes,
        "number": format_number,
        "count": lambda value: f"{value:,}",
    }
    scripts = [_vega(), (_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    data = {name: facts[name] for name in ("drawn", "specialists", "nodes", "excerpts")}
    specs = specifications(facts) | (comparing.specifications(comparison) if comparison else {})
    return environment.get_template("page.html.j2").render(
        **facts,
        comparison=comparison,
        stamp=stamp(fingerprint),
        movers=charts.movers(facts["nodes"]),
        data=_json(data | {"charts": specs}),
        scripts=scripts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        policy=_policy(scripts),
    )


def specifications(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The Vega-Lite charts of a report, by their place in the page."""
    nodes = facts["nodes"]
    names = facts["specialists"]
    after = "new corpus" if facts["drawn"] else "asked for"
    series = [("before", "corpus", "$before"), *_of_samples(names), ("after", after, "$after")]
    title_of = [f"{leaf if leaf >= 0 else 'node ' + str(node)}  {name}" for leaf, node, name in _titles(nodes)]

    def shares(i: int) -> dict[str, Any]:
        return {"cluster": title_of[i], **{field: nodes[field][i] for field, *_ in series}}

    found = {"map": charts.drawn_map(), "movers": charts.dots([shares(i) for i in charts.movers(nodes)], series, "cluster")}
    if len(facts["sources"]) > 1:
        alike = [one for one in series if one[0] in facts["sources"][0]]
        found["sources"] = charts.dots(facts["sources"], alike, "source")
    row_of_leaf = {leaf: i for i, leaf in enumerate(nodes["leaf"]) if leaf >= 0}
    for number, name in enumerate(names):
        sure = facts["certainty"][name]
        rows = [
            {
                "row": title_of[i],
                "share": nodes[f"claim{number}"][i],
                "sample": nodes[f"sample{number}"][i],
                "low": nodes[f"low{number}"][i],
                "high": nodes[f"high{number}"][i],
                "before": nodes["before"][i],
            }
            for leaf in sure["top"]
            if (i := row_of_leaf.get(leaf)) is not None
        ]
        if rows:
            found[f"intervals{number}"] = charts.intervals(rows)
        if errors := sure["errors"]:
            points = [{"times": times, "share": error} for times, error in zip(facts["multiples"], errors, strict=True)]
            found[f"more{number}"] = charts.more_sample(points)
    if repetition := facts["repetition"]:
        found["passes"] = charts.passes(repetition["passes"])
        rows = [
            {"title": title_of[i].partition("  ")[0], "name": name, "tokens": tokens, "epochs": epochs}
            for i, (leaf, name, tokens, epochs) in enumerate(
                zip(nodes["leaf"], nodes["name"], nodes["tokens"], nodes["epochs"], strict=True)
            )
            if leaf >= 0 and tokens
        ]
        found["epochs"] = charts.epochs(rows, repetition["caps"][0] if len(set(repetition["caps"])) == 1 else None)
    if rephrasing := facts["rephrasing"]:
        found["outcomes"] = charts.outcomes(
            [
                {"style": style["style"], "outcome": outcome, "order": order, "share": number / max(1, style["prompts"])}
                for style in rephrasing["styles"]
                for order, (outcome, number) in enumerate(style["outcomes"].items())
            ]
        )
    if facts["cost"]["steps"]:
        found["times"] = charts.times(facts["cost"]["steps"])
    return found


def _of_samples(names: list[str]) -> list[tuple[str, str, str]]:
    colours = ["$sample", "$second", "$third", "$less"]
    return [(f"sample{i}", f"sample, {name}", colours[i % len(colours)]) for i, name in enumerate(names)]


def _titles(nodes: Mapping[str, list[Any]]) -> list[tuple[int, int, str]]:
    return list(zip(nodes["leaf"], nodes["node"], nodes["name"], strict=True))


def _json(value: Any) -> str:
    """JSON that is safe in a script element.

    `<`, `>` and `&` are escaped, because they could close the element or open a comment. U+2028 and U+2029 are escaped, because
    JSON allows them in strings but JavaScript treated them as line ends.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: list[str]) -> str:
    """A content security policy under which nothing is fetched and only the page's own scripts run.

    Vega compiles its expressions at run time, so it needs `unsafe-eval`.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that is safe in a script element; cached between runs."""
    import vl_convert

    def bundled() -> bytes:  # takes some seconds
        script: str = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]  # its stub wants a snippet
        return script.replace("</script", "<\\/script").encode()

    return cache.remembered(
        "vega", {"vl_convert": metadata.version("vl-convert-python"), "vega_lite": _VEGA_LITE}, bundled
    ).decode()
