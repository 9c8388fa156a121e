"""Labelled images: :func:`load_images` returns the three splits of a data set, each a map from numbers to batches.

A source is one file with `open_images(cfg, cache_dir) -> ImageSplits`. What is random in a batch is a function of the
seed that the caller passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from leapbench.config.errors import ConfigError
from leapbench.config.groups import ImageConfig
from leapbench.data.augment import Affine, Distort, center_crop

T = TypeVar("T")
RESIZED_BYTES = 1 << 26  # a split that is no larger than this when resized is resized once
SPLIT_SEED = 0


class Images(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Images by number: `pixel_values` (B, channels, size, size) float32, normalised, `labels` (B,) int64.

        Args:
            seed: of the augmentation; None = none, as held-out images are seen.
        """
        ...


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """A data set: training may use `train`, methods may look at `verification`, only the scorer at `validation`."""

    train: Images
    verification: Images
    validation: Images
    sha256: str


class Resident:
    """Images that fit into memory, resized and augmented as whole batches.

    Args:
        pixels: (n, channels, h, w) uint8.
        labels: (n,) int64.
        white: value of a white pixel.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, white: int, cfg: ImageConfig) -> None:
        self.pixels, self.labels, self.white, self.cfg = pixels, labels, white, cfg
        self.affine = augmentation(Affine, cfg)
        self.normalise = Normalise(cfg)
        if len(labels) * cfg.image_bytes <= RESIZED_BYTES:
            self.pixels, self.white = self._resized(pixels.float().div_(white)), 1

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See :meth:`Images.batch`; `seed` is that of the whole batch's maps."""
        numbers = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        pixels = self._resized(self.pixels[numbers].float().div_(self.white))
        if seed is not None and self.affine is not None:
            pixels = self.affine(pixels, np.random.default_rng(seed))
        return {"pixel_values": self.normalise(pixels), "labels": self.labels[numbers]}

    def _resized(self, pixels: Tensor) -> Tensor:
        size = (self.cfg.size, self.cfg.size)
        if pixels.shape[-2:] == size:
            return pixels
        return interpolate(pixels, size=size, mode="bilinear", align_corners=False)


class Streamed:
    """Images decoded when they are drawn, one by one on `workers` threads; the result does not depend on their number.

    Args:
        read: the number of an image -> the image.
        labels: (n,) int64.
    """

    def __init__(self, read: Callable[[int], Image.Image], labels: np.ndarray, cfg: ImageConfig, workers: int) -> None:
        self.read, self.labels, self.cfg = read, labels, cfg
        self.distort = augmentation(Distort, cfg)
        self.normalise = Normalise(cfg)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See :meth:`Images.batch`; each image draws from `seed` and its place in the batch."""
        size = self.cfg.size

        def load(position: int, index: int) -> Tensor:
            image = self.read(index)
            if seed is not None and self.distort is not None:
                image = self.distort(image, size, np.random.default_rng([*seed, position]))
            else:
                image = center_crop(image, self.cfg.resize or size, size)
            return torch.from_numpy(np.array(image).reshape(size, size, self.cfg.channels)).permute(2, 0, 1)

        numbers = [int(index) for index in indices]
        pixels = torch.stack(list(self.pool.map(load, range(len(numbers)), numbers))).float().div_(255)
        labels = torch.from_numpy(self.labels[np.asarray(numbers, dtype=np.int64)])
        return {"pixel_values": self.normalise(pixels), "labels": labels}


class Normalise:
    """(pixels - mean) / std per channel, the result stored channels last: on a CPU convolution, pooling and batch norm
    take a fifth less time this way, and tensor cores need it.

    Raises:
        ConfigError: there is not one mean and one standard deviation per channel.
    """

    def __init__(self, cfg: ImageConfig) -> None:
        for key in ("mean", "std"):
            if len(getattr(cfg, key)) != cfg.channels:
                raise ConfigError(
                    f"dataset.image.{key}={list(getattr(cfg, key))} must have one number for each of "
                    f"dataset.image.channels={cfg.channels}"
                )
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (cfg.mean, cfg.std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the same, normalised."""
        return ((pixels - self.mean) / self.std).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def augmentation(kind: Callable[..., T], cfg: ImageConfig) -> T | None:
    """`dataset.image.augment` as an object, or None where it is empty.

    Raises:
        ConfigError: an unknown key.
    """
    arguments: dict[str, Any] = dict(cfg.augment)
    try:
        return kind(**arguments) if arguments else None
    except TypeError as error:
        wrong = str(error).partition("argument ")[2]
        raise ConfigError(f"dataset.image.augment: {wrong} is no key of dataset.image.loading={cfg.loading}") from None


def stratified(labels: np.ndarray) -> np.ndarray:
    """A fixed random order (n,) in which every stretch holds the classes in about their overall shares."""
    rng = np.random.default_rng(SPLIT_SEED)
    order, share = rng.permutation(len(labels)), np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        share[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(share, kind="stable")
