"""`hydra/sweeper=leap`: integer ranges such as `seed=0-4`, and one job for all cells that share a training.

In observe mode training does not depend on `predictor` or `K`, so swept values of these two become lists in one job
per remaining cell. In leap mode every cell is a job of its own. Every job is composed and validated before the first
one starts or anything is written; cells that differ only in their seed are composed once.
"""

# No postponed annotations here: Hydra executes plugins outside sys.modules, where dataclasses cannot look them up.
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Transformer
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from leapbench.names import Mode, Status

FOLDED = ("predictor", "K")
MOST_JOBS = 100_000
TOO_MANY = f"a sweep has at most {MOST_JOBS:,} jobs, so split it"
RANGE = re.compile(r"(\d+)-(\d+)")
SEED, READS_SEED = re.compile(r"seed=(\d+)"), re.compile(r"\bseed\\?\}")  # Hydra escapes the braces of ${seed}

Axes = dict[str, list[str]]


@dataclass
class LeapSweeperConf:
    """The keys under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.leap_sweeper.LeapSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    ranges: list[str] = field(default_factory=lambda: ["seed"])  # keys whose A-B means A, A+1, ..., B
    fold: bool = True  # False: one job per cell, with the same numbers
    dry_run: bool = False  # True: print one line of JSON per job, with its run id and folder, and run nothing


ConfigStore.instance().store(group="hydra/sweeper", name="leap", node=LeapSweeperConf, provider="leapbench")


class Job(NamedTuple):
    """One job: its overrides, and the :class:`leapbench.config.schema.RunConfig` that they resolve to."""

    overrides: list[str]
    config: Any


class LeapSweeper(BasicSweeper):
    """Hydra's basic sweeper with ranges, folding, early validation, and jobs whose failure does not stop the others."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        ranges: Sequence[str] = ("seed",),
        fold: bool = True,
        dry_run: bool = False,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.ranges = tuple(ranges)
        self.fold = fold
        self.dry_run = dry_run

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Carry out the cartesian product of `arguments`; runs that have ended are reported, not launched again.

        Raises:
            ConfigError: before anything is written, if any job's configuration is wrong.
            SweepError: after the last job, if any failed or diverged.
        """
        from leapbench.cli import report, summarise
        from leapbench.config.errors import ConfigError
        from leapbench.records.plan import PlannedRun
        from leapbench.training.earlier import endings

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise ConfigError(f"hydra.sweeper.max_batch_size={self.max_batch_size} must be 1 or more")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        if getattr(self.launcher, "joblib", {}).get("n_jobs") == 0:
            raise ConfigError("hydra.launcher.n_jobs=0 starts nothing; use 1 or more, or -1 for one per core")
        jobs = self.plan(parser.parse_overrides([*self._parse_config(), *arguments]))
        if self.dry_run:
            for job in jobs:
                print(PlannedRun.of(job.config, job.overrides).line())
            return []

        results = endings(job.config for job in jobs)
        for result in filter(None, results):
            report(result)
        remaining = [number for number, result in enumerate(results) if result is None]
        if remaining:
            folder = Path(self.config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        size = self.max_batch_size or len(remaining) or 1
        for start in range(0, len(remaining), size):
            batch = remaining[start : start + size]
            if hasattr(self.launcher, "runs"):
                self.launcher.runs = [PlannedRun.of(jobs[number].config) for number in batch]
            try:
                launched = [jobs[number].overrides for number in batch]
                returns.append(self.launcher.launch(launched, initial_job_idx=start))
            except (KeyboardInterrupt, SystemExit) as end:
                end.add_note(_how_to_go_on(jobs, queued=hasattr(self.launcher, "runs")))
                raise
            for number, answer in zip(batch, returns[-1], strict=True):
                results[number] = _result(answer, jobs[number].config.run_id)
        from leapbench.records.findings import tables_command  # numpy, which planning does not need

        for suite, results_dir in dict.fromkeys((job.config.suite, job.config.results_dir) for job in jobs):
            print(f"tables: {tables_command(suite, results_dir)}")
        print(summarise(filter(None, results)), flush=True)
        return returns

    def plan(self, overrides: list[Override]) -> list[Job]:
        """The jobs, all of them composed and validated.

        Raises:
            ConfigError: if one is not valid.
        """
        from leapbench.config.errors import ConfigError

        axes: Axes = {}
        swept: set[str] = set()
        for override in overrides:
            key = override.get_key_element()
            axes[key] = self._values(override)
            (swept.add if override.is_sweep_override() else swept.discard)(key)
        if (count := math.prod(map(len, axes.values()))) > MOST_JOBS:
            raise ConfigError(f"these axes make {count:,} cells or more; {TOO_MANY}")
        folded = {
            key: [_as_list(values)] if key in FOLDED and key in swept and len(values) > 1 else values
            for key, values in axes.items()
        }
        if self.fold and folded != axes and "mode" not in swept:
            cells = self._composed(_jobs(folded))
            if all(config.get("mode") == Mode.observe for config in cells.values()):
                jobs = _resolved(_jobs(folded), cells)
                print(f"{len(_jobs(axes))} cells in {len(jobs)} jobs", flush=True)
                return jobs
        return _resolved(_jobs(axes), self._composed(_jobs(axes)))

    def _values(self, override: Override) -> list[str]:
        """What `override` stands for, as strings: one value, a sweep's values, or a range's integers."""
        from leapbench.config.errors import ConfigError

        values: list[Any]
        if not override.is_sweep_override():
            values = [override._value]
        elif override.is_discrete_sweep():
            try:
                values = list(islice(override.sweep_iterator(), MOST_JOBS + 1))
            except ValueError as error:  # range(0,5,0)
                raise ConfigError(f"{override.input_line}: {error}") from None
        else:
            raise ConfigError(f"{override.input_line}: intervals cannot be enumerated; use choice(...) or range(...)")
        if override.key_or_group not in self.ranges:
            if override.is_sweep_override():
                return [Transformer.str(value) for value in values]
            return [override.get_value_element_as_str()]
        expanded: list[str] = []
        for value in values:
            match = None if isinstance(value, QuotedString) else RANGE.fullmatch(str(value))
            if match is None:
                expanded.append(Transformer.str(value))
                continue
            first, last = int(match[1]), int(match[2])
            key = override.key_or_group
            if last - first >= MOST_JOBS:
                raise ConfigError(f"{key}={value} is {last - first + 1:,} values; {TOO_MANY}")
            if last < first:
                raise ConfigError(f"{key}={value} is an empty range; write it upwards, as in {key}={last}-{first}")
            expanded.extend(str(number) for number in range(first, last + 1))
        return list(dict.fromkeys(expanded))

    def _composed(self, jobs: list[list[str]]) -> dict[tuple[str, ...], DictConfig]:
        """The configuration of every cell, by its overrides without the seed; composed with its first seed."""
        cells: dict[tuple[str, ...], DictConfig] = {}
        for job in jobs:
            cell = _cell(job)
            if cell not in cells:
                cells[cell] = self._compose(job)
        return cells

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config


def _jobs(axes: Axes) -> list[list[str]]:
    # A deletion, "~key", has no value.
    choices = [
        [f"{key}={value}" if value or key[0] != "~" else key for value in values] for key, values in axes.items()
    ]
    return [list(job) for job in product(*choices)]


def _cell(job: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job without its seed. A job whose other overrides read the seed is a cell of its own."""
    rest = tuple(override for override in job if not SEED.fullmatch(override))
    return tuple(job) if any(READS_SEED.search(override) for override in rest) else rest


def _resolved(jobs: list[list[str]], cells: dict[tuple[str, ...], DictConfig]) -> list[Job]:
    """The jobs with their configurations; a cell is resolved once, for its first seed, which the others replace."""
    from leapbench.config.resolve import resolve

    configs: dict[tuple[str, ...], Any] = {}
    resolved: list[Job] = []
    for job in jobs:
        cell = _cell(job)
        seeds = [int(match[1]) for override in job if (match := SEED.fullmatch(override))]
        if cell not in configs:
            configs[cell] = resolve(cells[cell])
        resolved.append(Job(job, replace(configs[cell], seed=seeds[0]) if seeds else configs[cell]))
    return resolved


def _as_list(values: Sequence[str]) -> str:
    """`[a,b]`, `c` -> `[a,b,c]`, each element once."""
    inner = (value[1:-1] if value.startswith("[") else value for value in values)
    elements = (element.strip() for value in inner for element in value.split(","))
    return f"[{','.join(dict.fromkeys(element for element in elements if element))}]"


def _how_to_go_on(jobs: Sequence[Job], queued: bool) -> str:
    """What an interrupted sweep says: how far it came, and the command that continues it."""
    from leapbench.cli import CONTINUE
    from leapbench.training.earlier import endings

    have_ended = sum(end is not None for end in endings(job.config for job in jobs))
    count = f"{have_ended} of {len(jobs)} runs have ended"
    if queued:
        suite = shlex.quote(jobs[0].config.suite)
        return f"{count}; jobs stay in the queue: scripts/status.py {suite} shows them, scancel ends them"
    return f"{count}, {CONTINUE}: {shlex.join(['python', *sys.argv])}"


def _result(job: JobReturn, run_id: str) -> dict[str, str]:
    """What :func:`leapbench.cli.job` returned; if the job never got that far, a failure, which is reported."""
    from leapbench.cli import report

    value = job._return_value
    if job.status == JobStatus.COMPLETED and isinstance(value, dict) and "status" in value:
        return value
    if job.status == JobStatus.COMPLETED:
        return {"status": Status.completed, "run_id": run_id}
    result = {"status": Status.failed, "run_id": run_id, "folder": "", "reason": str(value)}
    report(result)
    return result
