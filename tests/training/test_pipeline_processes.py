"""A pipeline of processes computes what the emulated one does: in threads for every arm, with real processes for some.

Threads stand for processes where only the schedule and the cut are to be tested; their links are queues.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import pipeline_processes as driver
from helpers import config_of, refused, script
from leapbench.config.choices import Balance, Init
from leapbench.config.errors import BusyError, ConfigError
from leapbench.config.groups import ModelConfig
from leapbench.models.causal_lm import build
from leapbench.names import LOCK, PROJECT
from leapbench.prediction.weights import FlatWeights
from leapbench.records.lock import Lock
from leapbench.training.pipeline import run as pipeline_run
from leapbench.training.pipeline.links import Links
from leapbench.training.pipeline.one_process import compared, difference, state_of
from leapbench.training.pipeline.processes import Processes
from leapbench.training.pipeline.run import Checkpoints, run_stage
from leapbench.training.pipeline.section import Section
from leapbench.training.pipeline.stages import group
from leapbench.training.pipeline.step import PipelinedStep
from leapbench.training.pipeline.throughput import folder_beside, measured_in
from leapbench.training.pipeline.worker import StageStep, assembled
from leapbench.training.workload import Workload

CPU = torch.device("cpu")
STEPS = 12


def emulated(config):
    """The state after the emulated training, and its losses."""
    step = assembled(PipelinedStep, Workload(config, CPU))
    losses = [float(step(t, t)) for t in range(config.train.steps)]
    return state_of(step.model), losses


# ---- in threads ------------------------------------------------------------------------------------------------------


class Queue(queue.Queue):
    """A link between two threads."""

    def put(self, tensor):
        super().put(tensor.detach().clone())

    def take(self):
        return self.get(timeout=60)


def in_threads(config):
    """The state after the training of a stage in each of several threads, and the losses of the last."""
    count = config.pipeline.stages
    activations, gradients = ([Queue() for _ in range(count - 1)] for _ in range(2))
    stages = assembled(PipelinedStep, Workload(config, CPU)).stages
    workloads = [Workload(config, CPU) for _ in range(count)]  # drawn from the generator that all threads share
    ends = [None] * count

    def train(index):
        workload = workloads[index]
        section = Section(workload.model, stages, index, lambda: pipeline_run._whole(workload))
        first, last = index == 0, index == count - 1
        links = Links(
            None if first else activations[index - 1], None if last else activations[index],
            None if last else gradients[index], None if first else gradients[index - 1],
        )  # fmt: skip
        own = replace(stages[index], entries=tuple(FlatWeights.of(workload.model).layout))
        step = assembled(StageStep, workload, section=section, stage=own, links=links)
        losses = [float(step(t, t)) for t in range(config.train.steps)]
        assert not step.in_flight
        ends[index] = state_of(workload.model), losses

    threads = [threading.Thread(target=train, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert all(ends), "a stage has failed"
    return {name: tensor for tensors, _ in ends for name, tensor in tensors.items()}, ends[-1][1]


def images(**pipeline):
    """A residual network on digits, in four stages."""
    return config_of(
        "layerpipe2_digits", pipeline={"stages": 4, "versions": "stash"} | pipeline, K=[1],
        optimizer={"lr": 0.05}, schedule={"warmup": 4},
        train={"steps": STEPS, "interval": 6, "batch_size": 12, "grad_clip": 1.0},
    )  # fmt: skip


def text(lab, *words):
    """GPT-2 on a small text, in four stages."""
    common = ("model=gpt2_nano_untied", "pipeline=layerpipe2", "mode=leap", "predictor=none", "model.config.n_layer=2")
    return lab.config(*common, f"train.steps={STEPS}", "optimizer=adamw", *words)


@pytest.mark.parametrize(
    "arm",
    [
        {}, {"versions": "latest", "delay_model": "S"}, {"versions": "ema_pipeline"},
        {"versions": "ema_fixed", "averaged": "grad", "microbatches": 3, "delay_model": "S"},
        {"versions": "pipemare", "anneal": 6, "microbatches": 2}, {"stages": 1}, {"stages": 3, "microbatches": 12},
    ],
    ids=str,
)  # fmt: skip
def test_stages_of_their_own_train_like_emulated_ones(arm):
    config = images(**arm)
    (found, losses), (expected, others) = in_threads(config), emulated(config)
    assert difference(found, expected) == 0.0 and losses == others


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_so_do_those_of_a_language_model(lab, precision):
    config = text(lab, "pipeline.versions=ema_pipeline", f"train.precision={precision}")
    (found, losses), (expected, others) = in_threads(config), emulated(config)
    assert difference(found, expected) < 1e-6 and losses == pytest.approx(others, rel=1e-6)


# ---- a network's sections --------------------------------------------------------------------------------------------


def test_every_network_can_be_cut_into_sections(lab):
    """A section is tried on what the whole network gives it, with rotations by position and with a mask."""
    qwen = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    qwen |= {"intermediate_size": 16, "tie_word_embeddings": False, "max_position_embeddings": 16}
    ids = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).index_fill_(1, torch.tensor([6, 7]), 0)

    def language_model():
        model = build(ModelConfig("tiny", "qwen2", config=qwen), 64, 16, 0, Init.scratch)
        return model, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def image_model(name):
        workload = Workload(config_of(f"digits_{name}", "predictor=none", train={"batch_size": 4}), CPU)
        return workload.model, lambda: pipeline_run._whole(workload)

    for make, stages in ((language_model, 4), *((lambda n=n: image_model(n), 3) for n in ("vit", "alexnet", "fcn"))):
        for index in range(stages):
            model, forward = make()
            cut = group(model, FlatWeights.of(model).layout, stages, Balance.parameters, list)
            section = Section(model, cut, index, forward)
            assert (section.takes is None, section.gives is None) == (index == 0, index == stages - 1)
            assert sum(p.numel() for p in model.parameters()) == cut[index].size


class TwoPaths(nn.Module):
    """Its last layer sees what the first one gave, past the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        a = self.first(x)
        return self.last(self.second(a)) * a


def test_a_stage_that_needs_more_than_one_tensor_is_refused():
    model = TwoPaths()
    stages = group(model, FlatWeights.of(model).layout, 3, Balance.parameters, list)
    with pytest.raises(ConfigError, match="stage 2 of pipeline"):
        Section(model, stages, 2, lambda: model(torch.ones(2, 4)))


# ---- in processes ----------------------------------------------------------------------------------------------------


def started(folder, what):
    """Both processes from start to end: exit status, stderr, seconds from the death of one of them to the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    child = subprocess.Popen(
        [*command, str(PROJECT / "tests" / "pipeline_processes.py"), str(folder), what],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, err = child.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        child.terminate()
        _, err = child.communicate()
        pytest.fail(f"the processes hang\n{err}")
    return child.returncode, err, time.time() - (folder / "died").stat().st_mtime


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A folder with the pipelines of the driver, and how its two starts ended."""
    folder = tmp_path_factory.mktemp("processes")
    killed = started(folder, "killed")
    stages = pipeline_run.folder_beside(folder / "default") / driver.configured(folder, **driver.RESUMED).run_id
    kept = sorted(str(path.relative_to(stages)) for path in stages.glob("stages/*/*"))
    return folder, killed, kept, started(folder, "rest")


def of_processes(folder, config):
    """The weights and the summary that a pipeline has left."""
    run = folder_beside(config.folder.parent) / config.run_id
    return torch.load(run / "weights.pt", weights_only=True), json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("arm", driver.ARMS)
def test_processes_train_like_the_emulation(processes, arm):
    config = driver.configured(processes[0], **driver.ARMS[arm])
    (found, summary), (expected, losses) = of_processes(processes[0], config), emulated(config)
    assert difference(found, expected) < 1e-6
    assert summary["losses"] == pytest.approx(losses, rel=1e-6) and summary["status"] == "completed"
    assert [stage["delay"] for stage in summary["stages"]] == [1 if arm.endswith(" S") else 2, 0]
    assert all(0 <= stage["waiting_pct"] < 100 for stage in summary["stages"])
    # What goes forward goes back.
    sent = [stage["sent_bytes_per_step"] for stage in summary["stages"]]
    assert sent[0] == sent[1] > 0 and sent[0] * STEPS == summary["stages"][0]["sent_bytes"]


def test_a_killed_process_ends_the_other_with_one_message(processes):
    status, err, seconds = processes[1]
    (line,) = [line for line in err.splitlines() if line.startswith("interrupted; ")]
    assert line.startswith(("interrupted; stage 1 does not answer", "interrupted; stage 0 of 2 was told to end"))
    assert line.endswith("the same command continues from the last checkpoint")
    assert status != 0 and seconds < 30


def test_after_it_the_pipeline_goes_on_and_ends_with_the_same_weights(processes):
    assert processes[2] == ["stages/0/8", "stages/1/8"]
    config = driver.configured(processes[0], **driver.RESUMED)
    (found, summary), (expected, losses) = of_processes(processes[0], config), emulated(config)
    assert summary["resumed_at"] == 8
    assert difference(found, expected) < 1e-6 and summary["losses"] == pytest.approx(losses, rel=1e-6)
    assert not list((folder_beside(config.folder.parent) / config.run_id).glob("stages/*"))


def test_an_error_in_one_process_ends_the_other_silently(processes):
    status, err, seconds = processes[3]
    assert status != 0 and seconds < 30 and "interrupted" not in err
    assert err.count("BrokenError: nothing is wrong") == 1
    assert "stage 0 of 2 has ended with this error, and the other stages end with it" in err


# ---- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """As torchrun starts the first of `size` processes."""

    def of(size):
        for key, value in {"RANK": 0, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            monkeypatch.setenv(key, str(value))

    return of


def test_without_torchrun_it_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    end = script(monkeypatch, "pipeline", "experiment=layerpipe2_digits", "pipeline.stages=2")
    refused(end, "started by torchrun", "torchrun --nproc-per-node=2 scripts/pipeline.py")
    assert end.status == 2


@pytest.mark.parametrize(
    ("size", "changes", "words"),
    [
        (3, {"stages": 2}, "pipeline.stages=2 needs as many processes, and torchrun has started 3; use --nproc-per"),
        (6, {"stages": 6}, "pipeline.stages=6 is more than the 5 parts that model=resnet_small can be cut into"),
        (2, {"stages": 2, "forward": "trend"}, "pipeline.forward=trend is emulated only"),
    ],
)
def test_a_mistake_gets_one_line(monkeypatch, tmp_path, alone, size, changes, words):
    alone(size)
    config = images(**changes)
    config.results_dir = str(tmp_path)
    monkeypatch.setattr("leapbench.config.compose.configured", lambda *words: config)
    end = script(monkeypatch, "pipeline")
    refused(end, words)
    assert end.status == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("model=gpt2_nano", "pipeline=layerpipe2", "pipeline.stages=2", "predictor=none", "mode=leap"), "tied tensor"),
        (("pipeline=none", "predictor=none", "mode=leap"), "pipeline=none has no stages"),
        (("model=gpt2_nano_untied", "pipeline=layerpipe2", "pipeline.stages=2", "predictor=linear"), "predictor=none"),
    ],
)
def test_so_does_one_of_a_language_model(monkeypatch, fresh_lab, alone, words, line):
    alone(2)
    config = fresh_lab.config(*words)
    monkeypatch.setattr("leapbench.config.compose.configured", lambda *words: config)
    refused(script(monkeypatch, "pipeline"), line)
    assert not fresh_lab.results.exists()


def test_every_stage_needs_a_gpu_of_its_own(monkeypatch, alone):
    alone(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("leapbench.training.pipeline.processes.pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Processes().device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"device={name} is not a GPU for each stage"):
            Processes().device(name)


def test_overrides_are_those_of_train(monkeypatch, alone):
    alone(2)
    refused(script(monkeypatch, "pipeline", "experiment=layerpipe2_digits", "pipeline.stage=2"), "pipeline.stage")


def test_a_pipeline_that_has_ended_or_runs_is_left_alone(processes, monkeypatch):
    config = driver.configured(processes[0], **driver.ARMS["stash"])
    folder = folder_beside(config.folder.parent) / config.run_id

    class Two:
        rank, size = 0, 2

        def device(self, name):
            return CPU

    assert run_stage(config, Two()) == folder
    with pytest.raises(ConfigError, match="has ended without --measure"):
        run_stage(config, Two(), measure=True)
    monkeypatch.setattr(pipeline_run, "code_of", lambda science: {"other": "code"})
    with pytest.raises(ConfigError, match="was made by other code or with other data"):
        run_stage(config, Two())
    config.seed = 1
    lock = Lock(folder.with_name(config.run_id) / LOCK)
    lock.acquire()
    with pytest.raises(BusyError, match=f"pipeline {config.run_id} is already run by process {os.getpid()}"):
        run_stage(config, Two())
    lock.release()


def test_the_newest_checkpoint_of_all_counts_and_belongs_to_its_code(tmp_path):
    config = images()
    kept = Checkpoints(tmp_path, config, 0, {"code": "a"})
    for step in (4, 8):
        kept.save(step, {"step": step})
    assert kept.steps() == {4, 8} and kept.load(8, CPU)["step"] == 8
    with pytest.raises(ConfigError, match="made by other code"):
        Checkpoints(tmp_path, config, 0, {"code": "b"}).load(8, CPU)
    kept.drop(8)
    assert kept.steps() == {8}


def test_one_process_is_compared(tmp_path):
    config = images(stages=2)
    config.results_dir = str(tmp_path)
    expected, losses = emulated(config)
    found = compared(config, CPU, [3, 5], expected, 10.0)
    assert found["largest_relative_difference"] == 0.0 and found["emulated"]["losses"] == losses
    assert found["plain"]["losses"] != losses and found["speedup"] == 10.0 / found["plain"]["samples_per_s"]
    assert 1 <= found["model"]["ideal_speedup"] <= 2 and found["model"]["bytes_per_update"] > 0
    other = {name: tensor + (name == "classifier.1.bias") for name, tensor in expected.items()}
    assert difference(other, expected) > 1
    assert difference(expected | {"classifier.1.bias": torch.full((10,), torch.nan)}, expected) is None
    assert measured_in(tmp_path / "nothing") == []
