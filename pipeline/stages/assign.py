"""Assign each window to a cluster by greedy descent of the tree, the same way for every corpus (CRISP, arXiv 2410.03735).

Shapes: N windows in a part, D width of the embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I32
from pipeline.clustering.tree import Tree, read_tree
from pipeline.engine import Engine
from pipeline.errors import StorageError
from pipeline.execution.step import Step, map_parts, part_names
from pipeline.stages.embed import read_embeddings
from pipeline.storage import Folder
from pipeline.tables import ASSIGNMENTS


def assign_step(corpus: str, prepared: Step, embedded: Step, clustered: Step) -> Step:
    """Build the step that assigns the windows of one corpus."""

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        inputs = AssignInputs(read_tree(clustered.folder), prepared.folder, embedded.folder, folder)
        names = part_names(embedded)
        parts = map_parts(engine, folder, names, _assign_part, title=f"assign {corpus}", shared=inputs, quick=True)
        return {"corpus": corpus, "windows": sum(part["rows"] for part in parts), "parts": parts}

    return Step(
        stage="assign",
        corpus=corpus,
        version=1,
        settings={},
        inputs={"embeddings": embedded, "tree": clustered},
        workdir=prepared.workdir,
        work=work,
    )


@dataclass(frozen=True)
class AssignInputs:
    """Inputs shared by the tasks that assign the parts of one corpus."""

    tree: Tree
    windows: Folder
    embeddings: Folder
    output: Folder


def _assign_part(name: str, inputs: AssignInputs) -> dict[str, Any]:
    """Write the assignments of a part; return its facts."""
    key_N, valid_N, x_ND = read_embeddings(inputs.embeddings, name)
    windows = inputs.windows.read_table(f"{name}.parquet", columns=["key", "tokens"])
    if not np.array_equal(windows["key"].to_numpy(), key_N):
        raise StorageError(
            f"{name}: the windows and the embeddings have different rows; delete {inputs.embeddings.url} and run again to "
            "compute the embeddings again"
        )
    result = assign_table(key_N, windows["tokens"].to_numpy(), valid_N, x_ND, inputs.tree)
    facts = {"rows": len(result)}
    inputs.output.write_table(f"{name}.parquet", result, ASSIGNMENTS, facts)
    return facts


def assign_table(
    key_N: NDArray[np.uint64],
    tokens_N: I32,
    valid_N: NDArray[np.bool_],
    x_ND: NDArray[np.float16],
    tree: Tree,
) -> pa.Table:
    """Return one ASSIGNMENTS row for each window, in order; leaf -1 and distance 0 where the embedding is not valid."""
    leaf_N = np.full(len(key_N), -1, np.int32)
    sq_dist_N = np.zeros(len(key_N), np.float32)
    valid_rows = np.flatnonzero(valid_N)
    if len(valid_rows):
        leaf_N[valid_rows], sq_dist_N[valid_rows] = tree.descend(x_ND if len(valid_rows) == len(x_ND) else x_ND[valid_rows])
    return pa.table({"key": key_N, "tokens": tokens_N, "leaf": leaf_N, "sq_dist": sq_dist_N})
