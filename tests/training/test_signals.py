"""Runs that are asked to stop, and the jobs that nobody hears of again; no Slurm needed."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from submitit.core.utils import UncompletedJobError

from helpers import DROPOUT, EVERY_3_STEPS, NO_CHECKPOINTS, captured, records
from leapbench.cluster.slurm import SlurmError
from leapbench.names import CHECKPOINT, LOCK, SUMMARY
from leapbench.training.run import run
from leapbench.training.signals import SIGNALS, Deferred, Terminated, terminate


@pytest.fixture
def handlers():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def requeue(signum, frame):
    """As submitit does, when the requeue that scontrol asked for ends scontrol."""
    subprocess.run(["sh", "-c", "kill -TERM $$"], check=True)


def refuse(signum, frame):
    raise UncompletedJobError("timed-out too many times")


@pytest.mark.parametrize(
    ("signum", "handler", "raised"),
    [
        (signal.SIGTERM, signal.SIG_DFL, Terminated),
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGUSR2, lambda signum, frame: (_ for _ in ()).throw(SystemExit(-1)), SystemExit),  # requeued
        (signal.SIGUSR2, requeue, Terminated),
        (signal.SIGUSR2, refuse, UncompletedJobError),
        (signal.SIGTERM, lambda signum, frame: None, None),  # submitit's, which ignores it
    ],
    ids=["alone", "Ctrl-C", "requeued", "ended by the requeue", "given up", "ignored"],
)
def test_a_signal_is_answered_after_a_checkpoint(fresh_lab, monkeypatch, handlers, signum, handler, raised):
    signal.signal(signum, handler)
    extra = ("predictor=[linear,momentum]", *DROPOUT, *NO_CHECKPOINTS)
    expected = records(run(fresh_lab.config(*extra, "suite=whole")).folder)
    config = fresh_lab.config(*extra)
    folder = fresh_lab.results / "default" / config.run_id
    steps = []

    def at(workload, index):
        steps.append(index)
        if steps == list(range(10)):
            os.kill(os.getpid(), signum)

    with captured(monkeypatch, at):
        if raised is None:
            run(config)
        else:
            with pytest.raises(raised):
                run(config)
            assert steps[-1] == 9 and (folder / CHECKPOINT).exists()
            assert not (folder / SUMMARY).exists() and not (folder / LOCK).exists()
            assert run(config).status == "completed"
    assert steps == list(range(24))  # no step twice
    assert records(folder) == expected
    assert signal.getsignal(signum) == handler


@pytest.mark.parametrize(("handler", "raised"), [(requeue, Terminated), (refuse, UncompletedJobError)])
def test_a_signal_while_the_model_is_built_is_no_fault_of_the_model(fresh_lab, monkeypatch, handlers, handler, raised):
    signal.signal(signal.SIGUSR2, handler)
    build = transformers.AutoModelForCausalLM.from_config

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGUSR2)
        return build(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", interrupted)
    config = fresh_lab.config()
    with pytest.raises(raised):
        run(config)
    assert not config.folder.exists()
    assert signal.getsignal(signal.SIGUSR2) == handler


def test_a_signal_in_the_last_step_is_passed_on_at_the_end(handlers):
    heard = []
    signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
    with Deferred() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.asked and not heard
    assert heard == [signal.SIGUSR2] and not stop.asked


def test_ctrl_c_twice_does_not_wait(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Deferred():
        os.kill(os.getpid(), signal.SIGINT)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 448 vs 342") from None  # as torch's writer does
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_ignored(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Deferred():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)


class Interrupting:
    """A file that is written while Ctrl-C is pressed."""

    def __init__(self, file, times):
        self.file, self.times = file, times

    def write(self, data):
        while self.times:
            self.times -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_a_checkpoint_is_written(fresh_lab, monkeypatch, handlers, times):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    extra = ("predictor=linear", *EVERY_3_STEPS)
    expected = records(run(fresh_lab.config(*extra, "suite=whole")).folder)
    config, save, written = fresh_lab.config(*extra), torch.save, []

    def interrupted(state, file, *rest):
        written.append(1)
        save(state, Interrupting(file, times) if len(written) == 4 else file, *rest)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert len(written) == 4 and (config.folder / CHECKPOINT).exists()
    assert not (config.folder / SUMMARY).exists() and not (config.folder / LOCK).exists()
    assert run(config).status == "completed"
    assert records(config.folder) == expected


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_asked_to_stop_at_random_moments(fresh_lab, monkeypatch, handlers, kind):
    """The short version of checks/interrupts.py."""
    handlers_of = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    signal.signal(kind, handlers_of[kind])
    extra = ("predictor=[linear,momentum]", *DROPOUT, "checkpoint.every_s=null", "checkpoint.every_steps=1")
    expected = records(run(fresh_lab.config(*extra, "suite=whole")).folder)
    config, rng, stopped, timers, left = fresh_lab.config(*extra), random.Random(7), 0, [], 0

    def at(workload, index):
        """Ask for the stop in the `left`-th step of this attempt, or in the checkpoint after it."""
        nonlocal left
        left -= 1
        if left == 0:
            timers.append(threading.Timer(rng.uniform(0.0, 0.05), os.kill, (os.getpid(), kind)))
            timers[-1].start()

    with captured(monkeypatch, at):
        for _ in range(24):  # an attempt makes at least one of the 24 steps
            left = rng.randint(1, 8)
            try:
                end = run(config)
                if left <= 0:
                    timers[-1].join()
                break
            except (KeyboardInterrupt, Terminated):
                stopped += 1
                assert not (config.folder / LOCK).exists()
                if (config.folder / SUMMARY).exists():  # it came when the run had just ended
                    assert json.loads((config.folder / SUMMARY).read_text())["status"] == "completed"
    assert stopped >= 2 and end.status == "completed"
    assert records(config.folder) == expected


def test_jobs_that_left_the_queue_are_dead_after_a_while():
    from hydra_plugins.leap_slurm import GRACE_S, LOOK_S, Queue

    clock, answers = SimpleNamespace(now=1000.0), {"7_0": "RUNNING", "7_1": "PENDING"}

    def ask():
        if answers is None:
            raise SlurmError("squeue: no answer")
        return answers

    queue = Queue(ask, lambda: clock.now)
    jobs = [SimpleNamespace(job_id=name) for name in ("7_0", "7_1")]
    queue.watch(jobs)

    def later(seconds):
        dead = []
        for _ in range(int(seconds // LOOK_S)):
            clock.now += LOOK_S
            dead = [job.job_id for job in jobs if job.watcher.is_done(job.job_id)]
        return dead

    assert later(100) == []
    del answers["7_1"]
    assert later(GRACE_S) == []
    answers["7_1"] = "REQUEUED"
    assert later(100) == []
    del answers["7_0"]
    assert later(GRACE_S + LOOK_S) == ["7_0"]
    answers = None  # the controller is restarted
    assert later(200) == []
    answers = {}
    assert later(GRACE_S + LOOK_S) == ["7_0", "7_1"]
