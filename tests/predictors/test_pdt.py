"""PDT and its controls: equal to their twins, exact on linear systems, the facts about masks, and what they refuse."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import twins
from leapbench.prediction import weights as weights_module
from leapbench.predictors import dmd as dmd_module
from leapbench.predictors._masks import (
    accelerates_code,
    accelerates_paper,
    consistent,
    generator,
    random_subset,
    subset_of,
)
from leapbench.predictors.dmd import Dmd
from leapbench.predictors.linear import Linear
from leapbench.predictors.masked_linear import MaskedLinear
from leapbench.predictors.pdt import MODES, VARIANTS, Pdt
from leapbench.predictors.pdt_linear import PdtLinear
from leapbench.predictors.pdt_nonselective import PdtNonselective
from leapbench.predictors.pdt_random_mask import PdtRandomMask
from leapbench.predictors.pdt_shuffled import PdtShuffled
from leapbench.predictors.random_accelerated import RandomAccelerated
from twins import history_of, linear_system, smooth

CPU, EPS32 = torch.device("cpu"), 2.0**-24
some_seeds = pytest.mark.parametrize("seed", range(3))
small_chunks = pytest.mark.parametrize("chunk", [16, 1 << 17], ids=["chunks", "one piece"])
EVERYTHING = {
    **{f"pdt {variant} {mode}": Pdt(variant=variant, mode=mode) for variant in VARIANTS for mode in MODES},
    "pdt tensor": Pdt(scope="tensor"),
    "pdt group": Pdt(scope="group"),
    "nonselective": PdtNonselective(),
    "random mask": PdtRandomMask(fraction=0.3),
    "shuffled": PdtShuffled(),
    "linear": PdtLinear(),
    "random accelerated": RandomAccelerated(fraction=0.3),
    "masked linear": MaskedLinear(),
}
everything = pytest.mark.parametrize("predictor", EVERYTHING.values(), ids=EVERYTHING)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_mode = pytest.mark.parametrize("mode", MODES)
with_lots = pytest.mark.parametrize("predictor", [PdtRandomMask(), PdtShuffled()], ids=["random mask", "shuffled"])


def wandering(seed, size=200, h=5):
    """(N, h+1): the first h columns as in `smooth`, the last an optimizer's interval that need not agree with them."""
    rng = np.random.default_rng(100 + seed)
    columns = smooth(seed, size, h)
    ahead = (columns[:, -1] - columns[:, -2]) * rng.uniform(-0.5, 1.5, size)
    return np.append(columns, (columns[:, -1] + ahead)[:, None], axis=1)


def shifted(history, steps):
    """The same snapshots, `steps` later."""
    later = tuple(dataclasses.replace(s, step=s.step + steps) for s in history.snapshots)
    return dataclasses.replace(history, snapshots=later)


def accepted_by(predictor, history, K=40):
    """Where the candidate is not c, (N,) bool; weights that do not move count as not accepted."""
    return predictor.predict(history, K) != history.now.weights.float()


# ---- twins -----------------------------------------------------------------------------------------------------------


@every_variant
@every_mode
@small_chunks
def test_it_equals_its_twin(monkeypatch, variant, mode, chunk):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    shares = []
    for seed, rank, K in ((0, 1, 3), (1, 2, 15), (2, 2, 40), (3, 3, 40)):
        columns = wandering(seed)
        older, a, c, tau = columns[:, :-1], columns[:, -2], columns[:, -1], K / 10 + 1
        path = twins.pdt_path(older, tau, rank)
        # Float32 sums decide otherwise where a comparison is closer than this.
        near = 30 * EPS32 * np.abs(columns).max() * (1 + tau)
        signs = [np.resize(pattern, len(path))[:, None] for pattern in ([1], [-1], [1, -1], [-1, 1])]
        masks = np.stack([twins.pdt_mask(path + near * s, c - a, tau, variant, mode) for s in [0 * signs[0], *signs]])
        sure = (masks == masks[0]).all(axis=0)
        assert sure.mean() > 0.97
        found = Pdt(rank=rank, variant=variant, mode=mode).predict(history_of(columns), K).numpy()
        np.testing.assert_allclose(found[sure], np.where(masks[0], a + path[-1], c)[sure], rtol=0, atol=near)
        shares.append(masks[0].mean())
    assert 0.01 < np.mean(shares) < 0.95


@some_seeds
@pytest.mark.parametrize("K", [1, 10, 25])
def test_masked_linear_equals_its_twin(seed, K):
    history = twins.random_history(seed)
    thetas = [s.weights.double().numpy() for s in history.snapshots]
    found = MaskedLinear().predict(history, K)
    wanted = twins.masked_linear(thetas, history.steps, K)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=8 * EPS32 * np.abs(wanted).max())
    moved = accepted_by(MaskedLinear(), history, K)
    assert torch.equal(found[moved], Linear().predict(history, K)[moved])
    assert 0.2 < float(moved.float().mean()) < 0.95


@some_seeds
@every_variant
@pytest.mark.parametrize("K", [5, 20])
def test_pdt_linear_moves_the_weights_that_pdt_moves_along_a_line(seed, variant, K):
    history = history_of(wandering(seed))
    moved = accepted_by(Pdt(variant=variant), history, K)
    a, c = (s.weights.double() for s in history.last(2).snapshots)
    wanted = torch.where(moved, a + (K / 10 + 1) * (c - a), c)
    torch.testing.assert_close(PdtLinear(variant=variant).predict(history, K).double(), wanted, rtol=0, atol=1e-5)
    assert moved.any() or variant != "code"


@some_seeds
@pytest.mark.parametrize("K", [1, 10, 25])
def test_random_accelerated_extrapolates_its_subset(seed, K):
    history = twins.random_history(seed)
    moved = accepted_by(RandomAccelerated(0.5), history, K)
    a, c = (s.weights.double() for s in history.last(2).snapshots)
    tau = K / 10 + 1
    wanted = torch.where(moved, a + tau * (c - a), c)
    torch.testing.assert_close(RandomAccelerated(0.5).predict(history, K).double(), wanted, rtol=0, atol=1e-5)
    assert torch.equal(RandomAccelerated(1.0).predict(history, K), Linear().predict(history, K))


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("growth", "tau", "accepting"),
    [  # p - a over c - a is (growth^tau - 1) / (growth - 1)
        (1.05, 5, {"code"}),  # 5.53: above tau, below tau + 1
        (0.95, 5, {"code", "paper_step", "paper_cumulative"}),  # 4.52
        (1.5, 5, set()),  # 13.2
        (1.5, 2, {"code"}),  # 2.5
        (0.5, 2.5, {"code", "paper_step", "paper_cumulative"}),  # 1.65
        (-0.5, 3, set()),  # 0.75, below 1
    ],
)
def test_on_one_mode_it_is_exact_or_leaves_everything(growth, tau, accepting):
    start = np.random.default_rng(0).standard_normal(50)
    columns = start[:, None] * growth ** np.arange(6.0)
    history, K = history_of(columns), round(10 * (tau - 1))
    for variant in VARIANTS:
        truth = start * growth ** (4 + tau) if variant in accepting else columns[:, -1]
        found = Pdt(rank=1, variant=variant).predict(history, K).numpy()
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6)


def test_the_signs_on_the_way_count_for_the_paper_alone():
    """One rotating pair: half a turn and back, so that the end agrees with the start but the way does not."""
    x, _ = linear_system((np.exp(2j * np.pi / 8),), size=400)
    columns = np.stack([x(t) for t in range(-4, 2)], axis=1)
    history, K = history_of(columns), 80  # tau = 9: a whole turn and one step, where p = c
    accepted = {v: Pdt(rank=2, variant=v, mode="consistency_only").predict(history, K) for v in VARIANTS}
    np.testing.assert_allclose(accepted["code"].numpy(), columns[:, -1], rtol=0, atol=1e-5)
    x, _ = linear_system((np.exp(2j * np.pi / 8.8),), size=400)  # never exactly back at a on the way
    history, K = history_of(np.stack([x(t) for t in range(-4, 2)], axis=1)), 85  # tau = 9.5
    moved = {v: accepted_by(Pdt(rank=2, variant=v, mode="consistency_only"), history, K).numpy() for v in VARIANTS}
    agrees = np.stack([np.sign(x(k) - x(0)) == np.sign(x(1) - x(0)) for k in (*range(1, 10), 9.5)])
    np.testing.assert_array_equal(moved["code"], agrees[-1])
    np.testing.assert_array_equal(moved["paper_cumulative"], agrees.all(axis=0))
    assert not moved["paper_step"].any() and moved["paper_cumulative"].sum() < moved["code"].sum() / 2


def test_on_a_linear_system_what_is_accepted_is_true():
    x, r = linear_system((0.98, 0.8 * np.exp(0.5j)))
    columns = np.stack([x(t) for t in range(6)], axis=1)
    for K in (5, 20, 40):
        found = Pdt(rank=r).predict(history_of(columns), K).numpy()
        taken = found != columns[:, -1].astype(np.float32)
        assert 0.1 < taken.mean() < 1
        np.testing.assert_allclose(found[taken], x(5 + K / 10)[taken], rtol=0, atol=1e-3)


@some_seeds
@pytest.mark.parametrize("scope", dmd_module.SCOPES)
def test_it_is_a_choice_between_the_nonselective_candidate_and_the_newest_snapshot(seed, scope):
    history = twins.random_history(seed)
    older = dataclasses.replace(history, snapshots=history.snapshots[:-1])
    p = PdtNonselective(scope=scope).predict(history, 20)
    assert torch.equal(p, Dmd(scope=scope).predict(older, 30))
    for predictor in (Pdt(scope=scope), PdtShuffled(scope=scope), PdtRandomMask(scope=scope, fraction=0.5)):
        found = predictor.predict(history, 20)
        assert bool((found.isclose(p, rtol=1e-6) | (found == history.now.weights)).all())
        assert not torch.equal(found, p) and not torch.equal(found, history.now.weights)


@some_seeds
@every_variant
def test_both_is_size_and_sign(seed, variant):
    history = history_of(wandering(seed))
    both, size, sign = (accepted_by(Pdt(variant=variant, mode=mode), history) for mode in MODES)
    assert torch.equal(both, size & sign)
    assert both.any() and not torch.equal(both, size) and not torch.equal(both, sign)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_the_bounds():
    d = torch.tensor([0.0, 0.5, 1.0, 1.5, 5.0, 5.5, 6.0, 6.5])
    one, none = torch.ones(8), torch.zeros(8)
    for sign in (1, -1):  # size alone
        assert accelerates_code(sign * d, one, 5).tolist() == [False, False, True, True, True, True, True, False]
        assert accelerates_paper(sign * d, one, 5).tolist() == [False, False, False, True, True, False, False, False]
    assert accelerates_code(d, none, 5).tolist() == [True] + [False] * 7
    assert not accelerates_paper(d, none, 5).any()
    assert not accelerates_paper(d, one, 1).any()


def test_signs():
    moves = torch.tensor([1.0, -1.0, 0.0]).repeat_interleave(3)
    deltas = torch.tensor([2.0, -2.0, 0.0]).repeat(3)
    same = [True, False, False, False, True, False, False, False, True]
    assert consistent([moves], deltas).tolist() == same
    assert consistent([moves, 5 * moves], deltas).tolist() == same
    assert consistent(iter([moves, -moves]), deltas).tolist() == [False] * 8 + [True]
    assert consistent([moves, -moves], deltas).tolist() == consistent([-moves, moves], deltas).tolist()


@every_mode
def test_the_code_accepts_weights_that_are_frozen_at_zero_and_leaves_them(mode):
    columns = wandering(0)
    columns[:7] = 0.0
    found = Pdt(mode=mode).predict(history_of(columns), 40)
    assert found[:7].tolist() == [0.0] * 7
    still = torch.zeros(7)
    assert accelerates_code(still, still, 5).all() and consistent([still], still).all()


@some_seeds
def test_steps_that_agree_add_up_to_displacements_that_agree(seed):
    x, r = linear_system((0.97 * np.exp(0.2j), 0.8 * np.exp(1.1j)), size=400, seed=seed)
    history = history_of(np.stack([x(t) for t in range(6)], axis=1))
    step, cumulative, end = (
        accepted_by(Pdt(rank=r, variant=variant, mode="consistency_only"), history, 55)
        for variant in ("paper_step", "paper_cumulative", "code")
    )
    assert not (step & ~cumulative).any() and not (cumulative & ~end).any()
    assert 50 < step.sum() < cumulative.sum() < end.sum()


@some_seeds
@small_chunks
@pytest.mark.parametrize("scope", dmd_module.SCOPES)
def test_shuffled_keeps_the_count_of_every_tensor(monkeypatch, seed, chunk, scope):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    shapes = {"h.0.a.w": (50,), "h.0.b.w": (7, 9), "h.0.a.v": (30,), "c.w": (57,)}  # a group that lies apart
    history = history_of(wandering(seed), shapes=shapes)
    pdt, shuffled = (accepted_by(kind(scope=scope, rank=2), history) for kind in (Pdt, PdtShuffled))
    count = {name: int(view.sum()) for name, view in history.layout.views(pdt).items()}
    assert {name: int(view.sum()) for name, view in history.layout.views(shuffled).items()} == count
    assert all(n > 0 for n in count.values()) and not torch.equal(pdt, shuffled)


def test_subsets_are_drawn_evenly():
    rng, counts = np.random.default_rng(0), torch.zeros(20)
    for _ in range(2000):
        chosen = subset_of(20, 5, rng, CPU)
        assert int(chosen.sum()) == 5
        counts += chosen
    assert float((counts / 2000 - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    assert not subset_of(20, 0, rng, CPU).any() and subset_of(20, 20, rng, CPU).all()


@small_chunks
def test_shuffling_piece_by_piece_is_fair_to_every_piece(monkeypatch, chunk):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    history = history_of(wandering(0, size=90))
    counts = sum(accepted_by(PdtShuffled(seed=seed), history).float() for seed in range(200)) / 200
    share = float(accepted_by(Pdt(), history).float().mean())
    sigma = (share * (1 - share) / 200) ** 0.5
    assert float(counts.mean()) == pytest.approx(share)
    assert float((counts - share).abs().max()) < 4.5 * sigma
    assert float(counts.std()) == pytest.approx(sigma, rel=0.3)


@with_lots
def test_subsets_are_fresh_at_every_step_and_the_same_again(predictor):
    history = history_of(wandering(0, size=2000))
    first, later = accepted_by(predictor, history), accepted_by(predictor, shifted(history, 10))
    assert torch.equal(first, accepted_by(predictor, history))
    assert torch.equal(later, accepted_by(predictor, shifted(history, 10)))
    other = accepted_by(type(predictor)(seed=1), history)
    share = float(first.float().mean())
    for different in (later, other):  # two independent subsets share share^2 of the weights
        assert float((first & different).float().mean()) == pytest.approx(share**2, abs=0.02)
    assert not torch.equal(first, later)


def test_the_accelerated_subset_is_always_the_same():
    history = history_of(wandering(0, size=20_000))
    first = accepted_by(RandomAccelerated(), history)
    assert torch.equal(first, accepted_by(RandomAccelerated(), shifted(history, 10), 7))
    assert float(first.float().mean()) == pytest.approx(0.18, abs=5 * (0.18 * 0.82 / 20_000) ** 0.5)
    assert not torch.equal(first, accepted_by(RandomAccelerated(seed=1), history))


def test_the_random_share():
    history = history_of(wandering(0, size=20_000))
    share = float(accepted_by(PdtRandomMask(), history).float().mean())
    assert share == pytest.approx(0.097, abs=5 * (0.097 * 0.903 / 20_000) ** 0.5)
    assert torch.equal(PdtRandomMask(fraction=1.0).predict(history, 40), PdtNonselective().predict(history, 40))
    assert random_subset(10, 1.0, generator(CPU, 3)).all()


# ---- scopes, identity, purity, memory, range -------------------------------------------------------------------------


def test_one_mask_for_all_and_a_system_for_each_group():
    columns = wandering(0)
    shapes = {"h.0.a.w": (50,), "h.0.b.w": (30,), "h.0.a.v": (40,), "c.w": (80,)}
    found = Pdt(scope="group").predict(history_of(columns, shapes=shapes), 40)
    for rows in (np.r_[0:50, 80:120], np.r_[50:80], np.r_[120:200]):
        alone = Pdt().predict(history_of(columns[rows]), 40)
        torch.testing.assert_close(found[torch.from_numpy(rows)], alone, rtol=0, atol=1e-5)


@everything
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_no_steps_ahead_is_the_identity_and_every_dtype_works(predictor, dtype):
    history = twins.random_history(1, weights_dtype=dtype)
    assert torch.equal(predictor.predict(history, 0), history.now.weights.float())
    found = predictor.predict(history, 13)
    assert found.dtype == torch.float32 and bool(found.isfinite().all())
    exact = predictor.predict(twins.random_history(1), 13)
    assert float((found - exact).abs().median()) <= 8 * (torch.finfo(dtype).eps + 2 * EPS32)


@everything
def test_it_is_pure_and_builds_in_the_scratch_given(predictor):
    history, untouched = twins.random_history(2), twins.random_history(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    wanted = predictor.predict(history, 20)
    scratch = torch.full_like(wanted, float("nan"))
    found = predictor.predict(dataclasses.replace(history, scratch=[scratch]), 20)
    assert found.data_ptr() == scratch.data_ptr()
    assert torch.equal(found, wanted)
    predictor.predict(twins.random_history(3), 40)
    found.fill_(float("nan"))
    assert torch.equal(predictor.predict(history, 20), wanted)
    for mine, theirs in zip(history.snapshots, untouched.snapshots, strict=True):
        assert torch.equal(mine.weights, theirs.weights)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


class Largest(TorchDispatchMode):
    """The bytes of the largest memory that an operation returns, `known` memory apart."""

    def __init__(self, known):
        super().__init__()
        self.known, self.bytes = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@everything
def test_nothing_but_the_candidate_is_as_large_as_the_weights(monkeypatch, predictor):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", 64)
    monkeypatch.setattr(dmd_module, "CPU_PART", 32)
    history = history_of(wandering(0, size=2000), torch.float32)
    scratch = torch.empty(2000)
    with Largest([scratch, *(s.weights for s in history.snapshots)]) as seen:
        predictor.predict(dataclasses.replace(history, scratch=[scratch]), 40)
    assert 0 < seen.bytes <= 5 * 32 * 8  # the dot products' buffer: 32 elements of h float64 vectors


def test_powers_beyond_float32_are_never_nan():
    columns = np.array([[1.0, -1.0, 0.5]]).T * 2.0 ** np.arange(6.0)
    history = history_of(columns)
    for variant in VARIANTS:
        for mode in ("both", "accel_only"):
            assert torch.equal(
                Pdt(rank=1, variant=variant, mode=mode).predict(history, 20_000), history.now.weights.float()
            )
    signs = Pdt(rank=1, mode="consistency_only").predict(history, 20_000)  # all inf, which has the sign of 1 and 0.5
    assert signs.tolist() == [float("inf"), -32.0, float("inf")]
    assert PdtNonselective(rank=1).predict(history, 20_000).tolist() == [float("inf")] * 3


def test_snapshots_of_zeros_leave_what_the_optimizer_made():
    columns = np.zeros((20, 6))
    columns[:, -1] = np.arange(20)
    for mode in MODES:
        assert Pdt(mode=mode).predict(history_of(columns), 20).tolist() == list(range(20))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pdt(h=1), "h=1 must be 2 or more"),
        (lambda: Pdt(rank=1.5), "rank=1.5 must be 0"),
        (lambda: Pdt(scope="layer"), "scope=layer is unknown; use global or tensor or group"),
        (lambda: Pdt(variant="paper"), "variant=paper is unknown; use code or paper_step or paper_cumulative"),
        (lambda: Pdt(mode="none"), "mode=none is unknown; use both or accel_only or consistency_only"),
        (lambda: PdtShuffled(mode="none"), "mode=none is unknown"),
        (lambda: PdtShuffled(seed=-1), "seed=-1 must be a whole number, 0 or more"),
        (lambda: PdtRandomMask(seed=1.0), "seed=1.0 must be a whole number"),
        (lambda: PdtNonselective(h=0), "h=0 must be 2 or more"),
        *[
            (lambda kind=kind, f=f: kind(fraction=f), f"fraction={f} must be above 0 and at most 1")
            for kind in (PdtRandomMask, RandomAccelerated)
            for f in (0.0, -0.1, 1.01, float("nan"))
        ],
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@everything
def test_histories_that_do_not_fit_are_refused(predictor):
    with pytest.raises(ValueError, match=f"{predictor.context} snapshots wanted, {predictor.context - 1} kept"):
        predictor.predict(twins.random_history(0).last(predictor.context - 1), 5)
    if predictor.context > 2:
        uneven = twins.random_history(0, steps=(10, 20, 30, 40, 50, 61))
        with pytest.raises(ValueError, match="not evenly spaced"):
            predictor.predict(uneven, 5)


def test_the_dmd_behind_pdt_refuses_what_dmd_refuses():
    history = twins.random_history(0)
    with pytest.raises(ValueError, match="K=-1 must be 0 or more"):
        Pdt().predict(history, -1)
    history.snapshots[2].weights[4] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Pdt().predict(history, 5)
