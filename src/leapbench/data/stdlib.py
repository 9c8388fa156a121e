"""The source text of the running Python's own standard library: real text on every install, nothing to download."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.data.corpus import Corpus, is_long_enough, split_by_name, walk

INSTALLED = {"site-packages", "dist-packages", "__pycache__"}  # folders that are not the library's own


def open_corpus(cfg: DatasetConfig) -> Corpus:
    """All .py files under the library's folder (or `cfg.path`), sorted, one document each.

    Installed packages are left out, and so are the few files of the library's own tests that are deliberately not
    UTF-8.

    Raises:
        ConfigError: the folder does not exist or holds no .py file.
    """
    folder = Path(cfg.path or os.path.dirname(os.__file__)).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"dataset.path={folder} is not a folder; leave it null for the running Python's library")
    documents: list[tuple[str, str]] = []
    total = hashlib.sha256()
    for name in sorted(_sources(folder)):
        content = (folder / name).read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        total.update(name.encode() + b"\0" + len(content).to_bytes(8) + content)
        if is_long_enough(text, cfg.min_characters):
            documents.append((name, text))
    if not documents:
        raise ConfigError(f"{folder} holds no .py files; set dataset.path to a Python library folder, or leave it null")
    return Corpus(total.hexdigest(), split_by_name(lambda: documents))


def _sources(folder: Path) -> Iterator[str]:
    """Names of the .py files relative to `folder`, with forward slashes."""
    for file in walk(folder, lambda name: name not in INSTALLED, follow=False):
        if file.name.endswith(".py"):
            yield file.relative_to(folder).as_posix()
