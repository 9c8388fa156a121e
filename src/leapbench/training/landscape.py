"""The loss along the direction a predictor points in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leapbench.config.groups import LandscapeConfig
from leapbench.names import PERSISTENCE
from leapbench.prediction.candidate import Candidates, rescaled
from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor


def along_the_direction(
    candidates: Candidates,
    predictors: Mapping[str, Predictor],
    history: History,
    config: LandscapeConfig,
    loss_now: float,
) -> Iterator[dict[str, Any]]:
    """Loss at theta_t + f (candidate - theta_t) for each fraction f of the displacement predicted for K steps.

    Leap+Verify, arXiv:2602.19580, landscape probe.

    Yields:
        Per predictor and fraction: predictor, K, fraction, loss_nats, loss_now_nats, and, the same for all fractions
        of one predictor, the derivative at 0 (nats per displacement) and the curvature (nats per displacement squared)
        of the parabola through 0 and the two smallest fractions.
    """
    for name, predictor in predictors.items():
        if name == PERSISTENCE or predictor.context > len(history.snapshots):
            continue
        full = predictor.predict(history, config.K)
        losses = {f: candidates.loss_of(rescaled(full, history, f)) for f in sorted(config.fractions)}
        slope, curvature = parabola(loss_now, *list(losses.items())[:2])
        for fraction, loss in losses.items():
            row = {"predictor": name, "K": config.K, "fraction": fraction, "loss_nats": loss, "loss_now_nats": loss_now}
            yield row | {"directional_derivative": slope, "curvature": curvature}


def parabola(at_zero: float, first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Slope at 0 and second derivative of the parabola through (0, at_zero) and two (x, value) points."""
    (x1, y1), (x2, y2) = first, second
    s1, s2 = (y1 - at_zero) / x1, (y2 - at_zero) / x2
    half = (s2 - s1) / (x2 - x1)
    return s1 - half * x1, 2 * half
