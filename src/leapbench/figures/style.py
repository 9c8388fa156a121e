"""How the figures look: one colour and marker per predictor, colour-blind safe, and the helpers that panels share."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib

from leapbench.names import Regime

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from leapbench.tables.acceptance import in_order
from leapbench.tables.stats import BARS

DPI = 150
# One style per predictor; no two share a colour.
PREDICTOR_STYLE = {
    "linear": ("#0072B2", "o"), "quadratic": ("#D55E00", "s"), "momentum": ("#CC79A7", "^"),
    "momentum_decay": ("#882255", "v"), "trend": ("#009E73", "D"), "average": ("#E69F00", "P"),
    "persistence": ("#000000", "_"), "dmd": ("#332288", "*"), "pdt": ("#117733", "X"),
    "masked_linear": ("#56B4E9", "p"), "random_accelerated": ("#999933", "h"), "pdt_nonselective": ("#8C564B", "<"),
    "pdt_random_mask": ("#DDCC77", ">"), "pdt_shuffled": ("#44AA99", "d"), "pdt_linear": ("#AA4499", "H"),
    "reduced_rank_extrapolation": ("#661100", "8"),
    "nino": ("#E31A1C", "4"), "wnn_plus": ("#FF7F9F", "1"), "wnn": ("#00429D", "2"),
}  # fmt: skip
LAP_COLOUR = {
    "snapshot": "#56B4E9", "regime": "#999933", "predict": "#0072B2", "verify": "#E69F00", "adopt": "#D55E00",
}  # fmt: skip
SPARE_STYLES = [
    ("#6A3D9A", "X"), ("#B15928", "p"), ("#1B9E9E", "h"), ("#E7298A", "*"), ("#66A61E", "<"), ("#A6761D", ">"),
    ("#7570B3", "d"), ("#FB6A4A", "H"), ("#4D4D4D", "s"), ("#8DA0CB", "o"),
]  # fmt: skip
PROTOCOL_STYLE = {
    "exact": ("#0072B2", "o"), "paper": ("#E69F00", "s"), "code": ("#D55E00", "^"), "code_float32": ("#009E73", "D"),
}  # fmt: skip
# What computes the same as another protocol shows the other's line through its gaps.
PROTOCOL_DASHES = {"code_float32": "--"}
REGIME_COLOUR: dict[str, str] = {
    Regime.stable: "#bcdcf0", Regime.transition: "#ececec", Regime.chaotic: "#f9d9b0", Regime.unknown: "#ffffff",
}  # fmt: skip
BANDS = (Regime.chaotic, Regime.transition, Regime.stable)
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e3e3e3", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True, "figure.titlesize": 10.5,
}  # fmt: skip


def grid(
    rows: int, columns: int, width: float, height: float, sharex: bool = True, sharey: bool = True
) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels; `width` and `height` of one panel in inches."""
    size = (max(6.4, width * columns), height * rows + 1.1)
    return plt.subplots(rows, columns, figsize=size, sharex=sharex, sharey=sharey, squeeze=False)


def protocols_of(frame: pd.DataFrame) -> list[str]:
    """The protocols of a frame in the order of the tables."""
    return list(in_order(frame[["protocol"]].drop_duplicates(), ["protocol"])["protocol"])


def predictors_of(frame: pd.DataFrame) -> list[str]:
    """The predictors of a frame in the order of the tables, controls last."""
    return list(in_order(frame[["predictor"]].drop_duplicates(), ["predictor"])["predictor"])


def predictor_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of every predictor of a figure: its own, or a spare style that no other predictor in it has.

    With more predictors than spare styles, colours repeat with other markers.
    """
    distinct = list(dict.fromkeys(names))
    styles = {name: PREDICTOR_STYLE[name] for name in distinct if name in PREDICTOR_STYLE}
    markers = [marker for _, marker in SPARE_STYLES]
    for i, name in enumerate(name for name in distinct if name not in styles):
        cycle, index = divmod(i, len(SPARE_STYLES))
        styles[name] = SPARE_STYLES[index][0], markers[(index + cycle) % len(markers)]
    return {name: styles[name] for name in distinct}


def with_interval(ax: Axes, x: np.ndarray, cells: pd.DataFrame, colour: str, marker: str, line: str) -> None:
    """A line through the means with a bar for each interval; cells without a mean leave a gap."""
    ax.plot(x, cells["mean"], color=colour, marker=marker, ms=4.5, ls=line)
    ax.vlines(x, cells["ci_low"], cells["ci_high"], color=colour, lw=1.1)


def as_mean(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with one measure, `name`, `name`_ci_low and `name`_ci_high, as :func:`with_interval` reads it."""
    return rows.rename(columns={name: "mean", f"{name}_ci_low": "ci_low", f"{name}_ci_high": "ci_high"})


def mark_at_top(ax: Axes, x: Iterable[float], colour: str) -> None:
    """Crosses at the upper edge: here a value was not finite."""
    x = np.asarray(list(x), dtype=float)
    if len(x):
        edge = ax.get_xaxis_transform()
        ax.plot(x, np.full(len(x), 0.985), "x", ms=6, mew=1.6, color=colour, transform=edge, clip_on=False, zorder=6)


def predictor_legend(figure: Figure, predictors: list[str], *extra_handles: Line2D) -> None:
    """One legend for all panels, below them."""
    handles = []
    for name, (colour, marker) in predictor_styles(predictors).items():
        flat = name == "persistence"
        handles.append(
            Line2D([], [], color=colour, marker=None if flat else marker, ms=5, ls="--" if flat else "-", label=name)
        )
    handles += extra_handles
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), max(3, int(figure.get_figwidth() // 1.45)))
    )


def quartiles_by_seed(rows: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Per value of `by`: lower quartile, median and upper quartile of each seed's rows, each a mean over seeds.

    Returns:
        index `by`, columns 0.25, 0.5, 0.75.
    """
    quartiles = rows.groupby(["seed", by])[value].quantile(np.array([0.25, 0.5, 0.75]))
    return quartiles.groupby(level=[1, 2]).mean().unstack()


def quartile_lines(
    ax: Axes, rows: pd.DataFrame, predictors: list[str], width: float, staying: float, origin: bool = False
) -> None:
    """Median and quartiles of `value` against `x`, a line per predictor of the figure; `persistence` is a level line.

    Args:
        rows: of one panel: seed, predictor, x, value, and nonfinite, which is marked at the upper edge.
        predictors: of the whole figure, so that a predictor lies in the same place in each panel.
        width: over which the predictors are spread around each x.
        staying: the value of `persistence`.
        origin: lines begin at (0, 0).
    """
    shift, styles = width / max(1, len(predictors) - 1), predictor_styles(predictors)
    for i, predictor in enumerate(predictors):
        group, (colour, marker) = rows[rows["predictor"] == predictor], styles[predictor]
        if group.empty:  # a protocol may have one predictor alone
            continue
        if predictor == "persistence":
            ax.axhline(staying, color=colour, ls="--", lw=1.2)
            continue
        quartiles = quartiles_by_seed(group, "x", "value")
        x = quartiles.index.to_numpy(dtype=float) + (i - (len(predictors) - 1) / 2) * shift
        start = [0.0] if origin else []
        ax.plot([*start, *x], [*start, *quartiles[0.5]], color=colour, marker=marker, ms=4.5)
        ax.vlines(x, quartiles[0.25], quartiles[0.75], color=colour, lw=1.1)
        nonfinite = group.groupby("x")["nonfinite"].any().reindex(quartiles.index)
        mark_at_top(ax, x[nonfinite.to_numpy(dtype=bool)], colour)


def quartiles_over(rows: pd.DataFrame) -> str:
    """What marks and bars of :func:`quartiles_by_seed` are, for a title."""
    n = rows["seed"].nunique()
    over = "" if n == 1 else f", mean over {n} seeds"
    return f"a seed's median over checkpoints, bars: quartiles{over}"


def seeds_of(n: int) -> str:
    """How many seeds, for a title."""
    return "1 seed" if n == 1 else f"n = {n} seeds"


def mean_over(frame: pd.DataFrame, of: str = "seeds", mean: str = "mean", bars: str = BARS) -> str:
    """What marks and bars are, for a title: means over as many seeds as the cell with the most has."""
    n = int(frame["n_seeds"].max())
    if n == 1:
        return "one seed"
    fewer = "at most " if frame["n_seeds"].min() < n else ""
    return f"{mean} over {fewer}{n} {of}, bars: {bars}"


def titled(figure: Figure, text: str) -> None:
    """Give the figure a title, its lines broken where they would be wider than the figure."""
    width = max(40, int(11 * figure.get_figwidth()))  # about 11 characters per inch
    figure.suptitle("\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width)))


def plain_log(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at its ticks."""
    ax.set_yscale("log")
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(_PlainLog(minor_thresholds=(1, 0.4)))


class _PlainLog(LogFormatter):
    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:,.0f}" if x >= 1000 else f"{x:g}"


def bands(rows: pd.DataFrame) -> list[tuple[float, float, str]]:
    """(left, width, regime) of each checkpoint's stretch of training, from the checkpoint before it."""
    steps = rows["step"].to_numpy(dtype=float)
    starts = np.concatenate([[0.0], steps])[: len(steps)]
    return list(zip(starts, steps - starts, rows["regime"], strict=True))
