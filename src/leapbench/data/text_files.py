"""The user's own text, a folder or one file: .txt (one document a file), .jsonl, .parquet and .arrow (one a row)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data.corpus import READERS, Corpus, Split, hash_files, is_long_enough, not_utf8, rows, walk

SUFFIXES = (".txt", *READERS)


def open_corpus(cfg: DatasetConfig) -> Corpus:
    """The text file `cfg.path`, or all text files below that folder, at any depth and behind links, sorted; hidden
    files and folders and other suffixes are left out.

    Raises:
        ConfigError: no such folder or file, no text file in it, a folder that cannot be read, or (on reading) a file
            that is broken or not UTF-8.
    """
    folder = Path(cfg.path or "").expanduser()
    if cfg.path and folder.is_file() and folder.suffix in SUFFIXES:
        folder, files = folder.parent, [folder]
    elif cfg.path and folder.is_dir():
        found = walk(folder, lambda name: name[0] != ".", follow=True)
        files = sorted(file for file in found if file.suffix in SUFFIXES and file.name[0] != ".")
    else:
        raise ConfigError(
            f"dataset.path={cfg.path} is not a folder, and no text file; set it to a folder of {', '.join(SUFFIXES)} "
            "files, or to one"
        )
    if not files:
        raise ConfigError(f"dataset.path={folder} holds no {', '.join(SUFFIXES)} file")
    if broken := next((file for file in files if not file.is_file()), None):
        raise ConfigError(f"{broken} is no file that can be read, or a broken link; take it out of {folder}")

    def documents() -> Iterator[tuple[str, str]]:
        for file in files:
            name = file.relative_to(folder).as_posix()
            for row, text in enumerate(_texts(file, cfg.text_column)):
                if is_long_enough(text, cfg.min_characters):
                    yield f"{name}:{row}", text

    split = Split(documents)
    return Corpus(hash_files(folder, files), split.read, split.remark)


def _texts(file: Path, column: str) -> Iterator[str]:
    if file.suffix != ".txt":
        yield from rows(file, column)
        return
    try:
        yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
