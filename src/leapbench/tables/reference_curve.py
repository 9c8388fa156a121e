"""The table of the reference curves: plain training at several budgets."""

from __future__ import annotations

import pandas as pd

from leapbench.tables.common import Table
from leapbench.tables.judged import POINT, SECTION, Judged
from leapbench.tables.numbers import number


def reference_curve(parts: list[Judged]) -> Table:
    """The points of the curves."""
    rows = [part.points.drop(columns="identity", errors="ignore").assign(**part.key) for part in parts]
    frame = (pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()).reindex(columns=[*SECTION, *POINT])
    header = (
        "Plain training at several budgets: what methods are compared with. B: the steps of the methods' runs. cost: "
        "in steps of plain AdamW. Of several plain rows at one budget the one with the lowest mean final loss on the "
        "verification split makes the point. loss: mean final validation loss over seeds, nats; fitted: made monotone."
    )
    return Table(
        "reference_curve", "Reference curve", frame.astype({"tokens": "Int64"}), header, f"{len(frame)} budgets",
        sections=SECTION, body=_body,
    )  # fmt: skip


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "budget [steps]": str(row["budget"]), "over B": number(row["share"]), "cost": number(row["cost"]),
                "seeds": str(row["n_seeds"]), "lr": f"{row['lr']:g}", "schedule": row["schedule"],
                "floor": number(row["floor"]), "verification loss": number(row["verification_nats"]),
                "loss": number(row["loss_nats"]), "fitted": number(row["fitted_nats"]),
            }
            for row in part.to_dict("records")
        ]
    )  # fmt: skip
