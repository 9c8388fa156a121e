"""The acceptance rules, by hand."""

import numpy as np
import pytest

from leapbench.prediction.rules import adaptive, proximity, sigma_recent, strict

NOW = 2.0


@pytest.mark.parametrize(("loss", "accepted"), [(1.9, True), (2.0, False), (2.1, False)])
def test_strict_wants_a_lower_loss(loss, accepted):
    assert bool(strict(loss, NOW)) is accepted


@pytest.mark.parametrize(("loss", "accepted"), [(0.5, True), (2.0, True), (2.25, True), (2.26, False)])
def test_adaptive_allows_the_spread(loss, accepted):
    assert bool(adaptive(loss, NOW, 0.25)) is accepted


@pytest.mark.parametrize(
    ("loss", "two_sided", "one_sided"),
    [(1.0, False, True), (1.74, False, True), (1.75, True, True), (2.25, True, True), (2.26, False, False)],
)
def test_proximity(loss, two_sided, one_sided):
    """Exact binary fractions, so that the borders are borders."""
    assert bool(proximity(loss, NOW, tolerance=0.125)) is two_sided
    assert bool(proximity(loss, NOW, tolerance=0.125, two_sided=False)) is one_sided


def test_the_default_tolerance_is_five_per_cent_on_both_sides():
    assert proximity([1.89, 1.91, 2.09, 2.11], NOW).tolist() == [False, True, True, False]


def test_persistence_is_never_strictly_better_and_always_near():
    assert not strict(NOW, NOW)
    assert adaptive(NOW, NOW, 0.0)
    assert proximity(NOW, NOW, tolerance=0.0)
    assert proximity(NOW, NOW, tolerance=0.0, two_sided=False)


@pytest.mark.parametrize(
    "rule",
    [
        strict, lambda p, n: adaptive(p, n, 1e9), lambda p, n: proximity(p, n, 1e9),
        lambda p, n: proximity(p, n, 1e9, two_sided=False),
    ],
    ids=["strict", "adaptive", "proximity", "proximity one-sided"],
)  # fmt: skip
def test_losses_that_are_not_finite_are_never_accepted(rule):
    assert rule([np.nan, np.inf, 1.0], [NOW, NOW, NOW]).tolist() == [False, False, True]
    assert not rule(1.0, np.nan)


def test_rules_take_arrays():
    predicted, now = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    assert strict(predicted, now).tolist() == [True, False, False]
    assert adaptive(predicted, now, np.array([0.0, 0.0, 1.0])).tolist() == [True, True, True]


def test_recent_spread_uses_the_last_losses_only():
    losses = [1.0, 3.0, 5.0, 5.0]
    # std([1]), std([1, 3]), std([3, 5]), std([5, 5]): population, by hand
    np.testing.assert_allclose(sigma_recent(losses, last=2), [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(sigma_recent(losses)[3], np.sqrt(11 / 4))  # mean 3.5: 6.25 + 0.25 + 2.25 + 2.25 = 11
    np.testing.assert_allclose(sigma_recent([*losses, 5.0, 5.0, 5.0, 5.0])[-1], 0.0)


def test_the_past_knows_nothing_of_the_future():
    np.testing.assert_array_equal(sigma_recent([1.0, 3.0, 4.0, 9.0], 5)[:3], sigma_recent([1.0, 3.0, 4.0, 2.0], 5)[:3])


def test_the_published_spread_uses_every_checkpoint():
    np.testing.assert_allclose(sigma_recent([1.0, 3.0, 5.0, 5.0], last="all"), [np.sqrt(11 / 4)] * 4)
    assert len(sigma_recent([], last="all")) == len(sigma_recent([], last=5)) == 0
