"""Learning rates over positions, as shares of the peak."""

import itertools
import math

import pytest

from leapbench.config.groups import ScheduleConfig
from leapbench.training.schedule import factor_at


def rates(name, steps=100, **options):
    function = factor_at(ScheduleConfig(name=name, **options), steps)
    return [function(position) for position in range(steps + 1)]


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_warm_up_is_linear_and_the_first_step_counts(name):
    found = rates(name, warmup=10, decay=0.2)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[10] == pytest.approx(1.0)
    assert rates(name, warmup=0, decay=0.2)[0] == pytest.approx(1.0)


def test_constant_stays():
    assert set(rates("constant", warmup=10, floor=0.1)[10:]) == {1.0}


def test_cosine_ends_at_its_floor():
    found = rates("cosine", warmup=20, floor=0.1)
    assert found[100] == pytest.approx(0.1)
    assert found[60] == pytest.approx(0.55)  # half way: the mean of peak and floor
    assert found[40] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(found[20:]))


def test_cosine_stays_at_its_floor_beyond_the_run():
    beyond = factor_at(ScheduleConfig(name="cosine", warmup=20, floor=0.1), 100)
    assert beyond(150) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_a_line_to_its_floor():
    found = rates("wsd", warmup=10, decay=0.2, floor=0.5)
    assert set(found[10:81]) == {1.0}
    assert found[90] == pytest.approx(0.75)
    assert found[100] == pytest.approx(0.5)
    assert rates("wsd", warmup=0, decay=0.5, floor=0.0)[75] == pytest.approx(0.5)
    beyond = factor_at(ScheduleConfig(name="wsd", decay=0.2, floor=0.5), 100)
    assert beyond(300) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_a_run_shorter_than_its_warm_up(name):
    assert rates(name, steps=5, warmup=10, decay=0.2)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
