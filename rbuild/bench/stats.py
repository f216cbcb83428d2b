"""Statistics of a few runs: the median first, since a busy machine only ever makes runs longer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What some figures (seconds, bytes) come to.  ``deviation`` is the sample's; 0 for one run."""

    n: int
    median: float
    mean: float
    deviation: float
    least: float
    most: float


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value; raise ValueError for none."""
    if not values:
        raise ValueError("there is nothing to summarize")
    return Summary(
        len(values),
        statistics.median(values),
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else 0.0,
        min(values),
        max(values),
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians to a reference's, with the least and most that single pairs of runs gave.

    Runs are paired in the order of the rounds, in which both were measured one after the other,
    so that a machine that becomes slower in between changes no pair much.
    """

    median: float
    least: float
    most: float


def ratio(values: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return how ``values`` compare to ``reference``, round by round.

    Raises ValueError if there are none or a reference is 0.
    """
    pairs = list(zip(values, reference, strict=False))
    if not pairs or any(below <= 0 for _, below in pairs):
        raise ValueError("a ratio needs pairs of positive figures")
    each = [above / below for above, below in pairs]
    return Ratio(statistics.median(values) / statistics.median(reference), min(each), max(each))
