"""leapbench: the referee for weight prediction."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The public objects, imported on first use: torch takes a second."""
    if name in ("Leap", "Proposal"):
        from leapbench.prediction import leap

        return getattr(leap, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
