"""Typed configuration: one dataclass per group, and the identity of a run. `resolve.py` fills and checks them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

PROJECT = Path(__file__).resolve().parents[2]


class ConfigError(Exception):
    """A user's mistake. The message is one line: what was wrong, and what would be right."""


class BusyError(ConfigError):
    """Another process is running this run id."""


@dataclass
class ModelConfig:
    """A network by its transformers config class, or fcn or alexnet; `config` holds the arguments of that class."""

    name: str = MISSING
    model_type: str = MISSING
    init: str | None = None
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageConfig:
    """Labelled images: what the network sees, what is held out, and the transforms. Sizes in pixels per side."""

    loading: str = MISSING
    size: int = MISSING
    resize: int | None = None
    channels: int = MISSING
    classes: int = MISSING
    held_out: int = MISSING
    image_column: str = "image"
    label_column: str = "label"
    mean: list[float] = MISSING
    std: list[float] = MISSING
    augment: dict[str, float] = field(default_factory=dict)
    repeats: int = 1

    @property
    def image_bytes(self) -> int:
        """Memory of one image as the network sees it, bytes."""
        return self.channels * self.size**2 * 4


@dataclass
class DatasetConfig:
    """A text and how it becomes sequences of tokens, or where `image` is given, labelled images."""

    name: str = MISSING
    source: str = MISSING
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    examples: int | None = None
    workers: int = 1
    text_column: str = "text"
    tokenizer: str = "byte"
    vocab_size: int | None = None
    layout: str = "packed"
    tokens: int | None = None
    min_characters: int = 0
    hold_out_last: int | None = None
    image: ImageConfig | None = None


@dataclass
class OptimizerConfig:
    """An optimizer by name with its hyper-parameters; keys that it does not have stay None."""

    name: str = MISSING
    lr: Any = MISSING
    lr_from: str = "given"
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None


@dataclass
class ScheduleConfig:
    """The learning rate over positions: warm-up and restart in steps, the rest as shares of the peak or the run."""

    name: str = MISSING
    warmup: int = 0
    warmup_from: float = 0.0
    floor: float = 0.0
    decay: float = 0.0
    restart_at: int | None = None
    restart: float | None = None


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
class LeapConfig:
    """mode=leap: when to propose, what to accept, and what becomes of the rest of the state."""

    gate: str = "any"
    rule: str = "strict"
    burn_in: int = 0
    every: int = 1
    cooldown: int = 0
    advance: bool = True
    moments: str = "keep"
    history: str = "clear"
    buffers: str = "keep"
    cascade: int = 1
    scheduler: str = "none"
    follow: list[int] = field(default_factory=list)


@dataclass
class VerifyConfig:
    """The held-out examples (sequences or images) candidates are scored on."""

    sequences: int = MISSING
    batch_size: int = MISSING
    resample: bool = True


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
    leap: LeapConfig
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
    allow_dirty: bool = False
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

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Keys that a run of this mode never reads, so that they do not make another run of it."""
        if self.mode == "observe":
            return ("leap", "verify.resample")
        if not self.predictors:
            return ("leap", "verify.resample", "cascade", "landscape", "regime", "K")
        return ("cascade", "landscape") if self.gated else ("cascade", "landscape", "regime")

    @property
    def gated(self) -> bool:
        """Whether regimes are needed: everywhere in mode=observe, in mode=leap only behind a gate."""
        return self.mode == "observe" or (bool(self.predictors) and self.leap.gate != "any")

    def science(self) -> dict[str, Any]:
        """Everything that changes the numbers, as plain data."""
        everything = asdict(self)
        for key in (*MACHINE_KEYS, *self.idle_keys):
            group, _, leaf = key.partition(".")
            everything.get(group, {}).pop(leaf, None) if leaf else everything.pop(group, None)
        return everything

    def machine(self) -> dict[str, Any]:
        """Where and how the run is carried out, as plain data."""
        everything = asdict(self)
        return {key: dig(everything, key) for key in MACHINE_KEYS}

    def training(self) -> dict[str, Any]:
        """The part of `science` that decides the trajectory of an untouched training."""
        science = self.science()
        keys = ("model", "dataset", "optimizer", "schedule", "train", "seed")
        science["optimizer"].pop("lr_from")
        return {key: science[key] for key in keys} | {"init": self.init, "pad_in_loss": self.pad_in_loss}

    @property
    def run_id(self) -> str:
        """12 hex digits of the sha256 of `science`."""
        return digest(self.science())

    @property
    def folder(self) -> Path:
        """Where the run's files go: results_dir/<suite>/<run_id>."""
        return Path(self.results_dir) / self.suite / self.run_id

    @property
    def trajectory(self) -> str:
        """12 hex digits, equal for runs whose untouched training is the same."""
        return digest(self.training())


MACHINE_KEYS = (
    "suite", "results_dir", "cache_dir", "device", "history_device", "threads", "progress", "allow_dirty",
    "checkpoint", "logger", "wandb", "regime.file", "dataset.workers",
)  # fmt: skip


def digest(data: Any) -> str:
    """First 12 hex digits of the sha256 of `data` as sorted JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def dig(tree: Any, dotted: str) -> Any:
    """The value at `dotted` in nested dictionaries or dataclasses."""
    for part in dotted.split("."):
        tree = tree[part] if isinstance(tree, dict) else getattr(tree, part)
    return tree
