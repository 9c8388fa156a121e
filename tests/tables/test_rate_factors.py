"""Charged factors at several learning rates, on invented suites: what is known by construction."""

import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from leapbench import tables
from leapbench.figures import write_figures
from leapbench.names import PROJECT
from leapbench.tables.acceptance import score
from leapbench.tables.rate_factors import BEST, FACTOR, SAME, leaps_at_rates, learning_rate_factors

sys.path.insert(0, str(Path(__file__).parent))

from budgets import Lab, own_steps

# At a rate a run is worth so much of one at the best rate.
WORTH = {1e-4: 0.6, 1e-3: 1.0, 4e-3: 0.8}
GAIN = {1e-4: 1.25, 1e-3: 1.0, 4e-3: 0.9}  # of the method over plain training at the same rate
SHARES = (0.35, 0.5, 0.71, 1.0, 1.41, 2.0)


@pytest.fixture(scope="module")
def suite():
    lab = Lab()
    for lr, worth in WORTH.items():
        for seed in range(3):
            for share in SHARES:
                lab.run(seed, lab.final(share * worth, seed), share=share, lr=lr)
            lab.run(seed, lab.final(GAIN[lr] * worth, seed), "linear", lr=lr)
            lab.run(seed, lab.final(worth, seed), "persistence", lr=lr, overhead=0.04)
    for science in lab.configs.values():
        science["optimizer"]["lr_from"] = "given"
    return lab.suite()


@pytest.fixture(scope="module")
def frame(suite):
    return learning_rate_factors(suite, own_steps).frame.set_index(["reference", "row", "lr"])


def test_against_plain_training_at_the_same_rate(frame):
    for lr, gain in GAIN.items():
        assert frame.loc[(SAME, "linear strict", lr), FACTOR] == pytest.approx(gain, rel=0.01)
        assert frame.loc[(SAME, "persistence strict", lr), FACTOR] == pytest.approx(1 / 1.04, rel=0.01)


def test_against_plain_training_at_the_best_rate(frame):
    for lr, worth in WORTH.items():
        assert frame.loc[(BEST, "linear strict", lr), FACTOR] == pytest.approx(GAIN[lr] * worth, rel=0.01)
        assert frame.loc[(BEST, "plain training at this rate", lr), FACTOR] == pytest.approx(worth, rel=0.01)


def test_it_takes_the_place_of_the_tables_of_tuned_rows(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_cost", own_steps)
    published = tables.load_published(PROJECT / "results/published")
    built = tables.build(suite, published)
    assert [table.name for table in built] == ["learning_rate_factors"]
    (table,) = built
    assert not table.problems
    text = tables.markdown(table, suite.name, {}, tables.sections(table))
    assert "| linear strict" in text and "lr=0.0001" in text
    (path,) = write_figures(suite, score(suite), built, published, tmp_path)
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 1000 and image[..., :3].std() > 0.02


def test_a_rate_that_never_gets_there_lies_below_the_curve(suite):
    lab = Lab()
    for lr in WORTH:
        for seed in range(3):
            for share in SHARES:
                lab.run(seed, 9.0 if lr == 1e-4 else lab.final(share, seed), share=share, lr=lr)
            lab.run(seed, 9.0 if lr == 1e-4 else lab.final(1, seed), "linear", lr=lr)
    row = learning_rate_factors(lab.suite(), own_steps).frame.set_index(["reference", "row", "lr"])
    assert row.loc[(BEST, "linear strict", 1e-4), "outside"] == "below"
    assert np.isnan(row.loc[(BEST, "linear strict", 1e-4), FACTOR])


def test_rows_that_were_tuned_make_no_sweep_of_rates(suite):
    lab = Lab()
    for lr in WORTH:
        lab.run(0, 2.0, "linear", lr=lr)
    assert not leaps_at_rates(lab.suite())
    assert leaps_at_rates(suite)
