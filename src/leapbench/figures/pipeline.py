"""The figures of pipelines with delayed gradients: loss and memory per arm, and the error of what is reconstructed."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapbench.config.arms import AVERAGING, SEQUENTIAL, source_of
from leapbench.figures.style import (
    as_mean,
    grid,
    mean_over,
    plain_log,
    predictor_styles,
    titled,
    with_interval,
)
from leapbench.tables.pipeline import STASH

INFERRED = "*: INFERRED, or from memory"
RECONSTRUCTED, PREDICTED, KEPT = "past weights reconstructed", "future weights predicted", "stash, latest"
KIND_COLOUR = {RECONSTRUCTED: "#0072B2", PREDICTED: "#D55E00", KEPT: "#4D4D4D"}


def arms(frame: pd.DataFrame, name: str) -> Figure | None:
    """Final loss over that of exact stashing, a panel per number of stages, and memory beyond the live weights.

    Without exact stashing it is the loss itself.

    Args:
        frame: of the table `pipeline`, for one workload.
    """
    late = frame[frame["arm"] != SEQUENTIAL]
    if late.empty:
        return None
    late = late.assign(label=_rows_of(late))
    stashed = late["arm"] == STASH
    is_ratio = set(late.loc[stashed, "stages"]) == set(late["stages"])
    measure = "over_stash" if is_ratio else "loss_nats"
    stages = sorted(late["stages"].unique())
    most = late[late["stages"] == stages[-1]].sort_values(measure)
    place = {label: y for y, label in enumerate(dict.fromkeys([*most["label"], *late["label"]]))}
    figure, axes = grid(1, len(stages) + 1, 2.5, 0.24 * len(place) + 0.4, sharex=False)
    *losses, memory = axes[0]
    for ax, n in zip(losses, stages, strict=True):
        rows = late[late["stages"] == n]
        y, colours = rows["label"].map(place).to_numpy(), rows["arm"].map(_colour).to_numpy()
        ax.hlines(y, rows[f"{measure}_ci_low"], rows[f"{measure}_ci_high"], colors=colours)
        ax.scatter(rows[measure], y, c=colours, s=22, zorder=3)
        of_stash = rows.loc[rows["arm"] == STASH, "loss_nats"]
        ax.set_title(f"{n} stages" + (f"; stash: {of_stash.iloc[0]:.2f} nats" if is_ratio else ""))
        ax.set_xlabel("final loss over stash's" if is_ratio else "final validation loss [nats]")
        if is_ratio:
            ax.axvline(1.0, color="#000000", ls="--", lw=1.0)
    memory.barh(most["label"].map(place), most["extra_bytes"] / 1e6, color=most["arm"].map(_colour), height=0.6)
    memory.set_title(f"{stages[-1]} stages")
    memory.set_xlabel("extra weights [MB]")
    axes[0][0].set_yticks(list(place.values()), list(place))
    axes[0][0].invert_yaxis()
    handles = [Line2D([], [], marker="o", ls="", color=colour, label=text) for text, colour in KIND_COLOUR.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    without = " or ".join(f"{loss:.2f}" for loss in frame.loc[frame["arm"] == SEQUENTIAL, "loss_nats"])
    delay = f"; without delay: {without} nats" if without else ""
    titled(figure, f"Delayed gradients: {name}{delay}\n{mean_over(late)}; {INFERRED}")
    return figure


def reconstruction(frame: pd.DataFrame, name: str) -> Figure | None:
    """The reconstruction error against the delay: a line per form, a panel per training it was measured on.

    Args:
        frame: of the table `reconstruction`, for one workload.
    """
    measured = frame[~frame["form"].isin(["stash", "latest"])]
    if measured.empty:
        return None
    cells = list(measured.groupby(["optimizer", "stages"], sort=True))
    styles = predictor_styles(measured["form"].map(_short).unique())
    figure, axes = grid(1, len(cells), 3.4, 3.6)
    delays = sorted(measured["delay"].unique())
    for ax, (key, rows) in zip(axes[0], cells, strict=True):
        optimizer, stages = key if isinstance(key, tuple) else (key, "")
        ax.set_title(f"{stages} stages, {optimizer}")
        ax.axhline(1.0, color="#000000", ls="--", lw=1.2)
        ax.set_xscale("log", base=2)
        ax.set_xticks(delays, [str(d) for d in delays])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("delay d [updates]")
        for form, line in rows.groupby("form", sort=False):
            # Of several trainings that a form was measured on, that with exact stashing if there is one.
            trained = line[line["arm"] == "stash"] if (line["arm"] == "stash").any() else line
            trained = trained.sort_values("delay").drop_duplicates("delay")
            means = as_mean(trained, "error_ratio")
            with_interval(ax, trained["delay"].to_numpy(dtype=float), means, *styles[_short(str(form))], "-")
    plain_log(axes[0][0])
    axes[0][0].set_ylabel("error / drift over d updates")
    handles = []
    for form in measured["form"].unique():
        colour, marker = styles[_short(form)]
        handles.append(Line2D([], [], color=colour, marker=marker, ms=5, label=_label(form)))
    figure.legend(handles=handles, loc="outside right center")
    titled(figure, f"Reconstruction error: {name}\n{mean_over(measured)}; dashed: the newest weights; {INFERRED}")
    return figure


def _label(arm: str) -> str:
    """An arm with the mark of an inferred rule: an asterisk."""
    return f"{arm}*" if "INFERRED" in source_of(arm) or "memory" in source_of(arm) else arm


def _short(form: str) -> str:
    """`linear` for `linear+latest`: the predictor alone, which has a style of its own."""
    return form.partition("+")[0]


def _rows_of(late: pd.DataFrame) -> pd.Series:
    """What each row is called: its arm, and what else tells it from others of as many stages."""
    labels = late["arm"].map(_label)
    for column, text in (("delay_model", "{}"), ("microbatches", "{} microbatches"), ("lr", "lr {:g}")):
        if labels.to_frame().assign(stages=late["stages"]).duplicated().any() and late[column].nunique() > 1:
            labels = labels + late[column].map((", " + text).format)
    return labels


def _colour(arm: str) -> str:
    kind = PREDICTED if "+" in arm else RECONSTRUCTED if arm.partition("/")[0] in AVERAGING else KEPT
    return KIND_COLOUR[kind]
