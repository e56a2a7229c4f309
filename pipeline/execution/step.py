"""A step: one stage applied to one corpus, with the identity of its output.

The output is in `<workdir>/<stage>/<fingerprint>/`. Its `manifest.json` is written last and means done. All fingerprints follow
from the settings and the input files, so the whole pipeline graph is known before anything runs.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic

import numpy as np

from pipeline.engine import Engine
from pipeline.engine.tasks import Item, Shared
from pipeline.execution.fingerprint import fingerprint
from pipeline.hashing import find_lowest, keyed_uniform
from pipeline.storage import MANIFEST, Folder

USAGE = "usage.json"  # time and memory of the run that wrote the output
_FOOTER_READERS = 16
# For parts that are quick to write: maximum parts per task, and tasks per worker, so that no worker idles long at the end.
_MAX_QUICK_PARTS = 32
_QUICK_TASKS_PER_WORKER = 8
# In a fold the driver combines states. In a shuffle it tracks a piece per mapper and partition; Ray sends pieces of less than
# 100 KB through the driver, which is negligible for some hundreds of them, but is all of the moved data if there are many.
_MIN_FOLD_GROUPS, _MAX_FOLD_GROUPS = 256, 1024
MAPPER_BYTES = 32 << 20
MAX_PARTITIONS = 512
_MIN_PIECE_BYTES, _MAX_SMALL_PIECES = 128 << 10, 512


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to run, its inputs, and where its output goes.

    `work(engine, folder)` writes everything except the manifest, and returns what the manifest has besides the identity: `parts` if
    there are any, and `written`, names of other files that a store's listing may not show yet. Increase `version` whenever the
    values that a stage computes change.
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
        """Path of the output in the workdir."""
        return f"{self.stage}/{self.fingerprint}"

    @cached_property
    def folder(self) -> Folder:
        return self.workdir.child(self.output)

    @property
    def done(self) -> bool:
        """Whether the manifest and all files that it names exist: deleted files are written again."""
        manifest = self.folder.read_json(MANIFEST)
        return manifest is not None and "files" in manifest and self.folder.has_files(manifest["files"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a step that is done."""
        manifest: dict[str, Any] = self.folder.read_json(MANIFEST)
        return manifest

    def run(self, engine: Engine) -> None:
        """Write the output, resuming from existing parts."""
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
    function: Callable[[str, Shared], dict[str, Any]],
    *,
    shared: Shared,
    title: str,
    unit: str = "parts",
    num_gpus: float = 0,
    quick: bool = False,
    quarantined: Callable[[dict[str, Any]], int] | None = None,
) -> list[dict[str, Any]]:
    """Write each named part that `folder` does not have yet; return the facts of all parts in the order of the names.

    `function(name, shared)` writes the part with its facts in the footer, and returns the facts. Parts that are `quick` to write,
    in hundredths of a second, are grouped into tasks: each task costs the driver milliseconds, for which thousands of workers would
    wait. `quarantined` returns the number of quarantined rows from the facts of a part.
    """
    present = set(folder.names(".parquet"))
    pending = [name for name in names if f"{name}.parquet" not in present]
    facts: dict[str, dict[str, Any]] = {}
    if quarantined and len(pending) < len(names):
        kept = [name for name in names if f"{name}.parquet" in present]
        facts = {part["name"]: part for part in collect_facts(folder, kept, {})}
        engine.progress.add_quarantined(sum(map(quarantined, facts.values())))
    runs = [[name] for name in pending]
    if quick and pending:
        runs = split_evenly(pending, num_quick_tasks(len(pending), engine.num_workers))
    results_of = engine.map(
        _write_parts,
        runs,
        shared=_PartFunction(function, shared),
        title=title,
        unit=unit,
        num_gpus=num_gpus,
        before=len(names) - len(pending),
        quarantined=(lambda results: sum(map(quarantined, results))) if quarantined else None,
    )
    for index, results in results_of:
        facts |= zip(runs[index], results, strict=True)
    return collect_facts(folder, names, facts)


@dataclass(frozen=True)
class _PartFunction(Generic[Shared]):
    function: Callable[[str, Shared], dict[str, Any]]
    shared: Shared


def _write_parts(names: list[str], part_function: _PartFunction[Shared]) -> list[dict[str, Any]]:
    return [part_function.function(name, part_function.shared) for name in names]


def collect_facts(folder: Folder, names: Sequence[str], fresh: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The facts of the named parts, in order: from `fresh`, otherwise from the footer of the part."""
    kept = [name for name in names if name not in fresh]
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        facts = {**fresh, **dict(zip(kept, pool.map(lambda name: folder.read_facts(f"{name}.parquet"), kept), strict=True))}
    return [{"name": name, **facts[name]} for name in names]


def choose_by_hash(names: Sequence[str], count: int, *, seed: int, purpose: str) -> list[str]:
    """At most `count` of the names, in their order; the choice depends on the number of names, the seed and the purpose."""
    u_N = keyed_uniform(np.arange(len(names), dtype=np.uint64), seed=seed, purpose=purpose)
    return [names[i] for i in sorted(find_lowest(u_N, count))]


def group_for_fold(engine: Engine, items: Sequence[Item]) -> list[list[Item]]:
    """Group the items for a fold whose result does not depend on the grouping."""
    return split_evenly(items, num_fold_tasks(len(items), engine.num_workers))


def group_for_mappers(
    engine: Engine, items: Sequence[Item], *, moved_bytes: float, partitions: int, held_bytes: float = MAPPER_BYTES
) -> list[list[Item]]:
    """Group the items for the mappers of a shuffle of `moved_bytes` into `partitions`; see `num_mapper_tasks`."""
    num_workers = engine.num_workers
    return split_evenly(
        items, num_mapper_tasks(len(items), num_workers, moved_bytes=moved_bytes, partitions=partitions, held_bytes=held_bytes)
    )


def num_fold_tasks(num_items: int, num_workers: int) -> int:
    """Number of tasks of a fold: at least one per worker, at most what a driver can combine."""
    return min(num_items, max(_MIN_FOLD_GROUPS, num_workers), _MAX_FOLD_GROUPS)


def num_mapper_tasks(
    num_items: int, num_workers: int, *, moved_bytes: float, partitions: int, held_bytes: float = MAPPER_BYTES
) -> int:
    """Number of mappers of a shuffle: enough for all workers, each with about `held_bytes` of the moved data.

    Fewer mappers with more data if pieces would otherwise be small; with `MAX_PARTITIONS` that is 64 MB per mapper.
    """
    preferred = max(4 * num_workers, round(moved_bytes / held_bytes))
    max_mappers = max(round(moved_bytes / _MIN_PIECE_BYTES), _MAX_SMALL_PIECES) // max(1, partitions)
    return max(1, min(num_items, preferred, max_mappers))


def num_quick_tasks(num_parts: int, num_workers: int) -> int:
    """Number of tasks of a map over parts that are quick to write."""
    return min(num_parts, max(-(-num_parts // _MAX_QUICK_PARTS), _QUICK_TASKS_PER_WORKER * num_workers))


def split_by_size(items: Sequence[Item], sizes: Sequence[float], max_size: float) -> list[list[Item]]:
    """Split the items, in order, into groups of at most `max_size` in total; a single larger item is a group of its own."""
    runs: list[list[Item]] = []
    run_size = 0.0
    for item, size in zip(items, sizes, strict=True):
        if not runs or run_size + size > max_size:
            runs.append([])
            run_size = 0.0
        runs[-1].append(item)
        run_size += size
    return runs


def split_evenly(items: Sequence[Item], num_groups: int) -> list[list[Item]]:
    """Split the items, in order, into at most `num_groups` groups of nearly equal length."""
    num_groups = min(len(items), max(1, num_groups))
    if not num_groups:
        return []
    bounds = [len(items) * i // num_groups for i in range(num_groups + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(bounds)]
