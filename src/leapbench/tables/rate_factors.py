"""What methods are worth at each learning rate: charged factors where the same trainings ran at several rates."""

from __future__ import annotations

from typing import Any

import pandas as pd

from leapbench.names import BASELINE
from leapbench.records.read import Suite
from leapbench.tables.common import Table
from leapbench.tables.compare import FACTOR_INTERVAL
from leapbench.tables.equivalent import factor_text, row_of
from leapbench.tables.judged import PLAIN, SECTION, Cost, Intended, Judged, judged
from leapbench.tables.learning_rates import FEWEST

NAME = "learning_rate_factors"
SAME, BEST = "same rate", "best rate"  # of the plain training that is compared with
FACTOR = "factor_charged"
COLUMNS = [
    *SECTION, "reference", "lr", "row", "kind", "predictor", "n_seeds", "diverged", "steps", "cost", "loss_nats",
    "outside", *(f"{FACTOR}{end}" for end in ("", "_ci_low", "_ci_high", "_least", "_most")),
]  # fmt: skip
HEADER = (
    "The same trainings at several learning rates, nothing tuned. Charged factor: what plain training with the same "
    f"base optimizer needs for the same final validation loss, over the run's cost; {SAME}: plain training at the "
    f"method's own rate, {BEST}: at the rate that is best at each budget; 1 is no gain, < and >: outside the reference "
    f"curve. Brackets: {FACTOR_INTERVAL}."
)


def leaps_at_rates(suite: Suite) -> bool:
    """Whether some predictor leaps at several learning rates that were given to it, not found for it."""
    given = {name for name, science in suite.configs.items() if science["optimizer"].get("lr_from") == "given"}
    runs = suite.runs[suite.runs["run_id"].isin(given) & (suite.runs["predictor"] != BASELINE)]
    return bool((runs.groupby(["model", "dataset", "optimizer", "predictor"])["lr"].nunique() >= FEWEST).any())


def learning_rate_factors(suite: Suite, cost: Cost) -> Table:
    """Charged factor of every row at every rate, against plain training at its own rate and at the best.

    Args:
        suite: methods of one length at several rates; plain training at the same rates and at several budgets.
        cost: of the runs of a suite, in baseline steps.
    """
    rows: list[dict[str, Any]] = []
    problems: dict[str, None] = {}
    plain = suite.runs[suite.runs["predictor"] == BASELINE]
    for lr in sorted(set(suite.runs["lr"].dropna().astype(float))):
        runs, others = suite.runs[suite.runs["lr"] == lr], plain[plain["lr"] != lr]
        same = {part.name: part for part in judged(suite.only(runs), cost, Intended())}
        best = {part.name: part for part in judged(suite.only(pd.concat([runs, others])), cost, Intended())}
        for name, part in same.items():
            rows += [{**row, "lr": lr} for row in _rows(part, best[name])]
            problems |= dict.fromkeys(f"lr {lr:g}: {line}" for line in part.problems)
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"tokens": "Int64"})
    frame = frame.sort_values([*SECTION, "reference", "row", "lr"], ignore_index=True)
    return Table(
        NAME, "Charged factor against the learning rate", frame, HEADER, f"{len(frame)} rows",
        sections=SECTION, body=_body, problems=list(problems),
    )  # fmt: skip


def _rows(same: Judged, best: Judged) -> list[dict[str, Any]]:
    """Rows of one rate; plain training at that rate is among those that are compared with the best one."""
    rows = []
    for name, runs in same.rows().items():
        for reference, part in ((SAME, same), (BEST, best)):
            shown = f"{PLAIN} at this rate" if name == PLAIN else name
            if (name, reference) != (PLAIN, SAME):
                rows.append({**same.key, **row_of(part, shown, runs), "reference": reference})
    return rows


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """A row per reference and method; rates across."""
    rows = []
    for (reference, row), group in part.groupby(["reference", "row"], sort=False):
        label = str(row) + (" (control)" if group["kind"].iloc[0] == "control" else "")
        cells = {f"lr={cell['lr']:g}": factor_text(cell, FACTOR, brief) for cell in group.to_dict("records")}
        rows.append(
            {"against plain training at": reference, "row": label, "seeds": str(group["n_seeds"].max())} | cells
        )
    return pd.DataFrame(rows).fillna("")
