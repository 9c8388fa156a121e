"""The loss along the direction a predictor points in. Leap+Verify, arXiv:2602.19580, landscape probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leapbench.config.groups import LandscapeConfig
from leapbench.names import PERSISTENCE
from leapbench.prediction.candidate import Candidates, rescaled
from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor

SECANT_K = 25  # steps, of the published code


def along_the_direction(
    candidates: Candidates,
    predictors: Mapping[str, Predictor],
    history: History,
    config: LandscapeConfig,
    loss_now: float,
) -> Iterator[dict[str, Any]]:
    """Loss at theta_t + f (candidate - theta_t) for each fraction f of the displacement predicted for K steps.

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


def along_the_momentum(
    candidates: Candidates, predictors: Mapping[str, Predictor], history: History, config: LandscapeConfig
) -> Iterator[dict[str, Any]]:
    """The published code's form: momentum alone, at K = SECANT_K and scale 1, from the snapshot as it is stored.

    Yields:
        As `along_the_direction`, but loss_now_nats is that of the stored snapshot, the derivative is the secant over
        the whole displacement, nats per unit of its norm, and the curvature the second difference of the losses at 0,
        1/2 and 1, nats per square of it; both 0 where nothing moves. displacement_l2 is the norm.
    """
    momentum = predictors.get("momentum")
    if momentum is None:
        return
    full, now = momentum.predict(history, SECANT_K), history.now.weights.float()
    norm, loss_now = float((full - now).norm()), candidates.loss_of(now)
    losses = {f: candidates.loss_of(rescaled(full, history, f)) for f in sorted({0.5, 1.0, *config.fractions})}
    slope = (losses[1.0] - loss_now) / norm if norm else 0.0
    curvature = (losses[1.0] - 2 * losses[0.5] + loss_now) / (0.5 * norm) ** 2 if norm else 0.0
    for fraction in sorted(config.fractions):
        row = {"predictor": "momentum", "K": SECANT_K, "fraction": fraction, "loss_nats": losses[fraction]}
        row |= {"loss_now_nats": loss_now, "directional_derivative": slope, "curvature": curvature}
        yield row | {"displacement_l2": norm}


def parabola(at_zero: float, first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Slope at 0 and second derivative of the parabola through (0, at_zero) and two (x, value) points."""
    (x1, y1), (x2, y2) = first, second
    s1, s2 = (y1 - at_zero) / x1, (y2 - at_zero) / x2
    half = (s2 - s1) / (x2 - x1)
    return s1 - half * x1, 2 * half
