"""The steps of a comparison: tokenizer, held-out windows, overlap check, and for each arm the proxies trained on its corpus."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.config import GENERALIST
from pipeline.engine import Engine
from pipeline.errors import ConfigError, InputError, UserError
from pipeline.evidence.held_out import ScoredWindows, held_out_step, overlap_step, select_scored_windows, select_texts_by_hash
from pipeline.evidence.settings import POINT_SEPARATOR, SPECIALIST_ONLY, Evidence
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, choose_by_hash, part_names
from pipeline.graph.build import build_graph
from pipeline.graph.preflight import run_preflight_checks
from pipeline.graph.runner import open_engine
from pipeline.graph.steps import run_steps
from pipeline.hashing import keyed_uniform
from pipeline.proxy.settings import ProxySettings
from pipeline.storage import Folder

_TOKENIZER = "tokenizer.json"
_TOKENIZER_PARTS = 64  # at most, of the generalist corpus; the vocabulary is stable with far fewer


@dataclass(frozen=True)
class Comparison:
    """All steps of a comparison. All arms use one workdir, so that they share steps with equal fingerprints."""

    evidence: Evidence
    runs: Mapping[str, PipelineGraph]  # by arm
    held_out: Mapping[str, Step]
    overlap: Step
    tokenizer: Step
    proxies: Mapping[str, Step]  # by arm


@dataclass(frozen=True)
class ProxyTraining:
    """A unit of work: the training of one proxy, for one seed of one arm."""

    arm: str
    seed: int
    tables: Sequence[tuple[Folder, str]]  # folder and file name of the tables to read the texts from
    num_rows: int  # in all these tables
    folder: Folder

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def plan_comparison(evidence: Evidence) -> Comparison:
    """Build all steps with their fingerprints, without running any; input files are only hashed.

    Raises:
        UserError: a mistake in the settings or the input that can be found without running a step.
    """
    planned = {arm: _plan_arm(evidence, arm) for arm in evidence.changes}
    runs = {arm: run for arm, run in planned.items() if not _repeats_own_share(arm, planned)}
    base = runs[evidence.baseline]
    seed = base.config.seed
    held_out = {name: held_out_step(base.config, name, corpus, base.workdir) for name, corpus in evidence.held_out.items()}
    overlap = overlap_step(held_out, _collect_corpora(runs), evidence.held_out_windows, seed, base.workdir)
    tokenizer = _tokenizer_step(evidence, base)
    proxies = {arm: _proxy_step(evidence, arm, run, seed, held_out, tokenizer) for arm, run in runs.items()}
    arm_by_fingerprint: dict[str, str] = {}
    for arm, step in proxies.items():
        earlier = arm_by_fingerprint.setdefault(step.fingerprint, arm)
        if earlier != arm:
            raise ConfigError(
                f"arms.{arm} is the same as arms.{earlier}: its settings are equal, or differ only in ways that change nothing; "
                "remove one of the two"
            )
    return Comparison(evidence, runs, held_out, overlap, tokenizer, proxies)


def _repeats_own_share(arm: str, runs: Mapping[str, PipelineGraph]) -> bool:
    """Whether `arm` is a point of a curve whose natural share is the same as that of the curve's own arm."""
    name = arm.partition(POINT_SEPARATOR)[0]
    return name != arm and runs[arm].config.natural_share == runs[name].config.natural_share


def _plan_arm(evidence: Evidence, arm: str) -> PipelineGraph:
    config = evidence.build_config(arm)
    try:
        return build_graph(config)
    except UserError as error:
        raise type(error)(f"arms.{arm}: {error}") from error


def _collect_corpora(runs: Mapping[str, PipelineGraph]) -> dict[str, Step]:
    """The windows of every corpus and specialist sample that arms read, by name, each once."""
    corpora: dict[str, Step] = {}
    for arm, run in runs.items():
        for step in (run.windows_step(corpus) for corpus in (GENERALIST, *run.config.specialists)):
            if step.fingerprint not in {known.fingerprint for known in corpora.values()}:
                corpora[step.corpus if step.corpus not in corpora else f"{step.corpus} of arms.{arm}"] = step
    return corpora


def run_comparison(comparison: Comparison) -> None:
    """Run every arm, check overlap, then train the missing proxies of all arms in parallel."""
    evidence, base = comparison.evidence, comparison.runs[comparison.evidence.baseline]
    with open_engine(base) as engine:
        # Held-out text first, to find errors in it early.
        run_steps(base, list(comparison.held_out.values()), engine, explain=False, preflight=False)
        prepared = base.steps.index(base.windows_step(GENERALIST)) + 1
        run_steps(base, base.steps[:prepared], engine, explain=False, preflight=False)
        check_arms(comparison)
        for arm, new_steps in find_new_steps(comparison).items():
            logger.info(f"arm {arm}" + ("" if new_steps else ": same corpus as an earlier arm"))
            run_steps(comparison.runs[arm], new_steps, engine, explain=False, preflight=arm != SPECIALIST_ONLY)
        # Windows that no arm has prepared: those of arms that read only the specialist sample.
        windows = [step for step in comparison.overlap.inputs.values() if not step.done]
        run_steps(base, [*windows, comparison.overlap, comparison.tokenizer], engine, explain=False, preflight=False)
        missing = [
            training
            for arm, step in comparison.proxies.items()
            if not step.done
            for training in _list_missing_trainings(evidence, arm, _find_training_inputs(arm, comparison.runs[arm]), step.folder)
        ]
        _train_proxies(engine, missing, evidence, base.config.seed, comparison.held_out, comparison.tokenizer)
        run_steps(base, list(comparison.proxies.values()), engine, explain=False, preflight=False)


def check_arms(comparison: Comparison) -> None:
    """Run the preflight checks of `run_preflight_checks` for each arm that has a sample stage.

    Raises:
        ConfigError: the settings of an arm are infeasible; the message names the arm.
    """
    for arm, run in comparison.runs.items():
        try:
            if arm != SPECIALIST_ONLY:
                run_preflight_checks(run)
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}: {error}") from error


def _tokenizer_step(evidence: Evidence, base: PipelineGraph) -> Step:
    windows = base.windows_step(GENERALIST)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = choose_by_hash(part_names(windows), _TOKENIZER_PARTS, seed=base.config.seed, purpose="evidence.tokenizer.parts")
        inputs = TokenizerInputs(
            windows=windows.folder,
            parts=names,
            max_windows=evidence.tokenizer_windows,
            vocabulary=evidence.proxy.vocabulary,
            seed=base.config.seed,
        )
        ((_, tokenizer_json),) = engine.map(_train_tokenizer, ["tokenizer"], title="tokenizer", shared=inputs)
        folder.write_bytes(_TOKENIZER, tokenizer_json.encode())
        return {"entries": Tokenizer.from_str(tokenizer_json).get_vocab_size()}

    return Step(
        stage="tokenizer",
        version=2,  # 2: reads at most 64 parts
        settings={"vocabulary": evidence.proxy.vocabulary, "windows": evidence.tokenizer_windows, "seed": base.config.seed},
        inputs={"windows": windows},
        workdir=base.workdir,
        work=work,
    )


@dataclass(frozen=True)
class TokenizerInputs:
    """What the task that trains the tokenizer reads, and the tokenizer's size."""

    windows: Folder
    parts: Sequence[str]
    max_windows: int
    vocabulary: int  # entries
    seed: int


def _train_tokenizer(_name: str, inputs: TokenizerInputs) -> str:
    """Train the tokenizer; return it as JSON."""
    from pipeline.proxy.tokens import train_tokenizer

    texts = select_texts_by_hash(inputs.windows, inputs.parts, inputs.max_windows, inputs.seed, "tokenizer")
    tokenizer_json: str = train_tokenizer(texts, inputs.vocabulary).to_str()
    return tokenizer_json


def _proxy_step(
    evidence: Evidence, arm: str, graph: PipelineGraph, seed: int, held_out: Mapping[str, Step], tokenizer: Step
) -> Step:
    inputs = _find_training_inputs(arm, graph)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        missing = _list_missing_trainings(evidence, arm, inputs, folder)
        _train_proxies(engine, missing, evidence, seed, held_out, tokenizer)
        return {"seeds": [folder.read_json(_result_file(seed)) for seed in range(evidence.seeds)]}

    return Step(
        stage="proxy",
        corpus=arm,
        version=4,  # 2: Muon, normalised queries and keys; 3: counts only texts that were used; 4: `given` is now `fraction_read`
        settings={
            "proxy": evidence.proxy.identity(),
            "seeds": evidence.seeds,
            "held_out_windows": evidence.held_out_windows,
            "threads": evidence.threads,
            "seed": seed,  # for the choice of scored windows, the same for all arms
        },
        inputs={
            **{step.title: step for step in inputs},
            "tokenizer": tokenizer,
            **{f"held_out.{name}": step for name, step in held_out.items()},
        },
        workdir=graph.workdir,
        work=work,
    )


def _result_file(seed: int) -> str:
    return f"seed-{seed}.json"


def _find_training_inputs(arm: str, graph: PipelineGraph) -> list[Step]:
    """The steps whose texts the proxies of an arm are trained on."""
    if arm == SPECIALIST_ONLY:
        return [graph.windows_step(name) for name in graph.config.specialists]
    return [graph.shards_step]


def find_new_steps(comparison: Comparison) -> dict[str, list[Step]]:
    """By arm: the steps that produce the text its proxies are trained on, except those that an earlier arm has too."""
    new_steps: dict[str, list[Step]] = {}
    seen_urls: set[str] = set()
    for arm, run in comparison.runs.items():
        steps = _find_training_inputs(arm, run) if arm == SPECIALIST_ONLY else run.steps
        new_steps[arm] = [step for step in steps if step.folder.url not in seen_urls]
        seen_urls |= {step.folder.url for step in steps}
    return new_steps


def _list_missing_trainings(evidence: Evidence, arm: str, inputs: Sequence[Step], folder: Folder) -> list[ProxyTraining]:
    tables: list[tuple[Folder, str]] = []
    num_rows = 0
    for step in inputs:
        has_shards = step.stage in ("sample", "schedule")
        parts = step.manifest["shards" if has_shards else "parts"]
        tables += [(step.folder, part["name"] if has_shards else f"{part['name']}.parquet") for part in parts]
        num_rows += sum(part["rows"] for part in parts)
    seeds = [seed for seed in range(evidence.seeds) if folder.read_json(_result_file(seed)) is None]
    return [ProxyTraining(arm, seed, tables, num_rows, folder) for seed in seeds]


def _train_proxies(
    engine: Engine, missing: Sequence[ProxyTraining], evidence: Evidence, seed: int, held_out: Mapping[str, Step], tokenizer: Step
) -> None:
    if not missing:
        return  # do not start Ray only to count GPUs
    inputs = TrainInputs(
        tokenizer=tokenizer.folder,
        held_out=select_scored_windows(held_out, evidence.held_out_windows, seed),
        settings=evidence.proxy,
        threads=evidence.threads,
        seed=seed,
    )
    # The proxies of all arms are trained in parallel, before the step of any arm runs.
    proxy_engine = engine.for_stage("proxy")
    for _ in proxy_engine.map(_train_proxy, missing, title="train", unit="proxies", shared=inputs, num_gpus=engine.gpus_per_model):
        pass


@dataclass(frozen=True)
class TrainInputs:
    """Inputs shared by the tasks that train proxies."""

    tokenizer: Folder
    held_out: Mapping[str, ScoredWindows]  # by name of the held-out text
    settings: ProxySettings
    threads: int
    seed: int  # of the comparison; the initialisation of a proxy has the seed of its training


def _train_proxy(training: ProxyTraining, inputs: TrainInputs) -> None:
    """Train one proxy, and write its scores on the held-out texts."""
    from pipeline.proxy.tokens import encode_corpus, get_end_token_id
    from pipeline.proxy.training import CHECKPOINT, train

    tokenizer = Tokenizer.from_str(inputs.tokenizer.read_bytes(_TOKENIZER).decode())
    texts_by_name = {name: windows.read_texts() for name, windows in inputs.held_out.items()}
    tokens_N = encode_corpus(tokenizer, _read_texts(training, inputs.seed), inputs.settings.tokens)
    checkpoints = training.folder.child(f"seed-{training.seed}")
    try:
        result = train(tokens_N, tokenizer, inputs.settings, training.seed, checkpoints, texts_by_name, inputs.threads)
    except InputError as error:
        raise InputError(f"arms.{training.arm}: {error}") from error
    facts = {
        "seed": training.seed,
        "fraction_read": count_texts(tokens_N, get_end_token_id(tokenizer)) / training.num_rows,
        "points": [asdict(point) for point in result.points],
        "bits": {name: bits_D.tolist() for name, bits_D in result.bits.items()},
        "bytes": {name: [len(text.encode()) for text in texts] for name, texts in texts_by_name.items()},
    }
    training.folder.write_bytes(_result_file(training.seed), json.dumps(facts, sort_keys=True).encode())
    checkpoints.remove(CHECKPOINT)


def count_texts(tokens_N: NDArray[np.uint16], end_id: int) -> int:
    """Count the texts in tokens returned by `encode_corpus`: each ends with the token `end_id`, except a truncated last one."""
    return int((tokens_N == end_id).sum()) + int(len(tokens_N) > 0 and tokens_N[-1] != end_id)


def _read_texts(training: ProxyTraining, seed: int) -> Iterator[str]:
    """Yield all texts in random order.

    Shards are already in random order. The parts of a specialist sample are not, but are small enough to shuffle in memory.
    """
    if training.arm != SPECIALIST_ONLY:
        for folder, name in training.tables:
            yield from folder.read_table(name, columns=["text"])["text"].to_pylist()
        return
    texts = [text for folder, name in training.tables for text in folder.read_table(name, columns=["text"])["text"].to_pylist()]
    u_N = keyed_uniform(np.arange(len(texts), dtype=np.uint64), seed=seed, purpose="evidence.sample")
    yield from (texts[i] for i in np.argsort(u_N, kind="stable"))
