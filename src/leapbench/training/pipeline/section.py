"""The part of a network that one process of a pipeline holds, made from the whole network, whatever its architecture.

The network's own forward pass is kept. Modules that run before the stage are emptied and return zeros of their usual
shapes, which take no memory and no time; the first module of the stage is given what the stage before has sent; and
where the first module after it would begin, the pass ends with what that module was to be given. So one tensor goes
from stage to stage, and what else a stage uses (masks, rotations of positions) has to follow from the network's inputs.
Whether it does is seen at once: a stage is tried on what it was given in a pass through the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from leapbench.config.errors import ConfigError
from leapbench.training.pipeline.stages import Stage, parts_of, tensors_in, watched


@dataclass
class _Call:
    """Of a module in a forward pass: when it began and ended, how often, what it was given, and the shape it returned.

    Attributes:
        alone: whether it was given one tensor, on which all depends that it returns.
    """

    begin: int
    taken: Tensor | None
    alone: bool
    end: int = 0
    count: int = 1
    output: Any = None


class _ReachedError(Exception):
    """The stage has ended; `tensor` is what goes on to the next one."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


class Section:
    """Stage `index` of `stages` as a network of its own: `model` itself, which keeps the weights of this stage alone.

    Args:
        forward: runs the whole model on a microbatch, and returns its logits.

    Attributes:
        takes: shape, dtype and device of what it is given by the stage before, as a tensor without memory; None for
            the first.
        gives: the same for what it hands on; None for the last.

    Raises:
        ConfigError: the stage needs more than one tensor from the stages before it.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage], index: int, forward: Callable[[], Tensor]) -> None:
        calls, logits = _recorded(model, forward)
        begins = [_opening(model, stage, calls) for stage in stages]
        first = begins[index] if index > 0 else None
        after = begins[index + 1] if index + 1 < len(stages) else None
        given = calls[first].taken if first else None
        expected = calls[after].taken if after else logits
        assert expected is not None, "a stage begins with a module that is given a tensor"
        self.takes = _shape(given) if first else None
        self.gives = _shape(expected) if after else None
        self._received: Tensor | None = None
        if first is not None:
            first.register_forward_pre_hook(self._give, with_kwargs=True)
        _empty(model, calls, calls[first].begin if first else 0, calls[after].begin if after else float("inf"))
        left = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        same = left == [entry.name for entry in stages[index].entries]
        if same:
            with watched(model, (), lambda *_: None, lambda *_: None):
                same = torch.allclose(self(given, forward).float(), expected.float(), rtol=1e-3, atol=1e-5)
        if not same:
            raise ConfigError(
                f"stage {index} of pipeline.stages={len(stages)} cannot be a process, for it needs more from the "
                "stages before it than one tensor; use fewer stages, or train.py, which emulates them"
            )

    def __call__(self, received: Tensor | None, forward: Callable[[], Tensor]) -> Tensor:
        """What `forward`, which runs the model, returns; before the last stage, what this one hands on.

        Args:
            received: from the stage before; None for the first.
        """
        self._received = received
        try:
            return forward()
        except _ReachedError as end:
            return end.tensor
        finally:
            self._received = None

    def _give(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        replaced = tensors_in(args, kwargs)[0]

        def new(value: Any) -> Any:
            return self._received if value is replaced else value

        return tuple(map(new, args)), {key: new(value) for key, value in kwargs.items()}


def _recorded(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[dict[nn.Module, _Call], Tensor]:
    """The calls of all modules in one forward pass, and what it returns."""
    calls: dict[nn.Module, _Call] = {}
    clock = 0

    def before(module: nn.Module, tensors: Sequence[Tensor]) -> None:
        nonlocal clock
        clock += 1
        if module in calls:
            calls[module].count += 1
        else:
            calls[module] = _Call(clock, tensors[0] if tensors else None, len(tensors) == 1)

    def after(module: nn.Module, output: Any) -> None:
        nonlocal clock
        clock += 1
        calls[module].end = clock
        calls[module].output = tree_map(_shape, output)

    with watched(model, model.modules(), before, after):
        return calls, forward()


def _shape(value: Any) -> Any:
    """Zeros in place of a tensor, all of them one number in memory; anything else as it is."""
    return value.detach().new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value


def _opening(model: nn.Module, stage: Stage, calls: Mapping[nn.Module, _Call]) -> nn.Module:
    """The module with which a stage begins."""
    modules = dict(model.named_modules())
    names = [name for part in parts_of(model) if part.name in stage.parts for name in part.modules]
    return min((modules[name] for name in names if modules[name] in calls), key=lambda module: calls[module].begin)


def _empty(module: nn.Module, calls: Mapping[nn.Module, _Call], start: int, stop: float) -> None:
    """Take out of `module` what runs before `start`, and what begins at `stop` or later.

    What has no weights and works on more than one tensor stays: rotations by position, for instance.
    """
    for child in module.children():
        call = calls.get(child)
        if call is None or call.count > 1 or (call.end > start and call.begin < stop):
            _empty(child, calls, start, stop)
        elif call.begin >= stop:
            _hollow(child, _end)
        elif call.alone or any(True for _ in child.parameters()):
            _hollow(child, lambda *args, output=call.output, **kwargs: output)


def _end(*args: Any, **kwargs: Any) -> Any:
    raise _ReachedError(tensors_in(args, kwargs)[0])


def _hollow(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let `module` do this instead, without its weights; their dtype and device can still be asked for."""
    for inner in module.modules():
        for kept in (inner._parameters, inner._buffers):
            for name in [name for name, tensor in kept.items() if tensor is not None]:
                tensor = kept.pop(name)
                assert tensor is not None
                setattr(inner, name, tensor.detach().new_empty(0))
    module.__dict__["forward"] = forward
