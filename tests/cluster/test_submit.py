"""Submitting to a queue that never starts anything, and jobs started by hand from what was queued."""

import json
import pickle
import runpy
import shutil
import sys

import pytest
from fake_slurm import slurm  # noqa: F401

from helpers import Lab, composed
from leapbench.cluster import submit
from leapbench.cluster.slurm import SUBMITTED, Site, SlurmError, submissions
from leapbench.config.errors import ConfigError
from leapbench.names import LOCK, PROJECT, SUMMARY
from leapbench.records import commit
from leapbench.records.files import write_json
from leapbench.records.lock import Lock
from leapbench.records.plan import PlannedRun


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, "raw of $me's")


@pytest.fixture
def site(tmp_path):
    return Site(submit.launcher(["hydra/launcher=submitit_slurm"], "sweep"), tmp_path, PROJECT, "c0ffee")


@pytest.fixture
def suite(tmp_path):
    return tmp_path / "raw" / "suite"


def planned(suite, *names):
    return [PlannedRun(name, suite / name, 10, ("net", "data"), (f"seed={i}",)) for i, name in enumerate(names)]


def end(run, status):
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / SUMMARY, {"status": status, "reason": None})


def test_an_array_of_what_is_missing(suite, site, slurm):  # noqa: F811
    runs = planned(suite, "a", "b", "c", "d", "e")
    end(runs[1], "completed")
    end(runs[2], "failed")
    end(runs[3], "diverged")
    (array,), counts = submit.submit(suite, runs, False, site)
    assert counts == {"missing": 2, "completed": 1, "failed": 1, "diverged": 1}
    assert array.runs == {"17_0": "a", "17_1": "e"}
    assert slurm.jobs() == ["17_0", "17_1"]
    assert submissions(suite) == [array]

    assert submit.submit(suite, runs, False, site)[0] == []  # they are in the queue
    (again,), counts = submit.submit(suite, runs, True, site)
    assert again.runs == {"18": "c"}  # one job is no array
    assert counts["pending"] == 2

    slurm.queue(j17_1="RUNNING")  # a was cancelled while it waited, c ended without a word
    runs[4].folder.mkdir()
    (third,), counts = submit.submit(suite, runs, False, site)
    assert third.runs == {"19": "a"}
    assert counts == {"failed": 2, "completed": 1, "diverged": 1, "running": 1}
    slurm.queue()
    assert set(submit.submit(suite, runs, False, site)[0][0].runs.values()) == {"a", "e"}


def test_the_batch_script_says_which_code_and_resources(suite, slurm, tmp_path):  # noqa: F811
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1",
             "hydra.launcher.timeout_min=90", "hydra.launcher.setup=[module load cuda]",
             "+hydra.launcher.use_srun=false"]  # fmt: skip
    code = tmp_path / "the code"
    own = Site(submit.launcher(words, "ttb"), tmp_path, code, None)
    submit.submit(suite, planned(suite, "a", "b", "c"), False, own)
    script = slurm.script(17).splitlines()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=90", "--job-name=ttb", "--array=0-2%3"):
        assert f"#SBATCH {line}" in script
    setup = script.index("# setup")
    assert script[setup + 1 : setup + 4] == [
        "module load cuda", f"cd {tmp_path}", f"export PYTHONPATH='{code}/src'${{PYTHONPATH:+:$PYTHONPATH}}",
    ]  # fmt: skip


def test_arrays_are_no_longer_than_slurm_allows(suite, site, slurm):  # noqa: F811
    (slurm.folder / "max_array").write_text("2")
    arrays, _ = submit.submit(suite, planned(suite, "a", "b", "c", "d", "e"), False, site)
    assert [list(array.runs) for array in arrays] == [["17_0", "17_1"], ["18_0", "18_1"], ["19"]]


def test_two_submissions_at_once(suite, site, slurm):  # noqa: F811
    first = Lock(suite / SUBMITTED / LOCK)
    first.acquire()
    with pytest.raises(ConfigError, match=r"suite: process \d+ on .* is submitting this suite"):
        submit.submit(suite, planned(suite, "a"), False, site)
    assert slurm.jobs() == []
    first.release()
    assert len(submit.submit(suite, planned(suite, "a"), False, site)[0]) == 1


def test_what_slurm_says_against_it_is_one_line(suite, site, slurm, monkeypatch):  # noqa: F811
    (slurm.folder / "refuse").touch()
    with pytest.raises(SlurmError, match=r"^sbatch refuses: .*invalid partition specified: nowhere$"):
        submit.submit(suite, planned(suite, "a"), False, site)
    assert submissions(suite) == []
    (slurm.folder / "down").touch()
    with pytest.raises(SlurmError, match="Unable to contact"):
        submit.submit(suite, planned(suite, "a"), False, site)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"no Slurm here.*scripts/sweep\.py"):
        submit.survey(suite)


def test_a_launcher_without_a_queue_is_refused():
    with pytest.raises(ConfigError, match="hydra/launcher=local queues no jobs"):
        submit.launcher(["hydra/launcher=local"], "sweep")
    assert submit.split(["seed=0", "hydra.launcher.qos=a", "hydra/launcher=b", "+hydra.launcher.c=1", "K=5"]) == (
        ["hydra.launcher.qos=a", "hydra/launcher=b", "+hydra.launcher.c=1"],
        ["seed=0", "K=5"],
    )


def test_the_script_submits_jobs_that_run_the_copy(lab, site, slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Two tiny runs through scripts/submit.py; then one is started as Slurm would, by the batch script."""
    code = tmp_path / "copy"
    code.mkdir()
    for part in ("src", "conf", "train.py"):
        copy = shutil.copytree if (PROJECT / part).is_dir() else shutil.copy
        copy(PROJECT / part, code / part)
    (code / commit.COMMIT).write_text("c0ffee\n")
    monkeypatch.setattr(commit, "code", lambda allow_dirty: code)
    monkeypatch.setattr(sys, "argv", ["submit.py", "ttb_embedded", "--", "hydra/launcher=submitit_slurm"])
    overrides = [word for word in lab.overrides("predictor=none") if not word.startswith("results_dir=")]
    configs = [lab.config("predictor=none", f"seed={seed}") for seed in (0, 1)]
    runs = [PlannedRun.of(config, [*overrides, f"seed={config.seed}"]) for config in configs]
    script = runpy.run_path(str(PROJECT / "scripts" / "submit.py"))
    monkeypatch.setattr("leapbench.cluster.sweep.commands", lambda *_: [["train.py", "-m"]])
    monkeypatch.setattr("leapbench.cluster.sweep.plan", lambda line: [*runs, runs[0]])

    def main():
        status = script["main"]()
        return status, *capsys.readouterr()

    status, out, err = main()
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "default: 2 missing"
    assert out.splitlines()[1].startswith("  submitted 2 runs as job 17, logs in ")
    assert len(list(lab.cache.iterdir())) == 1  # tokenised before the jobs start

    done = slurm.start("17_1")
    assert done.returncode == 0, done.stderr
    meta = json.loads((runs[1].folder / "meta.json").read_text())
    assert (meta["git_commit"], meta["git_dirty"]) == ("c0ffee", False)
    assert json.loads((runs[1].folder / SUMMARY).read_text())["status"] == "completed"
    slurm.queue(j17_0="PENDING")
    status, out, err = main()
    assert (status, out, err) == (0, "default: 1 completed, 1 pending\n  nothing to submit\n", "")
    assert slurm.jobs() == ["17_0"]


def test_a_task_goes_on_after_a_signal_and_survives_its_pickle():
    task = submit.Task(["seed=1"], "0123")
    again = pickle.loads(pickle.dumps(task)).checkpoint()
    assert (again.function.overrides, again.function.run_id) == (["seed=1"], "0123")


def test_a_task_that_would_run_something_else_says_so(lab, capsys, monkeypatch):
    monkeypatch.setattr(submit, "composed", lambda overrides: composed("dataset=text_files", "regime=published"))
    with pytest.raises(SystemExit) as caught:
        submit.Task([], "0123")()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run 0123 resolves to ") and line.endswith("submit again")
