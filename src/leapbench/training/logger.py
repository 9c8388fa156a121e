"""Where metrics are shown during a run. The records under results/raw are written in any case."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leapbench.config.choices import LoggerName, WandbMode
from leapbench.config.errors import ConfigError
from leapbench.names import FAILURES

if TYPE_CHECKING:
    from leapbench.config.groups import WandbConfig
    from leapbench.config.schema import RunConfig

INIT_TIMEOUT_S = 60.0
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
    """One Weights & Biases run per run id; a run that is resumed continues there too.

    Offline every start writes a segment of its own under `<dir>/wandb/offline-run-*-<run_id>`; `wandb sync` joins the
    segments of one id into one run.

    Raises:
        ConfigError: if W&B cannot be reached or needs an API key.
    """

    def __init__(self, config: WandbConfig, run_id: str, science: dict[str, Any]) -> None:
        import wandb

        if config.mode == WandbMode.online and not _has_key():
            raise ConfigError(f"wandb.mode=online needs an API key (`wandb login`, or WANDB_API_KEY); or {OFFLINE}")
        # W&B falls back to a temporary folder when this one does not exist.
        Path(config.dir).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                id=run_id,
                name=run_id,
                resume="allow",
                mode="online" if config.mode == WandbMode.online else "offline",
                dir=config.dir,
                config=science,
                reinit="finish_previous",
                settings=wandb.Settings(quiet=True, console="off", init_timeout=INIT_TIMEOUT_S),
            )
        except wandb.errors.Error as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"W&B did not answer ({first}); {OFFLINE}") from None

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


def build(config: RunConfig, run_id: str, science: dict[str, Any]) -> Logger:
    """The logger `config.logger` names.

    Args:
        config: `logger` and `wandb` are read.
        run_id: becomes the W&B run's id.
        science: the resolved science config, shown as the W&B run's config.
    """
    if config.logger == LoggerName.none:
        return NoLogger()
    return WandbLogger(config.wandb, run_id, science)


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
