import math
import subprocess
import sys
from typing import Any

import pytest

from pipeline.execution.fingerprint import canonical_json, diff_identities, fingerprint


def test_fingerprint_is_the_same_in_another_process() -> None:
    identity = {"stage": "x", "settings": {"b": 1.5, "a": [1, None, True, "é"]}}
    code = f"from pipeline.execution.fingerprint import fingerprint; print(fingerprint({identity!r}))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == fingerprint(identity)


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    values: list[Any] = [1, 2, "1", None, True, 1.5, [1], {"x": 1}]
    assert len({fingerprint({"a": value}) for value in values}) == len(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, {1}, pytest.param(object(), id="object"), b"x"], ids=repr)
def test_values_without_stable_text_are_rejected(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": value})


def test_differences_name_each_field() -> None:
    old = {"settings": {"tokens": 256, "same": 1}, "version": 1}
    new = {"settings": {"tokens": 128, "same": 1}, "version": 1, "more": 2}
    assert diff_identities(old, new) == ["more: None → 2", "settings.tokens: 256 → 128"]


def test_differences_of_many_files_are_short() -> None:
    old = {"files": [{"name": f"{number}.jsonl", "digest": "x"} for number in range(10, 90)], "long": "a" * 500}
    new = {"files": [{"name": f"{number}.jsonl", "digest": "y" if number > 97 else "x"} for number in range(12, 100)], "long": "b"}
    new["files"][0]["digest"] = "z"
    files, long = diff_identities(old, new)
    assert files == "files: 10 added (90.jsonl, 91.jsonl, 92.jsonl, …), 2 removed (10.jsonl, 11.jsonl), 1 changed (12.jsonl)"
    assert long == f"long: {'a' * 100} … → b"
    assert diff_identities({"files": old["files"]}, {"files": old["files"][::-1]}) == ["files: in another order or number"]
