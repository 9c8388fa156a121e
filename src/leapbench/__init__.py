"""leapbench: the referee for weight prediction."""

__version__ = "0.1.0"
