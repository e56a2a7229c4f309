"""Applies datatrove's steps to documents one at a time; the result for a document depends only on that document.

datatrove chains generators over a shard. Here a document passes all steps before the next one starts, so the step that drops it is
known and an error affects only that document. State that datatrove's steps keep between documents (random number generators,
replacements used in turn, a cache of seen paragraphs) is reset, because results would otherwise depend on how files are
distributed over workers. See docs/decisions/0013-datatrove-a-document-at-a-time.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import orjson
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.extractors.base import BaseExtractor, ExtractorSandbox
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.formatters.pii import PIIReplacer

from pipeline import exact_json
from pipeline.errors import one_line
from pipeline.hashing import document_uniform
from pipeline.refining import Dropped, RefiningError
from pipeline.refining.catalogue import build_step
from pipeline.sources import Document, RowError, validate_text
from pipeline.sources.parts import REPORT_EXCERPT_CHARACTERS

_EMPTY = "empty"


@cache
def load_chain(steps: bytes, setting: str) -> "Chain":
    """Return the chain of the steps given as JSON, built once per worker: some datatrove steps load long lists when built."""
    return Chain(orjson.loads(steps), setting)


class Chain:
    """The refining steps of a config. A context manager: leaving it ends the subprocesses in which extractors run.

    Args:
        steps: the steps of the config, already checked by `catalogue.check_steps`.
        setting: name of the setting in messages.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], setting: str = "prepare.steps") -> None:
        self._names = [str(step["type"]) for step in steps]
        self._sandboxes: list[ExtractorSandbox] = []
        self._appliers = [
            self._applier(build_step(step, f"{setting}[{number}]"), number, step) for number, step in enumerate(steps)
        ]

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sandbox in self._sandboxes:
            sandbox.__exit__(kind, error, trace)

    def refine(self, document: Document) -> Document | Dropped:
        """Return the document after all steps, or the step that dropped it and why.

        Raises:
            RefiningError: a step failed, or the text after the steps is invalid.
        """
        metadata = exact_json.load(document.metadata)
        # A `source` in the metadata is a column that could not be the document's source, such as null. Steps see the latter.
        trove_document = TroveDocument(text=document.text, id=document.id, metadata={**metadata, "source": document.source})
        for number, apply_step in enumerate(self._appliers):
            try:
                reason = apply_step(trove_document)
            except Exception as error:
                raise RefiningError(f"{self._names[number]}: {type(error).__name__} {one_line(error)}".strip()) from error
            if reason is None and (not trove_document.text or trove_document.text.isspace()):
                reason = _EMPTY
            if reason is not None:
                return Dropped(number, reason, trove_document.text[:REPORT_EXCERPT_CHARACTERS])
        try:
            text = validate_text({"text": trove_document.text}, "text")
        except RowError as error:
            raise RefiningError(f"{self._names[-1]} produced an invalid text: {error.reason}, {error.detail}") from error
        source = trove_document.metadata.get("source")
        if not isinstance(source, str) or not source:  # a step removed it
            source = document.source
        if "source" in metadata:
            trove_document.metadata["source"] = metadata["source"]
        else:
            trove_document.metadata.pop("source", None)
        metadata_json = exact_json.dump(trove_document.metadata, default=_to_json_value, option=orjson.OPT_SERIALIZE_NUMPY)
        return Document(document.id, text, source, metadata_json if trove_document.metadata != metadata else document.metadata)

    def _applier(self, step: Any, number: int, settings: Mapping[str, Any]) -> Callable[[TroveDocument], str | None]:
        """Return a function that applies one step to a document in place and returns the reason to drop it, or None."""
        if isinstance(step, BaseFilter):
            return self._filter_applier(step, number, int(settings.get("seed") or 0))
        if isinstance(step, BaseExtractor):
            return self._extractor_applier(step)
        replacers = [value for value in vars(step).values() if isinstance(value, PIIReplacer)]

        def apply_formatter(document: TroveDocument) -> None:
            for replacer in replacers:
                replacer._replace_i = 0  # replacements are used in turn within a document, not across documents
            document.text = step.format(document.text)

        return apply_formatter

    def _filter_applier(self, step: BaseFilter, number: int, seed: int) -> Callable[[TroveDocument], str | None]:
        if hasattr(step, "tldextractor"):  # URLFilter: use the suffix list bundled with tldextract; do not download the latest
            from tldextract import TLDExtract

            step.tldextractor = TLDExtract(suffix_list_urls=())
        is_random = hasattr(step, "uniform")  # SamplerFilter, C4BadWordsFilter: replace the generator by a hash of the document id

        def apply_filter(document: TroveDocument) -> str | None:
            if is_random:
                step.uniform = lambda: document_uniform(document.id, seed=seed, purpose=f"prepare.steps[{number}]")
            kept, reason = get_filter_result(step.filter(document))
            return None if kept else str(reason or "dropped")

        return apply_filter

    def _extractor_applier(self, step: BaseExtractor) -> Callable[[TroveDocument], str | None]:
        sandbox = ExtractorSandbox(timeout=step.timeout, warmup_text="")
        self._sandboxes.append(sandbox)
        extract = _StatelessExtract(step.extract)

        def apply_extractor(document: TroveDocument) -> None:
            document.text = sandbox.process_document(document.text, extract) or ""

        return apply_extractor


@dataclass(frozen=True)
class _StatelessExtract:
    """Clears trafilatura's cache of earlier documents before each extraction."""

    extract: Callable[[str], str]

    def __call__(self, text: str) -> str:
        try:
            from trafilatura.deduplication import LRU_TEST
        except ImportError:
            pass
        else:
            LRU_TEST.clear()
        return self.extract(text)


def _to_json_value(value: Any) -> Any:
    """Convert metadata values of datatrove's steps that JSON does not support: collections to lists, others to text."""
    return list(value) if isinstance(value, set | tuple | frozenset) else str(value)
