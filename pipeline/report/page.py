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
from pipeline.report.comparison import build_comparison_charts
from pipeline.terminal.formatting import format_bytes, format_duration, format_number, format_percent

_TEMPLATES = Path(__file__).parent / "templates"
VERSION = 3  # raise it when the content of a page changes: pages of an older version are written again
_VEGA_LITE = "6.4"  # grammar version used by `charts`; vl-convert bundles several


def check_packages() -> None:
    """Check that the packages of `crispwrap[report]` are installed.

    Raises:
        ConfigError: one is missing.
    """
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'the report needs the package {error.name}, which is not installed: pip install "crispwrap[report]"'
        ) from error


def build_stamp(fingerprint: str) -> str:
    """The text in the head of a page that identifies its inputs and version; `fingerprint` is that of the report step."""
    return f"crispwrap report {fingerprint} {VERSION}"


def render_page(content: Mapping[str, Any], *, fingerprint: str = "", comparison: Mapping[str, Any] | None = None) -> str:
    """The HTML of a report.

    Args:
        content: from `pipeline.report.page_content.collect_content`.
        fingerprint: of the report step; it goes into the page's stamp.
        comparison: from `pipeline.report.comparison.compare_runs`.

    Raises:
        ConfigError: a package of `crispwrap[report]` is missing.
    """
    check_packages()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": format_percent,
        "duration": format_duration,
        "bytes": format_bytes,
        "number": format_number,
        "count": lambda value: f"{value:,}",
    }
    scripts = [_load_vega(), (_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    data = {name: content[name] for name in ("is_sampled", "specialists", "nodes", "excerpts")}
    specs = build_charts(content) | (build_comparison_charts(comparison) if comparison else {})
    return environment.get_template("page.html.j2").render(
        **content,
        comparison=comparison,
        stamp=build_stamp(fingerprint),
        movers=charts.find_movers(content["nodes"]),
        data=_dump_json(data | {"charts": specs}),
        scripts=scripts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        policy=_build_content_policy(scripts),
    )


def build_charts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The Vega-Lite charts of a report, by their place in the page."""
    nodes = content["nodes"]
    names = content["specialists"]
    after = "new corpus" if content["is_sampled"] else "target mixture"
    series = [("before", "corpus", "$before"), *_list_sample_series(names), ("after", after, "$after")]
    titles = [
        f"{leaf if leaf >= 0 else f'node {node}'}  {name}"
        for leaf, node, name in zip(nodes["leaf"], nodes["node"], nodes["name"], strict=True)
    ]

    def build_row(i: int) -> dict[str, Any]:
        return {"cluster": titles[i], **{field: nodes[field][i] for field, *_ in series}}

    movers = [build_row(i) for i in charts.find_movers(nodes)]
    specs = {"map": charts.build_map(), "movers": charts.build_dot_plot(movers, series, "cluster")}
    if len(content["sources"]) > 1:
        source_series = [one for one in series if one[0] in content["sources"][0]]
        specs["sources"] = charts.build_dot_plot(content["sources"], source_series, "source")
    row_of_leaf = {leaf: i for i, leaf in enumerate(nodes["leaf"]) if leaf >= 0}
    for number, name in enumerate(names):
        uncertainty = content["uncertainty"][name]
        rows = [
            {
                "row": titles[i],
                "share": nodes[f"mixture{number}"][i],
                "sample": nodes[f"sample{number}"][i],
                "low": nodes[f"low{number}"][i],
                "high": nodes[f"high{number}"][i],
                "before": nodes["before"][i],
            }
            for leaf in uncertainty["largest"]
            if (i := row_of_leaf.get(leaf)) is not None
        ]
        if rows:
            specs[f"intervals{number}"] = charts.build_interval_plot(rows)
        if errors := uncertainty["errors"]:
            multiples = content["sample_multiples"]
            points = [{"multiple": multiple, "share": error} for multiple, error in zip(multiples, errors, strict=True)]
            specs[f"error{number}"] = charts.build_error_plot(points)
    if repetition := content["repetition"]:
        specs["copies"] = charts.build_copies_plot(repetition["copies"])
        rows = [
            {"title": titles[i].partition("  ")[0], "name": name, "tokens": tokens, "epochs": epochs}
            for i, (leaf, name, tokens, epochs) in enumerate(
                zip(nodes["leaf"], nodes["name"], nodes["tokens"], nodes["epochs"], strict=True)
            )
            if leaf >= 0 and tokens
        ]
        specs["epochs"] = charts.build_epochs_plot(rows, repetition["caps"][0] if len(set(repetition["caps"])) == 1 else None)
    if rephrasing := content["rephrasing"]:
        specs["outcomes"] = charts.build_outcomes_plot(
            [
                {"style": style["style"], "outcome": outcome, "order": order, "share": number / max(1, style["prompts"])}
                for style in rephrasing["styles"]
                for order, (outcome, number) in enumerate(style["outcomes"].items())
            ]
        )
    if content["cost"]["steps"]:
        specs["step_times"] = charts.build_step_times_plot(content["cost"]["steps"])
    return specs


def _list_sample_series(names: list[str]) -> list[tuple[str, str, str]]:
    colours = ["$sample", "$second", "$third", "$less"]
    return [(f"sample{i}", f"sample of {name}", colours[i % len(colours)]) for i, name in enumerate(names)]


def _dump_json(value: Any) -> str:
    """JSON that is safe in a script element.

    `<`, `>` and `&` are escaped, because they could close the element or open a comment. U+2028 and U+2029 are escaped, because
    JSON allows them in strings but JavaScript treated them as line ends.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _build_content_policy(scripts: list[str]) -> str:
    """A content security policy under which nothing is fetched and only the page's own scripts run.

    Vega compiles its expressions at run time, so it needs `unsafe-eval`.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@functools.cache
def _load_vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that is safe in a script element; cached between runs."""
    import vl_convert

    def build_bundle() -> bytes:  # takes some seconds
        script: str = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]  # its stub wants a snippet
        return script.replace("</script", "<\\/script").encode()

    return cache.load_or_compute(
        "vega", {"vl_convert": metadata.version("vl-convert-python"), "vega_lite": _VEGA_LITE}, build_bundle
    ).decode()
