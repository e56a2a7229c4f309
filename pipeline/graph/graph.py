"""The steps that a config asks for, in order, each with the identity of its output. Nothing is run here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline import embedders
from pipeline.config import GENERALIST, WINDOW_ESTIMATORS, Config, parse_config
from pipeline.errors import ConfigError, is_utf8
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step
from pipeline.stages.assign import assign_step
from pipeline.stages.cluster import cluster_step
from pipeline.stages.decontaminate import decontaminate_step, index_step
from pipeline.stages.dedup import dedup_step
from pipeline.stages.embed import embed_step, embedder_step
from pipeline.stages.prepare import prepare_step
from pipeline.stages.sample import sample_step
from pipeline.stages.schedule import schedule_step
from pipeline.stages.score import score_step
from pipeline.stages.titles import titles_step
from pipeline.stages.weights import weights_step
from pipeline.storage import Folder


def build_graph(config: Config | Mapping[str, Any]) -> PipelineGraph:
    """The steps of a config with their fingerprints; reads no more than the digests of its input files.

    Raises:
        UserError: a mistake in config or input that can be found without running.
    """
    config = config if isinstance(config, Config) else parse_config(dict(config))
    check_workdir(config.workdir)
    workdir = Folder(config.workdir)
    config = config.model_copy(update={"embed": embedders.pinned(config.embed)})
    corpora = {GENERALIST: config.generalist, **config.specialists}
    prepared = {name: prepare_step(config, name, corpus, workdir) for name, corpus in corpora.items()}
    deduplicated = dedup_step(config, prepared[GENERALIST]) if config.dedup else None
    windows = {**prepared, GENERALIST: deduplicated or prepared[GENERALIST]}
    held_out = index_step(config, workdir) if config.decontaminate else None
    if held_out:
        windows = {name: decontaminate_step(config, name, step, held_out) for name, step in windows.items()}
    fitted = embedder_step(config, windows[GENERALIST])
    embedded = {name: embed_step(config, name, windows[name], fitted) for name in corpora}
    clustered = cluster_step(config, embedded[GENERALIST])
    assigned = {name: assign_step(name, windows[name], embedded[name], clustered) for name in corpora}
    phases = config.phases
    weighings = [_weighing(phase, windows, embedded, assigned, clustered, number) for number, phase in enumerate(phases)]
    scores: dict[str, Step] = {}  # phases may have the same
    for scored, _ in weighings:
        if scored:
            scores.setdefault(scored.fingerprint, scored)
    of_generalist = (windows[GENERALIST], embedded[GENERALIST], assigned[GENERALIST])
    weighted = weighings[0][1]
    titled = titles_step(config, windows[GENERALIST], assigned[GENERALIST], weighted) if _has_titles(config) else None
    rephrased = _rephrase_step(phases[0], windows, *of_generalist[1:], fitted, clustered, weighted) if config.rephrase else None
    sampled: list[Step] = []
    for phase, weighing, share in zip(phases, weighings, _prefixed_shares(config, phases), strict=True):
        after = sampled[-1] if sampled else None
        rewrites = None if after else rephrased
        sampled.append(sample_step(phase, *of_generalist, clustered, *weighing, rewrites, after=after, prefixed_share=share))
    steps = (
        # What is wrong with a sample is found before hours of reading the generalist corpus.
        *(prepared[name] for name in config.specialists),
        *([held_out, *(windows[name] for name in config.specialists)] if held_out else []),
        prepared[GENERALIST],
        *([deduplicated] if deduplicated else []),
        *([windows[GENERALIST]] if held_out else []),
        *([fitted] if fitted else []),
        *embedded.values(),
        clustered,
        *assigned.values(),
        *scores.values(),
        *(weighted for _, weighted in weighings),
        *([titled] if titled else []),
        *([rephrased] if rephrased else []),
        *sampled,
        *([schedule_step(sampled)] if len(sampled) > 1 else []),
    )
    return PipelineGraph(config, workdir, steps)


def build_report_step(graph: PipelineGraph, *, drawn: bool) -> Step:
    """The step that makes what the report page needs, of what is drawn or, before that, of what is asked for."""
    from pipeline.stages.report import report_step

    corpora = (GENERALIST, *graph.config.specialists)
    rephrased = graph.step("rephrase") if drawn and graph.config.rephrase else None
    windows = {name: graph.windows(name) for name in corpora}
    assigned = {name: graph.step("assign", name) for name in corpora}
    samples = graph.samples if drawn else []
    return report_step(graph.config, windows, assigned, graph.step("cluster"), graph.step("weights"), samples, rephrased)


def _weighing(
    config: Config,
    windows: Mapping[str, Step],
    embedded: Mapping[str, Step],
    assigned: Mapping[str, Step],
    clustered: Step,
    number: int,
) -> tuple[Step | None, Step]:
    """The steps that score and weigh for a phase of the corpus: the first, or its ending."""
    own = (GENERALIST, *config.specialists)
    windows, embedded, assigned = ({name: steps[name] for name in own} for steps in (windows, embedded, assigned))
    corpus = "ending" if number else ""
    scored = score_step(config, windows, embedded) if config.weights.estimator in WINDOW_ESTIMATORS else None
    weighted = weights_step(config, windows, assigned, clustered, scored, corpus=corpus)
    return replace(scored, corpus=corpus) if scored else None, weighted


def _prefixed_shares(config: Config, phases: Sequence[Config]) -> list[float]:
    """Of the shards of each phase, those that begin with where they are from: all but the last `plain_share` of the corpus.

    In whole hundredths, so that `sample_step` never makes more than a hundred shards for the sake of a share.
    """
    if config.conditioning is None:
        return [0.0 for _ in phases]
    shares, left = [], 1.0 - config.conditioning.plain_share
    for phase in phases:
        share = config.share_of(phase)
        shares.append(round(min(1.0, left / share), 2))
        left = max(0.0, left - share)
    return shares


def _has_titles(config: Config) -> bool:
    return config.rephrase is not None and config.rephrase.titles


def _rephrase_step(config: Config, *steps: Any) -> Step:
    try:
        from pipeline.stages.rephrase import rephrase_step
    except ImportError as error:
        raise ConfigError(f'rephrase needs a package that is not here ({error.name}): pip install "crispwrap[rephrase]"') from error
    return rephrase_step(config, *steps)


def check_workdir(workdir: str) -> None:
    """Under `ray job submit` the working directory is a copy that Ray deletes; a file is no folder; manifests have its name."""
    if "://" not in workdir and not is_utf8(os.path.abspath(workdir)):
        raise ConfigError(f"workdir {os.path.abspath(workdir)!r} has a name that is not UTF-8; give it another")
    if "://" not in workdir and os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ConfigError(f"workdir {workdir} is a file; name a folder, which need not be there yet")
    if "://" not in workdir and not os.path.isabs(workdir) and "working_dir_files" in os.getcwd():
        raise ConfigError(
            f"workdir {workdir} is relative, and this is a submitted job, whose working directory Ray deletes; give an absolute "
            "path on storage that all nodes share, or a URL such as s3://bucket/run"
        )
