"""What every source of text provides: documents in three splits, and a hash of the content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np

from leapbench.config.errors import ConfigError
from leapbench.names import SPLITS, TRAIN, VALIDATION, VERIFICATION

HELD_OUT = 20  # one document in 20 (5 %) is kept for verification, one in 20 for validation
READERS = {".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Corpus:
    """A text in three disjoint splits.

    `sha256` identifies the content, not its place on disk. `read(split)` yields the documents of `train`,
    `verification` or `validation` in a fixed order, from the start at every call, without holding all in memory.
    `remark()`, to be asked after reading, is a sentence on how it is split, empty where there is nothing to say.
    """

    sha256: str
    read: Callable[[str], Iterator[str]]
    remark: Callable[[], str] = str  # which returns ""


def is_long_enough(text: str, min_characters: int) -> bool:
    """Whether a document has more characters than this, white space at its ends not counted; 0 drops empty ones alone.

    Leap+Verify's code (arXiv:2602.19580) keeps the lines of more than 50 so counted.
    """
    return len(text.strip() if min_characters else text) > min_characters


def split_by_name(documents: Callable[[], Iterable[tuple[str, str]]]) -> Callable[[str], Iterator[str]]:
    """Assign (name, text) documents to the splits, 90 / 5 / 5.

    The documents are ranked by a hash of their names: the first 5 % (rounded up) are verification, the next 5 %
    validation, the rest train. The result depends on the names only, not on the order or the number of the calls.
    """

    @cache
    def split_of() -> np.ndarray:
        digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name, _ in documents())
        ranking = np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64).argsort(kind="stable")
        held_out = -(-len(ranking) // HELD_OUT)
        codes = np.zeros(len(ranking), np.uint8)
        codes[ranking[:held_out]] = SPLITS.index(VERIFICATION)
        codes[ranking[held_out : 2 * held_out]] = SPLITS.index(VALIDATION)
        return codes

    def read(split: str) -> Iterator[str]:
        code = SPLITS.index(split)
        return (text for (_, text), document_code in zip(documents(), split_of(), strict=True) if document_code == code)

    return read


class Split:
    """Assigns (name, text) documents to the splits: by name, or where there are too few for that, each by position.

    By position the first 90 % of a document's characters are train, the next 5 % verification, the last 5 % validation.
    """

    def __init__(self, documents: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self.documents = documents
        self._by_name = split_by_name(documents)

    @cached_property
    def few(self) -> int:
        """How many documents there are, where those are fewer than the splits; otherwise 0."""
        count = sum(1 for _ in islice(self.documents(), len(SPLITS)))
        return count if count < len(SPLITS) else 0

    def read(self, split: str) -> Iterator[str]:
        """The documents of a split, or the parts of documents."""
        if not self.few:
            return self._by_name(split)
        return (self._part(text, split) for _, text in self.documents())

    def remark(self) -> str:
        """How it is split, where that is not by document."""
        if not self.few:
            return ""
        documents, held_out = "1 document is" if self.few == 1 else f"{self.few} documents are", 100 // HELD_OUT
        return (
            f"{documents} split by position: first {100 - 2 * held_out} % train, then {held_out} % verification, last "
            f"{held_out} % validation"
        )

    @staticmethod
    def _part(text: str, split: str) -> str:
        held_out = -(-len(text) // HELD_OUT)
        validation, verification = len(text) - held_out, len(text) - 2 * held_out
        return {
            TRAIN: text[: max(0, verification)],
            VERIFICATION: text[max(0, verification) : validation],
            VALIDATION: text[validation:],
        }[split]


def walk(folder: Path, enters: Callable[[str], bool], follow: bool) -> Iterator[Path]:
    """Every file below `folder`, in no order; a folder that is reached twice, by links, is read once.

    Args:
        enters: whether folders of this name are entered.
        follow: whether links to folders are followed.

    Raises:
        ConfigError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror}); open it, or take it out of {folder}")

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=follow):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(enters, folders))
        yield from (Path(parent, file) for file in files)


@cache
def library() -> ModuleType:
    """The `datasets` library, silent; it takes most of a second to load."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to the hub for every local file opened
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def rows(file: Path, column: str) -> Iterator[str]:
    """The texts in `column` of a .jsonl, .parquet or .arrow file, in order; missing values are skipped.

    Raises:
        ConfigError: names the file, when it cannot be read, is not UTF-8, or has no such column of text.
    """
    if not file.stat().st_size:
        return
    datasets = library()
    try:
        stream = datasets.load_dataset(READERS[file.suffix], data_files=[str(file)], split="train", streaming=True)
        for table in stream.with_format("arrow").iter(batch_size=1000):
            if column not in table.column_names:
                raise ConfigError(
                    f"{file} has no column {column}; set dataset.text_column to one of {', '.join(table.column_names)}"
                )
            for text in table[column].to_pylist():
                if isinstance(text, str):
                    yield text
                elif text is not None:
                    raise ConfigError(f"column {column} of {file} holds {type(text).__name__}, not text")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"{file} is not a readable {file.suffix} file: {first_line(error)}") from None


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Sha256, hex, over the names relative to `folder` and the bytes of `files`."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def not_utf8(file: Path, error: UnicodeDecodeError) -> ConfigError:
    """The error for a file in another encoding."""
    return ConfigError(f"{file} is not UTF-8 ({error.reason}); convert it, or take it out of the folder")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
