"""The content of the page as plain values, read from the manifests and tables of the stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from pipeline.config import CLUSTER_WEIGHTED_ESTIMATORS
from pipeline.errors import replace_controls
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import USAGE
from pipeline.report import cluster_map
from pipeline.report.removed_rows import list_removed_rows
from pipeline.results.findings import list_headline_numbers, write_sentences, write_warnings
from pipeline.results.run_results import RunResults
from pipeline.results.uncertainty import SAMPLE_MULTIPLES
from pipeline.rewriting.outcomes import format_outcomes, is_collapsed

_MAX_INTERVALS = 15  # clusters in the chart of intervals
_MAX_SOURCES = 24
_MAX_EXAMPLE_CHARS = 900


def collect_content(results: RunResults) -> dict[str, Any]:
    """The whole page: sections by name, as plain values for the template and the browser script."""
    graph = results.graph
    nodes, excerpts = (results.report_folder.read_table(f"{name}.parquet") for name in ("nodes", "excerpts"))
    return {
        "name": graph.workdir.url.rstrip("/").rsplit("/", 1)[-1],
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "is_sampled": results.sampled is not None,
        "specialists": list(graph.config.specialists),
        "summary": {
            "sentences": list(write_sentences(results)),
            "numbers": list_headline_numbers(results),
            "warnings": list(write_warnings(results)),
        },
        "nodes": cluster_map.build_map_columns(nodes, results),
        "excerpts": cluster_map.group_excerpts(excerpts, list(graph.config.specialists)),
        "sources": describe_sources(results),
        "repetition": describe_repetition(results),
        "uncertainty": {name: describe_uncertainty(results, name) for name in graph.config.specialists},
        "sample_multiples": list(SAMPLE_MULTIPLES),
        "rephrasing": describe_rephrasing(results) if graph.config.rephrase and results.sampled else None,
        "removed": list_removed_rows(graph),
        "cost": describe_cost(graph),
        "provenance": describe_provenance(graph),
    }


def describe_uncertainty(results: RunResults, name: str) -> dict[str, Any]:
    """The uncertainty of one specialist's mixture: intervals, error, depth in the tree, and the effect of a larger sample."""
    uncertainty, diagnostics = results.uncertainty[name], results.read_diagnostics(name)
    p_L = results.specialist_column(name, "p")
    largest = np.argsort(-p_L, kind="stable")[:_MAX_INTERVALS]
    return {
        **vars(uncertainty),
        "errors": [uncertainty.error / np.sqrt(multiple) for multiple in SAMPLE_MULTIPLES] if uncertainty.error is not None else [],
        "resamples_only_clusters": results.graph.config.weights.estimator in CLUSTER_WEIGHTED_ESTIMATORS,
        "largest": [int(leaf) for leaf in largest if p_L[leaf] > 0],
        "diagnostics": [diagnostics[key] for key in ("effective_leaves", "without_text", "backed_off")],
    }


def describe_sources(results: RunResults) -> list[dict[str, Any]]:
    """The share of each source in the generalist corpus, the specialist samples and the new corpus, at most 24 sources.

    The largest change comes first, ties by name; empty before sampling. A sample is included only if it shares a source with the
    corpus: a sample from a file of its own has only its own source, and all its shares would be 0.
    """
    if results.manifest is None:
        return []
    by_source: Mapping[str, Sequence[int]] = results.manifest["tokens_by_source"]
    corpus_tokens, new_tokens = (max(1, sum(counts[i] for counts in by_source.values())) for i in (0, 1))
    sample_tokens: Counter[tuple[str, str]] = Counter()
    for row in results.report_folder.read_table("sample_sources.parquet").to_pylist():
        sample_tokens[row["specialist"], row["source"]] += row["tokens"]
    totals: Counter[str] = Counter()
    for (name, _), tokens in sample_tokens.items():
        totals[name] += tokens
    comparable = {name for name, source in sample_tokens if source in by_source}
    rows: list[dict[str, Any]] = [
        {
            "source": replace_controls(source),
            "before": counts[0] / corpus_tokens,
            "after": counts[1] / new_tokens,
            **{
                f"sample{number}": sample_tokens[name, source] / max(1, totals[name])
                for number, name in enumerate(results.graph.config.specialists)
                if name in comparable
            },
        }
        for source, counts in by_source.items()
    ]
    rows.sort(key=lambda row: (-abs(row["after"] - row["before"]), row["source"]))
    return rows[:_MAX_SOURCES]


def describe_repetition(results: RunResults) -> dict[str, Any] | None:
    """How often text is repeated, and how much of the budget the cap on epochs cut off; None before sampling."""
    if results.manifest is None or results.sampled is None:
        return None
    manifest, graph = results.manifest, results.graph
    caps = [phase.weights.max_epochs for phase in graph.config.phases]
    diagnostics = results.read_diagnostics()
    return {
        "copies": [
            {"copy": copy + 1, "origin": origin, "tokens": tokens} for (copy, origin), tokens in results.sampled.by_copy.items()
        ],
        "max_copies": results.sampled.max_copies,
        "caps": caps,
        "exponent": graph.config.repeat_exponent,
        "overflow": graph.config.weights.overflow,
        "over_cap_share": results.mean_over_phases("clipped_mass"),
        "deficit_share": results.mean_over_phases("deficit_share"),
        "rewritten_share": manifest["rewritten_tokens"] / max(1, manifest["budget_tokens"]),
        # These describe one mixture. With schedule.ending they would describe the first phase only.
        "diagnostics": [diagnostics[key] for key in ("epochs_p99", "repeats_value", "effective_share")] if len(caps) == 1 else [],
    }


def describe_rephrasing(results: RunResults) -> dict[str, Any]:
    """Outcomes of the prompts by style and rule, how answers begin, and examples of answers with their passages.

    `examples` starts with one example of each style and verdict.
    """
    manifest = results.graph.step("rephrase").manifest
    styles = []
    for style, outcomes in manifest["outcomes"].items():
        openings = manifest["openings"].get(style)
        styles.append(
            {
                "style": style,
                "prompts": sum(outcomes.values()),
                "accepted": outcomes.get("accepted", 0),
                "outcomes": dict(sorted(outcomes.items(), key=lambda item: (item[0] != "accepted", -item[1], item[0]))),
                "openings": {**openings, "commonest": replace_controls(str(openings["commonest"]))} if openings else None,
                "is_collapsed": bool(openings) and is_collapsed(openings),
            }
        )
    examples, num_seen = [], Counter[tuple[str, str]]()
    for row in results.report_folder.read_table("rewrite_examples.parquet").to_pylist():
        group = (row["style"], row["verdict"])
        texts = {name: cluster_map.shorten(row[name], _MAX_EXAMPLE_CHARS) for name in ("source_text", "text", "detail")}
        examples.append({**row, **texts, "rank": num_seen[group]})
        num_seen[group] += 1
    examples.sort(key=lambda example: example["rank"])
    return {
        "model": manifest["model"],
        "line": format_outcomes(manifest),
        "tokens": manifest["tokens"],
        "wanted_tokens": manifest["wanted_tokens"],
        "moved_share": manifest["moved_tokens"] / max(1, manifest["tokens"]),
        "styles": styles,
        "examples": examples,
    }


def describe_cost(graph: PipelineGraph) -> dict[str, Any]:
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
                }
            )
    tokens = graph.shards_step.manifest["tokens"] if graph.shards_step.done else graph.config.sample.budget_tokens
    prices = graph.config.engine.prices
    return {"steps": steps, "training": estimate_training(tokens, prices.gpu if prices else 0.0), "tokens": tokens}


MODEL_SIZES = (("160 million", 160e6), ("1 billion", 1e9), ("7 billion", 7e9))
GPU_FLOPS = 4e14  # of an H100 in bf16 while training: 40% of its 989 TFLOP/s


def estimate_training(tokens: float, price: float) -> list[dict[str, Any]]:
    """GPU-hours to train models of several sizes for one epoch on `tokens`, at 6 FLOPs per parameter and token (arXiv 2001.08361).

    `price` is per GPU-hour; 0: unknown, and the prices are None.
    """
    hours = [(name, 6 * parameters * tokens / GPU_FLOPS / 3600) for name, parameters in MODEL_SIZES]
    return [{"model": name, "hours": value, "price": value * price if price else None} for name, value in hours]


def describe_provenance(graph: PipelineGraph) -> dict[str, Any]:
    """Settings, step fingerprints, package versions, hardware, and the first 50 shards."""
    manifest = graph.shards_step.manifest if graph.shards_step.done else {}
    explicit = graph.config.model_dump(mode="json", exclude_unset=True)
    return {
        "config": yaml.safe_dump(explicit, sort_keys=False, allow_unicode=True, width=100),
        "all_settings": yaml.safe_dump(graph.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        "steps": [(step.title, step.fingerprint) for step in graph.steps],
        "versions": manifest.get("versions", {}),
        "hardware": manifest.get("hardware", []),
        "shards": [(shard["name"], shard["rows"], shard["tokens"], shard["sha256"]) for shard in manifest.get("shards", [])[:50]],
        "num_shards": len(manifest.get("shards", [])),
        "folder": graph.shards.url,
    }
