"""One run, resolved, and its identity. `resolve.py` fills it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from leapbench.config.arms import PipelineConfig
from leapbench.config.choices import (
    Init,
    LoggerName,
    Probes,
    Recorded,
    SequenceLayout,
    Stale,
)
from leapbench.config.groups import (
    CascadeConfig,
    CheckpointConfig,
    DatasetConfig,
    EvalConfig,
    InlineLeapsConfig,
    LandscapeConfig,
    LeapConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    RegimeConfig,
    ScheduleConfig,
    TrainConfig,
    VerifyConfig,
    WandbConfig,
    WrapperConfig,
    bounded,
)
from leapbench.names import NONE, Gate, Mode


@dataclass
class RunConfig:
    """One run, resolved. `science` keys make the run id; the rest says where and how it runs."""

    model: ModelConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    wrapper: WrapperConfig
    pipeline: PipelineConfig
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
    record_trajectory: bool = False
    record_every: int | None = bounded(None, least=1)
    record_dtype: Recorded = Recorded.float32
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
    stale: Stale = Stale.error
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
        """The first protocol; all of a run's protocols train identically."""
        return next(iter(self.protocols.values()))

    @property
    def pad_in_loss(self) -> bool:
        """Whether padded positions are targets."""
        return self.dataset.layout == SequenceLayout.padded and self.protocol.pad_in_loss

    @property
    def inline_leaps(self) -> InlineLeapsConfig | None:
        """The leaps of a training that is observed; None in mode=leap, which has its own."""
        active = self.mode == Mode.observe and self.train.inline_leaps
        return self.protocol.inline_leaps if active else None

    def probes_of(self, protocol: str) -> Probes:
        """What the fingerprint of one of the run's protocols is taken on; for images always held-out ones."""
        if self.dataset.image is not None:
            return Probes.held_out
        if self.regime.probes == Probes.prompts:
            return Probes.prompts
        return self.protocols[protocol].fingerprint.probes

    @property
    def recording_interval(self) -> int:
        """Steps between two rows of a recorded trajectory."""
        return self.record_every or self.train.interval

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Keys that such a run never reads, so that they do not change its id."""
        unused = tuple(key for key in ("wrapper", "pipeline") if getattr(self, key).name == NONE)
        unused = (*unused, *(() if self.record_trajectory else ("record_trajectory", "record_every", "record_dtype")))
        if self.mode == Mode.observe:
            return (*unused, "leap", "verify.resample", "eval.verification")
        unused = (*unused, "train.inline_leaps", "verify.checkpoints", "cascade", "landscape")
        if not self.predictors:
            return (*unused, "leap", "verify.resample", "regime", "K")
        return (*unused, *(() if self.gated else ("regime",)))

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
        for spec in everything["predictors"].values():
            if spec.get("sha256"):  # which says more than where the file lies
                spec.pop("checkpoint", None)
        return everything

    def machine(self) -> dict[str, Any]:
        """Where and how the run is carried out, as plain data."""
        everything = plain(self)
        files = {name: spec["checkpoint"] for name, spec in everything["predictors"].items() if spec.get("sha256")}
        return {key: dig(everything, key) for key in MACHINE_KEYS} | ({"checkpoints": files} if files else {})

    def training(self) -> dict[str, Any]:
        """The part of `science` that decides the trajectory of an untouched training."""
        science = self.science()
        keys: tuple[str, ...] = ("model", "dataset", "optimizer", "wrapper", "pipeline", "schedule", "train", "seed")
        science["optimizer"].pop("lr_from")
        # Leaps in the training depend on what decides about them.
        science["train"].pop("inline_leaps", None)
        keys += ("protocols", "regime", "verify") if self.inline_leaps else ()
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
    "stale",     "checkpoint", "logger", "wandb", "regime.file", "dataset.workers",
)  # fmt: skip


def plain(config: Any) -> Any:
    """A dataclass as JSON types: dictionaries, lists, strings, numbers."""
    return json.loads(json.dumps(asdict(config)))


def digest(data: Any) -> str:
    """First 12 hex digits of the sha256 of `data` as sorted JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def dig(tree: Any, dotted: str) -> Any:
    """The value at `dotted` in nested dictionaries or dataclasses."""
    for part in dotted.split("."):
        tree = tree[part] if isinstance(tree, dict) else getattr(tree, part)
    return tree
