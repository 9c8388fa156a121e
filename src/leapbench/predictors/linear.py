"""Straight line through the last two snapshots."""

from __future__ import annotations

from leapbench.prediction.predictor import LinearInHistory, spacing


class Linear(LinearInHistory):
    """theta_hat_{t+K} = theta_0 + s (theta_0 - theta_{-1}), s = K / Delta.

    Leap+Verify, arXiv:2602.19580, section 3 (linear); paper and code agree.
    """

    context = 2

    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float]:
        """(-s, 1 + s)."""
        s = K / spacing(steps)
        return [-s, 1.0 + s]
