"""Regime thresholds measured on a calibration suite: percentiles of the similarity, per protocol and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from leapbench.records.files import write_text
from leapbench.records.read import TRAINING, Suite
from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.acceptance import in_order

PERCENTILES = (70, 30)


def calibrations(suite: Suite) -> dict[tuple[str, str], dict[str, Any]]:
    """(model, dataset) -> the content of its calibration file.

    Raises:
        RecordError: no completed run has recorded regimes, or as in :func:`calibrate`.
    """
    rows = suite.regimes
    if rows.empty:
        raise RecordError(f"{suite.folder}: no completed run has recorded regimes; calibration needs at least one")
    return {
        (str(model), str(dataset)): calibrate(suite, group)
        for (model, dataset), group in rows.groupby(["model", "dataset"])
    }


def calibrate(suite: Suite, rows: pd.DataFrame) -> dict[str, Any]:
    """The content of a calibration file.

    Args:
        suite: the calibration suite.
        rows: its regimes for one model and dataset, completed runs only.

    Raises:
        RecordError: the runs are of several workloads, or a run has no similarity.
    """
    by_run = suite.runs.set_index("run_id").loc[rows["run_id"].unique()]
    if (
        len(by_run[[*TRAINING, "steps", "interval"]].drop_duplicates()) > 1
        or rows.duplicated(["protocol", "seed", "step"]).any()
    ):
        raise RecordError(
            f"{suite.folder}: the runs differ in more than their seed; calibration needs one training setup"
        )
    protocols: dict[str, Any] = {}
    for protocol in in_order(rows[["protocol"]].drop_duplicates(), ["protocol"])["protocol"]:
        taus: dict[str, list[float]] = {"tau_high": [], "tau_low": []}
        for seed, group in rows[rows["protocol"] == protocol].sort_values("seed").groupby("seed"):
            try:
                high, low = stats.thresholds(group["similarity"], *PERCENTILES)
            except ValueError as error:
                raise RecordError(f"{suite.folder}: protocol {protocol}, seed {seed}: {error}") from None
            taus["tau_high"].append(high)
            taus["tau_low"].append(low)
        protocols[protocol] = taus
    versions = zip(by_run["git_commit"], by_run["git_dirty"], strict=True)
    commits = sorted({f"{commit}{' + changes' if dirty else ''}" for commit, dirty in versions})
    source = {
        "suite": suite.name, "run_ids": sorted(by_run.index),
        "seeds": sorted(int(seed) for seed in by_run["seed"].unique()),
        "git_commit": ", ".join(commits), "percentiles": list(PERCENTILES), "steps": int(by_run["steps"].iloc[0]),
        "interval": int(by_run["interval"].iloc[0]),
    }  # fmt: skip
    return {"source": source, "protocols": protocols}


def write(path: Path, suite: str, calibration: dict[str, Any]) -> None:
    """Write a calibration file, measured on `suite`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(calibration, sort_keys=False, default_flow_style=None, width=120)
    write_text(path, f"# Written by scripts/calibrate.py --suite {suite}; one value per seed.\n{text}")
