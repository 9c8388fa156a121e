"""The launcher on a real Slurm of one node: sweeps that are preempted, timed out, killed, requeued and repeated."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import End, Lab, finished, records, start, write_app
from leapbench.cluster.slurm import submissions
from leapbench.names import CHECKPOINT, META, PROJECT, SUMMARY
from leapbench.training.run import run
from slurm_cluster import SlurmCluster, checkout, commit, unavailable

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(unavailable() is not None, reason=f"no Slurm: {unavailable()}"),
]
LIMIT_S = 400

# The real run, slowed down so that there is time to hit it, without using the processor; seed 9 has a bug.
RUN = """
import os, time
from types import SimpleNamespace

def run(config):
    if config.seed == 9:
        raise RuntimeError("a bug")
    if config.seed >= 50:
        time.sleep(1)
        return SimpleNamespace(
            status="completed", run_id="", folder="", reason="GPUs=" + os.environ["CUDA_VISIBLE_DEVICES"]
        )
    from leapbench.training.run import run as real
    from leapbench.training.workload import Workload
    quick = Workload.train_batch
    def slow(self, index):
        time.sleep(float(os.environ["NAP_S"]))
        return quick(self, index)
    Workload.train_batch = slow
    return real(config)
"""
LONG = ("train.steps=1000", "train.interval=50", "eval.every=500", "predictor=[linear]", "K=[50]", "schedule.warmup=4")


LIMIT = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=25", "checkpoint.every_s=null")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(SlurmCluster())
        except RuntimeError as error:
            pytest.skip(str(error))  # the daemons do not start on every machine that has them
        yield made


@pytest.fixture(scope="module", autouse=True)
def limited(
    cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """A sweep that meets its time limit while the other tests run: Slurm counts in minutes."""
    site = Site(cluster, tmp_path_factory.mktemp("limited"))
    driver = site.start(site.app, *LONG, *LIMIT, "seed=0", nap=0.05)
    yield site, driver
    driver.kill()
    driver.communicate()


class Site:
    """A folder from which sweeps are started on the cluster."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.lab, self.app = Lab(folder), write_app(folder, RUN)

    def start(self, script: Path, *arguments: str, slurm: bool = True, nap: float = 0.0) -> subprocess.Popen[str]:
        """A sweep, on the cluster or with the local launcher."""
        launcher = ("hydra/launcher=slurm", "hydra.launcher.mem_gb=1", "allow_dirty=true") if slurm else ()
        words = (*self.lab.overrides(), *launcher, *arguments)
        return start(self.folder, "-m", *words, script=script, **self.cluster.env, NAP_S=str(nap))

    def sweep(self, script: Path, *arguments: str, slurm: bool = True) -> End:
        """The same, waited for: exit status, stdout, stderr."""
        return finished(self.start(script, *arguments, slurm=slurm), LIMIT_S)

    def run_folder(self, *overrides: str) -> Path:
        return self.lab.config(*overrides).folder

    def jobs(self) -> dict[str, int]:
        """Slurm's ids of the jobs in the queue, by task of their array."""
        rows = [line.split() for line in self.cluster.ask("squeue", "-h", "-r", "-o", "%i %A").splitlines()]
        return {shown: int(raw) for shown, raw in rows}


def wait(condition, what: str, limit_s: float = 120):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.2)
    return found


def starts(folder: Path) -> list[dict]:
    try:
        return json.loads((folder / "meta.json").read_text())["starts"]
    except FileNotFoundError:
        return []


def started(folder: Path, count: int = 1) -> bool:
    """Whether the run trains, in its start number `count`: it has written a checkpoint since."""
    checkpoint, meta = folder / CHECKPOINT, folder / META
    try:
        return len(starts(folder)) >= count and checkpoint.stat().st_mtime > meta.stat().st_mtime
    except FileNotFoundError:
        return False


@pytest.fixture
def site(cluster: SlurmCluster, tmp_path: Path) -> Site:
    return Site(cluster, tmp_path)


def test_preempted_killed_requeued_and_wrong_jobs_of_one_sweep(site: Site) -> None:
    arguments = (*LONG, "checkpoint.every_s=1")
    driver = site.start(site.app, *arguments, "seed=0-2,9", nap=0.03)
    preempted, killed, requeued = (site.run_folder(*LONG, f"seed={seed}") for seed in range(3))
    wait(lambda: all(map(started, (preempted, killed, requeued))), "three runs that train")
    array = starts(killed)[0]["slurm_job"].partition("_")[0]
    site.cluster.ask("scancel", "--signal=USR2", f"{array}_0")
    os.kill(starts(killed)[0]["pid"], signal.SIGKILL)
    site.cluster.ask("scontrol", "requeue", f"{array}_2")
    status, out, err = finished(driver, LIMIT_S)
    assert status == 1, out + err
    (line,) = [line for line in err.splitlines() if "died without an answer" in line]
    assert killed.name in line and f"{array}_1_0_log.err" in line
    assert "RuntimeError: a bug" in err and f"{array}_3_0_log.err" in err
    assert re.search(r"sweep: 2 completed, 0 skipped, 0 diverged, 2 failed", err), err
    assert killed.name in err.splitlines()[-1]
    assert len(starts(preempted)) == 2 and len(starts(requeued)) == 2

    status, out, err = site.sweep(site.app, *arguments, "seed=0-2")  # only the killed one is left
    assert status == 0 and "sweep: 3 completed" in out, out + err
    assert len(starts(killed)) == 2
    for seed, folder in enumerate((preempted, killed, requeued)):
        whole = run(site.lab.config(*LONG, f"seed={seed}", "suite=whole"))
        assert records(folder) == records(whole.folder)


def test_submitted_runs_execute_the_commit_and_are_submitted_once(site: Site) -> None:
    project = checkout(PROJECT, site.folder / "project")
    sweep = {
        "suite": "tiny",
        "overrides": [*site.lab.overrides(*LONG, "checkpoint.every_s=1")],
        "axes": {"seed": "0-3"},
    }
    (project / "sweeps" / "tiny.yaml").write_text(json.dumps(sweep))
    name = commit(project)
    env = {**site.cluster.env, "PYTHONPATH": str(project / "src")}

    def script(name: str, *arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, str(project / "scripts" / f"{name}.py"), *arguments]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        return done.returncode, done.stdout, done.stderr

    status, out, err = script("submit", "tiny", "--", "hydra.launcher.mem_gb=1", "hydra.launcher.array_parallelism=2")
    assert status == 0 and re.search(r"tiny: 4 missing\n  submitted 4 runs as job (\d+), ", out), out + err
    (project / "src" / "leapbench" / "training" / "loop.py").write_text("raise SystemError('not the commit')")
    (project / "conf" / "config.yaml").write_text("not: [the, commit")
    status, out, err = script("submit", "tiny")
    assert status == 2 and len(err.splitlines()) == 1 and "2 more" not in err and "differs from its commit" in err, err

    suite = site.lab.results / "tiny"
    folders = [suite / site.lab.config(*LONG, f"seed={seed}", "suite=tiny").run_id for seed in range(4)]
    wait(lambda: started(folders[0]), "a run that trains")
    os.kill(starts(folders[0])[0]["pid"], signal.SIGKILL)
    wait(lambda: all((folder / SUMMARY).exists() for folder in folders[1:]), "three of four runs")
    wait(lambda: script("status", "--results", str(suite.parent), "tiny")[1].count("partial ") == 2, "the dead one")
    subprocess.run(["git", "-C", str(project), "checkout", "-q", "."], check=True)
    status, out, err = script("submit", "tiny", "--", "hydra.launcher.mem_gb=1")
    assert status == 0 and "tiny: 3 completed, 1 partial\n  submitted 1 runs as job" in out, out + err
    wait(lambda: "all 4 completed" in script("status", "--results", str(suite.parent))[1], "all runs")
    assert script("submit", "tiny")[1] == "tiny: 4 completed\n  nothing to submit\n"
    for seed, folder in enumerate(folders):
        meta = json.loads((folder / "meta.json").read_text())
        assert (meta["git_commit"], meta["git_dirty"], len(meta["starts"])) == (name, False, 2 if seed == 0 else 1)
    whole = run(site.lab.config(*LONG, "seed=0", "suite=whole"))
    assert records(folders[0]) == records(whole.folder)


def test_jobs_get_one_gpu_of_two(site: Site) -> None:
    status, out, err = site.sweep(site.app, "seed=50-51", "hydra.launcher.gpus_per_node=1")
    assert status == 0, out + err
    assert len(re.findall(r"GPUs=[01]\b(?!,)", out)) == 2, out


def test_mistakes_are_one_line(site: Site) -> None:
    status, _, err = site.sweep(site.app, "seed=50", "hydra.launcher.partition=nowhere")
    assert status == 2 and len(err.splitlines()) == 1 and "sbatch refuses" in err and "partition" in err, err


def test_a_time_limit_is_survived(limited: tuple[Site, subprocess.Popen[str]]) -> None:
    site, driver = limited
    folder = site.run_folder(*LONG, "seed=0")
    status, out, err = finished(driver, LIMIT_S)
    assert status == 0, out + err
    assert len(starts(folder)) >= 2  # with no periodic checkpoint: what it resumed from was written at the signal
    whole = run(site.lab.config(*LONG, "seed=0", "suite=whole"))
    assert records(folder) == records(whole.folder)


def test_sixty_cells_equal_those_of_the_local_launcher_and_are_run_once(site: Site) -> None:
    line = ("predictor=linear,quadratic", "K=5,10,25,50,75,100", "seed=0-4", "train.steps=120", "train.interval=10")
    script = PROJECT / "train.py"
    one, two = site.start(script, *line), site.start(script, *line, "seed=0-2")  # two submissions at once
    (status, out, err), other = finished(one, LIMIT_S), finished(two, LIMIT_S)
    assert status == 0, out + err
    assert other[0] == 0, other[1] + other[2]
    assert "60 cells in 5 jobs" in out
    folders = sorted(site.lab.results.glob("default/[!.]*"))
    assert len(folders) == 5
    assert all(len(starts(folder)) == 1 for folder in folders)  # no run done twice
    for noted in submissions(site.lab.results / "default"):
        assert set(noted.runs.values()) <= {folder.name for folder in folders}
        assert all(noted.log(job).is_file() for job in noted.runs)
    for printed, jobs in ((out, 5), (other[1], 3)):
        complete, skipped = map(int, re.findall(r"sweep: (\d+) completed, (\d+) skipped", printed)[0])
        assert complete + skipped == jobs, printed
    before = set(site.folder.rglob("*submission.sh"))
    status, out, err = site.sweep(script, *line)
    assert status == 0 and "sweep: 5 completed, 0 skipped, 0 diverged, 0 failed" in out, out + err
    assert before and set(site.folder.rglob("*submission.sh")) == before
    status, out, err = site.sweep(script, *line, "suite=local", slurm=False)
    assert status == 0, err
    for folder in folders:
        assert records(folder) == records(site.lab.results / "local" / folder.name)
