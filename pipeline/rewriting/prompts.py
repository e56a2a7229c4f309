"""Build the prompt for a style and a passage, and the key of its answer.

Nothing here depends on order, machine or time: the same passage gets the same prompt and key in every run.
"""

import heapq
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xxhash

from pipeline.engine.exchange import Message
from pipeline.errors import ConfigError
from pipeline.execution.fingerprint import canonical_json, fingerprint
from pipeline.hashing import keyed_hash
from pipeline.rewriting.styles import Style

_PLACEHOLDER = re.compile(r"\{(text|specialist)\}")
_EXAMPLE = "Example {number}:\n{text}"
_SPARE_TOKENS = 64  # added to the limit of every answer, for titles, labels and very short passages

# The end of a line; of a sentence with its closing quotes; of a sentence in scripts without a space after it.
_ENDS = re.compile(r"(?=\n)|[.!?…؟।]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*")
_SPACE = re.compile(r"(?<=\S)(?=\s)")
_MOST_CHARACTERS = 32  # per token, as for windows: bounds how much of a large document is tokenised


def messages(style: Style, text: str, examples: Sequence[str] = ()) -> list[Message]:
    """Return the prompt for one passage, with a system message if the style has one. Passage and examples are inserted unchanged.

    Raises:
        ConfigError: the style has {specialist}, and there are no examples.
    """
    if needs_examples(style) and not examples:
        raise ConfigError(
            f"the style {style.name} has {{specialist}} in its prompt, and there are no examples to put there; "
            "set rephrase.examples > 0, or leave the style out of rephrase.styles"
        )
    numbered = "\n\n".join(_EXAMPLE.format(number=i, text=example) for i, example in enumerate(examples, 1))
    values = {"text": text, "specialist": numbered}
    prompt: Message = {"role": "user", "content": _fill(style.prompt, values)}
    return [{"role": "system", "content": _fill(style.system, values)}, prompt] if style.system else [prompt]


def instructions(style: Style) -> str:
    """Return the prompt without passage and examples, to detect answers that leak it."""
    return "\n\n".join(_fill(part, {}) for part in (style.system, style.prompt) if part)


def needs_examples(style: Style) -> bool:
    """Return whether the prompt includes excerpts of the specialist sample."""
    return "{specialist}" in style.prompt or "{specialist}" in style.system


def prompt_hash(style: Style) -> str:
    """Return a hash of a style's wording as 16 hex digits; the style's name and limits do not change it."""
    return fingerprint({"system": style.system, "prompt": style.prompt})


def answer_key(
    generator: str, style: Style, text: str, examples: Sequence[str], window_key: int, passage: int, variant: int
) -> int:
    """Return the 64-bit key of an answer: a hash of everything that it depends on, and of window, passage number and variant.

    Of the style, only name, wording and `max_output` count. Limits that only filter answers may change without losing stored
    answers.
    """
    wording = [style.name, prompt_hash(style), style.max_output, _EXAMPLE]
    place = [int(window_key), int(passage), int(variant)]
    # Nested lists with quoted strings: different inputs never have the same JSON.
    return int(xxhash.xxh3_64_intdigest(canonical_json([generator, wording, text, list(examples), place]).encode()))


def max_tokens(style: Style, passage_tokens: int) -> int:
    """Return the token limit of an answer: `max_output` times the tokens of the passage, plus 64."""
    return round(style.max_output * passage_tokens) + _SPARE_TOKENS


def draw_examples(samples: Sequence[str], count: int, *, seed: int, key: int) -> list[str]:
    """Choose `count` distinct texts, or all if there are fewer. Choice and order depend only on seed, key and the texts' content.

    Each call hashes all texts, so `samples` should be a pool of hundreds of excerpts, not a corpus.
    """
    distinct = list(dict.fromkeys(samples))
    id_N = np.array([xxhash.xxh3_64_intdigest(sample.encode("utf-8", "surrogatepass")) for sample in distinct], dtype=np.uint64)
    hash_N = keyed_hash(id_N, seed=seed, purpose="examples", copy=np.array([key], dtype=np.uint64))
    return [sample for _, sample in heapq.nsmallest(count, zip(hash_N.tolist(), distinct, strict=True))]


def excerpt(text: str, limit: int, count: Callable[[str], int]) -> str:
    """Return the beginning of a document, at most `limit` tokens by `count`, without trailing white space.

    It ends after the last line or sentence that ends in its second half, else after the last word that ends there, else anywhere.
    """
    head = text[: max(limit, 0) * _MOST_CHARACTERS]
    if len(head) == len(text) and count(head) <= limit:
        return text.rstrip()
    fits, too_long = 0, len(head) + 1  # the longest prefix known to fit, the shortest known not to
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if count(head[:middle]) <= limit else (fits, middle)
    for pattern in (_ENDS, _SPACE):
        # One more character, because some ends are recognised by the white space after them.
        ends = [match.end() for match in pattern.finditer(text[: fits + 1]) if fits < 2 * match.end() <= 2 * fits]
        for end in reversed(ends):
            cut = text[:end].rstrip()
            if cut and count(cut) <= limit:  # a prefix may, rarely, have more tokens than the longer text
                return cut
    return text[:fits].rstrip()


def _fill(template: str, values: Mapping[str, str]) -> str:
    # One pass, so that a placeholder within a passage is not replaced.
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], ""), template)
