"""Configurations without Hydra's command line."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig
from leapbench.names import PROJECT


def configured(*overrides: str) -> RunConfig:
    """What train.py would run with these overrides.

    Raises:
        HydraException, ConfigError: it would refuse them.
    """
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return resolve(compose("config", list(overrides)))
