"""The rules that accept a candidate by its loss.

They are pure: they take losses in nats as floats or arrays, so that stored losses can be judged by them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leapbench.names import RuleName, choice, whole


def strict(loss_pred: ArrayLike, loss_now: ArrayLike) -> NDArray[np.bool_]:
    """Lhat < L_t. A loss that is not finite is never accepted."""
    return np.less(loss_pred, loss_now)


def adaptive(loss_pred: ArrayLike, loss_now: ArrayLike, sigma: ArrayLike, inclusive: bool = True) -> NDArray[np.bool_]:
    """Lhat <= L_t + sigma, sigma the spread of verification losses, nats. Never a loss that is not finite.

    Args:
        inclusive: False for the paper's <.
    """
    below = np.less_equal if inclusive else np.less
    return below(loss_pred, np.add(loss_now, sigma)) & np.isfinite(loss_pred)


def proximity(
    loss_pred: ArrayLike,
    loss_now: ArrayLike,
    tolerance: float = 0.05,
    two_sided: bool = True,
    inclusive: bool = True,
) -> NDArray[np.bool_]:
    """|Lhat - L_t| <= tolerance L_t, or without two_sided Lhat <= (1 + tolerance) L_t; < instead if not inclusive."""
    below, excess = np.less_equal if inclusive else np.less, np.subtract(loss_pred, loss_now)
    return below(np.abs(excess) if two_sided else excess, np.multiply(tolerance, loss_now))


def sigma_recent(losses: ArrayLike, last: int | str = 5) -> NDArray[np.float64]:
    """Standard deviation of the last verification losses at each checkpoint.

    Args:
        losses: (C,) verification losses at consecutive checkpoints, nats.
        last: how many to use, the current one included; "all" uses every checkpoint of the run, future included, as
            the published code does.

    Returns:
        (C,) population standard deviations, nats; 0 where only one loss is known.
    """
    values = np.asarray(losses, dtype=np.float64)
    if last == "all":
        return np.full(len(values), values.std() if len(values) else 0.0)
    assert isinstance(last, int)
    return np.array([values[max(0, i + 1 - last) : i + 1].std() for i in range(len(values))])


@dataclass
class Rule:
    """An acceptance rule at work: what it needs to know, and what it remembers.

    `always` and `falling` never look at the candidate. `falling` accepts when the loss now is below the loss at the
    checkpoint before: switching by the loss, in the manner of Tano et al., arXiv:2006.14371.

    >>> from leapbench.prediction.rules import Rule
    >>> rule = Rule("proximity", tolerance=0.1, two_sided=False)
    >>> rule.accepts(loss_pred=2.15, loss_now=2.0), rule.accepts(loss_pred=2.25, loss_now=2.0)
    (True, False)

    Args:
        name: strict | adaptive | proximity | always | falling.
        tolerance, two_sided: of `proximity`.
        sigma_over: checkpoints behind the sigma of `adaptive`; "all" uses every one so far.

    Raises:
        TypeError, ValueError: an unknown name, or a setting outside its range.
    """

    name: str
    tolerance: float = 0.05
    two_sided: bool = True
    sigma_over: int | str = 5
    inclusive: bool = True
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = choice(RuleName, self.name, "rule")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance={self.tolerance} must be 0 or more, a share of the loss: 0.05 is 5 %")
        if self.sigma_over != "all":
            whole("sigma_over", self.sigma_over, 1)

    @property
    def asks_now(self) -> bool:
        """Whether it needs the loss of the live weights."""
        return self.name != RuleName.always

    @property
    def asks_candidate(self) -> bool:
        """Whether it needs the loss of the candidate."""
        return self.name not in (RuleName.always, RuleName.falling)

    def see(self, loss_now: float) -> None:
        """Remember the loss of the live weights at this checkpoint, nats."""
        self.losses.append(loss_now)

    def accepts(self, loss_pred: float, loss_now: float) -> bool:
        """Whether the candidate may be adopted; losses in nats, nan where the rule does not ask."""
        if self.name == RuleName.strict:
            return bool(strict(loss_pred, loss_now))
        if self.name == RuleName.adaptive:
            return bool(adaptive(loss_pred, loss_now, sigma_recent(self.losses, self.sigma_over)[-1], self.inclusive))
        if self.name == RuleName.proximity:
            return bool(proximity(loss_pred, loss_now, self.tolerance, self.two_sided, self.inclusive))
        return self.name == RuleName.always or (len(self.losses) > 1 and self.losses[-1] < self.losses[-2])
