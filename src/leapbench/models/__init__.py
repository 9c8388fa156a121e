"""Networks. A family is one file that builds its networks and gives their final hidden states; text is the first.

:func:`build` and :func:`final_hidden` are all the rest of the package knows of a network beyond `torch.nn.Module`.
"""

from leapbench.models.causal_lm import build, final_hidden

__all__ = ["build", "final_hidden"]
