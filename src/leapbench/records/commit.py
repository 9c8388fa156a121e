"""Which code a run executes: the commit, whether the tree differs from it, and a copy of the commit for later jobs."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from leapbench.config.errors import ConfigError
from leapbench.names import PROJECT
from leapbench.records.files import whole

# What decides a run. Tables, docs and tests may change meanwhile.
CODE = ("train.py", "src", "conf", "sweeps", "pyproject.toml")
# Measured inputs: they enter a run's configuration and id when it is resolved, so only a copy needs them committed.
INPUTS = ("results/calibration", "results/tuning")
# In a copy, the file that names its commit; git would answer for the repository around it.
COMMIT = ".commit"


def current(project: Path = PROJECT) -> str | None:
    """The commit that `project` holds or is a copy of, None outside git."""
    marker = project / COMMIT
    return marker.read_text().strip() if marker.is_file() else _git(project, "rev-parse", "HEAD")


def changes(project: Path = PROJECT, paths: tuple[str, ...] = CODE) -> list[str]:
    """Files below `paths` that differ from the commit or are unknown to git; none in a copy and outside git."""
    if (project / COMMIT).is_file():
        return []
    status = _git(project, "status", "--porcelain", "--untracked-files=all", "--", *paths) or ""
    return [line[3:] for line in status.splitlines()]


def require_clean(project: Path = PROJECT, paths: tuple[str, ...] = CODE) -> None:
    """Refuse code that no commit describes.

    Raises:
        ConfigError: something below `paths` differs from the commit.
    """
    if files := changes(project, paths):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise ConfigError(
            f"the code differs from its commit ({files[0]}{more}); commit it, or accept runs that cannot be traced to "
            "a commit with allow_dirty=true (--allow-dirty of the scripts)"
        )


def code(allow_dirty: bool, project: Path = PROJECT) -> Path:
    """What later jobs run: a copy of the commit under results/code, or with `allow_dirty` the changed tree itself.

    Raises:
        ConfigError: there is no commit, or something differs from it, and that is not allowed.
    """
    paths = CODE + INPUTS
    if allow_dirty and (current(project) is None or changes(project, paths)):
        return project
    require_clean(project, paths)
    return snapshot(project / "results" / "code", project)


def snapshot(folder: Path, project: Path = PROJECT) -> Path:
    """A copy of the current commit at `folder`/<commit>, made once; jobs that start later run it.

    Raises:
        ConfigError: `project` is no git checkout.
    """
    if (project / COMMIT).is_file():
        return project
    name = current(project)
    if name is None:
        raise ConfigError(
            f"{project} is no git checkout, so there is no commit to run; clone it, or use allow_dirty=true"
        )
    target = folder.absolute() / name
    if target.is_dir():
        return target
    with whole(target) as draft:
        archive = subprocess.Popen(["git", "-C", str(project), "archive", name], stdout=subprocess.PIPE)
        with tarfile.open(fileobj=archive.stdout, mode="r|") as tar:
            tar.extractall(draft, filter="data")
        if archive.wait():
            raise ConfigError(f"git archive {name} failed in {project}")
        (draft / COMMIT).write_text(f"{name}\n")
    return target


def _git(project: Path, *command: str) -> str | None:
    """What git prints for `project`, or None outside a checkout."""
    try:
        result = subprocess.run(["git", "-C", str(project), *command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.rstrip() if result.returncode == 0 else None
