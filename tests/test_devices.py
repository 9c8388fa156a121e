"""The same on a GPU as on the CPU: predictions, runs, resuming, leaps, clocks; with no GPU the CPU against itself."""

from dataclasses import replace

import pytest
import torch

import twins
from helpers import (
    ALL_PREDICTORS,
    ALL_PROTOCOLS,
    DROPOUT,
    EVERY_3_STEPS,
    PROBED,
    by_cell,
    interrupted,
    rows,
)
from leapbench.bench.costs import variants
from leapbench.config.remarks import remark
from leapbench.names import EVALS, LEAPS, PIPELINE, PROPOSALS
from leapbench.prediction.clock import Clock
from leapbench.prediction.distance import DistanceToTruth
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.wrapper import names as wrappers
from leapbench.training.prepare import say_if_slow
from leapbench.training.run import run

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
OBSERVED = (ALL_PREDICTORS, ALL_PROTOCOLS, *PROBED)


def moved(history, device):
    """The same history on another device."""
    snapshots = [
        replace(s, weights=s.weights.to(device), exp_avg=s.exp_avg.to(device), exp_avg_sq=s.exp_avg_sq.to(device))
        for s in history.snapshots
    ]
    return replace(history, snapshots=tuple(snapshots))


def completed(lab, *overrides):
    """The folder of a run."""
    end = run(lab.config(*overrides))
    assert end.status == "completed", end.reason
    return end.folder


def losses(folder, stream, *columns):
    """The columns of a stream as one tensor; what is missing is nan."""
    values = [[row[c] if row[c] is not None else float("nan") for c in columns] for row in rows(folder, stream)]
    return torch.tensor(values, dtype=torch.float64)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("name", sorted(variants()), ids="-".join)
def test_a_prediction_is_that_of_the_cpu(name, dtype, device):
    predictor: Predictor = variants()[name]
    history = twins.random_history(0, weights_dtype=dtype)
    expected, found = predictor.predict(history, 7), predictor.predict(moved(history, device), 7)
    assert found.device.type == device and found.dtype == torch.float32
    if "random" in name[0] or "shuffled" in name[0]:  # the generators of the devices differ
        assert found.isfinite().all()
    else:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    truth = history.now.weights.float() * 1.01
    there = DistanceToTruth(moved(history, device), truth.to(device))
    assert there.truth_norm == pytest.approx(float(truth.norm()), rel=1e-5)


@on_each_device
@pytest.mark.parametrize("extra", [(), ("history_device=cpu",)], ids=["history there", "history on the CPU"])
def test_an_observed_run_is_that_of_the_cpu(lab, extra, device):
    here = completed(lab, *OBSERVED, f"suite=here_{device}_{len(extra)}")
    there = completed(lab, *OBSERVED, f"device={device}", *extra, f"suite=there_{device}_{len(extra)}")
    assert by_cell(rows(here, PROPOSALS)).keys() == by_cell(rows(there, PROPOSALS)).keys()
    columns = ("loss_now_nats", "loss_pred_nats", "loss_true_nats", "rel_l2_to_true")
    ours, theirs = (losses(folder, PROPOSALS, *columns) for folder in (here, there))
    torch.testing.assert_close(theirs, ours, rtol=2e-2, atol=1e-3, equal_nan=True)


@on_each_device
def test_a_run_in_bfloat16(lab, device):
    folder = completed(lab, *OBSERVED, "train.precision=bfloat16", f"device={device}", f"suite=bf16_{device}")
    single = completed(lab, *OBSERVED, f"device={device}", f"suite=single_{device}")
    found, expected = (losses(run_folder, EVALS, "loss_nats") for run_folder in (folder, single))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert not torch.equal(found, expected)


@on_each_device
def test_a_run_continues_on_its_device_and_on_another(lab, monkeypatch, device):
    common = (*OBSERVED, *DROPOUT, *EVERY_3_STEPS, f"device={device}")
    whole = completed(lab, *common, f"suite=whole_{device}")
    expected = losses(whole, PROPOSALS, "loss_pred_nats", "loss_true_nats")
    for place in dict.fromkeys((device, "cpu")):
        again = (*common, f"suite=again_{device}_{place}")
        with interrupted(monkeypatch, 14):
            run(lab.config(*again))
        folder = completed(lab, *again, f"device={place}")
        found = losses(folder, PROPOSALS, "loss_pred_nats", "loss_true_nats")
        if place == device:
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3, equal_nan=True)
        assert found.shape == expected.shape


@on_each_device
@pytest.mark.parametrize("predictor", ["linear", "momentum", "trend"])
def test_leaps(lab, predictor, device):
    overrides = ("mode=leap", f"predictor={predictor}", "K=3", "leap.gate=any", "leap.rule=always")
    folder = completed(lab, *overrides, f"device={device}", f"suite=leaps_{device}")
    found = rows(folder, LEAPS)
    assert found and any(row["adopted"] for row in found)
    assert losses(folder, EVALS, "loss_nats").isfinite().all()


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("name", wrappers())
def test_a_wrapped_run_is_that_of_the_cpu(lab, name):
    words = ("mode=leap", "predictor=none", f"wrapper={name}")
    ours, theirs = (
        losses(completed(lab, *words, f"device={device}", f"suite=around_{device}"), EVALS, "loss_nats")
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(theirs, ours, rtol=2e-2, atol=1e-3)


@pytest.mark.gpu
@CUDA
def test_a_lap_waits_for_the_device():
    clock, device = Clock(torch.device("cuda")), torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with clock.lap("train") as lap:
        begin.record()
        for _ in range(50):
            a = a @ a / 64
        end.record()
    assert lap.seconds >= begin.elapsed_time(end) / 1000 > 0


@on_each_device
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pipeline_trains_there_as_here(lab, device, precision):
    extra = ("model=gpt2_nano_untied", "model.config.n_layer=2", "predictor=none", "mode=leap", "pipeline=layerpipe2",
             "pipeline.versions=ema_pipeline", f"train.precision={precision}")  # fmt: skip
    here = completed(lab, *extra, f"suite=pipeline_here_{device}_{precision}")
    there = completed(lab, *extra, f"device={device}", f"suite=pipeline_there_{device}_{precision}")
    tolerance = 1e-3 if precision == "float32" else 3e-2
    for stream, column in ((EVALS, "loss_nats"), (PIPELINE, "drift_l2")):
        torch.testing.assert_close(losses(there, stream, column), losses(here, stream, column), rtol=tolerance,
                                   atol=tolerance, equal_nan=True)  # fmt: skip


@pytest.mark.parametrize(("took", "said"), [(5.0, True), (3.0, False)])
def test_a_type_that_the_processor_does_not_know_is_slow_aloud(monkeypatch, capsys, took, said):
    seconds = iter([0.0, 1.0, 1.0, 1.0 + took])
    monkeypatch.setattr("leapbench.training.prepare.time.perf_counter", lambda: next(seconds))
    remark.cache_clear()
    say_if_slow(torch.bfloat16)
    line = "train.precision=bfloat16: this processor takes 5 times as long for a product of matrices in bfloat16 as in"
    assert (line in capsys.readouterr().err) == said
