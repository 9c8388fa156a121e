"""Paired ratios, exact tests, Holm's correction and bootstrap factors."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_rel

from leapbench.tables.compare import bootstrap_factor, holm, paired_log_ratio, sign_flip_p
from leapbench.tables.numbers import bounded

POSITIVE = st.floats(0.01, 100)
DIFFERENCES = st.lists(st.floats(-100, 100).map(lambda value: round(value, 2)), min_size=1, max_size=8)


# ---- ratios ----------------------------------------------------------------------------------------------------------


def test_a_paired_ratio_is_scipys_on_logarithms():
    a, b = [80.0, 95.0, 70.0, 90.0], [100.0, 110.0, 95.0, 90.0]
    found = paired_log_ratio(a, b)
    theirs = ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((np.exp(theirs.low), np.exp(theirs.high)))
    assert found.mean == pytest.approx(np.exp(np.mean(np.log(a) - np.log(b))))
    assert (found.p, found.n) == (2 / 8, 4)  # one pair is equal, so its sign is nothing


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=10), POSITIVE)
def test_a_ratio_has_no_units_and_no_direction(pairs, unit):
    a, b = np.array(pairs).T
    there, back, scaled = paired_log_ratio(a, b), paired_log_ratio(b, a), paired_log_ratio(a * unit, b * unit)
    assert there.mean == pytest.approx(1 / back.mean) == pytest.approx(scaled.mean)
    assert there.p == back.p == scaled.p
    if not np.isnan([there.low, scaled.low]).any():
        assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0], [1.0, 2.0], "1 values and 2 are no pairs"), ([], [], "are no pairs"), ([0.0], [1.0], "above 0"),
        ([np.inf], [1.0], "not reached has no ratio"), ([1.0], [np.nan], "finite"),
    ],
)  # fmt: skip
def test_what_has_no_ratio(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired_log_ratio(a, b)


# ---- tests -----------------------------------------------------------------------------------------------------------


@given(DIFFERENCES)
def test_sign_flips_are_all_counted(differences):
    """Against the literal count of all flips."""
    values = np.array(differences)
    sums = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    expected = np.mean(np.array(sums) >= abs(values.sum()) - 1e-7)
    assert sign_flip_p(values) == expected == sign_flip_p(-values) == sign_flip_p(values[::-1])


def test_sign_flips_agree_with_scipy():
    values = np.random.default_rng(0).normal(0.4, size=9)
    theirs = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize(("n", "p"), [(1, 1), (5, 2 / 32), (6, 2 / 64), (10, 2 / 1024), (15, 2 / 2**15)])
def test_the_smallest_p(n, p):
    assert sign_flip_p([0.1] * n) == p and sign_flip_p([0.0] * n) == 1


def test_many_seeds_are_flipped_at_random_and_the_same_way_every_time():
    values = np.random.default_rng(1).normal(0.5, size=16)
    exact = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    drawn = sign_flip_p(values)
    assert drawn == sign_flip_p(values) and drawn == pytest.approx(exact, abs=4 * (exact / 99_999) ** 0.5)
    assert sign_flip_p([1.0] * 40) == 1 / 100_000  # never 0
    assert 0.9 < sign_flip_p([1.0, -1.0] * 10) <= 1


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, 1.0]])
def test_what_cannot_be_flipped(values):
    with pytest.raises(ValueError, match="finite differences"):
        sign_flip_p(values)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    with_unreached = holm([0.01, np.nan, 0.02])
    assert with_unreached[[0, 2]] == pytest.approx([0.03, 0.04]) and np.isnan(with_unreached[1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms())
def test_holm_is_between_the_raw_and_bonferronis(p_values, random):
    values = np.array(p_values)
    found = holm(values)
    assert (values <= found).all() and (found <= np.minimum(1, values * len(values)) + 1e-12).all()
    order = random.sample(range(len(values)), len(values))
    assert np.array_equal(holm(values[order]), found[order])
    assert (np.diff(found[np.argsort(values)]) >= 0).all()
    # The rejections are those of the procedure as it is told: smallest first, stop at the first that is too large.
    count = next((i for i, p in enumerate(sorted(values)) if p * (len(values) - i) > 0.05), len(values))
    assert (found <= 0.05).sum() == count


# ---- factors ---------------------------------------------------------------------------------------------------------

BUDGETS = (0.5, 1.0, 2.0)


def line(budgets, losses):
    """A straight line in log2 of the budget between its outermost points."""
    slope, at_one = np.polyfit(np.log2(budgets), losses, 1)

    def budget(loss):
        found = 2 ** ((loss - at_one) / slope)
        return -np.inf if found < budgets[0] else np.inf if found > budgets[-1] else found

    return budget


def falling(shifts):
    """Losses 2 - log2(budget), shifted by one value per seed."""
    return {budget: {s: 2 - np.log2(budget) + shift for s, shift in enumerate(shifts)} for budget in BUDGETS}


def test_a_factor_by_hand():
    """The method has the loss of 1.41 budgets at a cost of 1.2; what a seed shifts it shifts in both."""
    shifts = [0.0, 0.3, -0.2, 0.1, -0.2]
    losses = {s: 1.5 + shift for s, shift in enumerate(shifts)}
    found = bootstrap_factor(losses, dict.fromkeys(losses, 1.2), falling(shifts), line)
    assert found.value == pytest.approx(2**0.5 / 1.2) and found.n == 5
    assert (found.least, found.most) == pytest.approx((0.5 / 1.2, 2 / 1.2))
    assert np.isnan([found.low, found.high]).all()  # paired, all resamples are equal
    other = {s: 1.5 + shift for s, shift in enumerate(shifts[::-1])}
    unpaired = bootstrap_factor(other, dict.fromkeys(other, 1.2), falling(shifts), line)
    assert unpaired.value == pytest.approx(found.value) and unpaired.low < found.value < unpaired.high


def test_the_interval_of_a_factor_is_about_students():
    """On a curve without error and on logarithms a factor is a mean of losses."""
    noise = np.random.default_rng(0).normal(0, 0.02, 10)
    losses = dict(enumerate(1.6 + noise))
    found = bootstrap_factor(losses, dict.fromkeys(losses, 1.0), falling([0.0] * 10), line)
    half = 2.262157 * noise.std(ddof=1) / 10**0.5
    assert np.log2([found.low, found.high]) == pytest.approx([0.4 - noise.mean() - half, 0.4 - noise.mean() + half],
                                                            abs=0.2 * half)  # fmt: skip
    dear = bootstrap_factor(losses, dict.fromkeys(losses, 2.0), falling([0.0] * 10), line)
    assert (dear.low, dear.high) == pytest.approx((found.low / 2, found.high / 2))
    assert found == bootstrap_factor(losses, dict.fromkeys(losses, 1.0), falling([0.0] * 10), line)


def test_outside_the_curve_is_no_number():
    noise = [0.02, -0.01, 0.03, -0.02, -0.02]
    for loss, value, low, high in ((3.5, -np.inf, -np.inf, -np.inf), (0.2, np.inf, np.inf, np.inf)):
        losses = {s: loss + shift for s, shift in enumerate(noise)}
        found = bootstrap_factor(losses, dict.fromkeys(losses, 1.0), falling([0.0] * 5), line)
        assert (found.value, found.low, found.high) == (value, low, high)
    losses = {s: 1.01 + shift for s, shift in enumerate(noise)}  # just inside: some resamples are beyond the end
    found = bootstrap_factor(losses, dict.fromkeys(losses, 1.0), falling([0.0] * 5), line)
    assert 1.9 < found.low < found.value < 2 and found.high == np.inf
    assert [bounded(x, found.least, found.most) for x in (-np.inf, 1.2, np.inf, np.nan)] == [
        "< 0.500",
        "1.200",
        "> 2.000",
        "",
    ]


def test_a_resample_without_a_fit_counts_on_both_sides():
    losses = {s: 1.5 + shift for s, shift in enumerate([0.2, -0.2, 0.1, -0.1, 0.0])}

    def sometimes(budgets, means):
        def budget(loss):
            return np.nan if loss < 1.4 else line(budgets, means)(loss)

        return budget

    found = bootstrap_factor(losses, dict.fromkeys(losses, 1.0), falling([0.0] * 5), sometimes)
    assert (found.low, found.high) == (-np.inf, np.inf) and found.value == pytest.approx(2**0.5)


def test_seeds_need_not_be_the_same_and_the_curve_is_fitted_once_per_different_draw():
    calls = []

    def counted(budgets, means):
        calls.append(means)
        return line(budgets, means)

    curve = falling([0.0, 0.1, -0.1])
    losses = {s: 1.5 + 0.01 * s for s in (1, 2, 3)}
    found = bootstrap_factor(losses, {1: 1.0, 2: 1.1, 3: 1.2}, curve, counted)
    assert found.low < found.value < found.high
    assert len(calls) <= 35 + 1  # the 35 multisets of 4 seeds, and the means themselves
    alone = bootstrap_factor(losses, dict.fromkeys(losses, 1.0), curve | {2.0: {0: 1.0}}, line)
    assert np.isnan(alone.low) and np.isfinite(alone.value)


@pytest.mark.parametrize(
    ("losses", "costs", "curve", "words"),
    [
        ({}, {}, {1.0: {0: 2.0}}, "every budget"), ({0: 1.0}, {0: 1.0}, {}, "every budget"),
        ({0: 1.0}, {0: 1.0}, {1.0: {}}, "every budget"), ({0: 1.0}, {1: 1.0}, {1.0: {0: 2.0}}, "costs of seeds"),
        ({0: np.nan}, {0: 1.0}, {1.0: {0: 2.0}}, "diverged"), ({0: 1.0}, {0: 0.0}, {1.0: {0: 2.0}}, "above 0"),
        ({0: 1.0}, {0: 1.0}, {-1.0: {0: 2.0}}, "above 0"),
    ],
)  # fmt: skip
def test_what_has_no_factor(losses, costs, curve, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_factor(losses, costs, curve, line)
