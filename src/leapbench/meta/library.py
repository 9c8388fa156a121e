"""The trajectories of a training: found, opened, of one spacing, long enough, and sorted by architecture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leapbench.config.errors import ConfigError
from leapbench.meta.architecture import Architecture
from leapbench.nowcasters.graphs import digest
from leapbench.nowcasters.networks import CONTEXT
from leapbench.nowcasters.trajectories import ABOUT, ROWS, Trajectory


@dataclass(frozen=True)
class Span:
    """What a window takes of a trajectory.

    Attributes:
        interval: steps between two snapshots; None = between two rows.
        horizons: intervals ahead at most.
        least: horizons that every window has.
        shifts: windows that begin one row after the other.
        half: rows on either side of a horizon that its target is the mean of.
    """

    interval: int | None
    horizons: int
    least: int
    shifts: int
    half: int


@dataclass(frozen=True)
class Source:
    """One trajectory.

    Attributes:
        stride: rows between two snapshots of a window.
        starts: rows that a window may begin with: 0, 1, ..., starts - 1.
    """

    folder: Path
    trajectory: Trajectory
    architecture: Architecture
    span: Span
    stride: int
    starts: int

    def snapshots(self, first: int) -> list[int]:
        """The rows of a window's snapshots."""
        return [first + number * self.stride for number in range(CONTEXT)]

    def horizons(self, first: int) -> int:
        """How many horizons of a window have a target: the first ones."""
        behind = len(self.trajectory) - 1 - self.span.half - self.snapshots(first)[-1]
        return min(self.span.horizons, behind // self.stride)

    def target(self, first: int, k: int) -> range:
        """The rows whose mean is the target k intervals ahead."""
        middle = self.snapshots(first)[-1] + k * self.stride
        return range(middle - self.span.half, middle + self.span.half + 1)

    @cached_property
    def shares(self) -> np.ndarray:
        """(rows,) learning rates as shares of the largest."""
        rates = self.trajectory.facts.get("rates")
        if not rates or max(rates) <= 0:
            raise ConfigError(f"{self.folder} does not say its learning rates; use network.rates=false")
        return np.asarray(rates, dtype=np.float64) / max(rates)

    def rates(self, first: int) -> Tensor:
        """(5 + horizons,) of a window: at its snapshots and horizons, behind the end of the training as at its end."""
        rows = self.snapshots(first)
        rows += [rows[-1] + k * self.stride for k in range(1, self.span.horizons + 1)]
        return torch.from_numpy(self.shares[np.minimum(rows, len(self.shares) - 1)]).float()

    def about(self) -> dict[str, Any]:
        """What is said of it in the file of the weights."""
        facts = self.trajectory.facts
        model = facts.get("model", {})
        return {
            "sha256": self.trajectory.sha256, "run_id": facts.get("run_id"), "model": model.get("name"),
            "config": model.get("config"), "dataset": facts.get("dataset"), "seed": facts.get("seed"),
            "weights": self.trajectory.layout.size, "rows": len(self.trajectory), "every": self.trajectory.every,
            "largest_rate": max(facts["rates"]) if facts.get("rates") else None,
        }  # fmt: skip


class Library:
    """The trajectories that are learned from, or those that are not.

    Attributes:
        sources: in the order of their hashes, each once.
        by_architecture: the same, in groups.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        unique = {source.trajectory.sha256: source for source in sources}
        self.sources = [unique[sha256] for sha256 in sorted(unique)]
        groups: dict[str, list[Source]] = {}
        for source in self.sources:
            groups.setdefault(source.architecture.key, []).append(source)
        self.by_architecture = [groups[key] for key in sorted(groups)]

    @property
    def hashes(self) -> list[str]:
        """Of all sources."""
        return [source.trajectory.sha256 for source in self.sources]

    def verify(self) -> None:
        """Read every trajectory.

        Raises:
            ConfigError: one is not what the training wrote.
        """
        for source in self.sources:
            _open(source.folder, check=True)


def open_libraries(
    learned: Sequence[str], held_out: Sequence[str], span: Span, vocabulary: int | None
) -> tuple[Library, Library]:
    """The trajectories to learn from and those to validate on, whose targets are always single rows.

    So that trainings with other targets can be compared.

    Raises:
        ConfigError: one line: there are none, one is not whole or too short, they differ in their spacing, or an
            architecture that is to be held out is learned from.
    """
    opened = [
        [(folder, _open(folder)) for place in places for folder in folders_of(place, key)]
        for key, places in (("trajectories", learned), ("validation.trajectories", held_out))
    ]
    first: dict[int, Path] = {}
    for folder, trajectory in [*opened[0], *opened[1]]:
        first.setdefault(trajectory.every, folder)
    if span.interval is None and len(first) > 1:
        (a, of_a), (b, of_b), *_ = sorted(first.items())
        raise ConfigError(
            f"rows are {a} steps apart in {of_a} and {b} in {of_b}; use trajectories of one spacing, or give a "
            "multiple of all, as in interval=200"
        )
    architectures: dict[str, Architecture] = {}

    def source(folder: Path, trajectory: Trajectory, span: Span) -> Source:
        key = digest(trajectory.layout)
        if key not in architectures:
            architectures[key] = Architecture(key, trajectory.layout, vocabulary)
        return _source(folder, trajectory, architectures[key], span)

    libraries = [
        Library(source(folder, trajectory, asked) for folder, trajectory in pairs)
        for pairs, asked in zip(opened, (span, replace(span, half=0)), strict=True)
    ]
    known = {source.architecture.key: source.folder for source in libraries[0].sources}
    for other in libraries[1].sources:
        if other.architecture.key in known:
            raise ConfigError(
                f"validation.trajectories: {other.folder} is of the same architecture as "
                f"{known[other.architecture.key]}, which is learned from; hold out another one"
            )
    return libraries[0], libraries[1]


def folders_of(place: str, key: str) -> list[Path]:
    """The folders of trajectories that `place` stands for: itself, or those in it.

    Raises:
        ConfigError: there are none.
    """
    path = Path(place).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{key}: {place} is no folder; give recorded runs, or a folder of them")
    found = [
        folder for folder in (path, *sorted(path.iterdir())) if (folder / ROWS).exists() or (folder / ABOUT).exists()
    ]
    if not found:
        raise ConfigError(f"{key}: {place} holds no trajectory; record one with record_trajectory=true")
    return found


def _open(folder: Path, check: bool = False) -> Trajectory:
    try:
        return Trajectory.open(folder, check)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _source(folder: Path, trajectory: Trajectory, architecture: Architecture, span: Span) -> Source:
    interval = span.interval or trajectory.every
    if interval % trajectory.every:
        raise ConfigError(
            f"interval={interval} is no multiple of the {trajectory.every} steps between two rows of {folder}"
        )
    stride = interval // trajectory.every
    if span.half >= CONTEXT * stride:
        raise ConfigError(
            f"target_window={2 * span.half + 1} reaches back before the snapshots; use {2 * CONTEXT * stride - 1} at "
            "most"
        )
    needed = (CONTEXT + span.least + span.shifts) * stride + span.half
    if len(trajectory) <= needed:
        raise ConfigError(
            f"{folder} has {len(trajectory)} rows, and {needed + 1} are needed for windows of {CONTEXT} snapshots and "
            f"{span.least} targets {stride} rows apart, {span.shifts} per trajectory; record more, or lower interval, "
            "targets or batch.windows"
        )
    return Source(folder, trajectory, architecture, span, stride, len(trajectory) - needed)
