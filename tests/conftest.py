"""One torch thread, configurations composed once, and a run small enough for any test."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
TINY = (
    "regime=published", "dataset=text_files", "dataset.tokens=16",
    "model.config.n_positions=16", "model.config.n_embd=8", "model.config.n_layer=1", "model.config.n_head=2",
    "schedule.warmup=5", "train.steps=40", "train.interval=5", "train.batch_size=4", "K=[2,5]",
    "verify.sequences=4", "verify.batch_size=4", "eval.every=20", "eval.sequences=4", "eval.batch_size=4",
    "regime.probes=4", "regime.probe_tokens=16", "landscape.K=5", "progress=false",
)  # fmt: skip

torch.set_num_threads(1)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """composed("predictor=linear", ...): Hydra's configuration for these overrides, free to be changed."""
    return lambda *overrides: copy.deepcopy(_composed(overrides))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty little texts."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text("".join(f"{i} times {j} is {i * j}\n" for j in range(20)))
    return folder


@pytest.fixture
def tiny(composed: Callable[..., DictConfig], corpus: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """tiny("protocol=code", ...): a resolved run of 40 steps on `corpus`, with its results under tmp_path."""

    def make(*overrides: str) -> RunConfig:
        cfg = composed(*TINY, *overrides)
        cfg.dataset.path, cfg.cache_dir = str(corpus), str(corpus.with_name("cache"))
        cfg.results_dir = str(tmp_path / "raw")
        return resolve(cfg)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on a real Slurm first: they mostly wait."""
    items.sort(key=lambda item: "slurm" not in item.keywords)
