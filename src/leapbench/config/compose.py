"""Configurations without Hydra's command line."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from leapbench.config.errors import ConfigError, complaint
from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig
from leapbench.names import PROJECT


def configured(*overrides: str) -> RunConfig:
    """What train.py would run with these overrides.

    Raises:
        ConfigError: it would refuse them.
    """
    try:
        with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
            composed = compose("config", list(overrides))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {complaint(error)}") from None
    return resolve(composed)
