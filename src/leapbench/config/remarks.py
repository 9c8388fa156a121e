"""What a user should know about a run although nothing is wrong."""

from __future__ import annotations

import sys
from functools import cache


@cache
def remark(line: str) -> None:
    """Say it on stderr, once in a process: the runs of a sweep share what there is to say."""
    print(line, file=sys.stderr, flush=True)
