"""The step that writes a mixture, without Ray: errors before it writes anything."""

from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.execution.step import Step
from pipeline.stages.export import mixture_step
from pipeline.storage import MANIFEST, Folder


@pytest.mark.parametrize("groups", [[], [{"name": "a", "documents": 0, "wanted_tokens": 0.0, "files": []}]])
def test_groups_without_documents_are_rejected(tmp_path: Path, groups: list[dict[str, Any]]) -> None:
    grouped = Step(stage="groups", version=1, settings={}, inputs={}, workdir=Folder(str(tmp_path)), work=lambda *_: {})
    grouped.folder.write_json(MANIFEST, {"groups": groups})
    step = mixture_step(grouped, "huggingface", None, None)
    with pytest.raises(ConfigError, match="each group is allocated less than one document"):
        step.work(cast(Engine, None), step.folder)
    assert not step.folder.files()
