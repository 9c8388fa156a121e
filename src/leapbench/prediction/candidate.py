"""The way from a history to a candidate and its loss: predicted once, rescaled, scored once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leapbench.prediction.clock import Clock
from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor, check_prediction, coefficients_of
from leapbench.prediction.weights import FlatWeights, Layout

Forward = Callable[..., Any]


class Replaced:
    """Callable like `model`, with its parameters replaced by `views`; what a loss function is given.

    Args:
        views: tensors by the names of the parameters; None = the live weights.

    Attributes:
        calls: how often it was called.
        still: modules that change in training mode, in which it may then not be called.
    """

    def __init__(self, model: nn.Module, views: dict[str, Tensor] | None) -> None:
        self._model, self._views, self.calls = model, views, 0
        self.still: Sequence[nn.Module] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns with these weights.

        Raises:
            RuntimeError: a module would change.
        """
        self.calls += 1
        for module in self.still:
            if module.training:
                raise RuntimeError(
                    f"verify has put the model into training mode, in which a {type(module).__name__} changes its "
                    "statistics: leave out train(), a loss function runs in evaluation mode"
                )
        if self._views is None:
            return self._model(*args, **kwargs)
        return functional_call(self._model, self._views, args, kwargs)

    def eval(self) -> Replaced:
        """Evaluation mode, as of the model itself."""
        return self.train(False)

    def train(self, mode: bool = True) -> Replaced:
        """Training mode or not, as of the model itself."""
        self._model.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"`{name}` is not there: what a loss function is given can only be called, like the model; compute with "
            f"forward(...), and read what does not depend on the weights from the model itself (model.{name})"
        )


LossFn = Callable[[Replaced], float]


def candidate_loss(model: nn.Module, layout: Layout, candidate: Tensor, loss_fn: LossFn) -> float:
    """Loss of `model` with its parameters replaced by `candidate` (N,), whose live weights stay as they are.

    Args:
        loss_fn: takes something callable like the model, returns the loss in nats.
    """
    return loss_fn(replaced(model, layout, candidate))


def replaced(model: nn.Module, layout: Layout, vector: Tensor) -> Replaced:
    """Something callable like `model` with its parameters replaced by `vector` (N,); the live weights stay."""
    return Replaced(model, layout.views(vector))


@dataclass(frozen=True)
class Candidate:
    """Weights predicted K steps ahead, and their loss.

    Attributes:
        full: what was predicted, (N,) float32 on the history's device; None where it is no longer needed.
        scale: c of the candidate theta_0 + c (full - theta_0) with the lowest loss.
        loss: of that candidate, nats; may be nan or inf; nan if it was not computed.
        coefficients: the numbers that make `full` from as many of the last snapshots, None if no such numbers exist.
        predict_s, verify_s: the clock's seconds for this candidate alone; 0 where an equal one was already known.
    """

    full: Tensor | None
    scale: float
    loss: float
    coefficients: list[float] | None
    predict_s: float = 0.0
    verify_s: float = 0.0


Memo = dict[Hashable, Candidate]


class Candidates:
    """Makes candidates for one model, whose live weights are never touched.

    Args:
        model, weights: the live ones.
        loss_fn: takes something callable like the model and returns a loss in nats.
        device: where histories are kept; None = where the weights are.
        clock: gets the laps `predict` and `verify`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        loss_fn: LossFn,
        device: torch.device | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.model, self.weights, self.loss_fn = model, weights, loss_fn
        self.device = device or weights.vector.device
        self.clock = clock or Clock(weights.vector.device)
        self._free: list[Tensor] = []

    def make(self, predictor: Predictor, history: History, K: int, score: bool = True) -> Candidate:
        """The prediction of `predictor` K steps after `history.now`; with several scales the one with the lowest loss.

        Its memory is not reused before :meth:`release`.

        Raises:
            TypeError, ValueError: the predictor breaks its contract (shape, dtype, memory).
        """
        with self.clock.lap("predict") as predict:
            versions = [snapshot.weights._version for snapshot in history.snapshots]
            full = predictor.predict(replace(history, scratch=[self._vector()]), K)
            check_prediction(predictor, full, history, versions)
        best = Candidate(full, predictor.scales[0] if score else 1.0, math.nan, coefficients_of(predictor, history, K))
        with self.clock.lap("verify") as verify:
            for scale in predictor.scales if score else ():
                loss = self.loss_of(rescaled(full, history, scale))
                if not math.isfinite(best.loss) or loss < best.loss:
                    best = replace(best, scale=scale, loss=loss)
        return replace(best, predict_s=predict.seconds, verify_s=verify.seconds)

    def known(self, predictor: Predictor, history: History, K: int, memo: Memo) -> Candidate:
        """:meth:`make` without the weights; an equal candidate at the newest snapshot is neither made nor scored again.

        Args:
            memo: to be cleared when a new snapshot is taken.
        """
        key = key_of(predictor, history, K)
        if key is not None and key in memo:
            return replace(memo[key], predict_s=0.0, verify_s=0.0)
        made = self.make(predictor, history, K)
        self.release(made)
        candidate = replace(made, full=None)
        if key is not None:
            memo[key] = candidate
        return candidate

    def again(self, candidate: Candidate, predictor: Predictor, history: History, K: int) -> Candidate:
        """`candidate` with its weights, predicted a second time from the history it was made from."""
        return replace(candidate, full=predictor.predict(replace(history, scratch=[self._vector()]), K))

    def release(self, candidate: Candidate) -> None:
        """Reuse its memory; its `full` must not be read afterwards."""
        if candidate.full is not None and all(candidate.full.data_ptr() != free.data_ptr() for free in self._free):
            self._free.append(candidate.full)

    def loss_of(self, vector: Tensor) -> float:
        """Loss with the weights `vector` (N,), nats."""
        return self.loss_fn(replaced(self.model, self.weights.layout, vector.to(self.weights.vector.device)))

    def _vector(self) -> Tensor:
        """Fresh memory of this size costs more in page faults than a prediction does, so it is reused."""
        if self._free:
            return self._free.pop()
        return torch.empty_like(self.weights.vector, dtype=torch.float32, device=self.device)


def rescaled(full: Tensor, history: History, scale: float) -> Tensor:
    """theta_0 + scale (full - theta_0): (N,); `full` itself at scale 1."""
    return full if scale == 1.0 else torch.lerp(history.now.weights.float(), full, scale)


def key_of(predictor: Predictor, history: History, K: int) -> Hashable | None:
    """Equal for equal candidates: the same sum of the same snapshots, or the same method with the same settings.

    None: only `predict` can tell, or the best of several scales is taken.
    """
    coefficients = coefficients_of(predictor, history, K)
    if coefficients is not None:
        return key_of_sum(history, zip(history.last(predictor.context).steps, coefficients, strict=True))
    settings = tuple(sorted(vars(predictor).items()))
    if predictor.scales != (1.0,) or not all(isinstance(value, Hashable) for _, value in settings):
        return None
    now = history.now
    dtypes = now.weights.dtype, now.exp_avg.dtype if predictor.needs_moments and now.exp_avg is not None else None
    return (dtypes, now.step, type(predictor), settings, K)


def key_of_sum(history: History, terms: Iterable[tuple[int, float]]) -> Hashable:
    """The key of a sum of (step, coefficient) terms; snapshots of one step differ only in how they are stored."""
    return (history.now.weights.dtype, tuple((step, c) for step, c in terms if c != 0.0))
