"""Statistics against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from leapbench.tables import stats


def test_mean_and_std_by_hand():
    assert stats.mean([1, 2, 6]) == 3
    assert stats.std([1, 2, 6]) == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert stats.mean([1, np.nan, 3]) == 2
    assert stats.std([1, np.nan, 3]) == pytest.approx(2**0.5)
    assert np.isnan(stats.std([5]))
    assert np.isnan(stats.mean([]))


def test_coefficient_of_variation_by_hand():
    assert stats.coefficient_of_variation([50, 100]) == pytest.approx(100 * 1250**0.5 / 75)
    assert stats.coefficient_of_variation([100, 100, 100]) == 0
    assert np.isnan(stats.coefficient_of_variation([0, 0]))
    assert np.isnan(stats.coefficient_of_variation([7]))


def test_interval_of_one_seed_is_absent_and_of_equal_seeds_a_point():
    low, high = stats.intervals([[3.0]])
    assert np.isnan(low[0]) and np.isnan(high[0])
    low, high = stats.intervals([[4.0, 4.0, 4.0]])
    assert low[0] == high[0] == 4


def test_interval_agrees_with_scipy_and_does_not_depend_on_its_neighbours_or_the_order():
    from scipy.stats import bootstrap

    values = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    ours = stats.intervals([values])
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0))
    assert ours[0][0] == pytest.approx(theirs.confidence_interval.low)
    assert ours[1][0] == pytest.approx(theirs.confidence_interval.high)
    together = stats.intervals([[0, 0, 0, 0, 1], values[::-1], [7, 7, 7, 7, 7]])
    assert together[0][1] == ours[0][0] and together[1][1] == ours[1][0]
    assert values.min() <= ours[0][0] <= values.mean() <= ours[1][0] <= values.max()


def test_interval_is_the_same_every_time():
    rows = np.random.default_rng(1).normal(size=(20, 5))
    assert np.array_equal(stats.intervals(rows), stats.intervals(rows))


def test_interval_falls_back_to_percentiles_where_bca_is_undefined(monkeypatch):
    real = stats.bootstrap

    def bootstrap(*args, method, **kwargs):
        result = real(*args, method=method, **kwargs)
        if method == "BCa":
            result.confidence_interval.low[:] = np.nan
        return result

    monkeypatch.setattr(stats, "bootstrap", bootstrap)
    low, high = stats.intervals([[1.0, 2.0, 4.0, 8.0]])
    assert 1 <= low[0] < 3.75 < high[0] <= 8


def test_summarise_counts_the_seeds_it_has():
    frame = pd.DataFrame({"K": [5, 5, 5, 10, 10, 25], "rate": [0.0, 50.0, 100.0, 20.0, np.nan, np.nan]})
    table = stats.summarise(frame, ["K"], "rate").set_index("K")
    assert list(table.index) == [5, 10]
    assert table.loc[5, "mean"] == 50 and table.loc[5, "std"] == 50 and table.loc[5, "n_seeds"] == 3
    assert 0 <= table.loc[5, "ci_low"] < 50 < table.loc[5, "ci_high"] <= 100
    assert table.loc[10, "mean"] == 20 and table.loc[10, "n_seeds"] == 1
    assert np.isnan(table.loc[10, "std"]) and np.isnan(table.loc[10, "ci_low"])


def test_thresholds_are_percentiles_without_the_nulls():
    similarity = [None, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert stats.thresholds(similarity) == pytest.approx((0.7, 0.3))
    with pytest.raises(ValueError, match="no similarity"):
        stats.thresholds([None, None])
