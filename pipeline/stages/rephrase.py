"""Rewrite windows of clusters with a deficit (mode `deficit`), or a share of the corpus (mode `share`, WRAP, arXiv 2401.16380).

Each round chooses windows by hash, sends requests to a language model, judges the answers, embeds and assigns the accepted
rewrites, and counts them. Rounds continue until the wanted tokens are reached, no useful requests are left, or `rephrase.rounds` is
reached. Answers are kept in a store next to the steps.

Shapes: L leaves.
"""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64
from pipeline.clustering.tree import read_tree
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.execution.fingerprint import fingerprint
from pipeline.execution.step import Step, fold_groups, groups, map_parts, part_names
from pipeline.mixture.allocation import Limits, allocate_capped
from pipeline.rewriting import model as models
from pipeline.rewriting import prompts
from pipeline.rewriting.accounts import estimate, estimate_line, mean_ratio
from pipeline.rewriting.answers import FOLDER
from pipeline.rewriting.choosing import Tally, Way, asked_share, ways
from pipeline.rewriting.endpoint import check
from pipeline.rewriting.ledger import SUMMED, Ledger
from pipeline.rewriting.requests import Task, read_requests
from pipeline.rewriting.serving import Serving, serve, serve_alike
from pipeline.rewriting.styles import Style, load_style
from pipeline.stages.asking import Asking
from pipeline.stages.embed import embedder_gpus
from pipeline.stages.held_out import held_out_identity, read_held_out
from pipeline.stages.passages import choose_group, groups_of_round, judge_group
from pipeline.stages.strata import Asked, asked_of_leaves
from pipeline.storage import Folder
from pipeline.tables import LANDED, REWRITING

_OPENINGS = 10_000  # answers per style whose openings are counted, as in FinePhrase
_EXAMPLE_TOKENS = 160
_SAMPLES = 64  # excerpts per specialist sample to choose examples from


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
            f"rephrase.styles_folder {settings.styles_folder} is no folder here; give one that holds your .yaml files"
        )
    styles = {name: load_style(name, settings.styles_folder) for name in settings.style_shares}
    for style in styles.values():
        if prompts.needs_examples(style) and not settings.examples:
            raise ConfigError(
                f"rephrase.styles has {style.name}, whose prompt has {{specialist}}; set rephrase.examples to 1 or more"
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
        check(settings.endpoint)
    model = models.resolve(settings)
    generalist = prepared["generalist"]

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        used = ways(settings.style_shares, {name: style.expected_ratio for name, style in styles.items()}, settings.variants)
        mixture = weighted.folder.read_table("mixture.parquet")
        tree = read_tree(clustered.folder)
        by_leaf = settings.mode == "deficit"
        size = passage_size(settings.passage_tokens, mixture)
        tally = Tally(
            wanted_L=wanted(config, weighted.folder, mixture),
            tokens_L=mixture["tokens"].to_numpy(),
            asked_L=np.zeros(tree.num_leaves),
            gained_L=np.zeros(tree.num_leaves),
            accepted=0,
            rate_L=np.zeros(tree.num_leaves),
        )
        steered = any(prompts.needs_examples(style) for style in styles.values())
        task = Task(
            styles=styles,
            ways=used,
            generator=models.generator(settings, model),
            passage_tokens=settings.passage_tokens,
            num_examples=settings.examples,
            cutter=cutter(config),
            samples=_samples(engine, config, prepared) if steered else {},
            steer_L=_steering(config, weighted, tree.num_leaves),
            seed=config.seed,
        )
        held_out, held_out_rows = read_held_out(engine, config, folder)
        read = functools.partial(read_requests, styles=styles)
        asking = Asking(
            engine, settings, model, read, folder.child("requests"), generalist.workdir.child(f"{FOLDER}/{task.generator}")
        )
        provenance = {
            "model": settings.model,
            "revision": model.revision,
            "sampling": json.dumps(settings.sampling, sort_keys=True),
        }
        judging = (
            *(task, config.embed, fitted.folder if fitted else None, tree, held_out, provenance, folder),
            min(1.0, _OPENINGS / max(1.0, tally.wanted_L.sum() / mean_ratio(used) / size / len(used))),
        )
        ledger = Ledger()
        rounds, why = 0, "met"
        while (rate_L := tally.next_rates(used, by_leaf=by_leaf)) is not None:
            if rounds == settings.rounds:
                why = "rounds"
                break
            slices = groups_of_round(rounds, part_names(assigned), tally, rate_L, used, size)
            shared: tuple[Any, ...] = (
                slices,
                generalist.folder,
                assigned.folder,
                tally.rate_L,
                rate_L,
                task,
                folder.child("requests"),
            )
            title = f"round {rounds + 1}"
            map_parts(engine, folder.child("requests"), list(slices), choose_group, title=f"choose, {title}", shared=shared)
            judged = set(folder.child("passages").names(".parquet"))
            left = [name for name in slices if f"{name}.parquet" not in judged]
            index, failed = asking.answer(left, title=f"rephrase, {title}", max_bad_fraction=config.max_bad_fraction)
            errors = {key: failure.error for key, failure in failed.items()}
            shared = (asking.requests, asking.store, index, errors, *judging)
            gpus = embedder_gpus(config, engine)
            for _ in engine.map(judge_group, left, title=f"judge, {title}", unit="groups", shared=shared, num_gpus=gpus):
                pass
            ledger = engine.fold(
                _ledger_of,
                fold_groups(engine, list(slices)),
                Ledger.add,
                ledger,
                title=f"accounts, {title}",
                shared=(folder.child("passages"),),
            )
            tally = Tally(
                wanted_L=tally.wanted_L,
                tokens_L=tally.tokens_L,
                asked_L=ledger.asked_L(tree.num_leaves),
                gained_L=serving(config, tally.wanted_L, ledger.landed_table()).filled_L,
                accepted=ledger.sums["tokens"],
                rate_L=rate_L,
            )
            rounds += 1
        missing = float(tally.missing(by_leaf=by_leaf).sum())
        if why == "met" and missing > 0.01 * tally.wanted_L.sum():
            why = "exhausted"
        folder.write_table("landed.parquet", ledger.landed_table(), LANDED)
        folder.write_table("rewriting.parquet", _rewriting(tally, used), REWRITING)
        return {
            "mode": settings.mode,
            **{key: provenance[key] for key in ("model", "revision")},
            "sampling": settings.sampling,
            "held_out": held_out_rows,
            "rounds": rounds,
            "ended": why,
            "wanted_tokens": float(tally.wanted_L.sum()),
            "missing_tokens": missing,
            **{key: ledger.sums[key] for key in SUMMED},
            "outcomes": ledger.counted("outcomes"),
            "removed": ledger.counted("removed"),
            "openings": {style: _openings(counts) for style, counts in ledger.counted("openings").items()},
            "parts": ledger.parts,
        }

    return Step(
        stage="rephrase",
        version=3,
        settings={
            "rephrase": models.identity(settings, model),
            "wording": {name: fingerprint(style.model_dump(mode="json", exclude={"about"})) for name, style in styles.items()},
            "held_out": held_out_identity(config, generalist.workdir),
            "max_epochs": config.weights.max_epochs,
            "budget_tokens": config.sample.budget_tokens,
            "seed": config.seed,
        },
        inputs={"windows": generalist, "assignments": assigned, "embeddings": embedded, "weights": weighted},
        workdir=generalist.workdir,
        work=work,
    )


def wanted(config: Config, weights: Folder, mixture: pa.Table) -> F64:
    """Return (L,): the tokens of rewrites wanted in the new corpus."""
    settings, p_L = config.rephrase, mixture["p_target"].to_numpy()
    assert settings
    if settings.mode == "share":
        return np.asarray(config.sample.budget_tokens / (1.0 + settings.real_to_synthetic) * p_L)
    asked = Asked.read(weights, config)
    allocation = allocate_capped(asked.claim_RC, asked.tokens_C, replace(Limits.from_config(config), overflow="leave"))
    return allocation.sum_groups(asked.leaf_C, asked.num_leaves).deficit_L


def _steering(config: Config, weighted: Step, num_leaves: int) -> list[str]:
    """Return, for each leaf, the specialist with the largest share of the mixture."""
    names, claim_SL = asked_of_leaves(weighted.folder, config)
    best_L = np.argmax(claim_SL[:-1], axis=0)  # without the last row, natural text
    assert len(best_L) == num_leaves
    return [names[best] for best in best_L]


def _samples(engine: Engine, config: Config, prepared: Mapping[str, Step]) -> dict[str, list[str]]:
    """Return excerpts of each specialist sample, by specialist; up to 64 each."""
    return {
        name: [
            text
            for _, found in engine.map(
                _excerpts,
                groups(part_names(prepared[name]), 1),
                title=f"examples {name}",
                shared=(prepared[name].folder, cutter(config), config.seed),
            )
            for text in found
        ]
        for name in config.specialists
    }


def _excerpts(names: Sequence[str], windows: Folder, cut: Any, seed: int) -> list[str]:
    first: list[str] = []
    for name in names:
        table = windows.read_table(f"{name}.parquet", columns=["window", "text"])
        first += [row["text"] for row in table.to_pylist() if row["window"] == 0]
    return [prompts.excerpt(text, _EXAMPLE_TOKENS, cut.count) for text in prompts.draw_examples(first, _SAMPLES, seed=seed, key=0)]


def _ledger_of(names: Sequence[str], passages: Folder) -> Ledger:
    return Ledger.combine(Ledger.of_group(name, passages.read_facts(f"{name}.parquet")) for name in names)


def _openings(counts: Mapping[str, int]) -> dict[str, Any]:
    from pipeline.rewriting.filters import collapse

    distinct, share, commonest = collapse(counts)
    return {"answers": sum(counts.values()), "distinct": distinct, "commonest": commonest, "commonest_share": share}


def serving(config: Config, wanted_L: F64, landed: pa.Table) -> Serving:
    """Return how the accepted rewrites will be used."""
    assert config.rephrase
    leaf_P, parent_P, tokens_P = (landed[name].to_numpy() for name in ("leaf", "parent_leaf", "tokens"))
    if config.rephrase.mode == "share":
        return serve_alike(float(wanted_L.sum()), leaf_P, tokens_P, len(wanted_L))
    return serve(wanted_L, leaf_P, parent_P, tokens_P)


def _rewriting(tally: Tally, used: list[Way]) -> pa.Table:
    return pa.table(
        {
            "leaf": np.arange(len(tally.wanted_L)),
            "wanted_tokens": tally.wanted_L,
            "asked_tokens": tally.asked_L.astype(np.int64),
            "asked_share": asked_share(tally.rate_L, used),
            "filled_tokens": tally.gained_L,
        }
    )


def passage_size(most: int, mixture: pa.Table) -> float:
    """Estimate the tokens of a typical passage: it ends with a sentence, and windows are rarely a multiple of the passage size."""
    mean = float(mixture["tokens"].to_numpy().sum() / max(1, mixture["windows"].to_numpy().sum()))
    return max(1.0, mean / math.ceil(mean / (0.9 * most)))


def estimate_cost(config: Config, weighted: Step) -> str:
    """Estimate the cost of rewriting from a finished weights step, in one or two sentences."""
    settings, styles = config.rephrase, load_styles(config)
    assert settings
    used = ways(settings.style_shares, {name: style.expected_ratio for name, style in styles.items()}, settings.variants)
    mixture = weighted.folder.read_table("mixture.parquet")
    zero_L = np.zeros(len(mixture))
    guess = estimate(
        Tally(wanted(config, weighted.folder, mixture), mixture["tokens"].to_numpy(), zero_L, zero_L, 0, zero_L),
        used,
        styles,
        by_leaf=settings.mode == "deficit",
        passage_tokens=passage_size(settings.passage_tokens, mixture),
        tokens_per_second=settings.gpu_tokens_per_second,
        cutter=cutter(config),
    )
    return estimate_line(guess, settings.gpu_tokens_per_second)


def cutter(config: Config) -> Any:
    """Return the window cutter, which also counts tokens."""
    from pipeline import embedders
    from pipeline.text.windows import WindowCutter

    return WindowCutter(embedders.tokenizer_file(config.embed), config.window.tokens)
