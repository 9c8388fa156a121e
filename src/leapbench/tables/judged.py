"""What is judged by equivalent budgets: of each workload and base optimizer, the plain runs and the methods' runs.

Plain training is no predictor, no wrapper. At several budgets it makes the reference curve; methods run at one, B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from leapbench.config.choices import ScheduleName
from leapbench.names import VALIDATION, VERIFICATION, Status
from leapbench.records.read import Suite
from leapbench.records.rows import RecordError
from leapbench.tables.curve import Curve
from leapbench.tables.methods import is_plain, methods, wrapper_of
from leapbench.tables.render import section_name
from leapbench.tables.targets import curves

TRAINED = ["model", "dataset", "batch_size", "tokens", "optimizer"]
SECTION = [*TRAINED, "total_steps"]  # total_steps is B
PLAIN, OTHER_SEEDS = "plain training", "plain training, other seeds"
FEWEST = 3  # budgets of a curve
Cost = Callable[[Suite], pd.DataFrame]  # run_id, cost: in baseline steps
NEAR = 0.01  # a planned budget may be rounded to whole steps
SETTINGS = ["predictor", "rule", "wrapper", "K", "gate", "schedule", "floor", "lr", "lr_from"]
POINT = [
    "budget",
    "share",
    "cost",
    "schedule",
    "floor",
    "lr",
    "n_seeds",
    "verification_nats",
    "loss_nats",
    "fitted_nats",
]


@dataclass(frozen=True)
class Intended:
    """What a suite was meant to hold.

    Attributes:
        budgets: of the reference curve, in units of B; empty: those that the suite has runs of.
        curve_seeds: plain runs of these seeds make the curve, those of others are null controls; empty: the seeds of
            the methods' runs make it.
    """

    budgets: tuple[float, ...] = ()
    curve_seeds: frozenset[int] = frozenset()


@dataclass
class Judged:
    """One workload and base optimizer.

    Attributes:
        key: the columns of SECTION.
        runs: one row per run that makes a point of the curve or belongs to a row of the tables: run_id, seed, status,
            kind, plain, trajectory, SETTINGS, budget (steps it was planned for), steps (paid), cost (baseline steps;
            the last two missing unless completed), validation_nats and verification_nats (final; inf if diverged),
            row (its name; empty for points at other budgets), and on_curve.
        points: one row per budget: POINT. share: of B. loss_nats: mean final validation loss over seeds.
        evals: the validation evaluations of `runs`: run_id, steps, last, cost (so far), loss_nats.
        problems: why there is no curve, one line each; then the numbers that need it are missing.
    """

    key: dict[str, Any]
    runs: pd.DataFrame
    points: pd.DataFrame
    evals: pd.DataFrame
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its section in the tables."""
        return section_name(self.key)

    @property
    def unit(self) -> float:
        """Cost of plain training at B, in baseline steps."""
        return float(self.points.loc[self.points["budget"] == self.key["total_steps"], "cost"].iloc[0])

    def curve(self) -> Curve:
        """The reference curve; budgets are costs over that of plain training at B."""
        return Curve(tuple(self.points["cost"] / self.unit), tuple(self.points["loss_nats"]))

    def samples(self) -> dict[float, dict[int, float]]:
        """Budget as in :meth:`curve` -> seed -> final validation loss, nats."""
        on_curve = self.runs[self.runs["on_curve"]]
        return {
            float(part["cost"].mean() / self.unit): by_seed(part, "validation_nats")
            for _, part in on_curve.groupby("budget")
        }

    def rows(self) -> dict[str, pd.DataFrame]:
        """Name of a row of the tables -> its runs."""
        return {str(name): part for name, part in self.runs[self.runs["row"] != ""].groupby("row", sort=False)}


def by_seed(runs: pd.DataFrame, column: str) -> dict[int, float]:
    """seed -> value."""
    return dict(zip(runs["seed"].astype(int), runs[column].astype(float), strict=True))


def judged(suite: Suite, cost: Cost, plan: Intended) -> list[Judged]:
    """The workloads and base optimizers of a suite in which methods ran and plain training has several budgets.

    An optimizer whose methods have no plain training is among them if another one of the same workload has some.

    Args:
        suite: any.
        cost: of the runs of a suite; where it raises RecordError, that is a problem.
        plan: of the suite.
    """
    part = suite.part("leap")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    plain_budgets: dict[tuple[Any, ...], set[int]] = {}
    for name, science in part.configs.items():
        facts = {"run_id": name, **_facts(science)}
        key = tuple(facts[column] for column in TRAINED)
        groups.setdefault(key, []).append(facts)
        if facts["plain"]:
            plain_budgets.setdefault(key, set()).add(facts["budget"])
    with_curve = {key[:-1] for key, budgets in plain_budgets.items() if len(budgets) > 1}
    return [
        _judged(part, dict(zip(TRAINED, key, strict=True)), pd.DataFrame(group), cost, plan)
        for key, group in sorted(groups.items(), key=lambda item: str(item[0]))
        if key[:-1] in with_curve and not all(facts["plain"] for facts in group)
    ]


def _facts(science: Mapping[str, Any]) -> dict[str, Any]:
    train, schedule = science["train"], science["schedule"]
    return {
        "model": science["model"]["name"], "dataset": science["dataset"]["name"], "batch_size": train["batch_size"],
        "tokens": science["dataset"].get("tokens"), "optimizer": science["optimizer"]["name"],
        "budget": train["steps"], "plain": is_plain(science), "wrapper": wrapper_of(science),
        "floor": np.nan if schedule["name"] == ScheduleName.constant else schedule.get("floor", np.nan),
    }  # fmt: skip


def _judged(suite: Suite, key: dict[str, Any], facts: pd.DataFrame, cost: Cost, plan: Intended) -> Judged:
    section = suite.only(suite.runs[suite.runs["run_id"].isin(facts["run_id"])])
    runs = methods(section).merge(facts[["run_id", "budget", "plain", "wrapper", "floor"]], on="run_id")
    runs = runs.merge(section.runs[["run_id", "trajectory"]], on="run_id")
    runs["seed"] = runs["seed"].astype(int)
    evals = curves(section, runs)
    runs = _measured(runs, evals)
    of_methods = runs[~runs["plain"]]
    result = Judged({**key, "total_steps": int(of_methods["budget"].max())}, runs, pd.DataFrame(columns=POINT), evals)
    runs["cost"] = _cost(result, section, cost, runs)
    lengths = sorted(of_methods["budget"].unique())
    if len(lengths) > 1:
        result.problems.append(
            f"methods have budgets of {_listed(lengths)} steps, and one is judged; put the others in another suite"
        )
    seeds = plan.curve_seeds or frozenset(of_methods["seed"])
    result.points = _points(result, runs[runs["plain"]], seeds, plan)
    result.runs = _named(result, runs, seeds)
    result.evals = _evaluations(evals, result.runs)
    result.problems = [f"{suite.name}: {result.name}: {line}" for line in result.problems]
    return result


def _cost(judged: Judged, section: Suite, cost: Cost, runs: pd.DataFrame) -> pd.Series:
    """Cost of the completed runs, in baseline steps."""
    try:
        costs = cost(section).set_index("run_id")["cost"]
    except RecordError as error:
        judged.problems.append(f"no cost in baseline steps: {error}")
        costs = pd.Series(dtype=float)
    costs = runs["run_id"].map(costs).astype(float).where(runs["status"] == Status.completed)
    lacking = runs.loc[(runs["status"] == Status.completed) & costs.isna(), "run_id"].tolist()
    if lacking and not judged.problems:
        judged.problems.append(f"no cost in baseline steps of {len(lacking)} runs, {lacking[0]} among them")
    return costs


def _measured(runs: pd.DataFrame, evals: pd.DataFrame) -> pd.DataFrame:
    """With steps and the final losses of the completed runs; a diverged one has infinite losses, another none."""
    regular = evals[evals["regular"]]
    for split, name in ((VALIDATION, "validation_nats"), (VERIFICATION, "verification_nats")):
        last = regular[regular["split"] == split].groupby("run_id")["loss_nats"].last()
        loss = runs["run_id"].map(last).astype(float).where(runs["status"] == Status.completed)
        runs[name] = loss.mask(runs["status"] == Status.diverged, np.inf)
    steps = runs["run_id"].map(evals.groupby("run_id")["steps"].max()).astype(float)
    runs["steps"] = steps.where(runs["status"] == Status.completed)
    return runs


def _points(judged: Judged, plain: pd.DataFrame, seeds: frozenset[int], plan: Intended) -> pd.DataFrame:
    """The points of the curve, and `identity` of the plain row that makes each; what is missing becomes a problem.

    Of several plain rows at one budget, those that have the most seeds and lost none are compared, and the one with the
    lowest mean final verification loss is taken: validation is not used to choose.
    """
    B = judged.key["total_steps"]
    plain = plain[plain["seed"].isin(seeds)]
    points, holes = [], []
    for budget in sorted(set(plain["budget"].astype(int))):
        group = plain[plain["budget"] == budget]
        rows = group.assign(n_seeds=group["status"] == Status.completed, lost=group["status"] == Status.diverged)
        rows = rows.groupby("identity").agg(
            n_seeds=("n_seeds", "sum"), lost=("lost", "sum"), verification_nats=("verification_nats", "mean"),
            loss_nats=("validation_nats", "mean"), cost=("cost", "mean"), schedule=("schedule", "first"),
            floor=("floor", "first"), lr=("lr", "first"),
        ).reset_index()  # fmt: skip
        rows = rows[(rows["lost"] == 0) & (rows["n_seeds"] > 0) & np.isfinite(rows["verification_nats"])]
        if rows.empty:
            holes.append(budget)
            continue
        best = rows[rows["n_seeds"] == rows["n_seeds"].max()].sort_values("verification_nats", kind="stable").iloc[0]
        points.append({"budget": budget, "share": budget / B, **best})
    found = np.array([point["budget"] for point in points])
    planned = [round(share * B) for share in plan.budgets]
    holes += [steps for steps in planned if not (abs(found - steps) <= NEAR * steps).any() and steps not in holes]
    if plain.empty:
        judged.problems.append(
            f"methods of {judged.key['optimizer']} have no reference curve; run plain training of "
            f"{judged.key['optimizer']} at several budgets"
        )
    elif holes:
        judged.problems.append(
            f"the reference curve has a hole at {_listed(sorted(holes))} steps: no plain training there has completed "
            f"without diverging on the seeds of the curve ({_listed(sorted(seeds))})"
        )
    if not len(points):
        return pd.DataFrame(columns=[*POINT, "identity"])
    if len(points) < FEWEST:
        judged.problems.append(
            f"the reference curve has {len(points)} budgets ({_listed(found)} steps) and needs {FEWEST}"
        )
    if B not in found:
        judged.problems.append(f"the reference curve has no point at the methods' own budget, {B} steps")
    frame = pd.DataFrame(points)
    frame["fitted_nats"] = Curve(tuple(frame["budget"].astype(float)), tuple(frame["loss_nats"])).monotone
    return frame[[*POINT, "identity"]]


def _named(judged: Judged, runs: pd.DataFrame, seeds: frozenset[int]) -> pd.DataFrame:
    """The runs that count: those of the points, the null controls (the same settings, other seeds), the methods."""
    B = judged.key["total_steps"]
    point = dict(zip(judged.points["budget"], judged.points["identity"], strict=True))
    chosen = runs["plain"] & (runs["budget"].map(point) == runs["identity"])
    runs["on_curve"] = chosen & runs["seed"].isin(seeds) & (runs["status"] == Status.completed)
    is_null = chosen & ~runs["seed"].isin(seeds)
    null_name = [OTHER_SEEDS if b == B else f"plain training, {b / B:.2g} B" for b in runs["budget"]]
    runs["row"] = runs["row"].mask(runs["plain"], "").mask(is_null, pd.Series(null_name, index=runs.index))
    runs.loc[runs["on_curve"] & (runs["budget"] == B), "row"] = PLAIN
    runs["kind"] = runs["kind"].mask(is_null, "control")
    kept = runs[runs["on_curve"] | (runs["row"] != "")]
    columns = ["run_id", "seed", "status", "row", "kind", "plain", "on_curve", "trajectory", *SETTINGS, "budget"]
    return kept[[*columns, "steps", "cost", "validation_nats", "verification_nats"]].reset_index(drop=True)


def _evaluations(evals: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Validation along the runs; the cost so far is the run's cost in proportion to its charged time."""
    rows = evals[evals["regular"] & (evals["split"] == VALIDATION)].merge(runs[["run_id", "cost"]], on="run_id")
    last = rows.groupby("run_id")["steps"].transform("max")
    total = rows.groupby("run_id")["charged_steps"].transform("last")
    rows["cost"] = rows["cost"] * rows["charged_steps"] / total
    return rows.assign(last=rows["steps"] == last)[["run_id", "steps", "last", "cost", "loss_nats"]]


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)
