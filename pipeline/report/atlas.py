"""Data of the page's cluster map and cluster lists: one column per value over the mapped nodes, and excerpts of each node.

Shapes: M mapped nodes and their ancestors, L leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64
from pipeline.config import GENERALIST
from pipeline.errors import shown
from pipeline.results.shares import Shares
from pipeline.stages.report import OF_DRAWN

# Length of an excerpt. It falls below 100 only after each node has been cut to one excerpt per origin.
_FEWEST_CHARACTERS, _LEAST_CHARACTERS, _MOST_CHARACTERS = 30, 100, 420
_EXCERPT_BYTES = 4_500_000  # limit for all excerpts: keeps a page of 4,096 clusters below 10 MB
_BESIDE_BYTES = 20  # JSON overhead of an excerpt, without its text and document id
_ID_CHARACTERS = 80
_DIGITS = 5  # shares and map coordinates below 1e-5 keep 3 significant digits


@dataclass(frozen=True)
class Drawn:
    """Sampled tokens by leaf, and by copy number."""

    tokens_L: F64
    new_L: F64  # tokens of first copies
    rewritten_L: F64
    by_copy: Mapping[tuple[int, str], int]  # tokens by (copy number of a window, 0 first; origin), sorted by key

    @property
    def most_copies(self) -> int:
        """The largest number of copies of one window; 0 if nothing was sampled."""
        return 1 + max((copy for copy, _ in self.by_copy), default=-1)

    @classmethod
    def of_table(cls, table: pa.Table, num_leaves: int) -> "Drawn":
        """Aggregate a table with the DRAWN schema."""
        leaf, tokens = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.float64)
        copy, origin = table["copy"].to_numpy(), np.array(table["origin"].to_pylist(), dtype=object)

        def summed(rows: NDArray[np.bool_]) -> F64:
            return np.bincount(leaf[rows], weights=tokens[rows], minlength=num_leaves).astype(np.float64)

        every = np.ones(len(leaf), bool)
        by_copy = table.group_by(["copy", "origin"]).aggregate([("tokens", "sum")]).to_pylist()
        tokens_of = {(row["copy"], row["origin"]): row["tokens_sum"] for row in by_copy}
        return cls(summed(every), summed(copy == 0), summed(origin == "rephrased"), dict(sorted(tokens_of.items())))


def columns(nodes: pa.Table, shares: Shares, drawn: Drawn | None) -> dict[str, list[Any]]:
    """The columns of the map: name to one value per node of `nodes`.

    Token counts and shares of a node are sums over the leaves below it. `before` is its share of the generalist corpus, `asked` its
    share of the target mixture, and `after` its share of the sampled tokens, or of the target mixture before sampling. `epochs` is
    raw sampled tokens / generalist tokens.

    Columns of a specialist end in its number, from 0: `sample0` is the node's share of the specialist sample, `claim0` its share of
    the specialist's estimated mixture, `heard0` its number of sample windows. `low0` and `high0` bound the 90% interval of
    `claim0`. They are None for inner nodes, because interval bounds of several leaves do not add up.

    `epochs`, `fresh` (tokens of first copies) and `rewritten` exist only with `drawn`; `missing` only where `shares` has a deficit.
    """
    first, num = nodes["first_leaf"].to_numpy(), nodes["num_leaves"].to_numpy()

    def below(value_L: NDArray[Any]) -> NDArray[Any]:
        sums = np.concatenate([[0], np.cumsum(value_L)])
        return np.asarray(sums[first + num] - sums[first])

    tokens_M = below(shares.tokens_L)
    after_L = drawn.tokens_L / max(1.0, float(drawn.tokens_L.sum())) if drawn else shares.after_L
    found: dict[str, list[Any]] = {
        **{name: nodes[name].to_pylist() for name in ("node", "parent", "level")},
        "leaf": np.where(num == 1, first, -1).tolist(),
        "leaves": num.tolist(),
        "x": _rounded(nodes["x"].to_numpy()),
        "y": _rounded(nodes["y"].to_numpy()),
        **_names(nodes, shares),
        "windows": below(shares.windows_L).tolist(),
        "tokens": tokens_M.tolist(),
        "before": _rounded(below(shares.before_L)),
        "asked": _rounded(below(shares.asked_L)),
        "after": _rounded(below(after_L)),
        "drawn": np.rint(below(drawn.tokens_L)).astype(np.int64).tolist() if drawn else [],
    }
    if drawn:
        raw_M = below(drawn.tokens_L - drawn.rewritten_L)
        found["epochs"] = _rounded(np.divide(raw_M, tokens_M, out=np.zeros(len(raw_M)), where=tokens_M > 0))
        found["fresh"] = np.rint(below(drawn.new_L)).astype(np.int64).tolist()
        found["rewritten"] = np.rint(below(drawn.rewritten_L)).astype(np.int64).tolist()
    if shares.deficit_L is not None:
        found["missing"] = np.rint(below(shares.deficit_L)).astype(np.int64).tolist()
    for number, name in enumerate(shares.samples):
        found[f"sample{number}"] = _rounded(below(shares.of_sample(name, "p_raw")))
        found[f"claim{number}"] = _rounded(below(shares.of_sample(name, "p")))
        found[f"heard{number}"] = below(shares.of_sample(name, "windows")).astype(np.int64).tolist()
        for end in ("low", "high"):
            value_M = np.where(num == 1, shares.of_sample(name, f"p_{end}")[first], np.nan)
            found[f"{end}{number}"] = [None if np.isnan(value) else round(float(value), _DIGITS + 2) for value in value_M]
    return found


def _names(nodes: pa.Table, shares: Shares) -> dict[str, list[Any]]:
    """The columns `name` and `words`: a cluster's title and terms, or the terms and "" where a node has no title."""
    first, num, terms = (nodes[name].to_pylist() for name in ("first_leaf", "num_leaves", "terms"))
    titles = [
        shares.names[leaf].title if leaves == 1 and leaf in shares.names else "" for leaf, leaves in zip(first, num, strict=True)
    ]
    names = [shown(title or words) for title, words in zip(titles, terms, strict=True)]
    return {"name": names, "words": [shown(words) if title else "" for title, words in zip(titles, terms, strict=True)]}


def excerpts(table: pa.Table, specialists: Sequence[str]) -> dict[str, dict[str, list[list[Any]]]]:
    """Excerpts by node, then by origin, as lists of [text, document id, window, copies], shortened to fit the page.

    The origin is `g` (generalist corpus), `d` (new corpus) or `s0`, `s1`, … (specialist sample); keys are short because there are
    thousands.
    """
    key_of = {GENERALIST: "g", OF_DRAWN: "d", **{name: f"s{number}" for number, name in enumerate(specialists)}}
    found: dict[str, dict[str, list[list[Any]]]] = {}
    for row in table.to_pylist():
        excerpt = [row["text"], shown(row["doc_id"])[:_ID_CHARACTERS], row["window"], row["copies"]]
        found.setdefault(str(row["node"]), {}).setdefault(key_of[row["of"]], []).append(excerpt)
    return shortened(found)


def shortened(found: dict[str, dict[str, list[list[Any]]]]) -> dict[str, dict[str, list[list[Any]]]]:
    """The excerpts, cut so that all of them fit into the page's byte limit.

    Every text is cut to one common length. Where that length would be below 100 characters, each node keeps fewer excerpts of each
    origin, but at least one.
    """
    most_each = max((len(texts) for of in found.values() for texts in of.values()), default=0)
    for each in range(most_each, 0, -1):
        kept = {node: {whose: texts[:each] for whose, texts in of.items()} for node, of in found.items()}
        every = [one for of in kept.values() for texts in of.values() for one in texts]
        beside = sum(_BESIDE_BYTES + len(identifier.encode()) for _, identifier, *_ in every)
        num_bytes, num_characters = (
            sum(map(len, texts)) for texts in ([text.encode() for text, *_ in every], [t for t, *_ in every])
        )
        most = int((_EXCERPT_BYTES - beside) * max(1, num_characters) / max(1, num_bytes) / len(every))
        if most >= _LEAST_CHARACTERS or each == 1:
            most = max(_FEWEST_CHARACTERS, min(_MOST_CHARACTERS, most))
            return {
                node: {whose: [[excerpt_of(text, most), *rest] for text, *rest in texts] for whose, texts in of.items()}
                for node, of in kept.items()
            }
    return found


def excerpt_of(text: str, most: int) -> str:
    """The first `most` characters of a text on one line, control characters replaced; " …" marks a cut."""
    line = shown(" ".join(text[: 4 * most].split()))
    return line[:most].rstrip() + " …" if len(line) > most or len(text) > 4 * most else line


def _rounded(value_M: NDArray[Any]) -> list[float]:
    """The values rounded to 6 decimals, and those below 1e-5 to 3 significant digits."""
    return [float(f"{value:.3g}") if abs(value) < 10**-_DIGITS else round(float(value), _DIGITS + 1) for value in value_M]
