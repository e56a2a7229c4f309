import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline import schemas
from pipeline.config import Config
from pipeline.evidence.settings import Evidence
from tests.support.processes import ROOT


@pytest.mark.parametrize("path", sorted(schemas.render_generated_files()), ids=lambda path: path.name)
def test_generated_file_matches_the_code(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == schemas.render_generated_files()[path], "run `make schemas`"


def test_settings_page_lists_every_setting_once() -> None:
    page = schemas.SETTINGS_PAGE.read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(listed) == len(set(listed))
    assert {"workdir", "generalist.paths", "specialists.NAME.share", "decontaminate.held_out.NAME.of", "embed.model"} <= set(listed)
    own_settings = {name.split(".")[0] for name in listed} | {
        line[4:-1].split(".")[0] for line in page.splitlines() if line.startswith("## `")
    }
    assert own_settings == set(Config.model_fields)


def test_no_unknown_schema_is_published() -> None:
    assert {path.name for path in schemas.FOLDER.iterdir()} == set(schemas.render_schemas())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_config_is_valid_for_code_and_schema(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    name, model = ("evidence", Evidence) if "arms" in raw else ("config", Config)
    model.model_validate(raw)
    jsonschema.validate(raw, json.loads(schemas.render_schemas()[f"{name}.schema.json"]))
