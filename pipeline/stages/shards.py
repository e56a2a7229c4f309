"""The final shuffle: distribute copies of windows over shards by a keyed hash, so that each shard is a uniform slice of the corpus.

A copy goes to shard `hash · S / 2^64`, and the rows of a shard are sorted by hash. The result does not depend on which part a copy
came from or which worker moved it.

Shapes: N windows of a part, R rows (copies of windows), S shards, M rows of a mixture (the specialists, then natural text), C cells
(leaves, or strata if windows are scored), L leaves.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import exact_json
from pipeline.arrays import F64, I32, I64
from pipeline.config import Conditioning
from pipeline.execution.step import Step, part_names
from pipeline.hashing import keyed_hash
from pipeline.mixture.sampling import attribute_copies
from pipeline.stages.strata import Cells
from pipeline.storage import Folder
from pipeline.tables import SHARDS, WINDOWS

# Column with the hash of a row during the shuffle; dropped when a shard is written.
ORDER = "order"
# Metadata stays dictionary-encoded during the shuffle, stored once for all windows of a document, and is expanded last.
PIECES = pa.schema(
    [*(WINDOWS.field("metadata") if field.name == "metadata" else field for field in SHARDS), pa.field(ORDER, pa.uint64())]
)
# Loaders assign row groups to ranks in turn; content-defined chunks make re-uploads cheap.
WRITE_OPTIONS = {"row_group_size": 1024, "write_page_index": True, "use_content_defined_chunking": True}


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


@dataclass(frozen=True)
class Attribution:
    """Attributes each copy to a specialist or to `natural`, in proportion to their shares of the allocation to its cell."""

    names: list[str]  # the M rows of the mixture
    allocated_MC: F64  # for raw text: tokens allocated to each cell
    share_ML: F64  # for rewrites: shares of the leaf with the deficit
    cells: Cells

    def raw_shares(self, part_name: str, leaf_N: I32) -> F64:
        """Return (M, N): numbers proportional to the shares of the raw windows of a part."""
        return self.allocated_MC[:, self.cells.read(part_name, leaf_N)]

    def attribute(self, key_R: NDArray[np.uint64], copy_R: I64, share_MR: F64, *, seed: int) -> pa.Array:
        """Return (R,): the name that each copy is attributed to, at random in proportion to the shares in its text."""
        return pa.array(self.names).take(pa.array(attribute_copies(key_R, copy_R, share_MR, seed)))


@dataclass(frozen=True)
class Pool:
    """Text to sample from, in aligned parts: the generalist windows (`raw`) or rewrites of them (`rephrased`)."""

    origin: str
    names: list[str]  # of the parts
    windows: Folder
    assignments: Folder
    draws: Folder  # copies of each window


def list_pools(windows: Step, assigned: Step, rephrased: Step | None, sample_folder: Folder) -> dict[str, Pool]:
    """Return the text pools of a run, by origin; `sample_folder` is the output of the sample step, which contains the draws."""
    pools = [Pool("raw", part_names(assigned), windows.folder, assigned.folder, sample_folder.child("draws"))]
    if rephrased and rephrased.manifest["rewrites"]:
        rewrites, assignments = (rephrased.folder.child(name) for name in ("rewrites", "assignments"))
        pools.append(Pool("rephrased", part_names(rephrased), rewrites, assignments, sample_folder.child("draws-rephrased")))
    return {pool.origin: pool for pool in pools}


@dataclass(frozen=True)
class ShuffleInputs:
    """Inputs shared by the mappers and reducers of the shuffle."""

    pools: dict[str, Pool]
    output: Folder
    num_shards: int
    shard_bytes: int
    seed: int
    attribution: Attribution
    first_shard: int = 0  # number of the first shard to write
    previous_draws: Folder | None = None  # draws of raw windows for the preceding shards
    conditioning: Conditioning | None = None
    num_prefixed_shards: int = 0  # leading shards whose texts get a prefix


def build_copies(
    windows: pa.Table,
    leaf_N: I32,
    copies_N: I32,
    share_MN: F64,
    inputs: ShuffleInputs,
    origin: str = "raw",
    previous_copies_N: I32 | None = None,
) -> pa.Table:
    """Return a SHARDS row, with its hash in `ORDER`, for each copy of each window of a part.

    Args:
        share_MN: shares of the specialists, and of natural text, in each window, up to a factor per window.
        previous_copies_N: copies of each window in the preceding shards; copy numbers continue from there.
    """
    row_R = np.repeat(np.arange(len(windows)), copies_N)
    copy_R = np.arange(len(row_R)) - np.repeat(np.cumsum(copies_N) - copies_N, copies_N)
    if previous_copies_N is not None:
        copy_R += previous_copies_N[row_R]
    table = windows.take(pa.array(row_R))
    key_R = table["key"].to_numpy()
    row_id, parent, style = build_ids(table, origin)
    return pa.table(
        {
            "id": pc.binary_join_element_wise(row_id, pa.array(copy_R).cast(pa.string()), ":"),
            "text": table["text"],
            "doc_id": table["doc_id"],
            "window": table["window"],
            "source": table["source"],
            "specialist": inputs.attribution.attribute(key_R, copy_R, share_MN[:, row_R], seed=inputs.seed),
            "cluster": leaf_N[row_R],
            "copy": copy_R.astype(np.int32),
            "tokens": table["tokens"],
            "origin": pa.repeat(pa.scalar(origin), len(table)),
            "parent": parent,
            "style": style,
            "near_copies": table["near_copies"],
            "prefix": pa.repeat(pa.scalar(""), len(table)),
            "metadata": table["metadata"],
            ORDER: keyed_hash(key_R, seed=inputs.seed, purpose="shuffle", copy=copy_R),
        },
        schema=PIECES,
    )


def build_ids(windows: pa.Table, origin: str) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return ids (without the copy number), parent ids and styles of windows; parent and style are empty for raw windows."""
    window_id = pc.binary_join_element_wise(windows["doc_id"], windows["window"].cast(pa.string()), ":")
    if origin == "raw":
        empty = pa.repeat(pa.scalar(""), len(windows))
        return window_id, empty, empty
    rewrite = (windows["style"], *(windows[name].cast(pa.string()) for name in ("variant", "piece")))
    rewrite_id = pc.binary_join_element_wise(window_id, pc.binary_join_element_wise(*rewrite, "."), ":")
    return rewrite_id, window_id, windows["style"]


def find_shards(order_R: NDArray[np.uint64], num_shards: int) -> NDArray[np.uint64]:
    """Return (R,): the shard of each row, from its hash."""
    return np.asarray(((order_R >> np.uint64(32)) * np.uint64(num_shards)) >> np.uint64(32))


def split_by_number(table: pa.Table, number_R: NDArray[Any], count: int) -> list[pa.Table]:
    """Return one table for each number from 0 to `count - 1`: its rows, in the order of `table`; other rows are dropped."""
    sorted_R = np.argsort(number_R, kind="stable")
    bounds = np.searchsorted(number_R[sorted_R], np.arange(count + 1))
    return [_compact_dictionaries(table.take(pa.array(sorted_R[a:b]))) for a, b in itertools.pairwise(bounds)]


def _compact_dictionaries(table: pa.Table) -> pa.Table:
    """Drop dictionary entries that no row uses; otherwise each piece would carry the whole dictionary of its part."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            chunks = [_compact_dictionary(chunk) for chunk in table.column(index).chunks]
            table = table.set_column(index, field, pa.chunked_array(chunks, field.type))
    return table


def _compact_dictionary(column: pa.DictionaryArray) -> pa.DictionaryArray:
    used, index = np.unique(column.indices.to_numpy(), return_inverse=True)
    return pa.DictionaryArray.from_arrays(pa.array(index, column.indices.type), column.dictionary.take(pa.array(used)))


def merge_sorted(pieces: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Concatenate the pieces and sort their rows by hash; rows with equal hashes keep the order of the input."""
    table = pa.concat_tables([schema.empty_table(), *pieces])
    return table.take(pa.array(np.argsort(table[ORDER].to_numpy(), kind="stable"))).drop_columns(ORDER).combine_chunks()


def read_sampled_part(origin: str, name: str, inputs: ShuffleInputs) -> pa.Table:
    """Return the shard rows sampled from one part, in the order of the part."""
    pool = inputs.pools[origin]
    draws = pool.draws.read_table(f"{name}.parquet", columns=["key", "leaf", "copies"])
    copies_N = draws["copies"].to_numpy()
    if not copies_N.any():
        return PIECES.empty_table()
    windows = pool.windows.read_table(f"{name}.parquet")
    assert windows["key"].equals(draws["key"]), f"windows and draws of {name} are not aligned"
    leaf_N, previous_copies_N = draws["leaf"].to_numpy(), None
    if origin == "raw":
        if inputs.previous_draws:
            previous = inputs.previous_draws.read_table(f"{name}.parquet", columns=["copies"])
            previous_copies_N = previous["copies"].to_numpy()
        share_MN = inputs.attribution.raw_shares(name, leaf_N)
    else:
        share_MN = inputs.attribution.share_ML[:, windows["parent_leaf"].to_numpy()]  # of the leaf that had a deficit
    return build_copies(windows, leaf_N, copies_N, share_MN, inputs, origin, previous_copies_N)


def split_by_shards(tables: Iterable[pa.Table], ranges: Sequence[range], num_shards: int) -> list[pa.Table]:
    """Return the rows of the tables, one table for each range of shards; rows of shards outside the ranges are dropped."""
    range_S = np.full(num_shards, len(ranges))  # shards outside the ranges get a number that `split_by_number` drops
    for number, shards in enumerate(ranges):
        range_S[shards.start : shards.stop] = number
    pieces: list[list[pa.Table]] = [[PIECES.empty_table()] for _ in ranges]
    for table in tables:
        range_R = range_S[find_shards(table[ORDER].to_numpy(), num_shards)]
        for range_tables, rows in zip(pieces, split_by_number(table, range_R, len(ranges)), strict=True):
            range_tables.append(rows)
    return [pa.concat_tables(range_tables) for range_tables in pieces]


def write_shard(number: int, pieces: Sequence[pa.Table], inputs: ShuffleInputs) -> dict[str, Any]:
    """Write one shard; return its facts for the manifest."""
    table = merge_sorted(pieces, PIECES)
    if inputs.conditioning and number < inputs.num_prefixed_shards:
        table = add_prefixes(table, inputs.conditioning)
    facts = {
        "rows": len(table),
        "prefixed_rows": pc.sum(pc.not_equal(table["prefix"], "")).as_py() or 0,
        "tokens": pc.sum(table["tokens"]).as_py() or 0,
        "first_rows": pc.sum(pc.equal(table["copy"], 0)).as_py() or 0,
        "first_tokens": pc.sum(table["tokens"].filter(pc.equal(table["copy"], 0))).as_py() or 0,
        "tokens_by_specialist": _sum_tokens_by(table, "specialist"),
        "tokens_by_origin": _sum_tokens_by(table, "origin"),
        "tokens_by_style": _sum_tokens_by(table.filter(pc.not_equal(table["style"], "")), "style"),
    }
    name = shard_name(inputs.first_shard + number)
    size_and_checksum = inputs.output.write_table(f"{name}.parquet", table, SHARDS, facts, **WRITE_OPTIONS)
    return {**facts, **size_and_checksum}


def add_prefixes(table: pa.Table, conditioning: Conditioning) -> pa.Table:
    """Put the conditioning prefix before the text of each row that has a value, and store it in the column `prefix`."""
    field = conditioning.field
    values = table["source"].to_pylist() if field == "source" else _read_metadata_field(table["metadata"], field)
    prefix = pa.array([conditioning.template.replace("{value}", value) if value else "" for value in values], pa.string())
    text = pc.binary_join_element_wise(prefix, table["text"], "")
    table = table.set_column(table.column_names.index("text"), table.schema.field("text"), text)
    return table.set_column(table.column_names.index("prefix"), table.schema.field("prefix"), prefix)


def _read_metadata_field(metadata: pa.ChunkedArray, field: str) -> list[str]:
    """Return a metadata field of each row as one line; empty if missing or not a scalar; for `url` the host, as in MeCo."""
    values = []
    for row in metadata.to_pylist():
        value = exact_json.load(row).get(field)
        text = "" if value is None or isinstance(value, dict | list) else " ".join(str(value).split())
        values.append((_parse_host(text) or text) if field == "url" else text)
    return values


def _parse_host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # an invalid URL, such as http://[
        return ""


def read_shard_facts(folder: Folder, name: str) -> dict[str, Any]:
    """Return the facts of a shard that an earlier run wrote, as `write_shard` does. The checksum is computed from the file."""
    data = folder.read_bytes(name)
    return {**folder.read_facts(name), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sum_tokens_by(table: pa.Table, column: str) -> dict[str, int]:
    grouped = table.group_by(column).aggregate([("tokens", "sum")])
    return dict(sorted(zip(grouped[column].to_pylist(), grouped["tokens_sum"].to_pylist(), strict=True)))


def sum_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Sum several counts by name; sorted by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
