"""Image classification as a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from leapbench.config.choices import Loading
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.data import load_images
from leapbench.models.image_classifier import build_image_classifier, final_features
from leapbench.names import SPLITS, TRAIN
from leapbench.training.tasks import Batch, Numbers


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
        return build_image_classifier(
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

    def prompts(self) -> Batch:
        """There are none."""
        raise AssertionError("images are probed with held-out images")

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """Pooled features, (B, 1, d)."""
        return final_features(model, batch["pixel_values"])[:, None]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Pixels."""
        return {"pixel_values": batch["pixel_values"]}

    def answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels."""
        return logits.float(), batch["labels"]
