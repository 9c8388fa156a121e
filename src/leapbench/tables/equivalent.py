"""What a method is worth in plain training: the budget at which plain training has the same final loss.

    E = L^-1(final loss)    factor = E / C

L is the reference curve of the method's base optimizer (mean final validation loss of plain training against its
budget), C what the method's runs cost, both in baseline steps. A factor of 1 is no gain, 1.25 says that the method does
in one step what plain training does in 1.25. Same idea: the compute factor of SNOO (arXiv 2510.15830).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from leapbench.names import Status
from leapbench.tables import stats
from leapbench.tables.common import Table
from leapbench.tables.compare import FACTOR_INTERVAL, SIGNIFICANT, Factor, bootstrap_factor, holm, sign_flip_p
from leapbench.tables.curve import ABOVE, BELOW, fit
from leapbench.tables.judged import PLAIN, SECTION, SETTINGS, Judged, by_seed
from leapbench.tables.null_laws import HALF_WIDTH, SEEDS, laws
from leapbench.tables.numbers import MISSING, number

NAME = "equivalent_budget"
FASTER, SLOWER, UNDECIDED, DIVERGED = "faster", "slower", "undecided", "diverged"
FACTORS = ("factor_steps", "factor_charged")
ENDS = ("", "_least", "_most")
NUMBERS = [
    *(f"equivalent_budget{end}" for end in ENDS),
    *(f"{name}{end}" for name in FACTORS for end in ("", "_ci_low", "_ci_high", *ENDS[1:])),
]
COLUMNS = [
    *SECTION, "row", "kind", *SETTINGS, "trials", "at_edge", "n_seeds", "diverged", "budget", "steps", "cost",
    "loss_nats", "loss_nats_ci_low", "loss_nats_ci_high", "outside", *NUMBERS, "p", "p_holm", "verdict",
]  # fmt: skip
CELLS = [
    *SECTION, "row", "kind", "run_id", "seed", "steps", "cost", "loss_nats", "outside", "equivalent_budget", *FACTORS,
]  # fmt: skip
HEADER = (
    "Decision rule: a method is faster if the interval of its charged factor lies above 1 and Holm's p is below "
    f"{SIGNIFICANT:g}; slower likewise below 1; undecided otherwise. Equivalent budget E/B: the budget at which "
    "plain training with the same base optimizer has the method's mean final validation loss, over B, the steps "
    "of the methods' runs; < and >: outside the reference curve. Factor in steps: E over the gradient steps paid; "
    "charged: over everything charged, so 1 is no gain and 1.25 does in one step what plain training does in "
    f"1.25. Brackets: {FACTOR_INTERVAL}. p: exact sign-flip test of the charged log factors, each minus that of "
    "plain training at B with the same seed; Holm over the methods of the section. Controls have no verdict: they "
    "obey the null laws (persistence has the losses of plain training and factor 1 minus its overhead; plain "
    f"training with other seeds has factor 1 within its interval, half-width at most {HALF_WIDTH:.0%} for {SEEDS} "
    "seeds or more). diverged: a seed that diverged makes the mean loss infinite. trials: runs that tuned the "
    "row; (edge): its best setting lies at the edge of what was tried."
)
INTEGERS = dict.fromkeys(("tokens", "K", "trials"), "Int64")


def equivalent_budget(parts: list[Judged], tuning: pd.DataFrame | None = None) -> Table:
    """The factor of every row, with plain training at B in its place, sorted by the charged factor.

    Args:
        parts: of :func:`leapbench.tables.judged.judged`.
        tuning: trials and at_edge by `row` and whatever else of SECTION it has; None: not known.
    """
    rows, cells, problems, remarks = [], [], [], {}
    for part in parts:
        section = pd.DataFrame([row_of(part, name, runs) for name, runs in part.rows().items()])
        seeds = pd.concat([_cells(part, name, runs) for name, runs in part.rows().items()])
        if not part.problems:
            section["p"] = [_p(part, runs) if row != PLAIN else np.nan for row, runs in part.rows().items()]
        section = _sorted(_decided(section.reindex(columns=[c for c in COLUMNS if c not in SECTION])))
        checked = [] if part.problems else laws(part, section)
        problems += part.problems + [f"{part.name}: {law.text}" for law in checked if law.holds is False]
        remarks[part.name] = [_reference(part), _attainable(section), *(law.line for law in checked)]
        rows.append(section.assign(**part.key))
        cells.append(seeds.assign(**part.key))
    frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    frame = _with_tuning(frame.reindex(columns=COLUMNS), tuning).astype(INTEGERS)
    per_seed = (pd.concat(cells, ignore_index=True) if cells else pd.DataFrame()).reindex(columns=CELLS)
    remarks = {name: [line for line in lines if line] for name, lines in remarks.items()}
    return Table(
        NAME, "Equivalent budget", frame, HEADER, _summary(frame), sections=SECTION, body=_body,
        remarks=remarks, problems=problems, per_seed=per_seed.astype({"tokens": "Int64"}),
    )  # fmt: skip


def row_of(part: Judged, name: str, runs: pd.DataFrame) -> dict[str, Any]:
    """One row without its p; a row of which a seed diverged has an infinite loss.

    Args:
        part: whose curve it is compared with.
        name: of the row; plain training has factor 1 by construction.
        runs: as of :meth:`Judged.rows`.
    """
    completed = runs[runs["status"] == Status.completed]
    first, n, diverged = runs.iloc[0], len(completed), int((runs["status"] == Status.diverged).sum())
    low, high = stats.intervals([completed["validation_nats"].to_numpy()]) if n else ([np.nan], [np.nan])
    row = {
        "row": name, **first[["kind", *SETTINGS, "budget"]], "n_seeds": n, "diverged": diverged,
        "steps": completed["steps"].mean(), "cost": completed["cost"].mean(),
        "loss_nats": completed["validation_nats"].mean(), "loss_nats_ci_low": low[0], "loss_nats_ci_high": high[0],
        "outside": "", **dict.fromkeys([*NUMBERS, "p"], np.nan),
    }  # fmt: skip
    if part.problems or not n:
        return row
    if name == PLAIN:  # by construction
        return row | {"equivalent_budget": 1.0, **dict.fromkeys(FACTORS, 1.0)}
    curve, losses = part.curve(), by_seed(completed, "validation_nats")
    for factor_name, by, unit in zip(FACTORS, ("steps", "cost"), (part.key["total_steps"], part.unit), strict=True):
        costs = {seed: value / unit for seed, value in by_seed(completed, by).items()}
        factor = bootstrap_factor(losses, costs, part.samples(), fit)
        if diverged:
            factor = Factor(BELOW, np.nan, np.nan, factor.least, factor.most, n)
        row |= _numbers(factor, factor_name)
        row["outside"] = _outside(factor.value)
    return row | {
        "equivalent_budget": row["factor_charged"] * row["cost"] / part.unit,
        "equivalent_budget_least": curve.budgets[0], "equivalent_budget_most": curve.budgets[-1],
    }  # fmt: skip


def _numbers(factor: Factor, name: str) -> dict[str, float]:
    """Value and bounds, missing where the curve does not reach; a bound that it reaches from inside is its end."""

    def inside(value: float) -> float:
        return value if np.isfinite(value) else np.nan

    return {
        name: inside(factor.value),
        f"{name}_ci_low": factor.most if factor.low == ABOVE else inside(factor.low),
        f"{name}_ci_high": factor.least if factor.high == BELOW else inside(factor.high),
        f"{name}_least": factor.least, f"{name}_most": factor.most,
    }  # fmt: skip


def _outside(value: float) -> str:
    return "below" if value == BELOW else "above" if value == ABOVE else ""


def _cells(part: Judged, name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """One line per completed seed: its own equivalent budget and factors."""
    cells = runs.loc[runs["status"] == Status.completed, ["kind", "run_id", "seed", "steps", "cost", "validation_nats"]]
    cells = cells.rename(columns={"validation_nats": "loss_nats"}).assign(row=name, outside="")
    if part.problems or cells.empty:
        return cells
    curve = part.curve()
    budgets = np.array([curve.budget_of(loss) for loss in cells["loss_nats"]])
    cells["outside"] = [_outside(budget) for budget in budgets]
    budgets[~np.isfinite(budgets)] = np.nan
    return cells.assign(
        equivalent_budget=budgets, factor_steps=budgets * part.key["total_steps"] / cells["steps"],
        factor_charged=budgets * part.unit / cells["cost"],
    )  # fmt: skip


def _p(part: Judged, runs: pd.DataFrame) -> float:
    """Sign-flip p of the log factors, each minus that of plain training at B with the same seed.

    Were the method plain training under another name, a pair could be swapped, so each difference would be as likely as
    its negative. The same seed has the same first weights and data, so what those do to both cancels, and so does, to
    first order, the error of the curve. A seed outside the curve counts as the curve's end.
    """
    curve, plain = part.curve(), part.rows()[PLAIN]

    def logs(sample: pd.DataFrame) -> dict[int, float]:
        costs = sample["cost"].fillna(sample["cost"].mean())
        budgets = [curve.within(curve.budget_of(loss)) for loss in sample["validation_nats"]]
        return dict(zip(sample["seed"].astype(int), np.log(budgets) - np.log(costs), strict=True))

    ended = runs[runs["status"].isin([Status.completed, Status.diverged])]
    if ended["cost"].isna().all():
        return np.nan
    ours, theirs = logs(ended), logs(plain)
    differences = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    return sign_flip_p(differences) if differences else np.nan


def _decided(section: pd.DataFrame) -> pd.DataFrame:
    """With Holm's p over the methods of the section and their verdicts."""
    is_method = section["kind"] == "method"
    section["p_holm"] = section["p"].where(is_method)
    section.loc[is_method, "p_holm"] = holm(section.loc[is_method, "p"].astype(float))
    low, high = section["factor_charged_ci_low"], section["factor_charged_ci_high"]
    sure = section["p_holm"] < SIGNIFICANT
    verdict = np.select(
        [section["diverged"] > 0, sure & (low > 1), sure & (high < 1)], [DIVERGED, FASTER, SLOWER], UNDECIDED
    )
    known = is_method & section["factor_charged_least"].notna()
    section["verdict"] = pd.Series(verdict, index=section.index).where(known, "")
    return section


def _sorted(section: pd.DataFrame) -> pd.DataFrame:
    """Largest charged factor first, those above the curve before it, those below it after, those without one last."""
    ends = section["outside"].map({"above": np.inf, "below": 0.0})
    return section.assign(order=section["factor_charged"].fillna(ends)).sort_values(
        "order", ascending=False, kind="stable", na_position="last"
    ).drop(columns="order")  # fmt: skip


def _with_tuning(frame: pd.DataFrame, tuning: pd.DataFrame | None) -> pd.DataFrame:
    if tuning is None:
        return frame
    on = [column for column in (*SECTION, "row") if column in tuning]
    merged = frame.drop(columns=["trials", "at_edge"]).merge(tuning[[*on, "trials", "at_edge"]], on=on, how="left")
    return merged[COLUMNS]


def _reference(part: Judged) -> str:
    points = [
        f"{point['budget']} steps {number(point['loss_nats'])} (n = {point['n_seeds']})"
        for point in part.points.to_dict("records")
    ]
    return f"Reference curve, final validation loss in nats: {', '.join(points)}." if points else "No reference curve."


def _attainable(section: pd.DataFrame) -> str:
    """What so few seeds cannot decide, whatever their numbers."""
    methods = section[section["kind"] == "method"]
    smallest = 2.0 ** (1 - methods["n_seeds"])  # of a sign-flip test
    if len(methods) and smallest.min() * len(methods) >= SIGNIFICANT:
        return (
            f"No method can be decided: the smallest p of {methods['n_seeds'].max()} seeds is "
            f"{number(float(smallest.min()))}, and Holm's correction multiplies it by {len(methods)}."
        )
    weak = int((smallest >= SIGNIFICANT).sum())
    return (
        f"{weak} of {len(methods)} methods cannot be decided: so few seeds give no p below {SIGNIFICANT:g}."
        if weak
        else ""
    )


def _summary(frame: pd.DataFrame) -> str:
    methods = frame[frame["kind"] == "method"]
    counts = ", ".join(f"{(methods['verdict'] == word).sum()} {word}" for word in (FASTER, SLOWER, UNDECIDED))
    return f"{len(methods)} methods: {counts}; {(frame['kind'] == 'control').sum()} controls"


def outside_text(cell: Mapping[Hashable, Any], name: str) -> str:
    """`< 0.348` or `> 2.1` for a row outside the curve; empty inside."""
    end = {"below": "least", "above": "most"}.get(str(cell["outside"]))
    return f"{'<' if end == 'least' else '>'} {number(cell[f'{name}_{end}'])}" if end else ""


def factor_text(cell: Mapping[Hashable, Any], name: str, brief: bool = False) -> str:
    """`1.12 [1.03, 1.21]`, `< 0.348`, `1.90 [1.70, > 2.10]`; missing without a curve."""
    value = outside_text(cell, name) or number(cell[name])
    low, high = number(cell[f"{name}_ci_low"]), number(cell[f"{name}_ci_high"])
    if brief or not value or not (low or high) or _beyond(cell, name):
        return value or MISSING
    return f"{value} [{low or '< ' + number(cell[f'{name}_least'])}, {high or '> ' + number(cell[f'{name}_most'])}]"


def _beyond(cell: Mapping[Hashable, Any], name: str) -> bool:
    """Whether the whole interval lies outside the curve."""
    return bool(cell[f"{name}_ci_low"] == cell[f"{name}_most"] or cell[f"{name}_ci_high"] == cell[f"{name}_least"])


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    lines = []
    for row in part.to_dict("records"):
        edge = " (edge)" if pd.notna(row["at_edge"]) and row["at_edge"] else ""
        lines.append(
            {
                "method": row["row"] + (" (control)" if row["kind"] == "control" else ""),
                "seeds": f"{row['n_seeds']}" + (f" + {row['diverged']} diverged" if row["diverged"] else ""),
                "lr": f"{row['lr']:g}", "schedule": row["schedule"], "floor": number(row["floor"]),
                "trials": f"{number(row['trials'])}{edge}", "final loss": number(row["loss_nats"]),
                "E/B": outside_text(row, "equivalent_budget") or number(row["equivalent_budget"]) or MISSING,
                "factor in steps": factor_text(row, "factor_steps", brief),
                "factor charged": factor_text(row, "factor_charged", brief),
                "p": number(row["p"]), "Holm p": number(row["p_holm"]), "verdict": row["verdict"],
            }
        )  # fmt: skip
    body = pd.DataFrame(lines)
    return body.drop(columns=["schedule", "floor", "trials", "p"]) if brief else body
