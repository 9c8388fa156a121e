"""Which code decides a run's numbers: the modules it executes, each with a hash of what its source does.

Comments, docstrings and layout are not part of the hash. Imports nothing heavy: dry runs use it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from leapbench.names import PROJECT

PACKAGE = "leapbench"
ROOTS = ("leapbench.training.loop", "leapbench.data.*")
# They read, write or show what the others compute; what they decide stands in the run's configuration.
ASIDE = ("leapbench.config", "leapbench.records", "leapbench.training.bar", "leapbench.training.logger")
TARGET = "_target_"


def code_of(science: Mapping[str, Any], roots: Iterable[str] = ROOTS) -> dict[str, str]:
    """The modules that a run with this configuration executes -> 16 hex digits of the sha256 of each.

    They are the training loop, the data sets, the `_target_`s of the configuration, and all that these import from
    their own package (from their own folder, for a module that is in none).

    Args:
        roots: modules that stand in the place of the training loop and the data sets.
    """
    found: dict[str, str] = {}
    waiting = [*(name for root in roots for name in _expanded(root)), *(name for name in _targets(science))]
    while waiting:
        name = waiting.pop()
        path = None if name in found or name.startswith(ASIDE) else _path_of(name)
        if path is None:
            continue
        found[name], imports = _read(path, path.stat().st_mtime_ns, name)
        waiting += [imported for imported in imports if _together(imported, name)]
    return dict(sorted(found.items()))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The modules that differ, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _targets(tree: Any) -> Iterator[str]:
    """The modules of all `_target_`s below `tree`."""
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ():
        if key == TARGET:
            yield str(value).rpartition(".")[0]
        yield from _targets(value)


def _expanded(root: str) -> list[str]:
    if not root.endswith(".*"):
        return [root]
    package = root.removesuffix(".*")
    folder = PROJECT / "src" / Path(*package.split("."))
    return [f"{package}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]


def _together(imported: str, importer: str) -> bool:
    """Whether `imported` belongs to the same body of code, and not to a library."""
    package, _, rest = importer.partition(".")
    return imported.partition(".")[0] == package if rest else "." not in imported


def _path_of(name: str) -> Path | None:
    """The file of a module, None for what is no module with a source, or a library's."""
    if name.partition(".")[0] == PACKAGE:
        base = PROJECT / "src" / Path(*name.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    path = Path(spec.origin) if spec and spec.has_location and spec.origin else None
    library = path is None or path.suffix != ".py" or "site-packages" in path.parts or path.is_relative_to(_STDLIB)
    return None if library else path


_STDLIB = Path(ast.__file__).parent


@lru_cache(maxsize=4096)
def _read(path: Path, _modified_ns: int, name: str) -> tuple[str, tuple[str, ...]]:
    """The hash of a module, and the modules it imports, its own packages among them."""
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = {package, package.rpartition(".")[0]} - {""}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()[:16], tuple(sorted(imports))


def _canonical(node: Any) -> str:
    """A syntax tree as text that is the same in every version of Python that can parse it."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for key in node._fields:
        value = getattr(node, key, None)
        if key == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = node.body[1:]
        if value is not None and value != []:
            fields.append(f"{key}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
