"""Inspect a run: a cluster, what happened to a document and why, clusters by words or by example text (`crispwrap inspect`).

Everything is read from the outputs of the stages; nothing is computed or written. Parts are read one after the other, and only
those that may contain the answer.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.config import GENERALIST
from pipeline.embedders import load_cached_embedder
from pipeline.errors import ConfigError, replace_controls
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.execution.step import Step, choose_by_hash, part_names
from pipeline.hashing import keyed_hash
from pipeline.results.cluster_names import ClusterName
from pipeline.results.run_results import RunResults
from pipeline.stages.prepare_scan import QUARANTINE_FOLDER
from pipeline.stages.score import read_scores
from pipeline.stages.shards import find_shards, shard_name
from pipeline.terminal.formatting import format_percent

_MAX_PARTS_READ = 64  # for examples and words, chosen by hash
_MAX_LISTED_CLUSTERS = 20
_NUM_NEIGHBOURS = 5
_EXCERPT_CHARACTERS = 400
_format_percent = functools.partial(format_percent, digits=2)


@dataclass(frozen=True)
class WindowLocation:
    """A window and its row in a part."""

    part: str
    row: int
    window: int
    key: int
    tokens: int


class Inspection:
    """Answers questions about the clusters and documents of a run.

    Raises:
        ConfigError: the weights of the run are not done.
    """

    def __init__(self, graph: PipelineGraph) -> None:
        self.graph = graph
        self.results = RunResults(graph)

    def list_clusters(self, leaves: Sequence[int] | None = None) -> Iterator[RenderableType]:
        """List clusters, by default those whose share grew and shrank most.

        The target is the share in the new corpus: the specialists' mixture with the natural share.
        """
        results = self.results
        if leaves is None:
            order = np.argsort(results.before_L - results.target_L, kind="stable")
            leaves = (
                [int(leaf) for leaf in (*order[: _MAX_LISTED_CLUSTERS // 2], *order[-_MAX_LISTED_CLUSTERS // 2 :])]
                if len(order) > _MAX_LISTED_CLUSTERS
                else order.tolist()
            )
        table = Table(box=None, pad_edge=False)
        headings = ("cluster", "name", "windows", "generalist", "target", "× generalist")
        for heading in (*headings, *(["allocated"] if results.allocation else [])):
            table.add_column(heading, justify="left" if heading == "name" else "right")
        for leaf in leaves:
            before, target = results.before_L[leaf], results.target_L[leaf]
            change = f"{target / before:.2f}×" if before else ""
            allocated = [_format_percent(results.after_L[leaf])] if results.allocation else []
            table.add_row(
                str(leaf),
                results.get_name(leaf),
                f"{results.windows_L[leaf]:,}",
                _format_percent(before),
                _format_percent(target),
                change,
                *allocated,
            )
        yield table

    def _get_full_name(self, leaf: int) -> str:
        """The title, followed by the terms in parentheses if there are both."""
        name = self.results.names.get(leaf, ClusterName())
        return name.label + (f" ({name.terms})" if name.title and name.terms else "")

    def describe_cluster(self, leaf: int, num_examples: int) -> Iterator[RenderableType]:
        """Describe one cluster: shares, neighbours, examples.

        Raises:
            ConfigError: there is no cluster of that number.
        """
        results = self.results
        if not 0 <= leaf < results.num_leaves:
            raise ConfigError(f"--cluster {leaf}: not a cluster; give a number from 0 to {results.num_leaves - 1}")
        yield Text(f"cluster {leaf}: {self._get_full_name(leaf)}")
        yield Text(
            f"{results.windows_L[leaf]:,} windows, {results.tokens_L[leaf]:,} tokens: "
            f"{_format_percent(results.before_L[leaf])} of the generalist corpus"
        )
        for name in self.graph.config.specialists:
            row = results.specialist_rows[name].get(leaf)
            if row is None:
                yield Text(f"{name}: no window of its sample is in this cluster")
                continue
            interval = (
                f" (90%: {_format_percent(row['p_low'])} to {_format_percent(row['p_high'])})" if np.isfinite(row["p_low"]) else ""
            )
            yield Text(
                f"{name}: {row['windows']:,} windows, {_format_percent(row['p_raw'])} of its sample; "
                f"estimated share {_format_percent(row['p'])}{interval}"
            )
        yield Text(f"target: {_format_percent(results.target_L[leaf])} of the new corpus")
        if allocation := results.allocation:
            missing = f", deficit {allocation.deficit_L[leaf]:,.0f} tokens" if allocation.deficit_L[leaf] >= 1 else ""
            yield Text(f"allocation: {allocation.tokens_L[leaf]:,.0f} tokens, {allocation.epochs_L[leaf]:.2f} epochs{missing}")
        yield Text(
            "nearest clusters: " + "; ".join(f"{near} {self.results.get_name(near)}" for near in self._find_neighbours(leaf))
        )
        for corpus in (GENERALIST, *self.graph.config.specialists):
            for text in self._read_examples(corpus, leaf, num_examples):
                yield Text(f"\n[{corpus}] {_excerpt(text)}")

    def _find_neighbours(self, leaf: int) -> list[int]:
        centroid_LD = self.results.tree.centroid_VD[self.results.tree.leaf_nodes]
        sq_dist_L = ((centroid_LD - centroid_LD[leaf]) ** 2).sum(axis=1)
        return [int(near) for near in np.argsort(sq_dist_L, kind="stable") if near != leaf][:_NUM_NEIGHBOURS]

    def _read_examples(self, corpus: str, leaf: int, count: int) -> list[str]:
        texts: list[str] = []
        assigned, windows = self.graph.step("assign", corpus), self.graph.windows_step(corpus)
        for name in choose_by_hash(part_names(assigned), _MAX_PARTS_READ, seed=self.graph.config.seed, purpose="inspect.parts"):
            rows = np.flatnonzero(assigned.folder.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy() == leaf)
            if len(rows):
                table = windows.folder.read_table(f"{name}.parquet", columns=["text"])
                texts += table["text"].take(rows[: count - len(texts)]).to_pylist()
            if len(texts) >= count:
                break
        return texts

    def find_clusters(self, words: str) -> Iterator[RenderableType]:
        """Find clusters whose text has all words: first by title and terms, then by the share of their windows that have the words.

        Text is read from at most 64 parts, chosen by hash.
        """
        query_words = words.lower().split()
        name_texts = {leaf: f"{name.title} {name.terms}".lower() for leaf, name in self.results.names.items()}
        named = [leaf for leaf in sorted(name_texts) if all(word in name_texts[leaf] for word in query_words)]
        num_matching, num_windows = Counter[int](), Counter[int]()
        assigned, windows = self.graph.step("assign", GENERALIST), self.graph.windows_step(GENERALIST)
        parts = part_names(assigned)
        chosen = choose_by_hash(parts, _MAX_PARTS_READ, seed=self.graph.config.seed, purpose="inspect.parts")
        for name in chosen:
            leaf_N = assigned.folder.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
            text = windows.folder.read_table(f"{name}.parquet", columns=["text"])["text"]
            has_N = np.ones(len(leaf_N), bool)
            for word in query_words:
                has_N &= pc.match_substring(text, word, ignore_case=True).to_numpy()
            num_windows.update(leaf_N[leaf_N >= 0].tolist())
            num_matching.update(leaf_N[has_N & (leaf_N >= 0)].tolist())
        shares = {leaf: num_matching[leaf] / num_windows[leaf] for leaf in num_matching}
        order = sorted(shares.keys() | set(named), key=lambda leaf: (leaf not in named, -shares.get(leaf, 0.0), leaf))
        scope = f" in {len(chosen)} of {len(parts):,} parts" if len(chosen) < len(parts) else ""
        yield Text(
            f"{sum(num_matching.values()):,} of {sum(num_windows.values()):,} windows{scope} contain: {' '.join(query_words)}"
        )
        if order:
            yield from self.list_clusters(order[:_MAX_LISTED_CLUSTERS])

    def find_similar_cluster(self, text: str, num_examples: int) -> Iterator[RenderableType]:
        """Describe the cluster that a text would be assigned to.

        Raises:
            ConfigError: the embedder has no vector for the text.
        """
        embedder_steps = [step for step in self.graph.steps if step.stage == "embedder"]
        embedder = load_cached_embedder(self.graph.config.embed, embedder_steps[0].folder.url if embedder_steps else None)
        x_ND = embedder.encode([text]).astype(np.float16)
        if not np.isfinite(x_ND).all():
            raise ConfigError("--like: the embedder has no vector for this text, because it knows none of the words")
        leaf = int(self.results.tree.descend(x_ND)[0][0])
        yield from self.describe_cluster(leaf, num_examples)

    def trace_document(self, identifier: str) -> Iterator[RenderableType]:
        """Show what happened to a document, and why.

        Raises:
            ConfigError: no corpus of the run has it.
        """
        is_known = False
        for corpus in (GENERALIST, *self.graph.config.specialists):
            prepared, kept = self.graph.step("prepare", corpus), self.graph.windows_step(corpus)
            quarantined = self._find_quarantined_rows(prepared, identifier)
            yield from (Text(f"{corpus}: {line}") for line in quarantined)
            read = self._find_windows(prepared, identifier)
            windows = read if kept is prepared else self._find_windows(kept, identifier)
            is_known = is_known or bool(quarantined or read)
            if read and not windows:
                yield Text(f"{corpus}: excluded by {self._explain_exclusion(corpus, identifier)}")
            for location in windows:
                text = kept.folder.read_table(f"{location.part}.parquet", columns=["text"])["text"][location.row].as_py()
                yield Text(f"\n{corpus}, window {location.window}, {location.tokens} tokens: {_excerpt(text)}")
                yield from self._trace_window(corpus, location)
        if not is_known:
            raise ConfigError(
                f"--document {identifier}: no window and no quarantined row has this id; a step of prepare may have dropped it, or "
                "no input file has it"
            )

    def trace_window(self, name: str) -> Iterator[RenderableType]:
        """Show what happened to a window, named `<document id>:<number>`, and its full text.

        Raises:
            ConfigError: the name is not valid, or no window has it.
        """
        identifier, colon, number = name.rpartition(":")
        if not colon or not number.isdecimal():
            raise ConfigError(f"--window {name}: give the id of a document, a colon, and the number of its window, from 0")
        available: list[str] = []
        for corpus in (GENERALIST, *self.graph.config.specialists):
            kept = self.graph.windows_step(corpus)
            windows = self._find_windows(kept, identifier)
            available += [f"0 to {windows[-1].window} in {corpus}"] if windows else []
            for location in windows:
                if location.window == int(number):
                    (row,) = kept.folder.read_table(f"{location.part}.parquet").slice(location.row, 1).to_pylist()
                    near = f", one of {row['near_copies']:,} near-duplicates" if row["near_copies"] > 1 else ""
                    yield Text(replace_controls(f"{corpus}, {name}, from {row['source']}, {location.tokens} tokens{near}"))
                    yield from self._trace_window(corpus, location)
                    yield Text("\n" + replace_controls(row["text"]))
                    return
        if available:
            raise ConfigError(f"--window {name}: not a window; the document has windows {', '.join(available)}")
        raise ConfigError(f"--window {name}: the document has no windows; --document {identifier} says why")

    def _trace_window(self, corpus: str, location: WindowLocation) -> Iterator[RenderableType]:
        assigned = self.graph.step("assign", corpus).folder.read_table(f"{location.part}.parquet")
        leaf, sq_dist = assigned["leaf"][location.row].as_py(), assigned["sq_dist"][location.row].as_py()
        if leaf < 0:
            yield Text("  the embedder returned no finite vector, so it is in no cluster and is never sampled")
            return
        yield Text(f"  in cluster {leaf} ({self.results.get_name(leaf)}), squared distance {sq_dist:.3f} from its centroid")
        if corpus != GENERALIST:
            yield Text("  part of a specialist sample: it shapes the mixture, but only generalist text is sampled")
            return
        score_steps = [step for step in self.graph.steps if step.stage == "score"]
        if score_steps:
            scores = zip(
                self.graph.config.specialists, read_scores(score_steps[0].folder, location.part)[location.row], strict=True
            )
            yield Text("  score: " + ", ".join(f"{name} {score:.2f}" for name, score in scores))
        if self.results.allocation is None:
            yield Text("  the corpus is not sampled yet")
            return
        previous_copies, first_shard = 0, 0
        for weight_L, sampled in zip(self.results.weight_L_by_phase, self.graph.sample_steps, strict=True):
            draws = sampled.folder.child("draws").read_table(f"{location.part}.parquet")
            expected, copies = draws["expected"][location.row].as_py(), draws["copies"][location.row].as_py()
            phase = f"{sampled.corpus}: " if sampled.corpus else ""
            yield Text(f"  {phase}weight of its cluster {weight_L[leaf]:.2f}; {expected:.2f} copies expected, {copies} sampled")
            num_shards = len(sampled.manifest["shards"])
            if copies:
                numbers = range(previous_copies, previous_copies + copies)
                yield Text("  in " + ", ".join(self._find_shards(location.key, numbers, first_shard, num_shards)))
            previous_copies, first_shard = previous_copies + copies, first_shard + num_shards

    def _find_shards(self, key: int, copies: range, first_shard: int, num_shards: int) -> list[str]:
        """The shard of each copy of a window, among those that one sample step wrote."""
        key_R, copy_R = np.full(len(copies), key, np.uint64), np.array(copies)
        order_R = keyed_hash(key_R, seed=self.graph.config.seed, purpose="shuffle", copy=copy_R)
        shards = find_shards(order_R, num_shards).tolist()
        return [f"{shard_name(first_shard + shard)}.parquet (copy {copy})" for copy, shard in zip(copies, shards, strict=True)]

    def _find_windows(self, step: Step, identifier: str) -> list[WindowLocation]:
        locations = []
        for name in part_names(step):
            table = step.folder.read_table(f"{name}.parquet", columns=["doc_id", "window", "key", "tokens"])
            for row in np.flatnonzero(pc.equal(table["doc_id"], identifier).to_numpy()):
                window, key, tokens = (table[column][int(row)].as_py() for column in ("window", "key", "tokens"))
                locations.append(WindowLocation(name, int(row), window, key, tokens))
        return sorted(locations, key=lambda location: location.window)

    def _explain_exclusion(self, corpus: str, identifier: str) -> str:
        deduplicated = [step for step in self.graph.steps if (step.stage, step.corpus) == ("dedup", corpus)]
        if deduplicated and not self._find_windows(deduplicated[0], identifier):
            return "dedup: a near-duplicate of it is kept"
        return "decontaminate: it contains held-out text (see contaminated/ in the folder of that step)"

    def _find_quarantined_rows(self, prepared: Step, identifier: str) -> list[str]:
        folder = prepared.folder.child(QUARANTINE_FOLDER)
        rows = []
        for name in folder.names(".parquet"):
            table = folder.read_table(name)
            rows += table.filter(pc.equal(table["id"], identifier)).to_pylist()
        return [f"row {row['row']} of {row['file']} is quarantined: {row['reason']}, {row['detail']}" for row in rows]


def _excerpt(text: str) -> str:
    line = replace_controls(" ".join(text.split()))
    return line[:_EXCERPT_CHARACTERS] + (" …" if len(line) > _EXCERPT_CHARACTERS else "")
