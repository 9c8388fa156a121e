"""Submit runs to Slurm and return: one array per command line of a sweep, one job per run.

A job is pickled by submitit, composes its run from its overrides, and runs the code of `Site.code`: a copy of the
commit that was checked out at submission. Paths of the results are absolute, so that all jobs write where the
submission looked, whatever code they run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from leapbench.cluster.slurm import SUBMITTED, Site, SlurmError, Submission, max_array, queue
from leapbench.cluster.status import State, Survey
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.names import PROJECT, Status
from leapbench.records.files import utc
from leapbench.records.lock import HeldError, Lock
from leapbench.records.plan import PlannedRun

LAUNCHER = "hydra/launcher"
HERE = "scripts/sweep.py runs on this machine"


class Task:
    """One run as a job; submitit calls it again after a preemption or a time limit, and the run continues."""

    def __init__(self, overrides: Sequence[str], run_id: str) -> None:
        self.overrides, self.run_id = list(overrides), run_id

    def __call__(self) -> dict[str, str]:
        """Carry out the run. A mistake or a failure is one line in the log and an exit status."""
        from leapbench import cli

        try:
            cfg = composed(self.overrides)
            run_id = _resolved(cfg).run_id
            if run_id != self.run_id:
                raise ConfigError(
                    f"run {self.run_id} resolves to {run_id} here: code, calibration or tuning differ from what was "
                    "submitted; submit again"
                )
        except Exception as error:
            cli.give_up(error)
        return cli.job(cfg)

    def checkpoint(self) -> Any:
        """What submitit requeues: the same run, which resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the launcher (`hydra/launcher=...`, `hydra.launcher....`), and those of the runs."""
    launcher_overrides = [
        word for word in overrides if word.lstrip("+~").startswith((f"{LAUNCHER}=", "hydra.launcher."))
    ]
    return launcher_overrides, [word for word in overrides if word not in launcher_overrides]


def launcher(overrides: Sequence[str], name: str) -> dict[str, Any]:
    """The keys of the launcher, conf/hydra/launcher/slurm.yaml by default; jobs are called `name` if it gives no name.

    Raises:
        ConfigError: the launcher does not queue jobs on Slurm.
    """
    default = [] if any(word.startswith(f"{LAUNCHER}=") for word in overrides) else [f"{LAUNCHER}=slurm"]
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        node = compose("config", [*default, *overrides], return_hydra_config=True).hydra.launcher
    if not str(node.get("_target_")).endswith(".SlurmLauncher"):
        raise ConfigError(
            f"{(default or list(overrides))[0]} queues no jobs; use {LAUNCHER}=slurm, or scripts/sweep.py"
        )
    raw = OmegaConf.to_container(node)
    assert isinstance(raw, dict)
    with open_dict(node):
        if "hydra.job" in str(raw["name"]):
            node.name = name
        del node["_target_"], node["submitit_folder"]
    keys = OmegaConf.to_container(node, resolve=True)
    assert isinstance(keys, dict)
    return {str(key): value for key, value in keys.items()}


def composed(overrides: Sequence[str]) -> DictConfig:
    """A run's configuration, as train.py gets it from Hydra."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def by_suite(runs: Iterable[PlannedRun]) -> dict[Path, list[PlannedRun]]:
    """The runs of each suite, every run once."""
    suites: dict[Path, dict[str, PlannedRun]] = {}
    for run in runs:
        suites.setdefault(run.folder.parent, {})[run.run_id] = run
    return {suite: list(planned.values()) for suite, planned in suites.items()}


def prepare(runs: Iterable[PlannedRun]) -> int:
    """Fill the caches of the data sets that `runs` read, each once; the number of data sets.

    Raises:
        ConfigError: a data set cannot be loaded.
    """
    from leapbench.data import load, load_images

    by_data = {run.data: run for run in runs}
    for run in by_data.values():
        config = _resolved(composed(run.overrides))
        (load if config.dataset.image is None else load_images)(config.dataset, config.cache)
    return len(by_data)


def to_do(runs: Iterable[PlannedRun], states: dict[str, State], retry: bool) -> tuple[list[PlannedRun], dict[str, int]]:
    """The runs that are missing, partial, or (with `retry`) failed, and how many of all are in which state."""
    selection, counts = [], dict[str, int]()
    for run in runs:
        state = states.get(run.run_id)
        status = state.status if state else Status.missing
        counts[status] = counts.get(status, 0) + 1
        never_started = status == Status.failed and state is not None and not state.ended
        if status in (Status.missing, Status.partial) or never_started or (status == Status.failed and retry):
            selection.append(run)
    return selection, counts


def survey(suite: Path) -> dict[str, State]:
    """The states of the runs of `suite`, which need not exist yet.

    Raises:
        SlurmError: there is no Slurm, or the queue cannot be read, so that pending jobs are unknown.
    """
    try:
        jobs = queue()
    except SlurmError as error:
        raise SlurmError(f"{error}; nothing is submitted unseen: is there a cluster? {HERE}") from None
    if jobs is None or shutil.which("sbatch") is None:
        raise SlurmError(f"no Slurm here: sbatch and squeue are not on PATH; {HERE}")
    return Survey(suite).look(jobs) if suite.is_dir() else {}


def submit(suite: Path, runs: Sequence[PlannedRun], retry: bool, site: Site) -> tuple[list[Submission], dict[str, int]]:
    """Submit those of `runs`, all of `suite`, that are not finished; the arrays, and the counts by state.

    Raises:
        ConfigError: another submission for this suite is under way.
        SlurmError: sbatch refuses.
    """
    lock = Lock(suite / SUBMITTED / "lock")
    try:
        lock.acquire()
    except HeldError as error:
        raise ConfigError(
            f"{suite.name}: process {error.owner.get('pid')} on {error.owner.get('host')} is submitting this suite; "
            "nothing was submitted twice; run this again when it is done"
        ) from None
    try:
        selection, counts = to_do(runs, survey(suite), retry)
        size = max_array()
        chunks = [selection[start : start + size] for start in range(0, len(selection), size)]
        return [_array(suite, chunk, site) for chunk in chunks], counts
    finally:
        lock.release()


def _array(suite: Path, runs: Sequence[PlannedRun], site: Site) -> Submission:
    logs = suite.absolute() / SUBMITTED / f"{time.strftime('%Y%m%dT%H%M%S')}-{runs[0].run_id}"
    results = f"results_dir={_quoted(suite.absolute().parent)}"
    jobs = site.submit(logs, [(Task([*run.overrides, results], run.run_id),) for run in runs])
    ids = {job.job_id: run.run_id for job, run in zip(jobs, runs, strict=True)}
    submission = Submission(utc(), site.commit, str(logs), ids)
    submission.write(suite)
    return submission


def _quoted(path: Path) -> str:
    """A path quoted for Hydra's override grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _resolved(cfg: DictConfig) -> RunConfig:
    from leapbench.config.resolve import resolve

    return resolve(cfg)
