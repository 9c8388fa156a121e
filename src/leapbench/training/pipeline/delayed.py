"""One stage of a pipeline whose gradients come late: its past weights, and those by which it hands gradients on."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.config.arms import AVERAGING, PipelineConfig, arm_of, gap
from leapbench.config.choices import Averaged, Coefficient, ForwardWeights, Versions
from leapbench.config.schema import plain
from leapbench.prediction.weights import FlatWeights
from leapbench.training.pipeline.averages import DECAY, Average
from leapbench.training.pipeline.lookahead import LookAhead
from leapbench.training.pipeline.stages import Stage, groups_of
from leapbench.training.pipeline.versions import PastWeights


class DelayedStage:
    """A stage with stages behind it, whose forward pass runs up to `delay` updates before the update.

    Args:
        delay: in microbatches.
        weights: the live ones.

    Attributes:
        form: the arm's name.
        longest: d, the largest delay in updates, of the first microbatch of a batch.
        updates: since the pipeline was last empty.
        live: (size,) its part of the live weights.
    """

    def __init__(
        self,
        config: PipelineConfig,
        stage: Stage,
        delay: int,
        weights: FlatWeights,
        optimizer: torch.optim.Optimizer,
        factor_at: Callable[[int], float],
    ) -> None:
        self.config, self.stage, self.delay = config, stage, delay
        self.longest = gap(delay, 0, config.microbatches)
        self.form, self.updates = arm_of(plain(config)), 0
        self.live = weights.vector[stage.place]
        self.parameters = stage.parameters(weights)
        self.groups = groups_of(optimizer, self.parameters)
        self.ahead: LookAhead | None = None
        if config.forward != ForwardWeights.delayed:
            self.ahead = LookAhead(config.forward, stage, self.longest, weights, optimizer, factor_at)
        self.past = PastWeights(stage, max(self.longest, self.ahead.past if self.ahead else 0), self.live)
        self.predicted = PastWeights(stage, self.longest, self.live) if self.ahead else None
        self.averages = self._averages()
        self.rates: deque[list[float]] = deque(maxlen=self.longest)  # per update the learning rate of each parameter
        self.scratch = torch.empty_like(self.live)
        # PipeMare averages updates whatever the rest does.
        self.averages_updates = config.averaged == Averaged.update or config.versions == Versions.pipemare

    def _averages(self) -> dict[str, Average]:
        """By form: the one that is used, under the arm's own name, and those that are only compared."""
        config, d = self.config, self.longest
        averages = {}
        if config.versions == Versions.ema_fixed:
            averages[self.form] = Average(d, None, config.beta, True, self.live)
        if config.versions == Versions.ema_pipeline:
            averages[self.form] = Average(d, config.coefficient, 0.0, True, self.live)
        if config.versions == Versions.pipemare:  # from memory: no correction of the first averages
            averages[self.form] = Average(d, None, DECAY ** (1 / d), False, self.live)
        for form in config.compare:
            name = f"{Versions.ema_pipeline}/{form}"
            if name not in averages:
                averages[name] = Average(d, Coefficient(form), 0.0, True, self.live)
        return averages

    def gap(self, microbatch: int) -> int:
        """Updates between the forward pass of a microbatch and its update, fewer while the pipeline fills."""
        return min(self.updates, gap(self.delay, microbatch, self.config.microbatches))

    # ---- what a forward and a backward pass see ----------------------------------------------------------------------

    def forward_leaves(self, microbatch: int) -> dict[str, Tensor]:
        """The parameters of a microbatch's forward pass as leaves, by name; empty where they are the live ones."""
        steps = self.gap(microbatch)
        return (self.predicted or self.past).leaves(self.updates - steps) if steps else {}

    def backward_weights(self, microbatch: int) -> tuple[Tensor, Tensor] | None:
        """(size,) the vector that the forward pass of a microbatch uses, and the one by which gradients are handed on.

        None where these are the same.
        """
        steps, versions = self.gap(microbatch), self.config.versions
        if not steps or versions == Versions.stash:
            return None
        used = (self.predicted or self.past)[self.updates - steps]
        return used, self.live if versions == Versions.latest else self.reconstructed(self.form, steps)

    def place_of_backward(self, version: int, steps: int) -> Tensor:
        """(size,) the memory that holds the weights by which the gradient is handed on, when its time has come.

        Args:
            version: of the live weights, with which the forward pass runs.
            steps: updates between the forward pass and its update; if it is an average that is read then, it stands
                here after `backward_weights` of that time.
        """
        if not steps or self.config.versions == Versions.latest:
            return self.live
        return self.past.slot(version) if self.config.versions == Versions.stash else self.scratch

    def reconstructed(self, form: str, steps: int) -> Tensor:
        """(size,) the weights `steps` updates ago by the average of this form; in memory that is used again."""
        average = self.averages[form]
        if self.averages_updates:
            distance = self.longest if self.config.versions == Versions.pipemare and form == self.form else steps
            return average.moved(self.live, -float(distance), self.scratch)
        self.scratch.zero_()
        average.moved(self.scratch, 1.0, self.scratch)
        recent = list(self.rates)[-steps:]
        for number, entry in enumerate(self.stage.entries):
            start = entry.offset - self.stage.place.start
            self.scratch[start : start + entry.size].mul_(sum(rates[number] for rates in recent))
        return self.scratch.add_(self.live)

    # ---- around an update --------------------------------------------------------------------------------------------

    def before_update(self, position: int) -> None:
        """Keep the live weights as a version; the gradients are there, and the optimizer has not moved."""
        if self.ahead is not None and self.predicted is not None:
            if self.updates:
                self.ahead(self.live, self.past, position, self.scratch)
            else:
                self.scratch.copy_(self.live)  # nothing has moved yet
            self.predicted.push(self.scratch)
        self.past.push(self.live)
        if self.averages and not self.averages_updates:
            self._add(self._applied_gradient())
            self.rates.append([float(group["lr"]) for group in self.groups])

    def after_update(self, total: int) -> None:
        """Average what the optimizer has done.

        Args:
            total: updates of the run before this one.
        """
        old, config = self.past[self.updates], self.config
        if config.anneal and config.versions == Versions.pipemare:
            # PipeMare's T1, from memory: lr / d^p with p falling from 1 to 0; an update is proportional to its rate.
            power = 1 - min(total / config.anneal, 1.0)
            torch.lerp(old, self.live, self.longest**-power, out=self.live)
        if self.averages and self.averages_updates:
            self._add(torch.sub(self.live, old, out=self.scratch))
        self.updates += 1

    def _add(self, vector: Tensor) -> None:
        for average in self.averages.values():
            average.add(vector)

    def _applied_gradient(self) -> Tensor:
        """(size,) the clipped gradient with the weight decay."""
        for entry, p, group in zip(self.stage.entries, self.parameters, self.groups, strict=True):
            start = entry.offset - self.stage.place.start
            part = self.scratch[start : start + entry.size]
            part.zero_() if p.grad is None else part.copy_(p.grad.reshape(-1))
            part.add_(p.detach().reshape(-1), alpha=group.get("weight_decay", 0.0))
        return self.scratch

    def drain(self) -> None:
        """Empty the pipeline: what is in flight is dropped, and the delay grows from zero again."""
        self.updates = 0
        self.past.clear()
        if self.predicted is not None:
            self.predicted.clear()
        self.rates.clear()

    # ---- measures ----------------------------------------------------------------------------------------------------

    def errors(self) -> dict[str, tuple[float | None, float | None]]:
        """By form ||w_rec - w(t-d)|| / ||w(t) - w(t-d)|| and the norm below the line, for the first microbatch.

        A form that predicts is measured against what it aims at, ||w_hat - w(t)|| / ||w(t-d) - w(t)||. None while
        nothing has moved.
        """
        steps = self.gap(0)
        if not steps:
            return {self.form: (None, None)}
        true = self.past[self.updates - steps]
        drift = float(torch.linalg.vector_norm(self.live - true))
        distances: dict[str, float] = {}
        if self.predicted is not None:
            predicted = self.predicted[self.updates - steps]
            distances[self.form] = float(torch.linalg.vector_norm(predicted - self.live))
        elif self.config.versions not in AVERAGING:
            distances[self.form] = drift if self.config.versions == Versions.latest else 0.0
        for form in self.averages:
            distances[form] = float(torch.linalg.vector_norm(self.reconstructed(form, steps) - true))
        return {form: (distance / drift if drift > 0 else math.nan, drift) for form, distance in distances.items()}

    def bytes_of_arm(self) -> int:
        """Memory for weights that a pipeline would need for this stage in this arm beyond the live ones, bytes."""
        ring = self.predicted or self.past
        kept = ring.data[: self.longest].nbytes if self.config.versions == Versions.stash else 0
        averaged = self.averages[self.form].vector.nbytes if self.config.versions in AVERAGING else 0
        return kept + averaged + (self.past.data[: self.ahead.past].nbytes if self.ahead else 0)

    def bytes_here(self) -> int:
        """Memory that the emulation takes for this stage beyond the live weights, bytes."""
        rings = self.past.data.nbytes + (self.predicted.data.nbytes if self.predicted else 0)
        return rings + self.scratch.nbytes + sum(average.vector.nbytes for average in self.averages.values())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "updates": self.updates, "past": self.past.state_dict(), "rates": list(self.rates),
            "predicted": self.predicted.state_dict() if self.predicted else None,
            "averages": {form: average.state_dict() for form, average in self.averages.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.updates = state["updates"]
        self.past.load_state_dict(state["past"])
        self.rates.extend(state["rates"])
        if self.predicted is not None:
            self.predicted.load_state_dict(state["predicted"])
        for form, average in self.averages.items():
            average.load_state_dict(state["averages"][form])


@contextlib.contextmanager
def around_update(stages: Sequence[DelayedStage], position: int, total: int) -> Iterator[None]:
    """The update of these stages is inside.

    Args:
        position: of it in the schedule.
        total: updates of the run before it.
    """
    with torch.no_grad():
        for stage in stages:
            stage.before_update(position)
    yield
    with torch.no_grad():
        for stage in stages:
            stage.after_update(total)
