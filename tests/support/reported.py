"""Runs and facts for the tests of the report: a run with everything in it, and a page of as many clusters as fit."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.certainty import MULTIPLES, Level
from tests.support.corpora import TOPICS, topic_documents, topic_run, write_jsonl
from tests.support.fake_endpoint import FakeEndpoint

# What a text of a corpus may try; each would set a flag that the tests look at, or break the page.
HOSTILE = [
    "<script>window.hurt = 1</script>",
    '<img src="x" onerror="window.hurt = 1">',
    "</script><script>window.hurt = 1</script>",
    "<!-- <script> ]]> --> {{ 7 * 7 }} {% raw %} ${window.hurt = 1}",
    '"><svg onload=window.hurt=1><a href="javascript:window.hurt=1">',
    "\u2028\u2029\u202e\x1b[31m &lt;b&gt; <b>bold</b>",
]


def everything(folder: Path, fake: FakeEndpoint) -> dict[str, Any]:
    """A run on planted topics: two specialists, filters, near-duplicates, held-out text, quarantine, rewrites, hostile text."""
    settings = topic_run(folder, 80)
    words = TOPICS["law"].split()
    bad = [
        {
            "id": f"{HOSTILE[i % len(HOSTILE)]}-{i}",
            "text": f"{' '.join(words[i % 5 :])} {HOSTILE[i % len(HOSTILE)]} {' '.join(words)} " * 3,
            "source": HOSTILE[i % len(HOSTILE)],
            "url": HOSTILE[i % len(HOSTILE)],
        }
        for i in range(24)
    ]
    held_out = " ".join(f"secret{n}" for n in range(40))
    odd = [
        {"id": HOSTILE[0], "text": " "},
        {"id": "leaked", "text": f"what one must never see: {held_out} {HOSTILE[0]}"},
        *[topic_documents("music", 1, seed=9)[0] | {"id": f"twin-{i}"} for i in range(2)],
        *[{"id": f"short-{i}", "text": f"too short {HOSTILE[1]}"} for i in range(3)],
    ]
    settings["generalist"]["paths"] += [write_jsonl(folder / "bad.json", bad), write_jsonl(folder / "odd.json", odd)]
    sample = write_jsonl(folder / "cooking.json", topic_documents("cooking", 15, seed=2))
    settings["specialists"]["kitchen"] = {"paths": [sample], "share": 0.5}
    test = write_jsonl(folder / "held.json", [{"text": held_out}])
    return settings | {
        "prepare": {"steps": [{"type": "RegexFilter", "regex_exp": "^too short"}]},
        "dedup": {"buckets": 14, "hashes": 8},
        "decontaminate": {"held_out": {"test": {"paths": [test], "id_key": None}}},
        "cluster": {"branching": 4, "depth": 2, "min_windows": 12},
        "weights": {"max_epochs": 1.0, "bootstrap": 20, "overflow": "leave"},
        "max_bad_fraction": 0.1,
        "rephrase": {
            "model": "fake",
            "backend": "endpoint",
            "endpoint": {"url": fake.url, "retries": 0},
            "styles": {"wikipedia": 2, "qa": 1},
            "batch": 16,
        },
    }


def many_clusters(branching: int = 64, *, characters: int = 160) -> dict[str, Any]:
    """The facts of a page with `branching`² clusters, each with nine excerpts; numbers are made up, and add up."""
    random = np.random.default_rng(0)
    num_leaves = branching * branching
    weight_L = random.lognormal(0, 1, num_leaves)
    after_L, sample_L = (random.dirichlet(np.full(num_leaves, 0.05)) for _ in range(2))
    before_L = weight_L / weight_L.sum()
    middle_N2 = random.normal(size=(branching, 2))
    place_L2 = np.repeat(middle_N2, branching, axis=0) + 0.2 * random.normal(size=(num_leaves, 2))
    place_V2 = np.clip(np.concatenate([np.zeros((1, 2)), middle_N2, place_L2]) / 3, -1, 1)

    def of_nodes(value_L: Any) -> list[float]:
        above = value_L.reshape(branching, branching).sum(axis=1)
        return [round(float(value), 6) for value in (value_L.sum(), *above, *value_L)]

    num_nodes = 1 + branching + num_leaves
    whole = [round(1e9 * value) for value in of_nodes(before_L)]
    drawn = [round(1e8 * value) for value in of_nodes(after_L)]
    nodes = {
        "node": list(range(num_nodes)),
        "parent": [-1, *[0] * branching, *(1 + i // branching for i in range(num_leaves))],
        "level": [0, *[1] * branching, *[2] * num_leaves],
        "leaf": [*[-1] * (1 + branching), *range(num_leaves)],
        "leaves": [num_leaves, *[branching] * branching, *[1] * num_leaves],
        "x": [round(float(x), 5) for x in place_V2[:, 0]],
        "y": [round(float(y), 5) for y in place_V2[:, 1]],
        "name": [f"word{i}, other{i % 97}, third{i % 13}" for i in range(num_nodes)],
        "words": [""] * num_nodes,
        "windows": [value // 500 for value in whole],
        "tokens": whole,
        "before": of_nodes(before_L),
        "asked": of_nodes(after_L),
        "after": of_nodes(after_L),
        "drawn": drawn,
        "epochs": [round(a / max(1, b), 4) for a, b in zip(drawn, whole, strict=True)],
        "fresh": drawn,
        "rewritten": [0] * num_nodes,
        "missing": [0] * num_nodes,
        "sample0": of_nodes(sample_L),
        "claim0": of_nodes(sample_L),
        "heard0": [round(1000 * value) for value in of_nodes(sample_L)],
        "low0": [None] * num_nodes,
        "high0": [None] * num_nodes,
    }
    text = "Preheat the oven and butter a tin of nine inches; whisk eggs with sugar until pale, fold in flour. "
    excerpt = (text * (1 + characters // len(text)))[:characters]
    own = {key: [[excerpt, f"doc-{n}", 0, 1] for n in range(3)] for key in ("g", "d", "s0")}
    sure = {
        "documents": 100,
        "windows": 1000,
        "error": 0.2,
        "errors": [0.2 / np.sqrt(times) for times in MULTIPLES],
        "levels": [Level(1, 60, 10.0, (0.9,) * len(MULTIPLES)), Level(2, 900, float("inf"), (0.0,) * len(MULTIPLES))],
        "top": list(range(15)),
        "facts": [],
        "clusters_alone": True,
        "kl_before": 1.0,
        "kl_after": 0.5,
    }
    return {
        "name": "many",
        "made": "2026-01-01 00:00 UTC",
        "drawn": True,
        "specialists": ["kitchen"],
        "verdict": {"sentences": ["One."], "numbers": [{"label": "tokens", "value": "1", "note": "of 1"}], "warnings": []},
        "nodes": nodes,
        "excerpts": {str(node): copy.deepcopy(own) for node in range(1 + branching, num_nodes)},
        "sources": [],
        "repetition": None,
        "certainty": {"kitchen": sure},
        "multiples": list(MULTIPLES),
        "rephrasing": None,
        "left_out": [],
        "cost": {"steps": [], "training": [{"model": "1 billion", "hours": 1.0, "price": None}], "tokens": 1},
        "provenance": {
            "config": "workdir: x\n",
            "all_settings": "workdir: x\n",
            "steps": [],
            "versions": {},
            "hardware": [],
            "shards": [],
            "num_shards": 0,
            "place": "x",
        },
    }
