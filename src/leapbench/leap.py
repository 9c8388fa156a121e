"""mode=leap: follow one predictor; what its rule accepts becomes the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from leapbench.adopt import Adopter, Leap
from leapbench.clock import Clock
from leapbench.config import BuffersAfterLeap, PaceName, RunConfig
from leapbench.names import LEAPS, REGIMES, VALIDATION, VERIFICATION, Gate, HistoryAfterLeap, Regime
from leapbench.observe import build_detector, build_predictors, build_ring, unusable
from leapbench.record import RunFolder
from leapbench.verify import Rule
from leapbench.weights import FlatMoments, FlatWeights
from leapbench.workload import Workload


class Leaper:
    """Decides when to propose, hands the proposal to the adopter, and records every one. Without a predictor: nothing.

    Attributes:
        scored: the splits evaluated with `eval.every`; none of it is charged.
        followed: steps at which the weights are evaluated because a leap lies 50, 100, ... steps back.
        skipped: predictors left out, with the reason.
    """

    scored = (VALIDATION, VERIFICATION)

    def __init__(
        self,
        config: RunConfig,
        workload: Workload,
        weights: FlatWeights,
        optimizer: torch.optim.Optimizer,
        lr_at: Callable[[int], float],
        clock: Clock,
        folder: RunFolder,
    ) -> None:
        self.config, self.workload, self.weights, self.clock, self.folder = config, workload, weights, clock, folder
        self.skipped = unusable(config)
        self.optimizer = optimizer
        self.moments: FlatMoments | None = None
        self.followed: set[int] = set()
        self.regime, self.confirmed = Regime.unknown, False
        self.proposals = self.adoptions = self.taken = 0
        self.last_proposed = self.last_adopted = -math.inf
        self.adopter: Adopter | None = None
        for name, predictor in build_predictors(config, config.protocol, self.skipped).items():
            protocol = config.protocol
            rules = protocol.rules.get("proximity", {})
            rule = Rule(config.leap.rule, **rules, sigma_over=protocol.rules.get("adaptive", {}).get("sigma_over", 5))
            kind = (protocol.history.weights, protocol.history.moments)
            self.adopter = Adopter(
                workload.model, weights, optimizer, build_ring(config, weights, {name: predictor}, kind, lr_at, 0),
                name, predictor, rule, workload.drawn_loss if config.verify.resample else workload.verification_loss,
                config.leap.moments, clear=config.leap.history == HistoryAfterLeap.clear, after=self._after_adoption,
                clock=clock,
            )  # fmt: skip
        gated = config.gated and self.adopter is not None
        self.detector = build_detector(config, next(iter(config.protocols))) if gated else None
        self.pace = Pace(K=config.horizons[0], every=config.leap.every, interval=config.train.interval)

    def look(self, step: int, at_checkpoint: bool) -> float | None:
        """Nothing: what a rule has to know is asked when it proposes."""
        return None

    def snapshot(self, step: int, position: int) -> None:
        """Copy the live weights, and the moments where the predictor reads them, into the ring."""
        if self.adopter is None:
            return
        if self.adopter.predictor.needs_moments and self.moments is None:
            self.moments = FlatMoments(self.optimizer, self.weights)
        self.adopter.ring.push(step, position, self.weights.vector, self.moments)
        self.taken += 1

    def find_regimes(self, step: int) -> None:
        """One regimes row, if a gate asks for it."""
        if self.detector is None:
            return
        similarity, self.regime, self.confirmed = self.detector.update(*self.workload.probe_states())
        row = {"step": step, "protocol": next(iter(self.config.protocols)), "similarity": similarity}
        row |= {"regime": self.regime, "confirmed": self.confirmed}
        row |= {"tau_low": self.detector.tau_low, "tau_high": self.detector.tau_high}
        self.folder.append(REGIMES, row)

    def propose(self, step: int, position: int, loss_now: float | None, mean_loss: float) -> int:
        """Propose and adopt if it is time to; the new position.

        Args:
            step: gradient updates done.
            position: place in the schedule.
            mean_loss: mean training loss of the last interval, nats.
        """
        leap = self.config.leap
        if leap.scheduler == PaceName.pdt:
            self.pace.slow_down(mean_loss)
        K = self.pace.K
        if self.adopter is None or not self._due(step) or position + leap.advance * K > self.config.train.steps:
            return position
        room = (self.config.train.steps - position) // K if leap.advance else leap.cascade
        if self.config.verify.resample:
            self.workload.draw(self.proposals)
        charged = self.clock.charged
        found = self.adopter.leap(K, min(leap.cascade, room), leap.advance)
        if not found:
            return position
        self.proposals, self.last_proposed = self.proposals + 1, step
        landed = sum(one.adopted for one in found)
        for one in found:
            self.folder.append(LEAPS, self._row(one) | {"charged_s": charged})
        if landed:
            self.adoptions, self.last_adopted = self.adoptions + landed, step
            self.followed |= {step, *(step + later for later in leap.follow)}
        return position + K * landed * leap.advance

    def explore(self, step: int, loss_now: float | None) -> None:
        """Nothing: probes belong to mode=observe."""

    def totals(self) -> dict[str, int]:
        """What the summary says of this mode."""
        return {"proposals": self.proposals, "adoptions": self.adoptions}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        own = ("followed", "regime", "confirmed", "proposals", "adoptions", "taken", "last_proposed", "last_adopted")
        state: dict[str, Any] = {key: getattr(self, key) for key in own} | {"pace": self.pace}
        if self.adopter is not None:
            state |= {"ring": self.adopter.ring.state_dict(), "losses": self.adopter.rule.losses}
        if self.detector is not None:
            state["detector"] = self.detector.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        ring, losses, detector = (state.pop(key, None) for key in ("ring", "losses", "detector"))
        for key, value in state.items():
            setattr(self, key, value)
        if self.adopter is not None:
            self.adopter.ring.load_state_dict(ring, self.weights.vector.device)
            self.adopter.rule.losses = losses
        if self.detector is not None:
            self.detector.load_state_dict(detector)

    def _due(self, step: int) -> bool:
        leap, interval = self.config.leap, self.config.train.interval
        open_gate = {
            Gate.any: True,
            Gate.not_chaotic: self.regime not in (Regime.chaotic, Regime.unknown),
            Gate.stable: self.regime == Regime.stable,
            Gate.confirmed: self.confirmed,
        }[leap.gate]
        rested = step - self.last_adopted > leap.cooldown * interval
        return (
            open_gate
            and rested
            and self.taken > leap.burn_in
            and step - self.last_proposed >= self.pace.every * interval
        )

    def _after_adoption(self) -> None:
        if self.config.leap.buffers == BuffersAfterLeap.recompute:
            self.workload.recompute_buffers()

    def _row(self, leap: Leap) -> dict[str, Any]:
        return {
            "step": leap.step, "position": leap.position, "protocol": next(iter(self.config.protocols)),
            "predictor": leap.predictor, "K": leap.K, "rule": self.config.leap.rule, "regime": self.regime,
            "confirmed": self.confirmed, "link": leap.link, "loss_now_nats": leap.loss_now,
            "loss_pred_nats": leap.loss_pred, "predict_s": leap.predict_s, "verify_s": leap.verify_s,
            "adopted": leap.adopted, "changed_share": leap.changed_share,
            "status": "ok" if leap.finite else "nonfinite",
        }  # fmt: skip


class Pace:
    """K and the distance between proposals, and how PDT slows both down when the training loss rises.

    PDT (OpenReview zSTgrLkpRi), the acceleration scheduler of its distributed trainers: after each epoch from the
    fourth on, with L_t its mean training loss and tau = K / interval + 1,

        L_t > L_{t-1} and L_t > L_{t-2}:  tau > 4: tau -= 2;  tau = 4: tau = 3, T_i += 1;  tau <= 3: T_i += 2
        L_t > L_{t-1} only:               tau > 3: tau -= 1;  else T_i += 1

    and never the other way. Here the loss is the mean over all examples, as in the released code; the paper's runs
    took each rank's own.

    Attributes:
        K: steps ahead.
        every: T_i, intervals between two proposals.
    """

    def __init__(self, K: int, every: int, interval: int) -> None:
        self.K, self.every, self.interval = K, every, interval
        self.losses: list[float] = []

    def slow_down(self, loss: float) -> None:
        """Take the interval's mean training loss, nats, into account."""
        self.losses.append(loss)
        if len(self.losses) < 4 or not loss > self.losses[-2]:
            return
        tau = self.K // self.interval + 1
        if loss > self.losses[-3]:
            less, longer = (2, 0) if tau > 4 else (1, 1) if tau == 4 else (0, 2)
        else:
            less, longer = (1, 0) if tau > 3 else (0, 1)
        self.K -= less * self.interval
        self.every += longer
