"""Slow twins: every equation as it is printed, one tensor at a time, float64, numpy.

Throughout, `thetas` are the snapshots of one tensor from oldest to newest, taken at `steps`; s = K / Delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from leapbench.history import Adam, History, Snapshot
from leapbench.weights import Entry, Layout

Array = np.ndarray


def linear(thetas: list[Array], steps: list[int], K: int) -> Array:
    s = K / (steps[-1] - steps[-2])
    return thetas[-1] + s * (thetas[-1] - thetas[-2])


def quadratic_exact(thetas: list[Array], steps: list[int], K: int) -> Array:
    s, d1, d2 = _differences(thetas, steps, K)
    return thetas[-1] + s * d1 + s * (s + 1) / 2 * d2


def quadratic_paper(thetas: list[Array], steps: list[int], K: int) -> Array:
    s, d1, d2 = _differences(thetas, steps, K)
    return thetas[-1] + s * d1 + s * (s - 1) / 2 * d2


def quadratic_code(thetas: list[Array], steps: list[int], K: int) -> Array:
    s, d1, a = _differences(thetas, steps, K)
    if np.linalg.norm(a) > 0.5 * np.linalg.norm(d1):
        a = a * (0.5 * np.linalg.norm(d1) / np.linalg.norm(a))
    return thetas[-1] + s * d1 + s**2 / 2 * a


def trend(thetas: list[Array], steps: list[int], K: int) -> Array:
    origin = steps[-1]
    slope, at_now = np.polyfit(np.array(steps[-5:]) - origin, np.stack([t.ravel() for t in thetas[-5:]]), deg=1)
    return (at_now + slope * K).reshape(thetas[-1].shape)


def average(thetas: list[Array], steps: list[int], K: int) -> Array:
    return np.mean(thetas[-5:], axis=0)


def persistence(thetas: list[Array], steps: list[int], K: int) -> Array:
    return thetas[-1]


def dmd(snapshots: Array, tau: float, rank: int) -> Array:
    """All weights at once: `snapshots` (N, h), tau intervals ahead, with exactly `rank` modes."""
    X, Y, a = snapshots[:, :-1], snapshots[:, 1:], snapshots[:, -1]
    U, S, Vt = np.linalg.svd(X, full_matrices=False)
    U, S, V = U[:, :rank], S[:rank], Vt[:rank].T
    eigenvalues, Q = np.linalg.eig(U.T @ Y @ V @ np.diag(1 / S))
    modes = U @ Q
    change = np.diag(eigenvalues.astype(complex) ** tau) - np.eye(rank)
    return a + (modes @ change @ np.linalg.pinv(modes) @ a).real


def momentum_exact(theta: Array, m: Array, v: Array, t: int, lrs: list[float], adam: Adam) -> Array:
    mhat, vhat = m / (1 - adam.beta1**t), v / (1 - adam.beta2**t)
    total = np.zeros_like(theta)
    for lr in lrs:
        total += lr * (mhat / (np.sqrt(vhat) + adam.eps) + adam.weight_decay * theta)
    return theta - total


def momentum_decay(theta: Array, m: Array, v: Array, t: int, lrs: list[float], adam: Adam) -> Array:
    mhat, vhat = m / (1 - adam.beta1**t), v / (1 - adam.beta2**t)
    total = np.zeros_like(theta)
    for lr in lrs:
        mhat = adam.beta1 * mhat
        total += lr * (mhat / (np.sqrt(vhat) + adam.eps) + adam.weight_decay * theta)
    return theta - total


def momentum_paper(theta: Array, m: Array, v: Array, K: int, adam: Adam) -> Array:
    return theta + K * m / (np.sqrt(v) + adam.eps)


def momentum_code(theta: Array, m: Array, v: Array, K: int, lr: float, c: float) -> Array:
    return theta - c * K * lr * m / (np.sqrt(v) + 1e-8)


def _differences(thetas: list[Array], steps: list[int], K: int) -> tuple[float, Array, Array]:
    s = K / (steps[-1] - steps[-2])
    return s, thetas[-1] - thetas[-2], thetas[-1] - 2 * thetas[-2] + thetas[-3]


# ---- what twins and predictors are compared on -----------------------------------------------------------------------

SHAPES = {"a": (7, 5), "still": (3,), "b": (4, 2, 3), "scalar": ()}
ADAM = Adam(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)


def layout_of(shapes: dict[str, tuple[int, ...]]) -> Layout:
    entries, offset = [], 0
    for name, shape in shapes.items():
        entries.append(Entry(name, torch.Size(shape), offset, math.prod(shape)))
        offset += math.prod(shape)
    return Layout(entries)


def schedule(position: int) -> float:
    """A learning rate that differs at every position."""
    return 1e-3 / (1 + 0.1 * position)


def random_history(
    seed: int,
    steps: tuple[int, ...] = (10, 20, 30, 40, 50, 60),
    weights_dtype: torch.dtype = torch.float32,
    moments_dtype: torch.dtype = torch.float32,
    lr_at: Callable[[int], float] = schedule,
) -> History:
    """A random walk with one tensor that stays still, in every kind of snapshot.

    Positions run 7 ahead of steps, and second moments are as small as those of clipped gradients.
    """
    rng = torch.Generator().manual_seed(seed)
    layout = layout_of(SHAPES)
    moving = torch.ones(layout.size)
    layout.views(moving)["still"].zero_()
    theta = torch.randn(layout.size, generator=rng)
    velocity = 0.05 * torch.randn(layout.size, generator=rng)
    snapshots = []
    for step in steps:
        velocity = 0.7 * velocity + 0.06 * torch.randn(layout.size, generator=rng)
        theta = theta + moving * velocity
        m = 1e-4 * torch.randn(layout.size, generator=rng)
        v = (1e-4 * torch.randn(layout.size, generator=rng)) ** 2
        snapshots.append(
            Snapshot(step, step + 7, theta.to(weights_dtype), m.to(moments_dtype), v.to(moments_dtype), updates=step)
        )
    return History(tuple(snapshots), layout, lr_at, ADAM)


def tensors(history: History, vector: torch.Tensor) -> dict[str, Array]:
    """A vector (N,) cut into its tensors, float64."""
    return {name: view.double().numpy() for name, view in history.layout.views(vector).items()}
