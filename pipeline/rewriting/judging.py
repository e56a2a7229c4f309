"""Judge answers as accepted, rejected by a rule, or quarantined, and join the accepted ones into rewrites of their windows.

Shapes: R rewrites (in `_apply_similarity`: answers; in `_sum_by_cluster`: requests), P distinct passages (in
`_count_by_cluster_pair`: pairs of clusters), D width of the embedding.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32, I32
from pipeline.hashing import window_keys
from pipeline.rewriting import prompts
from pipeline.rewriting.filters import HeldOut, Verdict, get_opening, judge_answer
from pipeline.rewriting.requests import RewriteInputs
from pipeline.tables import PASSAGES, REWRITES, cast

Encode = Callable[[Sequence[str]], F32]


def judge_answers(
    requests: pa.Table,
    answers: pa.Table,
    errors: Mapping[int, str],
    inputs: RewriteInputs,
    encode: Encode,
    held_out: HeldOut | None,
    provenance: dict[str, str],
) -> pa.Table:
    """Return a PASSAGES row for each request, in their order.

    Each request has either a row in `answers` (ANSWERS, in the order of the requests) or an error in `errors`, by key; requests
    with an error are quarantined. `provenance` holds model, revision and sampling.

    Raises:
        AssertionError: answers and requests are not aligned.
    """
    rows = []
    remaining_answers = iter(answers.to_pylist())
    for request in requests.to_pylist():
        style = inputs.styles[request["style"]]
        error = errors.get(request["key"])
        answer = _NO_ANSWER if error is not None else next(remaining_answers)
        assert error is not None or answer["key"] == request["key"], "answers and requests are not aligned"
        if error is not None:
            outcome, verdict = "quarantined", Verdict("", (), "no_answer", error)
        else:
            verdict = judge_answer(
                answer["text"],
                style=style,
                source=request["text"],
                source_tokens=request["source_tokens"],
                finish_reason=answer["finish_reason"],
                instructions=prompts.get_instructions(style),
                examples=request["examples"],
                count=inputs.cutter.count,
                held_out=held_out,
            )
            outcome = "rejected" if verdict.reason else "accepted"
        rows.append(
            {
                **{name: request[name] for name in _REQUEST_COLUMNS},
                "verdict": outcome,
                "reason": verdict.reason,
                "detail": verdict.detail,
                "removed": list(verdict.removed),
                "similarity": None,
                "text": verdict.text,
                "tokens": inputs.cutter.count(verdict.text) if verdict.text else 0,
                **{name: answer[name] for name in ("finish_reason", "prompt_tokens", "output_tokens")},
                **provenance,
            }
        )
    _apply_similarity(rows, requests["text"].to_pylist(), inputs, encode)
    return cast(pa.Table.from_pylist(rows, schema=PASSAGES), PASSAGES)


_NO_ANSWER: dict[str, Any] = {"finish_reason": "", "prompt_tokens": 0, "output_tokens": 0}
_REQUEST_COLUMNS = ("key", "window_key", "doc_id", "window", "leaf", "style", "variant", "passage", "source_tokens", "prompt_hash")


def _apply_similarity(rows: list[dict[str, Any]], sources: Sequence[str], inputs: RewriteInputs, encode: Encode) -> None:
    """Apply the rule `similarity`: reject answers whose embedding has too small a cosine with that of their passage."""
    compared = [
        i for i, row in enumerate(rows) if row["verdict"] == "accepted" and inputs.styles[row["style"]].applies("similarity")
    ]
    if not compared:
        return
    passages = list(dict.fromkeys(sources[i] for i in compared))  # once each: a passage may be rewritten in several styles
    position = {text: number for number, text in enumerate(passages)}
    x_PD, y_RD = encode(passages), encode([rows[i]["text"] for i in compared])
    for i, y_D in zip(compared, y_RD, strict=True):
        similarity = float(np.dot(x_PD[position[sources[i]]], y_D))
        if np.isnan(similarity):  # one of the texts has no embedding, because the embedder knows none of its words
            similarity = -1.0
        min_similarity = inputs.styles[rows[i]["style"]].min_similarity
        rows[i]["similarity"] = similarity
        if similarity < min_similarity:
            rows[i] |= {"verdict": "rejected", "reason": "similarity", "detail": f"cosine {similarity:.2f} < {min_similarity:.2f}"}


def build_rewrites(requests: pa.Table, passages: pa.Table, inputs: RewriteInputs) -> pa.Table:
    """Return a REWRITES row for each window of text in the accepted answers.

    Consecutive accepted answers of one window, style and variant are joined with the style's `join` and cut into windows. A
    rejected or quarantined answer ends the text, so that no rewrite has a hidden gap.
    """
    rows: list[dict[str, Any]] = []
    answered_requests = zip(requests.to_pylist(), passages.select(["verdict", "text"]).to_pylist(), strict=True)
    by_rewrite = itertools.groupby(
        answered_requests, key=lambda pair: (pair[0]["window_key"], pair[0]["style"], pair[0]["variant"])
    )
    for (parent_key, style, _), of_window in by_rewrite:
        piece = 0
        for accepted, consecutive in itertools.groupby(of_window, key=lambda pair: pair[1]["verdict"] == "accepted"):
            if not accepted:
                continue
            pairs = list(consecutive)
            parent = pairs[0][0]
            text = inputs.styles[style].join.join(answer["text"] for _, answer in pairs)
            for window, tokens in inputs.cutter.cut([text])[0]:
                rows.append(
                    {
                        **{name: parent[name] for name in ("doc_id", "window", "source", "metadata", "style", "variant")},
                        "key": 0,
                        "near_copies": 1,
                        "text": window,
                        "tokens": tokens,
                        "parent_key": parent_key,
                        "parent_leaf": parent["leaf"],
                        "piece": piece,
                    }
                )
                piece += 1
    names = [f"{row['doc_id']}\0{row['window']}\0{row['style']}\0{row['variant']}" for row in rows]
    for row, key in zip(rows, window_keys(names, [row["piece"] for row in rows]), strict=True):
        row["key"] = int(key)
    return cast(pa.Table.from_pylist(rows, schema=REWRITES), REWRITES)


def summarise_group(
    requests: pa.Table,
    passages: pa.Table,
    rewrites: pa.Table,
    leaf_R: I32,
    openings_share: float,
) -> dict[str, Any]:
    """Return the counts of one group of requests, for `RewriteCounts.from_group`.

    `leaf_R` holds the cluster of each rewrite. Openings are counted for a share `openings_share` of the accepted answers, chosen by
    key.
    """
    outcomes: dict[str, Counter[str]] = {}
    removed: dict[str, Counter[str]] = {}
    openings: dict[str, Counter[str]] = {}
    limit = int(openings_share * 2**64)
    for row in passages.select(["key", "style", "verdict", "reason", "removed", "text"]).to_pylist():
        outcomes.setdefault(row["style"], Counter())[row["reason"] or "accepted"] += 1
        removed.setdefault(row["style"], Counter()).update(row["removed"])
        if row["verdict"] == "accepted" and row["key"] < limit:
            openings.setdefault(row["style"], Counter())[get_opening(row["text"])] += 1
    tokens_R, parent_R = rewrites["tokens"].to_numpy(), rewrites["parent_leaf"].to_numpy()
    return {
        "requests": len(requests),
        "rewrites": len(rewrites),
        "tokens": int(tokens_R.sum()),
        "moved": int((leaf_R != parent_R).sum()),
        "moved_tokens": int(tokens_R[leaf_R != parent_R].sum()),
        "prompt_tokens": int(passages["prompt_tokens"].to_numpy().sum()),
        "output_tokens": int(passages["output_tokens"].to_numpy().sum()),
        "requested_source_tokens": _sum_by_cluster(requests["leaf"].to_numpy(), requests["source_tokens"].to_numpy()),
        "by_cluster_pair": _count_by_cluster_pair(leaf_R, parent_R, tokens_R),
        "outcomes": _sort_counts(outcomes),
        "removed": _sort_counts(removed),
        "openings": _sort_counts(openings),
    }


def _sum_by_cluster(leaf_R: NDArray[np.integer], value_R: NDArray[np.integer]) -> dict[str, int]:
    """Return the sums by cluster. Keys are strings, because JSON has no other keys."""
    leaves, index_R = np.unique(leaf_R, return_inverse=True)
    sums = np.bincount(index_R, weights=value_R, minlength=len(leaves))
    return {str(leaf): int(total) for leaf, total in zip(leaves, sums, strict=True)}


def _count_by_cluster_pair(leaf_R: I32, parent_R: I32, tokens_R: I32) -> list[list[int]]:
    """Count windows and tokens by own cluster and source window's cluster: rows of [leaf, parent leaf, windows, tokens]."""
    pair_P, index_R, windows_P = np.unique(np.stack([leaf_R, parent_R], axis=1), axis=0, return_inverse=True, return_counts=True)
    tokens_P = np.bincount(index_R.ravel(), weights=tokens_R, minlength=len(pair_P))
    return [[int(v) for v in (*pair, windows, tokens)] for pair, windows, tokens in zip(pair_P, windows_P, tokens_P, strict=True)]


def _sort_counts(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(count.items())) for name, count in sorted(counts.items())}
