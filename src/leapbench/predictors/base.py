"""What every predictor is, and the family that most of them belong to."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from torch import Tensor

from leapbench.history import History
from leapbench.weights import combine


@runtime_checkable
class Predictor(Protocol):
    """History -> weights K steps ahead. Pure: no model, no loss, no change in place.

    Attributes:
        context: snapshots needed.
        needs_moments: whether it reads Adam's moments.
        scales: candidates theta_0 + c (predict - theta_0) to be verified, of which the best counts; (1.0,) for all
            honest methods.
    """

    context: int
    needs_moments: bool
    scales: tuple[float, ...]

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32, newly allocated."""
        ...


class LinearInHistory(ABC):
    """A predictor whose candidate is sum_i c_i theta_i with numbers c that sum to 1 and depend on the steps alone.

    One pass over memory builds the candidate, and distances to other vectors follow from dot products of snapshots.
    """

    context: int
    needs_moments = False
    scales = (1.0,)

    @abstractmethod
    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float] | None:
        """One number per snapshot, oldest first, for `context` snapshots taken at `steps`; they sum to 1.

        None: this variant is no such sum and has a `predict` of its own.
        """

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32.

        Raises:
            ValueError: fewer snapshots than `context`.
        """
        h = history.last(self.context)
        coefficients = self.coefficients(h.steps, K)
        assert coefficients is not None
        return combine([s.weights for s in h.snapshots], coefficients, h.empty_vector())


def coefficients_of(predictor: Predictor, history: History, K: int) -> list[float] | None:
    """The numbers that make the candidate from the last `context` snapshots, or None if no such numbers exist."""
    if not isinstance(predictor, LinearInHistory):
        return None
    return predictor.coefficients(history.last(predictor.context).steps, K)


def spacing(steps: tuple[int, ...]) -> int:
    """Delta, the steps between snapshots.

    Raises:
        ValueError: they are not evenly spaced.
    """
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    if len(gaps) != 1:
        raise ValueError(f"snapshots at steps {steps} are not evenly spaced")
    return gaps.pop()
