"""What a prediction is worth: how much of the loss that training would gain it gains, beside how close it comes."""

from __future__ import annotations

import pandas as pd

from leapbench.names import Status
from leapbench.records.read import TRAINING, Suite
from leapbench.tables import stats
from leapbench.tables.acceptance import ALL, CELL, REGIMES, distance_ratio, expected, in_order
from leapbench.tables.common import NUMBERS, Table, count_cells, seeds_counted
from leapbench.tables.numbers import MISSING, number
from leapbench.tables.observe import checkpoints

KEY = [*CELL, "regime"]
QUARTILES = {"skill_q1": 0.25, "skill": 0.5, "skill_q3": 0.75}
MEANS = ["skill_q1", "skill_q3", "undefined_pct", "nonfinite_pct", "distance_ratio"]


def skill_of(proposals: pd.DataFrame) -> pd.Series:
    """(L_now - L_pred) / (L_now - L_true): 1 as good as training on, 0 as staying, negative worse.

    NaN where the training did not lower the loss, so that there is nothing to share in, or did not arrive there, and
    where the predicted loss is not finite.
    """
    now = proposals["loss_now_nats"].astype(float)
    gained = now - proposals["loss_true_nats"].astype(float)
    return (now - proposals["loss_pred_nats"].astype(float)) / gained.where(gained > 0)


def skill(suite: Suite, scored: pd.DataFrame) -> Table:
    """Skill and distance per workload, protocol, regime, predictor and K: median and quartiles of each seed's."""
    by_seed = skill_by_seed(scored)
    cells = expected(suite)
    per_seed = cells.merge(by_seed[by_seed["regime"] == ALL].drop(columns="regime"), on=[*CELL, "seed"], how="left")
    undelivered = (per_seed["status"] == Status.completed) & per_seed["proposals"].isna()
    per_seed["status"] = per_seed["status"].mask(undelivered, Status.missing)
    totals = by_seed.groupby(KEY, sort=False).agg(
        n_proposals=("proposals", "sum"), **{name: (name, "mean") for name in MEANS}
    )
    frame = cells[CELL].drop_duplicates().merge(pd.DataFrame({"regime": REGIMES}), how="cross")
    frame = frame.merge(stats.summarise(by_seed, KEY, "skill"), on=KEY, how="left")
    frame = frame.merge(totals.reset_index(), on=KEY, how="left")
    frame = frame.merge(checkpoints(suite), on=[*TRAINING, "protocol", "regime"], how="left")
    delivered = frame[CELL].merge(by_seed[CELL].drop_duplicates().assign(delivered=True), on=CELL, how="left")
    has_rows = delivered["delivered"].notna()
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    for name in ("n_proposals", "n_checkpoints"):
        frame[name] = frame[name].mask(has_rows & frame[name].isna(), 0).where(has_rows).astype("Int64")
    frame = in_order(frame, [*TRAINING, "protocol", "regime", "predictor", "K"])
    frame = frame[[*TRAINING, "protocol", "regime", "K", "predictor", *NUMBERS, "n_checkpoints", "n_proposals", *MEANS]]
    header = (
        "Skill: (L(t) - Lhat) / (L(t) - L(t+K)); 1 as good as training on, 0 as good as staying, negative worse: "
        f"median [quartiles] of a seed's proposals in the regime, each a mean over seeds; {seeds_counted(suite)}. "
        "Proposals after which training did not lower the loss have no skill and are left out, as are losses that are "
        "not finite; the csv has both shares, and mean, std and interval of the seeds' medians "
        f"({stats.INTERVAL}). Distance: median of "
        "|theta_hat - theta(t+K)| over |theta(t) - theta(t+K)|; below 1 the prediction is closer than staying. A "
        "candidate of high skill far from the truth gains by smoothing, not by prediction."
    )
    return Table(
        "skill", "Skill and distance", frame, header, count_cells(per_seed), compact=ALL, body=_body,
        per_seed=in_order(per_seed, [*TRAINING, "protocol", "predictor", "K", "seed"]),
    )  # fmt: skip


def skill_by_seed(scored: pd.DataFrame) -> pd.DataFrame:
    """Per cell, regime (`all` counts every proposal) and seed: proposals, MEANS and the median skill."""
    rows = scored[[*KEY, "seed"]].assign(
        value=skill_of(scored), distance_ratio=distance_ratio(scored),
        nonfinite_pct=100.0 * scored["loss_pred_nats"].isna(),
        undefined_pct=100.0 * ~(scored["loss_true_nats"].astype(float) < scored["loss_now_nats"].astype(float)),
    )  # fmt: skip
    groups = pd.concat([rows, rows.assign(regime=ALL)], ignore_index=True).groupby([*KEY, "seed"], sort=False)
    table = groups.agg(
        proposals=("value", "size"), undefined_pct=("undefined_pct", "mean"), nonfinite_pct=("nonfinite_pct", "mean"),
        distance_ratio=("distance_ratio", "median"),
    )  # fmt: skip
    return table.assign(**{name: groups["value"].quantile(q) for name, q in QUARTILES.items()}).reset_index()


def _body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """Two rows per regime and predictor, skill and distance; horizons across."""
    body = []
    for (regime, predictor), group in part.groupby(["regime", "predictor"], sort=False):
        cells = group.to_dict("records")
        label = {"regime": regime, "predictor": predictor, "seeds": str(group["n_seeds"].max())}
        for measure in ("skill", "distance"):
            texts = {f"K={cell['K']}": _text(cell, measure, brief) for cell in cells}
            body.append({**label, "measure": measure, **texts})
    return pd.DataFrame(body).fillna("")


def _text(cell: dict, measure: str, brief: bool) -> str:
    if pd.isna(cell["n_proposals"]):
        return MISSING
    if measure == "distance":
        return number(cell["distance_ratio"]) or "-"
    median, low, high = (number(cell[name]) for name in ("mean", "skill_q1", "skill_q3"))
    return (median if brief else f"{median} [{low}, {high}]") if median else "-"
