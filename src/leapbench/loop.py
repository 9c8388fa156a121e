"""The training loop: the only caller of `optimizer.step()` on a run's own weights."""

from __future__ import annotations

import math
import random
import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from leapbench.clock import Clock
from leapbench.config import OptimizerConfig, RunConfig
from leapbench.leap import Leaper
from leapbench.logger import Logger
from leapbench.names import EVALS, TRAIN, VALIDATION, VERIFICATION, Status
from leapbench.observe import Observer
from leapbench.record import RunFolder, finite
from leapbench.schedule import lr_at
from leapbench.signals import Deferred
from leapbench.weights import FlatWeights
from leapbench.workload import Score, Workload, seed_of

MODES: dict[str, type[Observer | Leaper]] = {"observe": Observer, "leap": Leaper}


def train(config: RunConfig, workload: Workload, folder: RunFolder, logger: Logger, stop: Deferred) -> dict[str, Any]:
    """Train to the end, or from the last checkpoint to the end, and record what the configuration asks for.

    A signal that `stop` has kept back is answered at the end of the step, after a checkpoint.

    Returns:
        The summary: status completed or diverged, final and best metrics, totals.
    """
    device, model, steps, interval = workload.device, workload.model, config.train.steps, config.train.interval
    saved = folder.load_checkpoint(device)
    folder.open(saved["offsets"] if saved else None)
    weights = FlatWeights(model)
    optimizer = build_optimizer(config.optimizer, weights.parameters)
    learning_rate = lr_at(config.schedule, config.optimizer.lr, steps)
    clock = Clock(device, saved["clock"] if saved else None)
    mode = MODES[config.mode](config, workload, weights, optimizer, learning_rate, clock, folder)
    best: dict[str, Any] = {}
    step, position, train_loss = 0, 0, torch.zeros((), device=device)
    set_rng(seed_of(config, "training"))
    if saved:
        weights.vector.copy_(saved["weights"])
        workload.load_buffers(saved["buffers"])
        optimizer.load_state_dict(saved["optimizer"])
        mode.load_state_dict(saved["mode"])
        step, position, train_loss, best = saved["step"], saved["position"], saved["train_loss"], saved["best"]
        load_rng(saved["rng"], device)
    losses: dict[str, float] = dict(saved["losses"]) if saved else {}
    last_saved_s = time.monotonic()
    bar = tqdm(
        total=steps, initial=position, desc=f"{config.model.name} seed {config.seed}", unit="step",
        disable=not config.progress, mininterval=1.0 if sys.stderr.isatty() else 15.0, dynamic_ncols=True,
    )  # fmt: skip

    def evaluated(split: str, score: Score) -> None:
        """Record the loss, nats, and the accuracy if there is one, of the weights at `step`."""
        losses[split] = score.loss
        second = {"perplexity": perplexity(score.loss)} if score.accuracy is None else {"accuracy": score.accuracy}
        seconds = {f"{lap}_s": spent for lap, spent in clock.now().items() if lap != "other"}
        row = {"step": step, "position": position, "split": split, "loss_nats": score.loss} | second
        folder.append(EVALS, row | seconds)
        logger.log(
            {f"{split}/loss_nats": score.loss} | {f"{split}/{key}": value for key, value in second.items()}, step
        )

    while position < steps:
        # ---- train -------------------------------------------------------------------------------------------------
        clock.enter("train")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(position)
        loss = workload.loss(workload.forward, workload.train_batch(step))
        loss.backward()
        if config.train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(weights.parameters, config.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        train_loss += loss.detach()
        step, position = step + 1, position + 1

        # ---- look: the loss that proposals start from, the truth for those that aimed here ---------------------------
        at_checkpoint = step % interval == 0
        loss_now = mode.look(step, at_checkpoint)
        if at_checkpoint:
            clock.enter("other")
            mean_loss = float(train_loss) / interval
            train_loss.zero_()
            if not math.isfinite(mean_loss) or not math.isfinite(loss_now or 0.0):
                bar.close()
                reason = f"the loss became {mean_loss} by step {step}; lower optimizer.lr={config.optimizer.lr}"
                return summary(Status.diverged, reason, step, position, losses, best, clock, mode)
            evaluated(TRAIN, Score(mean_loss, None))
            if loss_now is not None:
                evaluated(VERIFICATION, Score(loss_now, None))

            # ---- snapshot ------------------------------------------------------------------------------------------
            clock.enter("snapshot")
            mode.snapshot(step, position)

            # ---- regime --------------------------------------------------------------------------------------------
            clock.enter("regime")
            mode.find_regimes(step)

            # ---- predict, verify, adopt ----------------------------------------------------------------------------
            clock.enter("other")
            position = mode.propose(step, position, loss_now, mean_loss)
            clock.enter("eval")
            mode.explore(step, loss_now)
        bar.update(position - bar.n)

        # ---- evaluate ----------------------------------------------------------------------------------------------
        if step % config.eval.every == 0 or position == steps or step in mode.followed:
            clock.enter("eval")
            for split in mode.scored:
                evaluated(split, workload.score(model, split))
            if losses[VALIDATION] < best.get("validation_loss_nats", math.inf):
                best = {"validation_loss_nats": losses[VALIDATION], "step": step, "position": position}
            bar.set_postfix(loss=f"{losses['validation']:.3f}", refresh=False)

        # ---- checkpoint --------------------------------------------------------------------------------------------
        if at_checkpoint:
            clock.enter("other")
            folder.flush()
        if position < steps and (stop.asked or due(config, step, time.monotonic() - last_saved_s)):
            clock.enter("other")
            folder.save_checkpoint(
                {
                    "step": step, "position": position, "weights": weights.vector,
                    "buffers": workload.buffers(), "optimizer": optimizer.state_dict(),
                    "mode": mode.state_dict(), "train_loss": train_loss, "losses": losses, "best": best,
                    "clock": clock.now(), "rng": rng_state(device),
                }
            )  # fmt: skip
            last_saved_s = time.monotonic()
            stop.obey()
    bar.close()
    if not math.isfinite(losses[VALIDATION]):
        reason = f"the loss became {losses['validation']} by step {step}; lower optimizer.lr={config.optimizer.lr}"
        return summary(Status.diverged, reason, step, position, losses, best, clock, mode)
    return summary(Status.completed, None, step, position, losses, best, clock, mode)


def summary(
    status: str,
    reason: str | None,
    step: int,
    position: int,
    losses: dict[str, float],
    best: dict[str, Any],
    clock: Clock,
    mode: Observer | Leaper,
) -> dict[str, Any]:
    """What summary.json says of a run that came to its end."""
    laps = {f"{lap}_s": spent for lap, spent in clock.now().items()}
    return {
        "status": status,
        "reason": reason,
        "steps": step,
        "position": position,
        "final": {f"{split}_loss_nats": finite(loss) for split, loss in losses.items()},
        "best": best,
        "totals": {"charged_s": clock.charged, **laps, **mode.totals()},
        "verify": {"sequences": mode.config.verify.sequences, "batch_size": mode.config.verify.batch_size},
        "skipped": mode.skipped,
    }


def build_optimizer(config: OptimizerConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the configuration names; its learning rate is set before every step."""
    if config.name == "adamw":
        assert config.betas is not None and config.eps is not None
        return torch.optim.AdamW(
            parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )
    momentum = config.momentum or 0.0
    return torch.optim.SGD(parameters, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay, fused=True)


def due(config: RunConfig, step: int, since_s: float) -> bool:
    """Whether a checkpoint is due, by steps or by seconds since the last."""
    by_steps, by_time = config.checkpoint.every_steps, config.checkpoint.every_s
    return (by_steps is not None and step % by_steps == 0) or (by_time is not None and since_s >= by_time)


def perplexity(loss: float) -> float:
    """exp(loss), inf where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def set_rng(seed: int) -> None:
    """Seed every generator that training may draw from (dropout, for one)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The generators' states, for a checkpoint."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def load_rng(state: dict[str, Any], device: torch.device) -> None:
    """Take the generators' states from a checkpoint."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
