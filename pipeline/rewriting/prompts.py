"""From a style and a passage to what a model reads, and to the identity of its answer.

Nothing here depends on order, place or clock: the same passage gets the same prompt and key in every run.
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
_SPARE_TOKENS = 64  # of every answer: titles, labels, and passages so short that their length says little

# A line's end; a sentence's, with what closes it; and of scripts that put no space after one.
_ENDS = re.compile(r"(?=\n)|[.!?…؟।]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*")
_SPACE = re.compile(r"(?<=\S)(?=\s)")
_MOST_CHARACTERS = 32  # of a token, as in windows: a document of any size is tokenised no further than needed


def messages(style: Style, text: str, examples: Sequence[str] = ()) -> list[Message]:
    """The prompt of one passage; a system message only if the style has one. Passage and examples stand in it as they are.

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
    """What the prompt says besides passage and examples; an answer that holds much of it has leaked it."""
    return "\n\n".join(_fill(part, {}) for part in (style.system, style.prompt) if part)


def needs_examples(style: Style) -> bool:
    """Whether excerpts of the specialist's sample are part of the prompt."""
    return "{specialist}" in style.prompt or "{specialist}" in style.system


def prompt_hash(style: Style) -> str:
    """16 hex digits that name the wording of a style, whatever its name and limits."""
    return fingerprint({"system": style.system, "prompt": style.prompt})


def answer_key(
    generator: str, style: Style, text: str, examples: Sequence[str], window_key: int, passage: int, variant: int
) -> int:
    """The 64-bit identity of an answer: of all that it depends on, and of the place that it is for.

    Of the style that is name, wording and `max_output`; limits that judge an answer afterwards can change, and it is used again.
    """
    wording = [style.name, prompt_hash(style), style.max_output, _EXAMPLE]
    place = [int(window_key), int(passage), int(variant)]
    # Nested lists with quoted strings: no two of them have one text.
    return int(xxhash.xxh3_64_intdigest(canonical_json([generator, wording, text, list(examples), place]).encode()))


def max_tokens(style: Style, passage_tokens: int) -> int:
    """Where an answer is cut."""
    return round(style.max_output * passage_tokens) + _SPARE_TOKENS


def draw_examples(samples: Sequence[str], count: int, *, seed: int, key: int) -> list[str]:
    """`count` distinct samples, or all if there are fewer; which, and in which order, depends on seed, key and their content alone.

    Each call reads all samples: they are a pool of hundreds of excerpts, not a corpus.
    """
    distinct = list(dict.fromkeys(samples))
    id_N = np.array([xxhash.xxh3_64_intdigest(sample.encode("utf-8", "surrogatepass")) for sample in distinct], dtype=np.uint64)
    hash_N = keyed_hash(id_N, seed=seed, purpose="examples", copy=np.array([key], dtype=np.uint64))
    return [sample for _, sample in heapq.nsmallest(count, zip(hash_N.tolist(), distinct, strict=True))]


def excerpt(text: str, limit: int, count: Callable[[str], int]) -> str:
    """The beginning of a document, at most `limit` tokens by `count`, without white space at its end.

    It ends with the last line or sentence that ends in its second half; failing that with the last word; failing that anywhere.
    """
    head = text[: max(limit, 0) * _MOST_CHARACTERS]
    if len(head) == len(text) and count(head) <= limit:
        return text.rstrip()
    fits, too_long = 0, len(head) + 1  # the longest prefix known to fit, the shortest known not to
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if count(head[:middle]) <= limit else (fits, middle)
    for pattern in (_ENDS, _SPACE):
        # One character more, so that an end which needs white space behind it is seen.
        ends = [match.end() for match in pattern.finditer(text[: fits + 1]) if fits < 2 * match.end() <= 2 * fits]
        for end in reversed(ends):
            cut = text[:end].rstrip()
            if cut and count(cut) <= limit:  # a prefix may have more tokens than what it is of, if hardly ever
                return cut
    return text[:fits].rstrip()


def _fill(template: str, values: Mapping[str, str]) -> str:
    # One pass, so that a passage which holds a placeholder itself comes through as it is.
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], ""), template)
