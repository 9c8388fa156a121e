"""Figures of mode=leap: time to the baseline's best, loss against charged time, overhead, and the loss after a leap."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from leapbench.figures.style import (
    LAP_COLOUR,
    SPARE_STYLES,
    grid,
    mean_over,
    predictor_styles,
    titled,
)
from leapbench.names import BASELINE, PERSISTENCE, VALIDATION, VERIFICATION
from leapbench.tables.leaping import OVERHEAD
from leapbench.tables.methods import MAIN

TITLES = {
    "ours": "validation loss", "pdt_loss": "training loss (PDT)", "pdt_loss_total": "the same, over the total time",
    "pdt_accuracy": "validation accuracy (PDT)",
}  # fmt: skip
KIND_COLOUR = {"baseline": "#000000", "control": "#999999", "method": "#0072B2"}
POINTS = 200


def time_to_baseline(frame: pd.DataFrame, name: str) -> Figure | None:
    """Ratio of charged time to target over the baseline's: a row per method, a panel per definition."""
    rows = frame[frame["reference"].isin(MAIN) & (frame["n_seeds"] > 0)]
    if rows.empty:
        return None
    definitions, labels = list(rows["definition"].unique()), list(rows["row"].unique())
    size = (2.6 + 2.3 * len(definitions), 1.9 + 0.22 * len(labels))
    figure, axes = plt.subplots(1, len(definitions), figsize=size, sharex=True, sharey=True, squeeze=False)
    bounds = rows[["charged_steps_ratio_ci_low", "charged_steps_ratio_ci_high", "charged_steps_ratio"]].to_numpy()
    finite = bounds[np.isfinite(bounds)]
    low, high = min(0.8, finite.min(initial=1)) / 1.05, max(1.25, finite.max(initial=1)) * 1.12
    for ax, definition in zip(axes[0], definitions, strict=True):
        panel = rows[rows["definition"] == definition].set_index("row").reindex(labels)
        y = np.arange(len(labels))
        colours = panel["kind"].map(KIND_COLOUR).to_numpy()
        ax.set_xscale("log")
        ax.hlines(y, panel["charged_steps_ratio_ci_low"], panel["charged_steps_ratio_ci_high"], color=colours, lw=1.4)
        ax.scatter(panel["charged_steps_ratio"], y, color=colours, s=22, zorder=4)
        ax.scatter(panel["steps_ratio"], y, facecolor="white", edgecolor=colours, s=14, lw=0.9, zorder=5)
        unreached = (panel["reached"] < panel["n_seeds"]).to_numpy()
        ax.scatter(np.full(unreached.sum(), high), y[unreached], marker="x", color=colours[unreached], s=24,
                   clip_on=False, zorder=6)  # fmt: skip
        for position, row in zip(y[unreached], panel[unreached].itertuples(), strict=True):
            ax.annotate(f"{row.reached}/{row.n_seeds}", (high, position), (-6, 0), textcoords="offset points",
                        ha="right", va="center", fontsize=6.5, color="#555555")  # fmt: skip
        ax.axvline(1, color="#333333", lw=1, ls="--", zorder=0)
        ax.set_xlim(low, high)
        for set_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
            set_formatter(NullFormatter())
        ticks = [tick for tick in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10) if low <= tick <= high]
        ax.set_xticks(ticks)
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_title(TITLES[definition])
        ax.tick_params(axis="x", which="minor", length=0)
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].invert_yaxis()
    handles = [Line2D([], [], color=colour, marker="o", lw=1.4, ms=5, label=f"{kind}, charged time")
               for kind, colour in KIND_COLOUR.items()]  # fmt: skip
    handles += [
        Line2D([], [], color="#555555", marker="o", mfc="white", ls="", ms=4, label="gradient steps"),
        Line2D([], [], color="#555555", marker="x", ls="", ms=5, label="not reached by all seeds (m/n did)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    titled(figure, f"Time to the {rows['reference'].iloc[0]} baseline's best, over its own: {name}\n"
                    f"{mean_over(rows, 'paired seeds', 'geometric mean')}; left of the line is faster")  # fmt: skip
    return figure


def loss_curves(
    curves: pd.DataFrame, rows: pd.DataFrame, reference: tuple[str, str] | None, name: str
) -> Figure | None:
    """Validation loss against charged time, mean over seeds: the baselines, and a row per predictor.

    Of a predictor with several rows, the row with the lowest mean best verification loss is drawn.

    Args:
        curves: of :func:`leapbench.tables.targets.curves`, with row, kind, predictor and lr_from, completed runs.
        rows: kind, predictor, row in the order of the tables.
        reference: the row everything is compared with, drawn in every panel, and what it is: tuned or plain; None if
            there is none.
        name: of the workload.
    """
    baseline, is_what = reference or (None, None)
    regular = curves[curves["regular"] & curves["loss_nats"].notna()]
    validation = regular[regular["split"] == VALIDATION]
    if validation.empty:
        return None
    best = regular[regular["split"] == VERIFICATION].groupby(["row", "run_id"])["loss_nats"].min()
    mean_best = best.groupby("row").mean()
    panels: list[tuple[str, list[str]]] = []
    for kind in ("baseline", "control", "method"):
        kind_rows = rows[(rows["kind"] == kind) & rows["row"].isin(validation["row"])]
        kind_rows = kind_rows.assign(best=lambda t: t["row"].map(mean_best))
        if kind != "baseline":
            kind_rows = kind_rows.sort_values("best", kind="stable").drop_duplicates("predictor").sort_index()
        if len(kind_rows):
            panels.append((f"{kind}s", list(kind_rows["row"])))
    figure, axes = grid(1, len(panels), 3.4, 3.8)
    top = validation.groupby("run_id")["loss_nats"].first().median()
    for ax, (title, row_names) in zip(axes[0], panels, strict=True):
        line_names = dict.fromkeys([*row_names, *([baseline] if baseline else [])])
        predictor_of = {row: rows.loc[rows["row"] == row, "predictor"].iloc[0] for row in line_names if row != baseline}
        styles = predictor_styles(name for name in predictor_of.values() if name != BASELINE)
        for i, row in enumerate(line_names):
            x, y = mean_curve(validation[validation["row"] == row])
            if row == baseline:
                ax.plot(x, y, color="#000000", lw=2.2, zorder=2, label=f"{row}, the {is_what} baseline")
                continue
            predictor = predictor_of[row]
            colour, _ = SPARE_STYLES[i % len(SPARE_STYLES)] if predictor == BASELINE else styles[predictor]
            dashed = predictor in (BASELINE, PERSISTENCE)
            ax.plot(x, y, color=colour, lw=1.3, ls="--" if dashed else "-", zorder=3, label=row)
        ax.set_title(title)
        ax.set_xlabel("charged time [training steps]")
        ax.legend(fontsize=7, loc="upper right")
    axes[0, 0].set_ylim(max(0.0, validation["loss_nats"].min() * 0.9), top * 1.1)
    axes[0, 0].set_ylabel("validation loss [nats]")
    titled(figure, f"Loss against charged time: {name}\nmean over seeds; of a predictor's rows the best on the "
                    "verification split")  # fmt: skip
    return figure


def mean_curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(charged steps, loss) of the mean over runs, each interpolated linearly, where all runs have values."""
    runs = [(group["charged_steps"].to_numpy(), group["loss_nats"].to_numpy()) for _, group in rows.groupby("run_id")]
    x = np.linspace(max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs), POINTS)
    return x, np.mean([np.interp(x, *run) for run in runs], axis=0)


def overhead(frame: pd.DataFrame, name: str) -> Figure | None:
    """Stacked bars: what each lap other than training adds to the charged time, percent."""
    rows = frame[(frame["n_seeds"] > 0) & (frame["kind"] != "baseline")].sort_values("overhead_pct", kind="stable")
    if rows.empty:
        return None
    figure, ax = plt.subplots(figsize=(7, 1.6 + 0.22 * len(rows)))
    y, edges = np.arange(len(rows)), np.zeros(len(rows))
    for lap in OVERHEAD:
        share = rows[f"{lap}_pct"].to_numpy()
        ax.barh(y, share, left=edges, color=LAP_COLOUR[lap], label=lap, height=0.75)
        edges += share
    ax.hlines(y, rows["overhead_pct_ci_low"], rows["overhead_pct_ci_high"], color="#222222", lw=1)
    ax.set_yticks(y, rows["row"], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("share of the charged time [%]")
    figure.legend(loc="outside lower center", ncols=len(OVERHEAD))
    titled(figure, f"Overhead of leaping: {name}\n{mean_over(rows)} of the sum")
    return figure


def after_leap(frame: pd.DataFrame, name: str) -> Figure | None:
    """Loss minus the paired baseline's at equal charged time, against the steps since a leap: a panel per rule."""
    rows = frame[frame["n_seeds"] > 0]
    if rows.empty:
        return None
    rules, delays = list(dict.fromkeys(rows["rule"])), sorted(rows["after"].unique())
    figure, axes = grid(1, len(rules), 3.1, 4.6)
    size = rows["excess_nats"].abs()
    for ax, rule in zip(axes[0], rules, strict=True):
        if size.max() > 30 * size.median():
            ax.set_yscale("symlog", linthresh=2 * size.median())
        rule_rows = rows[rows["rule"] == rule]
        styles = row_styles(rule_rows)
        shift = 0.5 / max(1, len(styles) - 1)
        for i, (label, style) in enumerate(styles.items()):
            line = rule_rows[rule_rows["row"] == label].sort_values("after")
            x = np.array([delays.index(value) for value in line["after"]]) + (i - (len(styles) - 1) / 2) * shift
            ax.plot(x, line["excess_nats"], ms=4, label=label, **style)
            ax.vlines(x, line["excess_nats_ci_low"], line["excess_nats_ci_high"], color=style["color"], lw=0.9)
        ax.axhline(0, color="#333333", lw=1, ls="--", zorder=0)
        ax.set_xticks(range(len(delays)), [str(value) for value in delays])
        ax.set_xlabel("steps after the leap")
        ax.set_title(f"rule {rule}")
        ax.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes[0, 0].set_ylabel("loss - baseline's at equal charged time [nats]")
    note = f"{mean_over(rows, 'seeds, of the mean leap of each')}; below 0 the run is ahead of its baseline"
    titled(figure, f"After a leap: {name}\n{note}")
    return figure


def row_styles(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Per row of the table: the colour and marker of its predictor, and a line style among that predictor's rows."""
    dashes = ("-", "--", ":", "-.")
    first = rows.drop_duplicates("row")
    number = first.groupby("predictor", sort=False).cumcount()
    styles, predictor_looks = {}, predictor_styles(first["predictor"])
    for row, predictor, i in zip(first["row"], first["predictor"], number, strict=True):
        colour, marker = predictor_looks[predictor]
        styles[row] = {"color": colour, "marker": marker, "ls": dashes[i % len(dashes)]}
    return styles
