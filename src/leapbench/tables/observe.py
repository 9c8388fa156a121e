"""Tables of predictability: regimes, acceptance under each rule, consistency over seeds, protocols side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leapbench.names import JUDGED, Regime, Status
from leapbench.records.read import TRAINING, Suite
from leapbench.tables import stats
from leapbench.tables.acceptance import CELL, REGIMES, expected, in_order, rates
from leapbench.tables.common import NUMBERS, PUBLISHED, Published, Table, count_cells, seeds_counted, with_published
from leapbench.tables.render import section_name

DECISION = {
    "strict": "accepted if Lhat < L(t)",
    "adaptive": "accepted if Lhat <= L(t) + sigma; sigma = std of the verification losses the protocol names (5 = "
    "the last five up to t, all = the whole run; paper: < where the others have <=)",
    "proximity": "accepted if Lhat is within the protocol's tolerance of L(t) (exact and paper: 5 %, both sides; code: "
    "0.5 %, above only; paper: < where the others have <=)",
}
EXTRAS = ["loss_now_nats", "loss_pred_nats", "loss_true_nats", "rel_l2_to_true", "distance_ratio"]
KINDS = (Regime.chaotic, Regime.transition, Regime.stable, Regime.unknown)
BY_REGIME = [*CELL, "regime"]


def regime_distribution(suite: Suite, published: Published) -> Table:
    """Checkpoints per run in each regime, and the thresholds."""
    key = [*TRAINING, "protocol", "regime"]
    counts = suite.regimes.groupby([*key, "seed"]).size().rename("checkpoints").reset_index()
    runs = suite.regimes[[*TRAINING, "protocol", "seed"]].drop_duplicates()
    grid = runs.merge(pd.DataFrame({"regime": KINDS}), how="cross")
    counts = grid.merge(counts, on=[*key, "seed"], how="left").fillna({"checkpoints": 0})
    taus = suite.regimes.groupby([*TRAINING, "protocol"])[["tau_low", "tau_high"]].mean().reset_index()
    total = suite.regimes.groupby([*TRAINING, "protocol"]).size().rename("n_checkpoints").reset_index()
    frame = stats.summarise(counts, key, "checkpoints", (0, np.inf)).merge(total, on=key[:-1]).merge(taus, on=key[:-1])
    frame = _configured_regimes(suite).merge(frame, on=key, how="left")
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    frame["n_checkpoints"] = frame["n_checkpoints"].astype("Int64")
    frame["ci_high"] = frame["ci_high"].clip(upper=frame["n_checkpoints"].astype(float) / frame["n_seeds"])
    frame["share_pct"] = 100 * frame["mean"] * frame["n_seeds"] / frame["n_checkpoints"]
    names = {"mean": "published_mean", "std": "published_std", "n_seeds": "published_n"}
    frame = with_published(frame, published.regimes, ["regime"], names)
    frame = in_order(frame, [*TRAINING, "protocol", "regime"])
    frame = frame[[*key, *NUMBERS, "n_checkpoints", "share_pct", "tau_low", "tau_high", *PUBLISHED]]
    columns = ["protocol", "regime", "mean", "std", "ci_low", "ci_high", "n_seeds", "n_checkpoints", "share_pct"]
    return Table(
        "regime_distribution", "Regime distribution", frame,
        f"Checkpoints per run in each regime; {seeds_counted(suite)}; {stats.INTERVAL}.",
        f"{len(frame)} rows", sections=TRAINING, show=[*columns, "published_mean", "published_std", "published_model"],
    )  # fmt: skip


def acceptance(suite: Suite, scored: pd.DataFrame, rule: str, published: Published) -> Table:
    """Share of proposals that a rule accepts, percent, per workload, protocol, regime, K and predictor."""
    frame, per_seed = acceptance_frames(suite, scored, rule)
    cited = published.acceptance[published.acceptance["rule"] == rule]
    names = {"mean_pct": "published_mean", "std_pct": "published_std", "n_seeds": "published_n"}
    frame = with_published(frame, cited, ["regime", "K", "predictor"], names)
    frame = in_order(frame, [*TRAINING, "protocol", "regime", "predictor", "K"])
    key = [*TRAINING, "protocol", "regime", "K", "predictor"]
    frame = frame[[*key, *NUMBERS, "n_checkpoints", "n_proposals", *EXTRAS, *PUBLISHED]]
    header = (
        f"Accepted proposals in percent of a seed's proposals in the regime, mean ± std [interval] over seeds; "
        f"{seeds_counted(suite)}; {stats.RATE_INTERVAL}. Rule: {DECISION[rule]}. Losses now, predicted and "
        "true, and distances to the true weights, are in the csv."
    )
    return Table(
        f"acceptance_{rule}", f"Acceptance, {rule} rule", frame, header, count_cells(per_seed), across="K",
        percent=True, compact="all", per_seed=per_seed, remarks=_inline_remarks(suite, frame),
    )  # fmt: skip


def _inline_remarks(suite: Suite, frame: pd.DataFrame) -> dict[str, list[str]]:
    """Section -> where the published rates of momentum that are the same at every K most likely come from."""
    leaping = {name for name, science in suite.configs.items() if science["train"].get("inline_leaps")}
    runs = suite.runs.assign(leaps=suite.runs["run_id"].isin(leaping))
    remarks: dict[str, list[str]] = {}
    stable = frame[(frame["protocol"] == "code") & (frame["regime"] == Regime.stable)]
    momentum = stable[(stable["predictor"] == "momentum") & (stable["published_mean"] > 0)]
    for values, cells in momentum.groupby([*TRAINING, "protocol"], sort=False):
        key = dict(zip([*TRAINING, "protocol"], values, strict=True))
        same = cells[cells["published_mean"] == cells["published_mean"].mode()[0]].sort_values("K")
        if len(same) < 3:
            continue
        own = runs[np.logical_and.reduce([runs[column] == key[column] for column in TRAINING])]
        horizons = ", ".join(map(str, same["K"]))
        remarks[section_name(key)] = [
            f"Published for momentum in `stable`: {same['published_mean'].iloc[0]:g} % at K = {horizons} alike. Most "
            "likely no prediction succeeded there: while it trains GPT-2, the published code adopts momentum at K = 5 "
            "at confirmed-stable checkpoints whose loss it lowers, zeroes the moments, and stores the weights from "
            "after that leap with the loss from before it. Out of zero moments momentum predicts no change at any K, "
            "which is accepted at every K. The training of this section "
            + ("makes those leaps" if own["leaps"].any() else "makes no such leaps")
            + f" (`train.inline_leaps={str(bool(own['leaps'].any())).lower()}`)."
        ]
    return remarks


def acceptance_frames(suite: Suite, scored: pd.DataFrame, rule: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(over seeds per cell and regime, per seed at regime `all`), both with the missing cells."""
    expected_cells = expected(suite)
    seed_rates = rates(scored, rule)
    per_seed = expected_cells.merge(
        seed_rates[seed_rates["regime"] == "all"].drop(columns="regime"), on=[*CELL, "seed"], how="left"
    )
    undelivered = (per_seed["status"] == Status.completed) & per_seed["proposals"].isna()
    per_seed["status"] = per_seed["status"].mask(undelivered, Status.missing)
    per_seed = in_order(per_seed, [*TRAINING, "protocol", "predictor", "K", "seed"])

    cells = expected_cells[CELL].drop_duplicates().merge(pd.DataFrame({"regime": REGIMES}), how="cross")
    numbers = stats.summarise_rates(seed_rates, BY_REGIME, "rate", "proposals")
    totals = seed_rates.groupby(BY_REGIME, sort=False).agg(
        n_proposals=("proposals", "sum"), **{name: (name, "mean") for name in EXTRAS}
    )
    frame = cells.merge(numbers, on=BY_REGIME, how="left").merge(totals.reset_index(), on=BY_REGIME, how="left")
    frame = frame.merge(checkpoints(suite), on=[*TRAINING, "protocol", "regime"], how="left")
    delivered = seed_rates[CELL].drop_duplicates().assign(delivered=True)
    has_rates = frame[CELL].merge(delivered, on=CELL, how="left")["delivered"].notna()
    frame["n_seeds"] = frame["n_seeds"].fillna(0).astype(int)
    for name in ("n_proposals", "n_checkpoints"):
        frame[name] = frame[name].mask(has_rates & frame[name].isna(), 0).where(has_rates).astype("Int64")
    return frame, per_seed


def consistency(suite: Suite, frames: dict[str, pd.DataFrame], scored: pd.DataFrame, published: Published) -> Table:
    """Coefficient of variation over seeds of each acceptance rate, percent."""
    key = [*TRAINING, "protocol", "rule", "regime", "K", "predictor"]
    parts = []
    for rule in JUDGED:
        spread = (
            rates(scored, rule).groupby(BY_REGIME)["rate"].agg(cov_pct=stats.coefficient_of_variation).reset_index()
        )
        part = frames[rule].merge(spread, on=BY_REGIME, how="left").assign(rule=rule)
        parts.append(part[[*key, *NUMBERS, "cov_pct", "n_checkpoints", "n_proposals"]])
    cited = published.cov.melt(["model", "regime", "rule", "K", "source"], ["linear_cov_pct", "quadratic_cov_pct"])
    cited["predictor"] = cited["variable"].str.removesuffix("_cov_pct")
    frame = pd.concat(parts, ignore_index=True)
    frame = with_published(frame, cited, ["regime", "rule", "K", "predictor"], {"value": "published_cov_pct"})
    frame = in_order(frame, [*TRAINING, "protocol", "rule", "regime", "predictor", "K"])
    header = (
        f"100 std / mean of the acceptance rate over seeds, percent; empty where the mean is 0 or fewer than "
        f"two seeds count; {seeds_counted(suite)}. The csv has the rate's mean, std and {stats.RATE_INTERVAL}."
    )
    return Table(
        "consistency", "Consistency over seeds", frame, header, f"{len(frame)} rows",
        rows=["rule", "regime", "predictor"], across="K", percent=True, compact="all",
    )  # fmt: skip


def protocols(suite: Suite, frames: dict[str, pd.DataFrame]) -> Table:
    """The same cells under every protocol, side by side: acceptance rates in percent."""
    long = pd.concat([frame.assign(rule=rule) for rule, frame in frames.items()], ignore_index=True)
    key = [*TRAINING, "rule", "regime", "K", "predictor"]
    names = list(in_order(long[["protocol"]].drop_duplicates(), ["protocol"])["protocol"])
    wide = long[key].drop_duplicates()
    for name in names:
        part = long.loc[long["protocol"] == name, [*key, *NUMBERS, "n_checkpoints", "n_proposals"]]
        wide = wide.merge(part.rename(columns={c: f"{name}_{c}" for c in part.columns.drop(key)}), on=key, how="left")
    cited = long[[*key, *PUBLISHED]].drop_duplicates(key)
    frame = in_order(wide.merge(cited, on=key, how="left"), [*TRAINING, "rule", "regime", "predictor", "K"])
    header = (
        f"Accepted proposals, percent, mean ± std [interval] over seeds, for each protocol, on the same trajectories "
        f"where the suite ran them together; {seeds_counted(suite)}; {stats.RATE_INTERVAL}."
    )
    show = ["regime", "predictor", "K", *names]
    return Table(
        "protocols", "Protocols side by side", frame, header, f"{len(frame)} rows x {len(names)} protocols",
        sections=[*TRAINING, "rule"], show=show, percent=True, compact="all",
    )  # fmt: skip


def _configured_regimes(suite: Suite) -> pd.DataFrame:
    """Every workload, protocol and regime of the suite's configs, once."""
    runs = suite.runs.set_index("run_id")
    rows = [
        {**{column: runs.loc[name, column] for column in TRAINING}, "protocol": protocol, "regime": regime}
        for name, science in suite.configs.items()
        for protocol in science["protocols"]
        for regime in KINDS
    ]
    return pd.DataFrame(rows, columns=[*TRAINING, "protocol", "regime"]).astype({"lr": float}).drop_duplicates()


def checkpoints(suite: Suite) -> pd.DataFrame:
    """Checkpoints of completed runs by workload, protocol and regime, `all` included."""
    key = [*TRAINING, "protocol", "regime"]
    rows = suite.regimes[key]
    extended = pd.concat([rows, rows.assign(regime="all")], ignore_index=True)
    return extended.groupby(key).size().rename("n_checkpoints").reset_index()
