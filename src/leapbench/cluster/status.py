"""The progress of a suite's runs, from their folders and, where there is one, Slurm's queue.

A run is
  completed, diverged, skipped or failed  according to its summary;
  running      its lock has a living owner, or its job runs;
  pending      its job waits in the queue, to start or to start again;
  partial      it began, has no summary, and no process works on it: killed, timed out, or its node died;
  failed       too, if its job ended before the run began.

Only runs without a summary cost more than opening one small file.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leapbench.cluster.slurm import Submission, endings, submissions
from leapbench.config.errors import ConfigError
from leapbench.names import CONFIG, EVALS, LOCK, SUMMARY, Status
from leapbench.records.files import read_summary
from leapbench.records.lock import is_alive, read_owner

STEPS = re.compile(rb"^  train:\n(?:    .*\n)*?    steps: (\d+)$", re.MULTILINE)
TAIL_BYTES = 4096


@dataclass(frozen=True)
class State:
    """One run. `ended`: a summary exists, so it is run again only on demand; `log`: what its last job wrote."""

    run_id: str
    folder: Path
    status: str
    ended: bool = False
    reason: str = ""
    job: str | None = None
    log: Path | None = None

    def progress(self) -> str:
        """`step 400 of 2000` as of the newest row; empty before the first."""
        step = _tail(self.folder / EVALS).get("step")
        if step is None:
            return ""
        steps = STEPS.search(_bytes(self.folder / CONFIG))
        return f"step {step} of {steps[1].decode()}" if steps else f"step {step}"

    def last_line(self) -> str:
        """The last line that its job logged; empty without one."""
        lines = _end(self.log).decode(errors="replace").split("\n") if self.log else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass
class Survey:
    """Reads the states of one suite's runs repeatedly; a run that has ended well is read once."""

    suite: Path
    _final: dict[str, State] = field(default_factory=dict)

    def look(self, queue: dict[str, str] | None) -> dict[str, State]:
        """The state of every run that has a folder or was submitted, by run id.

        Args:
            queue: what :func:`leapbench.cluster.slurm.queue` returned before this call, so that a run which ends
                meanwhile is seen as ended.
        """
        jobs: dict[str, list[tuple[str, Submission]]] = {}
        for submission in submissions(self.suite):
            for job, run_id in submission.runs.items():
                jobs.setdefault(run_id, []).append((job, submission))
        with os.scandir(self.suite) as entries:
            names = {entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()}
        states = {}
        for name in sorted(names | jobs.keys()):
            if name not in self._final:
                state = _state(self.suite / name, name in names, jobs.get(name, []), queue)
                if state.ended and state.status not in (Status.failed, Status.pending, Status.running):
                    self._final[name] = state
                states[name] = state
            else:
                states[name] = self._final[name]
        return _with_endings(states, queue)


def _state(folder: Path, exists: bool, jobs: list[tuple[str, Submission]], queue: dict[str, str] | None) -> State:
    summary = _summary(folder) if exists else {}
    queued = [(job, submission) for job, submission in jobs if queue and job in queue]
    last = next(reversed(queued or jobs), None)
    job, log = (last[0], last[1].log(last[0])) if last else (None, None)

    def state(status: str, reason: str) -> State:
        return State(folder.name, folder, status, bool(summary), reason, job, log)

    status, reason = summary.get("status", ""), summary.get("reason") or ""
    if status and (status != Status.failed or not queued):
        return state(status, reason)
    if exists and (owner := _worker(folder / LOCK, queue)) is not None:
        return state(Status.running, f"on {owner.get('host', 'unknown')}")
    if queued:
        assert queue is not None and job is not None
        return state(Status.pending if queue[job] == "PENDING" else Status.running, f"job {job} {queue[job].lower()}")
    if exists:
        return state(Status.partial, f"job {job} ended" if job else "")
    if queue is None:
        return state(Status.pending, f"job {job}, no squeue here to ask")
    return state(Status.failed, f"job {job} ended before the run began")


def _worker(lock: Path, queue: dict[str, str] | None) -> dict[str, Any] | None:
    """The living owner of a run's lock, None if there is none."""
    if not lock.is_dir():
        return None
    owner = read_owner(lock)
    job = owner.get("slurm_job")
    job_ended = queue is not None and job is not None and job not in queue
    return owner if not job_ended and is_alive(owner, lock) else None


def _with_endings(states: dict[str, State], queue: dict[str, str] | None) -> dict[str, State]:
    """Add what accounting knows about jobs that ended without a summary."""
    unexplained = {
        state.job: state for state in states.values() if state.job and state.status in (Status.partial, Status.failed)
    }
    causes = endings(job for job, state in unexplained.items() if not state.ended) if queue is not None else {}
    for job, state in unexplained.items():
        if job in causes and not state.ended:
            reason = f"{state.reason}: {causes[job].lower()}"
            states[state.run_id] = State(**{**vars(state), "reason": reason})
    return states


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return read_summary(folder) or {}
    except OSError:
        return {}
    except ConfigError:
        return {"status": Status.failed, "reason": f"{SUMMARY} is not readable as JSON"}


def _tail(path: Path) -> dict[str, Any]:
    """The newest complete row of a jsonl file, {} if there is none."""
    lines = _end(path).split(b"\n")[:-1]
    try:
        return json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}


def _end(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read()
    except OSError:
        return b""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
