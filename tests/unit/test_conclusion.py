"""What a benchmark says in the end, and that no figure hides what it shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rbuild.bench import report as words
from rbuild.bench.result import Ratio, Row, Verdict
from tests.unit.test_pictures import report, row

CLEAN = ("out-of-tree", "c", 2, "clean")


def compared(name: str, ratio: float, low: float, high: float, confidence: float = 0.95) -> Row:
    verdict: Verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference shown"
    found = Ratio(ratio=ratio, low=low, high=high, confidence=confidence, verdict=verdict)
    return row((name, *CLEAN), [1.0, 1.1], None).model_copy(update={"ratio": found})


def conclusion(rows: Sequence[Row]) -> str:
    return words.conclusion(report([row(("cross", *CLEAN), [1.0, 1.1], None), *rows]))


def test_environments_are_compared_over_all_that_both_built() -> None:
    found = conclusion(
        [
            compared("hybrid", 0.98, 0.9, 1.1),
            compared("hybrid", 1.01, 0.95, 1.05),
            compared("chroot", 12.2, 11.0, 13.0),
            compared("chroot", 14.4, 13.0, 15.0),
        ]
    )
    assert found == (
        "hybrid against cross: no difference shown; chroot takes 12 to 14 times as long as cross."
    )


def test_what_was_shown_in_some_is_not_said_of_all() -> None:
    found = conclusion([compared("hybrid", 1.04, 1.01, 1.1), compared("hybrid", 1, 0.9, 1.1)])
    assert found == (
        "hybrid takes 1.04 times as long as cross in 1 of 2 comparisons, "
        "no difference shown in the others."
    )


def test_single_runs_and_one_environment_conclude_nothing() -> None:
    assert conclusion([compared("hybrid", 2.0, 2.0, 2.0, confidence=0.0)]) == ""
    assert conclusion([]) == ""


def test_it_stands_at_the_end_of_a_report() -> None:
    rows = [row(("cross", *CLEAN), [1.0, 1.1], None), compared("chroot", 12.2, 11.0, 13.0)]
    assert words.markdown(report(rows)).endswith("chroot takes 12 times as long as cross.\n")


@pytest.mark.parametrize(
    ("ratio", "low", "high", "cells"),
    [
        (1.05, 1.02, 1.08, ["1.05x", "[1.02, 1.08]", "slower"]),
        (1.004, 1.002, 1.008, ["1.004x", "[1.002, 1.008]", "slower"]),
        (0.997, 0.995, 0.9993, ["0.997x", "[0.995, 0.999]", "faster"]),
        (0.997, 0.995, 0.9997, ["0.9970x", "[0.9950, 0.9997]", "faster"]),
        (1.001, 0.998, 1.004, ["1.00x", "[1.00, 1.00]", "no difference shown"]),
    ],
)
def test_an_interval_that_excludes_1_shows_it(
    ratio: float, low: float, high: float, cells: list[str]
) -> None:
    assert words.ratio_cells(compared("x", ratio, low, high).ratio) == cells
