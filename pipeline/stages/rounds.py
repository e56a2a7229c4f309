"""Move sampled text to its shards: in one round of Ray's shuffle, or in two rounds through storage.

A round has one piece for each mapper and shard, and pieces must not be small (`step.mapper_tasks`), so a mapper holds more data the
more shards there are. Above 512 shards, about 130 GB, sampled text is first collected in buckets, about √S ranges of neighbouring
shards: runs of parts, one after the other, each write a file per bucket; then the files of each bucket are shuffled in one round.
So no process holds more than about one shard. The shards are the same either way.

Shapes: S shards.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.engine import Engine
from pipeline.execution.step import MOST_PARTITIONS, mapper_groups, runs_within
from pipeline.stages.shards import PIECES, Shuffle, drawn_of_part, split_into, write_shard
from pipeline.storage import Folder

_BUCKETS = "buckets"


@dataclass(frozen=True)
class DrawnPart:
    """A part of the windows or rewrites, and the estimated bytes sampled from it."""

    origin: str
    name: str
    drawn_bytes: float


@dataclass(frozen=True)
class Bucket:
    """A range of neighbouring shards, with one file of rows for each run of parts."""

    number: int
    shards: range

    def file(self, run: int) -> str:
        """Return the name of the bucket's file for a run of parts."""
        return f"bucket-{self.number:05d}-run-{run:05d}"


def moved(
    engine: Engine, parts: Sequence[DrawnPart], work: Shuffle, missing: Sequence[int], *, most: int = MOST_PARTITIONS
) -> dict[int, dict[str, Any]]:
    """Write the missing shards, in one round if there are at most `most` shards in all; return the facts of each, by its number."""
    folder = work.output.child(_BUCKETS)
    if work.num_shards <= most:
        return _one_round(engine, parts, work, missing)
    made = _two_rounds(engine, parts, work, missing, folder)
    folder.remove_all()
    return made


def buckets_of(num_shards: int) -> list[Bucket]:
    """Divide all shards into about √S buckets."""
    count = math.isqrt(num_shards - 1) + 1
    edges = [num_shards * number // count for number in range(count + 1)]
    return [Bucket(number, range(a, b)) for number, (a, b) in enumerate(itertools.pairwise(edges))]


def _one_round(engine: Engine, parts: Sequence[DrawnPart], work: Shuffle, missing: Sequence[int]) -> dict[int, dict[str, Any]]:
    drawn_bytes = sum(part.drawn_bytes for part in parts)
    items = mapper_groups(engine, parts, moved_bytes=drawn_bytes, partitions=work.num_shards) if missing else []
    made = engine.shuffle(_parts_to_shards, items, write_shard, missing, title="shards", unit="shards", shared=(work,))
    return {missing[index]: facts for index, facts in made}


def _two_rounds(
    engine: Engine, parts: Sequence[DrawnPart], work: Shuffle, missing: Sequence[int], folder: Folder
) -> dict[int, dict[str, Any]]:
    # Buckets and runs do not depend on which shards are missing, so that a resumed run finds the files of the interrupted one.
    buckets = buckets_of(work.num_shards)
    runs = runs_within(parts, [part.drawn_bytes for part in parts], len(buckets) * work.shard_bytes)
    left = [bucket for bucket in buckets if not set(missing).isdisjoint(bucket.shards)]
    present = set(folder.names(".parquet"))
    for number, run in enumerate(runs):
        wanted = [bucket for bucket in left if f"{bucket.file(number)}.parquet" not in present]
        run_bytes = sum(part.drawn_bytes for part in run)
        items = mapper_groups(engine, run, moved_bytes=run_bytes, partitions=len(wanted)) if wanted else []
        title = f"buckets of run {number + 1} of {len(runs)}"
        shared = (work, folder, number)
        for _ in engine.shuffle(_parts_to_buckets, items, _write_bucket, wanted, title=title, unit="buckets", shared=shared):
            pass
    made: dict[int, dict[str, Any]] = {}
    for bucket in left:
        files = [bucket.file(number) for number in range(len(runs))]
        shards = [number for number in missing if number in bucket.shards]
        bucket_bytes = sum(part.drawn_bytes for part in parts) * len(bucket.shards) / work.num_shards
        items = mapper_groups(engine, files, moved_bytes=bucket_bytes, partitions=len(shards))
        title = f"shards of bucket {bucket.number + 1} of {len(buckets)}"
        facts = engine.shuffle(
            _files_to_shards, items, _write_from_files, shards, title=title, unit="shards", shared=(work, folder)
        )
        made |= {shards[index]: found for index, found in facts}
        for file in files:
            folder.remove(f"{file}.parquet")
    return made


def _drawn(parts: Sequence[DrawnPart], work: Shuffle) -> Iterator[pa.Table]:
    return (drawn_of_part(part.origin, part.name, work) for part in parts)


def _parts_to_shards(parts: Sequence[DrawnPart], shards: Sequence[int], work: Shuffle) -> list[pa.Table]:
    return split_into(_drawn(parts, work), [range(shard, shard + 1) for shard in shards], work.num_shards)


def _parts_to_buckets(
    parts: Sequence[DrawnPart], buckets: Sequence[Bucket], work: Shuffle, _folder: Folder, _run: int
) -> list[pa.Table]:
    return split_into(_drawn(parts, work), [bucket.shards for bucket in buckets], work.num_shards)


def _write_bucket(bucket: Bucket, pieces: Sequence[pa.Table], _work: Shuffle, folder: Folder, run: int) -> None:
    folder.write_table(f"{bucket.file(run)}.parquet", pa.concat_tables(pieces), PIECES)


def _files_to_shards(files: Sequence[str], shards: Sequence[int], work: Shuffle, folder: Folder) -> list[pa.Table]:
    tables = (folder.read_table(f"{file}.parquet") for file in files)
    return split_into(tables, [range(shard, shard + 1) for shard in shards], work.num_shards)


def _write_from_files(shard: int, pieces: Sequence[pa.Table], work: Shuffle, _folder: Folder) -> dict[str, Any]:
    return write_shard(shard, pieces, work)
