"""Build the prompt for a style and a passage, and the key of its answer.

Nothing here depends on order, machine or time: the same passage gets the same prompt and key in every run.
"""

import heapq
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xxhash

from pipeline.engine.llm_io import Message
from pipeline.errors import ConfigError
from pipeline.execution.fingerprint import canonical_json, fingerprint
from pipeline.hashing import keyed_hash
from pipeline.rewriting.styles import Style

_PLACEHOLDER = re.compile(r"\{(text|specialist)\}")
_EXAMPLE_TEMPLATE = "Example {number}:\n{text}"
_SPARE_TOKENS = 64  # added to the limit of every answer, for titles, labels and very short passages

# The end of a line; of a sentence with its closing quotes; of a sentence in scripts without a space after it.
_ENDS = re.compile(r"(?=\n)|[.!?…؟।]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*")
_SPACE = re.compile(r"(?<=\S)(?=\s)")
_MAX_CHARACTERS_PER_TOKEN = 32  # as for windows: bounds how much of a large document is tokenised


def build_messages(style: Style, text: str, examples: Sequence[str] = ()) -> list[Message]:
    """Return the prompt for one passage, with a system message if the style has one. Passage and examples are inserted unchanged.

    Raises:
        ConfigError: the prompt has {specialist}, but no examples are given.
    """
    if needs_examples(style) and not examples:
        raise ConfigError(
            f"the prompt of style {style.name} has {{specialist}}, but no examples are given; "
            "set rephrase.examples to 1 or more, or remove the style from rephrase.styles"
        )
    numbered = "\n\n".join(_EXAMPLE_TEMPLATE.format(number=i, text=example) for i, example in enumerate(examples, 1))
    values = {"text": text, "specialist": numbered}
    prompt: Message = {"role": "user", "content": _fill_template(style.prompt, values)}
    return [{"role": "system", "content": _fill_template(style.system, values)}, prompt] if style.system else [prompt]


def get_instructions(style: Style) -> str:
    """Return the prompt without passage and examples, to detect answers that leak it."""
    return "\n\n".join(_fill_template(part, {}) for part in (style.system, style.prompt) if part)


def needs_examples(style: Style) -> bool:
    """Return whether the prompt includes excerpts of the specialist sample."""
    return "{specialist}" in style.prompt or "{specialist}" in style.system


def hash_prompt(style: Style) -> str:
    """Return a hash of a style's wording as 16 hex digits; the style's name and limits do not change it."""
    return fingerprint({"system": style.system, "prompt": style.prompt})


def compute_answer_key(
    generator: str, style: Style, text: str, examples: Sequence[str], window_key: int, passage: int, variant: int
) -> int:
    """Return the 64-bit key of an answer: a hash of everything that it depends on, and of window, passage number and variant.

    Of the style, only name, wording and `max_output` count. Limits that only filter answers may change without losing stored
    answers.
    """
    wording = [style.name, hash_prompt(style), style.max_output, _EXAMPLE_TEMPLATE]
    position = [int(window_key), int(passage), int(variant)]
    # Nested lists with quoted strings: different inputs never have the same JSON.
    return int(xxhash.xxh3_64_intdigest(canonical_json([generator, wording, text, list(examples), position]).encode()))


def compute_token_limit(style: Style, passage_tokens: int) -> int:
    """Return the token limit of an answer: `max_output` times the tokens of the passage, plus 64."""
    return round(style.max_output * passage_tokens) + _SPARE_TOKENS


def choose_examples(texts: Sequence[str], count: int, *, seed: int, key: int) -> list[str]:
    """Choose `count` distinct texts, or all if there are fewer. Choice and order depend only on seed, key and the texts' content.

    Each call hashes all texts, so `texts` should be a pool of hundreds of excerpts, not a corpus.
    """
    distinct = list(dict.fromkeys(texts))
    id_N = np.array([xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in distinct], dtype=np.uint64)
    hash_N = keyed_hash(id_N, seed=seed, purpose="examples", copy=np.array([key], dtype=np.uint64))
    return [text for _, text in heapq.nsmallest(count, zip(hash_N.tolist(), distinct, strict=True))]


def cut_excerpt(text: str, limit: int, count: Callable[[str], int]) -> str:
    """Return the beginning of a document, at most `limit` tokens by `count`, without trailing white space.

    It ends after the last line or sentence that ends in its second half, else after the last word that ends there, else anywhere.
    """
    head = text[: max(limit, 0) * _MAX_CHARACTERS_PER_TOKEN]
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


def _fill_template(template: str, values: Mapping[str, str]) -> str:
    # One pass, so that a placeholder within a passage is not replaced.
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], ""), template)
