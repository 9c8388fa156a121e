"""What the tests start with torchrun: several pipelines one after the other, for starting processes takes seconds.

torchrun --nproc-per-node=2 tests/pipeline_processes.py FOLDER killed|rest
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from helpers import config_of
from leapbench import cli
from leapbench.config.schema import RunConfig
from leapbench.training.pipeline.processes import Processes
from leapbench.training.pipeline.run import run_stage
from leapbench.training.pipeline.worker import StageStep

STEPS = 12
ARMS = {
    "stash": {}, "latest": {"versions": "latest"}, "ema_pipeline": {"versions": "ema_pipeline"},
    "stash S": {"delay_model": "S"}, "latest S": {"versions": "latest", "delay_model": "S"},
    "ema_pipeline S": {"versions": "ema_pipeline", "delay_model": "S"},
    "grad": {"versions": "ema_fixed", "averaged": "grad", "balance": "blocks"},
    "microbatches": {"versions": "pipemare", "microbatches": 3},
}  # fmt: skip
RESUMED = {"versions": "ema_pipeline", "coefficient": "centre"}
RAISING = {"versions": "ema_pipeline", "coefficient": "decay"}
DIES_AT = 9  # update


class BrokenError(Exception):
    """Stands for anything that goes wrong in one process."""


def configured(folder: Path, **pipeline: object) -> RunConfig:
    """A short training of a small network without transformers, in two stages, with a checkpoint every four steps."""
    return config_of(
        "digits_fcn", "pipeline=layerpipe2", "optimizer=sgd_momentum", "predictor=none",
        pipeline={"stages": 2} | pipeline, optimizer={"lr": 0.05, "weight_decay": 0.01}, K=[1],
        train={"steps": STEPS, "interval": 6, "batch_size": 12, "grad_clip": 1.0}, schedule={"warmup": 4},
        checkpoint={"every_s": None, "every_steps": 4}, results_dir=str(folder),
    )  # fmt: skip


def dying(rank: int, folder: Path, die: object) -> None:
    """Let the process of this rank die in its update DIES_AT; the moment is the time of FOLDER/died."""
    gradient = StageStep.gradient

    def dies(step: StageStep, index: int) -> torch.Tensor:
        if (step.stage.index, index) == (rank, DIES_AT):
            (folder / "died").touch()
            die()
        return gradient(step, index)

    StageStep.gradient = dies


def broken() -> None:
    raise BrokenError("nothing is wrong, this is a test")


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    processes = Processes()
    with processes.one_message():
        if what == "killed":
            dying(1, folder, lambda: os.kill(os.getpid(), signal.SIGKILL))
        else:
            for changes in ARMS.values():
                run_stage(configured(folder, **changes), processes)
        run_stage(configured(folder, **RESUMED), processes)
        dying(0, folder, broken)
        time.sleep(0.01)  # for the clock of the file system
        run_stage(configured(folder, **RAISING), processes)


if __name__ == "__main__":
    cli.main(main)
