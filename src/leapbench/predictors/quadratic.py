"""Parabola through the last three snapshots, in three readings."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.predictor import LinearInHistory, spacing
from leapbench.prediction.weights import chunks, combine

FORMS = ("exact", "paper", "code")


class Quadratic(LinearInHistory):
    """theta_hat_{t+K} = theta_0 + s d1 + q d2, s = K / Delta.

    Here d1 = theta_0 - theta_{-1} and d2 = theta_0 - 2 theta_{-1} + theta_{-2}.

    Leap+Verify, arXiv:2602.19580, section 3 (quadratic):

    - `exact`: q = s(s+1)/2, Newton's backward differences; exact on parabolas.
    - `paper`: q = s(s-1)/2 as printed; the sign inside belongs to forward differences.
    - `code`: q = s^2/2, with d2 scaled down per tensor to a norm of at most half of d1's.

    Args:
        form: exact | paper | code.

    Raises:
        ValueError: unknown form, fewer than three snapshots, or for `code` uneven ones.
    """

    context = 3

    def __init__(self, form: str = "exact") -> None:
        if form not in FORMS:
            raise ValueError(f"form={form} is unknown; use {' or '.join(FORMS)}")
        self.form = form

    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float] | None:
        """Newton's form on divided differences, so that `steps` need not be even; None for `code`.

        theta_0 + K f01 + K (K + g1) f012, with g1 = t_0 - t_{-1}; `paper` has K (K - g1). Evenly spaced this is the
        equation above.
        """
        if self.form == "code":
            return None
        g2, g1 = (b - a for a, b in itertools.pairwise(steps))
        a = K / g1
        b = K * (K + g1 if self.form == "exact" else K - g1) / (g1 + g2)
        return [b / g2, -a - b / g1 - b / g2, 1.0 + a + b / g1]

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        return self._clamped(history.last(3), K) if self.form == "code" else super().predict(history, K)

    def _clamped(self, history: History, K: int) -> Tensor:
        s = K / spacing(history.steps)
        out = history.empty_vector()
        vectors, sizes = [*(snapshot.weights for snapshot in history.snapshots), out], [e.size for e in history.layout]
        for *tensors, part in zip(*(vector.split(sizes) for vector in vectors), strict=True):
            velocity, acceleration = norms(*tensors)
            shrink = min(1.0, 0.5 * velocity / acceleration) if acceleration > 0 else 1.0
            q = shrink * s * s / 2
            combine(tensors, [q, -s - 2 * q, 1.0 + s + q], part)
        return out


def norms(older: Tensor, old: Tensor, now: Tensor) -> tuple[float, float]:
    """(||d1||, ||d2||), d1 = now - old, d2 = now - 2 old + older, for three (n,) vectors of any float dtype."""
    velocity_sq = acceleration_sq = 0.0
    for piece in chunks(now.numel(), now.device):
        middle = old[piece].float()
        d1, before = now[piece].float() - middle, middle - older[piece].float()
        d2 = torch.sub(d1, before, out=before)
        velocity_sq += float(d1.dot(d1))
        acceleration_sq += float(d2.dot(d2))
    return math.sqrt(velocity_sq), math.sqrt(acceleration_sq)
