"""The regimes' thresholds: those of the configuration, or of a file that scripts/calibrate.py wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leapbench.config.choices import Thresholds
from leapbench.config.errors import ConfigError
from leapbench.config.schema import RunConfig
from leapbench.names import PROJECT

PAIR = ("tau_low", "tau_high")


def fill_thresholds(config: RunConfig) -> None:
    """Give every protocol of a run that looks at regimes its thresholds, and note where they come from.

    Raises:
        ConfigError: there are none, or they are no thresholds.
    """
    regime = config.regime
    if not config.gated:
        return
    if regime.thresholds == Thresholds.published:
        pair = {"tau_high": regime.tau_high, "tau_low": regime.tau_low}
        regime.by_protocol = {name: pair for name in config.protocols}
        origin = "regime"
    else:
        calibration = _read(str(regime.file))
        missing = [name for name in config.protocols if name not in calibration["protocols"]]
        if missing:
            raise ConfigError(
                f"{regime.file} has no thresholds for protocol {missing[0]}; calibrate it, or use regime=published"
            )
        regime.source = calibration["source"]
        regime.by_protocol = {name: calibration["protocols"][name] for name in config.protocols}
        origin = f"{regime.file}: protocols.{{}}"
    regime.tau_high = regime.tau_low = None
    for name, pair in regime.by_protocol.items():
        _check(pair, origin.format(name))


def _read(file: str) -> dict[str, Any]:
    """A calibration: {source, protocols: {name: pair}}."""
    path = PROJECT / Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"regime=calibrated needs {file}, which does not exist; measure it with a calibration sweep and "
            "scripts/calibrate.py, or use regime=published"
        )
    try:
        calibration: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        calibration = None
    if (
        not isinstance(calibration, dict)
        or not isinstance(calibration.get("protocols"), dict)
        or "source" not in calibration
    ):
        raise ConfigError(
            f"regime.file={file} is no calibration; scripts/calibrate.py writes one, or use regime=published"
        )
    return calibration


def _check(pair: Any, origin: str) -> None:
    """Raise ConfigError unless `pair` holds two lists of numbers, tau_low not above tau_high in the mean."""
    means = []
    for key in PAIR:
        values = pair.get(key) if isinstance(pair, dict) else None
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or not values or not all(map(math.isfinite, values)):
            raise ConfigError(f"{origin}.{key}={values} must be a list of numbers, one or more, as in [0.99]")
        means.append(sum(values) / len(values))
    if means[0] > means[1]:
        raise ConfigError(f"{origin}.tau_low={pair['tau_low']} must not be above tau_high={pair['tau_high']}")
