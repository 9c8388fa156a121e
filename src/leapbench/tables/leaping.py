"""What a leap costs, and whether its gain lasts: overhead per lap, and the loss in the steps after an adoption."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from leapbench.config.choices import LeapAt
from leapbench.names import LEAPS, VALIDATION, Status
from leapbench.prediction.clock import CHARGED
from leapbench.tables import stats
from leapbench.tables.common import Table
from leapbench.tables.methods import PLAIN, ROW, TUNED, WORKLOAD, workload_name
from leapbench.tables.numbers import interval, number, summarised
from leapbench.tables.time_to_baseline import Leaps, laps_of, per_run

OVERHEAD = tuple(lap for lap in CHARGED if lap != "train")


def leap_overhead(leaps: Leaps) -> Table:
    """Share of the charged time that is not training, in all and per lap, percent."""
    laps = laps_of(leaps).assign(overhead_pct=lambda table: 100 - table["train_pct"])
    shares = [f"{lap}_pct" for lap in OVERHEAD]
    means = laps.groupby(ROW, sort=False)[["charged_s", *shares]].mean().reset_index()
    total = summarised(laps, ROW, "overhead_pct")
    runs = leaps.runs[["run_id", *ROW]].merge(per_run(leaps)[["run_id", "leaps_proposed"]], on="run_id")
    proposal_counts = runs.groupby(ROW, sort=False)["leaps_proposed"].mean().reset_index()
    frame = leaps.rows[[*ROW, "kind", "interval", "diverged"]].merge(total, on=ROW, how="left")
    frame = frame.merge(means, on=ROW, how="left").merge(proposal_counts, on=ROW, how="left")
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    header = (
        "Charged time that is not training, percent of all charged time of a run (evaluation is not charged); mean "
        f"[interval] over seeds; {stats.INTERVAL}. interval: steps between two snapshots; proposals: per run."
    )
    return Table(
        "leap_overhead", "Overhead of leaping", frame, header, f"{len(frame)} rows", sections=WORKLOAD,
        body=partial(_overhead_body, shares),
    )  # fmt: skip


def _overhead_body(shares: list[str], part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "method": row["row"], "seeds": str(row["n_seeds"]), "interval": number(row["interval"]),
                "proposals": number(row["leaps_proposed"]), "overhead [%]": interval(row, "overhead_pct", brief),
                **{name.removesuffix("_pct"): number(row[name]) for name in shares},
            }
            for row in part.round(3).to_dict("records")
        ]
    )  # fmt: skip


def after_leap(leaps: Leaps) -> Table:
    """Validation loss at an adoption and some steps later, minus the paired baseline's at equal charged time."""
    excess = excess_after(leaps)
    key = [*ROW, "after"]
    # The same leaps at every delay: those near the end of a run, which are not followed so far, would drop out of one
    # column after the other.
    followed = excess.groupby(["run_id", "steps"])["after"].transform("nunique")
    excess = excess[followed == excess.groupby("run_id")["after"].transform("nunique")]
    by_seed = excess.groupby([*key, "seed"], sort=False).agg(
        n_leaps=("excess_nats", "size"), excess_nats=("excess_nats", "mean"), loss_nats=("loss_nats", "mean"),
        baseline_loss_nats=("baseline_loss_nats", "mean"),
    ).reset_index()  # fmt: skip
    means = by_seed.groupby(key, sort=False).agg(
        n_leaps=("n_leaps", "sum"), loss_nats=("loss_nats", "mean"), baseline_loss_nats=("baseline_loss_nats", "mean")
    )
    summary = summarised(by_seed, key, "excess_nats")
    rows = leaps.rows.loc[leaps.rows["kind"] != "baseline", [*ROW, "kind", "predictor", "rule", "schedule"]]
    grid = rows.merge(pd.DataFrame({"after": sorted(_steps_after(leaps))}, dtype="int64"), how="cross")
    frame = grid.merge(summary, on=key, how="left").merge(means.reset_index(), on=key, how="left")
    frame[["n_seeds", "n_leaps"]] = frame[["n_seeds", "n_leaps"]].fillna(0).astype(int)
    header = (
        "Validation loss in nats at the step of a leap (after it) and so many steps later, minus that of the tuned "
        "baseline with the same schedule and seed at equal charged time: the baseline's validation curve, interpolated "
        "linearly at the same charged time in training steps; a baseline that has ended keeps its last loss. Above 0 "
        "the run would have done better without leaping so far; a leap that looks good at once and bad later climbs "
        "from left to right. What comes after a leap includes the leaps that follow it. Mean of the seeds' means "
        f"[interval], so that leaps of one run count as one, over the leaps that were followed to the last delay; "
        f"{stats.INTERVAL}."
    )
    references = leaps.references.frame
    untuned = references[references["reference"] == PLAIN].to_dict("records")
    remarks = {
        workload_name(row): [f"No tuned baseline: minus `{row['row']}`, which nobody has tuned."] for row in untuned
    }
    return Table(
        "after_leap", "After a leap", frame, header, f"{len(frame)} rows, {int(excess['after'].eq(0).sum())} leaps",
        sections=WORKLOAD, body=_after_body, remarks=remarks,
    )  # fmt: skip


def _after_body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    body = []
    for name, group in part.groupby("row", sort=False):
        rows = group.sort_values("after").to_dict("records")
        line = {"method": str(name), "seeds": str(group["n_seeds"].max()), "leaps": str(group["n_leaps"].max())}
        for row in rows:
            line[f"+{row['after']}" if row["after"] else "at once"] = (
                interval(row, "excess_nats", brief) if row["n_seeds"] else "-"
            )
        body.append(line)
    return pd.DataFrame(body)


def _steps_after(leaps: Leaps) -> set[int]:
    """0 and the steps after a leap at which some run evaluates."""
    configs = (leaps.suite.configs[name] for name in leaps.runs["run_id"])
    return {0}.union(*(science["leap"]["follow"] for science in configs if science.get("leap")))


def excess_after(leaps: Leaps) -> pd.DataFrame:
    """One row per adoption, completed runs, and per step after it at which validation was evaluated.

    Returns:
        run_id, seed, ROW, steps (of the adoption), after (steps since), loss_nats, baseline_loss_nats and their
        difference excess_nats. A cascade is one adoption. Without a baseline, or before its first evaluation: no row.
    """
    runs = leaps.runs[leaps.runs["status"] == Status.completed]
    columns = ["run_id", "seed", *ROW, "steps", "after", "loss_nats", "baseline_loss_nats", "excess_nats"]
    adoptions = leaps.suite.records[LEAPS]
    adoptions = adoptions[adoptions["adopted"].astype(bool)].drop_duplicates(["run_id", "step"])[["run_id", "step"]]
    adoptions = adoptions.rename(columns={"step": "steps"}).merge(runs[["run_id", "seed", *ROW]], on="run_id")
    adoptions = adoptions.merge(_baselines(leaps), on="run_id")
    adoptions = adoptions.merge(pd.DataFrame({"after": sorted(_steps_after(leaps))}, dtype="int64"), how="cross")
    # Where a leap comes at an interval's start, the evaluation at its step came before it.
    starts = {
        name for name, science in leaps.suite.configs.items() if science.get("leap", {}).get("at") == LeapAt.start
    }
    adoptions = adoptions[(adoptions["after"] > 0) | ~adoptions["run_id"].isin(starts)]
    adoptions["evaluated_at"] = adoptions["steps"] + adoptions["after"]
    validation = leaps.curves.loc[
        leaps.curves["split"] == VALIDATION, ["run_id", "steps", "loss_nats", "charged_steps"]
    ]
    adoptions = adoptions.merge(validation.rename(columns={"steps": "evaluated_at"}), on=["run_id", "evaluated_at"])
    if adoptions.empty:
        return pd.DataFrame(columns=columns).astype({"after": int, "excess_nats": float, "loss_nats": float})
    curve = {name: (group["charged_steps"], group["loss_nats"]) for name, group in validation.groupby("run_id")}
    parts = []
    for name, group in adoptions.groupby("baseline_run_id"):
        x, y = curve[name]
        parts.append(group.assign(baseline_loss_nats=np.interp(group["charged_steps"], x, y, left=np.nan)))
    adoptions = pd.concat(parts).dropna(subset="baseline_loss_nats")
    adoptions["excess_nats"] = adoptions["loss_nats"] - adoptions["baseline_loss_nats"]
    return adoptions.sort_values(["run_id", "steps", "after"])[columns].reset_index(drop=True)


def _baselines(leaps: Leaps) -> pd.DataFrame:
    """run_id -> baseline_run_id: the tuned run without a predictor, same schedule and seed; the first of several.

    For a workload without a tuned one, the plain runs that it is compared with.
    """
    completed = leaps.runs[leaps.runs["status"] == Status.completed]
    references = leaps.references.frame
    plain = references.loc[references["reference"] == PLAIN, WORKLOAD].merge(
        references[references["reference"] == "schedule"]
    )
    is_plain = completed[ROW].merge(plain[ROW], how="left", indicator=True)["_merge"].eq("both").to_numpy()
    baselines = completed[(completed["kind"] == "baseline") & ((completed["lr_from"] == TUNED) | is_plain)]
    key = [*WORKLOAD, "optimizer", "schedule", "seed"]
    baselines = baselines.drop_duplicates(key)[[*key, "run_id"]].rename(columns={"run_id": "baseline_run_id"})
    pairs = completed.merge(baselines, on=key)
    return pairs.loc[pairs["kind"] != "baseline", ["run_id", "baseline_run_id"]]
