"""mode=observe: score every predictor and every K along one untouched training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from leapbench.config.choices import CascadeForm
from leapbench.config.groups import ProtocolConfig
from leapbench.names import CASCADE, LANDSCAPE, PROPOSALS, REGIMES, VALIDATION, Regime
from leapbench.prediction.candidate import Candidate, Candidates, Memo, key_of_sum
from leapbench.prediction.distance import DistanceToTruth
from leapbench.prediction.history import Ring
from leapbench.prediction.moments import moments_of
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.regime import RegimeDetector
from leapbench.training.cascade import chained, retrained
from leapbench.training.landscape import along_the_direction
from leapbench.training.mode import Parts
from leapbench.training.parts import build_detector, build_predictors, unusable


@dataclass
class Reading:
    """One protocol at work on the shared trajectory."""

    name: str
    protocol: ProtocolConfig
    predictors: dict[str, Predictor]
    ring: Ring
    detector: RegimeDetector
    regime: Regime = Regime.unknown
    confirmed: bool = False


@dataclass
class Pending:
    """A proposal that waits for the step it aims at: its row so far, and what its distance follows from."""

    row: dict[str, Any]
    candidate: Candidate


@dataclass(eq=False)
class Observer(Parts):
    """Takes snapshots, finds regimes, proposes, and fills in the truth when step t + K comes.

    What is observed are the weights that the run would hand over. Protocols that store snapshots in the same
    way share rings and equal candidates.

    Attributes:
        skipped: predictors left out, with the reason.
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
        self.moments = moments_of(self.optimizer, self.scored.weights) if needs_moments else None
        self.rings: dict[str, Ring] = {}
        device = torch.device(config.history_device) if config.history_device else None
        for name, protocol in config.protocols.items():
            self.rings.setdefault(storage_of(protocol), self._ring(protocol, predictors[name], device))
        self.readings = [
            Reading(name, protocol, predictors[name], self.rings[storage_of(protocol)], build_detector(config, name))
            for name, protocol in config.protocols.items()
        ]
        self.candidates = Candidates(
            self.workload.model, self.scored.weights, self.workload.verification_loss, device, self.clock
        )
        self.memo: Memo = {}
        self.pending: dict[int, list[Pending]] = {}
        self.proposals = 0

    def after_step(self, step: int, position: int, mean_loss: float | None) -> int:
        """See :class:`leapbench.training.mode.Mode`; the position stays."""
        if mean_loss is None and step not in self.pending:
            return position

        # ---- the loss now: where proposals start from, and the truth for those that aimed here -----------------------
        self.clock.enter("eval" if mean_loss is None else "verify")
        loss_now = self.workload.verification_loss(self.scored.forward)
        self.clock.enter("eval")
        self._resolve(step, loss_now)
        if mean_loss is None:
            return position
        self.clock.enter("other")
        self.scores.interval(step, position, mean_loss, loss_now)

        # ---- snapshot ------------------------------------------------------------------------------------------------
        self.clock.enter("snapshot")
        for ring in self.rings.values():
            ring.push(step, position, self.scored.vector, self.moments)
        self.memo.clear()

        # ---- regime --------------------------------------------------------------------------------------------------
        self.clock.enter("regime")
        self._find_regimes(step)

        # ---- predict, verify -----------------------------------------------------------------------------------------
        self.clock.enter("other")
        self._propose(step, loss_now)
        self.clock.enter("eval")
        self._explore(step, loss_now)
        return position

    def splits_due(self, step: int, position: int) -> tuple[str, ...]:
        """Validation every `eval.every` steps and at the end; the verification loss is taken at snapshots anyway."""
        return (VALIDATION,) if step % self.config.eval.every == 0 or position == self.config.train.steps else ()

    def _find_regimes(self, step: int) -> None:
        """One regimes row per protocol; the probes are run once."""
        hidden, mask = self.workload.probe_states()
        for reading in self.readings:
            similarity, reading.regime, reading.confirmed = reading.detector.update(hidden, mask)
            row = {"step": step, "protocol": reading.name, "similarity": similarity, "regime": reading.regime}
            row |= {"confirmed": reading.confirmed, "tau_low": reading.detector.tau_low}
            row |= {"tau_high": reading.detector.tau_high, "underflow_share": self._underflow(reading.protocol)}
            self.folder.append(REGIMES, row)

    def _propose(self, step: int, loss_now: float) -> None:
        """Score every predictor and K whose truth the run will reach; the rows wait for step t + K."""
        horizons = [K for K in self.config.horizons if step + K <= self.config.train.steps]
        for reading in self.readings:
            history = reading.ring.history()
            if reading.ring.weights_dtype == self.scored.vector.dtype:
                self.memo[key_of_sum(history, [(step, 1.0)])] = Candidate(None, 1.0, loss_now, [1.0])
            ready = {name: p for name, p in reading.predictors.items() if p.context <= len(history.snapshots)}
            for name, predictor in ready.items():
                for K in horizons:
                    candidate = self.candidates.known(predictor, history, K, self.memo)
                    row = {"step": step, "protocol": reading.name, "predictor": name, "K": K}
                    row |= {"regime": reading.regime, "confirmed": reading.confirmed, "loss_now_nats": loss_now}
                    row |= {"loss_pred_nats": candidate.loss, "predict_s": candidate.predict_s}
                    row |= {"verify_s": candidate.verify_s, "scale": candidate.scale}
                    self.pending.setdefault(step + K, []).append(Pending(row, candidate))
                    self.proposals += 1

    def _resolve(self, step: int, loss_true: float) -> None:
        """Write the proposals that aimed at `step`, with the loss and the distance to the weights reached."""
        distances: dict[tuple[str, int], DistanceToTruth] = {}
        due = self.pending.pop(step, [])
        for pending in due:
            row, kind = pending.row, storage_of(self.config.protocols[pending.row["protocol"]])
            key = (kind, row["step"])
            if key not in distances:
                distances[key] = DistanceToTruth(self.rings[kind].history(until=row["step"]), self.scored.vector)
            distance = distances[key].of(pending.candidate)
            finite = abs(row["loss_pred_nats"]) < float("inf")
            row |= {"loss_true_nats": loss_true, "rel_l2_to_true": distance.rel_l2_to_true}
            row |= {"rel_l2_now_to_true": distance.rel_l2_now_to_true, "cosine": distance.cosine}
            self.folder.append(PROPOSALS, row | {"status": "ok" if finite else "nonfinite"})
        in_use = {address_of(proposal.candidate) for proposals in self.pending.values() for proposal in proposals}
        for pending in due:
            if address_of(pending.candidate) not in in_use:
                self.candidates.release(pending.candidate)

    def _explore(self, step: int, loss_now: float) -> None:
        """The optional probes: cascades from confirmed-stable checkpoints, and the landscape of the first protocol."""
        for reading in self.readings if self.config.cascade.enabled else []:
            if reading.confirmed:
                for depth, K in self.config.cascade.chains:
                    form = chained if reading.protocol.cascade == CascadeForm.chain else retrained
                    for row in form(
                        self.candidates, reading.predictors, reading.ring.history(), self.workload, depth, K
                    ):
                        key = {"step": step, "protocol": reading.name, "depth": depth, "K": K}
                        self.folder.append(CASCADE, key | {"loss_now_nats": loss_now} | row)
        if self.config.landscape.enabled:
            first = self.readings[0]
            history = first.ring.history()
            for row in along_the_direction(self.candidates, first.predictors, history, self.config.landscape, loss_now):
                self.folder.append(LANDSCAPE, {"step": step, "protocol": first.name, **row})

    def totals(self) -> dict[str, int]:
        """The number of proposals."""
        return {"proposals": self.proposals}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rings": {kind: ring.state_dict() for kind, ring in self.rings.items()},
            "detectors": {reading.name: reading.detector.state_dict() for reading in self.readings},
            "pending": {step: [vars(proposal.candidate) | {"row": proposal.row} for proposal in waiting]
                        for step, waiting in self.pending.items()},
            "proposals": self.proposals,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for kind, ring in self.rings.items():
            ring.load_state_dict(state["rings"][kind], self.scored.weights.vector.device)
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

    def _ring(self, protocol: ProtocolConfig, predictors: dict[str, Predictor], device: torch.device | None) -> Ring:
        """A ring for the contexts of `predictors`; snapshots stay until the truth of their proposals is known."""
        intervals = -(-self.config.horizons[-1] // self.config.train.interval)
        return Ring(
            capacity=max((p.context for p in predictors.values()), default=1) + intervals,
            interval=self.config.train.interval,
            layout=self.scored.weights.layout,
            factor_at=self.factor_at,
            adam=self.moments.groups if self.moments else (),
            moments_capacity=max((p.context for p in predictors.values() if p.needs_moments), default=0),
            weights_dtype=getattr(torch, protocol.history.weights),
            moments_dtype=getattr(torch, protocol.history.moments),
            device=device,
        )

    def _underflow(self, protocol: ProtocolConfig) -> float | None:
        """Share of positive second moments that become zero in the protocol's storage dtype."""
        if self.moments is None:
            return None
        positive = self.moments.exp_avg_sq > 0
        underflowed = positive & (self.moments.exp_avg_sq.to(getattr(torch, protocol.history.moments)) == 0)
        return float(underflowed.sum()) / max(1, int(positive.sum()))


def address_of(candidate: Candidate) -> int | None:
    """Where in memory the prediction lies: the same for protocols that share it."""
    return None if candidate.full is None else candidate.full.data_ptr()


def storage_of(protocol: ProtocolConfig) -> str:
    """How a protocol stores snapshots: equal for protocols that can share a ring."""
    return " ".join(asdict(protocol.history).values())
