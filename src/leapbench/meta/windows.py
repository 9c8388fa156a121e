"""Windows of trajectories: which ones a step sees, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leapbench.meta.architecture import Architecture
from leapbench.meta.library import Library, Source
from leapbench.meta.settings import BatchConfig
from leapbench.nowcasters.graphs import POSITIONS


@dataclass(frozen=True, eq=False)
class Window:
    """Five snapshots and what came after them.

    Attributes:
        snapshots: (5, n) weights, oldest first.
        targets: (h, n) weights 1, 2, ..., h intervals after the newest snapshot; later ones are beyond the trajectory.
        rates: (5 + horizons,) learning rates as shares of the largest, for a network that reads them.
        tokens: (rows,) the tokens that it has the rows of.
        signs: (8,) of the nodes' Laplacian features.
    """

    architecture: Architecture
    snapshots: Tensor
    targets: Tensor
    rates: Tensor | None
    tokens: Tensor
    signs: Tensor


@dataclass(frozen=True, eq=False)
class Draw:
    """Windows of one trajectory that begin with rows one after the other; tokens and signs are the same for all.

    Attributes:
        start: the row that the first begins with.
        count: how many.
    """

    source: Source
    start: int
    count: int
    tokens: Tensor
    signs: Tensor

    @property
    def firsts(self) -> range:
        """The rows that the windows begin with."""
        return range(self.start, self.start + self.count)

    def windows(self, rates: bool) -> Iterator[Window]:
        """The windows.

        Args:
            rates: whether learning rates are wanted.
        """
        source, architecture = self.source, self.source.architecture
        known: dict[int, Tensor] = {}

        def mean(rows: range) -> Tensor:
            for row in rows:
                if row not in known:
                    known[row] = architecture.part(source.trajectory.weights(row), self.tokens)
            return known[rows[0]] if len(rows) == 1 else torch.stack([known[row] for row in rows]).mean(0)

        for first in self.firsts:
            yield Window(
                architecture,
                torch.stack([mean(range(row, row + 1)) for row in source.snapshots(first)]),
                torch.stack([mean(source.target(first, k)) for k in range(1, source.horizons(first) + 1)]),
                source.rates(first) if rates else None, self.tokens, self.signs,
            )  # fmt: skip


def batch(library: Library, config: BatchConfig, seed: int, step: int) -> list[Draw]:
    """What one step sees: it depends on the seed and the step alone."""
    rng = np.random.default_rng([seed, step])
    draws = []
    for _ in range(config.trajectories):
        group = library.by_architecture[rng.integers(len(library.by_architecture))]
        source = group[rng.integers(len(group))]
        start, tokens = int(rng.integers(source.starts)), source.architecture.draw(rng)
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], POSITIONS)).float()
        draws.append(Draw(source, start, config.windows, tokens, signs))
    return draws


def evenly(source: Source, count: int) -> list[Draw]:
    """Windows from the beginning of a trajectory to its end, the same ones every time; signs as they are."""
    starts = np.unique(np.linspace(0, source.starts - 1, count).round().astype(int)).tolist()
    draws = []
    for number, start in enumerate(starts):
        tokens = source.architecture.draw(np.random.default_rng(number))
        draws.append(Draw(source, start, 1, tokens, torch.ones(POSITIONS)))
    return draws
