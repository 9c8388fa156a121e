"""What a user of `leapbench.Leap` may get wrong, and the one line with the remedy that each mistake gets."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import leapbench
from leapbench.prediction.history import Ring
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.rules import Rule
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors.linear import Linear
from leapbench.predictors.trend import Trend

X = torch.linspace(-1, 1, 24).reshape(8, 3)
Y = (X @ torch.tensor([[1.0], [-2.0], [0.5]])).tanh()


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2} | options)


def loss_fn(forward):
    return mse_loss(forward(X), Y)


def leap_of(model=None, optimizer=None, predictor="linear", K=5, verify=loss_fn, **options):
    """A leap with an interval of 3 steps, and all that can be left out left out."""
    model = network() if model is None else model
    optimizer = adamw(model) if optimizer is None else optimizer
    return leapbench.Leap(model, optimizer, predictor, K, verify, **{"interval": 3} | options)


def update(leap):
    """One step of training."""
    mse_loss(leap.model(X), Y).backward()
    leap.optimizer.step()
    leap.optimizer.zero_grad()


def train(leap, steps=1):
    """Training as it should be; the proposals made."""
    made = []
    for _ in range(steps):
        update(leap)
        made += leap.step()
    return made


def trained(steps=5, **options):
    """A leap whose next step brings the first proposal."""
    leap = leap_of(**options)
    assert train(leap, steps) == []
    return leap


# ---- what is given ---------------------------------------------------------------------------------------------------


def changed(change):
    """The network after `change`."""
    model = network()
    change(model)
    return model


def tie_by_data(model):
    model.add_module("twin", nn.Linear(3, 4))
    model.twin.weight.data = model[0].weight.data


class Sharded(torch.Tensor):
    """A kind of tensor of its own, as those of sharded or quantized weights are."""


def shard(model):
    model[0].weight = nn.Parameter(torch.Tensor._make_subclass(Sharded, model[0].weight.detach()))


def wrapped(wrapper):
    model = network()
    return leap_of(wrapper(model), adamw(model))


def head_only():
    model = network()
    return leap_of(model, torch.optim.SGD(model[2].parameters(), lr=0.1))


def schedule_object():
    model = network()
    optimizer = adamw(model)
    return leap_of(model, optimizer, factor_at=torch.optim.lr_scheduler.StepLR(optimizer, 1))


def in_inference_mode():
    with torch.inference_mode():
        leap_of()


class NoContext(Linear):
    context = 0


class Wrong(Predictor):
    """Breaks the contract in the way that it is given."""

    context = 2

    def __init__(self, way):
        self.way = way

    def predict(self, history, K):
        return self.way(history)


GIVEN = {
    # the model
    "model and optimizer swapped": (
        lambda: leapbench.Leap(adamw(network()), network(), "linear", 5, loss_fn),
        TypeError, "first argument must be the model, a torch.nn.Module, not a AdamW",
    ),
    "DataParallel": (lambda: wrapped(nn.DataParallel), TypeError, r"wrapped in DataParallel; .*model\.module"),
    "torch.jit": (lambda: wrapped(torch.jit.script), TypeError, "as it was before torch.jit"),
    "all frozen": (
        lambda: leap_of(changed(lambda m: m.requires_grad_(False))), ValueError, r"call requires_grad_\(True\)",
    ),
    "two dtypes": (
        lambda: leap_of(changed(lambda m: m[2].double())),
        ValueError, r"found torch.float32 on cpu, torch.float64 on cpu; convert them by model.to",
    ),
    "half precision": (
        lambda: leap_of(network().bfloat16()), ValueError, r"torch.bfloat16, .*model.float\(\).*autocast",
    ),
    "on meta": (lambda: leap_of(network().to("meta")), ValueError, "0.weight is on the meta device.*load the weights"),
    "lazy": (
        lambda: leap_of(nn.Sequential(nn.LazyLinear(2))), ValueError, "0.weight has no shape.*call the model once",
    ),
    "sharded": (lambda: leap_of(changed(shard)), ValueError, "0.weight is a Sharded; only plain dense tensors"),
    "tied by data": (
        lambda: leap_of(changed(tie_by_data)),
        ValueError, r"0.weight and twin.weight share memory.*b.weight = a.weight",
    ),
    "inference mode": (in_inference_mode, RuntimeError, "leave it first"),
    # the optimizer
    "parameters for an optimizer": (
        lambda: leap_of(optimizer=network().parameters()), TypeError, "second argument must be the optimizer",
    ),
    "optimizer of a copy": (
        lambda: leap_of(optimizer=adamw(network())), ValueError, r"none of the model's parameters; .*this very model",
    ),
    "optimizer of the head": (head_only, ValueError, r"has no 0.weight and 1 others; .*requires_grad_\(False\)"),
    "SGD has no moments": (
        lambda: leap_of(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), "momentum"),
        ValueError, "needs Adam moments; SGD keeps none; use torch.optim.AdamW",
    ),
    "amsgrad": (
        lambda: leap_of(model := network(), adamw(model, amsgrad=True), "momentum"),
        ValueError, "needs Adam moments; AdamW with amsgrad or maximize keeps others; switch",
    ),
    # the predictor
    "predictor misspelt": (
        lambda: leap_of(predictor="trends"), ValueError, r"trends is unknown \(did you mean trend\?\)",
    ),
    "predictor in capitals": (lambda: leap_of(predictor="Momentum-Decay"), ValueError, "did you mean momentum_decay"),
    "predictor as a class": (lambda: leap_of(predictor=Linear), TypeError, r"is a class; give an object, Linear\(\)"),
    "predictor as a function": (lambda: leap_of(predictor=lambda h, K: h.now), TypeError, "must be a name, such as"),
    "predictor without context": (lambda: leap_of(predictor=NoContext()), ValueError, "no_context.context=0 must be 1"),
    # the loss function
    "no loss function": (lambda: leap_of(verify=None), ValueError, r"rule=strict needs a loss.*verify=loss_fn"),
    "a loss": (lambda: leap_of(verify=0.5), TypeError, r"verify is an object of type float; .*function\(forward\)"),
    "a criterion": (lambda: leap_of(verify=nn.MSELoss()), TypeError, r"of type MSELoss; .*function\(forward\)"),
    "without its argument": (
        lambda: leap_of(verify=lambda: 0.5), TypeError, r"verify does not take .*; write verify=function\(forward\)",
    ),
    # settings
    "K=0": (lambda: leap_of(K=0), ValueError, "K=0 must be 1 or more"),
    "K=-5": (lambda: leap_of(K=-5), ValueError, "K=-5 must be 1 or more"),
    "K=2.5": (lambda: leap_of(K=2.5), TypeError, "K=2.5 must be a whole number, 1 or more"),
    "K as text": (lambda: leap_of(K="10"), TypeError, "K='10' must be a whole number"),
    "interval=0": (lambda: leap_of(interval=0), ValueError, "interval=0 must be 1 or more"),
    "interval=True": (lambda: leap_of(interval=True), TypeError, "interval=True must be a whole number"),
    "links=0": (lambda: leap_of(links=0), ValueError, "links=0 must be 1 or more"),
    "every=0": (lambda: leap_of(every=0), ValueError, "every=0 must be 1 or more"),
    "burn_in=-1": (lambda: leap_of(burn_in=-1), ValueError, "burn_in=-1 must be 0 or more"),
    "cooldown=-1": (lambda: leap_of(cooldown=-1), ValueError, "cooldown=-1 must be 0 or more"),
    "rule misspelt": (lambda: leap_of(rule="strickt"), ValueError, "rule=strickt is unknown; use strict or"),
    "rule as a number": (lambda: leap_of(rule=0.05), ValueError, "rule=0.05 is unknown; use strict or"),
    "tolerance": (lambda: leap_of(rule=Rule("proximity", -0.05)), ValueError, "tolerance=-0.05 must be 0 or more"),
    "sigma": (lambda: leap_of(rule=Rule("adaptive", sigma_over=0)), ValueError, "sigma_over=0 must be 1 or more"),
    "moments misspelt": (lambda: leap_of(moments="zero"), ValueError, "moments=zero is unknown; use keep or"),
    "history misspelt": (lambda: leap_of(history="drop"), ValueError, "history=drop is unknown; use keep or clear"),
    "a schedule object": (schedule_object, TypeError, r"of type StepLR; .*factor_at=function\(position\)"),
    "after with an argument": (
        lambda: leap_of(after=lambda leap: None), TypeError, r"after does not take .*write after=function\(\)",
    ),
    "no such device": (lambda: leap_of(device="cuba"), ValueError, "device=cuba cannot be used here"),
    "integers": (
        lambda: leap_of(weights_dtype=torch.int8), TypeError, "cannot be stored as torch.int8; use torch.float",
    ),
}  # fmt: skip

# ---- the loss function -----------------------------------------------------------------------------------------------


def ignores_what_it_is_given():
    model = network()
    train(leap_of(model, verify=lambda forward: mse_loss(model(X), Y), rule="proximity"), 6)


def with_batch_norm(verify):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    train(leap_of(model, verify=functools.partial(verify, model)), 6)


def in_training_mode(model, forward):
    model.train()
    return loss_fn(forward)


def trains(model, forward):
    with torch.enable_grad():
        mse_loss(model(X), Y).backward()
    return loss_fn(forward)


def damps(model, forward):
    with torch.no_grad():
        model[0].weight.mul_(0.9)
    return loss_fn(forward)


VERIFY = {
    "ignores the model it is given": (
        ignores_what_it_is_given, RuntimeError, r"never called the function it was given.*write loss_fn\(forward\)",
    ),
    "returns nothing": (
        lambda: train(trained(verify=lambda f: print(f(X)[0]))), TypeError, "None; .*return is missing",
    ),
    "returns all losses": (
        lambda: train(trained(verify=lambda f: (f(X) - Y).square())), TypeError, r"8 numbers, shape \(8, 1\).*mean",
    ),
    "returns a tuple": (lambda: train(trained(verify=lambda f: (loss_fn(f), 1))), TypeError, "must return one number"),
    "returns a verdict": (
        lambda: train(trained(verify=lambda f: loss_fn(f) < 1)), TypeError, "True; it must return one",
    ),
    "returns text": (lambda: train(trained(verify=lambda f: f"{loss_fn(f):.3f}")), TypeError, "must return one number"),
    "no held-out data": (
        lambda: train(trained(verify=lambda f: mse_loss(f(X[:0]), Y[:0]))),
        FloatingPointError, "nan for the live weights at step 6: training has diverged .*held-out data are empty",
    ),
    "batch norm in training mode": (
        lambda: with_batch_norm(in_training_mode), RuntimeError, r"a BatchNorm1d changes its statistics: leave out",
    ),
    "leaves gradients": (
        lambda: with_batch_norm(trains), RuntimeError, r"changed 0.weight or its gradient: .* without backward\(\)",
    ),
    "changes weights": (lambda: with_batch_norm(damps), RuntimeError, "changed 0.weight or its gradient"),
    "asks for settings": (
        lambda: train(trained(verify=lambda f: loss_fn(f) + f.config.bias)),
        AttributeError, r"`config` is not there: .*from the model itself \(model.config\)",
    ),
    "penalises the live weights": (
        lambda: train(trained(verify=lambda f: loss_fn(f) + sum(p.norm() for p in f.parameters()))),
        AttributeError, r"`parameters` is not there: .*compute with forward\(...\)",
    ),
}  # fmt: skip

# ---- weights that are no longer the model's --------------------------------------------------------------------------


def then(change, **options):
    """A training with `change` of its model in the middle."""
    leap = trained(4, **options)
    change(leap.model)
    train(leap, 2)


def assign(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def exchange(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def swap_two(model):
    a, b = model[0].weight, model[3].weight
    model[0].weight, model[3].weight = b, a


def twice(width=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, width), nn.Tanh(), nn.BatchNorm1d(width), nn.Linear(3, width), nn.Linear(width, 1)
    )


def replace_data(model):
    model[0].weight.data = model[0].weight.data.clone()


def grow(model):
    model.add_module("head", nn.Linear(1, 1))


def move_there_and_back(model):
    model.double().float()


def between_snapshot_and_proposal():
    leap = trained(3, rule="always")
    update(leap), update(leap), update(leap)
    leap.steps = 6
    leap.snapshot()
    replace_data(leap.model)
    leap.propose()


DETACHED = {
    "p.data = ...": (
        lambda: then(replace_data), RuntimeError, r"0.weight lies in other memory now.*p.copy_.*make a new Leap",
    ),
    "p.data = ... before a proposal": (between_snapshot_and_proposal, RuntimeError, "0.weight lies in other memory"),
    "a second FlatWeights": (
        lambda: then(FlatWeights), RuntimeError, "0.weight lies in other memory now.*second FlatW",
    ),
    "a second Leap": (lambda: then(leap_of), RuntimeError, "another Leap was made for this model after this one"),
    "model.to(...)": (lambda: then(move_there_and_back), RuntimeError, r"0.weight lies in other.*model.to\(...\)"),
    "load_state_dict(assign=True)": (
        lambda: then(assign), RuntimeError, "0.weight lies in.*load_state_dict without ass",
    ),
    "a parameter exchanged": (lambda: then(exchange), RuntimeError, "0.weight lies in other memory.*exchanging"),
    "two parameters swapped": (lambda: then(swap_two, model=twice()), RuntimeError, "0.weight lies in other memory"),
    "frozen afterwards": (
        lambda: then(lambda m: m[0].bias.requires_grad_(False)), RuntimeError, "0.bias is no trainable parameter any",
    ),
    "unfrozen afterwards": (
        lambda: then(lambda m: m.requires_grad_(True), model=changed(lambda m: m[2].requires_grad_(False))),
        RuntimeError, "2.weight is a new trainable parameter.*unfreezing",
    ),
    "a layer added": (lambda: then(grow), RuntimeError, "head.weight is a new trainable parameter.*make a new Leap"),
    "parametrized afterwards": (
        lambda: then(lambda m: nn.utils.parametrizations.weight_norm(m[0])), RuntimeError, "0.weight is no trainable",
    ),
    "tied afterwards": (
        lambda: then(lambda m: setattr(m[3], "weight", m[0].weight), model=twice()),
        RuntimeError, "3.weight is no trainable parameter",
    ),
    "the leap copied": (lambda: train(copy.deepcopy(trained(4)), 2), RuntimeError, "0.weight lies in other memory now"),
}  # fmt: skip

# ---- steps that do not fit together ----------------------------------------------------------------------------------


def late():
    leap = trained(4, predictor="persistence", burn_in=9)
    leap.propose()


def late_by_the_optimizer():
    leap = trained(3, predictor="persistence", burn_in=9)
    update(leap), update(leap)
    leap.propose()


def another_predictor():
    leap = trained(3)
    leap.predictor = Trend(4)
    train(leap, 9)


def a_larger_context():
    leap = trained(3, predictor=Trend(2))
    leap.predictor.context = 4
    train(leap, 9)


def never_updated(**options):
    leap = leap_of(**options)
    for _ in range(60):
        leap.step()


def another_optimizer():
    """The one that Leap was given does nothing any more, and neither does the other."""
    leap = trained(3)
    leap.optimizer = adamw(network())
    train(leap, 60)


def per_batch(accumulated=4):
    leap = leap_of(interval=10, rule="always", burn_in=99)
    for number in range(100):
        if number % accumulated == 0:
            update(leap)
        leap.step()


def per_epoch(updates=10):
    leap = leap_of(burn_in=99)
    for _ in range(30):
        for _ in range(updates):
            update(leap)
        leap.step()


def a_pause():
    leap = trained(5, burn_in=99)
    for _ in range(30):
        update(leap)
    train(leap, 4)


def moments_before_the_first_step():
    leap = leap_of(predictor="momentum", interval=1)
    leap.step()


def unused_head():
    model = network()
    model.add_module("unused", nn.Linear(1, 1))
    forward = nn.Sequential.forward
    model.forward = lambda x: forward(model[:3], x)
    train(leap_of(model, predictor="momentum"), 3)


def a_schedule_unknown_to_leap():
    leap = leap_of(predictor="momentum")
    schedule = torch.optim.lr_scheduler.StepLR(leap.optimizer, 2)
    for _ in range(6):
        update(leap)
        schedule.step()
        leap.step()


def no_links():
    leap = trained(6, burn_in=9)
    leap.propose(links=0)


def K_zero_later():  # noqa: N802
    leap = trained(5)
    leap.K = 0
    train(leap)


def snapshot_between():
    leap = trained(4)
    leap.snapshot()


def backward_through_a_leap():
    leap = trained(5, rule="always")
    loss = mse_loss(leap.model(X), Y)
    update_without_graph(leap)
    (proposal,) = leap.step()
    assert proposal.adopted
    loss.backward()


def update_without_graph(leap):
    """A step of an optimizer that torch does not see as a change in place."""
    for p in leap.model.parameters():
        p.data.add_(1e-3)
    leap.watch.count.updates += 1


def snapshot_in_inference_mode():
    leap = trained(2)
    update(leap)
    with torch.inference_mode():
        leap.step()


STEPS = {
    "propose() called late": (
        late, RuntimeError, r"step 4, but the newest snapshot is of step 3.*right after snapshot",
    ),
    "optimizer.step() before propose()": (
        late_by_the_optimizer, RuntimeError, "step 5, but the newest snapshot is of st",
    ),
    "the predictor exchanged": (
        another_predictor, RuntimeError, "trend needs 4 snapshots and the ring keeps 2: make a new",
    ),
    "the context raised": (a_larger_context, RuntimeError, "trend needs 4 snapshots and the ring keeps 2: make a new"),
    "a ring of nothing": (
        lambda: Ring(0, 1, FlatWeights(network()).layout, lambda p: 1.0), ValueError, "capacity=0 must",
    ),
    "step() without optimizer.step()": (
        never_updated, RuntimeError, r"step\(\) was called 1\d times and the weights have n",
    ),
    "an optimizer unknown to Leap": (another_optimizer, RuntimeError, "optimizer that Leap was given"),
    "step() per batch": (per_batch, RuntimeError, r"10 times for \d optimizer.step\(\).*not per batch"),
    "step() per epoch": (per_epoch, RuntimeError, r"3 times for 30 optimizer.step\(\).*once after every"),
    "steps without step()": (a_pause, RuntimeError, r"3 times for 33 optimizer.step\(\)"),
    "moments before the first step": (
        moments_before_the_first_step, ValueError, r"snapshots come after optimizer.step\(",
    ),
    "moments of an unused head": (
        unused_head, ValueError, "no moments of unused.weight, which never had a gradient: fr",
    ),
    "a schedule unknown to Leap": (
        a_schedule_unknown_to_leap, ValueError, r"rate is 0.001, not 0.01 as at first.*factor_at=position",
    ),
    "propose(links=0)": (no_links, ValueError, "links=0 must be 1 or more"),
    "links of another length": (
        lambda: train(leap_of(predictor="dmd", links=2, rule="always"), 15), ValueError, "not evenly spaced; .* K",
    ),
    "K=0 later": (K_zero_later, ValueError, "K=0 must be 1 or more"),
    "a snapshot between": (
        snapshot_between, ValueError, "snapshot at step 4, but the last was at 3, interval 3: take one",
    ),
    "backward through a leap": (backward_through_a_leap, RuntimeError, "modified by an inplace operation"),
    "step() in inference mode": (snapshot_in_inference_mode, RuntimeError, "leave it first"),
}  # fmt: skip

# ---- predictors of one's own -----------------------------------------------------------------------------------------


def predicting(way):
    train(leap_of(predictor=Wrong(way)), 6)


PREDICTORS = {
    "returns the snapshot itself": (
        lambda: predicting(lambda h: h.now.weights), ValueError, r"the memory of a snapshot; return a copy, history",
    ),
    "changes a snapshot": (
        lambda: predicting(lambda h: h.now.weights.mul_(2).clone()), ValueError, "wrong changed a snapshot in place",
    ),
    "returns nothing": (lambda: predicting(lambda h: None), TypeError, r"returned NoneType; predict must return"),
    "returns too few": (lambda: predicting(lambda h: h.empty_vector()[1:]), ValueError, r"\(20,\) on cpu; .*\(21,\)"),
    "returns float64": (
        lambda: predicting(lambda h: h.now.weights.double()), ValueError, "torch.float64.*empty_vector",
    ),
}  # fmt: skip

# ---- states ----------------------------------------------------------------------------------------------------------


def loads(state, **options):
    leap_of(**options).load_state_dict(state)


def renamed():
    """As many weights, in layers of other names."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Linear(3, 4), nn.Linear(4, 1))


STATES = {
    "of a model": (
        lambda: loads(network().state_dict()), ValueError, "not the state_dict.. of a Leap: it has no K, every",
    ),
    "of an optimizer": (lambda: loads(adamw(network()).state_dict()), ValueError, "not the state_dict.. of a Leap"),
    "of a wider model": (
        lambda: loads(trained(model=network(5)).state_dict()),
        ValueError, r"with layout=\['0.weight', 5, 3\], this one has \['0.weight', 4, 3\]: make it for the same model",
    ),
    "of a model with other names": (
        lambda: loads(trained(model=renamed()).state_dict()), ValueError, r"layout=\['1.weight', 4, 3\], this one has",
    ),
    "with another interval": (
        lambda: loads(trained().state_dict(), interval=4), ValueError, "interval=3, this one has 4",
    ),
    "with another predictor": (
        lambda: loads(trained().state_dict(), predictor="trend"), ValueError, "predictor=linear, this one has trend",
    ),
}  # fmt: skip

TABLES = {
    "given": GIVEN, "verify": VERIFY, "detached": DETACHED, "steps": STEPS, "predictor": PREDICTORS, "state": STATES
}  # fmt: skip
ALL = {f"{table}: {name}": row for table, rows in TABLES.items() for name, row in rows.items()}


@pytest.mark.parametrize(("mistake", "error", "words"), ALL.values(), ids=ALL)
def test_a_mistake_gets_one_line_with_the_remedy(mistake, error, words):
    with pytest.raises(error, match=words) as caught:
        mistake()
    assert type(caught.value) is error
    own = "inplace operation" not in words
    assert not own or ("\n" not in str(caught.value) and len(str(caught.value)) < 420)
