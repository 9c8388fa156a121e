"""Pipelines with delayed gradients, in which every forward and backward pass sees its own weights.

Emulated in one process (`step`), or with a process for each stage (`run`, `worker`).
"""
