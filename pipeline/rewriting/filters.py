"""Clean the answers of a model and filter them by rules; the first rule that an answer fails is the reason for its rejection.

The rules compare words, not characters (`Wording`), and compare an answer with its own source: a fault that the source has too does
not reject the answer.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rewriting import refusals, repetition
from pipeline.rewriting.characters import find_broken_character, remove_controls
from pipeline.rewriting.cleaning import clean_answer, has_unfinished_thought
from pipeline.rewriting.languages import detect_language
from pipeline.rewriting.styles import RULES, Style
from pipeline.text.ngrams import Wording, foreign_share, get_wording, iter_wordings
from pipeline.text.words import split_words

_OPENING_WORDS = 5

_INSTRUCTIONS_NGRAM = 8  # consecutive words; in a script without spaces, twice as many characters
_EXAMPLE_NGRAM = 13
# Turn markers of chat templates, and headings of common prompts.
_PROMPT_MARKER = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|system|assistant|endoftext)\|>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|^#{2,4} (?:Instructions?|Response|Input|System|User|Assistant)\b:?|"
    r"^(?:USER|ASSISTANT|SYSTEM|Assistant|Human): |^Text:",
    re.MULTILINE,
)
_EXAMPLE_HEADING = re.compile(r"^Example \d+:", re.MULTILINE)  # the heading that `prompts` writes
_MAX_LABEL_WORDS = 4  # a label is a line of the prompt, ending with a colon, that introduces the passage or the examples

_MIN_CONFIDENCE = 0.6  # in both languages; for a passage of a few sentences the detector reports 0.9 or more
# Languages that the detector confuses with each other.
_SIMILAR_LANGUAGES = (
    {"no", "nb", "nn", "da"},
    {"hr", "sr", "bs", "sh"},
    {"mk", "bg"},
    {"id", "ms", "jv", "su", "min"},
    {"zh", "yue", "wuu"},
    {"ar", "arz"},
    {"es", "gl", "ast", "an"},
    {"pt", "gl", "mwl"},
    {"ca", "oc"},
    {"cs", "sk"},
    {"nl", "af", "nds", "li"},
    {"de", "als", "nds", "bar", "lb"},
    {"hi", "mr", "ne", "bh", "mai"},
    {"it", "lmo", "pms", "vec", "scn", "nap"},
    {"fa", "mzn"},
    {"tr", "az"},
    {"en", "sco"},
)
FOREIGN_SHARE = 0.12  # share of letters in a script that the source does not use: models switch to the language they know best

_MAX_SAME_WORDS = 0.95  # share of words that are the same in the same order; changing one word in twenty is not a rewrite
_MAX_SHARED_NGRAMS = 0.9  # share of the answer's 5-grams that the source has too
_SHORT_NGRAM, _LONG_NGRAM = 5, 25
_MAX_COPIED_WORDS = 0.9  # share of the answer's words within 25-grams of the source (50-grams in a script without spaces)

_HELD_OUT_NGRAM, _MIN_HELD_OUT_NGRAM = 13, 8  # words


@dataclass(frozen=True)
class Verdict:
    """The result of filtering one answer."""

    text: str  # cleaned
    removed: tuple[str, ...]  # names of the cleanings that changed it
    reason: str  # the rule of styles.RULES that rejects it, or "" if accepted; `judging` adds "no_answer"
    detail: str  # one short line: what the rule found, with numbers


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out text that must not occur in rewrites: the hashes of its 13-grams of words. A text of 8 to 12 words is one n-gram."""

    ngram_N: NDArray[np.uint64]  # sorted, each once

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "HeldOut":
        """Collect the n-grams of the given texts."""
        hashes: list[NDArray[np.uint64]] = []
        for text in texts:
            ngrams = []
            for piece in iter_wordings(text, _HELD_OUT_NGRAM):
                ngrams.append(piece.ngram_hashes(_HELD_OUT_NGRAM))
            if not any(map(len, ngrams)) and len(piece.words) >= _MIN_HELD_OUT_NGRAM:
                ngrams = [piece.ngram_hashes(len(piece.words))]  # no 13-gram, so the last piece holds all words
            hashes += ngrams
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *hashes])))

    @classmethod
    def combine(cls, parts: Sequence["HeldOut"]) -> "HeldOut":
        """Return the union of the parts."""
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *(part.ngram_N for part in parts)])))

    @classmethod
    def from_table(cls, table: pa.Table) -> "HeldOut":
        """Read a table written by `to_table`; its rows may be in any order."""
        return cls(np.unique(table["ngram"].to_numpy()))

    def to_table(self) -> pa.Table:
        """Return a table with one row per n-gram, in ascending order of its hash."""
        return pa.table({"ngram": pa.array(self.ngram_N, pa.uint64())})

    def find_overlap(self, text: str) -> str:
        """Return the first n-gram shared with the held-out text, the longest of those that begin there; "" if none is shared."""
        if not len(self.ngram_N):
            return ""
        text_wording = get_wording(text)
        first: tuple[int, int] | None = None
        for length in range(_MIN_HELD_OUT_NGRAM, _HELD_OUT_NGRAM + 1):
            ngram_G = text_wording.ngram_hashes(length)
            position_G = np.minimum(np.searchsorted(self.ngram_N, ngram_G), len(self.ngram_N) - 1)
            hits = np.flatnonzero(self.ngram_N[position_G] == ngram_G)
            if len(hits) and (first is None or hits[0] <= first[0]):
                first = (int(hits[0]), length)
        return text_wording.ngram_text(*first) if first else ""


def judge_answer(
    answer: str,
    *,
    style: Style,
    source: str,
    source_tokens: int,
    finish_reason: str,
    instructions: str,
    examples: Sequence[str],
    count: Callable[[str], int],
    held_out: HeldOut | None = None,
) -> Verdict:
    """Clean an answer (`characters`, `cleaning`) and find the first of the style's rules that it fails, in the order of `RULES`.

    `instructions` is the prompt without passage and examples. The rule `similarity` needs an embedder and is applied in `judging`.
    The rule `held_out` rejects an answer even if the source has the n-gram too: it exists to catch rewrites of held-out text.
    """
    answer = answer.strip()
    printable = remove_controls(answer)
    text, removed = clean_answer(printable, source)
    removed = (("control",) if printable != answer else ()) + removed
    case = _Case(text, source, source_tokens, finish_reason, style, instructions, examples, count, held_out)
    for rule in RULES:
        if rule in _CHECKS and style.applies(rule) and (detail := _CHECKS[rule](case)):
            return Verdict(text, removed, rule, detail)
    return Verdict(text, removed, "", "")


def get_opening(text: str) -> str:
    """Return the first five words, joined by spaces.

    A collapsed model begins most of its answers with a few such openings (FinePhrase).
    """
    return " ".join(split_words(text[:500])[:_OPENING_WORDS])


def summarise_openings(counts: Mapping[str, int]) -> tuple[int, float, str]:
    """Return the number of distinct openings, the share of the most common one, and that opening; the alphabet breaks ties."""
    if not counts:
        return 0, 0.0, ""
    commonest = min(counts, key=lambda opening: (-counts[opening], opening))
    return len(counts), counts[commonest] / max(1, sum(counts.values())), commonest


@dataclass(frozen=True)
class _Case:
    text: str
    source: str
    source_tokens: int
    finish_reason: str
    style: Style
    instructions: str
    examples: Sequence[str]
    count: Callable[[str], int]
    held_out: HeldOut | None

    @property
    def answer_wording(self) -> Wording:
        return get_wording(self.text)

    @property
    def source_wording(self) -> Wording:
        return get_wording(self.source)


# Each rule describes what it found; it returns "" if the answer passes.


def _empty(case: _Case) -> str:
    return "" if case.answer_wording.words else "no words"


def _broken_text(case: _Case) -> str:
    character = find_broken_character(case.text)
    return f"contains {character}" if character else ""


def _unfinished_thought(case: _Case) -> str:
    return "a thought that no answer follows" if has_unfinished_thought(case.text) else ""


def _cut(case: _Case) -> str:
    return "cut at the token limit" if case.finish_reason == "length" else ""


def _refusal(case: _Case) -> str:
    return refusals.find_refusal(case.text, len(case.answer_wording.words), case.source)


def _prompt_leak(case: _Case) -> str:
    marker = next((match[0] for match in _PROMPT_MARKER.finditer(case.text) if match[0] not in case.source), "")
    if marker:
        return f"contains {marker.strip()!r}, which is a prompt marker"
    heading = _EXAMPLE_HEADING.search(case.text) if case.examples else None
    if heading and heading[0] not in case.source:
        return f"contains {heading[0]!r} from the prompt"
    for line in map(str.strip, case.instructions.splitlines()):
        label = line.endswith((":", "：")) and 0 < len(split_words(line)) <= _MAX_LABEL_WORDS and line
        if label and label not in case.source and re.search(rf"(?m)^{re.escape(label)}", case.text):
            return f"contains {label!r} from the prompt"
    ngram = _find_leak(case, case.instructions, _INSTRUCTIONS_NGRAM)
    return f"copies the instructions: {ngram!r}" if ngram else ""


def _example_leak(case: _Case) -> str:
    ngram = next(filter(None, (_find_leak(case, example, _EXAMPLE_NGRAM) for example in case.examples)), "")
    return f"copies an example: {ngram!r}" if ngram else ""


def _find_leak(case: _Case, prompt_text: str, length: int) -> str:
    """Return the first n-gram of `length` words that the answer shares with `prompt_text` but not with its source, else ""."""
    n = 2 * length if case.answer_wording.is_unspaced else length
    in_prompt_G = case.answer_wording.shared_mask(n, get_wording(prompt_text))
    if not in_prompt_G.any():
        return ""
    hits = np.flatnonzero(in_prompt_G & ~case.answer_wording.shared_mask(n, case.source_wording))
    return case.answer_wording.ngram_text(int(hits[0]), n) if len(hits) else ""


def _length_ratio(case: _Case) -> str:
    min_ratio, max_ratio = case.style.length_ratio
    tokens = case.count(case.text)
    ratio = tokens / max(1, case.source_tokens)
    return (
        ""
        if min_ratio <= ratio <= max_ratio
        else f"{tokens} tokens for {case.source_tokens}: ratio {ratio:.2f}, not in [{min_ratio:g}, {max_ratio:g}]"
    )


def _repetition(case: _Case) -> str:
    return repetition.find_repetition(case.text, case.answer_wording, case.source, case.source_wording)


def _language(case: _Case) -> str:
    script, share = foreign_share(case.text, case.source)
    if share >= FOREIGN_SHARE:
        return f"{share:.0%} of the letters are {script}, which the source does not use"
    source_language, source_confidence = detect_language(case.source)
    language, confidence = detect_language(case.text)
    similar = source_language == language or any({source_language, language} <= group for group in _SIMILAR_LANGUAGES)
    if similar or min(source_confidence, confidence) < _MIN_CONFIDENCE:
        return ""
    return f"language {language} ({confidence:.2f}), but the source is {source_language} ({source_confidence:.2f})"


def _copy(case: _Case) -> str:
    from rapidfuzz.distance import Indel

    answer, source = case.answer_wording, case.source_wording
    if answer.words == source.words:
        return "the words are the same as the source's"
    if (same := Indel.normalized_similarity(answer.words, source.words, score_cutoff=_MAX_SAME_WORDS)) >= _MAX_SAME_WORDS:
        return f"{same:.0%} of the words are the same in the same order"
    short_G = answer.shared_mask(_SHORT_NGRAM, source)
    if len(short_G) and (share := float(short_G.mean())) >= _MAX_SHARED_NGRAMS:
        return f"{share:.0%} of the {_SHORT_NGRAM}-grams are in the source too"
    n = 2 * _LONG_NGRAM if answer.is_unspaced else _LONG_NGRAM
    if (share := answer.covered_share(answer.shared_mask(n, source), n)) >= _MAX_COPIED_WORDS:
        return f"{share:.0%} of the words are in {n}-grams copied from the source"
    return ""


def _held_out(case: _Case) -> str:
    ngram = case.held_out.find_overlap(case.text) if case.held_out else ""
    return f"contains held-out text: {ngram!r}" if ngram else ""


_CHECKS: dict[str, Callable[[_Case], str]] = {
    "empty": _empty,
    "broken_text": _broken_text,
    "unfinished_thought": _unfinished_thought,
    "cut": _cut,
    "refusal": _refusal,
    "prompt_leak": _prompt_leak,
    "example_leak": _example_leak,
    "length_ratio": _length_ratio,
    "repetition": _repetition,
    "language": _language,
    "copy": _copy,
    "held_out": _held_out,
}
