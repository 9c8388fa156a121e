"""torch's optimizers without its compiler, which they would load at their first use: over a second of every start.

`torch.optim` guards its methods against being compiled, and the guards import `torch._dynamo`. Nothing here compiles an
optimizer, so the methods are called without the guards; with a torch that guards differently, starts are only slower.
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
    """A base class to list before the optimizer, whose own `step` is then used unguarded, under `torch.no_grad`."""

    add_param_group = unguarded(torch.optim.Optimizer.add_param_group)
    zero_grad = unguarded(torch.optim.Optimizer.zero_grad)
    state_dict = unguarded(torch.optim.Optimizer.state_dict)
    load_state_dict = unguarded(torch.optim.Optimizer.load_state_dict)
