"""The training step of a process that holds one stage of a pipeline.

Every process goes through the microbatches by itself, and waits only for messages. With d = 2S or S microbatches of
delay (S stages behind it), tick k is: the forward pass of microbatch k + d, the backward pass of microbatch k, and
behind the last microbatch of a batch an update; the first d forward passes come before tick 0. Forward passes use the
live weights of their time, which are the versions that the emulation keeps for them (`step.py`); what backward passes
see, and what is averaged, is the same `DelayedStage` here and there.

Why not torch.distributed.pipelining: its schedules (GPipe, 1F1B, the interleaved and the zero-bubble ones) split one
batch into microbatches and return when all of their gradients are there. The optimizer moves between two calls, with an
empty pipeline, so no gradient is ever late. Here an update comes between the forward and the backward pass of a batch,
and the backward pass may see other weights than either: the schedule itself is what is to be tested.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from leapbench.config.arms import delay_of, gap
from leapbench.config.choices import Precision
from leapbench.prediction.weights import FlatWeights
from leapbench.training.loop import load_rng, rng_state
from leapbench.training.pipeline.backward import through
from leapbench.training.pipeline.delayed import DelayedStage, around_update
from leapbench.training.pipeline.links import Links
from leapbench.training.pipeline.section import Section
from leapbench.training.pipeline.stages import Stage
from leapbench.training.schedule import factor_at
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.tasks import Batch
from leapbench.training.workload import Workload

S = TypeVar("S", bound=TrainingStep)


@dataclass(frozen=True)
class _InFlight:
    """A microbatch between its forward and its backward pass.

    Attributes:
        random: states of the generators before the forward pass.
        received: what the stage before sent, whose gradient goes back; None in the first stage.
        output: what went on; in the last stage the loss.
    """

    random: dict[str, Any]
    received: Tensor | None
    output: Tensor


@dataclass(eq=False, kw_only=True)
class StageStep(TrainingStep):
    """One update of one stage.

    Args:
        section: the stage's part of the workload's model.
        stage: as part of that; its entries are those of the part's own weights.
        links: to the neighbours.
    """

    section: Section
    stage: Stage
    links: Links
    in_flight: deque[_InFlight] = field(default_factory=deque, init=False)
    started: int = field(default=0, init=False)  # microbatches whose forward pass is done
    total: int = field(default=0, init=False)  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        config, pipeline = self.workload.config, self.workload.config.pipeline
        self.weights, self.microbatches = FlatWeights.of(self.workload.model), pipeline.microbatches
        self.delay, self.end = delay_of(self.stage.behind, pipeline.delay_model), config.train.steps * self.microbatches
        self.delayed = [
            DelayedStage(pipeline, self.stage, self.delay, self.weights, self.optimizer, self.factor_at)
            for _ in range(min(1, gap(self.delay, 0, self.microbatches)))
        ]
        self._drawn: tuple[int, Batch] | None = None

    def gradient(self, index: int) -> Tensor:
        """Leave the clipped gradient of batch `index` in the stage's parameters.

        Returns:
            Its loss, nats, in the last stage; zero in the others.

        Raises:
            LostStageError: a neighbour does not answer.
        """
        total = torch.zeros((), device=self.workload.device)
        for number in range(self.microbatches):
            self._advance(index * self.microbatches + number + self.delay + 1)
            output = self._backward(number)
            if self.links.gradients_in is None:
                total += output
        self.clip(self.parameters)
        return total

    def update(self, position: int) -> None:
        """Apply the gradient to the stage's weights."""
        with around_update(self.delayed, position, self.total):
            super().update(position)
        self.total += 1

    def _advance(self, end: int) -> None:
        """Run the forward passes up to that of microbatch `end`, without it."""
        while self.started < min(end, self.end):
            self._forward(self.started)
            self.started += 1

    def _forward(self, microbatch: int) -> None:
        batch, number = divmod(microbatch, self.microbatches)
        version = max(0, microbatch - self.delay) // self.microbatches
        random, part = rng_state(self.workload.device), self._part(batch, number)
        received = None
        if self.links.activations_in is not None:
            received = self.links.activations_in.take().requires_grad_()
        with self._at(version, batch - version):
            output = self.section(received, lambda: self._run(part))
        if self.links.activations_out is not None:
            self.links.activations_out.put(output)
        self.in_flight.append(_InFlight(random, received, output))

    def _run(self, part: Batch) -> Tensor:
        """The loss of a microbatch, as its share of the batch's; only the last stage comes so far."""
        if self.links.activations_out is None:
            loss = self.workload.loss(self.forward, part)
            return loss / self.microbatches if self.microbatches > 1 else loss
        with self.workload.autocast():
            return self.forward(**self.workload.task.inputs(part))

    def _backward(self, number: int) -> Tensor:
        """Add the gradient of a microbatch; what its forward pass has put out."""
        done = self.in_flight.popleft()
        for stage in self.delayed:
            stage.backward_weights(number)  # leaves a reconstruction where the pass reads it
        done.output.backward(None if self.links.gradients_in is None else self.links.gradients_in.take())
        if self.links.gradients_out is not None:
            assert done.received is not None and done.received.grad is not None
            self.links.gradients_out.put(done.received.grad)
        return done.output.detach()

    @contextlib.contextmanager
    def _at(self, version: int, steps: int) -> Iterator[None]:
        """A forward pass inside uses this version of the weights, `steps` updates before its own update."""
        if not self.delayed:
            yield
            return
        (stage,) = self.delayed
        vector, now = self.weights.vector, None
        exchanged = {vector.untyped_storage().data_ptr(): (vector, stage.place_of_backward(version, steps))}
        if version < self.total:  # of a microbatch that was in flight at the checkpoint
            now = vector.clone()
            vector.copy_(stage.past[version])
        try:
            with through(exchanged, self.workload.config.train.precision != Precision.float32):
                yield
        finally:
            if now is not None:
                vector.copy_(now)

    def _part(self, batch: int, number: int) -> Batch:
        """Microbatch `number` of a batch. Every process draws them all: masks and shapes are needed everywhere."""
        if self._drawn is None or self._drawn[0] != batch:
            self._drawn = batch, self.workload.train_batch(batch)
        whole = self._drawn[1]
        size = len(next(iter(whole.values()))) // self.microbatches
        return {key: value[number * size : (number + 1) * size] for key, value in whole.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: no activations, for the versions in flight are among the weights that it keeps."""
        oldest = self.in_flight[0].random if self.in_flight else rng_state(self.workload.device)
        return {"total": self.total, "rng": oldest, "delayed": [stage.state_dict() for stage in self.delayed]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint, and repeat the forward passes that were in flight.

        The live weights are those of the checkpoint already. Running statistics move, and have to be restored after it.

        Raises:
            LostStageError: a neighbour does not answer.
        """
        self.total, self.started = state["total"], state["total"] * self.microbatches
        for stage, saved in zip(self.delayed, state["delayed"], strict=True):
            stage.load_state_dict(saved)
        load_rng(state["rng"], self.workload.device)
        self._advance(self.started + self.delay)


def assembled(kind: type[S], workload: Workload, **more: Any) -> S:
    """A training step around the workload's model as it is now, with an optimizer of its own.

    Args:
        more: what this kind of step needs besides.
    """
    config, weights = workload.config, FlatWeights.of(workload.model)
    optimizer = build_optimizer(config.optimizer, weights.named_parameters())
    schedule = factor_at(config.schedule, config.train.steps)
    return kind(workload, workload.forward, weights.parameters, optimizer, schedule, **more)
