"""The usual way to try out predicted weights, for comparison: state_dicts, one tensor at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, reduce

from torch import Tensor, nn

from leapbench.prediction.history import History
from leapbench.prediction.moments import AdamGroup
from leapbench.prediction.predictor import Predictor, coefficients_of, spacing
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.momentum_decay import MomentumDecay
from leapbench.predictors.quadratic import Quadratic

Equation = Callable[..., Tensor]


class StateDictWay:
    """The history is a list of state_dicts; a candidate is loaded into the model and the live weights back after it.

    A tied tensor occurs twice in a state_dict and is copied, predicted and loaded twice.

    Args:
        history: snapshots with Adam's moments; their vectors are viewed, not copied.
        K: horizon, steps.
    """

    def __init__(self, model: nn.Module, history: History, K: int) -> None:
        self.model, self.flat, self.K = model, history, K
        entry_of = {id(p): name for name, p in model.named_parameters()}
        entries = {key: entry_of[id(p)] for key, p in model.state_dict(keep_vars=True).items()}

        def state(vector: Tensor) -> dict[str, Tensor]:
            views = history.layout.views(vector)
            return {key: views[name] for key, name in entries.items()}

        now = history.now
        assert now.exp_avg is not None and now.exp_avg_sq is not None
        self.history = [state(s.weights) for s in history.snapshots]
        self.moments = state(now.exp_avg), state(now.exp_avg_sq)

    def snapshot(self, moments: bool = False) -> list[dict[str, Tensor]]:
        """Copies of the live weights, and with `moments` of both moments."""
        states = [self.model.state_dict(), *(self.moments if moments else ())]
        return [{key: tensor.clone() for key, tensor in state.items()} for state in states]

    def verify(self, predictor: Predictor, equation: Equation) -> None:
        """Save the live weights, load each candidate, and restore them."""
        (live,) = self.snapshot()
        for scale in predictor.scales:
            self.model.load_state_dict(self.predict(predictor, equation, scale))
            # The forward pass would be here.
        self.model.load_state_dict(live)

    def predict(self, predictor: Predictor, equation: Equation, scale: float = 1.0) -> dict[str, Tensor]:
        """The candidate as a new state_dict."""
        sources = self.history[-predictor.context :]
        if predictor.needs_moments:
            return {key: equation(theta, *(m[key] for m in self.moments), scale) for key, theta in sources[-1].items()}
        return {key: equation(*(state[key] for state in sources)) for key in sources[-1]}

    def equation(self, predictor: Predictor) -> Equation | None:
        """The method as a function of one tensor, None if it is not written here.

        Takes the snapshots of the tensor, oldest first, or its (theta, m, v, scale) for a method that reads moments.
        """
        history, K = self.flat, self.K
        position = history.now.position
        coefficients = coefficients_of(predictor, history, K)
        if coefficients is not None:
            return partial(_sum, coefficients)
        if isinstance(predictor, Quadratic):
            return partial(_clamped, K / spacing(history.steps))
        (adam,) = history.adam
        if isinstance(predictor, Momentum) and predictor.form == "paper":
            return lambda theta, m, v, c: theta + c * K * m / (v.sqrt() + adam.eps)
        if isinstance(predictor, Momentum) and predictor.form == "code":
            return lambda theta, m, v, c: theta - c * K * adam.lr * history.factor_at(position) * m / (v.sqrt() + 1e-8)
        if isinstance(predictor, Momentum | MomentumDecay):
            lrs = [adam.lr * history.factor_at(position + j) for j in range(K)]
            fading = adam.beta1 if isinstance(predictor, MomentumDecay) else 1.0
            faded = sum(lr * fading ** (j + 1) for j, lr in enumerate(lrs))
            return partial(_adamw, adam, history.now.updates, sum(lrs), faded)
        return None


def _sum(coefficients: list[float], *snapshots: Tensor) -> Tensor:
    return reduce(operator.add, (c * x for c, x in zip(coefficients, snapshots, strict=True) if c != 0.0))


def _clamped(s: float, older: Tensor, old: Tensor, now: Tensor) -> Tensor:
    d1, d2 = now - old, now - 2 * old + older
    velocity, acceleration = d1.norm(), d2.norm()
    if acceleration > 0.5 * velocity:
        d2 = d2 * (0.5 * velocity / acceleration)
    return now + s * d1 + s * s / 2 * d2


def _adamw(
    adam: AdamGroup, u: int, lrs: float, faded: float, theta: Tensor, m: Tensor, v: Tensor, scale: float
) -> Tensor:
    mhat, vhat = m / (1 - adam.beta1**u), v / (1 - adam.beta2**u)
    return theta - scale * (faded * mhat / (vhat.sqrt() + adam.eps) + lrs * adam.weight_decay * theta)
