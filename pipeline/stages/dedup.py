"""Remove near-duplicates from the whole generalist corpus with datatrove's MinHash stages on Ray.

Four passes: compute the signatures of the documents in each group of parts; match documents within each band of the signatures;
join all matches into duplicate clusters; write the parts again, with one document of each duplicate cluster and, in `near_copies`,
the size of that cluster. The text is already cut into windows: a document is a sequence of consecutive windows with one id in one
part. A document that is split over several parts counts as several documents.

Shapes: N windows of a part, D documents of a group.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I32, I64
from pipeline.config import GENERALIST, Config, Dedup
from pipeline.engine import Engine
from pipeline.errors import ConfigError, InputError, one_line
from pipeline.execution.step import Step, collect_facts, map_parts, part_names, split_evenly
from pipeline.hashing import find_lowest, keyed_uniform
from pipeline.sources.parts import REPORT_EXCERPT_CHARACTERS, WRITE_OPTIONS, count_part, iter_documents, sum_part_counts
from pipeline.storage import Folder, upload_on_exit
from pipeline.tables import DOCUMENT_COUNTS, NEAR_COPIES, WINDOWS

EXCERPTS_FOLDER = "dropped"  # next to the parts
# A group of parts has one signature file per band, so this bounds the number of files for a corpus of any size.
_MAX_GROUPS = 1000
_NUM_EXCERPTS = 20
# Lines buffered per file, about 200 KB, of the files of all groups at once. datatrove's default of 5 would cost an object store a
# request per 5 lines.
_BUFFERED_LINES = 2048


def dedup_step(config: Config, prepared: Step) -> Step:
    """Build the step that keeps one document of each duplicate cluster.

    Raises:
        ConfigError: a package that MinHash needs is missing, or the language is unknown.
    """
    settings = config.dedup
    assert settings is not None
    _check_word_tokenizer(settings)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = part_names(prepared)
        inputs = DedupInputs(
            settings=settings,
            seed=config.seed,
            windows=prepared.folder,
            output=folder,
            scratch=folder.child("minhash"),
            part_groups=split_evenly(names, _MAX_GROUPS),
        )
        if set(names) <= {name.removesuffix(".parquet") for name in folder.names(".parquet")}:
            parts = collect_facts(folder, names, {})
        else:
            parts = _deduplicate(engine, inputs, names)
        inputs.scratch.remove_all()
        documents = sum(part["documents"] for part in parts)
        documents_before = sum(part["documents_before"] for part in parts)
        return {
            **{name: prepared.manifest[name] for name in ("input_files", "quarantined", "reasons")},
            "corpus": GENERALIST,
            "documents": documents,
            "dropped": documents_before - documents,
            **sum_part_counts(parts),
        }

    return Step(
        stage="dedup",
        corpus=GENERALIST,
        version=2,
        settings={"dedup": settings.identity(), "datatrove": version("datatrove"), "seed": config.seed},
        inputs={"windows": prepared},
        workdir=prepared.workdir,
        work=work,
    )


@dataclass(frozen=True)
class DedupInputs:
    """Inputs shared by all tasks."""

    settings: Dedup
    seed: int
    windows: Folder
    output: Folder
    scratch: Folder
    part_groups: Sequence[Sequence[str]]  # the names of the parts in each group


def _check_word_tokenizer(settings: Dedup) -> None:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        load_word_tokenizer(settings.language)
    except ImportError as error:
        raise ConfigError(f'dedup: {one_line(error)} Or: pip install "crispwrap[filters]"') from error
    except ValueError as error:
        raise ConfigError(
            f"dedup.language {settings.language!r}: datatrove has no word tokenizer for it; use a code such as eng or fra"
        ) from error


def _deduplicate(engine: Engine, inputs: DedupInputs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Write the parts without near-duplicates; return their facts, in order."""
    scratch = inputs.scratch
    group_names = [f"group-{number:05d}" for number in range(len(inputs.part_groups))]
    bands = [f"band-{number:03d}" for number in range(inputs.settings.buckets)]
    signed, matched, clustered = (scratch.child(name) for name in ("signed", "matched", "clustered"))
    map_parts(engine, signed, group_names, _compute_signatures, title="minhash signatures", unit="groups", shared=inputs)
    map_parts(engine, matched, bands, _match_band, title="minhash bands", unit="bands", shared=inputs)
    map_parts(engine, clustered, ["all"], _join_matches, title="minhash clusters", unit="tasks", shared=inputs)
    parts = map_parts(engine, inputs.output, names, _write_kept, title="dedup", shared=inputs)
    for _ in engine.map(_write_excerpts, ["excerpts"], title="dedup excerpts", shared=inputs):
        pass
    return parts


def _build_minhash_config(settings: Dedup, seed: int) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(
        n_grams=settings.ngrams, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes, seed=(seed + 1) % 2**32
    )


def _compute_signatures(name: str, inputs: DedupInputs) -> dict[str, Any]:
    """Compute the signatures of the documents in a group of parts."""
    from datatrove.data import Document

    from pipeline.refining.signatures import BoundedSignature

    number = int(name.rpartition("-")[2])
    num_documents: dict[str, int] = {}  # by part

    def read_documents() -> Iterator[Any]:
        for part in inputs.part_groups[number]:
            table = inputs.windows.read_table(f"{part}.parquet", columns=["doc_id", "text"])
            texts = table["text"].to_pylist()
            num_documents[part] = 0
            for identifier, rows in iter_documents(table):
                num_documents[part] += 1
                yield Document(text="".join(texts[rows]), id=identifier)

    with upload_on_exit(inputs.scratch.child("signatures")) as path:
        step = BoundedSignature(path, config=_build_minhash_config(inputs.settings, inputs.seed), language=inputs.settings.language)
        step.run(read_documents(), rank=number, world_size=len(inputs.part_groups))
    counts = pa.table({"part": list(num_documents), "documents": list(num_documents.values())}, schema=DOCUMENT_COUNTS)
    facts = {"documents": sum(num_documents.values())}
    inputs.scratch.child("signed").write_table(f"{name}.parquet", counts, DOCUMENT_COUNTS, facts)
    return facts


def _match_band(name: str, inputs: DedupInputs) -> dict[str, Any]:
    """Find the pairs of documents that agree on one band of their signatures."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    from pipeline.refining.fixed_listing import FixedListingFolder

    band = int(name.rpartition("-")[2])
    names = [f"bucket_{band:03d}/{number:05d}.minhash.sig" for number in range(len(inputs.part_groups))]
    signatures = FixedListingFolder(inputs.scratch.child("signatures"), names)
    with upload_on_exit(inputs.scratch.child("pairs")) as path:
        step = MinhashDedupBuckets(
            signatures, path, config=_build_minhash_config(inputs.settings, inputs.seed), lines_to_buffer=_BUFFERED_LINES
        )
        step.run(None, rank=band, world_size=inputs.settings.buckets)
    inputs.scratch.child("matched").write_table(f"{name}.parquet", DOCUMENT_COUNTS.empty_table(), DOCUMENT_COUNTS, {})
    return {}


def _join_matches(name: str, inputs: DedupInputs) -> dict[str, Any]:
    """Join matching documents into duplicate clusters; write the documents to remove, the cluster ids and the cluster sizes."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster

    from pipeline.refining.fixed_listing import FixedListingFolder

    pairs = FixedListingFolder(inputs.scratch.child("pairs"), [f"{band:05d}_00.dups" for band in range(inputs.settings.buckets)])
    config = _build_minhash_config(inputs.settings, inputs.seed)
    with upload_on_exit(inputs.scratch.child("clusters")) as path:
        step = MinhashDedupCluster(
            pairs, path, config=config, save_cluster_id=True, save_cluster_size=True, lines_to_buffer=_BUFFERED_LINES
        )
        step.run()
    inputs.scratch.child("clustered").write_table(f"{name}.parquet", DOCUMENT_COUNTS.empty_table(), DOCUMENT_COUNTS, {})
    return {}


@dataclass(frozen=True)
class _DuplicateClusters:
    """The duplicate clusters of a group; a document's index is its number in the group."""

    removed_D: NDArray[np.bool_]
    size_D: I32
    cluster_D: I64  # -1: no near-duplicates

    @classmethod
    def read(cls, inputs: DedupInputs, number: int) -> "_DuplicateClusters":
        """Read the duplicate clusters of the group with this number."""
        documents = inputs.scratch.child("signed").read_facts(f"group-{number:05d}.parquet")["documents"]
        folder = inputs.scratch.child("clusters")
        removed_D, size_D, cluster_D = np.zeros(documents, bool), np.ones(documents, np.int32), np.full(documents, -1, np.int64)

        def read_numbers(kind: str) -> NDArray[np.uint32]:
            name = f"{number:06d}.{kind}"
            return np.frombuffer(folder.read_bytes(name), "<u4") if folder.exists(name) else np.empty(0, np.uint32)

        removed_D[read_numbers("remove")] = True
        for kind, values_D in (("sizes", size_D), ("clusters", cluster_D)):
            pairs = read_numbers(kind).reshape(-1, 2)
            values_D[pairs[:, 0]] = pairs[:, 1]
        return cls(removed_D, size_D, cluster_D)


def _locate_part(inputs: DedupInputs, part: str) -> tuple[int, int]:
    """Return the number of the part's group, and the number that its first document has in that group."""
    number = next(number for number, group in enumerate(inputs.part_groups) if part in group)
    counts = inputs.scratch.child("signed").read_table(f"group-{number:05d}.parquet")
    position = counts["part"].to_pylist().index(part)
    return number, int(counts["documents"].to_numpy()[:position].sum())


def _write_kept(name: str, inputs: DedupInputs) -> dict[str, Any]:
    """Write a part without the removed documents, and with `near_copies` set; return its facts."""
    number, first = _locate_part(inputs, name)
    clusters = _DuplicateClusters.read(inputs, number)
    table = inputs.windows.read_table(f"{name}.parquet")
    lengths = [rows.stop - rows.start for _, rows in iter_documents(table)]
    of_part = slice(first, first + len(lengths))
    copies_N = np.repeat(clusters.size_D[of_part], lengths)
    table = table.set_column(table.schema.get_field_index("near_copies"), "near_copies", pa.array(copies_N, pa.int32()))
    table = table.filter(pa.array(np.repeat(~clusters.removed_D[of_part], lengths)))
    facts = {
        **count_part(table),
        "documents_before": len(lengths),
        "documents": int((~clusters.removed_D[of_part]).sum()),
    }
    inputs.output.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts


def _write_excerpts(_name: str, inputs: DedupInputs) -> None:
    """Write excerpts of up to 20 removed documents, each with the document that is kept in its place."""
    removed: dict[int, tuple[int, int]] = {}  # by duplicate cluster: (group, document)
    for number in range(len(inputs.part_groups)):
        clusters = _DuplicateClusters.read(inputs, number)
        for document in np.flatnonzero(clusters.removed_D).tolist():
            removed.setdefault(int(clusters.cluster_D[document]), (number, document))
        if len(removed) >= 50 * _NUM_EXCERPTS:
            break
    keys = np.array(sorted(removed), np.uint64)
    chosen = keys[find_lowest(keyed_uniform(keys, seed=0, purpose="dedup.examples"), _NUM_EXCERPTS)].tolist()
    kept: dict[int, tuple[int, int, int]] = {}  # by duplicate cluster: (group, document, size of the cluster)
    for number in range(len(inputs.part_groups)):
        if len(kept) == len(chosen):
            break
        clusters = _DuplicateClusters.read(inputs, number)
        for document in np.flatnonzero(np.isin(clusters.cluster_D, chosen) & ~clusters.removed_D).tolist():
            kept[int(clusters.cluster_D[document])] = (number, document, int(clusters.size_D[document]))
    rows = []
    for cluster in chosen:
        group, document, size = kept[cluster]
        identifier, text = _read_document(inputs, *removed[cluster])
        kept_id, kept_text = _read_document(inputs, group, document)
        rows.append({"id": identifier, "kept_id": kept_id, "near_copies": size, "text": text, "kept_text": kept_text})
    inputs.output.child(EXCERPTS_FOLDER).write_table("examples.parquet", pa.Table.from_pylist(rows, NEAR_COPIES), NEAR_COPIES)


def _read_document(inputs: DedupInputs, group: int, document: int) -> tuple[str, str]:
    """Return the id and the first 500 characters of a document in a group.

    Raises:
        InputError: the group has fewer documents than its signatures.
    """
    counts = inputs.scratch.child("signed").read_table(f"group-{group:05d}.parquet").to_pylist()
    for row in counts:
        if document < row["documents"]:
            table = inputs.windows.read_table(f"{row['part']}.parquet", columns=["doc_id", "text"])
            identifier, rows = next(itertools.islice(iter_documents(table), document, None))
            return identifier, "".join(table["text"].to_pylist()[rows])[:REPORT_EXCERPT_CHARACTERS]
        document -= row["documents"]
    raise InputError(
        f"group {group} of {inputs.scratch.url} has fewer documents than its signatures; delete that folder and run again"
    )
