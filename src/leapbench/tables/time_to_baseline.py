"""Does it save time? Steps and charged steps to the baseline's best, over the baseline's own, paired by seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from leapbench.config.choices import PaceName
from leapbench.names import LEAPS, VALIDATION, VERIFICATION, Status
from leapbench.prediction.clock import CHARGED
from leapbench.records.read import Suite
from leapbench.tables import stats
from leapbench.tables.common import Published, Table
from leapbench.tables.compare import holm, sign_flip_p
from leapbench.tables.methods import (
    MAIN,
    PLAIN,
    REFERENCES,
    ROW,
    SCIENCE,
    TUNED,
    WORKLOAD,
    References,
    leaping,
    methods,
    of_workload,
    references,
    workload_name,
)
from leapbench.tables.numbers import MISSING, interval, number, summarised, summarised_ratios
from leapbench.tables.published_pdt import pdt_remarks, with_published_pdt
from leapbench.tables.targets import DEFINITIONS, QUANTITIES, best_of, curves, paired, time_to_target

NAME = "time_to_baseline"
DIGITS = (
    "digits is small: 1,797 handwritten digits of 8x8 pixels, upsampled. Every network fits it in seconds, one of its "
    "few hundred validation images moves the accuracy by a third of a percent, and an epoch is a few dozen steps. It "
    "shows how methods compare on an easy task; it is no evidence of what they do on CIFAR-10 or ImageNet."
)
# Numbers of a run that do not depend on a target.
MEASURED = (
    "final_validation_nats", "best_validation_nats", "final_accuracy_pct", "best_accuracy_pct", "overhead_pct",
    "leaps_proposed", "leaps_adopted", "changed_pct",
)  # fmt: skip
ALMOST = 0.99  # of the loss of chance: held-out samples are small
COUNTS = ("leaps_proposed", "leaps_adopted", "changed_pct")
JUDGED_BY = "charged_steps_ratio"  # the ratio that a p-value is of
P_VALUE = (
    "two-sided sign-flip test of the charged log ratios, corrected by Holm over the methods and controls of the "
    "workload, those that do not reach the target among them"
)


@dataclass
class Leaps:
    """What the mode=leap tables of a suite share.

    Attributes:
        runs: of :func:`leapbench.tables.methods.methods`.
        curves: of :func:`leapbench.tables.targets.curves`.
        references: of :func:`leapbench.tables.methods.references`.
        rows: one row per row of the tables: SCIENCE, seeds (completed) and diverged (seeds).
    """

    suite: Suite
    runs: pd.DataFrame
    curves: pd.DataFrame
    references: References
    rows: pd.DataFrame


def leaps_of(suite: Suite) -> Leaps:
    """Rows, curves and references of a suite's mode=leap runs."""
    suite = leaping(suite)
    runs = methods(suite)
    rows = curves(suite, runs)
    verification = rows[(rows["split"] == VERIFICATION) & rows["regular"]].groupby("run_id")["loss_nats"].min()
    counts = runs.assign(seeds=runs["status"] == Status.completed, diverged=runs["status"] == Status.diverged)
    counts = counts.groupby(ROW, sort=False)[["seeds", "diverged"]].sum().astype(int).reset_index()
    table = runs[SCIENCE].drop_duplicates(ROW).merge(counts, on=ROW)
    return Leaps(suite, runs, rows, references(suite, runs, verification), table)


def time_to_baseline(leaps: Leaps, published: Published) -> Table:
    """Time to target under every definition and against both references, one row each."""
    cells = _cells(leaps)
    frame = _grid(leaps).merge(_over_seeds(cells), on=[*ROW, "reference", "definition"], how="left")
    frame[["n_seeds", "reached"]] = frame[["n_seeds", "reached"]].fillna(0).astype(int)
    frame["p_holm"] = _corrected(frame)
    frame = frame.merge(_measurements(leaps), on=ROW, how="left")
    frame = with_published_pdt(frame, published.pdt)
    frame["chance_nats"] = _chance(leaps, frame)
    remarks = {}
    paces = {science.get("leap", {}).get("scheduler", PaceName.none) for science in leaps.suite.configs.values()}
    for workload in leaps.rows[WORKLOAD].drop_duplicates().to_dict("records"):
        lines = list(leaps.references.remarks[tuple(workload.values())])
        lines += pdt_remarks(of_workload(frame, workload), paces, published.pdt)
        remarks[workload_name(workload)] = [*lines, DIGITS] if workload["dataset"] == "digits" else lines
    seeds = leaps.runs.loc[leaps.runs["status"] == Status.completed, "seed"].nunique()
    header = (
        "Time until a run first reaches what its baseline reached at best, over the baseline's own time to it; below 1 "
        f"is faster. Geometric mean [interval] of the ratios of {seeds} {'seed' if seeds == 1 else 'seeds'}, each "
        f"paired with the baseline of the same seed; {stats.RATIO_INTERVAL}; other numbers: {stats.INTERVAL}. "
        f"p: {P_VALUE}. A run that does not reach the target, or diverges, has no time: the mean is shown only if all "
        "seeds reached it. `ours`: first validation evaluation at or below the baseline's best validation loss, "
        "counted at the evaluations that all runs share; `pdt loss`: first interval "
        "whose mean training loss is at or below the baseline's lowest; `pdt accuracy`: accuracy likewise, on "
        "validation; `pdt total`: `pdt loss` over the baseline's total time, as PDT's authors computed their table. "
        "steps: gradient steps paid for. charged: everything but evaluation and recording, counted in the run's own "
        "training steps, so that what else the machine did cancels. To same schedule: over the tuned baseline with the "
        "method's own schedule: no schedule is credited to a method. Every method at the learning rate of its row; "
        "tuned means tuned for that very method on the verification split."
    )
    return Table(
        NAME, "Time to baseline", frame, header, _summary(frame, cells), sections=WORKLOAD, body=partial(_body),
        remarks=remarks, problems=leaps.references.problems, per_seed=cells,
    )  # fmt: skip


def _cells(leaps: Leaps) -> pd.DataFrame:
    """One row per workload, row, definition, reference and seed."""
    pairs = paired(leaps.runs, leaps.references.frame)
    parts = [time_to_target(leaps.curves, pairs, definition) for definition in DEFINITIONS]
    run_rows = leaps.runs[["run_id", "seed", "status", *ROW]].reset_index(names="order")
    cells = run_rows.merge(pd.concat(parts, ignore_index=True), on="run_id")
    return cells.sort_values(["order", "reference"], ascending=[True, False], kind="stable").drop(columns="order")


def _grid(leaps: Leaps) -> pd.DataFrame:
    """Every row with every reference and definition; accuracy for images only."""
    frame = leaps.references.frame.rename(columns={"row": "reference_row"}).drop(columns="best_verification_nats")
    combinations = pd.DataFrame({"reference": REFERENCES}).merge(pd.DataFrame({"definition": DEFINITIONS}), how="cross")
    grid = leaps.rows.merge(combinations, how="cross")
    plain = frame.loc[frame["reference"] == PLAIN, WORKLOAD]
    untuned = (grid[WORKLOAD].merge(plain, how="left", indicator=True)["_merge"] == "both").to_numpy()
    grid["reference"] = grid["reference"].mask(untuned & (grid["reference"] == TUNED), PLAIN)
    grid["for_schedule"] = grid["schedule"].where(grid["reference"] == "schedule", "")
    grid = grid.merge(frame, on=[*WORKLOAD, "reference", "for_schedule"], how="left").drop(columns="for_schedule")
    runs = leaps.runs[["run_id", *WORKLOAD]].merge(best_of(leaps.curves, "pdt_accuracy").dropna().reset_index())
    images = grid[WORKLOAD].merge(runs[WORKLOAD].drop_duplicates(), how="left", indicator=True)["_merge"] == "both"
    return grid[(grid["definition"] != "pdt_accuracy") | images.to_numpy()].reset_index(drop=True)


def _over_seeds(cells: pd.DataFrame) -> pd.DataFrame:
    """Counts of seeds and, per quantity and per ratio: mean and interval if all reached, mean of those that did."""
    key = [*ROW, "reference", "definition"]
    groups = cells.groupby(key, sort=False)
    frame = groups.agg(n_seeds=("seed", "size"), reached=("reached", "sum")).reset_index()
    all_reached = cells[groups["reached"].transform("all")] if len(cells) else cells
    for quantity in QUANTITIES:
        for name, summarise in ((quantity, _times), (f"{quantity}_ratio", summarised_ratios)):
            frame = frame.merge(summarise(all_reached, key, name).drop(columns="n_seeds"), on=key, how="left")
            reached = summarise(cells, key, name)[[*key, name]]
            frame = frame.merge(reached.rename(columns={name: f"{name}_of_those_that_reached"}), on=key, how="left")
    p = all_reached.groupby(key, sort=False)[JUDGED_BY].agg(lambda ratios: sign_flip_p(np.log(ratios)))
    return frame.merge(p.rename("p").reset_index(), on=key, how="left")


def _times(cells: pd.DataFrame, by: list[str], name: str) -> pd.DataFrame:
    return summarised(cells, by, name, (0.0, np.inf))


def _corrected(frame: pd.DataFrame) -> pd.Series:
    """Holm's p over the methods and controls that are compared with one reference under one definition."""
    compared = frame[(frame["kind"] != "baseline") & (frame["n_seeds"] > 0)]
    return compared.groupby([*WORKLOAD, "reference", "definition"])["p"].transform(holm)


def per_run(leaps: Leaps) -> pd.DataFrame:
    """run_id and MEASURED of the completed runs, missing where a run has no such number."""
    completed = leaps.runs[leaps.runs["status"] == Status.completed]
    rows = leaps.curves[leaps.curves["run_id"].isin(completed["run_id"])]
    regular = rows[(rows["split"] == VALIDATION) & rows["regular"]].groupby("run_id")
    last = rows.groupby("run_id").last()
    proposals = leaps.suite.records[LEAPS].groupby("run_id").agg(
        leaps_proposed=("adopted", "size"), leaps_adopted=("adopted", "sum"), changed_pct=("changed_share", "mean")
    )  # fmt: skip
    measurements = pd.DataFrame(
        {
            "final_validation_nats": regular["loss_nats"].last(), "best_validation_nats": regular["loss_nats"].min(),
            "final_accuracy_pct": 100 * regular["accuracy"].last(),
            "best_accuracy_pct": 100 * regular["accuracy"].max(),
            "overhead_pct": 100 * (1 - last["train_s"] / last["charged_s"]),
        },
        index=pd.Index(completed["run_id"], name="run_id"),
    ).join(proposals)  # fmt: skip
    measurements["changed_pct"] = 100 * measurements["changed_pct"].astype(float)
    has_predictor = (completed.set_index("run_id")["kind"] != "baseline").reindex(measurements.index)
    for column in ("leaps_proposed", "leaps_adopted"):
        measurements[column] = measurements[column].astype(float).fillna(0).where(has_predictor)
    return measurements.reset_index()


def _measurements(leaps: Leaps) -> pd.DataFrame:
    """Per row the mean of MEASURED over completed seeds; with an interval, except for COUNTS."""
    runs = leaps.runs[["run_id", *ROW]].merge(per_run(leaps), on="run_id")
    frame = leaps.rows[ROW].merge(runs.groupby(ROW, sort=False)[list(COUNTS)].mean().reset_index(), on=ROW, how="left")
    for name in MEASURED:
        if name not in COUNTS:
            frame = frame.merge(summarised(runs, ROW, name).drop(columns="n_seeds"), on=ROW, how="left")
    return frame


def laps_of(leaps: Leaps) -> pd.DataFrame:
    """ROW, seed, charged_s and the share of every charged lap in percent, of the completed runs."""
    last = leaps.curves.groupby("run_id").last().reset_index()
    rows = leaps.runs.loc[leaps.runs["status"] == Status.completed, ["run_id", "seed", *ROW]].merge(last, on="run_id")
    for lap in CHARGED:
        rows[f"{lap}_pct"] = 100 * rows[f"{lap}_s"] / rows["charged_s"]
    return rows[[*ROW, "seed", "charged_s", *(f"{lap}_pct" for lap in CHARGED)]]


def _chance(leaps: Leaps, frame: pd.DataFrame) -> pd.Series:
    """The loss of a network that knows nothing, ln(classes), per row of images; NaN for texts."""
    classes = {}
    for name, dataset in leaps.runs[["run_id", "dataset"]].itertuples(index=False):
        image = leaps.suite.configs[name]["dataset"].get("image") or {}
        classes[dataset] = image.get("classes", np.nan)
    return frame["dataset"].map(classes).astype(float).map(np.log)


def _summary(frame: pd.DataFrame, cells: pd.DataFrame) -> str:
    rows, workloads = len(frame[ROW].drop_duplicates()), len(frame[WORKLOAD].drop_duplicates())
    text = f"{rows} rows of {workloads} {'workload' if workloads == 1 else 'workloads'}, {len(cells)} times to a target"
    compared = frame[frame["reference"].isin(MAIN) & (frame["n_seeds"] > 0)].drop_duplicates(ROW)
    untuned = int((compared["reference"] == PLAIN).sum())
    text += f"; {untuned} rows compared with plain training, because no baseline is tuned" if untuned else ""
    without_baseline = rows - len(compared)
    return text + (f"; {without_baseline} rows without a tuned baseline to compare with" if without_baseline else "")


def ratio(cell: Mapping[Hashable, Any] | None, quantity: str, brief: bool = False) -> str:
    """`0.870 [0.810, 0.930]`, `not reached (3 of 5)`; `missing` without a pair."""
    if cell is None or not cell["n_seeds"]:
        return MISSING
    if cell["reached"] < cell["n_seeds"]:
        return f"not reached ({cell['reached']} of {cell['n_seeds']})"
    return interval(cell, f"{quantity}_ratio", brief)


def _best_loss(cell: Mapping[Hashable, Any], brief: bool) -> str:
    """The mean over seeds; of a method or control that was never better than chance, that it diverges."""
    text = interval(cell, "best_validation_nats", brief)
    learned_nothing = cell["best_validation_nats"] > ALMOST * cell["chance_nats"]
    return f"diverges: {text}" if learned_nothing and cell["kind"] != "baseline" else text


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """One row per method of one workload; the published row of PDT last."""
    images = (part["definition"] == "pdt_accuracy").any()
    body = []
    for _, group in part.groupby("row", sort=False):
        cells = {(row["definition"], row["reference"]): row for row in group.to_dict("records")}
        main = next(reference for reference in MAIN if ("ours", reference) in cells)
        first = cells["ours", main]
        proposals, all_reached = first["leaps_proposed"], 0 < first["n_seeds"] == first["reached"]
        line = {
            "method": first["row"],
            "seeds": f"{first['seeds']}" + (f" + {first['diverged']} diverged" if first["diverged"] else ""),
            "lr": f"{first['lr']:g} ({first['lr_from']})",
            "K": number(first["K"]),
            "leaps": ""
            if pd.isna(proposals)
            else f"{number(first['leaps_adopted'], True)} / {number(proposals, True)}",
            "steps": ratio(first, "steps", brief),
            "charged": ratio(first, "charged_steps", brief) if all_reached else "-",
            "p (Holm)": number(first["p_holm"]),
            "charged, to same schedule": ratio(cells["ours", "schedule"], "charged_steps", brief),
            "charged, to published-style": ratio(cells["ours", "published"], "charged_steps", brief),
            "pdt loss": ratio(cells["pdt_loss", main], "charged_steps", brief),
            "pdt total": ratio(cells["pdt_loss_total", main], "charged_steps", brief),
        }
        if images:
            line["pdt accuracy"] = ratio(cells["pdt_accuracy", main], "charged_steps", brief)
            line["best accuracy [%]"] = interval(first, "best_accuracy_pct", brief)
        line["best validation loss"] = _best_loss(first, brief)
        body.append(line)
    cited = part[part["reference"].isin(MAIN) & part["published_pct"].notna()].drop_duplicates("definition")
    if len(cited):
        shown = {"pdt_loss_total": "pdt total", "pdt_accuracy": "pdt accuracy"}
        line = {"method": f"published: PDT, {cited['published_model'].iloc[0]}"}
        for row in cited.to_dict("records"):
            line[shown[row["definition"]]] = number(1 - row["published_pct"] / 100)
        body.append(line)
    table = pd.DataFrame(body).fillna("")
    dropped = ["p (Holm)", "charged, to published-style", "pdt total"]
    return table.drop(columns=dropped) if brief else table
