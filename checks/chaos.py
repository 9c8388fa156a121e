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
DOWN_S, FULL_S = 10.0, 15.0  # how long the controller is down, and the disk full
BETWEEN_S = (5.0, 20.0)  # from one fault to the next
RUNS = 20
DISK = "1g"
LAUNCHER = ("hydra.launcher.mem_gb=1", "hydra.launcher.array_parallelism=1", "checkpoint.every_s=5", "device=cpu")
# Columns that depend on the clock, which no two runs of a program share.
TIMED = re.compile(r"charged|_s$|excess|baseline_loss|(overhead|snapshot|regime|predict|verify|adopt)_pct")


class Victims:
    """The runs of the suite that are training now."""

    def __init__(self, suite: Path, rng: random.Random) -> None:
        self.survey, self.suite, self.rng = Survey(suite), suite, rng

    def draw(self) -> tuple[str, str, int] | None:
        """The run id, job and pid of a run drawn at random; None if none is training."""
        running, jobs = [], queue() or {}
        for state in self.survey.look(jobs).values():
            meta = state.folder / META
            if state.status == "running" and meta.is_file() and not (state.folder / SUMMARY).is_file():
                start = json.loads(meta.read_text())["starts"][-1]
                if start["slurm_job"] in jobs:
                    running.append((state.run_id, start["slurm_job"], start["pid"]))
        return self.rng.choice(running) if running else None


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system in memory of `size`."""
    with tempfile.TemporaryDirectory(prefix="chaos", dir="/tmp") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


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
    """Inject one fault; the run or runs it hit, None if there were none."""
    if fault == "controller killed":
        cluster.restart_controller(DOWN_S)
        return "every job"
    if fault == "disk full":
        filler = fill(disk)
        time.sleep(FULL_S)
        filler.unlink()
        return "every run"
    victim = victims.draw()
    if victim is None:
        return None
    run_id, job, pid = victim
    if fault == "kill -9":
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):  # scancel retries if the job has already left the queue
            result = subprocess.run([*fault.split(), job], env=cluster.env, capture_output=True, timeout=5)
            if result.returncode:
                return None
    return run_id


class User:
    """A user who repeats the same commands."""

    def __init__(self, project: Path, env: dict[str, str]) -> None:
        self.project, self.env = project, env

    def script(self, name: str, *arguments: str) -> tuple[int, str]:
        """Exit status and output of one of the project's scripts."""
        command = [sys.executable, str(self.project / "scripts" / f"{name}.py"), *arguments]
        result = subprocess.run(command, cwd=self.project, env=self.env, capture_output=True, text=True)
        output = result.stdout + result.stderr
        if "Traceback" in output:
            raise AssertionError(f"{name} ended with a traceback\n{output}")
        return result.returncode, output

    def submit_all(self, results: Path, log: Callable[[str], None]) -> None:
        """Submit what is missing, partial or failed until all runs are complete."""
        while True:
            log(self.script("submit", SUITE, "--retry", "failed", "--", *LAUNCHER, f"results_dir={results}")[1])
            time.sleep(RESUBMIT_S)
            output = self.script("status", SUITE, "--results", str(results))[1]
            if f"all {RUNS} completed" in output:
                log(output)
                return


def rows(suite: Path) -> Counter[tuple[str, str, str]]:
    """How often each row occurs, by run, stream and the row without its seconds."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for folder in suite.glob("[!.]*"):
        for stream in STREAMS:
            counts.update((folder.name, stream, row) for row in untimed(folder / stream))
    return counts


def tables(user: User, results: Path, suite: str, out: Path) -> dict[str, pd.DataFrame]:
    """The suite's tables, without the columns that depend on the clock."""
    published = PROJECT / "results" / "published"
    arguments = ("--suite", suite, "--results", results, "--out", out, "--published", published)
    status, output = user.script("aggregate", *map(str, arguments))
    if status:
        raise AssertionError(output)
    frames = {path.name: pd.read_csv(path) for path in sorted((out / "tables" / suite).glob("*.csv"))}
    return {name: frame[[c for c in frame.columns if not TIMED.search(c)]] for name, frame in frames.items()}


def disturb(
    deck: list[str], rng: random.Random, user: User, cluster: SlurmCluster, disk: Path, log: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Inject the faults of the deck while the user resubmits, until all runs are complete; the faults and victims."""
    results, faults, start = disk / "raw", [], time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        submission = pool.submit(user.submit_all, results, log)
        while not (results / SUITE).is_dir() and not submission.done():
            time.sleep(1)
        victims = Victims(results / SUITE, rng)
        while not submission.done():
            time.sleep(1)
            if deck and (victim := inject(deck[-1], victims, cluster, disk)) is not None:
                faults.append((deck.pop(), victim))
                log(f"{time.monotonic() - start:5.0f} s: {faults[-1][0]}: {victim}")
                time.sleep(rng.uniform(*BETWEEN_S))
        submission.result()
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
    rng = random.Random(args.seed)
    deck = [fault for fault, count in DECK.items() for _ in range(count)]
    rng.shuffle(deck)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos", dir="/tmp")))
        disk = stack.enter_context(small_disk(DISK))
        cluster = stack.enter_context(SlurmCluster())
        os.environ["SLURM_CONF"] = cluster.env["SLURM_CONF"]
        project = checkout(PROJECT, scratch / "project")
        user = User(project, {**cluster.env, "PYTHONPATH": str(project / "src")})
        faults = disturb(deck, rng, user, cluster, disk, lambda line: print(line.rstrip(), flush=True))
        extra = ("suite=undisturbed", "hydra.launcher.n_jobs=2", "device=cpu", f"results_dir={scratch / 'raw'}")
        status, output = user.script("sweep", SUITE, "--", *extra)
        if status:
            raise AssertionError(output)
        expected_rows, actual_rows = rows(scratch / "raw" / "undisturbed"), rows(disk / "raw" / SUITE)
        expected_tables = tables(user, scratch / "raw", "undisturbed", scratch)
        actual_tables = tables(user, disk / "raw", SUITE, scratch)
        metas = [json.loads((folder / META).read_text()) for folder in (disk / "raw" / SUITE).glob("[!.]*")]
        facts = {
            "runs complete": len(metas),
            "starts": sum(len(meta["starts"]) for meta in metas),
            "arrays submitted": len(submissions(disk / "raw" / SUITE)),
            "rows of the undisturbed sweep": expected_rows.total(),
            "rows lost": (expected_rows - actual_rows).total(),
            "rows doubled or changed": (actual_rows - expected_rows).total(),
            "tables": len(expected_tables),
            "tables that differ": sum(
                name not in actual_tables or not expected_tables[name].equals(actual_tables[name])
                for name in expected_tables
            ),
        }
    counts = Counter(fault for fault, _ in faults)
    run_ids = {meta["run_id"] for meta in metas}
    survived = Counter(fault for fault, victim in faults if victim in run_ids or victim.startswith("every"))
    write(args.out, args.seed, counts, survived, facts)
    print((args.out / "chaos.md").read_text())
    return int(bool(facts["rows lost"] or facts["rows doubled or changed"] or facts["tables that differ"]))


def provenance() -> str:
    """The commit of the code."""
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
