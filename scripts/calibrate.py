"""Regime thresholds from a calibration suite: percentiles 70 and 30 of the similarity, per protocol and seed."""

import argparse
from pathlib import Path

from leapbench.records.ending import exit_with
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import calibration, stats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True, help="folder under --results")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--out", type=Path, help="file to write (default: results/calibration/MODEL_DATASET.yaml)")
    args = parser.parse_args()
    suite = load_suite(args.results / args.suite)
    calibrations = calibration.calibrations(suite)
    if args.out and len(calibrations) > 1:
        raise RecordError(f"{suite.folder}: {len(calibrations)} models and datasets need a file each; leave --out away")
    for (model, dataset), content in calibrations.items():
        path = args.out or Path("results/calibration") / f"{model}_{dataset}.yaml"
        calibration.write(path, suite.name, content)
        print(f"{path}: {len(content['source']['seeds'])} seeds, {len(content['source']['run_ids'])} runs")
        for protocol, taus in content["protocols"].items():
            means = {name: stats.mean(values) for name, values in taus.items()}
            print(f"  {protocol}: tau_high {means['tau_high']:.8f}  tau_low {means['tau_low']:.8f}  (means over seeds)")
    return 0


if __name__ == "__main__":
    exit_with(main)
