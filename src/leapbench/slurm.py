"""What Slurm knows of our jobs, and what we noted when we submitted them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from leapbench.files import write_json

SUBMITTED = ".submitted"  # folder in a suite: one record per array, and its logs
COMMAND_TIMEOUT_S = 60
MAX_ARRAY = 1001  # Slurm's own default


class SlurmError(Exception):
    """A command of Slurm failed; the message is one line."""


@dataclass(frozen=True)
class Submission:
    """One array: when and from which commit it was submitted, where submitit logs, and the run of each job."""

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
        return Path(self.logs) / f"{job}_0_log.err"

    def write(self, suite: Path) -> None:
        """Keep it with the runs of `suite`."""
        write_json(suite / SUBMITTED / f"{self.id}.json", asdict(self))


def submissions(suite: Path) -> list[Submission]:
    """All arrays ever submitted for `suite`, oldest first."""
    found = [Submission(**json.loads(path.read_text())) for path in (suite / SUBMITTED).glob("*.json")]
    return sorted(found, key=lambda submission: submission.utc)


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
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    except SlurmError:
        return MAX_ARRAY
    return int(found[1]) if found else MAX_ARRAY


def _pairs(listing: str) -> dict[str, str]:
    rows = (line.split("|") for line in listing.splitlines() if "|" in line)
    return {job.strip(): state.split()[0] for job, state, *_ in rows if state.strip()}


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
        raise SlurmError(f"{command[0]}: {reason}")
    return done.stdout
