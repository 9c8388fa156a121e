"""Laps that add up, on a clock of our own."""

import time
from types import SimpleNamespace

import pytest
import torch

from leapbench.names import Seconds
from leapbench.prediction import clock as module
from leapbench.prediction.clock import CHARGED, LAPS, Clock, seconds_on


class Watch:
    def __init__(self):
        self.time = 100.0

    def process_time(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(module, "time", SimpleNamespace(process_time=watch.process_time))
    return watch


def spent(clock):
    return {lap: seconds for lap, seconds in clock.now().items() if seconds}


def test_every_second_goes_to_exactly_one_lap(watch):
    clock = Clock(torch.device("cpu"))
    watch.wait(1)
    clock.enter("train")
    watch.wait(2)
    clock.enter("train")
    watch.wait(4)
    clock.enter("eval")
    watch.wait(8)
    clock.enter("train")
    watch.wait(16)
    assert spent(clock) == {"other": 1, "train": 22, "eval": 8}
    assert set(clock.now()) == set(LAPS)
    assert sum(clock.now().values()) == watch.time - 100


def test_looking_at_the_clock_does_not_change_it(watch):
    clock = Clock(torch.device("cpu"))
    clock.enter("train")
    watch.wait(1)
    first = clock.now()
    watch.wait(2)
    assert first["train"] == 1
    assert clock.now()["train"] == clock.now()["train"] == 3
    assert clock.running == "train"


def test_blocks_give_the_lap_back_to_the_one_around_them(watch):
    clock = Clock(torch.device("cpu"))
    clock.enter("eval")
    watch.wait(1)
    with clock.lap("predict"):
        watch.wait(2)
        with clock.lap("verify"):
            watch.wait(4)
        assert clock.running == "predict"
        watch.wait(8)
    assert clock.running == "eval"
    watch.wait(16)
    assert spent(clock) == {"eval": 17, "predict": 10, "verify": 4}


def test_a_block_that_fails_gives_the_lap_back_too(watch):
    clock = Clock(torch.device("cpu"))
    clock.enter("train")
    with pytest.raises(RuntimeError), clock.lap("verify"):
        watch.wait(1)
        raise RuntimeError
    watch.wait(2)
    assert spent(clock) == {"verify": 1, "train": 2}


def test_evaluation_and_logging_are_not_charged(watch):
    clock = Clock(torch.device("cpu"))
    for place, lap in enumerate(LAPS):
        clock.enter(lap)
        watch.wait(2**place)
    assert clock.charged == sum(2**place for place, lap in enumerate(LAPS) if lap not in ("eval", "other"))
    assert set(LAPS) - set(CHARGED) == {"eval", "other"}


def test_a_resumed_clock_goes_on(watch):
    clock = Clock(torch.device("cpu"), {"train": 50.0, "eval": 5.0})
    clock.enter("train")
    watch.wait(1)
    assert spent(clock) == {"train": 51, "eval": 5}
    assert clock.charged == 51


def test_waiting_costs_nothing_on_a_cpu():
    clock = Clock(torch.device("cpu"))
    with clock.lap("verify") as waited:
        time.sleep(0.1)
    with clock.lap("train") as worked:
        while time.process_time() - clock._since < 0.02:
            pass
    assert waited.seconds < 0.02 <= worked.seconds


@pytest.mark.parametrize(("device", "reader"), [("cpu", time.process_time), ("cuda", time.perf_counter)])
def test_what_a_second_is(device, reader, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = Clock(torch.device(device))
    assert clock._read is reader
    assert seconds_on(torch.device(device)) == {"cpu": Seconds.processor, "cuda": Seconds.wall}[device]


def test_unknown_laps_are_refused(watch):
    clock = Clock(torch.device("cpu"))
    clock.enter("tea")
    with pytest.raises(KeyError, match="tea"):
        clock.now()


def test_the_device_is_waited_for_where_a_lap_ends_and_only_there(watch):
    clock, waits = Clock(torch.device("cpu")), []
    clock._wait = lambda: waits.append(watch.time)
    clock.enter("train")
    for _ in range(5):
        watch.wait(1)
        clock.enter("train")
    assert len(waits) == 1
    clock.enter("verify")
    assert waits == [100.0, 105.0]
