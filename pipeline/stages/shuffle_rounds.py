"""Move sampled text to its shards: in one round of Ray's shuffle, or in two rounds through storage.

A round has one piece for each mapper and shard, and pieces must not be small (`step.num_mapper_tasks`), so a mapper holds more data
the more shards there are. Above 512 shards, about 130 GB, sampled text is first collected in buckets, which are about √S ranges of
neighbouring shards: groups of parts, one after the other, each write a file per bucket; then the files of each bucket are shuffled
in one round. So no process holds more than about one shard. The shards are the same either way.

Shapes: S shards.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.engine import Engine
from pipeline.execution.step import MAX_PARTITIONS, group_for_mappers, split_by_size
from pipeline.stages.shards import PIECES, ShuffleInputs, read_sampled_part, split_by_shards, write_shard
from pipeline.storage import Folder

_BUCKETS = "buckets"


@dataclass(frozen=True)
class SampledPart:
    """A part of the windows or rewrites, and the estimated bytes sampled from it."""

    origin: str
    name: str
    sampled_bytes: float


@dataclass(frozen=True)
class Bucket:
    """A range of neighbouring shards, with one file of rows for each run of parts."""

    number: int
    shards: range

    def file_name(self, run: int) -> str:
        """Return the name of the bucket's file for a run of parts, without its suffix."""
        return f"bucket-{self.number:05d}-run-{run:05d}"


@dataclass(frozen=True)
class CollectInputs:
    """Inputs of the tasks that collect one run of parts in buckets."""

    shuffle: ShuffleInputs
    folder: Folder  # of the bucket files
    run: int


@dataclass(frozen=True)
class DistributeInputs:
    """Inputs of the tasks that distribute the files of one bucket over its shards."""

    shuffle: ShuffleInputs
    folder: Folder  # of the bucket files


def write_shards(
    engine: Engine,
    parts: Sequence[SampledPart],
    inputs: ShuffleInputs,
    missing: Sequence[int],
    *,
    max_partitions: int = MAX_PARTITIONS,
) -> dict[int, dict[str, Any]]:
    """Write the missing shards, in one round if there are at most `max_partitions` shards in all; return their facts, by number."""
    folder = inputs.output.child(_BUCKETS)
    if inputs.num_shards <= max_partitions:
        return _write_in_one_round(engine, parts, inputs, missing)
    facts = _write_in_two_rounds(engine, parts, inputs, missing, folder)
    folder.remove_all()
    return facts


def plan_buckets(num_shards: int) -> list[Bucket]:
    """Divide all shards into about √S buckets."""
    count = math.isqrt(num_shards - 1) + 1
    edges = [num_shards * number // count for number in range(count + 1)]
    return [Bucket(number, range(a, b)) for number, (a, b) in enumerate(itertools.pairwise(edges))]


def _write_in_one_round(
    engine: Engine, parts: Sequence[SampledPart], inputs: ShuffleInputs, missing: Sequence[int]
) -> dict[int, dict[str, Any]]:
    sampled_bytes = sum(part.sampled_bytes for part in parts)
    items = group_for_mappers(engine, parts, moved_bytes=sampled_bytes, partitions=inputs.num_shards) if missing else []
    results = engine.shuffle(_split_parts_by_shard, items, write_shard, missing, title="shards", unit="shards", shared=inputs)
    return {missing[index]: facts for index, facts in results}


def _write_in_two_rounds(
    engine: Engine, parts: Sequence[SampledPart], inputs: ShuffleInputs, missing: Sequence[int], folder: Folder
) -> dict[int, dict[str, Any]]:
    # Buckets and runs do not depend on which shards are missing, so that a resumed run finds the files of the interrupted one.
    buckets = plan_buckets(inputs.num_shards)
    runs = split_by_size(parts, [part.sampled_bytes for part in parts], len(buckets) * inputs.shard_bytes)
    incomplete = [bucket for bucket in buckets if not set(missing).isdisjoint(bucket.shards)]
    present = set(folder.names(".parquet"))
    for number, run in enumerate(runs):
        pending = [bucket for bucket in incomplete if f"{bucket.file_name(number)}.parquet" not in present]
        run_bytes = sum(part.sampled_bytes for part in run)
        items = group_for_mappers(engine, run, moved_bytes=run_bytes, partitions=len(pending)) if pending else []
        title = f"buckets of run {number + 1} of {len(runs)}"
        collect = CollectInputs(inputs, folder, number)
        for _ in engine.shuffle(
            _split_parts_by_bucket, items, _write_bucket_file, pending, title=title, unit="buckets", shared=collect
        ):
            pass
    facts_by_shard: dict[int, dict[str, Any]] = {}
    distribute = DistributeInputs(inputs, folder)
    for bucket in incomplete:
        files = [bucket.file_name(number) for number in range(len(runs))]
        shards = [number for number in missing if number in bucket.shards]
        bucket_bytes = sum(part.sampled_bytes for part in parts) * len(bucket.shards) / inputs.num_shards
        items_of_bucket = group_for_mappers(engine, files, moved_bytes=bucket_bytes, partitions=len(shards))
        title = f"shards of bucket {bucket.number + 1} of {len(buckets)}"
        results = engine.shuffle(
            _split_files_by_shard, items_of_bucket, _write_bucket_shard, shards, title=title, unit="shards", shared=distribute
        )
        facts_by_shard |= {shards[index]: facts for index, facts in results}
        for file in files:
            folder.remove(f"{file}.parquet")
    return facts_by_shard


def _read_sampled_parts(parts: Sequence[SampledPart], inputs: ShuffleInputs) -> Iterator[pa.Table]:
    return (read_sampled_part(part.origin, part.name, inputs) for part in parts)


def _split_parts_by_shard(parts: Sequence[SampledPart], shards: Sequence[int], inputs: ShuffleInputs) -> list[pa.Table]:
    return split_by_shards(_read_sampled_parts(parts, inputs), _single_shards(shards), inputs.num_shards)


def _split_parts_by_bucket(parts: Sequence[SampledPart], buckets: Sequence[Bucket], inputs: CollectInputs) -> list[pa.Table]:
    tables = _read_sampled_parts(parts, inputs.shuffle)
    return split_by_shards(tables, [bucket.shards for bucket in buckets], inputs.shuffle.num_shards)


def _write_bucket_file(bucket: Bucket, pieces: Sequence[pa.Table], inputs: CollectInputs) -> None:
    inputs.folder.write_table(f"{bucket.file_name(inputs.run)}.parquet", pa.concat_tables(pieces), PIECES)


def _split_files_by_shard(files: Sequence[str], shards: Sequence[int], inputs: DistributeInputs) -> list[pa.Table]:
    tables = (inputs.folder.read_table(f"{file}.parquet") for file in files)
    return split_by_shards(tables, _single_shards(shards), inputs.shuffle.num_shards)


def _write_bucket_shard(shard: int, pieces: Sequence[pa.Table], inputs: DistributeInputs) -> dict[str, Any]:
    return write_shard(shard, pieces, inputs.shuffle)


def _single_shards(shards: Sequence[int]) -> list[range]:
    return [range(shard, shard + 1) for shard in shards]
