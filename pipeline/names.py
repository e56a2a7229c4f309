"""Names for clusters: the words that set a cluster's text apart from the others' (class-based TF-IDF, arXiv 2203.05794, eq. 2).

Shapes: C clusters, W words.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Words of letters, at least three of them; digits and code say little about a topic.
_WORD = r"(?u)\b[^\W\d_]{3,}\b"


def cluster_terms(texts: Mapping[int, Sequence[str]], num_terms: int = 4) -> dict[int, str]:
    """For each cluster its most telling words, best first, joined by spaces; ties go to the first in the alphabet.

    The weight of a word in a cluster is its frequency there times log(1 + words of a mean cluster / frequency over all clusters).
    A word in a single text of a cluster of several is left out: it names the text and not the cluster.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    clusters = sorted(cluster for cluster in texts if texts[cluster])
    if not clusters:
        return {}
    vectorizer = CountVectorizer(token_pattern=_WORD, stop_words="english", max_df=1.0)
    owner_N = np.repeat(np.arange(len(clusters)), [len(texts[cluster]) for cluster in clusters])
    try:
        counts_NW = vectorizer.fit_transform([text for cluster in clusters for text in texts[cluster]])
    except ValueError:  # no word at all
        return dict.fromkeys(clusters, "")
    words = vectorizer.get_feature_names_out()
    frequency_W = np.asarray(counts_NW.sum(axis=0)).ravel()
    idf_W = np.log1p(counts_NW.sum() / len(clusters) / frequency_W)
    names = {}
    for number, cluster in enumerate(clusters):
        rows_NW = counts_NW[owner_N == number]
        spread_W = np.asarray((rows_NW > 0).sum(axis=0)).ravel()
        # Binary within a text: one long text that repeats a word must not name the cluster.
        score_W = spread_W * idf_W * (spread_W > (1 if len(texts[cluster]) > 1 else 0))
        best_W = np.argsort(-score_W, kind="stable")[:num_terms]
        names[cluster] = " ".join(words[i] for i in best_W if score_W[i] > 0)
    return names
