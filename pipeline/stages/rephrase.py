"""Rewrite windows of clusters with a deficit (mode `deficit`), or a share of the corpus (mode `share`, WRAP, arXiv 2401.16380).

Each round chooses windows by hash, sends requests to a language model, judges the answers, embeds and assigns the accepted
rewrites, and counts them. Rounds continue until the wanted tokens are reached, no useful requests are left, or `rephrase.rounds` is
reached. Answers are kept in a store next to the steps.

Shapes: L leaves, R rows of a mixture (the specialists, then natural text), P pairs of leaves (of a rewrite and its source window).
"""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import embedders
from pipeline.arrays import F64
from pipeline.clustering.tree import read_tree
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.execution.fingerprint import fingerprint
from pipeline.execution.step import Step, group_for_fold, map_parts, part_names, split_evenly
from pipeline.mixture.allocation import Limits, allocate_capped
from pipeline.rewriting import language_model, prompts
from pipeline.rewriting.answers import ANSWERS_FOLDER
from pipeline.rewriting.cost_estimate import compute_mean_ratio, estimate_first_round, format_estimate
from pipeline.rewriting.endpoint import check_endpoint
from pipeline.rewriting.filters import summarise_openings
from pipeline.rewriting.requests import RewriteInputs, build_prompts
from pipeline.rewriting.rewrite_counts import SUM_KEYS, RewriteCounts
from pipeline.rewriting.rewrite_use import RewriteUse, fill_deficits, fill_uniformly
from pipeline.rewriting.selection import RewritingProgress, StyleVariant, compute_requested_share, list_style_variants
from pipeline.rewriting.styles import Style, load_style
from pipeline.stages.embed import embedder_gpus
from pipeline.stages.held_out import identify_held_out, write_held_out_ngrams
from pipeline.stages.request_groups import ChooseInputs, JudgeInputs, choose_group, judge_group, plan_round_groups
from pipeline.stages.request_sender import RequestSender
from pipeline.stages.strata import TargetMixture, read_leaf_shares
from pipeline.storage import Folder
from pipeline.tables import REWRITE_CLUSTERS, REWRITING
from pipeline.text.windows import WindowCutter

_OPENINGS = 10_000  # answers per style whose openings are counted, as in FinePhrase
_EXCERPT_TOKENS = 160
_MAX_EXCERPTS = 64  # per specialist sample, to choose examples from
_MAX_MISSING_SHARE = 0.01  # of the wanted tokens: with more missing, rewriting ended because requests were exhausted


@dataclass(frozen=True)
class ExcerptInputs:
    """The inputs shared by the tasks that read excerpts of a specialist sample."""

    windows: Folder
    cutter: WindowCutter
    seed: int


def load_styles(config: Config) -> dict[str, Style]:
    """Load the styles of `rephrase.styles`, by name.

    Raises:
        ConfigError: the styles folder does not exist, a style is unknown or its file is invalid, or a style needs examples and
            `rephrase.examples` is 0.
    """
    settings = config.rephrase
    assert settings
    if settings.styles_folder and not os.path.isdir(settings.styles_folder):
        raise ConfigError(
            f"rephrase.styles_folder {settings.styles_folder} is not a folder on this machine; set it to the folder that contains "
            "your style files (.yaml)"
        )
    styles = {name: load_style(name, settings.styles_folder) for name in settings.style_shares}
    for style in styles.values():
        if prompts.needs_examples(style) and not settings.examples:
            raise ConfigError(
                f"rephrase.styles includes {style.name}, whose prompt contains {{specialist}}, but rephrase.examples is 0; set it "
                "to 1 or more"
            )
    return styles


def rephrase_step(
    config: Config,
    prepared: Mapping[str, Step],
    embedded: Step,
    assigned: Step,
    fitted: Step | None,
    clustered: Step,
    weighted: Step,
) -> Step:
    """Build the step that rewrites text of the generalist corpus.

    Raises:
        UserError: a style, the model, its endpoint or the held-out text is not available.
    """
    settings = config.rephrase
    assert settings
    styles = load_styles(config)
    if settings.endpoint:
        check_endpoint(settings.endpoint)
    model = language_model.resolve_model(settings)
    generalist = prepared["generalist"]

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        style_variants = _list_style_variants(config, styles)
        mixture = weighted.folder.read_table("mixture.parquet")
        tree = read_tree(clustered.folder)
        by_leaf = settings.mode == "deficit"
        passage_tokens = estimate_passage_tokens(settings.passage_tokens, mixture)
        progress = _start_progress(config, weighted.folder, mixture)
        needs_examples = any(prompts.needs_examples(style) for style in styles.values())
        inputs = RewriteInputs(
            styles=styles,
            style_variants=style_variants,
            generator=language_model.fingerprint_generator(settings, model),
            passage_tokens=settings.passage_tokens,
            num_examples=settings.examples,
            cutter=make_cutter(config),
            excerpts=_read_excerpts(engine, config, prepared) if needs_examples else {},
            specialist_L=_find_largest_specialists(config, weighted.folder, tree.num_leaves),
            seed=config.seed,
        )
        held_out, held_out_rows = write_held_out_ngrams(engine, config, folder)
        requests, passages = folder.child("requests"), folder.child("passages")
        store = generalist.workdir.child(f"{ANSWERS_FOLDER}/{inputs.generator}")
        sender = RequestSender(engine, settings, model, functools.partial(build_prompts, styles=styles), requests, store)
        provenance = {
            "model": settings.model,
            "revision": model.revision,
            "sampling": json.dumps(settings.sampling, sort_keys=True),
        }
        expected_passages = progress.wanted_L.sum() / compute_mean_ratio(style_variants) / passage_tokens
        openings_share = min(1.0, _OPENINGS / max(1.0, expected_passages / len(style_variants)))
        counts = RewriteCounts()
        num_rounds, end_reason = 0, "met"
        while (rate_L := progress.compute_next_rates(style_variants, by_leaf=by_leaf)) is not None:
            if num_rounds == settings.rounds:
                end_reason = "rounds"
                break
            slices = plan_round_groups(num_rounds, part_names(assigned), progress, rate_L, style_variants, passage_tokens)
            title = f"round {num_rounds + 1}"
            map_parts(
                engine,
                requests,
                list(slices),
                choose_group,
                title=f"choose requests, {title}",
                shared=ChooseInputs(
                    slices=slices,
                    windows=generalist.folder,
                    assignments=assigned.folder,
                    previous_rate_L=progress.rate_L,
                    rate_L=rate_L,
                    rewrite=inputs,
                    requests=requests,
                ),
            )
            judged = set(passages.names(".parquet"))
            pending = [name for name in slices if f"{name}.parquet" not in judged]
            index, failures = sender.send(pending, title=f"rephrase, {title}", max_bad_fraction=config.max_bad_fraction)
            judge_inputs = JudgeInputs(
                requests=requests,
                store=store,
                index=index,
                errors={key: failure.error for key, failure in failures.items()},
                rewrite=inputs,
                embed=config.embed,
                fitted_embedder=fitted.folder if fitted else None,
                tree=tree,
                held_out=held_out,
                provenance=provenance,
                openings_share=openings_share,
                folder=folder,
            )
            gpus = embedder_gpus(config, engine)
            for _ in engine.map(
                judge_group, pending, title=f"judge answers, {title}", unit="groups", shared=judge_inputs, num_gpus=gpus
            ):
                pass
            counts = engine.fold(
                _count_groups,
                group_for_fold(engine, list(slices)),
                RewriteCounts.add,
                counts,
                title=f"count rewrites, {title}",
                shared=passages,
            )
            progress = replace(
                progress,
                requested_L=counts.count_requested_tokens(tree.num_leaves),
                filled_L=plan_rewrite_use(config, progress.wanted_L, counts.build_cluster_pairs()).filled_L,
                accepted_tokens=counts.sums["tokens"],
                rate_L=rate_L,
            )
            num_rounds += 1
        missing_tokens = float(progress.compute_missing(by_leaf=by_leaf).sum())
        if end_reason == "met" and missing_tokens > _MAX_MISSING_SHARE * progress.wanted_L.sum():
            end_reason = "exhausted"
        folder.write_table("landed.parquet", counts.build_cluster_pairs(), REWRITE_CLUSTERS)
        folder.write_table("rewriting.parquet", _build_rewriting_table(progress, style_variants), REWRITING)
        return {
            "mode": settings.mode,
            **{key: provenance[key] for key in ("model", "revision")},
            "sampling": settings.sampling,
            "held_out": held_out_rows,
            "rounds": num_rounds,
            "ended": end_reason,
            "wanted_tokens": float(progress.wanted_L.sum()),
            "missing_tokens": missing_tokens,
            **{key: counts.sums[key] for key in SUM_KEYS},
            "outcomes": counts.get_counts("outcomes"),
            "removed": counts.get_counts("removed"),
            "openings": {style: _describe_openings(openings) for style, openings in counts.get_counts("openings").items()},
            "parts": counts.parts,
        }

    return Step(
        stage="rephrase",
        version=4,  # 4: columns of `rewriting.parquet` and facts of the groups of requests were renamed
        settings={
            "rephrase": language_model.get_identity(settings, model),
            "wording": {name: fingerprint(style.model_dump(mode="json", exclude={"about"})) for name, style in styles.items()},
            "held_out": identify_held_out(config, generalist.workdir),
            "max_epochs": config.weights.max_epochs,
            "budget_tokens": config.sample.budget_tokens,
            "seed": config.seed,
        },
        inputs={"windows": generalist, "assignments": assigned, "embeddings": embedded, "weights": weighted},
        workdir=generalist.workdir,
        work=work,
    )


def _list_style_variants(config: Config, styles: Mapping[str, Style]) -> list[StyleVariant]:
    settings = config.rephrase
    assert settings
    expected_ratios = {name: style.expected_ratio for name, style in styles.items()}
    return list_style_variants(settings.style_shares, expected_ratios, settings.variants)


def _start_progress(config: Config, weights: Folder, mixture: pa.Table) -> RewritingProgress:
    """Return the progress before the first round."""
    zero_L = np.zeros(len(mixture))
    return RewritingProgress(
        wanted_L=compute_wanted_tokens(config, weights, mixture),
        tokens_L=mixture["tokens"].to_numpy(),
        requested_L=zero_L,
        filled_L=zero_L,
        accepted_tokens=0,
        rate_L=zero_L,
    )


def compute_wanted_tokens(config: Config, weights: Folder, mixture: pa.Table) -> F64:
    """Return (L,): the tokens of rewrites wanted in the new corpus."""
    settings, p_L = config.rephrase, mixture["p_target"].to_numpy()
    assert settings
    if settings.mode == "share":
        return np.asarray(config.sample.budget_tokens / (1.0 + settings.real_to_synthetic) * p_L)
    target = TargetMixture.read(weights, config)
    limits = replace(Limits.from_config(config), overflow="leave")
    allocation = allocate_capped(target.claim_RC, target.tokens_C, limits)
    return allocation.sum_groups(target.leaf_C, target.num_leaves).deficit_L


def _find_largest_specialists(config: Config, weights: Folder, num_leaves: int) -> list[str]:
    """Return, for each leaf, the specialist with the largest share of the mixture."""
    names, share_RL = read_leaf_shares(weights, config)
    largest_L = np.argmax(share_RL[:-1], axis=0)  # without the last row, natural text
    assert len(largest_L) == num_leaves
    return [names[largest] for largest in largest_L]


def _read_excerpts(engine: Engine, config: Config, prepared: Mapping[str, Step]) -> dict[str, list[str]]:
    """Return up to 64 excerpts of each specialist sample, by specialist."""
    return {
        name: [
            excerpt
            for _, excerpts in engine.map(
                _read_excerpts_of_parts,
                split_evenly(part_names(prepared[name]), 1),
                title=f"excerpts of {name}",
                shared=ExcerptInputs(prepared[name].folder, make_cutter(config), config.seed),
            )
            for excerpt in excerpts
        ]
        for name in config.specialists
    }


def _read_excerpts_of_parts(names: Sequence[str], inputs: ExcerptInputs) -> list[str]:
    first_windows: list[str] = []
    for name in names:
        table = inputs.windows.read_table(f"{name}.parquet", columns=["window", "text"])
        first_windows += [row["text"] for row in table.to_pylist() if row["window"] == 0]
    chosen = prompts.choose_examples(first_windows, _MAX_EXCERPTS, seed=inputs.seed, key=0)
    return [prompts.cut_excerpt(text, _EXCERPT_TOKENS, inputs.cutter.count) for text in chosen]


def _count_groups(names: Sequence[str], passages: Folder) -> RewriteCounts:
    return RewriteCounts.combine(RewriteCounts.from_group(name, passages.read_facts(f"{name}.parquet")) for name in names)


def _describe_openings(counts: Mapping[str, int]) -> dict[str, Any]:
    num_distinct, commonest_share, commonest = summarise_openings(counts)
    return {
        "answers": sum(counts.values()),
        "distinct": num_distinct,
        "commonest": commonest,
        "commonest_share": commonest_share,
    }


def plan_rewrite_use(config: Config, wanted_L: F64, cluster_pairs: pa.Table) -> RewriteUse:
    """Decide how the accepted rewrites, counted in a REWRITE_CLUSTERS table, are used."""
    assert config.rephrase
    leaf_P, parent_P, tokens_P = (cluster_pairs[name].to_numpy() for name in ("leaf", "parent_leaf", "tokens"))
    if config.rephrase.mode == "share":
        return fill_uniformly(float(wanted_L.sum()), leaf_P, tokens_P, len(wanted_L))
    return fill_deficits(wanted_L, leaf_P, parent_P, tokens_P)


def _build_rewriting_table(progress: RewritingProgress, style_variants: Sequence[StyleVariant]) -> pa.Table:
    return pa.table(
        {
            "leaf": np.arange(len(progress.wanted_L)),
            "wanted_tokens": progress.wanted_L,
            "requested_source_tokens": progress.requested_L.astype(np.int64),
            "requested_share": compute_requested_share(progress.rate_L, style_variants),
            "filled_tokens": progress.filled_L,
        }
    )


def estimate_passage_tokens(max_tokens: int, mixture: pa.Table) -> float:
    """Estimate the tokens of a typical passage of at most `max_tokens`.

    A passage ends with a sentence, and the length of a window is rarely a multiple of `max_tokens`.
    """
    window_tokens = float(mixture["tokens"].to_numpy().sum() / max(1, mixture["windows"].to_numpy().sum()))
    return max(1.0, window_tokens / math.ceil(window_tokens / (0.9 * max_tokens)))


def estimate_cost(config: Config, weighted: Step) -> str:
    """Estimate the cost of rewriting from a finished weights step, in one or two sentences."""
    settings, styles = config.rephrase, load_styles(config)
    assert settings
    mixture = weighted.folder.read_table("mixture.parquet")
    cost = estimate_first_round(
        _start_progress(config, weighted.folder, mixture),
        _list_style_variants(config, styles),
        styles,
        by_leaf=settings.mode == "deficit",
        passage_tokens=estimate_passage_tokens(settings.passage_tokens, mixture),
        tokens_per_second=settings.gpu_tokens_per_second,
        cutter=make_cutter(config),
    )
    return format_estimate(cost, settings.gpu_tokens_per_second)


def make_cutter(config: Config) -> WindowCutter:
    """Make the window cutter, which also counts tokens."""
    return WindowCutter(embedders.find_tokenizer_file(config.embed), config.window.tokens)
