"""What goes around a base optimizer, and the weights that a training would hand over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leapbench.names import NONE
from leapbench.prediction.candidate import Forward, LossFn, candidate_loss, replaced
from leapbench.prediction.clock import Clock
from leapbench.prediction.predictor import check_known, class_of, modules_of, name_of
from leapbench.prediction.weights import FlatWeights

# Imported by name, because its modules import this one.
PACKAGE = "leapbench.optimizers"


class Wrapper:
    """Decides where the gradient is taken, and which weights are handed over. This one, `wrapper=none`, does nothing.

    A training step is: `before_step`, gradient, clipping, `optimizer.step`, `after_step`. What is evaluated, observed
    and handed over at the end is `scored`. Where that has to be decided by a loss, `choose` is called right before it
    is handed over: at the end of a run, and whenever a :class:`leapbench.Leap` is asked for its weights.

    Args:
        optimizer: what is wrapped; its parameters are views of `weights`.
        weights: the live ones.

    Attributes:
        scores_live: whether `scored` is None after every `after_step`, so that the optimizer's moments belong to what
            is observed.
        chooses: whether `choose` asks for losses.
        period: steps after which its work repeats; it is timed in whole periods.
    """

    scores_live: bool = True
    chooses: bool = False
    period: int = 1

    def __init__(self, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> None:
        self.optimizer, self.weights = optimizer, weights

    def before_step(self) -> None:
        """Move the live weights to the point where the gradient is taken."""

    def after_step(self) -> None:
        """Record what the optimizer has done to the live weights, or change it."""

    def scored(self) -> Tensor | None:
        """The weights that would be handed over, (N,), not to be changed; None: the live ones.

        Also between `before_step` and the gradient, where the live weights may have moved away from them.
        """
        return None

    def choose(self, loss_of: Callable[[Tensor], float]) -> None:
        """Decide what `scored` gives until the next choice.

        Args:
            loss_of: weights (N,) -> their loss on verification data in nats, which may be nan; costs a pass over them.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, besides the optimizer's state and the live weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""


class Scored:
    """The weights that a training would hand over: what is evaluated and observed.

    Attributes:
        lent: whether the model has them in place of its live weights at the moment.
    """

    def __init__(self, model: nn.Module, weights: FlatWeights, wrapper: Wrapper) -> None:
        self.model, self.weights, self.wrapper, self.lent = model, weights, wrapper, False

    @property
    def vector(self) -> Tensor:
        """(N,), not to be changed."""
        scored = self.wrapper.scored()
        return self.weights.vector if scored is None else scored

    @property
    def forward(self) -> Forward:
        """The model, or something callable like it, with these weights; buffers are the live model's."""
        scored = self.wrapper.scored()
        return self.model if scored is None else replaced(self.model, self.weights.layout, scored)

    def choose(self, loss_fn: LossFn, clock: Clock) -> None:
        """Let the wrapper decide which weights these are.

        Args:
            loss_fn: takes something callable like the model, returns its loss on verification data in nats.
            clock: gets the lap `verify`.
        """
        if self.wrapper.chooses:
            with clock.lap("verify"):
                self.wrapper.choose(lambda vector: candidate_loss(self.model, self.weights.layout, vector, loss_fn))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has these weights within the block, and its live ones again after it; one vector more meanwhile."""
        scored = self.wrapper.scored()
        if scored is None:
            yield
            return
        live, lent = self.weights.vector.clone(), self.lent
        try:
            self.weights.vector.copy_(scored)
            self.lent = True
            yield
        finally:
            self.weights.vector.copy_(live)
            self.lent = lent
            # A graph from within, whose backward pass would mix both weights, is refused by torch.
            torch.autograd.graph.increment_version(self.weights.parameters)


def names() -> list[str]:
    """Every wrapper that has a file of its own."""
    return [name for name in modules_of(PACKAGE) if _kind(name) not in (None, Wrapper)]


def wrapper_of(given: Any, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> Wrapper:
    """The wrapper that `given` stands for: a name, an object, or None for nothing around the optimizer.

    Raises:
        TypeError: it is something else.
        ValueError: an unknown name, or an object around another optimizer or other weights.
    """
    if given is None:
        return Wrapper(optimizer, weights)
    if isinstance(given, str):
        check_known("wrapper", given, names())
        kind = _kind(given)
        assert kind is not None
        return kind(optimizer, weights)
    if not isinstance(given, Wrapper):
        raise TypeError(
            f"wrapper={given!r} must be a name, such as 'ema', or an object of a class derived from "
            "leapbench.prediction.wrapper.Wrapper"
        )
    if given.optimizer is not optimizer or given.weights is not weights:
        raise ValueError(
            f"wrapper={type(given).__name__} is around another optimizer or model: make it by "
            f"{type(given).__name__}(optimizer, FlatWeights.of(model), ...) with those that Leap is given"
        )
    return given


def wrapper_name(wrapper: Wrapper) -> str:
    """`ema_nesterov` for an EmaNesterov, `none` for what does nothing."""
    return NONE if type(wrapper) is Wrapper else name_of(wrapper)


def _kind(name: str) -> type[Wrapper] | None:
    """The class of a wrapper's file, None for a file of something else."""
    kind = class_of(f"{PACKAGE}.{name}")
    return kind if isinstance(kind, type) and issubclass(kind, Wrapper) else None
