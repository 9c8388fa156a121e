"""Labelled images of the Hugging Face hub."""

from pathlib import Path

from leapbench.config import DatasetConfig
from leapbench.datasets.images import ImageSplits


def open_images(cfg: DatasetConfig, cache_dir: Path) -> ImageSplits:
    """Not yet."""
    raise NotImplementedError
