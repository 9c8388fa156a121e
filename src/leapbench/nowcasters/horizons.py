"""How far ahead a network looks: at which place of a training, and with which of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def published(steps: int, period: int, horizons: int = 40, power: float = 2.0) -> list[int]:
    """Intervals ahead of every nowcast of a training of so many steps, one nowcast per `period`.

    k_i = round(g_i^p) for n = max(1, steps // period) points g from horizons^(1/p) down to 1, evenly spaced.

    >>> from leapbench.nowcasters.horizons import published
    >>> published(10_000, 1000)
    [40, 33, 26, 21, 16, 11, 8, 5, 3, 1]
    """
    n, first = max(1, steps // period), horizons ** (1 / power)
    grid = [first + (1 - first) * i / max(1, n - 1) for i in range(n)]
    return [round(g**power) for g in grid]


def published_at(step: int, steps: int, period: int, horizons: int = 40) -> int:
    """Intervals ahead of a nowcast that is made after `step` steps."""
    schedule = published(steps, period, horizons)
    return schedule[min(len(schedule) - 1, max(0, step - 1) // period)]


def rows(K: float, horizons: int) -> dict[int, float]:
    """Which outputs make the change K intervals ahead: row -> factor; between two of them a line, 0 at K = 0.

    Raises:
        ValueError: K is beyond the last.
    """
    if not 0 <= K <= horizons:
        raise ValueError(f"K is {K:g} intervals, and this network predicts up to {horizons}; use a longer interval")
    below = int(K)
    found = {below - 1: 1 - (K - below), below: K - below}
    return {row: share for row, share in found.items() if share and row >= 0}


def readout(weight: Tensor, bias: Tensor, K: float) -> tuple[Tensor, Tensor]:
    """A last layer with outputs for every horizon, for K intervals ahead alone.

    Args:
        weight, bias: (..., horizons, width) and (..., horizons).

    Returns:
        (..., width) and (...).
    """
    matrix, constant = torch.zeros_like(weight[..., 0, :]), torch.zeros_like(bias[..., 0])
    for row, share in rows(K, bias.shape[-1]).items():
        matrix, constant = matrix + share * weight[..., row, :], constant + share * bias[..., row]
    return matrix, constant
