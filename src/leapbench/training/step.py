"""The training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leapbench.config.build import build, target_of
from leapbench.config.errors import ConfigError
from leapbench.config.groups import OptimizerConfig, WrapperConfig
from leapbench.config.schema import RunConfig
from leapbench.prediction.candidate import Forward
from leapbench.prediction.weights import FlatWeights
from leapbench.prediction.wrapper import Wrapper
from leapbench.training.workload import Workload


def build_optimizer(config: OptimizerConfig, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, every group's learning rate at schedule factor 1 in `initial_lr`.

    Args:
        parameters: (name, parameter) pairs.

    Raises:
        ConfigError: it refuses its settings.
    """
    optimizer = build(config.settings, f"optimizer={config.name}", parameters, lr=config.lr)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def build_wrapper(config: WrapperConfig, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> Wrapper:
    """The wrapper that the configuration names, around `optimizer`.

    Raises:
        ConfigError: it refuses its settings.
    """
    wrapper = build(config.settings, f"wrapper={config.name}", optimizer, weights)
    if not isinstance(wrapper, Wrapper):
        raise ConfigError(f"wrapper={config.name}: {type(wrapper).__name__} is no leapbench.optimizers.wrapper.Wrapper")
    return wrapper


Record = Callable[[str, dict[str, Any]], None]


@dataclass(eq=False)
class TrainingStep:
    """Batch, gradient, clipping, update: what is done once per step, wherever weights are trained.

    A step of another kind overrides `gradient` and `update`.

    Args:
        workload: batches, loss and the largest gradient norm.
        forward: the model whose `parameters` are trained, or something callable like it.
        factor_at: position -> what every group's `initial_lr` is multiplied by.
        wrapper: what goes around the optimizer; None = nothing.
        record: takes a stream of the run and a row, where the step has anything to tell; None = it is lost.
    """

    workload: Workload
    forward: Forward
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    factor_at: Callable[[int], float]
    wrapper: Wrapper | None = None
    record: Record | None = None

    def __post_init__(self) -> None:
        self.grad_clip = self.workload.config.train.grad_clip

    def __call__(self, index: int, position: int) -> Tensor:
        """Make the update `index` (0-based, which decides the batch) at `position`; its loss, a scalar in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor_at(position)
        if self.wrapper is not None:
            self.wrapper.before_step()
        loss = self.gradient(index)
        self.update(position)
        if self.wrapper is not None:
            self.wrapper.after_step()
        return loss

    def gradient(self, index: int) -> Tensor:
        """Leave the clipped gradient of batch `index` in the parameters; the loss, a scalar in nats."""
        loss = self.workload.loss(self.forward, self.workload.train_batch(index))
        loss.backward()
        self.clip(self.parameters)
        return loss.detach()

    def clip(self, parameters: list[nn.Parameter]) -> None:
        """Shorten the gradient of these parameters to the largest norm, if there is one."""
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.grad_clip)

    def update(self, position: int) -> None:
        """Change the weights by the gradient at `position`, and drop it."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @classmethod
    def check(cls, workload: Workload) -> None:
        """Raise ConfigError if steps of this kind cannot train this workload; nothing has been written yet."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, besides the optimizer's state and the live weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""


def step_class(config: RunConfig) -> type[TrainingStep]:
    """The kind of training step that the configuration names.

    Raises:
        ConfigError: it names none.
    """
    key = f"pipeline={config.pipeline.name}"
    kind = target_of(asdict(config.pipeline), key)
    if not (isinstance(kind, type) and issubclass(kind, TrainingStep)):
        raise ConfigError(f"{key}: {config.pipeline._target_} is no leapbench.training.step.TrainingStep")
    return kind
