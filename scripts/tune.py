"""Tuned learning rates from tuning suites: per model, dataset, optimizer, schedule and method the rate of the grid with
the lowest mean final verification loss. Writes results/tuning/MODEL_DATASET.yaml with its evidence."""

import argparse
import sys
from pathlib import Path

from leapbench.config.tuned import TUNING, path_of
from leapbench.names import PROJECT
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import tuning


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", metavar="SUITE", nargs="+", help="folder under --results; all its runs take part")
    parser.add_argument("--results", type=Path, default=PROJECT / "results" / "raw", help="where the suites are")
    parser.add_argument("--out", type=Path, default=TUNING, help="where the tuned rates go")
    args = parser.parse_args()
    trials = [trial for name in args.suites for trial in tuning.trials_of(load_suite(args.results / name))]
    entries = tuning.pick(trials)
    for path, (new, total) in tuning.write(entries, args.out).items():
        print(f"{path}: {new} of {total} entries written")
        for cell, entry in entries.items():
            if path_of(cell, args.out) != path:
                continue
            grid = [point["lr"] for point in entry["grid"]]
            print(f"  {cell.optimizer}, {cell.schedule}, {cell.method}: lr={entry['lr']:g} of {grid}")
            if entry["at_edge"]:
                side = "upwards" if entry["lr"] == grid[-1] else "downwards"
                print(f"warning: {cell}: lr={entry['lr']:g} is at the edge; extend the grid {side}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RecordError, tuning.TuningError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
