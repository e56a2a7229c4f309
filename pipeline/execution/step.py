"""A step: one stage applied to one corpus, with the identity of its output.

The output lies at `<workdir>/<stage>/<fingerprint>/`, and its `manifest.json`, written last, means done. All fingerprints follow
from the settings and the input files, so the whole plan is known before anything runs.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.engine import Engine
from pipeline.execution.fingerprint import fingerprint
from pipeline.hashing import keyed_uniform
from pipeline.storage import MANIFEST, Folder

USAGE = "usage.json"  # what making the output took; not part of it
_FOOTER_READERS = 16
# Of parts that are quick to make: at most so many in a task, and so many tasks a worker, that none waits long for the last.
_QUICK_PARTS = 32
_RUNS_PER_WORKER = 8
# Of a fold the driver combines states. Of a shuffle it counts a piece for each mapper and partition; those of less than 100 KB are,
# with Ray, sent to the driver itself, which is nothing for some hundreds of them, and everything that is moved for more.
_LEAST_FOLD_GROUPS, _MOST_FOLD_GROUPS = 256, 1024
MAPPER_BYTES = 32 << 20
MOST_PARTITIONS = 512
_PIECE_BYTES, _FEW_PIECES = 128 << 10, 512


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to run, what it is made from, and where it goes.

    `work(engine, folder)` writes everything but the manifest, and returns what the manifest says beside the identity: `parts` if
    it has any, and `written`, names of other files that a store's listing may not show yet. `version` is raised by whoever changes
    the values that a stage computes.
    """

    stage: str
    corpus: str = ""
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, "Step"]
    workdir: Folder
    work: Callable[[Engine, Folder], dict[str, Any]] = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        return f"{self.stage} {self.corpus}".strip()

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "settings": dict(self.settings),
            "inputs": {role: step.fingerprint for role, step in self.inputs.items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def output(self) -> str:
        """Where in the workdir the output lies."""
        return f"{self.stage}/{self.fingerprint}"

    @cached_property
    def folder(self) -> Folder:
        return self.workdir.child(self.output)

    @property
    def done(self) -> bool:
        """Whether the manifest is there, and all that it names: what was deleted since is made again."""
        manifest = self.folder.read_json(MANIFEST)
        return manifest is not None and "files" in manifest and self.folder.holds(manifest["files"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a step that is done."""
        manifest: dict[str, Any] = self.folder.read_json(MANIFEST)
        return manifest

    def run(self, engine: Engine) -> None:
        """Make the output, going on from the parts that are there."""
        body = self.work(engine, self.folder)
        self.folder.remove_temporary()
        known = {*body.pop("written", ()), *(f"{part['name']}.parquet" for part in body.get("parts", ()))}
        files = sorted(known | set(self.folder.files()) - {MANIFEST, USAGE})
        self.folder.write_json(MANIFEST, {**body, "fingerprint": self.fingerprint, "identity": self.identity, "files": files})


def part_names(step: Step) -> list[str]:
    """The names of a step's parts, in order."""
    return [part["name"] for part in step.manifest["parts"]]


def map_parts(
    engine: Engine,
    folder: Folder,
    names: Sequence[str],
    function: Callable[..., dict[str, Any]],
    *,
    title: str,
    unit: str = "parts",
    shared: tuple[Any, ...] = (),
    num_gpus: float = 0,
    quick: bool = False,
    quarantined: Callable[[dict[str, Any]], int] | None = None,
) -> list[dict[str, Any]]:
    """Make each named part that `folder` does not hold yet; the facts of all parts, in the order of the names.

    `function(name, *shared)` writes the part with its facts in the footer, and returns them. Parts that are `quick` to make, in
    hundredths of a second, are made several in a task: a task costs the driver milliseconds, which thousands of workers wait for.
    `quarantined` says how many rows were left out, going by the facts of a part.
    """
    present = set(folder.names(".parquet"))
    todo = [name for name in names if f"{name}.parquet" not in present]
    facts: dict[str, dict[str, Any]] = {}
    if quarantined and len(todo) < len(names):
        kept = [name for name in names if f"{name}.parquet" in present]
        facts = {part["name"]: part for part in with_facts(folder, kept, {})}
        engine.progress.count_quarantined(sum(map(quarantined, facts.values())))
    runs = [[name] for name in todo]
    if quick and todo:
        runs = groups(todo, quick_tasks(len(todo), engine.num_workers))
    made = functools.partial(_make_run, function)
    results_of = engine.map(
        made,
        runs,
        title=title,
        unit=unit,
        shared=shared,
        num_gpus=num_gpus,
        before=len(names) - len(todo),
        quarantined=(lambda results: sum(map(quarantined, results))) if quarantined else None,
    )
    for index, results in results_of:
        facts |= zip(runs[index], results, strict=True)
    return with_facts(folder, names, facts)


def _make_run(function: Callable[..., dict[str, Any]], names: Sequence[str], *shared: Any) -> list[dict[str, Any]]:
    return [function(name, *shared) for name in names]


def with_facts(folder: Folder, names: Sequence[str], fresh: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The facts of the named parts, in order: from `fresh`, else from the footer of the part."""
    kept = [name for name in names if name not in fresh]
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        facts = {**fresh, **dict(zip(kept, pool.map(lambda name: folder.read_facts(f"{name}.parquet"), kept), strict=True))}
    return [{"name": name, **facts[name]} for name in names]


def hash_chosen(names: Sequence[str], most: int, *, seed: int, purpose: str) -> list[str]:
    """At most so many of the names, in their order; which ones depends on their number, the seed and the purpose."""
    u_N = keyed_uniform(np.arange(len(names), dtype=np.uint64), seed=seed, purpose=purpose)
    return [names[i] for i in sorted(np.argsort(u_N, kind="stable")[:most])]


def fold_groups(engine: Engine, items: Sequence[Any]) -> list[list[Any]]:
    """The items in runs for a fold whose result does not depend on them."""
    return groups(items, fold_tasks(len(items), engine.num_workers))


def mapper_groups(
    engine: Engine, items: Sequence[Any], *, moved_bytes: float, partitions: int, held_bytes: float = MAPPER_BYTES
) -> list[list[Any]]:
    """The items in runs for the mappers of a shuffle that moves so much to so many partitions; see `mapper_tasks`."""
    num_workers = engine.num_workers
    return groups(
        items, mapper_tasks(len(items), num_workers, moved_bytes=moved_bytes, partitions=partitions, held_bytes=held_bytes)
    )


def fold_tasks(num_items: int, num_workers: int) -> int:
    """Tasks of a fold: one a worker at least, up to what a driver combines."""
    return min(num_items, max(_LEAST_FOLD_GROUPS, num_workers), _MOST_FOLD_GROUPS)


def mapper_tasks(num_items: int, num_workers: int, *, moved_bytes: float, partitions: int, held_bytes: float = MAPPER_BYTES) -> int:
    """Mappers of a shuffle: enough for all workers, and that each holds so much of what it moves; more where pieces would be small.

    With `MOST_PARTITIONS` that is 64 MB.
    """
    wanted = max(4 * num_workers, round(moved_bytes / held_bytes))
    most = max(round(moved_bytes / _PIECE_BYTES), _FEW_PIECES) // max(1, partitions)
    return max(1, min(num_items, wanted, most))


def quick_tasks(num_parts: int, num_workers: int) -> int:
    """Tasks of a map over parts that are quick to make."""
    return min(num_parts, max(-(-num_parts // _QUICK_PARTS), _RUNS_PER_WORKER * num_workers))


def runs_within(items: Sequence[Any], sizes: Sequence[float], most: float) -> list[list[Any]]:
    """The items, in order, in runs that together have no more than so much; one by itself may have more."""
    runs: list[list[Any]] = []
    held = 0.0
    for item, size in zip(items, sizes, strict=True):
        if not runs or held + size > most:
            runs.append([])
            held = 0.0
        runs[-1].append(item)
        held += size
    return runs


def groups(items: Sequence[Any], num_groups: int) -> list[list[Any]]:
    """The items in at most `num_groups` runs of nearly equal length; for folds, whose result does not depend on the grouping."""
    num_groups = min(len(items), max(1, num_groups))
    if not num_groups:
        return []
    bounds = [len(items) * i // num_groups for i in range(num_groups + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(bounds)]
