"""A Slurm that queues but never starts: sbatch, squeue, sacct, scontrol and srun as small scripts on PATH."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = """
if [ -e "$S/refuse" ]; then echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1; fi
job=$(($(cat "$S/last") + 1)); echo $job > "$S/last"
cp "$1" "$S/$job.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ -n "$last" ]; then
  for task in $(seq 0 "$last"); do echo "${job}_$task|PENDING" >> "$S/queue"; done
else
  echo "$job|PENDING" >> "$S/queue"
fi
echo "Submitted batch job $job"
"""
SQUEUE = """
if [ -e "$S/down" ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
cat "$S/queue"
"""
SRUN = """
while [ "${1#--}" != "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SCRIPTS = {
    "sbatch": SBATCH, "squeue": SQUEUE, "srun": SRUN, "sacct": 'cat "$S/ended"',
    "scontrol": 'echo "MaxArraySize            = $(cat "$S/max_array")"',
}  # fmt: skip


@dataclass
class FakeSlurm:
    """The folder that the scripts keep their state in."""

    folder: Path

    def queue(self, **states: str) -> None:
        """What squeue lists from now on: queue(j17_3="RUNNING")."""
        rows = [f"{job.removeprefix('j')}|{state}\n" for job, state in states.items()]
        (self.folder / "queue").write_text("".join(rows))

    def jobs(self) -> list[str]:
        """What squeue lists."""
        return [line.partition("|")[0] for line in (self.folder / "queue").read_text().splitlines()]

    def script(self, job: int) -> str:
        """The batch script of an array."""
        return (self.folder / f"{job}.sh").read_text()

    def start(self, job: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one job of an array to its end."""
        array, _, task = job.partition("_")
        given = {"SLURM_JOB_ID": array, "SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        return subprocess.run(
            ["bash", str(self.folder / f"{array}.sh")],
            env={**os.environ, **{key: value for key, value in given.items() if value or key == "SLURM_JOB_ID"}, **env},
            capture_output=True,
            text=True,
            timeout=280,
        )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A fake Slurm in front of PATH, with an empty queue."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, body in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/sh\nS={folder}\n{body}\n")
        (folder / name).chmod(0o755)
    for name, text in {"last": "16", "queue": "", "ended": "", "max_array": "1001"}.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)
