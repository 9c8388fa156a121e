"""`hydra/launcher=slurm`: the jobs of a sweep as a Slurm array, through hydra-submitit-launcher.

Three things are added to the plugin. Jobs run a copy of the commit that was checked out when they were submitted. A job
that dies without a result (kill -9, out of memory, a lost node) is noticed from the queue, whereas submitit waits for
sacct, which reports nothing without accounting. And the outcome of every job is reported, whereas the plugin stops at
the first failure.
"""

# No postponed annotations: Hydra executes plugins outside sys.modules.
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

from leapbench.names import PROJECT

# A job that left the queue and has written no result after this many seconds is dead: a shared file system may take
# that long to show a file.
GRACE_S = 30.0
# Seconds between two queries of the queue.
LOOK_S = 10.0


class Queue:
    """The state of submitit's jobs, from one call of squeue for all of them."""

    def __init__(self, ask: Callable[[], Any], now: Callable[[], float] = time.monotonic) -> None:
        self.ask, self.now = ask, now
        self.states: dict[str, str] = {}
        self.looked_at = -LOOK_S
        self.missing_since: dict[str, float] = {}
        self.jobs: list[str] = []

    def register_job(self, job_id: str) -> None:
        """Nothing to do: the queue lists all of the user's jobs."""

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """The state in the queue, UNKNOWN if it is not there."""
        return self.states.get(job_id, "UNKNOWN")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether the job has been missing from the queue for GRACE_S seconds, in every query since."""
        if self.now() - self.looked_at >= LOOK_S:
            self.look()
        return self.now() - self.missing_since.get(job_id, self.now()) >= GRACE_S

    def look(self) -> None:
        """Query the queue; a controller that does not answer changes nothing."""
        from leapbench.cluster.slurm import SlurmError

        self.looked_at = self.now()
        try:
            self.states = self.ask() or {}
        except SlurmError:
            self.missing_since.clear()
            return
        for job in self.jobs:
            if job in self.states:
                self.missing_since.pop(job, None)
            else:
                self.missing_since.setdefault(job, self.looked_at)

    def watch(self, jobs: Sequence[Any]) -> None:
        """Make submitit's `jobs` query this object."""
        for job in jobs:
            job.watcher = self
            job._results_timeout_s = 0  # GRACE_S has passed
            self.jobs.append(job.job_id)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """The plugin's launcher with pinned code and a report for every job; its keys are those of
    conf/hydra/launcher/slurm.yaml.
    """

    hydra_context: Any  # Hydra's, set before anything is launched
    runs: Sequence[Any] = ()  # a PlannedRun for each of the jobs to be launched, from the sweeper

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs, wait for them, and report how each ended.

        Raises:
            ConfigError: the code differs from its commit, there is no Slurm here, or sbatch refuses; nothing was
                submitted.
        """
        from leapbench.cluster import slurm
        from leapbench.records import commit

        assert self.config is not None
        site = slurm.Site(self._keys(), Path.cwd(), commit.code(self.config.allow_dirty), commit.current())
        self._read_configs_of(site.code)
        runs, self.runs = self.runs, []  # every job's pickle holds this object
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        calls = [
            (self, list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        jobs = site.submit(self.params["submitit_folder"], calls)
        self._note(site, {job.job_id: run for job, run in zip(jobs, runs, strict=False)})
        queue = Queue(slurm.queue)
        queue.watch(jobs)
        return [self._answer(job) for job in jobs]

    def _keys(self) -> dict[str, Any]:
        return {key: value for key, value in self.params.items() if key != "submitit_folder"}

    def _read_configs_of(self, code: Path) -> None:
        """Let jobs compose their configurations from `code`, so that later changes of this checkout do not matter."""
        path = self.hydra_context.config_loader.get_search_path()
        for element in path.get_path():
            if element.path == f"file://{PROJECT / 'conf'}":
                element.path = f"file://{code / 'conf'}"
        self.hydra_context = HydraContext(ConfigLoaderImpl(path), self.hydra_context.callbacks)

    def _note(self, site: Any, runs: dict[str, Any]) -> None:
        """Record in the suites which job runs which run, for scripts/status.py and scripts/submit.py."""
        from leapbench.cluster.slurm import Submission
        from leapbench.records.files import utc

        logs = str(Path(self.params["submitit_folder"]).absolute())
        for suite in {run.folder.parent.absolute() for run in runs.values()}:
            run_ids = {job: run.run_id for job, run in runs.items() if run.folder.parent.absolute() == suite}
            Submission(utc(), site.commit, logs, run_ids).write(suite)

    def _answer(self, job: Any) -> JobReturn:
        """Wait for `job`; its return value, or the reason why there is none."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        from leapbench import cli
        from leapbench.cluster import slurm

        try:
            answer = job.results()[0]
        except UncompletedJobError:
            ending = slurm.endings([job.job_id]).get(job.job_id)
            reason = f"job {job.job_id} died without an answer" + (f" ({ending})" if ending else "")
        except FailedJobError as error:
            reason = next(line for line in reversed(str(error).splitlines()) if "Error" in line)
        else:
            if answer.status == JobStatus.COMPLETED:
                cli.report(answer._return_value, job.paths.stderr)
                return answer
            reason = str(answer._return_value)
        return JobReturn(status=JobStatus.FAILED, _return_value=f"{reason}; log {job.paths.stderr}")
