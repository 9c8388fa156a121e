"""The README's first table: what survives, from the committed csv files of the embedded suite."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

HORIZONS = (5, 25, 100)
START, END = "<!-- headline: written by scripts/report.py --readme -->", "<!-- /headline -->"


def headline(folder: Path, commit: str) -> str:
    """Two markdown tables: acceptance and distance by predictor, and the momentum catastrophe by protocol.

    Args:
        folder: results/tables/<suite>, with acceptance_strict.csv and momentum_catastrophe.csv of one workload.
        commit: the commit whose runs the tables were made from.
    """
    strict = pd.read_csv(folder / "acceptance_strict.csv")
    momentum = pd.read_csv(folder / "momentum_catastrophe.csv")
    exact = strict[(strict["protocol"] == "exact") & (strict["regime"] == "all")]
    first = exact.iloc[0]
    seeds = int(first["n_seeds"])
    across = [f"K = {K}" for K in HORIZONS]
    lines = [
        f"Runs of commit `{commit[:12]}`: {first['model']} on {first['dataset']}, {first['optimizer']} "
        f"lr {first['lr']:g}, {seeds} seeds, mean and 95 % bootstrap interval over seeds; every checkpoint, all "
        "regimes, protocol `exact`.",
        "",
        _row(["predictor", *(f"better than staying, {k} [%]" for k in across), *(f"distance, {k}" for k in across)]),
        _row([":--", *["--:"] * 6]),
    ]
    for name in exact["predictor"].drop_duplicates():
        own = exact[exact["predictor"] == name].set_index("K")
        cells = [
            f"{r['mean']:.0f} [{r['ci_low']:.0f}, {r['ci_high']:.0f}]" for _, r in own.loc[list(HORIZONS)].iterrows()
        ]
        lines.append(_row([f"`{name}`", *cells, *(f"{own.loc[K, 'distance_ratio']:.2f}" for K in HORIZONS)]))
    lines += [
        "",
        "*Better than staying*: the candidate's held-out loss is below the current one (rule `strict`). *Distance*: "
        "median of the candidate's distance to the weights really reached K steps later, over that of the current "
        "weights; below 1 the prediction is closer than no prediction.",
        "",
        "The published momentum catastrophe, loss of the predicted weights over the current loss, on one trajectory:",
        "",
        _row(["momentum as in", *across, "second moments lost to float16 [%]"]),
        _row([":--", *["--:"] * 4]),
    ]
    rows = momentum[(momentum["regime"] == "all") & (momentum["predictor"] == "momentum")]
    for protocol in rows["protocol"].drop_duplicates():
        own = rows[rows["protocol"] == protocol].set_index("K")
        cells = [_ratio(value) for value in own.loc[list(HORIZONS), "ratio_of_means"]]
        lines.append(_row([f"`{protocol}`", *cells, f"{own.loc[HORIZONS[0], 'underflow_pct']:.0f}"]))
    cited = momentum.dropna(subset=["published_ratio"]).drop_duplicates("K").set_index("K")
    who = cited["published_source"].iloc[0]
    cells = [_ratio(value) for value in cited.loc[list(HORIZONS), "published_ratio"]]
    lines.append(_row([f"published, {cited['published_model'].iloc[0]} ({who})", *cells, ""]))
    return "\n".join(lines)


def into_readme(readme: Path, text: str) -> None:
    """Replace what stands between the headline's two markers.

    Raises:
        ValueError: the markers are missing.
    """
    old = readme.read_text(encoding="utf-8")
    between = re.compile(rf"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(old):
        raise ValueError(f"{readme}: no line {START}")
    readme.write_text(between.sub(lambda _: f"{START}\n{text}\n{END}", old), encoding="utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
