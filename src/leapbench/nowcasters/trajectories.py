"""The weights of a training, step after step, in one file that is mapped into memory.

`trajectory.bin` holds the rows, `trajectory.json`, written last, says what they are: a file without it is not finished.
Row i is the weights after i * every steps, so that a training that is resumed writes the rows that it had written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leapbench.prediction.weights import Entry, Layout

ROWS, ABOUT = "trajectory.bin", "trajectory.json"
FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


class Recorder:
    """Writes the trajectory of one training.

    Args:
        folder: where the two files go.
        layout: of the weights.
        steps: of the whole training.
        every: steps between two rows.
        dtype: float32 | float16.
        resumed: whether rows that were written before are to be there.

    Raises:
        ValueError: a setting is out of range, or the rows of a resumed training are gone.
        OSError: of the disk.
    """

    def __init__(
        self, folder: Path, layout: Layout, steps: int, every: int, dtype: str = "float32", resumed: bool = False
    ) -> None:
        if not 1 <= every <= steps:
            raise ValueError(f"a row every {every} steps does not fit a training of {steps}; use 1 to {steps}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype} is unknown; use {' or '.join(DTYPES)}")
        self.folder, self.layout, self.every, self.dtype = folder, layout, every, dtype
        self.rows, path = steps // every + 1, folder / ROWS
        size = self.rows * layout.size * DTYPES[dtype].itemsize
        if resumed and not (path.is_file() and path.stat().st_size == size):
            raise ValueError(
                f"{path} is gone or is not what the training wrote before; delete {folder}, and the run starts over"
            )
        (folder / ABOUT).unlink(missing_ok=True)
        if not resumed:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found out now
        self._map = np.memmap(path, DTYPES[dtype], "r+", shape=(self.rows, layout.size))

    def is_due(self, step: int) -> bool:
        """Whether there is a row for the weights after this step."""
        return step % self.every == 0 and step // self.every < self.rows

    def record(self, step: int, weights: Tensor) -> None:
        """Write the weights (N,) if a row is due after this step."""
        if self.is_due(step):
            self._map[step // self.every] = weights.detach().cpu().numpy()

    def flush(self) -> None:
        """All rows are on disk when this returns."""
        self._map.flush()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say what the rows are.

        Args:
            facts: of the training, as JSON types: its run, its learning rates, ...
        """
        self.flush()
        about = {
            "format": FORMAT, "rows": self.rows, "every": self.every, "dtype": self.dtype,
            "layout": [[entry.name, list(entry.shape)] for entry in self.layout],
            "settings": dict(self.layout.settings), "sha256": _hash(self.folder / ROWS), "facts": dict(facts),
        }  # fmt: skip
        part = self.folder / f"{ABOUT}.part"
        part.write_text(json.dumps(about, sort_keys=True))
        os.replace(part, self.folder / ABOUT)


@dataclass(frozen=True)
class Trajectory:
    """A finished trajectory.

    Attributes:
        layout: of the weights, with the whole numbers of the model's configuration.
        every: steps between two rows.
        sha256: of the rows.
        facts: what the training said of itself.
    """

    layout: Layout
    every: int
    sha256: str
    facts: dict[str, Any]
    _map: np.ndarray

    @classmethod
    def open(cls, folder: Path, check: bool = False) -> Trajectory:
        """The trajectory in a folder.

        Args:
            check: compare the hash, which reads the whole file.

        Raises:
            ValueError: one line: there is none, it is not finished, cut off, or not what was written.
        """
        path = folder / ROWS
        try:
            about = json.loads((folder / ABOUT).read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{folder} holds no finished trajectory; record one with record_trajectory=true, to the end of its run"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / ABOUT} cannot be read ({error})") from None
        try:
            if about["format"] != FORMAT:
                raise ValueError(f"{folder / ABOUT} is of format {about['format']}, and this program reads {FORMAT}")
            layout, dtype = _layout(about), DTYPES[about["dtype"]]
            shape, sha256 = (int(about["rows"]), layout.size), str(about["sha256"])
            every, facts = int(about["every"]), dict(about["facts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / ABOUT} is not what a training wrote ({error!r})") from None
        size, wanted = path.stat().st_size if path.is_file() else 0, shape[0] * shape[1] * dtype.itemsize
        if size != wanted:
            raise ValueError(f"{path} has {size:,} bytes where {wanted:,} were written: it is cut off or another file")
        if check and _hash(path) != sha256:
            raise ValueError(f"{path} is not what the training wrote: its sha256 is another")
        return cls(layout, every, sha256, facts, np.memmap(path, dtype, "r", shape=shape))

    def __len__(self) -> int:
        return len(self._map)

    def weights(self, row: int) -> Tensor:
        """A copy of the weights after row * every steps: (N,) float32."""
        return torch.from_numpy(np.array(self._map[row], dtype=np.float32))


def _layout(about: Mapping[str, Any]) -> Layout:
    entries, offset = [], 0
    for name, shape in about["layout"]:
        size = int(np.prod(shape, dtype=np.int64))
        entries.append(Entry(str(name), torch.Size(shape), offset, size))
        offset += size
    layout = Layout(entries)
    layout.settings = dict(about["settings"])
    return layout


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
