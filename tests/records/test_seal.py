"""A changed record is named with its path and not counted, and the rest of the tables is made all the same."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from helpers import reseal, script
from leapbench.names import CONFIG, META, PROPOSALS, REGIMES, SUMMARY
from leapbench.records.read import load_suite

GOLDEN = Path(__file__).parents[1] / "tables" / "golden"
sys.path.insert(0, str(GOLDEN))

from synthetic import write_run  # noqa: E402

SMALL = {"K": (50, 100), "steps": 400}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def drop_last_row(run: Path) -> None:
    lines = (run / PROPOSALS).read_text().splitlines(keepends=True)
    (run / PROPOSALS).write_text("".join(lines[:-1]))


def edit_seed_and_reseal(run: Path) -> None:
    """An edited seed with a seal that fits it, in the folder of the seed before."""
    edit(run / CONFIG, "seed: 0", "seed: 7")
    reseal(run).rename(run)


def cut_row_and_reseal(run: Path) -> None:
    edit(run / PROPOSALS, '"predictor": ', '"predic')
    reseal(run)


FAULTS = {
    "a file missing": (lambda run: (run / REGIMES).unlink(), f"{REGIMES}: missing, though the run wrote it"),
    "a row removed": (drop_last_row, f"{PROPOSALS}: has "),
    "a key renamed": (
        lambda run: edit(run / PROPOSALS, "loss_pred_nats", "loss_pred_nat"), f"{PROPOSALS}: changed since the run"
    ),
    "a number edited": (
        lambda run: edit(run / PROPOSALS, '"loss_pred_nats": ', '"loss_pred_nats": 1'), f"{PROPOSALS}: changed since"
    ),
    "a seed edited": (lambda run: edit(run / CONFIG, "seed: 0", "seed: 7"), f"{CONFIG}: changed since the run ended"),
    "a seed edited and resealed": (edit_seed_and_reseal, ": holds run "),
    "a commit edited": (lambda run: edit(run / META, "0123abc", "4567def"), f"{META}: changed since the run ended"),
    "the summary edited": (
        lambda run: edit(run / SUMMARY, '"steps": 400', '"steps": 100'), f"{SUMMARY}: changed since the run wrote it"
    ),
    "another schema": (lambda run: edit(run / SUMMARY, '"schema": 2', '"schema": 1'), f"{SUMMARY}: schema 1, but"),
    "no schema": (lambda run: (run / SUMMARY).write_text('{"status": "completed"}'), f"{SUMMARY}: schema None, but"),
    "a broken summary": (lambda run: (run / SUMMARY).write_text('{"status": "com'), f"{SUMMARY}:1: not readable"),
    "a list for a summary": (lambda run: (run / SUMMARY).write_text("[1]"), f"{SUMMARY}:1: not a JSON object"),
    "a folder renamed": (lambda run: run.rename(run.with_name("renamed")), ": holds run "),
    "a file added": (lambda run: (run / "leaps.jsonl").write_text("{}\n"), "leaps.jsonl: not written by the run"),
    "a broken row": (cut_row_and_reseal, f"{PROPOSALS}:1: "),
}  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "raw" / "s", seed, **SMALL)
    return tmp_path / "raw" / "s"


def run_of(suite: Path, seed: int) -> Path:
    return next(run for run in suite.iterdir() if f"  seed: {seed}\n" in (run / CONFIG).read_text())


@pytest.mark.parametrize(("change", "words"), FAULTS.values(), ids=FAULTS)
def test_a_changed_record_is_named_and_not_counted(suite, change, words):
    damaged = run_of(suite, 0)
    change(damaged)
    loaded = load_suite(suite)
    (row,) = loaded.runs[loaded.runs["status"] == "damaged"].to_dict("records")
    assert row["reason"].startswith(str(suite)) and words in row["reason"] and "\n" not in row["reason"]
    assert (loaded.runs["status"] == "completed").sum() == 2
    assert set(loaded.proposals["seed"]) == {1, 2}


def test_a_moved_suite_is_whole(suite, tmp_path):
    shutil.copytree(suite, tmp_path / "elsewhere")
    assert (load_suite(tmp_path / "elsewhere").runs["status"] == "completed").all()


def test_one_bad_run_stops_neither_its_suite_nor_the_others(suite, tmp_path, monkeypatch):
    for seed in range(2):
        write_run(suite.parent / "t", seed, **SMALL)
        write_run(suite.parent / "u", 0, (("linear", "quadratic")[seed],), **SMALL)
    damaged = run_of(suite, 0)
    drop_last_row(damaged)
    end = script(monkeypatch, "aggregate", "--results", str(suite.parent), "--out", str(tmp_path))
    assert end.status == 1
    first, second = end.err.splitlines()
    assert first.startswith(f"error: {damaged / PROPOSALS}: has ")
    assert second.startswith(f"error: {suite.parent / 'u'}: runs ")  # two runs of one training that disagree
    for name, seeds in (("s", 2), ("t", 2)):
        assert pd.read_csv(tmp_path / "tables" / name / "acceptance_strict.csv")["n_seeds"].max() == seeds
    assert f"damaged: {damaged / PROPOSALS}: has" in (tmp_path / "tables" / "s" / "acceptance_strict.md").read_text()


def test_what_a_run_writes_is_sealed(lab):
    from leapbench.training.run import run

    folder = run(lab.config("predictor=linear", "suite=sealed")).folder
    summary = json.loads((folder / SUMMARY).read_text())
    assert {CONFIG, META, PROPOSALS} <= summary["files"].keys()
    science = yaml.safe_load((folder / CONFIG).read_text())["science"]
    (row,) = load_suite(folder.parent).runs.to_dict("records")
    assert (row["status"], row["seed"]) == ("completed", science["seed"])
