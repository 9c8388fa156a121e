"""Image classifiers, from scratch: those of `transformers` by config class, and the networks of `convnets`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from leapbench.config.choices import FirstWeights, Init
from leapbench.config.errors import ConfigError, complaint
from leapbench.config.groups import ModelConfig
from leapbench.models.convnets import FCN, MLP, AlexNet
from leapbench.models.seeded import seeded
from leapbench.models.torchvision_vit import draw_first_weights

OWN: dict[str, type[nn.Module]] = {"fcn": FCN, "alexnet": AlexNet, "mlp": MLP}
USE = "use model=fcn_small, alexnet_small, resnet_small, vit_small or mlp_small, or another model of images"


def build_image_classifier(
    cfg: ModelConfig, channels: int, size: int, classes: int, seed: int, init: Init
) -> nn.Module:
    """A network for images (B, channels, size, size) of `classes` classes: float32 weights, training mode.

    The weights depend on `cfg`, the images' shape and `seed` alone; torch's global random state is left as it was.

    Raises:
        ConfigError: an unknown class or argument, a network that cannot take such images, or pretrained weights.
    """
    if init != Init.scratch:
        raise ConfigError(f"model={cfg.name} has no pretrained weights; use model.init=scratch")
    if cfg.config.get("num_labels", classes) < classes:
        raise ConfigError(f"model.config.num_labels={cfg.config['num_labels']} is below the data's {classes} classes")
    if cfg.first_weights == FirstWeights.torchvision and cfg.model_type != "vit":
        raise ConfigError(
            f"model.first_weights=torchvision is for model.model_type=vit, not {cfg.model_type}; use transformers"
        )
    shape = {"num_channels": channels, "num_labels": classes}
    try:
        with seeded(seed):
            if cfg.model_type in OWN:
                model = OWN[cfg.model_type](**shape | cfg.config)
            else:
                model = _of_transformers(cfg, shape, size)
            if cfg.first_weights == FirstWeights.torchvision:
                draw_first_weights(model)
        if (device := next(model.parameters()).device).type != "meta":
            with torch.no_grad():  # one black image, for the errors of shapes that do not fit
                model.eval()(pixel_values=torch.zeros(1, channels, size, size, device=device))
    except ConfigError:
        raise
    except Exception as error:  # of torch or transformers, which have no base class for wrong arguments
        raise ConfigError(f"model.config of {cfg.name} is not valid: {complaint(error)}") from None
    return model.train()


def final_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the classifier sees of images (B, C, H, W): pooled features (B, d)."""
    if isinstance(model, tuple(OWN.values())):
        return cast(FCN, model).features(pixel_values)
    output = cast(nn.Module, model.base_model)(pixel_values=pixel_values)
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _of_transformers(cfg: ModelConfig, shape: dict[str, int], size: int) -> nn.Module:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    transformers.logging.set_verbosity_error()
    try:
        defaults = transformers.AutoConfig.for_model(cfg.model_type)
    except ValueError:
        raise ConfigError(f"model.model_type={cfg.model_type} is unknown; {USE}") from None
    if type(defaults) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ConfigError(f"model={cfg.name} does not classify images; {USE}")
    unknown = [key for key in cfg.config if not hasattr(defaults, key)]
    if unknown:
        raise ConfigError(f"model.config.{unknown[0]} is no argument of {type(defaults).__name__}")
    arguments = shape | ({"image_size": size} if hasattr(defaults, "image_size") else {}) | cfg.config
    try:
        config = transformers.AutoConfig.for_model(cfg.model_type, **arguments)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from None
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ConfigError(f"model.config.num_hidden_layers={config.num_hidden_layers} must be 1 or more")
    return transformers.AutoModelForImageClassification.from_config(config, dtype=torch.float32)
