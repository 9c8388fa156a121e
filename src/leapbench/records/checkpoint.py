"""The checkpoint of a run: tensors and plain data, so that reading one never executes anything.

`checkpoint/latest.json` names the run, the file that holds the state and that file's sha256. It is replaced last: until
then the checkpoint before it is the valid one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from leapbench.config.errors import ConfigError
from leapbench.names import CHECKPOINT
from leapbench.records.files import write_json

PLAIN = (bool, int, float, str, bytes, type(None))
START_OVER = "and the run starts over"


def save(run: Path, run_id: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint of the run folder `run`; it is on disk when this returns.

    Raises:
        ConfigError: something in `state` is not data.
        OSError: of the disk; the checkpoint before stays.
    """
    pointer = run / CHECKPOINT
    folder = pointer.parent
    folder.mkdir(exist_ok=True)
    part = folder / "state.part"
    try:
        with part.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(as_data(state), cast("IO[bytes]", hashing))
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's zip writer reports a full disk with an error of its own
        part.unlink(missing_ok=True)
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    sha256 = hashing.sha256.hexdigest()
    target = folder / f"{sha256[:16]}.pt"
    os.replace(part, target)
    write_json(pointer, {"run_id": run_id, "file": target.name, "sha256": sha256})
    for old in folder.glob("*.pt"):
        if old != target:
            old.unlink()


def load(run: Path, run_id: str, device: torch.device) -> dict[str, Any] | None:
    """The state that was saved last, with its tensors on `device`; None if there is none.

    Raises:
        ConfigError: it is another run's, is not what was written, or holds more than data.
    """
    about = find(run, run_id)
    if about is None:
        return None
    target, start_over = (
        (run / CHECKPOINT).with_name(about["file"]),
        f"delete {(run / CHECKPOINT).parent}, {START_OVER}",
    )
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
            raise ConfigError(f"{target} is not what the run wrote; {start_over}")
    try:
        state: dict[str, Any] = torch.load(target, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        truncated = isinstance(error, OSError) and error.errno == errno.EINVAL
        if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, OSError) and not truncated):
            raise
        raise ConfigError(f"{target} is damaged or holds more than tensors and numbers; {start_over}") from None
    return state


def find(run: Path, run_id: str) -> dict[str, str] | None:
    """What the checkpoint says of itself (run_id, file, sha256), without reading the state; None if there is none.

    Raises:
        ConfigError: it is another run's, or damaged.
    """
    pointer = run / CHECKPOINT
    if pointer.parent.exists() and not pointer.parent.is_dir():
        raise ConfigError(f"{pointer.parent} is a file where a folder belongs; delete it, {START_OVER}")
    if not pointer.exists():
        return None
    try:
        about = _read_pointer(pointer)
    except (KeyError, TypeError, ValueError, IsADirectoryError):
        about = None
    if about is None or not pointer.with_name(about["file"]).is_file():
        raise ConfigError(f"{pointer} is damaged; delete {pointer.parent}, {START_OVER}")
    if about["run_id"] != run_id:
        raise ConfigError(
            f"{pointer} belongs to run {about['run_id']}, not to {run_id}; delete {pointer.parent}, {START_OVER}"
        )
    return about


def as_data(value: Any, place: str = "state") -> Any:
    """`value` with every word of an enumeration as text.

    Raises:
        ConfigError: it holds something that is neither a tensor nor plain data, at this place.
    """
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return value
    if isinstance(value, dict):
        return {as_data(key, place): as_data(item, f"{place}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_data(item, f"{place}.{number}") for number, item in enumerate(value))
    raise ConfigError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold; offer tensors, numbers, text, lists and "
        "dictionaries in state_dict()"
    )


def _read_pointer(pointer: Path) -> dict[str, str]:
    about = json.loads(pointer.read_bytes())
    if not isinstance(about, dict) or Path(about["file"]).name != about["file"]:
        raise ValueError
    return {key: str(about[key]) for key in ("run_id", "file", "sha256")}


class _Hashing:
    """A file to write to, whose content is hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
