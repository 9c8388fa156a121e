"""The checks of a configuration that types cannot express."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from leapbench.config.choices import PaceName, Probes, ScheduleName, SequenceLayout
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.names import Mode


def check(config: RunConfig) -> None:
    """Check what types cannot express.

    Raises:
        ConfigError: one line.
    """
    train, K = config.train, config.horizons
    _check_bounds(config)
    if not (config.optimizer.lr > 0 and math.isfinite(config.optimizer.lr)):
        raise ConfigError(f"optimizer.lr={config.optimizer.lr} must be a positive number")
    if config.mode == Mode.leap:
        _check_leap(config)
    if config.schedule.name == ScheduleName.cosine_two_stage and None in (
        config.schedule.restart_at,
        config.schedule.restart,
    ):
        raise ConfigError("schedule=cosine_two_stage needs schedule.restart_at (steps) and schedule.restart (share)")
    if train.interval > train.steps:
        raise ConfigError(
            f"train.interval={train.interval} is larger than train.steps={train.steps}: no snapshot would ever be taken"
        )
    _check_protocols(config)
    _check_probes(config.regime.probes)
    if config.predictors and K and K[-1] > train.steps - train.interval:
        raise ConfigError(
            f"K={K[-1]} is larger than the steps that remain after any snapshot (at most "
            f"{train.steps - train.interval}); lower K or raise train.steps={train.steps}"
        )
    for chain in config.cascade.chains:
        if len(chain) != 2 or any(not isinstance(part, int) or part < 1 for part in chain):
            raise ConfigError(f"cascade.chains: {chain} must be [depth, K], two positive integers")
    fractions = config.landscape.fractions
    if config.landscape.enabled and (len(set(fractions)) < 2 or len(set(fractions)) < len(fractions) or 0 in fractions):
        raise ConfigError(f"landscape.fractions={fractions} must be two or more different numbers other than 0")


def _check_probes(probes: Any) -> None:
    is_count = isinstance(probes, int) and not isinstance(probes, bool) and probes >= 1
    if not is_count and probes != Probes.prompts:
        raise ConfigError(f"regime.probes={probes} must be 1 or more held-out sequences, or {Probes.prompts}")


def _check_leap(config: RunConfig) -> None:
    leap = config.leap
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


def _check_bounds(config: Any, prefix: str = "") -> None:
    """Every value within the bounds that its field declares."""
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        parts = value if isinstance(value, dict) else {}
        if is_dataclass(value):
            _check_bounds(value, f"{key}.")
        for name, part in parts.items():
            if is_dataclass(part):
                _check_bounds(part, f"{key}.{name}.")
        if value is None or "bounded" not in item.metadata:
            continue
        least = item.metadata["least"]
        if least is None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}={value} must be a positive number")
        if least is not None and not (value >= least and math.isfinite(value)):
            raise ConfigError(f"{key}={value} must be {least} or more")


def _check_protocols(config: RunConfig) -> None:
    if not config.protocols:
        raise ConfigError("no protocol chosen; use protocol=exact, paper or code")
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
