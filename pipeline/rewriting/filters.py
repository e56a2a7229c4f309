"""What is kept of a model's answers: they are cleaned, and judged by rules, the first of which that fails gives the reason.

The rules compare words, not characters (`wording`), and an answer with its own source: what the source does, an answer may do.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rewriting import refusals, repetition
from pipeline.rewriting.characters import broken, without_controls
from pipeline.rewriting.cleaning import clean, unfinished_thought
from pipeline.rewriting.languages import detect
from pipeline.rewriting.styles import RULES, Style
from pipeline.text.ngrams import Wording, foreign_share, wording, wordings, words

_OPENING_WORDS = 5

_LEAKED_INSTRUCTIONS = 8  # words in a row; of a script without spaces twice as many characters
_LEAKED_EXAMPLE = 13
# Chat templates' signs of a turn, and the headings of the usual prompts.
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|system|assistant|endoftext)\|>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|^#{2,4} (?:Instructions?|Response|Input|System|User|Assistant)\b:?|"
    r"^(?:USER|ASSISTANT|SYSTEM|Assistant|Human): |^Text:",
    re.MULTILINE,
)
_EXAMPLE = re.compile(r"^Example \d+:", re.MULTILINE)  # as `prompts` heads them
_LABEL_WORDS = 4  # at most, in a line of the prompt that ends with a colon and heads the passage or the examples

_SURE = 0.6  # of both languages; for a passage of a few sentences the detector is at 0.9 and more
# Languages that the detector, and sometimes their readers, take for each other.
_NEAR = (
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
_FOREIGN = 0.12  # of an answer's letters in a script that its source does not use: models slip into the language they know best

_SAME = 0.95  # words that answer and source have in the same order; one in twenty changed is no rewriting
_SAME_RUNS = 0.9  # of the answer's runs of 5 words that the source has too
_SHORT_RUN, _LONG_RUN = 5, 25
_COPIED = 0.9  # of the answer's words that lie in runs of 25 of the source

_HELD_OUT_RUN, _HELD_OUT_LEAST = 13, 8


@dataclass(frozen=True)
class Verdict:
    """What is to become of an answer."""

    text: str  # cleaned
    removed: tuple[str, ...]  # cleanings that applied
    reason: str  # one of styles.RULES, or "" for accepted
    detail: str  # one short line: what was found, with numbers


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Text that must not come back in rewrites: its runs of 13 words; of shorter texts, from 8 words on, the whole."""

    ngram_N: NDArray[np.uint64]  # sorted, each once

    @classmethod
    def of(cls, texts: Iterable[str]) -> "HeldOut":
        """The runs of some texts."""
        found: list[NDArray[np.uint64]] = []
        for text in texts:
            runs = []
            for of_piece in wordings(text, _HELD_OUT_RUN):
                runs.append(of_piece.runs(_HELD_OUT_RUN))
            if not any(map(len, runs)) and len(of_piece.words) >= _HELD_OUT_LEAST:
                runs = [of_piece.runs(len(of_piece.words))]  # all words: they are too few for a run, so each piece begins with them
            found += runs
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *found])))

    @classmethod
    def combine(cls, parts: Sequence["HeldOut"]) -> "HeldOut":
        """What any of the parts holds."""
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *(part.ngram_N for part in parts)])))

    @classmethod
    def from_table(cls, table: pa.Table) -> "HeldOut":
        """The inverse of `to_table`; rows may be in any order."""
        return cls(np.unique(table["ngram"].to_numpy()))

    def to_table(self) -> pa.Table:
        """One row for each run, in ascending order of its hash."""
        return pa.table({"ngram": pa.array(self.ngram_N, pa.uint64())})

    def overlap(self, text: str) -> str:
        """The first run of words that the text shares with what is held out, the longest of those; "" if there is none."""
        if not len(self.ngram_N):
            return ""
        of_text = wording(text)
        first: tuple[int, int] | None = None
        for length in range(_HELD_OUT_LEAST, _HELD_OUT_RUN + 1):
            run_G = of_text.runs(length)
            place_G = np.minimum(np.searchsorted(self.ngram_N, run_G), len(self.ngram_N) - 1)
            hits = np.flatnonzero(self.ngram_N[place_G] == run_G)
            if len(hits) and (first is None or hits[0] <= first[0]):
                first = (int(hits[0]), length)
        return of_text.run(*first) if first else ""


def judge(
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
    """The answer cleaned (`characters`, `cleaning`), and the first of the style's rules that it fails, in the order of `RULES`.

    `instructions` is the prompt without passage and examples. `similarity` is judged elsewhere: it needs a model. A run of words of
    the held-out text counts though the source has it too, for rewrites of held-out text are what it is there to catch.
    """
    answer = answer.strip()
    plain = without_controls(answer)
    text, removed = clean(plain, source)
    removed = (("control",) if plain != answer else ()) + removed
    case = _Case(text, source, source_tokens, finish_reason, style, instructions, examples, count, held_out)
    for rule in RULES:
        if rule in _CHECKS and style.applies(rule) and (detail := _CHECKS[rule](case)):
            return Verdict(text, removed, rule, detail)
    return Verdict(text, removed, "", "")


def openings(text: str) -> str:
    """The first five words: a model in a rut opens most of its answers with few of them (FinePhrase)."""
    return " ".join(words(text[:500])[:_OPENING_WORDS])


def collapse(counts: Mapping[str, int]) -> tuple[int, float, str]:
    """Of counted openings: how many there are, the commonest's share, and the commonest; of two as common the first by alphabet."""
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
    def answered(self) -> Wording:
        return wording(self.text)

    @property
    def given(self) -> Wording:
        return wording(self.source)


# Each returns what it found, or "" where there is nothing to say against the answer.


def _empty(case: _Case) -> str:
    return "" if case.answered.words else "no word in it"


def _broken_text(case: _Case) -> str:
    found = broken(case.text)
    return f"has {found}" if found else ""


def _unfinished_thought(case: _Case) -> str:
    return "a thought begins and no answer follows" if unfinished_thought(case.text) else ""


def _cut(case: _Case) -> str:
    return "the model was stopped at its most tokens" if case.finish_reason == "length" else ""


def _refusal(case: _Case) -> str:
    return refusals.found(case.text, len(case.answered.words), case.source)


def _prompt_leak(case: _Case) -> str:
    marker = next((found[0] for found in _MARKER.finditer(case.text) if found[0] not in case.source), "")
    if marker:
        return f"has {marker.strip()!r}, of a prompt"
    numbered = _EXAMPLE.search(case.text) if case.examples else None
    if numbered and numbered[0] not in case.source:
        return f"has the prompt's {numbered[0]!r}"
    for line in map(str.strip, case.instructions.splitlines()):
        label = line.endswith((":", "：")) and 0 < len(words(line)) <= _LABEL_WORDS and line
        if label and label not in case.source and re.search(rf"(?m)^{re.escape(label)}", case.text):
            return f"has the prompt's {label!r}"
    run = _leak(case, case.instructions, _LEAKED_INSTRUCTIONS)
    return f"of the instructions: {run!r}" if run else ""


def _example_leak(case: _Case) -> str:
    run = next(filter(None, (_leak(case, example, _LEAKED_EXAMPLE) for example in case.examples)), "")
    return f"of an example: {run!r}" if run else ""


def _leak(case: _Case, secret: str, length: int) -> str:
    """The first run of so many words that the answer has of `secret` and not of its source."""
    n = 2 * length if case.answered.unspaced else length
    in_secret_G = case.answered.shared(n, wording(secret))
    if not in_secret_G.any():
        return ""
    hits = np.flatnonzero(in_secret_G & ~case.answered.shared(n, case.given))
    return case.answered.run(int(hits[0]), n) if len(hits) else ""


def _length_ratio(case: _Case) -> str:
    least, most = case.style.length_ratio
    tokens = case.count(case.text)
    ratio = tokens / max(1, case.source_tokens)
    return "" if least <= ratio <= most else f"{tokens} tokens for {case.source_tokens}: {ratio:.2f}, not in [{least:g}, {most:g}]"


def _repetition(case: _Case) -> str:
    return repetition.found(case.text, case.answered, case.source, case.given)


def _language(case: _Case) -> str:
    script, share = foreign_share(case.text, case.source)
    if share >= _FOREIGN:
        return f"{share:.0%} of its letters are {script}, which the source is not"
    of_source, sure_of_source = detect(case.source)
    of_answer, sure_of_answer = detect(case.text)
    near = of_source == of_answer or any({of_source, of_answer} <= group for group in _NEAR)
    if near or min(sure_of_source, sure_of_answer) < _SURE:
        return ""
    return f"in {of_answer} ({sure_of_answer:.2f}), the source in {of_source} ({sure_of_source:.2f})"


def _copy(case: _Case) -> str:
    from rapidfuzz.distance import Indel

    answered, given = case.answered, case.given
    if answered.words == given.words:
        return "the same words"
    if (same := Indel.normalized_similarity(answered.words, given.words, score_cutoff=_SAME)) >= _SAME:
        return f"{same:.0%} of the words are the same in the same order"
    short_G = answered.shared(_SHORT_RUN, given)
    if len(short_G) and (share := float(short_G.mean())) >= _SAME_RUNS:
        return f"{share:.0%} of its runs of {_SHORT_RUN} words are the source's"
    n = 2 * _LONG_RUN if answered.unspaced else _LONG_RUN
    if (share := answered.covered(answered.shared(n, given), n)) >= _COPIED:
        return f"{share:.0%} of its words lie in runs of {n} of the source"
    return ""


def _held_out(case: _Case) -> str:
    run = case.held_out.overlap(case.text) if case.held_out else ""
    return f"held out: {run!r}" if run else ""


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
