"""Causal language models of `transformers`, at published or smaller sizes, from scratch or pretrained."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from leapbench.config.choices import Init
from leapbench.config.errors import ConfigError, complaint
from leapbench.config.groups import ModelConfig
from leapbench.models.seeded import seeded

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def build(cfg: ModelConfig, vocab_size: int, tokens: int, seed: int, init: Init) -> torch.nn.Module:
    """A network for sequences of `tokens` ids below `vocab_size`: float32 weights, training mode, no key-value cache.

    With `init=scratch` the weights depend on `cfg`, the vocabulary and `seed` alone; torch's global random state is
    left as it was. With `init=pretrained` they are those of `cfg.pretrained`, and `cfg.config` overrides its config.

    Raises:
        ConfigError: an unknown class or argument, a context or vocabulary too small for the data, or weights that do
            not exist, cannot be loaded, or do not fill the network.
    """
    if init == Init.pretrained and cfg.pretrained is None:
        raise ConfigError(
            f"model={cfg.name} has no pretrained weights; use model.init=scratch, or set model.pretrained"
        )
    config = _config(cfg, vocab_size, init)
    if config.vocab_size < vocab_size:
        raise ConfigError(
            f"model.config.vocab_size={config.vocab_size} is smaller than the tokenizer's {vocab_size} entries; "
            "raise it or choose another dataset.tokenizer"
        )
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        raise ConfigError(
            f"dataset.tokens={tokens} is longer than the context of model={cfg.name}; "
            f"use at most model.config.{name}={context}"
        )
    if getattr(config, "num_hidden_layers", 1) < 1:
        name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        raise ConfigError(f"model.config.{name}={config.num_hidden_layers} must be 1 or more")
    try:
        with seeded(seed):
            if init == Init.scratch:
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            else:
                model = _pretrained(cfg, config)
            model.config.use_cache = False
            if next(model.parameters()).device.type != "meta":
                with torch.no_grad():  # two tokens, for the errors of shapes that do not fit
                    model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    except ConfigError:
        raise
    except Exception as error:  # of torch or transformers, which have no base class for wrong arguments
        raise ConfigError(f"model.config of {cfg.name} is not valid: {complaint(error)}") from None
    return model.train()


def final_hidden(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states after the last norm (B, T, d), for `input_ids` (B, T) and an optional `attention_mask` (B, T)."""
    base = cast(torch.nn.Module, model.base_model)
    return base(**batch).last_hidden_state


def _config(cfg: ModelConfig, vocab_size: int, init: Init) -> transformers.PretrainedConfig:
    try:
        defaults = transformers.AutoConfig.for_model(cfg.model_type)
    except ValueError:
        raise ConfigError(
            f"model.model_type={cfg.model_type} is unknown; use a model type of transformers, such as gpt2 or qwen2"
        ) from None
    if type(defaults) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"model={cfg.name} does not read text; use model=gpt2_nano or another language model")
    unknown = [key for key in cfg.config if not hasattr(defaults, key) and key != "attn_implementation"]
    if unknown:
        raise ConfigError(f"model.config.{unknown[0]} is no argument of {type(defaults).__name__}")
    try:
        if init == Init.pretrained:
            return _fetch(cfg, transformers.AutoConfig, **cfg.config)
        arguments: dict[str, Any] = {"vocab_size": vocab_size} | cfg.config
        if cfg.model_type == "gpt2":  # its defaults point at the last entry of its own vocabulary
            last = arguments["vocab_size"] - 1
            arguments = {"bos_token_id": last, "eos_token_id": last} | arguments
        return transformers.AutoConfig.for_model(cfg.model_type, **arguments)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise ConfigError(f"model.config of {cfg.name} is not valid: {complaint(error)}") from None


def _pretrained(cfg: ModelConfig, config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    model, info = _fetch(
        cfg, transformers.AutoModelForCausalLM, config=config, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ConfigError(
            f"model.pretrained={cfg.pretrained} has no weights for {min(info['missing_keys'])}; "
            "let model.config match it, or use model.init=scratch"
        )
    return model


def _fetch(cfg: ModelConfig, kind: Any, **arguments: Any) -> Any:
    from leapbench.data.hub import fetch

    name = str(cfg.pretrained)
    return fetch(
        "model.pretrained",
        name,
        lambda local_files_only: kind.from_pretrained(name, local_files_only=local_files_only, **arguments),
        "model.init=scratch, or model.pretrained=<local folder>",
    )
