"""Averages of the weights whose reach grows with the training, with their lag corrected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.optimizers._choice import lowest
from leapbench.optimizers._settings import numbers
from leapbench.optimizers.wrapper import Wrapper
from leapbench.prediction.weights import FlatWeights


class GrowingAverage(Wrapper):
    """A_t = A_{t-1} + (g + 1) / (t + g) (theta_t - A_{t-1}), for each power g.

    That is the average of theta_1 .. theta_t in which theta_i weighs i (i+1) .. (i+g-1), about i^g (Karras et al.,
    arXiv:2312.02696, section 3.1, with the sum in place of an integral). Its values are (t - 1) / (g + 2) steps old on
    average: at every length it reaches back over the same share of the training, and needs no horizon to be told.

    Where the weights drift, an average lags behind them, the wider one by more. With two powers, W the wide and N the
    narrow average, of ages l_W > l_N, the line through both is followed by shares c of the narrow one's lag:
    N + c (N - W) l_N / (l_W - l_N), in which c = 1 is the drift's present place. Handed over is what has the lowest
    loss on verification data when weights are handed over, of the live weights, the averages and these, a pass over
    the data for each; until then the last average. No powers: the live weights.

    A vector of N and, at every step, one pass over memory for each power.

    Args:
        powers: g, rising, each 0 or more.
        moves: c; without two powers they are not used.

    Raises:
        TypeError, ValueError: a constant outside its range, or powers that do not rise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: FlatWeights,
        powers: Sequence[float] = (8.0, 20.0),
        moves: Sequence[float] = (0.5, 1.0, 1.5),
    ) -> None:
        super().__init__(optimizer, weights)
        self.powers, self.moves = (
            numbers(key, values, 0.0, example)
            for key, values, example in (("powers", powers, "[8, 20]"), ("moves", moves, "[0.5, 1]"))
        )
        if any(later <= g for g, later in zip(self.powers, self.powers[1:], strict=False)):
            raise ValueError(f"powers={list(powers)} must rise, as in [8, 20]")
        self.scores_live, self.chooses = not self.powers, bool(self.powers)
        self.steps = 0
        self.chosen: tuple[int, float] = (len(self.powers) - 1, 0.0)
        self.means = [torch.zeros_like(weights.vector) for _ in self.powers]

    def after_step(self) -> None:
        """Each average takes in the live weights."""
        self.steps += 1
        for g, mean in zip(self.powers, self.means, strict=True):
            mean.lerp_(self.weights.vector, (g + 1) / (self.steps + g))

    def scored(self) -> Tensor | None:
        """The chosen weights, (N,); None where they are the live ones, or before the first step."""
        index, move = self.chosen
        if index < 0 or not self.steps:
            return None
        return self.means[index] if move == 0.0 else self._moved(move)

    def choose(self, loss_of: Callable[[Tensor], float]) -> None:
        """What has the lowest loss, the first of equal ones; nan is never lower."""
        losses = {}
        for choice in self._choices() if self.steps else ():
            self.chosen = choice
            scored = self.scored()
            losses[choice] = loss_of(self.weights.vector if scored is None else scored)
        self.chosen = lowest(losses, (len(self.powers) - 1, 0.0))

    def _choices(self) -> Iterator[tuple[int, float]]:
        """Number of an average, and how far it is moved on; -1 for the live weights."""
        yield from ((index, 0.0) for index in range(-1, len(self.powers)))
        if len(self.powers) > 1:
            yield from ((len(self.powers) - 1, move) for move in self.moves)

    def _moved(self, move: float) -> Tensor:
        """The narrowest average, moved on along the line from the widest."""
        wide, narrow = (1 / (g + 2) for g in (self.powers[0], self.powers[-1]))
        return torch.lerp(self.means[0], self.means[-1], 1 + move * narrow / (wide - narrow))

    def state_dict(self) -> dict[str, Any]:
        """The averages, the choice and the number of steps."""
        return {"steps": self.steps, "chosen": list(self.chosen), "means": list(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.steps, (index, move) = state["steps"], state["chosen"]
        self.chosen = int(index), float(move)
        for mean, saved in zip(self.means, state["means"], strict=True):
            mean.copy_(saved)
