"""Diagnostics on merged leaves, against loops over all leaves, and the bootstrap over documents."""

import math
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Weights
from pipeline.mixture.allocation import Limits, allocate_capped
from pipeline.mixture.diagnostics import DESCRIPTIONS, describe
from pipeline.mixture.estimators import ESTIMATORS, compute_claims
from pipeline.mixture.histograms import LeafHistogram
from pipeline.mixture.strata import Strata
from pipeline.mixture.weights_tables import build_tables
from pipeline.tables import DIAGNOSTICS, MIXTURE, SPECIALISTS
from tests.support.trees import count_documents, make_random_generalist, make_random_sample, make_random_tree, make_two_level_tree


def compute_tables(tree, generalist, samples, *, budget=500, draw="rounded", seed=0, shares=None, **weights):
    settings_of_weights = Weights(**({"bootstrap": 0, "estimator": "crisp"} | weights))
    mixtures = ESTIMATORS[settings_of_weights.estimator].estimate(tree, generalist, samples, settings_of_weights)
    shares = shares or dict.fromkeys(samples, 1.0)
    limits = Limits(budget_tokens=budget, max_epochs=settings_of_weights.max_epochs, overflow=settings_of_weights.overflow)
    more = {"shares": shares, "natural_share": settings_of_weights.natural_share or 0.0, "draw": draw, "seed": seed}
    result = build_tables(tree, generalist, samples, mixtures, settings_of_weights, limits, **more)
    facts = {(row["specialist"], row["name"]): row for row in result.diagnostics.to_pylist()}
    return result, facts, mixtures


def compute_diagnostics_by_leaf(generalist, mixtures, shares, natural_share, budget, max_epochs, overflow, draw):
    """Compute the definitions in METHODS, leaf by leaf."""
    g = generalist.tokens_L / generalist.tokens_L.sum()
    claim = compute_claims({name: mixture.p_L for name, mixture in mixtures.items()}, shares, natural_share, g)[1]
    target = claim.sum(axis=0)
    plan = allocate_capped(claim, generalist.tokens_L, Limits(budget_tokens=budget, max_epochs=max_epochs, overflow=overflow))
    out = [x / sum(plan.allocated_L) for x in plan.allocated_L]
    leaves = range(len(g))
    epochs = [plan.allocated_L[i] / generalist.tokens_L[i] if generalist.tokens_L[i] else 0.0 for i in leaves]
    repeats_value, unique, cumulative = 0.0, 0.0, 0.0
    for i in leaves:
        tokens, e = float(generalist.tokens_L[i]), epochs[i]
        repeats_value += plan.allocated_L[i] if e <= 1 else tokens + tokens * 15.39 * (1 - math.exp(-(e - 1) / 15.39))
        unique += tokens * (min(e, 1) if draw == "rounded" else 1 - math.exp(-e))
    p99 = None
    for e, p in sorted(zip(epochs, out, strict=True)):
        cumulative += p
        p99 = e if p99 is None and cumulative >= 0.99 - 1e-12 else p99
    n = generalist.windows_L
    entropy = lambda p: -sum(x * math.log(x) for x in p if x > 0)  # noqa: E731
    found = {
        ("", "epochs_max"): max(epochs),
        ("", "epochs_p99"): p99,
        ("", "repeats_value"): repeats_value / sum(plan.allocated_L),
        ("", "unique_share"): unique / sum(plan.allocated_L),
        ("", "effective_windows"): sum(w * k for w, k in zip(epochs, n, strict=True)) ** 2
        / sum(w * w * k for w, k in zip(epochs, n, strict=True)),
        ("", "output_entropy"): entropy(out),
        ("", "output_top_share"): max(out),
        ("", "generalist_entropy"): entropy(g),
        ("", "generalist_top_share"): max(g),
        ("", "clipped_mass"): sum(max(0, t - max_epochs * k / budget) for t, k in zip(target, generalist.tokens_L, strict=True)),
        ("", "deficit_share"): 1 - sum(plan.allocated_L) / budget,
    }
    for name, mixture in mixtures.items():
        p = mixture.p_L
        found |= {
            (name, "entropy"): entropy(p),
            (name, "effective_leaves"): math.exp(entropy(p)),
            (name, "top_share"): max(p),
            (name, "kl_generalist"): sum(p[i] * math.log(p[i] / g[i]) for i in leaves if p[i] > 0),
            (name, "kl_output"): sum(p[i] * math.log(p[i] / out[i]) for i in leaves if p[i] > 0),
            (name, "without_text"): mixture.p_raw_L[generalist.tokens_L == 0].sum(),
        }
    return found


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["auto", "none", 2.0]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["spread", "leave"]),
    st.sampled_from(["rounded", "multinomial"]),
)
def test_diagnostics_on_merged_leaves_equal_loops_over_all_leaves(seed, smoothing, natural_share, overflow, draw):
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng, depth=4)
    generalist = make_random_generalist(rng, tree, 0.1)
    samples = {name: count_documents(make_random_sample(rng, tree, documents=2, max_windows=2)) for name in ("a", "b")}
    for sample in samples.values():
        if not generalist.tokens_L[sample.leaf_E].any():
            return
    budget = max(1, int(generalist.tokens_L.sum() * rng.random() * 0.5))
    _, facts, mixtures = compute_tables(
        tree, generalist, samples, budget=budget, draw=draw, shares={"a": 3.0, "b": 1.0},
        smoothing=smoothing, natural_share=natural_share, overflow=overflow, max_epochs=2.0,
    )  # fmt: skip
    expected = compute_diagnostics_by_leaf(generalist, mixtures, {"a": 3.0, "b": 1.0}, natural_share, budget, 2.0, overflow, draw)
    for key, value in expected.items():
        assert facts[key]["value"] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["shuffled", "density"]))
@example(1325, "density")  # no window of the sample is on the lowest level
def test_untouched_leaves_with_different_shares_are_not_merged(seed, estimator):
    """`shuffled` and `density` give a share to leaves without sample windows; here each leaf is one stratum."""
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng, depth=3)
    generalist = make_random_generalist(rng, tree, 0.0)
    samples = {"a": count_documents(make_random_sample(rng, tree, documents=2, max_windows=2))}
    budget = max(1, int(generalist.tokens_L.sum() * 0.2))
    settings_of_weights = {"overflow": "leave", "max_epochs": 2.0, "natural_share": 0.1}
    if estimator == "shuffled":
        _, facts, mixtures = compute_tables(tree, generalist, samples, budget=budget, estimator="shuffled", **settings_of_weights)
    else:
        weights = Weights(**settings_of_weights, bootstrap=10)
        clusters = ESTIMATORS["crisp"].estimate(tree, generalist, samples, weights)
        p_L = rng.dirichlet(np.full(len(generalist.tokens_L), 0.3)) * (generalist.tokens_L > 0)
        mixtures = {"a": replace(clusters["a"], p_L=p_L / p_L.sum())}
        leaf_C = np.flatnonzero(generalist.tokens_L)
        claim_RL = np.stack([0.9 * mixtures["a"].p_L, 0.1 * generalist.p_L])
        strata = Strata(
            key_C=leaf_C << 16,
            windows_C=generalist.windows_L[leaf_C],
            tokens_C=generalist.tokens_L[leaf_C],
            claim_RC=claim_RL[:, leaf_C],
        )
        more = {"shares": {"a": 1.0}, "natural_share": 0.1, "draw": "rounded", "seed": 0, "strata": strata, "clusters": clusters}
        limits = Limits(budget_tokens=budget, max_epochs=2.0, overflow="leave")
        result = build_tables(tree, generalist, samples, mixtures, weights, limits, **more)
        facts = {(row["specialist"], row["name"]): row for row in result.diagnostics.to_pylist()}
        found = result.specialists.to_pandas()
        if samples["a"].document_rows()[0] > 1:
            assert (found["p_low"] <= found["p_high"]).all()
            # A resample moves a leaf by the square root of what it moves CRISP's weight.
            assert (found["p_high"] / found["p"].clip(1e-300) < 40).all()
    expected = compute_diagnostics_by_leaf(generalist, mixtures, {"a": 1.0}, 0.1, budget, 2.0, "leave", "rounded")
    for key, value in expected.items():
        assert facts[key]["value"] == pytest.approx(value, rel=1e-6, abs=1e-9), key


GENERALIST = LeafHistogram(windows_L=np.array([50, 25, 20, 0]), tokens_L=np.array([500, 300, 200, 0]))
ROWS = [("a", 0, 10), ("a", 0, 10), ("b", 1, 10), ("b", 0, 10), ("c", 0, 10), ("d", 2, 10), ("e", 3, 10)]


def test_tables_have_the_declared_schemas_and_every_diagnostic_a_meaning():
    result, facts, _ = compute_tables(make_two_level_tree(), GENERALIST, {"x": count_documents(ROWS)}, bootstrap=20)
    assert result.specialists.schema == SPECIALISTS
    assert result.mixture.schema == MIXTURE
    assert result.diagnostics.schema == DIAGNOSTICS
    names = {name for _, name in facts}
    assert names == {*DESCRIPTIONS, "alpha_level_1", "alpha_level_2"}
    assert all(row["meaning"] == describe(row["name"]) and "\n" not in row["meaning"] for row in facts.values())
    assert facts["x", "documents"]["value"] == 5
    for name in ("documents", "windows", "alpha_level_1"):
        assert facts["x", name]["low"] is None
    for key in (("x", "entropy"), ("x", "without_text"), ("", "epochs_max"), ("", "output_entropy")):
        assert facts[key]["low"] <= facts[key]["high"]
    mixture = result.mixture.to_pydict()
    assert sum(mixture["p_target"]) == pytest.approx(1)
    np.testing.assert_allclose(np.array(mixture["weight"]) * mixture["p_generalist"], mixture["p_target"])
    assert result.specialists["leaf"].to_pylist() == [0, 1, 2, 3]  # leaf 3 has no text, but the sample does


def test_value_of_four_epochs_equals_the_paper():
    generalist = LeafHistogram(windows_L=np.array([10, 10, 10, 10]), tokens_L=np.array([100, 100, 100, 100]))
    _, facts, _ = compute_tables(
        make_two_level_tree(), generalist, {"x": count_documents([("a", 0, 5), ("b", 0, 5)])}, budget=400, smoothing="none"
    )
    assert facts["", "repeats_value"]["value"] == pytest.approx(0.93, abs=0.005)
    assert facts["", "unique_share"]["value"] == pytest.approx(0.25)
    assert facts["", "effective_windows"]["value"] == pytest.approx(10)


def test_bootstrap_resamples_documents_and_ignores_the_order_of_rows():
    """Ten windows of one document give wider intervals than ten documents with one window each."""
    tree, rng = make_two_level_tree(), np.random.default_rng(0)
    leaves = rng.integers(0, 3, 60)
    single = [(f"w{i}", int(leaf), 10) for i, leaf in enumerate(leaves)]
    clumped = [(f"d{i}", int(leaf), 10) for i, leaf in enumerate(leaves[::10]) for _ in range(10)]

    def compute_interval(rows, seed=0):
        table = compute_tables(tree, GENERALIST, {"x": count_documents(rows)}, bootstrap=200, smoothing="none", seed=seed)[
            0
        ].specialists
        return np.array(table["p_high"]) - np.array(table["p_low"]), np.array(table["p_low"])

    wide, narrow = compute_interval(clumped), compute_interval(single)
    assert (wide[0][:3] > 1.5 * narrow[0][:3]).all()
    np.testing.assert_array_equal(compute_interval(single[::-1])[1], narrow[1])
    assert (compute_interval(single, seed=1)[1] != narrow[1]).any()


def test_bootstrap_interval_of_a_share_equals_the_binomial_interval():
    leaves = [0] * 40 + [1] * 60
    rows = [(f"w{i}", leaf, 10) for i, leaf in enumerate(leaves)]
    table = compute_tables(make_two_level_tree(), GENERALIST, {"x": count_documents(rows)}, bootstrap=400, smoothing="none")[
        0
    ].specialists.to_pydict()
    spread = 1.645 * math.sqrt(0.4 * 0.6 / 100)
    assert table["p_low"][0] == pytest.approx(0.4 - spread, abs=0.02)
    assert table["p_high"][0] == pytest.approx(0.4 + spread, abs=0.02)


@pytest.mark.parametrize(("rows", "bootstrap"), [(ROWS, 0), ([("a", 0, 10), ("a", 1, 10)], 50)])
def test_intervals_without_resampling_are_missing(rows, bootstrap):
    result, facts, _ = compute_tables(make_two_level_tree(), GENERALIST, {"x": count_documents(rows)}, bootstrap=bootstrap)
    assert all(row["low"] is None and row["high"] is None for row in facts.values())
    assert np.isnan(result.specialists["p_low"].to_numpy()).all()


def test_intervals_of_the_mixture_are_missing_unless_every_sample_is_resampled():
    samples = {"x": count_documents(ROWS), "y": count_documents([("only", 0, 10)])}
    _, facts, _ = compute_tables(make_two_level_tree(), GENERALIST, samples, bootstrap=20)
    assert facts["x", "entropy"]["low"] is not None
    assert facts["y", "entropy"]["low"] is None
    assert facts["", "epochs_max"]["low"] is None


def test_natural_estimator_reports_no_distance_to_the_generalist():
    _, facts, _ = compute_tables(make_two_level_tree(), GENERALIST, {"x": count_documents(ROWS)}, estimator="natural", bootstrap=10)
    assert facts["x", "kl_generalist"]["value"] == pytest.approx(0, abs=1e-12)
    assert facts["x", "entropy"]["low"] == pytest.approx(facts["x", "entropy"]["high"])


def test_bootstrap_over_262144_leaves_has_bounded_memory():
    leaves, wide = 64**3, 64
    tree = SimpleNamespace(
        parent_V=np.concatenate([[-1], np.zeros(wide, int), np.repeat(np.arange(1, 1 + wide), wide),
                                 np.repeat(np.arange(1 + wide, 1 + wide + wide**2), wide)]),
        level_V=np.repeat([0, 1, 2, 3], [1, wide, wide**2, leaves]),
        first_leaf_V=np.concatenate([[0], np.arange(wide) * wide**2, np.arange(wide**2) * wide, np.arange(leaves)]),
        num_leaves_V=np.repeat([leaves, wide**2, wide, 1], [1, wide, wide**2, leaves]),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    generalist = LeafHistogram(windows_L=np.full(leaves, 10), tokens_L=rng.integers(1, 2000, leaves))
    rows = [(f"d{i // 4}", int(leaf), 100) for i, leaf in enumerate(rng.integers(0, leaves, 3000) // 8)]
    sample = count_documents(rows)
    tracemalloc.start()
    result, _, _ = compute_tables(tree, generalist, {"x": sample}, budget=10**6, bootstrap=200, smoothing=5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20
    table = result.specialists
    assert len(table) == leaves
    low, high = table["p_low"].to_numpy(), table["p_high"].to_numpy()
    assert (low <= high + 1e-15).all()
