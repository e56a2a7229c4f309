"""Documents of any length: what is computed piece by piece is what datatrove, or the whole text at once, would give."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import PUNCTUATION
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refining import signatures
from pipeline.refining.contamination import Index
from pipeline.refining.signatures import PIECE_CHARACTERS, BoundedSignature
from pipeline.rewriting.filters import HeldOut
from pipeline.text import words
from pipeline.text.ngrams import iter_wordings
from pipeline.text.words import iter_pieces, split_words

SIZE = 12
# Where a cut could do harm: a sigma that ends a word, separators of numbers, marks that compose or move, scripts without spaces.
RUN = st.text("aBΣςσé3١.,'’:·-_<=\u0301\u0327\u0338\u00ad字語かﾊﾞกำ", max_size=SIZE // 2)
BREAK = st.sampled_from([" ", "\n", "\t \u00a0", "\u3000", "! ", "(", '"', "/", "。", "，", "$", "~"])
TEXT = st.lists(st.tuples(RUN, BREAK), max_size=12).map(lambda pairs: "".join(run + end for run, end in pairs))


@given(TEXT)
def test_words_of_pieces_are_those_of_the_text(text: str) -> None:
    cut = list(iter_pieces(text, SIZE))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= SIZE
    assert [word for piece in cut for word in split_words(piece)] == split_words(text)


@given(st.text("ab1 .", max_size=60), st.integers(1, 4))
def test_each_run_of_words_is_in_one_piece(text: str, n: int) -> None:
    found = split_words(" ".join(iter_pieces(text, SIZE)))  # a run of characters that is longer than a piece is cut
    runs = [of_piece.ngram_text(at, n) for of_piece in iter_wordings(text, n, SIZE) for at in range(len(of_piece.ngram_hashes(n)))]
    assert runs == [" ".join(found[at : at + n]) for at in range(len(found) - n + 1)]


def test_pieces_end_where_datatrove_sees_spaces_too() -> None:
    signs = [sign for sign in map(chr, range(0x10000)) if not sign.isspace() and words._LAST_BREAK.match(sign)]
    assert len(signs) > 20
    assert set(signs) <= set(PUNCTUATION)
    assert not set(signs) & set(".,'’:·^`")


def signers(folder: Path, language: str = "eng", size: int = PIECE_CHARACTERS) -> tuple[MinhashDedupSignature, BoundedSignature]:
    config = MinhashConfig(n_grams=3, num_buckets=4, hashes_per_bucket=5, seed=9)
    bounded = BoundedSignature(str(folder), config=config, language=language)
    bounded.piece_characters = size
    return MinhashDedupSignature(str(folder), config=config, language=language), bounded


@pytest.mark.parametrize("language", ["eng", "zho"])
@pytest.mark.parametrize("size", [SIZE, PIECE_CHARACTERS])
def test_signatures_are_those_of_datatrove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, size: int) -> None:
    monkeypatch.setattr(signatures, "_BLOCK_SHINGLES", 2)
    oracle, bounded = signers(tmp_path, language, size)

    @given(TEXT)
    def same(text: str) -> None:
        shingles = oracle.get_shingles(text)
        assert bounded.get_shingles(text).tolist() == shingles.tolist()
        if len(shingles):
            assert bounded.get_signature(shingles) == oracle.get_signature(shingles)

    same()


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_a_signature_does_not_grow_with_the_document(tmp_path: Path) -> None:
    _, bounded = signers(tmp_path, size=10_000)
    chooser = random.Random(0)
    text = " ".join(chooser.choices([f"w{number}" for number in range(999)], k=20_000))
    bounded.get_shingles(text[:50_000])  # what the tokenizer keeps
    assert peak_bytes(lambda: bounded.get_shingles(text)) < 15 * len(text)
    many = BoundedSignature(str(tmp_path), config=MinhashConfig(num_buckets=20, hashes_per_bucket=12))
    shingles = np.random.default_rng(0).integers(0, 2**63, (50_000, 1)).astype(np.uint64)
    assert peak_bytes(lambda: many.get_signature(shingles)) < 40_000_000


@pytest.mark.slow
def test_memory_of_a_search_does_not_grow_with_the_document() -> None:
    chooser = random.Random(0)
    held = " ".join(chooser.choices("abcdefgh", k=20))
    text = " ".join([*chooser.choices([f"w{number}" for number in range(999)], k=400_000), held])
    index, _ = Index.build([(0, 0, [held])], ["x"], 8)
    assert peak_bytes(lambda: index.best_match(text, 1.0)) < 15_000_000
    assert peak_bytes(lambda: HeldOut.from_texts([text])) < 25_000_000
    found = index.best_match(text, 1.0)
    assert found is not None
    assert found.words == held[: 2 * 8 - 1]
