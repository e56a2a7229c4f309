"""Clean the answers of a model and filter them by rules; the first rule that an answer fails is the reason for its rejection.

The rules compare words, not characters (`wording`), and compare an answer with its own source: a fault that the source has too does
not reject the answer.
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

_LEAKED_INSTRUCTIONS = 8  # consecutive words; in a script without spaces, twice as many characters
_LEAKED_EXAMPLE = 13
# Turn markers of chat templates, and headings of common prompts.
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|system|assistant|endoftext)\|>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|^#{2,4} (?:Instructions?|Response|Input|System|User|Assistant)\b:?|"
    r"^(?:USER|ASSISTANT|SYSTEM|Assistant|Human): |^Text:",
    re.MULTILINE,
)
_EXAMPLE = re.compile(r"^Example \d+:", re.MULTILINE)  # the heading that `prompts` writes
_LABEL_WORDS = 4  # most words of a label: a line of the prompt, ending with a colon, that introduces the passage or the examples

_SURE = 0.6  # least confidence in both languages; for a passage of a few sentences the detector reports 0.9 or more
# Languages that the detector confuses with each other.
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
FOREIGN_SHARE = 0.12  # share of letters in a script that the source does not use: models switch to the language they know best

_SAME = 0.95  # share of words that are the same in the same order; changing one word in twenty is not a rewrite
_SAME_RUNS = 0.9  # share of the answer's runs of 5 words that the source has too
_SHORT_RUN, _LONG_RUN = 5, 25
_COPIED = 0.9  # share of the answer's words within runs of 25 words of the source; a script without spaces uses runs of 50

_HELD_OUT_RUN, _HELD_OUT_LEAST = 13, 8


@dataclass(frozen=True)
class Verdict:
    """The result of filtering one answer."""

    text: str  # cleaned
    removed: tuple[str, ...]  # names of the cleanings that changed it
    reason: str  # the rule of styles.RULES that rejects it, or "" if accepted; `judging` adds "no_answer"
    detail: str  # one short line: what the rule found, with numbers


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out text that must not occur in rewrites: the hashes of its runs of 13 words. A text of 8 to 12 words is one run."""

    ngram_N: NDArray[np.uint64]  # sorted, each once

    @classmethod
    def of(cls, texts: Iterable[str]) -> "HeldOut":
        """Collect the runs of the given texts."""
        found: list[NDArray[np.uint64]] = []
        for text in texts:
            runs = []
            for of_piece in wordings(text, _HELD_OUT_RUN):
                runs.append(of_piece.runs(_HELD_OUT_RUN))
            if not any(map(len, runs)) and len(of_piece.words) >= _HELD_OUT_LEAST:
                runs = [of_piece.runs(len(of_piece.words))]  # no run of 13, so the last piece holds all words
            found += runs
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *found])))

    @classmethod
    def combine(cls, parts: Sequence["HeldOut"]) -> "HeldOut":
        """Return the union of the parts."""
        return cls(np.unique(np.concatenate([np.empty(0, np.uint64), *(part.ngram_N for part in parts)])))

    @classmethod
    def from_table(cls, table: pa.Table) -> "HeldOut":
        """Read a table written by `to_table`; its rows may be in any order."""
        return cls(np.unique(table["ngram"].to_numpy()))

    def to_table(self) -> pa.Table:
        """Return a table with one row per run, in ascending order of its hash."""
        return pa.table({"ngram": pa.array(self.ngram_N, pa.uint64())})

    def overlap(self, text: str) -> str:
        """Return the first run of words shared with the held-out text, the longest of those that begin there; "" without one."""
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
    """Clean an answer (`characters`, `cleaning`) and find the first of the style's rules that it fails, in the order of `RULES`.

    `instructions` is the prompt without passage and examples. The rule `similarity` needs an embedder and is applied in `judging`.
    The rule `held_out` rejects an answer even if the source has the run too: it exists to catch rewrites of held-out text.
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
    """Return the first five words. A collapsed model begins most of its answers with a few such openings (FinePhrase)."""
    return " ".join(words(text[:500])[:_OPENING_WORDS])


def collapse(counts: Mapping[str, int]) -> tuple[int, float, str]:
    """Return the number of distinct openings, the share of the most common, and that opening; ties go to the first by alphabet."""
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


# Each rule returns what it found, or "" if the answer passes.


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
    """Return the first run of `length` words that the answer shares with `secret` but not with its source; or ""."""
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
    if share >= FOREIGN_SHARE:
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
