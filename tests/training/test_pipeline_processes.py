"""A pipeline of processes computes what the emulated one does: in threads for every arm, with real processes for some.

Threads stand for processes where only the schedule and the cut are to be tested; their links are queues.
"""

import copy
import queue
import threading
from dataclasses import replace

import pytest
import torch

from helpers import config_of
from leapbench.prediction.weights import FlatWeights
from leapbench.training.pipeline.links import Links
from leapbench.training.pipeline.one_process import difference, state_of
from leapbench.training.pipeline.run import _whole
from leapbench.training.pipeline.section import Section
from leapbench.training.pipeline.step import PipelinedStep
from leapbench.training.pipeline.worker import StageStep, assembled
from leapbench.training.workload import Workload

CPU = torch.device("cpu")
STEPS = 12


class Queue(queue.Queue):
    """A link between two threads."""

    def put(self, tensor):
        super().put(tensor.detach().clone())

    def take(self):
        return self.get(timeout=60)


def configured(experiment="layerpipe2_digits", **pipeline):
    """A short training in stages; `layerpipe2_digits` is a ResNet, `model="fcn"` another network of images."""
    changes = {
        "pipeline": {"stages": 4, "versions": "stash"} | pipeline,
        "train": {"steps": STEPS, "interval": 6, "batch_size": 12, "grad_clip": 1.0},
        "schedule": {"warmup": 2, "warmup_begins": "at"}, "K": [1],
        "optimizer": {"lr": 0.05}, "checkpoint": {"every_s": None},
    }  # fmt: skip
    return config_of(experiment, **changes)


def in_threads(config):
    """The workloads of the stages after the training, and the losses of the last one."""
    count, parts = config.pipeline.stages, config.pipeline.microbatches
    activations, gradients = ([Queue() for _ in range(count - 1)] for _ in range(2))
    workloads, losses = [Workload(config, CPU) for _ in range(count)], [[] for _ in range(count)]
    stages = assembled(PipelinedStep, Workload(config, CPU)).stages

    def train(index):
        workload = workloads[index]
        section = Section(workload.model, stages, index, lambda: _whole(workload))
        first, last = index == 0, index == count - 1
        links = Links(
            None if first else activations[index - 1], None if last else activations[index],
            None if last else gradients[index], None if first else gradients[index - 1],
        )  # fmt: skip
        own = replace(stages[index], entries=tuple(FlatWeights.of(workload.model).layout))
        step = assembled(StageStep, workload, section=section, stage=own, links=links)
        losses[index] = [step(t, t) for t in range(STEPS)]

    threads = [threading.Thread(target=train, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return workloads, losses[-1]
