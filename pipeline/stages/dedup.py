"""Remove near-duplicates from the whole generalist corpus with datatrove's MinHash stages on Ray.

Four passes: compute the signatures of the documents in each group of parts; match documents within each band of the signatures;
join all matches into duplicate clusters; write the parts again, with one document of each duplicate cluster and, in `near_copies`,
the size of that cluster. The text is already cut into windows: a document is a run of consecutive windows with one id in one part.
A document that is split over several parts counts as several documents.

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
from pipeline.execution.step import Step, groups, map_parts, part_names, with_facts
from pipeline.hashing import keyed_uniform
from pipeline.sources.parts import SHOWN_CHARACTERS, WRITE_OPTIONS, counts, documents_of, totals
from pipeline.storage import Folder, upload_on_exit
from pipeline.tables import NEAR_COPIES, SIGNED, WINDOWS

EXAMPLES = "dropped"  # folder of examples, next to the parts
# A group of parts has one signature file per band, so this bounds the number of files for a corpus of any size.
_MOST_GROUPS = 1000
_NUM_EXAMPLES = 20
# Lines buffered per file, about 200 KB, of the files of all groups at once. datatrove's default of 5 would cost an object store a
# request per 5 lines.
_LINES = 2048


def dedup_step(config: Config, prepared: Step) -> Step:
    """Build the step that keeps one document of each duplicate cluster.

    Raises:
        ConfigError: a package that MinHash needs is missing, or the language is unknown.
    """
    settings = config.dedup
    assert settings is not None
    _check(settings)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = part_names(prepared)
        scratch = folder.child("minhash")
        runs = groups(names, _MOST_GROUPS)
        job = _Job(settings, config.seed, prepared.folder, folder, scratch, runs)
        if set(names) <= {name.removesuffix(".parquet") for name in folder.names(".parquet")}:
            parts = with_facts(folder, names, {})
        else:
            parts = _deduplicated(engine, job, names)
        scratch.remove_all()
        documents = sum(part["documents"] for part in parts)
        before = sum(part["documents_before"] for part in parts)
        return {
            **{name: prepared.manifest[name] for name in ("input_files", "quarantined", "reasons")},
            "corpus": GENERALIST,
            "documents": documents,
            "dropped": before - documents,
            **totals(parts),
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
class _Job:
    """Inputs shared by all tasks."""

    settings: Dedup
    seed: int
    windows: Folder
    output: Folder
    scratch: Folder
    runs: Sequence[Sequence[str]]


def _check(settings: Dedup) -> None:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        load_word_tokenizer(settings.language)
    except ImportError as error:
        raise ConfigError(f'dedup: {one_line(error)} Or: pip install "crispwrap[filters]"') from error
    except ValueError as error:
        raise ConfigError(
            f"dedup.language {settings.language!r}: datatrove has no words for it; use a code such as eng, fra"
        ) from error


def _deduplicated(engine: Engine, job: _Job, names: Sequence[str]) -> list[dict[str, Any]]:
    """Write the parts without near-duplicates; return their facts, in order."""
    runs = [f"group-{number:05d}" for number in range(len(job.runs))]
    bands = [f"band-{number:03d}" for number in range(job.settings.buckets)]
    map_parts(engine, job.scratch.child("signed"), runs, _sign, title="minhash", unit="groups", shared=(job,))
    map_parts(engine, job.scratch.child("matched"), bands, _match, title="minhash bands", unit="bands", shared=(job,))
    map_parts(engine, job.scratch.child("clustered"), ["all"], _cluster, title="minhash clusters", unit="runs", shared=(job,))
    parts = map_parts(engine, job.output, names, _keep, title="dedup", shared=(job,))
    for _ in engine.map(_write_examples, ["examples"], title="examples", shared=(job,)):
        pass
    return parts


def _minhash(settings: Dedup, seed: int) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(
        n_grams=settings.ngrams, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes, seed=(seed + 1) % 2**32
    )


def _sign(name: str, job: _Job) -> dict[str, Any]:
    """Compute the signatures of the documents in a group of parts."""
    from datatrove.data import Document

    from pipeline.refining.signatures import BoundedSignature

    number = int(name.rpartition("-")[2])
    signed: dict[str, int] = {}

    def documents() -> Iterator[Any]:
        for part in job.runs[number]:
            table = job.windows.read_table(f"{part}.parquet", columns=["doc_id", "text"])
            texts = table["text"].to_pylist()
            signed[part] = 0
            for identifier, rows in documents_of(table):
                signed[part] += 1
                yield Document(text="".join(texts[rows]), id=identifier)

    with upload_on_exit(job.scratch.child("signatures")) as place:
        step = BoundedSignature(place, config=_minhash(job.settings, job.seed), language=job.settings.language)
        step.run(documents(), rank=number, world_size=len(job.runs))
    counted = pa.table({"part": list(signed), "documents": list(signed.values())}, schema=SIGNED)
    facts = {"documents": sum(signed.values())}
    job.scratch.child("signed").write_table(f"{name}.parquet", counted, SIGNED, facts)
    return facts


def _match(name: str, job: _Job) -> dict[str, Any]:
    """Find the pairs of documents that agree on one band of their signatures."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    from pipeline.refining.folders import NamedFiles

    band = int(name.rpartition("-")[2])
    names = [f"bucket_{band:03d}/{number:05d}.minhash.sig" for number in range(len(job.runs))]
    signatures = NamedFiles(job.scratch.child("signatures"), names)
    with upload_on_exit(job.scratch.child("pairs")) as place:
        step = MinhashDedupBuckets(signatures, place, config=_minhash(job.settings, job.seed), lines_to_buffer=_LINES)
        step.run(None, rank=band, world_size=job.settings.buckets)
    job.scratch.child("matched").write_table(f"{name}.parquet", SIGNED.empty_table(), SIGNED, {})
    return {}


def _cluster(name: str, job: _Job) -> dict[str, Any]:
    """Join matching documents into duplicate clusters; write which documents to remove, the cluster ids and the cluster sizes."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster

    from pipeline.refining.folders import NamedFiles

    pairs = NamedFiles(job.scratch.child("pairs"), [f"{band:05d}_00.dups" for band in range(job.settings.buckets)])
    config = _minhash(job.settings, job.seed)
    with upload_on_exit(job.scratch.child("clusters")) as place:
        MinhashDedupCluster(pairs, place, config=config, save_cluster_id=True, save_cluster_size=True, lines_to_buffer=_LINES).run()
    job.scratch.child("clustered").write_table(f"{name}.parquet", SIGNED.empty_table(), SIGNED, {})
    return {}


@dataclass(frozen=True)
class _Clusters:
    """The duplicate clusters of a group; a document's index is its number in the group."""

    removed_D: NDArray[np.bool_]
    size_D: I32
    cluster_D: I64  # -1: no near-duplicates

    @classmethod
    def read(cls, job: _Job, number: int) -> "_Clusters":
        """Read the duplicate clusters of the group with this number."""
        documents = job.scratch.child("signed").read_facts(f"group-{number:05d}.parquet")["documents"]
        folder = job.scratch.child("clusters")
        removed_D, size_D, cluster_D = np.zeros(documents, bool), np.ones(documents, np.int32), np.full(documents, -1, np.int64)

        def numbers(kind: str) -> NDArray[np.uint32]:
            name = f"{number:06d}.{kind}"
            return np.frombuffer(folder.read_bytes(name), "<u4") if folder.exists(name) else np.empty(0, np.uint32)

        removed_D[numbers("remove")] = True
        for kind, values_D in (("sizes", size_D), ("clusters", cluster_D)):
            pairs = numbers(kind).reshape(-1, 2)
            values_D[pairs[:, 0]] = pairs[:, 1]
        return cls(removed_D, size_D, cluster_D)


def _group_of(job: _Job, part: str) -> tuple[int, int]:
    """Return the number of the part's group, and the number that its first document has in that group."""
    number = next(number for number, run in enumerate(job.runs) if part in run)
    counted = job.scratch.child("signed").read_table(f"group-{number:05d}.parquet")
    at = counted["part"].to_pylist().index(part)
    return number, int(counted["documents"].to_numpy()[:at].sum())


def _keep(name: str, job: _Job) -> dict[str, Any]:
    """Write a part without the removed documents, and with `near_copies` set; return its facts."""
    number, first = _group_of(job, name)
    clusters = _Clusters.read(job, number)
    table = job.windows.read_table(f"{name}.parquet")
    lengths = [rows.stop - rows.start for _, rows in documents_of(table)]
    mine = slice(first, first + len(lengths))
    copies_N = np.repeat(clusters.size_D[mine], lengths)
    table = table.set_column(table.schema.get_field_index("near_copies"), "near_copies", pa.array(copies_N, pa.int32()))
    table = table.filter(pa.array(np.repeat(~clusters.removed_D[mine], lengths)))
    facts = {
        **counts(table),
        "documents_before": len(lengths),
        "documents": int((~clusters.removed_D[mine]).sum()),
    }
    job.output.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts


def _write_examples(_name: str, job: _Job) -> None:
    """Write up to 20 removed documents as examples, each with the document that is kept in its place."""
    chosen: dict[int, tuple[int, int]] = {}  # duplicate cluster: (group, removed document)
    for number in range(len(job.runs)):
        clusters = _Clusters.read(job, number)
        for document in np.flatnonzero(clusters.removed_D).tolist():
            chosen.setdefault(int(clusters.cluster_D[document]), (number, document))
        if len(chosen) >= 50 * _NUM_EXAMPLES:
            break
    keys = np.array(sorted(chosen), np.uint64)
    order = np.argsort(keyed_uniform(keys, seed=0, purpose="dedup.examples"), kind="stable")[:_NUM_EXAMPLES]
    picked = [int(cluster) for cluster in keys[order]]
    kept: dict[int, tuple[int, int, int]] = {}
    for number in range(len(job.runs)):
        if len(kept) == len(picked):
            break
        clusters = _Clusters.read(job, number)
        for document in np.flatnonzero(np.isin(clusters.cluster_D, picked) & ~clusters.removed_D).tolist():
            kept[int(clusters.cluster_D[document])] = (number, document, int(clusters.size_D[document]))
    rows = []
    for cluster in picked:
        (identifier, text), (kept_id, kept_text) = _document(job, *chosen[cluster]), _document(job, *kept[cluster][:2])
        rows.append({"id": identifier, "kept_id": kept_id, "near_copies": kept[cluster][2], "text": text, "kept_text": kept_text})
    job.output.child(EXAMPLES).write_table("examples.parquet", pa.Table.from_pylist(rows, NEAR_COPIES), NEAR_COPIES)


def _document(job: _Job, number: int, document: int) -> tuple[str, str]:
    """Return the id and the first 500 characters of a document in a group.

    Raises:
        InputError: the group has fewer documents than its signatures.
    """
    counted = job.scratch.child("signed").read_table(f"group-{number:05d}.parquet").to_pylist()
    for row in counted:
        if document < row["documents"]:
            table = job.windows.read_table(f"{row['part']}.parquet", columns=["doc_id", "text"])
            identifier, rows = next(itertools.islice(documents_of(table), document, None))
            return identifier, "".join(table["text"].to_pylist()[rows])[:SHOWN_CHARACTERS]
        document -= row["documents"]
    raise InputError(
        f"group {number} of {job.scratch.url} has fewer documents than its signatures; delete the folder and run again"
    )
