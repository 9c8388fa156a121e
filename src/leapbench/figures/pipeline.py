"""The figures of pipelines with delayed gradients: loss and memory per arm, and the error of what is reconstructed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leapbench.config.arms import SEQUENTIAL, source_of
from leapbench.figures.style import (
    as_mean,
    grid,
    mean_over,
    plain_log,
    predictor_legend,
    predictor_styles,
    titled,
    with_interval,
)

INFERRED = "*: INFERRED, or from memory"


def arms(frame: pd.DataFrame, name: str) -> Figure | None:
    """Final loss, and memory beyond the live weights, against the number of stages: a line per arm.

    Args:
        frame: of the table `pipeline`, for one workload.
    """
    late = frame[frame["arm"] != SEQUENTIAL]
    if late.empty:
        return None
    styles = _labelled(late["arm"])
    figure, axes = grid(1, 2, 4.6, 3.6, sharey=False)
    loss, memory = axes[0]
    stages = sorted(late["stages"].unique())
    for ax in (loss, memory):
        ax.set_xscale("log", base=2)
        ax.set_xticks(stages, [str(n) for n in stages])
        ax.set_xlabel("stages")
    for arm, rows in late.groupby("arm", sort=False):
        # Where an arm has several rows in a place (microbatches, timings, rates), each is a point of its own.
        rows = rows.sort_values("stages")
        means = as_mean(rows, "loss_nats")
        line = "-" if rows["stages"].is_unique else "none"
        with_interval(loss, rows["stages"].to_numpy(dtype=float), means, *styles[_label(str(arm))], line)
        colour, marker = styles[_label(str(arm))]
        memory.plot(rows["stages"], rows["extra_bytes"] / 1e6, color=colour, marker=marker, ms=4.5, ls=line)
    for mean in frame.loc[frame["arm"] == SEQUENTIAL, "loss_nats"]:
        loss.axhline(mean, color="#000000", ls="--", lw=1.2)
    plain_log(loss)
    loss.set_ylabel("final validation loss [nats]")
    memory.set_ylabel("extra weights [MB]")
    predictor_legend(figure, list(styles))
    titled(figure, f"Delayed gradients: {name}\n{mean_over(late)}; dashed: no delay; {INFERRED}")
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
    styles = _labelled(measured["form"])
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
            with_interval(ax, trained["delay"].to_numpy(dtype=float), means, *styles[_label(str(form))], "-")
    plain_log(axes[0][0])
    axes[0][0].set_ylabel("error / drift over d updates")
    predictor_legend(figure, list(styles))
    titled(figure, f"Reconstruction error: {name}\n{mean_over(measured)}; dashed: the newest weights; {INFERRED}")
    return figure


def _label(arm: str) -> str:
    """An arm with the mark of an inferred rule: an asterisk."""
    return f"{arm}*" if "INFERRED" in source_of(arm) or "memory" in source_of(arm) else arm


def _labelled(names: Iterable[object]) -> dict[str, tuple[str, str]]:
    return predictor_styles(np.unique([_label(str(name)) for name in names]).tolist())
