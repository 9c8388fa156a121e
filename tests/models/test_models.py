"""Networks: published sizes, shrunken training, initialisation by seed, pretrained weights, and mistakes."""

from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf

from leapbench.config.errors import ConfigError
from leapbench.config.groups import ModelConfig
from leapbench.data import hub
from leapbench.models.causal_lm import build, final_hidden
from leapbench.models.image_classifier import build_image_classifier
from leapbench.names import PROJECT

CONF = PROJECT / "conf" / "model"
SMALL = {
    "gpt2": {"vocab_size": 100, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "qwen2_5_1_5b": {
        "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def conf(name: str, **config: object) -> ModelConfig:
    group = OmegaConf.merge(
        OmegaConf.structured(ModelConfig), OmegaConf.load(CONF / f"{name}.yaml"), {"config": config}
    )
    model = OmegaConf.to_object(group)
    assert isinstance(model, ModelConfig)
    return model


def small(name: str) -> torch.nn.Module:
    return build(conf(name, **SMALL[name]), vocab_size=100, tokens=16, seed=0, init="scratch")


@pytest.mark.parametrize(
    ("name", "vocabulary", "parameters"),
    [
        ("gpt2_nano", 256, 366_432),
        ("gpt2", 50_257, 124_439_808),
        ("qwen2_5_1_5b", 151_665, 1_543_714_304),
    ],
)
def test_published_sizes(name, vocabulary, parameters):
    with torch.device("meta"):
        model = build(conf(name), vocab_size=vocabulary, tokens=64, seed=0, init="scratch")
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fcn_small", 25_538),
        ("alexnet_small", 104_298),
        ("resnet_small", 20_130),
        ("vit_small", 42_490),
        ("mlp_small", 8_970),
    ],
)
def test_small_image_classifiers_are_all_trainable(name, parameters):
    model = build_image_classifier(conf(name), 1, 32, 10, seed=0, init="scratch")
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())
    assert model.training


def assert_seed_alone(weights: Callable[[int], torch.Tensor]) -> None:
    """`weights(seed)` neither reads nor moves the global generator, and tells seeds apart."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(weights(3), first)
    assert not torch.equal(weights(4), first)


@pytest.mark.parametrize("name", ["fcn_small", "alexnet_small", "resnet_small", "vit_small", "mlp_small"])
def test_image_classifiers_depend_on_the_seed_alone(name):
    def weights(seed: int) -> torch.Tensor:
        model = build_image_classifier(conf(name), 1, 32, 10, seed, "scratch")
        return torch.cat([weight.flatten() for weight in model.parameters()])

    assert_seed_alone(weights)


def test_he_weights_keep_the_size_of_the_signal():
    def spread(he: bool) -> torch.Tensor:
        model = build_image_classifier(conf("alexnet_small", he=he), 1, 32, 10, 0, "scratch").eval()
        with torch.no_grad():
            return model(pixel_values=torch.randn(64, 1, 32, 32, generator=torch.manual_seed(0))).logits.std(0).mean()

    assert spread(True) > 0.1 > 20 * spread(False)


@pytest.mark.parametrize("name", SMALL)
def test_shrunken_networks_learn(name):
    model = small(name)
    assert model.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(32).reshape(2, 16)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", SMALL)
def test_final_hidden_states_are_what_the_head_sees(name):
    model = small(name).eval()
    ids = torch.arange(16).reshape(1, 16)
    hidden = final_hidden(model, {"input_ids": ids})
    assert hidden.shape == (1, 16, 16)
    assert torch.allclose(model.lm_head(hidden), model(input_ids=ids).logits)
    masked = {"input_ids": ids.clone(), "attention_mask": (torch.arange(16) < 10).long()[None]}
    masked["input_ids"][:, 10:] = 0
    assert torch.allclose(final_hidden(model, masked)[:, :10], hidden[:, :10], atol=1e-6)


def test_initialisation_depends_on_the_seed_alone():
    cfg = conf("gpt2_nano")

    def weights(seed: int) -> torch.Tensor:
        model = build(cfg, vocab_size=256, tokens=64, seed=seed, init="scratch")
        return torch.cat([weight.flatten() for weight in model.parameters()])

    assert_seed_alone(weights)


def test_vocabulary_comes_from_the_tokenizer_unless_configured():
    config = build(conf("gpt2_nano"), 300, 64, 0, "scratch").config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (300, 299, 299)
    assert build(conf("gpt2_nano", vocab_size=512), 300, 64, 0, "scratch").config.vocab_size == 512


def test_building_is_silent(capfd):
    build(conf("gpt2_nano"), vocab_size=256, tokens=64, seed=0, init="scratch")
    assert capfd.readouterr() == ("", "")


def test_pretrained_weights_from_a_local_folder(tmp_path, capfd):
    published = small("gpt2")
    published.half().save_pretrained(tmp_path)
    capfd.readouterr()
    cfg = conf("gpt2", **SMALL["gpt2"])
    cfg.pretrained = str(tmp_path)
    state = torch.get_rng_state()
    model = build(cfg, vocab_size=100, tokens=16, seed=0, init="pretrained")
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert model.training
    for (name, weight), (_, other) in zip(model.named_parameters(), published.named_parameters(), strict=True):
        assert weight.dtype == torch.float32, name
        assert torch.equal(weight, other.float()), name
    cfg.config["n_layer"] = 3
    assert_refused("has no weights for transformer.h.2", cfg, init="pretrained")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"init": "pretrained"}, "has no pretrained weights; use model.init=scratch"),
        (
            {"pretrained": "nobody/nothing"},
            {"init": "pretrained"},
            "is not on this machine and .* use model.init=scratch",
        ),
        ({"pretrained": str(CONF)}, {"init": "pretrained"}, "cannot be loaded: .* use model.init=scratch"),
        ({}, {"tokens": 65}, "dataset.tokens=65 is longer .* at most model.config.n_positions=64"),
        ({"config": {"vocab_size": 100}}, {}, "model.config.vocab_size=100 is smaller than the tokenizer's 256"),
        ({"config": {"n_layers": 3}}, {}, "model.config.n_layers is no argument of GPT2Config"),
        ({"config": {"n_layer": "three"}}, {}, "model.config of gpt2_nano is not valid: .*n_layer"),
        ({"model_type": "gpt9"}, {}, "model.model_type=gpt9 is unknown"),
    ],
)
def test_mistakes_are_one_line(change, arguments, message):
    cfg = conf("gpt2_nano")
    for key, value in change.items():
        setattr(cfg, key, value)
    assert_refused(message, cfg, **arguments)


def assert_refused(message: str, cfg: ModelConfig, tokens: int = 16, init: str = "scratch") -> None:
    vocabulary = min(256, cfg.config.get("vocab_size", 256)) if init == "pretrained" else 256
    with pytest.raises(ConfigError, match=message) as caught:
        build(cfg, vocab_size=vocabulary, tokens=tokens, seed=0, init=init)
    assert "\n" not in str(caught.value)
