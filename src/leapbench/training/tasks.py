"""What differs between texts and images: the network, the batches, what goes in, and what should come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from leapbench import models
from leapbench.config.choices import Loading
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.data import load, load_images
from leapbench.names import SPLITS, TRAIN

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
        """What the regime's probes use of a batch."""
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


class Texts:
    """Next-token prediction."""

    unit, repeats, counts_right, slow = "sequences", 1, False, False

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.data = load(config.dataset, config.cache)
        self.sha256 = self.data.sha256
        self.splits = {split: getattr(self.data, split) for split in SPLITS}
        self.sizes = {split: len(tokens) for split, tokens in self.splits.items()}
        self.tokens = self.data.train.ids.shape[1]
        self.example_bytes = 8 * self.tokens

    def model(self, seed: int) -> nn.Module:
        """A causal language model for the data's vocabulary and length."""
        return models.build(self.config.model, self.data.vocab_size, self.tokens, seed, self.config.init)

    def train_batch(self, indices: Numbers, seed: Sequence[int]) -> Batch:
        """Sequences by number; nothing in them is random."""
        return self.splits[TRAIN].batch(indices)

    def batch(self, split: str, indices: Numbers) -> Batch:
        """Sequences by number."""
        return self.splits[split].batch(indices)

    def probe(self, batch: Batch) -> Batch:
        """The first tokens."""
        return {key: value[:, : self.config.regime.probe_tokens] for key, value in batch.items()}

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """After the last norm, (B, T, d)."""
        return models.final_hidden(model, batch)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Ids and mask."""
        return {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch} | {"use_cache": False}

    def answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The token after each; padding is no answer unless the protocol says so."""
        targets = batch["input_ids"]
        if "attention_mask" in batch and not self.config.pad_in_loss:
            targets = targets.masked_fill(batch["attention_mask"] == 0, IGNORED)
        return logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten()


class LabelledImages:
    """Image classification."""

    unit, counts_right = "images", True

    def __init__(self, config: RunConfig) -> None:
        assert config.dataset.image is not None
        self.config, self.image = config, config.dataset.image
        data = load_images(config.dataset, config.cache)
        self.sha256, self.repeats = data.sha256, self.image.repeats
        self.splits = {split: getattr(data, split) for split in SPLITS}
        self.sizes = {split: len(images) for split, images in self.splits.items()}
        self.example_bytes, self.slow = self.image.image_bytes, self.image.loading == Loading.streamed
        if config.dataset.examples != self.sizes[TRAIN]:
            raise ConfigError(
                f"dataset.examples={config.dataset.examples} but dataset={config.dataset.name} has "
                f"{self.sizes['train']} training images besides dataset.image.held_out={self.image.held_out}; "
                f"set dataset.examples={self.sizes['train']}"
            )

    def model(self, seed: int) -> nn.Module:
        """A classifier for the data's shape and classes."""
        image = self.image
        return models.build_image_classifier(
            self.config.model, image.channels, image.size, image.classes, seed, self.config.init
        )

    def train_batch(self, indices: Numbers, seed: Sequence[int]) -> Batch:
        """Augmented images by number."""
        return self.splits[TRAIN].batch(indices, seed)

    def batch(self, split: str, indices: Numbers) -> Batch:
        """Images by number, as they are."""
        return self.splits[split].batch(indices)

    def probe(self, batch: Batch) -> Batch:
        """All of it."""
        return batch

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """Pooled features, (B, 1, d)."""
        return models.final_features(model, batch["pixel_values"])[:, None]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Pixels."""
        return {"pixel_values": batch["pixel_values"]}

    def answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels."""
        return logits.float(), batch["labels"]


def task_of(config: RunConfig) -> Task:
    """Texts, or labelled images where the data set says `image`."""
    return Texts(config) if config.dataset.image is None else LabelledImages(config)
