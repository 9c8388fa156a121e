"""Predictions stacked on predictions, in the paper's form and in the published code's.

Leap+Verify, arXiv:2602.19580, pass 3: chains (D, K) in {(4, 25), (2, 50), (10, 10)} from confirmed-stable checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leapbench.names import PERSISTENCE
from leapbench.prediction.candidate import Candidates, rescaled
from leapbench.prediction.history import History
from leapbench.prediction.moments import Moments, moments_of
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.weights import FlatWeights
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.workload import Workload


def chained(
    candidates: Candidates,
    predictors: Mapping[str, Predictor],
    start: History,
    workload: Workload,
    depth: int,
    K: int,
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
            yield _row(name, link, candidates.loss_of(weights), weights, start.now.weights)


def retrained(
    candidates: Candidates,
    predictors: Mapping[str, Predictor],
    start: History,
    workload: Workload,
    depth: int,
    K: int,
) -> Iterator[dict[str, Any]]:
    """The published code's form: predict with momentum, train K steps from there with a fresh optimizer, repeat.

    Works on a copy of the model; the run's own weights, optimizer, data position and random numbers stay as they are.

    Yields:
        As `chained`; the loss and the drift are those after the link's training.
    """
    predictor = predictors.get("momentum")
    if predictor is None:
        return
    model = copy.deepcopy(workload.model)
    weights = FlatWeights.of(model)
    devices = [weights.vector.device] if weights.vector.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        history = start
        for link in range(1, depth + 1):
            candidate = candidates.make(predictor, history, K)
            assert candidate.full is not None
            with torch.no_grad():
                weights.vector.copy_(rescaled(candidate.full, history, candidate.scale))
            candidates.release(candidate)
            moments = _train(workload, model, weights, history, K)
            now = replace(
                history.extended(weights.vector.clone(), K).now,
                exp_avg=moments.exp_avg, exp_avg_sq=moments.exp_avg_sq, updates=moments.updates,
            )  # fmt: skip
            history = replace(history, snapshots=(*history.snapshots, now))
            yield _row("momentum", link, workload.verification_loss(model.eval()), weights.vector, start.now.weights)


def _train(workload: Workload, model: torch.nn.Module, weights: FlatWeights, history: History, K: int) -> Moments:
    """K steps of a fresh optimizer on the batches and learning rates of the positions after `history.now`."""
    optimizer = build_optimizer(workload.config.optimizer, weights.named_parameters())
    step = TrainingStep(workload, model, weights.parameters, optimizer, history.factor_at)
    model.train()
    for position in range(history.now.position, history.now.position + K):
        step(position, position)
    moments = moments_of(optimizer, weights)
    assert moments is not None
    return moments


def _row(name: str, link: int, loss: float, weights: Tensor, origin: Tensor) -> dict[str, Any]:
    origin = origin.to(weights.device).float()
    drift = float((weights - origin).norm() / origin.norm())
    status = "ok" if math.isfinite(loss) else "nonfinite"
    return {"predictor": name, "link": link, "loss_nats": loss, "rel_l2_drift": drift, "status": status}
