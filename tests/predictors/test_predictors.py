"""Every predictor: equal to the printed equation, exact where a closed form says so, and pure."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import twins
from leapbench.prediction import weights as weights_module
from leapbench.prediction.candidate import rescaled
from leapbench.prediction.history import History, Snapshot
from leapbench.prediction.moments import AdamGroup, Moments
from leapbench.prediction.predictor import spacing
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors.average import Average
from leapbench.predictors.linear import Linear
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.momentum_decay import MomentumDecay
from leapbench.predictors.persistence import Persistence
from leapbench.predictors.quadratic import Quadratic
from leapbench.predictors.trend import Trend

EPS = 2.0**-24  # half a unit in the last place of float32, relative
HISTORY_TWINS = {
    "linear": (Linear(), twins.linear),
    "quadratic exact": (Quadratic("exact"), twins.quadratic_exact),
    "quadratic paper": (Quadratic("paper"), twins.quadratic_paper),
    "quadratic code": (Quadratic("code"), twins.quadratic_code),
    "trend": (Trend(), twins.trend),
    "average": (Average(), twins.average),
    "persistence": (Persistence(), twins.persistence),
}
MOMENTUMS = {f"momentum {form}": Momentum(form) for form in ("exact", "paper", "code")} | {"decay": MomentumDecay()}
EVERYTHING = {name: predictor for name, (predictor, _) in HISTORY_TWINS.items()} | MOMENTUMS
both_storages = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
some_seeds = pytest.mark.parametrize("seed", range(3))
small_chunks = pytest.mark.parametrize("chunk", [16, 1 << 17], ids=["chunks", "one piece"])


# ---- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HISTORY_TWINS)
@some_seeds
@both_storages
@small_chunks
def test_sums_of_snapshots_equal_their_twin(monkeypatch, name, seed, dtype, chunk):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    predictor, twin = HISTORY_TWINS[name]
    history = twins.random_history(seed, weights_dtype=dtype)
    snapshots = [twins.tensors(history, s.weights) for s in history.snapshots]
    largest = max(float(s.weights.abs().max()) for s in history.snapshots)
    for K in (1, 5, 10, 37, 100):
        s = K / 10
        # At most six terms are rounded, none larger than (s + 1)^2 weights times the coefficients' 2 s^2 + 3 s + 1.
        bound = 8 * EPS * (2 * s * s + 3 * s + 2) * largest
        found = twins.tensors(history, predictor.predict(history, K))
        for tensor in history.layout.views(history.now.weights):
            wanted = twin([s[tensor] for s in snapshots], list(history.steps), K)
            np.testing.assert_allclose(found[tensor], wanted, rtol=0, atol=bound, err_msg=f"{tensor}, K={K}")


def test_the_published_clamp_is_seen_from_both_sides():
    ratios = []
    for seed in range(3):
        history = twins.random_history(seed)
        older, old, now = (twins.tensors(history, s.weights) for s in history.snapshots[-3:])
        for t in ("a", "b", "scalar"):
            ratios.append(np.linalg.norm(now[t] - 2 * old[t] + older[t]) / np.linalg.norm(now[t] - old[t]))
    assert min(ratios) < 0.4 and max(ratios) > 0.6


@pytest.mark.parametrize("c", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("form", ["exact", "decay", "paper", "code"])
@some_seeds
@both_storages
@small_chunks
def test_momentum_equals_its_twin(monkeypatch, form, c, seed, dtype, chunk):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    history = twins.random_history(seed, weights_dtype=dtype, moments_dtype=dtype)
    now, (adam,) = history.now, history.adam
    theta, m, v = (twins.tensors(history, x) for x in (now.weights, now.exp_avg, now.exp_avg_sq))
    predictor = MomentumDecay() if form == "decay" else Momentum(form)
    for K in (1, 10, 100):
        lrs = [history.factor_at(67 + j) for j in range(K)]  # the position is 60 + 7
        last_lr = history.factor_at(66)  # of the update that has led there
        found = twins.tensors(history, rescaled(predictor.predict(history, K), history, c))
        for t in theta:
            if form == "exact":
                wanted = twins.momentum_exact(theta[t], m[t], v[t], now.updates, lrs, adam)
            elif form == "decay":
                wanted = twins.momentum_decay(theta[t], m[t], v[t], now.updates, lrs, adam)
            elif form == "paper":
                wanted = twins.momentum_paper(theta[t], m[t], v[t], K, adam)
            else:
                wanted = twins.momentum_code(theta[t], m[t], v[t], K, last_lr, 1.0)
            wanted = twins.momentum_code(theta[t], m[t], v[t], K, last_lr, c) if form == "code" else (
                theta[t] + c * (wanted - theta[t])
            )  # fmt: skip
            # Root, sum, quotient, product and two sums: each rounds what is at most |theta| + |displacement|.
            bound = 8 * EPS * (np.abs(theta[t]) + np.abs(wanted - theta[t]) + np.abs(wanted))
            assert (np.abs(found[t] - wanted) <= bound).all(), (t, K)


def test_float16_moments_underflow_and_blow_the_published_momentum_up():
    single, half = (twins.random_history(0, moments_dtype=d) for d in (torch.float32, torch.float16))
    share = float((half.now.exp_avg_sq == 0).float().mean())
    moved = [float((Momentum("code").predict(h, 10) - h.now.weights).abs().max()) for h in (single, half)]
    assert share > 0.5
    assert moved[1] > 100 * moved[0]


# ---- closed forms ----------------------------------------------------------------------------------------------------


def curve(steps, coefficients):
    """Snapshots of the polynomial sum_p c_p (t / 100)^p, c (P, N), rounded to float32; and its exact value at any t."""

    def at(t):
        return sum(c * (t / 100) ** p for p, c in enumerate(coefficients.double()))

    layout = twins.layout_of({"w": (coefficients.shape[1],)})
    return History(tuple(Snapshot(t, t, at(t).float()) for t in steps), layout, lambda p: 0.0), at


def rounding(predictor, history, K):
    """What rounding the snapshots, the coefficients and the sum to float32 can do at most."""
    coefficients = predictor.coefficients(history.last(predictor.context).steps, K)
    terms = (
        abs(c) * s.weights.abs().max()
        for c, s in zip(reversed(coefficients), reversed(history.snapshots), strict=False)
    )
    return 6 * EPS * float(sum(terms))


some_coefficients = st.integers(0, 10_000).map(
    lambda seed: torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=30, deadline=None)
@given(some_coefficients, st.integers(0, 1000), st.integers(1, 100), st.integers(1, 200))
def test_linear_and_trend_are_exact_on_lines(coefficients, start, interval, K):
    steps = [start + i * interval for i in range(5)]
    history, at = curve(steps, coefficients[:2])
    for predictor in (Linear(), Trend(context=5)):
        error = (predictor.predict(history, K).double() - at(steps[-1] + K)).abs().max()
        assert error <= rounding(predictor, history, K)


@settings(max_examples=30, deadline=None)
@given(some_coefficients, st.integers(1, 60), st.integers(1, 60), st.integers(1, 100))
def test_quadratic_is_exact_on_parabolas_even_unevenly_spaced(coefficients, gap2, gap1, K):
    steps = [10, 10 + gap2, 10 + gap2 + gap1]
    history, at = curve(steps, coefficients)
    predictor = Quadratic("exact")
    error = (predictor.predict(history, K).double() - at(steps[-1] + K)).abs().max()
    assert error <= rounding(predictor, history, K)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_published_quadratics_miss_parabolas(form):
    history, at = curve([10, 20, 30], torch.tensor([[0.0], [0.0], [1.0]]))
    missed = float(Quadratic(form).predict(history, 20)[0]) - float(at(50))
    # s = 2, d1 = 0.05, d2 = 0.02 (below half of d1): exact adds 3 d2; the paper's 1 d2, the code's 2 d2.
    assert missed == pytest.approx({"paper": -2 * 0.02, "code": -1 * 0.02}[form], rel=1e-4)


def frozen_run(weight_decay, K, updates=30):
    """A parameter under AdamW with one gradient for ever: (history after `updates`, weights K real steps later)."""
    rng = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(20, 10)
    gradient = [torch.randn(p.shape, generator=rng) for p in model.parameters()]
    weights = FlatWeights(model)
    optimizer = torch.optim.AdamW(weights.parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)

    def steps(first, last):
        for position in range(first, last):
            optimizer.param_groups[0]["lr"] = twins.schedule(position)
            for p, g in zip(weights.parameters, gradient, strict=True):
                p.grad = g.clone()
            optimizer.step()

    steps(0, updates)
    moments = Moments(optimizer, weights)
    now = Snapshot(
        updates, updates, weights.vector.clone(), moments.exp_avg.clone(), moments.exp_avg_sq.clone(), moments.updates
    )
    adam = AdamGroup(0.9, 0.99, 1e-8, weight_decay, lr=1.0, places=(slice(0, weights.layout.size),))
    steps(updates, updates + K)
    return History((now,), weights.layout, twins.schedule, (adam,)), weights.vector


@pytest.mark.parametrize("K", [1, 5, 25])
def test_momentum_exact_is_k_real_adamw_steps_while_the_gradient_stays(K):
    history, truth = frozen_run(weight_decay=0.0, K=K)
    found = Momentum("exact").predict(history, K)
    moved = (truth - history.now.weights).abs()
    assert float(moved.min()) > 0.9 * sum(twins.schedule(30 + j) for j in range(K))  # it went somewhere
    # Moments of 30 + K float32 updates differ from the gradient by a few roundings each; so do K sums of the weights.
    bound = 4 * (30 + K) * EPS * moved + K * EPS * history.now.weights.abs()
    assert ((found - truth).abs() <= bound).all()


def test_momentum_exact_with_decay_differs_from_real_steps_by_the_second_order_only():
    K, decay = 25, 0.5
    history, truth = frozen_run(weight_decay=decay, K=K)
    total = sum(twins.schedule(30 + j) for j in range(K))
    error = float((Momentum("exact").predict(history, K) - truth).abs().max())
    without = float((Momentum("exact").predict(replace_decay(history, 0.0), K) - truth).abs().max())
    second_order = decay * total**2 * (1 + decay * float(history.now.weights.abs().max()))
    assert error <= second_order
    assert without > 3 * second_order


def replace_decay(history, weight_decay):
    changed = tuple(replace(group, weight_decay=weight_decay) for group in history.adam)
    return replace(history, adam=changed)


def test_momentum_sums_the_schedule_over_the_skipped_positions():
    asked = []

    def factor_at(position):
        asked.append(position)
        return 1e-3

    history = twins.random_history(0, factor_at=factor_at)
    for predictor in (Momentum("exact"), MomentumDecay()):
        asked.clear()
        predictor.predict(history, 4)
        assert asked == [67, 68, 69, 70]
    asked.clear()
    Momentum("code").predict(history, 4)
    assert asked == [66]  # the published code keeps the rate of the last update


def test_decaying_momentum_stops_after_a_while():
    history = replace_decay(twins.random_history(0, factor_at=lambda p: 1e-3), 0.0)
    far, farther = (MomentumDecay().predict(history, K) for K in (200, 400))
    assert torch.equal(far, farther)
    limit = Momentum("exact").predict(history, 9) - history.now.weights  # 0.9 + 0.81 + ... = 9
    torch.testing.assert_close(far - history.now.weights, limit, rtol=1e-4, atol=1e-6)


# ---- K = 0 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in ("trend", "average")])
@both_storages
def test_no_steps_ahead_is_the_identity(name, dtype):
    history = twins.random_history(1, weights_dtype=dtype, moments_dtype=torch.float32)
    assert torch.equal(EVERYTHING[name].predict(history, 0), history.now.weights.float())


def test_no_steps_ahead_smooths_where_the_method_smooths():
    history = twins.random_history(1)
    stacked = torch.stack([s.weights for s in history.snapshots[-5:]]).double().numpy()
    fitted = np.polyfit(range(-4, 1), stacked, deg=1)[1]
    np.testing.assert_allclose(Trend().predict(history, 0).numpy(), fitted, atol=1e-6)
    np.testing.assert_allclose(Average().predict(history, 0).numpy(), stacked.mean(0), atol=1e-6)
    assert np.abs(fitted - stacked[-1]).max() > 1e-3


# ---- purity and mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERYTHING)
def test_predictors_are_pure(name):
    history, twin_history = twins.random_history(2), twins.random_history(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = EVERYTHING[name].predict(history, 7)
    kept = first.clone()
    second = EVERYTHING[name].predict(history, 7)
    assert torch.equal(first, second)
    first.fill_(float("nan"))  # a candidate is the caller's own
    assert torch.equal(EVERYTHING[name].predict(history, 7), kept)
    for mine, theirs in zip(history.snapshots, twin_history.snapshots, strict=True):
        for field in ("weights", "exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(mine, field), getattr(theirs, field)), field
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize("name", EVERYTHING)
def test_candidates_are_built_in_the_scratch_given(name):
    history = twins.random_history(2)
    wanted = EVERYTHING[name].predict(history, 7)
    scratch = torch.full_like(wanted, float("nan"))
    lent = replace(history, scratch=[scratch])
    found = EVERYTHING[name].predict(lent, 7)
    assert found.data_ptr() == scratch.data_ptr()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("predictor", MOMENTUMS.values(), ids=MOMENTUMS)
def test_momentum_without_moments_is_refused(predictor):
    history = twins.random_history(0)
    bare = tuple(Snapshot(s.step, s.position, s.weights) for s in history.snapshots)
    with pytest.raises(ValueError, match="moments"):
        predictor.predict(replace(history, snapshots=bare), 5)
    with pytest.raises(ValueError, match="moments"):
        predictor.predict(replace(history, adam=()), 5)


def test_mistakes_are_refused():
    for wrong in (Quadratic, Momentum):
        with pytest.raises(ValueError, match="exact or paper or code"):
            wrong("newton")
    with pytest.raises(ValueError, match="2 or more"):
        Trend(context=1)
    with pytest.raises(ValueError, match="not evenly spaced"):
        spacing((10, 20, 31))
    with pytest.raises(ValueError, match="not evenly spaced"):
        Quadratic("code").predict(twins.random_history(0, steps=(10, 20, 31)), 5)
    assert spacing((10, 25, 40)) == 15
