"""Regime thresholds from a calibration suite: percentiles 70 and 30 of the similarity, per protocol and seed."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from leapbench.records.read import TRAINING, Suite, load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.acceptance import in_order

PERCENTILES = (70, 30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True, help="folder under --results")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--out", type=Path, help="file to write (default: results/calibration/MODEL_DATASET.yaml)")
    args = parser.parse_args()
    suite = load_suite(args.results / args.suite)
    rows = suite.regimes
    if rows.empty:
        raise RecordError(f"{suite.folder}: no completed run has recorded regimes; calibration needs at least one")
    pairs = rows[["model", "dataset"]].drop_duplicates()
    if args.out and len(pairs) > 1:
        raise RecordError(f"{suite.folder}: {len(pairs)} models and datasets need a file each; leave --out away")
    for model, dataset in pairs.itertuples(index=False):
        own = rows[(rows["model"] == model) & (rows["dataset"] == dataset)]
        path = args.out or Path("results/calibration") / f"{model}_{dataset}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = calibrate(suite, own)
        text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=120)
        path.write_text(
            f"# Written by scripts/calibrate.py --suite {suite.name}; one value per seed.\n{text}", encoding="utf-8"
        )
        print(f"{path}: {len(found['source']['seeds'])} seeds, {len(found['source']['run_ids'])} runs")
        for protocol, taus in found["protocols"].items():
            means = {name: stats.mean(values) for name, values in taus.items()}
            print(f"  {protocol}: tau_high {means['tau_high']:.8f}  tau_low {means['tau_low']:.8f}  (means over seeds)")
    return 0


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
        for seed, own in rows[rows["protocol"] == protocol].sort_values("seed").groupby("seed"):
            try:
                high, low = stats.thresholds(own["similarity"], *PERCENTILES)
            except ValueError as error:
                raise RecordError(f"{suite.folder}: protocol {protocol}, seed {seed}: {error}") from None
            taus["tau_high"].append(high)
            taus["tau_low"].append(low)
        protocols[protocol] = taus
    commits = sorted({f"{run.git_commit}{' + changes' if run.git_dirty else ''}" for run in by_run.itertuples()})
    source = {
        "suite": suite.name, "run_ids": sorted(by_run.index),
        "seeds": sorted(int(seed) for seed in by_run["seed"].unique()),
        "git_commit": ", ".join(commits), "percentiles": list(PERCENTILES), "steps": int(by_run["steps"].iloc[0]),
        "interval": int(by_run["interval"].iloc[0]),
    }  # fmt: skip
    return {"source": source, "protocols": protocols}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RecordError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
