"""Distances by algebra on the Gram matrix against distances by subtraction."""

import math

import pytest
import torch

import twins
from leapbench.prediction import weights as module
from leapbench.prediction.candidate import Candidate, rescaled
from leapbench.prediction.distance import DistanceToTruth
from leapbench.prediction.history import History, Snapshot
from leapbench.prediction.predictor import coefficients_of
from leapbench.predictors.average import Average
from leapbench.predictors.linear import Linear
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.momentum_decay import MomentumDecay
from leapbench.predictors.persistence import Persistence
from leapbench.predictors.quadratic import Quadratic
from leapbench.predictors.trend import Trend

PREDICTORS = {
    "linear": Linear(), "quadratic": Quadratic(), "quadratic paper": Quadratic("paper"), "trend": Trend(),
    "average": Average(), "quadratic code": Quadratic("code"), "momentum": Momentum(), "decay": MomentumDecay(),
}  # fmt: skip


def truth_of(history, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return history.now.weights.float() + 0.1 * torch.randn(history.layout.size, generator=rng)


def made(predictor, history, K, scale=1.0):
    """The candidate whose distance is asked for; a sum of snapshots is known by its coefficients alone."""
    coefficients = coefficients_of(predictor, history, K)
    full = predictor.predict(history, K) if coefficients is None else None
    return Candidate(full, scale, 1.0, coefficients)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("K", [5, 50])
def test_distances_equal_the_direct_ones(monkeypatch, name, dtype, K):
    monkeypatch.setattr(module, "CPU_CHUNK", 16)
    history = twins.random_history(4, weights_dtype=dtype)
    truth = truth_of(history)
    found = DistanceToTruth(history, truth).of(made(PREDICTORS[name], history, K))
    now = history.now.weights.double()
    predicted, true = PREDICTORS[name].predict(history, K).double() - now, truth.double() - now
    assert found.rel_l2_to_true == pytest.approx(float((predicted - true).norm() / truth.double().norm()), rel=1e-5)
    assert found.rel_l2_now_to_true == pytest.approx(float(true.norm() / truth.double().norm()), rel=1e-5)
    cosine = float(predicted @ true / (predicted.norm() * true.norm()))
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert abs(cosine) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_persistence_is_as_far_as_the_present(dtype):
    history = twins.random_history(4, weights_dtype=dtype)
    found = DistanceToTruth(history, truth_of(history)).of(made(Persistence(), history, 10))
    assert found.rel_l2_to_true == found.rel_l2_now_to_true > 0
    assert found.cosine is None


def test_one_pass_serves_every_predictor_and_horizon():
    history = twins.random_history(4)
    shared = DistanceToTruth(history, truth_of(history))
    for predictor in PREDICTORS.values():
        for K in (1, 30):
            candidate = made(predictor, history, K)
            assert shared.of(candidate) == DistanceToTruth(history, truth_of(history)).of(candidate)


@pytest.mark.parametrize("name", ["linear", "momentum"])
@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_distances_of_a_rescaled_displacement(name, scale):
    history = twins.random_history(4)
    truth = truth_of(history)
    found = DistanceToTruth(history, truth).of(made(PREDICTORS[name], history, 20, scale))
    candidate = rescaled(PREDICTORS[name].predict(history, 20), history, scale)
    assert found.rel_l2_to_true == pytest.approx(float((candidate - truth).norm() / truth.norm()), rel=1e-5)
    assert found.cosine == pytest.approx(DistanceToTruth(history, truth).of(made(PREDICTORS[name], history, 20)).cosine)


@pytest.mark.parametrize("predictor", [Linear(), Quadratic(), Momentum()], ids=["linear", "quadratic", "momentum"])
def test_a_perfect_prediction(predictor):
    history = twins.random_history(4)
    found = DistanceToTruth(history, predictor.predict(history, 10)).of(made(predictor, history, 10))
    # ||a - b||^2 by algebra loses half of float32's digits.
    assert found.rel_l2_to_true < 1e-3 * found.rel_l2_now_to_true
    assert found.cosine == pytest.approx(1.0, abs=1e-6)


def test_a_training_that_stands_still():
    history = twins.random_history(4)
    found = DistanceToTruth(history, history.now.weights.clone()).of(made(Linear(), history, 10))
    assert found.rel_l2_now_to_true == 0.0
    assert found.rel_l2_to_true > 0
    assert found.cosine is None


@pytest.mark.parametrize("seed", range(40))
def test_a_prediction_that_leads_back_to_the_present(seed):
    """A parabola that is at theta_0 again after K steps: the displacement cancels, up to rounding of either sign."""
    rng = torch.Generator().manual_seed(seed)
    direction, K = torch.randn(500, generator=rng), 15
    snapshots = tuple(Snapshot(t, t, (t - 30) * (t - 30 - K) * 1e-3 * direction) for t in (10, 20, 30))
    history = History(snapshots, twins.layout_of({"w": (500,)}), lambda p: 0.0)
    found = DistanceToTruth(history, torch.randn(500, generator=rng)).of(made(Quadratic(), history, K))
    assert found.rel_l2_to_true == pytest.approx(found.rel_l2_now_to_true, rel=1e-4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_candidates_that_are_not_finite_have_no_distance(broken):
    history = twins.random_history(4)
    candidate = Candidate(torch.full_like(history.now.weights, broken), 1.0, broken, None)
    found = DistanceToTruth(history, truth_of(history)).of(candidate)
    assert found.rel_l2_to_true is None and found.cosine is None
    assert math.isfinite(found.rel_l2_now_to_true)
