"""A sweep while things go wrong: python checks/chaos.py [--out results/checks/chaos] [--seed 0].

sweeps/chaos.yaml, twenty runs, is submitted to a real Slurm of one node with scripts/submit.py, with its results on a
small disk of their own. Jobs are killed with -9, requeued and preempted, the controller is killed and started again,
the disk is full for a while, at times drawn from --seed. Meanwhile somebody gives the same command again every
RESUBMIT_S seconds, until scripts/status.py says that all runs are complete. Then every row and every table is compared
to those of the same sweep, undisturbed, with the local launcher. Needs root and Slurm's packages; twenty minutes on two
cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from leapbench.cluster.slurm import queue, submissions
from leapbench.cluster.status import Survey
from leapbench.names import META, PROJECT, STREAMS, SUMMARY
from leapbench.records import commit
from same_rows import untimed
from slurm_cluster import SlurmCluster, checkout, unavailable

SUITE = "chaos"
DECK = {"kill -9": 5, "scontrol requeue": 4, "scancel --signal=USR2": 4, "controller killed": 2, "disk full": 2}
RESUBMIT_S = 20.0
AWAY_S, FULL_S = 10.0, 15.0  # how long the controller is away, and the disk full
BETWEEN_S = (5.0, 20.0)  # from one fault to the next
RUNS = 20
DISK = "1g"
LAUNCHER = ("hydra.launcher.mem_gb=1", "hydra.launcher.array_parallelism=1", "checkpoint.every_s=5", "device=cpu")
# Columns that depend on the clock, which no two runs of a program share.
TIMED = re.compile(r"charged|_s$|excess|baseline_loss|(overhead|snapshot|regime|predict|verify|adopt)_pct")


class Victims:
    """The runs of the suite that train at this moment."""

    def __init__(self, suite: Path, dice: random.Random) -> None:
        self.survey, self.suite, self.dice = Survey(suite), suite, dice

    def one(self) -> tuple[str, str, int] | None:
        """The run id, the job and the process of a run that has begun to train; None if there is none."""
        found, jobs = [], queue() or {}
        for state in self.survey.look(jobs).values():
            meta = state.folder / META
            if state.status == "running" and meta.is_file() and not (state.folder / SUMMARY).is_file():
                start = json.loads(meta.read_text())["starts"][-1]
                if start["slurm_job"] in jobs:
                    found.append((state.run_id, start["slurm_job"], start["pid"]))
        return self.dice.choice(found) if found else None


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system in memory of `size`."""
    with tempfile.TemporaryDirectory(prefix="chaos", dir="/tmp") as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space there is."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler


def inject(fault: str, victims: Victims, cluster: SlurmCluster, disk: Path) -> str | None:
    """Carry out one fault; whom it met, None if there was nobody to meet."""
    if fault == "controller killed":
        cluster.restart_controller(AWAY_S)
        return "every job"
    if fault == "disk full":
        filler = fill(disk)
        time.sleep(FULL_S)
        filler.unlink()
        return "every run"
    victim = victims.one()
    if victim is None:
        return None
    run_id, job, pid = victim
    if fault == "kill -9":
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):  # scancel tries again where the job has already left
            done = subprocess.run([*fault.split(), job], env=cluster.env, capture_output=True, timeout=5)
            if done.returncode:
                return None
    return run_id


class User:
    """Somebody who gives commands, the same ones again and again."""

    def __init__(self, project: Path, env: dict[str, str]) -> None:
        self.project, self.env = project, env

    def script(self, name: str, *arguments: str) -> tuple[int, str]:
        """Exit status and output of one of the project's scripts."""
        command = [sys.executable, str(self.project / "scripts" / f"{name}.py"), *arguments]
        done = subprocess.run(command, cwd=self.project, env=self.env, capture_output=True, text=True)
        said = done.stdout + done.stderr
        if "Traceback" in said:
            raise AssertionError(f"{name} ended with a traceback\n{said}")
        return done.returncode, said

    def insist(self, results: Path, say: Callable[[str], None]) -> None:
        """Submit what is missing, partial or failed, until nothing is."""
        while True:
            say(self.script("submit", SUITE, "--retry", "failed", "--", *LAUNCHER, f"results_dir={results}")[1])
            time.sleep(RESUBMIT_S)
            said = self.script("status", SUITE, "--results", str(results))[1]
            if f"all {RUNS} completed" in said:
                say(said)
                return


def rows(suite: Path) -> Counter[tuple[str, str, str]]:
    """How often each row occurs: by run, stream, and all that is in it but seconds."""
    found: Counter[tuple[str, str, str]] = Counter()
    for folder in suite.glob("[!.]*"):
        for stream in STREAMS:
            found.update((folder.name, stream, row) for row in untimed(folder / stream))
    return found


def tables(user: User, results: Path, suite: str, out: Path) -> dict[str, pd.DataFrame]:
    """The suite's tables, without the columns that hang on the clock."""
    published = PROJECT / "results" / "published"
    arguments = ("--suite", suite, "--results", results, "--out", out, "--published", published)
    status, said = user.script("aggregate", *map(str, arguments))
    if status:
        raise AssertionError(said)
    frames = {path.name: pd.read_csv(path) for path in sorted((out / "tables" / suite).glob("*.csv"))}
    return {name: frame[[c for c in frame.columns if not TIMED.search(c)]] for name, frame in frames.items()}


def disturb(
    deck: list[str], dice: random.Random, user: User, cluster: SlurmCluster, disk: Path, say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Play the deck while the user insists, to the end of all runs; the faults with their victims."""
    results, faults, began = disk / "raw", [], time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(user.insist, results, say)
        while not (results / SUITE).is_dir() and not done.done():
            time.sleep(1)
        victims = Victims(results / SUITE, dice)
        while not done.done():
            time.sleep(1)
            if deck and (victim := inject(deck[-1], victims, cluster, disk)) is not None:
                faults.append((deck.pop(), victim))
                say(f"{time.monotonic() - began:5.0f} s: {faults[-1][0]}: {victim}")
                time.sleep(dice.uniform(*BETWEEN_S))
        done.result()
    return faults


def main() -> int:
    """Disturb, compare, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "checks" / "chaos")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the times of the faults")
    args = parser.parse_args()
    if reason := unavailable():
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dice = random.Random(args.seed)
    deck = [fault for fault, count in DECK.items() for _ in range(count)]
    dice.shuffle(deck)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos", dir="/tmp")))
        disk = stack.enter_context(small_disk(DISK))
        cluster = stack.enter_context(SlurmCluster())
        os.environ["SLURM_CONF"] = cluster.env["SLURM_CONF"]
        project = checkout(PROJECT, scratch / "project")
        user = User(project, {**cluster.env, "PYTHONPATH": str(project / "src")})
        faults = disturb(deck, dice, user, cluster, disk, lambda line: print(line.rstrip(), flush=True))
        extra = ("suite=undisturbed", "hydra.launcher.n_jobs=2", "device=cpu", f"results_dir={scratch / 'raw'}")
        status, said = user.script("sweep", SUITE, "--", *extra)
        if status:
            raise AssertionError(said)
        here, there = rows(scratch / "raw" / "undisturbed"), rows(disk / "raw" / SUITE)
        one = tables(user, scratch / "raw", "undisturbed", scratch)
        other = tables(user, disk / "raw", SUITE, scratch)
        metas = [json.loads((folder / META).read_text()) for folder in (disk / "raw" / SUITE).glob("[!.]*")]
        facts = {
            "runs complete": len(metas),
            "starts": sum(len(meta["starts"]) for meta in metas),
            "arrays submitted": len(submissions(disk / "raw" / SUITE)),
            "rows of the undisturbed sweep": here.total(),
            "rows lost": (here - there).total(),
            "rows doubled or changed": (there - here).total(),
            "tables": len(one),
            "tables that differ": sum(name not in other or not one[name].equals(other[name]) for name in one),
        }
    counts = Counter(fault for fault, _ in faults)
    ended = {meta["run_id"] for meta in metas}
    survived = Counter(fault for fault, victim in faults if victim in ended or victim.startswith("every"))
    write(args.out, args.seed, counts, survived, facts)
    print((args.out / "chaos.md").read_text())
    return int(bool(facts["rows lost"] or facts["rows doubled or changed"] or facts["tables that differ"]))


def provenance() -> str:
    """Which code this is."""
    return f"code of commit `{str(commit.current())[:12]}`" + (", changed" if commit.changes() else "")


def write(out: Path, seed: int, injected: Counter[str], survived: Counter[str], facts: dict[str, int]) -> None:
    """chaos.csv and chaos.md."""
    out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        [{"what": f"fault: {name}", "injected": injected[name], "survived": survived[name]} for name in DECK]
        + [{"what": name, "count": count} for name, count in facts.items()]
    ).astype({"injected": "Int64", "survived": "Int64", "count": "Int64"})
    frame.to_csv(out / "chaos.csv", index=False)
    lines = [
        "# A sweep while things go wrong", "",
        f"`python checks/chaos.py --seed {seed}`: sweeps/chaos.yaml on a real Slurm of one node, disturbed, against "
        "the same sweep with the local launcher; "
        f"{provenance()}. A fault is survived if the runs it met are complete in the end.", "",
        "| fault | injected | survived |", "|---|---:|---:|",
        *(f"| {name} | {injected[name]} | {survived[name]} |" for name in DECK), "",
        "| | |", "|---|---:|", *(f"| {name} | {count} |" for name, count in facts.items()), "",
    ]  # fmt: skip
    (out / "chaos.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
