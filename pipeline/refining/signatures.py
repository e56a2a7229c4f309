"""datatrove's MinHash signatures for documents of any length: the same values in bounded memory.

datatrove builds a table of all shingles × all hashes (240 by default, 8 bytes each, with several copies) and splits the whole text
into words at once: 2.8 GB for a document of 4 MB. Here the text is split piece by piece, and the table is built in blocks.

Shapes: S shingles, K buckets, H hashes of a bucket.
"""

import functools
from collections.abc import Iterator

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datatrove.utils.text import ngrams, simplify_text
from numpy.typing import NDArray

from pipeline.text.words import iter_pieces

PIECE_CHARACTERS = 1_000_000  # a long novel; its words take about 60 MB
_BLOCK_SHINGLES = 4096  # × 240 hashes × 8 bytes = 8 MB


class BoundedSignature(MinhashDedupSignature):  # type: ignore[misc]
    """Computes the same signatures as datatrove for texts of at most `piece_characters`, which are one piece.

    Longer texts also get the same signatures if words end at white space. With word tokenizers that look beyond white space (Thai,
    Korean, Japanese), or if a whole piece has no white space or punctuation, words at the ends of pieces may differ: a few in a
    million.
    """

    piece_characters = PIECE_CHARACTERS

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        """Return (S, 1) hashes of the shingles, the n-grams of `config.n_grams` words."""
        n = self.config.n_grams
        last_words: list[str] = []
        hashes: list[NDArray[np.uint64]] = []
        for piece in iter_pieces(text, self.piece_characters):
            words = last_words + self.word_tokenizer.word_tokenize(simplify_text(piece, self.config.norm_config))
            hashes.append(np.fromiter((self._hash_func(" ".join(ngram)) for ngram in ngrams(words, n)), np.uint64))
            last_words = words[max(0, len(words) - n + 1) :]
        return np.concatenate(hashes).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """Return K lists of H hashes; each is the minimum over all shingles."""

        def signatures() -> Iterator[NDArray[np.uint64]]:
            for begin in range(0, len(shingles), _BLOCK_SHINGLES):
                yield np.array(super(BoundedSignature, self).get_signature(shingles[begin : begin + _BLOCK_SHINGLES]), np.uint64)

        min_KH: list[list[int]] = functools.reduce(np.minimum, signatures()).tolist()
        return min_KH
