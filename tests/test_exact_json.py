"""Lossless JSON: repeated keys, large integers and the elements of damaged arrays."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import exact_json

SPACES = st.sampled_from(["", " ", "  "])


@given(
    pairs=st.lists(
        st.tuples(st.text("ab", max_size=2), st.sampled_from(["x y", 'a": ', 1, -20, True, None])), min_size=1, max_size=7
    ),
    spaces=st.data(),
)
def test_a_repeated_key_is_found_with_any_spacing(pairs: list[tuple[str, Any]], spaces: st.DataObject) -> None:
    def space() -> str:
        return spaces.draw(SPACES)

    text = "{" + ",".join(f"{space()}{json.dumps(k)}{space()}:{space()}{json.dumps(v)}{space()}" for k, v in pairs) + "}\n"
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        assert exact_json.parse(text.encode()) == dict(pairs)
    else:
        with pytest.raises(exact_json.RepeatedKeyError):
            exact_json.parse(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "x","text":"abc","b":2,"a":1,"a":3}',
        b'{"a": 1,"a":2,"b":3,"c":4,"d":5}',
        b'{"id": "x","b":2,"c":3,"d":4,"e":5,"f":6,"text":"a","text":"b"}',
        b'{"a": 1, "a": 1}',
        b'{"a":1,"a":1}',
    ],
)
def test_a_repeated_key_is_found_when_missing_spaces_offset_its_length(text: bytes) -> None:
    with pytest.raises(exact_json.RepeatedKeyError):
        exact_json.parse(text)


@pytest.mark.parametrize("option", [0, orjson.OPT_SORT_KEYS, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE])
@pytest.mark.parametrize("value", [{True: 1, None: 2, 1.5: float("nan"), 7: (1, 2)}, {"z": "é", "a": {"y": {3}, "b": [None]}}])
def test_values_next_to_a_large_integer_are_written_as_by_orjson(value: Any, option: int) -> None:
    def default(item: Any) -> Any:
        return sorted(item)

    small = {"n": 1234567, "v": value}
    written = orjson.dumps(small, default=default, option=option | orjson.OPT_NON_STR_KEYS).decode()
    assert exact_json.dump({"n": 2**70, "v": value}, default, option) == written.replace("1234567", str(2**70))


def test_large_integers_are_written_as_keys_and_from_a_default() -> None:
    assert exact_json.dump({2**70: {-(2**64)}}, default=list) == f'{{"{2**70}":[{-(2**64)}]}}'
    with pytest.raises(TypeError):
        exact_json.dump([2**70, {1}])
    with pytest.raises(TypeError):
        exact_json.dump([2**70, "\ud800"])
    deep: list[Any] = [2**70]
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(TypeError):
        exact_json.dump(deep)


@given(
    values=st.lists(st.recursive(st.text(',"[]{}\\a', max_size=5), st.lists, max_leaves=4)),
    bad=st.integers(0, 5),
    indent=st.booleans(),
)
def test_elements_around_an_invalid_element_are_found(values: list[Any], bad: int, indent: bool) -> None:
    written = [json.dumps(value, indent=2 if indent else None) for value in values]
    written.insert(bad, '{"a": [NaN, "]},"]}')
    elements = list(exact_json.parse_elements(" [" + ",\n".join(written) + "]\n"))
    assert [element.value for element in elements if not element.problem] == values
    assert [element.problem for element in elements if element.problem] == ["NaN is not JSON"]


@pytest.mark.parametrize(
    ("text", "num_before", "position"),
    [
        ('[{"a":1}', 1, 8),
        ('[{"a":1},{"b', 1, 9),
        ('[{"a":1}{"b":1}]', 1, 8),
        ('[{"a":1}] [2]', 1, 10),
        ('[{"a":1},{"b"]},3]', 1, 9),
        ('[{"a":1},{"x":"odd" quote"},{"a":"b"},{"x":"odd" quote"},3]', 1, 9),  # no rows are merged
    ],
)
def test_damage_that_hides_the_next_element_ends_the_array(text: str, num_before: int, position: int) -> None:
    elements = exact_json.parse_elements(text)
    assert [next(elements).problem for _ in range(num_before)] == [""] * num_before
    with pytest.raises(exact_json.DamagedArrayError) as caught:
        next(elements)
    assert caught.value.position == position
