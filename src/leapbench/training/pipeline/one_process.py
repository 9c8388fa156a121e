"""The same training in one process: what a pipeline of processes has to equal, and what its speed is measured by."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.config.schema import RunConfig
from leapbench.records.folder import finite
from leapbench.training.loop import set_rng
from leapbench.training.pipeline.stages import cut
from leapbench.training.pipeline.step import PipelinedStep
from leapbench.training.pipeline.throughput import modelled
from leapbench.training.pipeline.worker import assembled
from leapbench.training.step import TrainingStep
from leapbench.training.workload import Workload, seed_of


def compared(
    config: RunConfig, device: torch.device, ends: Sequence[int], weights: Mapping[str, Tensor], samples_per_s: float
) -> dict[str, Any]:
    """Train the same steps in one process, plainly and as an emulated pipeline, and compare.

    Args:
        ends: where the stages of the pipeline end, in parts.
        weights: of the pipeline, and its buffers, by name.
        samples_per_s: of the pipeline.

    Returns:
        plain, emulated: losses of all steps and samples_per_s of each; largest_relative_difference of the pipeline's
        weights from the emulated ones; model: the pipeline's speed by the model; speedup: over plain training.
    """
    emulated = assembled(PipelinedStep, Workload(config, device))
    emulated.arrange(cut(emulated.model, emulated.weights.layout, ends))
    costs = emulated.costs
    ways: dict[str, dict[str, Any]] = {}
    for name, step in (("emulated", emulated), ("plain", assembled(TrainingStep, Workload(config, device)))):
        set_rng(seed_of(config, "training"))
        begun = time.perf_counter()
        losses = [step(index, index) for index in range(config.train.steps)]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
        ways[name] = {
            "samples_per_s": config.train.steps * config.train.batch_size / seconds,
            "losses": [finite(float(loss)) for loss in losses],
        }
    numbers = [slice(end - len(stage.parts), end) for end, stage in zip(ends, emulated.stages, strict=True)]
    model = modelled(
        [sum(cost.forward_s for cost in costs[part]) for part in numbers],
        [costs[part][0].input_bytes for part in numbers],
        config.train.steps * config.pipeline.microbatches,
    )
    return {
        **ways, "largest_relative_difference": difference(weights, state_of(emulated.model)), "model": model,
        "speedup": samples_per_s / ways["plain"]["samples_per_s"],
    }  # fmt: skip


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies in main memory of the trainable weights and the buffers, by name."""
    tensors = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    return {name: tensor.detach().cpu().clone() for name, tensor in (*tensors, *model.named_buffers())}


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float | None:
    """The largest difference of an element, as a share of the largest element of its tensor; None if not finite.

    Tensors of whole numbers, which count, must be equal.
    """
    assert found.keys() == expected.keys()
    largest = 0.0
    for name, tensor in expected.items():
        apart = float((found[name].double() - tensor.double()).abs().max())
        if not tensor.is_floating_point():
            assert apart == 0, f"{name} differs"
        if not math.isfinite(apart):
            return None
        largest = max(largest, apart / (float(tensor.abs().max()) or 1.0))
    return largest
