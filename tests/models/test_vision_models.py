"""The image networks at the published sizes, the digits' three splits, and leaps of a network with batch norm."""

import pytest
import torch

from helpers import captured, composed, config_of, flat, interrupted, records, rows
from leapbench.config.resolve import resolve
from leapbench.models import image_classifier
from leapbench.names import LEAPS
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
