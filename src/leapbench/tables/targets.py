"""When a run first reaches the loss or accuracy of its reference, in steps and charged steps. Frames in, frames out.

Three readings of "reached", side by side:

    ours            the first validation evaluation with loss <= the reference's best validation loss
    pdt_loss        the first interval whose mean training loss <= the reference's lowest (PDT, OpenReview zSTgrLkpRi)
    pdt_accuracy    the first validation evaluation with accuracy >= the reference's best (images)
    pdt_loss_total  pdt_loss, over the reference's total time in place of its own time to target: what the published
                    table of PDT was computed with

The reference is a run without a predictor and of the same seed, and its own time to target is what ratios divide by.
"""

from __future__ import annotations

import pandas as pd

from leapbench.names import EVALS, TRAIN, VALIDATION, Status
from leapbench.prediction.clock import CHARGED
from leapbench.records.read import Suite
from leapbench.tables.methods import ROW, WORKLOAD

DEFINITIONS = ("ours", "pdt_loss", "pdt_loss_total", "pdt_accuracy")
QUANTITIES = ("steps", "charged_steps")
# definition -> split, column, sign: sign * value falls where the run gets better.
_CRITERIA = {
    "ours": (VALIDATION, "loss_nats", 1),
    "pdt_loss": (TRAIN, "loss_nats", 1),
    "pdt_loss_total": (TRAIN, "loss_nats", 1),
    "pdt_accuracy": (VALIDATION, "accuracy", -1),
}
CELLS = [
    "run_id", "reference", "definition", "reference_run_id", "target", "reached", *QUANTITIES,
    *(f"reference_{quantity}" for quantity in QUANTITIES), *(f"{quantity}_ratio" for quantity in QUANTITIES),
]  # fmt: skip


def curves(suite: Suite, runs: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of `runs`, sorted by run and step.

    Args:
        runs: run_id, eval_every.

    Returns:
        run_id, split, steps (gradient steps paid), loss_nats, accuracy, charged_s (all laps but evaluation),
        charged_steps (charged_s in units of the run's own mean training step up to there: steps, if nothing but
        training were charged, on any machine), the laps, and regular: whether the row belongs to the grid that
        all runs share, so not the extra evaluations of validation after a leap. Of a run of mode=observe only
        training is charged: the rest of what it does is looking.
    """
    laps = [f"{lap}_s" for lap in CHARGED]
    columns = ["run_id", "split", "step", "loss_nats", "accuracy", *laps]
    rows = suite.records[EVALS][columns].merge(runs[["run_id", "eval_every"]], on="run_id")
    rows = rows.rename(columns={"step": "steps"}).sort_values(["run_id", "steps"], kind="stable")
    observed = suite.runs.loc[suite.runs["mode"] == "observe", "run_id"]
    rows.loc[rows["run_id"].isin(observed), [lap for lap in laps if lap != "train_s"]] = 0.0
    rows["charged_s"] = rows[laps].sum(axis=1)
    rows["charged_steps"] = rows["charged_s"] * rows["steps"] / rows["train_s"]
    last = rows.groupby("run_id")["steps"].transform("max")
    rows["regular"] = (rows["split"] == TRAIN) | (rows["steps"] % rows["eval_every"] == 0) | (rows["steps"] == last)
    return rows.drop(columns="eval_every").reset_index(drop=True)


def best_of(rows: pd.DataFrame, definition: str) -> pd.Series:
    """run_id -> the best value that the run itself reached: lowest loss in nats, or highest accuracy."""
    split, column, sign = _CRITERIA[definition]
    split_rows = rows[(rows["split"] == split) & rows["regular"]]
    return sign * (sign * split_rows[column]).groupby(split_rows["run_id"]).min()


def time_to_target(rows: pd.DataFrame, pairs: pd.DataFrame, definition: str) -> pd.DataFrame:
    """For every pair, whether and when the run reached the reference's best.

    Args:
        rows: of :func:`curves`.
        pairs: run_id, status, reference, reference_run_id; the reference itself is one of the runs.
        definition: one of DEFINITIONS.

    Returns:
        the columns of CELLS; times are missing where the target was not reached, and a diverged run reached nothing.
        Pairs whose reference has no such value (texts have no accuracy) are left out.
    """
    split, column, sign = _CRITERIA[definition]
    target = pairs["reference_run_id"].map(best_of(rows, definition)).astype(float)
    cells = pairs.assign(definition=definition, target=target)
    cells = cells.dropna(subset="target")
    split_rows = rows[(rows["split"] == split) & rows["regular"]]
    hits = split_rows.merge(cells[["run_id", "reference", "target", "status"]], on="run_id")
    hits = hits[(sign * hits[column] <= sign * hits["target"]) & (hits["status"] == Status.completed)]
    first = hits.drop_duplicates(["run_id", "reference"])[["run_id", "reference", *QUANTITIES]]
    cells = cells.merge(first, on=["run_id", "reference"], how="left")
    cells["reached"] = cells["steps"].notna()
    if definition == "pdt_loss_total":
        times = rows.drop_duplicates("run_id", keep="last").assign(reference_run_id=lambda last: last["run_id"])
    else:
        times = cells[cells["run_id"] == cells["reference_run_id"]].drop_duplicates("run_id")
    times = times[["reference_run_id", *QUANTITIES]].rename(columns={q: f"reference_{q}" for q in QUANTITIES})
    cells = cells.merge(times, on="reference_run_id", how="left")
    for quantity in QUANTITIES:
        cells[f"{quantity}_ratio"] = cells[quantity] / cells[f"reference_{quantity}"]
    return cells[CELLS]


def paired(runs: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Every run that ended, with the completed run of each reference of the same workload and seed.

    Args:
        runs: of :func:`leapbench.tables.methods.methods`.
        references: the frame of :class:`leapbench.tables.methods.References`.

    Returns:
        run_id, status, reference, reference_run_id.
    """
    reference_runs = runs[runs["status"] == Status.completed].merge(references, on=ROW)
    reference_runs = reference_runs.rename(columns={"run_id": "reference_run_id"})
    reference_runs = reference_runs[[*WORKLOAD, "seed", "reference", "for_schedule", "reference_run_id"]]
    ended = runs[runs["status"].isin([Status.completed, Status.diverged])]
    pairs = ended.merge(reference_runs, on=[*WORKLOAD, "seed"])
    pairs = pairs[(pairs["for_schedule"] == "") | (pairs["for_schedule"] == pairs["schedule"])]
    return pairs[["run_id", "status", "reference", "reference_run_id"]]
