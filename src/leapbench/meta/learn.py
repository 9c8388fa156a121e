"""The loop that trains the network of a learned predictor."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.meta.library import Library
from leapbench.meta.questions import Question
from leapbench.meta.settings import MetaConfig
from leapbench.meta.windows import Draw, batch, evenly
from leapbench.names import Status
from leapbench.records.files import write_text
from leapbench.records.folder import RunFolder, finite
from leapbench.training.bar import Bar
from leapbench.training.logger import Logger
from leapbench.training.schedule import cosine
from leapbench.training.signals import Deferred

CURVE = "curve.jsonl"


class Learning:
    """One training, from its first step or from a checkpoint to its end.

    Args:
        question: with all architectures prepared.
        learned, held_out: trajectories to learn from, and to validate on.
        folder: acquired; checkpoints and the curve go there.

    Attributes:
        curve: a row per `validation.every` steps: step, rate, loss (mean since the row before, WNN's with its
            penalty), validation (mean over trajectories) and no_change, the loss of a prediction that nothing changes.
        found: loss and no_change of every trajectory that is validated on, in the last row.
    """

    def __init__(
        self, config: MetaConfig, question: Question, learned: Library, held_out: Library, folder: RunFolder
    ) -> None:
        self.config, self.question, self.learned, self.folder = config, question, learned, folder
        self.exams = [evenly(source, config.validation.windows) for source in held_out.sources]
        self.parameters = list(question.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.optimizer.lr, weight_decay=config.optimizer.weight_decay
        )
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        self.curve: list[dict[str, Any]] = []
        self.found: list[dict[str, float]] = []

    def run(self, logger: Logger, stop: Deferred) -> tuple[Status, str | None]:
        """Train to the end; a signal that `stop` has deferred is handled after a step, behind a checkpoint.

        Returns:
            completed, or diverged with the reason.
        """
        self._resume()
        config = self.config
        bar = Bar(f"{config.network.name} {self.folder.path.name}", config.steps, self.step, config.progress)
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        try:
            with _repeatable():
                while self.step < config.steps:
                    loss, rate = self._update()
                    if not math.isfinite(loss):
                        at = f"the loss became {loss} at step {self.step}"
                        return Status.diverged, f"{at}; lower optimizer.lr={config.optimizer.lr}, or use another seed"
                    self.losses.append(loss)
                    self.step += 1
                    if self.step % config.validation.every == 0 or self.step == config.steps:
                        self._look(rate, logger)
                    bar.note(loss)
                    bar.update(self.step)
                    self.seconds = time.monotonic() - began
                    if self.step < config.steps and (
                        stop.asked or config.checkpoint.due(self.step, time.monotonic() - saved)
                    ):
                        self._save()
                        saved = time.monotonic()
                        stop.obey()
        finally:
            bar.close()
        return Status.completed, None

    def _update(self) -> tuple[float, float]:
        """One step: the loss before it, and its learning rate. Nothing is changed where the gradient is not finite."""
        adam = self.config.optimizer
        rate = cosine(adam.lr, adam.final_lr, 0, self.config.steps, self.step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss = loss_of(self.question, batch(self.learned, self.config.batch, self.config.seed, self.step))
        if (penalty := self.question.penalty()) is not None:
            penalty.backward()
            loss = loss + penalty.detach()
        limit = math.inf if adam.grad_clip is None else adam.grad_clip
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            return math.nan, rate
        self.optimizer.step()
        return float(loss), rate

    @torch.no_grad()
    def _look(self, rate: float, logger: Logger) -> None:
        """Validate, and add a row to the curve."""
        self.found = [exam_of(self.question, draws) for draws in self.exams]
        means = {
            name: finite(sum(found[key] for found in self.found) / len(self.found)) if self.found else None
            for name, key in (("validation", "loss"), ("no_change", "no_change"))
        }
        row = {"step": self.step, "rate": rate, "loss": sum(self.losses) / len(self.losses), **means}
        self.losses.clear()
        self.curve.append(row)
        write_text(self.folder.path / CURVE, "".join(json.dumps(row) + "\n" for row in self.curve))
        logger.log({f"meta/{key}": value for key, value in row.items() if key != "step"}, self.step)

    def _save(self) -> None:
        self.folder.save_checkpoint({
            "step": self.step, "seconds": self.seconds, "losses": self.losses, "curve": self.curve,
            "network": self.question.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        })  # fmt: skip

    def _resume(self) -> None:
        state = self.folder.load_checkpoint(torch.device("cpu"))
        if state is None:
            return
        self.question.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses, self.curve = state["losses"], state["curve"]


def loss_of(question: Question, draws: Sequence[Draw]) -> Tensor:
    """Mean absolute error over all weights and horizons of all windows together; its gradient is added up.

    One window after the other, so that memory is that of one.
    """
    count = sum(
        question.count(draw.source.architecture, draw.source.horizons(first)) for draw in draws for first in draw.firsts
    )
    total = torch.zeros((), device=question.device)
    for draw in draws:
        for window in draw.windows(question.rates):
            predicted, wanted = question.changes(window)
            part = (predicted - wanted).abs().sum() / count
            part.backward()
            total = total + part.detach()
    return total


def exam_of(question: Question, draws: Sequence[Draw]) -> dict[str, float]:
    """Mean absolute error on the windows of one trajectory, and that of a prediction that nothing changes."""
    errors, changes, count = 0.0, 0.0, 0
    for draw in draws:
        for window in draw.windows(question.rates):
            predicted, wanted = question.changes(window)
            errors += float((predicted - wanted).abs().sum())
            changes += float(wanted.abs().sum())
            count += wanted.numel()
    return {"loss": errors / count, "no_change": changes / count}


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Sums whose order does not change from run to run, also on a GPU and with several threads."""
    settings: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled
