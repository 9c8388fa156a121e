"""A wrapper in a loop that is not ours: three lines, and the weights to evaluate and to save."""

import pytest
import torch
from torch.nn.functional import mse_loss

import leapbench
from leapbench.optimizers.ema import Ema
from leapbench.optimizers.ema_nesterov import EmaNesterov
from leapbench.optimizers.lookahead import Lookahead
from leapbench.optimizers.muon import Muon
from leapbench.prediction.weights import FlatWeights
from leapbench.prediction.wrapper import Wrapper, names

X = torch.linspace(-1, 1, 24).reshape(8, 3)
Y = (X @ torch.tensor([[1.0], [-2.0], [0.5]])).tanh()
BASES = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "muon": lambda model: Muon(list(model.named_parameters()), lr=1e-2),
}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


@torch.no_grad()
def loss_fn(forward):
    return float(mse_loss(forward(X), Y))


def update(model, optimizer):
    mse_loss(model(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(wrapper, steps=6, base="adamw", model=None, **options):
    """A leap after some steps, around nothing but a wrapper."""
    model = network() if model is None else model
    optimizer = BASES[base](model)
    made = wrapper(optimizer, FlatWeights.of(model)) if isinstance(wrapper, type) else wrapper
    leap = leapbench.Leap(model, optimizer, verify=loss_fn, wrapper=made, interval=2, **options)
    for _ in range(steps):
        update(model, optimizer)
        assert leap.step() == []
    return leap


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", names())
def test_the_loop_of_a_user_is_our_training_step(name, base):
    """before_step, gradient, update, after_step, in this order."""
    leap = trained(name, steps=31, base=base)
    model = network()
    optimizer, weights = BASES[base](model), FlatWeights.of(model)
    wrapper = type(leap.wrapper)(optimizer, weights)
    for _ in range(31):
        wrapper.before_step()
        update(model, optimizer)
        wrapper.after_step()
    if wrapper.chooses:
        wrapper.chosen = leap.wrapper.chosen
    expected = weights.vector if wrapper.scored() is None else wrapper.scored()
    assert torch.equal(leap.scored.vector, expected)


def test_the_weights_to_save_are_those_that_are_applied():
    leap = trained(Lookahead, steps=7)
    live, state = leap.live.vector.clone(), str(leap.optimizer.state_dict())
    weights = leap.weights()
    assert torch.equal(flat(weights.values()), leap.wrapper.slow) and list(weights) == [
        e.name for e in leap.live.layout
    ]
    with leap.applied() as model:
        assert model is leap.model
        assert torch.equal(flat(model.parameters()), leap.wrapper.slow)
        saved = {key: value.clone() for key, value in model.state_dict().items()}
        loss = loss_fn(model.eval())
    assert torch.equal(leap.live.vector, live) and torch.equal(flat(leap.model.parameters()), live)
    assert str(leap.optimizer.state_dict()) == state
    assert not torch.equal(leap.wrapper.slow, live)
    other = network()
    other.load_state_dict(saved)
    assert loss_fn(other.eval()) == loss
    missing = other.load_state_dict(leap.weights(), strict=False)
    assert not missing.unexpected_keys and all("running" in k or "batches" in k for k in missing.missing_keys)


def test_without_a_wrapper_it_is_the_live_weights():
    model = network()
    leap = leapbench.Leap(model, BASES["adamw"](model), "linear", 2, loss_fn)
    assert flat(leap.weights().values()).equal(leap.live.vector)
    assert leap.weights()["0.weight"].data_ptr() == model[0].weight.data_ptr()
    with leap.applied():
        assert model[0].weight.data_ptr() == leap.live.vector.data_ptr() and not leap.scored.lent


def test_the_best_average_is_handed_over():
    leap = trained("ema", steps=12)
    losses = {}
    for decay, mean in leap.wrapper.means.items():
        with torch.no_grad():
            model = network().eval()
            model.load_state_dict(leap.model.state_dict())
            torch.nn.utils.vector_to_parameters(mean.clone(), model.parameters())
        losses[decay] = loss_fn(model)
    best = leap.wrapper.means[min(losses, key=losses.get)]
    leap.wrapper.chosen = max(losses, key=losses.get)
    assert flat(leap.weights().values()).equal(best)
    with leap.applied():
        assert flat(leap.weights().values()).equal(best)
    assert leap.model.training and leap.clock.now()["verify"] > 0


def test_the_model_gets_its_weights_back_after_an_error():
    leap = trained("tail_average", steps=30)
    live = leap.live.vector.clone()
    with pytest.raises(ZeroDivisionError), leap.applied():
        assert not torch.equal(leap.live.vector, live)
        raise ZeroDivisionError
    assert torch.equal(leap.live.vector, live)
    update(leap.model, leap.optimizer)
    leap.step()


def test_a_graph_from_within_is_refused_afterwards():
    leap = trained(Lookahead, steps=7)
    with leap.applied() as model:
        loss = mse_loss(model(X), Y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("predictor", [None, "linear"])
def test_it_resumes_bit_equal_from_state_dicts(name, predictor, tmp_path):
    options = {"predictor": predictor, "K": 3, "rule": "always"} if predictor else {}

    def start():
        model = network()
        optimizer = BASES["muon"](model)
        leap = leapbench.Leap(model, optimizer, verify=loss_fn, wrapper=name, interval=4, **options)
        return model, optimizer, leap

    def go(model, optimizer, leap, steps):
        made = []
        for _ in range(steps):
            update(model, optimizer)
            made += [(p.step, p.adopted, p.loss_now) for p in leap.step()]
        return made

    whole = start()
    go(*whole, 27)
    torch.save([part.state_dict() for part in whole], tmp_path / "state.pt")
    expected = go(*whole, 26)
    again = start()
    for part, state in zip(again, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert go(*again, 26) == expected and bool(expected) == bool(predictor)
    assert torch.equal(whole[2].live.vector, again[2].live.vector)
    assert torch.equal(flat(whole[2].weights().values()), flat(again[2].weights().values()))


# ---- mistakes --------------------------------------------------------------------------------------------------------


def other_network():
    model = network()
    return Ema(BASES["adamw"](model), FlatWeights.of(model), [0.9])


def step_within():
    leap = trained(Lookahead)
    with leap.applied():
        leap.step()


def exchanged(use):
    leap = trained(Lookahead)
    leap.model[0].weight = torch.nn.Parameter(torch.zeros(4, 3))
    use(leap)


def stepped_until_noticed(leap):
    for _ in range(2):
        leap.step()


def two_dtypes():
    model = network()
    model[0].double()
    trained("lookahead", model=model)


def unowned():
    model = network()
    leapbench.Leap(model, BASES["adamw"](network()), wrapper="lookahead")


def half_owned():
    model = network()
    leapbench.Leap(model, torch.optim.SGD(model[0].parameters(), lr=0.1), wrapper="lookahead")


def by_hand():
    model = network()
    leap = leapbench.Leap(model, BASES["adamw"](model), "linear", 2, loss_fn, wrapper="ema_nesterov", interval=2)
    for _ in range(2):
        update(model, leap.optimizer)
        leap.step()
    leap.snapshot()


def per_epoch():
    leap = trained(Lookahead, steps=0)
    for _ in range(8):
        for _ in range(20):
            update(leap.model, leap.optimizer)
        leap.step()


def other_state():
    trained("snoo").load_state_dict(trained("lookahead").state_dict())


MISTAKES = {
    "neither": (
        lambda: leapbench.Leap((m := network()), BASES["adamw"](m)),
        ValueError, "nothing to do: give predictor='trend' or another, or wrapper='ema'",
    ),
    "no such wrapper": (
        lambda: trained("lookahed"), ValueError,
        r"wrapper=lookahed is unknown \(did you mean lookahead\?\); use ema, ema_nesterov, growing_average, lookahead",
    ),
    "a base optimizer": (lambda: trained("muon"), ValueError, "wrapper=muon is unknown.*; use ema,"),
    "a class": (
        lambda: leapbench.Leap((m := network()), BASES["adamw"](m), wrapper=Ema),
        TypeError, "must be a name, such as 'ema', or an object",
    ),
    "around another": (
        lambda: trained(other_network()), ValueError, "wrapper=Ema is around another optimizer or model: make it by",
    ),
    "no loss to choose by": (
        lambda: leapbench.Leap((m := network()), BASES["adamw"](m), wrapper="ema"),
        ValueError, r"wrapper=ema chooses by a loss: give one, Leap\(..., verify=loss_fn\)",
    ),
    "K left out": (
        lambda: leapbench.Leap((m := network()), BASES["adamw"](m), "linear", verify=loss_fn),
        TypeError, "K=None must be a whole number, 1 or more",
    ),
    "two dtypes": (two_dtypes, ValueError, "found torch.float32 on cpu, torch.float64 on cpu; convert them"),
    "an optimizer of another model": (unowned, ValueError, "has none of the model's parameters; build it from"),
    "an optimizer of a part": (half_owned, ValueError, "the optimizer has no 1.weight and 3 others; give it all"),
    "step within applied": (step_within, RuntimeError, r"leave the block before step\(\)"),
    "parameters exchanged, then weights": (
        lambda: exchanged(lambda leap: leap.weights()), RuntimeError, "0.weight lies in other memory now",
    ),
    "parameters exchanged, then steps": (
        lambda: exchanged(stepped_until_noticed), RuntimeError, "0.weight lies in other memory now",
    ),
    "frozen between": (
        lambda: exchanged(lambda leap: (leap.model.requires_grad_(False), leap.weights())),
        RuntimeError, "0.weight is no trainable parameter any more",
    ),
    "a snapshot ahead": (by_hand, RuntimeError, r"wrapper=ema_nesterov has moved the weights .*: let step\(\) take"),
    "a step per epoch": (per_epoch, RuntimeError, r"not per batch, epoch or accumulated gradient"),
    "a state of another wrapper": (
        other_state, ValueError, "the state is of a Leap with wrapper=lookahead, this one has snoo",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_with_the_remedy(mistake, error, words):
    with pytest.raises(error, match=words) as caught:
        mistake()
    assert "\n" not in str(caught.value)


class WithUnused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.unused = network(), torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("name", names())
def test_weights_that_get_no_gradient_stay(name):
    """No optimizer moves them, and every average of them is themselves."""
    model = WithUnused()
    before = [p.detach().clone() for p in model.unused.parameters()]
    leap = trained(name, steps=30, model=model)
    for key, was in zip(("weight", "bias"), before, strict=True):
        torch.testing.assert_close(leap.weights()[f"unused.{key}"], was, rtol=1e-6, atol=1e-7)


def test_an_object_of_ones_own():
    class Ahead(EmaNesterov):
        pass

    class Still(Wrapper):
        pass

    leap = trained(Ahead)
    assert leap._identity()["wrapper"] == "ahead" and leap.wrapper.moved
    assert trained(Still)._identity()["wrapper"] == "still"
