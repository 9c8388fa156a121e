"""Trainings of learned predictors side by side: how close they come on networks that they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from leapbench.meta.learn import CURVE
from leapbench.names import Status
from leapbench.nowcasters.checkpoints import facts_of
from leapbench.records.files import read_summary
from leapbench.records.rows import RecordError

RATIO = "ratio"
SETTINGS = ("network", "width", "rates", "target_window", "interval", "steps", "seed")
MADE = ("parameters", "file_bytes", "trajectories", "git_commit", "run_id")


def trainings(folder: Path) -> pd.DataFrame:
    """Every training in `folder` that is complete, the closest first.

    Returns:
        SETTINGS; `ratio`: its loss on the held-out trajectories over that of a prediction that nothing changes, and
        the same for each held-out network by its name; MADE.

    Raises:
        RecordError: there is none, or one was not validated.
    """
    rows = []
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        summary = read_summary(place)
        if summary is not None and summary["status"] == Status.completed:
            rows.append(_row(place, summary))
    if not rows:
        raise RecordError(f"{folder}: no training that is complete; python meta_train.py makes one")
    frame = pd.DataFrame(rows).sort_values(["network", RATIO], kind="stable").reset_index(drop=True)
    return frame[[*SETTINGS, RATIO, *(c for c in frame if c not in (*SETTINGS, RATIO, *MADE)), *MADE]]


def curves(folder: Path, run_ids: list[str]) -> dict[str, pd.DataFrame]:
    """The rows of each training's curve: step, rate, loss, validation, no_change."""
    return {name: pd.read_json(folder / name / CURVE, lines=True) for name in run_ids}


def page(frame: pd.DataFrame) -> str:
    """The table as markdown."""
    shown = frame.drop(columns=["git_commit"]).rename(columns={"target_window": "target rows", "file_bytes": "bytes"})
    return "\n".join([
        "# Trainings of learned predictors", "",
        "ratio: mean absolute error of the predicted changes of weights, over all horizons, on trajectories of "
        "networks that were not learned from, over that of predicting no change; below 1 is closer. Then the same for "
        "each of these networks. rates: whether learning rates are inputs. target rows: rows around a horizon whose "
        "mean was learned; all are validated on single rows. Curves, configurations and hashes: `records/`. Commits: "
        f"{', '.join(sorted(set(frame['git_commit'])))}.", "",
        shown.to_markdown(index=False, floatfmt=".3f", missingval=""), "",
    ])  # fmt: skip


def _row(place: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    weights = summary["weights"]
    facts = facts_of(place / weights["file"])
    config, found = facts["config"], facts["held_out"]
    if not found:
        raise RecordError(f"{place}: was validated on nothing; give validation.trajectories")
    row = {key: config.get(key) for key in SETTINGS} | {key: config["network"].get(key) for key in ("width", "rates")}
    row["network"] = config["network"]["name"]
    losses = pd.DataFrame(found)
    names = losses["model"].fillna("network") + losses["weights"].map(", {:,} weights".format)
    row[RATIO] = losses["loss"].mean() / losses["no_change"].mean()
    for name, part in losses.groupby(names):
        row[str(name)] = part["loss"].mean() / part["no_change"].mean()
    made = {
        "parameters": summary["parameters"], "file_bytes": weights["bytes"], "trajectories": len(facts["learned"]),
        "git_commit": facts["commit"][:12], "run_id": place.name,
    }  # fmt: skip
    return row | made
