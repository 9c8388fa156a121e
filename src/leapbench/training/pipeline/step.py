"""The training step of a pipeline with delayed gradients, emulated in one process with the versions of a real one.

The timing is that of LayerPipe2 (arXiv:2512.08160). Stage s of n has S = n - 1 - s stages behind it. Microbatch i is in
its forward pass there at clock i + s and in its backward pass at clock i + 2(n-1) - s; a stage updates at the end of
the clock in which the last microbatch of a batch has come back. So the forward pass of a batch's first microbatch runs
2 S microbatches before its update (S with one execution unit per stage, 1F1B): the gradient is that of older weights.

What each pass sees, for batch t at a stage with a delay of d updates:

- forward: the weights of version t - d, or weights predicted for version t;
- gradient of its input: the weights that `pipeline.versions` names, in place of those of the forward pass;
- gradient of its weights: the activations that the forward pass has stored, in every arm;
- update: on the newest weights. Clipping is by the norm of the stage's own gradient, the only one that a stage knows.

Batch norm's running statistics are those of the forward passes in order, dropout draws as in a sequential run. After a
leap the pipeline is empty: to know the loss of a candidate all stages need the same weights, so what was in flight is
dropped, and the delay grows from zero again.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from leapbench.config.arms import arm_of, delay_of, gap
from leapbench.config.choices import Balance, Precision
from leapbench.config.schema import plain
from leapbench.names import PIPELINE
from leapbench.prediction.candidate import Forward
from leapbench.prediction.weights import FlatWeights
from leapbench.training.pipeline.backward import through
from leapbench.training.pipeline.delayed import DelayedStage, around_update
from leapbench.training.pipeline.lookahead import check_optimizer
from leapbench.training.pipeline.stages import Cost, Stage, check_stages, cut, ends_of, group, measured, parts_of
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.workload import Workload


class PipelinedStep(TrainingStep):
    """One update of a pipeline of `pipeline.stages` stages; with one stage, the plain step bit for bit.

    Args:
        workload: its model is what is cut into stages.

    Attributes:
        stages: from input to output.
        delayed: those whose gradients come late: all but the last, unless a batch has so many microbatches that only
            the first of them do.

    Raises:
        ConfigError: the model cannot be cut so.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model, self.weights = self.workload.model, FlatWeights.of(self.workload.model)
        self.pipeline = self.workload.config.pipeline
        self.total, self.form = 0, arm_of(plain(self.pipeline))
        self._costs: list[Cost] | None = None
        pipeline = self.pipeline
        self.arrange(
            group(self.model, self.weights.layout, pipeline.stages, pipeline.balance,
                  lambda: [cost.forward_s for cost in self.costs])
        )  # fmt: skip

    @classmethod
    def check(cls, workload: Workload) -> None:
        """Raise ConfigError if the model has fewer parts than stages, a tied tensor would be in two stages, or the
        optimizer does not keep what a prediction reads."""
        pipeline, model, weights = workload.config.pipeline, workload.model, FlatWeights.of(workload.model)
        check_stages(model, pipeline.stages, workload.config.model.name)
        optimizer = build_optimizer(workload.config.optimizer, weights.named_parameters())
        check_optimizer(pipeline.forward, optimizer, weights)
        if pipeline.balance != Balance.time:
            group(model, weights.layout, pipeline.stages, pipeline.balance, lambda: [])

    @property
    def costs(self) -> list[Cost]:
        """Of every part of the model, measured at first use on the first training batch."""
        if self._costs is None:
            inputs = self.workload.task.inputs(self.workload.train_batch(0))
            with self.workload.autocast():
                self._costs = measured(self.model, lambda: self.model(**inputs))
        return self._costs

    def arrange(self, stages: tuple[Stage, ...]) -> None:
        """Cut the network into these stages; the pipeline is empty then."""
        self.stages = stages
        self.parameters_of = [stage.parameters(self.weights) for stage in stages]
        self.delayed = [
            DelayedStage(self.pipeline, stage, delay, self.weights, self.optimizer, self.factor_at)
            for stage in stages
            if gap(delay := delay_of(stage.behind, self.pipeline.delay_model), 0, self.pipeline.microbatches)
        ]
        # The optimizer changes the parameters, which the vector does not count; a leap writes the vector itself.
        self.writes = self.weights.vector._version

    def gradient(self, index: int) -> Tensor:
        """Leave the clipped gradient of batch `index`, of the versions in flight, in the parameters; the loss, nats."""
        if self.weights.vector._version != self.writes:
            self.drain()
        batch, parts = self.workload.train_batch(index), self.pipeline.microbatches
        total = None
        for number in range(parts):
            size = len(next(iter(batch.values()))) // parts
            part = {key: value[number * size : (number + 1) * size] for key, value in batch.items()}
            loss = self._backward(part if parts > 1 else batch, number)
            total = loss if total is None else total + loss
        for parameters in self.parameters_of:
            self.clip(parameters)
        if self.record is not None and (index + 1) % self.workload.config.train.interval == 0:
            self._record(index + 1)
        assert total is not None
        return total

    def _backward(self, part: dict[str, Tensor], number: int) -> Tensor:
        """Add the gradient of one microbatch; its share of the loss."""
        leaves: dict[str, Tensor] = {}
        exchanged: dict[int, tuple[Tensor, Tensor]] = {}
        for stage in self.delayed:
            leaves |= stage.forward_leaves(number)
            if (pair := stage.backward_weights(number)) is not None:
                exchanged[pair[0].untyped_storage().data_ptr()] = pair
        cast = self.workload.config.train.precision != Precision.float32
        with through(exchanged, cast) if exchanged else contextlib.nullcontext():
            loss = self.workload.loss(self._with(leaves) if leaves else self.forward, part)
        loss = loss / self.pipeline.microbatches if self.pipeline.microbatches > 1 else loss
        loss.backward()
        for name, parameter in self.weights.named_parameters() if leaves else ():
            gradient = leaves[name].grad if name in leaves else None
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
                leaves[name].grad = None
        return loss.detach()

    def _with(self, leaves: dict[str, Tensor]) -> Forward:
        """Something callable like the model, with some of its parameters replaced."""
        return lambda *args, **kwargs: functional_call(self.model, leaves, args, kwargs)

    def update(self, position: int) -> None:
        """Apply the gradient to the newest weights, and keep what later batches need of the old ones."""
        with around_update(self.delayed, position, self.total):
            super().update(position)
        self.total += 1
        self.writes = self.weights.vector._version

    def drain(self) -> None:
        """Empty the pipeline: the weights were replaced, and what is in flight is dropped."""
        for stage in self.delayed:
            stage.drain()
        self.writes = self.weights.vector._version

    @torch.no_grad()
    def _record(self, step: int) -> None:
        """One row per stage, and per form whose error is measured."""
        assert self.record is not None
        delayed = {stage.stage.index: stage for stage in self.delayed}
        costs = {part.name: cost for part, cost in zip(parts_of(self.model), self.costs, strict=True)}
        for stage in self.stages:
            late = delayed.get(stage.index)
            errors = late.errors() if late else {self.form: (None, None)}
            for form, (ratio, drift) in errors.items():
                self.record(PIPELINE, {
                    "step": step, "stage": stage.index, "form": form, "delay": late.longest if late else 0,
                    "parameters": stage.size, "error_ratio": ratio, "drift_l2": drift,
                    "extra_bytes": late.bytes_of_arm() if late else 0,
                    "emulator_bytes": late.bytes_here() if late else 0,
                    "boundary_bytes": costs[stage.parts[0]].input_bytes,
                    "forward_s": sum(costs[name].forward_s for name in stage.parts),
                })  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "ends": ends_of(self.stages), "total": self.total,
            "costs": [[cost.forward_s, cost.input_bytes] for cost in self.costs],
            "stages": [stage.state_dict() for stage in self.delayed],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint, with its cuts."""
        self._costs = [Cost(*cost) for cost in state["costs"]]
        self.arrange(cut(self.model, self.weights.layout, state["ends"]))
        self.total = state["total"]
        for stage, saved in zip(self.delayed, state["stages"], strict=True):
            stage.load_state_dict(saved)
