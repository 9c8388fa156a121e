"""Wrappers: equal to their equations around every base optimizer, resumed bit-equal, and charged for what they do."""

import importlib
import inspect
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import schedulefree
import torch
import yaml

import twins
from helpers import captured, flat, interrupted, records, rows
from leapbench.config.errors import ConfigError
from leapbench.names import EVALS, PROJECT, SUMMARY, VERIFICATION
from leapbench.optimizers.adamw import AdamW
from leapbench.optimizers.ema import Ema
from leapbench.optimizers.ema_nesterov import EmaNesterov
from leapbench.optimizers.growing_average import GrowingAverage
from leapbench.optimizers.lookahead import Lookahead
from leapbench.optimizers.muon import Muon
from leapbench.optimizers.orthogonal import Orthogonal
from leapbench.optimizers.schedule_free import ScheduleFree
from leapbench.optimizers.sgd import Sgd
from leapbench.optimizers.snoo import Snoo
from leapbench.optimizers.tail_average import TailAverage
from leapbench.prediction import weights as weights_module
from leapbench.prediction.clock import Clock
from leapbench.prediction.predictor import class_of
from leapbench.prediction.weights import FlatWeights
from leapbench.prediction.wrapper import Scored, Wrapper, names
from leapbench.training.run import run

SPECS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((PROJECT / "conf/wrapper").glob("*.yaml"))}
WRAPPERS = [name for name in SPECS if name != "none"]
each_wrapper = pytest.mark.parametrize("name", WRAPPERS)
OPTIMIZERS = {
    "sgd_momentum": lambda parameters, decay=0.0: Sgd(parameters, 0.05, 0.9, decay),
    "adamw": lambda parameters, decay=0.1: AdamW(parameters, 0.05, weight_decay=decay),
    "muon": lambda parameters, decay=0.1: Muon(parameters, 0.05, weight_decay=decay),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
STEPS = 33


def factor(t):
    """The schedule: five steps of warm-up, then a line to 0."""
    return min(1.0, (t + 1) / 5) * (1 - t / STEPS)


class Network(torch.nn.Module):
    """Two matrices and a vector, float64."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        for name, shape in (("wide", (3, 5)), ("tall", (5, 2)), ("vector", (4,))):
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)))
        self.noise = torch.randn(STEPS, 29, generator=rng, dtype=torch.float64)

    def take_gradient(self, t):
        """Of a bowl with a curvature of its own for every weight, with noise."""
        sizes = [p.numel() for p in self.parameters()]
        for p, noise in zip(self.parameters(), self.noise[t].split(sizes), strict=True):
            curvature = torch.linspace(0.1, 3.0, p.numel(), dtype=torch.float64).view_as(p)
            p.grad = curvature * (p.detach() - 0.5) + 0.3 * noise.view_as(p)


def trained(make, optimizer, scheduled=True):
    """The trail of a wrapped training: (live, handed over) after every step, as numpy."""
    model = Network()
    weights = FlatWeights.of(model)
    base = OPTIMIZERS[optimizer](weights.named_parameters())
    wrapper, trail, peak = make(base, weights), [], base.param_groups[0]["lr"]
    for t in range(STEPS):
        for group in base.param_groups:
            group["initial_lr"], group["lr"] = peak, peak * (factor(t) if scheduled else 1.0)
        wrapper.before_step()
        model.take_gradient(t)
        base.step()
        wrapper.after_step()
        scored = wrapper.scored()
        assert scored is None or not wrapper.scores_live
        live = weights.vector.numpy().copy()
        trail.append((live, live if scored is None else scored.numpy().copy()))
    return trail


def plain(optimizer):
    """(theta_0, advance): the same optimizer on parameters of its own."""
    model = Network()
    base = OPTIMIZERS[optimizer](list(model.named_parameters()))
    peak = base.param_groups[0]["lr"]

    def advance(theta, t):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta.copy()), model.parameters())
        for group in base.param_groups:
            group["lr"] = peak * factor(t)
        model.take_gradient(t)
        base.step()
        return flat(model).numpy()

    return flat(model).numpy(), advance


def moved(optimizer, weights):
    """The narrow one of two averages, moved on by 0.7 of its lag."""
    wrapper = GrowingAverage(optimizer, weights, powers=[2, 5])
    wrapper.chosen = 1, 0.7
    return wrapper


def exact(**constants):
    """Without rounding to bfloat16, every 4 steps, and without averages."""

    def make(optimizer, weights):
        wrapper = Orthogonal(optimizer, weights, every=4, powers=[], **constants)
        wrapper.dtype = torch.float64
        return wrapper

    return make


def orthogonal(flat, even):
    return exact(flat=flat, even=even), lambda x, go: twins.orthogonal(x, go, STEPS, 4, [(3, 5), (5, 2)], flat, even)


TWINS = {
    "lookahead": (
        lambda o, w: Lookahead(o, w, every=4, alpha=0.3), lambda x, go: twins.lookahead(x, go, STEPS, 4, 0.3)
    ),
    "snoo": (lambda o, w: Snoo(o, w, every=3, lr=0.6, mu=0.4), lambda x, go: twins.snoo(x, go, STEPS, 3, 0.6, 0.4)),
    "ema": (lambda o, w: Ema(o, w, decays=[0.9]), lambda x, go: twins.ema(x, go, STEPS, 0.9)),
    "ema_nesterov": (
        lambda o, w: EmaNesterov(o, w, beta=0.7, gamma=0.8, above=0.5),
        lambda x, go: twins.ema_nesterov(x, go, [0.7 if factor(t) >= 0.5 else 0.0 for t in range(STEPS)], 0.8),
    ),
    "ema_nesterov, always": (
        lambda o, w: EmaNesterov(o, w, beta=0.7, gamma=0.8, above=0.0),
        lambda x, go: twins.ema_nesterov(x, go, [0.7] * STEPS, 0.8),
    ),
    "tail_average": (
        lambda o, w: TailAverage(o, w, every=2, last=3, start=5),
        lambda x, go: twins.tail_average(x, go, STEPS, 2, 3, 5),
    ),
    "tail_average, all": (
        lambda o, w: TailAverage(o, w, every=2, last=None, start=9),
        lambda x, go: twins.tail_average(x, go, STEPS, 2, None, 9),
    ),
    "growing_average": (
        lambda o, w: GrowingAverage(o, w, powers=[3]), lambda x, go: twins.growing_average(x, go, STEPS, 3)
    ),
    "growing_average, moved": (moved, lambda x, go: twins.growing_average(x, go, STEPS, 5, 2, 0.7)),
    "orthogonal": orthogonal(flat=True, even=True),
    "orthogonal, singular values alone": orthogonal(flat=True, even=False),
    "orthogonal, neurons alone": orthogonal(flat=False, even=True),
}  # fmt: skip


# ---- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
@each_optimizer
def test_it_is_its_twin(name, optimizer):
    make, twin = TWINS[name]
    found, expected = trained(make, optimizer), twin(*plain(optimizer))
    for (live, scored), (live_too, scored_too) in zip(found, expected, strict=True):
        np.testing.assert_allclose(live, live_too, rtol=0, atol=1e-11)
        np.testing.assert_allclose(scored, scored_too, rtol=0, atol=1e-11)
    assert {key.partition(",")[0] for key in TWINS} | {"schedule_free"} == set(WRAPPERS)


class Theirs(schedulefree.ScheduleFreeWrapper):
    """With a state of its own: in the one that it shares, torch's optimizers miss what they have not made."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.own = defaultdict(dict)

    @property
    def state(self):
        return self.own


@each_optimizer
@pytest.mark.parametrize("chunk", [7, 1 << 19], ids=["chunks", "one piece"])
def test_schedule_free_is_that_of_its_authors(monkeypatch, optimizer, chunk):
    """Theirs with the decay at y, around the same optimizer without one."""
    monkeypatch.setattr(weights_module, "CPU_CHUNK", chunk)
    decay = 0.0 if optimizer == "sgd_momentum" else 0.1  # which is part of the gradient there
    found = trained(lambda o, w: ScheduleFree(o, w, beta=0.8), optimizer)
    model = Network()
    base = OPTIMIZERS[optimizer](list(model.named_parameters()), decay=0.0)
    theirs = Theirs(base, weight_decay_at_y=decay, momentum=0.8)
    compare(found, model, theirs, base.param_groups, factor, 1e-11)


def compare(found, model, theirs, groups, schedule, tolerance):
    """Train with their optimizer; live and scored weights after every step must be those that were found."""
    for t, (live, scored) in enumerate(found):
        theirs.train()
        for group in groups:
            group["lr"] = 0.05 * schedule(t)
        model.take_gradient(t)
        theirs.step()
        np.testing.assert_allclose(live, flat(model).numpy(), rtol=0, atol=tolerance)
        theirs.eval()
        np.testing.assert_allclose(scored, flat(model).numpy(), rtol=0, atol=tolerance)


def test_schedule_free_around_adamw_is_their_adamw():
    """Which has no first moment."""
    make = lambda p, **options: AdamW(p, 0.05, betas=(0.0, 0.99), weight_decay=0.1)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPTIMIZERS, "adamw", make)
        found = trained(lambda o, w: ScheduleFree(o, w, beta=0.8), "adamw", scheduled=False)
    model = Network()
    theirs = schedulefree.AdamWScheduleFree(model.parameters(), 0.05, betas=(0.8, 0.99), weight_decay=0.1)
    compare(found, model, theirs, (), factor, 1e-7)


def test_schedule_free_before_the_warm_up_has_begun():
    """A learning rate of 0 weighs nothing, and does not divide by it."""
    weights = FlatWeights.of(Network())
    optimizer = Sgd(weights.named_parameters(), 0.0)
    wrapper, start = ScheduleFree(optimizer, weights), weights.vector.clone()
    wrapper.after_step()
    assert torch.equal(wrapper.scored(), start) and torch.equal(weights.vector, start)
    optimizer.param_groups[0]["lr"] = 0.1
    weights.vector.add_(1.0)
    wrapper.after_step()
    torch.testing.assert_close(wrapper.scored(), start + 1)


def test_snoo_without_momentum_is_lookahead():
    ours = trained(lambda o, w: Snoo(o, w, every=4, lr=0.3, mu=0.0), "adamw")
    for (live, _), (fast, _) in zip(ours, trained(TWINS["lookahead"][0], "adamw"), strict=True):
        np.testing.assert_allclose(live, fast, rtol=0, atol=1e-12)


def test_what_is_ahead_is_not_what_is_handed_over():
    model = Network()
    weights = FlatWeights.of(model)
    wrapper = EmaNesterov(Sgd(weights.named_parameters(), 0.1), weights)
    for t in range(3):
        before = weights.vector.clone()
        wrapper.before_step()
        assert torch.equal(wrapper.scored(), before)
        assert torch.equal(weights.vector, before) == (t == 0)
        model.take_gradient(t)
        wrapper.optimizer.step()
        wrapper.after_step()
        assert wrapper.scored() is None


# ---- the choice among averages ---------------------------------------------------------------------------------------


@pytest.fixture
def averages():
    """Of weights that went 1, 2, 4."""
    model = torch.nn.Linear(1, 1, bias=False)
    weights = FlatWeights.of(model)
    wrapper = Ema(Sgd(weights.named_parameters(), 0.1), weights, [0.0, 0.5, 0.9])
    for value in (1.0, 2.0, 4.0):
        weights.vector.fill_(value)
        wrapper.after_step()
    return model, weights, wrapper


@pytest.mark.parametrize(("target", "chosen"), [(4.0, 0.0), (2.9, 0.5), (2.4, 0.9), (9.0, 0.0)])
def test_the_lowest_loss_is_chosen(averages, target, chosen):
    model, weights, wrapper = averages
    asked, clock = [], Clock(torch.device("cpu"))

    def loss(forward):
        asked.append(float(forward(torch.ones(1, 1))))
        return abs(asked[-1] - target)

    Scored(model, weights, wrapper).choose(loss, clock)
    assert asked == pytest.approx([4.0, (4 + 1 + 0.25) / 1.75, (4 + 1.8 + 0.81) / 2.71])
    assert wrapper.chosen == chosen and clock.now()["verify"] > 0
    assert float(weights.vector) == 4.0
    handed = wrapper.scored()
    assert (handed is None) == (chosen == 0.0) and (handed is None or handed is wrapper.means[chosen])


def test_a_loss_that_is_no_number_is_never_the_lowest(averages):
    *_, wrapper = averages
    losses = iter([math.nan, 1.0, 1.0])
    wrapper.choose(lambda vector: next(losses))
    assert wrapper.chosen == 0.5
    wrapper.choose(lambda vector: math.nan)
    assert wrapper.chosen == 0.5


@pytest.mark.parametrize(("target", "index"), [(4.0, 0), (2.8, 1), (3.1, 2), (3.5, 3), (3.9, 4), (9.0, 5)])
def test_growing_averages_are_moved_on_where_that_is_better(averages, target, index):
    _, weights, other = averages
    wrapper = GrowingAverage(other.optimizer, weights, powers=[1, 2], moves=[0.5, 1.0, 4.0])
    asked = []

    def loss(vector):
        asked.append(float(vector))
        return abs(asked[-1] - target)

    wrapper.choose(lambda vector: pytest.fail("there is nothing to choose from"))
    for value in (1.0, 2.0, 4.0):
        weights.vector.fill_(value)
        wrapper.after_step()
    wrapper.choose(loss)
    wide, narrow = (1 + 2 * 2 + 3 * 4) / 6, (2 + 6 * 2 + 12 * 4) / 20
    lags = 2 / 3, 2 / 4
    moves = [narrow + c * (narrow - wide) * lags[1] / (lags[0] - lags[1]) for c in (0.5, 1.0, 4.0)]
    values = [4.0, wide, narrow, *moves]
    assert asked == pytest.approx(values)
    assert index == min(range(6), key=lambda i: abs(values[i] - target))
    handed = wrapper.scored()
    assert (4.0 if handed is None else float(handed)) == pytest.approx(values[index])


def test_a_displacement_keeps_its_length_and_loses_its_shape():
    """At the size of real matrices, in bfloat16."""
    model = torch.nn.ModuleDict({"wte": torch.nn.Linear(48, 32), "layer": torch.nn.Linear(48, 96, bias=False)})
    weights = FlatWeights.of(model)
    optimizer = AdamW(weights.named_parameters(), 0.01)
    wrapper = Orthogonal(optimizer, weights, every=1, even=False, powers=[])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kick = torch.randn(weights.vector.shape, generator=torch.Generator().manual_seed(0)).pow(3)
    weights.vector.add_(kick)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper.after_step()
    for name, p in model.named_parameters():
        if name.startswith("wte"):
            assert torch.equal(p, after[name])
            continue
        old, new = after[name] - before[name], (p - before[name]).detach()
        assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5)
        (spread_old, spread_new) = (torch.linalg.svdvals(d) for d in (old, new))
        assert spread_new.max() / spread_new.min() < 2.2 < 4 < spread_old.max() / spread_old.min()
        assert float((old * new).sum()) > 0.5 * float(old.norm() * new.norm())


def test_one_average_is_no_choice(averages):
    _, weights, several = averages
    assert several.chooses and not Ema(several.optimizer, weights, [0.5]).chooses


def test_before_the_first_step_the_live_weights_are_handed_over(averages):
    _, weights, several = averages
    fresh = Ema(several.optimizer, weights, [0.5, 0.9])
    fresh.choose(lambda vector: pytest.fail("there is nothing to choose from"))
    assert fresh.scored() is None
    tail = TailAverage(several.optimizer, weights, every=2)
    tail.after_step()
    assert tail.scored() is None


# ---- in a run --------------------------------------------------------------------------------------------------------

SOON = {"snoo": ["wrapper.every=3"], "tail_average": ["wrapper.every=2", "wrapper.last=3"]}  # what a tiny run can reach
PLAIN = ("predictor=none", "mode=leap", "checkpoint.every_s=null")


@each_wrapper
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_resumes_bit_equal(lab, monkeypatch, name, optimizer):
    words = (*PLAIN, f"wrapper={name}", f"optimizer={optimizer}", *SOON.get(name, ()))
    whole = run(lab.config(*words, f"suite=whole_{name}_{optimizer}"))
    assert whole.status == "completed"
    found = rows(whole.folder, EVALS)
    assert found[-1]["loss_nats"] < found[0]["loss_nats"]
    killed = lab.config(*words, f"suite=killed_{name}_{optimizer}", "checkpoint.every_steps=4")
    with interrupted(monkeypatch, 15):
        run(killed)
    assert records(run(killed).folder) == records(whole.folder)


@pytest.mark.parametrize("name", ["ema", "tail_average", "none"])
def test_averages_do_not_touch_the_training(lab, monkeypatch, name):
    words = (*PLAIN, "optimizer=muon", *SOON.get(name, ()))
    with captured(monkeypatch) as made:
        folder = run(lab.config(*words, f"wrapper={name}", f"suite=live_{name}")).folder
        bare = run(lab.config(*PLAIN, "optimizer=muon", "suite=live_bare")).folder
    assert torch.equal(flat(made[0].model), flat(made[-1].model)) or not made[1:]
    ours, plain_rows = (
        [[r["loss_nats"] for r in rows(f, EVALS) if r["split"] == split] for split in ("train", VERIFICATION)]
        for f in (folder, bare)
    )
    assert ours[0] == plain_rows[0]
    assert (ours[1] == plain_rows[1]) == (name == "none")


def test_the_end_of_a_run_chooses_and_pays_for_it(lab, monkeypatch):
    """Until then the first average is evaluated."""
    words = (*PLAIN, "wrapper=ema", "wrapper.decays=[0.9,0.0,0.5]", "eval.every=8", "verify.sequences=8")
    chosen, choose = [], Ema.choose

    def told(self, loss_of):
        losses = {d: loss_of(self.means.get(d, self.weights.vector)) for d in self.decays}
        choose(self, loss_of)
        chosen.append((self.chosen, losses))

    monkeypatch.setattr(Ema, "choose", told)
    with captured(monkeypatch) as made:
        end = run(lab.config(*words, "suite=choosing"))
    ((decay, losses),) = chosen
    assert decay == min(losses, key=losses.get) and len(set(losses.values())) == 3
    assert losses[0.0] == pytest.approx(made[0].verification_loss(made[0].model), rel=1e-6)
    first = run(lab.config(*words[:-4], "wrapper=ema", "wrapper.decays=[0.9]", *words[-2:], "suite=first"))
    last = run(lab.config(*words[:-4], "wrapper=ema", f"wrapper.decays=[{decay}]", *words[-2:], "suite=last"))
    ours, theirs, best = (
        [(r["step"], r["loss_nats"]) for r in rows(e.folder, EVALS) if r["split"] != "train"]
        for e in (end, first, last)
    )
    assert ours[:-2] == theirs[:-2] and ours[-2:] == best[-2:]
    totals = json.loads((end.folder / SUMMARY).read_text())["totals"]
    assert totals["verify_s"] > 0
    assert json.loads((first.folder / SUMMARY).read_text())["totals"]["verify_s"] == 0


# ---- what every yaml promises ----------------------------------------------------------------------------------------


def test_the_yaml_are_the_files():
    assert set(WRAPPERS) == set(names())


@each_wrapper
def test_one_name_and_the_same_constants_for_yaml_and_class(name):
    kind = class_of(f"leapbench.optimizers.{name}")
    spec = dict(SPECS[name])
    assert spec.pop("_target_") == f"leapbench.optimizers.{name}.{kind.__name__}" and spec.pop("name") == name
    parameters = list(inspect.signature(kind).parameters.values())[2:]
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert defaults == spec


@each_wrapper
def test_the_docstring_says_where_it_comes_from_and_what_it_takes(name):
    module = importlib.import_module(f"leapbench.optimizers.{name}")
    text = inspect.getdoc(class_of(module.__name__))
    for word in ("arXiv:", "theta", "vector", "pass"):
        assert word in text, f"{word} is missing"


@each_wrapper
def test_a_state_is_plain_data_and_tensors(name, tmp_path):
    weights = FlatWeights.of(Network())
    wrapper = class_of(f"leapbench.optimizers.{name}")(OPTIMIZERS["adamw"](weights.named_parameters()), weights)
    for _ in range(3):
        wrapper.before_step()
        weights.vector.add_(0.5)
        wrapper.after_step()
    torch.save(wrapper.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again = type(wrapper)(wrapper.optimizer, weights)
    again.load_state_dict(loaded)
    assert str(again.state_dict()) == str(wrapper.state_dict())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("wrapper=lookahead wrapper.every=0", "wrapper=lookahead: every=0 must be 1 or more"),
        ("wrapper=lookahead wrapper.alpha=1.5", "wrapper=lookahead: alpha=1.5 must be 0 or more, 1 at most"),
        ("wrapper=snoo wrapper.mu=1.0", "wrapper=snoo: mu=1.0 must be 0 or more, below 1"),
        ("wrapper=snoo wrapper.lr=high", "wrapper=snoo: lr='high' must be a number"),
        ("wrapper=ema wrapper.decays=[0.9,0.9]", "decays=.* must be one or more different numbers, as in"),
        ("wrapper=ema wrapper.decays=[]", r"decays=\[\] must be one or more different numbers"),
        ("wrapper=ema wrapper.decays=0.9", "decays=0.9 must be a list of numbers, as in"),
        ("wrapper=ema wrapper.decays=[1.0]", "decays=1.0 must be 0 or more, below 1"),
        ("wrapper=ema_nesterov wrapper.gamma=1", "gamma=1 must be 0 or more, below 1"),
        ("wrapper=ema_nesterov wrapper.beta=-0.1", "beta=-0.1 must be 0 or more"),
        ("wrapper=schedule_free wrapper.power=-1", "power=-1 must be 0 or more"),
        ("wrapper=growing_average wrapper.powers=[20,8]", r"powers=\[20, 8\] must rise, as in \[8, 20\]"),
        ("wrapper=growing_average wrapper.powers=[-1]", "powers=-1 must be 0 or more"),
        ("wrapper=growing_average wrapper.moves=1", r"moves=1 must be a list of numbers, as in \[0.5, 1\]"),
        ("wrapper=orthogonal wrapper.every=0", "every=0 must be 1 or more"),
        ("wrapper=orthogonal wrapper.flat=maybe", "wrapper=orthogonal: flat='maybe' must be true or false"),
        ("wrapper=orthogonal wrapper.even=1", "wrapper=orthogonal: even=1 must be true or false"),
        ("wrapper=orthogonal wrapper.precision=float16", "precision=float16 is unknown; use float32 or bfloat16"),
        ("wrapper=tail_average wrapper.last=0", "last=0 must be 1 or more"),
        ("wrapper=tail_average wrapper.start=x", "start='x' must be a whole number, 0 or more"),
    ],
)
def test_constants_that_cannot_be(lab, words, line):
    with pytest.raises(ConfigError, match=line):
        run(lab.config(*PLAIN, *words.split()))


def test_none_is_the_contract():
    assert class_of("leapbench.optimizers.wrapper") is Wrapper and "wrapper" not in names()
