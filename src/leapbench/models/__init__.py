"""Networks. A family is one file that builds its networks and gives their final hidden states: texts and images.

These functions are all the rest of the package knows of a network beyond `torch.nn.Module`.
"""

from leapbench.models.causal_lm import build, final_hidden
from leapbench.models.image_classifier import build_image_classifier, final_features

__all__ = ["build", "build_image_classifier", "final_features", "final_hidden"]
