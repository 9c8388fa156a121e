"""A folder of the user's own text: .txt (one document a file), .jsonl, .parquet and .arrow (one document a row)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data.corpus import READERS, Corpus, hash_files, is_long_enough, not_utf8, rows, split_by_name

SUFFIXES = (".txt", *READERS)


def open_corpus(cfg: DatasetConfig) -> Corpus:
    """All text files under `cfg.path`, at any depth, sorted; hidden files and other suffixes are left out.

    Raises:
        ConfigError: no such folder, no text file in it, or (on reading) a file that is broken or not UTF-8.
    """
    if not cfg.path or not (folder := Path(cfg.path).expanduser()).is_dir():
        raise ConfigError(f"dataset.path={cfg.path} is not a folder; set it to a folder of {', '.join(SUFFIXES)} files")
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in SUFFIXES and file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise ConfigError(f"dataset.path={folder} holds no {', '.join(SUFFIXES)} file")

    def documents() -> Iterator[tuple[str, str]]:
        for file in files:
            name = file.relative_to(folder).as_posix()
            for row, text in enumerate(_texts(file, cfg.text_column)):
                if is_long_enough(text, cfg.min_characters):
                    yield f"{name}:{row}", text

    return Corpus(hash_files(folder, files), split_by_name(documents))


def _texts(file: Path, column: str) -> Iterator[str]:
    if file.suffix != ".txt":
        yield from rows(file, column)
        return
    try:
        yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
