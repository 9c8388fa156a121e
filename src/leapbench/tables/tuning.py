"""Picking learning rates: from the runs of a tuning suite to a file in results/tuning/, with its evidence.

Verification decides, with seeds that are not scored; the validation split is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leapbench.config.tuned import KEYS, TUNING, Cell, method_of, path_of
from leapbench.names import BASELINE, EVALS, VERIFICATION, Mode, Status
from leapbench.records.files import write_text
from leapbench.records.read import Suite
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


@dataclass(frozen=True)
class Trial:
    """One run of a grid: `loss` is its last verification loss, nats; inf if it diverged."""

    cell: Cell
    lr: float
    seed: int
    loss: float
    run_id: str
    steps: int
    interval: int
    commit: str


class TuningError(Exception):
    """A grid that nothing can be picked from. The message is one line."""


def pick(trials: Iterable[Trial]) -> dict[Cell, dict[str, Any]]:
    """Per cell the rate with the lowest mean verification loss over the seeds, and its evidence as plain data.

    A rate at which a seed diverged has mean inf; of equal means the smaller rate is taken.

    Raises:
        TuningError: a seed is missing at some rate, a run occurs twice, runs differ in length, or all diverged.
    """
    by_cell: dict[Cell, list[Trial]] = {}
    for trial in trials:
        by_cell.setdefault(trial.cell, []).append(trial)
    return {cell: _entry(cell, by_cell[cell]) for cell in sorted(by_cell, key=order)}


def order(cell: Cell) -> tuple[Any, ...]:
    """Sorts cells: the baseline first, then by name."""
    return cell.model, cell.dataset, cell.optimizer, cell.schedule, cell.method != BASELINE, cell.method


def _entry(cell: Cell, trials: list[Trial]) -> dict[str, Any]:
    trial_at = {(trial.lr, trial.seed): trial for trial in trials}
    lrs, seeds = sorted({lr for lr, _ in trial_at}), sorted({seed for _, seed in trial_at})
    for trial in trials:
        if trial is not trial_at[trial.lr, trial.seed]:
            ids = f"{trial.run_id} and {trial_at[trial.lr, trial.seed].run_id}"
            raise TuningError(f"{cell}: runs {ids} both have lr={trial.lr:g} and seed={trial.seed}; delete one")
    missing = [f"lr={lr:g} seed={seed}" for lr in lrs for seed in seeds if (lr, seed) not in trial_at]
    if missing:
        raise TuningError(f"{cell}: no run for {', '.join(missing)}; run the tuning sweep to its end")
    lengths = sorted({(trial.steps, trial.interval) for trial in trials})
    if len(lengths) > 1:
        raise TuningError(f"{cell}: runs of different (steps, interval) {lengths} cannot be compared; delete some")
    means = {lr: math.fsum(trial_at[lr, seed].loss for seed in seeds) / len(seeds) for lr in lrs}
    best = min(lrs, key=lambda lr: (means[lr], lr))
    if not math.isfinite(means[best]):
        raise TuningError(f"{cell}: every learning rate of {lrs} diverged; extend the grid downwards")
    steps, interval = lengths[0]
    return {
        **{key: getattr(cell, key) for key in KEYS},
        "lr": best,
        "at_edge": best in (lrs[0], lrs[-1]),
        "steps": steps,
        "interval": interval,
        "git_commit": sorted({trial.commit for trial in trials}),
        "seeds": seeds,
        "grid": [
            {
                "lr": lr,
                "mean": _rounded(means[lr]),
                "losses": [_rounded(trial_at[lr, seed].loss) for seed in seeds],
                "run_ids": [trial_at[lr, seed].run_id for seed in seeds],
            }
            for lr in lrs
        ],
    }


def merged(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a file after a tuning: a new entry takes the place of the old one of its cell."""
    entries = {tuple(entry[key] for key in KEYS): dict(entry) for entry in (*old, *new)}
    return [entries[key] for key in sorted(entries, key=lambda key: (*key[:-1], key[-1] != BASELINE, key[-1]))]


def _rounded(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None


def trials_of(suite: Suite) -> list[Trial]:
    """The runs of a tuning suite.

    Raises:
        RecordError: a run is not in mode=leap, has not ended, or has no last verification loss.
    """
    open_runs = suite.runs[~suite.runs["status"].isin([Status.completed, Status.diverged])]
    if len(open_runs):
        listing = ", ".join(f"{run['run_id']} ({run['status']})" for run in open_runs.to_dict("records"))
        raise RecordError(f"{suite.folder}: tuning needs every run to its end; these have none: {listing}")
    evals = suite.records[EVALS]
    last = evals[evals["split"] == VERIFICATION].groupby("run_id").last()["loss_nats"].to_dict()
    return [_trial(suite, run, last) for run in suite.runs.to_dict("records")]


def _trial(suite: Suite, run: Mapping[Any, Any], last: Mapping[Any, float]) -> Trial:
    science, folder = suite.configs[run["run_id"]], suite.folder / run["run_id"]
    if science["mode"] != Mode.leap:
        raise RecordError(f"{folder}: mode={science['mode']}; rates are tuned with mode=leap")
    loss = math.inf
    if run["status"] == Status.completed:
        loss = float(last.get(run["run_id"], math.nan))
        if not math.isfinite(loss):
            raise RecordError(f"{folder / EVALS}: no last loss on the verification split")
    return Trial(
        Cell(run["model"], run["dataset"], run["optimizer"], run["schedule"], method_of(science)),
        float(run["lr"]), int(run["seed"]), loss, run["run_id"], int(run["steps"]), int(run["interval"]),
        run["git_commit"] + (" + changes" if run["git_dirty"] else ""),
    )  # fmt: skip


def write(picks: Mapping[Cell, Mapping[str, Any]], folder: Path = TUNING) -> dict[Path, tuple[int, int]]:
    """Put every cell's entry into its file, in place of an older one; (entries written, entries in all) by file."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for path in sorted({path_of(cell, folder) for cell in picks}):
        updates = {cell: entry for cell, entry in picks.items() if path_of(cell, folder) == path}
        old = yaml.safe_load(path.read_text()) if path.is_file() else []
        entries = merged(old, updates.values())
        text = yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, width=120)
        cell = next(iter(updates))
        write_text(path, HEADER.format(model=cell.model, dataset=cell.dataset) + text)
        counts[path] = len(updates), len(entries)
    return counts
