"""What controls that change nothing must show. A yardstick that breaks one of these laws measures something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from leapbench.names import PERSISTENCE, RuleName, Status
from leapbench.tables.judged import OTHER_SEEDS, PLAIN, Judged
from leapbench.tables.numbers import Cell, number

HALF_WIDTH, SEEDS = 0.04, 10  # of the interval of `plain training, other seeds`, for so many seeds or more
HOLDS = "Null law holds: "
SLACK = 1e-3  # of a factor, relative: what interpolation and rounding may add


@dataclass(frozen=True)
class Law:
    """One law and its figures; `holds` is None where there is nothing to check it on."""

    holds: bool | None
    text: str

    @property
    def line(self) -> str:
        """For the table, loud if violated."""
        return f"**Null law violated: {self.text}**" if self.holds is False else self.text


def laws(part: Judged, section: pd.DataFrame) -> list[Law]:
    """Every null law, with its figures: persistence = plain training minus its overhead; plain training has factor 1.

    Args:
        part: a workload and base optimizer with a curve.
        section: its rows of the equivalent_budget table.
    """
    rows: dict[str, Cell] = {str(row["row"]): row for row in section.to_dict("records")}
    does_nothing = (PERSISTENCE, RuleName.strict, "")
    persistence = [
        name for name, row in rows.items() if (row["predictor"], row["rule"], row["wrapper"]) == does_nothing
    ]
    found = [law for name in persistence for law in (_step_for_step(part, name), _overhead(rows[name], rows[PLAIN]))]
    if not persistence:
        found.append(Law(None, "Null law not checked: no runs of `persistence strict`."))
    ends = (part.points["budget"].min(), part.points["budget"].max())
    nulls = [name for name, runs in part.rows().items() if name != PLAIN and runs["plain"].all()]
    for name in nulls:
        if rows[name]["budget"] not in ends:
            found.append(_factor_one(rows[name]))
    if OTHER_SEEDS not in nulls:
        found.append(Law(None, "Null law not checked: no plain training at B with seeds that are not the curve's."))
    if set(nulls) <= {OTHER_SEEDS}:
        found.append(Law(None, "Null law not checked: no plain training below B with seeds that are not the curve's."))
    return found


def _step_for_step(part: Judged, name: str) -> Law:
    """The same validation losses as plain training of the same settings, at every evaluation of every seed."""
    runs = part.rows()[name]
    runs = runs[runs["status"] == Status.completed]
    plain = part.runs[part.runs["on_curve"]][["run_id", "trajectory"]].rename(columns={"run_id": "twin"})
    pairs = runs.merge(plain, on="trajectory")
    if pairs.empty:
        first = runs.iloc[0] if len(runs) else part.rows()[name].iloc[0]
        return Law(
            None,
            f"Null law not checked step for step: no plain training with the settings of `{name}` (lr {first['lr']:g}, "
            f"{first['schedule']}) makes the curve.",
        )
    evals = part.evals[["run_id", "steps", "loss_nats"]]
    ours = evals.merge(pairs[["run_id", "twin", "seed"]], on="run_id")
    theirs = evals.rename(columns={"run_id": "twin", "loss_nats": "twin_nats"})
    theirs = theirs[theirs["twin"].isin(pairs["twin"])]
    both = ours.merge(theirs, on=["twin", "steps"], how="outer")
    differing = both[~(both["loss_nats"] == both["twin_nats"])]
    counted = f"{pairs['seed'].nunique()} of {len(runs)} seeds, {len(both)} evaluations"
    if differing.empty:
        text = f"{HOLDS}`{name}` has the validation loss of plain training at every step ({counted})."
        return Law(True, text)
    largest = (differing["loss_nats"] - differing["twin_nats"]).abs().max()
    figure = "other steps were evaluated" if np.isnan(largest) else f"by up to {largest:.2g} nats"
    return Law(
        False,
        f"`{name}` changes no weight, but its validation loss differs from plain training's at {len(differing)} "
        f"evaluations, first at step {int(differing['steps'].min())}, {figure} ({counted})",
    )


def _overhead(row: Cell, plain: Cell) -> Law:
    """Factor = 1 - overhead: what plain training costs over what it costs with verification."""
    expected = plain["cost"] / row["cost"]
    text = f"the factor of `{row['row']}` is {_factor(row)}, 1 minus its overhead is {number(expected)}"
    return _judge(row, expected, text)


def _factor_one(row: Cell) -> Law:
    """Plain training against the curve of other seeds."""
    half = (row["factor_charged_ci_high"] - row["factor_charged_ci_low"]) / 2
    width = "no half-width" if np.isnan(half) else f"half-width {half:.1%}"
    law = _judge(row, 1.0, f"the factor of `{row['row']}` is {_factor(row)}, {width}, n = {row['n_seeds']}")
    if law.holds and row["row"] == OTHER_SEEDS and row["n_seeds"] >= SEEDS and not half <= HALF_WIDTH:
        return Law(False, f"{law.text.removeprefix(HOLDS).rstrip('.')}; for {SEEDS} seeds it may be {HALF_WIDTH:.0%}")
    return law


def _judge(row: Cell, expected: float, text: str) -> Law:
    """Whether a factor is what it must be, within its interval; without one, within rounding."""
    if not row["n_seeds"]:
        return Law(None, f"Null law not checked: no run of `{row['row']}` has completed.")
    low, high = row["factor_charged_ci_low"], row["factor_charged_ci_high"]
    if np.isnan(low) and np.isnan(high):
        low = high = row["factor_charged"]
    # An end that is missing lies outside the curve.
    if not (low * (1 - SLACK) > expected or high * (1 + SLACK) < expected or np.isnan(row["factor_charged"])):
        return Law(True, f"{HOLDS}{text}.")
    return Law(False, f"{text}, outside the interval")


def _factor(row: Cell) -> str:
    low, high = number(row["factor_charged_ci_low"]), number(row["factor_charged_ci_high"])
    value = number(row["factor_charged"]) or f"outside the curve, {row['outside']}"
    return f"{value} [{low}, {high}]" if low or high else value
