"""Which weights take the prediction: masks as functions of displacements, piece by piece.

All displacements are counted from a, the weights at the start of the interval just trained: delta = c - a is what the
optimizer made of them, d = p - a what the prediction makes, tau intervals ahead. PDT, OpenReview zSTgrLkpRi.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch
from torch import Tensor


def accelerates_code(d: Tensor, delta: Tensor, tau: float) -> Tensor:
    """|delta| <= |d| <= (tau + 1) |delta|, the code behind the published numbers: (n,) bool.

    Weights that neither moved nor are predicted to move pass, and stay.
    """
    size, step = d.abs(), delta.abs()
    return (size >= step).logical_and_(size <= step.mul_(tau + 1))


def accelerates_paper(d: Tensor, delta: Tensor, tau: float) -> Tensor:
    """|delta| < |d| <= tau |delta|, Eq. 6 as printed (its norm bars read elementwise): (n,) bool. Empty at tau = 1."""
    size, step = d.abs(), delta.abs()
    return (size > step).logical_and_(size <= step.mul_(tau))


def consistent(moves: Iterable[Tensor], delta: Tensor) -> Tensor:
    """sign(move) = sign(delta) for every one of the moves, sign(0) = 0: (n,) bool.

    Eq. 7 with the moves p_k - p_{k-1} (the authors' slides) or p_k - a (a third-party account) for k = 1..tau; the
    code tests the last displacement d alone. Moves that all agree add up to displacements that all agree, not vice
    versa. Moves are read one at a time, so that they may share memory.
    """
    direction = delta.sign()
    return reduce(torch.logical_and, (move.sign() == direction for move in moves))


def random_subset(size: int, fraction: float, rng: torch.Generator) -> Tensor:
    """Each of `size` weights with probability `fraction`: (size,) bool on the generator's device."""
    return torch.rand(size, generator=rng, device=rng.device) < fraction


def subset_of(size: int, count: int, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Exactly `count` of `size` weights, all choices equally likely: (size,) bool on `device`."""
    mask = np.zeros(size, bool)
    mask[rng.choice(size, count, replace=False, shuffle=False)] = True  # 20 times faster than torch.randperm
    return torch.from_numpy(mask).to(device)


def generator(device: torch.device, *seeds: int) -> torch.Generator:
    """A generator of its own, so that no other random numbers change, the same for the same seeds.

    Its numbers differ between a CPU and a GPU.
    """
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def check_fraction(fraction: float) -> float:
    """`fraction`, if it is a share.

    Raises:
        ValueError: it lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must be above 0 and at most 1")
    return float(fraction)


def check_seed(seed: int) -> int:
    """`seed`, if generators take it.

    Raises:
        ValueError: it is not a whole number of 0 or more.
    """
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed={seed} must be a whole number, 0 or more")
    return seed
