"""How the scripts that read records end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from leapbench.records.rows import RecordError


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of `main`; a damaged record and a full disk are one line, a closed pipe none."""
    try:
        status: int | str | None = main()
    except RecordError as error:
        status = f"error: {error}"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        status = f"error: {error.filename}: {error.strerror}"
    sys.exit(status)
