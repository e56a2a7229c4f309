"""Scores of windows: DSIR against the package of its authors, classifiers and cosines against plain code, on planted topics."""

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
from pipeline.text.tfidf import apply_tfidf, inverse_frequencies
from tests.support.corpora import TOPICS, topic_documents

ESTIMATORS = ["density", "dsir", "classifier", "nearest"]


def rows_of(texts: list[str], x_ND: Any = None) -> Rows:
    x_ND = np.zeros((len(texts), 3), np.float32) if x_ND is None else np.asarray(x_ND, np.float32)
    return Rows(key_N=window_keys([f"d{i}" for i in range(len(texts))], [0] * len(texts)), texts=texts, x_ND=x_ND)


def topic_rows(topic: str, count: int, seed: int = 0) -> Rows:
    """Documents of a topic, with embeddings that lean one way for each topic."""
    number = list(TOPICS).index(topic)
    x_ND = np.random.default_rng(seed).normal(0, 0.1, (count, 8)) + np.eye(8)[number]
    return rows_of([row["text"] for row in topic_documents(topic, count, seed=seed, words=150)], x_ND)


def test_dsir_is_that_of_its_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same hash, same counts, same log weights, and with the same noise the same selection."""
    from data_selection import HashedNgramDSIR

    rng = np.random.default_rng(0)
    raw = [row["text"] for topic in TOPICS for row in topic_documents(topic, 30, words=int(rng.integers(60, 200)))]
    raw += ["Été! A_b c-d, 3.14 (e)\tf\n\n" * 40, "İstanbul ǅ ß 漢字 漢字。" * 60, "one", "«" * 300]
    target = [row["text"] for row in topic_documents("law", 10, seed=3)]
    for name, texts in (("raw", raw), ("target", target)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    theirs = HashedNgramDSIR([str(tmp_path / "raw.jsonl")], [str(tmp_path / "target.jsonl")], str(tmp_path / "cache"), num_proc=1)
    theirs.fit_importance_estimator(num_tokens_to_fit="all")
    theirs.compute_importance_weights()

    used = dsir.Dsir()
    sample, rows = rows_of(target), rows_of(raw)
    halves = [used.background(rows.take(np.arange(50))), used.background(rows.take(np.arange(50, len(raw))))]
    model = used.fit(halves, sample)
    np.testing.assert_allclose(model["log_ratio_B"], theirs.log_diff.ravel(), rtol=1e-12, atol=1e-12)
    expected_N = np.load(tmp_path / "cache" / "log_importance_weights" / "0.npy").ravel()
    np.testing.assert_allclose(dsir.log_weights(model["log_ratio_B"], raw), expected_N, rtol=1e-9, atol=1e-9)

    noise_N = -np.log(-np.log(keyed_uniform(rows.key_N, seed=7, purpose="dsir")))
    ours_N = used.scores([model], rows, seed=7)[:, 0]
    long_N = np.isfinite(ours_N)
    assert long_N.tolist() == [theirs.get_perexample_metadata({}, theirs.featurizer(text)) >= 100 for text in raw]
    # The package draws its noise for the examples that are long enough, in their order.
    monkeypatch.setattr(np.random, "gumbel", lambda size: noise_N[long_N].reshape(size))
    theirs.resample(str(tmp_path / "out"), 25, cache_dir=str(tmp_path / "chosen"))
    files = [path for path in tmp_path.rglob("0.jsonl") if "out" in path.parts or "chosen" in path.parts]
    chosen = {json.loads(line)["text"] for line in files[0].read_text(encoding="utf-8").splitlines()}
    assert chosen == {raw[row] for row in np.argsort(-ours_N)[:25]}


def test_dsir_of_no_text_and_of_single_words() -> None:
    assert dsir.counts([]).sum() == dsir.counts(["", " \n"]).sum() == 0
    assert dsir.counts(["a", "", "a b"]).sum() == 4  # a, a, b and "a b": no bigram over the end of a text
    np.testing.assert_array_equal(dsir.log_weights(np.ones(dsir.BUCKETS), ["", "a b c", "", "x"]), [0, 5, 0, 1])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_put_the_topic_of_the_sample_first_whatever_the_split(name: str) -> None:
    used = make_scorer(name)
    background = [topic_rows(topic, 60) for topic in TOPICS]
    learnt = [used.background(rows) for rows in background]
    models = [used.fit(learnt, topic_rows(topic, 12, seed=1)) for topic in ("law", "music")]
    corpus = Rows.concat([topic_rows(topic, 20, seed=2) for topic in TOPICS])
    score_NS = used.scores(models, corpus, seed=0)
    assert score_NS.shape == (80, 2)
    assert score_NS.dtype == np.float32
    for column, topic in enumerate(("law", "music")):
        first = np.argsort(-score_NS[:, column], kind="stable")[:20]
        assert set(first // 20) == {list(TOPICS).index(topic)}
    pieces = [used.scores(models, corpus.take(np.arange(a, b)), seed=0) for a, b in ((0, 1), (1, 33), (33, 80))]
    np.testing.assert_allclose(np.concatenate(pieces), score_NS, rtol=1e-6)
    again = [used.fit(learnt, topic_rows(topic, 12, seed=1)) for topic in ("law", "music")]
    for one, other in zip(models, again, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_log_odds_of_two_normals_are_the_ones_on_paper() -> None:
    """Of N(m, 1) against N(-m, 1) the log density ratio is 2 m x, whatever the sizes of the two."""
    rng = np.random.default_rng(0)
    sample, background = rng.normal(0.7, 1, (2000, 1)), rng.normal(-0.7, 1, (30_000, 1))
    weights = fit_logistic(sample, background, 100.0)
    np.testing.assert_allclose(weights, [1.4, 0.0], atol=0.06)
    # A sample of five is held closer to no opinion than one of two thousand.
    assert abs(fit_logistic(sample[:5], background, 0.1)[0]) < 0.6 * abs(fit_logistic(sample, background, 0.1)[0])


def test_words_and_pairs_are_counted_as_scikit_learn_counts_them() -> None:
    """By another hash, so the counts of a row are compared in order of size. No two n-grams of a row share a bucket here."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [row["text"] for row in topic_documents("space", 9)]
    texts += ["", "¡Ça va? -- ÇA VA!! ça\u00a0va", "one", "snake_case(a1, b2)  # 日本語 text, 日本語 text"]
    expected = np.log1p(CountVectorizer(token_pattern=r"\w+|[^\w\s]+", ngram_range=(1, 2)).fit_transform(texts).toarray())
    counts = count_hashed_ngrams(texts)
    for row, its in zip(expected, counts, strict=True):
        np.testing.assert_allclose(np.sort(its.data), np.sort(row[row > 0]), rtol=1e-6)
    assert len(set(count_hashed_ngrams(["a b", "b a"]).indices)) == 4, "a pair is not its reverse"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=30), max_size=8))
def test_a_text_is_counted_the_same_in_any_company(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_TEXTS_PER_BLOCK", 3)  # so that several blocks are joined, the last of them short
        together = count_hashed_ngrams(texts).toarray()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(count_hashed_ngrams([text]).toarray()[0], row)


def test_tf_idf_is_that_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    texts = [row["text"] for row in topic_documents("space", 9)]
    counts = count_hashed_ngrams(texts)
    expected = TfidfTransformer().fit(counts).transform(counts)
    np.testing.assert_allclose(apply_tfidf(counts, inverse_frequencies(counts)).toarray(), expected.toarray(), rtol=1e-5, atol=1e-7)
