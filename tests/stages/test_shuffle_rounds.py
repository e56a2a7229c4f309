"""The final shuffle in one round and in two: the shards are the same, also after an interruption."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.errors import WorkerError
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import MAX_PARTITIONS, num_mapper_tasks, split_by_size
from pipeline.graph import runner
from pipeline.stages import sample
from pipeline.stages.shuffle_rounds import SampledPart, plan_buckets, write_shards
from tests.support.corpora import make_topic_config, read_shard_bytes


@given(st.integers(1, 100_000))
def test_buckets_hold_every_shard_once_and_number_the_square_root_of_the_shards(num_shards: int) -> None:
    buckets = plan_buckets(num_shards)
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))
    assert [shard for bucket in buckets for shard in bucket.shards] == list(range(num_shards))
    assert (len(buckets) - 1) ** 2 < num_shards <= len(buckets) ** 2
    assert min(len(bucket.shards) for bucket in buckets) >= 1


@given(st.lists(st.floats(0, 100), max_size=40), st.floats(1, 200))
def test_split_by_size_keeps_all_parts_in_order_within_the_byte_limit(sampled_bytes: list[float], max_bytes: float) -> None:
    parts = [SampledPart("raw", str(number), part_bytes) for number, part_bytes in enumerate(sampled_bytes)]
    runs = split_by_size(parts, sampled_bytes, max_bytes)
    assert [part for run in runs for part in run] == parts
    for run in runs:
        assert len(run) == 1 or sum(part.sampled_bytes for part in run) <= max_bytes * (1 + 1e-9)


@given(st.integers(MAX_PARTITIONS + 1, 200_000), st.integers(64 << 20, 1 << 30), st.integers(1, 20_000))
def test_two_rounds_bound_mapper_memory_and_the_number_of_pieces(num_shards: int, read_shard_bytes: int, workers: int) -> None:
    """Up to 200 TB and 20,000 workers: no mapper holds more than 1.5 shards, no shuffle has more than a million pieces."""
    count = len(plan_buckets(num_shards))
    assert count <= MAX_PARTITIONS
    for moved_bytes, files, partitions in (
        (count * read_shard_bytes, 10**6, count),  # a run of parts
        (num_shards / count * read_shard_bytes, num_shards // count, num_shards // count),  # a bucket, of a file for each run
    ):
        mappers = num_mapper_tasks(files, workers, moved_bytes=moved_bytes, partitions=partitions)
        assert mappers * partitions <= max(1_000_000 * read_shard_bytes / (256 << 20), 512)
        assert moved_bytes / mappers <= max(64 << 20, read_shard_bytes) * 1.5


@pytest.fixture
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "write_shards", functools.partial(write_shards, max_partitions=0))


@pytest.fixture
def config(tmp_path: Path, ray_session: Any) -> dict[str, Any]:
    """Return the config of a run with about fifteen shards and an ending with other weights."""
    settings = make_topic_config(tmp_path, 60) | {"prepare": {"part_documents": 20}}
    settings["sample"] = {"budget_tokens": 40_000, "shard_bytes": 16_000}
    settings["schedule"] = {"ending": {"share": 0.3, "weights": {"sharpness": 1.0}}, "conditioning": {"field": "url"}}
    return settings


@pytest.mark.ray
def test_two_rounds_write_the_same_shards_as_one(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner.curate(config)
    expected = read_shard_bytes(config["workdir"])
    assert len(expected) > 12
    for stage in ("sample", "schedule", "shards"):
        for path in Path(config["workdir"]).glob(f"{stage}"):
            path.rename(tmp_path / f"old-{stage}")
    monkeypatch.setattr(sample, "write_shards", functools.partial(write_shards, max_partitions=0))
    titles: list[str] = []
    monkeypatch.setattr(Engine, "shuffle", make_recording_shuffle(titles, Engine.shuffle))
    again = runner.curate(config)
    assert read_shard_bytes(config["workdir"]) == expected
    assert {title.split()[0] for title in titles} == {"buckets", "shards"}
    assert sum(title.startswith("buckets of run 2 of") for title in titles) >= 1
    for step in again.sample_steps:
        assert not Path(step.folder.path, "buckets").exists()


@pytest.mark.ray
@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_run_stopped_in_either_round_resumes_from_the_written_files(
    after: int, config: dict[str, Any], two_rounds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del config["schedule"]
    runner.weights(config)
    shuffle = Engine.shuffle
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", make_stopping_shuffle(after, shuffle))
        with pytest.raises(WorkerError, match="stopped"):
            runner.curate(config)
    resumed_titles: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", make_recording_shuffle(resumed_titles, shuffle))
        resumed = read_shard_bytes_of_graph(runner.curate(config))
    all_titles: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", make_recording_shuffle(all_titles, shuffle))
        assert read_shard_bytes_of_graph(runner.curate(config | {"workdir": str(tmp_path / "other")})) == resumed
    uninterrupted_titles = [title for title in all_titles if title.startswith(("buckets", "shards"))]
    assert len(uninterrupted_titles) > after
    assert len(resumed_titles) <= len(uninterrupted_titles) - after  # tasks that were running at the stop may have finished


def read_shard_bytes_of_graph(done: PipelineGraph) -> dict[str, bytes]:
    return read_shard_bytes(done.workdir.path)


def make_stopping_shuffle(after: int, shuffle: Any) -> Any:
    """Return a shuffle that raises after `after` results, counted over all calls."""
    remaining = [after]

    def stopped_shuffle(self: Engine, mapper: Any, items: Sequence[Any], *args: Any, title: str, **options: Any) -> Iterator[Any]:
        for result in shuffle(self, mapper, items, *args, title=title, **options):
            yield result
            remaining[0] -= 1
            if not remaining[0]:
                raise WorkerError("stopped")

    return stopped_shuffle


def make_recording_shuffle(titles: list[str], shuffle: Any) -> Any:
    def recording_shuffle(self: Engine, *args: Any, title: str, **options: Any) -> Iterator[Any]:
        for result in shuffle(self, *args, title=title, **options):
            titles.append(title)
            yield result

    return recording_shuffle
