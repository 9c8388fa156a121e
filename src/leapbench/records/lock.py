"""A lock that also works between the nodes of a cluster: a folder on the shared file system.

`mkdir` is atomic on NFS, where file locks may be missing or local to a node. The folder holds owner.json, with a token
that no other owner has; a thread renews the folder's time every HEARTBEAT_S seconds, whatever the owner is doing.
A lock is stale once its owner is known to be dead (same host, or an earlier start of the same Slurm job), or after
STALE_AFTER_S seconds without a heartbeat. Of several processes that find it stale exactly one takes it over: the one
that makes the folder named after the stale owner's token. An owner that was only suspended finds another token when it
resumes, and stops.

Why not a library: `filelock`'s hard locks rely on flock, which an NFS mount may not honour between nodes; its plain
soft locks cannot tell a dead owner on another node from a living one, and its `SoftFileLease` (4.2) takes over a stale
lock by exchanging two names, which NFS refuses. `flufl.lock` works on NFS, but only explicit calls extend its lifetime,
which it compares across the nodes' clocks; and neither knows that the earlier start of a requeued Slurm job is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leapbench.config.errors import ConfigError
from leapbench.records.files import utc, write_json

OWNER = "owner.json"
HEARTBEAT_S = 60.0
# Longer than an NFS client may show old attributes (60 s), plus a few missed heartbeats.
STALE_AFTER_S = 300.0


class HeldError(Exception):
    """A living process holds the lock; `owner` is its entry in owner.json."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        super().__init__(f"{path} is held by process {owner.get('pid')} on {owner.get('host')}")
        self.owner = owner


class LostError(Exception):
    """Another process has taken the lock over."""


class Lock:
    """The lock at `path`, held by this object from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = uuid.uuid4().hex
        self._stopped = threading.Event()

    def acquire(self) -> None:
        """Take the lock, or take it over from a dead owner; the parent folder is made if needed.

        Raises:
            HeldError: a living process holds it.
            ConfigError: something else is in its place.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is no lock: a lock is a folder; delete it, and start again")
        while not (self._make() or self._take_over()):
            pass
        self._stopped.clear()
        threading.Thread(target=self._beat, args=(self._stopped,), daemon=True, name=f"heartbeat {self.path}").start()

    def check(self) -> None:
        """Make sure that this is still the owner.

        Raises:
            LostError: it is not.
        """
        if read_owner(self.path).get("token") != self._token:
            raise LostError(f"{self.path} has another owner")

    def release(self) -> None:
        """Release the lock, unless another process has taken it over."""
        self._stopped.set()
        if read_owner(self.path).get("token") == self._token:
            self._remove()

    def _make(self) -> bool:
        try:
            self.path.mkdir()
        except FileExistsError:
            return False
        try:
            write_json(self.path / OWNER, {**_identity(), "token": self._token})
        except BaseException:  # a lock without an owner would block every process
            self._remove()
            raise
        return True

    def _take_over(self) -> bool:
        """Replace a dead owner; False if the lock has changed in the meantime and should be tried again."""
        owner = read_owner(self.path)
        if is_alive(owner, self.path, lambda: _server_time(self.path.parent)):
            raise HeldError(self.path, owner)
        claim = self.path / f"claim.{owner.get('token')}"
        try:
            claim.mkdir()
        except FileNotFoundError:  # released
            return False
        except FileExistsError:
            with contextlib.suppress(OSError):  # its maker may have died before the rmdir below
                if _server_time(self.path.parent) - claim.stat().st_mtime > STALE_AFTER_S:
                    claim.rmdir()
                    return False
            raise HeldError(self.path, owner) from None
        try:
            if read_owner(self.path).get("token") != owner.get("token"):
                return False
            write_json(self.path / OWNER, {**_identity(), "token": self._token})
            return True
        finally:
            with contextlib.suppress(OSError):
                claim.rmdir()

    def _remove(self) -> None:
        trash = self.path.with_name(f"{self.path.name}.{self._token}")
        with contextlib.suppress(OSError):
            self.path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # the file system may be unavailable for a while; `check` decides
                self.renew()

    def renew(self) -> None:
        """One heartbeat; a lock that was lost is left alone."""
        with contextlib.suppress(LostError):
            self.check()
            os.utime(self.path)  # without a time: the server's clock sets it, the same for all nodes


def read_owner(lock: Path) -> dict[str, Any]:
    """The content of owner.json; empty if it is not written yet or damaged, or if nobody holds the lock."""
    try:
        owner = json.loads((lock / OWNER).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def is_alive(owner: dict[str, Any], lock: Path, now: Callable[[], float] = time.time) -> bool:
    """Whether the lock's owner may still be running.

    On this host its process decides; an earlier start of this process's Slurm job is dead; otherwise its heartbeat
    decides.

    Args:
        now: the clock that sets the heartbeats, seconds.
    """
    identity = _identity()
    if (owner.get("host"), owner.get("boot")) == (identity["host"], identity["boot"]):
        return owner.get("birth") is not None and owner["birth"] == _birth(owner["pid"])
    if (
        identity["slurm_job"]
        and identity["slurm_job"] == owner.get("slurm_job")
        and identity["slurm_restart"] > owner.get("slurm_restart", 0)
    ):
        return False
    try:
        return now() - lock.stat().st_mtime <= STALE_AFTER_S
    except FileNotFoundError:
        return False


def slurm_job() -> str | None:
    """The Slurm job that this process belongs to, as squeue prints it: 17 or 17_3; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "birth": _birth(os.getpid()),
        "slurm_job": slurm_job(), "slurm_restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0), "since_utc": utc(),
    }  # fmt: skip


def _server_time(folder: Path) -> float:
    """The time by the clock of the file system's server, seconds."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a full disk must not keep out a process that would free it
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _boot() -> str:
    """Which boot of which machine this is: hosts may share a name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _birth(pid: int) -> str | None:
    """When process `pid` of this host started, None if there is none.

    A pid can be reused, after a restart of a container even by the calling process; the start time tells the two apart.
    Where the system does not report it (no /proc), all start times of a living pid are equal.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "unknown"
