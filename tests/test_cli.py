"""What a user sees: one line and an exit status for mistakes, a traceback for bugs, a summary for sweeps."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf

from leapbench import cli
from leapbench.config.errors import ConfigError
from leapbench.names import PROJECT

APP = """
import os
from types import SimpleNamespace
import hydra
from leapbench import cli

def run(config):
    if config.seed == 1:
        raise RuntimeError("a bug")
    if config.seed == 9:
        os._exit(3)
    status = "diverged" if config.seed == 2 else "completed"
    return SimpleNamespace(status=status, run_id=f"run{config.seed}", folder="somewhere", reason=None)

@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg):
    return cli.job(cfg, run)

if __name__ == "__main__":
    cli.main(main)
"""


@pytest.fixture
def app(tmp_path):
    """Run the command line with stub runs that need no torch."""
    script = tmp_path / "app.py"
    script.write_text(APP.replace("CONF", repr(str(PROJECT / "conf"))))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments, "regime=published"]
        env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)

    return call


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """Run the command line in this process; gives (exit status, stdout, stderr)."""
    import hydra

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(config: Any) -> Any:
        status = "diverged" if config.seed == 2 else "completed"
        return SimpleNamespace(
            status=status, run_id="abc", folder=None, reason="loss is nan" if config.seed == 2 else None
        )

    @hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name="config")
    def task(cfg: Any) -> Any:
        return cli.job(cfg, run)

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "regime=published"])
        status: Any = 0
        try:
            cli.main(task)
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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
    assert end.returncode == 1, end.stderr
    assert "8 cells in 4 jobs" in end.stdout
    assert "run3 completed" in end.stdout
    assert "RuntimeError: a bug" in end.stderr
    line = end.stderr.splitlines()[-1]
    assert line.startswith("sweep: 2 completed, 0 skipped, 1 diverged (run2), 1 failed (")


def test_a_dead_worker_is_one_line(app):
    end = app("-m", "seed=8,9", "hydra.launcher.n_jobs=2")
    assert end.returncode == 1
    assert "the same command continues" in end.stderr.splitlines()[-1]
    assert "Traceback" not in end.stderr


def test_a_bug_keeps_its_traceback(app):
    end = app("seed=1")
    assert end.returncode == 1
    assert "Traceback" in end.stderr
    assert end.stderr.splitlines()[-1] == "RuntimeError: a bug"


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


def test_explain_sees_through_instantiate():
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = ConfigError("context=1 is too short; use 2 or more")
    assert cli.explain(wrapped) == ("context=1 is too short; use 2 or more", 2)
    wrapped.__cause__ = TypeError("a bug")
    assert cli.explain(wrapped) is None
    assert cli.explain(HydraException("first\nsecond")) == ("first", 2)


def test_job_returns_plain_data_in_a_sweep(monkeypatch):
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = compose("config", ["regime=published", "predictor=linear"])
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


def test_sweep_script():
    def dry(*arguments: str) -> Any:
        command = [sys.executable, str(PROJECT / "scripts" / "sweep.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    end = dry("calibrate_embedded", "--dry-run", "--", "device=cpu")
    assert end.returncode == 0
    first, second = end.stdout.splitlines()
    assert first.startswith("python train.py -m suite=calibrate_embedded ") and first.endswith(" device=cpu")
    assert "suite=calibrate_embedded_lr5e-5" in second
    end = dry("leap_verify_embeded")
    assert end.returncode == 2
    assert end.stderr == "sweep leap_verify_embeded does not exist; did you mean leap_verify_embedded?\n"
