"""A job before it runs, and how a run ended: what sweeps and clusters need to know about the folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from leapbench.config.schema import RunConfig, digest
from leapbench.names import Status
from leapbench.records.files import read_summary


@dataclass(frozen=True)
class PlannedRun:
    """A job before it runs. `kind` is model, dataset, predictors: steps of one kind take equally long.

    `overrides` are those of the sweep for this job; `data` is equal for jobs that read the same data set and cache.
    """

    run_id: str
    folder: Path
    steps: int
    kind: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data: str = ""

    @classmethod
    def of(cls, config: RunConfig, overrides: Sequence[str] = ()) -> PlannedRun:
        """The job of a resolved configuration."""
        kind = (config.model.name, config.dataset.name, *config.predictors)
        data = digest([asdict(config.dataset), config.cache_dir])
        return cls(config.run_id, config.folder, config.train.steps, kind, tuple(overrides), data)

    def line(self) -> str:
        """One line of JSON, as `hydra.sweeper.dry_run=true` prints it."""
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def parse(cls, line: str) -> PlannedRun:
        """The inverse of :meth:`line`."""
        values = json.loads(line)
        tuples = {key: tuple(values[key]) for key in ("kind", "overrides")}
        return cls(**values | tuples | {"folder": Path(values["folder"])})


def ended(config: RunConfig) -> dict[str, str] | None:
    """How the run of `config` ended: status, run_id, folder, reason; None if it is not finished."""
    summary = read_summary(config.folder)
    if summary is None or summary["status"] == Status.failed:
        return None
    return {
        "status": summary["status"], "run_id": config.run_id, "folder": str(config.folder),
        "reason": summary.get("reason") or "",
    }  # fmt: skip
