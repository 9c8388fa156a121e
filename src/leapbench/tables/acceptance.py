"""Acceptance, derived from the stored losses: every rule, every proposal, parameters from the run's config."""

from __future__ import annotations

from typing import Any

import pandas as pd

from leapbench.names import CONTROLS, EVALS, VERIFICATION, Regime, Status
from leapbench.prediction.rules import adaptive, proximity, sigma_recent, strict
from leapbench.records.read import TRAINING, Suite
from leapbench.records.rows import RecordError

ALL = "all"  # checkpoints of every regime
REGIMES = (Regime.transition, Regime.stable, Regime.chaotic, ALL)
# Of the rules, as their columns are called while losses are judged.
PARAMETERS = ["tolerance", "two_sided", "adaptive_inclusive", "proximity_inclusive"]
CELL = [*TRAINING, "protocol", "predictor", "K"]
PROTOCOLS = ("exact", "paper", "code")
FIRST_PREDICTORS = ("linear", "quadratic", "momentum", "momentum_decay", "trend")


def score(suite: Suite) -> pd.DataFrame:
    """The suite's proposals with a boolean column per rule. A non-finite predicted loss is accepted by none."""
    scored = suite.proposals.copy()
    rules = _rules(suite, scored)
    scored = scored.merge(rules, on=["run_id", "protocol"], how="left")
    scored = scored.merge(_sigmas(suite, rules), on=["run_id", "step", "sigma_over"], how="left")
    now, predicted = scored["loss_now_nats"].to_numpy(dtype=float), scored["loss_pred_nats"].to_numpy(dtype=float)
    if scored["sigma_nats"].isna().any():
        row = scored[scored["sigma_nats"].isna()].iloc[0]
        run = suite.folder / row["run_id"]
        raise RecordError(f"{run}: no finite verification loss at step {row['step']}, though it has proposals")
    scored["strict"] = strict(predicted, now)
    scored["adaptive"] = scored["proximity"] = False
    sigma = scored["sigma_nats"].to_numpy(dtype=float)
    for values in scored[PARAMETERS].drop_duplicates().itertuples(index=False):
        mask = (scored[PARAMETERS] == list(values)).all(axis=1).to_numpy()
        tolerance, two_sided, adaptive_inclusive, proximity_inclusive = values
        scored.loc[mask, "adaptive"] = adaptive(predicted[mask], now[mask], sigma[mask], bool(adaptive_inclusive))
        scored.loc[mask, "proximity"] = proximity(
            predicted[mask], now[mask], float(tolerance), bool(two_sided), bool(proximity_inclusive)
        )
    return scored.drop(columns=["sigma_over", *PARAMETERS])


def expected(suite: Suite) -> pd.DataFrame:
    """Every (workload, protocol, predictor, K, seed) that the suite's configs ask for, once, with a status.

    The status is `completed` if a run delivered it, else the reason why not: failed, diverged, skipped or partial.
    """
    runs = suite.runs.set_index("run_id")
    rows: list[dict[str, Any]] = []
    for name, science in suite.configs.items():
        run = runs.loc[name]
        workload = {key: run[key] for key in [*TRAINING, "seed"]}
        for predictor, spec in (science.get("predictors") or {}).items():
            if spec is None:
                continue
            status = Status.skipped if predictor in run["skipped"] else run["status"]
            rows += [
                {**workload, "protocol": protocol, "predictor": predictor, "K": K, "status": status}
                for protocol in science["protocols"]
                for K in _as_list(science["K"])
            ]
    if not rows:
        empty = pd.DataFrame(columns=[*CELL, "seed", "status"], dtype=str)
        return empty.astype({"lr": float, "K": "int64", "seed": "Int64"})
    table = pd.DataFrame(rows)
    table["missing"] = table["status"] != Status.completed
    key = [*CELL, "seed"]
    return table.sort_values([*key, "missing"]).drop_duplicates(key).drop(columns="missing").reset_index(drop=True)


def rates(scored: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Per cell, regime and seed: proposals, accepted, rate (percent), and the means of losses and distances.

    Args:
        scored: of :func:`score`.
        rule: one of JUDGED.

    Returns:
        one row per workload, protocol, predictor, K, regime (`all` counts every proposal) and seed with a proposal;
        distance_ratio is the median of |theta_hat - theta(t+K)| / |theta(t) - theta(t+K)|, 1 for persistence.
    """
    rows = scored[
        [*CELL, "regime", "seed", rule, "loss_pred_nats", "loss_now_nats", "loss_true_nats", "rel_l2_to_true"]
    ]
    rows = rows.assign(distance_ratio=distance_ratio(scored))
    extended = pd.concat([rows, rows.assign(regime="all")], ignore_index=True)
    return (
        extended.groupby([*CELL, "regime", "seed"], sort=False)
        .agg(
            proposals=(rule, "size"),
            accepted=(rule, "sum"),
            loss_now_nats=("loss_now_nats", "mean"),
            loss_pred_nats=("loss_pred_nats", "mean"),
            loss_true_nats=("loss_true_nats", "mean"),
            rel_l2_to_true=("rel_l2_to_true", "mean"),
            distance_ratio=("distance_ratio", "median"),
        )
        .reset_index()
        .assign(rate=lambda table: 100 * table["accepted"] / table["proposals"])
    )


def distance_ratio(proposals: pd.DataFrame) -> pd.Series:
    """Distance of the candidate to the true future weights over that of the current ones; NaN for 0 / 0."""
    base = proposals["rel_l2_now_to_true"].astype(float)
    return proposals["rel_l2_to_true"].astype(float) / base.where(base > 0)


def in_order(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Rows sorted by `columns`: regimes and predictors in the order of the tables, the controls last."""

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "regime":
            return column.map(lambda name: REGIMES.index(name) if name in REGIMES else len(REGIMES))
        if column.name == "predictor":
            names = sorted(set(column) - set(FIRST_PREDICTORS) - set(CONTROLS))
            order = [*FIRST_PREDICTORS, *names, *CONTROLS]
            return column.map(order.index)
        if column.name == "protocol":
            return column.map(lambda name: str(PROTOCOLS.index(name)) if name in PROTOCOLS else name)
        return column

    return table.sort_values(columns, key=rank, kind="stable").reset_index(drop=True)


def _as_list(K: Any) -> list[int]:
    return list(K) if isinstance(K, list | tuple) else [K]


def _rules(suite: Suite, scored: pd.DataFrame) -> pd.DataFrame:
    """run_id, protocol -> sigma_over (`all` or a count, as text) and PARAMETERS."""
    rows = []
    for run_id, protocol in scored[["run_id", "protocol"]].drop_duplicates().itertuples(index=False):
        try:
            rules = suite.configs[run_id]["protocols"][protocol]["rules"]
            rows.append(
                {
                    "run_id": run_id, "protocol": protocol, "sigma_over": str(rules["adaptive"]["sigma_over"]),
                    "tolerance": float(rules["proximity"]["tolerance"]),
                    "two_sided": bool(rules["proximity"]["two_sided"]),
                    "adaptive_inclusive": bool(rules["adaptive"].get("inclusive", True)),
                    "proximity_inclusive": bool(rules["proximity"].get("inclusive", True)),
                }
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise RecordError(
                f"{suite.folder / run_id}/config.yaml: no {error} under science.protocols.{protocol}.rules"
            ) from None
    return pd.DataFrame(rows, columns=["run_id", "protocol", "sigma_over", *PARAMETERS])


def _sigmas(suite: Suite, rules: pd.DataFrame) -> pd.DataFrame:
    """run_id, step, sigma_over -> sigma_nats, from the run's verification losses."""
    evals = suite.records[EVALS]
    losses = evals[evals["split"] == VERIFICATION].drop(columns="step").rename(columns={"position": "step"})
    losses = losses.drop_duplicates(["run_id", "step"]).sort_values(["run_id", "step"])
    by_run = dict(iter(losses.groupby("run_id")[["step", "loss_nats"]]))
    parts = []
    for run_id, sigma_over in rules[["run_id", "sigma_over"]].drop_duplicates().itertuples(index=False):
        if run_id not in by_run:
            continue
        series = by_run[run_id]["loss_nats"].to_numpy(dtype=float)
        sigmas = sigma_recent(series, sigma_over if sigma_over == "all" else int(sigma_over))
        steps = by_run[run_id]["step"]
        parts.append(pd.DataFrame({"run_id": run_id, "step": steps, "sigma_over": sigma_over, "sigma_nats": sigmas}))
    if not parts:
        empty = pd.DataFrame(columns=["run_id", "step", "sigma_over", "sigma_nats"])
        return empty.astype({"run_id": str, "step": "int64", "sigma_over": str, "sigma_nats": float})
    return pd.concat(parts, ignore_index=True)
