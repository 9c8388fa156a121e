"""mode=observe: score every predictor and every K along one untouched training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from leapbench.config.choices import Probes
from leapbench.config.groups import ProtocolConfig
from leapbench.names import PROPOSALS, REGIMES, VALIDATION
from leapbench.prediction.candidate import Candidate, Candidates, Memo, key_of_sum
from leapbench.prediction.distance import DistanceToTruth
from leapbench.prediction.history import Ring
from leapbench.prediction.moments import moments_of
from leapbench.prediction.predictor import Predictor
from leapbench.training.explore import Explorer
from leapbench.training.inline import InlineLeaps
from leapbench.training.mode import Parts
from leapbench.training.parts import build_detector, build_predictors, unusable
from leapbench.training.reading import Reading


@dataclass
class Pending:
    """A proposal that waits for the step it aims at: its row so far, and the candidate without its weights.

    Weights that no coefficients make are predicted again when the truth is there: keeping those of every K would take
    tens of gigabytes at 124 million parameters.
    """

    row: dict[str, Any]
    candidate: Candidate


@dataclass(eq=False)
class Observer(Parts):
    """Takes snapshots, finds regimes, proposes, and fills in the truth when step t + K comes.

    What is observed are the weights that the run would hand over. One ring keeps them in the widest dtypes that a
    protocol asks for; the others see it rounded. Protocols that store snapshots in the same way share equal candidates.

    A step is a place in the schedule here. Places and updates are the same, unless the training makes leaps of its own
    (`train.inline_leaps`), as the published code of Leap+Verify does: then the snapshot of that step is taken after the
    leap, its loss now is the one before it, and K counts from the place that the leap has reached.

    Attributes:
        skipped: predictors left out, with the reason.
        inline: the leaps of the training itself, if there are any.
    """

    def __post_init__(self) -> None:
        config = self.config
        self.skipped = unusable(config)
        predictors = {
            name: build_predictors(config, protocol, self.skipped) for name, protocol in config.protocols.items()
        }
        needs_moments = any(
            predictor.needs_moments for by_name in predictors.values() for predictor in by_name.values()
        )
        self.inline = InlineLeaps(self)
        self.moments = self.inline.moments
        if needs_moments and self.moments is None:
            self.moments = moments_of(self.optimizer, self.scored.weights)
        device = torch.device(config.history_device) if config.history_device else None
        self.ring = self._ring([p for by_name in predictors.values() for p in by_name.values()], device)
        self.readings = [
            Reading(name, protocol, predictors[name], self.ring, build_detector(config, name))
            for name, protocol in config.protocols.items()
        ]
        self.candidates = Candidates(
            self.workload.model, self.scored.weights, self.workload.verification_loss, device, self.clock
        )
        self.explorer = Explorer(config, self.workload, self.folder, self.readings, self.candidates)
        self.memo: Memo = {}
        self.pending: dict[int, list[Pending]] = {}
        self.proposals = self.arrived = 0

    def updates_in_interval(self, step: int, position: int) -> int:
        """See :class:`leapbench.training.mode.Mode`: an interval ends at its place in the schedule."""
        interval = self.config.train.interval
        return 0 if position % interval else interval - self.inline.skipped

    def after_step(self, step: int, position: int, mean_loss: float | None) -> int:
        """See :class:`leapbench.training.mode.Mode`; a leap of the training moves the position."""
        self.arrived = position
        if mean_loss is not None or position in self.pending:
            position = self._observe(step, position, mean_loss)
        if position >= self.config.train.steps:
            self.clock.enter("eval")
            self.explorer.at_the_end()
        return position

    def _observe(self, step: int, position: int, mean_loss: float | None) -> int:
        """What :meth:`after_step` does where the loss is wanted."""
        # ---- the loss now: where proposals start from, and the truth for those that aimed here -----------------------
        self.clock.enter("eval" if mean_loss is None else "verify")
        loss_now = self.workload.verification_loss(self.scored.forward)
        self.clock.enter("eval")
        self._resolve(position, loss_now)
        if mean_loss is None:
            return position
        self.clock.enter("other")
        self.scores.interval(step, position, mean_loss, loss_now)

        # ---- regime --------------------------------------------------------------------------------------------------
        self.clock.enter("regime")
        self._find_regimes(self.arrived)

        # ---- the training's own leap ---------------------------------------------------------------------------------
        self.clock.enter("other")
        first = self.readings[0]
        position, loss_reached = self.inline.after_checkpoint(position, first.regime, first.confirmed, loss_now)
        self.clock.enter("eval")
        for place in range(self.arrived + 1, position + 1):
            self._resolve(place, loss_reached if place == position else None)

        # ---- snapshot ------------------------------------------------------------------------------------------------
        self.memo.clear()
        is_kept = self._is_kept(self.arrived)
        self.clock.enter("snapshot")
        if is_kept:
            self.ring.push(self.arrived, position, self.scored.vector, self.moments)

        # ---- predict, verify -----------------------------------------------------------------------------------------
        self.clock.enter("other")
        if is_kept:
            self._propose(self.arrived, position, loss_now, loss_reached)
        self.clock.enter("eval")
        self.explorer.after_checkpoint(self.arrived, loss_now, is_kept)
        return position

    def splits_due(self, step: int, position: int) -> tuple[str, ...]:
        """Validation every `eval.every` steps and at the end; the verification loss is taken at snapshots anyway."""
        due = self.arrived % self.config.eval.every == 0 or position >= self.config.train.steps
        return (VALIDATION,) if due else ()

    def _is_kept(self, step: int) -> bool:
        """Whether snapshots are kept and scored at this step."""
        last, train = self.config.verify.checkpoints, self.config.train
        return last is None or step > (train.steps // train.interval - last) * train.interval

    def _find_regimes(self, step: int) -> None:
        """One regimes row per protocol; each kind of probes is run once."""
        states: dict[Probes, tuple[Tensor, Tensor | None]] = {}
        for reading in self.readings:
            kind = self.config.probes_of(reading.name)
            if kind not in states:
                states[kind] = self.workload.probe_states(reading.name)
            hidden, mask = states[kind]
            similarity, reading.regime, reading.confirmed = reading.detector.update(hidden, mask)
            row = {"step": step, "protocol": reading.name, "similarity": similarity, "regime": reading.regime}
            row |= {"confirmed": reading.confirmed, "tau_low": reading.detector.tau_low}
            row |= {"tau_high": reading.detector.tau_high, "underflow_share": self._underflow(reading.protocol)}
            self.folder.append(REGIMES, row)

    def _propose(self, step: int, position: int, loss_now: float, loss_reached: float) -> None:
        """Score every predictor and K whose truth the run will reach; the rows wait for place t + K.

        Args:
            position: where the snapshot of `step` stands: at `step`, or where a leap has led.
            loss_now: at `step`, nats.
            loss_reached: of the snapshot's weights, nats.
        """
        horizons = [K for K in self.config.horizons if position + K <= self.config.train.steps]
        for reading in self.readings:
            history = reading.history()
            if history.now.weights.dtype == self.scored.vector.dtype:
                self.memo[key_of_sum(history, [(step, 1.0)])] = Candidate(None, 1.0, loss_reached, [1.0])
            ready = {name: p for name, p in reading.predictors.items() if p.context <= len(history.snapshots)}
            for name, predictor in ready.items():
                for K in horizons:
                    candidate = self.candidates.known(predictor, history, K, self.memo)
                    row = {"step": step, "protocol": reading.name, "predictor": name, "K": K}
                    row |= {"regime": reading.regime, "confirmed": reading.confirmed, "loss_now_nats": loss_now}
                    row |= {"loss_pred_nats": candidate.loss, "predict_s": candidate.predict_s}
                    row |= {"verify_s": candidate.verify_s, "scale": candidate.scale}
                    row |= {"position": position} if self.inline.leap else {}
                    self.pending.setdefault(position + K, []).append(Pending(row, candidate))
                    self.proposals += 1

    def _resolve(self, place: int, loss_true: float | None) -> None:
        """Write the proposals that aimed at `place`, with the loss and the distance to the weights reached.

        Without a loss, the training has leapt over the place: there is no truth.
        """
        due = self.pending.pop(place, [])
        for pending in due:
            pending.row |= {"loss_true_nats": loss_true}
            pending.row |= dict.fromkeys(("rel_l2_to_true", "rel_l2_now_to_true", "cosine"))
        if loss_true is not None:
            for reading in self.readings:
                self._measure(reading, [pending for pending in due if pending.row["protocol"] == reading.name])
        for pending in due:
            finite = abs(pending.row["loss_pred_nats"]) < float("inf")
            self.folder.append(PROPOSALS, pending.row | {"status": "ok" if finite else "nonfinite"})

    def _measure(self, reading: Reading, due: list[Pending]) -> None:
        """Put the distances to the live weights into the rows of one protocol."""
        for step in sorted({pending.row["step"] for pending in due}):
            distances = DistanceToTruth(reading.history(until=step), self.scored.vector)
            for pending in due:
                row, candidate = pending.row, pending.candidate
                if row["step"] != step:
                    continue
                if candidate.coefficients is None:
                    predictor = reading.predictors[row["predictor"]]
                    candidate = self.candidates.again(candidate, predictor, distances.history, row["K"])
                row |= vars(distances.of(candidate))
                self.candidates.release(candidate)

    def totals(self) -> dict[str, int]:
        """The number of proposals, and of leaps that the training itself made."""
        return {"proposals": self.proposals} | ({"adoptions": self.inline.adoptions} if self.inline.leap else {})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "ring": self.ring.state_dict(),
            "detectors": {reading.name: reading.detector.state_dict() for reading in self.readings},
            "pending": {step: [vars(proposal.candidate) | {"row": proposal.row} for proposal in waiting]
                        for step, waiting in self.pending.items()},
            "proposals": self.proposals, "inline": self.inline.state_dict(),
            "explorer": self.explorer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.ring.load_state_dict(state["ring"], self.scored.weights.vector.device)
        for reading in self.readings:
            reading.detector.load_state_dict(state["detectors"][reading.name])
        self.pending = {
            step: [
                Pending(proposal["row"], Candidate(**{k: v for k, v in proposal.items() if k != "row"}))
                for proposal in waiting
            ]
            for step, waiting in state["pending"].items()
        }
        self.proposals = state["proposals"]
        self.inline.load_state_dict(state["inline"])
        self.explorer.load_state_dict(state["explorer"], self.scored.vector.device)

    def _ring(self, predictors: list[Predictor], device: torch.device | None) -> Ring:
        """A ring for the contexts of `predictors`; snapshots stay until the truth of their proposals is known."""
        config, stored = self.config, [protocol.history for protocol in self.config.protocols.values()]
        waiting = -(-(config.horizons[-1] + self.inline.longest) // config.train.interval) - 1  # newer than what waits
        with_moments = any(p.needs_moments for p in predictors)
        return Ring(
            capacity=max((p.context for p in predictors), default=1) + waiting,
            interval=config.train.interval,
            layout=self.scored.weights.layout,
            factor_at=self.factor_at,
            adam=self.moments.groups if self.moments else (),
            moments_capacity=max((p.context for p in predictors if p.needs_moments), default=0)
            + waiting * with_moments,
            weights_dtype=reduce(torch.promote_types, (getattr(torch, history.weights) for history in stored)),
            moments_dtype=reduce(torch.promote_types, (getattr(torch, history.moments) for history in stored)),
            device=device,
        )

    def _underflow(self, protocol: ProtocolConfig) -> float | None:
        """Share of positive second moments that become zero in the protocol's storage dtype."""
        if self.moments is None:
            return None
        positive = self.moments.exp_avg_sq > 0
        underflowed = positive & (self.moments.exp_avg_sq.to(getattr(torch, protocol.history.moments)) == 0)
        return float(underflowed.sum()) / max(1, int(positive.sum()))
