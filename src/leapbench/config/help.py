"""What `train.py --help`, `train.py --list` and the tab key show, read from conf/ and docstrings without importing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from leapbench.config.errors import ConfigError, nearest
from leapbench.names import PROJECT

CONF = PROJECT / "conf"
GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "wrapper",
    "pipeline",
    "schedule",
    "predictor",
    "protocol",
    "regime",
    "leap",
    "logger",
)
LISTED = (*GROUPS, "experiment", "sweep")
# Keys that the first page shows, and the files that explain them.
SHOWN = {
    "config": (
        "mode", "K", "seed", "train.steps", "train.interval", "train.batch_size", "verify.sequences", "eval.every",
        "suite", "device",
    ),
    "optimizer/adamw": ("lr",), "leap/leap_verify": ("rule", "gate"), "hydra/launcher/local": ("n_jobs",),
}  # fmt: skip
WIDTH = 120  # columns, at most
COMPLETION = 'eval "$(python train.py -sc install=bash)"'
TAG = re.compile(r"\[(science|machine)\] ?")
SENTENCE = re.compile(r"(.*?\.)(?=\s|$)", re.DOTALL)

Rows = list[tuple[str, str]]


def answer(arguments: Sequence[str]) -> str | None:
    """What to print instead of starting anything; None if the arguments do not ask for help, a list or completions.

    Raises:
        ConfigError: --list of a group that does not exist.
    """
    if {"-h", "--help"} & set(arguments):
        return page()
    for number, word in enumerate(arguments):
        if word == "--list":
            return listing(*(group for group in arguments[number + 1 : number + 2] if "=" not in group))
        if word.startswith("--list="):
            return listing(word.partition("=")[2])
    if len(arguments) == 2 and arguments[0] in ("-sc", "--shell-completion") and arguments[1] == "query=bash":
        return " ".join(completions(os.environ.get("COMP_LINE", ""))) or None
    return None


def page() -> str:
    """The first page: usage, groups, the keys most used with default, unit and allowed values, and all predictors."""
    defaults = {
        group: choice for entry in _load(CONF / "config.yaml")["defaults"] if isinstance(entry, dict)
        for group, choice in entry.items() if group in GROUPS and isinstance(choice, str)
    }  # fmt: skip
    several = {group: choice for group, choice in defaults.items() if len(choices(group)) > 1}
    groups = [(f"{group}={choice}", " | ".join(choices(group))) for group, choice in several.items()]
    groups += [("experiment=NAME", f"a published or embedded setting as a whole, one of {len(choices('experiment'))}")]
    keys = [
        (f"{_prefix(file)}{key}={value}", comment)
        for file, names in SHOWN.items()
        for key, (value, comment) in explained(CONF / f"{file}.yaml").items() if key in names
    ]  # fmt: skip
    predictors = [(name, description("predictor", name)) for name in choices("predictor")]
    return "\n".join(
        [
            "Predict a network's weights K steps ahead while it trains, and see what adopting them is worth.",
            "  python train.py KEY=VALUE ...             one run; KEY=[a,b] is a list",
            "  python train.py -m KEY=a,b seed=0-4 ...   a sweep over every combination",
            "  python train.py --list [GROUP]            every choice of every group, one line each",
            "  python train.py --cfg job KEY=VALUE ...   every key and its value; conf/ says what each means",
            "",
            "Groups, and their choices:", *_table(groups, cut=True),
            "Keys, and their defaults:", *_table(keys, cut=True),
            "predictor=NAME or predictor=[a,b], weights K steps ahead:", *_table(predictors, cut=True),
            f"Tab completion: {COMPLETION}. Hydra's own flags: --hydra-help.",
        ]
    )  # fmt: skip


def keys_page(name: str, usage: Sequence[str], group: str) -> str:
    """The page of another command: its usage, the choices of its group, and every key of conf/NAME.yaml.

    Args:
        group: whose choices bring keys of their own.
    """
    keys = [
        (f"{key}={value}", comment) for key, (value, comment) in explained(CONF / f"{name}.yaml").items()
        if key.partition(".")[0] not in ("defaults", "hydra")
    ]  # fmt: skip
    chosen = [(f"{group}={choice}", description(group, choice)) for choice in choices(group)]
    tables = ["Choices:", *_table(chosen), "Keys, and their defaults:", *_table(keys)]
    return "\n".join([*usage, "", *tables, "Hydra's flags: --hydra-help."])


def listing(group: str | None = None) -> str:
    """Every choice of `group`, or of all groups, with a line each.

    Raises:
        ConfigError: there is no such group.
    """
    wanted = LISTED if group is None else tuple(name for name in LISTED if group in (name, f"{name}s"))
    if not wanted:
        raise ConfigError(f"--list {group} is no group{nearest(str(group), LISTED)}; there are: {', '.join(LISTED)}")
    lines: list[str] = []
    for name in wanted:
        used = f"make sweep NAME=..., {name}s/" if name == "sweep" else f"{name}=..., conf/{name}/"
        lines += [used, *_table([(choice, description(name, choice)) for choice in choices(name)]), ""]
    return "\n".join(lines[:-1])


def completions(line: str) -> list[str]:
    """The ways to complete the value that `line` ends in; none where Hydra knows better.

    Knows the choices of groups and the words that a key takes, also within a list: `predictor=[linear,qu`.
    """
    word = line.rpartition(" ")[2]
    key, equals, value = word.partition("=")
    cut = max(value.rfind(","), value.rfind("[")) + 1
    options = choices(key) if key in LISTED else words().get(key, ())
    return [f"{key}={value[:cut]}{option}" for option in options if equals and option.startswith(value[cut:])]


def choices(group: str) -> list[str]:
    """The names that a group takes."""
    return sorted(path.stem for path in _folder(group).glob("*.yaml"))


def description(group: str, name: str) -> str:
    """One sentence on a choice: a sweep's title, a predictor's module, or the comment that its yaml begins with."""
    path = _folder(group) / f"{name}.yaml"
    if group == "sweep":
        return _load(path).get("title", "")
    module = PROJECT / "src/leapbench/predictors" / f"{name}.py"
    if group == "predictor" and module.is_file():
        return _sentence(ast.get_docstring(ast.parse(module.read_text())) or "")
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment += [] if line.startswith("# @") else [line.lstrip("# ")]
    return _sentence(" ".join(comment))


def explained(path: Path) -> dict[str, tuple[str, str]]:
    """Dotted keys of a yaml file -> (default as written, the comment of its line without its tag)."""
    text = path.read_text()
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
                yield from walk(value, f"{prefix}{key.value}.")
                continue
            comment = TAG.sub("", lines[key.start_mark.line].partition(" # ")[2])
            written = text[value.start_mark.index : value.end_mark.index].replace(", ", ",")
            yield f"{prefix}{key.value}", (written, comment)

    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return dict(walk(root, ""))


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Dotted keys whose values are one of a few words -> the words."""
    from leapbench.config.schema import RunConfig

    def walk(kind: Any, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name, hint in get_type_hints(kind).items():
            for of in get_args(hint) or (hint,):
                if is_dataclass(of):
                    yield from walk(of, f"{prefix}{name}.")
                elif isinstance(of, type) and issubclass(of, StrEnum):
                    yield f"{prefix}{name}", tuple(of)
                elif of is bool:
                    yield f"{prefix}{name}", ("true", "false")

    return dict(walk(RunConfig, ""))


def _folder(group: str) -> Path:
    return PROJECT / "sweeps" if group == "sweep" else CONF / group


def _prefix(file: str) -> str:
    """`hydra/launcher/local` -> `hydra.launcher.`, where the keys of that file are."""
    return "".join(f"{part}." for part in file.split("/")[:-1])


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _sentence(text: str) -> str:
    match = SENTENCE.match(" ".join(text.split()))
    return (match[1] if match else text).rstrip(".")


def _table(rows: Rows, cut: bool = False) -> list[str]:
    """The rows in two columns; what is too wide is wrapped, or cut."""
    width = min(WIDTH, max(60, shutil.get_terminal_size((WIDTH, 24)).columns))
    left = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        room = width - 2 - left
        parts = [_shortened(text, room)] if cut else textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        labels = [name, *[""] * (len(parts) - 1)]
        lines += [f"  {label:{left}}{part}".rstrip() for label, part in zip(labels, parts, strict=True)]
    return lines


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 4].rpartition(' ')[0]} ..."
