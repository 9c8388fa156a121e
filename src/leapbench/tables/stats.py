"""Statistics over seeds: mean, standard deviation, bootstrap interval, variation. Arrays in, arrays out."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 9999
INTERVAL = "95 % bootstrap interval of the mean over seeds (BCa; percentile where undefined; none for one seed)"

Floats = NDArray[np.float64]


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


def intervals(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Floats, Floats]:
    """95 % bootstrap interval of the mean of each row.

    Every row is resampled by the same indices, drawn from `seed`, and its values are sorted first: the interval of a
    row depends on its own values only, not on their order or on the other rows. BCa; percentile where BCa is undefined.

    Args:
        values: (rows, n), no NaN.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        low and high, (rows,); NaN for n < 2, the value itself where all n are equal.
    """
    rows = np.sort(np.atleast_2d(np.asarray(values, dtype=float)), axis=1)
    low, high = np.full((2, len(rows)), np.nan)
    if rows.shape[1] < 2:
        return low, high
    constant = rows[:, 0] == rows[:, -1]
    low[constant] = high[constant] = rows[constant, 0]
    distinct, inverse = np.unique(rows[~constant], axis=0, return_inverse=True)
    if len(distinct):
        chunk = max(1, 4_000_000 // (resamples * rows.shape[1]))
        parts = [_bootstrap(distinct[i : i + chunk], resamples, seed) for i in range(0, len(distinct), chunk)]
        bounds = np.concatenate(parts, axis=1)[:, inverse.reshape(-1)]
        low[~constant], high[~constant] = bounds
    return low, high


def summarise(frame: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean, std and interval of `value` within each group, one row of `frame` per seed.

    Args:
        frame: columns `by` and `value`; NaN values are left out.
        by: the columns that name a group.
        value: the column to summarise.

    Returns:
        one row per group: `by`, mean, std, ci_low, ci_high, n_seeds (values that counted).
    """
    kept = frame.loc[np.isfinite(frame[value].to_numpy(dtype=float)), [*by, value]]
    groups = kept.groupby(by, sort=False, dropna=False)[value]
    table = groups.agg(mean="mean", std="std", n_seeds="count").reset_index()
    number = groups.ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    cells = np.split(kept[value].to_numpy(dtype=float)[order], np.cumsum(table["n_seeds"].to_numpy())[:-1])
    low, high = np.full((2, len(table)), np.nan)
    for n in np.unique(table["n_seeds"]):
        rows = np.flatnonzero(table["n_seeds"] == n)
        low[rows], high[rows] = intervals(np.stack([cells[row] for row in rows]))
    table["ci_low"], table["ci_high"] = low, high
    return table[[*by, "mean", "std", "ci_low", "ci_high", "n_seeds"]]


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


def _without_nan(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=float).reshape(-1)
    return array[~np.isnan(array)]


def _bootstrap(rows: Floats, resamples: int, seed: int) -> Floats:
    """(2, rows): bounds of the interval of each row."""

    def bounds(method: str) -> Floats:
        result = bootstrap(
            (rows,), np.mean, axis=-1, n_resamples=resamples, confidence_level=CONFIDENCE, method=method,
            vectorized=True, rng=np.random.default_rng(seed),
        )  # fmt: skip
        return np.stack([result.confidence_interval.low, result.confidence_interval.high])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limits = bounds("BCa")
        undefined = np.isnan(limits).any(axis=0)
        return np.where(undefined, bounds("percentile"), limits) if undefined.any() else limits
