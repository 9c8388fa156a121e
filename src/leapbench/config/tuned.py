"""Tuned learning rates: how a file in results/tuning/ is looked up, and how the best rate of a grid is picked.

A rate belongs to a cell: (model, dataset, optimizer, schedule, method). It is picked on the verification split with
seeds that are not scored; the validation split plays no part.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.names import BASELINE, PROJECT, Mode

TUNING = PROJECT / "results" / "tuning"
KEYS = ("optimizer", "schedule", "method")
# optimizer.lr: the rate tuned for this very method, or a multiple of the one tuned for training without a predictor.
TUNED, OF_BASELINE = "tuned", re.compile(r"(\d+(?:\.\d+)?) baseline")


@dataclass(frozen=True)
class Cell:
    """What a learning rate is tuned for."""

    model: str
    dataset: str
    optimizer: str
    schedule: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}/{self.dataset}, {self.optimizer}, {self.schedule}, {self.method}"


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


def method_of(science: Mapping[str, Any]) -> str:
    """The method of a run as one word: predictor/rule/K/gate, such as `linear/strict/10/any`, or `none`.

    mode=observe trains like `none`. Options of a predictor (a mask's variant, a rank) are ablations of one method and
    share its rate.

    Args:
        science: :meth:`RunConfig.science`, or the part of that name of a run's config.yaml.
    """
    if science["mode"] != Mode.leap or not science["predictors"]:
        return BASELINE
    name, K = "+".join(science["predictors"]), ",".join(map(str, science["K"]))
    return f"{name}/{science['leap']['rule']}/{K}/{science['leap']['gate']}"


def tuned_lr(config: RunConfig, folder: Path = TUNING) -> float:
    """The number that the text in `optimizer.lr` stands for: "tuned", or "0.5 baseline", half the tuned baseline's.

    Raises:
        ConfigError: another text, or nothing is known of this cell; names the command that tunes it.
    """
    text = str(config.optimizer.lr)
    multiple = OF_BASELINE.fullmatch(text)
    if text != TUNED and multiple is None:
        raise ConfigError(f'optimizer.lr={text} is no number; give a number, tuned, or a multiple as in "0.5 baseline"')
    cell = Cell(
        config.model.name, config.dataset.name, config.optimizer.name, config.schedule.name,
        BASELINE if multiple else method_of(config.science()),
    )  # fmt: skip
    path = path_of(cell, folder)
    if path.is_file():
        for entry in _entries(path, path.stat().st_mtime_ns):
            if all(entry[key] == getattr(cell, key) for key in KEYS):
                return float(f"{entry['lr'] * (float(multiple[1]) if multiple else 1.0):.6g}")
    place = path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path
    known = "has no entry" if path.is_file() else "does not exist, so there is none"
    raise ConfigError(
        f"optimizer.lr={text}: {place} {known} for {cell.optimizer}, {cell.schedule}, {cell.method}; run make sweep "
        f"NAME={_sweep(cell)}, then python scripts/tune.py {_sweep(cell)}, or give a number"
    )


@functools.lru_cache
def _entries(path: Path, mtime_ns: int) -> list[dict[str, Any]]:
    """The content of a file as of its last change; a sweep looks into it once per cell."""
    return list(yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def path_of(cell: Cell, folder: Path = TUNING) -> Path:
    """The file that holds the rates of this model on this dataset."""
    return folder / f"{cell.model}_{cell.dataset}.yaml"


def _sweep(cell: Cell) -> str:
    """The sweep that tunes `cell`, which is also its suite: methods need the baseline's rate, so they come second."""
    return f"tune_{cell.dataset}" + ("" if cell.method == BASELINE else "_methods")


def pick(trials: Iterable[Trial]) -> dict[Cell, dict[str, Any]]:
    """Per cell the rate with the lowest mean verification loss over the seeds, and its evidence as plain data.

    A rate at which a seed diverged has mean inf; of equal means the smaller rate is taken.

    Raises:
        TuningError: a seed is missing at some rate, a run is there twice, runs differ in length, or all diverged.
    """
    by_cell: dict[Cell, list[Trial]] = {}
    for trial in trials:
        by_cell.setdefault(trial.cell, []).append(trial)
    return {cell: _entry(cell, by_cell[cell]) for cell in sorted(by_cell, key=order)}


def order(cell: Cell) -> tuple[Any, ...]:
    """Sorts cells: the baseline first, then by name."""
    return cell.model, cell.dataset, cell.optimizer, cell.schedule, cell.method != BASELINE, cell.method


def _entry(cell: Cell, trials: list[Trial]) -> dict[str, Any]:
    at = {(trial.lr, trial.seed): trial for trial in trials}
    lrs, seeds = sorted({lr for lr, _ in at}), sorted({seed for _, seed in at})
    for trial in trials:
        if trial is not at[trial.lr, trial.seed]:
            ids = f"{trial.run_id} and {at[trial.lr, trial.seed].run_id}"
            raise TuningError(f"{cell}: runs {ids} both have lr={trial.lr:g} and seed={trial.seed}; delete one")
    missing = [f"lr={lr:g} seed={seed}" for lr in lrs for seed in seeds if (lr, seed) not in at]
    if missing:
        raise TuningError(f"{cell}: no run for {', '.join(missing)}; run the tuning sweep to its end")
    lengths = sorted({(trial.steps, trial.interval) for trial in trials})
    if len(lengths) > 1:
        raise TuningError(f"{cell}: runs of different (steps, interval) {lengths} cannot be compared; delete some")
    means = {lr: math.fsum(at[lr, seed].loss for seed in seeds) / len(seeds) for lr in lrs}
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
                "losses": [_rounded(at[lr, seed].loss) for seed in seeds],
                "run_ids": [at[lr, seed].run_id for seed in seeds],
            }
            for lr in lrs
        ],
    }


def merged(known: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a file after a tuning: a new entry takes the place of the known one of its cell."""
    entries = {tuple(entry[key] for key in KEYS): dict(entry) for entry in (*known, *new)}
    return [entries[key] for key in sorted(entries, key=lambda key: (*key[:-1], key[-1] != BASELINE, key[-1]))]


def _rounded(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None
