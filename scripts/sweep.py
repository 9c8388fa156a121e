"""Run one of sweeps/*.yaml: python scripts/sweep.py NAME [--dry-run] [-- extra overrides].

A sweep file holds `title`, `published` (where the paper prints the table), `table` (our tables it feeds), `suite`,
`overrides` and `axes`. With `commands`, each entry is a command line of its own: its overrides are added to the
file's, its axes and its suite replace the file's.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
RUNS_FAILED = 1


def commands(name: str, extra: list[str], folder: Path = PROJECT / "sweeps") -> list[list[str]]:
    """The arguments of `python` for sweep `name`, one list per command line.

    Raises:
        LookupError: for an unknown name; the message is one line.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise LookupError(f"sweep {name} does not exist; {hint}")
    spec = yaml.safe_load((folder / f"{name}.yaml").read_text())
    return [_command(spec, own, extra) for own in spec.get("commands", [{}])]


def _command(spec: dict[str, Any], own: dict[str, Any], extra: list[str]) -> list[str]:
    axes = spec.get("axes", {}) | own.get("axes", {})
    swept = [f"{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in axes.items()]
    overrides = [*spec.get("overrides", []), *own.get("overrides", [])]
    return ["train.py", "-m", f"suite={own.get('suite', spec.get('suite'))}", *overrides, *swept, *extra]


def main() -> int:
    """Print every command line and, without --dry-run, run them one after the other."""
    parser = argparse.ArgumentParser(
        description="Run one of sweeps/*.yaml.", epilog="What follows -- is added to every command line."
    )
    parser.add_argument("name", metavar="NAME", help="a file in sweeps/, without .yaml")
    parser.add_argument("--dry-run", action="store_true", help="only print the command lines")
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:cut])
    try:
        lines = commands(args.name, arguments[cut + 1 :])
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    worst = 0
    for line in lines:
        print(shlex.join(["python", *line]), flush=True)
        if args.dry_run:
            continue
        try:
            status = subprocess.call([sys.executable, *line], cwd=PROJECT)
        except KeyboardInterrupt:
            return 130
        if status not in (0, RUNS_FAILED):
            return status
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
