"""Labelled images: :func:`load_images` returns the three splits of a data set, each a map from numbers to batches.

A source is one file with `open_images(cfg, cache_dir) -> ImageSplits`. What is random in a batch is a function of the
seed that the caller gives for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from leapbench.config import ConfigError, ImageConfig
from leapbench.datasets.augment import Affine, Distort, center_crop

T = TypeVar("T")
RESIZED_BYTES = 1 << 26  # a split that is no larger than this when resized is resized once
HALF = 0.5  # mean and standard deviation of the normalisation: pixels in [0, 1] become [-1, 1]


class Images(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    @property
    def image_bytes(self) -> int:
        """Memory of one image as the network sees it, bytes."""
        ...

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Images by number: `pixel_values` (B, channels, size, size) float32 in about [-1, 1], `labels` (B,) int64.

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
        if len(labels) * self.image_bytes <= RESIZED_BYTES:
            self.pixels, self.white = self._resized(pixels.float().div_(white)), 1
        self.affine = made("dataset.image.augment", lambda: Affine(**cfg.augment)) if cfg.augment else None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_bytes(self) -> int:
        return self.cfg.channels * self.cfg.size**2 * 4

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        pixels = self._resized(self.pixels[chosen].float().div_(self.white))
        if seed is not None and self.affine is not None:
            pixels = self.affine(pixels, np.random.default_rng(seed))
        return {"pixel_values": channels_last(pixels.sub(HALF).div_(HALF)), "labels": self.labels[chosen]}

    def _resized(self, pixels: Tensor) -> Tensor:
        size = (self.cfg.size, self.cfg.size)
        if pixels.shape[-2:] == size:
            return pixels
        return interpolate(pixels, size=size, mode="bilinear", align_corners=False)


class Streamed:
    """Images decoded when they are drawn, one by one on `cfg.workers` threads; their order and content do not depend
    on the number of threads.

    Args:
        read: the number of an image -> the image.
        labels: (n,) int64.
    """

    def __init__(self, read: Callable[[int], Image.Image], labels: np.ndarray, cfg: ImageConfig) -> None:
        self.read, self.labels, self.cfg = read, labels, cfg
        self.distort = made("dataset.image.augment", lambda: Distort(cfg.size, **cfg.augment)) if cfg.augment else None
        self.pool = ThreadPoolExecutor(cfg.workers, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_bytes(self) -> int:
        return self.cfg.channels * self.cfg.size**2 * 4

    def batch(self, indices: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> dict[str, Tensor]:
        def one(place: int, index: int) -> Tensor:
            image = self.read(index).convert("RGB" if self.cfg.channels == 3 else "L")
            if seed is not None and self.distort is not None:
                image = self.distort(image, np.random.default_rng([*seed, place]))
            else:
                image = center_crop(image, self.cfg.resize or self.cfg.size, self.cfg.size)
            array = np.array(image).reshape(self.cfg.size, self.cfg.size, self.cfg.channels)
            return torch.from_numpy(array).permute(2, 0, 1)

        numbers = [int(index) for index in indices]
        pixels = torch.stack(list(self.pool.map(one, range(len(numbers)), numbers))).float().div_(255)
        labels = torch.from_numpy(self.labels[np.asarray(numbers, dtype=np.int64)])
        return {"pixel_values": channels_last(pixels.sub_(HALF).div_(HALF)), "labels": labels}


def channels_last(pixels: Tensor) -> Tensor:
    """The same images (B, C, H, W), stored channels last: convolution, pooling and batch norm are faster so on CPUs."""
    return pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def made(key: str, make: Callable[[], T]) -> T:
    """`make()`, with a key that it does not have as a ConfigError."""
    try:
        return make()
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from None
