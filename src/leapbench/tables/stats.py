"""Statistics over seeds: means, rates and ratios with their 95 % intervals. Arrays in, arrays out.

docs/judging.md says what the intervals cover, and how often they do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, t

CONFIDENCE = 0.95
# Of two proposals of one seed, assumed where the seeds do not show it; scripts/coverage.py measures it.
CORRELATION = 0.1
EQUAL = 1e-9  # values are equal if they differ by less than this share of the largest

BARS = "95 % interval (Student t)"
RATE_BARS = "95 % interval (Student t, wider near 0 and 100)"
INTERVAL = "95 % interval of the mean over seeds (Student t; none for one seed, nor where all seeds are equal)"
RATE_INTERVAL = (
    "95 % interval of the mean rate over seeds (Student t within 0 and 100, widened to what so few proposals cannot "
    "exclude; none for one seed)"
)
RATIO_INTERVAL = (
    "95 % interval of the geometric mean over seeds (Student t on the log ratios; none for one seed, nor where all "
    "seeds are equal)"
)

Floats = NDArray[np.float64]
Estimate = tuple[Floats, Floats, Floats]  # mean, low, high, (rows,) each


# ---- one sample ------------------------------------------------------------------------------------------------------


def mean(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    kept = _without_nan(values)
    return float(kept.mean()) if kept.size else float("nan")


def std(values: ArrayLike) -> float:
    """Sample standard deviation (n - 1 in the denominator), NaN left out; NaN for fewer than two values."""
    kept = _without_nan(values)
    return float(kept.std(ddof=1)) if kept.size > 1 else float("nan")


def coefficient_of_variation(values: ArrayLike) -> float:
    """100 std / mean, in percent; NaN for fewer than two values or a mean of zero."""
    centre = mean(values)
    return 100 * std(values) / centre if centre else float("nan")


def thresholds(similarity: ArrayLike, high: float = 70, low: float = 30) -> tuple[float, float]:
    """Percentiles `high` and `low` of one run's similarities, nulls left out (linear interpolation).

    Raises:
        ValueError: no similarity is left.
    """
    kept = _without_nan(similarity)
    if not kept.size:
        raise ValueError("no similarity was recorded")
    top, bottom = np.percentile(kept, [high, low])
    return float(top), float(bottom)


# ---- intervals, row by row -------------------------------------------------------------------------------------------


def intervals(values: ArrayLike, within: tuple[float, float] = (-np.inf, np.inf)) -> tuple[Floats, Floats]:
    """95 % Student t interval of the mean of each row: mean -+ t(n - 1) std / sqrt(n).

    Values that are all equal have none: what is measured on a grid (times of an evaluation, accuracies of a few hundred
    images) repeats itself because the grid is coarse, and an interval of length 0 would pass that off as precision.

    Args:
        values: (rows, n), no NaN.
        within: the smallest and largest value that a mean can have; the interval is cut there.

    Returns:
        low and high, (rows,); NaN for n < 2 and where all n are equal.
    """
    rows = np.sort(np.atleast_2d(np.asarray(values, dtype=float)), axis=1)  # so that their order changes no digit
    n = rows.shape[1]
    if n < 2:
        missing = np.full(len(rows), np.nan)
        return missing, missing.copy()
    with np.errstate(invalid="ignore"):
        centre, half = rows.mean(axis=1), t.ppf((1 + CONFIDENCE) / 2, n - 1) * rows.std(axis=1, ddof=1) / np.sqrt(n)
    half[_equal(rows)] = np.nan
    return np.clip(centre - half, *within), np.clip(centre + half, *within)


def rate_intervals(rates: ArrayLike, proposals: ArrayLike) -> tuple[Floats, Floats]:
    """95 % interval of the mean rate of each row; a seed with its proposals is one cluster.

    The Student t interval over the seeds, within 0 and 100 percent. Near 0 and 100 it is too short, because what the
    seeds have hardly seen tells nothing of how much they differ in it; so it always holds what 0 of n (and n of n)
    could not exclude. n, the effective number of proposals, is the sum over seeds of m / (1 + CORRELATION (m - 1)) for
    the m proposals of a seed (Kish, Survey Sampling, 1965): at most 1 / CORRELATION per seed, however many there are.
    Where no seed accepted any, the upper bound is that of Clopper and Pearson (Biometrika 1934), one-sided:
    1 - 0.05^(1/n), about 3/n (Hanley and Lippman-Hand, JAMA 1983); where all rates are equal otherwise, the interval is
    theirs, two-sided. An effective n in Clopper and Pearson's interval: Korn and Graubard, Survey Methodology 1998.

    Args:
        rates: (rows, n) percent, one per seed, no NaN.
        proposals: (rows, n) how many each rate is of, at least 1.

    Returns:
        low and high, percent, (rows,); NaN for n < 2.
    """
    rows, counts = (np.atleast_2d(np.asarray(array, dtype=float)) for array in (rates, proposals))
    low, high = intervals(rows, (0.0, 100.0))
    if rows.shape[1] < 2:
        return low, high
    n = (counts / (1 + CORRELATION * (counts - 1))).sum(axis=1)
    accepted = rows.mean(axis=1) / 100 * n
    tail = np.where((accepted <= 0) | (accepted >= n), 1 - CONFIDENCE, (1 - CONFIDENCE) / 2)
    with np.errstate(invalid="ignore"):
        bottom = 100 * np.nan_to_num(beta.ppf(tail, accepted, n - accepted + 1), nan=0.0)
        top = 100 * np.nan_to_num(beta.ppf(1 - tail, accepted + 1, n - accepted), nan=1.0)
    none_of = 100 * (1 - (1 - CONFIDENCE) ** (1 / n))
    equal = _equal(rows)
    low = np.where(equal, bottom, np.minimum(low, 100 - none_of))
    return low, np.where(equal, top, np.maximum(high, none_of))


def ratio_intervals(ratios: ArrayLike) -> Estimate:
    """Geometric mean of each row and its 95 % interval: Student t on the logarithms.

    Args:
        ratios: (rows, n), no NaN, none negative; a ratio of 0 makes the mean 0, without an interval.

    Returns:
        mean, low and high, (rows,); low and high NaN for n < 2 and where all n are equal.
    """
    rows = np.atleast_2d(np.asarray(ratios, dtype=float))
    with np.errstate(divide="ignore"):
        logs = np.log(rows)
    low, high = intervals(np.where(_equal(rows)[:, None], logs[:, :1], logs))
    return np.exp(np.sort(logs, axis=1).mean(axis=1)), np.exp(low), np.exp(high)


# ---- frames ----------------------------------------------------------------------------------------------------------


def summarise(
    frame: pd.DataFrame, by: list[str], value: str, within: tuple[float, float] = (-np.inf, np.inf)
) -> pd.DataFrame:
    """Mean, std and :func:`intervals` of `value` within each group, one row of `frame` per seed.

    Args:
        frame: columns `by` and `value`; values that are not finite are left out.
        by: the columns that name a group.
        value: the column to summarise.
        within: of :func:`intervals`.

    Returns:
        one row per group: `by`, mean, std, ci_low, ci_high, n_seeds (values that counted).
    """
    return _summary(frame, by, [value], lambda values: (values.mean(axis=1), *intervals(values, within)))


def summarise_rates(frame: pd.DataFrame, by: list[str], rate: str, proposals: str) -> pd.DataFrame:
    """As :func:`summarise`, of rates in percent, with :func:`rate_intervals`; `proposals` is the column of counts."""
    return _summary(
        frame, by, [rate, proposals], lambda rates, counts: (rates.mean(axis=1), *rate_intervals(rates, counts))
    )


def summarise_ratios(frame: pd.DataFrame, by: list[str], ratio: str) -> pd.DataFrame:
    """As :func:`summarise`, of ratios: the mean is geometric, with :func:`ratio_intervals`; std is of the ratios."""
    return _summary(frame, by, [ratio], ratio_intervals)


def _summary(frame: pd.DataFrame, by: list[str], columns: list[str], estimate: Callable[..., Estimate]) -> pd.DataFrame:
    """`estimate` gets, for the groups with equally many seeds, one (rows, n) array per column."""
    kept = frame.loc[np.isfinite(frame[columns].to_numpy(dtype=float)).all(axis=1), [*by, *columns]]
    groups = kept.groupby(by, sort=False, dropna=False)
    table = groups[columns[0]].agg(std="std", n_seeds="count").reset_index()
    order = np.argsort(groups.ngroup().to_numpy(), kind="stable")
    ends = np.cumsum(table["n_seeds"].to_numpy())[:-1]
    cells = [np.split(kept[column].to_numpy(dtype=float)[order], ends) for column in columns]
    numbers = np.full((3, len(table)), np.nan)
    for n in np.unique(table["n_seeds"]):
        rows = np.flatnonzero(table["n_seeds"] == n)
        numbers[:, rows] = estimate(*(np.stack([column[row] for row in rows]) for column in cells))
    table["mean"], table["ci_low"], table["ci_high"] = numbers
    return table[[*by, "mean", "std", "ci_low", "ci_high", "n_seeds"]]


def _equal(rows: Floats) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.ptp(rows, axis=1) <= EQUAL * np.abs(rows).max(axis=1)


def _without_nan(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=float).reshape(-1)
    return array[~np.isnan(array)]
