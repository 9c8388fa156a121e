"""What Slurm knows about our jobs, how they are submitted, and what is recorded at submission.

Jobs import the code they are given, ahead of the installed one: a copy of the commit, or the tree itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from leapbench.config.errors import ConfigError
from leapbench.records.files import write_json

SUBMITTED = ".submitted"  # folder in a suite: one record per array, and its logs
COMMAND_TIMEOUT_S = 60
MAX_ARRAY = 1001  # Slurm's own default


class SlurmError(ConfigError):
    """A command of Slurm failed; the message is one line."""


@dataclass(frozen=True)
class Site:
    """Where jobs run.

    Attributes:
        keys: those of conf/hydra/launcher/slurm.yaml, without the ones that only Hydra reads.
        cwd: the folder that jobs start in.
        code: the checkout, or copy of a commit, whose src they import.
        commit: what `code` is a copy of.
    """

    keys: Mapping[str, Any]
    cwd: Path
    code: Path
    commit: str | None

    def submit(self, logs: str | Path, calls: Sequence[tuple[Callable[..., Any], *tuple[Any, ...]]]) -> list[Any]:
        """Queue one job for every (function, arguments...) as one array; submitit's jobs.

        Args:
            logs: the folder of scripts, pickles and logs; %j in it stands for the job's id.

        Raises:
            SlurmError: there is no Slurm here, or sbatch refuses; nothing was submitted.
        """
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise SlurmError(
                "no Slurm here: sbatch and srun are not on PATH; hydra/launcher=local runs on this machine"
            )
        timeouts = self.keys.get("max_num_timeout", 0)
        executor = AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=timeouts)
        executor.update_parameters(**self._parameters({field.name for field in fields(BaseQueueConf)}))
        messages = io.StringIO()
        try:
            with contextlib.redirect_stderr(messages), executor.batch():  # submitit forwards what sbatch prints
                jobs = [executor.submit(*call) for call in calls]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            raise SlurmError(f"sbatch refuses: {lines[0] if lines else error}") from None
        sys.stderr.write(messages.getvalue())
        return jobs

    def _parameters(self, shared: set[str]) -> dict[str, Any]:
        """The keys as AutoExecutor expects them: those that only Slurm has are prefixed."""
        keys = {key: value for key, value in self.keys.items() if key != "max_num_timeout"}
        commands = [
            f"cd {shlex.quote(str(self.cwd))}",
            f"export PYTHONPATH={shlex.quote(str(self.code / 'src'))}${{PYTHONPATH:+:$PYTHONPATH}}",
        ]
        keys["setup"] = [*(keys.get("setup") or []), *commands]
        return {key if key in shared else f"slurm_{key}": value for key, value in keys.items()}


@dataclass(frozen=True)
class Submission:
    """One array: when and from which commit it was submitted, where submitit logs (%j: the job's id), and the run of
    each job."""

    utc: str
    commit: str | None
    logs: str
    runs: dict[str, str]

    @property
    def id(self) -> str:
        """The array's id, as scancel takes it."""
        return next(iter(self.runs)).partition("_")[0]

    def log(self, job: str) -> Path:
        """What `job` wrote to stderr."""
        return Path(self.logs.replace("%j", job)) / f"{job}_0_log.err"

    def write(self, suite: Path) -> None:
        """Write it into the folder of `suite`."""
        folder = suite / SUBMITTED
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.id}.json", asdict(self))


def submissions(suite: Path) -> list[Submission]:
    """All arrays ever submitted for `suite`, oldest first."""
    arrays = [Submission(**json.loads(path.read_text())) for path in (suite / SUBMITTED).glob("*.json")]
    return sorted(arrays, key=lambda submission: submission.utc)


def queue() -> dict[str, str] | None:
    """This user's jobs in the queue by id (17, or 17_3 in an array) and their states; None where there is no Slurm.

    Raises:
        SlurmError: Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return None
    listing = _ask("squeue", "--me", "--array", "--noheader", "--format=%i|%T")
    return _pairs(listing)


def endings(jobs: Iterable[str]) -> dict[str, str]:
    """How jobs that left the queue ended, as far as accounting knows: OUT_OF_MEMORY, TIMEOUT, CANCELLED..."""
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays or shutil.which("sacct") is None:
        return {}
    try:
        return _pairs(_ask("sacct", "-X", "-n", "-P", "--array", f"--jobs={','.join(arrays)}", "--format=JobID,State"))
    except SlurmError:  # accounting is switched off
        return {}


def max_array() -> int:
    """The largest number of jobs in one array."""
    try:
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    except SlurmError:
        return MAX_ARRAY
    return int(match[1]) if match else MAX_ARRAY


def _pairs(listing: str) -> dict[str, str]:
    rows = (line.split("|") for line in listing.splitlines() if "|" in line)
    return {job.strip(): state.split()[0] for job, state, *_ in rows if state.strip()}


def _ask(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{command[0]} does not answer: {error}") from None
    if result.returncode:
        reason = next(iter(result.stderr.strip().splitlines()), f"exit status {result.returncode}")
        raise SlurmError(f"{command[0]}: {reason.removeprefix(f'{command[0]}: ')}")
    return result.stdout
