"""The configuration of one training of a learned predictor; conf/meta_train.yaml and conf/network/ explain the keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leapbench.config.check import check_bounds
from leapbench.config.choices import LoggerName
from leapbench.config.errors import ConfigError
from leapbench.config.groups import CheckpointConfig, WandbConfig, bounded
from leapbench.config.resolve import one_line
from leapbench.config.schema import plain


@dataclass
class Network:
    """Which network it is."""

    name: str = MISSING

    def sizes(self) -> dict[str, Any]:
        """What the network is made with."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


@dataclass
class GraphSettings(Network):
    """Of NiNo's network; `rounds` counts the last one, which does nothing."""

    width: int = bounded(least=1)
    rounds: int = bounded(least=2)
    kernel: int = bounded(least=1, most=9)
    horizons: int = bounded(least=1)
    tokens: int = bounded(0, least=0)
    rates: bool = False


@dataclass
class EdgeSettings(Network):
    """Of WNN+'s network."""

    width: int = bounded(least=1)
    layers: int = bounded(least=2)
    horizons: int = bounded(least=1)
    rates: bool = False


@dataclass
class StreamSettings(Network):
    """Of WNN's networks, which have one size, and of the penalty on the outer layers of their streams."""

    l1_weights: float = bounded(0.0, least=0)
    l1_biases: float = bounded(0.0, least=0)

    def sizes(self) -> dict[str, Any]:
        """What the networks are made with: nothing."""
        return {}


SETTINGS: dict[str, type[Network]] = {"nino": GraphSettings, "wnn_plus": EdgeSettings, "wnn": StreamSettings}


@dataclass
class BatchConfig:
    """Trajectories per step, and windows of each."""

    trajectories: int = bounded(least=1)
    windows: int = bounded(least=1)


@dataclass
class AdamConfig:
    """AdamW of the network that learns, its rate along half a cosine."""

    lr: float = bounded()
    final_lr: float = bounded(least=0)
    weight_decay: float = bounded(least=0)
    grad_clip: float | None = bounded(None)


@dataclass
class ValidationConfig:
    """Trajectories that are not learned from, windows of each, and steps between two rows of the curve."""

    trajectories: Any = MISSING
    windows: int = bounded(least=1)
    every: int = bounded(least=1)


@dataclass
class MetaConfig:
    """One training, resolved."""

    trajectories: Any
    batch: BatchConfig
    optimizer: AdamConfig
    validation: ValidationConfig
    checkpoint: CheckpointConfig
    network: Any = None
    seed: int = bounded(least=0)
    steps: int = bounded(least=1)
    interval: int | None = bounded(None, least=1)
    targets: int = bounded(least=1)
    target_window: int = bounded(least=1)
    vocabulary: int | None = bounded(None, least=1)
    results_dir: str = MISSING
    device: str = MISSING
    threads: int = bounded(least=1)
    progress: bool = True
    logger: LoggerName = LoggerName.none
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def science(self) -> dict[str, Any]:
        """All that changes the numbers but the trajectories, as plain data."""
        everything = {key: value for key, value in plain(self).items() if key not in (*MACHINE, "trajectories")}
        del everything["validation"]["trajectories"]
        return everything

    def machine(self) -> dict[str, Any]:
        """Where and how it is carried out, as plain data."""
        everything = plain(self)
        places = {"trajectories": self.trajectories, "validation": self.validation.trajectories}
        return {key: everything[key] for key in MACHINE} | {"places": places}


MACHINE = ("results_dir", "device", "threads", "progress", "checkpoint", "logger", "wandb")


def resolve(cfg: DictConfig) -> MetaConfig:
    """Turn Hydra's configuration into a validated :class:`MetaConfig`.

    Raises:
        ConfigError: one line, for anything a user can get wrong.
    """
    values = OmegaConf.create({key: value for key, value in cfg.items_ex(resolve=False)})
    try:
        OmegaConf.resolve(values)
        network: Any = values.pop("network")
        name = network.get("name") if OmegaConf.is_dict(network) else network
        if name not in SETTINGS:
            raise ConfigError(f"network={name} is unknown; use {' or '.join(SETTINGS)}")
        merged = OmegaConf.merge(OmegaConf.structured(MetaConfig), values)
        chosen = OmegaConf.merge(OmegaConf.structured(SETTINGS[name]), network)
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{key} has no value; give it one, as in {key}=...")
        config: Any = OmegaConf.to_object(merged)
        config.network = OmegaConf.to_object(chosen)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from None
    config.trajectories = _places(config.trajectories, "trajectories")
    config.validation.trajectories = _places(config.validation.trajectories, "validation.trajectories")
    check_bounds(config)
    if not config.trajectories:
        raise ConfigError(
            "trajectories=[] holds nothing to learn from; record some with record_trajectory=true and give their "
            "folders, as in trajectories=results/raw/SUITE"
        )
    if config.target_window % 2 == 0:
        raise ConfigError(f"target_window={config.target_window} has no row in its middle; use an odd number")
    if not config.results_dir:
        raise ConfigError("results_dir= is empty; give a folder, as in results_dir=results/meta")
    return config


def _places(value: Any, key: str) -> list[str]:
    places = [value] if isinstance(value, str) else value
    if not isinstance(places, list) or not all(isinstance(place, str) and place for place in places):
        raise ConfigError(f"{key}={value} must be a folder or a list of folders")
    return places
