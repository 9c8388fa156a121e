"""The training loop: the only caller of `optimizer.step()` on a run's own weights."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import torch

from leapbench.config.choices import LoggerName
from leapbench.config.schema import RunConfig
from leapbench.names import VALIDATION, Status
from leapbench.names import Mode as ModeName
from leapbench.prediction.clock import Clock
from leapbench.prediction.weights import FlatWeights
from leapbench.prediction.wrapper import Scored
from leapbench.records.folder import RunFolder
from leapbench.training.bar import Bar
from leapbench.training.leaping import Leaping
from leapbench.training.logger import Logger
from leapbench.training.metrics import Metrics
from leapbench.training.mode import Mode
from leapbench.training.observe import Observer
from leapbench.training.recording import Recording
from leapbench.training.schedule import factor_at
from leapbench.training.scores import DivergedError, Scores
from leapbench.training.signals import Deferred
from leapbench.training.step import build_optimizer, build_wrapper, step_class
from leapbench.training.workload import Workload, seed_of

MODES: dict[ModeName, type[Observer] | type[Leaping]] = {ModeName.observe: Observer, ModeName.leap: Leaping}


def train(config: RunConfig, workload: Workload, folder: RunFolder, logger: Logger, stop: Deferred) -> dict[str, Any]:
    """Train to the end, or from the last checkpoint to the end, and record what the configuration asks for.

    A signal that `stop` has deferred is handled at the end of the step, after a checkpoint.

    Returns:
        The summary: status completed or diverged, final and best metrics, totals.
    """
    device, model, steps = workload.device, workload.model, config.train.steps
    checkpoint = folder.load_checkpoint(device)
    folder.open(checkpoint["offsets"] if checkpoint else None)
    clock = Clock(device, checkpoint["clock"] if checkpoint else None)
    scores = Scores(folder, clock)
    weights = FlatWeights.of(model)
    optimizer = build_optimizer(config.optimizer, weights.named_parameters())
    wrapper = build_wrapper(config.wrapper, optimizer, weights)
    scored = Scored(model, weights, wrapper)
    schedule = factor_at(config.schedule, steps)
    training_step = step_class(config)(
        workload, workload.forward, weights.parameters, optimizer, schedule, wrapper, folder.append
    )
    mode: Mode = MODES[config.mode](config, workload, scored, optimizer, schedule, clock, folder, scores)
    if config.logger != LoggerName.none:
        folder.watch = Metrics(config, logger, optimizer, folder)
    step, position, train_loss = 0, 0, torch.zeros((), device=device)
    set_rng(seed_of(config, "training"))
    if checkpoint:
        weights.vector.copy_(checkpoint["weights"])
        workload.load_buffers(checkpoint["buffers"])
        for part, state in ((optimizer, "optimizer"), (wrapper, "wrapper"), (mode, "mode"), (scores, "scores")):
            part.load_state_dict(checkpoint[state])
        training_step.load_state_dict(checkpoint.get("training_step", {}))
        step, position, train_loss = checkpoint["step"], checkpoint["position"], checkpoint["train_loss"]
        load_rng(checkpoint["rng"], device)
    recording = Recording(config, folder.path, weights, clock, resumed=checkpoint is not None)
    last_saved_s = time.monotonic()
    bar = Bar(f"{config.model.name} seed {config.seed}", steps, position, config.progress)

    def summary(status: Status, reason: str | None) -> dict[str, Any]:
        """The content of summary.json for a run that has ended."""
        bar.close()
        laps = {f"{lap}_s": seconds for lap, seconds in clock.now().items()}
        return {
            "status": status, "reason": reason and f"{reason}; lower optimizer.lr={config.optimizer.lr}",
            "steps": step, "position": position, "final": scores.final(), "best": scores.best,
            "totals": {"charged_s": clock.charged, **laps, **mode.totals()},
            "verify": {"sequences": config.verify.sequences, "batch_size": config.verify.batch_size},
            "skipped": mode.skipped,
        }  # fmt: skip

    while position < steps:
        # ---- train ---------------------------------------------------------------------------------------------------
        clock.enter("train")
        train_loss += training_step(step, position)
        step, position = step + 1, position + 1
        recording.after(step)
        mean_loss = None
        if updates := mode.updates_in_interval(step, position):
            clock.enter("other")
            mean_loss = float(train_loss) / updates
            train_loss.zero_()

        # ---- snapshot, regime, predict, verify, adopt: what the mode makes of this step ------------------------------
        try:
            position = mode.after_step(step, position, mean_loss)
        except DivergedError as error:
            return summary(Status.diverged, str(error))
        bar.update(position)

        # ---- evaluate ------------------------------------------------------------------------------------------------
        splits = mode.splits_due(step, position)
        if splits and position >= steps:
            scored.choose(workload.verification_loss, clock)
        for split in splits:
            clock.enter("eval")
            scores.record(split, workload.score(scored.forward, split), step, position)
            bar.note(scores.losses[split])

        # ---- checkpoint ----------------------------------------------------------------------------------------------
        if mean_loss is not None:
            clock.enter("other")
            folder.flush()
        if position < steps and (stop.asked or config.checkpoint.due(step, time.monotonic() - last_saved_s)):
            clock.enter("other")
            recording.flush()
            folder.save_checkpoint(
                {
                    "step": step, "position": position, "train_loss": train_loss, "weights": weights.vector,
                    "buffers": workload.buffers(), "optimizer": optimizer.state_dict(),
                    "training_step": training_step.state_dict(),
                    "wrapper": wrapper.state_dict(), "mode": mode.state_dict(), "scores": scores.state_dict(),
                    "clock": clock.now(), "rng": rng_state(device),
                }
            )  # fmt: skip
            last_saved_s = time.monotonic()
            stop.obey()
    if not math.isfinite(scores.losses[VALIDATION]):
        return summary(Status.diverged, f"the loss became {scores.losses[VALIDATION]} by step {step}")
    recording.finish(schedule, workload.sha256)
    return summary(Status.completed, None)


def set_rng(seed: int) -> None:
    """Seed every generator that training may draw from (dropout, for example)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The generators' states, for a checkpoint."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    return {
        "python": random.getstate(), "numpy": [name, keys.tolist(), *rest], "torch": torch.get_rng_state(), "cuda": cuda
    }  # fmt: skip


def load_rng(state: dict[str, Any], device: torch.device) -> None:
    """Take the generators' states from a checkpoint."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
