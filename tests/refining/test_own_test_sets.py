"""The error for a specialist sample that contains text of its own test sets."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Decontaminate
from pipeline.errors import InputError
from pipeline.stages.decontaminate import _check_own_test_sets
from pipeline.storage import Folder
from pipeline.tables import CONTAMINATED


def test_all_own_test_sets_of_which_the_sample_contains_text_are_named(tmp_path: Path) -> None:
    of = {"bar": "legal", "quiz": "legal", "clean": "legal", "other": None}
    settings = Decontaminate.model_validate({"held_out": {name: {"paths": ["x"], "of": corpus} for name, corpus in of.items()}})
    found = ["bar", "quiz", "quiz", "other"]
    rows = [{"id": f"d{n}", "held_out": name, "row": 0, "share": 1.0, "words": "w", "text": "t"} for n, name in enumerate(found)]
    report = Folder(str(tmp_path))
    report.write_table("p.parquet", pa.Table.from_pylist(rows, CONTAMINATED), CONTAMINATED)
    with pytest.raises(
        InputError, match=r"legal: text of its own test sets held_out\.bar, held_out\.quiz is in 3 .*: d0 .*d1 .*d2 "
    ):
        _check_own_test_sets(settings, "legal", report, ["p"], Counter(found))
