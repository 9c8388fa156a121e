"""What differs between texts and images: the network, the batches, what goes in, and what should come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from leapbench.config.schema import RunConfig

IGNORED = -100
Batch = dict[str, Tensor]
Numbers = Sequence[int] | np.ndarray


class Task(Protocol):
    """Data in three splits and what a network does with them.

    Attributes:
        unit: what an example is called.
        sha256: hash of the data's content.
        sizes: examples per split.
        repeats: how often an example is drawn in a row while training.
        counts_right: whether the share of right answers is a score.
        example_bytes: memory of one example.
        slow: whether reading a batch takes so long that the next one is better read ahead.
    """

    unit: str
    sha256: str
    sizes: dict[str, int]
    repeats: int
    counts_right: bool
    example_bytes: int
    slow: bool

    def model(self, seed: int) -> nn.Module:
        """The network, float32, in training mode."""
        ...

    def train_batch(self, indices: Numbers, seed: Sequence[int]) -> Batch:
        """Training examples by number; what is random in them follows from `seed`."""
        ...

    def batch(self, split: str, indices: Numbers) -> Batch:
        """Held-out examples by number."""
        ...

    def probe(self, batch: Batch) -> Batch:
        """What the regime's probes use of a batch of held-out examples."""
        ...

    def prompts(self) -> Batch:
        """The published prompts; only texts have them."""
        ...

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """Final hidden states (B, T, d) before the output layer."""
        ...

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the network."""
        ...

    def answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (M, C), float32, and the right answers (M,), IGNORED where there is none."""
        ...


def task_of(config: RunConfig) -> Task:
    """Texts, or labelled images where the data set says `image`; only what is needed is imported."""
    if config.dataset.image is None:
        from leapbench.training.texts import Texts

        return Texts(config)
    from leapbench.training.labelled_images import LabelledImages

    return LabelledImages(config)
