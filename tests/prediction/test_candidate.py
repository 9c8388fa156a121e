"""Scoring candidates: the right loss, nothing touched, nothing evaluated twice."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import twins
from leapbench.prediction.candidate import Candidate, Candidates, candidate_loss, key_of_sum, rescaled
from leapbench.prediction.clock import Clock
from leapbench.prediction.history import Ring
from leapbench.prediction.moments import Moments
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors.average import Average
from leapbench.predictors.linear import Linear
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.persistence import Persistence
from leapbench.predictors.quadratic import Quadratic

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
        self.loss = Counted(language_loss)
        optimizer = torch.optim.AdamW(self.weights.parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
        moments = Moments(optimizer, self.weights)
        self.ring = Ring(
            6, 1, self.weights.layout, lambda p: 1.0, moments.groups, 1, weights_dtype=dtype,
            moments_dtype=moments_dtype,
        )  # fmt: skip
        for step in range(1, snapshots + 1):
            for p in self.weights.parameters:
                p.grad = torch.randn_like(p)
            optimizer.step()
            self.ring.push(step, step, self.weights.vector, moments)

    def candidates(self, clock=None):
        return Candidates(self.model, self.weights, self.loss, clock=clock)

    def make(self, predictors, horizons, memo=None, ring=None):
        """(name, K) -> candidate, with a memo that knows the live weights where they are what is stored."""
        candidates, history = self.candidates(), (ring or self.ring).history()
        memo = {} if memo is None else memo
        if history.now.weights.dtype == self.weights.vector.dtype:
            now = Candidate(None, 1.0, language_loss(self.model), [1.0])
            memo[key_of_sum(history, [(history.now.step, 1.0)])] = now
        return {
            (name, K): candidates.known(predictor, history, K, memo)
            for name, predictor in predictors.items()
            for K in horizons
        }


@pytest.fixture
def bench():
    return Bench()


class Constant(Predictor):
    """Predicts what it is given, for any K."""

    def __init__(self, weights, scales=(1.0,)):
        self.weights, self.scales = weights, scales

    def predict(self, history, K):
        return history.empty_vector().copy_(self.weights)


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
    (found,) = bench.make({"linear": Linear()}, [3]).values()
    assert found.loss == wanted


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
    assert len(bench.make(predictors, [1, 5])) == 8
    assert torch.equal(bench.weights.vector, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(bench.weights.parameters, gradients, strict=True))
    assert all(torch.equal(s.weights, w) for s, w in zip(bench.ring.history().snapshots, history, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert bench.model.lm_head.weight is bench.model.transformer.wte.weight


def test_every_candidate_has_its_own_loss_and_its_time(bench):
    predictors = {"linear": Linear(), "quadratic": Quadratic()}
    for (name, K), found in bench.make(predictors, [2, 4]).items():
        weights = predictors[name].predict(bench.ring.history(), K)
        assert found.loss == candidate_loss(bench.model, bench.weights.layout, weights, language_loss)
        assert found.scale == 1.0 and found.predict_s > 0 and found.verify_s > 0


def test_what_is_kept_of_a_candidate(bench):
    """Its coefficients, if it is a sum of snapshots; its weights never: they can be predicted again."""
    predictors = {"linear": Linear(), "momentum": Momentum("code"), "clamped": Quadratic("code")}
    found, history = bench.make(predictors, [2, 4]), bench.ring.history()
    assert all(candidate.full is None for candidate in found.values())
    for K in (2, 4):
        assert found["linear", K].coefficients == [-K, 1 + K]
        for name, predictor in predictors.items():
            again = bench.candidates().again(found[name, K], predictor, history, K)
            assert torch.equal(again.full, predictor.predict(history, K)) and again.loss == found[name, K].loss


def test_memory_is_used_again(bench):
    candidates, history = bench.candidates(), bench.ring.history()
    first = candidates.make(Linear(), history, 3)
    second = candidates.make(Linear(), history, 4)
    assert first.full.data_ptr() != second.full.data_ptr()
    candidates.release(first)
    candidates.release(first)
    third, fourth = (candidates.make(Linear(), history, K) for K in (5, 6))
    assert third.full.data_ptr() == first.full.data_ptr()
    assert len({c.full.data_ptr() for c in (second, third, fourth)}) == 3


def test_persistence_costs_no_evaluation(bench):
    found = bench.make({"persistence": Persistence(), "alone": Average(context=1)}, [1, 5, 9]).values()
    assert bench.loss.calls == 0
    assert {c.loss for c in found} == {language_loss(bench.model)}
    assert {(c.predict_s, c.verify_s) for c in found} == {(0.0, 0.0)}


def test_persistence_of_rounded_snapshots_is_another_candidate():
    bench = Bench(dtype=torch.float16)
    found = bench.make({"persistence": Persistence()}, [1, 5, 9])
    rounded = bench.weights.vector.half().float()
    assert bench.loss.calls == 1
    losses = {c.loss for c in found.values()}
    assert losses == {candidate_loss(bench.model, bench.weights.layout, rounded, language_loss)}
    assert losses != {language_loss(bench.model)}


def test_equal_candidates_are_made_once(bench):
    bench.make({"average": Average()}, [1, 5, 9])
    assert bench.loss.calls == 1  # whatever K
    memo = {}
    first = bench.make({"linear": Linear(), "twin": Linear()}, [2, 4], memo)
    assert bench.loss.calls == 1 + 2
    second = bench.make({"linear": Linear(), "quadratic": Quadratic()}, [2, 4], memo)
    assert bench.loss.calls == 1 + 2 + 2
    for K in (2, 4):
        assert first["linear", K].loss == first["twin", K].loss == second["linear", K].loss
    assert len({c.loss for c in second.values()}) == 4


def test_equal_methods_share_their_prediction(bench):
    memo = {}
    first = bench.make({"clamped": Quadratic("code")}, [2], memo)["clamped", 2]
    again = bench.make({"clamped": Quadratic("code")}, [2], memo)["clamped", 2]
    assert again.loss == first.loss and bench.loss.calls == 1


def test_a_memo_tells_snapshots_by_how_they_are_stored(bench):
    halves = [Ring(6, 1, bench.weights.layout, lambda p: 1.0, weights_dtype=torch.float16) for _ in range(2)]
    for half in halves:
        half.push(5, 5, bench.weights.vector)
    memo, only = {}, {"persistence": Persistence()}
    exact = bench.make(only, [1], memo)["persistence", 1]
    rounded, again = (bench.make(only, [1], memo, ring)["persistence", 1] for ring in halves)
    assert bench.loss.calls == 1
    assert rounded.loss == again.loss != exact.loss


def test_the_best_of_several_scales_counts():
    bench = Bench(moments_dtype=torch.float16)
    history = bench.ring.history()
    full = Momentum("code").predict(history, 3)
    losses = {
        c: candidate_loss(bench.model, bench.weights.layout, rescaled(full, history, c), language_loss)
        for c in (0.8, 1.0, 1.2)
    }
    found = bench.make({"momentum": Momentum("code")}, [3])["momentum", 3]
    assert bench.loss.calls == 3
    assert len(set(losses.values())) == 3
    assert found.loss == min(losses.values()) == losses[found.scale]


def test_a_candidate_that_is_not_asked_for_its_loss_has_none(bench):
    found = bench.candidates().make(Momentum("code"), bench.ring.history(), 3, score=False)
    assert math.isnan(found.loss) and found.scale == 1.0 and bench.loss.calls == 0


def test_a_candidate_that_is_not_finite_has_no_finite_loss(bench):
    broken = torch.full_like(bench.weights.vector, float("nan"))
    found = bench.make({"nan": Constant(broken), "persistence": Persistence()}, [1])
    assert math.isnan(found["nan", 1].loss) and found["nan", 1].scale == 1.0
    assert math.isfinite(found["persistence", 1].loss)


@pytest.mark.parametrize(
    ("losses", "best"),
    [((math.nan, 2.0, 3.0), (2.0, 0.8)), ((math.inf, 4.0, 3.0), (3.0, 1.2)), ((1.0, math.nan, 0.5), (0.5, 1.2))],
)
def test_scales_that_are_not_finite_lose_to_those_that_are(bench, losses, best):
    stream = iter(losses)
    bench.loss = lambda forward: next(stream)
    predictor = Constant(bench.weights.vector + 1, scales=(1.0, 0.8, 1.2))
    (found,) = bench.make({"several": predictor}, [1]).values()
    assert (found.loss, found.scale) == best


def test_rescaling_a_displacement():
    history = twins.random_history(0, weights_dtype=torch.float16)
    full = history.now.weights.float() + 2
    assert rescaled(full, history, 1.0) is full
    torch.testing.assert_close(rescaled(full, history, 0.25), history.now.weights.float() + 0.5)


def test_the_clock_gets_the_laps(bench):
    clock = Clock(torch.device("cpu"))
    bench.candidates(clock).make(Linear(), bench.ring.history(), 2)
    spent = clock.now()
    assert spent["predict"] > 0 and spent["verify"] > 0
    assert clock.running == "other"
