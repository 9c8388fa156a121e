"""results/tuning/PLAN.yaml: every setting that was tried for a row, with its losses and runs, and what was chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leapbench.config.errors import ConfigError
from leapbench.records.files import write_text
from leapbench.referee.plan import Settings
from leapbench.referee.search import key_of

HEADER = """\
# What the search of plans/{name}.yaml tried, and what it chose. Written by scripts/judge.py.
#
# plan: budgets of the reference curve in B = {steps} steps, and the seeds that make it. entries: one per row, base
# optimizer and budget. tried: settings, the last losses on the verification split, nats, one per seed of {seeds}
# (null: diverged), and the runs. best: those with the lowest mean.
# at_edge: keys whose best value is the last of its grid, so a wider grid might do better. code: hash of what trained.
"""


@dataclass
class Entry:
    """One search.

    Attributes:
        code: hash of the modules that its runs execute.
        tried: settings, losses (None = diverged) and run_ids, in order.
        best, at_edge: once the search is over.
        like: the row whose settings were taken without trials.
        scored: runs that are scored with the best settings.
    """

    row: str
    optimizer: str
    budget: float
    code: str
    tried: list[dict[str, Any]] = field(default_factory=list)
    best: Settings | None = None
    at_edge: list[str] = field(default_factory=list)
    like: str | None = None
    scored: list[str] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, float]:
        """`key_of(settings)` -> mean loss, inf if a seed diverged."""
        return {key_of(trial["settings"]): mean(trial["losses"]) for trial in self.tried}


def mean(losses: list[float | None]) -> float:
    """Mean over seeds; inf if one diverged."""
    return math.inf if None in losses else math.fsum(x for x in losses if x is not None) / len(losses)


class Ledger:
    """The file, read at the start and written after every change.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path, header: str, plan: dict[str, Any]) -> None:
        self.path, self.header, self.plan = path, header, plan
        self.entries: dict[tuple[str, str, float], Entry] = {}
        if path.is_file():
            try:
                found = [Entry(**item) for item in yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["entries"]]
            except (yaml.YAMLError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"{path} cannot be read ({str(error).splitlines()[0]}); delete it to begin anew"
                ) from None
            self.entries = {(entry.row, entry.optimizer, entry.budget): entry for entry in found}

    def entry(self, row: str, optimizer: str, budget: float, code: str) -> Entry:
        """The entry of this search, a new one if there is none.

        Raises:
            ConfigError: what was tried before ran other code.
        """
        entry = self.entries.setdefault((row, optimizer, budget), Entry(row, optimizer, budget, code))
        if entry.code != code and entry.tried:
            raise ConfigError(
                f"{self.path}: `{row}` with {optimizer} at {budget:g} B was tried with other code ({entry.code}, now "
                f"{code}), whose losses cannot be compared; check out that code, or delete the file to begin anew"
            )
        entry.code = code
        return entry

    def write(self) -> None:
        """Put all entries into the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"plan": self.plan, "entries": [vars(entry) for entry in self.entries.values()]}
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        write_text(self.path, self.header + text)
