"""Statistics against distributions whose answers are known."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.bench import stats
from rbuild.bench.stats import attainable, outliers, ratio, spread

positive = st.floats(0.01, 1e4)


def test_a_spread_of_known_figures() -> None:
    found = spread([1.0, 2.0, 3.0, 10.0])
    assert (found.n, found.median, found.mean, found.least, found.most) == (4, 2.5, 4.0, 1.0, 10.0)
    assert found.deviation == pytest.approx(4.0824829)


def test_few_values_claim_no_more_than_they_can() -> None:
    assert [attainable(n) for n in (1, 2, 3, 5, 6)] == [0.0, 0.5, 0.75, 0.9375, 0.95]
    one = spread([5.0])
    assert (one.low, one.high, one.confidence, one.deviation) == (5.0, 5.0, 0.0, 0.0)
    three = spread([3.0, 1.0, 2.0])
    assert (three.low, three.high, three.confidence) == (1.0, 3.0, 0.75)
    single = ratio([2.0], [1.0])
    assert (single.ratio, single.confidence, single.verdict) == (2.0, 0.0, "no difference shown")


@pytest.mark.parametrize("n", [11, 25])
def test_the_bootstrap_agrees_with_the_exact_one(n: int) -> None:
    # The bootstrap's distribution of a median of odd n is known: P(median* <= value k) is that of
    # more than half of n draws to be among the k smallest (Efron and Tibshirani, section 5).
    values = [random.Random(7).lognormvariate(0, 0.3) for _ in range(n)]
    ordered = sorted(values)

    def cumulative(k: int) -> float:
        p = k / n
        most = range(n // 2 + 1, n + 1)
        return sum(math.comb(n, m) * p**m * (1 - p) ** (n - m) for m in most)

    low = next(ordered[k - 1] for k in range(1, n + 1) if cumulative(k) >= 0.025)
    high = next(ordered[k - 1] for k in range(1, n + 1) if cumulative(k) >= 0.975)
    found = spread(values)
    # Ours is never narrower, and not much wider: one value further out at each end.
    assert ordered[max(ordered.index(low) - 1, 0)] <= found.low <= low
    assert high <= found.high <= ordered[min(ordered.index(high) + 1, n - 1)]


@pytest.mark.parametrize(
    ("n", "interval"), [(6, (0, 5)), (9, (1, 7)), (15, (3, 11)), (20, (5, 14)), (25, (7, 17))]
)
def test_order_statistics_are_those_of_the_tables(n: int, interval: tuple[int, int]) -> None:
    k = stats._order_statistic(n)
    assert (k, n - 1 - k) == interval


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential"])
def test_intervals_hold_the_true_median_as_often_as_they_say(n: int, kind: str) -> None:
    draw = random.Random(f"{n}{kind}")
    truth = {"normal": 10.0, "lognormal": 1.0, "exponential": math.log(2)}[kind]
    make = {
        "normal": lambda: draw.gauss(10, 1),
        "lognormal": lambda: draw.lognormvariate(0, 0.8),
        "exponential": lambda: draw.expovariate(1),
    }[kind]
    trials = 1500 if n < 6 else 150
    found = [spread([make() for _ in range(n)]) for _ in range(trials)]
    held = sum(one.low <= truth <= one.high for one in found) / trials
    slack = 3 * math.sqrt(0.25 * 4 * attainable(n) * (1 - attainable(n)) / trials)
    assert held >= attainable(n) - slack


@pytest.mark.parametrize("n", [2, 3, 5, 9, 12])
@pytest.mark.parametrize("paired", [True, False])
def test_equal_modes_are_seldom_called_different(n: int, paired: bool) -> None:
    draw = random.Random(n)
    trials, wrong = 200, 0
    for _ in range(trials):
        # Rounds of a machine that drifts: what is common to a round cancels where it is paired.
        drift = [draw.lognormvariate(0, 0.1) if paired else 1 for _ in range(n)]
        one = [d * draw.lognormvariate(0, 0.05) for d in drift]
        two = [d * draw.lognormvariate(0, 0.05) for d in drift]
        wrong += ratio(one, two, paired=paired).verdict != "no difference shown"
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(("n", "factor"), [(3, 1.5), (5, 1.2), (10, 1.1)])
def test_real_differences_are_shown(n: int, factor: float) -> None:
    draw = random.Random(n)
    trials, shown = 60, 0
    for _ in range(trials):
        base = [draw.lognormvariate(0, 0.03) for _ in range(n)]
        more = [factor * draw.lognormvariate(0, 0.03) for _ in range(n)]
        found = ratio(more, base)
        assert found.verdict != "faster"
        shown += found.verdict == "slower"
    assert shown / trials > 0.8


def test_twenty_times_slower_is_shown_by_two_rounds() -> None:
    found = ratio([40.0, 41.0], [2.0, 2.1])
    assert found.verdict == "slower"
    assert found.low > 10
    assert ratio([2.0, 2.1], [40.0, 41.0]).verdict == "faster"


def test_pairs_take_the_machines_drift_out() -> None:
    base = [1.0, 1.3, 1.7, 2.2, 1.1, 1.5]
    more = [1.1 * one * (1 + n / 1000) for n, one in enumerate(base)]
    assert ratio(more, base).verdict == "slower"
    assert ratio(more, base, paired=False).verdict == "no difference shown"


def test_welch_as_in_the_book() -> None:
    # Two samples whose Welch interval is known from scipy.stats.ttest_ind(equal_var=False) on
    # their logarithms; degrees of freedom are rounded down here, so ours is slightly wider.
    one, two = [2.0, 2.2, 2.4, 2.1], [1.0, 1.05, 0.95, 1.02]
    above, below = [math.log(x) for x in one], [math.log(x) for x in two]
    error = math.sqrt(statistics.variance(above) / 4 + statistics.variance(below) / 4)
    middle = statistics.fmean(above) - statistics.fmean(below)
    found = stats._student(one, two, paired=False)
    freedom = 4  # 4.75 rounded down
    reach = {4: 2.776}[freedom] * error
    assert found == pytest.approx((math.exp(middle - reach), math.exp(middle + reach)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3], [8, 9]),  # Iglewicz and Hoaglin
        ([1.0, 1.0, 1.0, 1.0, 5.0], [4]),  # more than half equal
        ([1.0, 1.0, 1.0], []),
        ([7.0], []),
        ([1.0, 2.0, 3.0, 4.0, 5.0], []),
        ([1.80, 1.81, 1.95], []),  # too few for one to be odd
        ([1.80, 1.81, 1.82, 1.83, 9.95], [4]),
    ],
)
def test_outliers_of_known_figures(values: list[float], expected: list[int]) -> None:
    assert outliers(values) == expected


@pytest.mark.parametrize(
    ("one", "two"), [([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0]), ([1, 2], [1])]
)
def test_a_ratio_needs_positive_pairs(one: list[float], two: list[float]) -> None:
    with pytest.raises(ValueError):
        ratio(one, two)
    with pytest.raises(ValueError):
        spread([])


@given(st.lists(positive, min_size=1, max_size=12))
def test_an_interval_is_around_its_median(values: list[float]) -> None:
    found = spread(values)
    assert found.least <= found.low <= found.median <= found.high <= found.most
    assert spread(values) == found


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12), st.floats(0.1, 10))
def test_a_ratio_scales(pairs: list[tuple[float, float]], factor: float) -> None:
    one, two = [list(side) for side in zip(*pairs, strict=True)]
    found, scaled = ratio(one, two), ratio([factor * x for x in one], two)
    assert found.low <= found.ratio <= found.high
    assert scaled.ratio == pytest.approx(factor * found.ratio)
    assert scaled.low == pytest.approx(factor * found.low)


@given(st.lists(positive, min_size=2, max_size=12))
def test_anything_compared_to_itself_shows_no_difference(values: list[float]) -> None:
    found = ratio(values, values)
    assert (found.ratio, found.verdict) == (1.0, "no difference shown")
