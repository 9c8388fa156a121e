"""Time to baseline, overhead and what comes after a leap: every definition on a few runs worked out by hand."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import reseal, script
from leapbench import tables
from leapbench.figures import figures_of_run, write_figures
from leapbench.names import PROJECT
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.documents import text_of
from leapbench.tables.methods import leaping, methods
from leapbench.tables.published_pdt import pdt_remarks
from leapbench.tables.time_to_baseline import leaps_of

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from regenerate import PUBLISHED  # noqa: E402
from synthetic import write_run  # noqa: E402
from synthetic_leap import write_leap_run  # noqa: E402

# 4 evaluations, 50 steps apart; best validation loss and accuracy at 150, lowest training loss at 150 too.
BASE = {
    "validation": [2.0, 1.5, 1.0, 1.2], "train": [2.1, 1.6, 1.05, 1.1], "accuracy": [0.2, 0.5, 0.7, 0.7],
    "verification": [2.0, 1.4, 1.1, 1.15],
}  # fmt: skip
# Reaches 1.0 exactly at 100, the training loss 1.05 at 150, the accuracy at 200; 4 s on top of 20 s of training.
FASTER = {
    "validation": [1.8, 1.0, 0.9, 0.8], "train": [2.0, 1.1, 1.05, 1.0], "accuracy": [0.3, 0.6, 0.69, 0.71],
    "overhead_s": 4.0,
}  # fmt: skip
NEVER = {"validation": [2.0, 1.9, 1.8, 1.7], "train": [2.0, 1.9, 1.8, 1.7], "accuracy": [0.1, 0.1, 0.2, 0.2]}


@pytest.fixture(scope="module")
def published():
    return tables.load_published(PUBLISHED)


def made(folder, published, name="time_to_baseline"):
    return tables.build(load_suite(folder), published, name)[0]


def at(frame, row, definition="ours", reference="tuned"):
    keyed = frame.set_index(["row", "definition", "reference"])
    return keyed.loc[(row, definition, reference)]


# Definitions


@pytest.fixture
def by_hand(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    return made(tmp_path / "s", published)


@pytest.mark.parametrize(
    ("definition", "steps", "own"),
    [("ours", 100, 150), ("pdt_loss", 150, 150), ("pdt_loss_total", 150, 200), ("pdt_accuracy", 200, 150)],
)
def test_each_definition_by_hand(by_hand, definition, steps, own):
    cell = at(by_hand.frame, "linear strict", definition)
    charged = steps * 0.1 + 4.0 * steps / 200
    assert (cell["reached"], cell["n_seeds"], cell["steps"]) == (1, 1, steps)
    assert cell["charged_steps"] == pytest.approx(charged / 0.1)
    assert cell["steps_ratio"] == pytest.approx(steps / own)
    assert cell["charged_steps_ratio"] == pytest.approx(charged / (own * 0.1))


def test_the_baseline_is_as_fast_as_itself(by_hand):
    ratios = by_hand.frame[by_hand.frame["row"] == "none cosine tuned"].set_index(["reference", "definition"])
    assert ratios.loc["tuned", "steps_ratio"].to_dict() == {
        "ours": 1, "pdt_loss": 1, "pdt_loss_total": 0.75, "pdt_accuracy": 1,
    }  # fmt: skip
    assert ratios.loc["tuned", "n_seeds"].eq(1).all() and ratios.loc["published", "n_seeds"].eq(0).all()


def test_charged_time_in_own_steps_does_not_see_the_machine(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="linear", **{**FASTER, "step_s": 0.3, "overhead_s": 12.0})
    table = made(tmp_path / "s", published)
    assert at(table.frame, "linear strict")["charged_steps_ratio"] == pytest.approx(0.8)
    columns = [*table.frame, *table.per_seed, *table.body(table.frame, False)]
    assert [name for name in columns if "charged_s_" in f"{name}_" or "second" in name] == []
    assert "second" not in table.header


def test_what_is_never_reached_has_no_time(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
    write_leap_run(tmp_path / "s", 0, "linear", **FASTER)
    write_leap_run(tmp_path / "s", 1, "linear", **NEVER)
    write_leap_run(tmp_path / "s", 0, "quadratic", **NEVER)
    table = made(tmp_path / "s", published)
    half = at(table.frame, "linear strict")
    assert (half["reached"], half["n_seeds"]) == (1, 2)
    assert np.isnan(half["steps_ratio"]) and np.isnan(half["charged_steps_ratio_ci_low"])
    assert half["steps_ratio_of_those_that_reached"] == pytest.approx(100 / 150)
    none = at(table.frame, "quadratic strict")
    assert (none["reached"], none["n_seeds"]) == (0, 1) and np.isnan(none["steps_of_those_that_reached"])
    lost = table.per_seed[(table.per_seed["row"] == "quadratic strict") & (table.per_seed["definition"] == "ours")]
    assert lost["steps"].isna().all() and not lost["reached"].any()
    tables.write(table, load_suite(tmp_path / "s"), tmp_path)
    text = (tmp_path / "time_to_baseline.md").read_text()
    assert "not reached (1 of 2)" in text and "not reached (0 of 1)" in text
    assert "**" not in text


def test_a_diverged_seed_reached_nothing(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
        gone = {"status": "diverged", "reason": "the loss became nan by step 150"} if seed else {}
        write_leap_run(tmp_path / "s", seed, "linear", **FASTER, **gone)
    table = made(tmp_path / "s", published)
    cell = at(table.frame, "linear strict")
    assert (cell["reached"], cell["n_seeds"], cell["seeds"], cell["diverged"]) == (1, 2, 1, 1)
    assert np.isnan(cell["steps_ratio"]) and cell["best_validation_nats"] == 0.8
    tables.write(table, load_suite(tmp_path / "s"), tmp_path)
    text = (tmp_path / "time_to_baseline.md").read_text()
    assert "1 + 1 diverged" in text and re.search(
        r"diverged: \w+ \(fcn_small, digits, linear, seed 1\): the loss", text
    )


@pytest.mark.parametrize("status", ["failed", "skipped", None])
def test_runs_that_did_not_end_are_named_and_not_counted(tmp_path, published, status):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
        lost = write_leap_run(tmp_path / "s", seed, "linear", **FASTER, status=status if seed else "completed")
    table = made(tmp_path / "s", published)
    cell = at(table.frame, "linear strict")
    assert (cell["reached"], cell["n_seeds"]) == (1, 1)
    tables.write(table, load_suite(tmp_path / "s"), tmp_path)
    assert f"{status or 'partial'}: {lost.name}" in (tmp_path / "time_to_baseline.md").read_text()


def test_seeds_are_paired(tmp_path, published):
    """Seed 1's baseline has a target of its own; the method's third seed has no baseline and does not count."""
    write_leap_run(tmp_path / "s", 0, **BASE)
    write_leap_run(tmp_path / "s", 1, **{**BASE, "validation": [2.0, 0.9, 1.0, 1.2]})
    for seed in range(3):
        write_leap_run(tmp_path / "s", seed, "linear", **FASTER)
    table = made(tmp_path / "s", published)
    cell = at(table.frame, "linear strict")
    assert (cell["reached"], cell["n_seeds"], cell["seeds"]) == (2, 2, 3)
    assert cell["steps_ratio"] == pytest.approx(1) and cell["steps"] == 125  # 2/3 and 3/2, 100 and 150 steps
    assert cell["steps_ratio_ci_low"] == pytest.approx(1 / cell["steps_ratio_ci_high"]) and cell["steps_ci_low"] == 0
    assert cell["p"] == cell["p_holm"] == 1
    cells = table.per_seed.set_index("seed")
    cells = cells[(cells["row"] == "linear strict") & (cells["definition"] == "ours") & (cells["reference"] == "tuned")]
    assert cells["target"].to_dict() == {0: 1.0, 1: 0.9}


def test_extra_looks_after_a_leap_reach_nothing(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="linear", **NEVER, leaps=(50,), followed={75: 0.1})
    cell = at(made(tmp_path / "s", published).frame, "linear strict")
    assert cell["reached"] == 0 and cell["best_validation_nats"] == 1.7


def test_texts_have_no_accuracy(tmp_path, published):
    text = {"model": "gpt2_nano", "dataset": "stdlib"}
    write_leap_run(tmp_path / "s", **{**BASE, "accuracy": None}, **text)
    write_leap_run(tmp_path / "s", predictor="linear", **{**FASTER, "accuracy": None}, **text)
    table = made(tmp_path / "s", published)
    assert set(table.frame["definition"]) == {"ours", "pdt_loss", "pdt_loss_total"}
    assert at(table.frame, "linear strict")["steps"] == 100
    assert "digits" not in tables.console(table, compact=False)


# References


def test_the_tuned_baseline_is_chosen_on_the_verification_split(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
        low = {"validation": [0.1, 0.1, 0.1, 0.1], "verification": [1.2, 1.2, 1.2, 1.2]}
        write_leap_run(tmp_path / "s", seed, schedule="constant", **{**BASE, **low})
        seductive = {"verification": [0.1, 0.1, 0.1, 0.1], "lr": 1.0, "lr_from": "given"}
        write_leap_run(tmp_path / "s", seed, schedule="wsd", **{**BASE, **seductive})
    table = made(tmp_path / "s", published)
    assert set(table.frame.loc[table.frame["reference"] == "tuned", "reference_row"]) == {"none cosine tuned"}
    lines = table.remarks["fcn_small, digits, 200 steps of 48"]
    assert "`none cosine tuned` 1.1, `none constant tuned` 1.2 nats, 2 seeds" in lines[0]
    assert "verification" in lines[0]


def test_the_published_setting_is_a_reference_too(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    slow = {"validation": [3.0, 2.0, 1.9, 1.8], "lr": 0.01, "lr_from": "published"}
    write_leap_run(tmp_path / "s", **{**BASE, **slow})
    write_leap_run(tmp_path / "s", schedule="constant", **{**BASE, **slow, "validation": [0.1] * 4})
    frame = made(tmp_path / "s", published).frame
    assert at(frame, "none cosine tuned", reference="published")["steps_ratio"] == 0.5
    assert at(frame, "none cosine published")["reached"] == 0
    assert at(frame, "none cosine tuned", reference="published")["reference_row"] == "none cosine published"


def test_a_method_is_compared_with_the_baseline_of_its_own_schedule_too(tmp_path, published):
    better = {"validation": [2.0, 1.0, 0.7, 0.5], "verification": [2.0, 1.0, 0.7, 0.5]}
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", schedule="wsd", **{**BASE, **better})
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    frame = made(tmp_path / "s", published).frame
    # The best tuned baseline decays and ends at 0.5, which nothing else reaches; the cosine's best is 1.0 at step 150.
    assert at(frame, "linear strict")["reference_row"] == "none wsd tuned"
    assert at(frame, "linear strict")["reached"] == 0
    own = at(frame, "linear strict", reference="schedule")
    assert own["reference_row"] == "none cosine tuned"
    assert (own["reached"], own["steps_ratio"]) == (1, pytest.approx(100 / 150))
    assert at(frame, "none wsd tuned", reference="schedule")["steps_ratio"] == 1.0
    assert at(frame, "none cosine tuned", reference="schedule")["steps_ratio"] == 1.0


def test_a_missing_baseline_names_the_command_that_runs_it(tmp_path, published, monkeypatch):
    for seed in range(2):
        write_leap_run(tmp_path / "raw" / "s", seed, "linear", **FASTER)
    args = ["--results", str(tmp_path / "raw"), "--out", str(tmp_path)]
    status, said, _ = script(monkeypatch, "aggregate", *args)
    assert status == 0
    line = next(line for line in said.splitlines() if "no time_to_baseline: No tuned baseline" in line)
    assert "fcn_small, digits, 200 steps of 48 has not been run to its end without a predictor" in line
    assert (
        "python train.py -m suite=s mode=leap predictor=none model=fcn_small dataset=digits optimizer=sgd "
        "schedule=constant,cosine,wsd optimizer.lr=tuned train.steps=200 train.interval=50 train.batch_size=48 "
        "eval.every=50 seed=0,1 runs it"
    ) in line
    assert not (tmp_path / "tables/s/time_to_baseline.csv").exists()
    assert script(monkeypatch, "aggregate", *args, "--only", "time_to_baseline")[0] == 0
    frame = pd.read_csv(tmp_path / "tables/s/time_to_baseline.csv")
    assert frame["n_seeds"].eq(0).all() and frame["best_validation_nats"].eq(0.8).all()
    assert "missing" in (tmp_path / "tables/s/time_to_baseline.md").read_text()


PLAIN = {**BASE, "lr_from": "given"}


def test_without_a_tuned_baseline_plain_training_takes_its_place(tmp_path, published, monkeypatch):
    for seed in range(2):
        write_leap_run(tmp_path / "raw" / "s", seed, **PLAIN)
        write_leap_run(tmp_path / "raw" / "s", seed, "linear", **FASTER, leaps=(50,), lr_from="given")
    end = script(monkeypatch, "aggregate", "--results", str(tmp_path / "raw"), "--out", str(tmp_path))
    assert (end.status, end.err) == (0, "")
    assert "2 rows compared with plain training, because no baseline is tuned" in end.out
    frame = pd.read_csv(tmp_path / "tables/s/time_to_baseline.csv")
    assert set(frame["reference"]) == {"plain", "schedule", "published"}
    cell = at(frame, "linear strict", reference="plain")
    assert (cell["reference_row"], cell["steps_ratio"]) == ("none cosine given", pytest.approx(100 / 150, rel=1e-5))
    assert at(frame, "linear strict", reference="schedule")["steps_ratio"] == cell["steps_ratio"]
    text = (tmp_path / "tables/s/time_to_baseline.md").read_text()
    assert (
        "No tuned baseline: compared with plain training as it was run, `none cosine given`, lr 0.1, 2 seeds." in text
    )
    assert "optimizer.lr=tuned" in text and "| 0.667" in text
    after = (tmp_path / "tables/s/after_leap.md").read_text()
    assert "No tuned baseline: minus `none cosine given`" in after
    drawn = script(monkeypatch, "report", "--results", str(tmp_path / "raw"), "--out", str(tmp_path))
    assert drawn.status == 0 and "time_to_baseline__" in drawn.out and "loss_curves__" in drawn.out


def test_a_tuned_baseline_comes_first_and_one_that_diverged_is_not_replaced(tmp_path, published):
    better = {**PLAIN, "verification": [0.1] * 4}
    write_leap_run(tmp_path / "s", **better)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", model="vit_small", **better)
    write_leap_run(tmp_path / "s", model="vit_small", **BASE, status="diverged", reason="nan")
    write_leap_run(tmp_path / "s", model="vit_small", predictor="linear", **FASTER)
    table = made(tmp_path / "s", published)
    assert "plain" not in set(table.frame["reference"]) and len(table.problems) == 1
    assert at(table.frame[table.frame["model"] == "fcn_small"], "linear strict")["reference_row"] == "none cosine tuned"


def test_of_several_plain_runs_the_best_on_the_verification_split(tmp_path, published):
    for lr, loss in ((0.1, 1.1), (0.2, 0.9), (0.3, 1.0)):
        write_leap_run(tmp_path / "s", **{**PLAIN, "verification": [2.0, loss, loss, loss]}, lr=lr)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    frame = made(tmp_path / "s", published).frame
    for reference in ("plain", "schedule"):
        assert at(frame, "linear strict", reference=reference)["reference_row"] == "none cosine given lr=0.2"
    assert not frame.duplicated(["row", "reference", "definition"]).any()


def test_plain_training_may_have_been_observed_and_is_charged_its_training(tmp_path, published):
    write_leap_run(tmp_path / "s", **PLAIN, mode="observe", overhead_s=5.0)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    suite = load_suite(tmp_path / "s")
    cell = at(tables.build(suite, published, "time_to_baseline")[0].frame, "linear strict", reference="plain")
    assert cell["charged_steps_ratio"] == pytest.approx((10 + 4 / 2) / 15)
    assert tables.without_target(suite) == []
    write_leap_run(tmp_path / "s", **BASE)  # with plain training of its own mode=leap needs no other
    assert len(methods(leaping(load_suite(tmp_path / "s")))) == 2


def test_a_suite_of_a_sweep_names_the_sweep(tmp_path, published):
    write_leap_run(tmp_path / "ttb_embedded", predictor="linear", **FASTER)
    lines = made(tmp_path / "ttb_embedded", published).remarks["fcn_small, digits, 200 steps of 48"]
    assert "make sweep NAME=ttb_embedded runs it" in lines[0]


def test_a_diverged_baseline_is_an_error_and_other_workloads_are_written(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    gone = write_leap_run(raw / "s", model="vit_small", **BASE, status="diverged", reason="nan")
    write_leap_run(raw / "s", predictor="linear", model="vit_small", **FASTER)
    write_leap_run(raw / "s", **BASE)
    write_leap_run(raw / "s", predictor="linear", **FASTER)
    end = script(monkeypatch, "aggregate", "--results", str(raw), "--out", str(tmp_path))
    errors = end.err.splitlines()
    assert end.status == 1 and len(errors) == 1 and errors[0].startswith("error: ")
    assert "vit_small, digits, 200 steps of 48: the tuned baseline diverged" in errors[0] and gone.name in errors[0]
    frame = pd.read_csv(tmp_path / "tables/s/time_to_baseline.csv")
    assert at(frame[frame["model"] == "fcn_small"], "linear strict")["n_seeds"] == 1
    assert frame.loc[frame["model"] == "vit_small", "n_seeds"].eq(0).all()


def test_a_schedule_that_diverged_is_no_reference(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
        best = {**BASE, "verification": [0.1] * 4}
        write_leap_run(tmp_path / "s", seed, schedule="wsd", **best, status="diverged" if seed else "completed")
    table = made(tmp_path / "s", published)
    assert not table.problems
    assert set(table.frame["reference_row"].dropna()) == {"none cosine tuned"}


# Rows


def test_rows_are_named_by_what_tells_them_apart(tmp_path):
    suite = tmp_path / "s"
    for seed in range(2):
        write_leap_run(suite, seed)
        write_leap_run(suite, seed, lr_from="published", lr=0.01)
        for rule in ("always", "strict"):
            write_leap_run(suite, seed, "linear", rule)
        write_leap_run(suite, seed, "quadratic", K=10)
        write_leap_run(suite, seed, "quadratic", K=20)
        write_leap_run(suite, seed, "dmd", schedule="wsd")
        write_leap_run(suite, seed, "dmd", lr=0.2)
        write_leap_run(suite, seed, "trend", lr=0.2)
        write_leap_run(suite, seed, "trend", lr=0.4)
        for gate in ("any", "stable"):
            write_leap_run(suite, seed, "momentum", extra={"leap.gate": gate, "optimizer.lr": 0.1 + (gate == "any")})
        write_leap_run(suite, seed, "masked_linear", "always")
        write_leap_run(suite, seed, "persistence")
    runs = methods(load_suite(suite))
    assert list(runs["row"].drop_duplicates()) == [
        "none cosine tuned", "none cosine published", "persistence strict", "masked_linear always", "linear strict",
        "linear always", "quadratic strict K=10", "quadratic strict K=20", "momentum strict gate=any",
        "momentum strict gate=stable", "trend strict lr=0.2", "trend strict lr=0.4", "dmd strict cosine",
        "dmd strict wsd",
    ]  # fmt: skip
    assert runs.groupby("row")["seed"].nunique().eq(2).all()
    assert list(runs["kind"].drop_duplicates()) == ["baseline", "control", "method"]


def test_configs_that_differ_in_a_key_that_one_has_are_two_rows(tmp_path):
    write_leap_run(tmp_path / "s", predictor="linear")
    write_leap_run(tmp_path / "s", predictor="linear", extra={"leap.new": 1})
    assert sorted(methods(load_suite(tmp_path / "s"))["row"]) == ["linear strict", "linear strict (2)"]


def test_workloads_do_not_mix(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER, model="vit_small")
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER, extra={"train.batch_size": 96})
    frame = made(tmp_path / "s", published).frame
    ours = frame[(frame["row"] == "linear strict") & (frame["definition"] == "ours") & (frame["reference"] == "tuned")]
    assert ours.set_index(["model", "batch_size"])["n_seeds"].to_dict() == {
        ("fcn_small", 48): 1, ("fcn_small", 96): 0, ("vit_small", 48): 0,
    }  # fmt: skip


# What stands beside


def test_means_over_seeds_of_what_a_run_measures(tmp_path, published):
    for seed, drop in ((0, 0.0), (1, 0.2)):
        write_leap_run(tmp_path / "s", seed, **BASE)
        lower = {**FASTER, "validation": [1.8, 1.0, 0.9 - 2 * drop, 0.8 - drop]}
        write_leap_run(tmp_path / "s", seed, "linear", **lower, leaps=(50, 100) if seed else (50,), rejected=(150,))
    cell = at(made(tmp_path / "s", published).frame, "linear strict")
    assert cell["final_validation_nats"] == pytest.approx(0.7)
    assert cell["best_validation_nats"] == pytest.approx((0.8 + 0.5) / 2)
    assert cell["best_validation_nats_ci_low"] < cell["best_validation_nats"] < cell["best_validation_nats_ci_high"]
    assert cell["best_accuracy_pct"] == pytest.approx(71)
    assert (cell["leaps_proposed"], cell["leaps_adopted"], cell["changed_pct"]) == (2.5, 1.5, 25)
    assert cell["overhead_pct"] == pytest.approx(100 * 4 / 24)
    assert pd.isna(at(made(tmp_path / "s", published).frame, "none cosine tuned")["leaps_proposed"])


def test_the_published_reductions_of_pdt_stand_beside_pdt_as_published(tmp_path, published):
    as_run = {"_target_": "x", "variant": "code", "mode": "both"}
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="pdt", rule="always", **FASTER, extra={"predictors.pdt": as_run})
    half = as_run | {"mode": "accel_only"}
    write_leap_run(tmp_path / "s", predictor="pdt", rule="always", **FASTER, extra={"predictors.pdt": half})
    table = made(tmp_path / "s", published)
    told = table.frame.dropna(subset=["published_pct"])
    assert set(told["row"]) == {"pdt always mode=both"} and set(told["published_model"]) == {"fcn"}
    assert told.groupby("definition")["published_pct"].first().to_dict() == {
        "pdt_accuracy": 31.81, "pdt_loss_total": 39.59,
    }  # fmt: skip
    assert "published: PDT, fcn" in tables.console(table, compact=False)


def test_what_pdts_published_reductions_divide_by_is_said_beside_them(tmp_path, published):
    """The same run under both definitions; and the scheduler that our rows leave out."""
    as_run = {"predictors.pdt": {"_target_": "x", "variant": "code", "mode": "both"}}
    for model in ("fcn_small", "resnet_small"):
        write_leap_run(tmp_path / "s", **BASE, model=model)
        write_leap_run(tmp_path / "s", predictor="pdt", rule="always", **FASTER, model=model, extra=as_run)
        write_leap_run(tmp_path / "s", predictor="average", **FASTER, model=model)
    remarks = made(tmp_path / "s", published).remarks
    fcn, resnet = ("\n".join(lines) for lines in remarks.values())
    for text in (fcn, resnet):
        assert (
            "reductions (10 to 40 %) divide its time to the baseline's lowest training loss by the baseline's" in text
        )
        assert (
            "turns `pdt always` from 1.200 into 0.900 (tuned baseline)" in text
        )  # 180 of its steps over 150, over 200
    assert "The published rows of resnet50 also slowed PDT down" in resnet and "slowed" not in fcn


def test_on_our_text_that_definition_alone_turns_a_loss_into_a_gain(published):
    """The committed run of PDT on the embedded text."""
    frame = pd.read_csv(
        PROJECT / "results/tables/ttb_embedded/time_to_baseline.csv", keep_default_na=False, na_values=[""]
    )
    text = frame[frame["dataset"] == "stdlib"].assign(options=frame["options"].fillna(""))
    ratios = text[(text["row"] == "pdt always") & (text["reference"] == "schedule")].set_index("definition")
    ours, theirs = (f"{ratios.loc[name, 'charged_steps_ratio']:.3f}" for name in ("pdt_loss", "pdt_loss_total"))
    assert float(ours) > 1 > float(theirs)
    assert (
        f"`pdt always` from {ours} into {theirs} (same schedule's tuned baseline)"
        in pdt_remarks(text, {"none"}, published.pdt)[0]
    )


@pytest.mark.parametrize(("best", "shown"), [(2.303, "diverges: 2.303"), (2.2, "2.200")])
def test_a_method_that_was_never_better_than_chance_diverges(tmp_path, published, best, shown):
    ten = {"dataset.image": {"classes": 10}}
    write_leap_run(tmp_path / "s", **BASE, extra=ten)
    chance = {"validation": [best, 9.0, 30.0, 90.0], "train": [2.4, 9.0, 30.0, 90.0], "accuracy": [0.1] * 4}
    write_leap_run(tmp_path / "s", predictor="pdt_nonselective", rule="always", **chance, extra=ten)
    body = tables.console(made(tmp_path / "s", published), compact=False)
    assert shown in body and ("diverges" in body) == (best > 2.3)


def test_a_leap_at_an_intervals_start_has_no_loss_at_its_own_step(tmp_path, published):
    for at_start in (False, True):
        suite = tmp_path / str(at_start)
        write_leap_run(suite, **BASE)
        extra = {"leap.at": "start"} if at_start else {}
        write_leap_run(suite, predictor="pdt", rule="always", **FASTER, leaps=(100,), extra=extra)
        frame = made(suite, published, "after_leap").frame.set_index("after")
        assert (frame.loc[0, "n_leaps"], frame.loc[50, "n_leaps"]) == (0 if at_start else 1, 1)


def test_overhead_by_hand(tmp_path, published):
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER, leaps=(50,))
    frame = made(tmp_path / "s", published, "leap_overhead").frame.set_index("row")
    shares = frame.loc["linear strict"]
    assert shares["overhead_pct"] == pytest.approx(100 * 4 / 24) == shares["verify_pct"]
    assert shares["predict_pct"] == 0 and shares["charged_s"] == pytest.approx(24) and shares["leaps_proposed"] == 1
    assert frame.loc["none cosine tuned", "overhead_pct"] == 0


# After a leap


def test_after_a_leap_by_hand(tmp_path, published):
    """At 100 the run has been charged 120 of its steps: the baseline, from 1.5 at 100 to 1.0 at 150, had 1.3."""
    write_leap_run(tmp_path / "s", **BASE)
    write_leap_run(tmp_path / "s", schedule="wsd", **{**BASE, "validation": [9.0] * 4})
    write_leap_run(tmp_path / "s", predictor="linear", **FASTER, leaps=(100,), rejected=(150,), followed={125: 5.0})
    write_leap_run(tmp_path / "s", predictor="quadratic", **FASTER)
    table = made(tmp_path / "s", published, "after_leap")
    frame = table.frame.set_index(["row", "after"])
    own = frame.loc["linear strict"]
    assert own["n_leaps"].to_dict() == {0: 1, 50: 1, 100: 1, 200: 0}
    assert own.loc[0, "excess_nats"] == pytest.approx(1.0 - 1.3)
    # 180 of 200: between 1.0 and 1.2; beyond its end the baseline keeps 1.2.
    assert own.loc[50, "excess_nats"] == pytest.approx(0.9 - 1.12)
    assert own.loc[100, "excess_nats"] == pytest.approx(0.8 - 1.2)
    assert frame.loc["quadratic strict", "n_leaps"].eq(0).all()
    assert "none cosine tuned" not in frame.index


def test_leaps_of_one_seed_count_as_one(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
    write_leap_run(tmp_path / "s", 0, "linear", validation=[2.5, 2.0, 1.5, 1.7], leaps=(50, 100, 150))
    write_leap_run(tmp_path / "s", 1, "linear", validation=[2.0, 1.6, 1.0, 1.2], leaps=(100,))
    cell = made(tmp_path / "s", published, "after_leap").frame.set_index("after").loc[0]
    # The leap at 150 of 200 is not followed for 100 steps, as the others are.
    assert (cell["n_seeds"], cell["n_leaps"]) == (2, 3)
    assert cell["excess_nats"] == pytest.approx((0.5 + 0.1) / 2)


def test_a_cascade_is_one_leap(tmp_path):
    write_leap_run(tmp_path / "s", **BASE)
    run = write_leap_run(tmp_path / "s", predictor="linear", **FASTER, leaps=(100,))
    row = (run / "leaps.jsonl").read_text()
    (run / "leaps.jsonl").write_text(row + row.replace('"link": 1', '"link": 2'))
    reseal(run)
    published = tables.load_published(PUBLISHED)
    frame = made(tmp_path / "s", published, "after_leap").frame
    assert frame.loc[frame["after"] == 0, "n_leaps"].eq(1).all()
    assert at(made(tmp_path / "s", published).frame, "linear strict")["leaps_adopted"] == 2


# Suites, scripts, figures


def test_tables_follow_what_the_suite_holds(tmp_path, published):
    write_run(tmp_path / "observed", 0, K=(50,), steps=400)
    write_run(tmp_path / "mixed", 0, K=(50,), steps=400)
    for folder in ("leapt", "mixed"):
        write_leap_run(tmp_path / folder, **BASE)
        write_leap_run(tmp_path / folder, predictor="linear", **FASTER, leaps=(50,))
    write_leap_run(tmp_path / "plain", **BASE)
    names = {
        folder: {table.name for table in tables.build(load_suite(tmp_path / folder), published)}
        for folder in ("observed", "leapt", "mixed", "plain")
    }
    assert names["leapt"] == set(tables.LEAPT)
    assert names["plain"] == {"time_to_baseline"}  # no leap, so nothing of leaps
    assert not names["observed"] & set(tables.LEAPT) and "acceptance_strict" in names["observed"]
    assert names["mixed"] == names["observed"] | names["leapt"]


def test_leaps_do_not_enter_the_tables_of_observed_runs(tmp_path, published):
    write_run(tmp_path / "alone", 0, K=(50,), steps=400)
    write_run(tmp_path / "mixed", 0, K=(50,), steps=400)
    write_leap_run(tmp_path / "mixed", 7, "linear", **FASTER, model="gpt2_nano", dataset="stdlib", status="failed")
    for name in ("regime_distribution", "acceptance_strict"):
        alone, mixed = (made(tmp_path / folder, published, name) for folder in ("alone", "mixed"))
        pd.testing.assert_frame_equal(alone.frame, mixed.frame)
        assert alone.header == mixed.header


@pytest.mark.parametrize("statuses", [("completed",), (None,), ("diverged", "skipped")])
def test_no_suite_is_too_small(tmp_path, published, statuses):
    for seed, status in enumerate(statuses):
        write_leap_run(tmp_path / "s", seed, "linear", **FASTER, status=status)
    suite = load_suite(tmp_path / "s")
    assert tables.build(suite, published) == []  # nothing was proposed, and there is nothing to compare with
    assert tables.without_target(suite)
    for name in tables.LEAPT:
        (table,) = tables.build(suite, published, name)
        tables.write(table, suite, tmp_path / "out")
        tables.console(table, compact=True)
    assert len(leaps_of(suite).rows) == 1


def test_scripts_take_a_mixed_suite(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    write_run(raw / "s", 0, (), K=(50,), steps=400)
    for seed in range(2):
        write_leap_run(raw / "s", seed, **BASE)
        write_leap_run(raw / "s", seed, "linear", **FASTER, leaps=(50, 100))
    args = ["--results", str(raw), "--out", str(tmp_path)]
    status, said, _ = script(monkeypatch, "aggregate", *args)
    assert status == 0
    assert "time_to_baseline: 2 rows of 1 workload, 32 times to a target" in said and "linear strict" in said
    assert script(monkeypatch, "report", *args).status == 0
    page = tmp_path / "tables" / "s" / "README.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert all((page.parent / link).is_file() for link in links)
    drawn = {Path(link).name.partition("__")[0] for link in links if link.endswith(".png")}
    assert drawn == {"loss_regimes", "similarity", "time_to_baseline", "loss_curves", "overhead", "after_leap"}
    assert (tmp_path / "tables/s/time_to_baseline.tex").read_text().count(r"\toprule") == 1


def test_figures_of_a_single_run(tmp_path):
    write_leap_run(tmp_path / "s", **BASE)
    run = write_leap_run(tmp_path / "s", predictor="linear", **FASTER, leaps=(50,))
    before = sorted(run.iterdir())
    paths = figures_of_run(run, tmp_path / "figures")
    assert sorted(run.iterdir()) == before
    assert set(paths) == {"loss_curves", "overhead"} and all(path.is_file() for path in paths.values())


def test_figures_with_all_that_can_be_missing(tmp_path, published):
    for seed in range(2):
        write_leap_run(tmp_path / "s", seed, **BASE)
        write_leap_run(tmp_path / "s", seed, "linear", **FASTER, leaps=(50,))
        write_leap_run(tmp_path / "s", seed, "quadratic", **NEVER)
        write_leap_run(tmp_path / "s", seed, "momentum", "always", **NEVER, status="diverged")
        write_leap_run(tmp_path / "s", seed, "average", validation=[2.0, None, None, 1.0], leaps=(100,))
    suite = load_suite(tmp_path / "s")
    built = tables.build(suite, published)
    from leapbench.tables.acceptance import score

    paths = write_figures(suite, score(suite), built, published, tmp_path / "out")
    assert {path.name.partition("__")[0] for path in paths} == {
        "time_to_baseline", "loss_curves", "overhead", "after_leap",
    }  # fmt: skip


# README


def test_the_headline_of_a_leap_suite(tmp_path, published):
    for seed in range(7):
        write_leap_run(tmp_path / "s", seed, **BASE)
        write_leap_run(tmp_path / "s", seed, **{**BASE, "validation": [3.0, 2.0, 1.9, 1.8]}, lr_from="published")
        write_leap_run(tmp_path / "s", seed, "linear", **{**FASTER, "overhead_s": 4.0 + 0.1 * seed})
        write_leap_run(tmp_path / "s", seed, "quadratic", **NEVER)
    suite = load_suite(tmp_path / "s")
    tables.write(made(tmp_path / "s", published), suite, tmp_path / "tables")
    found = text_of("time to baseline", tmp_path / "tables", ["0123abc"])
    assert "Runs of commit `0123abc`" in found
    line = found.splitlines()[4]
    assert line == "| fcn_small, digits | 0.500 | missing | missing | 1 of 2 | 1 of 2 |"  # all equal: no interval
    assert stats.RATIO_INTERVAL in found
    with pytest.raises(RecordError, match="make the tables first"):
        text_of("time to baseline", tmp_path)


def test_a_headline_does_not_rename_the_intervals_of_older_tables(tmp_path, published):
    folder = shutil.copytree(PROJECT / "results/tables/leap_verify_embedded", tmp_path / "tables")
    assert text_of("acceptance", folder).startswith("Runs of commit `")
    page = folder / "acceptance_strict.md"
    page.write_text(page.read_text().replace(stats.RATE_INTERVAL, "another interval"))
    with pytest.raises(RecordError, match=r"acceptance_strict.md: its intervals are not the .*; make the tables again"):
        text_of("acceptance", folder)


def test_a_method_is_faster_only_if_its_interval_and_its_corrected_p_say_so(tmp_path, published):
    """Six seeds, p = 2 / 64 each: enough for one method, not for two, whether or not the other reaches the target."""
    for seed in range(6):
        write_leap_run(tmp_path / "s", seed, **BASE)
        write_leap_run(tmp_path / "s", seed, "linear", **{**FASTER, "overhead_s": 4.0 + 0.1 * seed})
    alone = at(made(tmp_path / "s", published).frame, "linear strict")
    assert alone["charged_steps_ratio_ci_high"] < 1 and alone["p"] == alone["p_holm"] == 2 / 64
    write_leap_run(tmp_path / "s", 0, "quadratic", **NEVER)
    table = made(tmp_path / "s", published)
    assert at(table.frame, "linear strict")["p_holm"] == 2 * 2 / 64
    assert at(table.frame, "quadratic strict")[["p", "p_holm"]].isna().all()
    assert table.frame.loc[table.frame["kind"] == "baseline", "p_holm"].isna().all()
    tables.write(table, load_suite(tmp_path / "s"), tmp_path)
    assert "| 0 of 2 | 1 of 2 |" in text_of("time to baseline", tmp_path, ["0123abc"])
    assert re.search(r"\| 0\.062 +\|", (tmp_path / "time_to_baseline.md").read_text())
