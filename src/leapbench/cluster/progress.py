"""How far a sweep is and how long it will still take, told from the run folders alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from leapbench.names import SUMMARY, Status
from leapbench.records.files import read_summary
from leapbench.records.plan import PlannedRun


class Progress:
    """Counts the ended runs of a sweep and guesses the time left from what has been seen.

    A run's work is its steps times the seconds that a step of its kind took. The pace is the work done since this
    object was made over the time since: that accounts for parallel jobs and for start-up.
    """

    def __init__(self, name: str, runs: Iterable[PlannedRun], now: Callable[[], float] = time.time) -> None:
        self.name = name
        self.now = now
        self.runs = {run.folder: run for run in runs}  # commands may share runs
        self.start = now()
        self.seconds: dict[Path, float] = {}  # what each ended run took
        self.look()
        self.before = set(self.seconds)

    def look(self) -> int:
        """Read the folders of the runs that were open; how many have ended by now."""
        for path in self.runs.keys() - self.seconds.keys():
            try:
                summary = read_summary(path)
                if summary is None:
                    continue
                # A failed run is run again, once.
                if summary["status"] == Status.failed and (path / SUMMARY).stat().st_mtime < self.start:
                    continue
            except FileNotFoundError:  # such a run has just been made unfinished again
                continue
            laps = {lap: spent for lap, spent in summary.get("totals", {}).items() if lap.endswith("_s")}
            self.seconds[path] = sum(laps.values()) - laps.get("charged_s", 0.0)  # which is a sum of laps itself
        return len(self.seconds)

    def still_open(self, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Those of `runs` that have not ended."""
        return [run for run in runs if run.folder not in self.seconds]

    def left_s(self) -> float | None:
        """Seconds until the last run ends; None before a run has ended here."""
        paces = self._paces()
        done = sum(spent for path, spent in self.seconds.items() if path not in self.before)
        if len(self.seconds) == len(self.runs):
            return 0.0
        if not done:
            return None
        left = sum(_pace(run, paces) * run.steps for run in self.still_open(self.runs.values()))
        return left * (self.now() - self.start) / done

    def line(self) -> str:
        """`ttb_embedded: 37 of 585 runs, about 41 min left`."""
        count, left = f"{self.name}: {len(self.seconds)} of {len(self.runs)} runs", self.left_s()
        if left is None:
            return f"{count}, time left unknown until one ends"
        return f"{count}, about {duration(left)} left" if left else f"{count}, all ended"

    def _paces(self) -> dict[tuple[str, ...], float]:
        """Mean seconds per step by kind, by (model, dataset) and, under (), of all runs that have ended."""
        seen: dict[tuple[str, ...], list[float]] = {}
        for path, spent in self.seconds.items():
            run = self.runs[path]
            for key in {run.kind, run.kind[:2], ()} if spent else ():
                seen.setdefault(key, []).append(spent / run.steps)
        return {key: sum(found) / len(found) for key, found in seen.items()}


def _pace(run: PlannedRun, paces: dict[tuple[str, ...], float]) -> float:
    return next(paces[key] for key in (run.kind, run.kind[:2], ()) if key in paces)


def duration(seconds: float) -> str:
    """`50 s`, `41 min` or `2 h 5 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
