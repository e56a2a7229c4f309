"""The final shuffle in one round and in two: the same shards, whatever was moved how, and stopped when."""

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
from pipeline.execution.step import MOST_PARTITIONS, mapper_tasks, runs_within
from pipeline.graph import runner
from pipeline.stages import sample
from pipeline.stages.rounds import DrawnPart, buckets_of, moved
from tests.support.corpora import shard_bytes, topic_run


@given(st.integers(1, 100_000))
def test_buckets_hold_every_shard_once_and_are_the_root_of_their_number(num_shards: int) -> None:
    buckets = buckets_of(num_shards)
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))
    assert [shard for bucket in buckets for shard in bucket.shards] == list(range(num_shards))
    assert (len(buckets) - 1) ** 2 < num_shards <= len(buckets) ** 2
    assert min(len(bucket.shards) for bucket in buckets) >= 1


@given(st.lists(st.floats(0, 100), max_size=40), st.floats(1, 200))
def test_runs_keep_all_parts_in_order_within_their_bytes(drawn: list[float], most: float) -> None:
    parts = [DrawnPart("raw", str(number), of_part) for number, of_part in enumerate(drawn)]
    runs = runs_within(parts, drawn, most)
    assert [part for run in runs for part in run] == parts
    for of_run in runs:
        assert len(of_run) == 1 or sum(part.drawn_bytes for part in of_run) <= most * (1 + 1e-9)


@given(st.integers(MOST_PARTITIONS + 1, 200_000), st.integers(64 << 20, 1 << 30), st.integers(1, 20_000))
def test_two_rounds_hold_little_and_have_few_pieces(num_shards: int, shard_bytes: int, workers: int) -> None:
    """Up to 200 TB in a thousand workers' hands: no mapper holds more than a shard, no shuffle has more than a million pieces."""
    count = len(buckets_of(num_shards))
    assert count <= MOST_PARTITIONS
    for moved_bytes, files, partitions in (
        (count * shard_bytes, 10**6, count),  # a run of parts
        (num_shards / count * shard_bytes, num_shards // count, num_shards // count),  # a bucket, of a file for each run
    ):
        mappers = mapper_tasks(files, workers, moved_bytes=moved_bytes, partitions=partitions)
        assert mappers * partitions <= max(1_000_000 * shard_bytes / (256 << 20), 512)
        assert moved_bytes / mappers <= max(64 << 20, shard_bytes) * 1.5


@pytest.fixture
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "moved", functools.partial(moved, most=0))


@pytest.fixture
def config(tmp_path: Path, ray_session: Any) -> dict[str, Any]:
    """Some fifteen shards, of text and of a second phase of the corpus."""
    settings = topic_run(tmp_path, 60) | {"prepare": {"part_documents": 20}}
    settings["sample"] = {"budget_tokens": 40_000, "shard_bytes": 16_000}
    settings["schedule"] = {"ending": {"share": 0.3, "weights": {"sharpness": 1.0}}, "conditioning": {"field": "url"}}
    return settings


@pytest.mark.ray
def test_two_rounds_leave_the_shards_of_one(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner.curate(config)
    wanted = shard_bytes(config["workdir"])
    assert len(wanted) > 12
    for stage in ("sample", "schedule", "shards"):
        for path in Path(config["workdir"]).glob(f"{stage}"):
            path.rename(tmp_path / f"old-{stage}")
    monkeypatch.setattr(sample, "moved", functools.partial(moved, most=0))
    titles: list[str] = []
    monkeypatch.setattr(Engine, "shuffle", counting(titles, Engine.shuffle))
    again = runner.curate(config)
    assert shard_bytes(config["workdir"]) == wanted
    assert {title.split()[0] for title in titles} == {"buckets", "shards"}
    assert sum(title.startswith("buckets of run 2 of") for title in titles) >= 1
    for step in again.samples:
        assert not Path(step.folder.path, "buckets").exists()


@pytest.mark.ray
@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_stopped_in_either_round_it_goes_on_from_what_is_there(
    after: int, config: dict[str, Any], two_rounds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del config["schedule"]
    runner.weights(config)
    shuffle = Engine.shuffle
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", stopping(after, shuffle))
        with pytest.raises(WorkerError, match="stopped"):
            runner.curate(config)
    made: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", counting(made, shuffle))
        went_on = shard_bytes_of(runner.curate(config))
    made_at_once: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "shuffle", counting(made_at_once, shuffle))
        assert shard_bytes_of(runner.curate(config | {"workdir": str(tmp_path / "other")})) == went_on
    of_rounds = [title for title in made_at_once if title.startswith(("buckets", "shards"))]
    assert len(of_rounds) > after
    assert len(made) <= len(of_rounds) - after  # tasks that were out when it stopped may have ended


def shard_bytes_of(done: PipelineGraph) -> dict[str, bytes]:
    return shard_bytes(done.workdir.path)


def stopping(after: int, shuffle: Any) -> Any:
    """Of a shuffle to shards or buckets that many results come, then none."""
    left = [after]

    def stopped(self: Engine, mapper: Any, items: Sequence[Any], *args: Any, title: str, **options: Any) -> Iterator[Any]:
        for result in shuffle(self, mapper, items, *args, title=title, **options):
            yield result
            left[0] -= 1
            if not left[0]:
                raise WorkerError("stopped")

    return stopped


def counting(made: list[str], shuffle: Any) -> Any:
    def counted(self: Engine, *args: Any, title: str, **options: Any) -> Iterator[Any]:
        for result in shuffle(self, *args, title=title, **options):
            made.append(title)
            yield result

    return counted
