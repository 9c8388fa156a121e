"""The small object that adopts, in a loop that is not ours."""

import copy
import math

import pytest
import torch

from leapbench.adopt import Adopter, forget
from leapbench.history import Ring
from leapbench.predictors.linear import Linear
from leapbench.predictors.persistence import Persistence
from leapbench.verify import Rule
from leapbench.weights import FlatMoments, FlatWeights

INTERVAL = 3
X = torch.linspace(-1, 1, 24).reshape(8, 3)
Y = (X @ torch.tensor([[1.0], [-2.0], [0.5]])).tanh()


class Constant:
    """Predicts one value for every weight."""

    context, needs_moments, scales = 1, False, (1.0,)

    def __init__(self, value):
        self.value = value

    def predict(self, history, K):
        return history.empty_vector().fill_(self.value)


def mse(forward):
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(forward(X), Y))


def training(optimizer="adamw", intervals=3, **ring):
    """(model, weights, optimizer, ring) after some intervals of real training."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    weights = FlatWeights(model)
    made = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        "sgd_momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True),
    }[optimizer](weights.parameters)
    kept = Ring(4, INTERVAL, weights.layout, lambda position: 1e-3, moments_capacity=4, **ring)
    moments = None
    for step in range(1, intervals * INTERVAL + 1):
        torch.nn.functional.mse_loss(model(X), Y).backward()
        made.step()
        made.zero_grad()
        if step % INTERVAL == 0:
            if optimizer == "adamw":
                moments = moments or FlatMoments(made, weights)
            kept.push(step, step, weights.vector, moments)
    return model, weights, made, kept


def everything(model, optimizer, ring):
    """A deep copy of all that a leap could change."""
    snapshots = [(s.step, s.position, s.weights.tolist(), s.exp_avg.tolist()) for s in ring.state_dict()]
    state = copy.deepcopy(optimizer.state_dict())
    return [p.tolist() for p in model.parameters()], snapshots, str(state), torch.get_rng_state().tolist()


def adopter(parts, predictor, rule, **options):
    model, weights, optimizer, ring = parts
    return Adopter(model, weights, optimizer, ring, "it", predictor, Rule(rule), mse, **options)


@pytest.mark.parametrize("rule", ["strict", "adaptive", "proximity"])
@pytest.mark.parametrize("value", [30.0, math.inf, math.nan])
def test_a_rejected_candidate_changes_nothing(rule, value):
    parts = training()
    before = everything(parts[0], *parts[2:])
    (leap,) = adopter(parts, Constant(value), rule).leap(K=5)
    assert not leap.adopted
    assert leap.finite is math.isfinite(value)
    assert everything(parts[0], *parts[2:]) == before


@pytest.mark.parametrize("rule", ["always", "falling"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_rule_adopts_what_is_not_finite(rule, value):
    parts = training()
    it = adopter(parts, Constant(value), rule)
    it.rule.see(math.inf)
    before = everything(parts[0], *parts[2:])
    (leap,) = it.leap(K=5)
    assert not leap.adopted and not leap.finite
    assert everything(parts[0], *parts[2:]) == before


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("advance", [True, False])
def test_an_adopted_candidate_becomes_weights_and_newest_snapshot(clear, advance):
    parts = training()
    model, weights, optimizer, ring = parts
    snapshots = [s.weights.clone() for s in ring.state_dict()]
    expected = Linear().predict(ring.history(), 6)
    state = str(optimizer.state_dict())
    (leap,) = adopter(parts, Linear(), "strict", clear=clear).leap(K=6, advance=advance)
    assert leap.adopted and leap.loss_pred < leap.loss_now
    assert leap.loss_pred == mse(model)
    assert leap.changed_share == 1.0
    assert torch.equal(weights.vector, expected)
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), expected)
    kept = ring.state_dict()
    assert (kept[-1].step, kept[-1].position) == (9, 15 if advance else 9)
    assert torch.equal(kept[-1].weights, expected)
    older = [] if clear else snapshots[:-1]
    assert all(torch.equal(s.weights, w) for s, w in zip(kept[:-1], older, strict=True))
    assert str(optimizer.state_dict()) == state


def test_links_start_where_the_last_one_landed():
    parts = training()
    _, weights, _, ring = parts
    older, now = (s.weights.clone() for s in ring.state_dict()[-2:])
    leaps = adopter(parts, Linear(), "always").leap(K=3, links=3)
    assert [leap.link for leap in leaps] == [1, 2, 3]
    torch.testing.assert_close(weights.vector, now + 3 * (now - older))
    assert ring.state_dict()[-1].position == 9 + 9


def test_links_end_with_the_first_rejection():
    parts = training()

    class Twice(Linear):
        asked = 0

        def predict(self, history, K):
            self.asked += 1
            return super().predict(history, K) if self.asked < 3 else history.empty_vector().fill_(30.0)

    leaps = adopter(parts, Twice(), "strict").leap(K=1, links=5)
    assert [leap.adopted for leap in leaps] == [True, True, False]
    assert parts[3].state_dict()[-1].position == 9 + 2
    assert mse(parts[0]) == leaps[1].loss_pred == leaps[2].loss_now


@pytest.mark.parametrize("optimizer", ["adamw", "sgd_momentum"])
@pytest.mark.parametrize("moments", ["keep", "reset", "published"])
def test_what_an_adoption_does_to_the_moments(optimizer, moments):
    parts = training(optimizer)
    if optimizer == "sgd_momentum":
        parts[3].moments_capacity = 0
    before = copy.deepcopy(parts[2].state_dict()["state"])
    (leap,) = adopter(parts, Linear(), "always", moments=moments).leap(K=2)
    assert leap.adopted
    for number, state in parts[2].state_dict()["state"].items():
        for key, value in state.items():
            kept = moments == "keep" or (moments == "published" and key == "step")
            assert torch.equal(value, before[number][key] if kept else torch.zeros_like(value)), key


def test_after_a_reset_adam_is_as_new():
    """One more step of the trained optimizer equals the first step of a fresh one."""
    model, _, optimizer, _ = training()
    twin = copy.deepcopy(model)
    fresh = torch.optim.AdamW(twin.parameters(), lr=1e-3, fused=True)
    forget(optimizer, steps_too=True)
    for net, steps in ((model, optimizer), (twin, fresh)):
        torch.nn.functional.mse_loss(net(X), Y).backward()
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_nothing_is_proposed_before_the_context_is_filled():
    parts = training(intervals=1)
    assert adopter(parts, Linear(), "always").leap(K=2) == []


def test_after_is_called_once_per_adoption():
    parts = training()
    calls = []
    it = adopter(parts, Linear(), "always", after=lambda: calls.append(parts[1].vector.clone()))
    it.leap(K=3, links=2)
    assert len(calls) == 2
    assert not torch.equal(*calls)


def test_persistence_is_accepted_by_proximity_and_not_by_strict():
    for rule, accepted in (("strict", False), ("proximity", True), ("adaptive", True)):
        (leap,) = adopter(training(), Persistence(), rule).leap(K=4)
        assert leap.adopted is accepted
        assert leap.changed_share == 0.0


@pytest.mark.parametrize(
    ("name", "pred", "now", "seen", "accepted"),
    [
        ("strict", 1.0, 1.0, [], False), ("strict", 0.9, 1.0, [], True),
        ("adaptive", 1.5, 1.0, [2.0, 1.0], True), ("adaptive", 1.51, 1.0, [2.0, 1.0], False),
        ("adaptive", 1.01, 1.0, [9.0, 1.0, 1.0, 1.0, 1.0, 1.0], False),
        ("proximity", 1.04, 1.0, [], True), ("proximity", 1.06, 1.0, [], False), ("proximity", 0.94, 1.0, [], False),
        ("always", math.nan, math.nan, [], True),
        ("falling", math.nan, 1.0, [1.0], False), ("falling", math.nan, 1.0, [2.0, 1.0], True),
        ("falling", math.nan, 2.0, [1.0, 2.0], False),
    ],
)  # fmt: skip
def test_rules(name, pred, now, seen, accepted):
    rule = Rule(name)
    for loss in seen:
        rule.see(loss)
    assert rule.accepts(pred, now) is accepted


def test_settings_that_do_not_exist():
    with pytest.raises(ValueError, match="rule=stict is unknown; use strict or"):
        Rule("stict")
    with pytest.raises(ValueError, match="moments=zero is unknown; use keep or"):
        adopter(training(), Linear(), "strict", moments="zero")
