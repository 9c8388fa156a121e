"""What every predictor is, and the family that most of them belong to."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from leapbench.names import whole
from leapbench.prediction.history import History
from leapbench.prediction.weights import Layout, combine

# Imported by name, because its modules import this one.
PACKAGE = "leapbench.predictors"


class Predictor(ABC):
    """History -> weights K steps ahead. Pure: no model, no loss, no change in place.

    One of one's own, as `Leap(..., predictor=Damped(), ...)` takes it:

    >>> import torch
    >>> from leapbench.prediction.predictor import Predictor
    >>> class Damped(Predictor):
    ...     context = 2
    ...     def predict(self, history, K):
    ...         old, now = (snapshot.weights for snapshot in history.last(2).snapshots)
    ...         return torch.lerp(old, now, 1.5, out=history.empty_vector())

    Attributes:
        context: snapshots needed.
        needs_moments: whether it reads the optimizer's moments.
        scales: candidates theta_0 + c (predict - theta_0) to be verified, the best of which is taken.
        control: whether tables show it among the controls, which stand for what a method must be better than.
    """

    context: int = 1
    needs_moments: bool = False
    scales: tuple[float, ...] = (1.0,)
    control: bool = False

    def check_network(self, layout: Layout) -> None:  # noqa: B027
        """Raise ValueError if it cannot predict for a network with this layout; most can for any."""

    @abstractmethod
    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32, in memory that is not used elsewhere, such as
        `history.empty_vector()`."""


def check_predictor(predictor: Any) -> None:
    """Raise TypeError or ValueError if `predictor` is none that can be asked."""
    if isinstance(predictor, type):
        raise TypeError(
            f"predictor={predictor.__name__} is a class; give an object, {predictor.__name__}(), or its name"
        )
    if not isinstance(predictor, Predictor):
        raise TypeError(
            f"predictor={predictor!r} must be a name, such as 'linear', or an object of a class derived from "
            "leapbench.prediction.predictor.Predictor"
        )
    whole(f"{name_of(predictor)}.context", predictor.context, 1)


def check_capacity(predictor: Predictor, capacity: int) -> None:
    """Raise RuntimeError if a ring of this capacity never fills the predictor's context."""
    if predictor.context > capacity:
        raise RuntimeError(
            f"{name_of(predictor)} needs {predictor.context} snapshots and the ring keeps {capacity}: make a new Leap "
            "for another predictor or context"
        )


def check_prediction(predictor: Predictor, full: Any, history: History, versions: list[int]) -> None:
    """Raise TypeError or ValueError if `full` is not what the contract of :meth:`Predictor.predict` says.

    Args:
        versions: of the snapshots' weights, torch's counters of changes in place before the prediction.
    """
    name, now = name_of(predictor), history.now.weights
    if not isinstance(full, Tensor):
        raise TypeError(
            f"predictor={name} returned {type(full).__name__}; predict must return the weights, (N,) float32"
        )
    if full.shape != now.shape or full.dtype != torch.float32 or full.device != now.device:
        raise ValueError(
            f"predictor={name} returned {full.dtype} {tuple(full.shape)} on {full.device}; predict must return "
            f"torch.float32 {tuple(now.shape)} on {now.device}, such as history.empty_vector()"
        )
    if [snapshot.weights._version for snapshot in history.snapshots] != versions:
        raise ValueError(f"predictor={name} changed a snapshot in place; predict must leave the history as it is")
    if any(full.data_ptr() == snapshot.weights.data_ptr() for snapshot in history.snapshots):
        raise ValueError(
            f"predictor={name} returned the memory of a snapshot; return a copy, history.empty_vector().copy_(...)"
        )


def names() -> list[str]:
    """Every predictor that has a file of its own."""
    return modules_of(PACKAGE)


def modules_of(package: str) -> list[str]:
    """The files of a package, without helpers."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if module.name[0] != "_")


def check_known(key: str, name: str, known: list[str]) -> None:
    """Raise ValueError if `name`, given as `key`, is none of the known ones."""
    if name not in known:
        close = get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{key}={name} is unknown{hint}; use {', '.join(known)}")


def named(name: str, **settings: Any) -> Predictor:
    """The predictor of this name: `pdt_linear` is PdtLinear in the file pdt_linear.py.

    Raises:
        ValueError: there is none, or it refuses the settings.
    """
    check_known("predictor", name, names())
    kind = class_of(f"{PACKAGE}.{name}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"predictor={name}: {error}") from None


def class_of(module: str) -> Any:
    """What a module is named after: PdtLinear in ....pdt_linear; None if it has no such thing."""
    name = "".join(map(str.capitalize, module.rpartition(".")[2].split("_")))
    return getattr(importlib.import_module(module), name, None)


def name_of(predictor: object) -> str:
    """`pdt_linear` for a PdtLinear; of wrappers too."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(predictor).__name__).lower()


class LinearInHistory(Predictor):
    """A predictor whose candidate is sum_i c_i theta_i with numbers c that sum to 1 and depend on the steps alone.

    One pass over memory builds the candidate, and distances to other vectors follow from dot products of snapshots.

    >>> from leapbench.prediction.predictor import LinearInHistory
    >>> class Line(LinearInHistory):
    ...     context = 2
    ...     def coefficients(self, steps, K):
    ...         s = K / (steps[1] - steps[0])
    ...         return [-s, 1 + s]
    >>> Line().coefficients((10, 20), 5)
    [-0.5, 1.5]
    """

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
        raise ValueError(
            f"snapshots at steps {steps} are not evenly spaced; several leaps in a row need K equal to the interval"
        )
    return gaps.pop()
