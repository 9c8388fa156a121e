"""The figure of trainings of learned predictors."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from leapbench.figures.style import grid, predictor_styles, titled

LINES = {(False, False): "-", (True, False): "--", (False, True): ":", (True, True): "-."}


def learning_curves(frame: pd.DataFrame, curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Error on held-out networks over that of no change, against the steps of the network that learns.

    Args:
        frame: of :func:`leapbench.meta.results.trainings`.
        curves: run id -> step, validation, no_change.
    """
    figure, axes = grid(1, 1, 7.2, 3.6)
    ax = axes[0][0]
    styles = predictor_styles(frame["network"])
    for row in frame.to_dict("records"):
        curve = curves[row["run_id"]]
        smooth, knows = int(row["target_window"]) > 1, row["rates"] is True
        words = [f"{row['target_window']} target rows"] * smooth + ["learning rates"] * knows
        ax.plot(
            curve["step"], curve["validation"] / curve["no_change"], color=styles[row["network"]][0],
            ls=LINES[smooth, knows], label=", ".join([row["network"], *words]),
        )  # fmt: skip
    ax.axhline(1.0, color="#000000", lw=1.0)
    ax.set_xlabel("steps of the network that learns")
    ax.set_ylabel("error / error of no change")
    figure.legend(loc="outside right center")
    titled(figure, "Learned predictors on networks that they never saw; 1: no better than no change")
    return figure
