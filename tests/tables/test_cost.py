"""What a run cost in steps of plain AdamW: by hand, and what a control must cost."""

import json
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import captured, flat, script
from leapbench.bench import relative, report
from leapbench.names import LEAPS, SUMMARY
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables.cost import STEP, cost, spent, step_costs, step_of
from leapbench.training.run import run

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from synthetic_leap import write_leap_run

NOWHERE = "nowhere/bench_cost.csv"
FLOAT = {"train.precision": "float32"}
ADAMW = {"optimizer.name": "adamw", **FLOAT}
LINEAR = {"predictor": "linear", "overhead_s": 8.0, "step_s": 0.1}  # 400 steps: 40 s of training


@pytest.fixture
def suite(tmp_path):
    """Plain training and a method, with SGD and with AdamW."""
    for extra in (FLOAT, ADAMW):
        write_leap_run(tmp_path / "s", extra=extra)
        write_leap_run(tmp_path / "s", **LINEAR, extra=extra)
    return load_suite(tmp_path / "s")


def bench(runs, path, **changes):
    """A table as `make bench` writes it, in which a step of SGD costs 0.9."""
    rows = runs.loc[runs["optimizer"] == "sgd", STEP].drop_duplicates()
    rows = rows.assign(part="step", cost=0.9, seconds="wall", machine="one")
    pd.concat([rows, rows.assign(part="proposal", cost=55.0), rows.assign(model="other", cost=77.0)]).assign(
        **changes
    ).to_csv(path, index=False)
    return path


def test_costs_by_hand(suite, tmp_path):
    runs = spent(suite)
    frame = cost(runs, bench(runs, tmp_path / "b.csv"))
    assert list(frame) == ["run_id", "steps", "cost", "overhead_pct"] and frame["steps"].eq(400).all()
    keyed = runs.merge(frame, on=["run_id", "steps"]).set_index(["optimizer", runs["charged_s"] > runs["train_s"]])
    assert keyed["cost"].to_dict() == pytest.approx(
        {("sgd", False): 360, ("sgd", True): 360 * 1.2, ("adamw", False): 400, ("adamw", True): 480}
    )
    assert keyed.loc[("sgd", True), "overhead_pct"] == pytest.approx(100 * 8 / 48)
    assert keyed.loc[("sgd", False), "overhead_pct"] == 0


def test_a_slower_machine_changes_no_cost(suite, tmp_path):
    for extra in (FLOAT, ADAMW):
        write_leap_run(tmp_path / "slow", **{**LINEAR, "step_s": 0.3, "overhead_s": 24.0}, extra=extra)
    slow = spent(load_suite(tmp_path / "slow"))
    frame = cost(slow, bench(slow, tmp_path / "b.csv"))
    assert sorted(frame["cost"]) == pytest.approx([360 * 1.2, 480])


def test_plain_adamw_is_the_unit_and_needs_no_table(suite):
    runs = spent(suite)
    adamw = runs[runs["optimizer"] == "adamw"]
    assert sorted(cost(adamw, NOWHERE)["cost"]) == pytest.approx([400, 480])
    assert step_costs(adamw, NOWHERE).eq(1.0).all() and step_costs(adamw, NOWHERE).index.equals(adamw.index)


def test_an_observed_run_is_charged_its_training(tmp_path):
    write_leap_run(tmp_path / "s", mode="observe", overhead_s=5.0, extra=ADAMW)
    (row,) = cost(spent(load_suite(tmp_path / "s")), NOWHERE).to_dict("records")
    assert (row["cost"], row["overhead_pct"]) == (400, 0)


@pytest.mark.parametrize("key", ["optimizer", "wrapper", "model", "dataset", "batch_size", "tokens", "parameters"])
def test_a_step_that_was_not_measured_names_the_command(suite, tmp_path, key):
    runs = spent(suite)
    path = bench(runs, tmp_path / "b.csv", **{key: 3 if key in ("batch_size", "tokens", "parameters") else "x"})
    with pytest.raises(RecordError) as error:
        cost(runs, path)
    text = str(error.value)
    assert "\n" not in text and "no step of optimizer=sgd wrapper=none on fcn_small, digits (48 images" in text
    assert text.endswith('python scripts/bench.py --cost "model=fcn_small dataset=digits train.batch_size=48 '
                         'train.precision=float32"')  # fmt: skip
    with pytest.raises(RecordError, match="no step of optimizer=sgd"):
        cost(runs, NOWHERE)


def test_the_command_measures_that_step(lab, tmp_path, monkeypatch):
    """Of a run at the size that the yaml give it."""
    run_of = lab.config("optimizer=sgd", "predictor=none")
    runs = pd.DataFrame([step_of(run_of.science(), 5) | {"run_id": "a", "seconds": "processor"}])
    with pytest.raises(RecordError) as error:
        step_costs(runs, tmp_path / "b.csv")
    _, *words = shlex.split(str(error.value).partition("measure it with: python ")[2])
    found = []
    monkeypatch.setattr(relative, "measure", lambda config, *rest: found.append(step_of(config.science(), 5)) or [])
    monkeypatch.setattr(report, "cost_console", lambda rows: "")
    monkeypatch.setattr(report, "write_cost", lambda *rest: [])
    end = script(monkeypatch, "bench", *words, "--device", "cpu", "--out", str(tmp_path))
    assert end.status == 0, end.err
    work = [name for name in STEP if name not in ("optimizer", "wrapper")]
    assert pd.DataFrame(found)[work].equals(runs[work])


def test_rows_of_several_machines_are_refused(suite, tmp_path):
    runs = spent(suite)
    path = bench(runs, tmp_path / "b.csv")
    table = pd.read_csv(path)
    pd.concat([table, table.assign(machine="two")]).to_csv(path, index=False)
    with pytest.raises(RecordError, match=r"b.csv: rows of 2 machines \(one; two\), but costs are compared on one"):
        cost(runs, path)


def test_other_seconds_are_refused(suite, tmp_path):
    runs = spent(suite)
    path = bench(runs, tmp_path / "b.csv", seconds="processor")
    with pytest.raises(RecordError, match=r"measured in processor time, but run \w+ counts wall time"):
        cost(runs, path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00"])
def test_what_is_no_table_is_refused(suite, tmp_path, text):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(RecordError, match=r"b.csv: not a table of scripts/bench.py"):
        cost(spent(suite), tmp_path / "b.csv")


def test_persistence_is_plain_training_step_for_step_and_costs_its_overhead(lab, monkeypatch):
    """The null law: what proposes the current weights changes none of them, and pays for having asked."""
    weights, folders = {}, {}
    for predictor in ("none", "persistence"):
        seen = weights[predictor] = []
        settings = ("mode=leap", "K=3", "leap.gate=any", "leap.rule=strict", f"predictor={predictor}", "suite=law")
        with captured(monkeypatch, lambda workload, index, seen=seen: seen.append(flat(workload.model))) as made:
            folders[predictor] = run(lab.config(*settings)).folder
        seen.append(flat(made[0].model))
    assert len(weights["none"]) == len(weights["persistence"]) == 25
    assert all(map(torch.equal, weights["none"], weights["persistence"]))
    assert len((folders["persistence"] / LEAPS).read_text().splitlines()) == 5

    suite = load_suite(folders["none"].parent)
    runs = cost(spent(suite), NOWHERE).set_index("run_id")
    plain, persistence = (runs.loc[folders[name].name] for name in ("none", "persistence"))
    assert (plain["steps"], plain["cost"], plain["overhead_pct"]) == (24, 24, 0)
    totals = json.loads((folders["persistence"] / SUMMARY).read_text())["totals"]
    overhead_s = sum(totals[f"{lap}_s"] for lap in ("snapshot", "predict", "verify", "adopt"))
    assert persistence["steps"] == 24 and overhead_s > 0 and totals["adopt_s"] == 0
    # Laps at the last evaluation; what comes after it is recording.
    assert persistence["cost"] == pytest.approx(24 * (1 + overhead_s / totals["train_s"]), rel=1e-3)
    assert persistence["overhead_pct"] == pytest.approx(100 * (1 - 24 / persistence["cost"]))
