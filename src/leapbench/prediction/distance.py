"""How far candidates are from the weights that training really reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leapbench.prediction.candidate import Candidate
from leapbench.prediction.history import History
from leapbench.prediction.weights import chunks


@dataclass(frozen=True)
class Distance:
    """Candidate against truth, both N-vectors; None where a zero displacement leaves it undefined.

    Attributes:
        rel_l2_to_true: ||candidate - truth|| / ||truth||.
        rel_l2_now_to_true: ||theta_t - truth|| / ||truth||.
        cosine: between the predicted and the true displacement from theta_t.
    """

    rel_l2_to_true: float | None
    rel_l2_now_to_true: float
    cosine: float | None


class DistanceToTruth:
    """Distances of any number of candidates made at one snapshot to one truth.

    With D the displacements of the older snapshots and of the truth from theta_t, one pass over memory gives the Gram
    matrix D D^T; the distance of every candidate that is a sum of snapshots follows from it by algebra.

    Args:
        history: as it was when the candidates were made.
        truth: (N,) the weights reached K steps later.
    """

    def __init__(self, history: History, truth: Tensor) -> None:
        self.history = history
        self.truth = truth.to(history.now.weights.device)
        older = [s.weights for s in history.snapshots[:-1]]
        size = len(older) + 1
        gram = torch.zeros(size, size, dtype=torch.float64)
        self.truth_norm = math.sqrt(max(_dot(self.truth, self.truth), 1e-300))
        for piece in chunks(self.truth.numel(), self.truth.device):
            base = history.now.weights[piece].float()
            rows = torch.stack([v[piece].float() for v in (*older, self.truth)]).sub_(base)
            gram += (rows @ rows.T).double().cpu()
        self.gram = gram

    def of(self, candidate: Candidate) -> Distance:
        """Distance of a candidate made at the newest snapshot: by algebra if it is a sum of snapshots."""
        coefficients, scale, true_sq = candidate.coefficients, candidate.scale, float(self.gram[-1, -1])
        if coefficients is None:
            assert candidate.full is not None
            predicted_sq, inner = self._displacement(candidate.full)
        else:
            weights = torch.zeros(len(self.gram), dtype=torch.float64)
            older = torch.tensor(coefficients[:-1], dtype=torch.float64)
            weights[len(self.gram) - 1 - len(older) : -1] = older
            predicted_sq = max(float(weights @ self.gram @ weights), 0.0)  # rounding can push a cancelled sum below 0
            inner = float(weights @ self.gram[:, -1])
        predicted_sq, inner = scale**2 * predicted_sq, scale * inner
        error = math.sqrt(max(predicted_sq - 2 * inner + true_sq, 0.0)) if math.isfinite(predicted_sq) else math.nan
        norms = math.sqrt(max(predicted_sq * true_sq, 0.0)) if math.isfinite(predicted_sq) else 0.0
        return Distance(
            rel_l2_to_true=error / self.truth_norm if math.isfinite(error) else None,
            rel_l2_now_to_true=math.sqrt(true_sq) / self.truth_norm,
            cosine=inner / norms if norms > 0 else None,
        )

    def _displacement(self, candidate: Tensor) -> tuple[float, float]:
        """Square of the predicted displacement, and its inner product with the true one."""
        predicted_sq = inner = 0.0
        for piece in chunks(candidate.numel(), candidate.device):
            base = self.history.now.weights[piece].float()
            predicted, truth = candidate[piece] - base, self.truth[piece].float() - base
            predicted_sq += float(predicted.dot(predicted))
            inner += float(predicted.dot(truth))
        return predicted_sq, inner


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product, accumulated over pieces in float64."""
    return sum(float(torch.dot(a[piece].float(), b[piece].float())) for piece in chunks(a.numel(), a.device))
