"""Tables of what extrapolation does to the loss: momentum catastrophe, cascades, landscape along a direction."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leapbench.names import CONTROLS, VERIFICATION, Regime
from leapbench.records.read import TRAINING, Suite
from leapbench.tables import stats
from leapbench.tables.acceptance import CELL, expected, in_order
from leapbench.tables.common import NUMBERS, Published, Table, seeds_counted, with_published

MOMENTUM = ("momentum", "momentum_decay")
CALM = "transition+stable"


def momentum_catastrophe(suite: Suite, scored: pd.DataFrame, published: Published) -> Table:
    """Predicted against actual loss of the momentum predictors and the controls."""
    predictors = (*MOMENTUM, *CONTROLS)
    rows = scored[scored["predictor"].isin(predictors)]
    calm = rows[rows["regime"].isin((Regime.transition, Regime.stable))]
    rows = pd.concat([rows.assign(regime="all"), calm.assign(regime=CALM)], ignore_index=True)
    key = [*CELL, "regime"]
    rows = rows.assign(
        ratio=rows["loss_pred_nats"] / rows["loss_now_nats"],
        now=rows["loss_now_nats"].where(rows["loss_pred_nats"].notna()),
        nonfinite=100.0 * rows["loss_pred_nats"].isna(),
    )
    by_seed = rows.groupby([*key, "seed"], sort=False).agg(
        predicted=("loss_pred_nats", "mean"), actual=("now", "mean"), nonfinite_pct=("nonfinite", "mean")
    )
    by_seed["ratio"] = by_seed["predicted"] / by_seed["actual"]
    groups = by_seed.reset_index().groupby(key, sort=False)
    pooled = groups.agg(
        predicted_loss_nats=("predicted", "mean"),
        actual_loss_nats=("actual", "mean"),
        nonfinite_pct=("nonfinite_pct", "mean"),
    )
    pooled["ratio_of_means"] = pooled["predicted_loss_nats"] / pooled["actual_loss_nats"]
    pooled["ratio_median"] = rows.groupby(key, sort=False)["ratio"].median()
    pooled["n_proposals"] = rows.groupby(key, sort=False).size()
    expected_cells = expected(suite)
    cells = expected_cells.loc[expected_cells["predictor"].isin(predictors), CELL].drop_duplicates()
    frame = cells.merge(pd.DataFrame({"regime": ["all", CALM]}), how="cross")
    frame = frame.merge(stats.summarise_ratios(by_seed.reset_index(), key, "ratio"), on=key, how="left")
    frame = frame.merge(pooled.reset_index(), on=key, how="left").merge(
        _underflow(suite), on=[*TRAINING, "protocol"], how="left"
    )
    frame["underflow_pct"] = frame["underflow_pct"].where(frame["predictor"].isin(MOMENTUM))
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    frame = with_published(
        frame, published.momentum.assign(predictor="momentum", regime=CALM), ["predictor", "regime", "K"],
        {
            "predicted_loss": "published_predicted_loss_nats", "actual_loss": "published_actual_loss_nats",
            "ratio": "published_ratio",
        },
    )  # fmt: skip
    frame = in_order(frame, [*TRAINING, "regime", "predictor", "protocol", "K"])
    measures = [
        "predicted_loss_nats",
        "actual_loss_nats",
        "ratio_of_means",
        "ratio_median",
        "nonfinite_pct",
        "underflow_pct",
    ]
    cited = ["published_predicted_loss_nats", "published_actual_loss_nats", "published_ratio", "published_model"]
    columns = [*CELL, "regime", *NUMBERS, "n_checkpoints", "n_proposals", *measures, *cited, "published_source"]
    header = (
        "Loss of the predicted weights over the loss at the checkpoint; mean: geometric mean of the seeds' ratios of "
        f"means, with its interval; the paper counts the checkpoints of regime {CALM}, and its ratios stand beside "
        "ours of that regime alone; non-finite losses are left out of the means and shown as a share; underflow: "
        "share of positive second moments that the stored dtype rounds to 0; "
        f"{seeds_counted(suite)}; {stats.RATIO_INTERVAL}."
    )
    show = [
        "regime",
        "predictor",
        "protocol",
        "K",
        "predicted_loss_nats",
        "actual_loss_nats",
        "ratio_of_means",
        "mean",
        "ci_low",
    ]
    show += ["ci_high", "n_seeds", "n_proposals", "ratio_median", "nonfinite_pct", "underflow_pct", "published_ratio"]
    return Table(
        "momentum_catastrophe", "The momentum catastrophe", frame[columns], header, f"{len(frame)} rows",
        sections=TRAINING, show=[*show, "published_model"], compact=CALM, compact_predictors=MOMENTUM[:1],
    )  # fmt: skip


def cascade(suite: Suite) -> Table:
    """Loss and drift along chains of predictions, per link."""
    key = [*TRAINING, "protocol", "predictor", "depth", "K", "link"]
    reached = suite.cascade["step"] + suite.cascade["link"] * suite.cascade["K"]
    rows = suite.cascade.assign(reached=reached).merge(_true_losses(suite), on=["run_id", "reached"], how="left")
    rows["excess"] = rows["loss_nats"] - rows["loss_true_nats"]
    rows["nonfinite"] = 100.0 * rows["loss_nats"].isna()
    by_seed = rows.groupby([*key, "seed"], sort=False).agg(
        loss_nats=("loss_nats", "mean"), loss_now_nats=("loss_now_nats", "mean"),
        loss_true_nats=("loss_true_nats", "mean"), excess_nats=("excess", "mean"),
        loss_pred_nats=("loss_pred_nats", "mean"),
        rel_l2_drift=("rel_l2_drift", "mean"), nonfinite_pct=("nonfinite", "mean"),
    ).reset_index()  # fmt: skip
    extra = ["loss_now_nats", "loss_true_nats", "excess_nats", "loss_pred_nats", "rel_l2_drift", "nonfinite_pct"]
    frame = _describe(rows, by_seed, key, "loss_nats", extra, _configured_links(suite, key))
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    header = (
        "Loss in nats after each link of a chain of depth predictions of K steps, from confirmed-stable checkpoints; "
        "mean, std and interval of the seeds' means; loss_true and the excess over it where training measured the loss "
        "at the step that the link aims at. Drift: relative L2 distance from the checkpoint. As the published code has "
        "it (protocols code, code_float32): K steps of training after each prediction, whose loss is loss_pred; from "
        "the 4 checkpoints with the longest run of stable ones; the drift is that of a link's training, from its "
        f"prediction; {seeds_counted(suite)}; {stats.INTERVAL}."
    )
    show = ["protocol", "predictor", "depth", "K", "link", *NUMBERS, "n_checkpoints", *extra]
    return Table("cascade", "Cascades", frame, header, f"{len(frame)} rows", sections=TRAINING, show=show)


def _true_losses(suite: Suite) -> pd.DataFrame:
    """run_id, reached (step) -> loss_true_nats: the verification loss wherever it was measured along the training."""
    proposals = suite.proposals.assign(reached=suite.proposals["step"] + suite.proposals["K"])
    evals = suite.evals[suite.evals["split"] == VERIFICATION]
    evals = evals.rename(columns={"position": "reached", "loss_nats": "loss_true_nats"})
    columns = ["run_id", "reached", "loss_true_nats"]
    return pd.concat([proposals[columns], evals[columns]]).drop_duplicates(columns[:2])


def landscape(suite: Suite) -> Table:
    """Change of the loss along the predicted displacement."""
    key = [*TRAINING, "protocol", "predictor", "K", "fraction"]
    rows = suite.landscape.assign(change=suite.landscape["loss_nats"] - suite.landscape["loss_now_nats"])
    by_seed = rows.groupby([*key, "seed"], sort=False).agg(
        change_nats=("change", "mean"), loss_now_nats=("loss_now_nats", "mean"),
        directional_derivative=("directional_derivative", "mean"), curvature=("curvature", "mean"),
    ).reset_index()  # fmt: skip
    extra = ["loss_now_nats", "directional_derivative", "curvature"]
    frame = _describe(rows, by_seed, key, "change_nats", extra, None)
    header = (
        "Change of the loss in nats at a fraction of the predicted displacement; derivative and curvature at 0, per "
        "unit of the fraction; as the published code has it (protocols code, code_float32) the secant and the "
        "curvature over the whole displacement, per unit of its norm, without chaotic checkpoints; mean, std and "
        f"interval of each seed's mean; {seeds_counted(suite)}; {stats.INTERVAL}."
    )
    show = ["protocol", "predictor", "K", "fraction", *NUMBERS, "n_checkpoints", *extra]
    return Table(
        "landscape", "Landscape along the prediction", frame, header, f"{len(frame)} rows", sections=TRAINING, show=show
    )


def _describe(
    rows: pd.DataFrame, by_seed: pd.DataFrame, key: list[str], value: str, extra: list[str], cells: pd.DataFrame | None
) -> pd.DataFrame:
    """Numbers of `value` over seeds, the means of `extra`, and the number of proposals behind them."""
    groups = rows.groupby(key, sort=False)
    frame = by_seed.groupby(key, sort=False)[extra].mean().reset_index()
    frame = frame.merge(stats.summarise(by_seed, key, value), on=key, how="left")
    frame = frame.merge(groups.size().rename("n_proposals").reset_index(), on=key, how="left")
    checkpoints = rows.drop_duplicates([*key, "seed", "step"]).groupby(key, sort=False).size().rename("n_checkpoints")
    frame = frame.merge(checkpoints.reset_index(), on=key, how="left")
    if cells is not None:
        frame = cells.merge(frame, on=key, how="left")
    frame[["n_checkpoints", "n_proposals"]] = frame[["n_checkpoints", "n_proposals"]].astype("Int64")
    return in_order(frame[[*key, *NUMBERS, "n_checkpoints", "n_proposals", *extra]], key)


def _configured_links(suite: Suite, key: list[str]) -> pd.DataFrame:
    """Every link that the suite's configs ask for; in a protocol that chains only some predictors, of those."""
    runs = suite.runs.set_index("run_id")
    chained = suite.cascade.groupby("protocol")["predictor"].unique().to_dict()
    parts = [pd.DataFrame(columns=key)]
    for name, science in suite.configs.items():
        config = science.get("cascade") or {}
        if not config.get("enabled"):
            continue
        workload = {column: runs.loc[name, column] for column in TRAINING}
        predictors = [predictor for predictor, spec in (science.get("predictors") or {}).items() if spec is not None]
        rows = [
            {"protocol": protocol, "predictor": predictor, "depth": depth, "K": K, "link": link}
            for protocol in science["protocols"]
            for predictor in chained.get(protocol, predictors)
            for depth, K in config["chains"]
            for link in range(1, depth + 1)
        ]
        parts.append(pd.DataFrame([{**workload, **row} for row in rows], columns=key))
    links = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True).drop_duplicates()
    return links.astype({"depth": "int64", "K": "int64", "link": "int64", "lr": float})


def _underflow(suite: Suite) -> pd.DataFrame:
    """Mean share of underflowed second moments, percent, and checkpoints, per workload and protocol."""
    rows = suite.regimes.groupby([*TRAINING, "protocol"]).agg(
        underflow_pct=("underflow_share", "mean"), n_checkpoints=("step", "size")
    )
    return rows.assign(underflow_pct=100 * rows["underflow_pct"].astype(np.float64)).reset_index()
