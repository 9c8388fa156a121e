"""The first weights of torchvision's vision transformer, which PDT's released code trains, in transformers' network.

vit_b_16 and vit_h_14 (torchvision/models/vision_transformer.py) compute what `ViTForImageClassification` computes with
layer_norm_eps=1e-6, but start elsewhere: a classifier and a class token of zeros, Xavier weights in the MLP and the
attention's inputs, patches that keep the variance.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn


@torch.no_grad()
def draw_first_weights(model: nn.Module) -> None:
    """Draw all weights of a `ViTForImageClassification` anew, from torch's global generator."""
    vit, init = cast(Any, model).vit, nn.init
    patches = vit.embeddings.patch_embeddings.projection
    init.trunc_normal_(patches.weight, std=math.sqrt(1 / patches.weight[0].numel()))
    init.zeros_(patches.bias)
    init.zeros_(vit.embeddings.cls_token)
    init.normal_(vit.embeddings.position_embeddings, std=0.02)
    for layer in vit.layers:
        attention = layer.attention
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            # There the three are one matrix (3 d, d).
            init.uniform_(projection.weight, -(bound := math.sqrt(6 / (4 * projection.in_features))), bound)
            init.zeros_(projection.bias)
        init.kaiming_uniform_(attention.o_proj.weight, a=math.sqrt(5))
        init.zeros_(attention.o_proj.bias)
        for linear in (layer.mlp.fc1, layer.mlp.fc2):
            init.xavier_uniform_(linear.weight)
            init.normal_(linear.bias, std=1e-6)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
    classifier = cast(Any, model).classifier
    init.zeros_(classifier.weight)
    init.zeros_(classifier.bias)
