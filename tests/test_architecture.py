"""What the contracts of import-linter (pyproject.toml) do not say of the architecture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

PACKAGE = ROOT / "pipeline"
MATHS = ["hashing.py", *(f"{name}/{path.name}" for name in ("clustering", "mixture") for path in (PACKAGE / name).glob("*.py"))]


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_ray_is_imported_by_the_engine_alone() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "ray" in imported(path)}
    assert users == {
        "engine/cluster.py",
        "engine/generation.py",
        "engine/gpus.py",
        "engine/deaths.py",
        "engine/messages.py",
        "engine/chat.py",
    }


@pytest.mark.parametrize("name", MATHS)
def test_maths_imports_no_machinery(name: str) -> None:
    allowed = {"numpy", "scipy", "sklearn", "faiss", "threadpoolctl", "pyarrow", "xxhash", "pipeline"} | set(
        sys.stdlib_module_names
    )
    assert imported(PACKAGE / name) <= allowed
    assert not {"os", "time", "random", "datetime"} & imported(PACKAGE / name)


def test_models_are_imported_lazily() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "datatrove", "ray", "vllm"}
    eager = {str(path.relative_to(PACKAGE)): imported(path, top_level_only=True) & heavy for path in PACKAGE.rglob("*.py")}
    at_home = {
        "clustering/kmeans.py": {"sklearn"},
        **{f"proxy/{name}.py": {"torch"} for name in ("model", "optimiser", "training")},
    }
    assert {name: found for name, found in eager.items() if found - at_home.get(name, {"datatrove"})} == {}


def test_planning_a_run_imports_neither_ray_nor_a_model() -> None:
    heavy = ("ray", "torch", "sklearn", "datatrove", "faiss")
    code = f"import sys, pipeline.graph.runner, pipeline.evidence.steps; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_job_hides_a_module_of_the_standard_library() -> None:
    """Python and Ray put the folder of a script before the standard library: every library would import jobs/inspect.py."""
    assert not {path.stem for path in (ROOT / "jobs").glob("*.py")} & set(sys.stdlib_module_names)


def test_every_package_says_what_belongs_in_it() -> None:
    packages = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [
        folder.name for folder in sorted(packages) if not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ] == []


def test_few_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_no_module_is_a_second_room() -> None:
    assert not {"utils.py", "common.py", "helpers.py", "misc.py"} & {path.name for path in PACKAGE.rglob("*.py")}
