"""Text as arrays of token ids: :func:`load` returns the three splits of a data set, tokenised once and cached.

A source is one file with `open_corpus(cfg) -> Corpus`; it knows where documents come from and how they are split. Here
they become sequences, which are stored under a hash of everything they depend on and opened as memory maps. Labelled
images come from :func:`load_images`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from leapbench.config.choices import SequenceLayout, Source
from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.config.remarks import remark
from leapbench.data.corpus import Corpus
from leapbench.data.prompts import prompts
from leapbench.data.tokenize import Tokenizer, batches, identity
from leapbench.names import SPLITS, TRAIN
from leapbench.records.files import read_object, whole
from leapbench.records.lock import HeldError, Lock

if TYPE_CHECKING:
    from leapbench.data.images import ImageSplits

# The file of each source, imported on first use: some need libraries that take a second to load.
SOURCES = {Source.stdlib: "stdlib", Source.text_files: "text_files", Source.hub: "hub"}
IMAGE_SOURCES = {Source.digits: "digits", Source.hub: "hub_images"}
WAIT_S = 0.5  # seconds between two checks of a cache that another process is making
VERSION = 2  # to be raised when the same corpus and tokenizer would give other content


@dataclass(frozen=True, eq=False)
class Tokens:
    """One split. `ids` (n, tokens), a read-only memory map; `lengths` (n,) of the padded layout, None when packed."""

    ids: np.ndarray
    lengths: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """Sequences by number: `input_ids` (B, tokens), and when padded `attention_mask` (B, tokens), both int64."""
        numbers = np.asarray(indices, dtype=np.int64)
        batch = {"input_ids": torch.from_numpy(self.ids[numbers].astype(np.int64))}
        if self.lengths is not None:
            mask = np.arange(self.ids.shape[1]) < self.lengths[numbers][:, None]
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return batch


@dataclass(frozen=True, eq=False)
class TextSplits:
    """A data set: training may use `train`, methods may look at `verification`, only the scorer at `validation`.

    Ids are below `vocab_size`; `pad_id` fills padded sequences; `sha256` is that of the source's content; `prompts` are
    the token ids of :func:`leapbench.data.prompts.prompts`.
    """

    train: Tokens
    verification: Tokens
    validation: Tokens
    vocab_size: int
    pad_id: int
    sha256: str
    prompts: list[list[int]]

    def prompt_batch(self, tokens: int) -> dict[str, torch.Tensor]:
        """All prompts, cut to `tokens` and filled up to the longest: `input_ids` and `attention_mask`, int64."""
        kept = [ids[:tokens] for ids in self.prompts]
        longest = max(map(len, kept))
        filled = [ids + [self.pad_id] * (longest - len(ids)) for ids in kept]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in kept]
        return {"input_ids": torch.tensor(filled), "attention_mask": torch.tensor(mask)}


def load(cfg: DatasetConfig, cache_dir: Path) -> TextSplits:
    """The data set `cfg` describes, from the cache if it has been tokenised before.

    packed: documents joined by the tokenizer's separator and cut into sequences of `cfg.tokens`; the rest is dropped.
    padded: one document is one sequence, truncated and filled up to `cfg.tokens`.
    Documents of no more than `cfg.min_characters` characters, white space at their ends not counted, are left out.
    Several processes may load at once.

    Raises:
        ConfigError: one line, for a source or tokenizer that cannot be loaded, a split without a single sequence, or a
            cache that cannot be written.
    """
    if cfg.hold_out_last is not None and cfg.source != Source.hub:
        raise ConfigError(
            f"dataset.hold_out_last={cfg.hold_out_last} needs dataset.source=hub; others split by document"
        )
    if cfg.source not in SOURCES or cfg.tokens is None:
        raise ConfigError(
            f"dataset.source={cfg.source} is read as text, which needs dataset.tokens and dataset.source="
            f"{' or '.join(SOURCES)}"
        )
    corpus = _file(SOURCES[cfg.source]).open_corpus(cfg)
    tokenizer_id, make_tokenizer = identity(cfg)
    parts = (VERSION, cfg.source, corpus.sha256, tokenizer_id, cfg.layout, cfg.tokens, cfg.min_characters,
             cfg.hold_out_last, cfg.text_column)  # fmt: skip
    folder = Path(cache_dir).expanduser() / sha256(json.dumps(parts).encode()).hexdigest()
    if not folder.is_dir():
        lock = _wait_for_lock(folder, cache_dir)
        try:
            if not folder.is_dir():  # another process may have made it meanwhile
                _build(folder, corpus, make_tokenizer, cfg)
        finally:
            lock.release()
    meta = read_object(folder / "meta.json", f"delete {folder}, and it is made again") or {}
    if not {"dtype", "vocab_size", "pad_id", "prompts"} <= meta.keys():
        raise ConfigError(f"{folder} is damaged; delete it, and it is made again")
    if meta.get("remark"):
        remark(f"dataset.path={cfg.path}: {meta['remark']}")
    try:
        train, verification, validation = (_open(folder / split, meta["dtype"], cfg) for split in SPLITS)
    except (OSError, ValueError):
        raise ConfigError(f"{folder} is damaged; delete it, and it is made again") from None
    return TextSplits(
        train, verification, validation, meta["vocab_size"], meta["pad_id"], corpus.sha256, meta["prompts"]
    )


def load_images(cfg: DatasetConfig, cache_dir: Path) -> ImageSplits:
    """The labelled images `cfg` describes; those of the hub are kept under `cache_dir` as the `datasets` library does.

    Raises:
        ConfigError: one line, for a source that cannot be loaded or keys that do not fit it.
    """
    image = cfg.image
    assert image is not None
    if cfg.source not in IMAGE_SOURCES:
        raise ConfigError(f"dataset.source={cfg.source} has no images; use {' or '.join(IMAGE_SOURCES)}")
    return _file(IMAGE_SOURCES[cfg.source]).open_images(cfg, cache_dir)


def content_sha256(cfg: DatasetConfig) -> str | None:
    """The hash that a run would record of its data; None where they are not on this machine."""
    if cfg.source == Source.hub and not Path(str(cfg.path)).expanduser().is_dir():
        return None
    try:
        if cfg.image is not None:
            return str(_file(IMAGE_SOURCES[cfg.source]).content_sha256(cfg))
        return str(_file(SOURCES[cfg.source]).open_corpus(cfg).sha256)
    except (ConfigError, OSError, KeyError):
        return None


def _file(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _wait_for_lock(folder: Path, cache_dir: Path) -> Lock:
    """The lock of `folder`, once no other process holds it: of many jobs that start at once, one does the work."""
    lock = Lock(folder.with_name(f"{folder.name}.lock"))
    while True:
        try:
            lock.acquire()
            return lock
        except HeldError:
            time.sleep(WAIT_S)
        except OSError as error:
            raise ConfigError(f"cache_dir={cache_dir} cannot be written: {error.strerror}") from None


def _build(
    folder: Path, corpus: Corpus, make_tokenizer: Callable[[Iterator[str]], Tokenizer], cfg: DatasetConfig
) -> None:
    """Tokenise all splits."""
    for abandoned in folder.parent.glob(f"{folder.name}.draft-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with whole(folder) as draft:
        tokenizer = make_tokenizer(corpus.read(TRAIN))
        for split in SPLITS:
            _write(draft / split, corpus.read(split), tokenizer, cfg)
        meta = {
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "dtype": np.dtype(tokenizer.dtype).name,
            "remark": corpus.remark(),
            "prompts": [[int(token) for token in ids] for ids in tokenizer.encode(prompts())],
        }
        (draft / "meta.json").write_text(json.dumps(meta))


def _write(stem: Path, documents: Iterator[str], tokenizer: Tokenizer, cfg: DatasetConfig) -> None:
    """Tokenise one split into `<stem>.ids` and, when padded, `<stem>.lengths`: raw arrays, written batch by batch."""
    separator = np.asarray(list(tokenizer.separator), tokenizer.dtype)
    size, lengths, tokens = 0, [], cfg.tokens
    assert tokens is not None
    with stem.with_suffix(".ids").open("wb") as file:
        for batch in batches(documents):
            for ids in tokenizer.encode(batch):
                document = np.asarray(ids, tokenizer.dtype)
                if cfg.layout == SequenceLayout.packed:
                    pieces = [separator, document] if size else [document]
                elif len(document):
                    lengths.append(min(len(document), tokens))
                    fill = np.full(tokens - lengths[-1], tokenizer.pad_id, tokenizer.dtype)
                    pieces = [document[:tokens], fill]
                else:
                    continue
                for piece in pieces:
                    piece.tofile(file)
                    size += len(piece)
        rows = size // tokens
        file.truncate(rows * tokens * separator.itemsize)
    if not rows:
        raise ConfigError(
            f"dataset.name={cfg.name}: the {stem.name} split has no sequence of {cfg.tokens} tokens; "
            "lower dataset.tokens, or add text (a .txt file or a row is one document, and a document is in one split)"
        )
    if cfg.layout == SequenceLayout.padded:
        np.asarray(lengths, np.int32).tofile(stem.with_suffix(".lengths"))


def _open(stem: Path, dtype: str, cfg: DatasetConfig) -> Tokens:
    assert cfg.tokens is not None
    ids = np.memmap(stem.with_suffix(".ids"), dtype, mode="r").reshape(-1, cfg.tokens)
    return Tokens(
        ids, np.fromfile(stem.with_suffix(".lengths"), np.int32) if cfg.layout == SequenceLayout.padded else None
    )
