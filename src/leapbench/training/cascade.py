"""Predictions stacked on predictions, in the paper's form and in the published code's.

Leap+Verify, arXiv:2602.19580, pass 3: chains (D, K) in {(4, 25), (2, 50), (10, 10)} from confirmed-stable checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leapbench.names import PERSISTENCE
from leapbench.prediction.candidate import Candidates
from leapbench.prediction.history import History, Ring
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors.momentum import code_move, moved, rules_of
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.workload import Workload

BEST = 4  # checkpoints that the published code starts from


def chained(
    candidates: Candidates, predictors: Mapping[str, Predictor], start: History, depth: int, K: int
) -> Iterator[dict[str, Any]]:
    """The paper's form: `depth` predictions in a row, each from the weights the last one predicted.

    Yields:
        Per predictor and link: predictor, link (1 .. depth), loss_nats, rel_l2_drift from theta_t, status.
    """
    for name, predictor in predictors.items():
        if name == PERSISTENCE or predictor.context > len(start.snapshots):
            continue
        history = start
        for link in range(1, depth + 1):
            weights = predictor.predict(history, K)
            history = history.extended(weights, K)
            yield _row(name, link, candidates.loss_of(weights), start.now.weights, weights)


@dataclass(frozen=True, eq=False)
class Start:
    """A confirmed-stable checkpoint.

    Attributes:
        stable_in_a_row: stable checkpoints up to this one.
        loss_now: nats.
        history: its snapshot alone, with moments; None where none was kept.
    """

    step: int
    stable_in_a_row: int
    loss_now: float
    history: History | None


@dataclass
class Starts:
    """The BEST checkpoints so far: those with the longest run of stable ones behind them, of equals the earlier."""

    best: list[Start] = field(default_factory=list)

    def offer(self, start: Start) -> None:
        """Keep a copy of `start`, if it is among the best."""
        ranked = sorted([*self.best, start], key=lambda kept: -kept.stable_in_a_row)[:BEST]
        if start in ranked and start.history is not None:
            ranked[ranked.index(start)] = replace(start, history=_copied(start.history))
        self.best = ranked

    def state_dict(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return [vars(start) | {"history": start.history and vars(start.history.now)} for start in self.best]

    def load_state_dict(self, state: list[dict[str, Any]], ring: Ring, device: torch.device) -> None:
        """Take over the state of a checkpoint; `ring` knows the rules of the training, the weights are on `device`."""
        self.best = []
        for kept in state:
            saved = kept["history"]
            history = saved and replace(ring.history(), snapshots=(ring.restored(saved, device),))
            self.best.append(Start(**kept | {"history": history}))


def retrained(starts: Starts, workload: Workload, chains: list[list[int]]) -> Iterator[dict[str, Any]]:
    """The published code's form: predict with momentum, train K steps from there with a fresh optimizer, repeat.

    Every link predicts with the moments of the start and the learning rate of the next update, at scale 1. Chains that
    would pass the end of the training are left out. Batches are those of the training from its beginning, one after the
    other through all chains. Runs on a copy of the model, with random numbers of its own.

    Yields:
        Per start, chain and link: step (of the start), depth, K, loss_now_nats, loss_pred_nats (of the prediction),
        predictor, link, loss_nats (after the link's training), rel_l2_drift (from the prediction to what was trained
        from it), status.
    """
    model = copy.deepcopy(workload.model)
    weights = FlatWeights.of(model)
    devices = [weights.vector.device] if weights.vector.is_cuda else []
    steps, batch = workload.config.train.steps, 0
    with torch.random.fork_rng(devices=devices):
        for start in starts.best:
            if start.history is None:
                continue
            for depth, K in chains:
                position = start.history.now.position
                if position + depth * K > steps:
                    continue
                weights.vector.copy_(start.history.now.weights)
                for link in range(1, depth + 1):
                    predicted = _momentum(start.history, weights.vector, position, K)
                    weights.vector.copy_(predicted)
                    loss_pred = workload.verification_loss(model.eval())
                    _train(workload, model, weights, start.history, position, batch, K)
                    position, batch = position + K, batch + K
                    loss = workload.verification_loss(model.eval())
                    row: dict[str, Any] = {"step": start.step, "depth": depth, "K": K}
                    row |= {"loss_now_nats": start.loss_now, "loss_pred_nats": loss_pred}
                    yield row | _row("momentum", link, loss, predicted, weights.vector)


def _momentum(start: History, weights: Tensor, position: int, K: int) -> Tensor:
    """Where the start's moments lead from `weights` (N,) at `position`, on the device of the weights."""
    now = replace(start.now, weights=weights.to(start.now.weights.device))
    factor = start.factor_at(position)
    moves = [code_move(group, K, factor) for group in rules_of(start)]
    return moved(replace(start, snapshots=(now,)), moves).to(weights.device)


def _train(
    workload: Workload,
    model: torch.nn.Module,
    weights: FlatWeights,
    history: History,
    position: int,
    batch: int,
    K: int,
) -> None:
    """K steps of a fresh optimizer, from this batch and position on."""
    optimizer = build_optimizer(workload.config.optimizer, weights.named_parameters())
    step = TrainingStep(workload, model, weights.parameters, optimizer, history.factor_at)
    model.train()
    for number in range(K):
        step(batch + number, position + number)


def _copied(history: History) -> History:
    """The newest snapshot alone, in memory of its own."""
    now = history.now
    vectors = {
        key: value.clone() for key in ("weights", "exp_avg", "exp_avg_sq") if (value := getattr(now, key)) is not None
    }
    return replace(history, snapshots=(replace(now, **vectors),))


def _row(name: str, link: int, loss: float, origin: Tensor, weights: Tensor) -> dict[str, Any]:
    """Of a link: its loss, nats, and ||weights - origin|| / ||origin||."""
    origin = origin.to(weights.device).float()
    drift = float((weights - origin).norm() / origin.norm())
    status = "ok" if math.isfinite(loss) else "nonfinite"
    return {"predictor": name, "link": link, "loss_nats": loss, "rel_l2_drift": drift, "status": status}
