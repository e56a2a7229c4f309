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
from pipeline.evidence.held_out import Scored, held_out_step, lowest_hashed, overlap_step, scored
from pipeline.evidence.settings import POINT, SPECIALIST_ONLY, Evidence
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, hash_chosen, part_names
from pipeline.graph.graph import build_graph
from pipeline.graph.preflight import run_preflight_checks
from pipeline.graph.runner import open_engine
from pipeline.graph.steps import run_steps
from pipeline.hashing import keyed_uniform
from pipeline.proxy.settings import ProxySettings
from pipeline.storage import Folder

_TOKENIZER = "tokenizer.json"
_TOKENIZER_PARTS = 64  # of the generalist corpus; the tokenizer's vocabulary is stable with far fewer


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
class Training:
    """A unit of work: the training of one proxy, for one seed of one arm."""

    arm: str
    seed: int
    texts: Sequence[tuple[Folder, str]]  # tables to read the texts from
    rows: int  # in all these tables
    folder: Folder

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def plan_evidence(evidence: Evidence) -> Comparison:
    """Build all steps with their fingerprints; of the input, only the digests of files are read.

    Raises:
        UserError: a mistake in the settings or the input that can be found without running a step.
    """
    planned = {arm: _plan_arm(evidence, arm) for arm in evidence.changes}
    runs = {arm: run for arm, run in planned.items() if not _is_arm_itself(arm, planned)}
    base = runs[evidence.baseline]
    seed = base.config.seed
    held_out = {name: held_out_step(base.config, name, corpus, base.workdir) for name, corpus in evidence.held_out.items()}
    overlap = overlap_step(held_out, _corpora(runs), evidence.held_out_windows, seed, base.workdir)
    tokenizer = _tokenizer_step(evidence, base)
    proxies = {arm: _proxy_step(evidence, arm, run, seed, held_out, tokenizer) for arm, run in runs.items()}
    first_of: dict[str, str] = {}
    for arm, step in proxies.items():
        same = first_of.setdefault(step.fingerprint, arm)
        if same != arm:
            raise ConfigError(
                f"arms.{arm} is the same as arms.{same}: the same settings, or settings that change nothing; leave one out"
            )
    return Comparison(evidence, runs, held_out, overlap, tokenizer, proxies)


def _is_arm_itself(arm: str, runs: Mapping[str, PipelineGraph]) -> bool:
    """Whether `arm` is a point of a curve whose natural share is the same as that of the curve's own arm."""
    name = arm.partition(POINT)[0]
    return name != arm and runs[arm].config.natural_share == runs[name].config.natural_share


def _plan_arm(evidence: Evidence, arm: str) -> PipelineGraph:
    config = evidence.config_of(arm)
    try:
        return build_graph(config)
    except UserError as error:
        raise type(error)(f"arms.{arm}: {error}") from error


def _corpora(runs: Mapping[str, PipelineGraph]) -> dict[str, Step]:
    """The windows of every corpus and specialist sample that arms read, by name, each once."""
    found: dict[str, Step] = {}
    for arm, run in runs.items():
        for step in (run.windows(corpus) for corpus in (GENERALIST, *run.config.specialists)):
            if step.fingerprint not in {known.fingerprint for known in found.values()}:
                found[step.corpus if step.corpus not in found else f"{step.corpus} of arms.{arm}"] = step
    return found


def compare(comparison: Comparison) -> None:
    """Run every arm, check overlap, then train the missing proxies of all arms in parallel."""
    evidence, base = comparison.evidence, comparison.runs[comparison.evidence.baseline]
    with open_engine(base) as engine:
        # Held-out text first, to find mistakes in it early.
        run_steps(base, list(comparison.held_out.values()), engine, explain=False, draws=False)
        first = base.steps.index(base.windows(GENERALIST)) + 1
        run_steps(base, base.steps[:first], engine, explain=False, draws=False)
        check_arms(comparison)
        for arm, own in own_steps(comparison).items():
            logger.info(f"arm {arm}" + ("" if own else ": draws what an arm before it draws"))
            run_steps(comparison.runs[arm], own, engine, explain=False, draws=arm != SPECIALIST_ONLY)
        # Windows that no arm has prepared: those of arms that read only the specialist sample.
        windows = [step for step in comparison.overlap.inputs.values() if not step.done]
        run_steps(base, [*windows, comparison.overlap, comparison.tokenizer], engine, explain=False, draws=False)
        missing = [
            training
            for arm, step in comparison.proxies.items()
            if not step.done
            for training in _missing(evidence, arm, _read_by(arm, comparison.runs[arm]), step.folder)
        ]
        _train_all(engine, missing, evidence, base.config.seed, comparison.held_out, comparison.tokenizer)
        run_steps(base, list(comparison.proxies.values()), engine, explain=False, draws=False)


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
            raise ConfigError(f"arm {arm}: {error}") from error


def _tokenizer_step(evidence: Evidence, base: PipelineGraph) -> Step:
    windows = base.windows(GENERALIST)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = hash_chosen(part_names(windows), _TOKENIZER_PARTS, seed=base.config.seed, purpose="evidence.tokenizer.parts")
        shared = (windows.folder, names, evidence.tokenizer_windows, evidence.proxy.vocabulary, base.config.seed)
        ((_, written),) = engine.map(_train_tokenizer, ["tokenizer"], title="tokenizer", shared=shared)
        folder.write_bytes(_TOKENIZER, written.encode())
        return {"entries": Tokenizer.from_str(written).get_vocab_size()}

    return Step(
        stage="tokenizer",
        version=2,  # 2: reads at most 64 parts
        settings={"vocabulary": evidence.proxy.vocabulary, "windows": evidence.tokenizer_windows, "seed": base.config.seed},
        inputs={"windows": windows},
        workdir=base.workdir,
        work=work,
    )


def _train_tokenizer(name: str, windows: Folder, names: Sequence[str], most: int, vocabulary: int, seed: int) -> str:  # noqa: ARG001
    from pipeline.proxy.tokens import train_tokenizer

    written: str = train_tokenizer(lowest_hashed(windows, names, most, seed, "tokenizer"), vocabulary).to_str()
    return written


def _proxy_step(
    evidence: Evidence, arm: str, graph: PipelineGraph, seed: int, held_out: Mapping[str, Step], tokenizer: Step
) -> Step:
    reads = _read_by(arm, graph)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        missing = _missing(evidence, arm, reads, folder)
        _train_all(engine, missing, evidence, seed, held_out, tokenizer)
        return {"seeds": [folder.read_json(_result(seed)) for seed in range(evidence.seeds)]}

    return Step(
        stage="proxy",
        corpus=arm,
        version=3,  # 2: Muon, normalised queries and keys, `given` is stored; 3: `given` counts only the texts that were used
        settings={
            "proxy": evidence.proxy.identity(),
            "seeds": evidence.seeds,
            "held_out_windows": evidence.held_out_windows,
            "threads": evidence.threads,
            "seed": seed,  # for the choice of scored windows, the same for all arms
        },
        inputs={
            **{step.title: step for step in reads},
            "tokenizer": tokenizer,
            **{f"held_out.{name}": step for name, step in held_out.items()},
        },
        workdir=graph.workdir,
        work=work,
    )


def _result(seed: int) -> str:
    return f"seed-{seed}.json"


def _read_by(arm: str, graph: PipelineGraph) -> list[Step]:
    """The steps whose texts the proxies of an arm are trained on."""
    if arm == SPECIALIST_ONLY:
        return [graph.windows(name) for name in graph.config.specialists]
    return [graph.corpus]


def own_steps(comparison: Comparison) -> dict[str, list[Step]]:
    """By arm: the steps that produce the text its proxies are trained on, without those that an earlier arm has too."""
    found: dict[str, list[Step]] = {}
    seen: set[str] = set()
    for arm, run in comparison.runs.items():
        steps = _read_by(arm, run) if arm == SPECIALIST_ONLY else run.steps
        found[arm] = [step for step in steps if step.folder.url not in seen]
        seen |= {step.folder.url for step in steps}
    return found


def _missing(evidence: Evidence, arm: str, reads: Sequence[Step], folder: Folder) -> list[Training]:
    texts: list[tuple[Folder, str]] = []
    rows = 0
    for step in reads:
        of_shards = step.stage in ("sample", "schedule")
        parts = step.manifest["shards" if of_shards else "parts"]
        texts += [(step.folder, part["name"] if of_shards else f"{part['name']}.parquet") for part in parts]
        rows += sum(part["rows"] for part in parts)
    seeds = [seed for seed in range(evidence.seeds) if folder.read_json(_result(seed)) is None]
    return [Training(arm, seed, texts, rows, folder) for seed in seeds]


def _train_all(
    engine: Engine, missing: Sequence[Training], evidence: Evidence, seed: int, held_out: Mapping[str, Step], tokenizer: Step
) -> None:
    if not missing:
        return  # do not start Ray only to count GPUs
    which = scored(held_out, evidence.held_out_windows, seed)
    shared = (tokenizer.folder, which, evidence.proxy, evidence.threads, seed)
    # No step is running yet here: the proxies of all arms are trained side by side.
    on_proxies = engine.for_stage("proxy")
    for _ in on_proxies.map(_train, missing, title="train", unit="proxies", shared=shared, num_gpus=engine.gpus_per_model):
        pass


def _train(
    training: Training,
    tokenizer_folder: Folder,
    held_out: Mapping[str, Scored],
    settings: ProxySettings,
    threads: int,
    seed: int,
) -> None:
    from pipeline.proxy.tokens import encode, end_token
    from pipeline.proxy.training import STATE, train

    tokenizer = Tokenizer.from_str(tokenizer_folder.read_bytes(_TOKENIZER).decode())
    texts = {name: which.texts() for name, which in held_out.items()}
    tokens_N = encode(tokenizer, _texts(training, seed), settings.tokens)
    state = training.folder.child(f"seed-{training.seed}")
    try:
        trained = train(tokens_N, tokenizer, settings, training.seed, state, texts, threads)
    except InputError as error:
        raise InputError(f"arms.{training.arm}: {error}") from error
    result = {
        "seed": training.seed,
        "given": num_texts(tokens_N, end_token(tokenizer)) / training.rows,
        "points": [asdict(point) for point in trained.points],
        "bits": {name: bits_D.tolist() for name, bits_D in trained.bits.items()},
        "bytes": {name: [len(text.encode()) for text in of_set] for name, of_set in texts.items()},
    }
    training.folder.write_bytes(_result(training.seed), json.dumps(result, sort_keys=True).encode())
    state.remove(STATE)


def num_texts(tokens_N: NDArray[np.uint16], end: int) -> int:
    """The number of texts in the tokens that `encode` returned: each ends with the token `end`, a truncated last one without."""
    return int((tokens_N == end).sum()) + int(len(tokens_N) > 0 and tokens_N[-1] != end)


def _texts(training: Training, seed: int) -> Iterator[str]:
    """All texts in random order.

    Shards are in random order already; the parts of a specialist sample are not, and are small enough to shuffle in memory.
    """
    if training.arm != SPECIALIST_ONLY:
        for folder, name in training.texts:
            yield from folder.read_table(name, columns=["text"])["text"].to_pylist()
        return
    texts = [text for folder, name in training.texts for text in folder.read_table(name, columns=["text"])["text"].to_pylist()]
    u_N = keyed_uniform(np.arange(len(texts), dtype=np.uint64), seed=seed, purpose="evidence.sample")
    yield from (texts[i] for i in np.argsort(u_N, kind="stable"))
