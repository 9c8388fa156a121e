"""A run of a pipeline of processes: each trains its stage, and the first gathers the weights and says what came out."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leapbench.config.arms import delay_of
from leapbench.config.choices import ForwardWeights, Stale
from leapbench.config.errors import BusyError, ConfigError
from leapbench.config.schema import RunConfig, digest
from leapbench.names import CHECKPOINT, LOCK, NONE, SUMMARY, Status
from leapbench.prediction.weights import FlatWeights
from leapbench.records import checkpoint
from leapbench.records.files import write_json
from leapbench.records.folder import finite
from leapbench.records.lock import HeldError, Lock
from leapbench.records.sources import TARGET, code_of
from leapbench.training.earlier import Contents
from leapbench.training.loop import set_rng
from leapbench.training.pipeline.links import Inbox, Links, Meter, Outbox
from leapbench.training.pipeline.one_process import compared, state_of
from leapbench.training.pipeline.processes import Connection, Processes
from leapbench.training.pipeline.section import Section
from leapbench.training.pipeline.stages import Stage, cut, ends_of, group, measured
from leapbench.training.pipeline.step import PipelinedStep
from leapbench.training.pipeline.throughput import folder_beside, summary_of
from leapbench.training.pipeline.worker import StageStep, assembled
from leapbench.training.prepare import keep_memory, use_threads
from leapbench.training.workload import Workload, seed_of

WEIGHTS, STAGES = "weights.pt", "stages"


@dataclass(frozen=True)
class Report:
    """What a process tells the first one at the end.

    Attributes:
        facts: of its stage, as the summary has them.
        losses: of all steps, nats; those of the last stage count.
        first: steps that earlier starts have done.
        seconds: that the others took.
        tensors: weights and buffers, by name.
    """

    facts: dict[str, Any]
    losses: list[float]
    first: int
    seconds: float
    tensors: dict[str, Tensor]


def run_stage(config: RunConfig, processes: Processes, measure: bool = False) -> Path:
    """Train the stage of this process to the end, or from the last checkpoint of all processes to the end.

    Args:
        measure: whether the first process trains the same steps alone afterwards, for comparison.

    Returns:
        The folder with weights.pt and summary.json, which the first process has written.

    Raises:
        ConfigError: the user's mistake.
        BusyError: other processes run this pipeline.
        LostStageError: a neighbour does not answer.
    """
    _check(config, processes.size)
    folder = folder_beside(config.folder.parent) / config.run_id
    device = processes.device(config.device)
    use_threads(config.threads, device)
    keep_memory(device)
    code = digest(code_of({**config.science(), "step": {TARGET: f"{__name__}.run_stage"}}))
    if (ended := summary_of(folder)) is not None:
        if measure and not ended["one_process"]:
            raise ConfigError(f"{folder} has ended without --measure; delete it to run and measure it")
        if ended["made_by"] != {"code": code, "dataset_sha256": Contents().sha256(config.dataset)}:
            _refuse(config, folder, folder)
        return folder
    workload = Workload(config, device)
    PipelinedStep.check(workload)
    made_by = {"code": code, "dataset_sha256": workload.sha256}
    with _locked(folder) if processes.rank == 0 else contextlib.nullcontext():
        with processes.connected(device) as connection:
            states = Checkpoints(folder, config, processes.rank, made_by)
            ends, report = _train(config, workload, connection, states)
            reports = connection.at_first(report)
        if processes.rank == 0:
            _write(folder, config, device, ends, reports, made_by, measure)
            shutil.rmtree(folder / STAGES, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other pipeline works in `folder`.

    Raises:
        BusyError: one does.
    """
    lock = Lock(folder / LOCK)
    try:
        lock.acquire()
    except HeldError as error:
        raise BusyError(f"pipeline {folder.name} is already run by process {error.owner.get('pid')}") from None
    try:
        yield
    finally:
        lock.release()


def _refuse(config: RunConfig, what: Path, folder: Path) -> None:
    """Raise ConfigError for what other code or other data have made, unless stale=accept."""
    if config.stale == Stale.error:
        raise ConfigError(
            f"{what} was made by other code or with other data; delete {folder} to start over, or take it as it is "
            "with stale=accept"
        )


def _check(config: RunConfig, processes: int) -> None:
    pipeline = config.pipeline
    if pipeline.name == NONE:
        raise ConfigError("pipeline=none has no stages; use pipeline=layerpipe2, or an experiment that has it")
    if processes != pipeline.stages:
        raise ConfigError(
            f"pipeline.stages={pipeline.stages} needs as many processes, and torchrun has started {processes}; use "
            f"--nproc-per-node={pipeline.stages}"
        )
    if config.predictors:
        raise ConfigError(f"predictor={'+'.join(config.predictors)} is for train.py; use predictor=none")
    if pipeline.forward != ForwardWeights.delayed:
        raise ConfigError(
            f"pipeline.forward={pipeline.forward} is emulated only, by train.py; use pipeline.forward=delayed"
        )


class Checkpoints:
    """What one process keeps of its stage, in a folder for each step; the newest that all processes have counts.

    Args:
        made_by: hashes of the code and the data.
    """

    def __init__(self, folder: Path, config: RunConfig, rank: int, made_by: dict[str, str]) -> None:
        self.folder, self.config, self.made_by = folder / STAGES / str(rank), config, made_by

    def steps(self) -> set[int]:
        """After which steps there is one."""
        return {int(path.parents[1].name) for path in self.folder.glob(f"*/{CHECKPOINT}")}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep one more."""
        path = self.folder / str(step)
        path.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, self.config.run_id, {"made_by": self.made_by, **state})

    def drop(self, but: int) -> None:
        """Keep that of step `but` alone."""
        for step in self.steps() - {but}:
            shutil.rmtree(self.folder / str(step))

    def load(self, step: int, device: torch.device) -> dict[str, Any]:
        """What was kept at a step.

        Raises:
            ConfigError: it is damaged, another run's, or made by other code or with other data, and stale=error.
        """
        state = checkpoint.load(self.folder / str(step), self.config.run_id, device)
        assert state is not None
        if state["made_by"] != self.made_by:
            _refuse(self.config, self.folder / str(step), self.folder.parents[1])
        return state


def _train(
    config: RunConfig, workload: Workload, connection: Connection, checkpoints: Checkpoints
) -> tuple[list[int], Report]:
    """Where the stages end, and what this one tells."""
    device, steps, rank = workload.device, config.train.steps, connection.rank
    common = set.intersection(*connection.from_all(checkpoints.steps()))
    state = checkpoints.load(max(common), device) if common else None
    first = state["step"] if state else 0
    stages = _cut(config, workload, connection, state["ends"] if state else None)
    ends, meter = ends_of(stages), Meter(device)
    section = Section(workload.model, stages, rank, lambda: _whole(workload))
    weights = FlatWeights.of(workload.model)
    links, outboxes = _linked(connection, section, (steps - first) * config.pipeline.microbatches, meter)
    own = replace(stages[rank], entries=tuple(weights.layout))
    step = assembled(StageStep, workload, section=section, stage=own, links=links)
    losses: list[Any] = []
    set_rng(seed_of(config, "training") + rank)  # the stages' dropout is independent
    if state:
        weights.vector.copy_(state["weights"])
        step.optimizer.load_state_dict(state["optimizer"])
        step.load_state_dict(state["training_step"])
        workload.load_buffers(state["buffers"])
        losses += state["losses"]
    connection.barrier()
    meter.waited_s, begun = 0.0, time.perf_counter()
    for index in range(first, steps):
        losses.append(step(index, index))
        every = config.checkpoint.every_steps
        if every and (index + 1) % every == 0 and index + 1 < steps:
            checkpoints.save(index + 1, {
                "step": index + 1, "ends": ends, "weights": weights.vector, "buffers": workload.buffers(),
                "optimizer": step.optimizer.state_dict(), "training_step": step.state_dict(),
                "losses": [float(loss) for loss in losses],
            })  # fmt: skip
            connection.barrier()  # before it nobody drops what another might still need
            checkpoints.drop(index + 1)
    for outbox in outboxes:
        outbox.empty()
    seconds = time.perf_counter() - begun
    facts = {
        "stage": rank, "parts": list(own.parts), "parameters": own.size,
        "delay": delay_of(own.behind, config.pipeline.delay_model), "sent_bytes": meter.sent_bytes,
        "sent_bytes_per_step": meter.sent_bytes / (steps - first), "waiting_pct": 100 * meter.waited_s / seconds,
    }  # fmt: skip
    return ends, Report(facts, [float(loss) for loss in losses], first, seconds, state_of(workload.model))


def _cut(config: RunConfig, workload: Workload, connection: Connection, ends: list[int] | None) -> tuple[Stage, ...]:
    """The stages, as the emulation cuts them; seconds, where they decide, are those of the first process."""
    model, layout, pipeline = workload.model, FlatWeights.of(workload.model).layout, config.pipeline
    if ends is not None:
        return cut(model, layout, ends)

    def costs() -> list[float]:
        return [cost.forward_s for cost in measured(model, lambda: _whole(workload))]

    return group(model, layout, pipeline.stages, pipeline.balance, lambda: connection.from_first(costs))


def _whole(workload: Workload) -> Tensor:
    """The logits of a forward pass through all of the network that is there, on a microbatch."""
    config = workload.config
    size = config.train.batch_size // config.pipeline.microbatches
    batch = {key: value[:size] for key, value in workload.train_batch(0).items()}
    with workload.autocast():
        return workload.model(**workload.task.inputs(batch)).logits


def _linked(connection: Connection, section: Section, count: int, meter: Meter) -> tuple[Links, list[Outbox]]:
    """The links of a stage, for `count` microbatches, and those of them that send."""
    rank, forward, backward = connection.rank, connection.forward, connection.backward
    takes, gives = section.takes, section.gives
    onward = Outbox(rank + 1, forward, meter) if gives is not None else None
    back = Outbox(rank - 1, backward, meter) if takes is not None else None
    links = Links(
        activations_in=Inbox(rank - 1, forward, takes, count, meter) if takes is not None else None,
        activations_out=onward,
        gradients_in=Inbox(rank + 1, backward, gives, count, meter) if gives is not None else None,
        gradients_out=back,
    )
    return links, [outbox for outbox in (onward, back) if outbox is not None]


def _write(
    folder: Path, config: RunConfig, device: torch.device, ends: list[int], reports: list[Report],
    made_by: dict[str, str], measure: bool,
) -> None:  # fmt: skip
    """weights.pt, and summary.json, which is the last."""
    tensors = {name: tensor for report in reports for name, tensor in report.tensors.items()}
    losses, first, done = reports[-1].losses, reports[0].first, config.train.steps
    samples_per_s = (done - first) * config.train.batch_size / max(report.seconds for report in reports)
    part = folder / f"{WEIGHTS}.part"
    torch.save(tensors, part)
    os.replace(part, folder / WEIGHTS)
    one_process = compared(config, device, ends, tensors, samples_per_s) if measure else None
    write_json(folder / SUMMARY, {
        "status": Status.completed if math.isfinite(losses[-1]) else Status.diverged, "run_id": config.run_id,
        "steps": done, "resumed_at": first, "device": device.type, "torch": torch.__version__,
        "stages": [report.facts for report in reports], "samples_per_s": samples_per_s,
        "losses": [finite(loss) for loss in losses], "one_process": one_process, "made_by": made_by,
        "science": config.science(),
    })  # fmt: skip
