"""Scores of windows: DSIR against the package of its authors, n-gram counts and TF-IDF against scikit-learn, and planted topics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import keyed_uniform, window_keys
from pipeline.scoring import Rows, dsir, features, make_scorer
from pipeline.scoring.features import count_hashed_ngrams, fit_logistic
from pipeline.text.tfidf import apply_tfidf, compute_idf
from tests.support.corpora import TOPICS, make_topic_documents

ESTIMATORS = ["density", "dsir", "classifier", "nearest"]


def make_rows(texts: list[str], x_ND: Any = None) -> Rows:
    x_ND = np.zeros((len(texts), 3), np.float32) if x_ND is None else np.asarray(x_ND, np.float32)
    return Rows(key_N=window_keys([f"d{i}" for i in range(len(texts))], [0] * len(texts)), texts=texts, x_ND=x_ND)


def make_topic_rows(topic: str, count: int, seed: int = 0) -> Rows:
    """Return documents of a topic, with embeddings around one direction for each topic."""
    number = list(TOPICS).index(topic)
    x_ND = np.random.default_rng(seed).normal(0, 0.1, (count, 8)) + np.eye(8)[number]
    return make_rows([row["text"] for row in make_topic_documents(topic, count, seed=seed, words=150)], x_ND)


def test_dsir_equals_the_package_of_its_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same hash, same counts, same log weights, and with the same noise the same selection."""
    from data_selection import HashedNgramDSIR

    rng = np.random.default_rng(0)
    raw = [row["text"] for topic in TOPICS for row in make_topic_documents(topic, 30, words=int(rng.integers(60, 200)))]
    raw += ["Été! A_b c-d, 3.14 (e)\tf\n\n" * 40, "İstanbul ǅ ß 漢字 漢字。" * 60, "one", "«" * 300]
    target = [row["text"] for row in make_topic_documents("law", 10, seed=3)]
    for name, texts in (("raw", raw), ("target", target)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    reference = HashedNgramDSIR(
        [str(tmp_path / "raw.jsonl")], [str(tmp_path / "target.jsonl")], str(tmp_path / "cache"), num_proc=1
    )
    reference.fit_importance_estimator(num_tokens_to_fit="all")
    reference.compute_importance_weights()

    scorer = dsir.Dsir()
    sample, rows = make_rows(target), make_rows(raw)
    halves = [scorer.background(rows.take(np.arange(50))), scorer.background(rows.take(np.arange(50, len(raw))))]
    model = scorer.fit(halves, sample)
    np.testing.assert_allclose(model["log_ratio_B"], reference.log_diff.ravel(), rtol=1e-12, atol=1e-12)
    expected_N = np.load(tmp_path / "cache" / "log_importance_weights" / "0.npy").ravel()
    np.testing.assert_allclose(dsir.log_weights(model["log_ratio_B"], raw), expected_N, rtol=1e-9, atol=1e-9)

    noise_N = -np.log(-np.log(keyed_uniform(rows.key_N, seed=7, purpose="dsir")))
    score_N = scorer.scores([model], rows, seed=7)[:, 0]
    long_N = np.isfinite(score_N)
    assert long_N.tolist() == [reference.get_perexample_metadata({}, reference.featurizer(text)) >= 100 for text in raw]
    # The package draws its noise for the examples that are long enough, in their order.
    monkeypatch.setattr(np.random, "gumbel", lambda size: noise_N[long_N].reshape(size))
    reference.resample(str(tmp_path / "out"), 25, cache_dir=str(tmp_path / "chosen"))
    files = [path for path in tmp_path.rglob("0.jsonl") if "out" in path.parts or "chosen" in path.parts]
    chosen = {json.loads(line)["text"] for line in files[0].read_text(encoding="utf-8").splitlines()}
    assert chosen == {raw[row] for row in np.argsort(-score_N)[:25]}


def test_dsir_counts_of_empty_texts_and_single_words() -> None:
    assert dsir.counts([]).sum() == dsir.counts(["", " \n"]).sum() == 0
    assert dsir.counts(["a", "", "a b"]).sum() == 4  # a, a, b and "a b": no bigram over the end of a text
    np.testing.assert_array_equal(dsir.log_weights(np.ones(dsir.BUCKETS), ["", "a b c", "", "x"]), [0, 5, 0, 1])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_rank_the_topic_of_the_sample_first_for_any_split(name: str) -> None:
    scorer = make_scorer(name)
    background = [make_topic_rows(topic, 60) for topic in TOPICS]
    backgrounds = [scorer.background(rows) for rows in background]
    models = [scorer.fit(backgrounds, make_topic_rows(topic, 12, seed=1)) for topic in ("law", "music")]
    corpus = Rows.concat([make_topic_rows(topic, 20, seed=2) for topic in TOPICS])
    score_NS = scorer.scores(models, corpus, seed=0)
    assert score_NS.shape == (80, 2)
    assert score_NS.dtype == np.float32
    for column, topic in enumerate(("law", "music")):
        first = np.argsort(-score_NS[:, column], kind="stable")[:20]
        assert set(first // 20) == {list(TOPICS).index(topic)}
    pieces = [scorer.scores(models, corpus.take(np.arange(a, b)), seed=0) for a, b in ((0, 1), (1, 33), (33, 80))]
    np.testing.assert_allclose(np.concatenate(pieces), score_NS, rtol=1e-6)
    again = [scorer.fit(backgrounds, make_topic_rows(topic, 12, seed=1)) for topic in ("law", "music")]
    for one, other in zip(models, again, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_log_odds_of_two_normals_equal_the_closed_form() -> None:
    """Of N(m, 1) against N(-m, 1) the log density ratio is 2 m x, whatever the sizes of the two."""
    rng = np.random.default_rng(0)
    sample, background = rng.normal(0.7, 1, (2000, 1)), rng.normal(-0.7, 1, (30_000, 1))
    weights = fit_logistic(sample, background, 100.0)
    np.testing.assert_allclose(weights, [1.4, 0.0], atol=0.06)
    # A sample of five is regularised more strongly than one of two thousand.
    assert abs(fit_logistic(sample[:5], background, 0.1)[0]) < 0.6 * abs(fit_logistic(sample, background, 0.1)[0])


def test_hashed_ngram_counts_equal_scikit_learn() -> None:
    """The hashes differ, so sorted counts of each row are compared. No two n-grams of a row share a bucket here."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [row["text"] for row in make_topic_documents("space", 9)]
    texts += ["", "¡Ça va? -- ÇA VA!! ça\u00a0va", "one", "snake_case(a1, b2)  # 日本語 text, 日本語 text"]
    expected = np.log1p(CountVectorizer(token_pattern=r"\w+|[^\w\s]+", ngram_range=(1, 2)).fit_transform(texts).toarray())
    counts = count_hashed_ngrams(texts)
    for row, row_counts in zip(expected, counts, strict=True):
        np.testing.assert_allclose(np.sort(row_counts.data), np.sort(row[row > 0]), rtol=1e-6)
    assert len(set(count_hashed_ngrams(["a b", "b a"]).indices)) == 4, "a pair is not its reverse"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=30), max_size=8))
def test_ngram_counts_of_a_text_do_not_depend_on_other_texts(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_TEXTS_PER_BLOCK", 3)  # so that several blocks are joined, the last of them short
        together = count_hashed_ngrams(texts).toarray()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(count_hashed_ngrams([text]).toarray()[0], row)


def test_tf_idf_equals_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    texts = [row["text"] for row in make_topic_documents("space", 9)]
    counts = count_hashed_ngrams(texts)
    expected = TfidfTransformer().fit(counts).transform(counts)
    np.testing.assert_allclose(apply_tfidf(counts, compute_idf(counts)).toarray(), expected.toarray(), rtol=1e-5, atol=1e-7)
