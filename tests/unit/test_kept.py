"""What an earlier rbuild kept, and a disk or a user has broken: it is as if it weren't there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

from rbuild.cache.records import Count, Moment, Record, Text, Texts
from rbuild.util.files import read_json
from tests.faults import fuzz, mutate, targets


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Text, ["", "x"], [None, 1, [], "\0", "\ud800"]),
        (Text | None, [None, "x"], [1, {}]),
        (Texts, [[], ["x"]], [None, "x", [1], {"x": "y"}]),
        (float, [0, -1.5], [None, True, "1", float("nan"), float("inf"), 10**400]),
        (Count, [0, 7], [None, True, -1, 1.0, "1", 1 << 63]),
        (bool, [True, False], [None, 1, "true"]),
        (Moment, ["2026-01-01T00:00:00+00:00"], [None, 1, "2026-01-01T00:00:00", "x"]),
        (dict[Text, Text], [{}, {"a": "b"}], [None, [], {"a": 1}]),
        (dict[Text, Count], [{}, {"a": 1}], [None, [], {"a": "b"}, {"a": -1}]),
    ],
)
def test_a_field_is_what_it_should_be(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    model = create_model("One", __base__=Record, it=(kind, ...))
    for value in right:
        assert model.read({"it": value, "more": 1}) is not None, value
    for value in wrong:
        assert model.read({"it": value}) is None, value
    for value in ({}, [], None, "x"):
        assert model.read(value) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "\ufeff"]
)
def test_what_is_no_json_object_is_not_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_json(path) is None
    path.write_bytes(b"\xff\xfe")
    assert read_json(path) is None
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(("name", "try_in"), [("m", targets.of_metadata), ("s", targets.of_state)])
def test_whatever_is_broken_is_as_if_it_were_not_there(tmp_path: Path, name: str, try_in) -> None:
    """Each field in turn is lost, and of every other type."""
    try_it = try_in(tmp_path)
    seeds = targets.corpus(*targets.KEPT) if name == "m" else targets._states()
    for seed in map(json.loads, seeds):
        for number in range(len(list(mutate._places(seed)))):
            for value in (..., None, -1, 10**400, "\0", "x" * 300, [None], {}):
                data = copy.deepcopy(seed)
                holder, key = list(mutate._places(data))[number]
                if value is ...:
                    del holder[key]
                else:
                    holder[key] = value
                content = json.dumps(data).encode()
                assert fuzz.judged(try_it, content) in {None, ""}, content
