"""mode=leap: what is adopted, when it is proposed, and that everything else stays as it was."""

import copy
import json
import math

import numpy as np
import pytest
import torch

import published as twin
from helpers import (
    ALWAYS_STABLE,
    DROPOUT,
    EVERY_3_STEPS,
    call,
    captured,
    composed,
    flat,
    interrupted,
    records,
    rows,
    untimed,
)
from leapbench.config.errors import ConfigError
from leapbench.config.resolve import resolve
from leapbench.models.causal_lm import build
from leapbench.names import CHECKPOINT, EVALS, LEAPS, PROPOSALS, REGIMES, SUMMARY
from leapbench.prediction.clock import CHARGED, Clock
from leapbench.records import checkpoint
from leapbench.training.pace import PdtPace
from leapbench.training.run import run
from leapbench.training.schedule import factor_at
from leapbench.training.workload import Workload, seed_of

LEAP = ("mode=leap", "K=3", "leap.gate=any", "leap.follow=[2,5]")
NEVER = ("protocol=paper", "predictor=momentum")  # its candidates are so far off that no rule that looks takes them
BASELINE = ("mode=leap", "predictor=none")


def trained(lab, monkeypatch, *extra, at_batch=None):
    """(folder, final weights (N,)) of a completed run."""
    with captured(monkeypatch, at_batch) as made:
        end = run(lab.config(*extra))
    assert end.status == "completed", end.reason
    return end.folder, flat(made[0].model)


def summary(folder):
    return json.loads((folder / SUMMARY).read_text())


@pytest.fixture(scope="module")
def baseline(lab):
    """The records of the run without a predictor."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return trained(lab, monkeypatch, *BASELINE, *DROPOUT)


@pytest.mark.parametrize("rule", ["strict", "adaptive", "proximity"])
def test_rejected_candidates_leave_the_run_as_if_nothing_had_been_proposed(lab, monkeypatch, baseline, rule):
    folder, weights = trained(lab, monkeypatch, *LEAP, *NEVER, *DROPOUT, f"leap.rule={rule}", "leap.gate=any")
    proposed = rows(folder, LEAPS)
    assert len(proposed) == 5  # checkpoints 4, 8, ..., 20; at 24 nothing is left to skip
    assert not any(row["adopted"] for row in proposed)
    assert torch.equal(weights, baseline[1])
    assert untimed(folder, EVALS) == untimed(baseline[0], EVALS)


def test_the_baseline_is_charged_for_its_training_alone(baseline):
    folder, _ = baseline
    totals = summary(folder)["totals"]
    assert totals["train_s"] > 0
    for lap in set(CHARGED) - {"train"}:
        assert totals[f"{lap}_s"] == 0
    assert (totals["proposals"], totals["adoptions"]) == (0, 0)
    assert rows(folder, LEAPS) == rows(folder, PROPOSALS) == rows(folder, REGIMES) == []


def test_the_baseline_of_every_leap_setting_is_one_run(lab):
    ids = {lab.config(*BASELINE, *extra).run_id for extra in ((), ("leap=pdt",), ("K=5",), ("leap.rule=always",))}
    assert len(ids) == 1
    assert lab.config(*LEAP, "predictor=linear").run_id != lab.config(*LEAP, "predictor=linear", "leap=pdt").run_id


def test_the_baseline_trains_as_observed_runs_do(lab, monkeypatch, baseline):
    _, observed = trained(lab, monkeypatch, "predictor=linear", *DROPOUT)
    assert torch.equal(observed, baseline[1])


def test_a_leap_moves_the_position_and_the_schedule(lab, monkeypatch):
    rates = {}

    def at_batch(workload, index):
        rates[index] = None

    folder, _ = trained(lab, monkeypatch, *LEAP, "predictor=persistence", "leap.rule=always", at_batch=at_batch)
    leaps, evals = rows(folder, LEAPS), rows(folder, EVALS)
    # Four steps and three skipped ones, three times: 21 positions; then three more steps.
    assert [(leap["step"], leap["position"]) for leap in leaps] == [(4, 4), (8, 11), (12, 18)]
    assert all(leap["adopted"] and leap["changed_share"] == 0.0 for leap in leaps)
    assert sorted(rates) == list(range(15))
    assert (evals[-1]["step"], evals[-1]["position"]) == (15, 24)
    assert summary(folder)["steps"] == 15 and summary(folder)["position"] == 24
    at = {row["step"]: row["position"] for row in evals if row["split"] == "validation"}
    assert at == {4: 7, 6: 9, 9: 15, 8: 14, 10: 16, 13: 22, 12: 21, 14: 23, 15: 24}
    assert {row["step"] for row in evals if row["split"] == "verification"} == set(at)
    # `train` rows come before the jump of their step.
    assert [row["position"] for row in evals if row["split"] == "train"] == [4, 11, 18]


def beginning(lab, monkeypatch, *extra):
    """What a loop written down needs of the same run: its workload for batches and loss, and a model with its first
    weights."""
    config = lab.config(*extra)
    with captured(monkeypatch) as made:
        run(lab.config(*extra, "suite=again"))
    return made[0], build(config.model, 256, 16, seed_of(config, "init"), "scratch").train()


def test_the_learning_rate_follows_the_position(lab, monkeypatch):
    """Leaps that change nothing but the position: plain training at the schedule's later learning rates."""
    extra = (*LEAP, "predictor=persistence", "leap.rule=always", "optimizer=sgd", "model.config.n_embd=32")
    _, weights = trained(lab, monkeypatch, *extra)
    config = lab.config(*extra)
    workload, model = beginning(lab, monkeypatch, *extra)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    factor = factor_at(config.schedule, config.train.steps)
    positions = [p for p in range(24) if p not in (4, 5, 6, 11, 12, 13, 18, 19, 20)]
    for step, position in enumerate(positions):
        optimizer.param_groups[0]["lr"] = config.optimizer.lr * factor(position)
        workload.loss(model, workload.train_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(flat(model), weights)


def test_leaps_without_advance_are_a_bonus(lab, monkeypatch):
    folder, _ = trained(lab, monkeypatch, *LEAP, "predictor=linear", "leap.rule=always", "leap.advance=false")
    assert summary(folder)["steps"] == 24
    assert [leap["step"] for leap in rows(folder, LEAPS)] == [8, 12, 16, 20, 24]


@pytest.mark.parametrize(
    ("extra", "steps"),
    [
        ((), [4, 8, 12, 16, 20, 24]), (("leap.burn_in=2",), [12, 16, 20, 24]), (("leap.every=2",), [4, 12, 20]),
        (("leap.cooldown=1",), [4, 12, 20]), (("leap.cooldown=3", "leap.burn_in=1"), [8, 24]),
        (("leap.cascade=2", "K=2"), [4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24]),
    ],
)  # fmt: skip
def test_when_it_proposes(lab, monkeypatch, extra, steps):
    always = ("predictor=persistence", "leap.rule=always", "leap.advance=false")
    folder, _ = trained(lab, monkeypatch, *LEAP, *always, *extra)
    assert [leap["step"] for leap in rows(folder, LEAPS)] == steps


def test_a_cascade_stays_within_the_run(lab, monkeypatch):
    always = ("predictor=persistence", "leap.rule=always")
    folder, _ = trained(lab, monkeypatch, *LEAP, *always, "K=5", "leap.cascade=9")
    leaps = rows(folder, LEAPS)
    assert [leap["link"] for leap in leaps] == [1, 2, 3, 4]  # 4 + 4 x 5 = 24: the end of the schedule
    assert summary(folder)["steps"] == 4 and summary(folder)["position"] == 24


@pytest.mark.parametrize(
    ("gate", "tau_low", "tau_high", "steps"),
    [
        ("not_chaotic", -3.0, 2.0, [8, 12, 16, 20, 24]), ("not_chaotic", 1.5, 2.0, []),
        ("stable", -3.0, -2.0, [8, 12, 16, 20, 24]), ("stable", -3.0, 2.0, []),
        ("confirmed", -3.0, -2.0, [12, 16, 20, 24]),
    ],
)  # fmt: skip
def test_the_gate(lab, monkeypatch, gate, tau_low, tau_high, steps):
    regime = (f"leap.gate={gate}", f"regime.tau_low=[{tau_low}]", f"regime.tau_high=[{tau_high}]", "regime.confirm=2")
    always = ("predictor=persistence", "leap.rule=always", "leap.advance=false")
    folder, _ = trained(lab, monkeypatch, *LEAP, *always, *regime)
    assert [leap["step"] for leap in rows(folder, LEAPS)] == steps
    assert [row["step"] for row in rows(folder, REGIMES)] == [4, 8, 12, 16, 20, 24]


def test_without_a_gate_no_regime_is_looked_for_and_none_is_needed(lab, monkeypatch):
    config = lab.config(*LEAP, "predictor=linear")
    assert "regime" not in config.science()
    folder, _ = trained(lab, monkeypatch, *LEAP, "predictor=linear")
    assert rows(folder, REGIMES) == []


def test_verification_data_is_drawn_afresh_for_every_proposal(lab, monkeypatch):
    """`persistence` has the loss of the weights now, so its losses show the data alone."""
    still = ("predictor=persistence", "leap.rule=proximity", "leap.advance=false", "optimizer.lr=1e-30")
    fresh, _ = trained(lab, monkeypatch, *LEAP, *still)
    fixed, _ = trained(lab, monkeypatch, *LEAP, *still, "verify.resample=false")
    for folder, different in ((fresh, 6), (fixed, 1)):
        leaps = rows(folder, LEAPS)
        assert all(leap["loss_pred_nats"] == leap["loss_now_nats"] for leap in leaps)
        assert len({leap["loss_now_nats"] for leap in leaps}) == different


def test_pdt_is_the_released_loop(lab, monkeypatch):
    """Eleven epochs of PDT's single-GPU loop, written down as it runs: snapshot, epoch, prediction, mask."""
    extra = (
        "mode=leap", "predictor=pdt", "leap=pdt", "optimizer=sgd_momentum", "optimizer.lr=0.02", "schedule=constant",
        "schedule.warmup=0", "train.steps=44", "train.interval=4", "K=8", "train.grad_clip=null",
    )  # fmt: skip
    folder, weights = trained(lab, monkeypatch, *extra)
    workload, model = beginning(lab, monkeypatch, *extra)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    h, tau, T0 = 5, 3, 5
    H, predicted, shares = [], 0, []
    for epoch in range(11):
        due = len(H) >= T0
        a = flat(model)
        H.append(a.double().numpy())
        for step in range(4 * epoch, 4 * epoch + 4):
            workload.loss(model, workload.train_batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        c = flat(model)
        if due:
            H = H[-h:]
            p, delta = a.double().numpy() + twin.pdt_displacement(np.stack(H, 1), tau), (c - a).double().numpy()
            moved, size = np.abs(p - H[-1]), np.abs(delta)
            mask = (np.sign(p - H[-1]) == np.sign(delta)) & (moved >= size) & (moved <= (tau + 1) * size)
            w = torch.where(torch.from_numpy(mask), torch.from_numpy(p).float(), c)
            torch.nn.utils.vector_to_parameters(w, model.parameters())
            shares.append(float((w != c).float().mean()))
            predicted += 1
    leaps = rows(folder, LEAPS)
    assert [leap["step"] for leap in leaps] == [24, 28, 32, 36, 40, 44] and predicted == len(leaps)
    assert all(leap["adopted"] and 0 < leap["changed_share"] < 1 for leap in leaps)
    assert [leap["changed_share"] for leap in leaps] == pytest.approx(shares, abs=2e-3)
    # Coordinates at the mask's very edge may fall on either side in float32.
    apart = (weights - flat(model)).abs()
    assert float((apart > 1e-4).float().mean()) < 2e-3
    assert float(apart.median()) < 1e-6


def test_ninos_loop_predicts_from_every_fifth_snapshot_and_starts_anew(lab, monkeypatch):
    """Its loop written down, with a straight line through the last two of the five snapshots as the prediction."""
    extra = (
        "mode=leap", "predictor=linear", "leap=nino", "optimizer.lr=0.01", "schedule=constant", "schedule.warmup=0",
        "train.steps=44", "train.interval=4", "K=6", "train.grad_clip=null",
    )  # fmt: skip
    folder, weights = trained(lab, monkeypatch, *extra)
    workload, model = beginning(lab, monkeypatch, *extra)
    adam = lab.config(*extra).optimizer.settings
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.01, betas=tuple(adam["betas"]), eps=adam["eps"], weight_decay=adam["weight_decay"]
    )
    states, leaps = [], []
    for step in range(1, 45):
        workload.loss(model, workload.train_batch(step - 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 0:
            states.append(flat(model))
        if len(states) == 5:
            predicted = states[4] + 6 / 4 * (states[4] - states[3])
            torch.nn.utils.vector_to_parameters(predicted, model.parameters())
            states.clear()
            leaps.append(step)
    found = rows(folder, LEAPS)
    assert [leap["step"] for leap in found] == [20, 40] == leaps
    assert all(leap["adopted"] and math.isnan(leap["loss_now_nats"] or math.nan) for leap in found)
    assert [leap["position"] for leap in found] == [20, 40]
    # Where a gradient is near 0, AdamW turns rounding into steps.
    apart = (weights - flat(model)).abs()
    assert float((apart > 1e-5).float().mean()) < 1e-2
    assert float(apart.median()) < 1e-6


def slowed(K, losses, interval=10):
    pace = PdtPace(K=K, every=1, interval=interval)
    for loss in losses:
        pace.after_interval(loss)
    return pace.K // interval + 1, pace.every


@pytest.mark.parametrize(
    ("tau", "losses", "expected"),
    [
        (5, [4.0, 3.0, 2.0, 1.0], (5, 1)),
        (5, [4.0, 3.0, 9.0], (5, 1)),  # not before the fourth
        (5, [4.0, 3.0, 2.0, 9.0], (3, 1)), (4, [4.0, 3.0, 2.0, 9.0], (3, 2)), (3, [4.0, 3.0, 2.0, 9.0], (3, 3)),
        (5, [4.0, 3.0, 1.0, 2.0], (4, 1)), (4, [4.0, 3.0, 1.0, 2.0], (3, 1)), (3, [4.0, 3.0, 1.0, 2.0], (3, 2)),
        (7, [4.0, 3.0, 2.0, 9.0, 1.0, 0.5, 8.0], (3, 1)),  # and never back
    ],
)  # fmt: skip
def test_pdts_acceleration_scheduler(tau, losses, expected):
    assert slowed((tau - 1) * 10, losses) == expected


@pytest.mark.parametrize(
    "extra",
    [
        ("predictor=momentum", "leap.rule=always", "leap.moments=published"),
        ("predictor=linear", "leap.rule=adaptive", "leap.history=keep", "leap.cooldown=1", "leap.moments=reset"),
        ("predictor=trend", "predictors.trend.context=2", "leap.rule=always", "leap.cascade=2", "protocol=code"),
        ("predictor=linear", "leap.rule=always", "leap.advance=false", "leap.scheduler=pdt", "K=4", "leap.gate=stable"),
    ],
    ids=lambda extra: extra[0],
)
@pytest.mark.parametrize("index", [10, 13])
def test_a_run_killed_after_an_adoption_resumes_bit_equal(lab, monkeypatch, extra, index):
    extra = (*LEAP, *extra, *DROPOUT, *ALWAYS_STABLE, "train.steps=36")
    folder, weights = trained(lab, monkeypatch, *extra, f"suite=uninterrupted{index}", "checkpoint.every_s=null")
    leaps = rows(folder, LEAPS)
    assert any(leap["adopted"] and leap["step"] < index for leap in leaps)
    assert any(leap["step"] > index for leap in leaps)

    config = lab.config(*extra, *EVERY_3_STEPS, f"suite=killed{index}")
    with interrupted(monkeypatch, index):
        run(config)
    half = lab.results / f"killed{index}" / config.run_id
    assert (half / CHECKPOINT).exists()
    drawn = []
    with captured(monkeypatch, lambda workload, index: drawn.append(index)) as made:
        assert run(config).status == "completed"
    assert drawn[0] in (9, 12)
    assert torch.equal(flat(made[0].model), weights)
    expected, found = records(folder), records(half)
    assert found == expected


def test_checkpoints_keep_position_and_moments(lab, monkeypatch):
    extra = (*LEAP, "predictor=linear", "leap.rule=always", "leap.moments=published", *EVERY_3_STEPS)
    config = lab.config(*extra, "suite=kept")
    with interrupted(monkeypatch, 9):
        run(config)
    state = checkpoint.load(lab.results / "kept" / config.run_id, config.run_id, torch.device("cpu"))
    assert (state["step"], state["position"]) == (9, 12)  # a leap of 3 at step 8
    moments = next(iter(state["optimizer"]["state"].values()))
    assert float(moments["step"]) == 9.0  # the count stays; the moments hold the one gradient since the leap
    assert float(moments["exp_avg"].abs().sum()) > 0


def test_a_leap_that_ends_badly_is_a_diverged_run(lab):
    end = run(
        lab.config(*LEAP, *NEVER, "leap.rule=always", "K=4", "train.steps=48", "optimizer.lr=30", "leap.gate=any")
    )
    assert end.status in ("diverged", "completed")
    values = [row["loss_nats"] for row in rows(end.folder, EVALS)]
    assert max(value for value in values if value is not None) > 20


def test_a_verification_loss_that_is_nan_is_a_diverged_run(lab, monkeypatch):
    drawn = Workload.drawn_loss
    monkeypatch.setattr(Workload, "drawn_loss", lambda workload, forward: math.nan * drawn(workload, forward))
    end = run(lab.config(*LEAP, "predictor=linear", "suite=nan"))
    assert end.status == "diverged" and end.reason.startswith("the loss became nan by step 8")
    assert rows(end.folder, LEAPS) == []


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("predictor=[linear,quadratic]",), "mode=leap follows one predictor at a time, not linear, quadratic"),
        (("predictor=[average,linear]",), "mode=leap follows one predictor at a time, not average, linear"),
        (("predictor=linear", "K=[3,4]"), "mode=leap uses one K, not K=[3,4]; give one, as in K=3"),
        (("predictor=linear", "protocol=[exact,paper]"), "mode=leap follows one protocol at a time, not exact, paper"),
        (("predictor=linear", "leap.rule=strickt"), "leap.rule=strickt is unknown; use strict or adaptive"),
        (("predictor=linear", "leap.gate=calm"), "leap.gate=calm is unknown; use any or not_chaotic"),
        (("predictor=linear", "leap.moments=zero"), "leap.moments=zero is unknown"),
        (("predictor=linear", "leap.every=0"), "leap.every=0 must be 1 or more"),
        (("predictor=linear", "leap.scheduler=pdt"), "K=3 is no multiple of train.interval=4"),
        (("predictor=linear", "leap.follow=[0]"), "leap.follow=[0] must be steps after a leap"),
        (("predictor=linear", "train.steps=3 epochs"), "has dataset.examples=None"),
        (("predictor=linear", "optimizer.lr=fast"), "optimizer.lr"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(lab, extra, words):
    with pytest.raises(ConfigError) as error:
        lab.config(*LEAP, *extra)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("predictor=trend", "K=8"), "its context never fills"),
        (("predictor=linear", "leap.burn_in=5"), "nothing would ever be proposed; lower leap.burn_in"),
    ],
)
def test_a_context_or_a_burn_in_that_never_fits(lab, tmp_path, monkeypatch, extra, words):
    end = call(monkeypatch, tmp_path, *lab.overrides(*LEAP, *extra, "predictor@predictors.average=average"))
    assert end.status == 2
    assert words in end.err and len(end.err.splitlines()) == 1


def test_a_predictor_that_the_optimizer_cannot_serve_is_skipped(lab):
    end = run(lab.config(*LEAP, "predictor=momentum", "optimizer=sgd"))
    assert end.status == "skipped" and "needs Adam moments" in end.reason


def test_epochs_are_turned_into_steps():
    config = resolve(
        composed(
            "mode=leap", "predictor=linear", "+dataset.examples=22", "train.batch_size=4", "train.steps=6 epochs",
            "train.interval=1 epoch", "K=2 epochs", "eval.every=1 epoch", "schedule.warmup=2 epochs", "leap.gate=any",
        )
    )  # fmt: skip
    assert (config.train.steps, config.train.interval, config.eval.every, config.schedule.warmup) == (30, 5, 5, 10)
    assert config.horizons == [10]


def test_drawing_is_charged_and_done_where_a_loss_is_asked_for(lab, monkeypatch):
    """Not before the predictor's context is full, not by a rule that never looks; within the lap `verify`."""
    drawn, draw = [], Workload.draw

    def noted(workload, index):
        drawn.append((index, clocks[-1].running))
        draw(workload, index)

    clocks, made = [], Clock.__init__
    monkeypatch.setattr(Clock, "__init__", lambda self, *args: (clocks.append(self), made(self, *args))[1])
    monkeypatch.setattr(Workload, "draw", noted)
    trained(lab, monkeypatch, *LEAP, "predictor=linear", "suite=drawn")  # a context of two: proposals from step 8 on
    assert drawn == [(index, "verify") for index in range(len(drawn))] and len(drawn) >= 2
    drawn.clear()
    folder, _ = trained(lab, monkeypatch, *LEAP, "predictor=linear", "leap.rule=always", "suite=undrawn")
    assert drawn == [] and rows(folder, LEAPS)


def test_the_overhead_is_what_the_laps_say(lab, monkeypatch):
    folder, _ = trained(lab, monkeypatch, *LEAP, "predictor=linear", "suite=laps")
    last = rows(folder, EVALS)[-1]
    leaps = rows(folder, LEAPS)
    assert last["predict_s"] == pytest.approx(sum(leap["predict_s"] for leap in leaps))
    assert last["verify_s"] >= sum(leap["verify_s"] for leap in leaps) - 1e-9  # and the loss before each leap
    charged = [leap["charged_s"] for leap in leaps]
    assert charged == sorted(charged) and charged[0] > 0
    assert math.isfinite(last["adopt_s"])
    assert copy.deepcopy(last)["train_s"] > 0
