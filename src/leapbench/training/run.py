"""One run from configuration to summary: find its folder, return it if complete, resume it if not."""

from __future__ import annotations

import platform
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leapbench.config.choices import LoggerName
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig, digest
from leapbench.names import Status
from leapbench.prediction.clock import seconds_on
from leapbench.prediction.weights import FlatWeights
from leapbench.records import commit
from leapbench.records.folder import RunFolder
from leapbench.records.lock import slurm_job
from leapbench.records.sources import code_of
from leapbench.training.earlier import check_resumable, ended
from leapbench.training.logger import build as build_logger
from leapbench.training.loop import train
from leapbench.training.parts import check_network
from leapbench.training.prepare import prepare
from leapbench.training.signals import Deferred
from leapbench.training.step import step_class
from leapbench.training.workload import Workload

OFF_THE_NODE = "UncompletedJobError"  # what submitit raises in a job that it removes from its node


@dataclass(frozen=True)
class Outcome:
    """How a run ended: completed | diverged | skipped, its id, its folder, and the reason if there is one."""

    status: str
    run_id: str
    folder: Path
    reason: str | None = None


def run(config: RunConfig, draw: Callable[[Path], dict[str, Path]] | None = None) -> Outcome:
    """Carry out one run, or continue it where it was killed, or return at once if it is already complete.

    Args:
        draw: makes the figures of a completed run's folder, name -> path, for the logger.

    Raises:
        ConfigError: the user's mistake; nothing was written.
        BusyError: another process holds this run.
        OSError: of the disk; the last checkpoint stays.
    """
    run_id = config.run_id
    folder = RunFolder(config.folder)
    if outcome := _ended(config):
        return outcome
    # submitit's handler ends by an ordinary exception, which an import or a model being built reports as its own.
    with Deferred(signal.SIGUSR2):
        prepared = prepare(config)
        device = prepared.device
        workload = Workload(config, device) if prepared.reason is None else None
        if workload is not None:
            step_class(config).check(workload)
            check_network(config, FlatWeights.of(workload.model).layout, prepared.skipped)
    try:
        folder.acquire()
    except (NotADirectoryError, FileExistsError, FileNotFoundError):
        raise ConfigError(
            f"{folder.path} cannot be made a folder: results_dir={config.results_dir} is a file, below one, or where "
            "none can be made; give another folder"
        ) from None
    try:
        if outcome := _ended(config):  # another process may have ended it meanwhile
            return outcome
        check_resumable(config, workload.sha256 if workload else None)
        folder.reopen()
        folder.describe(config.science(), config.machine(), _meta(config, device, workload))
        if workload is None:
            folder.open(None)
            folder.finish(
                {"status": Status.skipped, "reason": prepared.reason, "steps": 0, "skipped": prepared.skipped}
            )
            return Outcome(Status.skipped, run_id, folder.path, prepared.reason)
        logger = build_logger(config)
        try:
            with Deferred() as stop:
                summary = train(config, workload, folder, logger, stop)
                folder.finish(summary)
        except (OSError, ConfigError):
            raise
        except Exception as error:
            if type(error).__name__ == OFF_THE_NODE:
                raise
            summary = {
                "status": Status.failed,
                "reason": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
            folder.finish(summary)
            logger.finish(summary)
            raise
        if config.logger != LoggerName.none and summary["status"] == Status.completed and draw is not None:
            for name, path in draw(folder.path).items():
                logger.figure(name, path)
        logger.finish(summary)
        return Outcome(summary["status"], run_id, folder.path, summary["reason"])
    finally:
        folder.release()


def _ended(config: RunConfig) -> Outcome | None:
    """How the run ended, or None if it is not finished."""
    end = ended(config)
    if end is None:
        return None
    return Outcome(end["status"], end["run_id"], Path(end["folder"]), end["reason"] or None)


def _meta(config: RunConfig, device: torch.device, workload: Workload | None) -> dict[str, Any]:
    code, dataset_sha256 = code_of(config.science()), workload.sha256 if workload else None
    return {
        "run_id": config.run_id,
        "trajectory": config.trajectory,
        "git_commit": commit.current(),
        "git_dirty": bool(commit.changes()),
        "argv": sys.argv,
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {config.threads} thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dataset_sha256": dataset_sha256,
        "code": code,
        "parameters": sum(p.numel() for p in workload.model.parameters()) if workload else None,
        "start": {
            "host": platform.node(), "slurm_job": slurm_job(), "code": digest(code), "dataset_sha256": dataset_sha256,
            "torch": torch.__version__, "seconds": seconds_on(device),
        },
    }  # fmt: skip
