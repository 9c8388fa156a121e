"""Propose weights K steps ahead and verify them: for our loop, or for one of your own.

    weights = FlatWeights(model)
    ring = Ring(capacity=2, interval=50, layout=weights.layout, lr_at=lambda position: 1e-3)
    proposer = Proposer(model, weights, ring, {"linear": Linear()}, loss_fn)
    ...
    if step % 50 == 0:
        ring.push(step, step, weights.vector)
        for proposal in proposer.propose([5, 10], loss_now=loss_fn(model)):
            print(proposal.K, proposal.loss)

`loss_fn` takes something callable like the model and returns a loss in nats; it is evaluated on views of the candidate,
so the live weights are never touched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leapbench.clock import Clock
from leapbench.history import History, Ring
from leapbench.predictors.base import Predictor, coefficients_of
from leapbench.verify import LossFn, candidate_loss
from leapbench.weights import FlatWeights


@dataclass(frozen=True)
class Proposal:
    """Weights predicted at `step` for K steps later, and what they are worth.

    Attributes:
        loss: of the candidate, nats; may be nan or inf.
        scale: c of the candidate theta_0 + c (predict - theta_0).
        predict_s, verify_s: seconds spent for this proposal alone; 0 where an equal candidate was already known.
    """

    step: int
    predictor: str
    K: int
    loss: float
    scale: float
    predict_s: float
    verify_s: float


class Proposer:
    """Knows a model, its flat weights, a ring of snapshots, predictors and a loss function, and nothing else.

    Args:
        memo: losses of candidates at the newest snapshot, shared between proposers that use one ring; whoever shares it
            clears it when a new snapshot is taken.
        clock: gets the laps `predict` and `verify`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        ring: Ring,
        predictors: Mapping[str, Predictor],
        loss_fn: LossFn,
        clock: Clock | None = None,
        memo: dict[Hashable, float] | None = None,
    ) -> None:
        self.model, self.weights, self.ring = model, weights, ring
        self.predictors, self.loss_fn = dict(predictors), loss_fn
        self.clock = clock or Clock(weights.vector.device)
        self.shared_memo = memo
        # A candidate lives only until its loss is known, so all of them are built in one vector: fresh memory of this
        # size would cost more in page faults than the prediction does.
        self._scratch = torch.empty_like(weights.vector, dtype=torch.float32, device=ring.device)

    def propose(self, horizons: list[int], loss_now: float) -> Iterator[Proposal]:
        """One proposal per predictor whose context is filled and per horizon K.

        Args:
            horizons: steps ahead.
            loss_now: loss of the live weights, nats.
        """
        history = self.ring.history()
        memo: dict[Hashable, float] = {} if self.shared_memo is None else self.shared_memo
        if self.ring.weights_dtype == self.weights.vector.dtype:
            memo[self._key([(history.now.step, 1.0)])] = loss_now
        for name, predictor in self.predictors.items():
            if predictor.context <= len(history.snapshots):
                for K in horizons:
                    yield self._proposal(name, predictor, history, K, memo)

    def _proposal(
        self, name: str, predictor: Predictor, history: History, K: int, memo: dict[Hashable, float]
    ) -> Proposal:
        key = self._candidate_key(predictor, history, K)
        if key is not None and key in memo:
            return Proposal(history.now.step, name, K, memo[key], 1.0, 0.0, 0.0)
        start = time.perf_counter()
        with self.clock.lap("predict"):
            full = predictor.predict(replace(history, scratch=[self._scratch]), K)
        predicted = time.perf_counter()
        best_loss, best_scale = math.nan, predictor.scales[0]
        with self.clock.lap("verify"):
            for scale in predictor.scales:
                loss = self.loss_of(rescaled(full, history, scale))
                if not math.isfinite(best_loss) or loss < best_loss:
                    best_loss, best_scale = loss, scale
        if key is not None:
            memo[key] = best_loss
        end = time.perf_counter()
        return Proposal(history.now.step, name, K, best_loss, best_scale, predicted - start, end - predicted)

    def loss_of(self, candidate: Tensor) -> float:
        """Loss of a candidate (N,), nats."""
        return candidate_loss(self.model, self.weights.layout, candidate.to(self.weights.vector.device), self.loss_fn)

    def _candidate_key(self, predictor: Predictor, history: History, K: int) -> Hashable | None:
        """Equal for equal candidates: the same sum of the same snapshots, or the same method with the same settings.

        None: only `predict` can tell, or the best of several scales counts.
        """
        coefficients = coefficients_of(predictor, history, K)
        if coefficients is not None:
            return self._key(zip(history.last(predictor.context).steps, coefficients, strict=True))
        settings = tuple(sorted(vars(predictor).items()))
        if predictor.scales != (1.0,) or not all(isinstance(value, Hashable) for _, value in settings):
            return None
        return (id(self.ring), history.now.step, type(predictor), settings, K)

    def _key(self, terms: Iterable[tuple[int, float]]) -> Hashable:
        return (id(self.ring), tuple((step, c) for step, c in terms if c != 0.0))


def rescaled(full: Tensor, history: History, scale: float) -> Tensor:
    """theta_0 + scale (full - theta_0): (N,); `full` itself at scale 1."""
    return full if scale == 1.0 else torch.lerp(history.now.weights.float(), full, scale)
