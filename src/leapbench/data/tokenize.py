"""From documents to token ids: bytes, a byte-level BPE trained on the spot, or a tokenizer of the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig

END = "<|endoftext|>"
REMEDY = "dataset=stdlib, or dataset.tokenizer=byte, bpe or <local folder>"
SMALLEST_BPE = 257  # the 256 bytes and END

if TYPE_CHECKING:
    import tokenizers
    import transformers

Encode = Callable[[list[str]], Sequence[Sequence[int] | np.ndarray]]


@dataclass(frozen=True)
class Tokenizer:
    """A way to number text.

    `encode` turns documents into one sequence of ids each, with no special tokens added. `separator` joins documents
    in the packed layout, `pad_id` fills up sequences in the padded one. Ids are below `vocab_size`.
    """

    encode: Encode
    vocab_size: int
    separator: Sequence[int]
    pad_id: int

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest of the two dtypes used that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


def identity(cfg: DatasetConfig) -> tuple[str, Callable[[Iterable[str]], Tokenizer]]:
    """A string that is equal for equal tokenizers, and a function that makes it, given the train documents.

    Raises:
        ConfigError: `vocab_size` is too small for a BPE or not that of bytes, or the tokenizer cannot be loaded.
    """
    if cfg.tokenizer == "byte":
        if cfg.vocab_size not in (None, BYTE.vocab_size):
            raise ConfigError(
                f"dataset.vocab_size={cfg.vocab_size} is not for tokenizer=byte, which has {BYTE.vocab_size} entries; "
                "leave it out, or use dataset.tokenizer=bpe"
            )
        return "byte", lambda documents: BYTE
    if cfg.tokenizer == "bpe":
        if cfg.vocab_size is None or cfg.vocab_size < SMALLEST_BPE:
            raise ConfigError(
                f"dataset.vocab_size={cfg.vocab_size} is too small for tokenizer=bpe; use {SMALLEST_BPE} or more"
            )
        return f"bpe {cfg.vocab_size}", partial(_train_bpe, vocab_size=cfg.vocab_size)
    name, loaded = _from_hub(cfg.tokenizer)
    return name, lambda documents: loaded


BYTE = Tokenizer(
    encode=lambda documents: [np.frombuffer(text.encode(), np.uint8) for text in documents],
    vocab_size=256,
    separator=b"\n",
    pad_id=0,
)


def _train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries; `END` is entry 0."""
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return Tokenizer(partial(_encode, bpe), bpe.get_vocab_size(), separator=[0], pad_id=0)


def _from_hub(name: str) -> tuple[str, Tokenizer]:
    """A published tokenizer by hub name or local folder; documents are joined by its end-of-text token."""

    import transformers

    from leapbench.data.hub import fetch

    transformers.logging.set_verbosity_error()

    def load(local_files_only: bool) -> transformers.PreTrainedTokenizerBase:
        return transformers.AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)

    published = fetch("dataset.tokenizer", name, load, REMEDY)
    end = published.eos_token_id
    pad = published.pad_token_id if published.pad_token_id is not None else end
    encode: Encode
    if published.is_fast:
        backend = published.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encode, content = partial(_encode, backend), backend.to_str()
    else:
        encode, content = partial(_encode_slow, published), json.dumps(published.get_vocab(), sort_keys=True)
    separator = [end] if end is not None else list(encode(["\n"])[0])
    tokenizer = Tokenizer(encode, len(published), separator, pad_id=pad or 0)
    return hashlib.sha256(f"{content} {separator} {pad}".encode()).hexdigest(), tokenizer


def _encode(tokenizer: tokenizers.Tokenizer, documents: list[str]) -> list[Sequence[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]


def _encode_slow(tokenizer: transformers.PreTrainedTokenizerBase, documents: list[str]) -> list[Sequence[int]]:
    return tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]


def batches(documents: Iterator[str], size: int = 1000) -> Iterator[list[str]]:
    """Documents in lists of `size`."""
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
