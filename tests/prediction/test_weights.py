"""One flat vector: nothing lost, nothing twice, and training does not notice."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from leapbench.prediction import weights as module
from leapbench.prediction.moments import Moments
from leapbench.prediction.weights import FlatWeights, Layout, chunks, combine

OPTIMIZERS = {
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw loop": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=False),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-1, weight_decay=0.1),
    "sgd momentum": lambda ps: torch.optim.SGD(ps, lr=1e-1, momentum=0.9, fused=True),
}
ADAMWS = [name for name in OPTIMIZERS if name.startswith("adamw")]


def network(seed=0):
    """Odd sizes, so that no tensor after the first starts where a vector unit would like it to."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 7, bias=False))


def train(parameters, optimizer, steps, seed=1):
    """Steps with random gradients that depend on `seed` alone."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=rng)
        optimizer.step()


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def test_parameters_become_views_of_the_vector():
    model = network()
    before, objects = flat(model.parameters()), list(model.parameters())
    weights = FlatWeights(model)
    assert torch.equal(weights.vector, before)
    assert all(p is q and isinstance(p, nn.Parameter) for p, q in zip(model.parameters(), objects, strict=True))
    weights.vector.add_(1.0)
    assert torch.equal(flat(model.parameters()), before + 1)
    with torch.no_grad():
        model[2].weight.zero_()
    assert weights.vector[-35:].abs().sum() == 0
    assert weights.vector[:-35].abs().min() > 0


def test_layout_covers_the_vector_once_in_registration_order():
    model = network()
    weights = FlatWeights(model)
    place = 0
    for entry, (name, parameter) in zip(weights.layout, model.named_parameters(), strict=True):
        assert (entry.name, entry.shape, entry.offset, entry.size) == (name, parameter.shape, place, parameter.numel())
        place += entry.size
    assert place == weights.layout.size == weights.vector.numel() == sum(p.numel() for p in model.parameters())
    touched = torch.zeros(place)
    for view in weights.layout.views(touched).values():
        view += 1
    assert torch.equal(touched, torch.ones(place))
    assert Layout().size == 0


def test_tied_embeddings_are_stored_once_and_stay_tied():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=4, n_embd=8, n_layer=1, n_head=2))
    weights = FlatWeights(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    names = [entry.name for entry in weights.layout]
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    assert weights.layout.size == sum(p.numel() for p in model.parameters())
    weights.layout.views(weights.vector)["transformer.wte.weight"].fill_(3.0)
    assert bool((model.lm_head.weight == 3).all())


def test_frozen_parameters_stay_where_they_are():
    model = network()
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    weights = FlatWeights(model)
    assert weights.layout.size == sum(p.numel() for p in model.parameters()) - 15
    weights.vector.zero_()
    assert torch.equal(model[0].weight, kept)


def test_models_that_do_not_fit_one_vector_are_refused():
    model = network()
    model[2].to(torch.float64)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        FlatWeights(model)
    with pytest.raises(ValueError, match="no trainable parameter"):
        FlatWeights(network().requires_grad_(False))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_optimizers_update_the_vector_bit_for_bit_as_they_would_the_model(name, optimizer_first):
    plain, model = network(), network()
    reference = OPTIMIZERS[name](plain.parameters())
    if optimizer_first:
        optimizer = OPTIMIZERS[name](model.parameters())
        weights = FlatWeights(model)
    else:
        weights = FlatWeights(model)
        optimizer = OPTIMIZERS[name](weights.parameters)
    address, start = weights.vector.data_ptr(), weights.vector.clone()
    train(list(plain.parameters()), reference, 5)
    train(weights.parameters, optimizer, 5)
    assert not torch.equal(weights.vector, start)
    assert torch.equal(weights.vector, flat(plain.parameters()))
    assert torch.equal(weights.vector, flat(model.parameters()))
    assert weights.vector.data_ptr() == address == next(model.parameters()).data_ptr()


@pytest.mark.parametrize("name", ADAMWS)
def test_moments_are_views_that_every_step_updates(name):
    plain, model = network(), network()
    reference = OPTIMIZERS[name](plain.parameters())
    weights = FlatWeights(model)
    optimizer = OPTIMIZERS[name](weights.parameters)
    train(weights.parameters, optimizer, 2)
    moments = Moments(optimizer, weights)
    assert moments.updates == 2
    addresses = moments.exp_avg.data_ptr(), moments.exp_avg_sq.data_ptr()
    train(weights.parameters, optimizer, 3, seed=2)
    train(list(plain.parameters()), reference, 2)
    train(list(plain.parameters()), reference, 3, seed=2)
    for key, vector in (("exp_avg", moments.exp_avg), ("exp_avg_sq", moments.exp_avg_sq)):
        assert torch.equal(vector, flat(reference.state[p][key] for p in plain.parameters())), key
    assert moments.updates == 5
    assert (moments.exp_avg.data_ptr(), moments.exp_avg_sq.data_ptr()) == addresses
    assert torch.equal(weights.vector, flat(plain.parameters()))


@pytest.mark.parametrize("name", ADAMWS)
def test_moments_can_be_rebuilt_after_the_optimizer_was_loaded(name):
    model = network()
    weights = FlatWeights(model)
    optimizer = OPTIMIZERS[name](weights.parameters)
    train(weights.parameters, optimizer, 2)
    moments = Moments(optimizer, weights)
    saved_weights, saved = weights.vector.clone(), copy.deepcopy(optimizer.state_dict())
    train(weights.parameters, optimizer, 3, seed=2)
    wanted = weights.vector.clone(), moments.exp_avg.clone(), moments.exp_avg_sq.clone()

    again = FlatWeights(network(seed=9))
    again.vector.copy_(saved_weights)
    resumed = OPTIMIZERS[name](again.parameters)
    resumed.load_state_dict(saved)
    rebuilt = Moments(resumed, again)
    assert rebuilt.updates == 2
    train(again.parameters, resumed, 3, seed=2)
    for mine, theirs in zip((again.vector, rebuilt.exp_avg, rebuilt.exp_avg_sq), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert rebuilt.updates == 5


# ---- combine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 6, 7, 8, 14, 50])
def test_chunks_cover_everything_once(monkeypatch, size):
    monkeypatch.setattr(module, "CPU_CHUNK", 7)
    covered = [i for piece in chunks(size, torch.device("cpu")) for i in range(size)[piece]]
    assert covered == list(range(size))
    assert all(piece.stop - piece.start <= 7 for piece in chunks(size, torch.device("cpu")))


@pytest.mark.parametrize("size", [1, 6, 7, 8, 14, 50])
@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32] * 3, [torch.float16] * 3, [torch.float16, torch.float32, torch.bfloat16],
        [torch.float32, torch.float16, torch.bfloat16],
    ],
    ids=["float32", "float16", "mixed, half first", "mixed, single first"],
)  # fmt: skip
@pytest.mark.parametrize(
    "coefficients",
    [[0.5, -2.0, 3.0], [0.0, -1.5, 2.5], [-0.5, 0.0, 0.25], [0.0, 0.0, 1.0], [0.0, -0.0, 2.0], [0.0, 0.0, 0.0]],
    ids=str,
)
def test_combine_equals_the_plain_sum(monkeypatch, size, dtypes, coefficients):
    monkeypatch.setattr(module, "CPU_CHUNK", 7)
    rng = torch.Generator().manual_seed(size)
    vectors = [torch.randn(size, generator=rng).to(dtype) for dtype in dtypes]
    wanted = sum(c * v.double() for c, v in zip(coefficients, vectors, strict=True))
    out = torch.full((size,), float("nan"))
    assert combine(vectors, coefficients, out) is out
    # Three products and two sums in float32, of terms no larger than 3 x 4.
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=5 * 12 * 2.0**-24)


def test_vectors_that_do_not_count_are_not_read():
    nothing = torch.full((9,), float("nan"))
    out = combine([nothing, torch.ones(9), nothing], [0.0, 2.0, -0.0], torch.empty(9))
    assert torch.equal(out, torch.full((9,), 2.0))
    with pytest.raises(ValueError, match="zip"):
        combine([nothing], [1.0, 2.0], torch.empty(9))
