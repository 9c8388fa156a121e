"""torch's optimizers without its compiler, which they would load at their first use: over a second of every start.

`torch.optim` guards its methods against being compiled, and the guards import `torch._dynamo`. Nothing here compiles an
optimizer, so the methods are called as they were written; a torch that guards otherwise is only slower to start.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def unguarded(method: Callable[..., Any]) -> Any:
    """The method itself, below torch's guards."""
    return inspect.unwrap(method)


class Eager(torch.optim.Optimizer):
    """To be named before the optimizer; what steps is the optimizer's own `step`, unguarded, under `torch.no_grad`."""

    add_param_group = unguarded(torch.optim.Optimizer.add_param_group)
    zero_grad = unguarded(torch.optim.Optimizer.zero_grad)
    state_dict = unguarded(torch.optim.Optimizer.state_dict)
    load_state_dict = unguarded(torch.optim.Optimizer.load_state_dict)
