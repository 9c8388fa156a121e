"""Where metrics are shown during a run. The records under results/raw are written in any case."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

from leapbench.config.choices import LoggerName, WandbMode
from leapbench.config.errors import ConfigError
from leapbench.config.groups import WandbConfig
from leapbench.config.schema import RunConfig, digest
from leapbench.names import BASELINE, CONTROLS, FAILURES, NONE, Mode

INIT_TIMEOUT_S = 60.0
LONGEST = 64  # characters of a tag that W&B accepts
UNUSABLE = re.compile(r"[^A-Za-z0-9_.-]")  # in a run's id
OFFLINE = "use wandb.mode=offline (upload later with `wandb sync`) or logger=none"


class Logger(Protocol):
    """One run's display."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Show `metrics`, by name, at optimizer step `step`; steps never go back within one start."""

    def figure(self, name: str, path: str | Path) -> None:
        """Show the image file at `path`."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Show the run's summary and close. `summary["status"]` decides whether the run counts as failed."""


class NoLogger:
    """Shows nothing."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Ignore."""

    def figure(self, name: str, path: str | Path) -> None:
        """Ignore."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Ignore."""


class WandbLogger:
    """One Weights & Biases run per run and suite, in the suite's group; a run that is resumed continues there too.

    Offline every start writes a segment of its own under `<dir>/wandb/offline-run-*`; `wandb sync` joins the segments
    of one id into one run.

    Raises:
        ConfigError: if W&B cannot be reached or needs an API key.
    """

    def __init__(self, config: RunConfig) -> None:
        self._run = begin(
            config.wandb,
            id=id_of(config),
            name=name_of(config),
            group=config.suite,
            job_type=config.mode,
            tags=tags_of(config),
            config=config.science() | {"suite": config.suite, "run_id": config.run_id},
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Send `metrics` for optimizer step `step`."""
        self._run.log(metrics, step=step)

    def figure(self, name: str, path: str | Path) -> None:
        """Send the image file at `path`."""
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def finish(self, summary: dict[str, Any]) -> None:
        """Send the summary and close; a failed or diverged run is marked so."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=int(summary["status"] in FAILURES))


def begin(settings: WandbConfig, **identity: Any) -> Any:
    """W&B's run, new or continued.

    Args:
        identity: its id, name, group and the like, as `wandb.init` takes them.

    Raises:
        ConfigError: W&B cannot be reached or needs an API key.
    """
    import wandb

    if settings.mode == WandbMode.online and not _has_key():
        raise ConfigError(f"wandb.mode=online needs an API key (`wandb login`, or WANDB_API_KEY); or {OFFLINE}")
    # W&B falls back to a temporary folder when this one does not exist.
    Path(settings.dir).mkdir(parents=True, exist_ok=True)
    try:
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            resume="allow",
            mode="online" if settings.mode == WandbMode.online else "offline",
            dir=str(Path(settings.dir).absolute()),
            reinit="finish_previous",
            settings=wandb.Settings(quiet=True, console="off", init_timeout=INIT_TIMEOUT_S),
            **identity,
        )
    except wandb.errors.Error as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"W&B did not answer ({first}); {OFFLINE}") from None


def build(config: RunConfig) -> Logger:
    """The logger `config.logger` names."""
    return NoLogger() if config.logger == LoggerName.none else WandbLogger(config)


def id_of(config: RunConfig) -> str:
    """`suite-run_id`, of characters that W&B allows; no two suites share one."""
    plain = UNUSABLE.sub("-", config.suite)[:LONGEST]
    suite = plain if plain == config.suite else f"{plain}-{digest(config.suite)}"
    return f"{suite}-{config.run_id}"


def name_of(config: RunConfig) -> str:
    """`trend K=10 strict, gpt2_nano stdlib, seed 0`; without the controls, which every run that observes has."""
    predictors = "+".join(_requested(config)) or BASELINE
    leaps = config.mode == Mode.leap and config.predictors
    method = f"{predictors} K={config.horizons[0]} {config.leap.rule}" if leaps else predictors
    return f"{method[:LONGEST]}, {config.model.name} {config.dataset.name}, seed {config.seed}"


def tags_of(config: RunConfig) -> list[str]:
    """The axes of the sweeps: mode, workload, training, and what is predicted how."""
    tags = [config.mode, config.model.name, config.dataset.name, config.optimizer.name, config.schedule.name]
    tags += [] if config.wrapper.name == NONE else [config.wrapper.name]
    tags += [*(_requested(config) or [BASELINE]), *config.protocols]
    if config.mode == Mode.leap and config.predictors:
        tags += [f"K={config.horizons[0]}", f"rule={config.leap.rule}", f"gate={config.leap.gate}"]
    return [str(tag)[:LONGEST] for tag in dict.fromkeys([*tags, f"seed={config.seed}"])]


def _requested(config: RunConfig) -> list[str]:
    return [name for name in config.predictors if name not in CONTROLS] or list(config.predictors)


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
