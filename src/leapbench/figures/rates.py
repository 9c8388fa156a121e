"""Figures of sweeps of learning rates: where weights can be predicted, and what that is worth."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapbench.figures.style import (
    as_mean,
    grid,
    mean_over,
    plain_log,
    predictor_legend,
    predictor_styles,
    predictors_of,
    protocols_of,
    titled,
    with_interval,
)
from leapbench.names import BASELINE
from leapbench.tables.learning_rates import LOSS
from leapbench.tables.rate_factors import BEST, FACTOR, SAME

WORDS = {"skill": "skill", "accepted_pct": "accepted, strict [%]", "distance_ratio": "distance"}
Look = dict[str, Any]
BEST_RATE: Look = {"color": "#bbbbbb", "lw": 5, "alpha": 0.6, "zorder": 0}  # the rate with the lowest final loss
# Level lines: as good as training on, as good as staying.
ON: Look = {"color": "#555555", "ls": ":"}
STAYING: Look = {"color": "#000000", "ls": "--"}
LEVELS: dict[str, tuple[tuple[float, Look], ...]] = {
    "skill": ((1, ON), (0, STAYING)),
    "distance_ratio": ((1, STAYING),),
}


def learning_rates(frame: pd.DataFrame, name: str) -> Figure | None:
    """Skill, acceptance and distance against the learning rate: a row each, a panel per K, a line per predictor.

    Args:
        frame: of the table `learning_rates`, for one training.
    """
    rows = frame[(frame["protocol"] == protocols_of(frame)[0]) & (frame["n_seeds"] > 0)]
    losses = rows[rows["measure"] == LOSS]
    rows = rows[rows["measure"].isin(list(WORDS)) & (rows["predictor"] != "persistence")]
    if rows.empty:
        return None
    best = float(losses.sort_values("mean")["lr"].iloc[0])
    predictors, horizons = predictors_of(rows), sorted(rows["K"].unique())
    styles = predictor_styles(predictors)
    figure, axes = grid(len(WORDS), len(horizons), 3.2, 2.6, sharey=False)
    for K, ax in zip(horizons, axes[0], strict=True):
        ax.set_title(f"K = {K}")
    for ax in axes[-1]:
        ax.set_xlabel("peak learning rate")
    for panels, (measure, words) in zip(axes, WORDS.items(), strict=True):
        for ax, K in zip(panels, horizons, strict=True):
            _rate_axis(ax, rows)
            if measure == "skill":
                ax.set_yscale("symlog", linthresh=1)
            if measure == "distance_ratio":
                plain_log(ax)
            ax.axvline(best, **BEST_RATE)
            for level, look in LEVELS.get(measure, ()):
                ax.axhline(level, lw=1.2, **look)
            cells = rows[(rows["measure"] == measure) & (rows["K"] == K)]
            for predictor, line in cells.groupby("predictor", sort=False):
                line = line.sort_values("lr")
                with_interval(ax, line["lr"].to_numpy(dtype=float), line, *styles[str(predictor)], "-")
            if measure == "accepted_pct":
                ax.set_ylim(-4, 104)
        panels[0].set_ylabel(words)
    on, staying = Line2D([], [], **ON, label="training on"), Line2D([], [], **STAYING, label="staying (persistence)")
    predictor_legend(figure, predictors, on, staying, Line2D([], [], **BEST_RATE, label="lowest final loss"))
    titled(figure, f"Where weights can be predicted: {name}\n{mean_over(rows)}; every checkpoint")
    return figure


def factors_at_rates(frame: pd.DataFrame, name: str) -> Figure | None:
    """Charged factor against the learning rate: a panel for each plain training it is compared with, a line per row.

    Args:
        frame: of the table `learning_rate_factors`, for one training.
    """
    lines = frame[frame[FACTOR].notna() | (frame["outside"].fillna("") != "")]
    if lines[FACTOR].notna().sum() == 0:
        return None
    plain = frame[frame["kind"] == "baseline"].sort_values("loss_nats")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    looks = _looks(lines)
    for ax, reference in zip(axes, (SAME, BEST), strict=True):
        panel = lines[lines["reference"] == reference]
        _rate_axis(ax, frame)
        plain_log(ax)
        ax.axhline(1, **STAYING, lw=1.2)
        ax.axvline(float(plain["lr"].iloc[0]), **BEST_RATE)
        for row, group in panel.groupby("row", sort=False):
            group = group.sort_values("lr")
            with_interval(ax, group["lr"].to_numpy(dtype=float), as_mean(group, FACTOR), *looks[str(row)], "-")
            for side, marker, end in (("below", "v", "_least"), ("above", "^", "_most")):
                out = group[group["outside"] == side]
                ax.plot(out["lr"], out[f"{FACTOR}{end}"], marker, mfc="white", color=looks[str(row)][0], ms=5)
        ax.set_title(f"against plain training at the {reference}")
        ax.set_xlabel("peak learning rate")
    axes[0].set_ylabel("charged factor")
    handles = [Line2D([], [], color=colour, marker=marker, ms=5, label=row) for row, (colour, marker) in looks.items()]
    handles.append(Line2D([], [], **BEST_RATE, label="lowest final loss of plain training"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    means = mean_over(frame, mean="factor of the means", bars="95 % bootstrap interval")
    titled(figure, f"What leaping is worth: {name}\n{means}; hollow: beyond the reference curve")
    return figure


def _rate_axis(ax: Axes, rows: pd.DataFrame) -> None:
    """A logarithmic axis with a tick at every rate."""
    rates = sorted(rows["lr"].unique())
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45, ha="right")
    ax.set_xticks([], minor=True)


def _looks(lines: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """(colour, marker) of every row: that of its predictor; plain training is grey."""
    predictors = {str(row): str(name) for row, name in zip(lines["row"], lines["predictor"], strict=True)}
    styles = {BASELINE: ("#555555", "s"), **predictor_styles(set(predictors.values()) - {BASELINE})}
    return {row: styles[name] for row, name in predictors.items()}
