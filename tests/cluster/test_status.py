"""What scripts/status.py says of run folders, with and without a queue."""

import json
import os
import time
from pathlib import Path

import pytest
from fake_slurm import slurm  # noqa: F401

from helpers import script
from leapbench.cluster.slurm import SUBMITTED, Submission, queue
from leapbench.cluster.status import Survey
from leapbench.names import CONFIG, EVALS, LOCK, SUMMARY
from leapbench.records import lock
from leapbench.records.files import write_json


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "raw" / "suite"
    folder.mkdir(parents=True)
    return folder


def begun(suite, name, steps=(100, 200), total=2000):
    folder = suite / name
    folder.mkdir()
    (folder / CONFIG).write_text(f"science:\n  model:\n    steps: 7\n  train:\n    steps: {total}\n    interval: 50\n")
    (folder / EVALS).write_text("".join(f'{{"step": {step}}}\n' for step in steps) + '{"step": 99')
    return folder


def ended(suite, name, status, reason=None):
    folder = begun(suite, name)
    write_json(folder / SUMMARY, {"status": status, "reason": reason})
    return folder


def locked(folder, seconds_ago=0.0, **owner):
    (folder / LOCK).mkdir()
    write_json(folder / LOCK / lock.OWNER, {"host": "node7", "pid": 1, "token": "t", **owner})
    then = time.time() - seconds_ago
    os.utime(folder / LOCK, (then, then))


def submitted(suite, first=17, **runs):
    logs = suite / SUBMITTED / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    found = Submission("2026-01-01T00:00:00Z", "c0ffee", str(logs), {f"{first}_{i}": run for i, run in enumerate(runs)})
    found.write(suite)
    for job, line in zip(found.runs, runs.values(), strict=True):
        if line:
            found.log(job).write_text(f"Traceback\n{line}\n\n")


def statuses(suite, jobs=None):
    return {name: state.status for name, state in Survey(suite).look(jobs).items()}


def test_folders_alone_tell_most(suite):
    for status in ("completed", "diverged", "skipped", "failed"):
        ended(suite, status, status, "why")
    begun(suite, "killed")
    locked(begun(suite, "alive"), seconds_ago=100)
    locked(begun(suite, "dead"), seconds_ago=10_000)
    (suite / "empty").mkdir()
    (suite / ".hidden").mkdir()
    look = Survey(suite).look(None)
    assert {name: state.status for name, state in look.items()} == {
        "completed": "completed", "diverged": "diverged", "skipped": "skipped", "failed": "failed", "killed": "partial",
        "alive": "running", "dead": "partial", "empty": "partial",
    }  # fmt: skip
    assert look["alive"].progress() == "step 200 of 2000"
    assert look["empty"].progress() == ""
    assert look["failed"].reason == "why"


def test_the_queue_tells_what_waits_and_what_died(suite):
    submitted(suite, waits="", starts="", lost="slurmstepd: error: no space", requeued="", done="", again="", dead="")
    begun(suite, "requeued")
    ended(suite, "done", "completed")
    ended(suite, "again", "failed", "ValueError")
    locked(begun(suite, "dead"), slurm_job="17_6")
    jobs = {"17_0": "PENDING", "17_1": "RUNNING", "17_3": "PENDING", "17_5": "PENDING", "99": "RUNNING"}
    look = Survey(suite).look(jobs)
    assert {name: state.status for name, state in look.items()} == {
        "waits": "pending", "starts": "running", "lost": "failed", "requeued": "pending", "done": "completed",
        "again": "pending", "dead": "partial",
    }  # fmt: skip
    assert look["lost"].reason == "job 17_2 ended before the run began"
    assert look["lost"].last_line() == "slurmstepd: error: no space"
    assert not look["lost"].ended
    assert statuses(suite, {**jobs, "17_6": "RUNNING"})["dead"] == "running"
    assert statuses(suite, None)["lost"] == "pending"  # nobody to ask


def test_accounting_says_how_a_job_ended(suite, slurm):  # noqa: F811
    submitted(suite, killed="", lost="")
    begun(suite, "killed")
    (slurm.folder / "ended").write_text("17_0|OUT_OF_MEMORY|\n17_1|CANCELLED by 0|\n")
    look = Survey(suite).look(queue())
    assert look["killed"].reason == "job 17_0 ended: out_of_memory"
    assert look["lost"].reason == "job 17_1 ended before the run began: cancelled"


def test_a_run_that_ended_well_is_read_once(suite, monkeypatch):
    ended(suite, "a", "completed")
    failed = ended(suite, "b", "failed")
    survey = Survey(suite)
    survey.look(None)
    (suite / "a" / SUMMARY).write_text("not read again")
    (failed / SUMMARY).unlink()
    assert {name: state.status for name, state in survey.look(None).items()} == {"a": "completed", "b": "partial"}


@pytest.fixture
def page(monkeypatch):
    """page(argument, ...): the script's exit status, its stdout and its stderr."""
    return lambda *arguments: script(monkeypatch, "status", *map(str, arguments))


def test_the_page(suite, page, monkeypatch):
    monkeypatch.setenv("PATH", "")
    ended(suite, "0a", "completed")
    status, out, _ = page("--results", suite.parent)
    assert status == 0 and out.splitlines()[-1] == "all 1 completed"
    submitted(suite, b="MemoryError: 3 GiB")
    ended(suite, "b", "failed", "RuntimeError: out of memory")
    begun(suite, "c")
    _, out, _ = page("--results", suite.parent, "suite")
    head, counts, _, *lines = out.splitlines()
    assert dict(zip(head.split(), counts.split(), strict=True)) == {
        "suite": "suite", "completed": "1", "running": "-", "pending": "-", "partial": "1", "failed": "1",
        "diverged": "-", "skipped": "-", "runs": "3",
    }  # fmt: skip
    assert lines[0].split(maxsplit=2) == ["failed", str(suite / "b"), "step 200 of 2000; RuntimeError: out of memory"]
    assert "MemoryError: 3 GiB" in lines[1] and "17_0_0_log.err" in lines[1]
    assert lines[2].split(maxsplit=2) == ["partial", str(suite / "c"), "step 200 of 2000"]
    _, out, _ = page("--results", suite.parent, "--limit", 1)
    assert out.splitlines()[-1] == "and 1 more; --limit 2 shows all"


def test_mistakes_are_one_line(suite, page):
    status, _, err = page("--results", suite.parent, "suit")
    assert (status, err) == (2, f"{suite.parent}: no suite suit; there are: suite\n")
    status, _, err = page("--results", suite / "nothing")
    assert (status, err) == (2, f"{suite / 'nothing'}: no suites; train.py makes one\n")


def test_a_controller_that_does_not_answer_is_named(suite, slurm, page):  # noqa: F811
    ended(suite, "a", "completed")
    (slurm.folder / "down").touch()
    status, out, _ = page("--results", suite.parent)
    assert status == 0
    assert "squeue: slurm_load_jobs error: Unable to contact slurm controller; what waits" in out


def test_ten_thousand_summaries_are_one_pass(suite, monkeypatch):
    for number in range(300):
        ended(suite, f"{number:04}", "completed")
    opened = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.name), real(path))[1])
    assert len(Survey(suite).look(None)) == 300
    assert opened == [SUMMARY] * 300


def test_a_damaged_summary_is_a_failure(suite):
    ended(suite, "a", "completed")
    (suite / "a" / SUMMARY).write_text(json.dumps({"status": "completed"})[:-3])
    assert Survey(suite).look(None)["a"].reason == "summary.json is not readable as JSON"
