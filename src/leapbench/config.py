"""Typed configuration: one dataclass per group, validation, and the identity of a run.

Everything the user can set passes through :func:`resolve`, which turns Hydra's nested dictionary into a
:class:`RunConfig` or raises :class:`ConfigError` with one line that says what was wrong and what would be right.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PROJECT = Path(__file__).resolve().parents[2]
BASELINE = "none"


class ConfigError(Exception):
    """A user's mistake. The message is one line: what was wrong, and what would be right."""


@dataclass
class ModelConfig:
    """A network by its transformers config class; `config` holds that class's arguments."""

    name: str = MISSING
    model_type: str = MISSING
    init: str | None = None
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class DatasetConfig:
    """A text and how it becomes sequences of tokens."""

    name: str = MISSING
    source: str = MISSING
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    text_column: str = "text"
    tokenizer: str = "byte"
    vocab_size: int | None = None
    layout: str = "packed"
    tokens: int = MISSING
    min_characters: int = 0
    hold_out_last: int | None = None


@dataclass
class OptimizerConfig:
    """An optimizer by name with its hyper-parameters; keys that it does not have stay None."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None


@dataclass
class ScheduleConfig:
    """The learning rate over positions: warm-up in steps, the rest as shares."""

    name: str = MISSING
    warmup: int = 0
    floor: float = 0.0
    decay: float = 0.0


@dataclass
class HistoryConfig:
    """Storage dtypes of snapshots."""

    weights: str = "float32"
    moments: str = "float32"


@dataclass
class FingerprintConfig:
    """How hidden states (probes, tokens, width) become one similarity."""

    pooling: str = "masked_mean"
    cosine: str = "concatenated"


@dataclass
class ProtocolConfig:
    """One reading of the method: what the paper prints, what its code does, or what is right."""

    history: HistoryConfig = field(default_factory=HistoryConfig)
    predictors: dict[str, Any] = field(default_factory=dict)
    fingerprint: FingerprintConfig = field(default_factory=FingerprintConfig)
    inclusive: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    pad_in_loss: bool = False
    cascade: str = "chain"
    init: str = "scratch"


@dataclass
class RegimeConfig:
    """Thresholds of the similarity, per protocol: {name: {tau_high: [per seed], tau_low: [per seed]}}."""

    thresholds: str = MISSING
    source: Any = None
    file: str | None = None
    tau_high: list[float] | None = None
    tau_low: list[float] | None = None
    confirm: int = 2
    probes: int = 100
    probe_tokens: int = 128
    by_protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """The training itself."""

    steps: int = MISSING
    interval: int = MISSING
    batch_size: int = MISSING
    grad_clip: float | None = 1.0
    precision: str = "float32"
    compile: bool = False


@dataclass
class VerifyConfig:
    """The held-out sequences candidates are scored on."""

    sequences: int = MISSING
    batch_size: int = MISSING


@dataclass
class EvalConfig:
    """Validation: only the scorer looks."""

    every: int = MISSING
    sequences: int = MISSING
    batch_size: int = MISSING


@dataclass
class CascadeConfig:
    """Chains of predictions, (depth, K) each."""

    enabled: bool = False
    chains: list[Any] = field(default_factory=list)


@dataclass
class LandscapeConfig:
    """Loss along the prediction direction."""

    enabled: bool = False
    K: int = 50
    fractions: list[float] = field(default_factory=list)


@dataclass
class CheckpointConfig:
    """When to write a rolling checkpoint."""

    every_s: float | None = 60.0
    every_steps: int | None = None


@dataclass
class WandbConfig:
    """Where W&B records go."""

    mode: str = "online"
    project: str = "leapbench"
    entity: str | None = None
    dir: str = "results/raw/wandb"


@dataclass
class RunConfig:
    """One run, resolved. `science` keys make the run id; the rest says where and how it runs."""

    model: ModelConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    regime: RegimeConfig
    train: TrainConfig
    verify: VerifyConfig
    eval: EvalConfig
    cascade: CascadeConfig
    landscape: LandscapeConfig
    checkpoint: CheckpointConfig
    predictors: dict[str, Any] = field(default_factory=dict)
    protocols: dict[str, ProtocolConfig] = field(default_factory=dict)
    mode: str = "observe"
    K: Any = MISSING
    seed: Any = MISSING
    suite: str = "default"
    results_dir: str = "results/raw"
    cache_dir: str | None = None
    device: str = "auto"
    history_device: str | None = None
    threads: int = 1
    progress: bool = True
    logger: str = "none"
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def horizons(self) -> list[int]:
        """The horizons K, steps, ascending."""
        return list(self.K)

    @property
    def cache(self) -> Path:
        """Where tokenised data is kept."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else Path.home() / ".cache" / "leapbench"

    @property
    def init(self) -> str:
        """`scratch` or `pretrained`."""
        return self.model.init or self.protocol.init

    @property
    def protocol(self) -> ProtocolConfig:
        """The first protocol; all of a run's protocols train alike."""
        return next(iter(self.protocols.values()))

    @property
    def pad_in_loss(self) -> bool:
        """Whether padded positions are targets."""
        return self.dataset.layout == "padded" and self.protocol.pad_in_loss

    def science(self) -> dict[str, Any]:
        """Everything that changes the numbers, as plain data."""
        everything = asdict(self)
        for key in MACHINE_KEYS:
            group, _, leaf = key.partition(".")
            if leaf:
                everything[group].pop(leaf)
            else:
                everything.pop(group)
        return everything

    def machine(self) -> dict[str, Any]:
        """Where and how the run is carried out, as plain data."""
        everything = asdict(self)
        return {key: _dig(everything, key) for key in MACHINE_KEYS}

    def training(self) -> dict[str, Any]:
        """The part of `science` that decides the trajectory of an untouched training."""
        science = self.science()
        keys = ("model", "dataset", "optimizer", "schedule", "train", "seed")
        return {key: science[key] for key in keys} | {"init": self.init, "pad_in_loss": self.pad_in_loss}

    @property
    def run_id(self) -> str:
        """12 hex digits of the sha256 of `science`."""
        return digest(self.science())

    @property
    def trajectory(self) -> str:
        """12 hex digits, equal for runs whose untouched training is the same."""
        return digest(self.training())


MACHINE_KEYS = (
    "suite", "results_dir", "cache_dir", "device", "history_device", "threads", "progress", "checkpoint",
    "logger", "wandb", "regime.file",
)  # fmt: skip


def digest(data: Any) -> str:
    """First 12 hex digits of the sha256 of `data` as sorted JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def resolve(cfg: DictConfig) -> RunConfig:
    """Turn Hydra's configuration into a validated :class:`RunConfig`.

    Raises:
        ConfigError: one line, for anything a user can get wrong.
    """
    plain = OmegaConf.create({key: value for key, value in cfg.items_ex(resolve=False) if key != "experiment"})
    _check_seed(plain.get("seed"))
    plain.K = parse_horizons(plain.get("K"))
    try:
        OmegaConf.resolve(plain)
        predictors: Any = OmegaConf.to_container(plain.pop("predictors"))
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), plain)
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{key} has no value; give it one, as in {key}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    assert isinstance(config, RunConfig)
    config.predictors = _select(predictors)
    _fill_thresholds(config)
    validate(config)
    return config


def parse_horizons(K: Any) -> list[int]:
    """One horizon or several -> ascending list of distinct positive integers, steps.

    Raises:
        ConfigError: for anything else.
    """
    values = list(K) if OmegaConf.is_list(K) or isinstance(K, list | tuple) else [K]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"K={value} is not a number of steps; K is a positive integer or a list, as in K=5,10 with -m")
        if value < 1:
            raise ConfigError(f"K={value} predicts nothing; K is the number of steps ahead, 1 or more")
    if not values:
        raise ConfigError("K=[] has no horizon; give at least one, as in K=5")
    return sorted(set(values))


def validate(config: RunConfig) -> None:
    """Check what types cannot say.

    Raises:
        ConfigError: one line.
    """
    train, K = config.train, config.horizons
    for name, value in (
        ("train.steps", train.steps), ("train.interval", train.interval), ("train.batch_size", train.batch_size),
        ("verify.sequences", config.verify.sequences), ("verify.batch_size", config.verify.batch_size),
        ("eval.every", config.eval.every), ("eval.sequences", config.eval.sequences),
        ("eval.batch_size", config.eval.batch_size), ("regime.probes", config.regime.probes),
        ("regime.probe_tokens", config.regime.probe_tokens), ("regime.confirm", config.regime.confirm),
        ("dataset.tokens", config.dataset.tokens), ("threads", config.threads),
    ):  # fmt: skip
        if value < 1:
            raise ConfigError(f"{name}={value} must be 1 or more")
    _choice("mode", config.mode, ("observe",))
    _choice("train.precision", train.precision, ("float32", "bfloat16"))
    _choice("dataset.layout", config.dataset.layout, ("packed", "padded"))
    _choice("dataset.source", config.dataset.source, ("stdlib", "hub", "text_files"))
    _choice("optimizer.name", config.optimizer.name, ("adamw", "sgd", "sgd_momentum"))
    _choice("schedule.name", config.schedule.name, ("constant", "cosine", "wsd"))
    _choice("logger", config.logger, ("none", "wandb"))
    _choice("model.init", config.init, ("scratch", "pretrained"))
    if not config.optimizer.lr > 0 or not math.isfinite(config.optimizer.lr):
        raise ConfigError(f"optimizer.lr={config.optimizer.lr} must be a positive number")
    if train.interval > train.steps:
        raise ConfigError(
            f"train.interval={train.interval} is larger than train.steps={train.steps}: no snapshot would ever be taken"
        )
    _check_protocols(config)
    if config.predictors and K[-1] > train.steps - train.interval:
        raise ConfigError(
            f"K={K[-1]} is larger than the steps that remain after any snapshot (at most "
            f"{train.steps - train.interval}); lower K or raise train.steps={train.steps}"
        )
    for chain in config.cascade.chains:
        if len(chain) != 2 or any(not isinstance(part, int) or part < 1 for part in chain):
            raise ConfigError(f"cascade.chains: {chain} must be [depth, K], two positive integers")


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        hint = "; ranges and lists of seeds need -m, as in: python train.py -m seed=0-4" if "-" in str(seed) else ""
        raise ConfigError(f"seed={seed} is not an integer{hint}")
    if seed < 0:
        raise ConfigError(f"seed={seed} must be 0 or more")


def _check_protocols(config: RunConfig) -> None:
    if not config.protocols:
        raise ConfigError("no protocol chosen; use protocol=exact, paper or code")
    for name, protocol in config.protocols.items():
        for key in ("weights", "moments"):
            _choice(f"protocols.{name}.history.{key}", getattr(protocol.history, key), ("float32", "float16", "bfloat16"))
        _choice(f"protocols.{name}.fingerprint.pooling", protocol.fingerprint.pooling, ("masked_mean", "mean", "tokens"))
        _choice(f"protocols.{name}.fingerprint.cosine", protocol.fingerprint.cosine, ("concatenated", "per_probe"))
        _choice(f"protocols.{name}.cascade", protocol.cascade, ("chain", "train"))
    padded = config.dataset.layout == "padded"
    if padded and len({protocol.pad_in_loss for protocol in config.protocols.values()}) > 1:
        raise ConfigError(f"protocols {_names(config.protocols)} train with different padding; run them apart with -m")
    if config.model.init is None and len({protocol.init for protocol in config.protocols.values()}) > 1:
        raise ConfigError(
            f"protocols {_names(config.protocols)} start from different weights; run them apart with -m, or set model.init"
        )


def _select(predictors: dict[str, Any]) -> dict[str, Any]:
    """Drop `none`; chosen alone it drops the controls too."""
    chosen = {name: spec for name, spec in predictors.items() if name != BASELINE}
    asked = {name for name in chosen if name not in ("persistence", "average")}
    return {} if BASELINE in predictors and not asked else chosen


def _fill_thresholds(config: RunConfig) -> None:
    regime = config.regime
    _choice("regime.thresholds", regime.thresholds, ("published", "calibrated"))
    if regime.thresholds == "published":
        pair = {"tau_high": regime.tau_high, "tau_low": regime.tau_low}
        regime.by_protocol = {name: pair for name in config.protocols}
    else:
        assert regime.file is not None
        path = PROJECT / regime.file
        if not path.is_file():
            raise ConfigError(
                f"regime=calibrated needs {regime.file}, which does not exist; measure it with a calibration sweep and "
                "scripts/calibrate.py, or use regime=published"
            )
        stored = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(stored, dict)
        missing = [name for name in config.protocols if name not in stored["protocols"]]
        if missing:
            raise ConfigError(f"{regime.file} has no thresholds for protocol {missing[0]}; calibrate it, or use regime=published")
        regime.source = stored["source"]
        regime.by_protocol = {name: stored["protocols"][name] for name in config.protocols}
    regime.tau_high = regime.tau_low = None


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is unknown; use {' or '.join(allowed)}")


def _names(mapping: dict[str, Any]) -> str:
    return ", ".join(mapping)


def _dig(data: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        data = data[part]
    return data


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key")), None)
    return f"{key}: {lines[0]}" if key else lines[0]
