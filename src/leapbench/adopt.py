"""Propose, verify and adopt weights K steps ahead: for our loop, or for one of your own.

    weights = FlatWeights(model)
    ring = Ring(capacity=2, interval=50, layout=weights.layout, lr_at=lambda position: 1e-3)
    adopter = Adopter(model, weights, optimizer, ring, "linear", Linear(), Rule("strict"), loss_fn)
    ...
    if step % 50 == 0:
        ring.push(step, position, weights.vector)
        for leap in adopter.leap(K=10):
            position += leap.K if leap.adopted else 0

`loss_fn` takes something callable like the model and returns a loss in nats. It is called for the live weights and for
the candidate in turn; draw new data between two calls of `leap`, never within one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leapbench.clock import Clock
from leapbench.history import History, Ring
from leapbench.names import MomentsAfterLeap, choice
from leapbench.predictors.base import Predictor
from leapbench.propose import rescaled
from leapbench.verify import LossFn, Rule, candidate_loss
from leapbench.weights import FlatWeights


@dataclass(frozen=True)
class Leap:
    """One proposal and what became of it.

    Attributes:
        step, position: of the newest snapshot, before the first link.
        link: 1 for the first leap from a checkpoint, 2 for the one that follows it, ...
        loss_now, loss_pred: of the weights before and of the candidate, nats; nan where the rule does not ask.
        changed_share: share of the weights that the candidate changes.
        finite: whether the candidate and its loss are numbers; adopted only then.
        predict_s, verify_s: seconds.
    """

    step: int
    position: int
    predictor: str
    K: int
    link: int
    loss_now: float
    loss_pred: float
    changed_share: float
    finite: bool
    adopted: bool
    predict_s: float
    verify_s: float


class Adopter:
    """Knows a model, its flat weights, an optimizer, a ring, a predictor, a rule and a loss function, nothing else.

    A rejected candidate changes nothing: it lives in a vector of its own, and its loss is taken on views of that.

    Args:
        moments: what an adoption does to the optimizer's state: keep | reset (as if no step had been taken) | published
            (zero, but the step count stays: the code of arXiv:2602.19580).
        clear: whether an adoption makes the ring forget the snapshots before it.
        after: called after each adoption, before the next candidate is built.
        clock: gets the laps `predict`, `verify` and `adopt`.

    Raises:
        ValueError: unknown `moments`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        optimizer: torch.optim.Optimizer,
        ring: Ring,
        name: str,
        predictor: Predictor,
        rule: Rule,
        loss_fn: LossFn,
        moments: str = "keep",
        clear: bool = True,
        after: Callable[[], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.model, self.weights, self.optimizer, self.ring = model, weights, optimizer, ring
        self.name, self.predictor, self.rule, self.loss_fn = name, predictor, rule, loss_fn
        self.moments, self.clear, self.after = choice(MomentsAfterLeap, moments, "moments"), clear, after
        self.clock = clock or Clock(weights.vector.device)
        self._scratch = torch.empty_like(weights.vector, dtype=torch.float32, device=ring.device)

    def leap(self, K: int, links: int = 1, advance: bool = True) -> list[Leap]:
        """Propose, and adopt what the rule accepts; up to `links` leaps in a row, each from where the last one landed.

        Proposes nothing while the predictor's context is not filled.

        Args:
            K: steps ahead.
            links: leaps from this checkpoint at most.
            advance: whether an adopted leap moves the position by K.
        """
        history = self.ring.history()
        if len(history.snapshots) < self.predictor.context:
            return []
        loss_now = math.nan
        if self.rule.asks_now:
            with self.clock.lap("verify"):
                loss_now = self.loss_fn(self.model)
            self.rule.see(loss_now)
        start, leaps = history.now, list[Leap]()
        for link in range(1, links + 1):
            leap, candidate = self._propose(history, K, loss_now)
            leap = replace(leap, step=start.step, position=start.position, link=link)
            leaps.append(leap)
            if not leap.adopted:
                break
            with self.clock.lap("adopt"):
                self._adopt(candidate, first=link == 1)
                loss_now = leap.loss_pred
                if link < links:
                    history = history.extended(candidate.clone(), K)
        landed = [leap for leap in leaps if leap.adopted]
        if landed:
            # Only now: the links predict from the snapshots as they were.
            with self.clock.lap("adopt"):
                self.ring.adopt(start.position + K * len(landed) * advance, self.weights.vector, clear=self.clear)
        return leaps

    def _propose(self, history: History, K: int, loss_now: float) -> tuple[Leap, Tensor]:
        start = time.perf_counter()
        with self.clock.lap("predict"):
            full = self.predictor.predict(replace(history, scratch=[self._scratch]), K)
            best = full.to(self.weights.vector.device)
        predicted = time.perf_counter()
        loss_pred = math.nan
        with self.clock.lap("verify"):
            if self.rule.asks_candidate:
                for scale in self.predictor.scales:
                    candidate = rescaled(full, history, scale).to(self.weights.vector.device)
                    loss = candidate_loss(self.model, self.weights.layout, candidate, self.loss_fn)
                    if not math.isfinite(loss_pred) or loss < loss_pred:
                        best, loss_pred = candidate, loss
                finite = math.isfinite(loss_pred)
            else:
                finite = math.isfinite(float(best.sum()))
            adopted = finite and self.rule.accepts(loss_pred, loss_now)
        verified = time.perf_counter()
        with self.clock.lap("other"):
            changed = float((best != self.weights.vector).float().mean())
        now = history.now
        leap = Leap(
            now.step, now.position, self.name, K, 1, loss_now, loss_pred, changed, finite, adopted,
            predicted - start, verified - predicted,
        )  # fmt: skip
        return leap, best

    @torch.no_grad()
    def _adopt(self, candidate: Tensor, first: bool) -> None:
        self.weights.vector.copy_(candidate)
        if first and self.moments != MomentsAfterLeap.keep:
            forget(self.optimizer, steps_too=self.moments == MomentsAfterLeap.reset)
        if self.after is not None:
            self.after()


def forget(optimizer: torch.optim.Optimizer, steps_too: bool) -> None:
    """Zero the optimizer's moments or velocities in place, and with `steps_too` its count of steps."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if torch.is_tensor(value) and (key != "step" or steps_too):
                value.zero_()
