"""Scoring candidates: the right loss, nothing touched, nothing evaluated twice."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import twins
from leapbench.clock import Clock
from leapbench.history import Ring
from leapbench.predictors.average import Average
from leapbench.predictors.linear import Linear
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.persistence import Persistence
from leapbench.predictors.quadratic import Quadratic
from leapbench.propose import Proposer, rescaled
from leapbench.verify import candidate_loss
from leapbench.weights import FlatMoments, FlatWeights

BATCH = torch.arange(24).reshape(3, 8) % 11


class Counted:
    """A loss function that counts its calls."""

    def __init__(self, loss):
        self.loss, self.calls = loss, 0

    def __call__(self, forward):
        self.calls += 1
        return self.loss(forward)


@torch.no_grad()
def language_loss(forward):
    logits = forward(input_ids=BATCH, use_cache=False).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), BATCH[:, 1:].flatten()))


def language_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()


class Bench:
    """A tied GPT-2 after a few AdamW steps with random gradients, with a full ring."""

    def __init__(self, snapshots=5, dtype=torch.float32, moments_dtype=torch.float32):
        self.model = language_model()
        self.weights = FlatWeights(self.model)
        self.ring = Ring(
            6, 1, self.weights.layout, lambda p: 1e-2, twins.ADAM, 1, weights_dtype=dtype, moments_dtype=moments_dtype
        )
        self.loss = Counted(language_loss)
        optimizer = torch.optim.AdamW(self.weights.parameters, lr=1e-2, fused=True)
        moments = None
        for step in range(1, snapshots + 1):
            for p in self.weights.parameters:
                p.grad = torch.randn_like(p)
            optimizer.step()
            moments = moments or FlatMoments(optimizer, self.weights)
            self.ring.push(step, step, self.weights.vector, moments)

    def propose(self, predictors, horizons, memo=None):
        proposer = Proposer(self.model, self.weights, self.ring, predictors, self.loss, memo=memo)
        return list(proposer.propose(horizons, loss_now=language_loss(self.model)))


@pytest.fixture
def bench():
    return Bench()


class Constant:
    """A predictor that returns what it is given, for any K."""

    context, needs_moments = 1, False

    def __init__(self, weights, scales=(1.0,)):
        self.weights, self.scales = weights, scales

    def predict(self, history, K):
        return self.weights.clone()


def test_the_loss_equals_that_of_a_loaded_state_dict_bit_for_bit(bench):
    candidate = Linear().predict(bench.ring.history(), 3)
    state = dict(bench.weights.layout.views(candidate))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    other = language_model()
    missing = other.load_state_dict(state, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    wanted = language_loss(other)
    assert candidate_loss(bench.model, bench.weights.layout, candidate, language_loss) == wanted
    assert wanted != language_loss(bench.model)
    (proposal,) = bench.propose({"linear": Linear()}, [3])
    assert proposal.loss == wanted


def test_tied_embeddings_follow_the_candidate(bench):
    candidate = bench.weights.vector.clone()
    bench.weights.layout.views(candidate)["transformer.wte.weight"].zero_()
    # Logits of a zero unembedding are equal: the loss is log of the vocabulary.
    assert candidate_loss(bench.model, bench.weights.layout, candidate, language_loss) == pytest.approx(math.log(11))


def test_live_weights_and_gradients_are_left_alone(bench):
    before = bench.weights.vector.clone()
    gradients = [p.grad.clone() for p in bench.weights.parameters]
    history = [s.weights.clone() for s in bench.ring.history().snapshots]
    state = torch.get_rng_state()
    predictors = {
        "linear": Linear(),
        "momentum": Momentum("code"),
        "quadratic": Quadratic("code"),
        "average": Average(),
    }
    assert len(bench.propose(predictors, [1, 5])) == 8
    assert torch.equal(bench.weights.vector, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(bench.weights.parameters, gradients, strict=True))
    assert all(torch.equal(s.weights, w) for s, w in zip(bench.ring.history().snapshots, history, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert bench.model.lm_head.weight is bench.model.transformer.wte.weight


def test_one_proposal_per_predictor_and_horizon(bench):
    proposals = bench.propose({"linear": Linear(), "quadratic": Quadratic()}, [2, 4])
    assert [(p.step, p.predictor, p.K) for p in proposals] == [
        (5, "linear", 2), (5, "linear", 4), (5, "quadratic", 2), (5, "quadratic", 4),
    ]  # fmt: skip
    for p in proposals:
        candidate = {"linear": Linear(), "quadratic": Quadratic()}[p.predictor].predict(bench.ring.history(), p.K)
        assert p.loss == candidate_loss(bench.model, bench.weights.layout, candidate, language_loss)
        assert p.scale == 1.0 and p.predict_s > 0 and p.verify_s > 0


def test_predictors_wait_until_their_context_is_filled():
    predictors = {"linear": Linear(), "quadratic": Quadratic(), "average": Average(), "persistence": Persistence()}
    for snapshots, ready in ((1, {"persistence"}), (2, {"linear", "persistence"}), (5, set(predictors))):
        assert {p.predictor for p in Bench(snapshots).propose(predictors, [1])} == ready


def test_persistence_costs_no_evaluation(bench):
    proposals = bench.propose({"persistence": Persistence(), "alone": Average(context=1)}, [1, 5, 9])
    assert bench.loss.calls == 0
    assert {p.loss for p in proposals} == {language_loss(bench.model)}
    assert {(p.predict_s, p.verify_s) for p in proposals} == {(0.0, 0.0)}


def test_persistence_of_rounded_snapshots_is_another_candidate():
    bench = Bench(dtype=torch.float16)
    proposals = bench.propose({"persistence": Persistence()}, [1, 5, 9])
    rounded = bench.weights.vector.half().float()
    assert bench.loss.calls == 1
    assert {p.loss for p in proposals} == {candidate_loss(bench.model, bench.weights.layout, rounded, language_loss)}
    assert proposals[0].loss != language_loss(bench.model)


def test_equal_candidates_are_evaluated_once(bench):
    bench.propose({"average": Average()}, [1, 5, 9])
    assert bench.loss.calls == 1  # whatever K
    memo = {}
    first = bench.propose({"linear": Linear(), "twin": Linear()}, [2, 4], memo)
    assert bench.loss.calls == 1 + 2
    second = bench.propose({"linear": Linear(), "quadratic": Quadratic()}, [2, 4], memo)
    assert bench.loss.calls == 1 + 2 + 2
    assert [p.loss for p in first[:2]] == [p.loss for p in first[2:]] == [p.loss for p in second[:2]]
    assert len({p.loss for p in second}) == 4


def test_a_memo_does_not_mix_up_rings(bench):
    half, memo = Ring(6, 1, bench.weights.layout, lambda p: 1e-2, weights_dtype=torch.float16), {}
    half.push(5, 5, bench.weights.vector)
    (exact,) = bench.propose({"persistence": Persistence()}, [1], memo)
    other = Proposer(bench.model, bench.weights, half, {"persistence": Persistence()}, bench.loss, memo=memo)
    (rounded,) = other.propose([1], loss_now=exact.loss)
    assert bench.loss.calls == 1
    assert rounded.loss != exact.loss


def test_the_best_of_several_scales_counts():
    bench = Bench(moments_dtype=torch.float16)
    history = bench.ring.history()
    full = Momentum("code").predict(history, 3)
    losses = {
        c: candidate_loss(bench.model, bench.weights.layout, rescaled(full, history, c), language_loss)
        for c in (0.8, 1.0, 1.2)
    }
    (proposal,) = bench.propose({"momentum": Momentum("code")}, [3])
    assert bench.loss.calls == 3
    assert len(set(losses.values())) == 3
    assert proposal.loss == min(losses.values()) == losses[proposal.scale]


def test_a_candidate_that_is_not_finite_has_no_finite_loss(bench):
    broken = torch.full_like(bench.weights.vector, float("nan"))
    broken_only, both = bench.propose({"nan": Constant(broken), "persistence": Persistence()}, [1])
    assert math.isnan(broken_only.loss) and broken_only.scale == 1.0
    assert math.isfinite(both.loss)


@pytest.mark.parametrize(
    ("losses", "best"),
    [((math.nan, 2.0, 3.0), (2.0, 0.8)), ((math.inf, 4.0, 3.0), (3.0, 1.2)), ((1.0, math.nan, 0.5), (0.5, 1.2))],
)
def test_scales_that_are_not_finite_lose_to_those_that_are(bench, losses, best):
    stream = iter(losses)
    bench.loss = lambda forward: next(stream)
    predictor = Constant(bench.weights.vector + 1, scales=(1.0, 0.8, 1.2))
    (proposal,) = bench.propose({"several": predictor}, [1])
    assert (proposal.loss, proposal.scale) == best


def test_rescaling_a_displacement():
    history = twins.random_history(0, weights_dtype=torch.float16)
    full = history.now.weights.float() + 2
    assert rescaled(full, history, 1.0) is full
    torch.testing.assert_close(rescaled(full, history, 0.25), history.now.weights.float() + 0.5)


def test_the_clock_gets_the_laps(bench):
    clock = Clock(torch.device("cpu"))
    proposer = Proposer(bench.model, bench.weights, bench.ring, {"linear": Linear()}, bench.loss, clock)
    list(proposer.propose([1, 2], loss_now=1.0))
    spent = clock.now()
    assert spent["predict"] > 0 and spent["verify"] > 0
    assert clock.running == "other"


def test_a_training_loop_of_ones_own():
    """The example of the module's docstring, on a straight line that `linear` predicts."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    target = copy.deepcopy(model.weight.detach()) + 10

    @torch.no_grad()
    def loss_fn(forward):
        return float((forward(torch.eye(3)).T - target).abs().mean())

    weights = FlatWeights(model)
    optimizer = torch.optim.SGD(weights.parameters, lr=0.1)
    ring = Ring(capacity=2, interval=5, layout=weights.layout, lr_at=lambda position: 0.1)
    proposer = Proposer(model, weights, ring, {"linear": Linear()}, loss_fn)
    promised, kept = {}, {}
    for step in range(1, 31):
        model.weight.grad = -torch.ones_like(model.weight)  # of the loss: the weights walk straight to the target
        optimizer.step()
        kept[step] = loss_fn(model)
        if step % 5 == 0:
            ring.push(step, step, weights.vector)
            for proposal in proposer.propose([5, 10], loss_now=loss_fn(model)):
                promised[step + proposal.K] = proposal.loss
    assert sorted(promised) == [15, 20, 25, 30, 35, 40]
    for step in (15, 20, 25, 30):
        assert promised[step] == pytest.approx(kept[step], abs=1e-4)
        assert kept[step] == pytest.approx(10 - 0.1 * step, abs=1e-4)
