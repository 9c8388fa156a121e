"""Control: least-squares line through the last snapshots."""

from __future__ import annotations

from leapbench.prediction.predictor import LinearInHistory


class Trend(LinearInHistory):
    """theta_hat_{t+K} = a + b (t + K) with (a, b) the least-squares line through h snapshots at steps t_i:

    c_i = 1/h + (t + K - tbar)(t_i - tbar) / sum_j (t_j - tbar)^2.

    What `linear` becomes when one gradient's noise is averaged out. It smooths: K = 0 gives the fitted value, not
    theta_0.

    Args:
        context: h >= 2, snapshots the line is fitted to.
    """

    def __init__(self, context: int = 5) -> None:
        if context < 2:
            raise ValueError(f"trend fits a line: context={context} must be 2 or more")
        self.context = context

    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float]:
        """The row of the least-squares hat matrix at t + K."""
        mean = sum(steps) / len(steps)
        spread = sum((t - mean) ** 2 for t in steps)
        return [1.0 / len(steps) + (steps[-1] + K - mean) * (t - mean) / spread for t in steps]
