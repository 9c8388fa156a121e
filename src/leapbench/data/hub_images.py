"""Labelled images of the Hugging Face hub, or of a local copy of such a repository in the hub's parquet layout.

An image is a struct of its encoded bytes and its path, a label an integer.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leapbench.config.choices import Loading
from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig, ImageConfig
from leapbench.data.corpus import first_line, library
from leapbench.data.hub import folder_of, shards
from leapbench.data.images import Images, ImageSplits, Resident, Streamed, stratified

Read = Callable[[int], Image.Image]
MAGIC = 8  # bytes at the end of a parquet file: the length of its footer, and PAR1


def open_images(cfg: DatasetConfig, cache_dir: Path) -> ImageSplits:
    """The hub's train split, a part of it (every class in its share) held out for verification, and the hub's
    validation (or test) split.

    The `datasets` library turns the parquet files into memory-mapped arrow files under `cache_dir`, once.

    Raises:
        ConfigError: neither a local copy nor the network, no parquet file for a split, a missing shard, a column that
            is not there or not of images or labels, labels beyond `dataset.image.classes`, too few images to hold out,
            images of different sizes where they are to be resident.
    """
    image = cfg.image
    assert image is not None
    train_files, validation_files = _files(cfg)
    read, labels = _table(train_files, image, cache_dir)
    if not image.held_out < len(labels):
        raise ConfigError(
            f"dataset.image.held_out={image.held_out} does not fit: train has {len(labels)} images; keep at least one "
            "for training"
        )
    order = stratified(labels)
    verification, train = np.sort(order[: image.held_out]), np.sort(order[image.held_out :])
    read_validation, validation_labels = _table(validation_files, image, cache_dir)
    return ImageSplits(
        _split(read, labels, train, cfg),
        _split(read, labels, verification, cfg),
        _split(read_validation, validation_labels, np.arange(len(validation_labels)), cfg),
        content_sha256(cfg),
    )


def content_sha256(cfg: DatasetConfig) -> str:
    """The hash of the files' footers, see :func:`hash_footers`."""
    train_files, validation_files = _files(cfg)
    return hash_footers(folder_of(cfg), train_files + validation_files)


def _files(cfg: DatasetConfig) -> tuple[list[Path], list[Path]]:
    """The parquet files for training and for validation.

    Raises:
        ConfigError: there are none for one of them.
    """
    folder = folder_of(cfg)
    train_files = shards(folder, "train")
    validation_files = shards(folder, "validation") or shards(folder, "test")
    if not train_files or not validation_files:
        missing = "validation or test" if train_files else "train"
        raise ConfigError(f"{folder} has no {missing} split: no {missing}-*.parquet and no {missing}/*.parquet in it")
    return train_files, validation_files


def hash_footers(folder: Path, files: list[Path]) -> str:
    """Sha256, hex, over names, sizes and parquet footers, which hold the place and size of every piece of a column:
    the content itself is too large to read at every start.
    """
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(max(0, size - MAGIC))
            footer = int.from_bytes(stream.read(4), "little")
            stream.seek(max(0, size - MAGIC - footer))
            total.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode() + stream.read())
    return total.hexdigest()


def _table(files: list[Path], cfg: ImageConfig, cache_dir: Path) -> tuple[Read, np.ndarray]:
    """A function that decodes the image of a row, and the labels (n,) int64."""
    folder, datasets = files[0].parent, library()
    try:
        table = datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files], split="train", cache_dir=str(cache_dir / "images")
        )
        columns = [cfg.image_column, cfg.label_column]
        if len(set(columns) & set(table.column_names)) < 2:
            raise ConfigError(
                f"{folder} has no two columns {' and '.join(columns)}; set dataset.image.image_column and "
                f"dataset.image.label_column to two of {', '.join(table.column_names)}"
            )
        table = table.select_columns(columns)
        table = table.cast_column(cfg.image_column, datasets.Image(decode=False))
        labels = table.data.column(cfg.label_column).to_numpy().astype(np.int64)
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"{folder} has no readable table of images and labels: {first_line(error)}") from None
    if labels.min() < 0 or labels.max() >= cfg.classes:
        raise ConfigError(
            f"{folder} has labels from {labels.min()} to {labels.max()}, but dataset.image.classes={cfg.classes} "
            f"allows 0 to {cfg.classes - 1}"
        )
    mode = "RGB" if cfg.channels == 3 else "L"

    def read(row: int) -> Image.Image:
        try:
            return Image.open(io.BytesIO(table[row][cfg.image_column]["bytes"])).convert(mode)
        except (OSError, TypeError) as error:
            raise ConfigError(f"row {row} of {folder} is no readable image: {first_line(error)}") from None

    return read, labels


def _split(read: Read, labels: np.ndarray, rows: np.ndarray, cfg: DatasetConfig) -> Images:
    image = cfg.image
    assert image is not None
    if image.loading == Loading.streamed:
        return Streamed(lambda index: read(int(rows[index])), labels[rows], image, cfg.workers)
    with ThreadPoolExecutor(cfg.workers) as pool:
        arrays = list(pool.map(lambda row: np.array(read(int(row))), rows))
    if len({array.shape for array in arrays}) > 1:
        raise ConfigError("dataset.image.loading=resident needs images of one size; use dataset.image.loading=streamed")
    pixels = torch.from_numpy(np.stack(arrays).reshape(len(rows), *arrays[0].shape[:2], image.channels))
    return Resident(pixels.permute(0, 3, 1, 2), torch.from_numpy(labels[rows]), 255, image)
