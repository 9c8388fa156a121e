"""Runs that are killed, interrupted (Ctrl-C) and terminated: python checks/interrupts.py [--moments 50] [--seed 0].

A run writes a checkpoint at every step. At random moments it gets SIGKILL, SIGINT or SIGTERM in turn, and the same
command goes on, again and again until the run is complete; then the next one begins. No run may be marked failed, no
command may show a traceback, every exit status must be the signal's, and every row but its seconds must be that of the
same run left alone. Some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos import provenance
from leapbench.names import CHECKPOINT, CONFIG, EVALS, LOCK, PROJECT, STREAMS, SUMMARY, Status
from leapbench.records.files import read_summary
from leapbench.records.lock import read_owner
from same_rows import untimed

STEPS = 200
# A step takes about as long as the checkpoint after it, so that many signals arrive while one is written.
RUN = (
    "predictor=[linear,momentum]", "K=[10,20]", "regime=published", f"train.steps={STEPS}", "train.interval=10",
    "train.batch_size=2", "schedule.warmup=10", "eval.every=40", "eval.sequences=16", "verify.sequences=4",
    "verify.batch_size=4", "regime.probes=4", "regime.probe_tokens=16",
    "checkpoint.every_s=null", "checkpoint.every_steps=1", "device=cpu", "progress=false",
)  # fmt: skip
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
LIMIT_S = 600.0


@dataclass
class Findings:
    """What has happened so far; a count for each signal by its name.

    Attributes:
        injected: signals that met a run; writing: those of them sent while a checkpoint was written.
        failed: runs marked so by it; wrong: other exit statuses than the signal's; tracebacks: shown by a command.
    """

    injected: Counter[str] = field(default_factory=Counter)
    writing: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    different: int = 0


class Runner:
    """Starts the same run in one suite after the other."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.env = scratch, {**os.environ, "PYTHONPATH": str(PROJECT / "src")}

    def start(self, suite: str) -> subprocess.Popen[str]:
        """`python train.py` in a process of its own."""
        words = (*RUN, f"suite={suite}", f"results_dir={self.scratch / 'raw'}", f"cache_dir={self.scratch / 'cache'}")
        command = [sys.executable, str(PROJECT / "train.py"), *words]
        return subprocess.Popen(command, cwd=self.scratch, env=self.env, stderr=subprocess.PIPE, text=True)

    def folder(self, suite: str) -> Path | None:
        """The run's folder, once it is there."""
        return next((path for path in (self.scratch / "raw" / suite).glob("[!.]*") if path.is_dir()), None)

    def whole(self, suite: str) -> tuple[dict[str, list[str]], float]:
        """The rows of the run left alone, and the seconds from its first file to its last."""
        child = self.start(suite)
        _, err = child.communicate(timeout=LIMIT_S)
        folder = self.folder(suite)
        if child.returncode or folder is None:
            raise RuntimeError(err)
        return rows(folder), (folder / SUMMARY).stat().st_mtime - (folder / CONFIG).stat().st_mtime

    def interrupt(self, suite: str, kind: signal.Signals, delay_s: float, findings: Findings) -> bool:
        """Start the run, send the signal `delay_s` seconds after it took its lock; whether it is complete."""
        child, name = self.start(suite), kind.name
        began = time.monotonic()
        while child.poll() is None and time.monotonic() - began < LIMIT_S:
            folder = self.folder(suite)
            if folder is not None and read_owner(folder / LOCK).get("pid") == child.pid:
                break
            time.sleep(0.005)
        time.sleep(delay_s)
        folder = self.folder(suite)
        writing = folder is not None and any((folder / CHECKPOINT).parent.glob("*.part"))
        child.send_signal(kind)
        _, err = child.communicate(timeout=LIMIT_S)
        summary = read_summary(folder) if folder is not None else None
        if summary is not None and summary["status"] == Status.completed:  # the signal came too late
            return True
        findings.injected[name] += 1
        findings.writing[name] += writing
        findings.wrong[name] += child.returncode != EXPECTED[kind]
        findings.tracebacks[name] += "Traceback" in err
        if "Traceback" in err or child.returncode != EXPECTED[kind]:
            print(err, file=sys.stderr, flush=True)
        findings.failed[name] += summary is not None
        return False


def rows(folder: Path) -> dict[str, list[str]]:
    """The rows of a run by file, without their seconds."""
    return {stream: untimed(folder / stream) for stream in STREAMS}


def disturb(runner: Runner, moments: int, rng: random.Random) -> Findings:
    """Interrupt one run after the other until as many signals have met a run; the last run is completed too."""
    findings = Findings()
    expected, seconds = runner.whole("undisturbed")
    print(f"undisturbed: {seconds:.1f} s, {len(expected[EVALS])} evaluations", flush=True)
    kinds = list(EXPECTED)
    while (met := findings.injected.total()) < moments:
        suite, complete = f"disturbed{findings.runs}", False
        while not complete and (met := findings.injected.total()) < moments:
            kind = kinds[met % len(kinds)]
            complete = runner.interrupt(suite, kind, rng.uniform(0.0, 0.5 * seconds), findings)
        if not complete:
            _, err = runner.start(suite).communicate(timeout=LIMIT_S)
            findings.tracebacks["none"] += "Traceback" in err
        folder = runner.folder(suite)
        different = folder is None or not (folder / SUMMARY).is_file() or rows(folder) != expected
        findings.runs, findings.different = findings.runs + 1, findings.different + different
        print(f"{suite}: {'DIFFERENT' if different else 'identical'} after {met} signals in all", flush=True)
    return findings


def write(out: Path, seed: int, findings: Findings) -> None:
    """interrupts.md."""
    out.mkdir(parents=True, exist_ok=True)
    titles = {"injected": "met a run", "writing": "during the write of a checkpoint", "wrong": "other exit status"}
    titles |= {"failed": "marked failed", "tracebacks": "tracebacks"}
    lines = [
        "# Runs that are killed, interrupted and terminated", "",
        f"`python checks/interrupts.py --moments {findings.injected.total()} --seed {seed}`: gpt2_nano on stdlib, "
        f"{STEPS} steps, a checkpoint at every step, signals at random moments; {provenance()}. Exit statuses: "
        + ", ".join(f"{kind.name} {status}" for kind, status in EXPECTED.items()) + ".", "",
        f"| signal | {' | '.join(titles.values())} |", f"|---|{'---:|' * len(titles)}",
        *(f"| {kind.name} | {' | '.join(str(getattr(findings, key)[kind.name]) for key in titles)} |"
          for kind in EXPECTED), "",
        f"{findings.runs} runs completed by the same command repeated; rows that differ from the run left alone: in "
        f"{findings.different} of them.", "",
    ]  # fmt: skip
    (out / "interrupts.md").write_text("\n".join(lines))


def main() -> int:
    """Disturb, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "checks" / "interrupts")
    parser.add_argument("--moments", type=int, default=50, help="signals that meet a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs would hand on that it is ignored
    with tempfile.TemporaryDirectory(prefix="interrupts") as folder:
        findings = disturb(Runner(Path(folder)), args.moments, random.Random(args.seed))
    write(args.out, args.seed, findings)
    print((args.out / "interrupts.md").read_text())
    bad = findings.failed.total() + findings.wrong.total() + findings.tracebacks.total() + findings.different
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
