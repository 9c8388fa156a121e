"""Typed configuration: one dataclass per group with its choices and bounds, and the identity of a run.

`resolve.py` fills it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from leapbench.config.choices import (
    BuffersAfterLeap,
    CascadeForm,
    Cosine,
    Init,
    Loading,
    LoggerName,
    LrFrom,
    PaceName,
    Pooling,
    Precision,
    ScheduleName,
    SequenceLayout,
    Source,
    Storage,
    Thresholds,
    WandbMode,
)
from leapbench.names import Gate, HistoryAfterLeap, Mode, MomentsAfterLeap, RuleName

NONE = "none"  # the name of a group that adds nothing


def bounded(default: Any = MISSING, *, least: float | None = None) -> Any:
    """A field whose value, unless it is None, is finite and at least `least`; without it, positive."""
    return field(default=default, metadata={"bounded": True, "least": least})


@dataclass
class ModelConfig:
    """A network by its transformers config class, or fcn or alexnet; `config` holds the arguments of that class."""

    name: str = MISSING
    model_type: str = MISSING
    init: Init | None = None
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageConfig:
    """Labelled images: what the network sees, what is held out, and the transforms. Sizes in pixels per side."""

    loading: Loading = MISSING
    size: int = bounded(least=1)
    resize: int | None = None
    channels: int = bounded(least=1)
    classes: int = bounded(least=1)
    held_out: int = bounded(least=1)
    image_column: str = "image"
    label_column: str = "label"
    mean: list[float] = MISSING
    std: list[float] = MISSING
    augment: dict[str, float] = field(default_factory=dict)
    repeats: int = bounded(1, least=1)

    @property
    def image_bytes(self) -> int:
        """Memory of one image as the network sees it, bytes."""
        return self.channels * self.size**2 * 4


@dataclass
class DatasetConfig:
    """A text and how it becomes sequences of tokens, or where `image` is given, labelled images."""

    name: str = MISSING
    source: Source = MISSING
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    examples: int | None = None
    workers: int = bounded(1, least=1)
    text_column: str = "text"
    tokenizer: str = "byte"
    vocab_size: int | None = None
    layout: SequenceLayout = SequenceLayout.packed
    tokens: int | None = bounded(None, least=2)  # a target is the token after another
    min_characters: int = bounded(0, least=0)
    hold_out_last: int | None = None
    image: ImageConfig | None = None


@dataclass
class OptimizerConfig:
    """An optimizer by name; `settings` are `_target_` and what it takes besides the parameters and lr."""

    name: str = MISSING
    lr: Any = MISSING
    lr_from: LrFrom = LrFrom.given
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class WrapperConfig:
    """What goes around the optimizer; `settings` are `_target_` and what it takes besides the optimizer and weights."""

    name: str = MISSING
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    """The learning rate over positions: warm-up and restart in steps, the rest as shares of the peak or the run."""

    name: ScheduleName = MISSING
    warmup: int = bounded(0, least=0)
    warmup_from: float = bounded(0.0, least=0)
    floor: float = bounded(0.0, least=0)
    decay: float = bounded(0.0, least=0)
    restart_at: int | None = bounded(None, least=1)
    restart: float | None = bounded(None, least=0)


@dataclass
class HistoryConfig:
    """Storage dtypes of snapshots."""

    weights: Storage = Storage.float32
    moments: Storage = Storage.float32


@dataclass
class FingerprintConfig:
    """How hidden states (probes, tokens, width) become one similarity."""

    pooling: Pooling = Pooling.masked_mean
    cosine: Cosine = Cosine.concatenated


@dataclass
class ProtocolConfig:
    """One reading of the method: what the paper prints, what its code does, or what is right."""

    history: HistoryConfig = field(default_factory=HistoryConfig)
    predictors: dict[str, Any] = field(default_factory=dict)
    fingerprint: FingerprintConfig = field(default_factory=FingerprintConfig)
    inclusive: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    pad_in_loss: bool = False
    cascade: CascadeForm = CascadeForm.chain
    init: Init = Init.scratch


@dataclass
class RegimeConfig:
    """Thresholds of the similarity, per protocol: {name: {tau_high: [per seed], tau_low: [per seed]}}."""

    thresholds: Thresholds = MISSING
    source: Any = None
    file: str | None = None
    tau_high: list[float] | None = None
    tau_low: list[float] | None = None
    confirm: int = bounded(2, least=1)
    probes: int = bounded(100, least=1)
    probe_tokens: int = bounded(128, least=2)
    by_protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """The training itself."""

    steps: int = bounded(least=1)
    interval: int = bounded(least=1)
    batch_size: int = bounded(least=1)
    grad_clip: float | None = bounded(1.0)
    precision: Precision = Precision.float32
    compile: bool = False


@dataclass
class LeapConfig:
    """mode=leap: when to propose, what to accept, and what becomes of the rest of the state."""

    gate: Gate = Gate.any
    rule: RuleName = RuleName.strict
    burn_in: int = bounded(0, least=0)
    every: int = bounded(1, least=1)
    cooldown: int = bounded(0, least=0)
    advance: bool = True
    moments: MomentsAfterLeap = MomentsAfterLeap.keep
    history: HistoryAfterLeap = HistoryAfterLeap.clear
    buffers: BuffersAfterLeap = BuffersAfterLeap.keep
    cascade: int = bounded(1, least=1)
    scheduler: PaceName = PaceName.none
    follow: list[int] = field(default_factory=list)


@dataclass
class VerifyConfig:
    """The held-out examples (sequences or images) candidates are scored on."""

    sequences: int = bounded(least=1)
    batch_size: int = bounded(least=1)
    resample: bool = True


@dataclass
class EvalConfig:
    """Validation: only the scorer looks."""

    every: int = bounded(least=1)
    sequences: int = bounded(least=1)
    batch_size: int = bounded(least=1)


@dataclass
class CascadeConfig:
    """Chains of predictions, (depth, K) each."""

    enabled: bool = False
    chains: list[Any] = field(default_factory=list)


@dataclass
class LandscapeConfig:
    """Loss along the prediction direction."""

    enabled: bool = False
    K: int = bounded(50, least=1)
    fractions: list[float] = field(default_factory=list)


@dataclass
class CheckpointConfig:
    """When to write a rolling checkpoint."""

    every_s: float | None = bounded(60.0, least=0)
    every_steps: int | None = bounded(None, least=1)


@dataclass
class WandbConfig:
    """Where W&B records go."""

    mode: WandbMode = WandbMode.online
    project: str = "leapbench"
    entity: str | None = None
    dir: str = "results/raw/wandb"


@dataclass
class RunConfig:
    """One run, resolved. `science` keys make the run id; the rest says where and how it runs."""

    model: ModelConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    wrapper: WrapperConfig
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
    mode: Mode = Mode.observe
    K: Any = MISSING
    seed: Any = MISSING
    suite: str = "default"
    results_dir: str = "results/raw"
    cache_dir: str | None = None
    device: str = "auto"
    history_device: str | None = None
    threads: int = bounded(1, least=1)
    progress: bool = True
    allow_dirty: bool = False
    logger: LoggerName = LoggerName.none
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
    def init(self) -> Init:
        """Where the first weights come from."""
        return self.model.init or self.protocol.init

    @property
    def protocol(self) -> ProtocolConfig:
        """The first protocol; all of a run's protocols train alike."""
        return next(iter(self.protocols.values()))

    @property
    def pad_in_loss(self) -> bool:
        """Whether padded positions are targets."""
        return self.dataset.layout == SequenceLayout.padded and self.protocol.pad_in_loss

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Keys that such a run never reads, so that they do not make another run of it."""
        without = () if self.wrapper.name != NONE else ("wrapper",)
        if self.mode == Mode.observe:
            return (*without, "leap", "verify.resample")
        if not self.predictors:
            return (*without, "leap", "verify.resample", "cascade", "landscape", "regime", "K")
        return (*without, "cascade", "landscape", *(() if self.gated else ("regime",)))

    @property
    def gated(self) -> bool:
        """Whether regimes are needed: everywhere in mode=observe, in mode=leap only behind a gate."""
        return self.mode == Mode.observe or (bool(self.predictors) and self.leap.gate != Gate.any)

    def science(self) -> dict[str, Any]:
        """Everything that changes the numbers, as plain data."""
        everything = plain(self)
        for key in (*MACHINE_KEYS, *self.idle_keys):
            group, _, leaf = key.partition(".")
            everything.get(group, {}).pop(leaf, None) if leaf else everything.pop(group, None)
        return everything

    def machine(self) -> dict[str, Any]:
        """Where and how the run is carried out, as plain data."""
        everything = plain(self)
        return {key: dig(everything, key) for key in MACHINE_KEYS}

    def training(self) -> dict[str, Any]:
        """The part of `science` that decides the trajectory of an untouched training."""
        science = self.science()
        keys = ("model", "dataset", "optimizer", "wrapper", "schedule", "train", "seed")
        science["optimizer"].pop("lr_from")
        return {key: science[key] for key in keys if key in science} | {
            "init": self.init,
            "pad_in_loss": self.pad_in_loss,
        }

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


def plain(config: Any) -> Any:
    """A dataclass as what JSON knows: dictionaries, lists, texts, numbers."""
    return json.loads(json.dumps(asdict(config)))


def digest(data: Any) -> str:
    """First 12 hex digits of the sha256 of `data` as sorted JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def dig(tree: Any, dotted: str) -> Any:
    """The value at `dotted` in nested dictionaries or dataclasses."""
    for part in dotted.split("."):
        tree = tree[part] if isinstance(tree, dict) else getattr(tree, part)
    return tree
