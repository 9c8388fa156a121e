"""Learning rates over positions, as shares of the peak."""

import itertools
import math
from dataclasses import replace

import pytest

import published as twin
from helpers import config_of
from leapbench.config.groups import ScheduleConfig
from leapbench.training.schedule import factor_at


def rates(name, steps=100, **options):
    function = factor_at(ScheduleConfig(name=name, **options), steps)
    return [function(position) for position in range(steps + 1)]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
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


def test_linear_is_a_line_from_the_peak_to_its_floor():
    found = rates("linear", warmup=20, floor=0.1)
    assert found[20] == pytest.approx(1.0) and found[60] == pytest.approx(0.55) and found[100] == pytest.approx(0.1)
    assert {round(a - b, 12) for a, b in itertools.pairwise(found[20:])} == {round(0.9 / 80, 12)}
    assert rates("linear", warmup=0)[75] == pytest.approx(0.25)
    assert factor_at(ScheduleConfig(name="linear", floor=0.1), 100)(150) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_a_line_to_its_floor():
    found = rates("wsd", warmup=10, decay=0.2, floor=0.5)
    assert set(found[10:81]) == {1.0}
    assert found[90] == pytest.approx(0.75)
    assert found[100] == pytest.approx(0.5)
    assert rates("wsd", warmup=0, decay=0.5, floor=0.0)[75] == pytest.approx(0.5)
    beyond = factor_at(ScheduleConfig(name="wsd", decay=0.2, floor=0.5), 100)
    assert beyond(300) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_a_run_shorter_than_its_warm_up(name):
    assert rates(name, steps=5, warmup=10, decay=0.2)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


# ---- as published ----------------------------------------------------------------------------------------------------


def test_leap_verifys_cosine_is_held_at_its_floor():
    """arXiv:2602.19580: a first rate of 0, and a floor below which the cosine does not fall."""
    found = rates("cosine", 2000, warmup=100, warmup_begins="at", floor=0.1, floor_form="clamped")[:2000]
    assert found == pytest.approx([twin.leap_verify_rate(step, 1.0, 100, 2000) for step in range(2000)], rel=1e-12)
    assert found[0] == 0.0 and found[-1] == 0.1
    interpolated = rates("cosine", 2000, warmup=100, warmup_begins="at", floor=0.1)[:2000]
    ratios = [ours / theirs for ours, theirs in zip(interpolated[1:], found[1:], strict=True)]
    assert max(ratios) == pytest.approx(1.9, abs=1e-3)
    assert ratios.index(max(ratios)) > 1500  # where the stable checkpoints are


@pytest.mark.parametrize("experiment", ["leap_verify_gpt2", "leap_verify_qwen", "leap_verify_embedded"])
def test_leap_verifys_experiments_have_its_schedule(experiment):
    choices = ("regime=published", "dataset.path=here") if experiment == "leap_verify_embedded" else ()
    config = config_of(experiment, *choices)
    factor = factor_at(config.schedule, config.train.steps)
    for step in (0, 1, 99, 100, 1000, 1700, 1999):
        assert factor(step) == pytest.approx(twin.leap_verify_rate(step, 1.0, 100, 2000))


@pytest.mark.parametrize(
    ("experiment", "peak", "lowest", "stages"),
    [
        ("pdt_fcn", 0.01, 1e-3, {"epochs": 100}), ("pdt_alexnet", 0.05, 1e-3, {"epochs": 60}),
        ("pdt_resnet50", 0.1, 1e-4, {"epochs": 300, "warmup": 15, "first_stage": 200}),
        ("pdt_vit_base", 1.5e-3, 1e-6, {"epochs": 200, "warmup": 15}),
        ("pdt_vit_huge", 5e-4, 1e-6, {"epochs": 200, "warmup": 15, "first_stage": 180}),
    ],
)  # fmt: skip
def test_pdts_recipes_change_their_rate_once_per_epoch(experiment, peak, lowest, stages):
    """Against torch's schedulers, composed and stepped as PDT's trainers do (OpenReview zSTgrLkpRi)."""
    config = config_of(experiment)
    epoch, schedule = config.train.interval, config.schedule
    factor = factor_at(schedule, config.train.steps)
    wanted = twin.pdt_rates(peak, lowest, **stages)
    assert config.optimizer.lr == peak and len(wanted) * epoch == config.train.steps
    for number, rate in enumerate(wanted):
        for step in (number * epoch, number * epoch + epoch // 2, (number + 1) * epoch - 1):
            assert peak * factor(step) == pytest.approx(rate, rel=1e-4), number


@pytest.mark.parametrize(
    ("experiment", "peak", "lowest", "stages", "total", "later", "first"),
    [
        ("pdt_alexnet", 0.05, 1e-3, {"epochs": 60}, 0.016, 0.084, 0.0),
        ("pdt_resnet50", 0.1, 1e-4, {"epochs": 300, "warmup": 15, "first_stage": 200}, 0.001, 0.122, 0.300),
    ],
)
def test_what_a_rate_per_step_did_instead(experiment, peak, lowest, stages, total, later, first):
    """Sums within 1.6 %, means of epochs up to 8 and 12 % apart, and ImageNet's first warm-up epoch by 30 %."""
    config = config_of(experiment)
    epoch = config.train.interval
    per_step = factor_at(replace(config.schedule, every=1, warmup_begins="before"), config.train.steps)
    wanted = twin.pdt_rates(peak, lowest, **stages)
    apart, means = [], []
    for number, rate in enumerate(wanted):
        means.append(
            peak * sum(per_step(number * epoch + step) for step in range(0, epoch, 5)) / len(range(0, epoch, 5))
        )
        apart.append(abs(means[-1] / rate - 1))
    assert abs(sum(means) / sum(wanted) - 1) == pytest.approx(total, abs=5e-4)
    assert max(apart[15:]) == pytest.approx(later, abs=3e-3)
    assert apart[0] == pytest.approx(first, abs=3e-3)
