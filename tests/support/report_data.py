"""Data for the tests of the report: the config of a run that uses every feature, and the content of a page with many clusters."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.results.uncertainty import SAMPLE_MULTIPLES, SampleInfluence
from tests.support.corpora import TOPICS, make_topic_config, make_topic_documents, write_jsonl
from tests.support.fake_endpoint import FakeEndpoint

# Attacks that corpus text may contain: each would set a flag that the tests check, or break the page.
HOSTILE_TEXTS = [
    "<script>window.hurt = 1</script>",
    '<img src="x" onerror="window.hurt = 1">',
    "</script><script>window.hurt = 1</script>",
    "<!-- <script> ]]> --> {{ 7 * 7 }} {% raw %} ${window.hurt = 1}",
    '"><svg onload=window.hurt=1><a href="javascript:window.hurt=1">',
    "\u2028\u2029\u202e\x1b[31m &lt;b&gt; <b>bold</b>",
]


def make_full_feature_config(folder: Path, fake: FakeEndpoint) -> dict[str, Any]:
    """Return the config of a run with two specialists, filters, near-duplicates, held-out text, bad rows and rewrites."""
    settings = make_topic_config(folder, 80)
    words = TOPICS["law"].split()
    hostile_rows = [
        {
            "id": f"{HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)]}-{i}",
            "text": f"{' '.join(words[i % 5 :])} {HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)]} {' '.join(words)} " * 3,
            "source": HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)],
            "url": HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)],
        }
        for i in range(24)
    ]
    held_out = " ".join(f"secret{n}" for n in range(40))
    excluded_rows = [
        {"id": HOSTILE_TEXTS[0], "text": " "},
        {"id": "leaked", "text": f"what one must never see: {held_out} {HOSTILE_TEXTS[0]}"},
        *[make_topic_documents("music", 1, seed=9)[0] | {"id": f"twin-{i}"} for i in range(2)],
        *[{"id": f"short-{i}", "text": f"too short {HOSTILE_TEXTS[1]}"} for i in range(3)],
    ]
    settings["generalist"]["paths"] += [
        write_jsonl(folder / "bad.json", hostile_rows),
        write_jsonl(folder / "odd.json", excluded_rows),
    ]
    sample = write_jsonl(folder / "cooking.json", make_topic_documents("cooking", 15, seed=2))
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


def make_many_cluster_content(branching: int = 64, *, characters: int = 160) -> dict[str, Any]:
    """Return the content of a page with `branching`² clusters, each with nine excerpts; the numbers are synthetic."""
    random = np.random.default_rng(0)
    num_leaves = branching * branching
    weight_L = random.lognormal(0, 1, num_leaves)
    after_L, sample_L = (random.dirichlet(np.full(num_leaves, 0.05)) for _ in range(2))
    before_L = weight_L / weight_L.sum()
    centre_N2 = random.normal(size=(branching, 2))
    position_L2 = np.repeat(centre_N2, branching, axis=0) + 0.2 * random.normal(size=(num_leaves, 2))
    position_V2 = np.clip(np.concatenate([np.zeros((1, 2)), centre_N2, position_L2]) / 3, -1, 1)

    def sum_to_nodes(value_L: Any) -> list[float]:
        above = value_L.reshape(branching, branching).sum(axis=1)
        return [round(float(value), 6) for value in (value_L.sum(), *above, *value_L)]

    num_nodes = 1 + branching + num_leaves
    tokens = [round(1e9 * value) for value in sum_to_nodes(before_L)]
    sampled_tokens = [round(1e8 * value) for value in sum_to_nodes(after_L)]
    nodes = {
        "node": list(range(num_nodes)),
        "parent": [-1, *[0] * branching, *(1 + i // branching for i in range(num_leaves))],
        "level": [0, *[1] * branching, *[2] * num_leaves],
        "leaf": [*[-1] * (1 + branching), *range(num_leaves)],
        "leaves": [num_leaves, *[branching] * branching, *[1] * num_leaves],
        "x": [round(float(x), 5) for x in position_V2[:, 0]],
        "y": [round(float(y), 5) for y in position_V2[:, 1]],
        "name": [f"word{i}, other{i % 97}, third{i % 13}" for i in range(num_nodes)],
        "terms": [""] * num_nodes,
        "windows": [value // 500 for value in tokens],
        "tokens": tokens,
        "before": sum_to_nodes(before_L),
        "target": sum_to_nodes(after_L),
        "after": sum_to_nodes(after_L),
        "sampled_tokens": sampled_tokens,
        "epochs": [round(a / max(1, b), 4) for a, b in zip(sampled_tokens, tokens, strict=True)],
        "first_copy_tokens": sampled_tokens,
        "rewritten_tokens": [0] * num_nodes,
        "deficit_tokens": [0] * num_nodes,
        "sample0": sum_to_nodes(sample_L),
        "mixture0": sum_to_nodes(sample_L),
        "sample_windows0": [round(1000 * value) for value in sum_to_nodes(sample_L)],
        "low0": [None] * num_nodes,
        "high0": [None] * num_nodes,
    }
    text = "Preheat the oven and butter a tin of nine inches; whisk eggs with sugar until pale, fold in flour. "
    excerpt = (text * (1 + characters // len(text)))[:characters]
    excerpts = {key: [[excerpt, f"doc-{n}", 0, 1] for n in range(3)] for key in ("g", "d", "s0")}
    uncertainty = {
        "documents": 100,
        "windows": 1000,
        "error": 0.2,
        "errors": [0.2 / np.sqrt(times) for times in SAMPLE_MULTIPLES],
        "levels": [
            SampleInfluence(1, 60, 10.0, (0.9,) * len(SAMPLE_MULTIPLES)),
            SampleInfluence(2, 900, float("inf"), (0.0,) * len(SAMPLE_MULTIPLES)),
        ],
        "largest": list(range(15)),
        "diagnostics": [],
        "resamples_only_clusters": True,
        "kl_before": 1.0,
        "kl_after": 0.5,
    }
    return {
        "name": "many",
        "created": "2026-01-01 00:00 UTC",
        "is_sampled": True,
        "specialists": ["kitchen"],
        "summary": {"sentences": ["One."], "numbers": [{"label": "tokens", "value": "1", "note": "of 1"}], "warnings": []},
        "nodes": nodes,
        "excerpts": {str(node): copy.deepcopy(excerpts) for node in range(1 + branching, num_nodes)},
        "sources": [],
        "repetition": None,
        "uncertainty": {"kitchen": uncertainty},
        "sample_multiples": list(SAMPLE_MULTIPLES),
        "rephrasing": None,
        "removed": [],
        "cost": {"steps": [], "training": [{"model": "1 billion", "hours": 1.0, "price": None}], "tokens": 1},
        "provenance": {
            "config": "workdir: x\n",
            "all_settings": "workdir: x\n",
            "steps": [],
            "versions": {},
            "hardware": [],
            "shards": [],
            "num_shards": 0,
            "folder": "x",
        },
    }
