"""The groups of the configuration: one dataclass each, with its choices and bounds. conf/ explains every key."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from leapbench.config.choices import (
    BuffersAfterLeap,
    CascadeForm,
    Cosine,
    FirstWeights,
    FloorForm,
    Init,
    LandscapeForm,
    LeapAt,
    Loading,
    LrFrom,
    PaceName,
    Pooling,
    Precision,
    Probes,
    ScheduleName,
    SequenceLayout,
    Source,
    Storage,
    Thresholds,
    WandbMode,
    WarmupBegins,
)
from leapbench.names import Gate, HistoryAfterLeap, MomentsAfterLeap, RuleName


def bounded(default: Any = MISSING, *, least: float | None = None, most: float = math.inf) -> Any:
    """A field whose value, unless it is None, is finite, at least `least` (without it, positive) and at most `most`."""
    return field(default=default, metadata={"bounded": True, "least": least, "most": most})


def share(default: float | None = 0.0) -> Any:
    """A field whose value, unless it is None, lies between 0 and 1."""
    return bounded(default, least=0, most=1)


@dataclass
class ModelConfig:
    """A network by its transformers config class, or fcn or alexnet; `config` holds the arguments of that class."""

    name: str = MISSING
    model_type: str = MISSING
    init: Init | None = None
    pretrained: str | None = None
    first_weights: FirstWeights = FirstWeights.transformers
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
    warmup_from: float = share()
    warmup_begins: WarmupBegins = WarmupBegins.before
    floor: float = share()
    floor_form: FloorForm = FloorForm.interpolated
    every: int = bounded(1, least=1)
    decay: float = share()
    restart_at: int | None = bounded(None, least=1)
    restart: float | None = share(None)


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
    probes: Probes = Probes.held_out


@dataclass
class InlineLeapsConfig:
    """Leaps that the published code makes while it trains what it observes."""

    predictor: str = MISSING
    K: int = bounded(least=1)


@dataclass
class AdaptiveConfig:
    """The rule `adaptive`: checkpoints behind sigma, "all" uses every one; <= instead of <."""

    sigma_over: Any = 5
    inclusive: bool = True


@dataclass
class ProximityConfig:
    """The rule `proximity`: tolerance as a share of the loss; <= instead of <."""

    tolerance: float = bounded(0.05, least=0)
    two_sided: bool = True
    inclusive: bool = True


@dataclass
class RulesConfig:
    """How a protocol reads the acceptance rules."""

    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    proximity: ProximityConfig = field(default_factory=ProximityConfig)


@dataclass
class ProtocolConfig:
    """One reading of the method: what the paper prints, what its code does, or what is right."""

    history: HistoryConfig = field(default_factory=HistoryConfig)
    predictors: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: FingerprintConfig = field(default_factory=FingerprintConfig)
    inclusive: bool = False
    rules: RulesConfig = field(default_factory=RulesConfig)
    pad_in_loss: bool = False
    cascade: CascadeForm = CascadeForm.chain
    landscape: LandscapeForm = LandscapeForm.tangent
    inline_leaps: InlineLeapsConfig | None = None
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
    probes: Any = 100
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
    inline_leaps: bool = False


@dataclass
class LeapConfig:
    """mode=leap: when to propose, what to accept, and what happens to the rest of the state."""

    at: LeapAt = LeapAt.end
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
    checkpoints: int | None = bounded(None, least=1)
    resample: bool = True


@dataclass
class EvalConfig:
    """Validation, which only the scorer reads; `verification`: sequences of that split that mode=leap scores too."""

    every: int = bounded(least=1)
    sequences: int = bounded(least=1)
    verification: int | None = bounded(None, least=1)
    batch_size: int = bounded(least=1)


@dataclass
class CascadeConfig:
    """Chains of predictions, (depth, K) each."""

    enabled: bool = False
    chains: list[list[int]] = field(default_factory=list)


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

    def due(self, step: int, since_s: float) -> bool:
        """Whether a checkpoint is due, by steps or by seconds since the last."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or (self.every_s is not None and since_s >= self.every_s)


@dataclass
class WandbConfig:
    """Where W&B records go; its own files are in `dir`/wandb."""

    mode: WandbMode = WandbMode.online
    project: str = "leapbench"
    entity: str | None = None
    dir: str = "results"
