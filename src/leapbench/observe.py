"""mode=observe: score every predictor and every K along one untouched training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate

from leapbench.cascade import chained, retrained
from leapbench.clock import Clock
from leapbench.config import CascadeForm, ConfigError, ProtocolConfig, RunConfig
from leapbench.distance import DistanceToTruth
from leapbench.history import Adam, Ring
from leapbench.landscape import along_the_direction
from leapbench.names import CASCADE, LANDSCAPE, PROPOSALS, REGIMES, VALIDATION, Regime
from leapbench.predictors.base import Predictor
from leapbench.propose import Proposer
from leapbench.record import RunFolder
from leapbench.regime import RegimeDetector
from leapbench.weights import FlatMoments, FlatWeights
from leapbench.workload import Workload


@dataclass
class Scorer:
    """One protocol at work on the shared trajectory."""

    name: str
    protocol: ProtocolConfig
    proposer: Proposer
    detector: RegimeDetector
    regime: Regime = Regime.unknown
    confirmed: bool = False


class Observer:
    """Takes snapshots, finds regimes, proposes, and fills in the truth when step t + K comes.

    Rings are shared by protocols that store snapshots alike, and so are the losses of equal candidates.

    Attributes:
        scored: the splits evaluated with `eval.every`; the verification loss is taken at every checkpoint anyway.
        followed: further steps at which to evaluate: none.
        skipped: predictors left out, with the reason.
    """

    scored = (VALIDATION,)
    followed: tuple[int, ...] = ()

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
        self.config, self.workload, self.weights = config, workload, weights
        self.optimizer, self.clock, self.folder = optimizer, clock, folder
        self.memo: dict[Hashable, float] = {}
        self.moments: FlatMoments | None = None
        self.pending: dict[int, list[dict[str, Any]]] = {}
        self.rings: dict[tuple[str, str], Ring] = {}
        self.skipped = unusable(config)
        self.scorers = [self._scorer(name, protocol, lr_at) for name, protocol in config.protocols.items()]
        self.needs_moments = any(
            p.needs_moments for scorer in self.scorers for p in scorer.proposer.predictors.values()
        )

    def look(self, step: int, at_checkpoint: bool) -> float | None:
        """The verification loss, nats, where a proposal starts from this step or has aimed at it."""
        if not at_checkpoint and step not in self.pending:
            return None
        self.clock.enter("verify" if at_checkpoint else "eval")
        loss = self.workload.verification_loss(self.workload.model)
        self.clock.enter("eval")
        self.resolve(step, loss)
        return loss

    def snapshot(self, step: int, position: int) -> None:
        """Copy the live weights (and moments, where a predictor reads them) into every ring."""
        if self.needs_moments and self.moments is None:
            self.moments = FlatMoments(self.optimizer, self.weights)
        for ring in self.rings.values():
            ring.push(step, position, self.weights.vector, self.moments)

    def find_regimes(self, step: int) -> None:
        """One regimes row per protocol; the probes are run once."""
        hidden, mask = self.workload.probe_states()
        for scorer in self.scorers:
            similarity, scorer.regime, scorer.confirmed = scorer.detector.update(hidden, mask)
            row = {"step": step, "protocol": scorer.name, "similarity": similarity, "regime": scorer.regime}
            row |= {"confirmed": scorer.confirmed, "tau_low": scorer.detector.tau_low}
            row |= {"tau_high": scorer.detector.tau_high, "underflow_share": self._underflow(scorer.protocol)}
            self.folder.append(REGIMES, row)

    def propose(self, step: int, position: int, loss_now: float | None, mean_loss: float) -> int:
        """Score every predictor and K whose truth will be seen; the rows wait for step t + K. The position stays."""
        assert loss_now is not None
        horizons = [K for K in self.config.horizons if step + K <= self.config.train.steps]
        self.memo.clear()
        for scorer in self.scorers:
            for p in scorer.proposer.propose(horizons, loss_now):
                row = {"step": step, "protocol": scorer.name, "predictor": p.predictor, "K": p.K}
                row |= {"regime": scorer.regime, "confirmed": scorer.confirmed, "loss_now_nats": loss_now}
                row |= {"loss_pred_nats": p.loss, "predict_s": p.predict_s, "verify_s": p.verify_s, "scale": p.scale}
                self.pending.setdefault(step + p.K, []).append(row)
        return position

    def resolve(self, step: int, loss_true: float) -> None:
        """Write the proposals that aimed at `step`, with the loss and the distance to the weights reached."""
        distances: dict[tuple[int, int], DistanceToTruth] = {}
        predictors = {scorer.name: scorer.proposer for scorer in self.scorers}
        for row in self.pending.pop(step, []):
            proposer = predictors[row["protocol"]]
            key = (id(proposer.ring), row["step"])
            if key not in distances:
                distances[key] = DistanceToTruth(proposer.ring.history(until=row["step"]), self.weights.vector)
            d = distances[key].of(proposer.predictors[row["predictor"]], row["K"], row["scale"])
            ok = abs(row["loss_pred_nats"]) < float("inf")
            row |= {"loss_true_nats": loss_true, "rel_l2_to_true": d.rel_l2_to_true}
            row |= {"rel_l2_now_to_true": d.rel_l2_now_to_true, "cosine": d.cosine}
            self.folder.append(PROPOSALS, row | {"adopted": False, "status": "ok" if ok else "nonfinite"})

    def explore(self, step: int, loss_now: float | None) -> None:
        """The optional probes: cascades from confirmed-stable checkpoints, and the landscape of the first protocol."""
        assert loss_now is not None
        for scorer in self.scorers if self.config.cascade.enabled else []:
            if scorer.confirmed:
                for depth, K in self.config.cascade.chains:
                    form = chained if scorer.protocol.cascade == CascadeForm.chain else retrained
                    for row in form(scorer.proposer, self.workload, depth, K):
                        where = {"step": step, "protocol": scorer.name, "depth": depth, "K": K}
                        self.folder.append(CASCADE, where | {"loss_now_nats": loss_now} | row)
        if self.config.landscape.enabled:
            first = self.scorers[0]
            for row in along_the_direction(first.proposer, self.config.landscape, loss_now):
                self.folder.append(LANDSCAPE, {"step": step, "protocol": first.name, **row})

    def totals(self) -> dict[str, int]:
        """What the summary says of this mode: nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rings": {key: ring.state_dict() for key, ring in self.rings.items()},
            "detectors": {scorer.name: scorer.detector.state_dict() for scorer in self.scorers},
            "pending": self.pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for key, ring in self.rings.items():
            ring.load_state_dict(state["rings"][key], self.weights.vector.device)
        for scorer in self.scorers:
            scorer.detector.load_state_dict(state["detectors"][scorer.name])
        self.pending = state["pending"]

    def _scorer(self, name: str, protocol: ProtocolConfig, lr_at: Callable[[int], float]) -> Scorer:
        config = self.config
        predictors = build_predictors(config, protocol, self.skipped)
        kind = (protocol.history.weights, protocol.history.moments)
        if kind not in self.rings:
            # A proposal made K steps ago is compared with the truth before the newest snapshot of its time falls out.
            waiting = -(-config.horizons[-1] // config.train.interval)
            self.rings[kind] = build_ring(config, self.weights, predictors, kind, lr_at, waiting)
        proposer = Proposer(
            self.workload.model, self.weights, self.rings[kind], predictors,
            self.workload.verification_loss, self.clock, self.memo,
        )  # fmt: skip
        return Scorer(name, protocol, proposer, build_detector(config, name))

    def _underflow(self, protocol: ProtocolConfig) -> float | None:
        """Share of positive second moments that become zero in the protocol's storage dtype."""
        if self.moments is None:
            return None
        positive = self.moments.exp_avg_sq > 0
        lost = positive & (self.moments.exp_avg_sq.to(getattr(torch, protocol.history.moments)) == 0)
        return float(lost.sum()) / max(1, int(positive.sum()))


def build_predictors(config: RunConfig, protocol: ProtocolConfig, skipped: Collection[str]) -> dict[str, Predictor]:
    """The run's predictors by name, in the protocol's forms, without the skipped ones."""
    return {
        name: instantiate({**spec, **protocol.predictors.get(name, {})})
        for name, spec in config.predictors.items()
        if name not in skipped
    }


def build_ring(
    config: RunConfig,
    weights: FlatWeights,
    predictors: dict[str, Predictor],
    kind: tuple[str, str],
    lr_at: Callable[[int], float],
    waiting: int,
) -> Ring:
    """A ring for the contexts of `predictors` and `waiting` more snapshots, stored in the dtypes `kind`."""
    optimizer, adam = config.optimizer, None
    if optimizer.name == "adamw":
        assert optimizer.betas is not None and optimizer.eps is not None
        adam = Adam(*optimizer.betas, optimizer.eps, optimizer.weight_decay)
    weights_dtype, moments_dtype = (getattr(torch, name) for name in kind)
    return Ring(
        capacity=max((p.context for p in predictors.values()), default=1) + waiting,
        interval=config.train.interval,
        layout=weights.layout,
        lr_at=lr_at,
        adam=adam,
        moments_capacity=max((p.context for p in predictors.values() if p.needs_moments), default=0) + waiting,
        weights_dtype=weights_dtype,
        moments_dtype=moments_dtype,
        device=torch.device(config.history_device) if config.history_device else None,
    )


def build_detector(config: RunConfig, protocol: str) -> RegimeDetector:
    """The regime detector of one of the run's protocols."""
    pair, reading = config.regime.by_protocol[protocol], config.protocols[protocol]
    return RegimeDetector(
        tau_low=sum(pair["tau_low"]) / len(pair["tau_low"]),
        tau_high=sum(pair["tau_high"]) / len(pair["tau_high"]),
        inclusive=reading.inclusive,
        pooling=reading.fingerprint.pooling,
        cosine=reading.fingerprint.cosine,
        confirm=config.regime.confirm,
    )


def unusable(config: RunConfig) -> dict[str, str]:
    """Predictors that this configuration's optimizer cannot serve, with the reason."""
    if config.optimizer.name == "adamw":
        return {}
    reason = f"needs Adam moments; optimizer={config.optimizer.name} keeps none"
    return {name: reason for name, p in build_predictors(config, config.protocol, {}).items() if p.needs_moments}


def check_contexts(config: RunConfig, exempt: Collection[str]) -> None:
    """Raise ConfigError if a predictor, unless it is exempt, would never make a proposal."""
    interval, steps, K = config.train.interval, config.train.steps, config.horizons[0]
    for name, predictor in build_predictors(config, config.protocol, exempt).items():
        if predictor.context * interval + K > steps:
            raise ConfigError(
                f"predictor={name} needs {predictor.context} snapshots {interval} steps apart and K={K} steps more, "
                f"more than train.steps={steps}: its context never fills; raise train.steps or lower train.interval"
            )
        if config.mode == "leap" and (config.leap.burn_in + 1) * interval + K > steps:
            raise ConfigError(
                f"leap.burn_in={config.leap.burn_in} intervals of {interval} steps and K={K} more do not fit into "
                f"train.steps={steps}: nothing would ever be proposed; lower leap.burn_in or K, or raise train.steps"
            )
