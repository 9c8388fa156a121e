"""Figures of what methods are worth in plain training: factors, the curves behind them, and the performance profile."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from leapbench.figures.leaping import KIND_COLOUR, row_styles
from leapbench.figures.style import (
    seeds_of,
    titled,
)
from leapbench.names import PERSISTENCE
from leapbench.tables.curve import Curve
from leapbench.tables.equivalent import outside_text
from leapbench.tables.judged import PLAIN, SECTION
from leapbench.tables.render import section_name

KINDS = {"baseline": "plain training", "control": "control", "method": "method"}
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5)


def factors(frame: pd.DataFrame, cells: pd.DataFrame, suite: str) -> Figure | None:
    """Charged factor of every row, largest first: a panel per base optimizer and workload.

    Args:
        frame: of the table equivalent_budget.
        cells: its rows per seed.
        suite: its name.
    """
    frame = frame[frame["factor_charged"].notna() | (frame["outside"].fillna("") != "")]
    if frame.empty:
        return None
    figure, axes = _panels(frame)
    columns = ["factor_charged", "factor_steps", "factor_charged_ci_low", "factor_charged_ci_high"]
    bounds = frame[columns].to_numpy(float)
    finite = bounds[np.isfinite(bounds)]
    low, high = min(0.9, finite.min()) / 1.06, max(1.1, finite.max()) * 1.06
    for ax, rows, seeds in _each(axes, frame, cells):
        y, colours = np.arange(len(rows)), rows["kind"].map(KIND_COLOUR).to_numpy()
        place = dict(zip(rows["row"], y, strict=True))
        dots = seeds[seeds["factor_charged"].between(low, high)]
        ax.set_xscale("log")
        ax.scatter(dots["factor_charged"], dots["row"].map(place), s=5, alpha=0.35, lw=0, zorder=2,
                   color=dots["kind"].map(KIND_COLOUR).to_numpy())  # fmt: skip
        # An end that is missing beside one that is not lies outside the curve: the bar runs out of the panel.
        some = (rows["factor_charged_ci_low"].notna() | rows["factor_charged_ci_high"].notna()).to_numpy()
        some = some & rows["factor_charged"].notna().to_numpy()
        left = rows["factor_charged_ci_low"].fillna(low).to_numpy()
        right = rows["factor_charged_ci_high"].fillna(high).to_numpy()
        ax.hlines(y[some], left[some], right[some], color=colours[some], lw=1.5, zorder=3)
        ax.scatter(rows["factor_steps"], y, facecolor="white", edgecolor=colours, s=18, lw=0.9, zorder=4)
        ax.scatter(rows["factor_charged"], y, color=colours, s=24, zorder=5)
        for side, edge, marker in (("below", low, "<"), ("above", high, ">")):
            out = (rows["outside"] == side).to_numpy()
            at = np.full(out.sum(), edge)
            ax.scatter(at, y[out], color=colours[out], marker=marker, s=30, clip_on=False, zorder=6)
            for position, row in zip(y[out], rows[out].to_dict("records"), strict=True):
                ax.annotate(outside_text(row, "factor_charged"), (edge, position), (9 if side == "below" else -9, 0),
                            textcoords="offset points", ha="left" if side == "below" else "right", va="center",
                            fontsize=6.5, color=KIND_COLOUR[row["kind"]])  # fmt: skip
        ax.axvline(1, color="#333333", lw=1, ls="--", zorder=0)
        ax.set_xlim(low, high)
        _plain_ticks(ax, [tick for tick in TICKS if low <= tick <= high])
        names = [f"{name}, n = {n}" for name, n in zip(rows["row"], rows["n_seeds"], strict=True)]
        ax.set_yticks(y, names, fontsize=7.5)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel("factor: 1 = plain training, right of it is faster")
    handles = [
        Line2D([], [], color=colour, marker="o", lw=1.5, ms=5, label=f"{KINDS[kind]}, charged, 95 % interval")
        for kind, colour in KIND_COLOUR.items()
    ]
    handles += [
        Line2D(
            [], [], color="#555555", marker="o", mfc="white", ls="", ms=5, label="factor in steps, without overhead"
        ),
        Line2D([], [], color="#555555", marker="o", ls="", ms=2.5, alpha=0.6, label="one seed, charged"),
    ]
    if (frame["outside"] != "").any():
        handles.append(Line2D([], [], color="#555555", marker=">", ls="", ms=5, label="outside the reference curve"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if figure.get_figwidth() < 10 else 3)
    title = f"Budget that plain training needs for the same loss, over the method's cost: {suite}"
    titled(figure, f"{title}\n{_seeds(frame)}")
    return figure


def reference_curves(points: pd.DataFrame, frame: pd.DataFrame, suite: str) -> Figure | None:
    """Final loss against cost: the curve of plain training and every method on it, a panel per base optimizer.

    Args:
        points: of the table reference_curve.
        frame: of the table equivalent_budget; its rows with a factor are numbered in its order.
        suite: its name.
    """
    frame = frame[frame["factor_charged"].notna() | (frame["outside"].fillna("") != "")]
    if frame.empty:
        return None
    sizes = frame.groupby(SECTION, dropna=False, sort=False).size()
    heights = [max(3.4, 1.0 + 0.16 * size) for size in sizes]
    figure, grid = plt.subplots(
        len(sizes), 3, figsize=(10.5, sum(heights) + 0.8), squeeze=False, height_ratios=heights,
        width_ratios=(1, 1, 0.5),
    )  # fmt: skip
    axes = {_key(key): row[0] for key, row in zip(sizes.index, grid, strict=True)}
    for (ax, rows, curve), (_, detail, names) in zip(_each(axes, frame, points), grid, strict=True):
        budgets, losses = np.exp(_line(curve)[0]), _line(curve)[1]
        at_b = rows[rows["row"] == PLAIN]
        rows = rows[rows["row"] != PLAIN].reset_index(drop=True)
        inside = rows[rows["outside"] == ""]
        near = inside[inside["budget"] == inside["total_steps"]]
        for panel, shown in ((ax, inside), (detail, near)):
            panel.plot(budgets, losses, color=KIND_COLOUR["baseline"], lw=1.3, zorder=2)
            panel.plot(curve["cost"], curve["loss_nats"], "s", color=KIND_COLOUR["baseline"], ms=4, zorder=3)
            colours = shown["kind"].map(KIND_COLOUR).to_numpy()
            panel.scatter(shown["cost"], shown["loss_nats"], color=colours, s=14, zorder=4)
            panel.set_xscale("log")
            panel.set_xlabel("cost [steps of plain AdamW]")
        ax.set_ylabel("final validation loss [nats]")
        _plain_ticks(ax, [round(cost) for cost in curve["cost"]])
        for i, row in near.iterrows():
            detail.annotate(str(int(str(i)) + 1), (row["cost"], row["loss_nats"]), (3, 2), textcoords="offset points",
                            fontsize=6.5, color=KIND_COLOUR[row["kind"]])  # fmt: skip
        if near.empty:
            detail.set_visible(False)
        else:
            corners = pd.concat([near, at_b])[["cost", "loss_nats"]].agg(["min", "max"]).to_numpy(float)
            (left, bottom), (right, top) = corners
            room = 0.08 * (top - bottom) + 1e-3
            detail.set_xlim(left / 1.02, right * 1.03)
            detail.set_ylim(bottom - room, top + room)
            detail.set_title("detail", fontsize=8.5)
            detail.xaxis.set_minor_formatter(NullFormatter())
            detail.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            detail.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.indicate_inset((left / 1.02, bottom - room, right * 1.03 - left / 1.02, top - bottom + 2 * room))
        names.axis("off")
        labels = [
            Line2D([], [], color=KIND_COLOUR[row["kind"]], marker="o", ls="", ms=4, label=f"{i} {_named(row)}")
            for i, row in enumerate(rows.to_dict("records"), 1)
        ]
        names.legend(handles=labels, fontsize=6.5, loc="upper left", borderaxespad=0, handletextpad=0.2)
    titled(figure, f"Reference curves of plain training, and the methods' means: {suite}\n{_seeds(frame)}")
    return figure


def _named(row: dict[Hashable, Any]) -> str:
    """`pdt strict`, and the loss of a row that lies outside the panel."""
    return f"{row['row']}, {row['loss_nats']:.3g} nats" if row["outside"] else str(row["row"])


def profile(frame: pd.DataFrame, suite: str) -> Figure | None:
    """Steps of the performance profile, a line per row.

    Args:
        frame: of the table performance_profile.
        suite: its name.
    """
    reached = frame.groupby("row")["reached"].transform("max") > 0
    if not reached.any():
        return None
    drawn = frame[reached]
    styles = row_styles(drawn)
    last = drawn.groupby("row", sort=False).agg(reached=("reached", "max"), tau=("tau", "max")).reset_index()
    names = list(last.sort_values(["reached", "tau"], ascending=[False, True])["row"])
    end = float(drawn["tau"].max()) * 1.05 + 0.05
    figure, ax = plt.subplots(figsize=(8.2, max(3.6, 1.6 + 0.17 * len(names))))
    for name in names:
        rows = drawn[drawn["row"] == name].sort_values("tau")
        look = {key: value for key, value in styles[name].items() if key != "marker"}
        look |= {"color": KIND_COLOUR["baseline"], "lw": 2.2} if name == PLAIN else {}
        look |= {"color": KIND_COLOUR["control"], "ls": ":"} if rows["predictor"].iloc[0] == PERSISTENCE else {}
        ax.step([*rows["tau"], end], [*rows["reached"], rows["reached"].iloc[-1]], where="post", label=name, **look)
    ax.set_xlim(1, end)
    ax.set_ylim(-0.02, 1.04)
    ax.set_xlabel("tau: cost over that of the row that reaches the target first")
    ax.set_ylabel("share of targets reached within tau")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    never = sorted(set(frame["row"]) - set(names))
    notes = [f"{frame['of'].iloc[0]}", *(textwrap.wrap(f"none reached: {', '.join(never)}", 90) if never else [])]
    titled(figure, "\n".join([f"Performance profile of the fixed targets: {suite}", *notes]))
    return figure


def _panels(frame: pd.DataFrame) -> tuple[Figure, dict[tuple[str, ...], Axes]]:
    """An axis for each section, as high as its rows need; two base optimizers side by side."""
    sizes = frame.groupby(SECTION, dropna=False, sort=False).size()
    columns = min(2, frame["optimizer"].nunique())
    lines = [sizes.iloc[i : i + columns] for i in range(0, len(sizes), columns)]
    heights = [0.8 + 0.24 * float(line.max()) for line in lines]
    figure, axes = plt.subplots(
        len(lines), columns, figsize=(7.2 * columns, sum(heights) + 1.2), squeeze=False, height_ratios=heights
    )
    for ax in axes.flat[len(sizes) :]:
        ax.set_visible(False)
    return figure, {_key(key): ax for key, ax in zip(sizes.index, axes.flat, strict=False)}


def _each(
    axes: dict[tuple[str, ...], Axes], frame: pd.DataFrame, more: pd.DataFrame
) -> Iterator[tuple[Axes, pd.DataFrame, pd.DataFrame]]:
    """Each axis, titled, with the section's rows of both frames."""
    others = {_key(key): part for key, part in more.groupby(SECTION, dropna=False, sort=False)}
    for key, rows in frame.groupby(SECTION, dropna=False, sort=False):
        ax = axes[_key(key)]
        ax.set_title(section_name(dict(zip(SECTION, key, strict=True))), fontsize=8.5)
        yield ax, rows, others[_key(key)]


def _key(values: Any) -> tuple[str, ...]:
    return tuple(map(str, values))


def _line(points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return Curve(tuple(points["cost"]), tuple(points["loss_nats"])).line


def _plain_ticks(ax: Axes, ticks: list[float]) -> None:
    for set_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        set_formatter(NullFormatter())
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.tick_params(axis="x", which="minor", length=0)


def _seeds(frame: pd.DataFrame) -> str:
    low, high = int(frame["n_seeds"].min()), int(frame["n_seeds"].max())
    return seeds_of(high) if low == high else f"n = {low} to {high} seeds"
