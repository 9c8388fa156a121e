"""Weights predicted for the update that a batch will make: the forward-looking answer to delayed gradients.

Where the delay is d updates, the forward pass of a batch uses weights predicted d updates ahead, because its gradient
is applied d updates later. All rules are from memory of the papers and their code; that the aim is d updates, and that
the backward pass (at the update) needs no further prediction, is INFERRED from the timing of the pipeline here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from leapbench.config.choices import ForwardWeights
from leapbench.config.errors import ConfigError
from leapbench.prediction.history import History, Snapshot
from leapbench.prediction.moments import AdamGroup, moments_of
from leapbench.prediction.predictor import Predictor, named
from leapbench.prediction.weights import FlatWeights, Layout
from leapbench.training.pipeline.stages import Stage, groups_of
from leapbench.training.pipeline.versions import PastWeights

OWN = (ForwardWeights.linear, ForwardWeights.trend, ForwardWeights.momentum)


class LookAhead:
    """Predicts one stage's weights as many updates ahead as it is delayed.

    - `spectrain` (SpecTrain): w - d lr v, v the velocity of momentum SGD.
    - `xpipe` (XPipe): w - d lr mhat / (sqrt(vhat) + eps), Adam's moments bias-corrected.
    - `nesterov`: the velocity fades as if all gradients to come were zero, w - lr (m - m^(d+1)) / (1 - m) v with
      momentum m (as in FTPipe's code); with Adam's moments the sum over the fading first one, `momentum_decay` of ours.
    - `linear`, `trend`, `momentum`: our predictors; the snapshots of the first two span about d updates.

    Until there are enough snapshots, or moments, the weights are predicted to stay.

    Args:
        weights: the live ones.
        delay: d >= 1, updates.

    Attributes:
        past: older versions that it reads, besides the live weights.
    """

    def __init__(
        self,
        kind: ForwardWeights,
        stage: Stage,
        delay: int,
        weights: FlatWeights,
        optimizer: torch.optim.Optimizer,
        factor_at: Callable[[int], float],
    ) -> None:
        self.kind, self.stage, self.delay, self.optimizer, self.factor_at = kind, stage, delay, optimizer, factor_at
        self.parameters = stage.parameters(weights)
        self.groups = groups_of(optimizer, self.parameters)
        self.moments = moments_of(optimizer, weights)
        self.predictor = self._predictor()
        context = self.predictor.context if self.predictor else 1
        self.spacing = max(1, delay // (context - 1)) if context > 1 else 1
        self.past = (context - 1) * self.spacing
        start = stage.place.start
        self.layout = Layout(replace(entry, offset=entry.offset - start) for entry in stage.entries)
        self.adam = tuple(_within(group, stage.place) for group in self.moments.groups) if self.moments else ()

    def __call__(self, live: Tensor, versions: PastWeights, position: int, out: Tensor) -> Tensor:
        """`out` (size,) filled with the weights `delay` updates after `live` (size,).

        Args:
            versions: the past ones, the newest of which is one update old.
            position: of the next update in the schedule.
        """
        if self.predictor is None:
            return self._along_the_velocity(live, out)
        now = versions.newest + 1
        if now < self.past or (self.predictor.needs_moments and not self._has_moments()):
            return out.copy_(live)
        past = range(now - self.past, now, self.spacing)
        snapshots = tuple(Snapshot(version, position, versions[version]) for version in past)
        history = History((*snapshots, self._now(now, position, live)), self.layout, self.factor_at, self.adam)
        return out.copy_(self.predictor.predict(history, self.delay))

    def _predictor(self) -> Predictor | None:
        """One of ours; None where the rule is written below."""
        if self.kind in OWN:
            return named(self.kind)
        return named("momentum_decay") if self.kind == ForwardWeights.nesterov and self.moments is not None else None

    def _has_moments(self) -> bool:
        return all(self.optimizer.state.get(p) for p in self.parameters)

    def _now(self, now: int, position: int, live: Tensor) -> Snapshot:
        if self.predictor is None or not self.predictor.needs_moments:
            return Snapshot(now, position, live)
        assert self.moments is not None
        m, v = (vector[self.stage.place] for vector in (self.moments.exp_avg, self.moments.exp_avg_sq))
        return Snapshot(now, position, live, m, v, self.moments.updates)

    def _along_the_velocity(self, live: Tensor, out: Tensor) -> Tensor:
        """`spectrain`, `nesterov` of momentum SGD, and `xpipe`: parameter by parameter, each with its group's rate."""
        out.copy_(live)
        views = self.layout.views(out)
        for p, group, view in zip(self.parameters, self.groups, views.values(), strict=True):
            state = self.optimizer.state.get(p)
            if not state:
                continue
            if self.kind == ForwardWeights.xpipe:
                beta1, beta2 = group["betas"]
                first, second = (1 - beta ** float(state["step"]) for beta in (beta1, beta2))
                root = (state["exp_avg_sq"] / second).sqrt_().add_(group["eps"])
                view.addcdiv_(state["exp_avg"], root, value=-self.delay * group["lr"] / first)
                continue
            steps, m = float(self.delay), group["momentum"]
            if self.kind == ForwardWeights.nesterov:
                steps = (m - m ** (self.delay + 1)) / (1 - m) if m < 1 else steps
            if state.get("momentum_buffer") is not None:
                view.add_(state["momentum_buffer"], alpha=-steps * group["lr"])
        return out


def check_optimizer(kind: ForwardWeights, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> None:
    """Raise ConfigError if the optimizer does not keep what this rule reads."""
    key = f"pipeline.forward={kind}"
    has_velocity = all(group.get("momentum") and "betas" not in group for group in optimizer.param_groups)
    has_moments = moments_of(optimizer, weights) is not None
    if kind in (ForwardWeights.xpipe, ForwardWeights.momentum) and not has_moments:
        raise ConfigError(f"{key} needs Adam moments; use optimizer=adamw, or spectrain or nesterov with momentum SGD")
    if kind == ForwardWeights.spectrain and not has_velocity:
        raise ConfigError(f"{key} needs the velocity of optimizer=sgd_momentum; use xpipe with optimizer=adamw")
    if kind == ForwardWeights.nesterov and not has_moments and not has_velocity:
        raise ConfigError(f"{key} needs optimizer=sgd_momentum or adamw")


def _within(group: AdamGroup, place: slice) -> AdamGroup:
    """The group's weights within a slice of the vector, counted from its start."""
    cut = [slice(max(p.start, place.start), min(p.stop, place.stop)) for p in group.places]
    return replace(
        group, places=tuple(slice(p.start - place.start, p.stop - place.start) for p in cut if p.start < p.stop)
    )
