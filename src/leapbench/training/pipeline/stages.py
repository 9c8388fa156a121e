"""The parts that a network can be cut into, and their grouping into the stages of a pipeline."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leapbench.config.choices import Balance
from leapbench.config.errors import ConfigError
from leapbench.prediction.weights import Entry, FlatWeights, Layout

# Residual blocks; those of transformers' language models and vision transformers share a base class of this name.
BLOCKS = ("GradientCheckpointingLayer", "ResNetBasicLayer", "ResNetBottleNeckLayer")
REPEATS = 3  # measured forward passes, of which the fastest counts


@dataclass(frozen=True)
class Part:
    """What is never cut: a block, what comes before the first or after the last of them, or a single layer.

    Attributes:
        name: of the block or of the first module.
        is_block: whether it is a residual block, or a layer of a network without blocks.
        names: its parameters, by all names that they have.
        modules: those to be timed, by name.
    """

    name: str
    is_block: bool
    names: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Of a part: seconds of a forward pass, and the bytes that the pass takes from the part before."""

    forward_s: float
    input_bytes: int


@dataclass(frozen=True)
class Stage:
    """Neighbouring parts: one slice of the flat vector.

    Attributes:
        index: from 0 at the network's input.
        behind: S, the stages after it.
        parts: names.
        entries: of the flat vector's layout.
    """

    index: int
    behind: int
    parts: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def place(self) -> slice:
        """Where its weights lie in the flat vector."""
        return slice(self.entries[0].offset, self.entries[-1].offset + self.entries[-1].size)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.place.stop - self.place.start

    def parameters(self, weights: FlatWeights) -> list[nn.Parameter]:
        """Those of its entries."""
        by_name = dict(weights.named_parameters())
        return [by_name[entry.name] for entry in self.entries]


def groups_of(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """The optimizer's group of each parameter."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return [group_of[id(p)] for p in parameters]


def parts_of(model: nn.Module) -> tuple[Part, ...]:
    """The parts of `model` from input to output: its blocks and what stands before and after them, or its layers.

    A layer begins with every module that has a matrix or a kernel; norms belong to the layer before them. Parameters
    are taken in the order in which the model lists them, which has to be that of the forward pass.
    """
    blocks: list[str] = []
    for name, module in model.named_modules():
        is_block = any(kind.__name__ in BLOCKS for kind in type(module).__mro__)
        if is_block and not any(name.startswith(f"{block}.") for block in blocks):
            blocks.append(name)
    groups: dict[str, list[str]] = {}
    current = ""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        begins_layer = not blocks and parameter.ndim > 1 and owner != current
        if block is not None:
            current = block
        elif not current or begins_layer or current in blocks[-1:]:
            current = owner
        groups.setdefault(current, []).append(name)
    parts = []
    for name, names in groups.items():
        owners = dict.fromkeys(each.rpartition(".")[0] for each in names)
        outer = tuple(o for o in owners if not any(o != other and o.startswith(f"{other}.") for other in owners))
        parts.append(Part(name, name in blocks or not blocks, tuple(names), (name,) if name in blocks else outer))
    return tuple(parts)


def check_stages(model: nn.Module, stages: int, model_name: str) -> None:
    """Raise ConfigError if the model has fewer parts than there are stages."""
    parts = parts_of(model)
    if stages > len(parts):
        raise ConfigError(
            f"pipeline.stages={stages} is more than the {len(parts)} parts that model={model_name} can be cut into; "
            f"use {len(parts)} at most"
        )


def group(
    model: nn.Module, layout: Layout, stages: int, balance: Balance, costs: Callable[[], Sequence[float]]
) -> tuple[Stage, ...]:
    """The stages of a pipeline, from input to output.

    Args:
        layout: of the flat weights.
        balance: what the largest stage has as little of as possible; `blocks` spreads them evenly.
        costs: seconds per part, asked for with balance=time.

    Raises:
        ConfigError: fewer parts than stages, fewer blocks, or a tied tensor in two stages.
    """
    parts = parts_of(model)
    if balance == Balance.blocks:
        ends = _spread(parts, stages)
    else:
        sizes = {entry.name: entry.size for entry in layout}
        weights = [sum(sizes.get(name, 0) for name in part.names) for part in parts]
        ends = _balanced(list(costs()) if balance == Balance.time else weights, stages)
    return cut(model, layout, ends)


def cut(model: nn.Module, layout: Layout, ends: Sequence[int]) -> tuple[Stage, ...]:
    """The stages that end before the parts of these numbers, the last of which is the number of parts.

    Raises:
        ConfigError: a tied tensor in two stages.
    """
    parts = parts_of(model)
    entries = {entry.name: entry for entry in layout}
    stages = []
    for index, (start, end) in enumerate(itertools.pairwise((0, *ends))):
        own = [entries[name] for part in parts[start:end] for name in part.names if name in entries]
        stages.append(Stage(index, len(ends) - 1 - index, tuple(part.name for part in parts[start:end]), tuple(own)))
    stage_of = {name: number for number, (start, end) in enumerate(itertools.pairwise((0, *ends)))
                for part in parts[start:end] for name in part.names}  # fmt: skip
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_name.setdefault(id(parameter), name)
        if stage_of[name] != stage_of[first]:
            raise ConfigError(
                f"pipeline.stages={len(stages)} puts {first} into stage {stage_of[first]} and {name}, the same tied "
                f"tensor, into stage {stage_of[name]}; use ++model.config.tie_word_embeddings=false, or one stage"
            )
    covered = [entry for stage in stages for entry in stage.entries]
    assert covered == list(layout), "stages must cover every weight once, in order"
    return tuple(stages)


def ends_of(stages: Sequence[Stage]) -> list[int]:
    """What :func:`cut` makes these stages of."""
    return list(itertools.accumulate(len(stage.parts) for stage in stages))


def measured(model: nn.Module, forward: Callable[[], Any]) -> list[Cost]:
    """What each part costs in a forward pass without gradients, in evaluation mode.

    Args:
        forward: runs the model on a training batch.
    """
    parts = parts_of(model)
    modules = dict(model.named_modules())
    number_of = {modules[name]: number for number, part in enumerate(parts) for name in part.modules}
    device = next(model.parameters()).device
    seconds, best = [0.0] * len(parts), [float("inf")] * len(parts)
    taken: dict[int, int] = {}
    begun: dict[nn.Module, float] = {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def before(module: nn.Module, tensors: Sequence[Tensor]) -> None:
        taken.setdefault(number_of[module], sum(t.numel() * t.element_size() for t in tensors[:1]))
        begun[module] = now()

    def after(module: nn.Module, output: Any) -> None:
        seconds[number_of[module]] += now() - begun[module]

    with watched(model, number_of, before, after):
        for _ in range(REPEATS):
            seconds[:] = [0.0] * len(parts)
            forward()
            best = [min(pair) for pair in zip(best, seconds, strict=True)]
    return [Cost(best[number], taken.get(number, 0)) for number in range(len(parts))]


@contextlib.contextmanager
def watched(
    model: nn.Module,
    modules: Iterable[nn.Module],
    before: Callable[[nn.Module, Sequence[Tensor]], None],
    after: Callable[[nn.Module, Any], None],
) -> Iterator[None]:
    """Forward passes inside are without gradients and in evaluation mode, and these modules tell of their calls.

    Args:
        before: takes a module and the tensors that it is given; it works on the first of them.
        after: takes a module and its output.
    """
    handles = []
    for module in modules:
        handles.append(
            module.register_forward_pre_hook(
                lambda module, args, kwargs: before(module, tensors_in(args, kwargs)), with_kwargs=True
            )
        )
        handles.append(module.register_forward_hook(lambda module, args, output: after(module, output)))
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def tensors_in(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Those that a module is called with."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _spread(parts: Sequence[Part], stages: int) -> list[int]:
    """Ends of stages with equal numbers of blocks; what stands before or after the blocks goes with the nearest."""
    blocks = [number for number, part in enumerate(parts) if part.is_block]
    if stages > len(blocks):
        raise ConfigError(
            f"pipeline.stages={stages} is more than the {len(blocks)} blocks of the model; use {len(blocks)} at most, "
            "or pipeline.balance=parameters"
        )
    firsts = [blocks[len(blocks) * stage // stages] for stage in range(1, stages)]
    return [*firsts, len(parts)]


def _balanced(costs: Sequence[float], stages: int) -> list[int]:
    """Ends of stages whose largest sum of costs is as small as possible; the earliest cuts of equal ones.

    Dynamic programming over (number of stages, end of the last).
    """
    sums = [0.0, *itertools.accumulate(costs)]
    count = len(sums) - 1
    least = [[float("inf")] * (count + 1) for _ in range(stages + 1)]
    start_of = [[0] * (count + 1) for _ in range(stages + 1)]
    least[0][0] = 0.0
    for stage in range(1, stages + 1):
        for end in range(stage, count + 1):
            for start in range(stage - 1, end):
                value = max(least[stage - 1][start], sums[end] - sums[start])
                if value < least[stage][end]:
                    least[stage][end], start_of[stage][end] = value, start
    ends = [count]
    for stage in range(stages, 1, -1):
        ends.append(start_of[stage][ends[-1]])
    return ends[::-1]
