"""The page as one file: a template for what can be read without a script, data and charts for the script beside it.

Text of a corpus is hostile until shown otherwise: the template escapes it, data stand in the page as JSON without a `<`, the script
puts them in as text alone, and a content security policy keeps whatever gets past that from being run or fetched.
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
from pipeline.terminal.formatting import bytes_said, number_said, percent, time_said

_TEMPLATES = Path(__file__).parent / "templates"
VERSION = 1  # raise it when what a page shows changes: pages of an older version are written again
_VEGA_LITE = "6.4"  # of the grammar that `charts` is written in; vl-convert carries several


def check() -> None:
    """Raises:
    ConfigError: a package of `crispwrap[report]` is missing.
    """
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'the report needs a package that is not here ({error.name}): pip install "crispwrap[report]"') from error


def stamp(fingerprint: str) -> str:
    """What the beginning of a page says of what it is made from; `fingerprint` is that of the report step."""
    return f"crispwrap report {fingerprint} {VERSION}"


def render(facts: Mapping[str, Any], *, fingerprint: str = "", comparison: Mapping[str, Any] | None = None) -> str:
    """The HTML of a report.

    Raises:
        ConfigError: as `check`.
    """
    check()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "duration": time_said,
        "bytes": bytes_said,
        "number": number_said,
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
    """The charts by the place in the page that they are for."""
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
    """JSON that can stand in a script element: nothing in it closes that, opens a comment, or ends a line for JavaScript alone."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: list[str]) -> str:
    """Nothing is fetched, whatever a text says; only the page's own scripts run. Vega compiles its expressions: unsafe-eval."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which a script element can hold."""
    import vl_convert

    def bundled() -> bytes:  # takes some seconds
        script: str = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]  # its stub wants a snippet
        return script.replace("</script", "<\\/script").encode()

    return cache.remembered(
        "vega", {"vl_convert": metadata.version("vl-convert-python"), "vega_lite": _VEGA_LITE}, bundled
    ).decode()
