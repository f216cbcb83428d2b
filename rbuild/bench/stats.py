"""Statistics of a few runs, none of which claims more than so few runs can show.

The median is what is reported: a busy machine only ever makes single runs longer.  Its interval
is the percentile bootstrap's (Efron, 1979), widened to the distribution-free interval between two
order statistics, since a bootstrap of few values is too narrow.  Fewer than six values can't
bound a median with 95 % confidence whatever the method: n values bound it with 1 - 2^(1-n) at
most, between the least and the most, and that is then the confidence that is stated.

Two modes are compared by the ratio of their medians.  Their runs are paired by round, in which
both were measured one after the other, so rounds are what the bootstrap draws.  With fewer than
ten rounds the interval is widened to Student's for the logarithms of the rounds' ratios, which
holds for 95 % if the noise is log-normal, and is as wide as it must be for two or three.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

from rbuild.bench.result import Ratio, Spread, Verdict

CONFIDENCE = 0.95
DRAWS = 2000
"""How often the bootstrap draws: its interval's ends then vary by a per cent of its width."""

MIN_BOOTSTRAP_RUNS = 10
"""With fewer runs than this, a ratio's interval is Student's where that is wider."""

OUTLIER = 3.5
"""The modified Z-score above which a value is an outlier (Iglewicz and Hoaglin, 1993)."""

MIN_OUTLIER_VALUES = 5
"""How many values it takes for one of them to be an outlier."""

STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""The 97.5 % quantiles of Student's t for 1, 2, 3 ... degrees of freedom."""


def spread(values: Sequence[float]) -> Spread:
    """Return what at least one value comes to; raise ValueError for none."""
    if not values:
        raise ValueError("there is nothing to summarize")
    low, high, confidence = _median_interval(values)
    return Spread(
        n=len(values),
        median=statistics.median(values),
        low=low,
        high=high,
        confidence=confidence,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else 0.0,
        least=min(values),
        most=max(values),
        outliers=tuple(outliers(values)),
    )


def outliers(values: Sequence[float]) -> list[int]:
    """Return the indices of the values whose modified Z-score is beyond ``OUTLIER``.

    Where more than half of the values are equal, their median deviation is 0 and the mean one
    takes its place, as Iglewicz and Hoaglin say.  Of fewer than ``MIN_OUTLIER_VALUES`` values none
    is called an outlier: two of three are near each other more often than not.
    """
    if len(values) < MIN_OUTLIER_VALUES:
        return []
    middle = statistics.median(values)
    away = [abs(value - middle) for value in values]
    scale = statistics.median(away) / 0.6745
    if scale == 0:
        scale = 1.253314 * statistics.fmean(away)
    return [n for n, one in enumerate(away) if scale > 0 and one / scale > OUTLIER]


def ratio(values: Sequence[float], reference: Sequence[float], *, paired: bool = True) -> Ratio:
    """Return the ratio of the median of ``values`` to that of ``reference``.

    With ``paired``, both have one value for each round.  Raises ValueError if one has none, if a
    value isn't positive, or if paired ones aren't of the same number.
    """
    if not values or not reference or min(*values, *reference) <= 0:
        raise ValueError("a ratio needs positive figures")
    if paired and len(values) != len(reference):
        raise ValueError("paired figures come in pairs")
    middle = statistics.median(values) / statistics.median(reference)
    least = min(len(values), len(reference))
    if least == 1:
        return Ratio(
            ratio=middle, low=middle, high=middle, confidence=0.0, verdict="no difference shown"
        )
    low, high = _bootstrap_paired(values, reference) if paired else _bootstrap(values, reference)
    if least < MIN_BOOTSTRAP_RUNS:
        under, over = _student(values, reference, paired=paired)
        low, high = min(low, under), max(high, over)
    low, high = min(low, middle), max(high, middle)
    return Ratio(
        ratio=middle, low=low, high=high, confidence=CONFIDENCE, verdict=_verdict(low, high)
    )


def attainable(n: int) -> float:
    """Return the most confidence with which n values bound a median, at most ``CONFIDENCE``."""
    return min(CONFIDENCE, 1 - 2.0 ** (1 - n))


def _verdict(low: float, high: float) -> Verdict:
    if low > 1:
        return "slower"
    return "faster" if high < 1 else "no difference shown"


def _median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    n = len(ordered)
    confidence = attainable(n)
    if confidence < CONFIDENCE:
        return ordered[0], ordered[-1], confidence
    outer = _order_statistic(n)
    draw = random.Random(n)  # noqa: S311 - the same figures give the same interval
    found = sorted(statistics.median(draw.choices(ordered, k=n)) for _ in range(DRAWS))
    low, high = _middle(found)
    return min(low, ordered[outer]), max(high, ordered[n - 1 - outer]), confidence


def _order_statistic(n: int) -> int:
    """Return the largest k such that values k and n-1-k (from 0, sorted) bound the median.

    The number of values below the median is binomial (n, 1/2), whatever their distribution.
    """
    k, below = 0, 2.0**-n
    while True:
        more = below + math.comb(n, k + 1) * 2.0**-n
        if 1 - 2 * more < CONFIDENCE:
            return k
        k, below = k + 1, more


def _middle(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the middle 95 % of sorted draws."""
    cut = round((1 - CONFIDENCE) / 2 * len(ordered))
    return ordered[cut], ordered[len(ordered) - 1 - cut]


def _bootstrap_paired(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    pairs = list(zip(values, reference, strict=True))
    draw = random.Random(len(pairs))  # noqa: S311
    found = []
    for _ in range(DRAWS):
        drawn = draw.choices(pairs, k=len(pairs))
        above = statistics.median(pair[0] for pair in drawn)
        found.append(above / statistics.median(pair[1] for pair in drawn))
    return _middle(sorted(found))


def _bootstrap(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    draw = random.Random(len(values))  # noqa: S311
    found = []
    for _ in range(DRAWS):
        above = statistics.median(draw.choices(values, k=len(values)))
        found.append(above / statistics.median(draw.choices(reference, k=len(reference))))
    return _middle(sorted(found))


def _student(
    values: Sequence[float], reference: Sequence[float], *, paired: bool
) -> tuple[float, float]:
    """Return Student's (unpaired: Welch's) interval of a ratio, by the logarithms."""
    above, below = [math.log(one) for one in values], [math.log(one) for one in reference]
    if paired:
        each = [one - other for one, other in zip(above, below, strict=True)]
        middle, error = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
        freedom = float(len(each) - 1)
    else:
        parts = [statistics.variance(one) / len(one) for one in (above, below)]
        middle, error = statistics.fmean(above) - statistics.fmean(below), math.sqrt(sum(parts))
        spare = sum(
            part**2 / (len(one) - 1) for part, one in zip(parts, (above, below), strict=True)
        )
        freedom = sum(parts) ** 2 / spare if spare > 0 else min(len(above), len(below)) - 1
    reach = _quantile(freedom) * error
    return math.exp(middle - reach), math.exp(middle + reach)


def _quantile(freedom: float) -> float:
    """Return Student's quantile for the whole number of degrees of freedom below."""
    return STUDENT[min(max(int(freedom), 1), len(STUDENT)) - 1]
