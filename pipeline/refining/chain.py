"""Documents through datatrove's steps, one at a time: what comes out of each depends on nothing but itself.

datatrove chains generators over a shard. Here each document passes all steps before the next begins, so that what drops it is
known, an error is that document's own, and no step remembers others: some of datatrove's do (generators of random numbers,
replacements that take turns, a cache of paragraphs seen), and what they did would depend on how files are shared out.
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
from pipeline.hashing import uniform_of
from pipeline.refining import Dropped, StepError
from pipeline.refining.catalogue import build
from pipeline.sources import BadRowError, Document, checked_text
from pipeline.sources.parts import SHOWN_CHARACTERS

_EMPTY = "empty"


@cache
def chain_of(steps: bytes, setting: str) -> "Chain":
    """The chain of some steps (JSON), made once a worker: some of datatrove's read long lists when they are made."""
    return Chain(orjson.loads(steps), setting)


class Chain:
    """The steps of a config; a context manager, as extractors run in processes of their own, which end with each use.

    Args:
        steps: as in the config, checked (`catalogue.checked`).
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], setting: str = "prepare.steps") -> None:
        self._names = [str(step["type"]) for step in steps]
        self._sandboxes: list[ExtractorSandbox] = []
        self._passes = [self._one(build(step, f"{setting}[{number}]"), number, step) for number, step in enumerate(steps)]

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sandbox in self._sandboxes:
            sandbox.__exit__(kind, error, trace)

    def refine(self, document: Document) -> Document | Dropped:
        """The document as the steps leave it, or which of them dropped it and why.

        Raises:
            StepError: a step failed, or left what is no text.
        """
        metadata = exact_json.load(document.metadata)
        trove = TroveDocument(text=document.text, id=document.id, metadata={"source": document.source, **metadata})
        for number, through in enumerate(self._passes):
            try:
                reason = through(trove)
            except Exception as error:
                raise StepError(f"{self._names[number]}: {type(error).__name__} {one_line(error)}".strip()) from error
            if reason is None and (not trove.text or trove.text.isspace()):
                reason = _EMPTY
            if reason is not None:
                return Dropped(number, reason, trove.text[:SHOWN_CHARACTERS])
        try:
            text = checked_text({"text": trove.text}, "text")
        except BadRowError as bad:
            raise StepError(f"{self._names[-1]} left {bad.reason}: {bad.detail}") from bad
        source = trove.metadata.pop("source")
        written = exact_json.dump(trove.metadata, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
        return Document(document.id, text, str(source), written if trove.metadata != metadata else document.metadata)

    def _one(self, step: Any, number: int, settings: Mapping[str, Any]) -> Callable[[TroveDocument], str | None]:
        """What one step does to a document: why it drops it, or None."""
        if isinstance(step, BaseFilter):
            return self._filter(step, number, int(settings.get("seed") or 0))
        if isinstance(step, BaseExtractor):
            return self._extractor(step)
        replacers = [value for value in vars(step).values() if isinstance(value, PIIReplacer)]

        def formatted(document: TroveDocument) -> None:
            for replacer in replacers:
                replacer._replace_i = 0  # replacements take turns within a document, not over all of them
            document.text = step.format(document.text)

        return formatted

    def _filter(self, step: BaseFilter, number: int, seed: int) -> Callable[[TroveDocument], str | None]:
        if hasattr(step, "tldextractor"):  # URLFilter: the list of suffixes that came with the package, not today's
            from tldextract import TLDExtract

            step.tldextractor = TLDExtract(suffix_list_urls=())
        drawn = hasattr(step, "uniform")  # SamplerFilter, C4BadWordsFilter: a document's fate is by its id

        def filtered(document: TroveDocument) -> str | None:
            if drawn:
                step.uniform = lambda: uniform_of(document.id, seed=seed, purpose=f"prepare.steps[{number}]")
            kept, reason = get_filter_result(step.filter(document))
            return None if kept else str(reason or "dropped")

        return filtered

    def _extractor(self, step: BaseExtractor) -> Callable[[TroveDocument], str | None]:
        sandbox = ExtractorSandbox(timeout=step.timeout, warmup_text="")
        self._sandboxes.append(sandbox)
        extract = _Forgetful(step.extract)

        def extracted(document: TroveDocument) -> None:
            document.text = sandbox.process_document(document.text, extract) or ""

        return extracted


@dataclass(frozen=True)
class _Forgetful:
    """An extraction without what trafilatura remembers of the documents before."""

    extract: Callable[[str], str]

    def __call__(self, text: str) -> str:
        try:
            from trafilatura.deduplication import LRU_TEST
        except ImportError:
            pass
        else:
            LRU_TEST.clear()
        return self.extract(text)


def _plain(value: Any) -> Any:
    """What JSON does not know, of what datatrove's steps put into metadata."""
    return list(value) if isinstance(value, set | tuple | frozenset) else str(value)
