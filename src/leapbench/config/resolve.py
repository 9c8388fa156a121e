"""From Hydra's nested dictionary to a validated RunConfig, or one line: what was wrong, what would be right."""

from __future__ import annotations

import os
import re
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leapbench.config.check import check
from leapbench.config.choices import LrFrom, Source
from leapbench.config.errors import ConfigError
from leapbench.config.groups import OptimizerConfig, WrapperConfig
from leapbench.config.help import choices
from leapbench.config.schema import RunConfig
from leapbench.config.thresholds import fill_thresholds
from leapbench.config.tuned import TUNED, tuned_lr
from leapbench.names import BASELINE, CONTROLS, Mode
from leapbench.nowcasters.files import fingerprint

# Quantities in steps that may be written "N epochs".
IN_EPOCHS = (
    "train.steps", "train.interval", "eval.every", "schedule.warmup", "schedule.restart_at", "schedule.every",
)  # fmt: skip
EPOCHS = re.compile(r"(\d+) epochs?")
# Tokenizers that are no name of the hub's or of a folder.
TRAINED_HERE = ("byte", "bpe")
CHECKPOINT = "checkpoint"  # the key of a learned predictor's file
# OmegaConf's message for a value that is no member of an enum.
NO_MEMBER = re.compile(r"Invalid value '(.*)', expected one of \[(.*)\]")


def resolve(cfg: DictConfig) -> RunConfig:
    """Turn Hydra's configuration into a validated :class:`RunConfig`.

    Raises:
        ConfigError: one line, for anything a user can get wrong.
    """
    plain = OmegaConf.create({key: value for key, value in cfg.items_ex(resolve=False) if key != "experiment"})
    _check_seed(plain.get("seed"))
    _check_packages(plain)
    try:
        OmegaConf.resolve(plain)
        _check_groups(plain)
        _epochs_to_steps(plain)
        plain.K = parse_horizons(plain.get("K"))
        predictors: Any = OmegaConf.to_container(plain.pop("predictors"))
        checkpoint = (plain.pop("predictor", None) or {}).get(CHECKPOINT)
        _gather_settings(plain)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), plain)
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{key} has no value; give it one, as in {key}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from None
    assert isinstance(config, RunConfig)
    config.predictors = _select(predictors, config.mode)
    _bind_checkpoints(config.predictors, checkpoint)
    _fill_lr(config)
    _make_absolute(config)
    fill_thresholds(config)
    check(config)
    return config


def parse_horizons(K: Any) -> list[int]:
    """One horizon or several -> ascending list of distinct positive integers, steps.

    Raises:
        ConfigError: for anything else.
    """
    values = list(K) if OmegaConf.is_list(K) or isinstance(K, list | tuple) else [K]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(
                f"K={value} is not a number of steps; K is a positive integer or a list, as in K=5,10 with -m"
            )
        if value < 1:
            raise ConfigError(f"K={value} predicts nothing; K is the number of steps ahead, 1 or more")
    if not values:
        raise ConfigError("K=[] has no horizon; give at least one, as in K=5")
    return sorted(set(values))


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        hint = "; ranges and lists of seeds need -m, as in: python train.py -m seed=0-4" if "-" in str(seed) else ""
        raise ConfigError(f"seed={seed} is not an integer{hint}")
    if seed < 0:
        raise ConfigError(f"seed={seed} must be 0 or more")


def _check_packages(plain: DictConfig) -> None:
    """A predictor's or protocol's yaml without its package line lands beside those that have one."""
    for group in ("predictor", "protocol"):
        if plain.get(group) is not None:
            _require_group(group, plain[group])
        if set(plain.get(group) or {}) - {CHECKPOINT}:
            raise ConfigError(
                f"a yaml of conf/{group}/ does not say where its keys go; make `# @package {group}s.NAME`, with the "
                "name of the file, its first line"
            )


def _check_groups(values: DictConfig, kind: type = RunConfig, prefix: str = "") -> None:
    """Raise ConfigError where one value stands in the place of a group of keys or of a list."""
    for name, hint in get_type_hints(kind).items():
        parts = (hint, *get_args(hint))
        origins = [get_origin(part) for part in parts]
        if name not in values or (values[name] is None and NoneType in parts):
            continue
        key, value = f"{prefix}{name}", values[name]
        group: Any = next((part for part in parts if is_dataclass(part)), None)
        members = {key: value} if group else {}
        if dict in origins:
            _require_group(key, value)
            members = {f"{key}.{entry}": part for entry, part in value.items()} if group else {}
        if list in origins and not OmegaConf.is_list(value):
            raise ConfigError(f"{key}={value} must be a list, as in {key}=[1,2]")
        if hint == list[list[int]] and not all(map(OmegaConf.is_list, value)):
            raise ConfigError(f"{key}={value} must be a list of lists, as in {key}=[[1,2],[3,4]]")
        for member, part in members.items():
            _require_group(member, part)
            _check_groups(part, group, f"{member}.")
    if kind is RunConfig and "predictors" in values:
        for name, spec in values.predictors.items():
            if name != BASELINE:
                _require_group(f"predictors.{name}", spec)


def _require_group(key: str, value: Any) -> None:
    if OmegaConf.is_dict(value):
        return
    choice = {"predictors": "predictor", "protocols": "protocol"}.get(key, key)
    names = choices(choice)
    remedy = f"choose with {choice}=NAME, one of {', '.join(names)}" if names else f"set its keys, as in {key}.KEY=..."
    raise ConfigError(f"{key}={value} replaces a group of keys by one value; {remedy}")


def _make_absolute(config: RunConfig) -> None:
    """Name local folders and files by their place, so that a run is the same wherever it is started from."""
    dataset, model = config.dataset, config.model
    if dataset.path and (dataset.source != Source.hub or _is_here(dataset.path)):
        dataset.path = _place(dataset.path)
    if _is_here(dataset.tokenizer):
        dataset.tokenizer = _place(dataset.tokenizer)
    if model.pretrained and _is_here(model.pretrained):
        model.pretrained = _place(model.pretrained)


def _is_here(name: str) -> bool:
    """Whether a name that may be one of the hub's is a folder of this machine."""
    return name not in TRAINED_HERE and os.path.isdir(os.path.expanduser(name))


def _place(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _select(predictors: dict[str, Any], mode: Mode) -> dict[str, Any]:
    """Drop `none`; as the only choice it drops the controls too. mode=leap keeps the one requested predictor."""
    specs = {name: spec for name, spec in predictors.items() if name != BASELINE}
    requested = [name for name in specs if name not in CONTROLS]
    if BASELINE in predictors and not requested:
        return {}
    if mode == Mode.leap:
        # Requested predictors come before the controls that every run has.
        names = list(specs)
        requested = names[: names.index(requested[-1]) + 1] if requested else names[:1]
        if len(requested) > 1:
            raise ConfigError(
                f"mode=leap follows one predictor at a time, not {', '.join(requested)}; with -m: "
                f"predictor={','.join(requested)}"
            )
        return {name: specs[name] for name in requested}
    return specs


def _bind_checkpoints(predictors: dict[str, Any], checkpoint: str | None) -> None:
    """Fill in the file of every learned predictor, by its place, and its hash, to which the run is bound."""
    learned = {name: spec for name, spec in predictors.items() if {CHECKPOINT, "sha256"} <= spec.keys()}
    if checkpoint is not None and len(learned) != 1:
        names = " and ".join(learned) or "none of them is"
        raise ConfigError(
            f"predictor.checkpoint={checkpoint} is the file of one learned predictor, and {names} chosen; "
            "choose one, such as predictor=nino, or give each its own, as in predictors.nino.checkpoint=PATH"
        )
    for name, spec in learned.items():
        given = spec[CHECKPOINT] if checkpoint is None else checkpoint
        spec[CHECKPOINT] = None if given is None else _place(str(given))
        try:
            found = fingerprint(name, spec[CHECKPOINT])
        except ValueError as error:
            raise ConfigError(f"predictor={name}: {error}") from None
        if spec["sha256"] is not None and str(spec["sha256"]) != found:
            raise ConfigError(
                f"predictor={name}: the sha256 of its checkpoint begins with {found}, not with {spec['sha256']}; give "
                "that file, or leave sha256 out"
            )
        spec["sha256"] = found


def _gather_settings(plain: DictConfig) -> None:
    """Move the keys that only one optimizer or wrapper has, beside its name in its yaml, into `settings`."""
    for key, kind in (("optimizer", OptimizerConfig), ("wrapper", WrapperConfig)):
        values: Any = OmegaConf.to_container(plain[key])
        common = {item.name for item in fields(kind)} - {"settings"}
        settings = {name: value for name, value in values.items() if name not in common}
        plain[key] = {name: value for name, value in values.items() if name in common} | {"settings": settings}


def _epochs_to_steps(plain: DictConfig) -> None:
    """Replace "N epochs" by optimizer steps, epoch = dataset.examples // train.batch_size."""

    def in_steps(key: str, value: Any) -> Any:
        if not isinstance(value, str) or not (match := EPOCHS.fullmatch(value)):
            return value
        examples, batch = OmegaConf.select(plain, "dataset.examples"), plain.train.batch_size
        if not isinstance(examples, int) or not isinstance(batch, int) or not 1 <= batch <= examples:
            name = OmegaConf.select(plain, "dataset.name")
            raise ConfigError(
                f"{key}={value} needs an epoch's length, but dataset={name} has dataset.examples={examples} and "
                f"train.batch_size={batch}; give {key} in steps"
            )
        return int(match[1]) * (examples // batch)

    for key in IN_EPOCHS:
        if (value := OmegaConf.select(plain, key)) is not None:
            OmegaConf.update(plain, key, in_steps(key, value))
    K = plain.get("K")
    plain.K = [in_steps("K", k) for k in K] if OmegaConf.is_list(K) or isinstance(K, list) else in_steps("K", K)


def _fill_lr(config: RunConfig) -> None:
    """optimizer.lr=tuned becomes the number that the committed tuning holds for this method."""
    lr = config.optimizer.lr
    if isinstance(lr, str):
        config.optimizer.lr = tuned_lr(config)
        config.optimizer.lr_from = LrFrom.tuned if lr == TUNED else LrFrom.given
    if isinstance(config.optimizer.lr, bool) or not isinstance(config.optimizer.lr, int | float):
        raise ConfigError(f"optimizer.lr={lr} is no number; give a number, or tuned")
    config.optimizer.lr = float(config.optimizer.lr)


def one_line(error: OmegaConfBaseException) -> str:
    """What OmegaConf says of a value, with its key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key")), None)
    if key and (match := NO_MEMBER.fullmatch(lines[0])):
        return f"{key}={match[1]} is unknown; use {' or '.join(match[2].split(', '))}"
    return f"{key}: {lines[0]}" if key else lines[0]
