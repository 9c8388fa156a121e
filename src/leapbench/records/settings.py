"""How configurations differ: what tells the runs of one workload apart."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

_NOT_A_SETTING = ("seed", "K", "mode", "cascade", "landscape", "regime.source", "regime.file")


def settings(runs: pd.DataFrame, configs: dict[str, dict[str, Any]]) -> list[str]:
    """Per observed run, the config keys that differ between runs of its workload, as `key=value` words."""
    observed = runs[runs["mode"] == "observe"]
    flat = {name: flatten(configs[name]) for name in observed["run_id"]}
    words: dict[str, list[str]] = {name: [] for name in runs["run_id"]}
    for _, group in observed.groupby(["model", "dataset", "optimizer", "lr"]):
        for key, values in differing({name: flat[name] for name in group["run_id"]}).items():
            for name, value in values.items():
                words[name].append(f"{key}={value}")
    return [" ".join(words[name]) for name in runs["run_id"]]


def differing(flat: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Of flat configs by run, the keys with more than one value, sorted: key -> run -> value."""
    values: dict[str, dict[str, str]] = {}
    for name, leaves in flat.items():
        for key, value in leaves.items():
            values.setdefault(key, {})[name] = value
    return {key: by_run for key, by_run in sorted(values.items()) if len(set(by_run.values())) > 1}


def flatten(science: dict[str, Any]) -> dict[str, str]:
    """A science config as dotted key -> value as text, without the keys that are no setting (seed, K, ...)."""
    return dict(_leaves(science, ""))


def _leaves(tree: Any, path: str) -> list[tuple[str, str]]:
    if any(path == stem or path.startswith(f"{stem}.") for stem in _NOT_A_SETTING):
        return []
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    return [(path, json.dumps(tree).strip('"'))]
