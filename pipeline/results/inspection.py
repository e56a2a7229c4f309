"""Looking into a run: a cluster, where a document went and why, clusters by words or by example text (`jobs/look.py`).

Everything is read from what the stages left; nothing is made. Parts are read one after the other, those that may answer only.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.clustering.tree import Tree, read_tree
from pipeline.config import GENERALIST
from pipeline.embedders import load_cached_embedder
from pipeline.errors import ConfigError, shown
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, hash_chosen, part_names
from pipeline.hashing import keyed_hash
from pipeline.results.cluster_names import Name, names_of
from pipeline.stages.scan import QUARANTINED
from pipeline.stages.score import read_scores
from pipeline.stages.shards import shard_name, shard_of
from pipeline.terminal.formatting import percent

_PARTS = 64  # that are read for examples and words, chosen by hash
_LISTED = 20  # clusters of a list
_NEIGHBOURS = 5
_EXCERPT = 400  # characters
_percent = functools.partial(percent, digits=2)


@dataclass(frozen=True)
class Found:
    """A window: its row in a part."""

    part: str
    row: int
    window: int
    key: int
    tokens: int


class Inspection:
    """What a run says of its clusters and documents.

    Raises:
        ConfigError: the run has not come as far as its weights.
    """

    def __init__(self, graph: PipelineGraph) -> None:
        self.run = graph
        self.weighted = graph.step("weights")
        if not self.weighted.done:
            raise ConfigError("the run has no weights yet, and so no clusters to look at; run jobs/weights.py first")
        folder = self.weighted.folder
        self.names: Mapping[int, Name] = names_of(graph)
        self.mixture = folder.read_table("mixture.parquet").to_pydict()
        self.asked: dict[tuple[str, int], dict[str, Any]] = {
            (row["specialist"], row["leaf"]): row for row in folder.read_table("specialists.parquet").to_pylist()
        }
        sampled = graph.step("sample")
        self.sampled = sampled if sampled.done else None
        self.allocation = self.sampled.folder.read_table("allocation.parquet").to_pydict() if self.sampled else None
        self.tree: Tree = read_tree(graph.step("cluster").folder)

    @property
    def num_leaves(self) -> int:
        return len(self.mixture["leaf"])

    def clusters(self, leaves: Sequence[int] | None = None) -> Iterator[RenderableType]:
        """Some clusters; by default those that gain and lost most.

        The target is of the new corpus: what the specialists ask for, and the natural share.
        """
        if leaves is None:
            moved_L = np.array(self.mixture["p_target"]) - np.array(self.mixture["p_generalist"])
            order = np.argsort(-moved_L, kind="stable")
            leaves = (
                [int(leaf) for leaf in (*order[: _LISTED // 2], *order[-_LISTED // 2 :])]
                if len(order) > _LISTED
                else order.tolist()
            )
        table = Table(box=None, pad_edge=False)
        allocated_L = (
            np.array(self.allocation["allocated_tokens"]) + np.array(self.allocation["rewritten_tokens"])
            if self.allocation
            else None
        )
        headings = ("cluster", "what sets its text apart", "windows", "generalist", "target", "× generalist")
        for heading in (*headings, *(["planned"] if allocated_L is not None else [])):
            table.add_column(heading, justify="left" if heading.startswith("what") else "right")
        for leaf in leaves:
            before, after = self.mixture["p_generalist"][leaf], self.mixture["p_target"][leaf]
            change = f"{after / before:.2f}×" if before else ""
            windows = f"{self.mixture['windows'][leaf]:,}"
            planned = [_percent(allocated_L[leaf] / max(1e-9, allocated_L.sum()))] if allocated_L is not None else []
            table.add_row(str(leaf), self.name(leaf), windows, _percent(before), _percent(after), change, *planned)
        yield table

    def name(self, leaf: int) -> str:
        return self.names.get(leaf, Name()).shown

    def full_name(self, leaf: int) -> str:
        """The title with the terms behind it, where there are both."""
        name = self.names.get(leaf, Name())
        return self.name(leaf) + (f" ({name.terms})" if name.title and name.terms else "")

    def cluster(self, leaf: int, num_examples: int) -> Iterator[RenderableType]:
        """One cluster: shares, neighbours, text.

        Raises:
            ConfigError: there is none of that number.
        """
        if not 0 <= leaf < self.num_leaves:
            raise ConfigError(f"--cluster {leaf}: there are clusters 0 to {self.num_leaves - 1}")
        yield Text(f"cluster {leaf}: {self.full_name(leaf)}")
        yield Text(
            f"{self.mixture['windows'][leaf]:,} windows, {self.mixture['tokens'][leaf]:,} tokens: "
            f"{_percent(self.mixture['p_generalist'][leaf])} of the generalist corpus"
        )
        for name in self.run.config.specialists:
            row = self.asked.get((name, leaf))
            if row is None:
                yield Text(f"{name}: nothing of its sample is here")
                continue
            interval = f" (90%: {_percent(row['p_low'])} to {_percent(row['p_high'])})" if np.isfinite(row["p_low"]) else ""
            yield Text(
                f"{name}: {row['windows']:,} windows of its sample, {_percent(row['p_raw'])} of it; "
                f"asks for {_percent(row['p'])}{interval}"
            )
        yield Text(f"target: {_percent(self.mixture['p_target'][leaf])} of the new corpus")
        if self.allocation:
            planned, deficit = self.allocation["allocated_tokens"][leaf], self.allocation["deficit_tokens"][leaf]
            missing = f", {deficit:,.0f} tokens fewer than asked for" if deficit >= 1 else ""
            yield Text(f"planned: {planned:,.0f} tokens, {self.allocation['epochs'][leaf]:.2f} passes over its text{missing}")
        yield Text("nearest: " + "; ".join(f"{near} {self.name(near)}" for near in self._neighbours(leaf)))
        for corpus in (GENERALIST, *self.run.config.specialists):
            for text in self._examples(corpus, leaf, num_examples):
                yield Text(f"\n[{corpus}] {_excerpt(text)}")

    def _neighbours(self, leaf: int) -> list[int]:
        centroid_LD = self.tree.centroid_VD[self.tree.leaf_nodes]
        sq_dist_L = ((centroid_LD - centroid_LD[leaf]) ** 2).sum(axis=1)
        return [int(near) for near in np.argsort(sq_dist_L, kind="stable") if near != leaf][:_NEIGHBOURS]

    def _examples(self, corpus: str, leaf: int, count: int) -> list[str]:
        texts: list[str] = []
        assigned, windows = self.run.step("assign", corpus), self.run.windows(corpus)
        for name in hash_chosen(part_names(assigned), _PARTS, seed=self.run.config.seed, purpose="inspect.parts"):
            rows = np.flatnonzero(assigned.folder.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy() == leaf)
            if len(rows):
                table = windows.folder.read_table(f"{name}.parquet", columns=["text"])
                texts += table["text"].take(rows[: count - len(texts)]).to_pylist()
            if len(texts) >= count:
                break
        return texts

    def find(self, words: str) -> Iterator[RenderableType]:
        """Clusters whose text has all of some words: by their titles and terms, then by how much of their text has them.

        Text is read of so many parts at most, chosen by hash.
        """
        wanted = words.lower().split()
        told = {leaf: f"{name.title} {name.terms}".lower() for leaf, name in self.names.items()}
        named = [leaf for leaf in sorted(told) if all(word in told[leaf] for word in wanted)]
        held, of_leaf = Counter[int](), Counter[int]()
        assigned, windows = self.run.step("assign", GENERALIST), self.run.windows(GENERALIST)
        parts = part_names(assigned)
        read = hash_chosen(parts, _PARTS, seed=self.run.config.seed, purpose="inspect.parts")
        for name in read:
            leaf_N = assigned.folder.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
            text = windows.folder.read_table(f"{name}.parquet", columns=["text"])["text"]
            has_N = np.ones(len(leaf_N), bool)
            for word in wanted:
                has_N &= pc.match_substring(text, word, ignore_case=True).to_numpy()
            of_leaf.update(leaf_N[leaf_N >= 0].tolist())
            held.update(leaf_N[has_N & (leaf_N >= 0)].tolist())
        shares = {leaf: held[leaf] / of_leaf[leaf] for leaf in held}
        order = sorted(shares.keys() | set(named), key=lambda leaf: (leaf not in named, -shares.get(leaf, 0.0), leaf))
        of_parts = f" of {len(read)} parts out of {len(parts):,}" if len(read) < len(parts) else ""
        yield Text(f"{sum(held.values()):,} of {sum(of_leaf.values()):,} windows{of_parts} have: {' '.join(wanted)}")
        if order:
            yield from self.clusters(order[:_LISTED])

    def like(self, text: str, num_examples: int) -> Iterator[RenderableType]:
        """The cluster that a text would be in."""
        fitted = [step for step in self.run.steps if step.stage == "embedder"]
        embedder = load_cached_embedder(self.run.config.embed, fitted[0].folder.url if fitted else None)
        x_ND = embedder.encode([text]).astype(np.float16)
        if not np.isfinite(x_ND).all():
            raise ConfigError("--like: the embedder has no vector for this text, as of a window without a word that it knows")
        leaf = int(self.tree.descend(x_ND)[0][0])
        yield from self.cluster(leaf, num_examples)

    def document(self, identifier: str) -> Iterator[RenderableType]:
        """Where a document went, and why.

        Raises:
            ConfigError: no corpus of the run has it.
        """
        known = False
        for corpus in (GENERALIST, *self.run.config.specialists):
            prepared, kept = self.run.step("prepare", corpus), self.run.windows(corpus)
            quarantined = self._quarantined(prepared, identifier)
            yield from (Text(f"{corpus}: {line}") for line in quarantined)
            read = self._windows_of(prepared, identifier)
            windows = read if kept is prepared else self._windows_of(kept, identifier)
            known = known or bool(quarantined or read)
            if read and not windows:
                yield Text(f"{corpus}: read, and left out by {self._left_out_by(corpus, identifier)}")
            for found in windows:
                text = kept.folder.read_table(f"{found.part}.parquet", columns=["text"])["text"][found.row].as_py()
                yield Text(f"\n{corpus}, window {found.window}, {found.tokens} tokens: {_excerpt(text)}")
                yield from self._went(corpus, found)
        if not known:
            raise ConfigError(
                f"--document {identifier}: no window and no quarantined row has this id; steps of prepare may have dropped it, or "
                "it is in no input file"
            )

    def window(self, name: str) -> Iterator[RenderableType]:
        """A window, named as id of its document and number: where it went, and the whole of its text.

        Raises:
            ConfigError: the name is none, or no window has it.
        """
        identifier, colon, number = name.rpartition(":")
        if not colon or not number.isdecimal():
            raise ConfigError(f"--window {name}: give the id of a document, a colon, and the number of its window, from 0")
        known: list[str] = []
        for corpus in (GENERALIST, *self.run.config.specialists):
            kept = self.run.windows(corpus)
            windows = self._windows_of(kept, identifier)
            known += [f"0 to {windows[-1].window} in {corpus}"] if windows else []
            for found in windows:
                if found.window == int(number):
                    (row,) = kept.folder.read_table(f"{found.part}.parquet").slice(found.row, 1).to_pylist()
                    near = f", one of {row['near_copies']:,} near copies" if row["near_copies"] > 1 else ""
                    yield Text(shown(f"{corpus}, {name}, from {row['source']}, {found.tokens} tokens{near}"))
                    yield from self._went(corpus, found)
                    yield Text("\n" + shown(row["text"]))
                    return
        if known:
            raise ConfigError(f"--window {name}: there are windows {', '.join(known)}")
        raise ConfigError(f"--window {name}: no window is of this document; --document {identifier} says what became of it")

    def _went(self, corpus: str, found: Found) -> Iterator[RenderableType]:
        assigned = self.run.step("assign", corpus).folder.read_table(f"{found.part}.parquet")
        leaf, sq_dist = assigned["leaf"][found.row].as_py(), assigned["sq_dist"][found.row].as_py()
        if leaf < 0:
            yield Text("  the embedder gave no finite vector, so it is in no cluster and is never drawn")
            return
        yield Text(f"  in cluster {leaf} ({self.name(leaf)}), squared distance {sq_dist:.3f} from its centre")
        if corpus != GENERALIST:
            yield Text("  it asks; only text of the generalist corpus is drawn")
            return
        scored = [step for step in self.run.steps if step.stage == "score"]
        if scored:
            said = zip(self.run.config.specialists, read_scores(scored[0].folder, found.part)[found.row], strict=True)
            yield Text("  score: " + ", ".join(f"{name} {score:.2f}" for name, score in said))
        if not self.sampled:
            yield Text("  nothing is drawn yet")
            return
        draws = self.sampled.folder.child("draws").read_table(f"{found.part}.parquet")
        expected, copies = draws["expected"][found.row].as_py(), draws["copies"][found.row].as_py()
        asked = self.mixture["weight"][leaf]
        yield Text(
            f"  its cluster is asked for {asked:.2f} times; of this window {expected:.2f} copies are expected, {copies} drawn"
        )
        if copies:
            yield Text("  in " + ", ".join(self._shards_of(found.key, copies)))

    def _shards_of(self, key: int, copies: int) -> list[str]:
        assert self.sampled
        shards = self.sampled.manifest["shards"]
        key_R, copy_R = np.full(copies, key, np.uint64), np.arange(copies)
        order_R = keyed_hash(key_R, seed=self.run.config.seed, purpose="shuffle", copy=copy_R)
        return [f"{shard_name(int(shard))}.parquet (copy {copy})" for copy, shard in enumerate(shard_of(order_R, len(shards)))]

    def _windows_of(self, step: Step, identifier: str) -> list[Found]:
        found = []
        for name in part_names(step):
            table = step.folder.read_table(f"{name}.parquet", columns=["doc_id", "window", "key", "tokens"])
            for row in np.flatnonzero(pc.equal(table["doc_id"], identifier).to_numpy()):
                window, key, tokens = (table[column][int(row)].as_py() for column in ("window", "key", "tokens"))
                found.append(Found(name, int(row), window, key, tokens))
        return sorted(found, key=lambda one: one.window)

    def _left_out_by(self, corpus: str, identifier: str) -> str:
        deduplicated = [step for step in self.run.steps if (step.stage, step.corpus) == ("dedup", corpus)]
        if deduplicated and not self._windows_of(deduplicated[0], identifier):
            return "dedup: another document is nearly like it, and stays"
        return "decontaminate: it holds held-out text (see contaminated/ in the folder of that step)"

    def _quarantined(self, prepared: Step, identifier: str) -> list[str]:
        folder = prepared.folder.child(QUARANTINED)
        rows = []
        for name in folder.names(".parquet"):
            table = folder.read_table(name)
            rows += table.filter(pc.equal(table["id"], identifier)).to_pylist()
        return [f"row {row['row']} of {row['file']} is in quarantine: {row['reason']}, {row['detail']}" for row in rows]


def _excerpt(text: str) -> str:
    line = shown(" ".join(text.split()))
    return line[:_EXCERPT] + (" …" if len(line) > _EXCERPT else "")
