"""The image networks at the published sizes, the digits' three splits, and leaps of a network with batch norm."""

import pytest
import torch

import published as twin
import twins
from helpers import captured, composed, config_of, flat, interrupted, records, rows
from leapbench.config.errors import ConfigError
from leapbench.config.resolve import resolve
from leapbench.models import image_classifier
from leapbench.names import LEAPS
from leapbench.predictors.dmd import groups
from leapbench.training.run import run
from leapbench.training.workload import Workload

CPU = torch.device("cpu")
# 25 steps are an epoch; the run is three short ones of five steps.
SHORT = {
    "mode": "leap", "K": [5], "verify": {"sequences": 32, "batch_size": 32},
    "train": {"steps": 25, "interval": 5}, "leap": {"gate": "any", "rule": "always", "follow": [5]},
    "eval": {"every": 10}, "model": {"config": {"channels": [2, 2, 4, 4, 4]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "classes", "count"),
    [
        ("fcn", 128, 10, 3_918_858), ("alexnet", 128, 10, 57_044_810), ("resnet50", 224, 1000, 25_557_032),
        ("vit_base", 224, 1000, 86_567_656), ("vit_huge", 224, 1000, 632_045_800),
    ],
)  # fmt: skip
def test_networks_have_the_published_number_of_parameters(name, size, classes, count):
    cfg = resolve(composed(f"model={name}", "dataset=cifar10", "regime=published")).model
    with torch.device("meta"):
        model = image_classifier.build_image_classifier(cfg, 3, size, classes, seed=0, init="scratch")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_the_digits_are_split_once_and_evenly():
    workload = Workload(config_of("digits_fcn"), CPU)
    sizes = workload.task.sizes
    assert (sizes["train"], sizes["verification"], sizes["validation"]) == (1200, 297, 300)
    images = {split: workload.task.batch(split, range(size)) for split, size in sizes.items() if split != "train"}
    for batch in images.values():
        assert batch["pixel_values"].shape[1:] == (1, 32, 32)
        assert batch["pixel_values"].min() == -1.0 and batch["pixel_values"].max() == 1.0
        assert batch["labels"].bincount(minlength=10).sub(len(batch["labels"]) / 10).abs().max() <= 3
    pixels = [{tuple(image.flatten().tolist()) for image in batch["pixel_values"]} for batch in images.values()]
    assert not pixels[0] & pixels[1]


def test_batches_are_paired_across_predictors_and_modes():
    batches = []
    for choices, changes in ((("predictor=linear",), {"K": [5]}), (("predictor=none",), {"mode": "leap"})):
        batches.append(Workload(config_of("digits_vit", *choices, **changes), CPU).train_batch(7))
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


@pytest.mark.parametrize("buffers", ["keep", "recompute"])
def test_leaps_with_batch_norm_resume_bit_equal(tmp_path, monkeypatch, buffers):
    changes = SHORT | {"leap": SHORT["leap"] | {"buffers": buffers}, "results_dir": str(tmp_path)}

    def config(suite: str):
        checkpoint = {"every_s": None, "every_steps": 3}
        return config_of("digits_fcn", "predictor=linear", **changes, suite=suite, checkpoint=checkpoint)

    with captured(monkeypatch) as made:
        whole = run(config("whole"))
    wanted = {name: value.clone() for name, value in made[0].model.state_dict().items()}
    assert [leap["adopted"] for leap in rows(whole.folder, LEAPS)] == [True, True]

    with interrupted(monkeypatch, 13):
        run(config("halves"))
    with captured(monkeypatch) as made:
        halves = run(config("halves"))
    found = made[0].model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert records(halves.folder) == records(whole.folder)


def test_recomputed_buffers_make_another_run(tmp_path, monkeypatch):
    ends = {}
    for buffers in ("keep", "recompute"):
        changes = SHORT | {"leap": SHORT["leap"] | {"buffers": buffers}, "results_dir": str(tmp_path)}
        with captured(monkeypatch) as made:
            run(config_of("digits_fcn", "predictor=linear", **changes))
        ends[buffers] = (flat(made[0].model), [b.clone() for b in made[0].model.buffers()])
    # In training mode batch norm uses the batch: the weights agree, the running statistics do not.
    assert torch.equal(ends["keep"][0], ends["recompute"][0])
    assert any(not torch.equal(a, b) for a, b in zip(ends["keep"][1], ends["recompute"][1], strict=True))


# ---- the ViT of PDT's released code is torchvision's -----------------------------------------------------------------

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 8}


def as_torchvision(named):
    """Weights of transformers' ViT under the names of the twin: its three projections are one matrix there."""
    found = {
        "patches.weight": named["vit.embeddings.patch_embeddings.projection.weight"],
        "patches.bias": named["vit.embeddings.patch_embeddings.projection.bias"],
        "cls": named["vit.embeddings.cls_token"], "positions": named["vit.embeddings.position_embeddings"],
        "head.weight": named["classifier.weight"], "head.bias": named["classifier.bias"],
    }  # fmt: skip
    for block in range(2):
        layer = f"vit.layers.{block}"
        for end in ("weight", "bias"):
            parts = [named[f"{layer}.attention.{name}_proj.{end}"] for name in "qkv"]
            found[f"{block}.in_proj_{end}"] = torch.cat(parts)
            found[f"{block}.out_proj.{end}"] = named[f"{layer}.attention.o_proj.{end}"]
            for number in (0, 1):
                found[f"{block}.mlp{number}.{end}"] = named[f"{layer}.mlp.fc{number + 1}.{end}"]
    return found


def test_a_vit_starts_as_torchvisions_does():
    cfg = resolve(composed("model=vit_base", "dataset=cifar10", "regime=published")).model
    assert cfg.config["layer_norm_eps"] == 1e-6
    cfg.config = cfg.config | VIT
    torch.manual_seed(0)
    draws = [twin.torchvision_vit(2, 32, 64, 8, 32, 10) for _ in range(30)]
    models = [image_classifier.build_image_classifier(cfg, 3, 32, 10, seed, "scratch") for seed in range(30)]
    assert {m.eps for m in models[0].modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    ours = [as_torchvision({name: p.detach() for name, p in model.named_parameters()}) for model in models]
    assert {name: value.shape for name, value in ours[0].items()} == {n: v.shape for n, v in draws[0].items()}
    for name in draws[0]:
        a, b = (torch.stack([draw[name] for draw in family]).flatten() for family in (ours, draws))
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.05), name
        assert float(a.abs().max()) == pytest.approx(float(b.abs().max()), rel=0.25), name
        assert abs(float(a.mean())) <= 5 * float(b.std()) / len(a) ** 0.5, name
    norms = [p for name, p in models[0].named_parameters() if "norm" in name]
    assert all(torch.equal(p, torch.ones_like(p)) or not p.any() for p in norms) and norms


def test_vit_huge_has_the_released_132_groups():
    cfg = resolve(composed("model=vit_huge", "dataset=cifar10", "regime=published")).model
    with torch.device("meta"):
        model = image_classifier.build_image_classifier(cfg, 3, 224, 1000, seed=0, init="scratch")
    entries = twins.layout_of({name: tuple(p.shape) for name, p in model.named_parameters()})
    found = groups(entries, "group")
    assert len(found) == len(twin.pdt_groups(32)) == 132
    d, hidden = 1280, 5120
    by_part = {"ln_1": 2 * d, "ln_2": 2 * d, "self_attention": 4 * (d * d + d), "mlp": 2 * d * hidden + d + hidden}
    others = {
        "class_token": d,
        "conv_proj": 3 * 14 * 14 * d + d,
        "encoder": 257 * d + 2 * d,
        "heads": 1001 * d - d + 1000,
    }
    sizes = sorted(sum(entry.size for entry in group) for group in found)
    assert sizes == sorted([*others.values(), *(size for size in by_part.values() for _ in range(32))])


def test_only_a_vit_can_start_like_torchvisions():
    cfg = resolve(composed("model=resnet_small", "dataset=digits", "regime=published")).model
    cfg.first_weights = "torchvision"
    with pytest.raises(ConfigError, match=r"model\.first_weights=torchvision is for model\.model_type=vit, not resnet"):
        image_classifier.build_image_classifier(cfg, 1, 32, 10, 0, "scratch")
