"""Predictions stacked on predictions, in the paper's form and in the published code's.

Leap+Verify, arXiv:2602.19580, pass 3: chains (D, K) in {(4, 25), (2, 50), (10, 10)} from confirmed-stable checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leapbench.history import Adam, History
from leapbench.predictors.persistence import Persistence
from leapbench.propose import Proposer, rescaled
from leapbench.weights import FlatMoments, FlatWeights
from leapbench.workload import Workload


def chained(proposer: Proposer, workload: Workload, depth: int, K: int) -> Iterator[dict[str, Any]]:
    """The paper's form: `depth` predictions in a row, each from the weights the last one predicted.

    Yields:
        Per predictor and link: predictor, link (1 .. depth), loss_nats, rel_l2_drift from theta_t, status.
    """
    start = proposer.ring.history()
    for name, predictor in proposer.predictors.items():
        if isinstance(predictor, Persistence) or predictor.context > len(start.snapshots):
            continue
        history = start
        for link in range(1, depth + 1):
            weights = predictor.predict(history, K)
            history = history.extended(weights, K)
            yield _row(name, link, proposer.loss_of(weights), weights, start.now.weights)


def retrained(proposer: Proposer, workload: Workload, depth: int, K: int) -> Iterator[dict[str, Any]]:
    """The published code's form: predict with momentum, train K steps from there with a fresh AdamW, repeat.

    Works on a copy of the model; the run's own weights, optimizer, data position and random numbers stay as they are.

    Yields:
        As `chained`; the loss and the drift are those after the link's training.
    """
    predictor = proposer.predictors.get("momentum")
    if predictor is None:
        return
    start = proposer.ring.history()
    model = copy.deepcopy(workload.model)
    weights = FlatWeights(model)
    devices = [weights.vector.device] if weights.vector.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        history = start
        for link in range(1, depth + 1):
            with torch.no_grad():
                full = predictor.predict(history, K)
                candidates = [rescaled(full, history, scale) for scale in predictor.scales]
                weights.vector.copy_(min(candidates, key=lambda c: _finite_or_inf(proposer.loss_of(c))))
            moments = _train(workload, model, weights, history, K)
            history = history.extended(weights.vector.clone(), K)
            history = _with_moments(history, moments)
            yield _row("momentum", link, workload.verification_loss(model.eval()), weights.vector, start.now.weights)


def _train(workload: Workload, model: torch.nn.Module, weights: FlatWeights, history: History, K: int) -> FlatMoments:
    """K steps of a fresh AdamW on the batches and learning rates of the positions after `history.now`."""
    adam, position = history.adam, history.now.position
    assert isinstance(adam, Adam)
    optimizer = torch.optim.AdamW(
        weights.parameters,
        lr=0.0,
        betas=(adam.beta1, adam.beta2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        fused=True,
    )
    model.train()
    for j in range(K):
        for group in optimizer.param_groups:
            group["lr"] = history.lr_at(position + j)
        workload.loss(model, workload.train_batch(position + j)).backward()
        if workload.config.train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(weights.parameters, workload.config.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return FlatMoments(optimizer, weights)


def _with_moments(history: History, moments: FlatMoments) -> History:
    now = replace(history.now, exp_avg=moments.exp_avg, exp_avg_sq=moments.exp_avg_sq, updates=moments.updates)
    return replace(history, snapshots=(*history.snapshots[:-1], now))


def _row(name: str, link: int, loss: float, weights: Tensor, origin: Tensor) -> dict[str, Any]:
    origin = origin.to(weights.device).float()
    drift = float((weights - origin).norm() / origin.norm())
    status = "ok" if math.isfinite(loss) else "nonfinite"
    return {"predictor": name, "link": link, "loss_nats": loss, "rel_l2_drift": drift, "status": status}


def _finite_or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
