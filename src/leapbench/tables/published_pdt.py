"""PDT's published reductions of time: beside which rows they stand, and what to know before comparing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leapbench.config.choices import PaceName

PDT_AS = {
    "fcn": "fcn", "fcn_small": "fcn", "alexnet": "alexnet", "alexnet_small": "alexnet", "resnet50": "resnet50",
    "resnet_small": "resnet50", "vit_base": "vit_base", "vit_small": "vit_base", "vit_huge": "vit_huge",
}  # fmt: skip
SCHEDULED = ("resnet50", "vit_base", "vit_huge")  # published rows with the acceleration scheduler
REFERENCE_WORDS = {"tuned": "tuned", "schedule": "same schedule's tuned", "published": "published-style"}
CITED = {"pdt_loss_total": "reduction_loss_pct", "pdt_accuracy": "reduction_acc_pct"}


def with_published_pdt(frame: pd.DataFrame, pdt: pd.DataFrame) -> pd.DataFrame:
    """PDT's published reductions, percent, beside the rows of `pdt` as published."""
    cited = pdt.rename(columns={"model": "published_model", "source": "published_source"})
    cited = cited.melt(["published_model", "published_source"], list(CITED.values()), "column", "published_pct")
    cited["definition"] = cited.pop("column").map({column: name for name, column in CITED.items()})
    keyed = frame.assign(published_model=frame["model"].map(PDT_AS).where(as_published(frame)))
    joined = keyed.merge(cited, on=["published_model", "definition"], how="left")
    return joined.assign(published_model=joined["published_model"].where(joined["published_pct"].notna()))


def as_published(frame: pd.DataFrame) -> pd.Series:
    """Which rows are PDT as its numbers on one GPU were made: the code's mask, both halves of it, adopted unseen."""
    as_coded = [{"variant=code", "mode=both"} <= set(str(options).split()) for options in frame["options"]]
    return (frame["predictor"] == "pdt") & (frame["rule"] == "always") & np.array(as_coded, dtype=bool)


def pdt_remarks(frame: pd.DataFrame, paces: set[str], pdt: pd.DataFrame) -> list[str]:
    """What to know of PDT's published reductions before they are compared with one workload's rows.

    Args:
        frame: the rows of one workload.
        paces: every leap.scheduler of the suite.
        pdt: the published reductions.
    """
    rows = frame[as_published(frame)]
    if rows.empty:
        return []
    low, high = pdt["reduction_loss_pct"].min(), pdt["reduction_loss_pct"].max()
    text = (
        f"PDT's published reductions ({low:.0f} to {high:.0f} %) divide its time to the baseline's lowest training "
        "loss by the baseline's total time, which is `pdt total` here; `pdt loss` divides by the baseline's own time "
        "to that loss."
    )
    changes = []
    for (row, reference), cells in rows.groupby(["row", "reference"], sort=False):
        known = cells[(cells["n_seeds"] > 0) & (cells["reached"] == cells["n_seeds"])]
        ratios = known.set_index("definition")["charged_steps_ratio"]
        if {"pdt_loss", "pdt_loss_total"} <= set(ratios.index):
            changes.append(
                f"`{row}` from {ratios['pdt_loss']:.3f} into {ratios['pdt_loss_total']:.3f} "
                f"({REFERENCE_WORDS[str(reference)]} baseline)"
            )
    remarks = [text + (f" Here that definition alone turns {', '.join(changes)}." if changes else "")]
    cited = set(rows["published_model"].dropna()) & set(SCHEDULED)
    if cited and paces == {PaceName.none}:
        remarks.append(
            f"The published rows of {' and '.join(sorted(cited))} also slowed PDT down by its acceleration scheduler "
            "(leap.scheduler=pdt); no row here does."
        )
    return remarks
