"""Image workloads: paired batches, fresh draws, batch norm's buffers, and the published recipes end to end in small."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import config_of, flat, rows, untimed
from leapbench.config.choices import Probes
from leapbench.config.errors import ConfigError
from leapbench.prediction.candidate import candidate_loss
from leapbench.prediction.weights import FlatWeights
from leapbench.training.run import run
from leapbench.training.workload import Workload

CPU = torch.device("cpu")
SMALL = ("fcn", "alexnet", "resnet", "vit", "mlp")


@pytest.fixture(scope="module")
def fcn() -> Workload:
    return Workload(config_of("digits_fcn"), CPU)


def state(workload: Workload) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in workload.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- training batches ------------------------------------------------------------------------------------------------


def test_batches_are_functions_of_seed_and_index(fcn):
    later, earlier = fcn.train_batch(30), fcn.train_batch(3)
    state = torch.get_rng_state()
    other = Workload(config_of("digits_fcn"), CPU)
    torch.rand(3), np.random.rand(3)
    assert equal(other.train_batch(3), earlier)
    assert equal(other.train_batch(30), later)
    torch.set_rng_state(state)
    fcn.train_batch(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(later["pixel_values"], earlier["pixel_values"])
    reseeded = Workload(config_of("digits_fcn", seed=1), CPU)
    assert not torch.equal(reseeded.train_batch(3)["labels"], earlier["labels"])
    assert not torch.equal(flat(reseeded.model), flat(fcn.model))


def test_an_epoch_shows_every_image_once_under_new_maps(fcn):
    per_epoch = 1200 // 48
    first, second = ([fcn.train_batch(e * per_epoch + i) for i in range(per_epoch)] for e in (0, 1))
    assert torch.cat([b["labels"] for b in first]).bincount().equal(torch.cat([b["labels"] for b in second]).bincount())
    order = [fcn._plan(index)[0] for index in range(per_epoch)]
    assert sorted(np.concatenate(order)) == list(range(1200))
    plain = fcn.task.batch("train", order[0])
    assert torch.equal(plain["labels"], first[0]["labels"])
    assert not torch.equal(plain["pixel_values"], first[0]["pixel_values"])
    assert 0.5 < float((plain["pixel_values"] * first[0]["pixel_values"]).mean()) < 1  # still the same digits


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_a_score_is_the_loss_and_the_share_of_right_answers(fcn):
    images = fcn.task.batch("validation", np.arange(300))
    fcn.model.eval()
    with torch.no_grad():
        logits = fcn.model(pixel_values=images["pixel_values"]).logits
    fcn.model.train()
    score = fcn.score(fcn.model, "validation")
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, images["labels"])), rel=1e-5)
    assert score.accuracy == float(
        (logits.argmax(1) == images["labels"]).float().mean().double().mul(300).round() / 300
    )
    assert score.loss == fcn.score(fcn.model, "validation").loss
    assert fcn.score(fcn.model, "verification").loss == fcn.verification_loss(fcn.model) != score.loss


def test_texts_have_no_accuracy(lab):
    workload = Workload(lab.config(), CPU)
    score = workload.score(workload.model, "validation")
    assert score.accuracy is None
    assert score.loss == workload.score(workload.model, "validation").loss


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_draws_depend_on_the_seed_and_their_number_alone(fcn, lab, kind):
    if kind == "images":
        first, second = fcn, Workload(config_of("digits_fcn", seed=1), CPU)
    else:
        first, second = (Workload(lab.config("dataset.tokens=8", f"seed={seed}"), CPU) for seed in (0, 1))
    losses = []
    for index in (0, 1, 7, 1):
        first.draw(index)
        losses.append(first.drawn_loss(first.model))
        assert first.drawn_loss(first.model) == losses[-1]
    assert len(set(losses)) == 3
    assert losses[1] == losses[3]
    second.draw(1)
    assert second.drawn_loss(first.model) != losses[1]


def test_draws_reach_the_whole_verification_split(fcn):
    total, seen = fcn.task.sizes["verification"], set()
    for index in range(12):
        fcn.draw(index)
        labels = torch.cat([batch["labels"] for batch in fcn._drawn])
        assert len(labels) == fcn.config.verify.sequences
    # Recover the numbers from the images themselves.
    pool = fcn.task.batch("verification", np.arange(total))["pixel_values"].reshape(total, -1)
    for index in range(12):
        fcn.draw(index)
        drawn = torch.cat([batch["pixel_values"] for batch in fcn._drawn])
        nearest = torch.cdist(drawn.reshape(len(drawn), -1), pool).argmin(1).tolist()
        assert len(set(nearest)) == len(nearest)
        seen.update(nearest)
    assert len(seen) > 0.95 * total


@pytest.mark.parametrize("name", SMALL)
def test_probe_states_are_what_the_classifier_sees(name):
    workload = Workload(config_of(f"digits_{name}", regime={"probes": 5}), CPU)
    hidden, mask = workload.probe_states("exact")
    assert hidden.shape[:2] == (5, 1)
    assert mask is None
    pixels = torch.cat([batch["pixel_values"] for batch in workload._probes[Probes.held_out]])
    workload.model.eval()
    with torch.no_grad():
        wanted = workload.model(pixel_values=pixels).logits
        features = hidden[:, 0]
        logits = workload.model.classifier(features[..., None, None] if name in ("fcn", "resnet") else features)
    assert torch.allclose(logits.reshape(5, 10), wanted, atol=1e-5)


# ---- batch norm ------------------------------------------------------------------------------------------------------


def norms(workload: Workload) -> list[nn.BatchNorm2d]:
    return [module for module in workload.model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_scoring_leaves_buffers_and_mode_alone_and_training_moves_them():
    workload = Workload(config_of("digits_resnet"), CPU)
    before = state(workload)
    workload.draw(0)
    workload.drawn_loss(workload.model)
    workload.score(workload.model, "validation")
    workload.probe_states("exact")
    weights = FlatWeights(workload.model)
    doubled = weights.vector * 2
    loss = candidate_loss(workload.model, weights.layout, doubled, workload.verification_loss)
    assert loss != workload.verification_loss(workload.model)
    assert equal(state(workload), before)
    assert workload.model.training
    workload.loss(workload.forward, workload.train_batch(0))
    assert not equal(state(workload), before)


def test_recomputed_buffers_are_means_over_training_batches():
    workload = Workload(config_of("digits_fcn"), CPU)
    for index in range(3):
        workload.loss(workload.forward, workload.train_batch(index))
    before, rng, momentum = state(workload), torch.get_rng_state(), [norm.momentum for norm in norms(workload)]
    workload.recompute_buffers(batches=4)
    assert torch.equal(torch.get_rng_state(), rng)
    assert workload.model.training
    assert [norm.momentum for norm in norms(workload)] == momentum
    after = state(workload)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name for name in changed)
    with torch.no_grad():
        seen = [workload.model.convolutions[0](workload.train_batch(i)["pixel_values"]) for i in range(4)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    first = norms(workload)[0]
    assert torch.allclose(first.running_mean, mean, atol=1e-6)
    assert torch.allclose(first.running_var, var, rtol=1e-4)
    workload.recompute_buffers(batches=4)
    assert equal(state(workload), after)


def test_without_batch_norm_nothing_is_recomputed(monkeypatch):
    workload = Workload(config_of("digits_alexnet"), CPU)
    monkeypatch.setattr(workload, "train_batch", lambda index: pytest.fail("it drew a batch"))
    before = state(workload)
    workload.recompute_buffers()
    assert equal(state(workload), before)
    assert workload.buffers() == {}


def test_buffers_make_the_round_trip_of_a_checkpoint():
    workload = Workload(config_of("digits_fcn"), CPU)
    saved = {name: value.clone() for name, value in workload.buffers().items()}
    loss = workload.score(workload.model, "validation").loss
    workload.loss(workload.forward, workload.train_batch(0))
    assert workload.score(workload.model, "validation").loss != loss
    workload.load_buffers(saved)
    assert workload.score(workload.model, "validation").loss == loss


# ---- the small networks learn ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lr", "drop"), [("fcn", 0.1, 0.5), ("alexnet", 0.1, 0.05), ("resnet", 0.03, 0.3), ("vit", 3e-3, 0.15)]
)
def test_small_networks_learn_the_digits(name, lr, drop):
    workload = Workload(config_of(f"digits_{name}"), CPU)
    kind = torch.optim.AdamW if name == "vit" else torch.optim.SGD
    optimizer = kind(workload.model.parameters(), lr=lr)
    torch.manual_seed(0)
    before = workload.score(workload.model, "validation")
    for index in range(75):
        workload.loss(workload.forward, workload.train_batch(index)).backward()
        assert all(p.grad is not None for p in workload.model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    after = workload.score(workload.model, "validation")
    assert before.loss > 2.2
    assert after.loss < before.loss - drop


# ---- runs ------------------------------------------------------------------------------------------------------------

SHORT = {
    "train": {"steps": 12, "interval": 2}, "eval": {"every": 4, "sequences": 50, "batch_size": 50},
    "verify": {"sequences": 20, "batch_size": 20}, "regime": {"probes": 10},
}  # fmt: skip


def test_observing_images_records_accuracy(tmp_path):
    changes = SHORT | {"K": [2, 4], "results_dir": str(tmp_path), "schedule": {"warmup": 0}}
    end = run(config_of("digits_resnet", "predictor=linear", **changes))
    assert end.status == "completed"
    evals = rows(end.folder, "evals.jsonl")
    scored = [row for row in evals if row["split"] == "validation"]
    assert [row["step"] for row in scored] == [4, 8, 12]
    assert all(0 <= row["accuracy"] <= 1 for row in scored)
    proposals = rows(end.folder, "proposals.jsonl")
    assert {row["predictor"] for row in proposals} == {"linear", "persistence", "average"}
    assert json.loads((end.folder / "meta.json").read_text())["parameters"] > 10_000


# ---- published recipes on local copies -------------------------------------------------------------------------------

SHRUNKEN = {
    "pdt_fcn": {"channels": [2, 2, 2, 2, 2]},
    "pdt_alexnet": {"channels": [2, 2, 2, 2, 2], "pooled": 1, "hidden": 4},
    "pdt_resnet50": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
    "pdt_vit_base": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "pdt_vit_huge": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
}  # fmt: skip


def encoded(rng: np.random.Generator, size: tuple[int, int], form: str) -> dict:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, form)
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's and ImageNet's repositories in small."""
    root, rng = tmp_path_factory.mktemp("hub"), np.random.default_rng(0)
    sizes = {"cifar": ("plain_text", "img", "test", "PNG"), "imagenet": ("data", "image", "validation", "JPEG")}
    for name, (folder, column, other, form) in sizes.items():
        (root / name / folder).mkdir(parents=True)
        for split, count in (("train", 60), (other, 20)):
            shapes = [(32, 32) if name == "cifar" else tuple(rng.integers(40, 90, 2)) for _ in range(count)]
            images = [encoded(rng, shape, form) for shape in shapes]
            table = pa.table({column: images, "label": [i % 10 for i in range(count)]})
            pq.write_table(table, root / name / folder / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("experiment", SHRUNKEN)
def test_published_recipe_runs_and_leaps(experiment, hub, tmp_path):
    cifar = experiment in ("pdt_fcn", "pdt_alexnet")
    changes = {
        "model": {"config": SHRUNKEN[experiment]},
        "dataset": {
            "path": str(hub / ("cifar" if cifar else "imagenet")), "examples": 40,
            "image": {"held_out": 20} | ({} if cifar else {"size": 32, "resize": 40, "classes": 10}),
        },
        "predictors": {"pdt": {"h": 2}},
        "K": "1 epoch",
        "leap": {"burn_in": 2},
        "train": {"steps": "5 epochs", "batch_size": 20},
        "verify": {"sequences": 10, "batch_size": 10},
        "eval": {"sequences": 20, "batch_size": 20},
        "regime": {"probes": 4},
        "results_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "history_device": None,
    }  # fmt: skip
    if "vit" in experiment:
        changes["model"] = {"config": SHRUNKEN[experiment] | {"patch_size": 16}}
    schedule = {"warmup": 0 if cifar else "1 epoch"}
    if experiment in ("pdt_resnet50", "pdt_vit_huge"):
        schedule["restart_at"] = "4 epochs"
    config = config_of(experiment, **changes, schedule=schedule)
    end = run(config)
    assert end.status == "completed"
    leaps = untimed(end.folder, "leaps.jsonl")
    steps = [row["step"] for row in leaps]
    if cifar:
        assert steps == [6, 8, 10]
    else:  # the scheduler makes proposals rarer when the training loss rises
        assert steps[0] == 6 and set(steps) <= {6, 8, 10}
    assert all(row["adopted"] and row["rule"] == "always" and row["status"] == "ok" for row in leaps)
    assert all(0 < row["changed_share"] < 1 for row in leaps)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "changes", "message"),
    [
        (("model=gpt2_nano",), {}, "model=gpt2_nano does not classify images; use model=fcn_small"),
        (("model=fcn_small", "dataset=stdlib"), {}, "model.model_type=fcn is unknown"),
        (("model=resnet_small", "dataset=stdlib"), {}, "model=resnet_small does not read text; use model=gpt2_nano"),
        ((), {"dataset": {"examples": 1000}}, "examples=1000 but .* 1200 training images .* set dataset.examples=1200"),
        ((), {"dataset": {"image": {"held_out": 1497}}}, "held_out=1497 does not fit: 1497 of the digits"),
        ((), {"dataset": {"image": {"loading": "streamed"}}}, "digits needs dataset.image.loading=resident"),
        ((), {"dataset": {"image": {"loading": "lazy"}}}, "loading=lazy is unknown; use resident or streamed"),
        ((), {"dataset": {"image": {"mean": [0.5, 0.5]}}}, r"mean=\[0.5, 0.5\] must have one number for each"),
        ((), {"dataset": {"image": {"augment": {"turn": 3}}}}, "augment: .*turn.* is no key"),
        ((), {"dataset": {"image": {"size": 0}}}, "dataset.image.size=0 must be 1 or more"),
        ((), {"dataset": {"image": {"size": 16}}}, "model.config of fcn_small is not valid: .*size is too small"),
        ((), {"verify": {"sequences": 250}}, "has 297 verification images but verify.sequences"),
        ((), {"eval": {"sequences": 301}}, "has 300 validation images but eval.sequences asks for 301"),
        ((), {"model": {"config": {"width": 3}}}, "model.config of fcn_small is not valid: .*width"),
        ((), {"model": {"config": {"num_labels": 5}}}, "num_labels=5 is below the data's 10 classes"),
        ((), {"model": {"init": "pretrained"}}, "has no pretrained weights; use model.init=scratch"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(choices, changes, message, tmp_path):
    if "dataset=stdlib" in choices:
        changes = changes | {
            "train": {"steps": 10, "interval": 5}, "eval": {"every": 5}, "schedule": {"warmup": 0}, "K": [5],
            "cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
    with pytest.raises(ConfigError, match=message) as caught:
        Workload(config_of("digits_fcn", *choices, **changes), CPU)
    assert "\n" not in str(caught.value)
