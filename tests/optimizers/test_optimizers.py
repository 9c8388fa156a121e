"""Optimizers: those that are there, and one with two groups that is added in one file and one yaml."""

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import twins
from helpers import call, captured, flat, interrupted, records, rows
from leapbench.names import CHECKPOINT, EVALS, PROPOSALS, SUMMARY
from leapbench.optimizers.muon import Muon
from leapbench.prediction.moments import forget, moments_of
from leapbench.prediction.weights import FlatWeights
from leapbench.training.run import run
from leapbench.training.workload import seed_of

FILE = '''
import torch

class TwoRates(torch.optim.AdamW):
    """Matrices at lr with decay, everything else at a share of it without."""

    def __init__(self, parameters, lr, share, betas):
        matrices = [p for _, p in parameters if p.ndim == 2]
        others = [p for _, p in parameters if p.ndim != 2]
        groups = [{"params": others, "lr": share * lr, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
        super().__init__(groups, lr, tuple(betas), fused=True)
'''
YAML = """
_target_: two_rates.TwoRates
name: two_rates
lr: 0.01
lr_from: given
share: 0.25
betas: [0.8, 0.9]
"""


@pytest.fixture
def lab(fresh_lab, tmp_path, monkeypatch):
    """A place for runs beside a folder with an optimizer of the user's own, and the arguments that choose it."""
    (tmp_path / "two_rates.py").write_text(FILE)
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/two_rates.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh_lab.chosen = ("--config-dir", str(tmp_path / "conf"), "optimizer=two_rates")
    return fresh_lab


def folder_of(lab, suite):
    (folder,) = (lab.results / suite).iterdir()
    return folder


def plain_training(config, workload, steps):
    """The same training in bare PyTorch: the models after every step."""
    torch.manual_seed(seed_of(config, "init"))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=255, eos_token_id=255, **config.model.config))
    model.train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    one = torch.optim.AdamW(matrices, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    two = torch.optim.AdamW(others, betas=(0.8, 0.9), weight_decay=0.0, fused=True)
    warmup, floor, total = config.schedule.warmup, config.schedule.floor, config.train.steps
    for step in range(steps):
        cosine = floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        factor = (step + 1) / warmup if step < warmup else cosine
        one.param_groups[0]["lr"], two.param_groups[0]["lr"] = 0.01 * factor, 0.0025 * factor
        workload.loss(model, workload.train_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    return model, one, two


def test_one_file_and_one_yaml_add_an_optimizer_with_two_groups(lab, tmp_path, monkeypatch):
    """Its groups follow the schedule at their own rates, and predictors that read moments know both."""
    with captured(monkeypatch) as made:
        words = lab.overrides("predictor=[linear,momentum]", "K=[4]", "train.steps=12")
        end = call(monkeypatch, tmp_path, *lab.chosen, *words)
    assert end.status == 0, end.err
    config = made[0].config
    assert config.optimizer.settings == {"_target_": "two_rates.TwoRates", "share": 0.25, "betas": [0.8, 0.9]}
    model, one, two = plain_training(config, made[0], 12)
    assert torch.equal(flat(made[0].model), flat(model))

    # The proposal at step 8, once more from its equation, tensor by tensor.
    model, one, two = plain_training(config, made[0], 8)
    (row,) = [r for r in rows(folder_of(lab, "default"), PROPOSALS) if (r["step"], r["predictor"]) == (8, "momentum")]
    from leapbench.training.schedule import factor_at

    factors = [factor_at(config.schedule, config.train.steps)(position) for position in range(8, 12)]
    with torch.no_grad():
        for optimizer, lr, decay in ((one, 0.01, 0.1), (two, 0.0025, 0.0)):
            rule = twins.AdamGroup(0.8, 0.9, 1e-8, decay, 1.0, ())
            for p, state in optimizer.state.items():
                arrays = (x.double().numpy() for x in (p.detach(), state["exp_avg"], state["exp_avg_sq"]))
                p.copy_(torch.from_numpy(twins.momentum_exact(*arrays, 8, [lr * f for f in factors], rule)))
    assert row["loss_pred_nats"] == pytest.approx(made[0].verification_loss(model), rel=1e-5)


def test_it_resumes_bit_equal(lab, tmp_path, monkeypatch):
    words = ("predictor=momentum", "K=[4]", "checkpoint.every_s=null")
    whole = call(monkeypatch, tmp_path, *lab.chosen, *lab.overrides(*words, "suite=whole"))
    assert whole.status == 0, whole.err

    arguments = (*lab.chosen, *lab.overrides(*words, "suite=killed", "checkpoint.every_steps=3"))
    with interrupted(monkeypatch, 14):
        call(monkeypatch, tmp_path, *arguments)
    assert (folder_of(lab, "killed") / CHECKPOINT).exists()
    assert call(monkeypatch, tmp_path, *arguments).status == 0
    assert records(folder_of(lab, "killed")) == records(folder_of(lab, "whole"))


def test_its_group_and_its_keys_make_another_run(lab, tmp_path, monkeypatch):
    for words in ((), ("optimizer.share=0.5",)):
        end = call(monkeypatch, tmp_path, *lab.chosen, *words, *lab.overrides("predictor=none", "train.steps=4"))
        assert end.status == 0, end.err
    assert len(list((lab.results / "default").iterdir())) == 2


def test_an_optimizer_may_offer_moments_by_itself(lab):
    """Whatever it is called: what counts is the object that it hands out."""
    from leapbench.prediction.moments import Moments, moments_of
    from leapbench.prediction.weights import FlatWeights

    class Offering(torch.optim.SGD):
        def moments(self, weights):
            return Moments(torch.optim.AdamW(weights.parameters), weights)

    weights = FlatWeights.of(torch.nn.Linear(2, 2))
    assert moments_of(torch.optim.SGD(weights.parameters), weights) is None
    offered = moments_of(Offering(weights.parameters), weights)
    assert [group.places for group in offered.groups] == [(slice(0, 6),)]
    assert moments_of(torch.optim.AdamW(weights.parameters, amsgrad=True), weights) is None
    with pytest.raises(ValueError, match="the optimizer has no bias; give it all trainable parameters"):
        moments_of(torch.optim.AdamW(weights.parameters[:1]), weights)
    with pytest.raises(ValueError, match="no moments before its first step"):
        _ = offered.exp_avg


def test_plain_adam_has_no_decoupled_decay():
    from leapbench.prediction.moments import moments_of
    from leapbench.prediction.weights import FlatWeights

    weights = FlatWeights.of(torch.nn.Linear(2, 2))
    for kind, decay in ((torch.optim.Adam, 0.0), (torch.optim.AdamW, 0.3)):
        (group,) = moments_of(kind(weights.parameters, lr=0.5, weight_decay=0.3), weights).groups
        assert (group.weight_decay, group.lr, group.beta2) == (decay, 0.5, 0.999)


# ---- wrappers --------------------------------------------------------------------------------------------------------

WRAPPERS = '''
import torch
from leapbench.optimizers.wrapper import Wrapper

class Mean(Wrapper):
    """Hands over the mean of the weights after every step, and takes gradients a little ahead."""

    scores_live = False

    def __init__(self, optimizer, weights, ahead):
        super().__init__(optimizer, weights)
        self.ahead, self.steps = ahead, 0
        self.mean, self.before = torch.zeros_like(weights.vector), weights.vector.clone()
        self.moved = torch.zeros_like(weights.vector)

    def before_step(self):
        self.before.copy_(self.weights.vector)
        self.weights.vector.add_(self.moved, alpha=self.ahead)

    def after_step(self):
        self.moved.copy_(self.weights.vector).sub_(self.before)
        self.steps += 1
        self.mean.lerp_(self.weights.vector, 1 / self.steps)

    def scored(self):
        return self.mean if self.steps else None

    def state_dict(self):
        return {"mean": self.mean, "moved": self.moved, "steps": self.steps}

    def load_state_dict(self, state):
        self.mean.copy_(state["mean"])
        self.moved.copy_(state["moved"])
        self.steps = state["steps"]
'''


@pytest.fixture
def mean(lab, tmp_path):
    """The arguments that wrap the optimizer into an average that looks ahead."""
    (tmp_path / "wrappers.py").write_text(WRAPPERS)
    (tmp_path / "conf/wrapper").mkdir()
    (tmp_path / "conf/wrapper/mean.yaml").write_text("_target_: wrappers.Mean\nname: mean\nahead: 0.5\n")
    return ("--config-dir", str(tmp_path / "conf"), "wrapper=mean")


def averaged_training(config, workload, steps):
    """The same training in bare PyTorch, one vector at a time: live weights and mean after every step."""
    from leapbench.models.causal_lm import build

    model = build(config.model, 256, 16, seed_of(config, "init"), "scratch").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    moved, total, trail = torch.zeros_like(flat(model)), torch.zeros_like(flat(model)), []
    from leapbench.training.schedule import factor_at

    factor = factor_at(config.schedule, config.train.steps)
    for step in range(steps):
        before = flat(model)
        torch.nn.utils.vector_to_parameters(before + 0.5 * moved, model.parameters())
        optimizer.param_groups[0]["lr"] = 0.1 * factor(step)
        workload.loss(model, workload.train_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        moved = flat(model) - before
        total = total + flat(model)
        trail.append((flat(model), total / (step + 1)))
    return trail


def loss_with(workload, weights, split):
    """The loss of a split with `weights` (N,) in the model."""
    torch.nn.utils.vector_to_parameters(weights, workload.model.parameters())
    return workload.score(workload.model, split).loss


def test_what_a_wrapper_hands_over_is_what_is_evaluated_and_observed(lab, mean, tmp_path, monkeypatch):
    words = lab.overrides("optimizer=sgd", "predictor=[linear,momentum]", "K=[4]", "train.steps=16")
    with captured(monkeypatch) as made:
        end = call(monkeypatch, tmp_path, *mean, *words)
    assert end.status == 0, end.err
    folder, workload = folder_of(lab, "default"), made[0]
    trail = averaged_training(workload.config, workload, 16)
    torch.testing.assert_close(flat(workload.model), trail[-1][0], rtol=0, atol=1e-6)
    for row in rows(folder, EVALS):
        if row["split"] != "train":
            handed_over = trail[row["step"] - 1][1]
            assert row["loss_nats"] == pytest.approx(loss_with(workload, handed_over, row["split"]), abs=2e-5)
    proposals = [row for row in rows(folder, PROPOSALS) if row["predictor"] == "linear"]
    assert [row["step"] for row in proposals] == [8, 12]
    for row in proposals:
        older, now, truth = (trail[row["step"] + offset - 1][1] for offset in (-4, 0, 4))
        candidate = now + (now - older)
        assert row["loss_pred_nats"] == pytest.approx(loss_with(workload, candidate, "verification"), abs=2e-5)
        wanted = float((candidate - truth).norm() / truth.norm())
        assert row["rel_l2_to_true"] == pytest.approx(wanted, rel=1e-2)


def test_moments_do_not_belong_to_other_weights(lab, mean, tmp_path, monkeypatch):
    end = call(monkeypatch, tmp_path, *mean, *lab.overrides("predictor=[linear,momentum]", "K=[4]"))
    assert end.status == 0, end.err
    skipped = json.loads((folder_of(lab, "default") / "summary.json").read_text())["skipped"]
    assert skipped == {"momentum": "needs the moments of what is observed; wrapper=mean hands over other weights"}


@pytest.mark.parametrize(
    "mode", [("predictor=linear", "K=[4]"), ("mode=leap", "predictor=linear", "K=4", "leap.gate=any")]
)
def test_a_wrapped_run_resumes_bit_equal(lab, mean, tmp_path, monkeypatch, mode):
    words = (*mode, "checkpoint.every_s=null")
    assert call(monkeypatch, tmp_path, *mean, *lab.overrides(*words, "suite=whole")).status == 0

    arguments = (*mean, *lab.overrides(*words, "suite=killed", "checkpoint.every_steps=3"))
    with interrupted(monkeypatch, 14):
        call(monkeypatch, tmp_path, *arguments)
    assert call(monkeypatch, tmp_path, *arguments).status == 0
    assert records(folder_of(lab, "killed")) == records(folder_of(lab, "whole"))


def test_no_wrapper_is_no_part_of_a_run(lab, mean, tmp_path, monkeypatch):
    config = lab.config("predictor=linear")
    assert "wrapper" not in config.science() and config.wrapper.name == "none"
    end = call(monkeypatch, tmp_path, *mean, *lab.overrides("predictor=none", "train.steps=4"))
    assert end.status == 0, end.err
    assert (folder_of(lab, "default") / "config.yaml").read_text().count("wrappers.Mean") == 1
    assert run(lab.config("predictor=none", "train.steps=4", "suite=bare")).run_id != folder_of(lab, "default").name


# ---- Muon ------------------------------------------------------------------------------------------------------------


def muon_of(*shapes):
    """Parameters of these shapes and a Muon over them."""
    torch.manual_seed(0)
    parameters = [(f"h.{i}", torch.nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]
    parameters.append(("wte.weight", torch.nn.Parameter(torch.randn(5, 4))))
    return parameters, Muon(parameters, lr=0.02)


def test_muon_is_its_twin_and_adamw_for_the_rest():
    parameters, optimizer = muon_of((4, 6), (6, 4), (4,))
    starts = {name: p.detach().clone() for name, p in parameters}
    grads = {name: [torch.randn(p.shape) for _ in range(6)] for name, p in parameters}
    rest = {name: torch.nn.Parameter(starts[name].clone()) for name in ("h.2", "wte.weight")}
    plain = torch.optim.AdamW(rest.values(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(6):
        for name, p in [*parameters, *rest.items()]:
            p.grad = grads[name][step].clone()
        optimizer.step()
        plain.step()
    for name, p in parameters:
        if name in rest:
            torch.testing.assert_close(p, rest[name], rtol=1e-5, atol=1e-6)
        else:  # bfloat16 inside
            torch.testing.assert_close(p.detach(), twins.muon(starts[name], grads[name], 0.02), rtol=0, atol=6e-3)
            assert (p - starts[name]).norm() > 0.1


def test_muons_groups_follow_a_schedule_and_a_leap_forgets_its_momentum():
    parameters, optimizer = muon_of((4, 6))
    assert moments_of(optimizer, FlatWeights.of(torch.nn.ParameterList([p for _, p in parameters]))) is None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for _, p in parameters]
    for _, p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p, was) for (_, p), was in zip(parameters, before, strict=True))
    buffers = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert any(buffer.any() for buffer in buffers)
    forget(optimizer, steps_too=True)
    assert not any(buffer.any() for buffer in buffers)


def test_muon_says_what_it_cannot_do():
    parameters, optimizer = muon_of((4, 6))
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(ValueError, match="no parameter is a hidden matrix, which muon is for; use optimizer=adamw"):
        Muon(parameters[1:], lr=0.01)


def test_a_run_with_muon_resumes_bit_equal_and_skips_what_reads_moments(fresh_lab, monkeypatch):
    words = ("optimizer=muon", "predictor=[linear,momentum]", "K=[4]", "train.precision=bfloat16")
    whole = run(fresh_lab.config(*words, "suite=whole", "checkpoint.every_s=null"))
    assert whole.status == "completed"
    reason = json.loads((whole.folder / SUMMARY).read_text())["skipped"]["momentum"]
    assert reason == "needs Adam moments; optimizer=muon keeps none"
    killed = fresh_lab.config(*words, "suite=killed", "checkpoint.every_s=null", "checkpoint.every_steps=3")
    with interrupted(monkeypatch, 14):
        run(killed)
    assert records(run(killed).folder) == records(whole.folder)
    losses = [row["loss_nats"] for row in rows(whole.folder, EVALS)]
    assert losses[-1] < losses[0]
