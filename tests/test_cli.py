"""What a user sees: one line and an exit status for mistakes, a traceback for bugs, a summary for sweeps."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf

from helpers import End, call, composed, finished, start, write_app
from leapbench import cli
from leapbench.config.errors import ConfigError
from leapbench.names import PROJECT, SUMMARY
from leapbench.records.files import write_json
from leapbench.training.signals import Terminated

NUMBERS = {
    "steps": 10, "position": 10, "final": {"validation_loss_nats": 1.5}, "skipped": {},
    "best": {"validation_loss_nats": 1.25, "step": 8}, "totals": {"charged_s": 2.0, "train_s": 1.0},
}  # fmt: skip
RUN = """
import os
from types import SimpleNamespace

def run(config):
    if config.seed == 1:
        raise RuntimeError("a bug")
    if config.seed == 9:
        os._exit(3)
    status = "diverged" if config.seed == 2 else "completed"
    return SimpleNamespace(status=status, run_id=f"run{config.seed}", folder="somewhere", reason=None)
"""


@pytest.fixture
def app(tmp_path):
    """Run the command line with stub runs that need no torch."""
    script = write_app(tmp_path, RUN)

    def run(*arguments: str) -> End:
        return finished(start(tmp_path, *arguments, "regime=published", script=script, HYDRA_FULL_ERROR="0"))

    return run


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Run the command line with stub runs in this process."""

    def run(config: Any) -> Any:
        bad = config.seed == 2
        status, reason = ("diverged", "loss is nan") if bad else ("completed", None)
        return SimpleNamespace(status=status, run_id="abc", folder=None, reason=reason)

    return lambda *arguments: call(monkeypatch, tmp_path, *arguments, "regime=published", runner=run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=0-4"], ["seed=0-4", "-m"]),
        (["seed=0-4,7"], ["seed=0-4,7", "-m"]),
        (["seed=abc"], ["seed=abc"]),
        (["-m", "seed=4-0"], ["seed=4-0", "seed=0-4"]),
        (["predictor=linaer"], ["predictor=linaer", "did you mean linear?", "quadratic"]),
        (["-m", "predictor=linear,quadratik"], ["predictor=quadratik", "did you mean quadratic?"]),
        (["model=gpt2_nanoo"], ["model=gpt2_nanoo", "did you mean gpt2_nano?"]),
        (["dataset=stdlb"], ["dataset=stdlb", "did you mean stdlib?"]),
        (["model=5"], ["name"]),
        (["train.stepz=5"], ["train.stepz", "did you mean steps?"]),
        (["train.steps=abc"], ["train.steps", "abc"]),
        (["K=abc"], ["K=abc"]),
        (["-m", "K=5,abc"], ["K=abc"]),
        (["K=0"], ["K=0"]),
        (["K=[5"], ["K=[5"]),
        (["K=5,10"], ["K=5,10", "-m", "[a,b]"]),
        (["mode=leep"], ["mode=leep", "observe"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(in_process, arguments, words):
    status, out, err = in_process(*arguments)
    assert status == 2, err
    assert len(err.splitlines()) == 1, err
    assert out == "" or arguments[0] == "-m"
    for word in words:
        assert word in err


def test_a_run_says_how_it_ended(in_process):
    assert in_process("predictor=linear") == (0, "abc completed\n", "")
    assert in_process("seed=2") == (1, "", "abc diverged: loss is nan\n")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_goes_on_after_a_failure(app, jobs):
    end = app("-m", "seed=0-3", "predictor=linear,none", f"hydra.launcher.n_jobs={jobs}")
    assert end.status == 1, end.err
    assert "8 cells in 4 jobs" in end.out
    assert "run3 completed" in end.out
    assert "RuntimeError: a bug" in end.err
    line = end.err.splitlines()[-1]
    assert line.startswith("sweep: 2 completed, 0 skipped, 1 diverged (run2), 1 failed (")


def test_a_dead_worker_is_one_line(app):
    end = app("-m", "seed=8,9", "hydra.launcher.n_jobs=2")
    assert end.status == 1
    assert "the same command continues" in end.err.splitlines()[-1]
    assert "Traceback" not in end.err


def test_a_bug_keeps_its_traceback(app):
    end = app("seed=1")
    assert end.status == 1
    assert "Traceback" in end.err
    assert end.err.splitlines()[-1] == "RuntimeError: a bug"


def test_the_real_command_line_is_quick_to_refuse(tmp_path):
    probe = "import runpy, sys; sys.argv = ['train.py', 'K=abc', 'regime=published']\n"
    probe += f"try: runpy.run_path({str(PROJECT / 'train.py')!r}, run_name='__main__')\n"
    probe += "finally: print('torch' in sys.modules)"
    end = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (end.returncode, end.stdout) == (2, "False\n"), end.stderr
    assert len(end.stderr.splitlines()) == 1
    script = (PROJECT / "train.py").read_text()
    assert len(script.splitlines()) <= 60


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_full_or_closed_disk_names_the_path_and_the_way_on(number):
    for error, path in (
        (OSError(number, os.strerror(number), "/data/run/evals.jsonl"), "/data/run/evals.jsonl"),
        (OSError(number, os.strerror(number)), "results/raw"),
    ):
        known = cli.explain(error, folder="results/raw")
        assert known is not None
        assert known[1] == 1
        assert known[0].startswith(f"{path}: ") and "the same command continues" in known[0]
    assert cli.explain(OSError(errno.ENOENT, "no such file", "x")) is None


def test_interruption_is_130(monkeypatch, capsys):
    def task() -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as end:
        cli.main(task)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command continues where it stopped\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (lambda: Terminated(143), 143)])
def test_an_interrupted_sweep_says_how_far_it_is_and_how_to_go_on(monkeypatch, tmp_path, error, status):
    def run(config: Any) -> Any:
        if config.seed == 2:
            raise error()
        config.folder.mkdir(parents=True)
        write_json(config.folder / SUMMARY, {"status": "completed", "reason": None} | NUMBERS)
        return SimpleNamespace(status="completed", run_id=config.run_id, folder=config.folder, reason=None)

    words = ["-m", "seed=0-4", "predictor=none", "K=[5, 10]", "regime=published"]
    end = call(monkeypatch, tmp_path, *words, runner=run)
    assert end.status == status
    assert end.err == (
        "interrupted; 2 of 5 runs have ended, the same command continues where it stopped: "
        "python train.py -m seed=0-4 predictor=none 'K=[5, 10]' regime=published\n"
    )
    assert "tables: " not in end.out


def test_a_sweep_names_the_command_that_makes_its_tables(in_process, tmp_path):
    end = in_process("-m", "seed=0-1", "suite=mine,other", "results_dir=raw")
    assert end.status == 0
    *_, mine, other, last = end.out.splitlines()
    script = PROJECT / "scripts" / "aggregate.py"
    assert (mine, other) == tuple(
        f"tables: python {script} --suite {suite} --results raw" for suite in ("mine", "other")
    )
    assert last == "sweep: 4 completed, 0 skipped, 0 diverged, 0 failed"


def test_explain_sees_through_instantiate():
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = ConfigError("context=1 is too short; use 2 or more")
    assert cli.explain(wrapped) == ("context=1 is too short; use 2 or more", 2)
    wrapped.__cause__ = TypeError("a bug")
    assert cli.explain(wrapped) is None
    assert cli.explain(HydraException("first\nsecond")) == ("first", 2)


def test_job_returns_plain_data_in_a_sweep(monkeypatch):
    cfg = composed("regime=published", "predictor=linear")
    multirun = OmegaConf.create({"hydra": {"mode": "MULTIRUN"}})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(
        HydraConfig, "get", staticmethod(lambda: SimpleNamespace(mode=cli.RunMode[multirun.hydra.mode]))
    )

    def wrong(config: Any) -> Any:
        raise ConfigError("dataset.path=/nowhere does not exist; give a folder")

    result = cli.job(cfg, wrong)
    assert result["status"] == "failed" and len(result["run_id"]) == 12
    assert result["reason"] == "dataset.path=/nowhere does not exist; give a folder"


def test_sweep_script(tmp_path):
    def sweep(*arguments: str) -> End:
        return finished(start(tmp_path, *arguments, script=PROJECT / "scripts" / "sweep.py"), 60)

    end = sweep("calibrate_embedded", "--dry-run", "--", "device=cpu")
    assert end.status == 0
    first, second = end.out.splitlines()
    assert first.startswith("python train.py -m suite=calibrate_embedded ") and first.endswith(" device=cpu")
    assert "suite=calibrate_embedded_lr5e-5" in second
    end = sweep("leap_verify_embeded")
    assert end.status == 2
    assert end.err == "sweep leap_verify_embeded does not exist; did you mean leap_verify_embedded?\n"
