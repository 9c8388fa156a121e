"""What a run needs before it may write anything: a device, and predictors that work on it."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from dataclasses import dataclass

import torch

from leapbench.config.choices import Precision
from leapbench.config.errors import ConfigError, complaint
from leapbench.config.remarks import remark
from leapbench.config.schema import RunConfig
from leapbench.names import CONTROLS
from leapbench.training.parts import check_contexts, try_out, unusable

SLOW = 4.0  # times as long as in float32
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3), from malloc.h


@dataclass(frozen=True)
class Prepared:
    """What a run works with.

    Attributes:
        skipped: predictors left out, with the reason.
        reason: why nothing is left to do, where every requested predictor is skipped.
    """

    device: torch.device
    skipped: dict[str, str]
    reason: str | None


def prepare(config: RunConfig) -> Prepared:
    """Check the device, and try out what can be tried without data and model.

    Raises:
        ConfigError: the user's mistake; nothing was written.
    """
    device = pick_device(config.device)
    use_threads(config.threads, device)
    keep_memory(device)
    if config.train.precision == Precision.bfloat16 and device.type == "cpu":
        say_if_slow(torch.bfloat16)
    if config.history_device:
        pick_device(config.history_device, "history_device")
    skipped = unusable(config)
    requested = [name for name in config.predictors if name not in CONTROLS]
    check_contexts(config, {*skipped, *(CONTROLS if requested else list(config.predictors)[1:])})
    if requested and all(name in skipped for name in requested):
        return Prepared(device, skipped, "; ".join(f"predictor={name} {skipped[name]}" for name in requested))
    try_out(config, skipped)
    return Prepared(device, skipped, None)


def pick_device(name: str, key: str = "device") -> torch.device:
    """The device of this name, after a number has been sent there and back; `auto` is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{key}={name} is unknown; use {'auto, ' if key == 'device' else ''}cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}={name}, but PyTorch sees no CUDA device here; use {key}=cpu")
    try:
        torch.ones(1, dtype=torch.float64, device=device).add(1).item()
    except Exception as error:  # each kind of device has errors of its own
        raise ConfigError(f"{key}={name} cannot be used here ({complaint(error)}); use {key}=cpu") from None
    return device


def use_threads(threads: int, device: torch.device) -> None:
    """Let PyTorch use as many threads for a run on a CPU.

    Raises:
        ConfigError: more than this machine has cores, which is slow at best; some thousands end the process.
    """
    cores = os.cpu_count() or 1
    if threads > cores:
        raise ConfigError(f"threads={threads} is more than this machine's {cores} cores; use threads={cores} at most")
    if device.type == "cpu":
        torch.set_num_threads(threads)


def say_if_slow(dtype: torch.dtype) -> None:
    """Time a product of matrices on the CPU, and say so if it takes several times as long as in float32.

    Processors without instructions for a type compute it element by element, tens of times slower, without a word.
    """
    taken = {}
    for kind in (torch.float32, dtype):
        matrix = torch.ones(256, 256, dtype=kind)
        matrix @ matrix
        began = time.perf_counter()
        matrix @ matrix
        taken[kind] = time.perf_counter() - began
    times = taken[dtype] / taken[torch.float32]
    if times > SLOW:
        name = str(dtype).removeprefix("torch.")
        remark(
            f"train.precision={name}: this processor takes {times:.0f} times as long for a product of matrices in "
            f"{name} as in float32; use train.precision=float32, or a machine with instructions for {name}"
        )


def keep_memory(device: torch.device) -> None:
    """Where tensors live in main memory and the C library is glibc, let it keep what is freed.

    Otherwise every large tensor is given back and fetched page by page again: a tenth of a step of GPT-2 124M.
    """
    linux = device.type == "cpu" and sys.platform == "linux"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if linux else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # everything comes from the heap
        mallopt(M_TRIM_THRESHOLD, -1)  # whose top is never given back
