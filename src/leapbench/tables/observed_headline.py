"""What docs/ shows of suites that observe: acceptance, the momentum catastrophe, and both beside the published ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from leapbench.tables import stats
from leapbench.tables.acceptance import ALL
from leapbench.tables.extrapolation import CALM
from leapbench.tables.numbers import commit_names, line_of, number

HORIZONS = (5, 25, 100)
COMPARED = (5, 25)  # horizons of the comparison with the published acceptance
RULES = ("strict", "proximity")  # whose acceptance is published


def acceptance_headline(folder: Path, commits: list[str]) -> str:
    """A markdown table: acceptance and distance by predictor.

    Args:
        folder: results/tables/<suite>, with acceptance_strict.csv of one workload.
        commits: whose runs the tables were made from.
    """
    exact = _exact(folder)
    first = exact.iloc[0]
    seeds = int(first["n_seeds"])
    across = [f"K = {K}" for K in HORIZONS]
    lines = [
        f"Runs of {commit_names(commits)}: {first['model']} on {first['dataset']}, {first['optimizer']} "
        f"lr {first['lr']:g}, {seeds} seed{'s' if seeds > 1 else ''}; every checkpoint, all regimes, protocol `exact`; "
        f"mean and {stats.RATE_INTERVAL}.",
        "",
        line_of(["predictor", *(f"better than staying, {k} [%]" for k in across), *(f"distance, {k}" for k in across)]),
        line_of([":--", *["--:"] * 6]),
    ]
    for name in exact["predictor"].drop_duplicates():
        group = exact[exact["predictor"] == name].set_index("K")
        cells = [
            f"{r['mean']:.0f}" + (f" [{r['ci_low']:.0f}, {r['ci_high']:.0f}]" if pd.notna(r["ci_low"]) else "")
            for _, r in group.loc[list(HORIZONS)].iterrows()
        ]
        lines.append(line_of([f"`{name}`", *cells, *(f"{group.loc[K, 'distance_ratio']:.2f}" for K in HORIZONS)]))
    lines += [
        "",
        "*Better than staying*: the candidate's held-out loss is below the current one (rule `strict`). *Distance*: "
        "median of the candidate's distance to the weights really reached K steps later, over that of the current "
        "weights; below 1 the prediction is closer than no prediction.",
    ]
    return "\n".join(lines)


def headline(folder: Path, commits: list[str]) -> str:
    """:func:`acceptance_headline`, and the momentum catastrophe by protocol from momentum_catastrophe.csv."""
    return f"{acceptance_headline(folder, commits)}\n\n{_catastrophe(folder)}"


def published_headline(folder: Path, commits: list[str]) -> str:
    """:func:`headline`, then regimes and acceptance by the rules of the published code beside the published ones."""
    return f"{headline(folder, commits)}\n\n{_beside_published(folder)}"


def _exact(folder: Path) -> pd.DataFrame:
    strict = pd.read_csv(folder / "acceptance_strict.csv")
    return strict[(strict["protocol"] == "exact") & (strict["regime"] == ALL)]


def _of_that_training(folder: Path, table: str) -> pd.DataFrame:
    """A table without the trainings that leap by themselves, which are another workload."""
    frame, setting = pd.read_csv(folder / f"{table}.csv"), _exact(folder)["setting"].iloc[0]
    return frame[frame["setting"].isna() | (frame["setting"] == setting)]


def _catastrophe(folder: Path) -> str:
    momentum = _of_that_training(folder, "momentum_catastrophe")
    momentum = momentum[momentum["predictor"] == "momentum"]
    share = _calm_share(momentum)
    compared = (
        f"Ours and the published one are both over the checkpoints of transition and stable alone ({share})"
        if share
        else "The published one is over the checkpoints of transition and stable; ours has none, so it is over all"
    )
    lines = [
        "The published momentum catastrophe, loss of the predicted weights over the current loss, on one trajectory. "
        f"{compared}:",
        "",
        line_of(["momentum as in", *(f"K = {K}" for K in HORIZONS), "second moments lost to float16 [%]"]),
        line_of([":--", *["--:"] * 4]),
    ]
    rows = momentum[momentum["regime"] == (CALM if share else ALL)]
    for protocol in rows["protocol"].drop_duplicates():
        group = rows[rows["protocol"] == protocol].set_index("K")
        cells = [_ratio(value) for value in group.loc[list(HORIZONS), "ratio_of_means"]]
        lines.append(line_of([f"`{protocol}`", *cells, f"{group.loc[HORIZONS[0], 'underflow_pct']:.0f}"]))
    cited = momentum.dropna(subset=["published_ratio"]).drop_duplicates("K").set_index("K")
    source = cited["published_source"].iloc[0]
    cells = [_ratio(value) for value in cited.loc[list(HORIZONS), "published_ratio"]]
    lines.append(line_of([f"published, {cited['published_model'].iloc[0]} ({source})", *cells, ""]))
    return "\n".join(lines)


def _calm_share(momentum: pd.DataFrame) -> str:
    """`75-76 of 117 proposals at K = 5`: how many of our proposals those are, over the protocols; empty for none."""
    rows = momentum[momentum["K"] == HORIZONS[0]]
    calm, total = (rows.loc[rows["regime"] == regime, "n_proposals"].fillna(0).astype(int) for regime in (CALM, ALL))
    span = f"{calm.min()}" if calm.min() == calm.max() else f"{calm.min()}-{calm.max()}"
    return f"{span} of {total.max()} proposals at K = {HORIZONS[0]}" if calm.min() else ""


def _beside_published(folder: Path) -> str:
    """Two markdown tables of protocol `code`: regimes, and acceptance by rule, regime and K."""
    regimes = _of_that_training(folder, "regime_distribution")
    regimes = regimes[regimes["protocol"] == "code"]
    first = regimes.dropna(subset=["published_mean"]).iloc[0]
    checkpoints = int(regimes["n_checkpoints"].max() // regimes["n_seeds"].max())
    lines = [
        f"Checkpoints of each regime, protocol `code`, of {checkpoints} in a run (thresholds {first['tau_low']:.6g} "
        f"and {first['tau_high']:.6g}):",
        "",
        line_of(["", *regimes["regime"]]),
        line_of([":--", *["--:"] * len(regimes)]),
        line_of(["ours", *(number(value, percent=True) for value in regimes["mean"])]),
        line_of([
            f"published, {first['published_model']} ({first['published_source']})",
            *(number(value, percent=True) for value in regimes["published_mean"]),
        ]),
        "",
        "Accepted of the proposals of a regime, protocol `code`: ours with its interval / published [%]. The published "
        "training leapt by itself, which ours does not where several protocols share it; the published `momentum` in "
        "`stable` [comes from these leaps](fidelity.md).",
        "",
    ]  # fmt: skip
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for rule in RULES:
        table = _of_that_training(folder, f"acceptance_{rule}")
        cited = set(table.loc[table["published_mean"].notna(), "predictor"])
        table = table[(table["protocol"] == "code") & table["K"].isin(COMPARED) & table["predictor"].isin(cited)]
        table = table[table["published_mean"].notna() | (table["regime"] == ALL)]
        for cell in table.to_dict("records"):
            low, high = (number(cell[end], percent=True) for end in ("ci_low", "ci_high"))
            ours = number(cell["mean"], percent=True) + (f" [{low}, {high}]" if low else "") or "none in it"
            row = cells.setdefault((rule, cell["regime"], cell["K"]), {})
            row[cell["predictor"]] = f"{ours} / {number(cell['published_mean'], percent=True) or '-'}"
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    lines += [
        line_of(["rule", "regime", "K", *(f"`{name}`" for name in names)]),
        line_of([":--", ":--", *["--:"] * (1 + len(names))]),
        *(
            line_of([f"`{rule}`", regime, str(K), *(row.get(name, "") for name in names)])
            for (rule, regime, K), row in cells.items()
        ),
    ]
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
