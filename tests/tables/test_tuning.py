"""Tuned learning rates: what a method is called, which rate is picked, and how it is found again."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from helpers import reseal, script
from leapbench.cluster.sweep import specification
from leapbench.config.errors import ConfigError
from leapbench.config.tuned import Cell, method_of, tuned_lr
from leapbench.names import PROJECT
from leapbench.tables.tuning import Trial, TuningError, merged, pick

CELL = Cell("net", "data", "sgd", "cosine", "none")


def trial(lr: float, seed: int, loss: float, **changes: Any) -> Trial:
    known = {"cell": CELL, "run_id": f"run-{lr:g}-{seed}", "steps": 10, "interval": 5, "commit": "abc"}
    return Trial(lr=lr, seed=seed, loss=loss, **(known | changes))


def science(**changes: Any) -> dict[str, Any]:
    leap = {"rule": "strict", "gate": "any"}
    return {"mode": "leap", "predictors": {"linear": {}}, "K": [10], "leap": leap} | changes


# ---- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "linear/strict/10/any"),
        ({"leap": {"rule": "always", "gate": "confirmed"}, "K": [200]}, "linear/always/200/confirmed"),
        ({"predictors": {"pdt": {"mode": "accel_only"}}}, "pdt/strict/10/any"),
        ({"predictors": {}}, "none"),
        ({"mode": "observe"}, "none"),
    ],
)
def test_method(changes, name):
    assert method_of(science(**changes)) == name


def test_a_baseline_has_no_leap_keys():
    assert method_of({"mode": "leap", "predictors": {}}) == "none"


# ---- picking ---------------------------------------------------------------------------------------------------------


def test_the_lowest_mean_wins():
    losses = {0.1: (2.0, 2.2), 0.2: (1.0, 2.6), 0.4: (0.5, 4.0)}
    entry = pick([trial(lr, seed, loss[seed]) for lr, loss in losses.items() for seed in (0, 1)])[CELL]
    assert (entry["lr"], entry["at_edge"], entry["seeds"]) == (0.2, False, [0, 1])
    assert (entry["optimizer"], entry["schedule"], entry["method"]) == ("sgd", "cosine", "none")
    assert [point["mean"] for point in entry["grid"]] == [2.1, 1.8, 2.25]
    assert entry["grid"][1] == {"lr": 0.2, "mean": 1.8, "losses": [1.0, 2.6], "run_ids": ["run-0.2-0", "run-0.2-1"]}
    assert (entry["steps"], entry["interval"], entry["git_commit"]) == (10, 5, ["abc"])


@pytest.mark.parametrize(("best", "edge"), [(0.1, True), (0.2, False), (0.4, True)])
def test_the_edge_is_told(best, edge):
    entry = pick([trial(lr, 0, abs(lr - best)) for lr in (0.4, 0.1, 0.2)])[CELL]
    assert (entry["lr"], entry["at_edge"]) == (best, edge)


def test_one_diverged_seed_rules_a_rate_out():
    trials = [trial(0.1, 0, 3.0), trial(0.1, 1, 3.0), trial(0.2, 0, 1.0), trial(0.2, 1, math.inf)]
    entry = pick(trials)[CELL]
    assert entry["lr"] == 0.1
    assert (entry["grid"][1]["mean"], entry["grid"][1]["losses"]) == (None, [1.0, None])


def test_equal_losses_take_the_smaller_rate():
    assert pick([trial(0.2, 0, 1.0), trial(0.1, 0, 1.0)])[CELL]["lr"] == 0.1


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([trial(0.1, 0, 1.0), trial(0.1, 1, 1.0), trial(0.2, 1, 1.0)], "no run for lr=0.2 seed=0;"),
        ([trial(0.1, 0, 1.0), trial(0.1, 0, 2.0, run_id="twin")], "run-0.1-0 and twin both have lr=0.1 and seed=0"),
        ([trial(0.1, 0, 1.0), trial(0.2, 0, 1.0, steps=20)], r"\[\(10, 5\), \(20, 5\)\]"),
        ([trial(0.1, 0, math.inf), trial(0.2, 0, math.inf)], "every learning rate .* diverged; extend the grid downw"),
    ],
)
def test_a_grid_that_says_nothing_is_refused(trials, words):
    with pytest.raises(TuningError, match=words) as caught:
        pick(trials)
    assert str(caught.value).startswith("net/data, sgd, cosine, none: ")


def test_new_entries_take_the_place_of_known_ones():
    def entry(method: str, lr: float) -> dict[str, Any]:
        return {"optimizer": "sgd", "schedule": "cosine", "method": method, "lr": lr}

    found = merged([entry("pdt/a", 1.0), entry("none", 2.0)], [entry("none", 3.0), entry("average/a", 4.0)])
    assert found == [entry("none", 3.0), entry("average/a", 4.0), entry("pdt/a", 1.0)]


# ---- looking up ------------------------------------------------------------------------------------------------------


def config(lr: Any, **changes: Any) -> Any:
    names = {key: SimpleNamespace(name=getattr(CELL, key)) for key in ("model", "dataset", "schedule")}
    return SimpleNamespace(
        optimizer=SimpleNamespace(name="sgd", lr=lr), science=lambda: science(predictors={}, **changes), **names
    )


@pytest.fixture
def folder(tmp_path):
    entries = [
        {"optimizer": "sgd", "schedule": "cosine", "method": "none", "lr": 0.3},
        {"optimizer": "sgd", "schedule": "cosine", "method": "linear/strict/10/any", "lr": 0.15},
        {"optimizer": "adamw", "schedule": "cosine", "method": "none", "lr": 9.0},
    ]
    (tmp_path / "net_data.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path


def test_look_up(folder):
    assert tuned_lr(config("tuned"), folder) == 0.3
    linear = config("tuned")
    linear.science = science
    assert tuned_lr(linear, folder) == 0.15
    for text, lr in (("0.5 baseline", 0.15), ("1 baseline", 0.3), ("3 baseline", 0.9)):
        linear.optimizer.lr = text
        assert tuned_lr(linear, folder) == lr


def test_look_up_sees_a_new_tuning(folder):
    assert tuned_lr(config("tuned"), folder) == 0.3
    path = folder / "net_data.yaml"
    path.write_text(path.read_text().replace("0.3", "0.4"))
    assert tuned_lr(config("tuned"), folder) == 0.4


@pytest.mark.parametrize(
    ("lr", "changes", "words"),
    [
        (
            "tuned",
            {"schedule": "wsd"},
            "has no entry for sgd, wsd, none; run make sweep NAME=tune_data, then python",
        ),
        ("tuned", {"model": "other"}, "other_data.yaml does not exist"),
        ("best", {}, 'optimizer.lr=best is no number; give a number, tuned, or a multiple as in "0.5 baseline"'),
        ("-1 baseline", {}, "optimizer.lr=-1 baseline is no number"),
    ],
)
def test_what_is_not_known_is_one_line(folder, lr, changes, words):
    asked = config(lr)
    for key, name in changes.items():
        getattr(asked, key).name = name
    with pytest.raises(ConfigError) as caught:
        tuned_lr(asked, folder)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_method_that_is_not_tuned_names_its_sweep(folder):
    asked = config("tuned")
    asked.science = lambda: science(K=[20])
    with pytest.raises(ConfigError, match=r"linear/strict/20/any; .* scripts/tune.py tune_data_methods"):
        tuned_lr(asked, folder)


# ---- scripts/tune.py -------------------------------------------------------------------------------------------------


def write_run(suite: Path, lr: float, seed: int, verification: float | None, **changes: Any) -> Path:
    """A run whose last verification loss is given; None: it diverged. Its validation loss falls with the rate."""
    folder = suite / "new"
    folder.mkdir(parents=True)
    named = {key: {"name": getattr(CELL, key)} for key in ("model", "dataset", "schedule")}
    config = science(predictors={}) | named | {"optimizer": {"name": "sgd", "lr": lr}, "seed": seed}
    config |= {"train": {"steps": 10, "interval": 5}} | changes
    (folder / "config.yaml").write_text(yaml.safe_dump({"science": config}))
    (folder / "meta.json").write_text(json.dumps({"git_commit": "abc", "git_dirty": False}))
    status = "completed" if verification is not None else "diverged"
    losses = [(5, "verification", 0.001), (10, "validation", 1 / lr), (10, "verification", verification)]
    rows = [{"step": step, "split": split, "loss_nats": loss} for step, split, loss in losses]
    (folder / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"status": status, "reason": None}))
    return reseal(folder)


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """tune(suite, ...): the script's exit status or message, its stdout and its stderr."""
    places = ("--results", str(tmp_path / "raw"), "--out", str(tmp_path / "out"))
    return lambda *suites: script(monkeypatch, "tune", *suites, *places)


def test_the_script_writes_what_is_looked_up(tune, tmp_path):
    raw, path = tmp_path / "raw", tmp_path / "out" / "net_data.yaml"
    runs = {
        lr: [write_run(raw / "base", lr, seed, loss).name for seed, loss in enumerate(losses)]
        for lr, losses in {0.1: (2.0, 2.0), 0.3: (1.0, 1.2), 0.9: (1.5, None)}.items()
    }
    status, out, err = tune("base")
    assert (status, err) == (0, "")
    assert "sgd, cosine, none: lr=0.3 of [0.1, 0.3, 0.9]" in out
    assert tuned_lr(config("tuned"), tmp_path / "out") == 0.3
    text = path.read_text()
    assert text.startswith("# Learning rates tuned for net on data.")
    (entry,) = yaml.safe_load(text)
    assert entry["grid"][2] == {"lr": 0.9, "mean": None, "losses": [1.5, None], "run_ids": runs[0.9]}

    # A later suite adds its methods and leaves the rest as it is.
    for lr, loss in ((0.15, 2.0), (0.3, 1.0)):
        write_run(raw / "methods", lr, 0, loss, predictors={"linear": {}})
    status, out, err = tune("methods")
    assert status == 0
    assert (
        err == "warning: net/data, sgd, cosine, linear/strict/10/any: lr=0.3 is at the edge; extend the grid upwards\n"
    )
    assert yaml.safe_load(path.read_text())[0] == entry
    both = path.read_text()
    tune("methods", "base")
    assert path.read_text() == both


def test_the_script_wants_every_run_to_its_end(tune, tmp_path):
    suite = tmp_path / "raw" / "base"
    write_run(suite, 0.1, 0, 1.0)
    broken = write_run(suite, 0.2, 0, 1.0)
    (broken / "summary.json").unlink()
    status, _, _ = tune("base")
    assert status.endswith(f"tuning needs every run to its end; these have none: {broken.name} (partial)")
    assert not (tmp_path / "out").exists()


def test_the_script_wants_runs_of_mode_leap(tune, tmp_path):
    run = write_run(tmp_path / "raw" / "base", 0.1, 0, 1.0, mode="observe")
    assert tune("base")[0].endswith(f"base/{run.name}: mode=observe; rates are tuned with mode=leap")


# ---- what is committed -----------------------------------------------------------------------------------------------


def test_tuning_seeds_are_not_scored():
    seeds = {}
    for path in (PROJECT / "sweeps").glob("*.yaml"):
        spec = specification(path.stem)
        for own in spec.get("commands", [{}]):
            text = str((spec.get("axes", {}) | own.get("axes", {}))["seed"])
            first, _, last = text.partition("-")
            seeds.setdefault(path.stem.startswith("tune_"), set()).update(range(int(first), int(last or first) + 1))
    assert min(seeds[True]) >= 100 > max(seeds[False])
