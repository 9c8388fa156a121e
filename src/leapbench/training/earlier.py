"""What earlier starts of a run left: it has ended, or it can go on, unless its code or its data have changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict

from leapbench.config.choices import Stale
from leapbench.config.errors import ConfigError
from leapbench.config.groups import DatasetConfig
from leapbench.config.schema import RunConfig, digest
from leapbench.names import META, Status
from leapbench.records import checkpoint
from leapbench.records.files import read_object, read_summary
from leapbench.records.seal import SCHEMA
from leapbench.records.sources import changed, code_of

SHOWN = 3  # names of changed modules in a message


class Contents:
    """Hashes of data sets as they are now, each computed once."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def sha256(self, cfg: DatasetConfig) -> str | None:
        """As a run would record it; None where the data are not on this machine, so that nobody can tell."""
        key = digest(asdict(cfg))
        if key not in self._known:
            from leapbench.data import content_sha256  # torch: a second, which a sweep of new runs does not need

            self._known[key] = content_sha256(cfg)
        return self._known[key]


def ended(config: RunConfig, contents: Contents | None = None) -> dict[str, str] | None:
    """How the run of `config` ended: status, run_id, folder, reason; None if it is not finished.

    Args:
        contents: remembers what data sets hold, where many runs are asked for.

    Raises:
        ConfigError: it ended, but with other code or on other data than there are now, and stale=error.
    """
    summary = read_summary(config.folder)
    if summary is None or summary["status"] == Status.failed:
        return None
    reason = summary.get("reason") or ""
    if summary.get("schema") != SCHEMA:
        difference = f"was recorded in schema {summary.get('schema')}, and this version writes {SCHEMA}"
    else:
        data_sha256 = (contents or Contents()).sha256
        difference = _difference(config, lambda: data_sha256(config.dataset))
    if difference:
        if config.stale == Stale.error:
            raise ConfigError(
                f"run {config.run_id} is {summary['status']}, but {difference}; delete {config.folder} to run it anew, "
                "or take its numbers as they are with stale=accept"
            )
        reason = "; ".join(filter(None, [reason, f"{difference}, accepted"]))
    return {"status": summary["status"], "run_id": config.run_id, "folder": str(config.folder), "reason": reason}


def endings(configs: Iterable[RunConfig]) -> list[dict[str, str] | None]:
    """:func:`ended` for each run of a sweep; one that it refuses is `failed`."""
    contents = Contents()
    results: list[dict[str, str] | None] = []
    for config in configs:
        try:
            results.append(ended(config, contents))
        except ConfigError as error:
            results.append({"status": Status.failed, "run_id": config.run_id, "folder": "", "reason": str(error)})
    return results


def check_resumable(config: RunConfig, sha256: str | None) -> None:
    """Whether the checkpoint of `config`, if there is one, belongs to the code and the data of now.

    Args:
        sha256: of the data's content.

    Raises:
        ConfigError: it does not, and stale=error; or it is damaged, or another run's.
    """
    if checkpoint.find(config.folder, config.run_id) is None or config.stale == Stale.accept:
        return
    if difference := _difference(config, lambda: sha256):
        raise ConfigError(
            f"run {config.run_id} has a checkpoint, but {difference}; delete {config.folder} to start over, or go on "
            "from it with stale=accept"
        )


def _difference(config: RunConfig, sha256: Callable[[], str | None]) -> str:
    """What has changed since the run was last started, empty if nothing has."""
    meta = read_object(config.folder / META, f"delete {config.folder} to start over") or {}
    modules = changed(meta.get("code") or {}, code_of(config.science()))
    if modules:
        more = f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else ""
        return f"its code has changed since ({', '.join(modules[:SHOWN])}{more})"
    then = meta.get("dataset_sha256")
    now = sha256() if then else None
    return f"dataset={config.dataset.name} has changed since" if now is not None and now != then else ""
