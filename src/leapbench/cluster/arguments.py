"""The command line that scripts/sweep.py, scripts/submit.py and scripts/judge.py share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def parser(description: str | None, folder: str = "sweeps") -> argparse.ArgumentParser:
    """NAME, --dry-run and --allow-dirty; what follows -- are overrides."""
    options = argparse.ArgumentParser(
        description=description, epilog="What follows -- is added to every command line.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_argument("name", metavar="NAME", help=f"a file in {folder}/, without .yaml")
    options.add_argument("--dry-run", action="store_true", help="only print what would be run")
    options.add_argument("--allow-dirty", action="store_true", help="run code that differs from its commit")
    return options


def read(
    options: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The options in front of `--`, and the overrides behind it; --allow-dirty is allow_dirty=true among them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    separator = words.index("--") if "--" in words else len(words)
    args, extra = options.parse_args(words[:separator]), words[separator + 1 :]
    if args.allow_dirty:
        extra = [*extra, "allow_dirty=true"]
    args.allow_dirty = "allow_dirty=true" in extra
    return args, extra
