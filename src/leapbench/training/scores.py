"""The losses of a run: rows of evals.jsonl, the last ones and the best."""

from __future__ import annotations

import math
from typing import Any

from leapbench.names import EVALS, TRAIN, VALIDATION, VERIFICATION
from leapbench.prediction.clock import Clock
from leapbench.records.folder import RunFolder, finite
from leapbench.training.workload import Score


class DivergedError(Exception):
    """A loss that is not finite: the run ends here."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(f"the loss became {loss} by step {step}")


class Scores:
    """Records every score of a run.

    Attributes:
        losses: the last loss by split, nats.
        best: lowest validation loss, with its step and position; empty before the first.
    """

    def __init__(self, folder: RunFolder, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.losses: dict[str, float] = {}
        self.best: dict[str, Any] = {}

    def record(self, split: str, score: Score, step: int, position: int) -> None:
        """One row, with the clock's seconds per lap so far: the loss, and the accuracy where there is one."""
        self.losses[split] = score.loss
        metric = {"perplexity": perplexity(score.loss)} if score.accuracy is None else {"accuracy": score.accuracy}
        seconds = {f"{lap}_s": total for lap, total in self.clock.now().items() if lap != "other"}
        row = {"step": step, "position": position, "split": split, "loss_nats": score.loss} | metric
        self.folder.append(EVALS, row | seconds)
        if split == VALIDATION and score.loss < self.best.get("validation_loss_nats", math.inf):
            self.best = {"validation_loss_nats": score.loss, "step": step, "position": position}

    def interval(self, step: int, position: int, mean_loss: float, loss_now: float | None = None) -> None:
        """The rows of an interval that ends here: mean training loss, and the verification loss if it was taken.

        Raises:
            DivergedError: one of them is not finite; nothing is recorded.
        """
        for loss in (mean_loss, loss_now):
            if loss is not None and not math.isfinite(loss):
                raise DivergedError(loss, step)
        self.record(TRAIN, Score(mean_loss, None), step, position)
        if loss_now is not None:
            self.record(VERIFICATION, Score(loss_now, None), step, position)

    def final(self) -> dict[str, float | None]:
        """The last loss of every split by name, nats."""
        return {f"{split}_loss_nats": finite(loss) for split, loss in self.losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": dict(self.losses), "best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.losses, self.best = dict(state["losses"]), dict(state["best"])


def perplexity(loss: float) -> float:
    """exp(loss), inf where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
