"""Small runs for the tests: a tiny network on a few kilobytes of text, and the records they leave."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from leapbench import cli
from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig
from leapbench.names import PROJECT, STREAMS
from leapbench.training.workload import Workload

ALL_PREDICTORS = "predictor=[linear,quadratic,momentum,momentum_decay,trend]"
ALL_PROTOCOLS = "protocol=[exact,paper,code]"
CONTEXTS = {
    "persistence": 1, "momentum": 1, "momentum_decay": 1, "linear": 2, "quadratic": 3, "trend": 5, "average": 5,
}  # fmt: skip

GROUPS = (
    "model", "dataset", "optimizer", "schedule", "predictor", "protocol", "regime", "leap", "logger", "experiment",
)  # fmt: skip

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
DROPOUT = ("model.config.resid_pdrop=0.1", "model.config.embd_pdrop=0.1", "model.config.attn_pdrop=0.1")


def write_texts(folder: Path, files: int = 60) -> Path:
    """A folder of .txt files with the same words in every test session."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = ["the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "moon", "and", "river", "stone"]
    for number in range(files):
        (folder / f"{number:03}.txt").write_text(" ".join(rng.choice(words) for _ in range(80)))
    return folder


@functools.cache
def composed(*choices: str) -> DictConfig:
    """Hydra's configuration with these choices of groups, which takes it half a second."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("config", list(choices))


@dataclass
class Lab:
    """A place for runs: makes their configurations and knows where their records are."""

    texts: Path
    cache: Path
    results: Path

    def overrides(self, *extra: str) -> list[str]:
        """Command-line overrides of a tiny run."""
        places = (f"dataset.path={self.texts}", f"cache_dir={self.cache}", f"results_dir={self.results}")
        return [*TINY, *places, *extra]

    def config(self, *extra: str) -> RunConfig:
        """The resolved configuration of a tiny run."""
        chosen = [override for override in extra if override.partition("=")[0] in GROUPS]
        values = [override for override in self.overrides(*extra) if override.partition("=")[0] not in GROUPS]
        cfg = composed("dataset=text_files", "regime=published", *chosen)
        merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(values))
        assert isinstance(merged, DictConfig)
        return resolve(merged)

    def files(self) -> dict[str, bytes]:
        """Every file under `results`, by name."""
        found = sorted(path for path in self.results.rglob("*") if path.is_file())
        return {str(path.relative_to(self.results)): path.read_bytes() for path in found}


@dataclass(frozen=True)
class End:
    """How a command ended."""

    status: int
    out: str
    err: str


def call(monkeypatch: pytest.MonkeyPatch, cwd: Path, *arguments: str) -> End:
    """`python train.py arguments` in this process, from folder `cwd`."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])

    @hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name="config")
    def task(cfg: Any) -> Any:
        return cli.job(cfg)

    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(task)
        except SystemExit as end:
            status = int(end.code or 0)
    return End(status, out.getvalue(), err.getvalue())


def start(cwd: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """`python train.py arguments` in a process of its own, from folder `cwd`."""
    command = [sys.executable, str(PROJECT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows(folder: Path, stream: str) -> list[dict[str, Any]]:
    """The rows of one jsonl file."""
    return [json.loads(line) for line in (folder / stream).read_text().splitlines()]


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
