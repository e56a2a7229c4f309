import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline import schemas
from pipeline.config import Config
from pipeline.evidence.settings import Evidence
from tests.support.processes import ROOT


@pytest.mark.parametrize("name", sorted(schemas.rendered()))
def test_published_schema_is_that_of_the_code(name: str) -> None:
    assert (schemas.FOLDER / name).read_text(encoding="utf-8") == schemas.rendered()[name], "run `make schemas`"


def test_nothing_else_is_published() -> None:
    assert {path.name for path in schemas.FOLDER.iterdir()} == set(schemas.rendered())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_config_fits_code_and_schema(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    name, model = ("evidence", Evidence) if "arms" in raw else ("config", Config)
    model.model_validate(raw)
    jsonschema.validate(raw, json.loads(schemas.rendered()[f"{name}.schema.json"]))
