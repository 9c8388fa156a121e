"""Run one of sweeps/*.yaml: python scripts/sweep.py NAME [--dry-run] [--allow-dirty] [-- extra overrides].

A sweep file holds `title`, `published` (where the paper prints the table), `table` (our tables it feeds), `suite`,
`overrides` and `axes`. With `commands`, each entry is a command line of its own: its overrides are added to the
file's, its axes and its suite replace the file's.

All command lines are resolved before the first one runs. While they run, a line on stderr says how many runs have
ended and how long the rest will take; a command line whose runs have all ended is passed over.

Code with changes that are not committed is refused, unless --allow-dirty (or -- allow_dirty=true) is given.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import yaml

from leapbench.cluster.progress import Progress, duration
from leapbench.config.errors import ConfigError
from leapbench.records import commit
from leapbench.records.plan import PlannedRun

PROJECT = Path(__file__).resolve().parents[1]
RUNS_FAILED = 1
INTERRUPTED = 130
# Seconds between two looks at the run folders, and between two progress lines where they cannot overwrite each other.
LOOK_S, LINE_S = 2.0, 60.0
# Command lines that are resolved at a time.
PLANNERS = 2


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


class PlanError(Exception):
    """A command line that does not resolve: what train.py wrote to stderr, and its exit status."""


def plan(line: list[str], cwd: Path = PROJECT) -> list[PlannedRun]:
    """The runs of one command line.

    Raises:
        PlanError: it does not resolve.
    """
    command = [sys.executable, *line, "hydra.sweeper.dry_run=true"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise PlanError(done.stderr.strip(), done.returncode)
    runs = [PlannedRun.parse(row) for row in done.stdout.splitlines() if row.startswith("{")]
    return [replace(run, folder=cwd / run.folder) for run in runs]


class Screen:
    """Passes on what a command prints and keeps one progress line below it; safe between threads."""

    def __init__(self, err: IO[str], out: IO[str]) -> None:
        self.err, self.out = err, out
        self.rewrites = err.isatty()
        self.lock = threading.Lock()
        self.shown, self.shown_at = "", -LINE_S

    def progress(self, line: str, now: float) -> None:
        """Replace the progress line; where that is impossible, print it at most once in LINE_S seconds."""
        with self.lock:
            if self.rewrites:
                self.err.write(f"\r\033[K{line}")
            elif line != self.shown and now - self.shown_at >= LINE_S:
                self.err.write(f"{line}\n")
                self.shown_at = now
            else:
                return
            self.shown = line
            self.err.flush()

    def forward(self, source: IO[str], target: IO[str]) -> None:
        """Copy the lines of `source` to `target` until it ends."""
        for line in source:
            self.write(line, target)

    def write(self, line: str, target: IO[str]) -> None:
        """Print one line above the progress line."""
        with self.lock:
            if self.rewrites:
                self.err.write("\r\033[K")
                self.err.flush()
            target.write(line)
            target.flush()
            if self.rewrites:
                self.err.write(self.shown)
                self.err.flush()

    def finish(self, line: str) -> None:
        """Leave `line` where the progress line was."""
        self.shown = ""
        self.write(f"{line}\n", self.err)


def execute(line: list[str], screen: Screen, tick: Callable[[], None], cwd: Path = PROJECT) -> int:
    """Run one command line to its end, calling `tick` every LOOK_S seconds; its exit status."""
    # Progress bars of single runs would write over the sweep's line; what follows -- may ask for them again.
    command = [sys.executable, *line[:2], "progress=false", *line[2:]]
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stderr
    pumps = [
        threading.Thread(target=screen.forward, args=streams, daemon=True)
        for streams in ((child.stdout, screen.out), (child.stderr, screen.err))
    ]
    for pump in pumps:
        pump.start()
    try:
        while True:
            try:
                status = child.wait(LOOK_S)
                break
            except subprocess.TimeoutExpired:
                tick()
    except KeyboardInterrupt:  # the terminal has interrupted the command too; let it end its runs
        child.wait()
        status = INTERRUPTED
    for pump in pumps:
        pump.join(LOOK_S)
    return status


def run(name: str, lines: list[list[str]], screen: Screen, cwd: Path = PROJECT) -> int:
    """Plan all command lines, then run those that have something left to do; the worst exit status.

    Raises:
        PlanError: one of them does not resolve; nothing has been run.
    """
    with ThreadPoolExecutor(PLANNERS) as pool:
        plans = list(pool.map(lambda line: plan(line, cwd), lines))
    progress = Progress(name, (run for planned in plans for run in planned))
    worst = 0

    def tick() -> None:
        progress.look()
        screen.progress(progress.line(), time.monotonic())

    try:
        for line, planned in zip(lines, plans, strict=True):
            left = progress.still_open(planned)
            state = f"{len(left)} of {len(planned)} runs to do" if left else f"all {len(planned)} runs have ended"
            screen.write(f"{shlex.join(['python', *line])}\n  # {state}\n", screen.out)
            if not left:
                continue
            tick()
            status = execute(line, screen, tick, cwd)
            progress.look()
            if status not in (0, RUNS_FAILED):
                return status
            worst = max(worst, status)
    finally:
        screen.finish(f"{progress.line()} ({duration(progress.now() - progress.start)})")
    return worst


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options in front of `--`, and the overrides behind it; --allow-dirty is allow_dirty=true among them."""
    parser.epilog = "What follows -- is added to every command line."
    parser.add_argument("name", metavar="NAME", help="a file in sweeps/, without .yaml")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run")
    parser.add_argument("--allow-dirty", action="store_true", help="run code that differs from its commit")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args, extra = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    if args.allow_dirty:
        extra = [*extra, "allow_dirty=true"]
    args.allow_dirty = "allow_dirty=true" in extra
    return args, extra


def main() -> int:
    """Print every command line and, without --dry-run, run them one after the other."""
    args, extra = parse(argparse.ArgumentParser(description="Run one of sweeps/*.yaml."), sys.argv[1:])
    try:
        lines = commands(args.name, extra)
        if args.dry_run:
            for line in lines:
                print(shlex.join(["python", *line]))
            return 0
        if not args.allow_dirty:
            commit.require_clean()
        return run(args.name, lines, Screen(sys.stderr, sys.stdout))
    except (LookupError, ConfigError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    except PlanError as error:
        print(error.args[0], file=sys.stderr)
        return error.args[1]
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
