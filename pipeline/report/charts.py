"""The page's charts as Vega-Lite specifications. The page's script replaces `$` names by theme colours and sets the width.

Each corpus has the same colour in every chart: `$before` the generalist corpus, `$sample` a specialist sample, `$after` the new
corpus.
"""

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # identifies the grammar; never fetched
_MAX_MOVERS = 10  # clusters that gained most, and as many that lost most
_MIN_AREA, _MAX_AREA = 12, 900  # of a mark on the map, in square pixels
_MAX_LOG2_WEIGHT = 4.0  # weights from 16 up have the strongest colour, or a few extremes would make all others pale
_ROW_PX = 22
_SQRT = {"type": "sqrt"}  # for shares: a few are large, and the small ones must stay visible


def build_map() -> Spec:
    """The map of the clusters: area by tokens, colour by log2 of the weight, wheel and drag to zoom and pan.

    The page's script supplies its data set, `nodes`.
    """
    scale = {
        "domainMin": -_MAX_LOG2_WEIGHT,
        "domainMid": 0,
        "domainMax": _MAX_LOG2_WEIGHT,
        "range": ["$less", "$middle", "$more"],
        "clamp": True,
    }
    return _build_chart(
        {"name": "nodes", "values": []},
        {
            "height": 520,
            "params": [{"name": "move", "select": "interval", "bind": "scales"}],
            "mark": {
                "type": "circle",
                "opacity": 0.9,
                "stroke": "$surface",
                "strokeWidth": 0.75,
                "cursor": "pointer",
                "tooltip": True,
            },
            "encoding": {
                "x": {"field": "x", "type": "quantitative", "axis": None, "scale": {"zero": False, "nice": False, "padding": 24}},
                "y": {"field": "y", "type": "quantitative", "axis": None, "scale": {"zero": False, "nice": False, "padding": 24}},
                "size": {
                    "field": "size",
                    "type": "quantitative",
                    "scale": {"type": "linear", "domainMin": 0, "range": [_MIN_AREA, _MAX_AREA]},
                    "legend": None,
                },
                "color": {
                    "field": "log2_weight",
                    "type": "quantitative",
                    "scale": scale,
                    "legend": {
                        "title": "weight",
                        "orient": "bottom",
                        "direction": "horizontal",
                        "gradientLength": 220,
                        "values": [-4, -2, 0, 2, 4],
                        "labelExpr": "datum.value < 0 ? '1/' + pow(2, -datum.value) : '' + pow(2, datum.value)",
                    },
                },
                "order": {"field": "size", "sort": "descending"},
                "tooltip": [
                    {"field": "title", "title": "cluster"},
                    {"field": "name", "title": "name"},
                    {"field": "before", "title": "in the corpus", "format": ".2%"},
                    {"field": "sample", "title": "in the sample", "format": ".2%"},
                    {"field": "after", "title": "in the new corpus", "format": ".2%"},
                    {"field": "weight", "title": "weight"},
                ],
            },
        },
    )


def build_dot_plot(rows: Sequence[dict[str, Any]], series: Sequence[tuple[str, str, str]], label: str) -> Spec:
    """A dot plot of shares: one line per row, in the given order, with one dot per series.

    Args:
        rows: each with its name under `label` and a share under the field of each series.
        series: (field, displayed name, colour).
        label: the field that names a row.
    """
    names = [name for _, name, _ in series]
    values = [
        {"row": row[label], "order": number, "series": name, "share": row[field]}
        for number, row in enumerate(rows)
        for field, name, _ in series
    ]
    y = {
        "field": "row",
        "type": "nominal",
        "sort": {"field": "order"},
        "title": None,
        "axis": {"grid": True, "ticks": False, "labelPadding": 10},
    }
    x = {"field": "share", "type": "quantitative", "title": None, "axis": {"format": "~%", "tickCount": 6}, "scale": _SQRT}
    line = {
        "mark": {"type": "rule", "color": "$line", "strokeWidth": 2},
        "encoding": {"x": {"aggregate": "min", **x}, "x2": {"aggregate": "max", "field": "share"}},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "tooltip": True},
        "encoding": {
            "x": x,
            "color": _encode_series(series),
            "shape": {"field": "series", "type": "nominal", "scale": {"domain": names, "range": _SHAPES[: len(names)]}},
            "tooltip": [
                {"field": "row", "title": label},
                {"field": "series", "title": "in"},
                {"field": "share", "title": "share", "format": ".2%"},
            ],
        },
    }
    return _build_chart({"values": values}, {"height": _ROW_PX * len(rows), "encoding": {"y": y}, "layer": [line, points]})


_SHAPES = ["circle", "diamond", "square", "triangle-up", "cross"]


def _encode_series(series: Sequence[tuple[str, str, str]]) -> Spec:
    return {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": [name for _, name, _ in series], "range": [colour for *_, colour in series]},
        "legend": {"title": None, "orient": "top"},
    }


def build_interval_plot(rows: Sequence[dict[str, Any]]) -> Spec:
    """A specialist's estimated share of each cluster with its 90% interval, next to the shares of its sample and of the corpus.

    Each row has `row` (the cluster's title), `share`, `low`, `high`, `sample` and `before`; `low` and `high` may be None.
    """
    y = {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": {"grid": True, "ticks": False, "labelPadding": 10}}
    x = {"type": "quantitative", "title": None, "axis": {"format": "~%", "tickCount": 6}, "scale": _SQRT}
    tooltip = [
        {"field": "row", "title": "cluster"},
        {"field": "share", "title": "in the mixture", "format": ".2%"},
        {"field": "low", "title": "5th percentile", "format": ".2%"},
        {"field": "high", "title": "95th percentile", "format": ".2%"},
        {"field": "sample", "title": "in the sample", "format": ".2%"},
        {"field": "before", "title": "in the corpus", "format": ".2%"},
    ]
    layer: list[Spec] = [
        {
            "mark": {"type": "rule", "color": "$sample", "strokeWidth": 3, "opacity": 0.5},
            "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "filled": True, "shape": "diamond", "color": "$sample", "size": 80, "opacity": 1},
            "encoding": {"x": {"field": "share", **x}, "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "filled": False, "shape": "circle", "color": "$sample", "size": 70, "strokeWidth": 1.5},
            "encoding": {"x": {"field": "sample", **x}, "tooltip": tooltip},
        },
        {
            "mark": {"type": "tick", "color": "$before", "thickness": 3, "height": 14, "opacity": 1},
            "encoding": {"x": {"field": "before", **x}, "tooltip": tooltip},
        },
    ]
    has_intervals = any(row["low"] is not None for row in rows)  # without any interval, the interval layer would have no scale
    layer = layer if has_intervals else layer[1:]
    return _build_chart({"values": list(rows)}, {"height": _ROW_PX * len(rows), "encoding": {"y": y}, "layer": layer})


def build_error_plot(rows: Sequence[dict[str, Any]]) -> Spec:
    """The expected error of the mixture (`share`) over multiples of the sample size (`multiple`)."""
    encoding = {
        "x": {
            "field": "multiple",
            "type": "quantitative",
            "scale": {"type": "log", "base": 2},
            "axis": {"labelExpr": "datum.value + '×'", "values": sorted({row["multiple"] for row in rows}), "grid": False},
            "title": "documents in the sample, as a multiple of now",
        },
        "y": {
            "field": "share",
            "type": "quantitative",
            "axis": {"format": "~%", "tickCount": 4},
            "title": "share in other clusters",
            "scale": {"zero": True},
        },
        "tooltip": [
            {"field": "multiple", "title": "multiple of the sample"},
            {"field": "share", "title": "expected share in other clusters", "format": ".1%"},
        ],
    }
    mark = {
        "type": "line",
        "color": "$sample",
        "point": {"filled": True, "size": 50, "color": "$sample"},
        "strokeWidth": 2,
        "tooltip": True,
    }
    return _build_chart({"values": list(rows)}, {"height": 180, "mark": mark, "encoding": encoding})


def build_copies_plot(rows: Sequence[dict[str, Any]]) -> Spec:
    """Tokens of the new corpus by copy number (`copy`, from 1) and origin."""
    encoding = {
        "x": {"field": "copy", "type": "ordinal", "title": "copy number of the window", "axis": {"labelAngle": 0}},
        "y": {"field": "tokens", "type": "quantitative", "title": "tokens", "axis": {"format": "~s", "tickCount": 5}},
        "color": _encode_series([("origin", "raw", "$after"), ("origin", "rephrased", "$sample")])
        | {"field": "origin", "legend": {"title": None, "orient": "top"} if len({row["origin"] for row in rows}) > 1 else None},
        "tooltip": [{"field": "copy", "title": "copy number"}, {"field": "origin"}, {"field": "tokens", "format": ","}],
    }
    return _build_chart({"values": list(rows)}, {"height": 220, "mark": {"type": "bar", "tooltip": True}, "encoding": encoding})


def build_epochs_plot(rows: Sequence[dict[str, Any]], cap: float | None) -> Spec:
    """Epochs of each cluster over its generalist tokens, with a line at the cap on epochs; `cap` None draws no line."""
    points = {
        "data": {"values": list(rows)},
        "mark": {"type": "circle", "color": "$after", "opacity": 0.65, "size": 45, "tooltip": True},
        "encoding": {
            "x": {
                "field": "tokens",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False, "padding": 8},
                "axis": {"format": "~s", "tickCount": 5, "grid": False},
                "title": "generalist tokens in the cluster",
            },
            "y": {"field": "epochs", "type": "quantitative", "title": "epochs", "axis": {"tickCount": 5}},
            "tooltip": [
                {"field": "title", "title": "cluster"},
                {"field": "name", "title": "name"},
                {"field": "tokens", "title": "generalist tokens", "format": ","},
                {"field": "epochs", "title": "epochs", "format": ".2f"},
            ],
        },
    }
    if cap is None:  # phases with different caps
        return _build_chart(None, {"height": 220, "layer": [points]})
    rule = {"data": {"values": [{"cap": cap}]}, "encoding": {"y": {"field": "cap", "type": "quantitative"}}}
    line = rule | {"mark": {"type": "rule", "color": "$less", "strokeDash": [5, 4], "strokeWidth": 1.5}}
    label = rule | {
        "mark": {"type": "text", "align": "left", "x": 4, "dy": -7, "color": "$less", "text": f"cap: {cap:g} epochs"},
    }
    # A cap far above all clusters would squeeze them at the bottom.
    layer = [points, line, label] if cap <= 4 * max((row["epochs"] for row in rows), default=0) else [points]
    return _build_chart(None, {"height": 220, "layer": layer})


def build_step_times_plot(rows: Sequence[dict[str, Any]]) -> Spec:
    """Wall-clock seconds of each step."""
    encoding = {
        "y": {"field": "step", "type": "nominal", "sort": None, "title": None, "axis": {"ticks": False, "labelPadding": 8}},
        "x": {"field": "seconds", "type": "quantitative", "title": "seconds", "axis": {"tickCount": 5, "format": "~s"}},
        "tooltip": [
            {"field": "step"},
            {"field": "seconds", "format": ",.1f"},
            {"field": "workers", "title": "workers"},
            {"field": "core_s", "title": "core-seconds", "format": ",.0f"},
            {"field": "peak_mb", "title": "peak memory per worker, MB", "format": ",.0f"},
        ],
    }
    mark = {"type": "bar", "color": "$after", "height": {"band": 0.7}, "tooltip": True}
    return _build_chart({"values": list(rows)}, {"height": _ROW_PX * len(rows), "mark": mark, "encoding": encoding})


def build_outcomes_plot(rows: Sequence[dict[str, Any]]) -> Spec:
    """Share of each outcome (accepted, or the reason of a rejection) among the prompts of each style."""
    encoding = {
        "y": {"field": "style", "type": "nominal", "title": None, "axis": {"ticks": False, "labelPadding": 8}},
        "x": {"field": "share", "type": "quantitative", "stack": True, "title": None, "axis": {"format": "~%", "tickCount": 5}},
        "color": {
            "field": "outcome",
            "type": "nominal",
            "sort": None,
            "scale": {"range": ["$after", "$sample", "$less", "$before", "$more", "$line"]},
            "legend": {"title": None, "orient": "top", "columns": 3},
        },
        "order": {"field": "order"},
        "tooltip": [{"field": "style"}, {"field": "outcome"}, {"field": "share", "format": ".1%"}],
    }
    mark = {"type": "bar", "height": {"band": 0.7}, "tooltip": True}
    return _build_chart(
        {"values": list(rows)}, {"height": 32 * len({row["style"] for row in rows}), "mark": mark, "encoding": encoding}
    )


def find_movers(columns: dict[str, list[Any]], max_movers: int = _MAX_MOVERS) -> list[int]:
    """The clusters that gained most and lost most, as row numbers of `columns` (`cluster_map.build_map_columns`).

    Only nodes without children on the map count. At most `max_movers` that gained, largest gain first, then at most `max_movers`
    that lost, largest loss last. Ties are in node order.
    """
    parents = set(columns["parent"])
    by_change = sorted(
        (i for i, node in enumerate(columns["node"]) if node not in parents),
        key=lambda i: (columns["before"][i] - columns["after"][i], columns["node"][i]),
    )
    gained = [i for i in by_change[:max_movers] if columns["after"][i] > columns["before"][i]]
    lost = [i for i in by_change[-max_movers:] if columns["after"][i] < columns["before"][i] and i not in gained]
    return [*gained, *lost]


def _build_chart(data: Spec | None, body: Spec) -> Spec:
    return {"$schema": _SCHEMA, **({"data": data} if data is not None else {}), **body}
