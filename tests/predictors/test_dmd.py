"""DMD: exact on linear systems, equal to its twin and to PyDMD, the rank rules, and what it refuses."""

import dataclasses
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from pydmd import DMD
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import twins
from leapbench.prediction import weights as weights_module
from leapbench.prediction.weights import places
from leapbench.predictors import dmd as dmd_module
from leapbench.predictors.dmd import Dmd, displacement, gram_of, groups, rank_of
from leapbench.predictors.linear import Linear
from twins import history_of, linear_system, smooth

EPS32, EPS64 = 2.0**-24, 2.0**-53
some_seeds = pytest.mark.parametrize("seed", range(3))
small_chunks = pytest.mark.parametrize("chunk", [16, 1 << 17], ids=["chunks", "one piece"])
all_scopes = pytest.mark.parametrize("scope", dmd_module.SCOPES)
all_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)

# Eigenvalues per interval of Delta = 10 steps.
SYSTEMS = {
    "rank 2": (0.99, 0.7),
    "rank 2, pair": (0.95 * np.exp(0.4j),),
    "rank 3, pair": (1.0, 0.9 * np.exp(0.9j)),
    "rank 4": (1.01, 0.9, 0.6, 0.3),
    "rank 4, pairs": (0.98 * np.exp(0.3j), 0.7 * np.exp(1.5j)),
}


def conditioning(columns, rank):
    S = np.linalg.svd(columns[:, :-1], compute_uv=False)
    return S[0] / S[rank - 1]


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("fixed", [True, False], ids=["rank r", "all"])
def test_it_is_exact_on_linear_systems(name, spare, fixed):
    x, r = linear_system(SYSTEMS[name])
    columns = np.stack([x(t) for t in range(r + 1 + spare)], axis=1)
    k = conditioning(columns, r)
    predictor = Dmd(context=r + 1 + spare, rank=r if fixed else -1)
    for K in (0, 3, 10, 25, 50):
        error = np.abs(predictor.predict(history_of(columns), K).numpy() - x(r + spare + K / 10)).max()
        # Float32 sums, and float64 dot products whose errors the squared condition number multiplies.
        assert error <= (30 * EPS32 + 1000 * EPS64 * k**2) * (1 + K / 10) * np.abs(columns).max(), (K, error, k)


@pytest.mark.parametrize("name", SYSTEMS)
def test_rounding_the_snapshots_costs_the_condition_number(name):
    x, r = linear_system(SYSTEMS[name])
    columns = np.stack([x(t) for t in range(r + 3)], axis=1)
    k = conditioning(columns, r)
    for K in (3, 10, 25):
        for dtype, eps in ((torch.float32, EPS32), (torch.float16, 2.0**-11)):
            found = Dmd(r + 3, rank=r).predict(history_of(columns, dtype), K).numpy()
            error = np.abs(found - x(r + 2 + K / 10)).max()
            assert error <= 30 * eps * k * (1 + K / 10) * np.abs(columns).max(), (K, dtype, error, k)


@pytest.mark.parametrize("h", [3, 5])
@pytest.mark.parametrize("K", [4, 10, 37])
def test_on_a_straight_line_whose_operator_is_defective_it_is_linear(h, K):
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((80, 1)) + 0.05 * rng.standard_normal((80, 1)) * np.arange(h)
    history = history_of(columns)
    found, wanted = (p.predict(history, K) for p in (Dmd(h, rank=2), Linear()))
    bound = 8 * EPS32 * (2 + K / 5) * np.abs(columns).max()  # both are sums of terms up to (1 + K / 10) max
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


# ---- twins -----------------------------------------------------------------------------------------------------------


@some_seeds
@small_chunks
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_it_equals_its_twin_and_pydmd(monkeypatch, seed, chunk, rank):
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    monkeypatch.setattr(dmd_module, "CPU_PART", chunk)
    columns = smooth(seed)
    k = conditioning(columns, rank)
    a = columns[:, -1]
    fitted = DMD(svd_rank=rank, exact=False).fit(columns)
    modes = fitted.modes
    for tau in (0.5, 1, 2.5, 5):
        wanted = twins.dmd(columns, tau, rank)
        change = np.diag(fitted.eigs.astype(complex) ** tau - 1)
        np.testing.assert_allclose(a + (modes @ change @ np.linalg.pinv(modes) @ a).real, wanted, rtol=1e-9, atol=1e-9)
        scale = np.abs(columns).max() + np.abs(wanted - a).max()

        c = displacement(gram_of([torch.tensor(v) for v in columns.T]), tau, rank, rows=len(a))
        # X c is a difference of terms as large as |X| |c|.
        terms = float((np.abs(columns[:, :-1]) @ np.abs(c)).max())
        assert np.abs(a + columns[:, :-1] @ c - wanted).max() <= 100 * EPS64 * k**2 * scale
        found = Dmd(rank=rank).predict(history_of(columns), int(10 * tau)).numpy()
        assert np.abs(found - wanted).max() <= 100 * EPS64 * k**2 * scale + 8 * EPS32 * (scale + terms)


def test_the_twin_with_one_step_is_pydmds_own_prediction_plus_what_the_modes_miss():
    columns = smooth(0)
    fitted, a = DMD(svd_rank=2, exact=False).fit(columns), columns[:, -1]
    missed = a - (fitted.modes @ np.linalg.pinv(fitted.modes) @ a).real
    found = Dmd(rank=2).predict(history_of(columns), 10).numpy()
    np.testing.assert_allclose(found, fitted.predict(a).real + missed, rtol=0, atol=1e-5)
    assert np.abs(missed).max() > 1e-3


def test_the_default_rank_is_that_of_the_exact_singular_values():
    ranks = []
    for columns in map(smooth, range(6)):
        S = np.linalg.svd(columns[:, :-1], compute_uv=False)
        ranks.append(rank_of(S, (200, 4), 0))
        wanted = twins.dmd(columns, 5, ranks[-1])
        np.testing.assert_allclose(Dmd().predict(history_of(columns), 50), wanted, rtol=0, atol=1e-4)
    assert set(ranks) == {1, 2}


@some_seeds
@all_dtypes
def test_every_dtype_of_the_history(seed, dtype):
    history = history_of(smooth(seed), dtype)
    stored = np.stack([s.weights.double().numpy() for s in history.snapshots], axis=1)
    for predictor, rank in ((Dmd(rank=2), 2), (Dmd(rank=4), 4)):
        found = predictor.predict(history, 20)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), twins.dmd(stored, 2, rank), rtol=0, atol=2e-4)


def test_the_gram_matrix_is_summed_in_float64(monkeypatch):
    rows = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    for part in (7, 100, 1000):  # 7 does not divide 100
        monkeypatch.setattr(dmd_module, "CPU_PART", part)
        exact = rows.double() @ rows.double().T
        np.testing.assert_allclose(gram_of(list(rows)), exact, rtol=0, atol=100 * EPS64 * float(exact.max()))


# ---- scope -----------------------------------------------------------------------------------------------------------


@some_seeds
def test_one_system_per_tensor(seed):
    columns = smooth(seed, size=20)
    together = history_of(columns, shapes={"w": (4, 5)})
    assert torch.equal(Dmd(scope="tensor").predict(together, 7), Dmd(scope="global").predict(together, 7))
    apart = history_of(columns, shapes={"a": (2, 4), "b": (12,)})
    found = Dmd(scope="tensor").predict(apart, 7)
    for place in (slice(0, 8), slice(8, 20)):
        assert torch.equal(found[place], Dmd().predict(history_of(columns[place]), 7))
    assert not torch.equal(found, Dmd().predict(apart, 7))


def test_tensors_smaller_than_the_history_and_tensors_of_zeros():
    history = twins.random_history(0)
    history.layout.views(history.snapshots[0].weights)["b"].zero_()
    for snapshot in history.snapshots:
        history.layout.views(snapshot.weights)["still"].zero_()
    for rank in (0, 1, 3, 0.9, -1):
        found = history.layout.views(Dmd(rank=rank, scope="tensor").predict(history, 7))
        assert all(bool(view.isfinite().all()) for view in found.values())
        assert float(found["still"].abs().max()) == 0.0
        x = [float(history.layout.views(s.weights)["scalar"]) for s in history.last(5).snapshots]
        one = sum(a * b for a, b in itertools.pairwise(x)) / sum(a * a for a in x[:-1])  # lambda
        assert float(found["scalar"]) == pytest.approx((complex(one) ** 0.7).real * x[-1], rel=1e-5)


MODELS = {
    "gpt2": dict(n_embd=8, n_layer=2, n_head=2, vocab_size=11),
    "qwen2": dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=11),
    "vit": dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32),
    "resnet": dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]),
}
BLOCKS = {
    "gpt2": ("transformer.h.{}.", ["ln_1", "attn", "ln_2", "mlp"]),
    "qwen2": ("model.layers.{}.", ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]),
    "vit": ("vit.layers.{}.", ["attention", "layernorm_before", "layernorm_after", "mlp"]),
    "resnet": ("resnet.encoder.stages.{}.", ["layers"]),
}
OTHERS = {
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.ln_f"],
    "qwen2": ["model.embed_tokens", "model.norm", "lm_head"],
    # A blank parts what torchvision's names put into one group.
    "vit": [
        "vit.embeddings.cls_token",
        "vit.embeddings.patch_embeddings",
        "vit.embeddings.position_embeddings vit.layernorm",
        "classifier",
    ],
    "resnet": ["resnet.embedder", "classifier"],
}


@pytest.mark.parametrize("model", MODELS)
def test_groups_are_the_components_of_blocks_and_the_other_modules(model):
    kind = AutoModelForCausalLM if model in ("gpt2", "qwen2") else AutoModelForImageClassification
    with torch.device("meta"):
        built = kind.from_config(AutoConfig.for_model(model, **MODELS[model]))
    layout = twins.layout_of({name: tuple(p.shape) for name, p in built.named_parameters()})
    found = groups(layout, "group")
    prefix, components = BLOCKS[model]
    wanted = [prefix.format(block) + component for block in range(2) for component in components] + OTHERS[model]
    assert len(found) == len(wanted)
    for group in wanted:
        prefixes = tuple(f"{prefix}." for prefix in group.split())
        members = {entry.name for entry in layout if f"{entry.name}.".startswith(prefixes)}
        assert any({entry.name for entry in entries} == members for entries in found), group
    assert sum(len(entries) for entries in found) == len(layout)


def test_a_group_may_lie_apart():
    layout = twins.layout_of({"h.0.a.w": (3,), "h.0.a.b": (2,), "h.0.b.w": (4,), "h.0.a.v": (5,), "bare": (6,)})
    found = groups(layout, "group")
    assert [places(entries) for entries in found] == [
        (slice(0, 5), slice(9, 14)), (slice(5, 9),), (slice(14, 20),),
    ]  # fmt: skip
    assert places(list(layout)) == (slice(0, 20),)
    columns = smooth(0, size=20)
    history = history_of(columns, shapes={entry.name: tuple(entry.shape) for entry in layout})
    predicted = Dmd(scope="group").predict(history, 7)
    for rows in (np.r_[0:5, 9:14], np.r_[5:9], np.r_[14:20]):
        alone = Dmd().predict(history_of(columns[rows]), 7)
        torch.testing.assert_close(predicted[torch.from_numpy(rows)], alone, rtol=0, atol=1e-5)
    for snapshot in history.snapshots:
        snapshot.weights[5:9] = 0.0
    assert Dmd(scope="group").predict(history, 7)[5:9].tolist() == [0.0] * 4


# ---- rank ------------------------------------------------------------------------------------------------------------

TALL = (10**9, 4)  # beta = 0: omega = 1.43


@pytest.mark.parametrize(
    ("singular", "shape", "kept"),
    [
        ((10, 3, 1, 0.1), TALL, 2),  # lower median s_3 = 1: 3 > 1.43
        ((10, 1.44, 1, 0.1), TALL, 2),
        ((10, 1.42, 1, 0.1), TALL, 1),
        ((10, 2.5, 1, 0.1), TALL, 2),  # with the mean of the middle two: 1.43 x 1.75 = 2.5025, only 1
        ((1, 1, 1, 1), TALL, 1),  # none passes
        ((9, 5, 2), TALL, 1),  # odd: the middle one; 1.43 x 5 = 7.15
        ((9, 7, 2, 1, 1), TALL, 2),
        ((5,), TALL, 1),
        ((10, 3, 1, 0.1), (4, 4), 2),  # beta = 1: omega = 2.86
        ((10, 2.8, 1, 0.1), (4, 4), 1),
        ((10, 1.9, 1, 0.1), (8, 4), 1),  # beta = 1/2: 0.07 - 0.2375 + 0.91 + 1.43 = 2.1725
        ((10, 2.2, 1, 0.1), (8, 4), 2),
        ((10, 2.2, 1, 0.1), (4, 8), 2),
        ((3, 2, 0, 0), TALL, 2),
        ((0, 0, 0, 0), TALL, 1),
    ],
)
def test_the_hard_threshold(singular, shape, kept):
    singular = np.array(singular, float)
    assert rank_of(singular, shape, 0) == kept
    # The rule in the letters of PDT's code.
    beta = min(shape) / max(shape)
    bar = float(torch.tensor(singular).median()) * (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43)
    assert max(1, int((singular > bar).sum())) == kept


@pytest.mark.parametrize(
    ("rank", "kept"),
    [(1, 1), (3, 3), (4, 4), (9, 4), (-1, 4), (0.5, 1), (0.79, 1), (0.81, 2), (0.95, 2), (0.97, 3), (0.9999999, 4)],
)
def test_fixed_energy_and_full_ranks(rank, kept):
    singular = np.sqrt([0.8, 0.16, 0.03, 0.01])  # cumulative energy 0.8, 0.96, 0.99, 1
    assert rank_of(singular, TALL, rank) == kept


@pytest.mark.parametrize("rank", [3, 4, 0.999999999999, -1, 0])
def test_noise_below_the_numerical_rank_is_never_a_mode(rank):
    x, r = linear_system((0.99, 0.7))
    columns = np.stack([x(t) for t in range(5)], axis=1)
    history = history_of(columns, torch.float32)
    np.testing.assert_allclose(Dmd(rank=rank).predict(history, 50), Dmd(rank=r).predict(history, 50), rtol=0, atol=1e-6)


# ---- powers ----------------------------------------------------------------------------------------------------------


def numbers(operator, start, tau, rank):
    """theta_hat for x_{t+1} = operator x_t, from `start`, with one snapshot more than it has dimensions."""
    columns = [np.array(start, float)]
    for _ in range(len(start)):
        columns.append(np.array(operator, float) @ columns[-1])
    history = history_of(np.stack(columns, axis=1), interval=1000)
    return Dmd(context=len(columns), rank=rank).predict(history, round(1000 * tau)).tolist(), columns[-1].tolist()


@pytest.mark.parametrize("tau", [0.1, 1.0, 2.5, 7.0])
def test_principal_powers_of_awkward_eigenvalues(tau):
    # lambda = 0: gone at once. The last snapshot is (0, 9), and the zero mode holds none of it.
    found, _ = numbers([[0, 0], [0, 3]], [1, 1], tau, rank=2)
    assert found == pytest.approx([0.0, 3.0 ** (2 + tau)], rel=1e-5, abs=1e-5)
    # lambda = -2 beside 1: the real part of (-2)^tau.
    found, _ = numbers([[-2, 0], [0, 1]], [1, 1], tau, rank=2)
    assert found == pytest.approx([4 * (complex(-2) ** tau).real, 1.0], rel=1e-5, abs=1e-5)
    # Nothing of the newest snapshot lies in the modes, and lambda is exactly 0: it stays.
    found, newest = numbers([[0, 1], [0, 0]], [0, 1], tau, rank=1)
    assert found == newest == [0.0, 0.0]


def test_a_mode_that_is_exactly_zero_loses_its_share_whatever_tau():
    columns = np.array([[1.0, 0.0], [0.0, 1.0]])  # one column to fit: x = (1, 0) -> (0, 1), A~ = 0
    for K in (1, 10, 15):
        assert Dmd(context=2).predict(history_of(columns), K).tolist() == [0.0, 1.0]
    gram = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert displacement(gram, 0.5, 1, rows=2).tolist() == [0.0]


@pytest.mark.parametrize("K", [20_000, 20_005])
def test_powers_beyond_float32_are_inf_never_nan(K):
    columns = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [-1.0, -2.0, -4.0, -8.0, -16.0]])
    assert Dmd(rank=1).predict(history_of(columns), K).tolist() == [float("inf")] * 2
    assert Dmd(rank=1).predict(history_of(columns), 1000).tolist() == pytest.approx([2.0**104, -(2.0**104)], rel=1e-5)


# ---- identity, purity, mistakes --------------------------------------------------------------------------------------


@all_scopes
@pytest.mark.parametrize("rank", [0, 3, 0.99, -1])
@all_dtypes
def test_no_steps_ahead_is_the_identity(scope, rank, dtype):
    history = twins.random_history(1, weights_dtype=dtype)
    assert torch.equal(Dmd(rank=rank, scope=scope).predict(history, 0), history.now.weights.float())


@all_scopes
def test_it_is_pure_and_builds_in_the_scratch_given(scope):
    history, untouched = twins.random_history(2), twins.random_history(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    predictor = Dmd(scope=scope)
    wanted = predictor.predict(history, 7)
    scratch = torch.full_like(wanted, float("nan"))
    found = predictor.predict(dataclasses.replace(history, scratch=[scratch]), 7)
    assert found.data_ptr() == scratch.data_ptr()
    assert torch.equal(found, wanted)
    found.fill_(float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(predictor.predict(history, 7), wanted)
    for mine, theirs in zip(history.snapshots, untouched.snapshots, strict=True):
        assert torch.equal(mine.weights, theirs.weights)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize("rank", [-2, 0.0, 1.0, 1.5, -0.5, float("nan"), True, "auto", None])
def test_wrong_ranks_are_refused(rank):
    with pytest.raises(ValueError, match=r"^rank=.* must be 0 .*$"):
        Dmd(rank=rank)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="context=1 must be 2 or more"):
        Dmd(context=1)
    with pytest.raises(ValueError, match="scope=layer is unknown; use global or tensor or group"):
        Dmd(scope="layer")
    history = twins.random_history(0)
    with pytest.raises(ValueError, match="9 snapshots wanted, 6 kept"):
        Dmd(context=9).predict(history, 5)
    with pytest.raises(ValueError, match="not evenly spaced"):
        Dmd(context=3).predict(twins.random_history(0, steps=(10, 20, 31)), 5)
    with pytest.raises(ValueError, match="K=-1"):
        Dmd().predict(history, -1)
    for bad in (float("nan"), float("inf")):
        history.snapshots[2].weights[4] = bad
        with pytest.raises(ValueError, match="finite"):
            Dmd().predict(history, 5)


def test_singular_values_that_are_rounding_are_below_the_cut():
    x, r = linear_system((0.99, 0.7), size=5000)
    columns = np.stack([x(t) for t in range(5)], axis=1)
    for dtype in (torch.float64, torch.float32):
        gram = gram_of([s.weights for s in history_of(columns, dtype).snapshots])
        squares = np.linalg.eigvalsh(gram[:-1, :-1])[::-1]
        assert (squares > 0).sum() >= r and (squares[r:] < dmd_module.SMALLEST**2 * squares[0]).all()
