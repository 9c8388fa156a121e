"""A run on disk: the only module that writes it.

Rows are appended to jsonl files; a checkpoint remembers how long each file was, and a resumed run cuts them back to
that length, so a killed run leaves the same rows as an uninterrupted one. The summary is written last: its presence
means that nothing more will come.

Rows are handed to the system in batches, at most one every FLUSH_S seconds, and synced with every checkpoint and at the
end. A kill loses the rows since the last batch, a crash of the node those since the last checkpoint; both are
produced again by the run that resumes from that checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import yaml

from leapbench.config.errors import BusyError, ConfigError
from leapbench.names import (
    CHECKPOINT,
    CONFIG,
    LOCK,
    META,
    STREAMS,
    SUMMARY,
    Status,
)
from leapbench.records import checkpoint
from leapbench.records.files import read_object, utc, write_json, write_text
from leapbench.records.lock import HeldError, Lock, LostError
from leapbench.records.seal import SCHEMA, sealed

# Seconds between two batches of rows.
FLUSH_S = 5.0


class RunFolder:
    """results_dir/<suite>/<run_id>/, owned by this process from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path / LOCK)
        self._files: dict[str, FileIO] = {}
        self._batch: dict[str, bytearray] = {}  # rows not yet written to the files
        self._unsynced: set[str] = set()
        self._flushed_at = -FLUSH_S
        self.watch: Callable[[str, dict[str, Any]], None] | None = None  # called with every row and its stream

    def acquire(self) -> None:
        """Make the folder and take its lock; a dead owner's lock is taken over.

        Raises:
            BusyError: a living process holds it.
        """
        try:
            self._lock.acquire()
        except HeldError as error:
            pid, host = error.owner.get("pid"), error.owner.get("host")
            owner = f"process {pid} on {host}" if pid else "a process that its lock does not name"
            raise BusyError(f"run {self.path.name} is already being run by {owner}; left alone ({self.path})") from None

    def release(self) -> None:
        """Write the last rows, close the files and release the lock."""
        with contextlib.suppress(OSError, BusyError):  # the first write that failed has reported a full disk
            self._write(sync=False)
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
        self._batch.clear()
        self._lock.release()

    def describe(self, science: dict[str, Any], machine: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write config.yaml and meta.json; a restart adds an entry to meta's `starts`.

        Args:
            meta: facts of this start; its `start` entry is appended to those of earlier starts.
        """
        write_text(self.path / CONFIG, yaml.safe_dump({"science": science, "machine": machine}, sort_keys=False))
        path = self.path / META
        earlier = read_object(path, "delete it; it only tells of earlier starts") or {}
        starts = earlier["starts"] if isinstance(earlier.get("starts"), list) else []
        start = meta.pop("start")
        write_json(path, {"schema": SCHEMA, **meta, "starts": [*starts, {"utc": utc(), "pid": os.getpid(), **start}]})

    def open(self, offsets: dict[str, int] | None) -> None:
        """Open the row files, each cut back to its length at the checkpoint; without one, to nothing."""
        for name in STREAMS:
            file, size = (self.path / name).open("ab", buffering=0), (offsets or {}).get(name, 0)
            if file.seek(0, os.SEEK_END) < size:
                raise ConfigError(
                    f"{self.path / name} is shorter than the checkpoint remembers; delete {self.path} to start over"
                )
            file.truncate(size)
            file.seek(0, os.SEEK_END)
            self._files[name], self._batch[name] = file, bytearray()

    def append(self, stream: str, row: dict[str, Any]) -> None:
        """Add one row to the next batch. Numbers that are not finite become null."""
        if self.watch is not None:
            self.watch(stream, row)
        self._batch[stream] += json.dumps({k: finite(v) for k, v in row.items()}).encode() + b"\n"

    def flush(self) -> None:
        """Hand all rows to the system, unless that was done less than FLUSH_S seconds ago.

        Raises:
            BusyError: another process has taken this run over.
        """
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self._write(sync=False)

    def _write(self, sync: bool) -> None:
        try:
            self._lock.check()
        except LostError:
            raise BusyError(f"{self.path}: another process has taken this run over; this one stops") from None
        for name, batch in self._batch.items():
            while batch:  # a disk that fills up takes part of a write
                self._unsynced.add(name)
                del batch[: self._files[name].write(batch)]
        for name in [*self._unsynced] if sync else []:
            os.fsync(self._files[name].fileno())
            self._unsynced.discard(name)
        self._flushed_at = time.monotonic()

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the rolling checkpoint atomically; the rows written so far are on disk before it is."""
        self._write(sync=True)
        offsets = {name: file.tell() for name, file in self._files.items()}
        checkpoint.save(self.path, self.path.name, {"offsets": offsets, **state})

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint with its tensors on `device`, or None.

        Raises:
            ConfigError: it is damaged, or another run's.
        """
        return checkpoint.load(self.path, self.path.name, device)

    def finish(self, summary: dict[str, Any]) -> None:
        """Seal the run with summary.json, last of all; drop the checkpoint of a run that will never be resumed."""
        self._write(sync=True)
        write_json(self.path / SUMMARY, sealed(self.path, summary))
        if summary["status"] != Status.failed:
            shutil.rmtree((self.path / CHECKPOINT).parent, ignore_errors=True)

    def reopen(self) -> None:
        """Remove the summary of a failed run, so that it can continue."""
        (self.path / SUMMARY).unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """None for nan and infinities, everything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
