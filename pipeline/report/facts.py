"""The contents of the page as plain values, read from the manifests and tables of the stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from pipeline.config import CLUSTER_WEIGHTED
from pipeline.errors import shown
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE
from pipeline.report import atlas
from pipeline.report.certainty import MULTIPLES, expected_error, levels
from pipeline.report.left_out import left_out
from pipeline.report.material import Material
from pipeline.report.verdict import of_phases, verdict
from pipeline.results.shares import divergence, facts_of
from pipeline.rewriting.accounts import account_line, collapsed

_INTERVALS = 15  # clusters in the chart of intervals
_SOURCES = 12


def facts(material: Material) -> dict[str, Any]:
    """The whole page: sections by name, as plain values for the template and the browser script."""
    graph = material.run
    sure = {name: certainty(material, name) for name in graph.config.specialists}
    return {
        "name": graph.workdir.url.rstrip("/").rsplit("/", 1)[-1],
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "drawn": material.drawn is not None,
        "specialists": list(graph.config.specialists),
        "verdict": verdict(material, sure),
        "nodes": atlas.columns(material.tables.read_table("nodes.parquet"), material.shares, material.drawn),
        "excerpts": atlas.excerpts(material.tables.read_table("excerpts.parquet"), list(graph.config.specialists)),
        "sources": sources(material),
        "repetition": repetition(material),
        "certainty": sure,
        "multiples": list(MULTIPLES),
        "rephrasing": rephrasing(material) if graph.config.rephrase and material.drawn else None,
        "left_out": left_out(graph),
        "cost": cost(graph),
        "provenance": provenance(graph),
    }


def certainty(material: Material, name: str) -> dict[str, Any]:
    """The uncertainty of one specialist's mixture: intervals, error, depth in the tree, and the effect of a larger sample.

    `kl_before` is KL(specialist sample || generalist corpus) over clusters, in nats; `kl_after` is the same for the new corpus.
    """
    shares, weighted = material.shares, material.run.step("weights")
    low_L, high_L, p_L, raw_L = (shares.of_sample(name, column) for column in ("p_low", "p_high", "p", "p_raw"))
    touched_L = np.zeros(len(p_L), bool)
    touched_L[list(shares.samples[name])] = True
    error = expected_error(low_L[touched_L], high_L[touched_L])
    found = facts_of(weighted, name)
    alphas = {int(key.rpartition("_")[2]): row["value"] for key, row in found.items() if key.startswith("alpha_level_")}
    windows_L = shares.of_sample(name, "windows").astype(np.int64)
    top = np.argsort(-p_L, kind="stable")[:_INTERVALS]
    return {
        "documents": int(found["documents"]["value"]),
        "windows": int(found["windows"]["value"]),
        "error": error,
        "errors": [error / np.sqrt(times) for times in MULTIPLES] if error is not None else [],
        "levels": levels(material.tree, windows_L, [alphas[level] for level in sorted(alphas)]),
        "clusters_alone": material.run.config.weights.estimator in CLUSTER_WEIGHTED,
        "kl_before": divergence(raw_L, shares.before_L),
        "kl_after": divergence(raw_L, material.after_L),
        "top": [int(leaf) for leaf in top if p_L[leaf] > 0],
        "facts": [found[key] for key in ("effective_leaves", "without_text", "backed_off")],
    }


def sources(material: Material) -> list[dict[str, Any]]:
    """The share of each source in the generalist corpus, the specialist samples and the new corpus, at most 24 sources.

    The largest change comes first, ties by name; empty before sampling. A sample is included only if it shares a source with the
    corpus: a sample from a file of its own has only its own source, and all its shares would be 0.
    """
    if material.manifest is None:
        return []
    by_source: Mapping[str, Sequence[int]] = material.manifest["tokens_by_source"]
    held, drawn = (max(1, sum(counts[i] for counts in by_source.values())) for i in (0, 1))
    samples: Counter[tuple[str, str]] = Counter()
    for row in material.tables.read_table("sample_sources.parquet").to_pylist():
        samples[row["specialist"], row["source"]] += row["tokens"]
    totals: Counter[str] = Counter()
    for (name, _), tokens in samples.items():
        totals[name] += tokens
    alike = {name for name, source in samples if source in by_source}
    rows: list[dict[str, Any]] = [
        {
            "source": shown(source),
            "before": counts[0] / held,
            "after": counts[1] / drawn,
            **{
                f"sample{number}": samples[name, source] / max(1, totals[name])
                for number, name in enumerate(material.run.config.specialists)
                if name in alike
            },
        }
        for source, counts in by_source.items()
    ]
    rows.sort(key=lambda row: (-abs(row["after"] - row["before"]), row["source"]))
    return rows[: 2 * _SOURCES]


def repetition(material: Material) -> dict[str, Any] | None:
    """How often text is repeated, and how much of the budget the cap on epochs cut off; None before sampling."""
    if material.manifest is None or material.drawn is None:
        return None
    manifest, weights = material.manifest, material.run.config.weights
    caps = [phase.weights.max_epochs for phase in material.run.config.phases]
    of_all = facts_of(material.run.step("weights"))
    return {
        "passes": [
            {"pass": copy + 1, "origin": origin, "tokens": tokens} for (copy, origin), tokens in material.drawn.by_copy.items()
        ],
        "most_copies": material.drawn.most_copies,
        "caps": caps,
        "exponent": material.run.config.repeat_exponent,
        "overflow": weights.overflow,
        "clipped": of_phases(material.run, "clipped_mass"),
        "deficit": of_phases(material.run, "deficit_share"),
        "rewritten": manifest["rewritten_tokens"] / max(1, manifest["budget_tokens"]),
        # These describe one mixture. With schedule.ending they would describe the first phase only.
        "facts": [of_all[key] for key in ("epochs_p99", "repeats_value", "effective_share")] if len(caps) == 1 else [],
    }


def rephrasing(material: Material) -> dict[str, Any]:
    """Outcomes of the prompts by style and rule, how answers begin, and examples of answers with their passages.

    `pairs` starts with one pair of each style and verdict.
    """
    step = material.run.step("rephrase")
    manifest = step.manifest
    styles = []
    for style, outcomes in manifest["outcomes"].items():
        opened = manifest["openings"].get(style)
        styles.append(
            {
                "style": style,
                "prompts": sum(outcomes.values()),
                "accepted": outcomes.get("accepted", 0),
                "outcomes": dict(sorted(outcomes.items(), key=lambda item: (item[0] != "accepted", -item[1], item[0]))),
                "opened": {**opened, "commonest": shown(str(opened["commonest"]))} if opened else None,
                "collapsed": bool(opened) and collapsed(opened),
            }
        )
    pairs, seen = [], Counter[tuple[str, str]]()
    for row in material.tables.read_table("pairs.parquet").to_pylist():
        kind = (row["style"], row["verdict"])
        pairs.append(
            {**row, **{name: atlas.excerpt_of(row[name], 900) for name in ("source_text", "text", "detail")}, "rank": seen[kind]}
        )
        seen[kind] += 1
    pairs.sort(key=lambda pair: pair["rank"])
    return {
        "model": manifest["model"],
        "line": account_line(manifest),
        "tokens": manifest["tokens"],
        "wanted": manifest["wanted_tokens"],
        "missing": manifest["missing_tokens"],
        "moved": manifest["moved_tokens"] / max(1, manifest["tokens"]),
        "styles": styles,
        "pairs": pairs,
    }


def cost(graph: PipelineGraph) -> dict[str, Any]:
    """The cost of each step, measured when and where it first ran, and the estimated cost of training on the corpus.

    Before sampling, the training estimate uses `sample.budget_tokens`.
    """
    steps = []
    for step in graph.steps:
        usage = step.folder.read_json(USAGE) if step.done else None
        if usage and usage.get("seconds") is not None:
            steps.append(
                {
                    "step": step.title,
                    "seconds": usage["seconds"],
                    "core_s": usage["busy_s"],
                    "workers": usage["workers"],
                    "tasks": usage["tasks"],
                    "peak_mb": usage["peak_rss_bytes"] / 1e6,
                    "generated": usage.get("generated_tokens", 0),
                }
            )
    tokens = graph.corpus.manifest["tokens"] if graph.corpus.done else graph.config.sample.budget_tokens
    prices = graph.config.engine.prices
    return {"steps": steps, "training": training(tokens, prices.gpu if prices else 0.0), "tokens": tokens}


TRAINED = (("160 million", 160e6), ("1 billion", 1e9), ("7 billion", 7e9))
GPU_FLOPS = 4e14  # of an H100 in bf16 while training: 40% of its 989 TFLOP/s


def training(tokens: float, price: float) -> list[dict[str, Any]]:
    """GPU-hours to train models of several sizes for one epoch on `tokens`, at 6 FLOPs per parameter and token (arXiv 2001.08361).

    `price` is per GPU-hour; 0: unknown, and the prices are None.
    """
    hours = [(name, 6 * parameters * tokens / GPU_FLOPS / 3600) for name, parameters in TRAINED]
    return [{"model": name, "hours": value, "price": value * price if price else None} for name, value in hours]


def provenance(graph: PipelineGraph) -> dict[str, Any]:
    """Settings, step fingerprints, package versions, hardware, and the first 50 shards."""
    manifest = graph.corpus.manifest if graph.corpus.done else {}
    given = graph.config.model_dump(mode="json", exclude_unset=True)
    return {
        "config": yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=100),
        "all_settings": yaml.safe_dump(graph.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        "steps": [(step.title, step.fingerprint) for step in graph.steps],
        "versions": manifest.get("versions", {}),
        "hardware": manifest.get("hardware", []),
        "shards": [(shard["name"], shard["rows"], shard["tokens"], shard["sha256"]) for shard in manifest.get("shards", [])[:50]],
        "num_shards": len(manifest.get("shards", [])),
        "place": graph.shards.url,
    }
