"""The command line: what a job returns, how a sweep ends, and which errors are the user's.

A user's mistake is one line on stderr and exit status 2, a run that failed or diverged is exit status 1, an interrupted
command 130, one ended by SIGTERM 143. An unexpected error keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from leapbench.config.choices import LoggerName, Source, Thresholds
from leapbench.config.errors import BusyError, ConfigError, complaint, nearest
from leapbench.config.help import answer, choices
from leapbench.config.remarks import remark
from leapbench.config.resolve import resolve
from leapbench.config.schema import RunConfig
from leapbench.names import ENDS, FAILURES, PROJECT, Status
from leapbench.training.signals import Terminated, terminate

PACKAGE = Path(__file__).parent
CONTINUE = "the same command continues where it stopped"
STORAGE = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "a folder stands where a file belongs",
    errno.ENOTDIR: "a file stands where a folder belongs",
    errno.EEXIST: "a file stands where a folder belongs",
    errno.ELOOP: "its links lead in a circle",
}
MULTIRUN = ("-m", "--multirun")
CHOSEN = re.compile(r"\+?\+?regime=")
NO_PREDICTOR = re.compile(r"predictor=\[\s*\]")
# What torch says when memory ends, on a CPU and on CUDA.
NO_MEMORY = ("can't allocate memory", "out of memory")
# The errors of joblib and submitit for a job whose process died without a result.
DEAD_WORKERS = ("TerminatedWorkerError", "UncompletedJobError")


class SweepError(Exception):
    """Some runs of a sweep failed or diverged; the message is the sweep's summary line."""


def job(cfg: DictConfig, runner: Callable[[RunConfig], Any] | None = None) -> dict[str, str]:
    """Carry out one job and return how it ended: {status, run_id, folder, reason}.

    In a sweep every error becomes `failed`, so that the other jobs continue, and a run that another process is
    running `skipped`. Outside a sweep errors end the process.

    Args:
        cfg: the composed configuration, without Hydra's own node.
        runner: carries out a run; default :func:`leapbench.training.run.run`.
    """
    alone = not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN
    config = None
    try:
        config = resolve(cfg)
        _say_whose_thresholds(config)
        end = (runner or _run)(config)
        result = {key: str(getattr(end, key) or "") for key in ("status", "run_id", "folder", "reason")}
    except Exception as error:
        if type(error).__name__ in DEAD_WORKERS:  # submitit raises it in a job that it removes from the node
            raise
        folder = str(cfg.get("results_dir"))
        if alone:
            give_up(error, folder)
        explanation = explain(error, folder)
        if explanation is None:
            traceback.print_exc()
        reason = explanation[0] if explanation else f"{type(error).__name__}: {error}"
        status = Status.skipped if isinstance(error, BusyError) else Status.failed
        result = {"status": status, "run_id": config.run_id if config else "", "folder": "", "reason": reason}
    report(result)
    if config and result["folder"]:
        _tell(config, Path(result["folder"]), alone)
    if alone and result["status"] in FAILURES:
        sys.exit(1)
    return result


def _tell(config: RunConfig, folder: Path, alone: bool) -> None:
    """Print what a completed run found and, where no sweep will, the command that makes the tables."""
    from leapbench.records.findings import findings, tables_command

    lines = findings(config, folder)
    if lines and alone:
        lines.append(f"tables: {tables_command(config.suite, config.results_dir)}")
    if lines:
        print(*(f"  {line}" for line in lines), sep="\n", flush=True)


def report(result: Mapping[str, str], log: Path | None = None) -> None:
    """Print how a run ended, and for a failure where its `log` is; failures go to stderr."""
    sentence = f"{result['run_id']} {result['status']}"
    for extra in ("reason", "folder"):
        sentence += f": {result[extra]}" if result[extra] else ""
    failure = result["status"] in FAILURES
    sentence += f"; log {log}" if failure and log else ""
    print(sentence, file=sys.stderr if failure else sys.stdout, flush=True)


def summarise(results: Iterable[Mapping[str, str]]) -> str:
    """The sweep in one line: how many runs ended how, and the run ids of those that need attention.

    Raises:
        SweepError: with that line, if any run failed or diverged.
    """
    ends: dict[str, list[str]] = {status: [] for status in ENDS}
    for result in results:
        ends[result["status"]].append(result["run_id"] or "?")
    parts = [
        f"{len(ids)} {status}" + (f" ({' '.join(ids)})" if ids and status != Status.completed else "")
        for status, ids in ends.items()
    ]
    line = "sweep: " + ", ".join(parts)
    if any(ends[status] for status in FAILURES):
        raise SweepError(line)
    return line


def main(task: Callable[[], Any], answers: Callable[[Sequence[str]], str | None] = answer) -> None:
    """Call Hydra's decorated `task`; turn the errors :func:`explain` knows into one line and an exit status.

    Args:
        answers: what is printed instead for some command lines: --help, --list and completions.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of printing
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        if (text := answers(sys.argv[1:])) is not None:
            print(text, flush=True)
        else:
            sys.argv[1:] = arguments(sys.argv[1:])
            task()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Terminated, KeyboardInterrupt) as end:
        status = int(end.code or 0) if isinstance(end, Terminated) else 130
        _exit("; ".join(["interrupted", *getattr(end, "__notes__", [CONTINUE])]), status)
    except Exception as error:
        give_up(error)
    finally:
        signal.signal(signal.SIGTERM, previous)


def arguments(words: Sequence[str]) -> list[str]:
    """The command line with -m in front, wherever it stood: Hydra wants all overrides in one piece.

    Raises:
        ConfigError: it chooses no predictor at all, which is not what `none` is.
    """
    if empty := next(filter(NO_PREDICTOR.fullmatch, words), None):
        raise ConfigError(f"{empty} chooses nothing; use predictor=none (plain training), persistence or another name")
    return sorted(words, key=lambda word: word not in MULTIRUN)


def explain(error: BaseException, folder: str | None = None) -> tuple[str, int] | None:
    """(one line, exit status) for an error that has a known remedy, else None.

    Args:
        error: what was raised.
        folder: the folder to name when a write failed and the error does not.
    """
    if isinstance(error, SweepError):
        return str(error), 1
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        return explain(cause, folder) if cause else None
    if isinstance(error, MissingConfigException):
        return _missing(error), 2
    if isinstance(error, OverrideParseException):
        hint = "" if "=" in str(error.override) else "; overrides are written key=value"
        return f"{error.override}: {_first_line(error)}{hint}", 2
    if isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
        return _composition(error), 2
    if _while_reading(error, "hydra/_internal/defaults_list.py"):
        return "a choice of model, dataset, predictor and the like must be a name or a list of names", 2
    if _while_reading(error, "hydra/", "omegaconf/", "antlr4/"):
        return f"the command line cannot be read ({complaint(error)}); overrides are written key=value", 2
    if isinstance(error, OSError) and error.errno in STORAGE:
        path = error.filename2 or error.filename or folder or os.getcwd()
        return f"{path}: {STORAGE[error.errno]}; once that is put right, {CONTINUE}", 1
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(map(str(error).count, NO_MEMORY))):
        return f"not enough memory ({complaint(error)}); use a smaller model, batch or K, or another device", 1
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):
        return f"{folder or os.getcwd()}: a checkpoint could not be written (no space left?); {CONTINUE}", 1
    if type(error).__name__ in DEAD_WORKERS:
        return (
            f"a job's process died without an answer (killed, or out of memory?); finished runs are kept, {CONTINUE}",
            1,
        )
    return None


def _run(config: RunConfig) -> Any:
    from leapbench.training.run import run

    def draw(folder: Path) -> dict[str, Path]:
        from leapbench.figures import figures_of_run  # matplotlib and scipy: two seconds that few runs need

        return figures_of_run(folder, Path(config.wandb.dir) / "wandb" / "figures" / config.suite / config.run_id)

    return run(config, draw)


def _say_whose_thresholds(config: RunConfig) -> None:
    """Regimes of the user's own text have thresholds that were measured elsewhere, unless the user has chosen."""
    elsewhere = config.dataset.source == Source.text_files and config.regime.thresholds == Thresholds.published
    if not (config.gated and elsewhere and HydraConfig.initialized()):
        return
    if not any(map(CHOSEN.match, HydraConfig.get().overrides.task)):
        remark(
            f"regime=published: nothing is calibrated for {config.model.name} on your text, so its regimes have the "
            "published thresholds (GPT-2 on WikiText-103); scripts/calibrate.py measures others for regime=calibrated"
        )


def _missing(error: MissingConfigException) -> str:
    quoted = re.search(r"Could not \w+ '([^']+)'", str(error))  # lists of choices: the error has no fields
    group, _, name = (error.missing_cfg_file or (quoted[1] if quoted else "")).rpartition("/")
    options = sorted(error.options or (choices(group) if group else ()))
    if not options:
        return _first_line(error)
    return f"{group}={name} does not exist{nearest(name, options)}; there are: {', '.join(options)}"


def _composition(error: Exception) -> str:
    line, cause = _first_line(error), error.__cause__
    if line.startswith("Ambiguous value for argument"):
        return f"{line}: to sweep over it add -m, to give a list write key=[a,b]"
    if "requires --multirun" in line:
        return line.replace("requires --multirun", "need -m")
    parent = getattr(cause, "parent_node", None)
    if isinstance(error, ConfigCompositionException) and cause is not None:
        if isinstance(parent, DictConfig) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
            if cause.full_key == LoggerName.wandb:
                return "keys under wandb. are read with logger=wandb only, which turns W&B on; add logger=wandb"
            return f"{cause.full_key} is not a key{nearest(str(cause.key), _keys(parent))}"
        detail = _first_line(cause)
        return f"{line.rstrip('.')}: {detail}" if line != type(error).__name__ else detail
    return line


def _keys(parent: DictConfig) -> list[str]:
    """What may stand on the left of an override in this place; groups are chosen by the names of their folders."""
    keys = {str(key) for key in parent}
    if "predictors" in keys:
        keys |= {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()}
        keys -= {"predictors", "protocols", "network"}  # the last is of meta_train.py
    return sorted(keys)


def _while_reading(error: BaseException, *places: str) -> bool:
    """Whether Hydra raised it in one of these places, and not we or a library that we have called."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = any(Path(file).is_relative_to(PACKAGE) and file != __file__ for file in files)
    return bool(files) and not ours and any(f"-packages/{place}" in files[-1] for place in places)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def give_up(error: BaseException, folder: str | None = None) -> NoReturn:
    """End the process with the line and the status of an error that :func:`explain` knows; raise any other.

    Args:
        folder: as of :func:`explain`.
    """
    if (explanation := explain(error, folder)) is None:
        raise error
    _exit(*explanation)


def _exit(line: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)
