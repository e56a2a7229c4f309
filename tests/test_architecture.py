"""Rules of the architecture beyond the contracts of import-linter in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

PACKAGE = ROOT / "pipeline"
NUMERICAL_MODULES = [
    "hashing.py",
    *(f"{name}/{path.name}" for name in ("clustering", "mixture") for path in (PACKAGE / name).glob("*.py")),
]


def list_imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_only_the_engine_imports_ray() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "ray" in list_imports(path)}
    assert users == {
        "engine/ray_cluster.py",
        "engine/generation.py",
        "engine/gpu_monitor.py",
        "engine/actor_monitor.py",
        "engine/ray_internals.py",
        "engine/chat.py",
    }


def test_one_module_uses_the_internals_of_ray() -> None:
    internals = ("ray._private", "ray.core.generated", "._internal", "ray._raylet", "ray._common", "global_worker")
    users = {path.name for path in PACKAGE.rglob("*.py") if any(name in path.read_text(encoding="utf-8") for name in internals)}
    assert users == {"ray_internals.py"}


@pytest.mark.parametrize("name", NUMERICAL_MODULES)
def test_numerical_modules_import_only_numerical_packages(name: str) -> None:
    allowed = {"numpy", "scipy", "sklearn", "faiss", "threadpoolctl", "pyarrow", "xxhash", "pipeline"} | set(
        sys.stdlib_module_names
    )
    assert list_imports(PACKAGE / name) <= allowed
    assert not {"os", "time", "random", "datetime"} & list_imports(PACKAGE / name)


def test_models_are_imported_lazily() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "datatrove", "ray", "vllm"}
    eager = {str(path.relative_to(PACKAGE)): list_imports(path, top_level_only=True) & heavy for path in PACKAGE.rglob("*.py")}
    allowed_imports = {
        "clustering/kmeans.py": {"sklearn"},
        **{f"proxy/{name}.py": {"torch"} for name in ("transformer", "optimiser", "training")},
    }
    assert {name: found for name, found in eager.items() if found - allowed_imports.get(name, {"datatrove"})} == {}


def test_building_a_graph_imports_neither_ray_nor_a_model() -> None:
    heavy = ("ray", "torch", "sklearn", "datatrove", "faiss")
    code = f"import sys, pipeline.graph.runner, pipeline.evidence.steps; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_job_has_the_name_of_a_standard_library_module() -> None:
    """Python and Ray put the folder of a script before the standard library: every library would import jobs/inspect.py."""
    assert not {path.stem for path in (ROOT / "jobs").glob("*.py")} & set(sys.stdlib_module_names)


def test_every_package_has_a_docstring() -> None:
    packages = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [
        folder.name for folder in sorted(packages) if not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ] == []


def test_package_has_at_most_ten_top_level_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_no_module_has_a_catch_all_name() -> None:
    assert not {"utils.py", "common.py", "helpers.py", "misc.py"} & {path.name for path in PACKAGE.rglob("*.py")}
