"""Predict weights K steps ahead, verify them and adopt what passes, in any training loop:

    import leapbench

    leap = leapbench.Leap(model, optimizer, predictor="trend", K=10, verify=loss_fn)
    for batch in batches:
        loss = ...
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        leap.step()

`loss_fn(forward)` returns a loss in nats on held-out data, without gradients; `forward` is callable like the model. It
is called for the live weights and for the candidate in turn: draw new data between two proposals, never within one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from leapbench.names import HistoryAfterLeap, MomentsAfterLeap, choice
from leapbench.prediction.candidate import Candidate, Candidates, LossFn, rescaled
from leapbench.prediction.clock import Clock
from leapbench.prediction.history import History, Ring
from leapbench.prediction.moments import forget, moments_of
from leapbench.prediction.predictor import Predictor, name_of, named
from leapbench.prediction.rules import Rule
from leapbench.prediction.weights import FlatWeights


@dataclass(frozen=True)
class Proposal:
    """One candidate and whether it was adopted.

    Attributes:
        step, position: of the newest snapshot, before the first link.
        predictor: its name.
        K: steps ahead.
        link: 1 for the first leap from a snapshot, 2 for the one that follows it, ...
        loss_now, loss_pred: of the weights before and of the candidate, nats; nan where the rule does not ask.
        changed_share: share of the weights that the candidate changes.
        finite: whether the candidate and its loss are numbers; adopted only then.
        adopted: whether the candidate has become the weights: a leap.
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


class Leap:
    """Knows a model, an optimizer, a predictor, a rule and a loss function, and nothing about the loop around it.

    A rejected candidate changes nothing: it lives in a vector of its own, and its loss is taken on views of that. The
    model's trainable parameters become views of one flat vector; the Parameter objects stay.

    Args:
        model: float32 parameters on one device.
        optimizer: has all trainable parameters of the model.
        predictor: a name, as in conf/predictor, or an object; `name` is what its proposals call it.
        K: steps ahead.
        verify: see the module; None for rules that never ask (always).
        interval: steps between two snapshots.
        rule: a name or an object: strict | adaptive | proximity | always | falling.
        links: leaps in a row from one snapshot, at most.
        every, burn_in, cooldown: intervals between two proposals, before the one whose end may bring the first, and
            without proposals after an adoption.
        advance: whether an adopted leap moves the position by K.
        moments: what an adoption does to the optimizer's state: keep | reset (as if no step had been taken) | published
            (zero, but the step count stays: the code of arXiv:2602.19580).
        history: keep | clear the snapshots from before an adoption.
        factor_at: position -> what the learning rates are multiplied by; None: they stay as they are.
        after: called after each adoption, before the next candidate is built.
        clock: gets the laps `snapshot`, `predict`, `verify` and `adopt`.
        weights_dtype, moments_dtype, device: how and where snapshots are stored; None = where the model is.

    Attributes:
        steps: optimizer steps so far.
        position: place in the schedule: steps, and K more for every leap that advances.

    Raises:
        ValueError: an unknown name, or a predictor that needs moments which the optimizer does not keep.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        predictor: str | Predictor,
        K: int,
        verify: LossFn | None = None,
        *,
        interval: int = 50,
        rule: str | Rule = "strict",
        name: str | None = None,
        links: int = 1,
        every: int = 1,
        burn_in: int = 0,
        cooldown: int = 0,
        advance: bool = True,
        moments: str = MomentsAfterLeap.keep,
        history: str = HistoryAfterLeap.clear,
        factor_at: Callable[[int], float] | None = None,
        after: Callable[[], None] | None = None,
        clock: Clock | None = None,
        weights_dtype: torch.dtype = torch.float32,
        moments_dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.optimizer, self.weights = model, optimizer, FlatWeights.of(model)
        self.predictor = named(predictor) if isinstance(predictor, str) else predictor
        self.name = name or name_of(self.predictor)
        self.rule = Rule(rule) if isinstance(rule, str) else rule
        if verify is None and self.rule.asks_now:
            raise ValueError(f"rule={self.rule.name} needs a loss function: Leap(..., verify=loss_fn)")
        self.K, self.interval, self.links, self.advance = K, interval, links, advance
        self.every, self.burn_in, self.cooldown = every, burn_in, cooldown
        self.after_moments = choice(MomentsAfterLeap, moments, "moments")
        self.after_history = choice(HistoryAfterLeap, history, "history")
        self.after = after
        self.clock = clock or Clock(self.weights.vector.device)
        self.moments = moments_of(optimizer, self.weights) if self.predictor.needs_moments else None
        if self.predictor.needs_moments and self.moments is None:
            raise ValueError(f"predictor={self.name} needs Adam moments; {type(optimizer).__name__} keeps none")
        self.ring = Ring(
            self.predictor.context, interval, self.weights.layout, factor_at or _unscaled,
            self.moments.groups if self.moments else (), moments_capacity=self.predictor.context,
            weights_dtype=weights_dtype, moments_dtype=moments_dtype, device=device,
        )  # fmt: skip
        self.verify = verify or _unasked
        self.candidates = Candidates(model, self.weights, self.verify, device, self.clock)
        self.steps = self.position = self.snapshots = 0
        self.last_proposed: int | None = None
        self.last_adopted: int | None = None

    def step(self) -> list[Proposal]:
        """To be called after every `optimizer.step()`: takes snapshots, proposes when it is time to, adopts.

        Returns:
            the proposals made, usually none; a training that follows a schedule moves K further for each adopted one.
        """
        self.steps, self.position = self.steps + 1, self.position + 1
        if self.steps % self.interval:
            return []
        self.snapshot()
        return self.propose() if self.due else []

    def snapshot(self) -> None:
        """Copy the live weights, and the moments where the predictor reads them."""
        with self.clock.lap("snapshot"):
            self.ring.push(self.steps, self.position, self.weights.vector, self.moments)
            self.snapshots += 1

    @property
    def due(self) -> bool:
        """Whether burn-in, the distance between proposals and the cooldown allow a proposal at this step."""

        def since(step: int | None) -> float:
            return math.inf if step is None else self.steps - step

        cooled_down = since(self.last_adopted) > self.cooldown * self.interval
        return cooled_down and self.snapshots > self.burn_in and since(self.last_proposed) >= self.every * self.interval

    def propose(self, links: int | None = None) -> list[Proposal]:
        """Propose, and adopt what the rule accepts; up to `links` leaps in a row, each from the previous one's weights.

        Proposes nothing while the predictor's context is not filled.
        """
        history = self.ring.history()
        if len(history.snapshots) < self.predictor.context:
            return []
        loss_now = math.nan
        if self.rule.asks_now:
            with self.clock.lap("verify"):
                loss_now = self.verify(self.model)
            self.rule.see(loss_now)
        start, proposals, max_links = history.now, list[Proposal](), links or self.links
        for link in range(1, max_links + 1):
            candidate = self.candidates.make(self.predictor, history, self.K, score=self.rule.asks_candidate)
            proposal, weights = self._judge(candidate, history, loss_now)
            proposals.append(replace(proposal, step=start.step, position=start.position, link=link))
            if proposal.adopted:
                with self.clock.lap("adopt"):
                    self._adopt(weights, first=link == 1)
                    loss_now = proposal.loss_pred
                    if link < max_links:
                        history = history.extended(weights.clone(), self.K)
            self.candidates.release(candidate)
            if not proposal.adopted:
                break
        self.last_proposed = start.step
        if adoptions := sum(proposal.adopted for proposal in proposals):
            self.last_adopted = start.step
            self.position = start.position + self.K * adoptions * self.advance
            # Only now, because the links predict from the snapshots as they were.
            with self.clock.lap("adopt"):
                clear = self.after_history == HistoryAfterLeap.clear
                self.ring.adopt(self.position, self.weights.vector, clear=clear)
        return proposals

    def _judge(self, candidate: Candidate, history: History, loss_now: float) -> tuple[Proposal, Tensor]:
        """The proposal of a candidate, adopted or not, and the candidate's weights on the model's device."""
        assert candidate.full is not None
        weights = rescaled(candidate.full, history, candidate.scale).to(self.weights.vector.device)
        with self.clock.lap("verify"):
            finite = math.isfinite(candidate.loss if self.rule.asks_candidate else float(weights.sum()))
            adopted = finite and self.rule.accepts(candidate.loss, loss_now)
        with self.clock.lap("other"):
            changed_share = float((weights != self.weights.vector).float().mean())
        proposal = Proposal(
            history.now.step, history.now.position, self.name, self.K, 1, loss_now, candidate.loss, changed_share,
            finite, adopted, candidate.predict_s, candidate.verify_s,
        )  # fmt: skip
        return proposal, weights

    @torch.no_grad()
    def _adopt(self, weights: Tensor, first: bool) -> None:
        self.weights.vector.copy_(weights)
        if first and self.after_moments != MomentsAfterLeap.keep:
            forget(self.optimizer, steps_too=self.after_moments == MomentsAfterLeap.reset)
        if self.after is not None:
            self.after()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs besides the model and the optimizer: tensors and plain data."""
        counts = {key: getattr(self, key) for key in _COUNTS}
        return counts | {"ring": self.ring.state_dict(), "losses": list(self.rule.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint; the caller loads the model's and the optimizer's."""
        for key in _COUNTS:
            setattr(self, key, state[key])
        self.ring.load_state_dict(state["ring"], self.weights.vector.device)
        self.rule.losses = list(state["losses"])


_COUNTS = ("steps", "position", "snapshots", "last_proposed", "last_adopted", "K", "every")


def _unscaled(position: int) -> float:
    return 1.0


def _unasked(forward: Any) -> float:
    raise AssertionError("this rule never asks for a loss")
