"""datatrove's MinHash signatures, of documents of any length: the same numbers in bounded memory.

datatrove makes a table of all shingles × all hashes (240 by default, 8 bytes each, several times over), and the words of the whole
text at once: 2.8 GB for a document of 4 MB. Here words are found piece by piece, and the table is made in blocks.

Shapes: S shingles, K buckets, H hashes of a bucket.
"""

import functools
from collections.abc import Iterator

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datatrove.utils.text import ngrams, simplify_text
from numpy.typing import NDArray

from pipeline.text.ngrams import pieces

PIECE_CHARACTERS = 1_000_000  # a novel; its words take some 60 MB
_BLOCK_SHINGLES = 4096  # × 240 hashes × 8 bytes: 8 MB


class BoundedSignature(MinhashDedupSignature):  # type: ignore[misc]
    """Signatures as datatrove's own: always for a text of at most `piece_characters`, which is one piece.

    For a longer one where words end at white space. Tokenizers that look beyond it (Thai, Korean, Japanese), and texts in which
    a whole piece has none, may have other words at the ends of pieces, a few in a million.
    """

    piece_characters = PIECE_CHARACTERS

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        """(S, 1) hashes of the runs of `n_grams` words."""
        n = self.config.n_grams
        before: list[str] = []
        hashes: list[NDArray[np.uint64]] = []
        for piece in pieces(text, self.piece_characters):
            words = before + self.word_tokenizer.word_tokenize(simplify_text(piece, self.config.norm_config))
            hashes.append(np.fromiter((self._hash_func(" ".join(run)) for run in ngrams(words, n)), np.uint64))
            before = words[max(0, len(words) - n + 1) :]
        return np.concatenate(hashes).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """K lists of H hashes, the least of each over all shingles."""

        def signatures() -> Iterator[NDArray[np.uint64]]:
            for begin in range(0, len(shingles), _BLOCK_SHINGLES):
                yield np.array(super(BoundedSignature, self).get_signature(shingles[begin : begin + _BLOCK_SHINGLES]), np.uint64)

        least_KH: list[list[int]] = functools.reduce(np.minimum, signatures()).tolist()
        return least_KH
