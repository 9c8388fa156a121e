"""Cost to losses that were fixed beforehand: the reference's mean final loss at 0.5, 0.71 and 1.0 B."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from leapbench.names import Status
from leapbench.tables.common import Table
from leapbench.tables.judged import PLAIN, SECTION, Judged
from leapbench.tables.numbers import number

SHARES = (0.5, 0.71, 1.0)  # of B
SLACK = 1e-9  # of a loss, relative: a mean over the same runs may differ in its last digit
TAUS = (1.0, 1.05, 1.1, 1.25, 1.5, 2.0)
COLUMNS = [
    *SECTION,
    "row",
    "kind",
    "predictor",
    "rule",
    "share",
    "target_nats",
    "n_seeds",
    "reached",
    "cost",
    "over_best",
]
CELLS = [*SECTION, "row", "share", "target_nats", "run_id", "seed", "cost"]
PROFILE = ["of", "row", "kind", "predictor", "rule", "pairs", "tau", "reached"]


def fixed_targets(parts: list[Judged]) -> Table:
    """Cost to each target, per row and per run; the null controls are plain training and have no rows of their own.

    Args:
        parts: of :func:`leapbench.tables.judged.judged`; one without a curve has no targets.
    """
    rows: list[dict[str, Any]] = []
    cells: list[pd.DataFrame] = []
    for part in parts:
        if part.problems:
            continue
        curve = part.curve()
        targets = {share: curve.loss_at(share) for share in SHARES if curve.budgets[0] <= share <= curve.budgets[-1]}
        for name, runs in part.rows().items():
            if runs["plain"].all() and name != PLAIN:
                continue
            completed = runs[runs["status"] == Status.completed]
            evals = part.evals.merge(completed[["run_id", "seed"]], on="run_id")
            lost = bool((runs["status"] == Status.diverged).any())
            for share, target in targets.items():
                own = _first(evals, target).reindex(completed["run_id"])
                first = runs.iloc[0]
                rows.append({
                    **part.key, "row": name, "kind": first["kind"], "predictor": first["predictor"],
                    "rule": first["rule"], "share": share, "target_nats": target, "n_seeds": len(completed),
                    "reached": int(own.notna().sum()), "cost": np.nan if lost else _cost_of_mean(evals, target),
                })  # fmt: skip
                key = {**part.key, "row": name, "share": share, "target_nats": target}
                cells.append(completed[["run_id", "seed"]].assign(**key, cost=own.to_numpy()))
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["over_best"] = frame["cost"] / frame.groupby([*SECTION, "share"], dropna=False)["cost"].transform("min")
    per_seed = (pd.concat(cells, ignore_index=True) if cells else pd.DataFrame()).reindex(columns=CELLS)
    header = (
        "Cost, in steps of plain AdamW, to the first validation evaluation at or below a loss fixed beforehand: the "
        f"reference curve's at {_listed(SHARES)} B. A target is a mean over seeds, so a row "
        "reaches it where its mean over seeds does; m/n: so many of its runs do by themselves. -: not within the run, "
        "which is no time but infinity. A row of which a seed diverged reaches nothing."
    )
    return Table(
        "fixed_targets", "Cost to fixed targets", frame.astype({"tokens": "Int64"}), header,
        f"{len(frame)} pairs of row and target, {int(frame['cost'].notna().sum())} reached", sections=SECTION,
        body=_body, per_seed=per_seed.astype({"tokens": "Int64"}),
    )  # fmt: skip


def performance_profile(targets: pd.DataFrame) -> Table:
    """Share of the pairs of workload and target that a row reaches within tau times the cost of the best row.

    Dolan and More, Mathematical Programming 2002; AlgoPerf, arXiv 2306.07179.

    Args:
        targets: the frame of :func:`fixed_targets`.

    Returns:
        a table with a line per row and tau at which its share rises.
    """
    known = targets[targets.groupby([*SECTION, "share"], dropna=False)["cost"].transform("min").notna()]
    total = len(known[[*SECTION, "share"]].drop_duplicates())
    sections = len(known[SECTION].drop_duplicates())
    of = f"{total} targets: {_listed(known['share'].unique())} B of {sections} {'curve' if sections == 1 else 'curves'}"
    rows = []
    for name, group in known.groupby("row", sort=False):
        label = {"of": of, "row": name, **group.iloc[0][["kind", "predictor", "rule"]], "pairs": len(group)}
        ratios = np.sort(group["over_best"].dropna())
        for tau in np.unique([1.0, *ratios]):
            rows.append({**label, "tau": tau, "reached": float((ratios <= tau).sum()) / len(group)})
    frame = pd.DataFrame(rows).reindex(columns=PROFILE)
    header = (
        "Performance profile: share of the pairs of workload and fixed target that a row reaches at no more than tau "
        "times the cost of the row that reaches it first; infinity where it is not reached. pairs: those the row was "
        "run on. A target that no row reaches is left out."
    )
    return Table(
        "performance_profile", "Performance profile", frame, header,
        f"{frame['row'].nunique()} rows, {total} pairs of workload and target", sections=["of"], body=_profile_body,
    )  # fmt: skip


def share_within(profile: pd.DataFrame, tau: float) -> float:
    """Of one row of the profile: the share of the pairs that it reaches within `tau` times the best."""
    return float(profile.loc[profile["tau"] <= tau, "reached"].max())


def _first(evals: pd.DataFrame, target: float) -> pd.Series:
    """run_id -> cost of its first evaluation at or below the target."""
    hits = evals[evals["loss_nats"] <= target * (1 + SLACK)]
    return hits.groupby("run_id")["cost"].min()


def _cost_of_mean(evals: pd.DataFrame, target: float) -> float:
    """Mean cost at the first evaluation that all runs share at which their mean loss is at or below the target.

    Evaluations are shared by their step, and the last ones of the runs, whose steps differ where leaps skip some.
    """
    place = evals["steps"].mask(evals["last"], np.inf)
    means = evals.groupby(place).agg(n=("run_id", "nunique"), cost=("cost", "mean"), loss=("loss_nats", "mean"))
    shared = means[means["n"] == evals["run_id"].nunique()].sort_values("cost")
    hits = shared.loc[shared["loss"] <= target * (1 + SLACK), "cost"]
    return float(hits.iloc[0]) if len(hits) else np.nan


def _listed(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:g}" for share in sorted(shares))


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    lines = []
    for name, group in part.groupby("row", sort=False):
        line = {"method": str(name), "seeds": str(group["n_seeds"].max())}
        for row in group.to_dict("records"):
            count = "" if brief else f" ({row['reached']}/{row['n_seeds']})"
            column = f"loss {number(row['target_nats'])} ({row['share']:g} B)"
            line[column] = f"{number(row['cost']) or '-'}{count}"
        lines.append(line)
    return pd.DataFrame(lines)


def _profile_body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    lines = [
        {
            "method": str(name), "pairs": str(group["pairs"].iloc[0]),
            **{f"tau = {tau:g}": number(share_within(group, tau)) for tau in TAUS},
        }
        for name, group in part.groupby("row", sort=False)
    ]  # fmt: skip
    lines.sort(key=lambda line: [-float(line[f"tau = {tau:g}"]) for tau in reversed(TAUS)])
    return pd.DataFrame(lines)
