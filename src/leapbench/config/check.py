"""The checks of a configuration that types cannot express."""

from __future__ import annotations

import functools
import math
import os
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from leapbench.config.arms import check_pipeline
from leapbench.config.choices import LoggerName, PaceName, Probes, ScheduleName, SequenceLayout
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.names import Mode

# A folder that tables and scripts/status.py find: hidden ones are not suites.
FOLDER_NAME = re.compile(r"\w[\w.+=-]*")
# What W&B itself takes from the environment.
WANDB_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


def check(config: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        ConfigError: one line.
    """
    train, K = config.train, config.horizons
    check_bounds(config)
    _check_places(config)
    if not (config.optimizer.lr > 0 and math.isfinite(config.optimizer.lr)):
        raise ConfigError(f"optimizer.lr={config.optimizer.lr} must be a positive number")
    if train.interval > train.steps:
        raise ConfigError(
            f"train.interval={train.interval} is larger than train.steps={train.steps}: no snapshot would ever be taken"
        )
    if config.mode == Mode.leap:
        _check_leap(config)
    _check_recording(config)
    _check_schedule(config)
    _check_protocols(config)
    check_pipeline(config)
    if config.dataset.image is not None and config.dataset.image.channels not in (1, 3):
        raise ConfigError(f"dataset.image.channels={config.dataset.image.channels} must be 1 (grey) or 3 (colour)")
    _check_regime_probes(config.regime.probes)
    if config.predictors and K and K[-1] > train.steps - train.interval:
        raise ConfigError(
            f"K={K[-1]} is larger than the steps that remain after any snapshot (at most "
            f"{train.steps - train.interval}); lower K or raise train.steps={train.steps}"
        )
    _check_probes(config)


def _check_recording(config: RunConfig) -> None:
    if not config.record_trajectory:
        return
    if config.mode == Mode.leap or config.train.inline_leaps:
        raise ConfigError(
            "record_trajectory=true records training that nothing interferes with; use mode=observe and "
            "train.inline_leaps=false"
        )
    if config.recording_interval > config.train.steps:
        raise ConfigError(
            f"record_every={config.recording_interval} is more than train.steps={config.train.steps}; lower it"
        )


def _check_schedule(config: RunConfig) -> None:
    schedule, steps = config.schedule, config.train.steps
    if schedule.warmup > steps:
        raise ConfigError(
            f"schedule.warmup={schedule.warmup} is longer than the run of train.steps={steps}; "
            f"use schedule.warmup={steps} at most"
        )
    if schedule.name == ScheduleName.cosine_two_stage:
        if schedule.restart_at is None or schedule.restart is None:
            raise ConfigError(
                "schedule=cosine_two_stage needs schedule.restart_at (steps) and schedule.restart (share)"
            )
        if schedule.restart_at >= steps:
            raise ConfigError(
                f"schedule.restart_at={schedule.restart_at} is not within the run; set it below train.steps={steps}"
            )


def _check_places(config: RunConfig) -> None:
    """Names of folders, and what the environment says about W&B."""
    if not FOLDER_NAME.fullmatch(config.suite):
        raise ConfigError(
            f"suite={config.suite} is no name of a folder below results_dir; use letters, digits, _ - + = . and begin "
            "with a letter, a digit or _"
        )
    if not config.results_dir:
        raise ConfigError("results_dir= is empty; give a folder, as in results_dir=results/raw")
    mode = os.environ.get("WANDB_MODE", "online")
    if config.logger == LoggerName.wandb and mode not in WANDB_MODES:
        raise ConfigError(
            f"WANDB_MODE={mode} in the environment is no mode of W&B; unset it, wandb.mode=offline chooses"
        )


def _check_probes(config: RunConfig) -> None:
    """Cascades and the landscape."""
    cascade, landscape, steps = config.cascade, config.landscape, config.train.steps
    for chain in cascade.chains:
        if len(chain) != 2 or any(part < 1 for part in chain):
            raise ConfigError(f"cascade.chains: {chain} must be [depth, K], two positive integers")
        if cascade.enabled and math.prod(chain) > steps:
            raise ConfigError(
                f"cascade.chains: {chain} looks {math.prod(chain)} steps ahead, more than train.steps={steps}; shorten "
                "it"
            )
    fractions = landscape.fractions
    if landscape.enabled and not (len(set(fractions)) == len(fractions) > 1 and 0 not in fractions):
        raise ConfigError(f"landscape.fractions={fractions} must be two or more different numbers other than 0")
    if landscape.enabled and steps < landscape.K:
        raise ConfigError(f"landscape.K={landscape.K} is larger than train.steps={steps}; lower it")


def _check_regime_probes(probes: Any) -> None:
    is_count = isinstance(probes, int) and not isinstance(probes, bool) and probes >= 1
    if not is_count and probes != Probes.prompts:
        raise ConfigError(f"regime.probes={probes} must be 1 or more held-out sequences, or {Probes.prompts}")


def _check_leap(config: RunConfig) -> None:
    leap = config.leap
    for key in ("cascade", "landscape"):
        if getattr(config, key).enabled:
            raise ConfigError(f"{key}.enabled=true does nothing in mode=leap; use it with mode=observe")
    if len(config.protocols) > 1:
        raise ConfigError(f"mode=leap follows one protocol at a time, not {_names(config.protocols)}; use -m")
    if config.predictors and len(config.horizons) > 1:
        K = ",".join(map(str, config.horizons))
        raise ConfigError(
            f"mode=leap uses one K, not K=[{K}]; give one, as in K={config.horizons[0]}, or K={K} with -m"
        )
    if any(step < 1 for step in leap.follow):
        raise ConfigError(f"leap.follow={leap.follow} must be steps after a leap, 1 or more each")
    if leap.scheduler == PaceName.pdt and config.predictors and config.horizons[0] % config.train.interval:
        raise ConfigError(
            f"leap.scheduler=pdt counts K in intervals; K={config.horizons[0]} is no multiple of "
            f"train.interval={config.train.interval}"
        )


@functools.cache
def _numbers_of(kind: Any) -> dict[str, type]:
    """The fields of a dataclass that hold several numbers, and of which type: OmegaConf checks none of those."""
    several = {list[int]: int, list[float]: float, list[float] | None: float, dict[str, float]: float}
    return {name: several[hint] for name, hint in get_type_hints(kind).items() if hint in several}


def check_bounds(config: Any, prefix: str = "") -> None:
    """Every value within the bounds that its field declares, and numbers where there should be numbers.

    Args:
        config: a dataclass.

    Raises:
        ConfigError: one line, for the first that is not.
    """
    kind: Any = type(config)
    numbers = _numbers_of(kind)
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        parts = value if isinstance(value, dict) else {}
        for part in (parts.values() if parts else value or ()) if item.name in numbers else ():
            if type(part) not in (int, numbers[item.name]) or not math.isfinite(part):
                raise ConfigError(f"{key}={value} must hold numbers, and {part} is none")
        if is_dataclass(value):
            check_bounds(value, f"{key}.")
        for name, part in parts.items():
            if is_dataclass(part):
                check_bounds(part, f"{key}.{name}.")
        if value is None or "bounded" not in item.metadata:
            continue
        least, most = item.metadata["least"], item.metadata["most"]
        if least is None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}={value} must be a positive number")
        if least is not None and not (least <= value <= most and math.isfinite(value)):
            limits = f"{least} or more" if most == math.inf else f"between {least} and {most}"
            raise ConfigError(f"{key}={value} must be {limits}")


def _check_protocols(config: RunConfig) -> None:
    if not config.protocols:
        raise ConfigError("no protocol chosen; use protocol=exact, paper or code")
    for name, protocol in config.protocols.items():
        last = protocol.rules.adaptive.sigma_over
        if last != "all" and not (type(last) is int and last > 0):
            raise ConfigError(f"protocols.{name}.rules.adaptive.sigma_over={last} must be a number of losses, or all")
    padded = config.dataset.layout == SequenceLayout.padded
    if padded and len({protocol.pad_in_loss for protocol in config.protocols.values()}) > 1:
        raise ConfigError(f"protocols {_names(config.protocols)} train with different padding; run them apart with -m")
    if config.model.init is None and len({protocol.init for protocol in config.protocols.values()}) > 1:
        raise ConfigError(
            f"protocols {_names(config.protocols)} start from different weights; run them apart with -m, or set "
            "model.init"
        )
    if config.mode == Mode.observe and config.train.inline_leaps:
        if len({str(protocol.inline_leaps) for protocol in config.protocols.values()}) > 1:
            raise ConfigError(
                f"protocols {_names(config.protocols)} leap differently while they train; run them apart with -m, or "
                "set train.inline_leaps=false"
            )
        leaps = config.inline_leaps
        if leaps is not None and config.train.interval <= leaps.K:
            raise ConfigError(
                f"inline_leaps.K={leaps.K} of protocol={next(iter(config.protocols))} must be below "
                f"train.interval={config.train.interval}, or a leap would pass the next snapshot; raise train.interval"
            )


def _names(mapping: dict[str, Any]) -> str:
    return ", ".join(mapping)
