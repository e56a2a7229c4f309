"""Data of the page's cluster map and cluster list: one column per value over the mapped nodes, and excerpts of each node.

Shapes: M mapped nodes and their ancestors, L leaves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import GENERALIST
from pipeline.errors import replace_controls
from pipeline.results.run_results import RunResults
from pipeline.stages.report import NEW_CORPUS

# Length of an excerpt. It falls below 100 only after each node has been cut to one excerpt per origin.
_HARD_MIN_CHARS, _MIN_CHARS, _MAX_CHARS = 30, 100, 420
_MAX_EXCERPT_BYTES = 4_500_000  # of all excerpts together: keeps a page of 4,096 clusters below 10 MB
_OVERHEAD_BYTES = 20  # JSON overhead of an excerpt, without its text and document id
_MAX_ID_CHARS = 80
_DIGITS = 5  # shares and map coordinates below 1e-5 keep 3 significant digits

Excerpts = dict[str, dict[str, list[list[Any]]]]  # by node, then by origin: [text, document id, window, copies]


def build_map_columns(nodes: pa.Table, results: RunResults) -> dict[str, list[Any]]:
    """The columns of the map: name to one value per node of `nodes`.

    Token counts and shares of a node are sums over the leaves below it. `before` is its share of the generalist corpus, `target`
    its share of the target mixture, and `after` its share of the sampled tokens, or of the target mixture before sampling.
    `epochs` is raw sampled tokens / generalist tokens.

    Columns of a specialist end in its number, from 0: `sample0` is the node's share of the specialist sample, `mixture0` its share
    of the specialist's estimated mixture, `sample_windows0` its number of sample windows. `low0` and `high0` bound the 90% interval
    of `mixture0`. They are None for inner nodes, because interval bounds of several leaves do not add up.

    `epochs`, `first_copy_tokens`, `rewritten_tokens` and `deficit_tokens` exist only once the new corpus is complete.
    """
    sampled = results.sampled
    first, num = nodes["first_leaf"].to_numpy(), nodes["num_leaves"].to_numpy()

    def sum_below(value_L: NDArray[Any]) -> NDArray[Any]:
        sums = np.concatenate([[0], np.cumsum(value_L)])
        return np.asarray(sums[first + num] - sums[first])

    def count_below(value_L: NDArray[Any]) -> list[int]:
        return [int(value) for value in np.rint(sum_below(value_L))]

    tokens_M = sum_below(results.tokens_L)
    columns: dict[str, list[Any]] = {
        **{name: nodes[name].to_pylist() for name in ("node", "parent", "level")},
        "leaf": np.where(num == 1, first, -1).tolist(),
        "leaves": num.tolist(),
        "x": _round_values(nodes["x"].to_numpy()),
        "y": _round_values(nodes["y"].to_numpy()),
        **_build_name_columns(nodes, results),
        "windows": sum_below(results.windows_L).tolist(),
        "tokens": tokens_M.tolist(),
        "before": _round_values(sum_below(results.before_L)),
        "target": _round_values(sum_below(results.target_L)),
        "after": _round_values(sum_below(results.after_L)),
        "sampled_tokens": count_below(sampled.tokens_L) if sampled else [],
    }
    if sampled:
        raw_M = sum_below(sampled.tokens_L - sampled.rewritten_L)
        columns["epochs"] = _round_values(np.divide(raw_M, tokens_M, out=np.zeros(len(raw_M)), where=tokens_M > 0))
        columns["first_copy_tokens"] = count_below(sampled.first_copy_L)
        columns["rewritten_tokens"] = count_below(sampled.rewritten_L)
    if results.allocation:
        columns["deficit_tokens"] = count_below(results.allocation.deficit_L)
    for number, name in enumerate(results.specialist_rows):
        columns[f"sample{number}"] = _round_values(sum_below(results.specialist_column(name, "p_raw")))
        columns[f"mixture{number}"] = _round_values(sum_below(results.specialist_column(name, "p")))
        columns[f"sample_windows{number}"] = sum_below(results.specialist_column(name, "windows")).astype(np.int64).tolist()
        for bound in ("low", "high"):
            value_M = np.where(num == 1, results.specialist_column(name, f"p_{bound}")[first], np.nan)
            columns[f"{bound}{number}"] = [None if np.isnan(value) else round(float(value), _DIGITS + 2) for value in value_M]
    return columns


def _build_name_columns(nodes: pa.Table, results: RunResults) -> dict[str, list[Any]]:
    """The columns `name` and `terms`: a cluster's title and terms, or the terms and "" where a node has no title."""
    first, num, all_terms = (nodes[name].to_pylist() for name in ("first_leaf", "num_leaves", "terms"))
    titles = [
        results.names[leaf].title if leaves == 1 and leaf in results.names else "" for leaf, leaves in zip(first, num, strict=True)
    ]
    titled = list(zip(titles, all_terms, strict=True))
    return {
        "name": [replace_controls(title or terms) for title, terms in titled],
        "terms": [replace_controls(terms) if title else "" for title, terms in titled],
    }


def group_excerpts(table: pa.Table, specialists: Sequence[str]) -> Excerpts:
    """Excerpts by node, then by origin, as lists of [text, document id, window, copies], shortened to fit the page.

    The origin is `g` (generalist corpus), `d` (new corpus) or `s0`, `s1`, … (specialist sample); keys are short because there are
    thousands.
    """
    key_of = {GENERALIST: "g", NEW_CORPUS: "d", **{name: f"s{number}" for number, name in enumerate(specialists)}}
    by_node: Excerpts = {}
    for row in table.to_pylist():
        excerpt = [row["text"], replace_controls(row["doc_id"])[:_MAX_ID_CHARS], row["window"], row["copies"]]
        by_node.setdefault(str(row["node"]), {}).setdefault(key_of[row["corpus"]], []).append(excerpt)
    return fit_excerpts(by_node)


def fit_excerpts(by_node: Excerpts) -> Excerpts:
    """The excerpts, cut so that all of them fit into the page's byte limit.

    Every text is cut to one common length. Where that length would be below 100 characters, each node keeps fewer excerpts of each
    origin, but at least one.
    """
    largest = max((len(excerpts) for by_origin in by_node.values() for excerpts in by_origin.values()), default=0)
    for num_kept in range(largest, 0, -1):
        kept = {
            node: {origin: excerpts[:num_kept] for origin, excerpts in by_origin.items()} for node, by_origin in by_node.items()
        }
        all_excerpts = [excerpt for by_origin in kept.values() for excerpts in by_origin.values() for excerpt in excerpts]
        overhead_bytes = sum(_OVERHEAD_BYTES + len(doc_id.encode()) for _, doc_id, *_ in all_excerpts)
        num_chars = sum(len(text) for text, *_ in all_excerpts)
        num_bytes = sum(len(text.encode()) for text, *_ in all_excerpts)
        text_bytes = _MAX_EXCERPT_BYTES - overhead_bytes
        max_chars = int(text_bytes * max(1, num_chars) / max(1, num_bytes) / len(all_excerpts))
        if max_chars >= _MIN_CHARS or num_kept == 1:
            max_chars = max(_HARD_MIN_CHARS, min(_MAX_CHARS, max_chars))
            return {
                node: {
                    origin: [[shorten(text, max_chars), *rest] for text, *rest in excerpts]
                    for origin, excerpts in by_origin.items()
                }
                for node, by_origin in kept.items()
            }
    return by_node


def shorten(text: str, max_chars: int) -> str:
    """The first `max_chars` characters of a text on one line, control characters replaced; " …" marks a cut."""
    line = replace_controls(" ".join(text[: 4 * max_chars].split()))
    return line[:max_chars].rstrip() + " …" if len(line) > max_chars or len(text) > 4 * max_chars else line


def _round_values(value_M: NDArray[Any]) -> list[float]:
    """The values rounded to 6 decimals, and those below 1e-5 to 3 significant digits."""
    return [float(f"{value:.3g}") if abs(value) < 10**-_DIGITS else round(float(value), _DIGITS + 1) for value in value_M]
