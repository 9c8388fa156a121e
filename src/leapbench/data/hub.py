"""Data sets of the Hugging Face hub, or local copies of such a repository in the hub's parquet layout.

Two layouts exist: `<subset>/train-00000-of-00002.parquet` (main branch, as wikitext) and `<subset>/train/0000.parquet`
(branch refs/convert/parquet, as lm1b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.utils import get_session

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data.corpus import HELD_OUT, Corpus, first_line, hash_files, is_long_enough, rows
from leapbench.names import TRAIN, VALIDATION

T = TypeVar("T")
TIMEOUT_S = 5

huggingface_hub.logging.set_verbosity_error()
huggingface_hub.utils.disable_progress_bars()


def open_corpus(cfg: DatasetConfig) -> Corpus:
    """The hub's train split, its end held out for verification, and the hub's validation (or test) split.

    Verification is the last `cfg.hold_out_last` of the train samples that are longer than `cfg.min_characters`, or
    the last 5 % when that is null.

    Raises:
        ConfigError: neither a local copy nor the network, no parquet file for a split, a missing shard, or fewer
            train samples than are to be held out.
    """
    folder = folder_of(cfg)
    train = shards(folder, "train")
    validation = shards(folder, "validation") or shards(folder, "test")
    if not train or not validation:
        missing = "train" if not train else "validation or test"
        raise ConfigError(f"{folder} has no {missing} split: no {missing}-*.parquet and no {missing}/*.parquet in it")

    def documents(files: list[Path]) -> Iterator[str]:
        texts = chain.from_iterable(rows(file, cfg.text_column) for file in files)
        return (text for text in texts if is_long_enough(text, cfg.min_characters))

    @cache
    def first_held_out() -> int:
        samples = sum(1 for _ in documents(train))
        held_out = -(-samples // HELD_OUT) if cfg.hold_out_last is None else cfg.hold_out_last
        if not 0 < held_out < samples:
            raise ConfigError(
                f"dataset.hold_out_last={cfg.hold_out_last} does not fit: train has {samples} samples of more than "
                f"{cfg.min_characters} characters; keep at least one for verification and one for training"
            )
        return samples - held_out

    def read(split: str) -> Iterator[str]:
        if split == VALIDATION:
            return documents(validation)
        if split == TRAIN:
            return islice(documents(train), first_held_out())
        return islice(documents(train), first_held_out(), None)

    return Corpus(hash_files(folder, train + validation), read)


def fetch(key: str, name: str, load: Callable[[bool], T], remedy: str) -> T:
    """`load(local_files_only)`: from this machine if all of `name` is there, else from the hub if it answers in time.

    A single probe of a few seconds decides whether the hub can be reached, since its own client retries each
    request for half a minute or more.

    Raises:
        ConfigError: one line that says why `key`=`name` could not be loaded, and the `remedy`.
    """
    try:
        return load(True)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise ConfigError(f"{key}={name} cannot be loaded: {first_line(error)}; use {remedy}") from None
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        get_session().head(endpoint, timeout=TIMEOUT_S)
    except Exception:
        raise ConfigError(f"{key}={name} is not on this machine and {endpoint} is out of reach; use {remedy}") from None
    try:
        return load(False)
    except Exception as error:  # the hub's client lets its HTTP library's errors through, which share no base class
        raise ConfigError(f"{key}={name} cannot be loaded: {first_line(error)}; use {remedy}") from None


def folder_of(cfg: DatasetConfig) -> Path:
    """The folder of the subset: in the local copy, or downloaded."""
    if not cfg.path:
        raise ConfigError("dataset.path is empty; set it to a hub name or to a local copy of a hub repository")
    root = Path(cfg.path).expanduser()
    if not root.is_dir():
        pattern = f"{cfg.subset}/*.parquet" if cfg.subset else "*.parquet"

        def download(local_files_only: bool) -> str:
            return huggingface_hub.snapshot_download(
                str(cfg.path),
                repo_type="dataset",
                revision=cfg.revision,
                allow_patterns=pattern,
                local_files_only=local_files_only,
            )

        embedded = "stdlib" if cfg.image is None else "digits"
        root = Path(fetch("dataset.path", cfg.path, download, f"dataset={embedded}, or dataset.path=<local copy>"))
    folder = root / (cfg.subset or "")
    if not folder.is_dir():
        raise ConfigError(f"{root} has no folder {cfg.subset}; dataset.subset names a folder of parquet files in it")
    return folder


def shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order; all of them, where the names say how many there are."""
    files = sorted({*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}/*.parquet")})
    for file in files:
        total = file.stem.rpartition("-of-")[2]
        if total.isdigit() and file.stem.startswith(f"{split}-") and int(total) != len(files):
            raise ConfigError(f"{folder} has {len(files)} of the {int(total)} {split} files; complete the copy")
    return files
