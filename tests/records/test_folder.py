"""A run on disk: rows that survive a kill, files that are never half written, and one owner at a time."""

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from leapbench.config.errors import BusyError
from leapbench.names import CONFIG, EVALS, LOCK, META, PROPOSALS, STREAMS, SUMMARY
from leapbench.records import files, lock
from leapbench.records import folder as record
from leapbench.records.files import read_summary
from leapbench.records.folder import RunFolder
from leapbench.records.lock import OWNER

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "suite" / "0123456789ab")
    folder.acquire()
    yield folder
    folder.release()


def rows(folder, stream=EVALS):
    return [json.loads(line) for line in (folder.path / stream).read_text().splitlines()]


# ---- rows and checkpoints --------------------------------------------------------------------------------------------


def test_rows_reach_the_disk_with_a_flush(folder):
    folder.open(None)
    assert {path.name for path in folder.path.glob("*.jsonl")} == set(STREAMS)
    folder.append(EVALS, {"step": 1, "loss_nats": 0.1 + 0.2})
    folder.append(PROPOSALS, {"step": 2})
    folder.flush()
    assert rows(folder) == [{"step": 1, "loss_nats": 0.1 + 0.2}]
    assert rows(folder, PROPOSALS) == [{"step": 2}]


def test_numbers_that_are_not_finite_become_null(folder):
    folder.open(None)
    row = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e308, "e": 0, "f": "nan", "g": None, "h": True}
    folder.append(EVALS, row)
    folder.flush()
    text = (folder.path / EVALS).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == row | {"a": None, "b": None, "c": None}


def test_a_summary_with_numbers_that_are_not_finite_is_refused(folder):
    folder.open(None)
    with pytest.raises(ValueError, match="JSON"):
        folder.finish({"status": "completed", "final": {"loss": math.nan}})
    assert read_summary(folder.path) is None


def test_a_resumed_run_cuts_its_rows_back_to_the_checkpoint(tmp_path):
    def session(steps, checkpoint_at=None):
        folder = RunFolder(tmp_path / "run")
        folder.acquire()
        saved = folder.load_checkpoint(CPU)
        folder.open(saved["offsets"] if saved else None)
        for step in steps:
            folder.append(EVALS, {"step": step})
            if step % 2:
                folder.append(PROPOSALS, {"step": step, "text": "x" * step})
            if step == checkpoint_at:
                folder.save_checkpoint({"step": step})
        folder.flush()
        folder.release()
        return folder, saved

    session(range(7), checkpoint_at=4)
    folder, saved = session(range(5, 9))
    assert saved["step"] == 4
    assert [row["step"] for row in rows(folder)] == list(range(9))
    assert [row["step"] for row in rows(folder, PROPOSALS)] == [1, 3, 5, 7]


def test_without_a_checkpoint_a_run_starts_from_nothing(folder):
    folder.open(None)
    folder.append(EVALS, {"step": 1})
    folder.release()
    folder.acquire()
    assert folder.load_checkpoint(CPU) is None
    folder.open(None)
    assert rows(folder) == []


def test_rows_are_on_disk_before_the_checkpoint_that_counts_them(folder):
    folder.open(None)
    folder.append(EVALS, {"step": 1})
    folder.save_checkpoint({"weights": torch.arange(3.0)})
    saved = folder.load_checkpoint(CPU)
    assert torch.equal(saved["weights"], torch.arange(3.0))
    assert saved["offsets"] == {name: (folder.path / name).stat().st_size for name in STREAMS}
    assert saved["offsets"][EVALS] == len('{"step": 1}\n')


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_checkpoint_that_fails_leaves_the_last_one(folder, monkeypatch, error):
    folder.open(None)
    folder.save_checkpoint({"step": 1})

    def half(state, file):
        file.write(b"half a check")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        folder.save_checkpoint({"step": 2})
    monkeypatch.undo()
    assert folder.load_checkpoint(CPU)["step"] == 1


def test_a_full_disk_is_reported_as_one(folder, monkeypatch):
    """torch's zip writer says RuntimeError when a write fails; the cause is what the user needs."""
    folder.open(None)

    def full(state, file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file") from None

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save_checkpoint({"step": 2})
    assert not list((folder.path / "checkpoint").iterdir())


@pytest.mark.parametrize(("status", "kept"), [("completed", False), ("diverged", False), ("failed", True)])
def test_the_summary_ends_a_run_and_its_checkpoint(folder, status, kept):
    folder.open(None)
    folder.save_checkpoint({"step": 1})
    folder.append(EVALS, {"step": 2})
    assert read_summary(folder.path) is None
    folder.finish({"status": status, "steps": 2})
    summary = read_summary(folder.path)
    assert (summary["status"], summary["steps"]) == (status, 2)
    assert summary["files"][EVALS]["rows"] == 1
    assert rows(folder) == [{"step": 2}]
    assert (folder.load_checkpoint(CPU) is not None) is kept
    folder.reopen()
    assert read_summary(folder.path) is None
    folder.reopen()


def test_a_run_describes_itself_and_counts_its_starts(folder):
    science, machine = {"seed": 0, "K": [5, 10]}, {"device": "cpu"}
    folder.describe(science, machine, {"run_id": "abc", "start": {"step": 0}})
    folder.describe(science, machine, {"run_id": "abc", "start": {"step": 7}})
    assert yaml.safe_load((folder.path / CONFIG).read_text()) == {"science": science, "machine": machine}
    meta = json.loads((folder.path / META).read_text())
    assert (meta["schema"], meta["run_id"]) == (record.SCHEMA, "abc")
    assert [(start["step"], start["pid"]) for start in meta["starts"]] == [(0, os.getpid()), (7, os.getpid())]
    assert all(start["utc"].endswith("Z") for start in meta["starts"])


def test_readers_see_the_old_text_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / SUMMARY
    files.write_text(path, "old")
    seen = []
    replace = os.replace

    def watched(part, target):
        seen.append((path.read_text(), Path(part).read_text()))
        replace(part, target)

    monkeypatch.setattr(os, "replace", watched)
    files.write_text(path, "new and longer")
    assert seen == [("old", "new and longer")]
    assert path.read_text() == "new and longer"
    assert [p.name for p in tmp_path.iterdir()] == [SUMMARY]


# ---- one owner -------------------------------------------------------------------------------------------------------


class Other:
    """Another process that takes the lock of a run and keeps it until it is killed."""

    def __init__(self, path):
        told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                RunFolder(path).acquire()
                os.write(tell, b"+")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(told, 1) == b"+"
        os.close(told)

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def other(tmp_path):
    other = Other(tmp_path / "run")
    yield other
    other.kill()


def owner(path):
    return json.loads((path / LOCK / OWNER).read_text())["pid"]


def test_a_second_process_leaves_a_run_alone(tmp_path, other):
    path = tmp_path / "run"
    with pytest.raises(BusyError, match=f"run run is already being run by process {other.pid} on ") as caught:
        RunFolder(path).acquire()
    assert "\n" not in str(caught.value)
    assert owner(path) == other.pid


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, other):
    path = tmp_path / "run"
    other.kill()
    RunFolder(path).acquire()
    assert owner(path) == os.getpid()
    assert [p.name for p in path.iterdir()] == [LOCK]


def test_a_living_process_here_keeps_its_lock_however_long_it_is_silent(tmp_path, other):
    path = tmp_path / "run"
    os.utime(path / LOCK, (0, 0))
    with pytest.raises(BusyError):
        RunFolder(path).acquire()


def sign(path, **changes):
    """Change what the owner of a run's lock has signed with."""
    signed = json.loads((path / LOCK / OWNER).read_text())
    files.write_json(path / LOCK / OWNER, signed | changes)


def test_a_process_whose_lock_was_taken_over_stops_and_touches_nothing(folder):
    folder.open(None)
    folder.append(EVALS, {"step": 1})
    folder.flush()
    folder.append(EVALS, {"step": 2})
    sign(folder.path, token="another")
    for write in (lambda: folder.save_checkpoint({}), lambda: folder.finish({"status": "completed"})):
        with pytest.raises(BusyError, match="another process has taken this run over"):
            write()
    folder.release()
    assert rows(folder) == [{"step": 1}]
    assert json.loads((folder.path / LOCK / OWNER).read_text())["token"] == "another"
    assert read_summary(folder.path) is None
    shutil.rmtree(folder.path / LOCK)


def test_rows_come_in_batches(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(record.time, "monotonic", lambda: now)
    folder.open(None)
    for step in range(100):
        folder.append(EVALS, {"step": step})
        folder.flush()
        now += 0.2
    assert len(rows(folder)) == 76  # batches after 0, 5, 10 and 15 seconds
    folder.release()
    assert [row["step"] for row in rows(folder)] == list(range(100))


def test_a_disk_that_takes_part_of_a_batch_gets_the_rest(folder):
    class Small:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(bytes(data[:7]))

        def __getattr__(self, name):
            return getattr(self.file, name)

    folder.open(None)
    folder._files[EVALS] = Small(folder._files[EVALS])
    folder.append(EVALS, {"step": 1, "loss_nats": 0.5})
    folder.flush()
    assert rows(folder) == [{"step": 1, "loss_nats": 0.5}]


def test_a_pid_given_out_again_is_another_process(tmp_path, other):
    path = tmp_path / "run"
    sign(path, pid=os.getpid())  # its pid is ours now, its birth is not
    RunFolder(path).acquire()
    assert owner(path) == os.getpid()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "of another machine of that name"}])
def test_a_process_on_another_machine_is_believed_until_its_heartbeat_stops(folder, changes):
    sign(folder.path, pid=1, **changes)
    with pytest.raises(BusyError, match="by process 1 on "):
        RunFolder(folder.path).acquire()
    stopped = time.time() - lock.STALE_AFTER_S - 10
    os.utime(folder.path / LOCK, (stopped, stopped))
    RunFolder(folder.path).acquire()
    assert owner(folder.path) == os.getpid()


def test_a_slurm_job_that_is_started_again_on_another_node_need_not_wait(folder, monkeypatch):
    sign(folder.path, host="elsewhere", slurm_job="17_3", slurm_restart=0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(BusyError):  # another process of the same start
        RunFolder(folder.path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = RunFolder(folder.path)
    again.acquire()
    assert json.loads((folder.path / LOCK / OWNER).read_text())["slurm_job"] == "17_3"
    again.release()


def test_the_heartbeat_goes_on_while_the_owner_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    run = RunFolder(tmp_path / "run")
    run.acquire()
    for _ in range(2):
        os.utime(run.path / LOCK, (0, 0))
        deadline = time.monotonic() + 30
        while (run.path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    sign(run.path, token="another")
    os.utime(run.path / LOCK, (0, 0))
    time.sleep(0.2)
    assert (run.path / LOCK).stat().st_mtime == 0  # not ours any more
    run.release()
    shutil.rmtree(run.path / LOCK)


def test_of_many_that_find_a_stale_lock_one_takes_it_over(tmp_path):
    """All look at the same moment, and one stays asleep between its look and its deed."""
    dead = lock.Lock(tmp_path / LOCK)
    dead._make()
    sign(tmp_path, pid=2**22 + 1, birth="long ago")
    owners, held, gate, slow = [], [], threading.Barrier(8), threading.Event()
    look = lock.is_alive

    def contend(number):
        mine = lock.Lock(tmp_path / LOCK)
        try:
            gate.wait()
            mine.acquire()
            owners.append(mine)
        except lock.HeldError:
            held.append(number)

    def looked(*args):
        alive = look(*args)
        if threading.current_thread().name == "slow":
            slow.wait(30)
        return alive

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "is_alive", looked)
        names = ["slow", *map(str, range(7))]
        threads = [threading.Thread(target=contend, args=(name,), name=name) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        slow.set()
        threads[0].join()
    assert (len(owners), len(held)) == (1, 7)
    owners[0].check()
    owners[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_that_died_half_way_does_not_bar_the_way(tmp_path):
    dead = lock.Lock(tmp_path / LOCK)
    dead._make()
    sign(tmp_path, pid=2**22 + 1, birth="long ago")
    claim = tmp_path / LOCK / f"claim.{dead._token}"
    claim.mkdir()
    with pytest.raises(lock.HeldError):
        lock.Lock(tmp_path / LOCK).acquire()
    os.utime(claim, (0, 0))
    heir = lock.Lock(tmp_path / LOCK)
    heir.acquire()
    heir.release()


def test_a_lock_that_cannot_be_signed_is_given_back(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        RunFolder(tmp_path / "run").acquire()
    monkeypatch.undo()
    RunFolder(tmp_path / "run").acquire()
    assert owner(tmp_path / "run") == os.getpid()


def test_a_lock_whose_owner_has_not_signed_yet_is_respected(tmp_path):
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    with pytest.raises(BusyError):
        RunFolder(tmp_path / "run").acquire()


def test_one_process_does_not_run_one_run_twice(folder):
    with pytest.raises(BusyError):
        RunFolder(folder.path).acquire()


def test_a_released_run_can_be_taken(folder):
    folder.release()
    assert not (folder.path / LOCK).exists()
    again = RunFolder(folder.path)
    again.acquire()
    again.release()
