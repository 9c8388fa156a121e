"""One training from configuration to a file of weights: find its folder, return it if complete, resume it if not."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from leapbench.config.choices import LoggerName
from leapbench.config.errors import ConfigError
from leapbench.config.remarks import remark
from leapbench.config.schema import digest
from leapbench.meta.learn import Learning
from leapbench.meta.library import Library, Span, open_libraries
from leapbench.meta.questions import QUESTIONS, Question, StreamQuestion
from leapbench.meta.settings import MetaConfig
from leapbench.names import Status
from leapbench.nowcasters.checkpoints import write
from leapbench.records import commit
from leapbench.records.files import read_summary
from leapbench.records.folder import RunFolder
from leapbench.records.lock import slurm_job
from leapbench.records.sources import code_of
from leapbench.training.logger import Logger, NoLogger, WandbLogger, begin
from leapbench.training.prepare import keep_memory, pick_device, use_threads
from leapbench.training.signals import Deferred

CODE = ("leapbench.meta.learn",)  # with all that it imports: a training of other code is another one


def run(config: MetaConfig) -> dict[str, Any]:
    """Carry out one training, or continue it where it was killed, or return at once if it is already complete.

    Returns:
        status (completed | diverged), run_id, folder and reason as text, and under `summary` the summary.

    Raises:
        ConfigError: the user's mistake; nothing was written.
        BusyError: another process holds this training.
        OSError: of the disk; the last checkpoint stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it a GPU's products are not repeatable
    device = pick_device(config.device)
    use_threads(config.threads, device)
    keep_memory(device)
    question = QUESTIONS[config.network.name](config.network, config.seed, device)
    learned, held_out = open_libraries(
        config.trajectories, config.validation.trajectories, span_of(config, question), config.vocabulary
    )
    code = digest(code_of({}, CODE))
    science = config.science() | {"learned": learned.hashes, "held_out": held_out.hashes, "code": code}
    run_id = digest(science)
    folder = RunFolder(Path(config.results_dir) / run_id)
    if (summary := read_summary(folder.path)) is not None:
        return _result(folder, summary)
    _prepare(question, learned, held_out)
    folder.acquire()
    try:
        if (summary := read_summary(folder.path)) is not None:  # another process may have ended it meanwhile
            return _result(folder, summary)
        folder.describe(science, config.machine(), _meta(run_id, device))
        logger = _logger(config, run_id, science)
        learning = Learning(config, question, learned, held_out, folder)
        with Deferred() as stop:
            status, reason = learning.run(logger, stop)
            summary = {
                "status": status, "reason": reason, "steps": learning.step, "seconds": learning.seconds,
                "parameters": sum(p.numel() for p in learning.parameters),
                "final": learning.curve[-1] if learning.curve else None,
            }  # fmt: skip
            if status == Status.completed:
                place = folder.path / f"{config.network.name}.safetensors"
                write(place, config.network.name, question.network, _facts(config, learned, held_out, learning.found))
                sha256 = hashlib.sha256(place.read_bytes()).hexdigest()
                summary["weights"] = {"file": place.name, "bytes": place.stat().st_size, "sha256": sha256}
            folder.finish(summary)
        logger.finish(summary)
        return _result(folder, summary)
    finally:
        folder.release()


def span_of(config: MetaConfig, question: Question) -> Span:
    """What a window takes of a trajectory."""
    least = max(min(config.targets, question.horizons), question.earliest)
    return Span(config.interval, question.horizons, least, config.batch.windows, config.target_window // 2)


def _prepare(question: Question, learned: Library, held_out: Library) -> None:
    """Everything that can go wrong with the trajectories, before anything is written."""
    for library in (learned, held_out):
        for group in library.by_architecture:
            try:
                question.prepare(group[0].architecture)
            except ValueError as error:
                raise ConfigError(f"{group[0].folder}: {error}") from None
        for source in library.sources if question.rates else ():
            _ = source.shares
        library.verify()
    if isinstance(question, StreamQuestion):
        met = [group[0].architecture for group in learned.by_architecture]
        for name in question.untaught(met):
            remark(f"no trajectory has weights for the network {name} of wnn; it stays as it was drawn")


def _facts(
    config: MetaConfig, learned: Library, held_out: Library, found: list[dict[str, float]]
) -> dict[str, Any]:  # fmt: skip
    """What the file of the weights says of its making; the same for the same command, so without times and places."""
    validated = [source.about() | losses for source, losses in zip(held_out.sources, found, strict=True)]
    return {
        "config": config.science(), "learned": [source.about() for source in learned.sources], "held_out": validated,
        "commit": commit.current(), "dirty": bool(commit.changes()), "torch": torch.__version__,
    }  # fmt: skip


def _meta(run_id: str, device: torch.device) -> dict[str, Any]:
    """meta.json: where and by what it was started."""
    return {
        "run_id": run_id, "git_commit": commit.current(), "git_dirty": bool(commit.changes()), "argv": sys.argv,
        "torch": torch.__version__,
        "start": {"host": platform.node(), "device": str(device), "slurm_job": slurm_job()},
    }  # fmt: skip


def _logger(config: MetaConfig, run_id: str, science: dict[str, Any]) -> Logger:
    return NoLogger() if config.logger == LoggerName.none else _MetaWandb(config, run_id, science)


class _MetaWandb(WandbLogger):
    """One Weights & Biases run per training, in the group meta_train."""

    def __init__(self, config: MetaConfig, run_id: str, science: dict[str, Any]) -> None:
        self._run = begin(
            config.wandb, id=f"meta_train-{run_id}", name=f"{config.network.name} {run_id}, seed {config.seed}",
            group="meta_train", job_type="meta_train", tags=[config.network.name, f"seed={config.seed}"],
            config=science | {"run_id": run_id},
        )  # fmt: skip


def _result(folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    weights = summary.get("weights")
    if weights and not (folder.path / weights["file"]).is_file():
        raise ConfigError(f"{folder.path / weights['file']} is gone; delete {folder.path} to train it anew")
    return {
        "status": summary["status"], "run_id": folder.path.name, "folder": str(folder.path),
        "reason": summary.get("reason") or "", "summary": summary,
    }  # fmt: skip
