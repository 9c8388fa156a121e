"""Loss along the prediction direction, on losses whose derivatives are known."""

import pytest
import torch
from torch import nn

from leapbench.config.groups import LandscapeConfig
from leapbench.prediction.candidate import Candidates
from leapbench.prediction.history import Ring
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors.average import Average
from leapbench.predictors.linear import Linear
from leapbench.predictors.persistence import Persistence
from leapbench.training.landscape import along_the_direction, parabola


def test_the_parabola_through_three_points():
    def f(x):
        return 3.0 - 2.0 * x + 5.0 * x * x

    assert parabola(f(0), (0.25, f(0.25)), (0.5, f(0.5))) == pytest.approx((-2.0, 10.0))
    assert parabola(f(0), (2.0, f(2.0)), (-1.0, f(-1.0))) == pytest.approx((-2.0, 10.0))
    assert parabola(7.0, (1.0, 7.0), (2.0, 7.0)) == (0.0, 0.0)


@pytest.fixture
def moved():
    """Weights that moved by (1, 2, 0, -1) in the last 10 steps, under the loss ||w||^2."""
    model = nn.Linear(4, 1, bias=False)
    weights = FlatWeights(model)
    ring = Ring(capacity=3, interval=10, layout=weights.layout, factor_at=lambda p: 0.0)
    predictors = {"persistence": Persistence(), "linear": Linear(), "average": Average(context=3)}

    @torch.no_grad()
    def loss(forward):
        return float((forward(torch.eye(4)) ** 2).sum())

    ring.push(10, 10, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    weights.vector.copy_(torch.tensor([1.0, 2.0, 1.0, 0.0]))
    ring.push(20, 20, weights.vector)
    return Candidates(model, weights, loss), predictors, ring.history()


def test_the_loss_along_a_direction(moved):
    fractions = [2.0, 0.25, 0.5, 1.0]
    found = list(along_the_direction(*moved, LandscapeConfig(K=5, fractions=fractions), loss_now=6.0))
    # Half an interval ahead: the displacement is half of (1, 2, 0, -1), from (1, 2, 1, 0).
    position, ahead = torch.tensor([1.0, 2.0, 1.0, 0.0]), torch.tensor([0.5, 1.0, 0.0, -0.5])
    assert [row["fraction"] for row in found] == sorted(fractions)
    for row in found:
        assert row["predictor"] == "linear" and row["K"] == 5 and row["loss_now_nats"] == 6.0
        assert row["loss_nats"] == pytest.approx(float(((position + row["fraction"] * ahead) ** 2).sum()))
        assert row["directional_derivative"] == pytest.approx(float(2 * position @ ahead))
        assert row["curvature"] == pytest.approx(float(2 * ahead @ ahead))
    assert torch.equal(moved[0].weights.vector, position)
