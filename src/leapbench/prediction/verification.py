"""A loss function at work on live weights and on candidates, so that nothing but its number gets out."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leapbench.prediction.candidate import Replaced

# (name, tensor, its version, its gradient, the gradient's version) of what a loss function must leave alone.
Mark = tuple[str, Tensor, int, Tensor | None, int]


class Verification:
    """Calls `loss_fn(forward)` without gradients, in evaluation mode, with random numbers of its own.

    Afterwards every module is in the mode in which it was, and so are torch's, numpy's and Python's generators: a loss
    function that draws numbers sees the same ones for the live weights and for a candidate, others at the next `draw`,
    and training draws as if it had not been called.

    Args:
        model: what `forward` stands for.
        loss_fn: takes something callable like the model, returns the loss in nats.

    Attributes:
        draw: the seed of the numbers that `loss_fn` draws.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[[Replaced], Any], device: torch.device) -> None:
        self.model, self.loss_fn, self.device, self.draw = model, loss_fn, device, 0

    def of_live(self) -> float:
        """Loss of the live weights, nats.

        Raises:
            FloatingPointError: it is not a number.
        """
        loss = self(Replaced(self.model, None))
        if loss != loss:
            raise FloatingPointError(
                f"verify gives nan for the live weights at step {self.draw}: training has diverged (lower its learning "
                "rate), or the held-out data are empty"
            )
        return loss

    def __call__(self, forward: Replaced) -> float:
        """Loss of the weights behind `forward`, nats; may be nan or inf.

        Raises:
            RuntimeError: the loss function did not call `forward`, or changed the model or was about to.
            TypeError: it returned anything but one number.
        """
        modules = list(self.model.named_modules())
        forward.still = [module for _, module in modules if module._buffers.keys() - module._non_persistent_buffers_set]
        with self._own_modes([module for _, module in modules]), _own_numbers(self.device, self.draw), torch.no_grad():
            before = _marks(modules)
            value = self.loss_fn(forward)
            after = _marks(modules)
        if not forward.calls:
            raise RuntimeError(
                "verify never called the function it was given, so that every candidate would get the loss of the live "
                "weights: write loss_fn(forward) with forward(x) in place of model(x)"
            )
        if len(before) != len(after) or any(map(_differ, before, after)):
            name = next((a[0] for a, b in zip(before, after, strict=False) if _differ(a, b)), "the list of parameters")
            raise RuntimeError(
                f"verify changed {name} or its gradient: a loss function must only read the model, without backward() "
                "and optimizer.step()"
            )
        return _number(value)

    @contextlib.contextmanager
    def _own_modes(self, modules: list[nn.Module]) -> Iterator[None]:
        """Evaluation mode. Set by the flags, both ways: `train` and `eval` of some modules do more than that."""
        modes = [module.training for module in modules]
        # A recurrent module holds the list of its weights. Left with a candidate's, it would make a new one at its next
        # call, for which cuDNN moves the live weights to other memory.
        lists = [_weight_list(module) for module in modules if isinstance(module, nn.RNNBase)]
        for module in modules:
            _set_mode(module, False)
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                _set_mode(module, mode)
            for attributes, kept in lists:
                attributes.update(kept)


def _set_mode(module: nn.Module, training: bool) -> None:
    """`module.training = training` in a tenth of the time: a flag need not be looked for among the parameters."""
    object.__setattr__(module, "training", training)


def _weight_list(module: nn.RNNBase) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recurrent module's attributes, and those among them that depend on where its weights lie."""
    keys = ("_flat_weights", "_flat_weight_refs")
    return vars(module), {key: vars(module)[key] for key in keys if key in vars(module)}


@contextlib.contextmanager
def _own_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generators of torch (CPU and `device`), numpy and Python; afterwards they are where they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    for generator in generators:
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _marks(modules: list[tuple[str, nn.Module]]) -> list[Mark]:
    """Of all parameters and of the buffers that a state_dict has: what changes when they are changed in place.

    Versions are counted on the host. Other buffers are caches, which may change at any call.
    """
    marks: list[Mark] = []
    for prefix, module in modules:
        kept = [item for item in module._buffers.items() if item[0] not in module._non_persistent_buffers_set]
        for name, tensor in (*module._parameters.items(), *kept):
            if tensor is not None:
                marks.append(
                    (f"{prefix}.{name}".lstrip("."), tensor, _version(tensor), tensor.grad, _version(tensor.grad))
                )
    return marks


def _version(tensor: Tensor | None) -> int:
    """torch's counter of changes in place; an inference tensor has none."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _differ(a: Mark, b: Mark) -> bool:
    return a[1] is not b[1] or a[2] != b[2] or a[3] is not b[3] or a[4] != b[4]


def _number(value: Any) -> float:
    """The loss as a float; a tensor or an array of one element is one.

    Raises:
        TypeError: it is not one number.
    """
    if isinstance(value, Tensor | np.ndarray):
        count = value.numel() if isinstance(value, Tensor) else value.size
        if count != 1:
            raise TypeError(
                f"verify gave {count} numbers, shape {tuple(value.shape)}; it must return one, the mean loss in nats"
            )
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = "return is missing" if value is None else "return float(loss)"
        raise TypeError(f"verify gave {value!r:.60}; it must return one number, the loss in nats: {hint}")
    return float(value)
