"""Small runs for the tests: a tiny network on a few kilobytes of text, and the records they leave."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from leapbench import cli
from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig, digest
from leapbench.meta import command
from leapbench.names import CONFIG, PROJECT, STREAMS, SUMMARY
from leapbench.records.files import write_json
from leapbench.records.seal import sealed
from leapbench.training.workload import Workload

ALL_PREDICTORS = "predictor=[linear,quadratic,momentum,momentum_decay,trend]"
ALL_PROTOCOLS = "protocol=[exact,paper,code]"
CONTEXTS = {
    "persistence": 1, "momentum": 1, "momentum_decay": 1, "linear": 2, "quadratic": 3, "trend": 5, "average": 5,
}  # fmt: skip

GROUPS = {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()}

# 20k parameters, about 2 ms a step.
TINY = (
    "dataset=text_files", "dataset.tokens=16", "regime=published", "regime.probes=4", "regime.probe_tokens=16",
    "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_head=2", "model.config.n_positions=16",
    "train.steps=24", "train.interval=4", "train.batch_size=4", "verify.sequences=4", "verify.batch_size=4",
    "eval.every=8", "eval.sequences=4", "eval.batch_size=4", "schedule.warmup=4", "K=[3,4,8]",
    "landscape.K=4", "landscape.fractions=[0.25,0.5,1.0]", "cascade.chains=[[3,4]]", "progress=false", "device=cpu",
)  # fmt: skip

# Every checkpoint after the second is confirmed stable, so that cascades are run.
ALWAYS_STABLE = ("regime.tau_high=[-2.0]", "regime.tau_low=[-3.0]", "regime.confirm=1")
PROBED = ("cascade.enabled=true", "landscape.enabled=true", *ALWAYS_STABLE)
DROPOUT = ("model.config.resid_pdrop=0.1", "model.config.embd_pdrop=0.1", "model.config.attn_pdrop=0.1")
NO_CHECKPOINTS = ("checkpoint.every_s=null", "checkpoint.every_steps=null")
EVERY_3_STEPS = ("checkpoint.every_s=null", "checkpoint.every_steps=3")


def write_texts(folder: Path) -> Path:
    """A folder of .txt files with the same words in every test session."""
    folder.mkdir()
    rng = random.Random(0)
    words = ["the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "moon", "and", "river", "stone"]
    for number in range(60):
        (folder / f"{number:03}.txt").write_text(" ".join(rng.choice(words) for _ in range(80)))
    return folder


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    begun = GlobalHydra.instance().is_initialized()  # by a test of the sweeper
    with contextlib.nullcontext() if begun else initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def composed(*overrides: str) -> DictConfig:
    """Hydra's configuration for these overrides, free to be changed; the first time it takes half a second."""
    return copy.deepcopy(_composed(overrides))


def config_of(experiment: str, *choices: str, **changes: Any) -> RunConfig:
    """The resolved configuration of an experiment with these choices of groups, and then with `changes` merged in."""
    cfg = composed(f"experiment={experiment}", *choices)
    OmegaConf.set_struct(cfg, False)
    cfg.merge_with({"progress": False, "device": "cpu", **changes})
    return resolve(cfg)


class Lab:
    """A folder for runs: makes their configurations and knows where their records are."""

    def __init__(self, root: Path, results: str = "results") -> None:
        self.root, self.texts = root, write_texts(root / "texts")
        self.cache, self.results = root / "cache", root / results

    def overrides(self, *extra: str) -> list[str]:
        """Command-line overrides of a tiny run."""
        places = (f"dataset.path={self.texts}", f"cache_dir={self.cache}", f"results_dir={self.results}")
        return [*TINY, *places, *extra]

    def composed(self, *extra: str) -> DictConfig:
        """Hydra's configuration of a tiny run; values are merged in without Hydra, which takes its time over them."""
        words = self.overrides(*extra)
        chosen = {word.partition("=")[0]: word for word in words if word.partition("=")[0] in GROUPS}
        cfg = composed(*chosen.values())
        cfg.merge_with_dotlist([word for word in words if word.partition("=")[0] not in GROUPS])
        return cfg

    def config(self, *extra: str) -> RunConfig:
        """The resolved configuration of a tiny run."""
        return resolve(self.composed(*extra))

    def command(self, *extra: str) -> list[str]:
        """A short command line of a tiny run, whose keys may be given anew: Hydra takes its time over every word."""
        path = self.root / "conf" / "experiment" / "tiny.yaml"
        if not path.is_file():
            words = [word.partition("=") for word in self.overrides()]
            chosen = [f"override /{key}: {value}" for key, _, value in words if key in GROUPS]
            settings = OmegaConf.from_dotlist([f"{key}={value}" for key, _, value in words if key not in GROUPS])
            text = OmegaConf.to_yaml(OmegaConf.merge({"defaults": []}, settings)).replace("defaults: []\n", "")
            path.parent.mkdir(parents=True)
            path.write_text("# @package _global_\ndefaults:\n" + "".join(f"  - {c}\n" for c in chosen) + text)
        flags = [word for word in extra if word == "-m"]
        regime = [] if any(word.startswith("regime=") for word in extra) else ["regime=published"]
        rest = [word for word in extra if word != "-m"]
        return [*flags, "--config-dir", str(path.parents[1]), "experiment=tiny", *regime, *rest]

    def files(self) -> dict[str, bytes]:
        """Every file under `results`, by name."""
        found = sorted(path for path in self.results.rglob("*") if path.is_file())
        return {str(path.relative_to(self.results)): path.read_bytes() for path in found}


class End(NamedTuple):
    """How a command ended: with an exit status, or with the message that it gave to sys.exit."""

    status: Any
    out: str
    err: str


def ended(monkeypatch: pytest.MonkeyPatch, main: Callable[[], Any], *argv: str) -> End:
    """`main()` with this command line."""
    monkeypatch.setattr(sys, "argv", list(argv))
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    return End(status, out.getvalue(), err.getvalue())


def call(
    monkeypatch: pytest.MonkeyPatch, cwd: Path, *arguments: str, runner: Callable[[RunConfig], Any] | None = None
) -> End:
    """`python train.py arguments` in this process, from folder `cwd`; `runner` carries out the runs."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    @hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name="config")
    def task(cfg: Any) -> Any:
        return cli.job(cfg, runner)

    return ended(monkeypatch, lambda: cli.main(task), "train.py", *arguments)


def meta_train(monkeypatch: pytest.MonkeyPatch, cwd: Path, *arguments: str) -> End:
    """`python meta_train.py arguments` in this process, from folder `cwd`."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    @hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name="meta_train")
    def task(cfg: Any) -> Any:
        return command.job(cfg)

    return ended(monkeypatch, lambda: cli.main(task, command.answer), "meta_train.py", *arguments)


def refused(end: End, *words: str) -> str:
    """Check that the command ended with one line on stderr that has these words, and return the line."""
    assert end.status not in (0, None)
    assert "Traceback" not in end.err + end.out
    assert len(end.err.splitlines()) == 1, end.err
    for word in words:
        assert word in end.err
    return end.err.strip()


def job(
    monkeypatch: pytest.MonkeyPatch, cwd: Path, cfg: DictConfig, runner: Callable[[RunConfig], Any] | None = None
) -> End:
    """What train.py makes of a configuration that is composed already; `runner` carries out the run."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: False))
    return ended(monkeypatch, lambda: cli.job(cfg, runner), "train.py")


def script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> End:
    """`python scripts/name.py arguments` in this process."""
    path = str(PROJECT / "scripts" / f"{name}.py")
    return ended(monkeypatch, lambda: runpy.run_path(path, run_name="__main__"), path, *arguments)


def write_app(folder: Path, run: str) -> Path:
    """A copy of train.py in `folder` whose runs are carried out by `run`, the source of a function of that name."""
    text = (PROJECT / "train.py").read_text().replace('"conf"', repr(str(PROJECT / "conf")))
    path = folder / "app.py"
    path.write_text(f"{run}\n{text.replace('cli.job(cfg)', 'cli.job(cfg, run)')}")
    return path


def start(cwd: Path, *arguments: str, script: Path = PROJECT / "train.py", **env: str) -> subprocess.Popen[str]:
    """`python script arguments` in a process of its own, from folder `cwd`."""
    command, pipe = [sys.executable, str(script), *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True)


def finished(process: subprocess.Popen[str], limit_s: float = 240) -> End:
    """How the process ends; it is killed if it does not within the limit."""
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the process hangs\n{out}\n{err}")
    return End(process.returncode, out, err)


def rows(folder: Path, stream: str) -> list[dict[str, Any]]:
    """The rows of one jsonl file."""
    return [json.loads(line) for line in (folder / stream).read_text().splitlines()]


def reseal(run: Path) -> Path:
    """The folder of a run whose files were changed by hand, as if the run itself had written them so."""
    summary = json.loads((run / SUMMARY).read_text())
    known = {key: value for key, value in summary.items() if key not in ("files", "sha256", "schema")}
    write_json(run / SUMMARY, sealed(run, known))
    return run.rename(run.with_name(digest(yaml.safe_load((run / CONFIG).read_text())["science"])))


def untimed(folder: Path, stream: str) -> list[dict[str, Any]]:
    """The rows of one jsonl file without their timing columns."""
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows(folder, stream)]


def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of a run without their timing columns."""
    return {stream: untimed(folder, stream) for stream in STREAMS}


def by_cell(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Proposal rows by (step, protocol, predictor, K); each occurs once."""
    cells = {(row["step"], row["protocol"], row["predictor"], row["K"]): row for row in found}
    assert len(cells) == len(found)
    return cells


def flat(model: torch.nn.Module) -> torch.Tensor:
    """A copy of all parameters of `model` in one vector (N,)."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@contextlib.contextmanager
def captured(monkeypatch: pytest.MonkeyPatch, at_batch: Any = None) -> Iterator[list[Workload]]:
    """The workloads of the runs inside. `at_batch(workload, index)` is called before update `index` is drawn."""
    made: list[Workload] = []

    class Captured(Workload):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

        def train_batch(self, index: int) -> Any:
            if at_batch is not None:
                at_batch(self, index)
            return super().train_batch(index)

    with monkeypatch.context() as patch:
        patch.setattr("leapbench.training.run.Workload", Captured)
        yield made


class InterruptionError(Exception):
    """Stands for anything that goes wrong in the middle of a run."""


@contextlib.contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, index: int, error: type[BaseException] = InterruptionError
) -> Iterator[None]:
    """The run inside ends with `error` when update `index` is about to be drawn."""

    def stop(workload: Workload, drawn: int) -> None:
        if drawn == index:
            raise error

    with captured(monkeypatch, stop), pytest.raises(error):
        yield
