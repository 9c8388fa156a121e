"""Control: the mean of the last snapshots."""

from __future__ import annotations

from leapbench.prediction.predictor import LinearInHistory


class Average(LinearInHistory):
    """theta_hat_{t+K} = (1/h) sum_{i=0}^{h-1} theta_{t - i Delta}, for every K.

    Looks back, not ahead: a leap that gains no more than this gains by smoothing, not by prediction
    (weight averaging: Izmailov et al., arXiv:1803.05407).

    Args:
        context: h, snapshots averaged.
    """

    control = True

    def __init__(self, context: int = 5) -> None:
        self.context = context

    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float]:
        """(1/h, ..., 1/h)."""
        return [1.0 / self.context] * self.context
