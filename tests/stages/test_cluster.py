"""The cluster stage on Ray, compared with a tree that is fitted in memory."""

from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.clustering.tree import read_tree
from pipeline.execution.step import part_names
from pipeline.stages.embed import read_embeddings
from tests.support.tree_oracle import fit_tree


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "cached_clusters")
@pytest.mark.parametrize(
    "settings",
    [
        {"branching": 4, "depth": 2, "min_windows": 16},
        {"branching": 2, "depth": 1, "min_windows": 16, "fit_windows": 100},  # the root is fitted on some of its windows
    ],
)
def test_the_stage_fits_the_same_tree_as_in_memory(topics: dict[str, Any], settings: dict[str, Any]) -> None:
    topics["cluster"] = settings
    graph = pipeline.curate(topics, until="cluster")
    embedded, cluster = graph.step("embed", "generalist"), graph.config.cluster
    parts = [read_embeddings(embedded.folder, name) for name in part_names(embedded)]
    key_N, valid_N, x_ND = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert len(parts) > 4
    assert len(key_N) > 2 * 100 * cluster.branching or cluster.branching > 2
    expected = fit_tree(
        x_ND[valid_N],
        key_N[valid_N],
        branching=cluster.branching,
        depth=cluster.depth,
        fit_windows=cluster.fit_windows,
        steps=cluster.steps,
        balance=cluster.balance,
        min_windows=cluster.min_windows,
        seed=graph.config.seed,
    )
    tree = read_tree(graph.step("cluster").folder)
    assert tree.depth == cluster.depth
    assert tree.to_table().equals(expected.to_table())
