"""What an earlier rbuild kept, and a disk or a user has broken: it is as if it weren't there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbuild.kept import Kept
from rbuild.store import read_json
from tests.faults import fuzz, mutate, targets


@pytest.mark.parametrize(
    ("ask", "right", "wrong"),
    [
        (Kept.text, ["", "x"], [None, 1, [], "\0", "\ud800"]),
        (Kept.text_or_none, [None, "x"], [1, {}]),
        (Kept.texts, [[], ["x"]], [None, "x", [1], {"x": "y"}]),
        (Kept.number, [0, -1.5], [None, True, "1", float("nan"), float("inf"), 10**400]),
        (Kept.count, [0, 7], [None, True, -1, 1.0, "1", 1 << 63]),
        (Kept.flag, [True, False], [None, 1, "true"]),
        (Kept.date, ["2026-01-01T00:00:00+00:00"], [None, 1, "2026-01-01T00:00:00", "x"]),
        (Kept.part, [{}], [None, []]),
        (Kept.parts, [[], [{}]], [None, {}, [1]]),
        (Kept.by_name, [{}, {"a": "b"}], [None, [], {"a": 1}]),
        (Kept.counts, [{}, {"a": 1}], [None, [], {"a": "b"}, {"a": -1}]),
    ],
)
def test_a_field_is_what_it_should_be(
    ask: Callable[[Kept, str], Any], right: list[Any], wrong: list[Any]
) -> None:
    for value in right:
        ask(Kept({"it": value}), "it")
    for value in wrong:
        with pytest.raises(ValueError):
            ask(Kept({"it": value}), "it")
    if ask is not Kept.text_or_none:
        with pytest.raises(ValueError):
            ask(Kept({}), "it")


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
