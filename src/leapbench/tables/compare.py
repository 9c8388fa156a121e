"""Comparisons paired by seed: ratios, exact tests, Holm's correction, and factors against a refitted curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from leapbench.tables.stats import CONFIDENCE, EQUAL, Floats, ratio_intervals

SIGNIFICANT = 0.05  # a corrected p-value below it makes a claim, if the interval does
EXACT_UP_TO = 15  # seeds, of which all 2^n flips of the sign are counted
FLIPS = 99_999  # drawn at random for more seeds
RESAMPLES = 2000
FACTOR_INTERVAL = (
    "95 % bootstrap interval over seeds (percentile; each resample's means are scaled for few seeds, and the reference "
    "curve is fitted to them; none for one seed)"
)

Fit = Callable[[Floats, Floats], Callable[[float], float]]


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios, its 95 % interval, the p-value of "no difference", and the number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired_log_ratio(a: ArrayLike, b: ArrayLike) -> Ratio:
    """a / b, paired by seed: geometric mean, Student t interval on the log ratios, sign-flip p.

    Args:
        a: (n,) above 0, one per seed.
        b: (n,) above 0, of the same seeds in the same order.

    Returns:
        low and high are NaN for n < 2 and where all ratios are equal.

    Raises:
        ValueError: the lengths differ, there is no pair, or a value is not a finite number above 0.
    """
    above, below = (np.asarray(values, dtype=float).reshape(-1) for values in (a, b))
    if len(above) != len(below) or not len(above):
        raise ValueError(f"{len(above)} values and {len(below)} are no pairs; one of each per seed is needed")
    if not (np.isfinite(both := np.concatenate([above, below])) & (both > 0)).all():
        raise ValueError("a ratio needs finite values above 0; what was not reached has no ratio")
    mean, low, high = (float(values[0]) for values in ratio_intervals([above / below]))
    return Ratio(mean, low, high, sign_flip_p(np.log(above / below)), len(above))


def sign_flip_p(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of paired differences (log ratios): how often their sum is as far from 0 with signs at random.

    Exact if, without an effect, each difference is as likely as its negative (Fisher, The Design of Experiments, 1935).
    Up to EXACT_UP_TO values all 2^n flips are counted; p is then at least 2 / 2^n, so that fewer than six seeds never
    give p < 0.05. For more, FLIPS flips are drawn from `seed`, and p = (1 + as far) / (1 + FLIPS) (Phipson and Smyth,
    2010).

    Args:
        differences: (n,) finite.
        seed: of the flips that are drawn.

    Raises:
        ValueError: there is no difference, or one is not finite.
    """
    values = np.asarray(differences, dtype=float).reshape(-1)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a sign-flip test needs finite differences, one per seed")
    far = abs(values.sum()) - EQUAL * np.abs(values).sum()
    n = len(values)
    if n <= EXACT_UP_TO:
        # A flip of all signs is as far: half of the flips are enough.
        signs = 1.0 - 2.0 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ values) >= far).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    for size in np.diff(np.append(np.arange(0, FLIPS, 10_000), FLIPS)):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (size, n))
        as_far += int((np.abs(signs @ values) >= far).sum())
    return (1 + as_far) / (1 + FLIPS)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction (Scand. J. Statistics, 1979): p-values that stay valid over the whole family.

    Args:
        p_values: (k,). NaN is a comparison that could not be made (a target that was not reached): it counts in the
            family, because it would have been claimed had it come out well, and stays NaN.

    Returns:
        (k,) corrected p-values, at most 1.
    """
    values = np.asarray(p_values, dtype=float).reshape(-1)
    order = np.argsort(values, kind="stable")  # NaN last
    steps = values[order] * (len(values) - np.arange(len(values)))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


@dataclass(frozen=True)
class Factor:
    """What a step of a method's cost is worth in steps of plain training.

    Attributes:
        value: equivalent budget over cost, of the means over seeds; -inf: the loss is above the whole reference curve,
            so the factor is less than `least`; inf: below it, more than `most`; NaN: the fit gave none.
        low: lower end of the 95 % interval; -inf: less than `least`; NaN: no interval.
        high: upper end, likewise.
        least: smallest budget of the curve over the cost.
        most: largest budget of the curve over the cost.
        n: seeds of the method.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    n: int


def bootstrap_factor(
    losses: Mapping[int, float], costs: Mapping[int, float], curve: Mapping[float, Mapping[int, float]], fit: Fit,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Factor:  # fmt: skip
    """Factor E / C with its interval: E the budget at which plain training has the method's mean loss, C its mean cost.

    In every resample seeds are drawn with replacement from all that occur, and a seed that was drawn twice counts
    twice wherever it has a run: method, cost and every point of the curve stay paired by seed. The means are taken
    anew and the curve is fitted anew. (A draw in which some sample has no seed is drawn again.)

    A plain percentile interval of few seeds is too short, by n in place of n - 1 and the normal in place of Student's t
    (Hesterberg, The American Statistician 2015). So each sample's mean is moved away from the mean of its n runs by
    sqrt(n / (n - 1)) t(n - 1) / 1.96 times as far as it was drawn (the first factor: Rao and Wu,
    J. American Statistical Association 1988), before the curve is fitted: of a plain mean this makes about Student's
    interval.

    A resample outside the curve is -inf or inf and is sorted as such; one whose fit gives NaN, or whose mean cost is
    not above 0, may be anything and counts on both sides. A bound is the value of a resample, never interpolated:
    "less than the curve reaches" stays that and becomes no number.

    Args:
        losses: seed -> final loss of the method, nats.
        costs: seed -> cost of that run, in baseline steps.
        curve: budget in baseline steps -> seed -> final loss of plain training, nats.
        fit: (budgets, ascending, and their mean losses) -> a function from a loss to the budget that has it: -inf where
            the loss is above the curve, inf where it is below, NaN where there is no saying.
        resamples: how many; `fit` is called once for each different one.
        seed: of the resampling.

    Returns:
        low and high are NaN if a sample has fewer than two seeds, or all resamples are equal.

    Raises:
        ValueError: a sample is empty, the method's losses and costs are not of the same seeds, a loss is not finite, or
            a cost or budget is not above 0.
    """
    _check(losses, costs, curve)
    budgets = np.array(sorted(curve), dtype=float)
    samples = [losses, costs, *(curve[budget] for budget in sorted(curve))]
    seeds = sorted(set().union(*samples))
    values = np.array([[sample.get(s, 0.0) for sample in samples] for s in seeds], dtype=float)
    present = np.array([[s in sample for sample in samples] for s in seeds], dtype=float)
    n = present.sum(axis=0)

    def factor(means: Floats) -> float:
        """Of the mean loss and cost of the method and the mean losses of the curve."""
        return fit(budgets, means[2:])(means[0]) / means[1] if means[1] > 0 else np.nan

    centre = values.sum(axis=0) / n
    low = high = np.nan
    if n.min() > 1:
        drawn, times = np.unique(_draws(present, resamples, seed), axis=0, return_inverse=True)
        scale = np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + CONFIDENCE) / 2) / ndtri((1 + CONFIDENCE) / 2)
        means = centre + scale * ((drawn @ values) / (drawn @ present) - centre)
        low, high = _percentiles(np.array([factor(row) for row in means])[times.reshape(-1)])
    least, most = budgets[[0, -1]] / centre[1]
    return Factor(float(factor(centre)), low, high, float(least), float(most), len(losses))


def _check(losses: Mapping[int, float], costs: Mapping[int, float], curve: Mapping[float, Mapping[int, float]]) -> None:
    if not losses or not curve or not all(curve.values()):
        raise ValueError("a factor needs a run of the method and of every budget of the curve")
    if set(losses) != set(costs):
        raise ValueError(f"losses of seeds {sorted(losses)}, but costs of seeds {sorted(costs)}")
    if not np.isfinite([loss for sample in (losses, *curve.values()) for loss in sample.values()]).all():
        raise ValueError("a final loss is not finite; a seed that diverged has no mean to enter")
    if not all(np.isfinite(x) and x > 0 for x in (*costs.values(), *curve)):
        raise ValueError("costs and budgets are finite and above 0")


def _draws(present: Floats, resamples: int, seed: int) -> np.ndarray:
    """(resamples, seeds) how often each seed is drawn, every sample at least once."""
    rng, n = np.random.default_rng(seed), len(present)
    draws = rng.multinomial(n, np.full(n, 1 / n), resamples)
    while (empty := (draws @ present == 0).any(axis=1)).any():
        draws[empty] = rng.multinomial(n, np.full(n, 1 / n), int(empty.sum()))
    return draws


def _percentiles(factors: Floats) -> tuple[float, float]:
    below = int((1 - CONFIDENCE) / 2 * len(factors))
    low = np.sort(np.where(np.isnan(factors), -np.inf, factors))[below]
    high = np.sort(np.where(np.isnan(factors), np.inf, factors))[len(factors) - 1 - below]
    equal = np.isfinite([low, high]).all() and high - low <= EQUAL * abs(high)
    return (np.nan, np.nan) if equal else (float(low), float(high))
