"""Build the steps of a config, in order, each with the identity of its output. Nothing is run here."""

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
    """Build the steps of a config with their fingerprints; reads only the digests of the input files.

    Raises:
        UserError: a mistake in config or input that can be found without running.
    """
    config = config if isinstance(config, Config) else parse_config(dict(config))
    check_workdir(config.workdir)
    workdir = Folder(config.workdir)
    config = config.model_copy(update={"embed": embedders.pin_model(config.embed)})
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
    steps_by_phase = [
        _build_weights_steps(phase, windows, embedded, assigned, clustered, number) for number, phase in enumerate(phases)
    ]
    score_steps: dict[str, Step] = {}  # phases may share one
    for scored, _ in steps_by_phase:
        if scored:
            score_steps.setdefault(scored.fingerprint, scored)
    generalist_steps = (windows[GENERALIST], embedded[GENERALIST], assigned[GENERALIST])
    weighted = steps_by_phase[0][1]
    titled = titles_step(config, windows[GENERALIST], assigned[GENERALIST], weighted) if _has_titles(config) else None
    rephrased = (
        _build_rephrase_step(phases[0], windows, *generalist_steps[1:], fitted, clustered, weighted) if config.rephrase else None
    )
    sampled: list[Step] = []
    for phase, (_, weighted_phase), share in zip(phases, steps_by_phase, _compute_prefixed_shares(config, phases), strict=True):
        previous = sampled[-1] if sampled else None
        rewrites = None if previous else rephrased
        sampled.append(
            sample_step(phase, *generalist_steps, clustered, weighted_phase, rewrites, previous=previous, prefixed_share=share)
        )
    steps = (
        # Specialist samples first: their errors appear before the generalist corpus is read for hours.
        *(prepared[name] for name in config.specialists),
        *([held_out, *(windows[name] for name in config.specialists)] if held_out else []),
        prepared[GENERALIST],
        *([deduplicated] if deduplicated else []),
        *([windows[GENERALIST]] if held_out else []),
        *([fitted] if fitted else []),
        *embedded.values(),
        clustered,
        *assigned.values(),
        *score_steps.values(),
        *(weighted for _, weighted in steps_by_phase),
        *([titled] if titled else []),
        *([rephrased] if rephrased else []),
        *sampled,
        *([schedule_step(sampled)] if len(sampled) > 1 else []),
    )
    return PipelineGraph(config, workdir, steps)


def build_report_step(graph: PipelineGraph) -> Step:
    """Build the step that collects the data of the report: of the new corpus, or of the mixture if nothing is sampled yet."""
    from pipeline.stages.report import report_step

    corpora = (GENERALIST, *graph.config.specialists)
    rephrased = graph.step("rephrase") if graph.is_sampled and graph.config.rephrase else None
    windows = {name: graph.windows_step(name) for name in corpora}
    assigned = {name: graph.step("assign", name) for name in corpora}
    samples = graph.sample_steps if graph.is_sampled else []
    return report_step(graph.config, windows, assigned, graph.step("cluster"), graph.step("weights"), samples, rephrased)


def _build_weights_steps(
    config: Config,
    windows: Mapping[str, Step],
    embedded: Mapping[str, Step],
    assigned: Mapping[str, Step],
    clustered: Step,
    number: int,
) -> tuple[Step | None, Step]:
    """The score step, if any, and the weights step of a phase of the corpus: 0 is the first, 1 its ending."""
    corpora = (GENERALIST, *config.specialists)
    windows, embedded, assigned = ({name: steps[name] for name in corpora} for steps in (windows, embedded, assigned))
    corpus = "ending" if number else ""
    scored = score_step(config, windows, embedded) if config.weights.estimator in WINDOW_ESTIMATORS else None
    weighted = weights_step(config, windows, assigned, clustered, scored, corpus=corpus)
    return replace(scored, corpus=corpus) if scored else None, weighted


def _compute_prefixed_shares(config: Config, phases: Sequence[Config]) -> list[float]:
    """For each phase, the share of its shards whose texts begin with a prefix: all but the last `plain_share` of the corpus.

    Rounded to hundredths, so that `sample_step` never needs more than a hundred shards to represent a share.
    """
    if config.conditioning is None:
        return [0.0 for _ in phases]
    shares, remaining = [], 1.0 - config.conditioning.plain_share
    for phase in phases:
        share = config.budget_share(phase)
        shares.append(round(min(1.0, remaining / share), 2))
        remaining = max(0.0, remaining - share)
    return shares


def _has_titles(config: Config) -> bool:
    return config.rephrase is not None and config.rephrase.titles


def _build_rephrase_step(config: Config, *steps: Any) -> Step:
    try:
        from pipeline.stages.rephrase import rephrase_step
    except ImportError as error:
        message = f'rephrase needs the package {error.name}, which is not installed: pip install "crispwrap[rephrase]"'
        raise ConfigError(message) from error
    return rephrase_step(config, *steps)


def check_workdir(workdir: str) -> None:
    """Check that a workdir can be used.

    Raises:
        ConfigError: its name is not UTF-8 (manifests contain it), it is a file, or it is relative in a submitted job, where the
            working directory is a copy that Ray deletes.
    """
    if "://" not in workdir and not is_utf8(os.path.abspath(workdir)):
        raise ConfigError(f"workdir {os.path.abspath(workdir)!r} has a name that is not UTF-8; choose another name")
    if "://" not in workdir and os.path.exists(workdir) and not os.path.isdir(workdir):
        raise ConfigError(f"workdir {workdir} is a file; give a folder (it need not exist)")
    if "://" not in workdir and not os.path.isabs(workdir) and "working_dir_files" in os.getcwd():
        raise ConfigError(
            f"workdir {workdir} is relative, but Ray deletes the working directory of a submitted job; give an absolute "
            "path on storage that all nodes share, or a URL such as s3://bucket/run"
        )
