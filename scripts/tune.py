"""Tuned learning rates from tuning suites: per model, dataset, optimizer, schedule and method the rate of the grid with
the lowest mean final verification loss. Writes results/tuning/MODEL_DATASET.yaml with its evidence."""

import argparse
import math
import sys
from pathlib import Path

import yaml

from leapbench.config import tuned
from leapbench.config.tuned import Cell, Trial, TuningError
from leapbench.names import EVALS, PROJECT, VERIFICATION, Status
from leapbench.records.files import write_text
from leapbench.records.read import Suite, load_suite
from leapbench.records.rows import RecordError

HEADER = """\
# Learning rates tuned for {model} on {dataset}. Written by scripts/tune.py; what optimizer.lr=tuned looks up.
#
# One entry per (optimizer, schedule, method). method is none (training without a predictor) or predictor/rule/K/gate,
# K in steps. lr: the rate of `grid` with the lowest mean over `seeds` of the last loss on the verification split,
# nats; the validation split is not looked at, and no seed here is a scored one. losses: one per seed; null: diverged,
# which counts as infinite. at_edge: the best rate is the smallest or largest of its grid, so a wider grid might do
# better. run_ids: the runs, in the order of `seeds`; git_commit: what they ran on.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", metavar="SUITE", nargs="+", help="folder under --results; all its runs take part")
    parser.add_argument("--results", type=Path, default=PROJECT / "results" / "raw", help="where the suites are")
    parser.add_argument("--out", type=Path, default=tuned.TUNING, help="where the tuned rates go")
    args = parser.parse_args()
    trials = [trial for name in args.suites for trial in trials_of(load_suite(args.results / name))]
    picked = tuned.pick(trials)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted({tuned.path_of(cell, args.out) for cell in picked}):
        own = {cell: entry for cell, entry in picked.items() if tuned.path_of(cell, args.out) == path}
        known = yaml.safe_load(path.read_text()) if path.is_file() else []
        entries = tuned.merged(known, own.values())
        text = yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, width=120)
        cell = next(iter(own))
        write_text(path, HEADER.format(model=cell.model, dataset=cell.dataset) + text)
        print(f"{path}: {len(own)} of {len(entries)} entries written")
        for cell, entry in own.items():
            grid = [point["lr"] for point in entry["grid"]]
            print(f"  {cell.optimizer}, {cell.schedule}, {cell.method}: lr={entry['lr']:g} of {grid}")
            if entry["at_edge"]:
                side = "upwards" if entry["lr"] == grid[-1] else "downwards"
                print(f"warning: {cell}: lr={entry['lr']:g} is at the edge; extend the grid {side}", file=sys.stderr)
    return 0


def trials_of(suite: Suite) -> list[Trial]:
    """The runs of a tuning suite.

    Raises:
        RecordError: a run is not in mode=leap, has not ended, or has no last verification loss.
    """
    open_runs = suite.runs[~suite.runs["status"].isin([Status.completed, Status.diverged])]
    if len(open_runs):
        named = ", ".join(f"{run.run_id} ({run.status})" for run in open_runs.itertuples())
        raise RecordError(f"{suite.folder}: tuning needs every run to its end; these have none: {named}")
    evals = suite.records[EVALS]
    last = evals[evals["split"] == VERIFICATION].groupby("run_id").last()
    found = []
    for run in suite.runs.itertuples():
        science = suite.configs[run.run_id]
        if science["mode"] != "leap":
            raise RecordError(f"{suite.folder / run.run_id}: mode={science['mode']}; rates are tuned with mode=leap")
        loss = math.inf
        if run.status == Status.completed:
            loss = float(last["loss_nats"].get(run.run_id, math.nan))
            if not math.isfinite(loss):
                raise RecordError(f"{suite.folder / run.run_id / EVALS}: no last loss on the verification split")
        found.append(
            Trial(
                Cell(run.model, run.dataset, run.optimizer, run.schedule, tuned.method_of(science)),
                float(run.lr), int(run.seed), loss, run.run_id, int(run.steps), int(run.interval),
                run.git_commit + (" + changes" if run.git_dirty else ""),
            )
        )  # fmt: skip
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RecordError, TuningError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
