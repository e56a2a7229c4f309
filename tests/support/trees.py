"""Random cluster trees, with random generalist histograms and specialist samples on them."""

from types import SimpleNamespace

import numpy as np

from pipeline.mixture.histograms import DocumentCounts, LeafHistogram


def make_random_tree(rng, depth=3, branching=3, stop=0.2):
    """Return a random tree, numbered breadth first; some nodes stop early, some have a single child."""
    nodes = [{"parent": -1, "level": 0, "children": []}]
    for index, node in enumerate(nodes):  # the loop extends the list: breadth first
        if node["level"] < depth and (index == 0 or rng.random() > stop):
            for _ in range(int(rng.integers(1, branching + 1)) if index else branching):
                node["children"].append(len(nodes))
                nodes.append({"parent": index, "level": node["level"] + 1, "children": []})
    first, count = {}, {}

    def number(v, start):
        first[v], total = start, 0
        for child in nodes[v]["children"]:
            total += number(child, start + total)
        count[v] = total or 1
        return count[v]

    number(0, 0)
    return SimpleNamespace(
        parent_V=np.array([n["parent"] for n in nodes], dtype=np.int32),
        level_V=np.array([n["level"] for n in nodes], dtype=np.int32),
        first_leaf_V=np.array([first[v] for v in range(len(nodes))], dtype=np.int32),
        num_leaves_V=np.array([count[v] for v in range(len(nodes))], dtype=np.int32),
    )


def make_random_generalist(rng, tree, empty=0.0):
    """Return a histogram with random counts; a share `empty` of the leaves has no text."""
    num_leaves = int(tree.num_leaves_V[0])
    windows_L = rng.integers(1, 60, num_leaves) * (rng.random(num_leaves) >= empty)
    if not windows_L.any():
        windows_L[0] = 5
    return LeafHistogram(windows_L=windows_L, tokens_L=windows_L * 9 + (windows_L > 0) * rng.integers(0, 50, num_leaves))


def make_random_sample(rng, tree, documents=6, max_windows=4, tokens=None):
    """Return rows (document, leaf, tokens) of a specialist sample whose documents each prefer one leaf."""
    rows = []
    for document in range(documents):
        home = int(rng.integers(tree.num_leaves_V[0]))
        for _ in range(int(rng.integers(1, max_windows + 1))):
            leaf = home if rng.random() < 0.7 else int(rng.integers(tree.num_leaves_V[0]))
            rows.append((f"d{document}", leaf, tokens or int(rng.integers(1, 30))))
    return rows


def count_documents(rows):
    return DocumentCounts.of_part([r[0] for r in rows], np.array([r[1] for r in rows]), np.array([r[2] for r in rows]))


def list_leaves_below(tree, v):
    return range(int(tree.first_leaf_V[v]), int(tree.first_leaf_V[v] + tree.num_leaves_V[v]))


def make_two_level_tree():
    """Return a root with two children of two leaves each."""
    return SimpleNamespace(
        parent_V=np.array([-1, 0, 0, 1, 1, 2, 2]),
        level_V=np.array([0, 1, 1, 2, 2, 2, 2]),
        first_leaf_V=np.array([0, 0, 2, 0, 1, 2, 3]),
        num_leaves_V=np.array([4, 2, 2, 1, 1, 1, 1]),
    )
