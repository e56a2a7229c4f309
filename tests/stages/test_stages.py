"""The functions of stages on tables, without Ray."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clustering.kmeans import KMeansFit
from pipeline.clustering.tree import Tree
from pipeline.config import Cluster, Prepare
from pipeline.execution.step import num_fold_tasks, num_mapper_tasks, num_quick_tasks, split_evenly
from pipeline.hashing import window_keys
from pipeline.mixture.sampling import attribute_copies
from pipeline.sources import InputFile
from pipeline.sources.chunks import ChunkStart
from pipeline.stages.assign import assign_table
from pipeline.stages.cluster import LevelFit
from pipeline.stages.duplicate_ids import find_repeats
from pipeline.stages.embed import embed_table, read_embeddings
from pipeline.stages.prepare import plan_parts, plan_work_items
from pipeline.stages.shards import Attribution, ShuffleInputs, build_copies, split_by_shards
from pipeline.stages.strata import Cells
from pipeline.storage import Folder
from pipeline.tables import WINDOWS, embeddings_schema


class FakeModel:
    """Returns vectors that depend on the length of the text, and no finite vector for blank text."""

    dim = 3
    hardware: dict[str, str] = {}  # noqa: RUF012

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), 1.0, 0.5] if text.strip() else [np.nan] * 3 for text in texts], np.float32)


def make_windows_table(texts: list[str], doc: str = "d") -> pa.Table:
    count = len(texts)
    return pa.table(
        {
            "key": window_keys([doc] * count, range(count)),
            "doc_id": [doc] * count,
            "window": range(count),
            "text": texts,
            "tokens": [len(text) for text in texts],
            "source": ["s"] * count,
            "near_copies": [1] * count,
            "metadata": ["{}"] * count,
        },
        schema=WINDOWS,
    )


def test_embeddings_keep_rows_and_order_and_mark_vectors_that_are_not_finite(tmp_path: Path) -> None:
    result = embed_table(make_windows_table(["aa", " ", "aaaa"]), FakeModel())
    Folder(str(tmp_path)).write_table("p.parquet", result, embeddings_schema(3))
    key_N, valid_N, x_ND = read_embeddings(Folder(str(tmp_path)), "p")
    assert key_N.tolist() == result["key"].to_pylist()
    assert valid_N.tolist() == [True, False, True]
    assert x_ND.tolist() == [[2, 1, 0.5], [0, 0, 0], [4, 1, 0.5]]


def test_embeddings_of_an_empty_part_are_empty(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write_table("p.parquet", embed_table(make_windows_table([]), FakeModel()), embeddings_schema(3))
    key_N, valid_N, x_ND = read_embeddings(Folder(str(tmp_path)), "p")
    assert (len(key_N), len(valid_N), x_ND.shape) == (0, 0, (0, 3))


def make_two_leaf_tree() -> Tree:
    fit = KMeansFit(
        centroid_KD=np.array([[0.0, 0.0], [1.0, 0.0]], np.float32),
        count_K=np.array([1, 1]),
        sq_dist_K=np.zeros(2),
        steps=1,
        moved_share=0.0,
        objective=0.0,
    )
    return Tree.root_only(100.0, 2).grow({0: fit})


def test_windows_without_a_vector_have_no_leaf() -> None:
    x_ND = np.array([[0.9, 0], [0, 0], [0.2, 0]], np.float16)
    valid_N = np.array([True, False, True])
    result = assign_table(np.arange(3, dtype=np.uint64), np.array([5, 6, 7], np.int32), valid_N, x_ND, make_two_leaf_tree())
    assert result["leaf"].to_pylist() == [1, -1, 0]
    assert result["tokens"].to_pylist() == [5, 6, 7]
    np.testing.assert_allclose(result["sq_dist"].to_numpy(), [0.01, 0, 0.04], atol=1e-3)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 9)), unique_by=lambda row: row[1:]))
def test_find_repeats_returns_all_but_the_first_by_file_and_row(rows: list[tuple[int, int, int]]) -> None:
    first: dict[int, tuple[int, int]] = {}
    expected = set()
    for identifier, file, row in sorted(rows, key=lambda row: row[1:]):
        if identifier in first:
            expected.add((file, row, *first[identifier]))
        first.setdefault(identifier, (file, row))
    columns = np.array(rows, np.int64).reshape(-1, 3)
    found = find_repeats(columns[:, 0].astype(np.uint64), columns[:, 1].astype(np.int32), columns[:, 2])
    assert {tuple(row) for row in found.tolist()} == expected


@given(st.integers(1, 10**7), st.integers(1, 10**5), st.floats(0, 1e15), st.integers(1, 10**5))
def test_number_of_tasks_grows_with_workers_and_bytes_up_to_the_limit_of_the_driver(
    items: int, workers: int, moved_bytes: float, partitions: int
) -> None:
    mappers = num_mapper_tasks(items, workers, moved_bytes=moved_bytes, partitions=partitions)
    assert 1 <= mappers <= items
    assert mappers == 1 or mappers * partitions <= 512 or moved_bytes / (mappers * partitions) >= 0.99 * (128 << 10)
    if mappers < items and partitions <= 512:
        assert moved_bytes / mappers <= (64 << 20) * 2
    if mappers < items and mappers < workers:
        assert (mappers + 1) * partitions > 512  # otherwise there would be one task per worker
    assert 1 <= num_fold_tasks(items, workers) <= min(items, 1024)
    assert num_fold_tasks(items, workers) >= min(items, workers, 1024)
    quick = num_quick_tasks(items, workers)
    assert items / 32 <= quick <= items
    assert quick >= min(items, workers)


@given(st.lists(st.integers()), st.integers(1, 20))
def test_split_evenly_keeps_all_items_in_order(items: list[int], num_groups: int) -> None:
    found = split_evenly(items, num_groups)
    assert [item for group in found for item in group] == items
    assert len(found) <= num_groups
    assert all(found)


def test_several_workers_cut_one_file_but_only_one_cuts_a_package() -> None:
    files = [InputFile(0, "a.jsonl", "jsonl", ""), InputFile(1, "pydocs://x", "pydocs", "")]
    starts = [ChunkStart(10 * chunk, 9 * chunk, chunk) for chunk in range(8)]
    scans = [{"rows": 80, "bad": 8, "bytes": 1, "starts": starts}, {"rows": 20, "bad": 0, "bytes": 1, "starts": starts[:2]}]
    items = plan_work_items(plan_parts(files, scans, Prepare()), num_workers=4)
    assert [[(part.files[0].number, part.chunk) for part in item] for item in items] == [
        *([(0, first), (0, first + 1)] for first in (0, 2, 4, 6)),
        [(1, 0), (1, 1)],
    ]
    assert [item[0].start.row for item in items] == [0, 20, 40, 60, 0]


SIZES = st.tuples(st.integers(0, 3), st.integers(1, 30) | st.just(3000), st.integers(1, 300) | st.just(30_000))


@given(st.lists(SIZES), st.integers(1, 60), st.integers(4096, 5000))
def test_small_files_share_parts_within_the_limits(sizes: list[tuple[int, int, int]], part_documents: int, part_bytes: int) -> None:
    """`sizes` has for each file its chunks, its documents and its size in tens of bytes."""
    files = [InputFile(number, f"{number}.jsonl", "jsonl", "") for number in range(len(sizes))]
    scans = [
        {"rows": documents + 2, "bad": 2, "bytes": 10 * size, "starts": [ChunkStart(n, n, n) for n in range(chunks)]}
        for chunks, documents, size in sizes
    ]
    parts = plan_parts(files, scans, Prepare(part_documents=part_documents, part_bytes=part_bytes))
    max_documents = min(part_documents, max(16, sum(documents for _, documents, _ in sizes) // 64))
    max_bytes = min(part_bytes, max(65_536, sum(10 * size for *_, size in sizes) // 64))
    part_chunks = [(file.number, part.chunk) for part in parts for file in part.files]
    assert part_chunks == [(number, chunk) for number, (chunks, *_) in enumerate(sizes) for chunk in range(chunks)]
    assert len({part.name for part in parts}) == len(parts)
    for part, following in itertools.pairwise([*parts, None]):
        part_sizes = [sizes[file.number] for file in part.files]
        if len(part_sizes) > 1:
            assert all(chunks == 1 for chunks, *_ in part_sizes)
            assert sum(documents for _, documents, _ in part_sizes) <= max_documents
            assert sum(10 * size for *_, size in part_sizes) <= max_bytes
        if following and {chunks for chunks, *_ in part_sizes} == {sizes[following.files[0].number][0]} == {1}:
            documents, size = (sum(one[i] for one in [*part_sizes, sizes[following.files[0].number]]) for i in (1, 2))
            assert documents > max_documents or 10 * size > max_bytes


def test_many_small_files_become_few_parts_but_enough_for_many_workers() -> None:
    files = [InputFile(number, f"{number}.jsonl", "jsonl", "") for number in range(5000)]
    scans = [{"rows": 3, "bad": 0, "bytes": 900, "starts": [ChunkStart(0, 0, 0)]}] * len(files)
    assert 64 <= len(plan_parts(files, scans, Prepare())) <= 128
    assert len(plan_parts(files[:16], scans[:16], Prepare())) == 4
    large = [{"rows": 700, "bad": 0, "bytes": 900_000, "starts": [ChunkStart(0, 0, 0)]}] * 16
    assert len(plan_parts(files[:16], large, Prepare())) == 16


def make_level_fit(fit_windows: int, seed: int = 0) -> LevelFit:
    return LevelFit(make_two_leaf_tree(), 1, {1: 2, 2: 2}, Cluster(fit_windows=fit_windows), seed)


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_windows_that_fit_a_node_do_not_depend_on_how_parts_are_split(seed: int, at: int) -> None:
    rng = np.random.default_rng(seed)
    key_N = rng.integers(0, 2**63, 300).astype(np.uint64)
    x_ND = rng.random((300, 2)).astype(np.float16)
    valid_N = rng.random(300) < 0.9
    level_fit = make_level_fit(10**6)
    whole = level_fit.select(key_N, valid_N, x_ND, [1, 2])
    halves = [level_fit.select(key_N[rows], valid_N[rows], x_ND[rows], [1, 2]) for rows in (slice(0, at), slice(at, None))]
    for node in (0, 1):
        once = {int(key): tuple(row) for key, row in zip(whole[node][1], whole[node][2].tolist(), strict=True)}
        twice = {int(key): tuple(row) for half in halves for key, row in zip(half[node][1], half[node][2].tolist(), strict=True)}
        assert once == twice
    assert sum(len(piece[1]) for piece in whole) == valid_N.sum()


def test_a_node_is_fitted_on_at_most_fit_windows_windows() -> None:
    level_fit = make_level_fit(200)
    key_N = np.arange(5000, dtype=np.uint64)
    x_ND = np.stack([np.linspace(0.6, 1.4, 5000), np.zeros(5000)], axis=1).astype(np.float16)
    (piece,) = level_fit.select(key_N, np.ones(5000, bool), x_ND, [2])
    assert level_fit.max_windows(2) == 200
    fit = level_fit.fit(2, [piece], threads=1)
    assert fit.count_K.sum() == 200


def test_each_copy_has_the_columns_of_its_window_and_is_in_one_shard() -> None:
    windows = make_windows_table(["a", "bb", "ccc"])
    folder = Folder("memory://x")
    attribution = Attribution(["law", "natural"], np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), Cells(None, folder))
    inputs = ShuffleInputs(pools={}, output=folder, num_shards=3, shard_bytes=1, seed=0, attribution=attribution)
    table = build_copies(windows, np.zeros(3, np.int32), np.array([2, 0, 3], np.int32), np.array([[1.0] * 3, [0.0] * 3]), inputs)
    assert table["id"].to_pylist() == ["d:0:0", "d:0:1", "d:2:0", "d:2:1", "d:2:2"]
    assert table["text"].to_pylist() == ["a", "a", "ccc", "ccc", "ccc"]
    assert set(table["specialist"].to_pylist()) == {"law"}
    pieces = split_by_shards([table], [range(shard, shard + 1) for shard in range(3)], 3)
    two, last = split_by_shards([table], [range(2), range(2, 3)], 3)
    assert two.equals(pa.concat_tables(pieces[:2]).take(pc.index_in(two["id"], pa.concat_tables(pieces[:2])["id"])))
    assert last.equals(pieces[2])
    (alone,) = split_by_shards([table], [range(1, 2)], 3)
    assert alone.equals(pieces[1])
    assert sorted(identifier for piece in pieces for identifier in piece["id"].to_pylist()) == table["id"].to_pylist()


def test_copies_are_attributed_in_proportion_to_claims() -> None:
    key_N = np.arange(20_000, dtype=np.uint64)
    claim_SL = np.array([[0.3, 0.0], [0.1, 0.5]])
    leaf_N = (key_N % 2).astype(np.int64)
    row_N = attribute_copies(key_N, np.zeros(20_000, np.int64), claim_SL[:, leaf_N], 0)
    assert abs((row_N[leaf_N == 0] == 0).mean() - 0.75) < 0.02
    assert (row_N[leaf_N == 1] == 1).all()
