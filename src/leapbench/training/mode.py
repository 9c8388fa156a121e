"""What mode=observe and mode=leap have to answer, so that one training loop serves both."""

from __future__ import annotations

from typing import Any, Protocol


class Mode(Protocol):
    """What a run does besides training.

    Attributes:
        skipped: predictors left out, with the reason.
    """

    skipped: dict[str, str]

    def after_step(self, step: int, position: int, mean_loss: float | None) -> int:
        """Snapshot, predict, verify, adopt: whatever this step calls for; the position from which training goes on.

        Args:
            step: gradient updates done.
            position: place in the schedule.
            mean_loss: mean training loss of the interval that ends here, nats; None between two snapshots.

        Raises:
            DivergedError: the loss is no number any more (leapbench.training.scores).
        """
        ...

    def splits_due(self, step: int, position: int) -> tuple[str, ...]:
        """The splits to evaluate after this step; none of it is charged to the method."""
        ...

    def totals(self) -> dict[str, int]:
        """What the summary says of this mode: counts by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        ...
