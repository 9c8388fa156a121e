"""A run on disk. The only module that knows file names.

Rows are appended to jsonl files; a checkpoint remembers how long each file was, and a resumed run cuts them back to
that length, so a killed run leaves the same rows as an uninterrupted one. The summary is written last: its presence
means that nothing more will come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import shutil
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from leapbench.config import ConfigError

SCHEMA = 1
CONFIG, META, SUMMARY = "config.yaml", "meta.json", "summary.json"
EVALS, REGIMES, PROPOSALS = "evals.jsonl", "regimes.jsonl", "proposals.jsonl"
CASCADE, LANDSCAPE, LEAPS = "cascade.jsonl", "landscape.jsonl", "leaps.jsonl"
STREAMS = (EVALS, REGIMES, PROPOSALS, CASCADE, LANDSCAPE, LEAPS)
CHECKPOINT, LOCK, OWNER = "checkpoint/state.pt", "lock", "owner.json"

# A lock whose heartbeat is older than this belongs to nobody, seconds.
STALE_AFTER_S = 1800.0


class BusyError(Exception):
    """Another process is running this run id."""


class RunFolder:
    """results_dir/<suite>/<run_id>/, owned by this process from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, BinaryIO] = {}

    def summary(self) -> dict[str, Any] | None:
        """What a finished run left, or None."""
        path = self.path / SUMMARY
        return json.loads(path.read_text()) if path.is_file() else None

    def acquire(self) -> None:
        """Make the folder and take its lock; a dead owner's lock is taken over.

        Raises:
            BusyError: a living process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / LOCK
        try:
            lock.mkdir()
        except FileExistsError:
            owner = self._owner()
            if _alive(owner, lock):
                raise BusyError(
                    f"run {self.path.name} is already being run by process {owner.get('pid')} on {owner.get('host')}; "
                    f"left alone ({self.path})"
                ) from None
            # Of several that find a stale lock rename lets exactly one win; the others find a new owner.
            grave = self.path / f"{LOCK}.{socket.gethostname()}.{os.getpid()}"
            try:
                lock.rename(grave)
            except FileNotFoundError:
                return self.acquire()
            shutil.rmtree(grave, ignore_errors=True)
            return self.acquire()
        try:
            write_json(lock / OWNER, {**_me(), "since_utc": utc()})
        except OSError:  # a lock without an owner would keep everybody out
            self.release()
            raise
        return None

    def release(self) -> None:
        """Close the files and give the lock back."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it first
                file.close()
        self._files.clear()
        shutil.rmtree(self.path / LOCK, ignore_errors=True)

    def describe(self, science: dict[str, Any], machine: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write config.yaml and meta.json; a restart adds an entry to meta's `starts`.

        Args:
            meta: facts of this start; its `start` entry is appended to those of earlier starts.
        """
        write_text(self.path / CONFIG, yaml.safe_dump({"science": science, "machine": machine}, sort_keys=False))
        known = self.path / META
        starts = json.loads(known.read_text())["starts"] if known.is_file() else []
        start = meta.pop("start")
        write_json(known, {"schema": SCHEMA, **meta, "starts": [*starts, {"utc": utc(), "pid": os.getpid(), **start}]})

    def open(self, offsets: dict[str, int] | None) -> None:
        """Open the row files, each cut back to its length at the checkpoint; without one, to nothing."""
        for name in STREAMS:
            file, size = (self.path / name).open("ab"), (offsets or {}).get(name, 0)
            if file.seek(0, os.SEEK_END) < size:
                raise ConfigError(
                    f"{self.path / name} is shorter than the checkpoint remembers; delete {self.path} to start over"
                )
            file.truncate(size)
            file.seek(0, os.SEEK_END)
            self._files[name] = file

    def append(self, stream: str, row: dict[str, Any]) -> None:
        """Add one row; it reaches the disk with the next `flush`. Numbers that are not finite become null."""
        self._files[stream].write(json.dumps({k: finite(v) for k, v in row.items()}).encode() + b"\n")

    def flush(self) -> None:
        """Hand all rows to the system and show that this process lives."""
        for file in self._files.values():
            file.flush()
        try:
            os.utime(self.path / LOCK)
        except FileNotFoundError:
            raise BusyError(f"{self.path}: another process has taken this run over; this one stops") from None

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the rolling checkpoint atomically; the rows written so far are on disk before it is."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        target = self.path / CHECKPOINT
        target.parent.mkdir(exist_ok=True)
        part = target.with_suffix(".part")
        offsets = {name: file.tell() for name, file in self._files.items()}
        try:
            with part.open("wb") as file:
                torch.save({"offsets": offsets, **state}, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch's zip writer reports a full disk in words of its own
            part.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        os.replace(part, target)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint with its tensors on `device`, or None.

        Raises:
            ConfigError: it is damaged.
        """
        target = self.path / CHECKPOINT
        if not target.is_file():
            return None
        try:
            return torch.load(target, map_location=device, weights_only=False)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            cut_short = isinstance(error, OSError) and error.errno == errno.EINVAL
            if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, OSError) and not cut_short):
                raise
            raise ConfigError(f"{target} is damaged; delete it, and the run starts over") from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json last of all, and drop the checkpoint of a run that will never be resumed."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        write_json(self.path / SUMMARY, summary)
        if summary["status"] != "failed":
            shutil.rmtree((self.path / CHECKPOINT).parent, ignore_errors=True)

    def reopen(self) -> None:
        """Make a failed run unfinished again."""
        (self.path / SUMMARY).unlink(missing_ok=True)

    def _owner(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / LOCK / OWNER).read_text())
        except (OSError, ValueError):
            return {}


def finite(value: Any) -> Any:
    """None for nan and infinities, everything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def utc() -> str:
    """Now, as 2026-01-31T23:59:59Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, data: Any) -> None:
    """Write atomically; floats that are not finite are refused by JSON and must be None."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write to a temporary file, then rename: readers see the old text or the new, never half."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _alive(owner: dict[str, Any], lock: Path) -> bool:
    """Whether the lock's owner may still be running: on this host its process, elsewhere its heartbeat, tells."""
    if owner.get("host") == socket.gethostname():
        return owner.get("birth") is not None and owner["birth"] == _birth(owner["pid"])
    try:
        return time.time() - lock.stat().st_mtime <= STALE_AFTER_S
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "birth": _birth(os.getpid())}


def _birth(pid: int) -> str | None:
    """When process `pid` of this host started, None if there is none.

    A pid can be given out again, after a restart of a container even to the process that asks; its birth tells the two
    apart. Where the system does not say (no /proc), all births of a living pid are equal.
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
