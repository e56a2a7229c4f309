"""The steps of a comparison: a tokenizer, held-out windows, and for each arm the proxies trained on what its run draws."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from loguru import logger
from tokenizers import Tokenizer

from pipeline.config import GENERALIST
from pipeline.engine import Engine
from pipeline.evidence.settings import SPECIALIST_ONLY, Evidence
from pipeline.hashing import keyed_uniform
from pipeline.proxy.settings import ProxySettings
from pipeline.run import Run, plan, run_steps
from pipeline.stages.prepare import prepare_step
from pipeline.step import Step, part_names
from pipeline.storage import Folder

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Comparison:
    """Everything that is to be run. All arms lie in one workdir, and share what they have in common."""

    evidence: Evidence
    runs: Mapping[str, Run]  # by arm
    held_out: Mapping[str, Step]
    tokenizer: Step
    proxies: Mapping[str, Step]  # by arm


@dataclass(frozen=True)
class Training:
    """An item of work: one seed of one arm."""

    arm: str
    seed: int
    texts: Sequence[tuple[Folder, str]]  # tables that hold them
    folder: Folder

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def plan_evidence(evidence: Evidence) -> Comparison:
    """The steps with their fingerprints; reads no more than the digests of input files.

    Raises:
        UserError: a mistake in the settings or the input that can be found without running.
    """
    runs = {arm: plan(evidence.config_of(arm)) for arm in evidence.changes}
    base = runs[evidence.baseline]
    held_out = {
        name: prepare_step(base.config, f"held-out {name}", corpus, base.workdir, setting=f"held_out.{name}.paths")
        for name, corpus in evidence.held_out.items()
    }
    tokenizer = _tokenizer_step(evidence, base)
    proxies = {arm: _proxy_step(evidence, arm, run, held_out, tokenizer) for arm, run in runs.items()}
    return Comparison(evidence, runs, held_out, tokenizer, proxies)


def compare(comparison: Comparison) -> None:
    """Run every arm, then train what is missing of all proxies side by side."""
    evidence, base = comparison.evidence, comparison.runs[comparison.evidence.baseline]
    with Engine(base.config.engine) as engine:
        seen: set[str] = set()
        for arm, run in comparison.runs.items():
            own = [step for step in steps_of(arm, run) if step.folder.url not in seen]
            seen |= {step.folder.url for step in own}
            logger.info(f"arm {arm}" + ("" if own else ": draws what an arm before it draws"))
            run_steps(run, own, engine, explain=False)
        windows = [step for step in (base.step("prepare", GENERALIST),) if step.folder.url not in seen]  # the tokenizer's
        run_steps(base, [*windows, *comparison.held_out.values(), comparison.tokenizer], engine, explain=False)
        missing = [
            training
            for arm, step in comparison.proxies.items()
            if not step.done
            for training in _missing(evidence, arm, _read_by(arm, comparison.runs[arm]), step.folder)
        ]
        _train_all(engine, missing, evidence, base.config.seed, comparison.held_out, comparison.tokenizer)
        run_steps(base, list(comparison.proxies.values()), engine, explain=False)


def _tokenizer_step(evidence: Evidence, base: Run) -> Step:
    windows = base.step("prepare", GENERALIST)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = part_names(windows)
        shared = (windows.folder, names, evidence.tokenizer_windows, evidence.proxy.vocabulary, base.config.seed)
        ((_, written),) = engine.map(_train_tokenizer, ["tokenizer"], title="tokenizer", shared=shared)
        folder.write_bytes(_TOKENIZER, written.encode())
        return {"entries": Tokenizer.from_str(written).get_vocab_size()}

    return Step(
        stage="tokenizer",
        version=1,
        settings={"vocabulary": evidence.proxy.vocabulary, "windows": evidence.tokenizer_windows, "seed": base.config.seed},
        inputs={"windows": windows},
        workdir=base.workdir,
        work=work,
    )


def _train_tokenizer(name: str, windows: Folder, names: Sequence[str], most: int, vocabulary: int, seed: int) -> str:  # noqa: ARG001
    from pipeline.proxy.tokens import train_tokenizer

    written: str = train_tokenizer(_chosen(windows, names, most, seed, "tokenizer"), vocabulary).to_str()
    return written


def _chosen(windows: Folder, names: Sequence[str], most: int, seed: int, purpose: str) -> list[str]:
    """The texts of the windows with the lowest hashes, in the order of these."""
    lowest: list[tuple[float, str]] = []
    for name in names:
        table = windows.read_table(f"{name}.parquet", columns=["key", "text"])
        u_N = keyed_uniform(table["key"].to_numpy(), seed=seed, purpose=f"evidence.{purpose}")
        rows = np.argsort(u_N, kind="stable")[:most]
        lowest = sorted([*lowest, *((float(u_N[row]), table["text"][int(row)].as_py()) for row in rows)])[:most]
    return [text for _, text in lowest]


def _proxy_step(evidence: Evidence, arm: str, run: Run, held_out: Mapping[str, Step], tokenizer: Step) -> Step:
    reads = _read_by(arm, run)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        missing = _missing(evidence, arm, reads, folder)
        _train_all(engine, missing, evidence, run.config.seed, held_out, tokenizer)
        return {"seeds": [folder.read_json(_result(seed)) for seed in range(evidence.seeds)]}

    return Step(
        stage="proxy",
        corpus=arm,
        version=1,
        settings={
            "proxy": evidence.proxy.identity(),
            "seeds": evidence.seeds,
            "held_out_windows": evidence.held_out_windows,
            "threads": evidence.threads,
            "seed": run.config.seed,
        },
        inputs={
            **{step.title: step for step in reads},
            "tokenizer": tokenizer,
            **{f"held_out.{name}": step for name, step in held_out.items()},
        },
        workdir=run.workdir,
        work=work,
    )


def _result(seed: int) -> str:
    return f"seed-{seed}.json"


def _read_by(arm: str, run: Run) -> list[Step]:
    """The steps whose texts the proxies of an arm are trained on."""
    if arm == SPECIALIST_ONLY:
        return [run.step("prepare", name) for name in run.config.specialists]
    return [run.step("sample")]


def steps_of(arm: str, run: Run) -> list[Step]:
    """The steps that make what the proxies of an arm are trained on."""
    return _read_by(arm, run) if arm == SPECIALIST_ONLY else list(run.steps)


def _missing(evidence: Evidence, arm: str, reads: Sequence[Step], folder: Folder) -> list[Training]:
    texts = [(step.folder, f"{name}.parquet") for step in reads if step.stage == "prepare" for name in part_names(step)]
    texts += [(step.folder, shard["name"]) for step in reads if step.stage == "sample" for shard in step.manifest["shards"]]
    return [Training(arm, seed, texts, folder) for seed in range(evidence.seeds) if folder.read_json(_result(seed)) is None]


def _train_all(
    engine: Engine, missing: Sequence[Training], evidence: Evidence, seed: int, held_out: Mapping[str, Step], tokenizer: Step
) -> None:
    if not missing:
        return  # and start no Ray to count its GPUs
    texts = {name: (step.folder, part_names(step), evidence.held_out_windows, seed) for name, step in held_out.items()}
    shared = (tokenizer.folder, texts, evidence.proxy, evidence.threads)
    for _ in engine.map(_train, missing, title="train", unit="proxies", shared=shared, num_gpus=engine.gpus_per_model):
        pass


def _train(
    training: Training,
    tokenizer_folder: Folder,
    held_out: Mapping[str, tuple[Folder, Sequence[str], int, int]],
    settings: ProxySettings,
    threads: int,
) -> None:
    from pipeline.proxy.tokens import encode
    from pipeline.proxy.training import train

    tokenizer = Tokenizer.from_str(tokenizer_folder.read_bytes(_TOKENIZER).decode())
    texts = {name: _chosen(folder, names, most, seed, "held_out") for name, (folder, names, most, seed) in held_out.items()}
    tokens_N = encode(tokenizer, _texts(training.texts), settings.tokens)
    state = training.folder.child(f"seed-{training.seed}")
    trained = train(tokens_N, tokenizer, settings, training.seed, state, texts, threads)
    result = {
        "seed": training.seed,
        "points": [asdict(point) for point in trained.points],
        "bits": {name: bits_D.tolist() for name, bits_D in trained.bits.items()},
        "bytes": {name: [len(text.encode()) for text in of_set] for name, of_set in texts.items()},
    }
    training.folder.write_bytes(_result(training.seed), json.dumps(result, sort_keys=True).encode())


def _texts(tables: Sequence[tuple[Folder, str]]) -> Iterator[str]:
    """All texts of some tables; in shards they lie in random order."""
    for folder, name in tables:
        yield from folder.read_table(name, columns=["text"])["text"].to_pylist()
