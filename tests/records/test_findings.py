"""The lines that a run ends with, against its own records."""

import json

import pytest

from helpers import call, rows
from leapbench.names import EVALS, LEAPS, PROJECT, PROPOSALS, SUMMARY
from leapbench.records.findings import Acceptance, findings, tables_command
from leapbench.training.run import run


def command(lab, monkeypatch, *extra):
    """What `python train.py` prints, line by line, and the folder of its run."""
    end = call(monkeypatch, lab.root, *lab.overrides(*extra))
    assert (end.status, end.err) == (0, "")
    first, *lines = end.out.splitlines()
    return lines, lab.results / "default" / first.split()[0]


def test_a_run_that_observes_tells_its_losses_and_what_its_predictors_are_worth(lab, monkeypatch):
    lines, folder = command(lab, monkeypatch, "predictor=[trend,linear]")
    losses = [row["loss_nats"] for row in rows(folder, EVALS) if row["split"] == "validation"]
    assert lines[0].startswith(
        f"  validation loss {losses[-1]:.4g} nats, best {min(losses):.4g} at step 24; 24 steps, "
    )
    share = {}
    for name in ("trend", "linear", "persistence", "average"):
        own = [row for row in rows(folder, PROPOSALS) if row["predictor"] == name]
        share[name] = 100 * sum(row["loss_pred_nats"] < row["loss_now_nats"] for row in own) / len(own)
    assert "better than staying, of up to 14 proposals" in lines[1]
    for name, percent in share.items():
        assert f"{name} {percent:.0f} %" in lines[1]
    assert lines[2:] == [f"  tables: {tables_command('default', str(lab.results))}"]
    assert command(lab, monkeypatch, "predictor=[trend,linear]")[0] == lines  # it is complete: told again


def test_every_protocol_has_a_line_of_its_own(lab, monkeypatch):
    lines, _ = command(lab, monkeypatch, "predictor=momentum", "protocol=[exact,code]")
    assert [line.split(",")[0].strip() for line in lines[1:-1]] == ["protocol exact", "protocol code"]


def test_a_run_that_leaps_tells_what_it_adopted_and_skipped(lab, monkeypatch):
    words = ("mode=leap", "predictor=linear", "K=3", "leap.rule=always", "leap.gate=any")
    lines, folder = command(lab, monkeypatch, *words)
    leaps = rows(folder, LEAPS)
    assert len(leaps) > 0
    assert f"; {24 - 3 * len(leaps)} steps and {3 * len(leaps)} skipped, " in lines[0]
    assert lines[1] == f"  linear, K=3, rule always: proposals {len(leaps)}, leaps adopted {len(leaps)}"


def test_a_gate_that_stays_shut_is_named(lab, monkeypatch):
    shut = ("regime.tau_high=[2.0]", "mode=leap", "predictor=linear", "K=3", "leap.gate=confirmed")
    lines, _ = command(lab, monkeypatch, *shut)
    assert "proposals 0, leaps adopted 0; leap.gate=confirmed never opened, leap.gate=any" in lines[1]


def test_plain_training_and_what_is_skipped(lab, monkeypatch):
    assert len(command(lab, monkeypatch, "mode=leap", "predictor=none")[0]) == 2
    lines, _ = command(lab, monkeypatch, "optimizer=sgd", "predictor=[linear,momentum]")
    assert lines[2] == "  skipped momentum: needs Adam moments; optimizer=sgd keeps none"
    assert "linear " in lines[1] and "momentum" not in lines[1]


def test_images_have_an_accuracy(lab):
    config = lab.config("predictor=linear", "seed=5")
    folder = run(config).folder
    evals = rows(folder, EVALS)
    for number, row in enumerate(row for row in evals if row["split"] == "validation"):
        row["accuracy"] = 0.5 - 0.1 * number
    (folder / EVALS).write_text("".join(json.dumps(row) + "\n" for row in evals))
    assert ", accuracy 30.0 %, best 50.0 %; 24 steps" in findings(config, folder)[0]


def test_nothing_is_told_of_a_run_that_has_not_completed(lab, tmp_path):
    config = lab.config("predictor=linear")
    assert findings(config, tmp_path) == []
    (tmp_path / SUMMARY).write_text(json.dumps({"status": "diverged", "reason": "the loss became nan"}))
    assert findings(config, tmp_path) == []


@pytest.mark.parametrize("damage", ['{"step": 4', '{"step": 4}', "[]", '{"protocol": "exact", "predictor": 1}'])
def test_records_that_cannot_be_read_are_one_line(lab, monkeypatch, damage):
    _, folder = command(lab, monkeypatch, "predictor=linear", "seed=6")
    whole = (folder / PROPOSALS).read_text()
    (folder / PROPOSALS).write_text(f"{whole}{damage}\n")
    lines, _ = command(lab, monkeypatch, "predictor=linear", "seed=6")
    (folder / PROPOSALS).write_text(whole)
    assert lines[0] == f"  what {folder} holds is damaged or of another version; delete it to run anew"


def test_a_loss_that_is_not_finite_is_no_gain():
    acceptance = Acceptance()
    acceptance.add({"protocol": "exact", "predictor": "linear", "loss_now_nats": 2.0, "loss_pred_nats": loss}
                   for loss in (1.0, 2.0, 3.0, None))  # fmt: skip
    assert acceptance.percent() == {("exact", "linear"): 25.0}
    acceptance.add([])
    assert acceptance.proposed == {("exact", "linear"): 4}


@pytest.mark.parametrize(
    ("suite", "results", "words"),
    [("mine", "results/raw", "--suite mine"), ("a b", "/data/raw", "--suite 'a b' --results /data/raw")],
)
def test_the_command_is_for_the_folder_one_is_in(monkeypatch, tmp_path, suite, results, words):
    monkeypatch.chdir(PROJECT)
    assert tables_command(suite, results) == f"python scripts/aggregate.py {words}"
    monkeypatch.chdir(tmp_path)
    assert tables_command(suite, results) == f"python {PROJECT / 'scripts' / 'aggregate.py'} {words}"
