"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, in every install, nothing to download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (its test set).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data.images import ImageSplits, Resident, stratified

WHITE = 16  # pixels count the dark dots in a square of 4 x 4
VALIDATION = 300


def bundled() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 8, 8) uint8 and labels (1797,) int64, as `sklearn.datasets.load_digits` returns them.

    Read from scikit-learn's folder without importing it, which takes a second.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("dataset=digits comes with scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def content_sha256(cfg: DatasetConfig) -> str:
    """Sha256, hex, over pixels and labels."""
    pixels, labels = bundled()
    return hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()


def open_images(cfg: DatasetConfig, cache_dir: Path) -> ImageSplits:
    """The digits, split so that every class has the same share in each split; the split is always the same.

    Raises:
        ConfigError: a key that does not fit these images.
    """
    image = cfg.image
    assert image is not None
    pixels, labels = bundled()
    if image.loading != "resident" or image.classes != 10:
        raise ConfigError("dataset.source=digits needs dataset.image.loading=resident and dataset.image.classes=10")
    train = len(labels) - VALIDATION - image.held_out
    if not 0 < train < len(labels) - VALIDATION:
        raise ConfigError(
            f"dataset.image.held_out={image.held_out} does not fit: {len(labels) - VALIDATION} of the digits are not "
            "validation; keep at least one for verification and one for training"
        )
    order = stratified(labels)
    channels = torch.from_numpy(pixels)[:, None].expand(-1, image.channels, -1, -1)
    train_split, verification, validation = (
        Resident(channels[numbers], torch.from_numpy(labels)[numbers], WHITE, image)
        for numbers in map(torch.from_numpy, np.split(order, [train, len(labels) - VALIDATION]))
    )
    return ImageSplits(train_split, verification, validation, content_sha256(cfg))
