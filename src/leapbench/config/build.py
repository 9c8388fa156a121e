"""From a specification in the configuration to the object it stands for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from leapbench.config.errors import ConfigError

TARGET = "_target_"


def build(spec: Mapping[str, Any], key: str, *args: Any, **kwargs: Any) -> Any:
    """Call what `spec[_target_]` names with `args`, `kwargs` and the rest of `spec`.

    Args:
        key: where `spec` stands in the configuration, such as optimizer=adamw; errors begin with it.

    Raises:
        ConfigError: there is no such class or function, or it refuses these settings.
    """
    settings = {name: value for name, value in spec.items() if name != TARGET}
    target = target_of(spec, key)
    try:
        return target(*args, **kwargs, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from None


def target_of(spec: Mapping[str, Any], key: str) -> Any:
    """What `spec[_target_]` names.

    Raises:
        ConfigError: there is no such class or function.
    """
    module, _, name = str(spec.get(TARGET)).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {TARGET}={spec.get(TARGET)} cannot be imported ({error})") from None
