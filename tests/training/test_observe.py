"""Proposals, cascades and the landscape: the rows that must be there, and what they must say."""

import math

import pytest
import torch

from helpers import (
    ALL_PREDICTORS,
    ALL_PROTOCOLS,
    ALWAYS_STABLE,
    CONTEXTS,
    DROPOUT,
    PROBED,
    by_cell,
    call,
    captured,
    flat,
    rows,
    untimed,
)
from leapbench.config.errors import ConfigError
from leapbench.names import CASCADE, EVALS, LANDSCAPE, PROPOSALS, REGIMES
from leapbench.prediction.candidate import Candidates
from leapbench.predictors.quadratic import Quadratic
from leapbench.training import cascade
from leapbench.training.run import run

PROTOCOLS = ("exact", "paper", "code")
STEPS, INTERVAL, HORIZONS = 24, 4, (3, 4, 8)


@pytest.fixture(scope="module")
def everything(lab):
    """A run with all predictors and protocols and both probes: its folder, its workload, its weights at every step."""
    weights = {}
    with pytest.MonkeyPatch.context() as patch:

        def keep(workload, index):
            weights.setdefault(index, flat(workload.model))  # cascades draw the same batches again, after the training

        with captured(patch, keep) as made:
            folder = run(lab.config(ALL_PREDICTORS, ALL_PROTOCOLS, *PROBED)).folder
        weights[STEPS] = flat(made[0].model)
    return folder, made[0], weights


def loss_at(workload, weights):
    """The verification loss with `weights` (N,) copied into the model."""
    parameters = list(workload.model.parameters())
    with torch.no_grad():
        for parameter, values in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(values.view_as(parameter))
    return workload.verification_loss(workload.model)


def test_there_is_one_row_per_cell_and_no_other(everything):
    folder, _, _ = everything
    expected = {
        (step, protocol, name, K)
        for step in range(INTERVAL, STEPS + 1, INTERVAL)
        for protocol in PROTOCOLS
        for name, context in CONTEXTS.items()
        for K in HORIZONS
        if step >= context * INTERVAL and step + K <= STEPS
    }
    assert set(by_cell(rows(folder, PROPOSALS))) == expected


def test_rows_come_in_the_order_of_the_truth(everything):
    folder, _, _ = everything
    truths = [row["step"] + row["K"] for row in rows(folder, PROPOSALS)]
    assert truths == sorted(truths)


def test_the_truth_is_the_loss_that_training_reached(everything):
    folder, workload, weights = everything
    recorded = {row["step"]: row["loss_nats"] for row in rows(folder, EVALS) if row["split"] == "verification"}
    between = {}
    for row in rows(folder, PROPOSALS):
        assert row["loss_now_nats"] == recorded[row["step"]]
        truth = row["step"] + row["K"]
        if truth not in recorded and truth not in between:
            between[truth] = loss_at(workload, weights[truth])
        assert row["loss_true_nats"] == (recorded | between)[truth]
    assert between, "no horizon ends between two checkpoints, so this test shows too little"


def test_regimes_are_those_of_their_step(everything):
    folder, _, _ = everything
    regimes = {(row["step"], row["protocol"]): row for row in rows(folder, REGIMES)}
    assert set(regimes) == {(step, name) for step in range(4, 25, 4) for name in PROTOCOLS}
    for (step, _), row in regimes.items():
        assert row["regime"] == ("unknown" if step == INTERVAL else "stable")
        assert row["confirmed"] == (step > INTERVAL)
        assert (row["similarity"] is None) == (step == INTERVAL)
        assert (row["tau_low"], row["tau_high"]) == (-3.0, -2.0)
        assert 0.0 <= row["underflow_share"] <= 1.0
    for row in rows(folder, PROPOSALS):
        own = regimes[row["step"], row["protocol"]]
        assert (row["regime"], row["confirmed"]) == (own["regime"], own["confirmed"])
    assert {regimes[s, "exact"]["underflow_share"] for s in range(4, 25, 4)} == {0.0}
    assert max(regimes[s, "code"]["underflow_share"] for s in range(4, 25, 4)) > 0.1


def test_persistence_is_the_loss_now(everything):
    folder, workload, weights = everything
    for row in rows(folder, PROPOSALS):
        if row["predictor"] == "persistence":
            if row["protocol"] == "code":
                stored = weights[row["step"]].half().float()
                assert row["loss_pred_nats"] == pytest.approx(loss_at(workload, stored), rel=1e-6)
            else:
                assert row["loss_pred_nats"] == row["loss_now_nats"]
            assert row["rel_l2_to_true"] == pytest.approx(row["rel_l2_now_to_true"], rel=1e-3)
            assert row["cosine"] is None


def candidate(name, weights, step, K):
    """What a few predictors say of `weights` (float32 snapshots), written down once more from their equations."""
    now, before = weights[step].double(), weights.get(step - INTERVAL)
    s = K / INTERVAL
    if name == "persistence":
        return now
    if name == "linear":
        return now + s * (now - before.double())
    if name == "quadratic":
        oldest = weights[step - 2 * INTERVAL].double()
        return now + s * (now - before.double()) + s * (s + 1) / 2 * (now - 2 * before.double() + oldest)
    window = torch.stack([weights[step - i * INTERVAL].double() for i in range(5)])
    if name == "average":
        return window.mean(0)
    times = -torch.arange(5, dtype=torch.float64)
    slope = ((times - times.mean())[:, None] * window).sum(0) / ((times - times.mean()) ** 2).sum()
    return window.mean(0) + (s - times.mean()) * slope


@pytest.mark.parametrize("name", ["persistence", "linear", "quadratic", "average", "trend"])
def test_distances_and_losses_equal_a_recomputation(everything, name):
    folder, workload, weights = everything
    chosen = [r for r in rows(folder, PROPOSALS) if r["protocol"] == "exact" and r["predictor"] == name]
    assert len(chosen) > 1
    for row in chosen:
        predicted = candidate(name, weights, row["step"], row["K"])
        truth, now = weights[row["step"] + row["K"]].double(), weights[row["step"]].double()
        moved, true_move = predicted - now, truth - now
        assert row["rel_l2_to_true"] == pytest.approx(float((predicted - truth).norm() / truth.norm()), rel=1e-3)
        assert row["rel_l2_now_to_true"] == pytest.approx(float(true_move.norm() / truth.norm()), rel=1e-4)
        if name != "persistence":
            cosine = float(moved @ true_move / moved.norm() / true_move.norm())
            assert row["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert row["loss_pred_nats"] == pytest.approx(loss_at(workload, predicted.float()), rel=1e-5)
        assert (row["status"], row["scale"]) == ("ok", 1.0)


def test_the_distance_is_that_of_the_candidate_whose_loss_is_given(lab, monkeypatch):
    weights, candidates = {}, {}
    scored = Candidates.loss_of

    def watched(candidates_, candidate):
        loss = scored(candidates_, candidate)
        candidates[loss] = candidate.clone()
        return loss

    monkeypatch.setattr(Candidates, "loss_of", watched)
    with captured(monkeypatch, lambda workload, index: weights.setdefault(index, flat(workload.model))) as made:
        folder = run(lab.config("predictor=momentum", "protocol=code", "seed=3")).folder
    weights[STEPS] = flat(made[0].model)
    chosen = [row for row in rows(folder, PROPOSALS) if row["predictor"] == "momentum"]
    assert {row["scale"] for row in chosen} - {1.0}, "no other scale won, so this test shows nothing"
    for row in chosen:
        candidate, truth = candidates[row["loss_pred_nats"]].double(), weights[row["step"] + row["K"]].double()
        assert row["rel_l2_to_true"] == pytest.approx(float((candidate - truth).norm() / truth.norm()), rel=1e-3)


@pytest.mark.parametrize("protocol", ["paper", "code"])
def test_a_protocol_alone_gives_the_rows_it_gives_in_company(lab, everything, protocol):
    folder, _, _ = everything
    alone = run(lab.config(ALL_PREDICTORS, f"protocol={protocol}", "cascade.enabled=true", *ALWAYS_STABLE)).folder
    for stream in (REGIMES, PROPOSALS, CASCADE):
        expected = [row for row in untimed(folder, stream) if row["protocol"] == protocol]
        assert untimed(alone, stream) == expected
    assert untimed(alone, EVALS) == untimed(folder, EVALS)


def test_folded_cells_equal_separate_runs(lab, tmp_path, monkeypatch):
    sweep = ("predictor=linear,momentum", "K=4,8", "train.steps=16")
    folded = call(monkeypatch, tmp_path, "-m", *lab.overrides(*sweep, "suite=folded"))
    assert folded.status == 0, folded.err
    assert "4 cells in 1 jobs" in folded.out
    (whole,) = (lab.results / "folded").iterdir()
    cuts = [(f"predictor={name}", f"K={K}", "train.steps=16") for name in ("linear", "momentum") for K in (4, 8)]
    parts = [run(lab.config(*cut, "suite=apart")).folder for cut in cuts]
    cells = by_cell(untimed(whole, PROPOSALS))
    seen = set()  # 16 steps are too few for average, which nobody asked for
    for part in parts:
        for cell, row in by_cell(untimed(part, PROPOSALS)).items():
            assert row == cells[cell]
            seen.add(cell)
        assert untimed(part, EVALS) == untimed(whole, EVALS)
    assert seen == set(cells)
    assert {predictor for _, _, predictor, _ in cells} == {"linear", "momentum", "persistence"}


def test_chains_of_linear_equal_one_long_prediction(everything):
    folder, workload, weights = everything
    chain = [r for r in rows(folder, CASCADE) if (r["predictor"], r["protocol"]) == ("linear", "exact")]
    starts = range(2 * INTERVAL, STEPS + 1, INTERVAL)
    expected = [(step, depth, K, link) for step in starts for depth, K in ((3, 4),) for link in range(1, depth + 1)]
    assert [(r["step"], r["depth"], r["K"], r["link"]) for r in chain] == expected
    proposed = by_cell(rows(folder, PROPOSALS))
    compared = 0
    for row in chain:
        long = candidate("linear", weights, row["step"], row["link"] * row["K"])
        now = weights[row["step"]].double()
        assert row["rel_l2_drift"] == pytest.approx(float((long - now).norm() / now.norm()), rel=1e-4)
        assert row["loss_nats"] == pytest.approx(loss_at(workload, long.float()), rel=1e-6)
        cell = (row["step"], "exact", "linear", row["link"] * row["K"])
        if cell in proposed:
            assert row["loss_nats"] == pytest.approx(proposed[cell]["loss_pred_nats"], rel=1e-6)
            compared += 1
    assert compared > 5


def test_who_is_chained_and_who_is_retrained(everything):
    folder, _, _ = everything
    found = {(row["protocol"], row["predictor"]) for row in rows(folder, CASCADE)}
    chained = set(CONTEXTS) - {"persistence"}
    assert found == {(protocol, name) for protocol in ("exact", "paper") for name in chained} | {("code", "momentum")}
    for row in rows(folder, CASCADE):
        assert row["step"] >= CONTEXTS[row["predictor"]] * INTERVAL
        assert (row["loss_nats"] is None) == (row["status"] == "nonfinite")


@pytest.mark.parametrize("protocol", ["exact", "code"])
def test_probes_leave_the_run_untouched(lab, protocol):
    common = ("predictor=[linear,momentum]", f"protocol={protocol}", "K=[4]", "train.steps=36", *DROPOUT)
    probed = run(lab.config(*common, *PROBED)).folder
    bare = run(lab.config(*common, *ALWAYS_STABLE)).folder
    assert rows(probed, CASCADE) and rows(probed, LANDSCAPE) and not rows(bare, CASCADE)
    for stream in (EVALS, REGIMES, PROPOSALS):
        assert untimed(probed, stream) == untimed(bare, stream)


def test_retrained_links_are_scored_without_dropout(lab, monkeypatch):
    modes = []
    scored = cascade.Workload.verification_loss

    def watched(workload, forward):
        if isinstance(forward, torch.nn.Module) and forward is not workload.model:
            modes.append(forward.training)
        return scored(workload, forward)

    monkeypatch.setattr(cascade.Workload, "verification_loss", watched)
    run(lab.config("predictor=momentum", "protocol=code", *PROBED, *DROPOUT, "K=[4]", "seed=1"))
    assert modes and not any(modes)


def test_the_landscape_is_the_loss_along_the_prediction(everything):
    folder, workload, weights = everything
    found = rows(folder, LANDSCAPE)
    assert {row["protocol"] for row in found} == {"exact"}
    proposed = by_cell(rows(folder, PROPOSALS))
    for row in found:
        if row["fraction"] == 1.0 and (cell := (row["step"], "exact", row["predictor"], row["K"])) in proposed:
            assert row["loss_nats"] == pytest.approx(proposed[cell]["loss_pred_nats"], rel=1e-6)
        if row["predictor"] == "linear":
            now, full = weights[row["step"]].double(), candidate("linear", weights, row["step"], row["K"])
            at = (now + row["fraction"] * (full - now)).float()
            assert row["loss_nats"] == pytest.approx(loss_at(workload, at), rel=1e-6)
    linear = [row for row in found if row["predictor"] == "linear"]
    assert [row["step"] for row in linear[:: len({r["fraction"] for r in linear})]] == list(range(8, 25, 4))
    for row in linear:
        if row["fraction"] in (0.25, 0.5):  # the parabola goes through these two
            f = row["fraction"]
            parabola = row["loss_now_nats"] + f * row["directional_derivative"] + f**2 / 2 * row["curvature"]
            assert row["loss_nats"] == pytest.approx(parabola, rel=1e-6)


def test_a_candidate_that_overflows_is_null_and_nonfinite(lab, monkeypatch):
    monkeypatch.setattr(Quadratic, "predict", lambda self, history, K: history.now.weights.float() * math.inf)
    monkeypatch.setattr(Quadratic, "coefficients", lambda self, steps, K: None)
    folder = run(lab.config("predictor=quadratic", "seed=2")).folder
    for row in rows(folder, PROPOSALS):
        broken = row["predictor"] == "quadratic"
        assert row["status"] == ("nonfinite" if broken else "ok")
        assert (row["loss_pred_nats"] is None) == broken == (row["rel_l2_to_true"] is None)


def test_a_context_that_never_fills_is_refused(lab):
    with pytest.raises(ConfigError, match="predictor=trend needs 5 snapshots"):
        run(lab.config("predictor=trend", "train.steps=22", "K=[3]"))
