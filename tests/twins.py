"""Slow twins: every equation as it is printed, one tensor at a time, float64, numpy.

Throughout, `thetas` are the snapshots of one tensor from oldest to newest, taken at `steps`; s = K / Delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from leapbench.prediction.history import History, Snapshot
from leapbench.prediction.moments import AdamGroup
from leapbench.prediction.weights import Entry, Layout

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


def pdt_path(snapshots: Array, tau: float, rank: int) -> Array:
    """p_k - a at k = 1, 2, ..., tau from `snapshots` (N, h) that end with a: (ceil(tau), N)."""
    ks = [*range(1, math.ceil(tau)), tau]
    return np.stack([dmd(snapshots, k, rank) - snapshots[:, -1] for k in ks])


def pdt_mask(path: Array, delta: Array, tau: float, variant: str, mode: str) -> Array:
    """Which weights take the prediction: (N,), one weight at a time."""
    mask = []
    for moves, step in zip(path.T, delta, strict=True):
        size = abs(moves[-1])
        if variant == "code":
            accelerates = abs(step) <= size <= (tau + 1) * abs(step)
            consistent = np.sign(moves[-1]) == np.sign(step)
        else:
            accelerates = abs(step) < size <= tau * abs(step)
            increments = [b - a for a, b in zip([0.0, *moves[:-1]], moves, strict=True)]
            looked_at = increments if variant == "paper_step" else moves
            consistent = all(np.sign(move) == np.sign(step) for move in looked_at)
        mask.append(
            {"both": accelerates and consistent, "accel_only": accelerates, "consistency_only": consistent}[mode]
        )
    return np.array(mask)


def masked_linear(thetas: list[Array], steps: list[int], K: int) -> Array:
    older, a, c = thetas[-3:]
    tau = K / (steps[-1] - steps[-2]) + 1
    return np.where(np.sign(c - a) == np.sign(a - older), a + tau * (c - a), c)


def momentum_exact(theta: Array, m: Array, v: Array, t: int, lrs: list[float], adam: AdamGroup) -> Array:
    mhat, vhat = m / (1 - adam.beta1**t), v / (1 - adam.beta2**t)
    total = np.zeros_like(theta)
    for lr in lrs:
        total += lr * (mhat / (np.sqrt(vhat) + adam.eps) + adam.weight_decay * theta)
    return theta - total


def momentum_decay(theta: Array, m: Array, v: Array, t: int, lrs: list[float], adam: AdamGroup) -> Array:
    mhat, vhat = m / (1 - adam.beta1**t), v / (1 - adam.beta2**t)
    total = np.zeros_like(theta)
    for lr in lrs:
        mhat = adam.beta1 * mhat
        total += lr * (mhat / (np.sqrt(vhat) + adam.eps) + adam.weight_decay * theta)
    return theta - total


def momentum_paper(theta: Array, m: Array, v: Array, K: int, adam: AdamGroup) -> Array:
    return theta + K * m / (np.sqrt(v) + adam.eps)


def momentum_code(theta: Array, m: Array, v: Array, K: int, lr: float, c: float) -> Array:
    return theta - c * K * lr * m / (np.sqrt(v) + 1e-8)


def _differences(thetas: list[Array], steps: list[int], K: int) -> tuple[float, Array, Array]:
    s = K / (steps[-1] - steps[-2])
    return s, thetas[-1] - thetas[-2], thetas[-1] - 2 * thetas[-2] + thetas[-3]


def reduced_rank_extrapolation(thetas: list[Array]) -> Array:
    """All weights at once, by Lagrange's equations of the least squares with one constraint."""
    U = np.diff(np.stack(thetas), axis=0).T
    n = U.shape[1]
    kkt = np.block([[U.T @ U, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    gamma = np.linalg.solve(kkt, np.append(np.zeros(n), 1.0))[:n]
    return np.stack(thetas[:-1]).T @ gamma


# ---- wrappers: (live, handed over) after every step ------------------------------------------------------------------
# advance(theta, t) is what the optimizer makes of theta with the t-th gradient, taken at theta; t from 0.

Advance = Callable[[Array, int], Array]
Trail = list[tuple[Array, Array]]


def lookahead(theta: Array, advance: Advance, steps: int, k: int, alpha: float) -> Trail:
    slow, fast, trail = theta, theta, []
    for t in range(steps):
        fast = advance(fast, t)
        if (t + 1) % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        trail.append((fast, slow))
    return trail


def snoo(theta: Array, advance: Advance, steps: int, K: int, lr: float, mu: float) -> Trail:
    slow, fast, b, trail = theta, theta, np.zeros_like(theta), []
    for t in range(steps):
        fast = advance(fast, t)
        if (t + 1) % K == 0:
            s = slow - fast
            b = mu * b + s
            slow = slow - lr * (mu * b + s)
            fast = slow
        trail.append((fast, fast))
    return trail


def ema(theta: Array, advance: Advance, steps: int, d: float) -> Trail:
    seen, trail = [], []
    for t in range(steps):
        theta = advance(theta, t)
        seen.append(theta)
        weights = [d ** (t - i) for i in range(t + 1)]
        trail.append((theta, sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights)))
    return trail


def ema_nesterov(theta: Array, advance: Advance, betas: list[float], gamma: float) -> Trail:
    m, trail = np.zeros_like(theta), []
    for t, beta in enumerate(betas):
        after = advance(theta + beta * m, t)
        m = gamma * m + (1 - gamma) * (after - theta)
        theta = after
        trail.append((theta, theta))
    return trail


def tail_average(theta: Array, advance: Advance, steps: int, n: int, k: int | None, start: int) -> Trail:
    kept, trail = [], []
    for t in range(steps):
        theta = advance(theta, t)
        if t + 1 > start and (t + 1 - start) % n == 0:
            kept.append(theta)
        last = kept if k is None else kept[-k:]
        trail.append((theta, np.mean(last, axis=0) if last else theta))
    return trail


def growing_average(
    theta: Array, advance: Advance, steps: int, g: int, wider: int | None = None, c: float = 0
) -> Trail:
    """With `wider`, that average's line is followed by c of the narrow one's lag."""

    def mean(seen: list[Array], g: int) -> tuple[Array, float]:
        weights = [math.prod(range(i, i + g)) for i in range(1, len(seen) + 1)]
        ages = [w * (len(seen) - i) for i, w in enumerate(weights, start=1)]
        return sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights), sum(ages) / sum(weights)

    seen, trail = [], []
    for t in range(steps):
        theta = advance(theta, t)
        seen.append(theta)
        (narrow, lag), (wide, longer) = mean(seen, g), mean(seen, g if wider is None else wider)
        trail.append((theta, narrow if t == 0 or not c else narrow + c * (narrow - wide) * lag / (longer - lag)))
    return trail


def orthogonal(
    theta: Array, advance: Advance, steps: int, every: int, shapes: list[tuple[int, ...]], flat: bool, even: bool
) -> Trail:
    """By singular value decompositions; the first two of `shapes` are hidden matrices."""
    start, squares, trail = theta, {}, []
    places = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    for t in range(steps):
        theta = advance(theta, t).copy()
        if (t + 1) % every == 0:
            for number, shape in enumerate(shapes[:2]):
                place = slice(places[number], places[number + 1])
                d = (theta - start)[place].reshape(shape)
                u, s, vt = np.linalg.svd(d, full_matrices=False)
                s = s / np.linalg.norm(s)
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                e = u @ np.diag(s) @ vt if flat else d
                if even:
                    axis = 0 if shape[1] > shape[0] else 1  # over which a neuron's elements run
                    now = (e**2).mean(axis)
                    squares[number] = 0.95 * squares[number] + 0.05 * now if number in squares else now
                    e = e / np.sqrt(np.expand_dims(squares[number], axis))
                theta[place] = start[place] + (e * np.linalg.norm(d) / np.linalg.norm(e)).ravel()
            start = theta
        trail.append((theta, theta))
    return trail


# ---- what twins and predictors are compared on -----------------------------------------------------------------------

SHAPES = {"a": (7, 5), "still": (3,), "b": (4, 2, 3), "scalar": ()}
LAYERS = {"0.weight": (5, 7), "0.bias": (5,), "1.weight": (5,), "1.bias": (5,), "3.weight": (4, 5), "3.bias": (4,)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
ADAM = AdamGroup(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, lr=1.0, places=(slice(0, SIZE),))


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
    factor_at: Callable[[int], float] = schedule,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> History:
    """A random walk in every kind of snapshot; a tensor called `still` stays still.

    Positions run 7 ahead of steps, and second moments are as small as those of clipped gradients.
    """
    rng = torch.Generator().manual_seed(seed)
    layout = layout_of(shapes)
    moving = torch.ones(layout.size)
    for name, view in layout.views(moving).items():
        view.mul_(name != "still")
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
    return History(tuple(snapshots), layout, factor_at, (replace(ADAM, places=(slice(0, layout.size),)),))


def tensors(history: History, vector: torch.Tensor) -> dict[str, Array]:
    """A vector (N,) cut into its tensors, float64."""
    return {name: view.double().numpy() for name, view in history.layout.views(vector).items()}


def history_of(columns, dtype=torch.float64, interval=10, shapes=None):
    """The columns of an (N, h) array as snapshots at steps 0, interval, ..."""
    vectors = [torch.tensor(column).to(dtype) for column in np.ascontiguousarray(np.asarray(columns).T)]
    steps = range(0, interval * len(vectors), interval)
    layout = layout_of(shapes or {"w": (len(vectors[0]),)})
    return History(tuple(Snapshot(t, t, v) for t, v in zip(steps, vectors, strict=True)), layout, lambda p: 0.0)


def linear_system(eigenvalues, size=60, seed=0):
    """(t -> x(t) in R^size, its rank): Re of one complex mode per eigenvalue, times eigenvalue^t."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.array(eigenvalues, complex)
    modes = rng.standard_normal((size, len(eigenvalues))) + 1j * rng.standard_normal((size, len(eigenvalues)))
    return lambda t: (modes @ eigenvalues**t).real, int(np.sum(1 + (eigenvalues.imag != 0)))


def smooth(seed, size=200, h=5):
    """(N, h): large weights plus slow random curves, like a training's, with well separated singular values."""
    rng = np.random.default_rng(seed)
    t = np.arange(h) / h
    curves = rng.standard_normal((size, 3)) @ np.stack([t, t**2, np.sin(5 * t)]) * 0.3
    return rng.standard_normal((size, 1)) + curves + 0.01 * rng.standard_normal((size, h))


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps in bfloat16, with the smaller side first (Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon(theta, grads, lr, momentum=0.95, decay=0.01):
    """`theta` after one Muon step per gradient."""
    buffer = torch.zeros_like(theta)
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad  # the scale does not matter to the direction
        direction = orthogonalised((1 - momentum) * grad + momentum * buffer)
        theta = theta - lr * decay * theta
        theta = theta - lr * max(1.0, theta.shape[0] / theta.shape[1]) ** 0.5 * direction.float()
    return theta
