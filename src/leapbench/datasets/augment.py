"""Random changes of training images. Everything random comes from the generator that is handed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True)
class Affine:
    """Small affine maps, one per image, bilinear, with black beyond the edge.

    Attributes:
        rotate: largest angle either way, degrees.
        shift: largest shift in each direction either way, share of the side.
        scale: largest change of the size either way, share.
    """

    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the same, each under a map of its own."""
        angle, zoom, right, down = rng.uniform(-1, 1, (4, len(pixels)))
        angle, factor = angle * math.radians(self.rotate), 1 / (1 + zoom * self.scale)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        theta = np.stack([cos, -sin, 2 * self.shift * right, sin, cos, 2 * self.shift * down], axis=1)
        grid = affine_grid(torch.from_numpy(theta.reshape(-1, 2, 3)).float(), list(pixels.shape), align_corners=False)
        return grid_sample(pixels, grid, align_corners=False)


class Distort:
    def __init__(self, *a, **k): raise NotImplementedError


def center_crop(image, resize, size): raise NotImplementedError
